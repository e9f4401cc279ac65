//! How fast may be given while something is fetched.
//!
//! Both run on one thread, which waits for the disk where what a peer asked for is not in memory. A slow disk that gives
//! as fast as it can would leave no time for what comes: 80 reads a second made 15 of 280 MB/s. So peers are given less
//! then, and as much as they like while nothing is fetched.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    time::Instant,
};

/// A read that takes so long waited for the disk: copying a block takes some microseconds.
const WAITED: Duration = Duration::from_millis(1);
/// Most of its time, in percent, that the thread may wait, and what leaves room for more to be given.
const MOST: u128 = 25;
const LITTLE: u128 = 10;
/// Bytes per second that are always given.
const LEAST: u32 = 256 << 10;

/// How long the thread that fetches and gives has waited for the disk.
#[derive(Debug, Default)]
pub(super) struct Waited(AtomicU64);

impl Waited {
    /// Notes a read that has taken so long. What is hashed when a torrent is taken up is read by other threads, and does
    /// not count.
    pub(super) fn note(&self, took: Duration) {
        let alone = |on: Handle| on.runtime_flavor() == RuntimeFlavor::CurrentThread;
        if took >= WAITED && Handle::try_current().is_ok_and(alone) {
            self.0.fetch_add(nanos(took), Ordering::Relaxed);
        }
    }

    pub(super) fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What is known at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    /// How long the thread had waited for the disk by then.
    pub(super) waited: Duration,
    /// Bytes that had been given by then.
    pub(super) given: u64,
    /// Whether something is fetched.
    pub(super) fetching: bool,
}

/// Most bytes per second that may be given for the disk's sake. Decided about once a second.
#[derive(Debug, Default)]
pub(super) struct Ease {
    before: Option<Sample>,
    /// Kept while nothing is fetched, for when something is again.
    limit: Option<u32>,
}

impl Ease {
    /// The limit from now on.
    pub(super) fn next(&mut self, now: Sample) -> Option<NonZeroU32> {
        let before = self.before.replace(now)?;
        if !now.fetching {
            return None;
        }
        let passed = now.at.duration_since(before.at).as_nanos().max(1);
        let waited = now.waited.saturating_sub(before.waited).as_nanos();
        let percent = waited * 100 / passed;
        if percent > MOST {
            let given = u128::from(now.given.saturating_sub(before.given));
            // As much in a second as was given in the time that it may take.
            let fits = given * 1_000_000_000 * MOST / (passed * percent);
            let fits = u32::try_from(fits).unwrap_or(u32::MAX).max(LEAST);
            self.limit = Some(self.limit.map_or(fits, |limit| limit.min(fits)));
        } else if percent < LITTLE {
            // Beyond what the number holds there is none.
            self.limit = self.limit.and_then(|limit| limit.checked_mul(2));
        }
        self.limit.and_then(NonZeroU32::new)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio::runtime::Builder;

    use super::*;

    /// A second in which the thread has waited and given so much.
    fn second(ease: &mut Ease, waited_ms: u64, given: u64, fetching: bool) -> Option<u32> {
        let mut now = ease.before.unwrap_or(Sample {
            at: Instant::now(),
            waited: Duration::ZERO,
            given: 0,
            fetching,
        });
        if ease.before.is_none() {
            assert_eq!(ease.next(now), None, "nothing is known yet");
        }
        now.at += Duration::from_secs(1);
        now.waited += Duration::from_millis(waited_ms);
        now.given += given;
        now.fetching = fetching;
        ease.next(now).map(NonZeroU32::get)
    }

    #[test]
    fn a_slow_disk_gives_less_while_something_is_fetched_and_a_fast_one_as_much_as_is_asked_for() {
        let mut ease = Ease::default();
        assert_eq!(second(&mut ease, 20, 500_000_000, true), None);
        assert_eq!(second(&mut ease, 950, 8_000_000, false), None, "nothing is fetched");
        assert_eq!(second(&mut ease, 1000, 8_000_000, true), Some(2_000_000));
        // It holds while it fits, also where a little more would.
        assert_eq!(second(&mut ease, 250, 2_000_000, true), Some(2_000_000));
        assert_eq!(second(&mut ease, 120, 2_000_000, true), Some(2_000_000));
        // More was given than was allowed just before: no reason for a higher limit.
        assert_eq!(second(&mut ease, 260, 9_000_000, true), Some(2_000_000));
        // Nothing is fetched for a while: what was learned is kept.
        assert_eq!(second(&mut ease, 1000, 8_000_000, false), None);
        assert_eq!(second(&mut ease, 150, 1_000_000, true), Some(2_000_000));
        // The disk is fast now.
        assert_eq!(second(&mut ease, 50, 2_000_000, true), Some(4_000_000));
        while let Some(limit) = second(&mut ease, 0, 0, true) {
            assert_eq!(limit % 4_000_000, 0);
        }
        assert_eq!(second(&mut ease, 0, 0, true), None);
    }

    #[test]
    fn something_is_always_given() {
        let mut ease = Ease::default();
        assert_eq!(second(&mut ease, 1000, 0, true), Some(LEAST));
        assert_eq!(second(&mut ease, 1000, 100, true), Some(LEAST));
    }

    #[test]
    fn only_what_the_one_thread_waits_for_the_disk_counts() {
        let waited = Waited::default();
        waited.note(Duration::from_secs(1));
        let noted_on = |mut runtime: Builder| {
            runtime.build().unwrap().block_on(async {
                waited.note(Duration::from_millis(5));
                waited.note(Duration::from_micros(50));
            });
            waited.total()
        };
        assert_eq!(noted_on(Builder::new_multi_thread()), Duration::ZERO);
        assert_eq!(noted_on(Builder::new_current_thread()), Duration::from_millis(5));
    }
}
