//! One file: who has it open, and how far its newest version is on the way to being published.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    PublishError, UploadIno,
    overlay::Overlay,
    row::{Seen, WorkRow},
};
use crate::store::{FileStamp, ObjectId, WorkingFile, WorkingWriter};

/// Where the newest version of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is published; there is no working file.
    Idle,
    /// It is published as a layer, which is being merged into the version below it.
    Merging,
    /// Somebody can write it.
    Writing,
    /// It was being written when the daemon was killed. Waits for a writer to open and close it.
    Interrupted,
    /// Nobody can write it by a handle; it waits to be hashed.
    Closed,
    /// It is being hashed.
    Hashing,
    /// It was hashed and the commit is under way. Writers wait for its end.
    Committing,
}

/// The pure part of a file's state.
///
/// Invariant: a writer exists only in [`Phase::Writing`], and a working file in none of [`Phase::Idle`] and
/// [`Phase::Merging`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) phase: Phase,
    pub(super) readers: u32,
    pub(super) writers: u32,
    /// Raised whenever the content may change from now on: what was hashed under another number is void.
    pub(super) generation: u64,
}

impl Progress {
    pub(super) fn new(phase: Phase) -> Self {
        Self { phase, readers: 0, writers: 0, generation: 0 }
    }

    pub(super) fn handles(&self) -> u32 {
        self.readers + self.writers
    }

    /// A writer opens the file, whose working file is there.
    pub(super) fn open_writer(&mut self) {
        self.writers += 1;
        self.generation += 1;
        self.phase = Phase::Writing;
    }

    /// A handle is closed; whether the file now waits to be hashed.
    pub(super) fn close(&mut self, write: bool) -> bool {
        if !write {
            self.readers = self.readers.saturating_sub(1);
            return false;
        }
        self.writers = self.writers.saturating_sub(1);
        self.writers == 0 && self.phase == Phase::Writing && {
            self.phase = Phase::Closed;
            true
        }
    }

    /// The content was changed without a handle (truncate by path); whether the file now waits to be hashed.
    pub(super) fn changed(&mut self) -> bool {
        self.generation += 1;
        if self.writers == 0 {
            self.phase = Phase::Closed;
        }
        self.writers == 0
    }

    /// Hashing begins; gives the generation that is hashed.
    pub(super) fn begin_hash(&mut self) -> Option<u64> {
        (self.phase == Phase::Closed).then(|| {
            self.phase = Phase::Hashing;
            self.generation
        })
    }

    /// Merging a layer begins; gives the generation that is merged.
    pub(super) fn begin_merge(&mut self) -> Option<u64> {
        (self.phase == Phase::Idle && self.handles() == 0).then(|| {
            self.phase = Phase::Merging;
            self.generation
        })
    }

    /// The object below a layer was looked at, which readers and writers had to wait for.
    pub(super) fn resume_merge(&mut self) {
        self.phase = Phase::Merging;
    }

    /// Hashing, merging or the commit came to nothing; whether it has to be tried again.
    pub(super) fn retry(&mut self, generation: u64) -> bool {
        let same = self.generation == generation
            && matches!(self.phase, Phase::Hashing | Phase::Merging | Phase::Committing);
        if same {
            self.phase = Phase::Closed;
        }
        same
    }

    /// What was hashed is to be committed; false when it is void.
    pub(super) fn begin_commit(&mut self, generation: u64) -> bool {
        let same = self.is_underway(generation);
        if same {
            self.phase = Phase::Committing;
        }
        same
    }

    /// Whether what is being hashed or merged is still the newest content.
    pub(super) fn is_underway(&self, generation: u64) -> bool {
        self.generation == generation && matches!(self.phase, Phase::Hashing | Phase::Merging)
    }

    /// There is no working file any more.
    pub(super) fn settle(&mut self) {
        self.phase = Phase::Idle;
    }
}

/// A version that is not published yet.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) file: Arc<WorkingFile>,
    /// Opened O_RDONLY when somebody asks; dropped with the last handle, so that closed files cost no descriptor.
    read: Option<Arc<File>>,
    /// Opened when somebody writes through the daemon; dropped with the last writer, because the lease that
    /// tells whether somebody can still write would find our own descriptor.
    write: Option<Arc<WorkingWriter>>,
    pub(super) overlay: Option<Overlay>,
    /// Stamp of a clone that nobody has written yet.
    pub(super) clone_stamp: Option<FileStamp>,
    /// Stamp when the last writer closed it.
    pub(super) closed: Option<FileStamp>,
    /// It is a clone of the published version, and not on disk yet: no row may name it before.
    pub(super) fresh_clone: bool,
    /// A row names it, so that the next start finds it.
    pub(super) has_row: bool,
}

impl Work {
    pub(super) fn new(file: WorkingFile) -> Self {
        Self {
            file: Arc::new(file),
            read: None,
            write: None,
            overlay: None,
            clone_stamp: None,
            closed: None,
            fresh_clone: false,
            has_row: false,
        }
    }

    pub(super) fn id(&self) -> ObjectId {
        self.file.id()
    }

    pub(super) fn reader(&mut self) -> Result<Arc<File>, PublishError> {
        if let Some(file) = &self.read {
            return Ok(file.clone());
        }
        let file = Arc::new(self.file.open(false)?);
        self.read = Some(file.clone());
        Ok(file)
    }

    pub(super) fn writer(&mut self) -> Result<Arc<WorkingWriter>, PublishError> {
        if let Some(writer) = &self.write {
            return Ok(writer.clone());
        }
        let writer = Arc::new(self.file.writer()?);
        self.write = Some(writer.clone());
        Ok(writer)
    }

    pub(super) fn drop_writer(&mut self) {
        self.write = None;
    }

    /// Closes the descriptors that only handles need.
    pub(super) fn rest(&mut self) {
        self.read = None;
        self.write = None;
    }

    pub(super) fn stamp(&mut self) -> Result<FileStamp, PublishError> {
        stamp(&*self.reader()?).map_err(|source| PublishError::Io { what: "fstat", source })
    }

    pub(super) fn row(&mut self, open: bool) -> Result<WorkRow, PublishError> {
        let stamp = self.stamp()?;
        self.has_row = true;
        let overlay = self.overlay.as_ref().map(Overlay::row);
        let seen = Some(Seen { size: stamp.size, mtime: stamp.mtime });
        Ok(WorkRow { object: self.id(), open, seen, overlay })
    }
}

/// What handles go on reading until the last of them is closed, although another file holds the content by now.
#[derive(Clone, Debug)]
pub(super) struct Linger {
    pub(super) file: Arc<File>,
    pub(super) object: ObjectId,
}

/// What the lock of a file guards.
#[derive(Debug)]
pub(super) struct FileState {
    pub(super) progress: Progress,
    pub(super) work: Option<Work>,
    /// The published version, where that is a layer: its file is an object, and never written.
    pub(super) layer: Option<Work>,
    pub(super) linger: Option<Linger>,
    /// It has no name any more and goes with its last handle.
    pub(super) orphan: bool,
    /// Closed, but it cannot be hashed now: somebody still has it mapped for writing, or the disk fails. It is tried
    /// again by the clock only.
    pub(super) held: bool,
    /// It is gone; whoever still has the cell finds nothing in it.
    pub(super) dead: bool,
    /// The log has told that it is ignored.
    pub(super) told_ignored: bool,
}

impl FileState {
    /// What is read in place of a whole object: the working file, else the layer.
    pub(super) fn shown(&mut self) -> Option<&mut Work> {
        self.work.as_mut().or(self.layer.as_mut())
    }

    /// Closes the descriptors that only handles need.
    pub(super) fn rest(&mut self) {
        [&mut self.work, &mut self.layer].into_iter().flatten().for_each(Work::rest);
    }
}

/// A file with its locks.
///
/// Lock order: flush lock, `opening`, `state`, tree. The tree lock is never held when another one is taken.
#[derive(Debug)]
pub(super) struct FileCell {
    pub(super) ino: UploadIno,
    /// Held while a working file is made for a published file, which may copy: only other writers wait for that.
    pub(super) opening: Mutex<()>,
    state: Mutex<FileState>,
    /// The end of [`Phase::Committing`].
    committed: Condvar,
}

impl FileCell {
    pub(super) fn new(ino: UploadIno, phase: Phase, work: Option<Work>) -> Self {
        let progress = Progress::new(phase);
        let state = FileState {
            progress,
            work,
            layer: None,
            linger: None,
            orphan: false,
            held: false,
            dead: false,
            told_ignored: false,
        };
        Self { ino, opening: Mutex::new(()), state: Mutex::new(state), committed: Condvar::new() }
    }

    /// Gives it the layer that its published version is.
    pub(super) fn with_layer(mut self, layer: Option<Work>) -> Self {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).layer = layer;
        self
    }

    /// Counts the handle that the file is made with.
    pub(super) fn with_handle(mut self, write: bool) -> Self {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if write {
            state.progress.open_writer();
        } else {
            state.progress.readers += 1;
        }
        self
    }

    pub(super) fn state(&self) -> MutexGuard<'_, FileState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state when no commit of this file is under way; that takes some milliseconds.
    pub(super) fn quiet_state(&self) -> MutexGuard<'_, FileState> {
        self.committed
            .wait_while(self.state(), |state| state.progress.phase == Phase::Committing)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those that wait for the end of a commit.
    pub(super) fn wake(&self) {
        self.committed.notify_all();
    }
}

/// The stamp of an open file.
pub(super) fn stamp(file: &File) -> io::Result<FileStamp> {
    let meta = file.metadata()?;
    let nanos = |secs: i64, nanos: i64| i128::from(secs) * 1_000_000_000 + i128::from(nanos);
    Ok(FileStamp {
        mtime: nanos(meta.mtime(), meta.mtime_nsec()),
        ctime: nanos(meta.ctime(), meta.ctime_nsec()),
        size: meta.len(),
    })
}

/// Nanoseconds since the epoch as a time; times that SystemTime cannot hold become the epoch.
pub(super) fn time_of(nanos: i128) -> SystemTime {
    let distance = |nanos: u128| {
        let secs = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
        let rest = u32::try_from(nanos % 1_000_000_000).unwrap_or(0);
        Duration::new(secs, rest)
    };
    let time = if nanos < 0 {
        UNIX_EPOCH.checked_sub(distance(nanos.unsigned_abs()))
    } else {
        UNIX_EPOCH.checked_add(distance(nanos.unsigned_abs()))
    };
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed_only_after_its_last_writer() {
        let mut file = Progress::new(Phase::Idle);
        file.open_writer();
        file.open_writer();
        assert!(!file.close(true));
        assert_eq!(file.begin_hash(), None);
        assert!(file.close(true));
        assert!(file.begin_hash().is_some());
    }

    #[test]
    fn a_writer_that_opens_during_hashing_makes_the_hash_void() {
        let mut file = Progress::new(Phase::Closed);
        let generation = file.begin_hash().unwrap_or_default();
        file.open_writer();
        assert!(!file.begin_commit(generation));
        assert!(!file.retry(generation));
        assert_eq!(file.phase, Phase::Writing);
    }

    #[test]
    fn an_interrupted_file_waits_for_a_writer() {
        let mut file = Progress::new(Phase::Interrupted);
        file.readers = 1;
        assert!(!file.close(false));
        assert_eq!(file.begin_hash(), None);
        file.open_writer();
        assert!(file.close(true));
    }

    #[test]
    fn a_failed_commit_is_tried_again() {
        let mut file = Progress::new(Phase::Closed);
        let generation = file.begin_hash().unwrap_or_default();
        assert!(file.begin_commit(generation));
        assert!(file.retry(generation));
        assert_eq!(file.phase, Phase::Closed);
    }

    #[test]
    fn times_before_the_epoch_are_kept() {
        assert_eq!(time_of(-1), UNIX_EPOCH - Duration::from_nanos(1));
        assert_eq!(time_of(1_500_000_000), UNIX_EPOCH + Duration::from_millis(1500));
    }
}
