#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs::OpenOptions,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::PoisonError,
};

use super::*;
use crate::{
    content::{DirectoryBuilder, FileBuilder, ImportParams, Metadata, sha2_256},
    store::StoreOptions,
};

mod adopt;
mod crash;
mod files;
mod ignoring;
mod merge;
mod naming;
mod restart;
mod rules;
mod storm;
mod trees;

const LEAF: usize = 256 << 10;
const WRITE: OpenFlags = OpenFlags { write: true, truncate: false, append: false };
const READ: OpenFlags = OpenFlags { write: false, truncate: false, append: false };
const TRUNCATE: OpenFlags = OpenFlags { write: true, truncate: true, append: false };
const APPEND: OpenFlags = OpenFlags { write: true, truncate: false, append: true };

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<String>>);

impl Heard {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Listener for Heard {
    fn published(&self, _root: &ContentId, name: &str, size: u64) {
        self.0.lock().unwrap().push(format!("+{name} {size}"));
    }
    fn unpublished(&self, root: &ContentId) {
        self.0.lock().unwrap().push(format!("-{root}"));
    }
}

/// An upload tree over a real store in a folder of its own.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    uploads: Uploads,
    tasks: Tasks,
    heard: Arc<Heard>,
}

impl Bench {
    fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap())
    }

    fn open(dir: tempfile::TempDir) -> Self {
        Self::open_with(dir, IgnorePatterns::default())
    }

    fn open_with(dir: tempfile::TempDir, ignore: IgnorePatterns) -> Self {
        let tasks = Tasks::new();
        let options =
            StoreOptions { dir: dir.path().join("data"), cache_limit: None, min_free: Some(0) };
        let store = Store::open(options, &tasks).unwrap();
        let heard = Arc::new(Heard::default());
        let options = PublishOptions { import: ImportParams::DEFAULT, read_only: false, ignore };
        let uploads = Uploads::open(options, store.clone(), heard.clone(), &tasks).unwrap();
        Self { dir, store, uploads, tasks, heard }
    }

    /// What a kill leaves: only what was committed.
    async fn kill(self) -> tempfile::TempDir {
        let Self { dir, store, uploads, tasks, .. } = self;
        let left = tasks.shutdown(Duration::from_secs(20)).await;
        assert!(left.is_empty(), "{left:?}");
        drop(uploads);
        store.close().unwrap();
        dir
    }

    async fn restart(self) -> Self {
        Self::open(self.kill().await)
    }

    fn create(&self, name: &str) -> (UploadIno, UploadHandle) {
        self.create_in(UploadIno::ROOT, name)
    }

    fn create_in(&self, dir: UploadIno, name: &str) -> (UploadIno, UploadHandle) {
        let made = self.uploads.create(dir, OsStr::new(name), 0o644, 1, 2, true, WRITE).unwrap();
        (made.0.ino, made.1)
    }

    fn put_in(&self, dir: UploadIno, name: &str, data: &[u8]) -> UploadIno {
        let (ino, handle) = self.create_in(dir, name);
        self.write(handle, 0, data);
        self.uploads.release(handle);
        ino
    }

    fn put(&self, name: &str, data: &[u8]) -> UploadIno {
        self.put_in(UploadIno::ROOT, name, data)
    }

    fn write(&self, handle: UploadHandle, at: u64, data: &[u8]) {
        for (index, part) in data.chunks(1 << 20).enumerate() {
            let at = at + (index as u64) * (1 << 20);
            assert_eq!(self.uploads.write(handle, at, part).unwrap(), part.len());
        }
    }

    fn read(&self, ino: UploadIno) -> Vec<u8> {
        let handle = self.uploads.open_file(ino, READ).unwrap();
        let data = self.uploads.read(handle, 0, 64 << 20).unwrap();
        self.uploads.release(handle);
        data.into()
    }

    fn mkdir(&self, parent: UploadIno, name: &str) -> UploadIno {
        self.uploads.mkdir(parent, OsStr::new(name), 0o755, 1, 2).unwrap().ino
    }

    fn lookup(&self, name: &str) -> Result<UploadAttr> {
        self.uploads.lookup(UploadIno::ROOT, OsStr::new(name))
    }

    fn rename(&self, from: &str, to: &str) {
        let (from, to) = (OsStr::new(from), OsStr::new(to));
        let root = UploadIno::ROOT;
        self.uploads.rename(root, from, root, to, RenameMode::Replace).unwrap();
    }

    fn unlink(&self, name: &str) {
        self.uploads.unlink(UploadIno::ROOT, OsStr::new(name)).unwrap();
    }

    /// Files in `objects/`.
    fn objects(&self) -> usize {
        fn count(dir: &Path) -> usize {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
        }
        count(&self.dir.path().join("data/objects"))
    }
}

/// Bytes that do not repeat within a leaf.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// The id of a file, hashed in one go.
fn id_of(data: &[u8]) -> ContentId {
    let mut builder = FileBuilder::new(ImportParams::DEFAULT);
    for leaf in data.chunks(LEAF) {
        builder.push(ContentId::raw(sha2_256(leaf)), leaf.len() as u64);
    }
    builder.finish(Metadata::default()).root
}
