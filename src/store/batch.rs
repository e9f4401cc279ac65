//! What is committed together.

use std::{fs::File, sync::Arc};

use super::ObjectId;
use crate::content::{Block, ByteRange, ContentId, FileInfo};

/// What a file looked like when it was sealed: (mtime, ctime, size), to nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Modification time in nanoseconds since the epoch.
    pub mtime: i128,
    /// Change time in nanoseconds since the epoch.
    pub ctime: i128,
    /// Size in bytes.
    pub size: u64,
}

/// What makes a working file an object.
#[derive(Clone, Debug)]
pub struct Seal {
    /// The working file.
    pub object: ObjectId,
    /// Root of its DAG.
    pub root: ContentId,
    /// Its stamp while it was hashed.
    pub stamp: FileStamp,
    /// Leaf ids with the bytes each holds.
    pub leaves: Vec<(ContentId, ByteRange)>,
    /// Interior nodes.
    pub nodes: Vec<Block>,
}

/// Changes that become durable together or not at all.
///
/// Order on disk (see [`super::Store::commit`]): data of `sync`, directories with new names, one durable index commit with
/// all rows, and only then the files of released objects are unlinked.
#[derive(Debug, Default)]
pub struct Batch {
    /// Files whose data must be on disk before the index says so.
    pub sync: Vec<Arc<File>>,
    /// Working files that become objects; the store counts one owner for each.
    pub seal: Vec<Seal>,
    /// Working files that stay working files but must survive a crash (closed, not hashed yet, or held open).
    pub keep: Vec<ObjectId>,
    /// One owner more for objects that are there already (an identical file was published).
    pub own: Vec<ObjectId>,
    /// One owner less; working files are dropped. Without owner and pin an object becomes cache, a working file is unlinked.
    pub release: Vec<ObjectId>,
    /// DAG nodes that belong to no object (directories, symlinks).
    pub nodes: Vec<Block>,
    /// Rows of the upload tree to write; the store does not look into them.
    pub tree_put: Vec<(u64, Vec<u8>)>,
    /// Rows of the upload tree to take out.
    pub tree_remove: Vec<u64>,
    /// Descriptions of published files (their chunks are derived, not stored).
    pub files: Vec<FileInfo>,
    /// Ids whose descriptions are taken out.
    pub files_remove: Vec<ContentId>,
    /// When given: all directories and links that the upload tree shows at its top from now on. Garbage
    /// collection keeps the nodes that they reach; until the first such list it keeps all directories.
    pub published: Option<Vec<ContentId>>,
}
