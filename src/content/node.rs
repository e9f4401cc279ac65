//! One UnixFS node: what a block of the raw or dag-pb codec says.

use std::ops::Range;

use super::{Block, BlockError, ByteRange, ContentId};

/// Why a block is not a node that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DagError {
    /// The bytes are not dag-pb or not UnixFS.
    #[error("{cid}: malformed {what}: {reason}")]
    Malformed {
        /// The block.
        cid: ContentId,
        /// Which format is broken.
        what: &'static str,
        /// How.
        reason: String,
    },
    /// The codec or the UnixFS type is none that has files in it.
    #[error("{cid}: {what} is not supported")]
    Unsupported {
        /// The block.
        cid: ContentId,
        /// The codec or type.
        what: String,
    },
    /// The node is of another kind than its place in the DAG asks for.
    #[error("{cid}: expected {expected}, found {found:?}")]
    Kind {
        /// The block.
        cid: ContentId,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: NodeKind,
    },
    /// The block does not match its id.
    #[error(transparent)]
    Block(#[from] BlockError),
}

/// What a node is, as far as a directory entry or `stat` needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A file, or a part of one.
    File,
    /// A directory in one block.
    Directory,
    /// A directory spread over a HAMT.
    Shard,
    /// A symbolic link.
    Symlink,
}

/// UnixFS 1.5 metadata; absent unless the publisher asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: Option<(i64, u32)>,
}

/// A decoded node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file or a part of one: bytes of its own, children, or both.
    File {
        /// Where the node's own content lies inside the block.
        data: Range<usize>,
        /// Children with the bytes of this node's content that each holds, in order. They follow the own content.
        children: Vec<(ContentId, ByteRange)>,
        /// Bytes of content in the node and below it.
        size: u64,
        /// Mode and mtime.
        meta: Metadata,
    },
    /// A directory in one block: name, child and Tsize.
    Directory {
        /// Sorted as in the block.
        entries: Vec<(String, ContentId, u64)>,
        /// Mode and mtime.
        meta: Metadata,
    },
    /// One shard of a HAMT directory.
    Shard {
        /// Width of the shard; a power of two, 8 to 1024.
        fanout: u32,
        /// Link name with its hex prefix, child and Tsize.
        links: Vec<(String, ContentId, u64)>,
        /// Mode and mtime.
        meta: Metadata,
    },
    /// A symbolic link.
    Symlink {
        /// Its target.
        target: String,
        /// Mode and mtime.
        meta: Metadata,
    },
}

impl Node {
    /// Decodes a block of the raw or dag-pb codec. Bounded by the block; never panics.
    ///
    /// # Errors
    /// When the block is not well-formed UnixFS.
    pub fn decode(_block: &Block) -> Result<Self, DagError> {
        todo!()
    }

    /// What the node is.
    pub fn kind(&self) -> NodeKind {
        todo!()
    }
}
