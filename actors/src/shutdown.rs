//! The signal to leave, shared by every task of a process.
//!
//! Invariants
//! - **S1** the first reason wins and stays; a signal never goes back.
//! - **S2** a child is triggered with its parent, a parent never by its child.
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;

/// Clonable; all clones are one signal.
#[derive(Clone)]
pub struct Shutdown(Arc<Node>);

struct Node {
    state: watch::Sender<Option<Arc<str>>>,
    children: Mutex<Vec<Weak<Node>>>,
}

impl Shutdown {
    /// A signal that nobody has given yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Node { state: watch::Sender::new(None), children: Mutex::new(Vec::new()) }))
    }

    /// Gives the signal to everybody who waits, here and in every child. Only the first reason is kept.
    pub fn trigger(&self, reason: impl Into<String>) {
        self.0.trigger(&Arc::from(reason.into()));
    }

    /// Whether it was given.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        self.0.state.borrow().is_some()
    }

    /// Why it was given; `None` while it was not.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.0.state.borrow().as_ref().map(ToString::to_string)
    }

    /// Returns the reason once the signal is given, at once if it was given before. Cancel-safe.
    pub async fn wait(&self) -> String {
        let mut receiver = self.0.state.subscribe();
        loop {
            if let Some(reason) = receiver.borrow_and_update().as_ref() {
                return reason.to_string();
            }
            if receiver.changed().await.is_err() {
                // Unreachable while `self` holds the sender; a lost signal reads as one to leave.
                return "shutdown signal dropped".to_owned();
            }
        }
    }

    /// A signal of its own that is also given when this one is.
    #[must_use]
    pub fn child(&self) -> Self {
        let child = Self::new();
        let mut children = self.0.lock_children();
        // Under the lock, so that a trigger in between sees either the child in the list or its reason here.
        if let Some(reason) = self.0.state.borrow().as_ref() {
            child.0.trigger(reason);
        }
        children.retain(|c| c.strong_count() > 0);
        children.push(Arc::downgrade(&child.0));
        drop(children);
        child
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shutdown").field(&self.reason()).finish()
    }
}

impl Node {
    fn trigger(&self, reason: &Arc<str>) {
        let children = {
            let children = self.lock_children();
            let first = self.state.send_if_modified(|state| {
                let first = state.is_none();
                state.get_or_insert_with(|| reason.clone());
                first
            });
            if !first {
                return;
            }
            children.clone()
        };
        for child in children.iter().filter_map(Weak::upgrade) {
            child.trigger(reason);
        }
    }

    fn lock_children(&self) -> MutexGuard<'_, Vec<Weak<Self>>> {
        // The list is valid after any panic: entries are only pushed or pruned.
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_reason_wins_and_wakes_waiters() {
        let signal = Shutdown::new();
        let waiter = tokio::spawn({
            let signal = signal.clone();
            async move { signal.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(!signal.is_triggered());
        signal.trigger("SIGTERM");
        signal.trigger("later");
        assert_eq!(waiter.await.unwrap(), "SIGTERM");
        assert_eq!(signal.wait().await, "SIGTERM");
        assert_eq!(signal.reason().as_deref(), Some("SIGTERM"));
    }

    #[tokio::test]
    async fn children_follow_the_parent_only() {
        let root = Shutdown::new();
        let (a, b) = (root.child(), root.child());
        let grandchild = a.child();
        b.trigger("b only");
        assert!(!root.is_triggered() && !a.is_triggered());
        root.trigger("all");
        assert_eq!(grandchild.wait().await, "all");
        assert_eq!(b.wait().await, "b only");
        assert_eq!(root.child().wait().await, "all", "a child born late is triggered at once");
    }

    #[test]
    fn dead_children_are_forgotten() {
        let root = Shutdown::new();
        for _ in 0..1000 {
            drop(root.child());
        }
        assert!(root.0.lock_children().len() <= 1);
    }
}
