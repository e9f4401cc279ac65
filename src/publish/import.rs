//! Publishing without the mount: a file or tree of this machine is copied in under one name.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Inner, OpenFlags, PublishError, RenameMode, UploadIno, UploadKind,
    handle::io_error,
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

impl Inner {
    pub(super) async fn import(
        self: &Arc<Self>,
        path: &Path,
        name: &OsStr,
    ) -> Result<Vec<(ContentId, String)>> {
        self.writable()?;
        let (inner, path, name) = (self.clone(), path.to_owned(), name.to_owned());
        let copied = self.tasks.blocking("import", move || inner.import_now(&path, &name));
        let copied = copied.await.map_err(|_| PublishError::Closed)??;
        if let Some((root, _)) = copied.last() {
            // Hurries all below it at once, where asking one after the other would hash one after the other.
            self.cid(*root).await?;
        }
        let mut published = Vec::with_capacity(copied.len());
        for (ino, path) in copied {
            published.push((self.cid(ino).await?, path.to_string_lossy().into_owned()));
        }
        Ok(published)
    }

    /// Copies under a name that nobody has, then puts it in the place of what has the name.
    fn import_now(&self, path: &Path, name: &OsStr) -> Result<Vec<(UploadIno, PathBuf)>> {
        let scratch = self.free_scratch();
        let copied = self
            .copy_in(path, UploadIno::ROOT, &scratch, Path::new(name), 0)
            .and_then(|copied| self.replace(&scratch, name).map(|()| copied));
        if copied.is_err() {
            // What was copied so far goes; where even that fails the first error tells more.
            let _ = self.remove_tree(UploadIno::ROOT, &scratch);
        }
        copied
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

    /// Copies one file or tree; gives what was made, children before their directory.
    fn copy_in(
        &self,
        path: &Path,
        parent: UploadIno,
        name: &OsStr,
        shown: &Path,
        depth: usize,
    ) -> Result<Vec<(UploadIno, PathBuf)>> {
        if depth > MAX_DEPTH {
            return Err(PublishError::Invalid("the tree is too deep"));
        }
        let meta = match depth {
            // What is named is meant, also through a link; links below are kept.
            0 => fs::metadata(path),
            _ => fs::symlink_metadata(path),
        }
        .map_err(io_error("stat"))?;
        let owner = Owner { mode: meta.mode(), uid: meta.uid(), gid: meta.gid() };
        if meta.is_symlink() {
            let target = fs::read_link(path).map_err(io_error("readlink"))?;
            let body = Body::Symlink(super::attr::target(&target));
            return Ok(vec![(self.add(parent, name, owner, body)?, shown.to_owned())]);
        }
        if meta.is_file() {
            return Ok(vec![(self.copy_file(path, parent, name, owner)?, shown.to_owned())]);
        }
        if !meta.is_dir() {
            return Err(PublishError::Invalid(
                "only files, directories and symlinks are published",
            ));
        }
        let ino = self.add(parent, name, owner, Body::Directory(Directory::default()))?;
        let mut copied = Vec::new();
        for entry in fs::read_dir(path).map_err(io_error("opendir"))? {
            let entry = entry.map_err(io_error("readdir"))?;
            let name = entry.file_name();
            copied.extend(self.copy_in(
                &entry.path(),
                ino,
                &name,
                &shown.join(&name),
                depth + 1,
            )?);
        }
        copied.push((ino, shown.to_owned()));
        Ok(copied)
    }

    fn copy_file(
        &self,
        path: &Path,
        parent: UploadIno,
        name: &OsStr,
        owner: Owner,
    ) -> Result<UploadIno> {
        let mut from = fs::File::open(path).map_err(io_error("open"))?;
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let (attr, handle) = self.create(parent, name, owner, true, flags)?;
        let copied = self.names().cell(attr.ino).and_then(|cell| {
            let writer = match &mut cell.state().work {
                Some(work) => work.writer()?,
                None => return Err(PublishError::NotFound),
            };
            self.with_room("copy", || {
                // Where an attempt that found the disk full has left off.
                let done = (&*writer).stream_position()?;
                from.seek(SeekFrom::Start(done))?;
                // copy_file_range underneath: extents are shared where the filesystem can.
                io::copy(&mut from, &mut &*writer)
            })
        });
        self.release(handle);
        copied.map(|_| attr.ino)
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
