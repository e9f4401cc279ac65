//! What is kept: pins, published directories, known roots, and all that they reach.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    Inner, KnownRoot, ObjectId, Pin, Store, StoreError, codec, guard,
    index::{self, FILES, KNOWN, PINS, PUBLISHED},
};
use crate::content::{Block, ByteRange, Codec, ContentId, FileInfo, Multihash, Node, RangeSet};

/// Bytes around the content of a dag-pb leaf that has no links; a link alone takes more.
const PLAIN_ENVELOPE: usize = 40;

/// Places of a block that are looked at: a block of zeros has one in every part of a sparse file.
const MAX_PLACES: usize = 64;

/// What is reachable from some roots.
#[derive(Debug, Default)]
pub(super) struct Reached {
    pub(super) objects: HashSet<ObjectId>,
    /// Nodes and roots, also those that are not here, as CIDs of version 1. Raw leaves of files are not among them.
    pub(super) ids: HashSet<ContentId>,
}

impl Reached {
    fn has_block(&self, id: &ContentId) -> bool {
        // As a block it is the same under every codec.
        let names = [id.to_v1(), ContentId::dag_pb(*id.hash()), ContentId::raw(*id.hash())];
        names.iter().any(|name| self.ids.contains(name))
    }
}

/// Where a walk has come to.
#[derive(Debug)]
struct Step {
    id: ContentId,
    /// Where the content of a part of a file begins in the file.
    at: u64,
    /// Bytes of the file that lie in objects which were reached with its root.
    held: Arc<RangeSet>,
}

impl Step {
    fn to(id: &ContentId) -> Self {
        Self { id: id.to_v1(), at: 0, held: Arc::default() }
    }

    /// From here on bytes are counted from the front of this part, which has objects of its own.
    fn restart(&mut self, objects: &[RangeSet]) {
        let before = self.held.iter().filter(|range| range.end > self.at);
        let before =
            before.map(|r| ByteRange::new(r.start.max(self.at) - self.at, r.end - self.at));
        self.held = Arc::new(before.chain(objects.iter().flat_map(RangeSet::iter)).collect());
        self.at = 0;
    }
}

/// A walk over all that is retained, and at which commit it began.
#[derive(Debug)]
pub(super) struct Retained {
    reached: Arc<Reached>,
    commit: Option<u64>,
    at: Instant,
}

/// The walk is not repeated sooner, however much is committed and asked.
const RETAINED_AGE: Duration = Duration::from_secs(1);

impl Store {
    /// Returns whether an object has an owner besides those who look at it by its id: files of the upload tree, or of torrents.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn is_owned(&self, id: ObjectId) -> Result<bool, StoreError> {
        let row = self.inner.index.read(|txn| index::object_row(txn, id))?;
        Ok(row.is_some_and(|row| row.owners > 0))
    }
}

impl Inner {
    /// As [`super::Store::is_retained`].
    pub(super) fn is_retained(self: &Arc<Self>, id: &ContentId) -> Result<bool, StoreError> {
        if id.inline_content().is_some() {
            return Ok(true);
        }
        let reached = self.retained()?;
        if reached.has_block(id) {
            return Ok(true);
        }
        let mut after = None;
        self.index.read(|txn| {
            while let Some(leaf) = index::leaf_after(txn, id.hash(), after)? {
                after = Some((leaf.object, leaf.range.start));
                let owned = index::object_row(txn, leaf.object)?.is_some_and(|row| row.owners > 0);
                if owned || reached.objects.contains(&leaf.object) {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    fn retained(self: &Arc<Self>) -> Result<Arc<Reached>, StoreError> {
        let mut last = guard(&self.retained);
        let commit = self.index.read(|txn| index::meta(txn, index::COMMITS))?;
        if let Some(last) = &*last
            && (last.commit == commit || last.at.elapsed() < RETAINED_AGE)
        {
            return Ok(last.reached.clone());
        }
        let mut roots: Vec<ContentId> = self.pins()?.into_iter().map(|pin| pin.root).collect();
        roots.extend(self.published()?);
        self.index.read(|txn| {
            index::object_rows(txn, |_, row| {
                roots.extend(row.root.filter(|_| row.owners > 0));
                Ok(())
            })
        })?;
        let reached = Arc::new(self.reach(roots)?);
        *last = Some(Retained { reached: reached.clone(), commit, at: Instant::now() });
        Ok(reached)
    }

    pub(super) fn pin(&self, pin: &Pin) -> Result<(), StoreError> {
        let row = codec::encode_named(&pin.root, &pin.name);
        self.pins_moved.store(true, Ordering::Relaxed);
        self.index.write(|rows| rows.put(PINS, &codec::content_key(&pin.root), &row))
    }

    pub(super) fn unpin(&self, root: &ContentId) -> Result<bool, StoreError> {
        self.pins_moved.store(true, Ordering::Relaxed);
        self.has_candidates();
        self.index.write(|rows| rows.remove(PINS, &codec::content_key(root)))
    }

    pub(super) fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        self.index.read(|txn| {
            index::values(txn, PINS, |row| {
                let (root, name) = codec::decode_named(row)?;
                Ok(Pin { root, name })
            })
        })
    }

    pub(super) fn published(&self) -> Result<Vec<ContentId>, StoreError> {
        self.index.read(|txn| index::values(txn, PUBLISHED, |row| Ok(codec::decode_named(row)?.0)))
    }

    pub(super) fn remember_root(&self, root: KnownRoot) -> Result<(), StoreError> {
        let key = codec::content_key(&root.root);
        let row = index::encode_known(&root.root, root.directory);
        let known = self.index.read(|txn| index::get(txn, KNOWN, &key))?;
        if known.as_deref() == Some(row.as_slice()) {
            return Ok(());
        }
        self.index.write(|rows| rows.put(KNOWN, &key, &row))
    }

    /// Pins are known without having been opened.
    pub(super) fn known_roots(&self) -> Result<Vec<KnownRoot>, StoreError> {
        let mut known = self.index.read(|txn| {
            index::values(txn, KNOWN, |row| {
                let (root, kind) = codec::decode_named(row)?;
                Ok(KnownRoot { root, directory: kind == "d" })
            })
        })?;
        let mut seen: HashSet<_> = known.iter().map(|k| k.root.to_v1()).collect();
        for root in self.pins()?.into_iter().map(|pin| pin.root) {
            if seen.insert(root.to_v1()) {
                known.push(KnownRoot { root, directory: self.is_directory(&root)? });
            }
        }
        Ok(known)
    }

    fn is_directory(&self, root: &ContentId) -> Result<bool, StoreError> {
        if root.codec() == Codec::Raw {
            return Ok(false);
        }
        let node = self.node(root.hash())?;
        let node = node.map(|block| Node::decode(&Block::from_store(*root, block.data().clone())));
        Ok(matches!(node, Some(Ok(Node::Directory { .. } | Node::Shard { .. }))))
    }

    pub(super) fn file_info(&self, root: &ContentId) -> Result<Option<FileInfo>, StoreError> {
        let row = self.index.read(|txn| index::get(txn, FILES, &codec::content_key(root)))?;
        let Some(row) = row else { return Ok(None) };
        let mut info = decode_info(&row)?;
        self.index.read(|txn| {
            for id in index::roots(txn, root)? {
                let leaves = index::leaves(txn, id, 0, usize::MAX)?;
                if leaves.len() > info.chunks.len() {
                    info.chunks =
                        leaves.iter().map(|(hash, leaf)| index::leaf_id(*hash, leaf)).collect();
                }
            }
            Ok(())
        })?;
        Ok(Some(info))
    }

    pub(super) fn files(&self) -> Result<Vec<FileInfo>, StoreError> {
        self.index.read(|txn| index::values(txn, FILES, decode_info))
    }

    /// Walks down from `roots` through what is here. May be called by the leader of the group commit.
    pub(super) fn reach(
        self: &Arc<Self>,
        roots: impl IntoIterator<Item = ContentId>,
    ) -> Result<Reached, StoreError> {
        let mut reached = Reached::default();
        let mut open: Vec<Step> = roots.into_iter().map(|id| Step::to(&id)).collect();
        while let Some(mut step) = open.pop() {
            if step.id.inline_content().is_some() || !reached.ids.insert(step.id) {
                continue;
            }
            self.reach_objects(&mut step, &mut reached)?;
            if step.id.codec() == Codec::Raw {
                if !step.held.contains(ByteRange::new(0, 1)) {
                    self.reach_holder(step.id.hash(), &mut reached)?;
                }
                continue;
            }
            let block = match self.node(step.id.hash())? {
                Some(block) => Some(block),
                None => {
                    self.reach_holder(step.id.hash(), &mut reached)?;
                    self.linking_leaf(&step.id)?
                }
            };
            let block = block.map(|block| Block::from_store(step.id, block.data().clone()));
            if let Some(Ok(node)) = block.map(|block| Node::decode(&block)) {
                self.reach_children(&node, &step, &mut open, &mut reached)?;
            }
        }
        Ok(reached)
    }

    /// Takes in the objects of which it is the root.
    fn reach_objects(&self, step: &mut Step, reached: &mut Reached) -> Result<(), StoreError> {
        let mut present = Vec::new();
        self.index.read(|txn| {
            for id in index::roots(txn, &step.id)? {
                reached.objects.insert(id);
                present.extend(index::object_row(txn, id)?.map(|row| row.present));
            }
            Ok(())
        })?;
        let made = self.registry().made(&step.id);
        if let Some(made) = made {
            reached.objects.insert(made.id());
            present.push(made.present());
        }
        if !present.is_empty() {
            step.restart(&present);
        }
        Ok(())
    }

    /// Raw children of a file are leaves and lead nowhere: what matters is that an object has their bytes. Those of a
    /// directory are files.
    fn reach_children(
        &self,
        node: &Node,
        step: &Step,
        open: &mut Vec<Step>,
        reached: &mut Reached,
    ) -> Result<(), StoreError> {
        match node {
            Node::File { children, .. } => {
                for (id, range) in children {
                    let at = step.at.saturating_add(range.start);
                    if id.codec() != Codec::Raw {
                        open.push(Step { id: id.to_v1(), at, held: step.held.clone() });
                    } else if !step.held.contains(ByteRange::at(at, range.len())) {
                        self.reach_holder(id.hash(), reached)?;
                    }
                }
            }
            Node::Directory { entries, .. } => open.extend(entries.iter().map(|e| Step::to(&e.1))),
            Node::Shard { links, .. } => open.extend(links.iter().map(|l| Step::to(&l.1))),
            Node::Symlink { .. } => {}
        }
        Ok(())
    }

    /// Takes in an object that has a block which the object of its own file does not have, unless one was taken in before.
    fn reach_holder(&self, hash: &Multihash, reached: &mut Reached) -> Result<(), StoreError> {
        let (mut after, mut holder) = (None, None);
        self.index.read(|txn| {
            for _ in 0..MAX_PLACES {
                let Some(leaf) = index::leaf_after(txn, hash, after)? else { break };
                after = Some((leaf.object, leaf.range.start));
                let row = index::object_row(txn, leaf.object)?;
                if row.is_some_and(|row| row.present.contains(leaf.range)) {
                    holder.get_or_insert(leaf.object);
                    if reached.objects.contains(&leaf.object) {
                        return Ok(());
                    }
                }
            }
            reached.objects.extend(holder);
            Ok(())
        })
    }

    /// A node that holds content of its own besides links lies in a flat file, as a leaf does.
    fn linking_leaf(self: &Arc<Self>, id: &ContentId) -> Result<Option<Block>, StoreError> {
        let links = self.index.read(|txn| {
            let leaf = index::leaf_after(txn, id.hash(), None)?;
            Ok(leaf.is_some_and(|l| l.block_len() as u64 > l.range.len() + PLAIN_ENVELOPE as u64))
        })?;
        if links { self.verified_leaf(id) } else { Ok(None) }
    }
}

fn decode_info(row: &[u8]) -> Result<FileInfo, StoreError> {
    serde_json::from_slice(row).map_err(|e| StoreError::Index(e.to_string()))
}
