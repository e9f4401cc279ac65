//! Room ahead of programs that write into working files: their bytes go from the kernel to the disk, and the store hears
//! of a full disk only from the program that was refused.
//!
//! While files are open for writing, free space is measured, more often the less there is, and unneeded content goes
//! before the disk is full: so much that a writer of the measured rate finds room for some seconds.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    Inner,
    space::{Limits, Room, Space},
};
use crate::tasks::Tasks;

/// Bytes above `min_free` that a writer finds at first, and the part of a small disk that they are at most.
const BASE: u64 = 256 << 20;
const BASE_SHARE: u64 = 16;
/// Writing for which there is room at the measured rate: eviction of the largest object takes less.
const HORIZON: Duration = Duration::from_secs(2);
/// The part of the disk that is kept ahead at most.
const MOST_SHARE: u64 = 8;
/// Bytes per second that no disk takes: how long a look ahead holds.
const FASTEST: u64 = 4 << 30;
const SOONEST: Duration = Duration::from_millis(20);
const LATEST: Duration = Duration::from_secs(1);

/// With less above `min_free` a file is written through the daemon, and the part of a small disk that this is at most:
/// each write then finds room by itself, and none can outrun eviction.
const TIGHT: u64 = 1 << 30;
const TIGHT_SHARE: u64 = 2;

/// How many may write past the store.
#[derive(Debug)]
pub(super) struct Writers(watch::Sender<usize>);

impl Default for Writers {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

/// Somebody may write past the store as long as it lives.
#[derive(Debug)]
pub struct ExpectedWrites(Weak<Inner>);

impl Drop for ExpectedWrites {
    fn drop(&mut self) {
        if let Some(store) = self.0.upgrade() {
            store.ahead.0.send_modify(|count| *count = count.saturating_sub(1));
        }
    }
}

/// How fast the disk fills.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    last: Option<(Instant, u64)>,
    /// Bytes per second.
    rate: u64,
}

impl Pace {
    /// Takes a measurement in; gives the bytes above `min_free` that a writer should find.
    fn headroom(&mut self, now: Instant, space: &Space) -> u64 {
        if let Some((at, free)) = self.last {
            let millis =
                u64::try_from(now.duration_since(at).as_millis()).unwrap_or(u64::MAX).max(1);
            let taken = free.saturating_sub(space.free);
            let rate = taken.saturating_mul(1000) / millis;
            // A pause of the program is not its end.
            self.rate = rate.max(self.rate / 2);
        }
        self.last = Some((now, space.free));
        let base = BASE.min(space.capacity / BASE_SHARE);
        let most = base.max(space.capacity / MOST_SHARE);
        self.rate.saturating_mul(HORIZON.as_secs()).clamp(base, most)
    }
}

/// How long no writer can have used up what is free above `min_free` and `headroom`.
fn holds(space: &Space, limits: &Limits, headroom: u64) -> Duration {
    let slack = space.free.saturating_sub(limits.min_free).saturating_sub(headroom);
    Duration::from_millis(slack / (FASTEST / 1000)).clamp(SOONEST, LATEST)
}

/// Starts the task that keeps room ahead of writers.
pub(super) fn start(inner: &Arc<Inner>, tasks: &Tasks) {
    let store = Arc::downgrade(inner);
    let mut writers = inner.ahead.0.subscribe();
    let (cancelled, runner) = (tasks.cancelled(), tasks.clone());
    tasks.spawn("store room", async move {
        tokio::pin!(cancelled);
        let mut pace = Pace::default();
        loop {
            tokio::select! {
                () = &mut cancelled => return,
                // An error: the store is gone, and its task with it.
                some = writers.wait_for(|count| *count > 0) => if some.is_err() { return },
            }
            let store = store.clone();
            let looked =
                runner.blocking("store room", move || store.upgrade().map(|s| look(&s, pace)));
            let wait = match looked.await {
                Ok(None) => return,
                Ok(Some((next, wait))) => {
                    pace = next;
                    wait
                }
                // A panic of the work was reported by the runtime.
                Err(_) => LATEST,
            };
            tokio::select! {
                () = &mut cancelled => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    });
}

fn look(store: &Arc<Inner>, mut pace: Pace) -> (Pace, Duration) {
    store.gauge.forget();
    let Ok(space) = store.space() else { return (pace, LATEST) };
    let headroom = pace.headroom(Instant::now(), &space);
    let short = store.limits.shortage(&space, Room { bytes: headroom, files: 0 });
    if short.is_none() {
        return (pace, holds(&space, &store.limits, headroom));
    }
    let wait = match store.evict_room(short) {
        Ok(report) if report.objects > 0 || report.bytes > 0 => SOONEST,
        Ok(_) => LATEST,
        Err(error) => {
            if !store.tell(&error) {
                tracing::warn!(%error, "no room is made ahead of writers");
            }
            LATEST
        }
    };
    // What came free is no pause of the writer.
    pace.last = store.space().ok().map(|space| (Instant::now(), space.free));
    (pace, wait)
}

fn is_tight(space: &Space, limits: &Limits) -> bool {
    let slack = TIGHT.min(space.capacity / TIGHT_SHARE);
    space.free < limits.min_free.saturating_add(slack)
}

impl Inner {
    pub(super) fn is_tight(&self) -> bool {
        self.space().is_ok_and(|space| is_tight(&space, &self.limits))
    }

    pub(super) fn expect_writes(self: &Arc<Self>) -> ExpectedWrites {
        self.ahead.0.send_modify(|count| *count += 1);
        ExpectedWrites(Arc::downgrade(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    const GIB: u64 = 1 << 30;

    fn space(free: u64) -> Space {
        let (inodes_free, inodes, read_only) = (0, 0, false);
        Space { free, reserved: 0, capacity: 100 * GIB, inodes_free, inodes, read_only }
    }

    #[test]
    fn headroom_follows_the_rate_of_the_writer() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        assert_eq!(pace.headroom(begin, &space(50 * GIB)), BASE);
        let second = begin + Duration::from_secs(1);
        assert_eq!(pace.headroom(second, &space(49 * GIB)), 2 * GIB);
        // The writer waits, then somebody frees space.
        let third = second + Duration::from_secs(1);
        assert_eq!(pace.headroom(third, &space(49 * GIB)), GIB);
        assert_eq!(pace.headroom(third + Duration::from_secs(1), &space(60 * GIB)), GIB / 2);
        let all_at_once = third + Duration::from_secs(2);
        assert_eq!(pace.headroom(all_at_once, &space(0)), 100 * GIB / MOST_SHARE);
    }

    #[test]
    fn disk_is_tight_near_min_free_only() {
        let options = StoreOptions { dir: "/x".into(), cache_limit: None, min_free: Some(GIB) };
        let limits = Limits::new(&options, &space(0));
        assert!(is_tight(&space(2 * GIB - 1), &limits) && !is_tight(&space(2 * GIB), &limits));
        let small = |free| Space { capacity: GIB, ..space(free) };
        let limits = Limits { min_free: 0, ..limits };
        assert!(is_tight(&small(GIB / 2 - 1), &limits) && !is_tight(&small(GIB / 2), &limits));
    }

    #[test]
    fn looks_are_rare_while_much_is_free() {
        let options = StoreOptions { dir: "/x".into(), cache_limit: None, min_free: Some(GIB) };
        let limits = Limits::new(&options, &space(0));
        assert_eq!(holds(&space(50 * GIB), &limits, BASE), LATEST);
        assert_eq!(holds(&space(2 * GIB), &limits, GIB), SOONEST);
        assert_eq!(holds(&space(4 * GIB), &limits, GIB), Duration::from_millis(500));
        assert_eq!(holds(&space(0), &limits, BASE), SOONEST);
    }
}
