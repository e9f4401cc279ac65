//! Hashing everything again.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use redb::ReadTransaction;

use super::{
    Inner, Object, ObjectId, Store, StoreError, VerifyReport,
    codec::{self, Leaf},
    guard, index,
    recheck::Look,
};
use crate::content::{Block, BlockError, ContentId, HASHED_AT_ONCE, Multihash};

/// Leaves that are read from the index at a time: 64 MiB of content.
const LEAF_BATCH: usize = 256;
/// Bytes of nodes after which the index is let go: some ten milliseconds of hashing.
const NODE_BATCH: usize = 8 << 20;
/// Objects that are read from the index at a time.
const OBJECT_BATCH: usize = 1024;

/// A wrong block, and where it lies unless it is a node.
type Bad = (ContentId, Option<(Arc<Object>, Leaf)>);

/// What the workers share.
#[derive(Debug, Default)]
struct Shared {
    blocks: AtomicU64,
    bytes: AtomicU64,
    bad: Mutex<Vec<Bad>>,
}

/// One verification. The index is read in batches, since pages that a reader sees are not used again: a reader that
/// lasts as long as everything is hashed would let the index grow with each commit meanwhile.
struct Verification<'a> {
    store: &'a Arc<Inner>,
    progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    /// Bytes of objects. Nodes are a thousandth of them, and nobody has counted theirs.
    total: u64,
    nodes: u64,
    shared: Shared,
    bad: Vec<ContentId>,
}

impl Store {
    /// As [`Store::verify`], for as long as `progress` says so; then it ends with [`StoreError::Closed`], as it does when
    /// the daemon ends. What was found wrong by then is withdrawn. Commits go on beside it.
    ///
    /// # Errors
    /// When it is ended early, or index or files cannot be read.
    pub fn verify_while(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<VerifyReport, StoreError> {
        self.inner.verify_while(progress)
    }
}

impl Inner {
    pub(super) fn verify(
        self: &Arc<Self>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<VerifyReport, StoreError> {
        self.verify_while(&mut |done, total| {
            progress(done, total);
            ControlFlow::Continue(())
        })
    }

    fn verify_while(
        self: &Arc<Self>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<VerifyReport, StoreError> {
        // A full disk keeps what came last out of the index; everything else is looked at all the same.
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "blocks that came last are not verified");
        }
        let (shared, bad) = (Shared::default(), Vec::new());
        let mut run = Verification { store: self, progress, total: 0, nodes: 0, shared, bad };
        let ids = run.objects()?;
        run.nodes()?;
        for id in ids {
            run.object(id)?;
        }
        Ok(VerifyReport {
            blocks: run.shared.blocks.into_inner(),
            bytes: run.shared.bytes.into_inner(),
            bad: run.bad,
        })
    }
}

impl Verification<'_> {
    /// Withdraws what was found wrong since the last step; whoever ends it loses nothing by that.
    fn step(&mut self) -> Result<(), StoreError> {
        for (id, place) in std::mem::take(&mut *guard(&self.shared.bad)) {
            match place {
                Some((object, leaf)) => {
                    self.store.withdraw_range(&object, leaf.range)?;
                    self.heal(&object, &id, &leaf)?;
                }
                None => self.store.withdraw(&id)?,
            }
            if !self.bad.contains(&id) {
                self.bad.push(id);
            }
        }
        let done = self.shared.bytes.load(Ordering::Relaxed).saturating_sub(self.nodes);
        let ended = (self.progress)(done.min(self.total), self.total).is_break();
        if ended || self.store.stopping.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        Ok(())
    }

    /// Repairs a leaf from another copy of it. Without one it is fetched again when it is read.
    fn heal(&self, object: &Arc<Object>, id: &ContentId, leaf: &Leaf) -> Result<(), StoreError> {
        let before = leaf.envelope.before.len();
        match self.store.heal_leaf(object, id, leaf.range, before) {
            Err(error) if error.trouble().is_some() => {
                tracing::warn!(%error, "a damaged block is not repaired");
                Ok(())
            }
            healed => healed.map(drop),
        }
    }

    /// Objects that there are now, and the sum of what they have.
    fn objects(&mut self) -> Result<Vec<ObjectId>, StoreError> {
        let (mut ids, mut from) = (Vec::new(), ObjectId(0));
        loop {
            let rows = self.store.index.read(|txn| index::objects_from(txn, from, OBJECT_BATCH))?;
            let Some((last, _)) = rows.last() else { return Ok(ids) };
            from = ObjectId(last.0 + 1);
            for (id, row) in rows {
                self.total += row.present.bytes();
                ids.extend(row.root.map(|_| id));
            }
        }
    }

    fn nodes(&mut self) -> Result<(), StoreError> {
        let mut after = Vec::new();
        loop {
            let nodes = self.store.index.read(|txn| nodes_after(txn, &after))?;
            let Some((last, ..)) = nodes.last() else { return Ok(()) };
            after.clone_from(last);
            for (_, id, data) in nodes {
                self.nodes += data.len() as u64;
                self.shared.check_node(id, data);
            }
            self.step()?;
        }
    }

    fn object(&mut self, id: ObjectId) -> Result<(), StoreError> {
        let touched = match self.store.open_object(id)? {
            Some(object) => match object.look() {
                Ok(Look::Touched(stamp)) => Some((object, stamp)),
                _ => None,
            },
            None => return Ok(()),
        };
        let mut from = 0;
        loop {
            let leaves = self.store.index.read(|txn| index::leaves(txn, id, from, LEAF_BATCH))?;
            let Some((_, last)) = leaves.last() else { break };
            from = last.range.end;
            let Some(object) = self.store.open_object(id)? else { return Ok(()) };
            let workers = std::thread::available_parallelism().map_or(1, usize::from);
            let share = leaves.len().div_ceil(workers);
            std::thread::scope(|scope| {
                for part in leaves.chunks(share) {
                    let (object, shared) = (&object, &self.shared);
                    scope.spawn(move || shared.check_leaves(object, part));
                }
            });
            self.step()?;
        }
        // All that is left of a file that looked changed is right.
        touched.map_or(Ok(()), |(object, stamp)| self.store.restamp(&object, stamp))
    }
}

/// Nodes whose keys come behind `after`, of some [`NODE_BATCH`] bytes, with their keys.
fn nodes_after(
    txn: &ReadTransaction,
    after: &[u8],
) -> Result<Vec<(Vec<u8>, ContentId, Bytes)>, StoreError> {
    let (mut nodes, mut len) = (Vec::new(), 0);
    let behind = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
    for entry in txn.open_table(index::NODES)?.range::<&[u8]>(behind)? {
        let (key, row) = entry?;
        let (id, data) = codec::decode_node(row.value())?;
        nodes.push((key.value().to_vec(), id, Bytes::copy_from_slice(data)));
        len += data.len();
        if len >= NODE_BATCH {
            break;
        }
    }
    Ok(nodes)
}

impl Shared {
    fn check_leaves(&self, object: &Arc<Object>, leaves: &[(Multihash, Leaf)]) {
        for together in leaves.chunks(HASHED_AT_ONCE) {
            let (mut blocks, mut places) = (Vec::new(), Vec::new());
            for (hash, leaf) in together {
                let id = index::leaf_id(*hash, leaf);
                match object.read_block(leaf) {
                    Ok(Some(bytes)) => {
                        self.count(bytes.len());
                        blocks.push((id, bytes));
                        places.push(leaf);
                    }
                    // Not present: nothing claims to have it.
                    Ok(None) => {}
                    // Bytes that cannot be read are as good as wrong.
                    Err(error) => {
                        tracing::warn!(%error, %id, "a block cannot be read");
                        self.found_bad(id, Some((object, leaf)));
                    }
                }
            }
            for (verified, leaf) in Block::verify_each(blocks).into_iter().zip(places) {
                if let Err(BlockError::WrongHash(id)) = verified {
                    self.found_bad(id, Some((object, leaf)));
                }
            }
        }
    }

    fn count(&self, len: usize) {
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    fn check_node(&self, id: ContentId, bytes: Bytes) {
        self.count(bytes.len());
        if let Err(BlockError::WrongHash(_)) = Block::verify(id, bytes) {
            self.found_bad(id, None);
        }
    }

    fn found_bad(&self, id: ContentId, place: Option<(&Arc<Object>, &Leaf)>) {
        let place = place.map(|(object, leaf)| (object.clone(), leaf.clone()));
        self.bad.lock().unwrap_or_else(PoisonError::into_inner).push((id, place));
    }
}
