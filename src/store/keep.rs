//! What is kept: pins, published directories, known roots, and all that they reach.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Inner, KnownRoot, ObjectId, Pin, StoreError, codec, guard,
    index::{self, FILES, KNOWN, PINS, PUBLISHED},
};
use crate::content::{Block, Codec, ContentId, FileInfo, Multihash, Node};

/// Bytes around the content of a dag-pb leaf that has no links; a link alone takes more.
const PLAIN_ENVELOPE: usize = 40;

/// What is reachable from some roots.
#[derive(Debug, Default)]
pub(super) struct Reached {
    pub(super) objects: HashSet<ObjectId>,
    /// Nodes and roots, also those that are not here.
    pub(super) hashes: HashSet<Multihash>,
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

impl Inner {
    /// As [`super::Store::is_retained`].
    pub(super) fn is_retained(self: &Arc<Self>, id: &ContentId) -> Result<bool, StoreError> {
        if id.inline_content().is_some() {
            return Ok(true);
        }
        let reached = self.retained()?;
        if reached.hashes.contains(id.hash()) {
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
        self.index.write(|rows| rows.put(PINS, &pin.root.hash().to_bytes(), &row))
    }

    pub(super) fn unpin(&self, root: &ContentId) -> Result<bool, StoreError> {
        self.index.write(|rows| rows.remove(PINS, &root.hash().to_bytes()))
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
        let key = root.root.hash().to_bytes();
        let row = index::encode_known(&root.root, root.directory);
        let known = self.index.read(|txn| index::get(txn, KNOWN, &key))?;
        if known.as_deref() == Some(row.as_slice()) {
            return Ok(());
        }
        self.index.write(|rows| rows.put(KNOWN, &key, &row))
    }

    /// Pins and published files are known without having been opened.
    pub(super) fn known_roots(&self) -> Result<Vec<KnownRoot>, StoreError> {
        let mut known = self.index.read(|txn| {
            index::values(txn, KNOWN, |row| {
                let (root, kind) = codec::decode_named(row)?;
                Ok(KnownRoot { root, directory: kind == "d" })
            })
        })?;
        let mut seen: HashSet<_> = known.iter().map(|k| *k.root.hash()).collect();
        let others = self.pins()?.into_iter().map(|pin| pin.root);
        let others = others.chain(self.published()?);
        let others = others.chain(self.files()?.into_iter().map(|info| info.cid));
        for root in others {
            if seen.insert(*root.hash()) {
                known.push(KnownRoot { root, directory: self.is_directory(&root)? });
            }
        }
        Ok(known)
    }

    fn is_directory(&self, root: &ContentId) -> Result<bool, StoreError> {
        if root.codec() == Codec::Raw {
            return Ok(false);
        }
        let node = self.node(root.hash())?.map(|block| Node::decode(&block));
        Ok(matches!(node, Some(Ok(Node::Directory { .. } | Node::Shard { .. }))))
    }

    pub(super) fn file_info(&self, root: &ContentId) -> Result<Option<FileInfo>, StoreError> {
        let row = self.index.read(|txn| index::get(txn, FILES, &root.hash().to_bytes()))?;
        let Some(row) = row else { return Ok(None) };
        let mut info = decode_info(&row)?;
        self.index.read(|txn| {
            for id in index::roots(txn, root.hash())? {
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

    /// Walks down from `roots` through what is here.
    pub(super) fn reach(
        self: &Arc<Self>,
        roots: impl IntoIterator<Item = ContentId>,
    ) -> Result<Reached, StoreError> {
        let mut reached = Reached::default();
        let mut open: Vec<ContentId> = roots.into_iter().collect();
        while let Some(id) = open.pop() {
            if id.inline_content().is_some() || !reached.hashes.insert(*id.hash()) {
                continue;
            }
            let (objects, block) = self
                .index
                .read(|txn| Ok((index::roots(txn, id.hash())?, index::node(txn, id.hash())?)))?;
            reached.objects.extend(objects);
            reached.objects.extend(self.registry().made(id.hash()).map(|object| object.id()));
            if id.codec() == Codec::Raw {
                continue;
            }
            let block = match block.or_else(|| self.pending().node(id.hash())) {
                Some(block) => Some(block),
                None => self.linking_leaf(&id)?,
            };
            if let Some(Ok(node)) = block.map(|block| Node::decode(&block)) {
                push_children(&node, &mut open);
            }
        }
        Ok(reached)
    }

    /// A node that holds content of its own besides links lies in a flat file, as a leaf does.
    fn linking_leaf(self: &Arc<Self>, id: &ContentId) -> Result<Option<Block>, StoreError> {
        let links = self.index.read(|txn| {
            let leaf = index::leaf_after(txn, id.hash(), None)?;
            Ok(leaf.is_some_and(|l| l.block_len() as u64 > l.range.len() + PLAIN_ENVELOPE as u64))
        })?;
        if links { self.block(id) } else { Ok(None) }
    }
}

/// Raw children of a file are leaves of its object and lead nowhere; those of a directory are files.
fn push_children(node: &Node, open: &mut Vec<ContentId>) {
    match node {
        Node::File { children, .. } => {
            open.extend(children.iter().map(|c| c.0).filter(|id| id.codec() != Codec::Raw));
        }
        Node::Directory { entries, .. } => open.extend(entries.iter().map(|e| e.1)),
        Node::Shard { links, .. } => open.extend(links.iter().map(|l| l.1)),
        Node::Symlink { .. } => {}
    }
}

fn decode_info(row: &[u8]) -> Result<FileInfo, StoreError> {
    serde_json::from_slice(row).map_err(|e| StoreError::Index(e.to_string()))
}
