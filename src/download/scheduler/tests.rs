#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "figures of a simulation are small")]

use std::collections::VecDeque;

mod runs;
mod waits;

use super::{
    trouble::{BAN, LAST_LACK},
    *,
};
use crate::{
    content::{Block, ByteRange},
    sources::{Permanent, Transient},
};

const BLOCK: u64 = 256 << 10;
const SIZE: u64 = 315 << 20;
/// Read by the reader, bytes per second.
const READER: f64 = 20e6;
const STEP: Duration = Duration::from_millis(1);

/// A source of the simulation: a queue that is worked off at a rate, behind a latency.
#[derive(Clone, Debug)]
struct Peer {
    rate: f64,
    latency: f64,
    /// Says nothing in this time, in seconds.
    frozen: std::ops::Range<f64>,
    queue: VecDeque<(ContentId, f64)>,
    free_at: f64,
    sent: u64,
}

fn peer(mbytes: f64, millis: f64) -> Peer {
    Peer {
        rate: mbytes * 1e6,
        latency: millis / 1e3,
        frozen: f64::MAX..f64::MAX,
        queue: VecDeque::new(),
        free_at: 0.0,
        sent: 0,
    }
}

fn name(at: usize) -> SourceId {
    SourceId(format!("p{at}").into())
}

fn ids(count: u64) -> Vec<ContentId> {
    (0..count).map(|n| *Block::raw(n.to_be_bytes().to_vec().into()).cid()).collect()
}

fn demand(id: ContentId, at: u64, deadline: Duration) -> Demand {
    let range = ByteRange::at(at * BLOCK, BLOCK);
    let urgency = Urgency { deadline, order: at };
    let want = Want { id, root: id, file: id, range };
    Demand { want, len: BLOCK, urgency, file: id, index: at }
}

#[derive(Debug)]
struct Outcome {
    /// Seconds that the reader stood still, the first byte included.
    stall: f64,
    /// Seconds until every block was here.
    complete: f64,
    /// Blocks that came twice, as a share.
    duplicates: f64,
}

/// Lets a reader read the file at `READER` through a scheduler, on a simulated clock.
fn simulate(peers: &mut [Peer]) -> Outcome {
    let blocks = ids(SIZE / BLOCK);
    let number: HashMap<ContentId, usize> =
        blocks.iter().enumerate().map(|(at, id)| (*id, at)).collect();
    let mut scheduler = Scheduler::new(Arc::default());
    for at in 0..peers.len() {
        scheduler.add_source(Duration::ZERO, name(at), SourceKind::Chiral, None);
    }
    let mut here = vec![false; blocks.len()];
    let (mut next, mut position, mut stall, mut read_on) = (0, 0.0, 0.0, 0usize);
    let mut now = Duration::ZERO;
    while here.iter().any(|here| !here) {
        assert!(
            now < Duration::from_secs(120),
            "{} blocks came",
            here.iter().filter(|h| **h).count()
        );
        let window = (2.0 * READER) as u64 / BLOCK;
        let first = (position / BLOCK as f64) as u64;
        while next < blocks.len() && (next as u64) < first + window {
            let ahead = (next as f64 * BLOCK as f64 - position) / READER;
            let deadline = now + Duration::from_secs_f64(ahead);
            scheduler.want(now, demand(blocks[next], next as u64, deadline));
            next += 1;
        }
        let time = now.as_secs_f64();
        for (at, peer) in peers.iter_mut().enumerate() {
            while let Some((id, asked)) = peer.queue.front().copied() {
                let done = peer.free_at.max(asked + peer.latency) + BLOCK as f64 / peer.rate;
                if done > time || peer.frozen.contains(&time) {
                    break;
                }
                peer.queue.pop_front();
                peer.free_at = if time - done > 0.01 { time } else { done };
                peer.sent += 1;
                scheduler.delivered(now, &name(at), &id, BLOCK);
                here[number[&id]] = true;
            }
        }
        for action in scheduler.step(now, u64::MAX) {
            act(peers, action, time);
        }
        while here.get(read_on) == Some(&true) {
            read_on += 1;
        }
        let target = (position + READER * STEP.as_secs_f64()).min((read_on as u64 * BLOCK) as f64);
        if target - position < READER * STEP.as_secs_f64() * 0.5 && read_on < blocks.len() {
            stall += STEP.as_secs_f64();
        }
        position = target;
        now += STEP;
    }
    let sent: u64 = peers.iter().map(|peer| peer.sent).sum();
    let needed = blocks.len() as u64;
    let duplicates = (sent - needed) as f64 / needed as f64;
    Outcome { stall, complete: now.as_secs_f64(), duplicates }
}

fn act(peers: &mut [Peer], action: Action, time: f64) {
    let at = |source: &SourceId| source.0[1..].parse::<usize>().unwrap();
    match action {
        Action::Request { source, wants } => {
            peers[at(&source)].queue.extend(wants.iter().map(|want| (want.id, time)));
        }
        Action::Cancel { source, ids } => {
            // What is being sent comes all the same.
            let mut sending = peers[at(&source)].rate > 0.0;
            peers[at(&source)]
                .queue
                .retain(|(id, _)| std::mem::take(&mut sending) || !ids.contains(id));
        }
        Action::Ban { .. } | Action::Fail { .. } => unreachable!("{action:?}"),
    }
}

fn mixed() -> Vec<Peer> {
    vec![peer(40.0, 20.0), peer(12.0, 60.0), peer(6.0, 120.0), peer(2.0, 200.0)]
}

#[test]
fn four_mixed_sources_give_nearly_their_sum() {
    let mut peers = mixed();
    let outcome = simulate(&mut peers);
    let ideal = SIZE as f64 / 60e6;
    // The reader's window is what limits: 20 MB/s with 40 MB ahead.
    assert!(
        outcome.stall < 1.5 && outcome.complete < SIZE as f64 / READER + 1.0,
        "{outcome:?} {ideal}"
    );
    assert!(outcome.duplicates < 0.05, "{outcome:?}");
}

#[test]
fn a_fast_source_that_freezes_does_not_stop_the_reader() {
    let mut peers = vec![peer(40.0, 20.0), peer(15.0, 60.0), peer(8.0, 120.0), peer(4.0, 200.0)];
    peers[0].frozen = 2.0..8.0;
    let outcome = simulate(&mut peers);
    assert!(outcome.stall < 1.5, "{outcome:?}");
    assert!(outcome.duplicates < 0.05, "{outcome:?}");
}

#[test]
fn a_fast_source_that_dies_costs_little_time() {
    let mut peers = vec![peer(40.0, 20.0), peer(15.0, 60.0), peer(8.0, 120.0), peer(4.0, 200.0)];
    peers[0].frozen = 2.0..f64::MAX;
    let outcome = simulate(&mut peers);
    assert!(outcome.stall < 1.5, "{outcome:?}");
    assert!(outcome.duplicates < 0.05, "{outcome:?}");
}

#[test]
fn two_dozen_slow_sources_feed_a_fast_reader() {
    let mut peers: Vec<Peer> =
        (0..24).map(|n| peer(1.0 + f64::from(n % 4) * 0.5, 30.0 + 10.0 * f64::from(n))).collect();
    let outcome = simulate(&mut peers);
    assert!(outcome.stall < 2.0, "{outcome:?}");
    assert!(outcome.duplicates < 0.05, "{outcome:?}");
}

/// Fetches a whole file in the background; seconds.
fn background(peers: &mut [Peer]) -> (f64, f64) {
    let blocks = ids(SIZE / BLOCK);
    let mut scheduler = Scheduler::new(Arc::default());
    for at in 0..peers.len() {
        scheduler.add_source(Duration::ZERO, name(at), SourceKind::Chiral, None);
    }
    for (at, id) in blocks.iter().enumerate() {
        let at = at as u64;
        scheduler.want(
            Duration::ZERO,
            Demand { urgency: Urgency::background(at), ..demand(*id, at, Duration::ZERO) },
        );
    }
    let mut missing = blocks.len();
    let mut now = Duration::ZERO;
    while missing > 0 {
        assert!(now < Duration::from_secs(120), "{missing} blocks did not come");
        let time = now.as_secs_f64();
        for (at, peer) in peers.iter_mut().enumerate() {
            while let Some((id, asked)) = peer.queue.front().copied() {
                let done = peer.free_at.max(asked + peer.latency) + BLOCK as f64 / peer.rate;
                if done > time {
                    break;
                }
                peer.queue.pop_front();
                peer.free_at = done;
                peer.sent += 1;
                missing -= usize::from(scheduler.delivered(now, &name(at), &id, BLOCK).is_some());
            }
        }
        for action in scheduler.step(now, u64::MAX) {
            act(peers, action, time);
        }
        now += STEP;
    }
    let sent: u64 = peers.iter().map(|peer| peer.sent).sum();
    (now.as_secs_f64(), (sent as f64 - blocks.len() as f64) / blocks.len() as f64)
}

#[test]
fn capped_sources_reach_their_sum_in_the_background() {
    let mut peers = mixed();
    let (seconds, duplicates) = background(&mut peers);
    let share = SIZE as f64 / seconds / 60e6;
    assert!(share >= 0.95, "{share} of the sum in {seconds} s");
    assert!(duplicates < 0.05, "{duplicates}");
}

/// A scheduler with sources that were asked for nothing yet.
fn with_sources(count: usize) -> Scheduler {
    let mut scheduler = Scheduler::new(Arc::default());
    for at in 0..count {
        scheduler.add_source(Duration::ZERO, name(at), SourceKind::Bitswap, None);
    }
    scheduler
}

fn asked(actions: &[Action]) -> Vec<(SourceId, ContentId)> {
    let requests = actions.iter().filter_map(|action| match action {
        Action::Request { source, wants } => {
            Some(wants.iter().map(|want| (source.clone(), want.id)).collect::<Vec<_>>())
        }
        _ => None,
    });
    requests.flatten().collect()
}

#[test]
fn the_first_request_to_an_unknown_source_is_four_blocks_in_the_order_of_their_deadlines() {
    let mut scheduler = with_sources(1);
    let blocks = ids(20);
    for (at, id) in blocks.iter().enumerate().rev() {
        scheduler.want(Duration::ZERO, demand(*id, at as u64, Duration::from_secs(1 + at as u64)));
    }
    let requests = asked(&scheduler.step(Duration::ZERO, u64::MAX));
    assert_eq!(requests.iter().map(|(_, id)| *id).collect::<Vec<_>>(), blocks[..4]);
}

#[test]
fn a_foreign_peer_never_has_more_than_sixteen_blocks_in_flight() {
    let mut scheduler = with_sources(1);
    let blocks = ids(400);
    for (at, id) in blocks.iter().enumerate() {
        scheduler.want(Duration::ZERO, demand(*id, at as u64, Duration::from_secs(60)));
    }
    let mut most = 0;
    let mut flying: VecDeque<ContentId> = VecDeque::new();
    for ms in 0..400 {
        let now = Duration::from_millis(ms);
        if let Some(id) = flying.pop_front() {
            scheduler.delivered(now, &name(0), &id, BLOCK);
        }
        flying.extend(asked(&scheduler.step(now, u64::MAX)).into_iter().map(|(_, id)| id));
        most = most.max(flying.len());
    }
    assert_eq!(most, 16);
}

#[test]
fn wants_go_out_in_groups_once_the_pipeline_is_full() {
    let mut scheduler = Scheduler::new(Arc::default());
    scheduler.add_source(Duration::ZERO, name(0), SourceKind::Chiral, None);
    for (at, id) in ids(4000).iter().enumerate() {
        scheduler.want(Duration::ZERO, demand(*id, at as u64, Duration::from_secs(60)));
    }
    let mut flying: VecDeque<ContentId> = VecDeque::new();
    let mut groups = Vec::new();
    for step in 0..3000u64 {
        let now = Duration::from_micros(step * 500);
        if let Some(id) = flying.pop_front() {
            scheduler.delivered(now, &name(0), &id, BLOCK);
        }
        let fresh = asked(&scheduler.step(now, u64::MAX));
        if step > 1500 && !fresh.is_empty() {
            groups.push(fresh.len());
        }
        flying.extend(fresh.into_iter().map(|(_, id)| id));
    }
    assert!(flying.len() > 128, "64 MiB are kept in flight: {}", flying.len());
    assert!(groups.iter().all(|group| *group >= 32), "{groups:?}");
}

#[test]
fn a_source_without_the_block_is_passed_over_for_the_next() {
    let mut scheduler = with_sources(2);
    let id = ids(1)[0];
    scheduler.want(Duration::ZERO, demand(id, 0, Duration::ZERO));
    let first = asked(&scheduler.step(Duration::ZERO, u64::MAX))[0].0.clone();
    scheduler.failed(STEP, &first, &id, &Permanent::NotFound.into());
    let second = asked(&scheduler.step(STEP, u64::MAX))[0].0.clone();
    assert_ne!(first, second);
    scheduler.failed(2 * STEP, &second, &id, &Permanent::NotFound.into());
    assert_eq!(asked(&scheduler.step(2 * STEP, u64::MAX)), []);
    let later = LAST_LACK + 3 * STEP;
    assert_eq!(asked(&scheduler.step(later, u64::MAX)).len(), 1, "it may have it by now");
}

#[test]
fn a_lying_source_is_banned_and_the_block_comes_from_another() {
    let mut scheduler = with_sources(2);
    let id = ids(1)[0];
    scheduler.want(Duration::ZERO, demand(id, 0, Duration::ZERO));
    let liar = asked(&scheduler.step(Duration::ZERO, u64::MAX))[0].0.clone();
    scheduler.failed(STEP, &liar, &id, &Permanent::BadHash.into());
    let actions = scheduler.step(STEP, u64::MAX);
    assert!(actions.contains(&Action::Ban { source: liar.clone(), for_time: BAN }));
    let other = asked(&actions)[0].0.clone();
    assert_ne!(other, liar);
    let events = scheduler.take_events();
    assert!(events.iter().any(
        |e| matches!(e, Event::PeerSwitched { from, to, .. } if *from == liar && *to == other)
    ));
}

#[test]
fn a_failed_block_is_tried_again_after_the_backoff_and_three_times_in_all() {
    let options = DownloadOptions { peer_failure_threshold: 100, ..DownloadOptions::default() };
    let mut scheduler = Scheduler::new(Arc::new(options));
    scheduler.add_source(Duration::ZERO, name(0), SourceKind::Bitswap, None);
    let id = ids(1)[0];
    scheduler.want(Duration::ZERO, demand(id, 0, Duration::ZERO));
    let mut tries = Vec::new();
    for ms in 0..20_000u64 {
        let now = Duration::from_millis(ms);
        if !asked(&scheduler.step(now, u64::MAX)).is_empty() {
            tries.push(ms);
            scheduler.failed(now, &name(0), &id, &Transient::Reset.into());
        }
    }
    assert_eq!(tries, [0, 250, 750]);
    assert_eq!(scheduler.retries(), 3);
}

#[test]
fn a_source_that_fails_three_times_is_left_alone_for_five_minutes() {
    let mut scheduler = with_sources(1);
    let blocks = ids(3);
    for (at, id) in blocks.iter().enumerate() {
        let now = Duration::from_secs(at as u64);
        scheduler.want(now, demand(*id, 0, now));
        let requests = asked(&scheduler.step(now, u64::MAX));
        assert!(requests.iter().any(|(_, asked)| asked == id));
        for (source, id) in requests {
            scheduler.failed(now, &source, &id, &Transient::Reset.into());
        }
    }
    let cooled = Event::SourceCooledDown { source: name(0), for_time: Duration::from_secs(300) };
    let events = scheduler.take_events();
    assert!(events.iter().any(|e| format!("{e:?}") == format!("{cooled:?}")), "{events:?}");
    assert_eq!(scheduler.usable_sources(Duration::from_secs(301)), 0);
    assert_eq!(scheduler.usable_sources(Duration::from_secs(303)), 1);
}

#[test]
fn wants_that_fail_together_count_as_one_failure() {
    let mut scheduler = with_sources(1);
    for (at, id) in ids(4).iter().enumerate() {
        scheduler.want(Duration::ZERO, demand(*id, at as u64, Duration::ZERO));
    }
    let requests = asked(&scheduler.step(Duration::ZERO, u64::MAX));
    assert_eq!(requests.len(), 4);
    for (source, id) in requests {
        scheduler.failed(STEP, &source, &id, &Transient::Reset.into());
    }
    assert_eq!(scheduler.usable_sources(STEP), 1);
}

#[test]
fn a_source_that_asks_to_wait_is_left_in_peace_that_long() {
    let mut scheduler = with_sources(1);
    let id = ids(1)[0];
    scheduler.want(Duration::ZERO, demand(id, 0, Duration::ZERO));
    scheduler.step(Duration::ZERO, u64::MAX);
    let wait = Duration::from_secs(7);
    scheduler.failed(STEP, &name(0), &id, &Transient::RateLimited(wait).into());
    assert_eq!(asked(&scheduler.step(wait, u64::MAX)), []);
    assert_eq!(asked(&scheduler.step(wait + STEP, u64::MAX)).len(), 1);
}

#[test]
fn a_refusal_is_not_answered_with_another_try() {
    let mut scheduler = with_sources(1);
    let id = ids(1)[0];
    scheduler.want(Duration::ZERO, demand(id, 0, Duration::ZERO));
    scheduler.step(Duration::ZERO, u64::MAX);
    scheduler.failed(STEP, &name(0), &id, &Permanent::Rejected("no".into()).into());
    for seconds in 1..250 {
        assert_eq!(asked(&scheduler.step(Duration::from_secs(seconds), u64::MAX)), []);
    }
}

#[test]
fn a_silent_source_that_is_the_only_one_is_asked_again_after_the_request_timeout() {
    let mut scheduler = with_sources(1);
    let id = ids(1)[0];
    scheduler.want(Duration::ZERO, demand(id, 0, Duration::ZERO));
    let mut asked_at = Vec::new();
    for ms in (0..40_000).step_by(10) {
        if !asked(&scheduler.step(Duration::from_millis(ms), u64::MAX)).is_empty() {
            asked_at.push(ms / 1000);
        }
    }
    assert_eq!(asked_at, [0, 30]);
}

#[test]
fn a_block_that_nobody_gives_fails_after_five_minutes() {
    let mut scheduler = with_sources(0);
    let id = ids(1)[0];
    scheduler.want(Duration::ZERO, demand(id, 0, Duration::ZERO));
    assert_eq!(scheduler.step(Duration::from_secs(299), u64::MAX), []);
    assert_eq!(scheduler.step(Duration::from_secs(300), u64::MAX), [Action::Fail { id }]);
    assert!(!scheduler.wants(&id));
}

#[test]
fn what_is_asked_for_stays_within_the_allowance() {
    let mut scheduler = with_sources(4);
    for (at, id) in ids(50).iter().enumerate() {
        scheduler.want(Duration::ZERO, demand(*id, at as u64, Duration::from_secs(9)));
    }
    assert_eq!(asked(&scheduler.step(Duration::ZERO, 5 * BLOCK)).len(), 5);
    assert_eq!(scheduler.in_flight(), 5 * BLOCK);
}

#[test]
fn a_dropped_want_is_forgotten_unless_it_was_asked_for() {
    let mut scheduler = with_sources(1);
    let blocks = ids(10);
    for (at, id) in blocks.iter().enumerate() {
        scheduler.want(Duration::ZERO, demand(*id, at as u64, Duration::from_secs(at as u64)));
    }
    assert_eq!(asked(&scheduler.step(Duration::ZERO, u64::MAX)).len(), 4);
    assert_eq!(scheduler.retain_unsent(|_| false).len(), 6);
    assert!(blocks.iter().enumerate().all(|(at, id)| scheduler.wants(id) == (at < 4)));
    scheduler.forget(&blocks[0]);
    let cancel = Action::Cancel { source: name(0), ids: vec![blocks[0]] };
    assert!(scheduler.step(Duration::ZERO, u64::MAX).contains(&cancel));
}
