//! The upload tree: what is copied in is hashed, sealed, stored, pinned by its place in the tree, and announced.
//!
//! Knows no FUSE type. Nothing here waits for the network. Calls that touch only the tree take microseconds.

mod acl;
mod adopt;
mod announce;
mod attr;
mod copy;
mod dirs;
mod file;
mod fill;
mod flush;
mod handle;
mod hash;
mod identify;
mod ids;
mod ignore;
mod import;
mod io;
mod layer;
mod names;
mod open;
mod overlay;
mod private;
mod queue;
mod row;
mod seal;
#[cfg(test)]
mod tests;
mod tree;

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::ErrorKind,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::sync::Notify;

pub use self::{
    adopt::Adopted,
    identify::{Identifier, Watcher},
    ignore::{IGNORED, IgnorePatterns, IgnoreScope, PatternError, Skipped},
    import::{ImportOptions, ImportedTree},
};
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
    /// Patterns of names that are published only on request.
    pub ignore: IgnorePatterns,
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
    #[error("the file has as many names as it can have")]
    TooManyLinks,
    #[error("not allowed: {0}")]
    NotPermitted(&'static str),
    #[error("the tree is read-only")]
    ReadOnly,
    #[error("no such attribute")]
    NoAttribute,
    #[error("the file is still being written")]
    Busy,
    #[error("it is ignored, so it is not published and has no id")]
    Ignored,
    #[error(
        "`{0}` is in upload/ already, with other content: --replace puts the new content in its place, --name NAME beside it"
    )]
    Taken(String),
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("the daemon is shutting down")]
    Closed,
}

impl PublishError {
    /// Returns whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Store(error) => error.is_no_space(),
            Self::Io { source, .. } => {
                matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
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
    /// Names that it has, 0 when it is unlinked and open; directories 2 and one for each subdirectory.
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
    /// Not to be published.
    Ignored,
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
    inner: Arc<Inner>,
}

/// What the clones share.
///
/// Lock order: the turn of the rules, the flush turn, the directory turn, a file's `opening`, a file's state, `names`. `handles` and the locks
/// of queue, flusher and announcer are leaves: nothing is locked under them. No lock but the flush turn is held over a
/// commit, and none but `opening` over a copy.
#[derive(Debug)]
struct Inner {
    options: PublishOptions,
    store: Store,
    listener: Arc<dyn Listener>,
    tasks: Tasks,
    names: Mutex<names::Names>,
    handles: Mutex<HashMap<UploadHandle, handle::Handle>>,
    next_handle: AtomicU64,
    flusher: flush::Flusher,
    queue: queue::Queue,
    /// Layers that wait to be merged.
    layers: queue::Queue,
    directories: dirs::Directories,
    announcer: announce::Announcer,
    /// One change of the rules at a time, so that older ones never take the place of newer ones.
    rules_turn: Mutex<()>,
    /// Ignored files that the log has still to tell of.
    skipped: Mutex<Skipped>,
    /// Something was published, closed or removed: those that wait for an id look again.
    changed: Notify,
}

type Result<T> = std::result::Result<T, PublishError>;

/// The time for ctime and mtime.
fn now() -> SystemTime {
    SystemTime::now()
}

impl Uploads {
    /// Reads the tree from the store and goes on with what was not finished.
    pub fn open(
        options: PublishOptions,
        store: Store,
        listener: Arc<dyn Listener>,
        tasks: &Tasks,
    ) -> Result<Self> {
        Ok(Self { inner: Inner::open(options, store, listener, tasks)? })
    }
    /// Finishes hashing what is closed, for at most `deadline`, and makes everything durable; what is left is hashed at
    /// the next start. To be called while the tasks still run, and before the store is closed.
    pub async fn close(&self, deadline: Duration) -> Result<()> {
        self.inner.close(deadline).await
    }

    // --- names --------------------------------------------------------------------------------------------------
    #[allow(missing_docs, reason = "as lookup of FUSE")]
    pub fn lookup(&self, parent: UploadIno, name: &OsStr) -> Result<UploadAttr> {
        let ino = self.inner.names().tree.lookup(parent, name)?;
        self.inner.getattr(ino)
    }
    /// All entries, sorted by name.
    pub fn readdir(&self, ino: UploadIno) -> Result<Vec<UploadEntry>> {
        self.inner.names().tree.entries(ino)
    }
    /// The directory that holds a directory.
    pub fn parent(&self, ino: UploadIno) -> Result<UploadIno> {
        self.inner.names().tree.parent(ino)
    }
    #[allow(missing_docs, reason = "as mkdir(2)")]
    pub fn mkdir(
        &self,
        parent: UploadIno,
        name: &OsStr,
        mode: u32,
        uid: u32,
        gid: u32,
    ) -> Result<UploadAttr> {
        let body = tree::Body::Directory(tree::Directory::default());
        let ino = self.inner.add(parent, name, tree::Owner { mode, uid, gid }, body)?;
        self.inner.getattr(ino)
    }
    #[allow(missing_docs, reason = "as symlink(2)")]
    pub fn symlink(
        &self,
        parent: UploadIno,
        name: &OsStr,
        target: &Path,
        uid: u32,
        gid: u32,
    ) -> Result<UploadAttr> {
        let owner = tree::Owner { mode: 0o777, uid, gid };
        let body = tree::Body::Symlink(attr::target(target));
        let ino = self.inner.add(parent, name, owner, body)?;
        self.inner.getattr(ino)
    }
    #[allow(missing_docs, reason = "as readlink(2)")]
    pub fn readlink(&self, ino: UploadIno) -> Result<OsString> {
        self.inner.readlink(ino)
    }
    /// As link(2): a file or symlink gets one more name.
    pub fn link(&self, ino: UploadIno, parent: UploadIno, name: &OsStr) -> Result<UploadAttr> {
        self.inner.link(ino, parent, name)
    }
    #[allow(missing_docs, reason = "as unlink(2)")]
    pub fn unlink(&self, parent: UploadIno, name: &OsStr) -> Result<()> {
        self.inner.unlink(parent, name)
    }
    #[allow(missing_docs, reason = "as rmdir(2)")]
    pub fn rmdir(&self, parent: UploadIno, name: &OsStr) -> Result<()> {
        self.inner.rmdir(parent, name)
    }
    #[allow(missing_docs, reason = "as renameat2(2)")]
    pub fn rename(
        &self,
        parent: UploadIno,
        name: &OsStr,
        to_parent: UploadIno,
        to_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        self.inner.rename((parent, name), (to_parent, to_name), mode)
    }

    // --- inodes -------------------------------------------------------------------------------------------------
    #[allow(missing_docs, reason = "as fstat(2)")]
    pub fn getattr(&self, ino: UploadIno) -> Result<UploadAttr> {
        self.inner.getattr(ino)
    }
    /// chmod, chown, utimens, truncate.
    pub fn setattr(&self, ino: UploadIno, changes: &SetAttr) -> Result<UploadAttr> {
        self.inner.setattr(ino, changes)
    }
    /// Value of a user.* attribute that a program set (not those of chiral itself), or of an access list.
    pub fn getxattr(&self, ino: UploadIno, name: &str) -> Result<Vec<u8>> {
        let names = self.inner.names();
        let inode = names.tree.get(ino)?;
        inode.xattrs.get(name).cloned().ok_or(PublishError::NoAttribute)
    }
    #[allow(missing_docs, reason = "as listxattr(2)")]
    pub fn listxattr(&self, ino: UploadIno) -> Result<Vec<String>> {
        Ok(self.inner.names().tree.get(ino)?.xattrs.keys().cloned().collect())
    }
    /// As setxattr(2); `user.chiral.*` and `ipfs.*` are refused. An access list also sets the mode.
    pub fn setxattr(
        &self,
        ino: UploadIno,
        name: &str,
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<()> {
        self.inner.setxattr(ino, name, value, (create, replace))
    }
    #[allow(missing_docs, reason = "as removexattr(2)")]
    pub fn removexattr(&self, ino: UploadIno, name: &str) -> Result<()> {
        self.inner.removexattr(ino, name)
    }
    /// Where the inode is on its way.
    pub fn state(&self, ino: UploadIno) -> Result<UploadState> {
        self.inner.state(ino)
    }
    /// The id of a file, directory or symlink as it is published now; waits while it is being hashed, and up to 2 s for
    /// a write handle to be released, then [`PublishError::Busy`].
    pub async fn cid(&self, ino: UploadIno) -> Result<ContentId> {
        self.inner.cid(ino).await
    }
    /// The id of a file if its newest version is published. None for directories and symlinks: their nodes may still wait
    /// for their commit, and something below may still be written.
    pub fn cid_now(&self, ino: UploadIno) -> Option<ContentId> {
        self.inner.cid_now(ino)
    }

    // --- open files ---------------------------------------------------------------------------------------------
    /// Makes a file and opens it.
    #[allow(clippy::too_many_arguments, reason = "those of open(2) with O_CREAT, and who calls")]
    pub fn create(
        &self,
        parent: UploadIno,
        name: &OsStr,
        mode: u32,
        uid: u32,
        gid: u32,
        exclusive: bool,
        flags: OpenFlags,
    ) -> Result<(UploadAttr, UploadHandle)> {
        self.inner.create(parent, name, tree::Owner { mode, uid, gid }, exclusive, flags)
    }
    /// Opens a file. For writing, a published file gets a working file first (clone, overlay, or empty).
    pub fn open_file(&self, ino: UploadIno, flags: OpenFlags) -> Result<UploadHandle> {
        self.inner.open_file(ino, flags)
    }
    /// What the file is backed by now.
    pub fn backing(&self, ino: UploadIno) -> Result<Backing> {
        self.inner.backing(ino)
    }
    /// Reads through the daemon (copy mode, overlays).
    pub fn read(&self, handle: UploadHandle, offset: u64, len: usize) -> Result<Bytes> {
        self.inner.read(handle, offset, len)
    }
    /// Writes through the daemon (copy mode, overlays).
    pub fn write(&self, handle: UploadHandle, offset: u64, data: &[u8]) -> Result<usize> {
        self.inner.write(handle, offset, data)
    }
    #[allow(missing_docs, reason = "as fallocate(2)")]
    pub fn fallocate(&self, handle: UploadHandle, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.inner.fallocate(handle, mode, offset, len)
    }
    /// SEEK_DATA and SEEK_HOLE.
    pub fn lseek(&self, handle: UploadHandle, offset: i64, whence: i32) -> Result<i64> {
        self.inner.lseek(handle, offset, whence)
    }
    /// Returns whether a file holds the rules of its directory.
    pub fn holds_rules(&self, ino: UploadIno) -> bool {
        !self.inner.rules_of(ino).is_empty()
    }
    /// Applies the rules of such a file from now on. Else it does when its last writer has released it.
    pub fn reread_rules(&self, ino: UploadIno) {
        self.inner.content_changed(ino);
    }
    /// Data and names on disk when it returns; never waits for hashing.
    pub fn fsync(&self, ino: UploadIno) -> Result<()> {
        self.inner.fsync(ino)
    }
    /// The handle is closed; with the last one that could write, hashing begins.
    pub fn release(&self, handle: UploadHandle) {
        self.inner.release(handle);
    }

    // --- without the mount --------------------------------------------------------------------------------------
    /// Asks for something in the tree by its name: it is published whatever the rules say, and with `hidden` also what
    /// the settings ignore below it. Gives what is left out.
    pub async fn want(&self, ino: UploadIno, hidden: bool) -> Result<Skipped> {
        self.inner.writable()?;
        self.inner.want(ino, hidden).await
    }
    /// Roots that are published: the entries of the upload root with their names.
    pub fn published(&self) -> Vec<(String, ContentId)> {
        let names = self.inner.names();
        let mut entries = names.tree.entries(UploadIno::ROOT).unwrap_or_default();
        entries.retain(|entry| !import::is_scratch(&entry.name));
        let root = |entry: UploadEntry| {
            let (root, _) = dirs::link_of(names.tree.get(entry.ino).ok()?)?;
            Some((entry.name.to_string_lossy().into_owned(), root))
        };
        entries.into_iter().filter_map(root).collect()
    }
}
