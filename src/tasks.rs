//! The only place that starts tasks and threads: each is counted, named, and ends with the rest.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroUsize,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    runtime::{Builder, Handle},
    task::{JoinError, JoinHandle},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::Instrument;

/// Longest wait for blocking work of a runtime that ends.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Pause before a task that panicked begins anew. A fault that comes with each start must not keep a processor busy.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Starts tasks and waits for them at the end. Clones share one set of tasks.
///
/// It may be used from threads outside the runtime, such as those that serve FUSE.
#[derive(Clone)]
pub struct Tasks {
    runtime: Handle,
    tracker: TaskTracker,
    token: CancellationToken,
    alive: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// A runtime beside that of all other tasks.
#[derive(Clone, Debug)]
pub struct Apart {
    runtime: Handle,
}

impl Apart {
    /// Runs `future` there, to its end or until the one who waits for it gives up.
    ///
    /// # Errors
    /// When the runtime has ended, or the future panicked.
    pub async fn run<F>(&self, future: F) -> Result<F::Output, JoinError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        AbortOnDropHandle::new(self.runtime.spawn(future)).await
    }

    /// How many tasks run there.
    #[cfg(test)]
    pub fn alive(&self) -> usize {
        self.runtime.metrics().num_alive_tasks()
    }
}

/// Lowers the count of a task when it ends, also by a panic or an abort.
struct Alive {
    name: &'static str,
    alive: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = alive.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                alive.remove(self.name);
            }
        }
    }
}

impl Tasks {
    /// Tasks on the runtime that the caller is in.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`Handle::current`] does.
    pub fn new() -> Self {
        Self {
            runtime: Handle::current(),
            tracker: TaskTracker::new(),
            token: CancellationToken::new(),
            alive: Arc::default(),
        }
    }

    /// Runs `future` to its end. It must return soon after [`Tasks::cancelled`] resolves.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let alive = self.enter(name);
        let future = async move {
            let _alive = alive;
            future.await
        };
        self.tracker.spawn_on(future.instrument(tracing::debug_span!("task", name)), &self.runtime)
    }

    /// Runs the future that `make` gives for as long as the process lives. One that panics is made anew, after a pause
    /// that grows: what it works on is behind locks and in queues, and a fault in one item must not end the work on all
    /// that come after it.
    pub fn lasting<F>(
        &self,
        name: &'static str,
        mut make: impl FnMut() -> F + Send + 'static,
    ) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cancelled = self.cancelled();
        self.spawn(name, async move {
            tokio::pin!(cancelled);
            let mut pause = FIRST_PAUSE;
            while AssertUnwindSafe(make()).catch_unwind().await.is_err() {
                tracing::error!(task = name, "a task panicked; it begins anew");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = &mut cancelled => return,
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        })
    }

    /// Runs `work` where it may block on files or the processor.
    pub fn blocking<F, T>(&self, name: &'static str, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let alive = self.enter(name);
        let work = move || {
            let _alive = alive;
            work()
        };
        self.tracker.spawn_blocking_on(work, &self.runtime)
    }

    /// Starts a thread of its own for work that blocks for the life of the process.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn thread<F>(&self, name: &'static str, work: F) -> std::io::Result<thread::JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        let alive = self.enter(name);
        let token = self.tracker.token();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Dropped in the reverse order: whoever waits for the end finds nothing alive then.
            let (_token, _alive) = (token, alive);
            work();
        })
    }

    /// Starts a runtime beside this one, for code that starts tasks by itself, with so many threads. It ends, with all
    /// that still runs on it, once `over` is cancelled, which has to happen soon after [`Tasks::cancelled`] resolves.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn apart(
        &self,
        name: &'static str,
        threads: NonZeroUsize,
        over: &CancellationToken,
    ) -> std::io::Result<Apart> {
        let mut builder = match threads.get() {
            1 => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        let runtime =
            builder.worker_threads(threads.get()).thread_name(name).enable_all().build()?;
        let (apart, over) = (Apart { runtime: runtime.handle().clone() }, over.clone());
        self.thread(name, move || {
            runtime.block_on(over.cancelled());
            runtime.shutdown_timeout(LAST_WORK);
        })?;
        Ok(apart)
    }

    /// Resolves when everything is to end.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        self.token.clone().cancelled_owned()
    }

    /// The token behind [`Tasks::cancelled`], to derive narrower ones from.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The runtime, for code that has to wait for a future on a thread of its own.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// How many tasks and threads run, by name.
    pub fn alive(&self) -> BTreeMap<&'static str, usize> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells all to end and waits; gives the names of those that had not ended by then.
    #[must_use = "names of tasks that did not end in time"]
    pub async fn shutdown(&self, deadline: Duration) -> BTreeMap<&'static str, usize> {
        self.token.cancel();
        self.tracker.close();
        // The names that are left tell more than the elapsed timer does.
        let _ = tokio::time::timeout(deadline, self.tracker.wait()).await;
        self.alive()
    }

    fn enter(&self, name: &'static str) -> Alive {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Alive { name, alive: self.alive.clone() }
    }
}

/// Starts a thread that is not counted and that nobody waits for: one that watches over the end of all the others,
/// and ends with the process.
///
/// # Errors
/// When the system gives no thread.
pub fn outliving<F>(name: &'static str, work: F) -> std::io::Result<()>
where
    F: FnOnce() + Send + 'static,
{
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("alive", &self.alive()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lasting_task_that_panics_begins_anew() {
        let tasks = Tasks::new();
        let begun = Arc::new(AtomicU32::new(0));
        let count = begun.clone();
        let task = tasks.lasting("shaky", move || {
            let round = count.fetch_add(1, Ordering::Relaxed);
            async move { assert!(round == 3, "one that is meant") }
        });
        task.await.unwrap();
        assert_eq!(begun.load(Ordering::Relaxed), 4);

        let _hopeless = tasks.lasting("hopeless", || async { panic!("one that is meant") });
        assert!(tasks.shutdown(Duration::from_secs(1)).await.is_empty());
    }

    #[tokio::test]
    async fn a_panic_in_a_task_or_thread_ends_that_one_only() {
        let tasks = Tasks::new();
        assert!(tasks.spawn("task", async { panic!("one that is meant") }).await.is_err());
        assert!(tasks.blocking("work", || panic!("one that is meant")).await.is_err());
        tasks.thread("thread", || panic!("one that is meant")).unwrap().join().unwrap_err();
        assert_eq!(tasks.spawn("other", async { 7 }).await.unwrap(), 7);
        assert!(tasks.shutdown(Duration::from_secs(1)).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_those_that_listen_and_names_those_that_do_not() {
        let tasks = Tasks::new();
        let cancelled = tasks.cancelled();
        tasks.spawn("listens", cancelled);
        tasks.spawn("deaf", std::future::pending::<()>());
        assert_eq!(tasks.alive(), BTreeMap::from([("listens", 1), ("deaf", 1)]));
        assert_eq!(tasks.shutdown(Duration::from_secs(1)).await, BTreeMap::from([("deaf", 1)]));
    }
}
