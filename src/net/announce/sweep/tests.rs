#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeSet, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn key(n: u32) -> Key {
    [&[0x12, 0x20][..], &n.to_be_bytes(), &[0; 28]].concat()
}

pub(super) fn peer(n: u32) -> PeerId {
    PeerId::from_bytes(&key(n)).unwrap()
}

fn contact(peer: PeerId) -> Contact {
    Contact { peer, addresses: Vec::new() }
}

fn network(peers: u32) -> Vec<(Id, PeerId)> {
    (0..peers).map(|n| (Id::of_peer(peer(n)), peer(n))).collect()
}

/// A sweep and the network it works in, which answers at once.
struct Fixture {
    sweep: Sweep,
    peers: Vec<(Id, PeerId)>,
    down: HashSet<PeerId>,
    lookups: usize,
    /// Who was told what, in this order.
    told: Vec<(PeerId, Vec<Key>)>,
}

impl Fixture {
    fn new(peers: u32) -> Self {
        let peers = network(peers);
        let sweep = Sweep::new(peer(u32::MAX));
        Self { sweep, peers, down: HashSet::new(), lookups: 0, told: Vec::new() }
    }

    fn closest(&self, key: &[u8]) -> Vec<PeerId> {
        let target = Id::of_key(key);
        let mut peers: Vec<_> =
            self.peers.iter().map(|(id, peer)| (id.xor(target), *peer)).collect();
        peers.sort_unstable_by_key(|(distance, _)| *distance);
        peers.into_iter().take(CLOSEST).map(|(_, peer)| peer).collect()
    }

    fn look_up(&mut self, lookup: KeyNo, key: &[u8], now: u64) {
        self.lookups += 1;
        let found = self.closest(key).into_iter().map(contact).collect();
        self.sweep.looked_up(lookup, found, true, now);
    }

    /// Does what is ordered until nothing is; gives what has finished.
    fn run(&mut self, now: u64) -> Vec<Finished> {
        while let Some(order) = self.sweep.next(now) {
            match order {
                Order::LookUp { lookup, key } => self.look_up(lookup, &key, now),
                Order::Tell { send, contact, keys } => {
                    let up = !self.down.contains(&contact.peer);
                    if up {
                        self.told.push((contact.peer, keys));
                    }
                    self.sweep.told(send, up, now);
                }
            }
        }
        self.sweep.take_finished()
    }

    fn holders(&self, key: &Key) -> BTreeSet<PeerId> {
        let told = self.told.iter().filter(|(_, keys)| keys.contains(key));
        told.map(|(peer, _)| *peer).collect()
    }
}

#[test]
fn a_root_is_announced_at_once_and_again_before_it_is_forgotten() {
    let mut fixture = Fixture::new(50);
    fixture.sweep.add(key(1), 100);
    let finished = fixture.run(100);
    let [Finished { outcome: Outcome::Announced, entry, .. }] = finished[..] else { panic!() };
    assert_eq!(fixture.holders(&key(1)), fixture.closest(&key(1)).into_iter().collect());
    assert!((100 + EARLY + 1..=100 + INTERVAL).contains(&entry.due), "{entry:?}");
    assert_eq!(fixture.sweep.wake_at(), Some(entry.due));
    assert_eq!(fixture.run(entry.due - 1), []);
    let again = fixture.run(entry.due);
    assert_eq!(again[0].entry, Entry { due: entry.due + CYCLE, failures: 0 }, "its own turn");
    assert_eq!(fixture.lookups, 2);
}

#[test]
fn failures_are_retried_with_growing_pauses_and_success_forgives_them() {
    let mut fixture = Fixture::new(5);
    fixture.down = fixture.peers.iter().map(|(_, peer)| *peer).collect();
    let mut now = 0;
    fixture.sweep.add(key(1), now);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let [Finished { outcome: Outcome::Failed, entry, .. }] = fixture.run(now)[..] else {
            panic!()
        };
        pauses.push(entry.due - now);
        now = entry.due;
    }
    assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600]);
    let down = std::mem::take(&mut fixture.down);
    now = fixture.run(now)[0].entry.due;
    fixture.down = down;
    assert_eq!(fixture.run(now)[0].entry.due - now, 30);
}

#[test]
fn what_is_removed_in_flight_stays_removed_and_may_come_back() {
    let mut fixture = Fixture::new(5);
    fixture.sweep.add(key(1), 0);
    let Some(Order::LookUp { lookup, .. }) = fixture.sweep.next(0) else { panic!() };
    fixture.sweep.remove(&key(1));
    fixture.look_up(lookup, &key(1), 0);
    assert_eq!(fixture.run(0), []);
    assert!(fixture.told.is_empty(), "what was withdrawn meanwhile is not announced");

    fixture.sweep.add(key(1), 1);
    let Some(Order::LookUp { lookup, .. }) = fixture.sweep.next(1) else { panic!() };
    fixture.look_up(lookup, &key(1), 1);
    let Some(Order::Tell { send, .. }) = fixture.sweep.next(1) else { panic!() };
    fixture.sweep.remove(&key(1));
    fixture.sweep.told(send, true, 1);
    assert_eq!(fixture.run(1), []);
    assert_eq!((fixture.sweep.wake_at(), fixture.sweep.keys().count()), (None, 0));
    fixture.sweep.add(key(1), 2);
    assert_eq!(fixture.run(2)[0].outcome, Outcome::Announced);
}

#[test]
fn a_clock_that_was_set_back_does_not_silence_a_root() {
    let mut sweep = Sweep::new(peer(0));
    sweep.restore(key(1), Entry { due: 1_000_000_000, failures: 0 }, 5);
    assert_eq!(sweep.wake_at(), Some(5 + INTERVAL));
}

#[test]
fn neighbours_share_a_lookup_and_a_stream_and_no_key_costs_more_than_one() {
    for (keys, most) in [(1, 1), (3, 3), (30, 30), (3_000, 60)] {
        let mut fixture = Fixture::new(300);
        for n in 0..keys {
            fixture.sweep.add(key(n), 0);
        }
        let finished = fixture.run(0);
        assert_eq!(finished.len(), keys as usize);
        assert!(finished.iter().all(|done| done.outcome == Outcome::Announced));
        assert!(fixture.lookups <= most, "{keys} keys: {} lookups", fixture.lookups);
        let mut holders: HashMap<Key, BTreeSet<PeerId>> = HashMap::new();
        for (peer, keys) in &fixture.told {
            for key in keys {
                assert!(holders.entry(key.clone()).or_default().insert(*peer), "told twice");
            }
        }
        for n in 0..keys {
            assert_eq!(holders[&key(n)], fixture.closest(&key(n)).into_iter().collect());
        }
        if keys == 3_000 {
            assert!(fixture.told.len() < 3_000, "{} streams", fixture.told.len());
        }
    }
}

#[test]
fn turns_of_a_small_network_come_together() {
    let mut fixture = Fixture::new(7);
    for n in 0..2_000 {
        fixture.sweep.add(key(n), 0);
    }
    assert_eq!(fixture.run(0).len(), 2_000);
    assert!(fixture.lookups <= 3, "{} lookups", fixture.lookups);
    let mut announced = 0;
    while let Some(now) = fixture.sweep.wake_at()
        && now <= INTERVAL
    {
        announced += fixture.run(now).len();
    }
    assert!(announced >= 2_000);
    assert!(fixture.lookups <= 3 * 18, "{} lookups", fixture.lookups);
}

#[test]
fn what_is_new_goes_first_although_everything_else_is_late() {
    let mut fixture = Fixture::new(300);
    for n in 0..5_000 {
        fixture.sweep.restore(key(n), Entry { due: 0, failures: 0 }, 0);
    }
    // The late ones take all the room they may: of lookups, then of what is on its way.
    let mut lookups = Vec::new();
    while let Some(Order::LookUp { lookup, key }) = fixture.sweep.next(10) {
        lookups.push((lookup, key));
        if lookups.len() == 1 {
            let (lookup, key) = lookups.pop().unwrap();
            fixture.look_up(lookup, &key, 10);
            fixture.sweep.depth = 6;
            break;
        }
    }
    let mut sends = Vec::new();
    while let Some(order) = fixture.sweep.next(10) {
        match order {
            Order::LookUp { lookup, key } => lookups.push((lookup, key)),
            Order::Tell { send, .. } => sends.push(send),
        }
    }
    assert_eq!(lookups.len(), LOOKUPS[Class::Again as usize]);
    // One whose place nobody looks at already.
    let taken: Vec<Prefix> = fixture.sweep.lookups.iter().map(|(_, place)| *place).collect();
    let free = |n: &u32| !taken.iter().any(|place| place.contains(Id::of_key(&key(*n))));
    let new = (10_000..).find(free).unwrap();
    fixture.sweep.add(key(new), 11);
    let Some(Order::LookUp { lookup, key: looked_up }) = fixture.sweep.next(11) else { panic!() };
    assert_eq!(looked_up, key(new));
    fixture.look_up(lookup, &looked_up, 11);
    fixture.sweep.told(sends[0], true, 11);
    let Some(Order::Tell { keys, .. }) = fixture.sweep.next(11) else { panic!() };
    assert_eq!(keys[0], key(new));
}

#[test]
fn lookups_that_find_nobody_pause_all_others() {
    let mut fixture = Fixture::new(0);
    for n in 0..100 {
        fixture.sweep.add(key(n), 0);
    }
    let mut now = 0;
    let mut pauses = Vec::new();
    for lookup in 1..=6 {
        assert_eq!(fixture.run(now).len(), 1);
        assert_eq!(fixture.lookups, lookup);
        let paused_until = fixture.sweep.paused_until;
        pauses.push(paused_until - now);
        now = paused_until;
    }
    assert_eq!(pauses, [30, 60, 120, 240, 300, 300]);
    fixture.peers = network(5);
    assert_eq!(fixture.run(now).len(), 100);
    assert_eq!(fixture.sweep.paused_until, 0);
}

#[test]
fn a_lookup_that_was_cut_short_tells_of_its_own_key_alone() {
    let mut fixture = Fixture::new(40);
    fixture.sweep.add(key(1), 0);
    fixture.sweep.add(key(2), 0);
    let Some(Order::LookUp { lookup, key: first }) = fixture.sweep.next(0) else { panic!() };
    let some = fixture.closest(&first).into_iter().take(6).map(contact).collect();
    fixture.sweep.looked_up(lookup, some, false, 0);
    assert_eq!(fixture.run(0).len(), 2);
    assert_eq!(fixture.lookups, 1, "the other key was looked up");
    assert_eq!(fixture.holders(&first).len(), 6);
}

#[test]
fn too_few_takers_are_a_failure_and_a_dead_peer_is_left_alone() {
    let mut fixture = Fixture::new(20);
    fixture.down = (0..11).map(peer).collect();
    for n in 0..600 {
        fixture.sweep.add(key(n), 0);
    }
    let failed = fixture.run(0);
    assert!(failed.iter().any(|done| done.outcome == Outcome::Failed));
    // Each dead one was tried once with one batch; those that came after it went to the others.
    let retried = fixture.run(30);
    assert!(retried.iter().all(|done| done.outcome == Outcome::Announced));
}

#[derive(Clone, Debug)]
enum Op {
    Add(u32),
    Remove(u32),
    Next,
    EndLookup { pick: usize, found: bool, complete: bool },
    EndSend { pick: usize, told: bool },
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..40_u32).prop_map(Op::Add),
        1 => (0..40_u32).prop_map(Op::Remove),
        8 => Just(Op::Next),
        3 => (any::<usize>(), prop::bool::weighted(0.9), prop::bool::weighted(0.9))
            .prop_map(|(pick, found, complete)| Op::EndLookup { pick, found, complete }),
        6 => (any::<usize>(), prop::bool::weighted(0.8))
            .prop_map(|(pick, told)| Op::EndSend { pick, told }),
        1 => (0..2 * INTERVAL).prop_map(Op::Wait),
        1 => (0..100_u64).prop_map(Op::Wait),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_announced_twice_at_once_or_over_the_limit(
        ops in prop::collection::vec(op(), 0..400),
        peers in 1..120_u32,
    ) {
        let mut fixture = Fixture::new(peers);
        let mut wanted = BTreeSet::new();
        let mut lookups: Vec<(KeyNo, Key)> = Vec::new();
        let mut sends: Vec<(PeerNo, PeerId)> = Vec::new();
        let mut now = 0;
        for op in ops {
            match op {
                Op::Add(n) => {
                    fixture.sweep.add(key(n), now);
                    wanted.insert(key(n));
                }
                Op::Remove(n) => {
                    fixture.sweep.remove(&key(n));
                    wanted.remove(&key(n));
                }
                Op::Next => match fixture.sweep.next(now) {
                    Some(Order::LookUp { lookup, key }) => {
                        prop_assert!(wanted.contains(&key));
                        prop_assert!(lookups.iter().all(|(other, _)| *other != lookup));
                        lookups.push((lookup, key));
                    }
                    Some(Order::Tell { send, contact, keys }) => {
                        prop_assert!(keys.len() <= super::super::outbox::BATCH);
                        prop_assert!(!keys.is_empty());
                        let free = |(other, peer): &(PeerNo, PeerId)| {
                            *other != send && *peer != contact.peer
                        };
                        prop_assert!(sends.iter().all(free));
                        sends.push((send, contact.peer));
                    }
                    None => {}
                },
                Op::EndLookup { pick, found, complete } if !lookups.is_empty() => {
                    let (lookup, key) = lookups.swap_remove(pick % lookups.len());
                    let all = fixture.closest(&key).into_iter().map(contact);
                    let found = all.filter(|_| found).collect();
                    fixture.sweep.looked_up(lookup, found, complete, now);
                }
                Op::EndSend { pick, told } if !sends.is_empty() => {
                    let (send, _) = sends.swap_remove(pick % sends.len());
                    fixture.sweep.told(send, told, now);
                }
                Op::EndLookup { .. } | Op::EndSend { .. } => {}
                Op::Wait(seconds) => now += seconds,
            }
            for done in fixture.sweep.take_finished() {
                prop_assert!(wanted.contains(&done.key));
                prop_assert!(done.entry.due > now && done.entry.due <= now + INTERVAL);
            }
            prop_assert!(lookups.len() <= LOOKUPS[0] && sends.len() <= 32);
            let keys: BTreeSet<Key> = fixture.sweep.keys().cloned().collect();
            prop_assert_eq!(&keys, &wanted);
        }
        // Whatever is wanted is announced in the end, when everything answers.
        for (lookup, key) in lookups {
            fixture.look_up(lookup, &key, now);
        }
        for (send, _) in sends {
            fixture.sweep.told(send, true, now);
        }
        let end = now + 2 * INTERVAL;
        let mut announced = BTreeSet::new();
        loop {
            let finished = fixture.run(now);
            announced.extend(finished.into_iter().map(|done| done.key));
            let Some(wake) = fixture.sweep.wake_at() else { break };
            prop_assert!(wake > now, "nothing is due now");
            if wake > end {
                break;
            }
            now = wake;
        }
        prop_assert!(wanted.is_subset(&announced));
        prop_assert_eq!(fixture.sweep.flying, 0);
    }
}
