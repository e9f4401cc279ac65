//! Hashing everything again.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::{
    FileStamp, Inner, Object, ObjectId, StoreError, VerifyReport, codec::Leaf, guard, index,
    recheck::Look,
};
use crate::content::{Block, BlockError, ContentId, Multihash};

/// Leaves that are read from the index at a time: 64 MiB of content.
const LEAF_BATCH: usize = 256;

/// A wrong block, and where it lies unless it is a node.
type Bad = (ContentId, Option<(Arc<Object>, Leaf)>);

/// What the workers share.
#[derive(Debug, Default)]
struct Shared {
    blocks: AtomicU64,
    bytes: AtomicU64,
    bad: Mutex<Vec<Bad>>,
    /// Files that looked changed before they were hashed.
    touched: Mutex<Vec<(Arc<Object>, FileStamp)>>,
}

impl Inner {
    pub(super) fn verify(
        self: &Arc<Self>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<VerifyReport, StoreError> {
        // A full disk keeps what came last out of the index; everything else is looked at all the same.
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "blocks that came last are not verified");
        }
        let (mut ids, mut total) = (Vec::new(), 0);
        self.index.read(|txn| {
            index::object_rows(txn, |id, row| {
                total += row.present.bytes();
                if row.root.is_some() {
                    ids.push(id);
                }
                Ok(())
            })
        })?;
        let shared = Shared::default();
        self.verify_nodes(&shared)?;
        for id in ids {
            self.verify_object(id, &shared, &mut |done| progress(done.min(total), total))?;
        }
        self.withdraw_bad(shared)
    }

    fn verify_nodes(&self, shared: &Shared) -> Result<(), StoreError> {
        self.index.read(|txn| {
            index::values(txn, index::NODES, |row| {
                let (id, data) = super::codec::decode_node(row)?;
                shared.check(id, bytes::Bytes::copy_from_slice(data), None);
                Ok(())
            })
        })?;
        Ok(())
    }

    fn verify_object(
        self: &Arc<Self>,
        id: ObjectId,
        shared: &Shared,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        if let Some(object) = self.open_object(id)?
            && let Ok(Look::Touched(stamp)) = object.look()
        {
            guard(&shared.touched).push((object, stamp));
        }
        let mut from = 0;
        loop {
            let leaves = self.index.read(|txn| index::leaves(txn, id, from, LEAF_BATCH))?;
            let Some((_, last)) = leaves.last() else { return Ok(()) };
            from = last.range.end;
            let Some(object) = self.open_object(id)? else { return Ok(()) };
            let workers = std::thread::available_parallelism().map_or(1, usize::from);
            let share = leaves.len().div_ceil(workers);
            std::thread::scope(|scope| {
                for part in leaves.chunks(share) {
                    let object = &object;
                    scope.spawn(move || shared.check_leaves(object, part));
                }
            });
            progress(shared.bytes.load(Ordering::Relaxed));
        }
    }

    fn withdraw_bad(self: &Arc<Self>, shared: Shared) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport {
            blocks: shared.blocks.into_inner(),
            bytes: shared.bytes.into_inner(),
            bad: Vec::new(),
        };
        for (id, place) in shared.bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match place {
                Some((object, leaf)) => self.withdraw_range(&object, leaf.range)?,
                None => self.withdraw(&id)?,
            }
            if !report.bad.contains(&id) {
                report.bad.push(id);
            }
        }
        let touched = shared.touched.into_inner().unwrap_or_else(PoisonError::into_inner);
        touched.iter().try_for_each(|(object, stamp)| self.restamp(object, *stamp))?;
        Ok(report)
    }
}

impl Shared {
    fn check_leaves(&self, object: &Arc<Object>, leaves: &[(Multihash, Leaf)]) {
        for (hash, leaf) in leaves {
            let id = index::leaf_id(*hash, leaf);
            match object.read_block(leaf) {
                Ok(Some(bytes)) => self.check(id, bytes, Some((object, leaf))),
                // Not present: nothing claims to have it.
                Ok(None) => {}
                // Bytes that cannot be read are as good as wrong.
                Err(error) => {
                    tracing::warn!(%error, %id, "a block cannot be read");
                    self.found_bad(id, Some((object, leaf)));
                }
            }
        }
    }

    fn check(&self, id: ContentId, bytes: bytes::Bytes, place: Option<(&Arc<Object>, &Leaf)>) {
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Err(BlockError::WrongHash(_)) = Block::verify(id, bytes) {
            self.found_bad(id, place);
        }
    }

    fn found_bad(&self, id: ContentId, place: Option<(&Arc<Object>, &Leaf)>) {
        let place = place.map(|(object, leaf)| (object.clone(), leaf.clone()));
        self.bad.lock().unwrap_or_else(PoisonError::into_inner).push((id, place));
    }
}
