//! What was downloaded and waits for its commit.

use std::{collections::HashMap, sync::Arc};

use super::{Object, ObjectId, codec::Leaf};
use crate::content::{Block, ByteRange, Multihash};

/// Downloaded bytes that are at most lost by a power failure, and nodes held in memory until their commit.
const FULL_BYTES: u64 = 64 << 20;

/// What was downloaded and is not in the index yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) leaves: HashMap<Multihash, Vec<Leaf>>,
    pub(super) nodes: HashMap<Multihash, Block>,
    /// The handles keep presence that is only in memory from being lost.
    pub(super) dirty: HashMap<ObjectId, Arc<Object>>,
    pub(super) bytes: u64,
}

/// The pending set, and the part of it that is being committed; lookups see both.
#[derive(Debug, Default)]
pub(super) struct PendingSets {
    pub(super) open: Pending,
    pub(super) committing: Arc<Pending>,
}

impl PendingSets {
    pub(super) fn put_leaf(&mut self, object: &Arc<Object>, hash: &Multihash, leaf: Leaf) {
        self.open.bytes += leaf.range.len();
        self.open.leaves.entry(*hash).or_default().push(leaf);
        self.mark_dirty(object);
    }

    pub(super) fn put_node(&mut self, block: &Block) {
        self.open.bytes += block.data().len() as u64;
        self.open.nodes.insert(*block.cid().hash(), block.clone());
    }

    pub(super) fn mark_dirty(&mut self, object: &Arc<Object>) {
        self.open.dirty.entry(object.id()).or_insert_with(|| object.clone());
    }

    pub(super) fn is_full(&self) -> bool {
        self.open.bytes >= FULL_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        [&self.open, &*self.committing]
            .iter()
            .all(|set| set.dirty.is_empty() && set.nodes.is_empty())
    }

    pub(super) fn node(&self, hash: &Multihash) -> Option<Block> {
        self.open.nodes.get(hash).or_else(|| self.committing.nodes.get(hash)).cloned()
    }

    /// Places of a block, with the handles of their objects.
    pub(super) fn leaves(&self, hash: &Multihash) -> Vec<(Arc<Object>, Leaf)> {
        let sets = [&self.open, &*self.committing];
        let places = sets.into_iter().flat_map(|set| {
            set.leaves.get(hash).into_iter().flatten().filter_map(|leaf| {
                set.dirty.get(&leaf.object).map(|object| (object.clone(), leaf.clone()))
            })
        });
        places.collect()
    }

    /// Forgets a block, so that the next commit does not bring it back.
    pub(super) fn forget(&mut self, hash: &Multihash) {
        self.open.nodes.remove(hash);
        self.open.leaves.remove(hash);
    }

    /// Puts a set back whose commit failed.
    pub(super) fn restore(&mut self, failed: &Pending) {
        for (hash, leaves) in &failed.leaves {
            self.open.leaves.entry(*hash).or_default().extend(leaves.iter().cloned());
        }
        for (hash, node) in &failed.nodes {
            self.open.nodes.entry(*hash).or_insert_with(|| node.clone());
        }
        for (id, object) in &failed.dirty {
            self.open.dirty.entry(*id).or_insert_with(|| object.clone());
        }
        self.open.bytes += failed.bytes;
    }
}

impl Pending {
    /// Ranges of an object that were written.
    pub(super) fn ranges(&self) -> HashMap<ObjectId, Vec<ByteRange>> {
        let mut ranges: HashMap<ObjectId, Vec<ByteRange>> = HashMap::new();
        for leaf in self.leaves.values().flatten() {
            ranges.entry(leaf.object).or_default().push(leaf.range);
        }
        ranges
    }
}
