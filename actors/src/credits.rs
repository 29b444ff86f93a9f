//! Admission credits: what bounds the work in front of an actor, since a ractor mailbox has no bound.
//!
//! Overflow policy: the sender waits for a credit, up to its deadline, or is told at once by [`Credits::try_acquire`].
//! A credit travels inside the message and comes back when the message is dropped, handled or not, so that a crashed
//! actor gives back what its mailbox held.
use ractor::ActorRef;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// No credit, or nobody to send to.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CreditError {
    /// All credits are out.
    #[error("{whose}: none of its {limit} credits came back within {after:?}; it is overloaded or stuck")]
    Exhausted {
        /// Whose credits.
        whose: String,
        /// How many there are.
        limit: u32,
        /// How long was waited.
        after: Duration,
    },
    /// One request asks for more than there are.
    #[error("{whose}: {wanted} credits are asked for at once, there are {limit}")]
    TooMany {
        /// Whose credits.
        whose: String,
        /// How many there are.
        limit: u32,
        /// How many are wanted.
        wanted: u32,
    },
    /// The actor has ended.
    #[error("{whose} has ended")]
    Ended {
        /// Who.
        whose: String,
    },
}

/// A fixed number of credits; clonable, all clones share them.
#[derive(Debug, Clone)]
pub struct Credits {
    whose: Arc<str>,
    limit: u32,
    free: Arc<Semaphore>,
}

/// Credits held; given back when dropped.
#[derive(Debug)]
pub struct Credit(#[expect(dead_code, reason = "its drop is its use")] OwnedSemaphorePermit);

impl Credits {
    /// `limit` credits of `whose` (for messages), at least one.
    #[must_use]
    pub fn new(whose: &str, limit: u32) -> Self {
        let limit = limit.max(1);
        Self { whose: whose.into(), limit, free: Arc::new(Semaphore::new(limit as usize)) }
    }

    /// Waits for `count` credits (bytes, samples, messages: the unit is the owner's), first come first served. Cancel-safe.
    pub async fn acquire(&self, count: u32, deadline: Duration) -> Result<Credit, CreditError> {
        if count > self.limit {
            return Err(CreditError::TooMany { whose: self.whose.to_string(), limit: self.limit, wanted: count });
        }
        match timeout(deadline, self.free.clone().acquire_many_owned(count)).await {
            Ok(Ok(permit)) => Ok(Credit(permit)),
            // The semaphore is never closed.
            Ok(Err(_)) => Err(CreditError::Ended { whose: self.whose.to_string() }),
            Err(_) => Err(self.exhausted(deadline)),
        }
    }

    /// `count` credits, now or not at all.
    pub fn try_acquire(&self, count: u32) -> Result<Credit, CreditError> {
        if count > self.limit {
            return Err(CreditError::TooMany { whose: self.whose.to_string(), limit: self.limit, wanted: count });
        }
        self.free.clone().try_acquire_many_owned(count).map(Credit).map_err(|_| self.exhausted(Duration::ZERO))
    }

    /// Credits that nobody holds.
    #[must_use]
    pub fn free(&self) -> u32 {
        u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX)
    }

    /// All credits.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    fn exhausted(&self, after: Duration) -> CreditError {
        CreditError::Exhausted { whose: self.whose.to_string(), limit: self.limit, after }
    }
}

/// A message with the credit that admitted it: the message type of an actor behind a [`BoundedRef`].
#[derive(Debug)]
pub struct Credited<M> {
    /// The message.
    pub message: M,
    /// Kept until the work it stands for is over.
    pub credit: Credit,
}

/// An actor whose mailbox holds at most as many messages as there are credits.
pub struct BoundedRef<M: Send + 'static> {
    actor: ActorRef<Credited<M>>,
    credits: Credits,
}

impl<M: Send + 'static> BoundedRef<M> {
    /// Bounds what goes to `actor` through this handle and its clones.
    #[must_use]
    pub fn new(actor: ActorRef<Credited<M>>, credits: Credits) -> Self {
        Self { actor, credits }
    }

    /// Sends once there is a credit.
    pub async fn send(&self, message: M, deadline: Duration) -> Result<(), CreditError> {
        let credit = self.credits.acquire(1, deadline).await?;
        self.deliver(message, credit)
    }

    /// Sends if there is a credit now.
    pub fn try_send(&self, message: M) -> Result<(), CreditError> {
        let credit = self.credits.try_acquire(1)?;
        self.deliver(message, credit)
    }

    /// The credits.
    #[must_use]
    pub fn credits(&self) -> &Credits {
        &self.credits
    }

    fn deliver(&self, message: M, credit: Credit) -> Result<(), CreditError> {
        let ended = |_| CreditError::Ended { whose: self.credits.whose.to_string() };
        self.actor.send_message(Credited { message, credit }).map_err(ended)
    }
}

impl<M: Send + 'static> Clone for BoundedRef<M> {
    fn clone(&self) -> Self {
        Self { actor: self.actor.clone(), credits: self.credits.clone() }
    }
}

impl<M: Send + 'static> fmt::Debug for BoundedRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundedRef").field("credits", &self.credits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ractor::{Actor, ActorProcessingErr};
    use tokio::sync::mpsc;

    #[tokio::test(start_paused = true)]
    async fn credits_run_out_and_come_back() {
        let credits = Credits::new("grader", 3);
        let two = credits.acquire(2, Duration::ZERO).await.unwrap();
        let one = credits.try_acquire(1).unwrap();
        assert!(matches!(credits.try_acquire(1), Err(CreditError::Exhausted { limit: 3, .. })));
        let late = credits.acquire(1, Duration::from_secs(1)).await.unwrap_err();
        assert!(late.to_string().contains("grader"), "{late}");
        assert!(matches!(credits.acquire(4, Duration::ZERO).await, Err(CreditError::TooMany { wanted: 4, .. })));
        drop(one);
        drop(credits.acquire(1, Duration::ZERO).await.unwrap());
        drop(two);
        assert_eq!(credits.free(), 3);
    }

    /// Hands every message on, and waits for each to be taken.
    struct Slow(mpsc::Sender<Credited<u32>>);

    impl Actor for Slow {
        type Msg = Credited<u32>;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(&self, _: ActorRef<Self::Msg>, message: Self::Msg, (): &mut ()) -> Result<(), ActorProcessingErr> {
            Ok(self.0.send(message).await?)
        }
    }

    #[tokio::test]
    async fn a_slow_actor_slows_its_senders() {
        let (sender, mut taken) = mpsc::channel(1);
        let (actor, handle) = Actor::spawn(None, Slow(sender), ()).await.unwrap();
        let bounded = BoundedRef::new(actor.clone(), Credits::new("slow", 5));
        for n in 0..5 {
            bounded.try_send(n).unwrap();
        }
        assert!(bounded.try_send(5).is_err(), "a sixth message would wait in memory");
        drop(taken.recv().await.unwrap());
        bounded.send(5, Duration::from_secs(5)).await.unwrap();
        for n in 1..6 {
            assert_eq!(taken.recv().await.unwrap().message, n);
        }
        actor.stop(None);
        handle.await.unwrap();
        assert!(matches!(bounded.try_send(6), Err(CreditError::Ended { .. })));
        assert_eq!(bounded.credits().free(), 5, "what was never handled gives its credits back");
    }
}
