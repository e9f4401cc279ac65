//! Files without a name: what they hold is gone with the process, whatever ends it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use super::CarFailure;
use crate::{node::Node, store::Store};

/// Tells the files of one process apart for the moment in which they have names.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A new file in `dir` that has no name any more.
pub(super) fn nameless(dir: &Path) -> io::Result<File> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!(".import-{}-{number}", std::process::id()));
    // A kill between the two calls can leave an empty one, which is as good as new.
    let _ = fs::remove_file(&path);
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// An archive that comes in pieces, on its way to a file that can be read twice.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    dir: PathBuf,
    len: u64,
    node: Node,
}

impl Node {
    /// An empty spool in the data folder.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn spool(&self) -> Result<Spool, CarFailure> {
        let dir = self.store().dir().to_owned();
        let file = nameless(&dir).map_err(|source| CarFailure::Io { path: dir.clone(), source })?;
        Ok(Spool { file: Arc::new(file), dir, len: 0, node: self.clone() })
    }
}

impl Spool {
    /// Writes what came next.
    ///
    /// # Errors
    /// When the disk is full even after eviction, or fails.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), CarFailure> {
        let (file, at, store) = (self.file.clone(), self.len, self.node.store().clone());
        self.len += bytes.len() as u64;
        let write = move || write_at(&file, &bytes, at, &store);
        let written = self.node.tasks().blocking("spool", write).await;
        let written = written.map_err(|_| CarFailure::BrokenOff)?;
        written.map_err(|source| CarFailure::Io { path: self.dir.clone(), source })
    }

    pub(super) fn into_file(self) -> (Arc<File>, PathBuf) {
        (self.file, self.dir)
    }
}

fn write_at(file: &File, bytes: &[u8], at: u64, store: &Store) -> io::Result<()> {
    store.admit(bytes.len() as u64).map_err(io::Error::from)?;
    match file.write_all_at(bytes, at) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            // The first error tells more than why there is no room.
            if !store.make_room().unwrap_or(false) {
                return Err(error);
            }
            file.write_all_at(bytes, at)
        }
        written => written,
    }
}
