//! The keys themselves: by their place, by the time they fall due, and what is being done with each.

use std::collections::{BTreeMap, BTreeSet};

use super::{Class, Entry, Id, Key};

/// Names a key.
pub(in crate::net) type KeyNo = u32;

/// What is being done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing before its time.
    Waiting,
    /// It waits for its peers to be known.
    Due(Class),
    /// Its peers are being looked up.
    LookedUp,
    /// Of the peers that it is told to, how many have not answered, how many took it, how many there are.
    Flying { left: u8, told: u8, of: u8 },
}

#[derive(Debug)]
struct Slot {
    key: Key,
    id: Id,
    entry: Entry,
    stage: Stage,
    /// It was removed while something was on its way.
    gone: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<KeyNo>,
    by_id: BTreeMap<Id, KeyNo>,
    waiting: BTreeSet<(u64, KeyNo)>,
}

impl Slots {
    /// Gives `key` this entry; a new one waits.
    pub(super) fn add(&mut self, key: Key, entry: Entry) -> KeyNo {
        let id = Id::of_key(&key);
        if let Some(no) = self.by_id.get(&id).copied() {
            if self.stage(no) == Stage::Waiting {
                self.stop_waiting(no);
                self.waiting.insert((entry.due, no));
            }
            self.slot(no).entry = entry;
            return no;
        }
        let slot = Slot { key, id, entry, stage: Stage::Waiting, gone: false };
        let no = match self.free.pop() {
            Some(no) => {
                *self.slot(no) = slot;
                no
            }
            None => {
                self.slots.push(slot);
                // Four thousand million keys do not fit into memory.
                KeyNo::try_from(self.slots.len() - 1).unwrap_or(KeyNo::MAX)
            }
        };
        self.by_id.insert(id, no);
        self.waiting.insert((entry.due, no));
        no
    }

    /// Takes a key out that neither waits nor is due.
    pub(super) fn remove(&mut self, no: KeyNo) {
        let id = self.id(no);
        self.by_id.remove(&id);
        self.slot(no).gone = true;
        if !matches!(self.stage(no), Stage::LookedUp | Stage::Flying { .. }) {
            self.free_if_gone(no);
        }
    }

    /// Whether a key was removed while something was on its way, which has ended now.
    pub(super) fn free_if_gone(&mut self, no: KeyNo) -> bool {
        let slot = self.slot(no);
        let gone = slot.gone;
        if gone {
            slot.key = Key::new();
            self.free.push(no);
        }
        gone
    }

    pub(super) fn find(&self, key: &[u8]) -> Option<KeyNo> {
        self.by_id.get(&Id::of_key(key)).copied()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.by_id.values().map(|no| self.key(*no))
    }

    /// Keys by their place, both ends included.
    pub(super) fn range(
        &self,
        first: Id,
        last: Id,
    ) -> impl DoubleEndedIterator<Item = (Id, KeyNo)> {
        self.by_id.range(first..=last).map(|(id, no)| (*id, *no))
    }

    /// The first key from one place to another, both included.
    pub(super) fn first_in(&self, first: Id, last: Id) -> Option<(Id, KeyNo)> {
        // A range that ends before it begins is none to the map.
        (first <= last).then(|| self.range(first, last).next()).flatten()
    }

    pub(super) fn key(&self, no: KeyNo) -> &Key {
        &self.slots[no as usize].key
    }

    pub(super) fn id(&self, no: KeyNo) -> Id {
        self.slots[no as usize].id
    }

    pub(super) fn entry(&self, no: KeyNo) -> Entry {
        self.slots[no as usize].entry
    }

    pub(super) fn stage(&self, no: KeyNo) -> Stage {
        self.slots[no as usize].stage
    }

    pub(super) fn is_gone(&self, no: KeyNo) -> bool {
        self.slots[no as usize].gone
    }

    pub(super) fn set_stage(&mut self, no: KeyNo, stage: Stage) {
        self.slot(no).stage = stage;
    }

    /// Has a key wait until its time.
    pub(super) fn wait(&mut self, no: KeyNo, entry: Entry) {
        let slot = self.slot(no);
        slot.entry = entry;
        slot.stage = Stage::Waiting;
        self.waiting.insert((entry.due, no));
    }

    pub(super) fn stop_waiting(&mut self, no: KeyNo) {
        self.waiting.remove(&(self.entry(no).due, no));
    }

    /// A key whose time has come; it waits no longer.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<KeyNo> {
        if self.first_due()? > now {
            return None;
        }
        self.waiting.pop_first().map(|(_, no)| no)
    }

    /// When the first key that waits falls due.
    pub(super) fn first_due(&self) -> Option<u64> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Notes the answer of one of the peers that a key is told to; after the last one, whether enough of them took it.
    pub(super) fn land(&mut self, no: KeyNo, taken: bool) -> Option<bool> {
        let Stage::Flying { left, told, .. } = &mut self.slot(no).stage else { return None };
        *left = left.saturating_sub(1);
        *told += u8::from(taken);
        match self.stage(no) {
            // Half of them outlive the interval by far.
            Stage::Flying { left: 0, told, of } => Some(told > 0 && told >= of / 2),
            _ => None,
        }
    }

    fn slot(&mut self, no: KeyNo) -> &mut Slot {
        &mut self.slots[no as usize]
    }
}
