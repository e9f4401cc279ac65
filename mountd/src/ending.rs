//! When the daemon ends, and that it does: in good order after the first signal, at once after a second one or when
//! its time is over, whatever else hangs.

use std::{
    io, process,
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use chiral::{fs::Mount, tasks};
use nix::libc;
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{signals::Signals, stderr};

/// Time from the first signal to the end of the process.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Part of [`STOP_WITHIN`] that is left for the end of the process itself.
const LAST_MOMENT: Duration = Duration::from_millis(250);

/// The same signal so soon again is still the first: timeout(1) sends it to the process and to the group that it is in.
const BURST: Duration = Duration::from_millis(100);

/// Longest wait for a mount that is being made or detached.
const MOUNTING: Duration = Duration::from_millis(500);

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The way to the end. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    begun: CancellationToken,
    over: Arc<AtomicBool>,
    mount: Arc<Mutex<Option<Arc<Mount>>>>,
}

impl Ending {
    /// From now on signals are handled, on a thread that waits for nothing else: a runtime whose threads all wait for
    /// a disk would not see them.
    pub(crate) fn watch() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            Signals::new()?
        };
        let ending =
            Self { begun: CancellationToken::new(), over: Arc::default(), mount: Arc::default() };
        let watched = ending.clone();
        tasks::outliving("chiral-end", move || watched.see_to_it(&runtime, signals))?;
        Ok(ending)
    }

    /// Begins the end: [`STOP_WITHIN`] runs.
    pub(crate) fn begin(&self) {
        self.begun.cancel();
    }

    /// Returns whether the end has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// All is done: a signal that comes now changes nothing, and is no reason for an error.
    pub(crate) fn is_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Resolves when the end has begun.
    pub(crate) async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// The token behind [`Ending::begun`], for those that begin the end from elsewhere.
    pub(crate) fn token(&self) -> CancellationToken {
        self.begun.clone()
    }

    /// Makes the mount that is to be detached before any end. Blocks as long as `make` does; the end waits for that.
    pub(crate) fn mounted<E>(
        &self,
        make: impl FnOnce() -> Result<Mount, E>,
    ) -> Result<Arc<Mount>, E> {
        let mut place = self.mount.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mount = Arc::new(make()?);
        *place = Some(mount.clone());
        Ok(mount)
    }

    fn see_to_it(&self, runtime: &Runtime, mut signals: Signals) {
        let why = runtime.block_on(async {
            let first = tokio::select! {
                signal = signals.next() => Some(signal),
                () = self.begun() => None,
            };
            if first.is_some() {
                tracing::info!("a signal ends the daemon");
            }
            self.begin();
            tokio::select! {
                () = second(first, async || signals.next().await) => "a second signal: ending at once",
                () = sleep(STOP_WITHIN - LAST_MOMENT) => "the daemon did not end in time; what is not finished is done at the next start",
            }
        });
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        stderr::line(format_args!("chiral: {why}"));
        self.detach();
        process::exit(1);
    }

    /// Takes the mount away, so that no program is left with a dead one.
    pub(crate) fn detach(&self) {
        let mut left = MOUNTING;
        loop {
            match self.mount.try_lock() {
                Ok(mount) => {
                    if let Some(Err(error)) = mount.as_ref().map(|mount| mount.unmount()) {
                        stderr::line(format_args!("chiral: {error}"));
                    }
                    return;
                }
                Err(TryLockError::WouldBlock) if !left.is_zero() => {
                    thread::sleep(LOOK_EVERY);
                    left = left.saturating_sub(LOOK_EVERY);
                }
                Err(_) => return,
            }
        }
    }
}

/// Resolves with the next signal that is not the first one once more. The kernel repeats SIGXCPU each second.
async fn second(first: Option<i32>, mut next: impl AsyncFnMut() -> i32) {
    let burst = Instant::now() + BURST;
    loop {
        let signal = next().await;
        let is_again = Some(signal) == first && Instant::now() < burst;
        if !is_again && signal != libc::SIGXCPU {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the second of these signals was heard; each comes so many milliseconds after the one before.
    async fn heard(first: Option<i32>, signals: &[(u64, i32)]) -> Duration {
        let begun = Instant::now();
        let mut signals = signals.iter();
        let next = async || match signals.next() {
            Some((wait, signal)) => {
                sleep(Duration::from_millis(*wait)).await;
                *signal
            }
            None => std::future::pending().await,
        };
        second(first, next).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_that_is_sent_twice_at_once_is_one_and_any_other_is_a_second() {
        let (int, term) = (2, 15);
        let at = Duration::from_millis;
        assert_eq!(heard(Some(term), &[(0, term), (50, term), (450, term)]).await, at(500));
        assert_eq!(heard(Some(term), &[(1, term), (1, int)]).await, at(2));
        assert_eq!(heard(Some(int), &[(200, int)]).await, at(200));
        assert_eq!(heard(None, &[(1, term)]).await, at(1));
        let xcpu = libc::SIGXCPU;
        let limited = [(1000, xcpu), (1000, xcpu), (500, term)];
        assert_eq!(heard(Some(xcpu), &limited).await, at(2500));
    }
}
