//! A hundred thousand roots in a DHT of a thousand nodes, on a clock of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "its figures are what it is for")]

use std::collections::{BTreeMap, HashMap};

use rand::{Rng as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::{tests::peer, *};

const ROOTS: u32 = 100_000;
/// Of which a tenth is down at any time.
const NODES: usize = 1_100;
/// Nodes that go and nodes that come back, each hour.
const CHURN: usize = 20;
/// One node in so many answers lookups but takes no records.
const REFUSING: usize = 50;
const ALPHA: usize = 10;
const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;

/// The number of the root is in its key, so that nothing has to be looked up.
fn key(root: u32) -> Key {
    [&[0x12, 0x20][..], &root.to_be_bytes(), &[1; 28]].concat()
}

fn root_of(key: &[u8]) -> usize {
    u32::from_be_bytes(key[2..6].try_into().unwrap()) as usize
}

fn shared_bits(a: Id, b: Id) -> usize {
    a.xor(b).top().leading_zeros() as usize
}

struct Node {
    id: Id,
    peer: PeerId,
    up: bool,
    refuses: bool,
    /// Others by the bits they share with this one, twenty at most of each.
    table: Vec<Vec<usize>>,
}

/// The DHT.
struct World {
    nodes: Vec<Node>,
    by_peer: HashMap<PeerId, usize>,
    /// Nodes that are up, by place.
    live: Vec<(Id, usize)>,
    /// Nodes that hold the record of a root, a bit each.
    holders: Vec<[u64; NODES.div_ceil(64)]>,
    /// Requests of lookups.
    requests: u64,
    rng: ChaCha8Rng,
}

impl World {
    fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let node = |n: usize| {
            let peer = peer(u32::try_from(n).unwrap());
            let (id, up) = (Id::of_peer(peer), n % 11 != 10);
            Node { id, peer, up, refuses: n % REFUSING == 1, table: Vec::new() }
        };
        let mut nodes: Vec<Node> = (0..NODES).map(node).collect();
        let ids: Vec<Id> = nodes.iter().map(|node| node.id).collect();
        let mut order: Vec<usize> = (0..NODES).collect();
        order.shuffle(&mut rng);
        for (n, node) in nodes.iter_mut().enumerate() {
            node.table = vec![Vec::new(); 65];
            for other in order.iter().filter(|other| **other != n) {
                let bucket = &mut node.table[shared_bits(node.id, ids[*other])];
                if bucket.len() < CLOSEST {
                    bucket.push(*other);
                }
            }
        }
        let by_peer = nodes.iter().enumerate().map(|(n, node)| (node.peer, n)).collect();
        let holders = vec![Default::default(); ROOTS as usize + 1];
        let mut world = Self { nodes, by_peer, live: Vec::new(), holders, requests: 0, rng };
        world.list_live();
        world
    }

    fn list_live(&mut self) {
        let up = self.nodes.iter().enumerate().filter(|(_, node)| node.up);
        self.live = up.map(|(n, node)| (node.id, n)).collect();
        self.live.sort_unstable();
    }

    fn churn(&mut self) {
        let (up, down): (Vec<usize>, Vec<usize>) = (0..NODES).partition(|n| self.nodes[*n].up);
        for all in [up, down] {
            for _ in 0..CHURN {
                let n = all[self.rng.random_range(0..all.len())];
                self.nodes[n].up = !self.nodes[n].up;
            }
        }
        self.list_live();
    }

    /// What `node` answers: those of its table that are closest, but for who asks.
    fn answer(&self, node: usize, target: Id) -> Vec<usize> {
        let node = &self.nodes[node];
        let shared = shared_bits(node.id, target).min(64);
        let mut known: Vec<usize> = node.table[shared..].concat();
        for bucket in node.table[..shared].iter().rev() {
            if known.len() >= CLOSEST {
                break;
            }
            known.extend(bucket);
        }
        known.retain(|n| *n != 0);
        known.sort_unstable_by_key(|n| self.nodes[*n].id.xor(target));
        known.truncate(CLOSEST);
        known
    }

    /// The closest nodes that answer, as Kademlia finds them; counts the requests.
    fn look_up(&mut self, target: Id) -> Vec<usize> {
        let distance = |n: usize, world: &Self| world.nodes[n].id.xor(target);
        // None: not asked; else whether it answered.
        let mut seen: BTreeMap<Id, (usize, Option<bool>)> = BTreeMap::new();
        for n in self.answer(0, target) {
            seen.insert(distance(n, self), (n, None));
        }
        loop {
            let best = seen.iter().filter(|(_, (_, state))| *state != Some(false)).take(CLOSEST);
            let ask: Vec<(Id, usize)> = best
                .filter(|(_, (_, state))| state.is_none())
                .map(|(at, (n, _))| (*at, *n))
                .take(ALPHA)
                .collect();
            if ask.is_empty() {
                break;
            }
            for (at, n) in ask {
                self.requests += 1;
                let up = self.nodes[n].up;
                seen.insert(at, (n, Some(up)));
                for m in self.answer(n, target).into_iter().filter(|_| up) {
                    seen.entry(distance(m, self)).or_insert((m, None));
                }
            }
        }
        let answered = seen.into_values().filter(|(_, state)| *state == Some(true));
        answered.take(CLOSEST).map(|(n, _)| n).collect()
    }

    /// The nodes that are really closest, this one left out.
    fn closest(&self, target: Id) -> Vec<usize> {
        let inside = |len: u8| {
            let place = Prefix::of(target, len);
            let from = self.live.partition_point(|(id, _)| *id < place.first());
            from..self.live.partition_point(|(id, _)| *id <= place.last())
        };
        let mut range = (0..12).rev().map(inside).find(|range| range.len() > CLOSEST).unwrap();
        range.end = range.end.min(self.live.len());
        let mut near: Vec<_> =
            self.live[range].iter().map(|(id, n)| (id.xor(target), *n)).collect();
        near.sort_unstable();
        near.into_iter().map(|(_, n)| n).filter(|n| *n != 0).take(CLOSEST).collect()
    }

    fn hold(&mut self, root: usize, node: usize) {
        self.holders[root][node / 64] |= 1 << (node % 64);
    }

    fn holds(&self, root: usize, node: usize) -> bool {
        self.holders[root][node / 64] >> (node % 64) & 1 == 1
    }

    /// How many of the closest nodes hold a root.
    fn copies(&self, root: usize) -> usize {
        let id = Id::of_key(&key(u32::try_from(root).unwrap()));
        self.closest(id).into_iter().filter(|n| self.holds(root, *n)).count()
    }
}

enum Event {
    LookedUp { lookup: KeyNo, found: Vec<usize> },
    Told { send: PeerNo, node: usize, roots: Vec<usize> },
    Churn,
    Start,
    AddOne,
}

#[derive(Debug, Default)]
struct Counts {
    lookups: u64,
    streams: u64,
    records: u64,
    announced: u64,
    failed: u64,
}

/// The node that announces.
struct Simulation {
    world: World,
    sweep: Option<Sweep>,
    rows: BTreeMap<Key, Entry>,
    /// By time in milliseconds, then by the order they were made in. Those of the sweep end with the process.
    events: BTreeMap<(u64, u64), Event>,
    made: u64,
    now: u64,
    counts: Counts,
    /// When each root was announced last, and how often.
    last: Vec<(u64, u32)>,
    /// How many roots have as many copies with the nodes closest to them, when they were announced.
    copies: [u64; CLOSEST + 1],
    longest: u64,
}

impl Simulation {
    fn new() -> Self {
        let last = vec![(0, 0); ROOTS as usize + 1];
        let mut simulation = Self {
            world: World::new(),
            sweep: None,
            rows: BTreeMap::new(),
            events: BTreeMap::new(),
            made: 0,
            now: 0,
            counts: Counts::default(),
            last,
            copies: [0; CLOSEST + 1],
            longest: 0,
        };
        simulation.after(HOUR, Event::Churn);
        simulation
    }

    fn after(&mut self, time: u64, event: Event) {
        self.made += 1;
        self.events.insert((self.now + time, self.made), event);
    }

    fn seconds(&self) -> u64 {
        self.now / SECOND
    }

    /// Ends the process: what was on its way is lost.
    fn stop(&mut self) {
        self.sweep = None;
        self.events
            .retain(|_, event| !matches!(event, Event::LookedUp { .. } | Event::Told { .. }));
    }

    fn start(&mut self) {
        let mut sweep = Sweep::new(self.world.nodes[0].peer);
        for (key, entry) in &self.rows {
            sweep.restore(key.clone(), *entry, self.seconds());
        }
        self.sweep = Some(sweep);
    }

    fn add(&mut self, root: u32) {
        let now = self.seconds();
        let entry = self.sweep.as_mut().unwrap().add(key(root), now);
        self.rows.insert(key(root), entry);
        self.last[root as usize] = (self.now, 0);
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::LookUp { lookup, key } => {
                self.counts.lookups += 1;
                let found = self.world.look_up(Id::of_key(&key));
                self.after(1_500, Event::LookedUp { lookup, found });
            }
            Order::Tell { send, contact, keys } => {
                self.counts.streams += 1;
                self.counts.records += keys.len() as u64;
                let node = self.world.by_peer[&contact.peer];
                let roots: Vec<usize> = keys.iter().map(|key| root_of(key)).collect();
                let time =
                    if self.world.nodes[node].up { 100 + roots.len() as u64 / 4 } else { 10_000 };
                self.after(time, Event::Told { send, node, roots });
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.seconds();
        match event {
            Event::LookedUp { lookup, found } => {
                let contact =
                    |n: usize| Contact { peer: self.world.nodes[n].peer, addresses: Vec::new() };
                let found = found.into_iter().map(contact).collect();
                self.sweep.as_mut().unwrap().looked_up(lookup, found, true, now);
            }
            Event::Told { send, node, roots } => {
                let taken = self.world.nodes[node].up && !self.world.nodes[node].refuses;
                for root in roots.into_iter().filter(|_| taken) {
                    self.world.hold(root, node);
                }
                self.sweep.as_mut().unwrap().told(send, taken, now);
            }
            Event::Churn => {
                self.world.churn();
                self.after(HOUR, Event::Churn);
            }
            Event::Start => self.start(),
            Event::AddOne => self.add(ROOTS),
        }
    }

    fn note_finished(&mut self) {
        for done in self.sweep.as_mut().map(Sweep::take_finished).unwrap_or_default() {
            self.rows.insert(done.key.clone(), done.entry);
            if done.outcome == Outcome::Failed {
                self.counts.failed += 1;
                continue;
            }
            self.counts.announced += 1;
            let root = root_of(&done.key);
            let (last, times) = &mut self.last[root];
            self.longest = self.longest.max(self.now - *last);
            *last = self.now;
            *times += 1;
            // Some of them: the truth costs more than the sweep.
            if root.is_multiple_of(8) {
                self.copies[self.world.copies(root)] += 1;
            }
        }
    }

    /// Runs until `until` (ms) or until `stop` says so.
    fn run(&mut self, until: u64, stop: impl Fn(&Self) -> bool) {
        while !stop(self) {
            let now = self.seconds();
            let mut wake = None;
            if let Some(mut sweep) = self.sweep.take() {
                while let Some(order) = sweep.next(now) {
                    self.obey(order);
                }
                wake = sweep.wake_at().map(|at| at * SECOND);
                self.sweep = Some(sweep);
            }
            let next = self.events.first_key_value().map(|((at, _), _)| *at);
            let at = next.into_iter().chain(wake).min().unwrap();
            if at > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(at);
            while let Some(entry) = self.events.first_entry()
                && entry.key().0 <= self.now
            {
                let event = entry.remove();
                self.happen(event);
            }
            self.note_finished();
        }
    }
}

#[test]
fn a_hundred_thousand_roots_stay_announced_in_a_dht_of_a_thousand_nodes() {
    let mut simulation = Simulation::new();
    // What one lookup for each root would cost, here and now.
    let sample = 200;
    for root in 0..sample {
        simulation.world.look_up(Id::of_key(&key(root * 499)));
    }
    let one_by_one = simulation.world.requests * u64::from(ROOTS / sample);
    simulation.world.requests = 0;

    simulation.start();
    (0..ROOTS).for_each(|root| simulation.add(root));
    let half = |s: &Simulation| s.counts.announced >= u64::from(ROOTS) / 2;
    simulation.run(INTERVAL * SECOND, half);
    simulation.stop();
    simulation.after(120 * SECOND, Event::Start);
    let all = |s: &Simulation| s.counts.announced >= u64::from(ROOTS);
    simulation.run(INTERVAL * SECOND, all);
    let (first, took) = (simulation.world.requests, simulation.now);
    let first_counts = std::mem::take(&mut simulation.counts);

    // A second round, with a restart in its middle and one root that is new.
    simulation.run(11 * HOUR, |_| false);
    simulation.stop();
    simulation.after(600 * SECOND, Event::Start);
    simulation.after(HOUR, Event::AddOne);
    simulation.run(13 * HOUR, |s| s.last[ROOTS as usize].1 > 0);
    let new_took = simulation.now - (12 * HOUR);
    simulation.run(24 * HOUR, |_| false);

    let second = simulation.world.requests - first;
    let counts = &simulation.counts;
    println!("one lookup per root: {one_by_one} requests of lookups, {} streams", ROOTS * 20);
    println!(
        "first round, {} s, restart included: {first} requests, {first_counts:?}",
        took / SECOND
    );
    println!("second round: {second} requests, {counts:?}");
    println!(
        "a new root: {new_took} ms; longest time between two: {} s",
        simulation.longest / SECOND
    );
    println!("copies with the closest nodes, when announced: {:?}", simulation.copies);

    for (root, (last, times)) in simulation.last.iter().enumerate() {
        let age = (simulation.now - last) / SECOND;
        assert!(age <= INTERVAL && *times >= 1, "root {root}: {times} times, {age} s ago");
        assert!(*times >= 2 || root == ROOTS as usize, "root {root} was announced once");
    }
    // A restart adds its own time, a failure its pause.
    assert!(simulation.longest <= (INTERVAL + 900) * SECOND);
    assert!(new_took <= 5 * SECOND);
    let checked: u64 = simulation.copies.iter().sum();
    assert_eq!(simulation.copies[..10].iter().sum::<u64>(), 0, "most of the closest hold it");
    let good: u64 = simulation.copies[15..].iter().sum();
    assert!(good * 100 >= checked * 95);
    assert!(first * 100 < one_by_one && second * 100 < one_by_one);
    assert!(counts.streams + first_counts.streams < u64::from(ROOTS));
}
