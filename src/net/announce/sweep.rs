//! Which keys are announced when and to whom. Every function depends on its arguments and the state alone.
//!
//! A key that is due is looked up; what the lookup tells of the neighbourhood goes on a [`Map`], from which the keys
//! nearby are announced without a lookup of their own. So no key ever costs more than one lookup, and many cost next to
//! none. Announced keys fall due again by their place, which spreads the work over the interval and keeps neighbours
//! together. A key that is new is not held back by any of that.

mod slots;

use std::collections::BTreeMap;

use libp2p::PeerId;

pub(super) use self::slots::KeyNo;
use self::slots::{Slots, Stage};
use super::{
    Entry, Key, Outcome,
    keyspace::{Id, Prefix},
    map::{CLOSEST, Map, PeerNo},
    outbox::{Contact, Outbox},
};

/// Seconds until a key is announced again at most: nodes forget a provider after 48 hours, some after 24.
pub(super) const INTERVAL: u64 = 22 * 3_600;
/// Seconds that a key may be announced before its time, when its neighbours are: one place of the public DHT in a few
/// hundred falls due in as long.
pub(super) const EARLY: u64 = INTERVAL / 16;
/// Seconds between two turns of the same place. An early announcement before its turn must not count as that turn, and
/// the time to the one after it must not exceed the interval.
const CYCLE: u64 = INTERVAL - EARLY;
/// Seconds until a failed announcement is tried again; doubles each time.
const FIRST_RETRY: u64 = 30;
/// Longest such time.
const MAX_RETRY: u64 = 3_600;
/// Longest pause after lookups that found nobody at all, which says that the network is away.
const MAX_PAUSE: u64 = 300;

/// Lookups at once for what falls due again, and for what is new. One takes seconds on the public DHT, so they overlap;
/// many more slow each other down, because a lookup's cost grows with the number of lookups.
const LOOKUPS: [usize; 2] = [24, 16];
/// Keys on their way to their peers at once: bounds what waits in memory, and fills the batches of a few regions.
const FLYING: [usize; 2] = [8_192, 4_096];
/// Keys that are looked through for one that lies in a gap.
const TRIES: usize = 64;
/// Keys that wait for the peers of a gap, from which on it is worth a lookup that announces something before its time.
const WORTH: usize = 4;

/// Which of the keys that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Never announced, and not tried in vain.
    New,
    /// All others.
    Again,
}

impl Class {
    const ALL: [Self; 2] = [Self::New, Self::Again];
}

/// What is to be done.
#[derive(Debug)]
pub(in crate::net) enum Order {
    /// Ask the DHT for the peers closest to a key; the answer goes to [`Sweep::looked_up`].
    LookUp {
        /// Names the lookup.
        lookup: KeyNo,
        /// Of what.
        key: Key,
    },
    /// Tell a peer that this node provides some keys; the outcome goes to [`Sweep::told`].
    Tell {
        /// Names the batch.
        send: PeerNo,
        /// Whom.
        contact: Contact,
        /// What.
        keys: Vec<Key>,
    },
}

/// What became of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finished {
    pub(super) key: Key,
    pub(super) outcome: Outcome,
    /// Its new entry.
    pub(super) entry: Entry,
}

/// The keys of one DHT; times are seconds since the epoch. See the module.
#[derive(Debug)]
pub(super) struct Sweep {
    /// Turns the schedule, so that not all nodes of the world come to the same peers at the same time.
    own: Id,
    slots: Slots,
    /// Those that are due and wait for their peers to be known, by [`Class`].
    due: [BTreeMap<Id, KeyNo>; 2],
    /// Where the next search of `due` begins, so that no place is passed over for long.
    cursors: [Id; 2],
    map: Map,
    outbox: Outbox,
    /// Running ones, with the places that others wait for them in.
    lookups: Vec<(KeyNo, Prefix)>,
    /// Bits of the place that a lookup covers; as the last one did.
    depth: u8,
    flying: usize,
    /// Something has changed since `due` was searched in vain.
    search: bool,
    /// The search ended because too much was on its way.
    crowded: bool,
    /// No lookups before this time.
    paused_until: u64,
    pause: u64,
    finished: Vec<Finished>,
    /// Reused.
    found: Vec<(Id, PeerNo)>,
}

impl Sweep {
    /// Without keys, of the node with this id.
    pub(super) fn new(own: PeerId) -> Self {
        Self {
            own: Id::of_peer(own),
            slots: Slots::default(),
            due: Default::default(),
            cursors: [Id::FIRST; 2],
            map: Map::default(),
            outbox: Outbox::default(),
            lookups: Vec::new(),
            depth: 0,
            flying: 0,
            search: false,
            crowded: false,
            paused_until: 0,
            pause: 0,
            finished: Vec::new(),
            found: Vec::new(),
        }
    }

    /// Puts an entry of an earlier process back. A due time further away than it could have been written means that
    /// the clock was set back since; such an entry waits one interval at most.
    pub(super) fn restore(&mut self, key: Key, entry: Entry, now: u64) {
        let due = entry.due.min(now + INTERVAL);
        self.slots.add(key, Entry { due, ..entry });
    }

    /// Makes `key` due now, whether it was there or not; one that is just being announced is so once more if that fails
    /// only.
    pub(super) fn add(&mut self, key: Key, now: u64) -> Entry {
        let entry = Entry { due: now, failures: 0 };
        let no = self.slots.add(key, entry);
        match self.slots.stage(no) {
            Stage::Waiting | Stage::Due(_) => {
                self.unlist(no);
                self.list(no, Class::New);
            }
            Stage::LookedUp | Stage::Flying { .. } => {}
        }
        entry
    }

    /// Forgets `key`; how an announcement on its way ends changes nothing any more.
    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some(no) = self.slots.find(key) {
            self.unlist(no);
            self.slots.remove(no);
        }
    }

    /// All keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.slots.keys()
    }

    /// What became of keys since the last call.
    pub(super) fn take_finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.finished)
    }

    /// What is to be done next; nothing before [`Sweep::wake_at`] or the end of what is on its way.
    pub(super) fn next(&mut self, now: u64) -> Option<Order> {
        for peer in self.map.sweep(now) {
            self.outbox.set_on_map(peer, false);
        }
        while let Some(no) = self.slots.pop_due(now) {
            self.list(no, Class::Again);
        }
        if self.paused_until > 0 && self.paused_until <= now {
            self.paused_until = 0;
            self.search = true;
        }
        if self.search {
            self.search = false;
            self.crowded = false;
            for class in Class::ALL {
                if let Some(no) = self.search(class, now) {
                    self.search = true;
                    return Some(Order::LookUp { lookup: no, key: self.slots.key(no).clone() });
                }
            }
        }
        self.outbox.next(|no| self.slots.key(no).clone())
    }

    /// When [`Sweep::next`] has something to give without anything ending before; none: never.
    pub(super) fn wake_at(&self) -> Option<u64> {
        let resumed = (self.paused_until > 0).then_some(self.paused_until);
        self.slots.first_due().into_iter().chain(resumed).min()
    }

    /// What lookup `no` found, the closest first; `complete`: it was not cut short.
    pub(super) fn looked_up(&mut self, no: KeyNo, found: Vec<Contact>, complete: bool, now: u64) {
        self.lookups.retain(|(lookup, _)| *lookup != no);
        self.search = true;
        let found: Vec<_> =
            found.into_iter().take(CLOSEST).map(|contact| self.outbox.number(contact)).collect();
        if found.is_empty() {
            self.pause = (self.pause * 2).clamp(FIRST_RETRY, MAX_PAUSE);
            self.paused_until = now + self.pause;
            self.finish(no, Outcome::Failed, now);
            return;
        }
        self.pause = 0;
        let id = self.slots.id(no);
        if self.slots.is_gone(no) {
            self.slots.free_if_gone(no);
        } else {
            let soon = self.slots.entry(no).failures == 0;
            self.fly(no, &found, soon);
        }
        if complete {
            self.depth = Map::depth(id, &found).unwrap_or(self.depth);
            for peer in self.map.learn(id, &found, now) {
                self.outbox.set_on_map(peer, false);
            }
        }
        // The number of one that is not on the map is free again after its batch.
        for (peer, no) in &found {
            self.outbox.set_on_map(*no, self.map.has(*peer));
        }
        if complete {
            self.announce_around(id, now);
        }
    }

    /// How batch `send` ended.
    pub(super) fn told(&mut self, send: PeerNo, told: bool, now: u64) {
        let (keys, failed) = self.outbox.told(send, told);
        if let Some(id) = failed {
            self.map.forget(id);
            self.outbox.set_on_map(send, false);
        }
        for no in keys {
            let Some(told) = self.slots.land(no, told) else { continue };
            self.flying -= 1;
            self.finish(no, if told { Outcome::Announced } else { Outcome::Failed }, now);
        }
        if self.crowded && self.flying < FLYING[Class::Again as usize] / 2 {
            self.search = true;
        }
    }

    /// Goes through what is due until a lookup is to begin, whose key it gives.
    fn search(&mut self, class: Class, now: u64) -> Option<KeyNo> {
        let mut found = std::mem::take(&mut self.found);
        let start = self.cursors[class as usize];
        let mut lookup = None;
        for (from, to) in [(start, None), (Id::FIRST, Some(start))] {
            let mut at = Some(from);
            while let Some(from) = at
                && let Some((id, no)) = self.first_due(class, from, to)
            {
                self.cursors[class as usize] = id;
                if self.flying >= FLYING[class as usize] {
                    self.crowded = true;
                    break;
                }
                at = match self.map.closest(id, &mut found) {
                    Ok(()) => {
                        self.unlist(no);
                        self.fly(no, &found, class == Class::New);
                        if class == Class::Again {
                            // They share its streams.
                            self.announce_around(id, now);
                        }
                        id.next()
                    }
                    Err(gap) => match self.place_of_lookup(id, no, gap, now) {
                        Some(target) if self.may_look_up(class, now) => {
                            lookup = Some(self.begin_lookup(target));
                            None
                        }
                        // The whole neighbourhood waits for the same lookup.
                        _ => Prefix::of(id, self.depth.max(1)).last().next(),
                    },
                };
            }
            if lookup.is_some() || self.crowded {
                break;
            }
        }
        self.found = found;
        lookup
    }

    fn first_due(&self, class: Class, from: Id, to: Option<Id>) -> Option<(Id, KeyNo)> {
        let (id, no) = self.due[class as usize].range(from..).next()?;
        to.is_none_or(|to| *id < to).then_some((*id, *no))
    }

    fn may_look_up(&self, class: Class, now: u64) -> bool {
        self.lookups.len() < LOOKUPS[class as usize] && self.paused_until <= now
    }

    /// Which key to look up so that the peers of `no` at `id` are known, of which `gap` is not: one in the gap, for it
    /// tells most, or else this one. None: that is being looked at.
    fn place_of_lookup(&self, id: Id, no: KeyNo, gap: Prefix, now: u64) -> Option<KeyNo> {
        let waits = |id: Id| self.lookups.iter().any(|(_, place)| place.contains(id));
        let target = if gap.contains(id) {
            no
        } else if self.lookups.iter().any(|(_, p)| gap.covers(*p) || p.covers(gap)) {
            return None;
        } else {
            let mut keys = self.slots.range(gap.first(), gap.last()).map(|(_, no)| no).take(TRIES);
            let ready = keys.find(|no| self.is_ready(*no, now));
            let place = self.map.cover_of(id).unwrap_or(gap);
            match ready {
                Some(ready) => ready,
                None if self.ready_near(id, place, now) < WORTH => no,
                None => {
                    let waits = |no: &KeyNo| self.slots.stage(*no) == Stage::Waiting;
                    let mut keys = self.slots.range(gap.first(), gap.last()).map(|(_, no)| no);
                    keys.find(waits).unwrap_or(no)
                }
            }
        };
        (!waits(self.slots.id(target))).then_some(target)
    }

    /// How many keys of a place are ready, counted round `id` alone.
    fn ready_near(&self, id: Id, place: Prefix, now: u64) -> usize {
        let after = self.slots.range(id, place.last()).take(TRIES);
        let before = self.slots.range(place.first(), id).rev().take(TRIES);
        after.chain(before).filter(|(_, no)| self.is_ready(*no, now)).count()
    }

    /// Whether a key is due or may be announced with its neighbours.
    fn is_ready(&self, no: KeyNo, now: u64) -> bool {
        match self.slots.stage(no) {
            Stage::Due(_) => true,
            Stage::Waiting => self.slots.entry(no).due <= now + EARLY,
            Stage::LookedUp | Stage::Flying { .. } => false,
        }
    }

    fn begin_lookup(&mut self, no: KeyNo) -> KeyNo {
        self.unlist(no);
        self.slots.set_stage(no, Stage::LookedUp);
        self.lookups.push((no, Prefix::of(self.slots.id(no), self.depth)));
        no
    }

    /// Announces what is due or soon will be round `id`, as far as its peers are known.
    fn announce_around(&mut self, id: Id, now: u64) {
        // What a lookup of this place tells nothing of comes by itself.
        let near = Prefix::of(id, self.depth.saturating_sub(2));
        let region = self.map.region(id);
        let region = if near.covers(region) { region } else { near };
        let mut found = std::mem::take(&mut self.found);
        let mut at = Some(region.first());
        while let Some(from) = at
            && self.flying < FLYING[Class::Again as usize]
            && let Some((id, no)) = self.slots.first_in(from, region.last())
        {
            at = id.next();
            if !self.is_ready(no, now) {
                continue;
            }
            let soon = self.slots.stage(no) == Stage::Due(Class::New);
            match self.map.closest(id, &mut found) {
                Ok(()) => {
                    self.unlist(no);
                    self.fly(no, &found, soon);
                }
                Err(gap) => {
                    // Its neighbours lack the same, as far as one can tell cheaply.
                    let near = if gap.contains(id) { Some(gap) } else { self.map.cover_of(id) };
                    at = near.and_then(|near| near.last().next());
                }
            }
        }
        self.found = found;
    }

    /// Has `peers` told of a key.
    fn fly(&mut self, no: KeyNo, peers: &[(Id, PeerNo)], soon: bool) {
        let of = u8::try_from(peers.len()).unwrap_or(u8::MAX);
        self.slots.set_stage(no, Stage::Flying { left: of, told: 0, of });
        self.flying += 1;
        for (_, peer) in peers {
            self.outbox.push(*peer, no, soon);
        }
    }

    fn finish(&mut self, no: KeyNo, outcome: Outcome, now: u64) {
        if self.slots.free_if_gone(no) {
            return;
        }
        let old = self.slots.entry(no);
        let entry = match outcome {
            Outcome::Announced => Entry { due: self.turn_of(self.slots.id(no), now), failures: 0 },
            Outcome::Failed => {
                let wait = FIRST_RETRY.saturating_mul(1 << old.failures.min(16)).min(MAX_RETRY);
                Entry { due: now + wait, failures: old.failures.saturating_add(1) }
            }
        };
        self.slots.wait(no, entry);
        self.finished.push(Finished { key: self.slots.key(no).clone(), outcome, entry });
    }

    /// The next time that the place of a key has its turn.
    fn turn_of(&self, id: Id, now: u64) -> u64 {
        let offset = ((id.xor(self.own).top() >> 32) * CYCLE) >> 32;
        let base = now + EARLY;
        let into = (base % CYCLE + CYCLE - offset) % CYCLE;
        base + CYCLE - into
    }

    fn list(&mut self, no: KeyNo, class: Class) {
        self.slots.set_stage(no, Stage::Due(class));
        self.due[class as usize].insert(self.slots.id(no), no);
        self.search = true;
    }

    fn unlist(&mut self, no: KeyNo) {
        match self.slots.stage(no) {
            Stage::Due(class) => drop(self.due[class as usize].remove(&self.slots.id(no))),
            Stage::Waiting => self.slots.stop_waiting(no),
            Stage::LookedUp | Stage::Flying { .. } => {}
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
