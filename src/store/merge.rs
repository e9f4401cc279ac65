//! Writing a new version into the object of the old one, where a copy would cost too much.
//!
//! Both versions are served all the time. The leaves that will be overwritten are kept first, in a sparse object of the
//! old root; then they are taken out of the object's row, and only then its bytes change. Leaves that both versions
//! share stay in service where they are, and [`super::Seal`] makes the object the new version.

use std::{sync::Arc, time::Duration};

use super::{Inner, Object, ObjectId, StoreError, WorkingFile, guard, index};
use crate::{
    content::{Block, ByteRange, Placement, RangeSet},
    sys::Holder,
};

/// Whether a new version may be written into an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mergeable {
    /// Its old leaves are kept: [`super::Store::begin_merge`] may follow.
    Now,
    /// Somebody uses it.
    Later,
    /// A pin reaches it or the caller's upload is not its only owner: it stays as it is.
    Not,
}

/// Leaves that are copied at a time: 16 MiB of usual ones.
const LEAVES_AT_ONCE: usize = 64;
/// A block that is being served holds its object for less than a millisecond: so often it is asked again.
const ATTEMPTS: u32 = 20;
const ATTEMPT_DELAY: Duration = Duration::from_millis(2);

impl Inner {
    /// As [`super::Store::prepare_merge`].
    pub(super) fn prepare_merge(
        self: &Arc<Self>,
        id: ObjectId,
        overwritten: &RangeSet,
    ) -> Result<Mergeable, StoreError> {
        self.flush()?;
        if !self.is_mergeable(id)? || self.is_pinned(id)? {
            return Ok(Mergeable::Not);
        }
        let kept = self.keep_old(id, overwritten)?;
        Ok(if kept { Mergeable::Now } else { Mergeable::Later })
    }

    /// As [`super::Store::begin_merge`].
    pub(super) fn begin_merge(
        self: &Arc<Self>,
        id: ObjectId,
        overwritten: &RangeSet,
    ) -> Result<Option<WorkingFile>, StoreError> {
        for _ in 0..ATTEMPTS {
            if self.try_begin(id, overwritten)? {
                return self.reopen_working(id);
            }
            // Synchronous on purpose, as all calls of the store.
            std::thread::sleep(ATTEMPT_DELAY);
        }
        Ok(None)
    }

    /// As [`super::Store::is_in_use`].
    pub(super) fn is_in_use(&self, id: ObjectId) -> Result<bool, StoreError> {
        let served = guard(&self.recent).pop(&id);
        drop(served);
        Ok(self.registry().is_open(id) || self.object_is_held(id, Holder::Anyone)?)
    }

    fn is_mergeable(&self, id: ObjectId) -> Result<bool, StoreError> {
        let row = self.index.read(|txn| index::object_row(txn, id))?;
        Ok(row.is_some_and(|row| row.root.is_some() && row.owners == 1))
    }

    /// Whether a pin reaches it: then its old version is to stay as it is.
    fn is_pinned(self: &Arc<Self>, id: ObjectId) -> Result<bool, StoreError> {
        Ok(self.reach(self.pins()?.into_iter().map(|pin| pin.root))?.objects.contains(&id))
    }

    /// Copies the leaves that will be overwritten into a sparse object of the same root, and makes it durable.
    fn keep_old(
        self: &Arc<Self>,
        id: ObjectId,
        overwritten: &RangeSet,
    ) -> Result<bool, StoreError> {
        let Some(object) = self.open_object(id)? else { return Ok(false) };
        let kept = self.make_object(*object.root(), object.size())?;
        if kept.id() == id {
            // It was downloaded by this process and is still held.
            return Ok(false);
        }
        for range in overwritten.iter() {
            self.keep_range(&object, &kept, range)?;
        }
        drop(object);
        self.flush()?;
        Ok(true)
    }

    fn keep_range(
        self: &Arc<Self>,
        from: &Arc<Object>,
        to: &Arc<Object>,
        range: ByteRange,
    ) -> Result<(), StoreError> {
        let mut at = range.start;
        loop {
            let leaves =
                self.index.read(|txn| index::leaves(txn, from.id(), at, LEAVES_AT_ONCE))?;
            for (hash, leaf) in &leaves {
                if leaf.range.start >= range.end {
                    return Ok(());
                }
                // Absent where an earlier merge was interrupted: then it was kept already.
                // No object keeps a rotten leaf.
                if let Some(bytes) = from.verify_leaf(self, hash, leaf)? {
                    let before = leaf.envelope.before.len();
                    let end = bytes.len() - leaf.envelope.after.len();
                    let block = Block::from_store(index::leaf_id(*hash, leaf), bytes);
                    let place = Placement { offset: leaf.range.start, data: before..end };
                    to.place_admitted(&block, &[place])?;
                }
            }
            match leaves.last() {
                Some((_, last)) => at = last.range.end,
                None => return Ok(()),
            }
        }
    }

    /// Takes the leaves out of service that will be overwritten, unless somebody has the object open.
    fn try_begin(
        self: &Arc<Self>,
        id: ObjectId,
        overwritten: &RangeSet,
    ) -> Result<bool, StoreError> {
        // Those that look a block up meanwhile wait, instead of being told that it is not here.
        let _gate = self.gate.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let served = guard(&self.recent).pop(&id);
        drop(served);
        let _leader = self.lead();
        if !self.registry().claim(id) {
            return Ok(false);
        }
        // From here on nobody gets a handle; those outside the process show in the lease.
        let begun = self.begin_claimed(id, overwritten);
        self.registry().unclaim(id);
        begun
    }

    fn begin_claimed(&self, id: ObjectId, overwritten: &RangeSet) -> Result<bool, StoreError> {
        if self.object_is_held(id, Holder::Anyone)? {
            return Ok(false);
        }
        let (begun, delta) = self.index.write_counted(|rows| {
            let Some(mut row) = rows.object(id)?.filter(|row| row.owners == 1) else {
                return Ok(false);
            };
            row.merging = true;
            row.ever_complete = false;
            row.stamp = None;
            for range in overwritten.iter() {
                row.present.remove(range);
                rows.remove_leaves(id, range)?;
            }
            rows.put_object(id, &row)?;
            Ok(true)
        })?;
        self.figures.add(delta);
        Ok(begun)
    }
}
