//! Which closed file is hashed when.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Inner, UploadIno};

/// How long a small file rests after its close: programs that write many write some of them several times,
/// or remove them at once.
pub(super) const REST: Duration = Duration::from_millis(200);
/// Files that are hashed at the same time. Each keeps two tasks busy while it is large.
const AT_ONCE: usize = 2;

/// Files that wait, each at most once: no longer than the tree.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    order: BTreeSet<(Instant, UploadIno)>,
    due: HashMap<UploadIno, Instant>,
}

impl Waiting {
    fn set(&mut self, ino: UploadIno, due: Instant) {
        if let Some(old) = self.due.insert(ino, due) {
            self.order.remove(&(old, ino));
        }
        self.order.insert((due, ino));
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a file, or puts it off.
    pub(super) fn push(&self, ino: UploadIno, delay: Duration) {
        self.waiting().set(ino, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// A file that waits is wanted at once.
    pub(super) fn hurry(&self, ino: UploadIno) {
        let mut waiting = self.waiting();
        let now = Instant::now();
        if waiting.due.get(&ino).is_some_and(|due| *due > now) {
            waiting.set(ino, now);
            self.wake.notify_one();
        }
    }

    pub(super) fn hurry_all(&self) {
        let all: Vec<_> = self.waiting().due.keys().copied().collect();
        all.into_iter().for_each(|ino| self.hurry(ino));
    }

    fn pop(&self) -> Option<UploadIno> {
        let mut waiting = self.waiting();
        let first = *waiting.order.first().filter(|(due, _)| *due <= Instant::now())?;
        waiting.order.remove(&first);
        waiting.due.remove(&first.1);
        Some(first.1)
    }

    pub(super) async fn due(&self) -> UploadIno {
        loop {
            if let Some(ino) = self.pop() {
                return ino;
            }
            let next = self.waiting().order.first().map(|(due, _)| *due);
            match next {
                Some(due) => {
                    tokio::select! { () = sleep_until(due) => {}, () = self.wake.notified() => {} }
                }
                None => self.wake.notified().await,
            }
        }
    }
}

/// Hashes what is due until the end of the daemon.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut running = FuturesUnordered::new();
    let cancelled = inner.tasks.cancelled();
    tokio::pin!(cancelled);
    loop {
        tokio::select! {
            () = &mut cancelled => return,
            Some(()) = running.next() => {}
            ino = inner.queue.due(), if running.len() < AT_ONCE => {
                let cell = inner.names().cells.get(&ino).cloned();
                if let Some(cell) = cell {
                    running.push(inner.seal(cell));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_wanted_comes_before_what_rests() {
        let queue = Queue::default();
        queue.push(UploadIno(2), REST);
        queue.push(UploadIno(3), 2 * REST);
        queue.hurry(UploadIno(3));
        assert_eq!(queue.due().await, UploadIno(3));
        assert_eq!(queue.due().await, UploadIno(2));
        assert_eq!(queue.pop(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_closed_again_rests_again() {
        let queue = Queue::default();
        queue.push(UploadIno(2), REST);
        tokio::time::advance(REST / 2).await;
        queue.push(UploadIno(2), REST);
        tokio::time::advance(REST / 2).await;
        assert_eq!(queue.pop(), None);
        tokio::time::advance(REST / 2).await;
        assert_eq!(queue.pop(), Some(UploadIno(2)));
        assert_eq!(queue.pop(), None);
    }
}
