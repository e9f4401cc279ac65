//! Publishing without the mount: a file or tree of this machine is copied in under one name.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use super::{
    Inner, OpenFlags, PublishError, RenameMode, UploadIno, UploadKind, Uploads,
    tree::{Body, Directory, Owner},
};
use crate::content::ContentId;

type Result<T> = std::result::Result<T, PublishError>;

/// Deepest tree that is taken; as deep as a path can be.
const MAX_DEPTH: usize = 2048;

/// What the names begin with under which trees are copied into the root, before they get their own.
const SCRATCH: &str = ".chiral-import-";

/// Whether a name of the root is one of an import under way, or of one that a kill ended.
pub(super) fn is_scratch(name: &OsStr) -> bool {
    let number = name.as_encoded_bytes().strip_prefix(SCRATCH.as_bytes());
    number.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit))
}

/// Bytes between two looks at who waits and two reports to him: some milliseconds of copying. Where extents are shared
/// it is a multiple of every block size.
const STEP: u64 = 8 << 20;

/// Told of bytes that are copied, bytes that are published, and bytes in all.
type Report = dyn Fn(u64, u64, u64) + Send + Sync;

/// One import on its way.
struct Copy<'a> {
    report: &'a Report,
    /// Nobody waits for it any more.
    given_up: CancellationToken,
    done: u64,
    total: u64,
    made: Vec<Made>,
}

/// What an import made: children before their directory.
struct Made {
    ino: UploadIno,
    name: PathBuf,
    /// Bytes of a file.
    size: u64,
}

impl Copy<'_> {
    fn go_on(&self) -> Result<()> {
        if self.given_up.is_cancelled() { Err(PublishError::Closed) } else { Ok(()) }
    }

    fn copied(&mut self, bytes: u64) {
        self.done += bytes;
        // A file may have grown since it was looked at.
        self.total = self.total.max(self.done);
        (self.report)(self.done, 0, self.total);
    }
}

impl Uploads {
    /// As [`Uploads::import`], and `report` is told of bytes that are copied, bytes that are published, and bytes in all.
    /// Whoever drops it before everything is copied takes back what was copied so far.
    pub async fn import_reporting(
        &self,
        path: &Path,
        name: &OsStr,
        report: impl Fn(u64, u64, u64) + Send + Sync + 'static,
    ) -> Result<Vec<(ContentId, String)>> {
        self.inner.import_reporting(path, name, Arc::new(report)).await
    }
}

impl Inner {
    pub(super) async fn import(
        self: &Arc<Self>,
        path: &Path,
        name: &OsStr,
    ) -> Result<Vec<(ContentId, String)>> {
        self.import_reporting(path, name, Arc::new(|_, _, _| {})).await
    }

    async fn import_reporting(
        self: &Arc<Self>,
        path: &Path,
        name: &OsStr,
        report: Arc<Report>,
    ) -> Result<Vec<(ContentId, String)>> {
        self.writable()?;
        let given_up = CancellationToken::new();
        let waits = given_up.clone().drop_guard();
        let (inner, path, name, told) =
            (self.clone(), path.to_owned(), name.to_owned(), report.clone());
        let copied = self.tasks.blocking("import", move || {
            let total = size_of(&path, 0);
            let copy = Copy { report: &*told, given_up, done: 0, total, made: Vec::new() };
            inner.import_now(&path, &name, copy)
        });
        let copied = copied.await.map_err(|_| PublishError::Closed)??;
        waits.disarm();
        if let Some(root) = copied.last() {
            // Hurries all below it at once, where asking one after the other would hash one after the other.
            tokio::select! {
                known = self.cid(root.ino) => { known?; }
                never = self.report_published(&copied, &*report) => match never {},
            }
        }
        let mut published = Vec::with_capacity(copied.len());
        for made in copied {
            published.push((self.cid(made.ino).await?, made.name.to_string_lossy().into_owned()));
        }
        Ok(published)
    }

    /// Tells how much of what was copied is published. Files are hashed in nearly the order in which they were copied.
    async fn report_published(&self, made: &[Made], report: &Report) -> std::convert::Infallible {
        let total = made.iter().map(|made| made.size).sum();
        report(total, 0, total);
        let mut done = 0;
        for file in made.iter().filter(|made| made.size > 0) {
            self.published(file.ino).await;
            done += file.size;
            report(total, done, total);
        }
        std::future::pending().await
    }

    /// Waits for a file, for ever if it is removed meanwhile.
    async fn published(&self, ino: UploadIno) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed, though nobody waits yet.
            changed.as_mut().enable();
            if self.cid_now(ino).is_some() {
                return;
            }
            changed.await;
        }
    }

    /// Copies under a name that nobody has, then puts it in the place of what has the name.
    fn import_now(&self, path: &Path, name: &OsStr, mut copy: Copy<'_>) -> Result<Vec<Made>> {
        let scratch = self.free_scratch();
        let copied = self
            .copy_in(path, UploadIno::ROOT, &scratch, Path::new(name), 0, &mut copy)
            .and_then(|()| copy.go_on())
            .and_then(|()| self.replace(&scratch, name));
        if copied.is_err() {
            // What was copied so far goes; where even that fails the first error tells more.
            let _ = self.remove_tree(UploadIno::ROOT, &scratch);
        }
        copied.map(|()| copy.made)
    }

    /// A name for what is being copied. One that is left over from a kill is no reason to fail.
    fn free_scratch(&self) -> OsString {
        loop {
            let number = self.next_handle.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let name = OsString::from(format!("{SCRATCH}{number}"));
            if self.names().tree.lookup(UploadIno::ROOT, &name).is_err() {
                return name;
            }
        }
    }

    fn replace(&self, scratch: &OsStr, name: &OsStr) -> Result<()> {
        let (from, to) = ((UploadIno::ROOT, scratch), (UploadIno::ROOT, name));
        match self.rename(from, to, RenameMode::NoReplace) {
            Err(PublishError::Exists) => {
                self.rename(from, to, RenameMode::Exchange)?;
                self.remove_tree(UploadIno::ROOT, scratch)
            }
            done => done,
        }
    }

    /// Copies one file or tree.
    fn copy_in(
        &self,
        path: &Path,
        parent: UploadIno,
        name: &OsStr,
        shown: &Path,
        depth: usize,
        copy: &mut Copy<'_>,
    ) -> Result<()> {
        copy.go_on()?;
        if depth > MAX_DEPTH {
            return Err(PublishError::Invalid("the tree is too deep"));
        }
        let meta = fs::symlink_metadata(path).map_err(at("stat", path))?;
        let owner = Owner { mode: meta.mode(), uid: meta.uid(), gid: meta.gid() };
        let (ino, size) = if meta.is_symlink() {
            let target = fs::read_link(path).map_err(at("readlink", path))?;
            (self.add(parent, name, owner, Body::Symlink(super::attr::target(&target)))?, 0)
        } else if meta.is_file() {
            self.copy_file(path, parent, name, owner, copy)?
        } else if meta.is_dir() {
            let ino = self.add(parent, name, owner, Body::Directory(Directory::default()))?;
            for entry in fs::read_dir(path).map_err(at("opendir", path))? {
                let entry = entry.map_err(at("readdir", path))?;
                let name = entry.file_name();
                self.copy_in(&entry.path(), ino, &name, &shown.join(&name), depth + 1, copy)?;
            }
            (ino, 0)
        } else {
            let what = "only files, directories and symlinks are published";
            return Err(at("add", path)(io::Error::new(io::ErrorKind::InvalidInput, what)));
        };
        copy.made.push(Made { ino, name: shown.to_owned(), size });
        Ok(())
    }

    fn copy_file(
        &self,
        path: &Path,
        parent: UploadIno,
        name: &OsStr,
        owner: Owner,
        copy: &mut Copy<'_>,
    ) -> Result<(UploadIno, u64)> {
        let mut from = fs::File::open(path).map_err(at("open", path))?;
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let (attr, handle) = self.create(parent, name, owner, true, flags)?;
        let mut size = 0;
        let copied = self.names().cell(attr.ino).and_then(|cell| {
            let writer = match &mut cell.state().work {
                Some(work) => work.writer()?,
                None => return Err(PublishError::NotFound),
            };
            loop {
                copy.go_on()?;
                let end = self.with_room("copy", || {
                    // Where an attempt that found the disk full has left off.
                    let done = writer.file().stream_position()?;
                    from.seek(SeekFrom::Start(done))?;
                    // copy_file_range underneath: extents are shared where the filesystem can.
                    io::copy(&mut (&mut from).take(STEP), &mut writer.file())?;
                    writer.file().stream_position()
                })?;
                if end == size {
                    return Ok(());
                }
                copy.copied(end - size);
                size = end;
            }
        });
        self.release(handle);
        copied.map(|()| (attr.ino, size))
    }

    pub(super) fn remove_tree(&self, parent: UploadIno, name: &OsStr) -> Result<()> {
        let ino = self.names().tree.lookup(parent, name)?;
        let kind = self.names().tree.get(ino)?.kind();
        if kind != UploadKind::Directory {
            return self.unlink(parent, name);
        }
        let entries = self.names().tree.entries(ino)?;
        for entry in entries {
            self.remove_tree(ino, &entry.name)?;
        }
        self.rmdir(parent, name)
    }
}

/// An error that names the file: it may be one of thousands.
fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> PublishError {
    move |error| {
        let source = io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        PublishError::Io { what, source }
    }
}

/// Bytes of all files. What cannot be looked at counts nothing: copying it tells why.
fn size_of(path: &Path, depth: usize) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() || depth > MAX_DEPTH {
        return if meta.is_file() { meta.len() } else { 0 };
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| size_of(&entry.path(), depth + 1)).sum()
}
