//! The tree of one file: which block holds which bytes, unfolded as its nodes arrive.

use std::ops::Range;

use super::{Block, ByteRange, ContentId, DagError, Metadata};

/// A block that is needed to read some bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The block.
    pub cid: ContentId,
    /// The bytes of the file that it holds, itself or through the nodes below it.
    pub range: ByteRange,
}

/// Where the content inside a block belongs in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Offset in the file.
    pub offset: u64,
    /// Where in the block the content lies.
    pub data: Range<usize>,
}

/// The tree of a file. Starts with its root and grows with each interior node that is put in.
#[derive(Clone, Debug)]
pub struct FileLayout {
    _private: (),
}

impl FileLayout {
    /// Starts with the root of a file: a raw block or a UnixFS file node.
    ///
    /// # Errors
    /// When the block is no file.
    pub fn new(_root: &Block) -> Result<Self, DagError> {
        todo!()
    }

    /// The root id.
    pub fn root(&self) -> &ContentId {
        todo!()
    }

    /// Bytes of content.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Mode and mtime of the root.
    pub fn metadata(&self) -> Metadata {
        todo!()
    }

    /// The blocks, in file order, that are known to hold bytes of `range` and have not been put in as interior nodes.
    /// A leaf stays in the answer even when its block was put in: whether its bytes are present is the store's to say.
    pub fn needs(&self, _range: ByteRange) -> Vec<Need> {
        todo!()
    }

    /// Takes a block of this file: unfolds it where it is an interior node and tells where its own bytes belong.
    /// One block may belong to several places. A block that belongs nowhere gives an empty answer.
    ///
    /// # Errors
    /// When the block does not fit the place that its parent gave it (size, kind).
    pub fn insert(&mut self, _block: &Block) -> Result<Vec<Placement>, DagError> {
        todo!()
    }

    /// Whether all interior nodes are in, so that [`FileLayout::needs`] of the whole file lists leaves only.
    pub fn is_unfolded(&self) -> bool {
        todo!()
    }
}
