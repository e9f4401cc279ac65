//! Building DAGs with the ids that `ipfs add --cid-version=1` gives.

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Block, ContentId, Metadata};

/// What decides the shape of a DAG and so its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportParams {
    /// Bytes per leaf.
    pub chunk_len: usize,
    /// Links per interior node.
    pub max_links: usize,
    /// How the size of a directory is reckoned when it is compared with `shard_threshold`.
    pub shard_by_block: bool,
    /// A directory larger than this becomes a HAMT.
    pub shard_threshold: usize,
    /// Width of a HAMT shard.
    pub shard_fanout: u32,
}

impl ImportParams {
    /// `ipfs add --cid-version=1`: 256 KiB leaves, 174 links, HAMT above 262,144 bytes of names and ids.
    pub const DEFAULT: Self = Self {
        chunk_len: 256 << 10,
        max_links: 174,
        shard_by_block: false,
        shard_threshold: 256 << 10,
        shard_fanout: 256,
    };
    /// Profile `unixfs-v1-2025` (IPIP-499): 1 MiB leaves, 1,024 links, HAMT above a block of 256 KiB.
    pub const UNIXFS_V1_2025: Self = Self {
        chunk_len: 1 << 20,
        max_links: 1024,
        shard_by_block: true,
        shard_threshold: 256 << 10,
        shard_fanout: 256,
    };
}

/// A published file as the library describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Root id.
    pub cid: ContentId,
    /// Name it was published under.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Ids of its leaves in order.
    pub chunks: Vec<ContentId>,
    /// When it was published.
    pub created_at: SystemTime,
}

/// A finished file.
#[derive(Clone, Debug)]
pub struct BuiltFile {
    /// Root id; the only leaf's own where there is just one.
    pub root: ContentId,
    /// Bytes of content.
    pub size: u64,
    /// Bytes of all blocks, as a directory link's Tsize wants it.
    pub tsize: u64,
    /// Interior nodes that were not handed out before, the root last.
    pub nodes: Vec<Block>,
}

/// Builds a balanced DAG over leaves whose ids are known, in constant memory.
#[derive(Debug)]
pub struct FileBuilder {
    _private: (),
}

impl FileBuilder {
    /// An empty file.
    pub fn new(_params: ImportParams) -> Self {
        todo!()
    }

    /// Appends a raw leaf of `len` bytes; gives the interior nodes that it completed.
    pub fn push(&mut self, _leaf: ContentId, _len: u64) -> Vec<Block> {
        todo!()
    }

    /// Closes the open nodes. A file without leaves is the empty raw block. With metadata that is
    /// not empty the root is a dag-pb node even over a single leaf.
    pub fn finish(self, _meta: Metadata) -> BuiltFile {
        todo!()
    }
}

/// A finished directory.
#[derive(Clone, Debug)]
pub struct BuiltDirectory {
    /// Root id.
    pub root: ContentId,
    /// Bytes of the directory's blocks and of all below it.
    pub tsize: u64,
    /// All blocks of the directory itself, the root last.
    pub nodes: Vec<Block>,
}

/// Builds a directory node, or a HAMT when it grows over the threshold.
#[derive(Debug)]
pub struct DirectoryBuilder {
    _private: (),
}

impl DirectoryBuilder {
    /// An empty directory.
    pub fn new(_params: ImportParams) -> Self {
        todo!()
    }

    /// Adds a child; a name that is there already is replaced.
    pub fn add(&mut self, _name: &str, _cid: ContentId, _tsize: u64) {
        todo!()
    }

    /// Encodes it.
    pub fn finish(self, _meta: Metadata) -> BuiltDirectory {
        todo!()
    }
}

/// The node of a symbolic link.
pub fn symlink(_target: &str, _meta: Metadata) -> Block {
    let _ = Bytes::new();
    todo!()
}
