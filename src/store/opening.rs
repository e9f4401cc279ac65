//! How the index is opened: for writing, or behind a disk that refuses that.

use std::{
    path::Path,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use redb::{Builder, Database};

use super::{
    StoreError,
    disk::{Disk, IndexFile},
    index::Index,
    reserve::Reserve,
    shadow::ShadowFile,
};

/// Memory for pages of the index: the interior pages of 4 million blocks fit. Half as much again is felt in the memory of
/// the daemon, which is to stay small however much is stored.
const CACHE_BYTES: usize = 16 << 20;
/// How often a disk that fails, or is full, is asked whether the index can be opened for writing again.
const RETRY: Duration = Duration::from_secs(1);

pub(super) enum State {
    Open(Database),
    /// The disk refuses to have it opened for writing: readers see the last good commit, through a shadow.
    Shadowed {
        db: Database,
        reason: StoreError,
        tried: Instant,
    },
    /// A call failed; redb takes no more calls until it is opened again.
    Failed,
    Closed,
}

impl State {
    pub(super) fn database(&self) -> Option<&Database> {
        match self {
            Self::Open(db) | Self::Shadowed { db, .. } => Some(db),
            Self::Failed | Self::Closed => None,
        }
    }
}

impl Index {
    pub(super) fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    pub(super) fn tell(&self, error: &StoreError) {
        self.health.failed(self.dir(), error);
    }

    /// Opens the database again after a failed commit; it then stands at the last good one.
    ///
    /// What is read then comes from the page cache, and may not be on the disk although the kernel will not say so again.
    /// That does no harm: a commit syncs its pages first and the header, which makes them count, after that. Where the first
    /// sync failed the header still names the pages of the commit before; where the second did, the pages are on the disk,
    /// and the header is written anew, and synced, before the commit counts as standing.
    pub(super) fn reopen(&self) -> Result<(), StoreError> {
        if !matches!(*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Failed) {
            return Ok(());
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Failed) {
            *state = match self.database() {
                Ok(db) => State::Open(db),
                Err(reason) if reason.trouble().is_some() => {
                    self.tell(&reason);
                    self.shadowed(reason)?
                }
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    fn database(&self) -> Result<Database, StoreError> {
        let file = IndexFile::open(&self.path, self.disk.clone(), self.reserve.clone());
        let file = file.map_err(|e| StoreError::io("open", &self.path, e))?;
        Ok(Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(file)?)
    }

    fn shadowed(&self, reason: StoreError) -> Result<State, StoreError> {
        // An index that is not there, or cannot be read either, has no other reason.
        let Ok(file) = ShadowFile::open(&self.path) else { return Err(reason) };
        let db = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(file)?;
        Ok(State::Shadowed { db, reason, tried: Instant::now() })
    }

    /// Leaves the shadow if the disk takes writes again; else the reason why it does not.
    pub(super) fn open_for_writing(&self) -> Result<(), StoreError> {
        self.reopen()?;
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let State::Shadowed { reason, tried, .. } = &*state else { return Ok(()) };
        // A read-only disk refuses the very first call; any other one costs reading a part of the index.
        if !reason.is_read_only() && tried.elapsed() < RETRY {
            return Err(reason.again());
        }
        drop(state);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let State::Shadowed { reason, tried, .. } = &mut *state {
            match self.database() {
                Ok(db) => *state = State::Open(db),
                Err(error) => {
                    (*reason, *tried) = (error.again(), Instant::now());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Commits nothing, durably: whether the disk takes writes.
    pub(super) fn probe(&self) -> Result<(), StoreError> {
        self.write(|_| Ok(()))
    }
}

/// Makes the index under another name first: a crash in the middle would leave a file that redb does not know.
pub(super) fn create(
    path: &Path,
    disk: &Arc<dyn Disk>,
    reserve: &Arc<Reserve>,
) -> Result<(), StoreError> {
    let fresh = path.with_extension("new");
    if fresh.exists() {
        disk.unlink(&fresh).map_err(|e| StoreError::io("remove", &fresh, e))?;
    }
    Index::open_existing(&fresh, disk.clone(), reserve.clone(), Arc::default())?.close();
    disk.rename(&fresh, path).map_err(|e| StoreError::io("rename", &fresh, e))
}
