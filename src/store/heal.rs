//! Bytes that rotted on the disk: found before they are copied, served or taken for a good copy that just came, and
//! repaired from that copy.
//!
//! A stamp shows what programs changed, not what the disk lost. So a leaf is hashed when it is first read through the
//! daemon, and again some time later; what was hashed meanwhile is remembered. Passthrough readers read past this, as does
//! every filesystem without checksums: for them there is [`super::Store::verify`].

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;

use super::{Inner, Object, ObjectId, SealLeaves, StoreError, guard, index, recheck::Look};
use crate::content::{Block, ByteRange, ContentId, Placement, RangeSet};

/// How long bytes count as right once they were hashed: what is read again and again is hashed six times an hour.
const HOLDS: Duration = Duration::from_secs(600);
/// Objects of which it is remembered that all their bytes were right: what is published and copied again in that time.
const WHOLE: usize = 16 << 10;
/// Leaves that are looked up at a time for one read: 16 MiB of usual ones.
const LEAVES_AT_ONCE: usize = 64;

/// Bytes of one object that were right a short time ago.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<(Option<Instant>, RangeSet)>);

impl Verified {
    fn contains(&self, range: ByteRange) -> bool {
        let mut held = guard(&self.0);
        if held.0.is_some_and(|since| since.elapsed() >= HOLDS) {
            *held = (None, RangeSet::new());
        }
        held.1.contains(range)
    }

    fn insert(&self, range: ByteRange) {
        let mut held = guard(&self.0);
        held.0.get_or_insert_with(Instant::now);
        held.1.insert(range);
    }

    fn remove(&self, range: ByteRange) {
        guard(&self.0).1.remove(range);
    }
}

/// Objects that were right as a whole a short time ago, also those that nobody has open.
#[derive(Debug)]
pub(super) struct Whole(Mutex<LruCache<ObjectId, Instant>>);

impl Default for Whole {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(WHOLE.try_into().unwrap_or(super::RECENT_OBJECTS))))
    }
}

impl Whole {
    pub(super) fn contains(&self, id: ObjectId) -> bool {
        guard(&self.0).get(&id).is_some_and(|at| at.elapsed() < HOLDS)
    }

    /// All bytes of an object were hashed and are right.
    pub(super) fn insert(&self, id: ObjectId) {
        guard(&self.0).push(id, Instant::now());
    }

    fn remove(&self, id: ObjectId) {
        guard(&self.0).pop(&id);
    }
}

impl Object {
    /// Returns whether `range` is here and its bytes are what they should be; those that are not are withdrawn.
    ///
    /// # Errors
    /// When the index or the file cannot be read.
    pub fn holds(&self, range: ByteRange) -> Result<bool, StoreError> {
        if self.has(range) {
            self.verify_range(range)?;
        }
        Ok(self.has(range))
    }

    /// Returns whether all bytes are here and right, hashing those that were not a short time ago.
    ///
    /// # Errors
    /// When the index or the file cannot be read, or a withdrawal not be made durable.
    pub fn verify(&self) -> Result<bool, StoreError> {
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        // First what looks changed, which is hashed as a whole.
        if !self.is_complete() || !self.is_right()? {
            return Ok(false);
        }
        if !store.whole.contains(self.id()) {
            let _turn = self.rehashing.lock().unwrap_or_else(PoisonError::into_inner);
            store.rehash_leaves(self)?;
            if self.is_complete() && self.look()? == Look::Same {
                store.whole.insert(self.id());
            }
        }
        Ok(self.is_complete())
    }

    pub(super) fn is_verified(&self, range: ByteRange) -> bool {
        self.verified.contains(range)
            || self.store.upgrade().is_some_and(|store| store.whole.contains(self.id()))
    }

    pub(super) fn note_verified(&self, range: ByteRange) {
        self.verified.insert(range);
    }

    pub(super) fn forget_verified(&self, range: ByteRange) {
        self.verified.remove(range);
        if let Some(store) = self.store.upgrade() {
            store.whole.remove(self.id());
        }
    }

    /// Hashes the leaves that have bytes of `range`, unless they were right a short time ago; those that are wrong are
    /// withdrawn.
    pub(super) fn verify_range(&self, range: ByteRange) -> Result<(), StoreError> {
        if range.is_empty() || self.is_verified(range) {
            return Ok(());
        }
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        let first = store.index.read(|txn| index::leaf_at(txn, self.id(), range.start))?;
        let mut at = first.map_or(range.start, |(_, leaf)| leaf.range.start);
        while at < range.end {
            let leaves =
                store.index.read(|txn| index::leaves(txn, self.id(), at, LEAVES_AT_ONCE))?;
            let Some((_, last)) = leaves.last() else { break };
            at = last.range.end;
            for (hash, leaf) in leaves.iter().filter(|(_, leaf)| leaf.range.start < range.end) {
                if !self.is_verified(leaf.range) && self.has(leaf.range) {
                    self.verify_leaf(&store, hash, leaf)?;
                }
            }
        }
        Ok(())
    }
}

impl Inner {
    /// As [`super::Store::heal`].
    pub(super) fn heal(
        self: &Arc<Self>,
        root: &ContentId,
        file: &File,
        leaves: &SealLeaves,
    ) -> Result<(), StoreError> {
        let Some(object) = self.object_of(root)? else { return Ok(()) };
        // What was never whole is a download or a layer: its gaps are no damage.
        if !object.is_ever_complete() || Some(object.size()) != leaves.size() || object.verify()? {
            return Ok(());
        }
        let mut healed = 0;
        for (hash, range) in leaves.iter().filter(|(_, range)| !range.is_empty()) {
            if object.has(range) {
                continue;
            }
            let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(0)];
            let read = file.read_exact_at(&mut bytes, range.start);
            read.map_err(|e| object.io("read the copy of", e))?;
            // The copy may have changed since it was hashed: then it heals nothing.
            let Ok(block) = Block::verify(ContentId::raw(hash), bytes.into()) else { break };
            let data = 0..block.data().len();
            object.place_admitted(&block, &[Placement { offset: range.start, data }])?;
            healed += range.len();
        }
        self.flush()?;
        if object.is_complete() {
            self.whole.insert(object.id());
        }
        tracing::warn!(
            path = %object.path().display(), %root, bytes = healed,
            "a stored file was damaged on the disk; it is repaired from a copy that was just published"
        );
        Ok(())
    }

    /// Brings a leaf that was withdrawn back from another place of its block, if there is one; whether it did.
    pub(super) fn heal_leaf(
        self: &Arc<Self>,
        object: &Arc<Object>,
        id: &ContentId,
        range: ByteRange,
        before: usize,
    ) -> Result<bool, StoreError> {
        let Some(block) = self.block(id)? else { return Ok(false) };
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let data = before..before.saturating_add(len);
        object.place_admitted(&block, &[Placement { offset: range.start, data }])?;
        tracing::info!(path = %object.path().display(), %id, "a damaged block is repaired from another copy");
        Ok(true)
    }
}

#[cfg(test)]
impl Inner {
    pub(super) fn rot(self: &Arc<Self>, id: ObjectId, at: u64) -> Result<(), StoreError> {
        self.flush()?;
        let path = self.object_path(id);
        let failed = |e| StoreError::io("rot", &path, e);
        let file = File::options().read(true).write(true).open(&path).map_err(failed)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).map_err(failed)?;
        file.write_all_at(&[byte[0] ^ 1], at).map_err(failed)?;
        let stamp = super::FileStamp::of(&file).map_err(failed)?;
        self.whole.remove(id);
        if let Some(object) = self.open_object(id)? {
            object.set_stamp(stamp);
            object.forget_verified(ByteRange::new(0, u64::MAX));
        }
        self.index.write(|rows| {
            if let Some(mut row) = rows.object(id)?.filter(|row| row.stamp.is_some()) {
                row.stamp = Some(stamp);
                rows.put_object(id, &row)?;
            }
            Ok(())
        })
    }
}
