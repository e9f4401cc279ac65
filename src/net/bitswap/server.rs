//! What one peer wants from here. Pure state: no store, no network, no clock.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
};

use super::wire::{Action, Entry};
use crate::content::{ContentId, Multihash};

/// Most DONT_HAVE that wait because the list was full. A peer that overfills it by more learns nothing of the rest.
const MAX_REFUSED: usize = 1024;

/// The wantlist of a peer.
///
/// A want is in exactly one of three states. *Queued*: to be looked up. *Reading*: handed out by
/// [`Wantlist::take`], its answer is under way to [`Wantlist::finish`]. *Remembered*: its block is not here, and the
/// peer did not ask to be told; it is answered when the block arrives. A want leaves the list with its answer,
/// with its cancel, or when a full list replaces it.
#[derive(Debug)]
pub(super) struct Wantlist {
    limit: usize,
    next_seq: u64,
    wants: HashMap<ContentId, State>,
    /// Queued wants; greatest priority first, then oldest.
    queue: BTreeMap<(Reverse<i32>, u64), ContentId>,
    /// Remembered wants by hash: the block may arrive under an id of another version or codec.
    remembered: BTreeMap<(Multihash, u64), ContentId>,
    refused: VecDeque<ContentId>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    seq: u64,
    priority: i32,
    block: bool,
    send_dont_have: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Queued,
    Reading,
    Remembered,
}

/// A want that was handed out to be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// What is wanted.
    pub(super) id: ContentId,
    /// The block itself, not only HAVE.
    pub(super) block: bool,
    /// Whether to answer when it is not there.
    pub(super) send_dont_have: bool,
    seq: u64,
}

impl Wantlist {
    /// An empty list that holds at most `limit` wants.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            next_seq: 0,
            wants: HashMap::new(),
            queue: BTreeMap::new(),
            remembered: BTreeMap::new(),
            refused: VecDeque::new(),
        }
    }

    /// Changes how many wants may be held. What is there stays.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Wants in any state, and refusals that are not told yet.
    pub(super) fn len(&self) -> usize {
        self.wants.len() + self.refused.len()
    }

    /// Takes a message of the peer in.
    pub(super) fn apply(&mut self, full: bool, entries: &[Entry]) {
        if full {
            self.clear();
        }
        for entry in entries {
            match entry.action {
                Action::Cancel => self.cancel(&entry.id),
                Action::Want { block, send_dont_have } => {
                    self.want(entry.id, entry.priority, block, send_dont_have);
                }
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.wants.clear();
        self.queue.clear();
        self.remembered.clear();
        self.refused.clear();
    }

    fn want(&mut self, id: ContentId, priority: i32, block: bool, send_dont_have: bool) {
        let old = self.wants.get(&id).copied();
        let new = match old {
            Some(old) if old.stage == Stage::Reading && (old.block || !block) => return,
            Some(old) => {
                self.unlink(&id, &old);
                State {
                    // An answer that is being read is for less than is wanted now: a new number voids it.
                    seq: if old.stage == Stage::Reading { self.seq() } else { old.seq },
                    priority,
                    block: old.block || block,
                    send_dont_have: old.send_dont_have || send_dont_have,
                    stage: Stage::Queued,
                }
            }
            None if !self.make_room() => {
                if send_dont_have && self.refused.len() < MAX_REFUSED {
                    self.refused.push_back(id);
                }
                return;
            }
            None => {
                State { seq: self.seq(), priority, block, send_dont_have, stage: Stage::Queued }
            }
        };
        self.queue.insert((Reverse(priority), new.seq), id);
        self.wants.insert(id, new);
    }

    fn cancel(&mut self, id: &ContentId) {
        if let Some(state) = self.wants.remove(id) {
            self.unlink(id, &state);
        }
    }

    /// Whether one want more fits. What is only remembered gives way to what may be answered now.
    fn make_room(&mut self) -> bool {
        if self.wants.len() < self.limit {
            return true;
        }
        self.remembered.pop_first().is_some_and(|(_, id)| self.wants.remove(&id).is_some())
    }

    fn seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    fn unlink(&mut self, id: &ContentId, state: &State) {
        match state.stage {
            Stage::Queued => self.queue.remove(&(Reverse(state.priority), state.seq)),
            Stage::Remembered => self.remembered.remove(&(*id.hash(), state.seq)),
            Stage::Reading => None,
        };
    }

    /// Hands out the next wants, at most `count`.
    pub(super) fn take(&mut self, count: usize) -> Vec<Want> {
        let mut taken = Vec::with_capacity(count.min(self.queue.len()));
        while taken.len() < count
            && let Some((_, id)) = self.queue.pop_first()
        {
            if let Some(state) = self.wants.get_mut(&id) {
                state.stage = Stage::Reading;
                let State { seq, block, send_dont_have, .. } = *state;
                taken.push(Want { id, block, send_dont_have, seq });
            }
        }
        taken
    }

    /// DONT_HAVE that are owed for wants that did not fit.
    pub(super) fn take_refused(&mut self) -> Vec<ContentId> {
        self.refused.drain(..).collect()
    }

    /// Gives back wants that were handed out and not looked up.
    pub(super) fn put_back(&mut self, wants: &[Want]) {
        for want in wants {
            self.restage(want, Stage::Queued);
        }
    }

    /// Gives back everything that was handed out: its answers were lost.
    pub(super) fn put_back_all(&mut self) {
        for (id, state) in &mut self.wants {
            if state.stage == Stage::Reading {
                state.stage = Stage::Queued;
                self.queue.insert((Reverse(state.priority), state.seq), *id);
            }
        }
    }

    /// Whether the answer to `want` is still to be sent. It leaves the list.
    pub(super) fn finish(&mut self, want: &Want) -> bool {
        self.is_reading(want) && self.wants.remove(&want.id).is_some()
    }

    /// Keeps a want whose block is not here, for when it arrives.
    pub(super) fn remember(&mut self, want: &Want) {
        self.restage(want, Stage::Remembered);
    }

    /// Queues the remembered wants for a block that is here now; whether there are any.
    pub(super) fn arrived(&mut self, hash: &Multihash) -> bool {
        let range = (*hash, 0)..=(*hash, u64::MAX);
        let found: Vec<_> = self.remembered.range(range).map(|(key, id)| (*key, *id)).collect();
        for (key, id) in &found {
            self.remembered.remove(key);
            if let Some(state) = self.wants.get_mut(id) {
                state.stage = Stage::Queued;
                self.queue.insert((Reverse(state.priority), state.seq), *id);
            }
        }
        !found.is_empty()
    }

    /// Whether [`Wantlist::take`] or [`Wantlist::take_refused`] have something.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.refused.is_empty()
    }

    fn is_reading(&self, want: &Want) -> bool {
        self.wants
            .get(&want.id)
            .is_some_and(|state| state.seq == want.seq && state.stage == Stage::Reading)
    }

    fn restage(&mut self, want: &Want, stage: Stage) {
        if !self.is_reading(want) {
            return;
        }
        let Some(state) = self.wants.get_mut(&want.id) else { return };
        state.stage = stage;
        if stage == Stage::Queued {
            self.queue.insert((Reverse(state.priority), state.seq), want.id);
        } else {
            self.remembered.insert((*want.id.hash(), state.seq), want.id);
        }
    }
}
