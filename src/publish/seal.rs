//! From a closed working file to a version that can be committed.
//!
//! Nobody may be able to write while it is hashed: the lease probe finds writers and writable mappings, opening for
//! writing raises the generation, and what was written all the same shows in the stamp.

use std::{fs::File, sync::Arc, time::Duration};

use super::{
    Inner, PublishError,
    file::{FileCell, Linger, Work, stamp, time_of},
    fill::Whole,
    hash::{self, Hashed, Known},
    layer,
    row::OverlayRow,
};
use crate::store::{FileStamp, ObjectId, WorkingFile};

/// How long a file waits whose mapping somebody still writes.
const HELD_RETRY: Duration = Duration::from_secs(1);
/// How long a file waits that could not be read or committed, for a full or failing disk for one.
const FAILED_RETRY: Duration = Duration::from_secs(5);
/// Files of this size on are synced beside hashing, and hashed without waiting whether they are replaced at once.
pub(super) const LARGE: u64 = 1 << 20;

/// A version that was hashed and waits for its commit.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) cell: Arc<FileCell>,
    pub(super) generation: u64,
    pub(super) object: ObjectId,
    /// The layer that was merged into it.
    pub(super) spare: Option<ObjectId>,
    /// What it has and where the rest lies, when the object is a layer.
    pub(super) below: Option<OverlayRow>,
    pub(super) stamp: FileStamp,
    pub(super) hashed: Hashed,
}

/// What came of an attempt.
enum Outcome {
    Hashed(Box<Finished>),
    /// Nothing was written since the published version.
    Unchanged,
    /// Somebody has it mapped for writing.
    Held,
    /// It was written, opened or removed meanwhile.
    Void,
}

impl Inner {
    /// Hashes one closed file and hands it to the flush.
    pub(super) async fn seal(self: &Arc<Self>, cell: Arc<FileCell>) {
        if self.names().tree.is_ignored(cell.ino) {
            return self.keep_private(cell).await;
        }
        let Some((generation, file)) = begin(&cell) else { return };
        match self.try_seal(&cell, generation, file).await {
            Ok(Outcome::Hashed(finished)) => {
                self.names().finished.push(*finished);
                self.flusher.soon();
            }
            Ok(Outcome::Unchanged) => self.drop_work(&cell, generation),
            Ok(Outcome::Held | Outcome::Void) => self.seal_later(&cell, generation, HELD_RETRY),
            Err(error) => {
                self.warn(&error, "a file could not be hashed; it is tried again");
                self.seal_later(&cell, generation, FAILED_RETRY);
            }
        }
    }

    /// Back to the queue, unless the file went another way meanwhile.
    pub(super) fn seal_later(&self, cell: &FileCell, generation: u64, delay: Duration) {
        let mut state = cell.state();
        if state.progress.retry(generation) {
            if state.work.is_some() {
                state.held = true;
                self.queue.push(cell.ino, delay);
            } else {
                // A layer that was not merged stays published as it is.
                state.progress.settle();
                self.layers.push(cell.ino, delay);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    async fn try_seal(
        self: &Arc<Self>,
        cell: &Arc<FileCell>,
        generation: u64,
        work: Arc<WorkingFile>,
    ) -> Result<Outcome, PublishError> {
        let Some((file, before)) = self.open_quiet(&work).await? else {
            return Ok(Outcome::Held);
        };
        let (known, below) = match self.prepare(cell, generation, before)? {
            Prepared::Unchanged => return Ok(Outcome::Unchanged),
            Prepared::Void => return Ok(Outcome::Void),
            Prepared::Whole => (None, None),
            Prepared::Overlay => match self.make_whole(cell, generation, before.size).await? {
                None => return Ok(Outcome::Void),
                Some(Whole { known, below }) => (known, below),
            },
        };
        let hashed = self.hash_still(cell, generation, &work, file, known).await?;
        let Some((stamp, hashed)) = hashed else { return Ok(Outcome::Void) };
        let (cell, object) = (cell.clone(), work.id());
        let finished = Finished { cell, generation, object, spare: None, below, stamp, hashed };
        Ok(Outcome::Hashed(Box::new(finished)))
    }

    /// Hashes a file, which is synced meanwhile; none when it was written, opened or removed.
    pub(super) async fn hash_still(
        &self,
        cell: &Arc<FileCell>,
        generation: u64,
        work: &Arc<WorkingFile>,
        file: Arc<File>,
        known: Option<Arc<Known>>,
    ) -> Result<Option<(FileStamp, Hashed)>, PublishError> {
        let before = stamp_of(&file)?;
        let cancelled = {
            let cell = cell.clone();
            move || !is_current(&cell, generation)
        };
        let sync = self.sync_large(work.id(), file.clone(), before.size);
        let hashing = hash::hash(
            &self.tasks,
            file.clone(),
            before.size,
            self.options.import,
            known,
            Arc::new(cancelled),
        );
        let (synced, hashed) = tokio::join!(sync, hashing);
        synced?;
        let Some(hashed) = hashed? else { return Ok(None) };
        let probe = work.clone();
        let after = self.tasks.blocking("seal", move || -> Result<_, PublishError> {
            Ok((stamp_of(&file)?, is_held(&probe)))
        });
        let (after, held) = after.await.map_err(|_| PublishError::Closed)??;
        let still = !held && after == before && is_current(cell, generation);
        Ok(still.then_some((after, hashed)))
    }

    /// The file for hashing and its stamp; none when somebody can write it.
    pub(super) async fn open_quiet(
        &self,
        work: &Arc<WorkingFile>,
    ) -> Result<Option<(Arc<File>, FileStamp)>, PublishError> {
        let (work, store) = (work.clone(), self.store.clone());
        let opened = self.tasks.blocking("seal", move || {
            if is_held(&work) {
                return Ok(None);
            }
            store.rewrite_unsynced(work.id())?;
            let file = work.open(false)?;
            let stamp = stamp_of(&file)?;
            Ok(Some((Arc::new(file), stamp)))
        });
        opened.await.map_err(|_| PublishError::Closed)?
    }

    /// Writes a large file's data out while it is hashed; small ones are synced together by the commit.
    async fn sync_large(
        &self,
        id: ObjectId,
        file: Arc<File>,
        size: u64,
    ) -> Result<(), PublishError> {
        if size < LARGE {
            return Ok(());
        }
        let store = self.store.clone();
        let synced = self.tasks.blocking("sync", move || store.sync_working(id, &file));
        Ok(synced.await.map_err(|_| PublishError::Closed)??)
    }

    /// Looks whether there is anything to hash, and takes over the times of what was written by a mapping.
    fn prepare(
        &self,
        cell: &FileCell,
        generation: u64,
        now: FileStamp,
    ) -> Result<Prepared, PublishError> {
        let mut state = cell.state();
        if !state.progress.is_underway(generation) {
            return Ok(Prepared::Void);
        }
        state.held = false;
        let Some(work) = &mut state.work else { return Ok(Prepared::Void) };
        if work.clone_stamp == Some(now) {
            return Ok(Prepared::Unchanged);
        }
        let overlay = match &work.overlay {
            Some(overlay) if overlay.is_unchanged(now.size) => return Ok(Prepared::Unchanged),
            Some(_) => Prepared::Overlay,
            None => Prepared::Whole,
        };
        let written = work.closed.is_some_and(|closed| closed.mtime != now.mtime);
        work.closed = Some(now);
        if written {
            let mtime = Some(time_of(now.mtime));
            // The file may be gone by now; then nobody asks for its times.
            let _ = self.names().tree.set_times(cell.ino, None, mtime, super::now());
        }
        Ok(overlay)
    }

    /// Nothing was written: the published version stays, the working file goes.
    fn drop_work(&self, cell: &FileCell, generation: u64) {
        let mut state = cell.state();
        if !state.progress.is_underway(generation) {
            return;
        }
        let Some(mut work) = state.work.take() else { return };
        state.progress.settle();
        state.keep_reading(&mut work);
        if state.layer.is_some() {
            self.layers.push(cell.ino, layer::REST);
        }
        let mut names = self.names();
        names.released.push(work.id());
        names.tree.mark(cell.ino);
        drop(names);
        drop(state);
        self.flusher.later();
        self.changed.notify_waiters();
    }
}

enum Prepared {
    Unchanged,
    Void,
    Whole,
    Overlay,
}

impl super::file::FileState {
    /// Handles that are open go on with the file that they have: the kernel may hold a passthrough id of it.
    pub(super) fn keep_reading(&mut self, work: &mut Work) {
        // An overlay is read through the daemon, which asks again each time, and may not be whole.
        if self.progress.handles() > 0
            && work.overlay.is_none()
            && let Ok(file) = work.reader()
        {
            self.linger = Some(Linger { file, object: work.id() });
        }
    }
}

fn begin(cell: &FileCell) -> Option<(u64, Arc<WorkingFile>)> {
    let mut state = cell.state();
    if state.dead || state.orphan {
        return None;
    }
    let file = state.work.as_ref()?.file.clone();
    Some((state.progress.begin_hash()?, file))
}

fn is_current(cell: &FileCell, generation: u64) -> bool {
    let state = cell.state();
    !state.dead && !state.orphan && state.progress.is_underway(generation)
}

/// Whether somebody can still write the file. Filesystems without leases cannot tell; there the stamp alone guards.
fn is_held(file: &WorkingFile) -> bool {
    file.has_writer().unwrap_or_else(|error| {
        tracing::debug!(%error, "no lease");
        false
    })
}

pub(super) fn stamp_of(file: &File) -> Result<FileStamp, PublishError> {
    stamp(file).map_err(|source| PublishError::Io { what: "fstat", source })
}
