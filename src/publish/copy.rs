//! Copying a file, a tree, or bytes as they come into the upload tree, under the name of an import.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::{
    Inner, OpenFlags, PublishError, UploadHandle, UploadIno, UploadKind,
    ignore::{IgnoreScope, Skipped},
    import::{MAX_DEPTH, Made, Report, SCRATCH, at, no_content},
    tree::{Body, Directory, Owner, Request},
};

type Result<T> = std::result::Result<T, PublishError>;

/// Bytes between two looks at who waits and two reports to him: some milliseconds of copying. Where extents are shared
/// it is a multiple of every block size.
const STEP: u64 = 8 << 20;
const WRITE: OpenFlags = OpenFlags { write: true, truncate: false, append: false };

/// An import under a scratch name. It is removed unless it gets a name of its own.
#[derive(Debug)]
pub(super) struct Scratch {
    inner: Arc<Inner>,
    pub(super) name: OsString,
    placed: bool,
}

impl Scratch {
    /// A name for what is being copied. One that is left over from a kill is no reason to fail.
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        loop {
            let number = inner.next_handle.fetch_add(1, Ordering::Relaxed);
            let name = OsString::from(format!("{SCRATCH}{number}"));
            if inner.names().tree.lookup(UploadIno::ROOT, &name).is_err() {
                return Self { inner: inner.clone(), name, placed: false };
            }
        }
    }

    /// It has a name of its own.
    pub(super) fn placed(mut self) {
        self.placed = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.placed {
            let (inner, name) = (self.inner.clone(), std::mem::take(&mut self.name));
            // Where this fails the first error tells more; the next start takes out what is left.
            let take_back = move || inner.remove_tree(UploadIno::ROOT, &name);
            drop(self.inner.tasks.blocking("import", take_back));
        }
    }
}

/// One import on its way.
pub(super) struct Copy<'a> {
    pub(super) report: &'a Report,
    /// Nobody waits for it any more.
    pub(super) given_up: CancellationToken,
    pub(super) done: u64,
    pub(super) total: u64,
    /// Inodes that were made: children before their directory.
    pub(super) made: Vec<Made>,
    pub(super) skipped: Skipped,
    /// Requests beyond the ignore rules.
    pub(super) request: Request,
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

/// Source and target of a copy.
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    /// As the user knows it.
    pub(super) shown: &'a Path,
    pub(super) parent: UploadIno,
    pub(super) name: &'a OsStr,
    /// The rules of the directory, where it is one.
    pub(super) scope: IgnoreScope,
    pub(super) depth: usize,
}

impl Inner {
    /// Copies one file or tree.
    pub(super) fn copy_in(&self, source: Source<'_>, copy: &mut Copy<'_>) -> Result<()> {
        copy.go_on()?;
        if source.depth > MAX_DEPTH {
            return Err(PublishError::Invalid("the tree is too deep"));
        }
        let (path, parent, name) = (source.path, source.parent, source.name);
        let meta = fs::symlink_metadata(path).map_err(at("stat", path))?;
        let owner = Owner { mode: meta.mode(), uid: meta.uid(), gid: meta.gid() };
        let (ino, size) = if meta.is_symlink() {
            let target = fs::read_link(path).map_err(at("readlink", path))?;
            (self.add(parent, name, owner, Body::Symlink(super::attr::target(&target)))?, 0)
        } else if meta.is_file() {
            self.copy_file(path, parent, name, owner, copy)?
        } else if meta.is_dir() {
            (self.copy_directory(source, owner, copy)?, 0)
        } else {
            return Err(no_content(path));
        };
        if copy.request != Request::None {
            self.names().tree.set_request(ino, copy.request);
        }
        copy.made.push(Made { ino, size });
        Ok(())
    }

    fn copy_directory(
        &self,
        source: Source<'_>,
        owner: Owner,
        copy: &mut Copy<'_>,
    ) -> Result<UploadIno> {
        let Source { path, shown, parent, name, scope, depth } = source;
        let body = Body::Directory(Directory::default());
        let parent = self.add(parent, name, owner, body)?;
        let listed = scope.list(path, shown, &mut copy.skipped);
        let (scope, names) = listed.map_err(at("readdir", path))?;
        for name in names {
            let source = Source {
                path: &path.join(&name),
                shown: &shown.join(&name),
                parent,
                name: &name,
                scope: scope.below(&name),
                depth: depth + 1,
            };
            self.copy_in(source, copy)?;
        }
        Ok(parent)
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
        let (attr, handle) = self.create(parent, name, owner, true, WRITE)?;
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

    /// Writes bytes as they come into a new file.
    pub(super) async fn copy_stream(
        self: &Arc<Self>,
        scratch: &Scratch,
        mut pieces: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
        report: &Report,
    ) -> Result<Made> {
        let owner = Owner {
            mode: 0o644,
            uid: nix::unistd::Uid::effective().as_raw(),
            gid: nix::unistd::Gid::effective().as_raw(),
        };
        let (attr, handle) = self.create(UploadIno::ROOT, &scratch.name, owner, true, WRITE)?;
        let open = Open { inner: self, handle };
        let mut size = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|source| PublishError::Io { what: "read", source })?;
            let (inner, len) = (self.clone(), piece.len() as u64);
            let write = move || inner.write(handle, size, &piece);
            self.tasks.blocking("import", write).await.map_err(|_| PublishError::Closed)??;
            size += len;
            report(size, 0, size);
        }
        drop(open);
        Ok(Made { ino: attr.ino, size })
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

/// A handle that is released also when the work with it is given up.
struct Open<'a> {
    inner: &'a Inner,
    handle: UploadHandle,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.inner.release(self.handle);
    }
}

/// Bytes of all files that will be copied. What cannot be looked at counts nothing: copying it tells why.
pub(super) fn size_of(path: &Path, scope: IgnoreScope, depth: usize) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() || depth > MAX_DEPTH {
        return if meta.is_file() { meta.len() } else { 0 };
    }
    let Ok((scope, names)) = scope.list(path, path, &mut Skipped::default()) else { return 0 };
    let below = |name: OsString| size_of(&path.join(&name), scope.below(&name), depth + 1);
    names.into_iter().map(below).sum()
}
