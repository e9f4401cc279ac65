//! The upload tree: what is copied in is hashed, sealed, stored, pinned by its place in the tree, and announced.
//!
//! Knows no FUSE type. Nothing here waits for the network. Calls that touch only the tree take microseconds.

use std::{ffi::OsString, fs::File, path::Path, sync::Arc, time::SystemTime};

use crate::{
    content::{ContentId, ImportParams},
    store::{Store, StoreError},
    tasks::Tasks,
};

/// Options of [`Uploads::open`].
#[derive(Clone, Debug)]
pub struct PublishOptions {
    /// Shape of the DAGs.
    pub import: ImportParams,
    /// Nothing may be written (`--read-only`).
    pub read_only: bool,
}

/// Why an operation on the tree was refused; `fs` maps each to an errno.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum PublishError {
    #[error("no such file or directory")]
    NotFound,
    #[error("the name exists")]
    Exists,
    #[error("not a directory")]
    NotADirectory,
    #[error("is a directory")]
    IsADirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("a directory cannot be moved below itself")]
    Cycle,
    #[error("the name is not usable: {0}")]
    Name(&'static str),
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    #[error("not allowed: {0}")]
    NotPermitted(&'static str),
    #[error("the tree is read-only")]
    ReadOnly,
    #[error("no such attribute")]
    NoAttribute,
    #[error("the file is still being written")]
    Busy,
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("the daemon is shutting down")]
    Closed,
}

/// Number of an inode of the upload tree; lasting over restarts. The root is [`UploadIno::ROOT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadIno(pub u64);

impl UploadIno {
    /// The directory `upload/` itself.
    pub const ROOT: Self = Self(1);
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum UploadKind {
    File,
    Directory,
    Symlink,
}

/// Attributes as `stat` shows them.
#[derive(Clone, Debug)]
pub struct UploadAttr {
    /// Inode number.
    pub ino: UploadIno,
    /// File, directory or symlink.
    pub kind: UploadKind,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes, at least 8 where the size is not 0.
    pub blocks: u64,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that it has: 0 (unlinked and open), 1; directories 2 and one for each subdirectory.
    pub nlink: u32,
    /// Last access.
    pub atime: SystemTime,
    /// Last change of content.
    pub mtime: SystemTime,
    /// Last change of anything.
    pub ctime: SystemTime,
    /// Whether the content is sealed, so that the attributes can be cached for long.
    pub sealed: bool,
}

/// Changes of attributes; what is none stays.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "the fields are those of UploadAttr")]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SystemTime>,
    pub mtime: Option<SystemTime>,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the flags are those of open(2)")]
pub struct OpenFlags {
    pub write: bool,
    pub truncate: bool,
    pub append: bool,
}

/// Names one open of an upload file, from [`Uploads::open_file`] to [`Uploads::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UploadHandle(pub u64);

/// What an open file is backed by right now.
#[derive(Clone, Debug)]
pub struct Backing {
    /// The current file, opened O_RDONLY. Passthrough ids are made from it (the kernel reopens it with the caller's flags).
    pub file: Arc<File>,
    /// Changes whenever another file takes its place: a BackingId made for an older version must not be used for new passthrough opens.
    pub version: u64,
    /// Whether the file may be opened with passthrough: it is whole, not an overlay whose missing chunks live elsewhere.
    pub whole: bool,
}

/// Where an upload is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the documented values of user.chiral.state")]
pub enum UploadState {
    Writing,
    Hashing,
    Published,
    /// Open when the daemon was killed; published when it is closed again.
    Interrupted,
}

/// One name in a directory.
#[derive(Clone, Debug)]
pub struct UploadEntry {
    /// The name.
    pub name: OsString,
    /// Its inode.
    pub ino: UploadIno,
    /// What it is.
    pub kind: UploadKind,
}

/// What rename(2) is to do with an existing target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of renameat2(2)")]
pub enum RenameMode {
    #[default]
    Replace,
    NoReplace,
    Exchange,
}

/// Who is told what was published; `node` announces it and puts it on the event stream.
pub trait Listener: Send + Sync + std::fmt::Debug {
    /// A file, or a top-level directory after a rest, has a new root.
    fn published(&self, root: &ContentId, name: &str, size: u64);
    /// A root that was published before is not part of the tree any more.
    fn unpublished(&self, root: &ContentId);
}

/// The upload tree; clones share it.
#[derive(Clone, Debug)]
pub struct Uploads {
    _private: (),
}

type Result<T> = std::result::Result<T, PublishError>;

impl Uploads {
    /// Reads the tree from the store and goes on with what was not finished.
    pub fn open(
        _options: PublishOptions,
        _store: Store,
        _listener: Arc<dyn Listener>,
        _tasks: &Tasks,
    ) -> Result<Self> {
        todo!()
    }
    /// Finishes hashing what is closed and makes everything durable, for at most the time until `deadline`.
    pub async fn close(&self, _deadline: std::time::Duration) -> Result<()> {
        todo!()
    }

    // --- names --------------------------------------------------------------------------------------------------
    #[allow(missing_docs, reason = "as lookup of FUSE")]
    pub fn lookup(&self, _parent: UploadIno, _name: &std::ffi::OsStr) -> Result<UploadAttr> {
        todo!()
    }
    /// All entries, sorted by name.
    pub fn readdir(&self, _ino: UploadIno) -> Result<Vec<UploadEntry>> {
        todo!()
    }
    /// The directory that holds a directory.
    pub fn parent(&self, _ino: UploadIno) -> Result<UploadIno> {
        todo!()
    }
    #[allow(missing_docs, reason = "as mkdir(2)")]
    pub fn mkdir(
        &self,
        _parent: UploadIno,
        _name: &std::ffi::OsStr,
        _mode: u32,
        _uid: u32,
        _gid: u32,
    ) -> Result<UploadAttr> {
        todo!()
    }
    #[allow(missing_docs, reason = "as symlink(2)")]
    pub fn symlink(
        &self,
        _parent: UploadIno,
        _name: &std::ffi::OsStr,
        _target: &Path,
        _uid: u32,
        _gid: u32,
    ) -> Result<UploadAttr> {
        todo!()
    }
    #[allow(missing_docs, reason = "as readlink(2)")]
    pub fn readlink(&self, _ino: UploadIno) -> Result<OsString> {
        todo!()
    }
    #[allow(missing_docs, reason = "as unlink(2)")]
    pub fn unlink(&self, _parent: UploadIno, _name: &std::ffi::OsStr) -> Result<()> {
        todo!()
    }
    #[allow(missing_docs, reason = "as rmdir(2)")]
    pub fn rmdir(&self, _parent: UploadIno, _name: &std::ffi::OsStr) -> Result<()> {
        todo!()
    }
    #[allow(missing_docs, reason = "as renameat2(2)")]
    pub fn rename(
        &self,
        _parent: UploadIno,
        _name: &std::ffi::OsStr,
        _to_parent: UploadIno,
        _to_name: &std::ffi::OsStr,
        _mode: RenameMode,
    ) -> Result<()> {
        todo!()
    }

    // --- inodes -------------------------------------------------------------------------------------------------
    #[allow(missing_docs, reason = "as fstat(2)")]
    pub fn getattr(&self, _ino: UploadIno) -> Result<UploadAttr> {
        todo!()
    }
    /// chmod, chown, utimens, truncate.
    pub fn setattr(&self, _ino: UploadIno, _changes: &SetAttr) -> Result<UploadAttr> {
        todo!()
    }
    /// Value of a user.* attribute that a program set (not those of chiral itself).
    pub fn getxattr(&self, _ino: UploadIno, _name: &str) -> Result<Vec<u8>> {
        todo!()
    }
    #[allow(missing_docs, reason = "as listxattr(2)")]
    pub fn listxattr(&self, _ino: UploadIno) -> Result<Vec<String>> {
        todo!()
    }
    /// As setxattr(2); `user.chiral.*` and `ipfs.*` are refused.
    pub fn setxattr(
        &self,
        _ino: UploadIno,
        _name: &str,
        _value: &[u8],
        _create: bool,
        _replace: bool,
    ) -> Result<()> {
        todo!()
    }
    #[allow(missing_docs, reason = "as removexattr(2)")]
    pub fn removexattr(&self, _ino: UploadIno, _name: &str) -> Result<()> {
        todo!()
    }
    /// Where the inode is on its way.
    pub fn state(&self, _ino: UploadIno) -> Result<UploadState> {
        todo!()
    }
    /// The id of a file, directory or symlink as it is published now; waits while it is being hashed, and up to 2 s for
    /// a write handle to be released, then [`PublishError::Busy`].
    pub async fn cid(&self, _ino: UploadIno) -> Result<ContentId> {
        todo!()
    }
    /// The id if it is known without waiting.
    pub fn cid_now(&self, _ino: UploadIno) -> Option<ContentId> {
        todo!()
    }

    // --- open files ---------------------------------------------------------------------------------------------
    /// Makes a file and opens it.
    pub fn create(
        &self,
        _parent: UploadIno,
        _name: &std::ffi::OsStr,
        _mode: u32,
        _uid: u32,
        _gid: u32,
        _exclusive: bool,
        _flags: OpenFlags,
    ) -> Result<(UploadAttr, UploadHandle)> {
        todo!()
    }
    /// Opens a file. For writing, a published file gets a working file first (clone, overlay, or empty).
    pub fn open_file(&self, _ino: UploadIno, _flags: OpenFlags) -> Result<UploadHandle> {
        todo!()
    }
    /// What the file is backed by now.
    pub fn backing(&self, _ino: UploadIno) -> Result<Backing> {
        todo!()
    }
    /// Reads through the daemon (copy mode, overlays).
    pub fn read(&self, _handle: UploadHandle, _offset: u64, _len: usize) -> Result<bytes::Bytes> {
        todo!()
    }
    /// Writes through the daemon (copy mode, overlays).
    pub fn write(&self, _handle: UploadHandle, _offset: u64, _data: &[u8]) -> Result<usize> {
        todo!()
    }
    #[allow(missing_docs, reason = "as fallocate(2)")]
    pub fn fallocate(
        &self,
        _handle: UploadHandle,
        _mode: i32,
        _offset: u64,
        _len: u64,
    ) -> Result<()> {
        todo!()
    }
    /// SEEK_DATA and SEEK_HOLE.
    pub fn lseek(&self, _handle: UploadHandle, _offset: i64, _whence: i32) -> Result<i64> {
        todo!()
    }
    /// Data and names on disk when it returns; never waits for hashing.
    pub fn fsync(&self, _ino: UploadIno) -> Result<()> {
        todo!()
    }
    /// The handle is closed; with the last one that could write, hashing begins.
    pub fn release(&self, _handle: UploadHandle) {
        todo!()
    }

    // --- without the mount --------------------------------------------------------------------------------------
    /// Copies a file or tree of this machine in under `name` of the upload root (`chiral add`); gives id and name of
    /// each file and directory, the root last.
    pub async fn import(
        &self,
        _path: &Path,
        _name: &std::ffi::OsStr,
    ) -> Result<Vec<(ContentId, String)>> {
        todo!()
    }
    /// Roots that are published: the entries of the upload root with their names.
    pub fn published(&self) -> Vec<(String, ContentId)> {
        todo!()
    }
}
