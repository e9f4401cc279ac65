//! Which bridges lead to a torrent: made when somebody waits for it, as peers are dialled, and given up when their feed
//! is of no use.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Feed, Feeder, Torrents,
    active::Active,
    bridge::{self, End, FeedError, Given, Target},
};

/// Feeds of one torrent that are asked at a time.
const MOST: usize = 8;
/// Wrong pieces after which a feed is left alone: one may be a disk's fault, three are the feed's.
const MOST_WRONG: u32 = 3;
/// Wait after the first failure in a row, and the longest: as long as a server takes to be started again.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often it is looked who else could give something.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All bridges to one torrent.
#[derive(Debug, Default)]
pub(super) struct Bridges {
    /// By the names of their feeds.
    known: Mutex<HashMap<String, Arc<Bridge>>>,
    looked: Mutex<Option<Instant>>,
}

/// The way of one feed into the session.
#[derive(Debug)]
struct Bridge {
    feed: Arc<dyn Feed>,
    running: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Pieces that were wrong.
    wrong: u32,
    /// Failures in a row.
    failures: u32,
    not_before: Option<Instant>,
    /// It is not tried again.
    useless: bool,
}

impl Torrents {
    /// Names those who find out who has bytes of torrents besides their peers. They are let go of when everything ends:
    /// they may hold what holds the torrents.
    pub fn feed_from(&self, feeders: Vec<Arc<dyn Feeder>>) {
        *self.feeders() = feeders;
        let (torrents, cancelled) = (self.clone(), self.tasks().cancelled());
        self.tasks().spawn("torrent feeders", async move {
            cancelled.await;
            let all = std::mem::take(&mut *torrents.feeders());
            drop(all);
        });
    }
}

impl Bridges {
    /// Somebody waits: whoever else has the torrent is to give it, too.
    pub(super) fn wanted(&self, active: &Active) {
        let torrents = active.torrents();
        let feeders = torrents.feeders().clone();
        if feeders.is_empty() || !torrents.options().online {
            return;
        }
        let Some(session) = torrents.address() else { return };
        let target = Target {
            metainfo: active.metainfo().clone(),
            pieces: active.pieces.clone(),
            session,
            silence: torrents.options().read_timeout,
        };
        if self.is_due() {
            let magnet = torrents.magnet(target.metainfo.hash);
            let feeds = feeders.iter().flat_map(|feeder| feeder.feeds(&target.metainfo, &magnet));
            let mut known = self.known();
            for feed in feeds {
                let name = feed.name().to_owned();
                known.entry(name).or_insert_with(|| Arc::new(Bridge::new(feed)));
            }
        }
        let all: Vec<_> = self.known().values().cloned().collect();
        let runs = |bridge: &&Arc<Bridge>| bridge.running.load(Ordering::Acquire);
        let free = MOST.saturating_sub(all.iter().filter(runs).count());
        for bridge in all.into_iter().filter(|bridge| bridge.may_start()).take(free) {
            if bridge.running.swap(true, Ordering::AcqRel) {
                continue;
            }
            let (target, cancelled) = (target.clone(), torrents.tasks().cancelled());
            torrents.tasks().spawn("torrent bridge", async move {
                tokio::select! {
                    () = bridge.run(&target) => {}
                    () = cancelled => {}
                }
                bridge.running.store(false, Ordering::Release);
            });
        }
    }

    fn is_due(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if due {
            *looked = Some(Instant::now());
        }
        due
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Bridge>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bridge {
    fn new(feed: Arc<dyn Feed>) -> Self {
        Self { feed, running: AtomicBool::new(false), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_start(&self) -> bool {
        let state = self.state();
        !state.useless && state.not_before.is_none_or(|at| at <= Instant::now())
    }

    /// Gives until nobody asks any more, or the feed is to be left alone for a while.
    async fn run(&self, target: &Target) {
        loop {
            let (mut given, has) = (Given::default(), self.feed.has());
            let end = bridge::serve(target, &*self.feed, &mut given).await;
            tracing::debug!(
                hash = %target.metainfo.hash, feed = self.feed.name(), bytes = given.bytes, ?end,
                "a bridge ended"
            );
            let mut state = self.state();
            if given.bytes > 0 {
                state.failures = 0;
            }
            match end {
                End::Idle => return,
                End::Nothing => {
                    // What it has may change; asking it costs nothing.
                    state.not_before = Some(Instant::now() + FIRST_WAIT);
                    return;
                }
                // The session hangs up on a peer whose piece was wrong, and before it would notice of the next one.
                End::Closed(error) => match given.last.map(|piece| target.metainfo.bytes_of(piece))
                {
                    Some(piece) if !target.pieces.has(piece) => {
                        state.wrong += 1;
                        self.feed.wrong(piece);
                        if state.wrong >= MOST_WRONG {
                            return state.give_up(&*self.feed, "it gave wrong bytes");
                        }
                    }
                    Some(_) | None => {
                        tracing::trace!(%error, "the session hung up");
                        return;
                    }
                },
                End::Failed(FeedError::Lacks(_)) if self.feed.has() != has => {}
                End::Failed(error @ (FeedError::Useless(_) | FeedError::Lacks(_))) => {
                    return state.give_up(&*self.feed, &error.to_string());
                }
                End::Failed(FeedError::Busy(wait)) => {
                    state.not_before = Instant::now().checked_add(wait);
                    return;
                }
                End::Failed(FeedError::Failed(_)) => {
                    let wait = FIRST_WAIT * 2_u32.saturating_pow(state.failures);
                    state.failures += 1;
                    state.not_before = Some(Instant::now() + wait.min(LONGEST_WAIT));
                    return;
                }
            }
        }
    }
}

impl State {
    fn give_up(&mut self, feed: &dyn Feed, why: &str) {
        tracing::info!(feed = feed.name(), why, "nothing more of a torrent is asked of it");
        self.useless = true;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;
    use crate::torrent::bridge::tests::{FakeFeed, FakeSession, target};

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_feed_is_left_alone_after_three_wrong_pieces() {
        let mut session = FakeSession::listen().await;
        let target = target(&session, 8);
        let bridge = Bridge::new(FakeFeed::new(&target, false));
        let sessions = async {
            for _ in 0..MOST_WRONG {
                let mut peer = session.accept().await;
                peer.ask_piece(2).await;
                peer.take_piece(2).await;
                // Its hash is another: the session hangs up, and the piece is not here.
            }
        };
        let both = async { tokio::join!(bridge.run(&target), sessions) };
        tokio::time::timeout(PATIENCE, both).await.unwrap();
        assert!(!bridge.may_start());
    }

    #[tokio::test]
    async fn a_session_that_hangs_up_after_good_pieces_is_no_reason() {
        let mut session = FakeSession::listen().await;
        let target = target(&session, 8);
        let bridge = Bridge::new(FakeFeed::new(&target, false));
        let sessions = async {
            let mut peer = session.accept().await;
            peer.ask_piece(2).await;
            peer.take_piece(2).await;
            target.pieces.completed(2);
        };
        let both = async { tokio::join!(bridge.run(&target), sessions) };
        tokio::time::timeout(PATIENCE, both).await.unwrap();
        assert!(bridge.may_start());
        assert_eq!(bridge.state().wrong, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_tried_again_later_and_one_that_asks_to_wait_then() {
        let mut session = FakeSession::listen().await;
        let target = target(&session, 8);
        for (error, wait) in [
            (FeedError::Failed("x".to_owned()), Some(FIRST_WAIT)),
            (FeedError::Busy(Duration::from_secs(77)), Some(Duration::from_secs(77))),
            (FeedError::Useless("x".to_owned()), None),
        ] {
            let feed = FakeFeed::new(&target, false);
            feed.fail_with(error);
            let bridge = Bridge::new(feed);
            let sessions = async {
                let mut peer = session.accept().await;
                peer.ask_piece(1).await;
                peer.until_closed().await;
            };
            tokio::join!(bridge.run(&target), sessions);
            assert!(!bridge.may_start());
            let Some(wait) = wait else {
                tokio::time::advance(Duration::from_secs(100_000)).await;
                assert!(!bridge.may_start());
                continue;
            };
            tokio::time::advance(wait + Duration::from_millis(1)).await;
            assert!(bridge.may_start());
        }
    }
}
