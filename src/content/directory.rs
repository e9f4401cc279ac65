//! Reading directories, flat or sharded, block by block.

use super::{Block, ContentId, DagError, Metadata};

/// What a directory knows of a child without its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A raw block: certainly a file.
    File,
    /// A dag-pb block: file, directory or symlink, its own block tells.
    Unknown,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name; never empty, `.`, `..`, over 255 bytes, or with `/` or NUL in it.
    pub name: String,
    /// The child.
    pub cid: ContentId,
    /// Bytes of the blocks below it as the publisher counted them; not the file's size.
    pub tsize: u64,
}

impl Entry {
    /// What is known of the child without its block.
    pub fn kind(&self) -> EntryKind {
        todo!()
    }
}

/// The answer to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is there.
    Found(Entry),
    /// It is not, and no missing block could change that.
    Absent,
    /// The shard with this id has to be put in first.
    Need(ContentId),
}

/// A directory that is put together block by block; a flat one is whole with its root.
#[derive(Clone, Debug)]
pub struct DirectoryReader {
    _private: (),
}

impl DirectoryReader {
    /// Starts with the root block.
    ///
    /// # Errors
    /// When the block is no directory.
    pub fn new(_root: &Block) -> Result<Self, DagError> {
        todo!()
    }

    /// Mode and mtime of the directory.
    pub fn metadata(&self) -> Metadata {
        todo!()
    }

    /// Puts a shard in. One that belongs nowhere changes nothing.
    ///
    /// # Errors
    /// When the block is no shard of the same width.
    pub fn insert(&mut self, _block: &Block) -> Result<(), DagError> {
        todo!()
    }

    /// Shards that are known of and not in yet.
    pub fn missing(&self) -> Vec<ContentId> {
        todo!()
    }

    /// Finds a name, descending only where its hash leads.
    pub fn lookup(&self, _name: &str) -> Lookup {
        todo!()
    }

    /// All entries of the blocks that are in, sorted by name.
    pub fn entries(&self) -> Vec<Entry> {
        todo!()
    }
}
