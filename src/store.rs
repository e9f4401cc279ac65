//! What is on disk: one flat sparse file per content, the index over them, pins, eviction, recovery.
//!
//! All calls are synchronous: they take microseconds unless the disk is slow, and callers on a runtime
//! whose threads must not wait use [`crate::tasks::Tasks::blocking`].

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    content::{Block, ByteRange, ContentId, FileInfo, Placement, RangeSet},
    tasks::Tasks,
};

/// Options of [`Store::open`].
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The data folder; made with mode 0700 when it is not there.
    pub dir: PathBuf,
    /// Bytes of disk that unpinned content may take; none: a tenth of the disk.
    pub cache_limit: Option<u64>,
    /// Bytes of disk to leave free.
    pub min_free: u64,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on a file of the store failed; ENOSPC stays visible in `source`.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// Another process has the data folder open.
    #[error("{} is in use by another chiral daemon", .0.display())]
    Locked(PathBuf),
    /// The index could not be read or written.
    #[error("index: {0}")]
    Index(String),
    /// The working state could not be read or written.
    #[error("working state: {0}")]
    State(#[from] sled::Error),
    /// Bytes were asked for that are not here.
    #[error("bytes {0} are not here")]
    Missing(ByteRange),
}

/// Names an object for ever; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u64);

/// The store. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    _inner: Arc<()>,
}

/// One flat file of content, whole or in part. Its bytes never change once they are present.
///
/// The handle keeps the content from being evicted.
#[derive(Debug)]
pub struct Object {
    _private: (),
}

/// A file that is being written and is no content yet.
#[derive(Debug)]
pub struct WorkingFile {
    _private: (),
}

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
/// Order on disk (see [`Store::commit`]): data of `sync`, directories with new names, one durable index commit with
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
}

/// A pinned root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The root; everything below it is kept.
    pub root: ContentId,
    /// A name for people.
    pub name: String,
}

/// Figures for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes of disk in `objects/`.
    pub bytes: u64,
    /// Objects.
    pub objects: u64,
    /// Blocks that can be served.
    pub blocks: u64,
    /// Bytes of disk that may still be written without evicting what must be kept.
    pub available: u64,
    /// Bytes of the disk.
    pub capacity: u64,
}

/// What a known root is, for the root listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownRoot {
    /// Its id.
    pub root: ContentId,
    /// Whether it is a directory.
    pub directory: bool,
}

/// What [`Store::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blocks that were hashed.
    pub blocks: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Blocks whose bytes were wrong; they are withdrawn and will be fetched again.
    pub bad: Vec<ContentId>,
}

/// What [`Store::gc`] freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Objects that were removed.
    pub objects: u64,
    /// DAG nodes that were removed.
    pub nodes: u64,
    /// Bytes of disk that came free.
    pub bytes: u64,
}

/// A named tree of small rows that can be rebuilt (sled).
#[derive(Clone, Debug)]
pub struct StateTree {
    _private: (),
}

impl StateTree {
    /// The value of `key`.
    pub fn get(&self, _key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        todo!()
    }
    /// Writes a row; on disk within half a second.
    pub fn insert(&self, _key: &[u8], _value: &[u8]) -> Result<(), StoreError> {
        todo!()
    }
    /// Takes a row out.
    pub fn remove(&self, _key: &[u8]) -> Result<(), StoreError> {
        todo!()
    }
    /// All rows in key order.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>> {
        std::iter::empty()
    }
}

impl Store {
    /// Opens or makes the data folder, takes its lock and repairs what a crash left.
    pub fn open(_options: StoreOptions, _tasks: &Tasks) -> Result<Self, StoreError> {
        todo!()
    }
    /// Commits what is pending and closes the files; later calls fail.
    pub fn close(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// The data folder.
    pub fn dir(&self) -> &Path {
        todo!()
    }

    // --- blocks -------------------------------------------------------------------------------------------------
    /// Length of a block if it can be served: with its bytes here, or carried by the id, or the empty block.
    pub fn block_len(&self, _id: &ContentId) -> Result<Option<usize>, StoreError> {
        todo!()
    }
    /// The exact bytes of a block.
    pub fn block(&self, _id: &ContentId) -> Result<Option<Block>, StoreError> {
        todo!()
    }
    /// Keeps a DAG node that belongs to no object or is an interior node of one. Durable with the next group commit.
    pub fn put_node(&self, _block: &Block) -> Result<(), StoreError> {
        todo!()
    }
    /// Takes a block's bytes out of service: they were found wrong.
    pub fn withdraw(&self, _id: &ContentId) -> Result<(), StoreError> {
        todo!()
    }

    // --- objects ------------------------------------------------------------------------------------------------
    /// The object of a file's root, if one is here, whole or in part.
    pub fn object(&self, _root: &ContentId) -> Result<Option<Arc<Object>>, StoreError> {
        todo!()
    }
    /// The object of a file's root, made empty when there is none.
    pub fn create_object(&self, _root: &ContentId, _size: u64) -> Result<Arc<Object>, StoreError> {
        todo!()
    }
    /// An object by its id.
    pub fn object_by_id(&self, _id: ObjectId) -> Result<Option<Arc<Object>>, StoreError> {
        todo!()
    }

    // --- publishing ---------------------------------------------------------------------------------------------
    /// A new empty file beside the objects. Unlinked at the next start unless a [`Batch`] kept or sealed it.
    pub fn working_file(&self) -> Result<WorkingFile, StoreError> {
        todo!()
    }
    /// Opens a working file that an earlier process kept.
    pub fn reopen_working(&self, _id: ObjectId) -> Result<Option<WorkingFile>, StoreError> {
        todo!()
    }
    /// A copy of an object that shares its extents (FICLONE); none where the filesystem cannot.
    pub fn clone_object(&self, _id: ObjectId) -> Result<Option<WorkingFile>, StoreError> {
        todo!()
    }
    /// Whether FICLONE works in the data folder; probed at start.
    pub fn can_clone(&self) -> bool {
        todo!()
    }
    /// Makes a batch durable. Batches of several callers share one group commit; when it returns, `kill -9` and power loss
    /// cannot take it back. Blocks for some milliseconds.
    pub fn commit(&self, _batch: Batch) -> Result<(), StoreError> {
        todo!()
    }
    /// Rows of the upload tree, by key.
    pub fn tree(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        todo!()
    }
    /// Description of a published file.
    pub fn file_info(&self, _root: &ContentId) -> Result<Option<FileInfo>, StoreError> {
        todo!()
    }
    /// Descriptions of all published files, without their chunks.
    pub fn files(&self) -> Result<Vec<FileInfo>, StoreError> {
        todo!()
    }

    // --- keeping ------------------------------------------------------------------------------------------------
    /// Pins a root. Everything below it is kept from then on, also what is fetched later.
    pub fn pin(&self, _pin: Pin) -> Result<(), StoreError> {
        todo!()
    }
    /// Takes a pin away; whether there was one.
    pub fn unpin(&self, _root: &ContentId) -> Result<bool, StoreError> {
        todo!()
    }
    /// All pins.
    pub fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        todo!()
    }
    /// Remembers a root that was opened, for the root listing; forgotten when it is evicted.
    pub fn remember_root(&self, _root: KnownRoot) -> Result<(), StoreError> {
        todo!()
    }
    /// Roots that are published, pinned or cached.
    pub fn known_roots(&self) -> Result<Vec<KnownRoot>, StoreError> {
        todo!()
    }
    /// Figures; never waits for the network or scans the disk.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        todo!()
    }
    /// Hashes everything and withdraws what is wrong. `progress` gets bytes done and bytes in all.
    pub fn verify(&self, _progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport, StoreError> {
        todo!()
    }
    /// Removes everything that is neither pinned nor published nor open.
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        todo!()
    }
    /// Evicts least recently read content until the limits hold. Runs by itself; here for tests.
    pub fn evict(&self) -> Result<GcReport, StoreError> {
        todo!()
    }
    /// A tree of working state.
    pub fn state(&self, _name: &'static str) -> Result<StateTree, StoreError> {
        todo!()
    }
    /// Makes downloaded blocks durable now instead of within two seconds.
    pub fn flush(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// Longest time that a downloaded block waits for its commit.
    pub const FLUSH_INTERVAL: Duration = Duration::from_secs(2);
}

impl Object {
    /// Its id.
    pub fn id(&self) -> ObjectId {
        todo!()
    }
    /// Root of its DAG.
    pub fn root(&self) -> &ContentId {
        todo!()
    }
    /// Bytes of content.
    pub fn size(&self) -> u64 {
        todo!()
    }
    /// Bytes that are here.
    pub fn present(&self) -> RangeSet {
        todo!()
    }
    /// Whether `range` is here; without a copy of the set.
    pub fn has(&self, _range: ByteRange) -> bool {
        todo!()
    }
    /// Whether every byte is here.
    pub fn is_complete(&self) -> bool {
        todo!()
    }
    /// Bytes of disk that it takes.
    pub fn allocated(&self) -> u64 {
        todo!()
    }
    /// Copies bytes out; [`StoreError::Missing`] when one is not here. Counts as a read for eviction.
    pub fn read(&self, _range: ByteRange) -> Result<Bytes, StoreError> {
        todo!()
    }
    /// Writes the content of a verified block to its places and marks them present. The exact block can be served from then on.
    pub fn place(&self, _block: &Block, _places: &[Placement]) -> Result<(), StoreError> {
        todo!()
    }
    /// The backing file, opened O_RDONLY, for passthrough; only when complete, and unchanged since it was sealed
    /// (else its blocks are withdrawn and the answer is none).
    pub fn backing(&self) -> Result<Option<Arc<File>>, StoreError> {
        todo!()
    }
}

impl WorkingFile {
    /// Its id; it keeps it as an object.
    pub fn id(&self) -> ObjectId {
        todo!()
    }
    /// Its path.
    pub fn path(&self) -> &Path {
        todo!()
    }
    /// Opens it once more, for reading or also for writing.
    pub fn open(&self, _write: bool) -> Result<File, StoreError> {
        todo!()
    }
}
