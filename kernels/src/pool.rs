//! A small pool of compute threads: `pool.run(n, |task| ..)` on all of them, the caller included.
//!
//! Invariants
//! - **T1** the pool decides only *who* runs a task; tasks write disjoint memory and no result depends on the number
//!   of threads.
//! - **T2** `run` returns when every task is done; it never waits for a thread that has not started one (a parked or
//!   descheduled worker delays nobody).
//! - **T3** a panic in a task reaches the caller of `run`, after all other tasks have ended.
#![expect(unsafe_code, reason = "lends a stack closure to threads that are joined at the end of each call")]
use crossbeam::utils::{Backoff, CachePadded};
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{JoinHandle, Thread};

/// Compute threads that belong to one engine.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a call uses the workers; a second caller runs its tasks alone.
    busy: Mutex<()>,
}

type Task = dyn Fn(usize) + Sync;

struct Shared {
    /// Number of the current call (upper bits), whether it still takes workers, how many are inside.
    state: CachePadded<AtomicU64>,
    next: CachePadded<AtomicUsize>,
    job: UnsafeCell<Option<(*const Task, usize)>>,
    parked: Vec<CachePadded<AtomicBool>>,
    panicked: AtomicBool,
}

// SAFETY: `job` is written only by the caller that holds `busy` while no worker is inside (state's count is zero and
// the call is closed), and read only by workers that entered an open call; the state word orders both.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure that outlives the call.
unsafe impl Send for Shared {}

const INSIDE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const CALL: u64 = 1 << 17;
const STOP: u64 = 1 << 63;
/// Rounds of waiting before a worker parks: some tens of microseconds, longer than the gap between two layers.
const SPINS: u32 = 4000;

impl Pool {
    /// A pool that computes with `threads` threads, the caller being one of them (at least 1). `nice` lowers the
    /// priority of the other ones (0 to 19).
    #[must_use]
    pub fn new(threads: usize, nice: i32) -> Self {
        let others = threads.clamp(1, 1024) - 1;
        let shared = Arc::new(Shared {
            state: CachePadded::new(AtomicU64::new(0)),
            next: CachePadded::new(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            parked: (0..others).map(|_| CachePadded::new(AtomicBool::new(false))).collect(),
            panicked: AtomicBool::new(false),
        });
        let spawn = |index: usize| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("compute-{}", index + 1));
            builder.spawn(move || {
                set_nice(nice);
                shared.work(index);
            })
        };
        // A thread that the system refuses is done without: results do not depend on it (T1).
        let workers = (0..others).map_while(|index| spawn(index).ok()).collect();
        Self { shared, workers, busy: Mutex::new(()) }
    }

    /// Threads that compute, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0..tasks)`, each once, and returns when all are done.
    ///
    /// # Panics
    /// When a task panics.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let guard = match self.busy.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if self.workers.is_empty() || tasks <= 1 || guard.is_none() {
            (0..tasks).for_each(task);
            return;
        }
        let borrowed: &(dyn Fn(usize) + Sync + '_) = &task;
        // SAFETY: the lifetime is erased only for the workers; `Call` closes the call and waits for those inside
        // before this function returns or unwinds, so none can use the closure after it.
        let erased: &'static Task = unsafe { std::mem::transmute(borrowed) };
        let call = Call::open(&self.shared, &self.workers, erased, tasks);
        self.shared.take_tasks(borrowed, tasks);
        drop(call);
        if self.shared.panicked.swap(false, Ordering::AcqRel) {
            std::panic::resume_unwind(Box::new("a compute task panicked"));
        }
    }

    /// Runs `task` once for each item, which it may change.
    pub fn each<T: Send>(&self, items: &mut [T], task: impl Fn(usize, &mut T) + Sync) {
        let shared = Disjoint::new(items);
        self.run(shared.len(), |index| {
            // SAFETY: `run` gives every index to one task only.
            let item = unsafe { shared.slice(index, 1) };
            task(index, &mut item[0]);
        });
    }

    /// Cuts `out` into parts of `part` values (the last may be shorter) and runs `task(index, part)` on each.
    pub fn parts(&self, out: &mut [f32], part: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        let shared = Disjoint::new(out);
        let part = part.max(1);
        self.run(shared.len().div_ceil(part), |index| {
            let start = index * part;
            // SAFETY: parts do not overlap, and `run` gives every index to one task only.
            task(index, unsafe { shared.slice(start, part.min(shared.len() - start)) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.fetch_or(STOP, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker ends only by the stop flag: its tasks' panics were caught. There is nothing to learn here.
            drop(worker.join());
        }
    }
}

/// One use of the workers; closing it (also by unwinding) waits for those inside.
struct Call<'a> {
    shared: &'a Shared,
}

impl<'a> Call<'a> {
    fn open(shared: &'a Shared, workers: &[JoinHandle<()>], task: &'static Task, tasks: usize) -> Self {
        shared.next.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        // SAFETY: the previous call is closed and nobody is inside: this thread alone may touch `job`.
        unsafe { *shared.job.get() = Some((task, tasks)) };
        shared.state.fetch_add(CALL | OPEN, Ordering::SeqCst);
        for (parked, worker) in shared.parked.iter().zip(workers) {
            if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                Thread::unpark(worker.thread());
            }
        }
        Self { shared }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let backoff = Backoff::new();
        while self.shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            backoff.snooze();
        }
    }
}

impl Shared {
    fn take_tasks(&self, task: &(dyn Fn(usize) + Sync), tasks: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            task(index);
        }
    }

    /// A worker's life: wait for an open call that it has not seen, enter, take tasks, leave.
    fn work(&self, index: usize) {
        let mut seen = 0;
        let mut idle = 0;
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if state & STOP != 0 {
                return;
            }
            if state & OPEN != 0 && state / CALL != seen {
                let entered = self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    seen = state / CALL;
                    idle = 0;
                    self.join_call();
                }
                continue;
            }
            idle += 1;
            if idle < SPINS {
                std::hint::spin_loop();
                continue;
            }
            self.parked[index].store(true, Ordering::SeqCst);
            // A call opened since the look above has either seen the flag or is seen here: no wake-up is lost.
            let now = self.state.load(Ordering::SeqCst);
            if now == state {
                std::thread::park();
            }
            self.parked[index].store(false, Ordering::SeqCst);
            idle = 0;
        }
    }

    fn join_call(&self) {
        // SAFETY: this worker is inside an open call, so the caller keeps `job` and the closure alive and unchanged.
        if let Some((task, tasks)) = unsafe { *self.job.get() } {
            // SAFETY: as above.
            let task = unsafe { &*task };
            if catch_unwind(AssertUnwindSafe(|| self.take_tasks(task, tasks))).is_err() {
                self.panicked.store(true, Ordering::Release);
            }
        }
        self.state.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A slice that tasks of one call write in disjoint parts.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose callers promise disjoint parts.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: std::marker::PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where element 0 lies.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// No two tasks may hold overlapping parts at one time.
    #[expect(clippy::mut_from_ref, reason = "the caller promises disjoint parts")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: inside the borrowed slice by the check above; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Lowers the calling thread's priority; a refusal changes nothing but scheduling.
pub fn set_nice(nice: i32) {
    #[cfg(target_os = "linux")]
    if nice > 0 {
        // SAFETY: a plain system call; on Linux, process 0 means the calling thread.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice.min(19)) };
    }
    #[cfg(not(target_os = "linux"))]
    let _: i32 = nice;
}

#[cfg(test)]
mod tests {
    use super::Pool;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads, 0);
            for tasks in [0, 1, 2, 3, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(tasks, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = Pool::new(3, 5);
        for _ in 0..20 {
            let mut out = vec![0.0; 1000];
            pool.parts(&mut out, 7, |i, part| part.fill(i as f32));
            assert!(out.iter().enumerate().all(|(i, x)| *x == (i / 7) as f32));
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    #[test]
    fn a_nested_call_runs_alone() {
        let pool = Pool::new(2, 0);
        let count = AtomicUsize::new(0);
        pool.run(4, |_| {
            pool.run(3, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(count.into_inner(), 12);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3, 0);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.run(64, |i| assert!(i != 40))));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        pool.run(64, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 64);
    }
}
