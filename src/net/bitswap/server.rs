//! What one peer wants from here. Pure state: no store, no network, no clock.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::wire::{Action, Entry};
use crate::content::{ContentId, Multihash};

/// Most DONT_HAVE that wait because the list was full. A peer that overfills it by more learns nothing of the rest.
const MAX_REFUSED: usize = 1024;

/// Wants beyond the limit, less what was cancelled, after which a peer is flooding: 64 times what Kubo keeps.
const FLOOD: usize = 1 << 16;

/// The wantlist of a peer.
///
/// A want is in exactly one of three stages. *Queued*: to be looked up. *Reading*: handed out by
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
    /// Wants that are being looked up, by hash: the block may arrive under an id of another version or codec.
    reading: BTreeMap<(Multihash, u64), ContentId>,
    /// Remembered wants, by hash.
    remembered: BTreeMap<(Multihash, u64), ContentId>,
    refused: VecDeque<ContentId>,
    /// Wants that did not fit or gave way to others, less the cancels since.
    crowded_out: usize,
    waiting: Waiting,
}

/// Counts the wants of all peers that a block which arrives may answer: those that are remembered, and those that may
/// be as soon as they were looked up. While there are none, an arrival costs one look at it.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    /// Whether there are any. A want is counted before its block is looked up, so that whoever has put the block into
    /// the store and finds nothing counted need not tell.
    pub(super) fn any(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Wantlist {
    fn drop(&mut self) {
        self.clear();
    }
}

#[derive(Clone, Copy, Debug)]
struct State {
    seq: u64,
    priority: i32,
    block: bool,
    send_dont_have: bool,
    /// Its block arrived while it was looked up, which may have come too early to see it.
    arrived: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Queued,
    Reading,
    Remembered,
}

impl State {
    /// Whether the arrival of its block has to be told.
    fn waits(&self) -> bool {
        self.stage != Stage::Queued && !self.send_dont_have
    }
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
    /// An empty list that holds at most `limit` wants and counts those that wait.
    pub(super) fn new(limit: usize, waiting: Waiting) -> Self {
        Self {
            waiting,
            limit,
            next_seq: 0,
            wants: HashMap::new(),
            queue: BTreeMap::new(),
            reading: BTreeMap::new(),
            remembered: BTreeMap::new(),
            refused: VecDeque::new(),
            crowded_out: 0,
        }
    }

    /// Changes how many wants may be held. What is there stays.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Wants in any stage, and refusals that are not told yet.
    pub(super) fn len(&self) -> usize {
        self.wants.len() + self.refused.len()
    }

    /// Takes a message of the peer in; whether it is still within what anyone may want.
    pub(super) fn apply(&mut self, full: bool, entries: &[Entry]) -> bool {
        if full {
            self.clear();
        }
        for entry in entries {
            match entry.action {
                Action::Cancel => {
                    self.remove(&entry.id);
                    self.crowded_out = self.crowded_out.saturating_sub(1);
                }
                Action::Want { block, send_dont_have } => {
                    self.want(entry.id, entry.priority, block, send_dont_have);
                }
            }
        }
        self.crowded_out < FLOOD
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        let waiting = self.wants.values().filter(|state| state.waits()).count();
        self.waiting.0.fetch_sub(waiting, Ordering::SeqCst);
        self.wants.clear();
        self.queue.clear();
        self.reading.clear();
        self.remembered.clear();
        self.refused.clear();
        self.crowded_out = 0;
    }

    fn want(&mut self, id: ContentId, priority: i32, block: bool, send_dont_have: bool) {
        let old = self.wants.get(&id).copied();
        if old.is_some_and(|old| old.stage == Stage::Reading && (old.block || !block)) {
            return;
        }
        if old.is_none() && !self.make_room() {
            if send_dont_have && self.refused.len() < MAX_REFUSED {
                self.refused.push_back(id);
            }
            return;
        }
        self.remove(&id);
        // A new number: an answer that is being read is for less than is wanted now.
        self.next_seq += 1;
        let state = State {
            seq: self.next_seq,
            priority,
            block: block || old.is_some_and(|old| old.block),
            send_dont_have: send_dont_have || old.is_some_and(|old| old.send_dont_have),
            arrived: false,
            stage: Stage::Queued,
        };
        self.insert(id, state);
    }

    /// Whether one want more fits. What is only remembered gives way to what may be answered now.
    fn make_room(&mut self) -> bool {
        if self.wants.len() < self.limit {
            return true;
        }
        self.crowded_out += 1;
        let evicted = self.remembered.first_key_value().map(|(_, id)| *id);
        evicted.is_some_and(|id| self.remove(&id).is_some())
    }

    fn remove(&mut self, id: &ContentId) -> Option<State> {
        let state = self.wants.remove(id)?;
        if state.waits() {
            self.waiting.0.fetch_sub(1, Ordering::SeqCst);
        }
        match state.stage {
            Stage::Queued => self.queue.remove(&(Reverse(state.priority), state.seq)),
            Stage::Reading => self.reading.remove(&(*id.hash(), state.seq)),
            Stage::Remembered => self.remembered.remove(&(*id.hash(), state.seq)),
        };
        Some(state)
    }

    fn insert(&mut self, id: ContentId, state: State) {
        if state.waits() {
            self.waiting.0.fetch_add(1, Ordering::SeqCst);
        }
        match state.stage {
            Stage::Queued => self.queue.insert((Reverse(state.priority), state.seq), id),
            Stage::Reading => self.reading.insert((*id.hash(), state.seq), id),
            Stage::Remembered => self.remembered.insert((*id.hash(), state.seq), id),
        };
        self.wants.insert(id, state);
    }

    fn restage(&mut self, id: &ContentId, stage: Stage) {
        if let Some(state) = self.remove(id) {
            self.insert(*id, State { stage, arrived: false, ..state });
        }
    }

    /// Hands out the next wants, at most `count`.
    pub(super) fn take(&mut self, count: usize) -> Vec<Want> {
        let mut taken = Vec::with_capacity(count.min(self.queue.len()));
        while taken.len() < count
            && let Some((_, id)) = self.queue.first_key_value().map(|(key, id)| (*key, *id))
        {
            self.restage(&id, Stage::Reading);
            let Some(State { seq, block, send_dont_have, .. }) = self.wants.get(&id).copied()
            else {
                break;
            };
            taken.push(Want { id, block, send_dont_have, seq });
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
            if self.is_reading(want) {
                self.restage(&want.id, Stage::Queued);
            }
        }
    }

    /// Gives back everything that was handed out: its answers were lost.
    pub(super) fn put_back_all(&mut self) {
        while let Some(id) = self.reading.first_key_value().map(|(_, id)| *id) {
            self.restage(&id, Stage::Queued);
        }
    }

    /// Whether the answer to `want` is still to be sent. It leaves the list.
    pub(super) fn finish(&mut self, want: &Want) -> bool {
        self.is_reading(want) && self.remove(&want.id).is_some()
    }

    /// Queues a finished want again: its answer was lost. What the peer said since then wins.
    pub(super) fn restore(&mut self, want: &Want) {
        if !self.wants.contains_key(&want.id) {
            self.want(want.id, 1, want.block, want.send_dont_have);
        }
    }

    /// Keeps a want whose block is not here, for when it arrives; it may have arrived meanwhile.
    pub(super) fn remember(&mut self, want: &Want) {
        if self.is_reading(want) {
            let arrived = self.wants.get(&want.id).is_some_and(|state| state.arrived);
            let stage = if arrived { Stage::Queued } else { Stage::Remembered };
            self.restage(&want.id, stage);
        }
    }

    /// Queues the remembered wants for a block that is here now; whether there are any.
    pub(super) fn arrived(&mut self, hash: &Multihash) -> bool {
        let range = (*hash, 0)..=(*hash, u64::MAX);
        for id in self.reading.range(range.clone()).map(|(_, id)| id) {
            if let Some(state) = self.wants.get_mut(id) {
                state.arrived = true;
            }
        }
        let found: Vec<_> = self.remembered.range(range).map(|(_, id)| *id).collect();
        for id in &found {
            self.restage(id, Stage::Queued);
        }
        !found.is_empty()
    }

    /// Whether [`Wantlist::take`] or [`Wantlist::take_refused`] have something.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.refused.is_empty()
    }

    fn is_reading(&self, want: &Want) -> bool {
        self.reading.contains_key(&(*want.id.hash(), want.seq))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::content::Block;

    fn id(n: u8) -> ContentId {
        *Block::raw(vec![n].into()).cid()
    }

    fn want(n: u8, priority: i32, block: bool, send_dont_have: bool) -> Entry {
        Entry { id: id(n), priority, action: Action::Want { block, send_dont_have } }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Message(bool, Vec<Entry>),
        /// Takes some, looks at all but the last few, gives the rest back.
        Serve(usize, usize),
        /// Takes some whose answers are never given, as when a stream breaks.
        Lose(usize),
        /// The block arrives, perhaps while it is looked up.
        Arrive(u8, bool),
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let cancel =
            (0..12u8).prop_map(|n| Entry { id: id(n), priority: 0, action: Action::Cancel });
        let want = (0..12u8, 0..3i32, any::<bool>(), any::<bool>())
            .prop_map(|(n, priority, block, dont)| want(n, priority, block, dont));
        prop_oneof![1 => cancel, 3 => want]
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (prop::bool::weighted(0.1), prop::collection::vec(entry(), 0..6))
                .prop_map(|(full, entries)| Op::Message(full, entries)),
            4 => (1..6usize, 0..3usize).prop_map(|(count, left)| Op::Serve(count, left)),
            1 => (1..6usize).prop_map(Op::Lose),
            2 => (0..12u8, any::<bool>()).prop_map(|(n, during)| Op::Arrive(n, during)),
        ]
    }

    /// What the peer is owed: (block, whether it is to be told when there is none).
    type Owed = HashMap<ContentId, (bool, bool)>;

    fn owe(owed: &mut Owed, full: bool, entries: &[Entry]) {
        if full {
            owed.clear();
        }
        for entry in entries {
            match entry.action {
                Action::Cancel => {
                    owed.remove(&entry.id);
                }
                Action::Want { block, send_dont_have } => {
                    let owed = owed.entry(entry.id).or_default();
                    *owed = (owed.0 || block, owed.1 || send_dont_have);
                }
            }
        }
    }

    /// Looks up as the writer does; every answer must be owed, and is no longer owed then.
    fn serve(list: &mut Wantlist, owed: &mut Owed, here: &HashSet<ContentId>, wants: &[Want]) {
        for want in wants {
            if !here.contains(&want.id) && !want.send_dont_have {
                list.remember(want);
            } else if list.finish(want) {
                // Panics for an answer that nobody waits for.
                let (block, dont_have) = owed.remove(&want.id).unwrap();
                assert!(want.block || !block, "HAVE where the block is wanted");
                assert!(here.contains(&want.id) || dont_have);
            }
        }
    }

    fn check(list: &Wantlist, limit: usize) {
        assert!(list.wants.len() <= limit && list.refused.len() <= MAX_REFUSED);
        let staged = |stage| list.wants.values().filter(|state| state.stage == stage).count();
        assert_eq!(list.queue.len(), staged(Stage::Queued));
        assert_eq!(list.reading.len(), staged(Stage::Reading));
        assert_eq!(list.remembered.len(), staged(Stage::Remembered));
        let waiting = list.wants.values().filter(|state| state.waits()).count();
        assert_eq!(list.waiting.0.load(Ordering::SeqCst), waiting);
    }

    fn run(limit: usize, ops: Vec<Op>) -> (Wantlist, Owed, HashSet<ContentId>) {
        let mut list = Wantlist::new(limit, Waiting::default());
        let (mut owed, mut here) = (Owed::new(), HashSet::new());
        for op in ops {
            match op {
                Op::Message(full, entries) => {
                    list.apply(full, &[]);
                    owe(&mut owed, full, &[]);
                    for entry in entries.chunks(1) {
                        list.apply(false, entry);
                        owe(&mut owed, false, entry);
                        // What does not fit is not owed.
                        owed.retain(|id, _| limit == usize::MAX || list.wants.contains_key(id));
                    }
                }
                Op::Serve(count, left) => {
                    let wants = list.take(count);
                    let (looked, rest) = wants.split_at(wants.len().saturating_sub(left));
                    list.put_back(rest);
                    serve(&mut list, &mut owed, &here, looked);
                }
                Op::Lose(count) => {
                    list.take(count);
                    list.put_back_all();
                }
                Op::Arrive(n, during) => {
                    let wants = if during { list.take(3) } else { Vec::new() };
                    // Looked up before the block was there.
                    let before = here.clone();
                    here.insert(id(n));
                    list.arrived(id(n).hash());
                    serve(&mut list, &mut owed, &before, &wants);
                }
            }
            check(&list, limit);
        }
        (list, owed, here)
    }

    proptest! {
        #[test]
        fn each_want_is_answered_once_unless_it_is_cancelled(
            ops in prop::collection::vec(op(), 0..60),
        ) {
            let (mut list, mut owed, mut here) = run(usize::MAX, ops);
            prop_assert_eq!(list.wants.len(), owed.len());
            for n in 0..12 {
                here.insert(id(n));
                list.arrived(id(n).hash());
            }
            let wants = list.take(usize::MAX);
            serve(&mut list, &mut owed, &here, &wants);
            prop_assert!(owed.is_empty(), "never answered: {:?}", owed);
            prop_assert_eq!(list.len(), 0);
        }

        #[test]
        fn a_full_list_stays_within_its_limit_and_answers_nothing_twice(
            ops in prop::collection::vec(op(), 0..60),
        ) {
            run(4, ops);
        }
    }

    #[test]
    fn greater_priority_goes_first_then_the_older_want() {
        let mut list = Wantlist::new(10, Waiting::default());
        list.apply(
            false,
            &[want(1, 1, true, true), want(2, 5, true, true), want(3, 1, true, true)],
        );
        let order: Vec<_> = list.take(10).iter().map(|want| want.id).collect();
        assert_eq!(order, [id(2), id(1), id(3)]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_is_only_remembered_gives_way() {
        let mut list = Wantlist::new(2, Waiting::default());
        list.apply(false, &[want(1, 1, true, false), want(2, 1, true, true)]);
        list.apply(false, &[want(3, 1, true, true), want(4, 1, true, false)]);
        assert_eq!(list.take_refused(), [id(3)]);
        let first = list.take(1);
        list.remember(&first[0]);
        list.apply(false, &[want(5, 1, true, true)]);
        let order: Vec<_> = list.take(10).iter().map(|want| want.id).collect();
        assert_eq!(order, [id(2), id(5)]);
        assert!(!list.arrived(id(1).hash()), "it gave way");
    }

    #[test]
    fn a_peer_that_wants_far_more_than_fits_and_takes_nothing_back_is_flooding() {
        let raw = |n: usize| *Block::raw(n.to_le_bytes().to_vec().into()).cid();
        let wants = |n: usize| Entry {
            id: raw(n),
            priority: 1,
            action: Action::Want { block: true, send_dont_have: true },
        };
        let cancels = |n: usize| Entry { id: raw(n), priority: 0, action: Action::Cancel };
        let mut list = Wantlist::new(10, Waiting::default());
        let most: Vec<_> = (0..FLOOD + 9).map(wants).collect();
        assert!(list.apply(false, &most));
        assert_eq!(list.len(), 10 + MAX_REFUSED);
        assert!(list.apply(false, &[cancels(FLOOD), wants(FLOOD + 9)]));
        assert!(!list.apply(false, &[wants(FLOOD + 10)]));
        assert!(list.apply(true, &most), "a full list begins anew");
    }

    #[test]
    fn a_lost_answer_is_given_again_unless_the_peer_changed_its_mind() {
        let mut list = Wantlist::new(10, Waiting::default());
        list.apply(false, &[want(1, 1, true, true), want(2, 1, true, true)]);
        let taken = list.take(2);
        assert!(taken.iter().all(|want| list.finish(want)));
        list.apply(false, &[want(2, 1, false, true)]);
        taken.iter().for_each(|want| list.restore(want));
        let again: Vec<_> = list.take(10).iter().map(|want| (want.id, want.block)).collect();
        assert_eq!(again, [(id(2), false), (id(1), true)]);
    }

    #[test]
    fn a_want_for_the_block_voids_the_have_that_is_being_read() {
        let mut list = Wantlist::new(10, Waiting::default());
        list.apply(false, &[want(1, 1, false, true)]);
        let have = list.take(1);
        list.apply(false, &[want(1, 1, true, true)]);
        assert!(!list.finish(&have[0]));
        let block = list.take(1);
        assert!(block[0].block && list.finish(&block[0]));
    }
}
