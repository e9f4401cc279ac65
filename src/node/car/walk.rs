//! The second pass: down from a root, content to its place.

use std::collections::HashSet;

use super::{CarFailure, import::Import};
use crate::content::{
    Block, ByteRange, Codec, ContentId, Multihash, Node as DagNode, Placement, links_of,
};

/// Levels of one file that are followed, as in a download.
const MAX_DEPTH: u8 = 64;

/// Missing blocks that are told apart; beyond that, one that is linked to twice counts twice.
const MAX_TOLD_APART: usize = 100_000;

/// What was found below a root.
#[derive(Debug, Default)]
pub(super) struct Below {
    missing: HashSet<Multihash>,
    more: u64,
    /// Blocks that are no part of a file tree.
    pub(super) unreadable: u64,
}

impl Below {
    pub(super) fn missing(&self) -> u64 {
        self.missing.len() as u64 + self.more
    }

    fn miss(&mut self, id: &ContentId) {
        if self.missing.len() < MAX_TOLD_APART {
            self.missing.insert(*id.hash());
        } else if !self.missing.contains(id.hash()) {
            self.more += 1;
        }
    }
}

/// A part of a file that is to be looked at.
struct Part {
    id: ContentId,
    range: ByteRange,
    depth: u8,
}

impl Import {
    /// Stores what is below `root`.
    pub(super) fn walk(&mut self, root: &ContentId) -> Result<Below, CarFailure> {
        let mut below = Below::default();
        let (mut open, mut seen) = (vec![*root], HashSet::new());
        while let Some(id) = open.pop() {
            self.did(0)?;
            let object = match id.codec() {
                Codec::Other(_) => None,
                Codec::Raw | Codec::DagPb => self.store.object(&id)?,
            };
            if let Some(object) = object
                && object.verify()?
            {
                self.did(object.size())?;
                continue;
            }
            let Some(block) = self.block(&id)? else {
                below.miss(&id);
                continue;
            };
            let node = DagNode::decode(&block);
            if let Ok(DagNode::File { .. }) = node {
                self.file_below(&block, &mut below)?;
                continue;
            }
            below.unreadable += u64::from(node.is_err());
            self.keep(&block)?;
            // Directories that hold one another many times over are gone through once.
            if seen.insert(*id.hash()) {
                open.extend(links_of(&block).unwrap_or_default().into_iter().rev());
            }
        }
        Ok(below)
    }

    /// Stores a file of which the root block is here.
    pub(super) fn file(&mut self, root: &Block) -> Result<(), CarFailure> {
        self.file_below(root, &mut Below::default())
    }

    fn file_below(&mut self, root: &Block, below: &mut Below) -> Result<(), CarFailure> {
        let Ok(DagNode::File { size, .. }) = DagNode::decode(root) else { return Ok(()) };
        if size == 0 {
            return self.keep(root);
        }
        let object = self.store.create_object(root.cid(), size)?;
        let mut open = vec![Part { id: *root.cid(), range: ByteRange::new(0, size), depth: 0 }];
        while let Some(part) = open.pop() {
            if part.id.codec() == Codec::Raw && object.holds(part.range)? {
                self.did(part.range.len())?;
                continue;
            }
            let block = match part.depth {
                0 => root.clone(),
                _ => match self.block(&part.id)? {
                    Some(block) => block,
                    None => {
                        below.miss(&part.id);
                        continue;
                    }
                },
            };
            let (data, children) = match DagNode::decode(&block) {
                Ok(DagNode::File { data, children, size, .. })
                    if size == part.range.len() && part.depth < MAX_DEPTH =>
                {
                    (data, children)
                }
                _ => {
                    below.unreadable += 1;
                    continue;
                }
            };
            let own = Placement { offset: part.range.start, data };
            if own.data.is_empty() {
                self.keep(&block)?;
            } else if !object.holds(own.range())? {
                object.place(&block, std::slice::from_ref(&own))?;
                self.stored(own.range().len())?;
            }
            self.did(own.range().len())?;
            for (id, range) in children.into_iter().rev().filter(|(_, range)| !range.is_empty()) {
                let range = ByteRange::at(part.range.start + range.start, range.len());
                open.push(Part { id, range, depth: part.depth + 1 });
            }
        }
        Ok(())
    }
}
