//! Blocks by their id: nodes from the index, leaves from the flat files.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use lru::LruCache;

use super::{
    Inner, Object, ObjectId, RECENT_OBJECTS, StoreError, codec::Leaf, guard, index, recheck::Look,
    space::Room,
};
use crate::content::{Block, ByteRange, ContentId, Multihash, sha2_256};

impl Inner {
    pub(super) fn block_len(self: &Arc<Self>, id: &ContentId) -> Result<Option<usize>, StoreError> {
        if let Some(content) = inline(id) {
            return Ok(Some(content.len()));
        }
        let hash = id.hash();
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = self.pending().node(hash) {
            return Ok(Some(node.data().len()));
        }
        if let Some(len) = self.index.read(|txn| index::node_len(txn, hash))? {
            return Ok(Some(len));
        }
        self.with_leaf(hash, |object, leaf| Ok(object.has(leaf.range).then(|| leaf.block_len())))
    }

    pub(super) fn block(self: &Arc<Self>, id: &ContentId) -> Result<Option<Block>, StoreError> {
        if let Some(content) = inline(id) {
            return Ok(Some(Block::from_store(*id, content)));
        }
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = self.node(id.hash())? {
            return Ok(Some(Block::from_store(*id, node.data().clone())));
        }
        let bytes = self.with_leaf(id.hash(), |object, leaf| match object.look()? {
            Look::Same => object.read_block(leaf),
            Look::Touched(_) => object.verify_leaf(self, id.hash(), leaf),
            Look::Resized => self.withdraw_resized(object).map(|()| None),
        })?;
        Ok(bytes.map(|bytes| Block::from_store(*id, bytes)))
    }

    /// A leaf's block as it lies on disk, if it is right; nothing is withdrawn when not, and no file is looked at but
    /// where the block lies.
    pub(super) fn verified_leaf(
        self: &Arc<Self>,
        id: &ContentId,
    ) -> Result<Option<Block>, StoreError> {
        self.with_leaf(id.hash(), |object, leaf| {
            Ok(object.read_block(leaf)?.and_then(|bytes| Block::verify(*id, bytes).ok()))
        })
    }

    pub(super) fn put_node(self: &Arc<Self>, block: &Block) -> Result<(), StoreError> {
        if inline(block.cid()).is_none() {
            self.admit(Room { bytes: block.data().len() as u64, files: 0 })?;
            let mut pending = self.pending();
            pending.put_node(block);
            if pending.is_full() {
                self.wake.notify_one();
            }
        }
        Ok(())
    }

    /// The object of a root, made empty when there is none.
    pub(super) fn create_object(
        self: &Arc<Self>,
        root: &ContentId,
        size: u64,
    ) -> Result<Arc<Object>, StoreError> {
        match self.object_of(root)? {
            Some(object) if object.size() == size => Ok(object),
            _ => {
                self.admit(Room { bytes: 0, files: 1 })?;
                self.with_room(|| self.make_object(*root, size))
            }
        }
    }

    /// A DAG node, committed or not.
    pub(super) fn node(&self, hash: &Multihash) -> Result<Option<Block>, StoreError> {
        if let Some(node) = self.pending().node(hash) {
            return Ok(Some(node));
        }
        self.index.read(|txn| index::node(txn, hash))
    }

    /// The first answer that `use_it` gives for a place of the block.
    fn with_leaf<T>(
        self: &Arc<Self>,
        hash: &Multihash,
        mut use_it: impl FnMut(&Arc<Object>, &Leaf) -> Result<Option<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let pending = self.pending().leaves(hash);
        for (object, leaf) in &pending {
            if let Some(found) = use_it(object, leaf)? {
                return Ok(Some(found));
            }
        }
        let mut skip = None;
        // A place may turn out unusable only after its transaction has ended: reading can withdraw it, which writes.
        loop {
            let candidate = self.index.read(|txn| index::leaf_after(txn, hash, skip))?;
            let Some(leaf) = candidate else { return Ok(None) };
            skip = Some((leaf.object, leaf.range.start));
            let Some(object) = self.recent_object(leaf.object)? else { continue };
            if let Some(found) = use_it(&object, &leaf)? {
                return Ok(Some(found));
            }
        }
    }

    /// An object, kept open for the next block of it.
    fn recent_object(self: &Arc<Self>, id: ObjectId) -> Result<Option<Arc<Object>>, StoreError> {
        if let Some(object) = guard(&self.recent).get(&id) {
            return Ok(Some(object.clone()));
        }
        let Some(object) = self.open_object(id)? else { return Ok(None) };
        // Dropping the handle that falls out takes other locks: not under this one.
        let fallen = guard(&self.recent).push(id, object.clone());
        drop(fallen);
        Ok(Some(object))
    }

    /// Lets go of the objects that are only open because blocks of them were served.
    pub(super) fn close_recent(&self) {
        // Handles drop under no lock.
        let recent = std::mem::replace(&mut *guard(&self.recent), LruCache::new(RECENT_OBJECTS));
        drop(recent);
    }

    /// The object of a root: a complete one if there is any, else the one with most of it.
    pub(super) fn object_of(
        self: &Arc<Self>,
        root: &ContentId,
    ) -> Result<Option<Arc<Object>>, StoreError> {
        let mut best = self.registry().made(root);
        for id in self.index.read(|txn| index::roots(txn, root))? {
            if best.as_ref().is_some_and(|object| object.is_complete()) {
                break;
            }
            if let Some(object) = self.open_object(id)?.filter(|object| !object.is_merging()) {
                let more = |than: &Arc<Object>| object.present().bytes() > than.present().bytes();
                if best.as_ref().is_none_or(more) {
                    best = Some(object);
                }
            }
        }
        Ok(best)
    }

    /// Takes the bytes of a block out of service wherever they lie.
    pub(super) fn withdraw(self: &Arc<Self>, id: &ContentId) -> Result<(), StoreError> {
        let hash = id.hash();
        let mut places = Vec::new();
        self.with_leaf(hash, |object, leaf| {
            places.push((object.clone(), leaf.range));
            Ok(None::<()>)
        })?;
        let _leader = self.lead();
        self.pending().forget(hash);
        let removed = self.index.write(|rows| {
            rows.remove(index::NODES, &hash.to_bytes())?;
            Ok(())
        });
        self.unless_in_trouble(removed)?;
        places.into_iter().try_for_each(|(object, range)| {
            self.unless_in_trouble(self.remove_range(&object, range))
        })
    }

    /// Takes bytes of an object out of service.
    pub(super) fn withdraw_range(
        &self,
        object: &Object,
        range: ByteRange,
    ) -> Result<(), StoreError> {
        let _leader = self.lead();
        self.unless_in_trouble(self.remove_range(object, range))
    }

    /// Makes "absent" durable; the caller leads the group commit. What is pending stays, its bytes are checked
    /// against presence when it is committed.
    pub(super) fn remove_range(&self, object: &Object, range: ByteRange) -> Result<(), StoreError> {
        object.mark_absent(range);
        let ((), delta) = self.index.write_counted(|rows| {
            if let Some(mut row) = rows.object(object.id())? {
                row.present.remove(range);
                rows.put_object(object.id(), &row)?;
                rows.remove_leaves(object.id(), range)?;
            }
            Ok(())
        })?;
        self.figures.add(delta);
        Ok(())
    }
}

/// What needs no disk: the content of an identity id, and the empty block.
fn inline(id: &ContentId) -> Option<Bytes> {
    if let Some(content) = id.inline_content() {
        return Some(Bytes::copy_from_slice(content));
    }
    (*id.hash() == sha2_256(b"")).then(Bytes::new)
}
