//! Working files whose sync failed.
//!
//! The kernel tells of data that it could not write once, and counts the pages as written from then on: the next sync
//! succeeds without them. So nothing is believed of such a file until all its bytes were written once more.
//! (Downloads are simpler: what was not synced counts as absent and is fetched again.)

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};

use super::{Batch, FileStamp, Inner, ObjectId, StoreError, guard, working::next_data};

impl Inner {
    /// A sync that was to cover these files has failed.
    pub(super) fn note_unsynced(&self, ids: impl Iterator<Item = ObjectId>) {
        guard(&self.unsynced).extend(ids);
    }

    /// As [`super::Store::sync_working`].
    pub(super) fn sync_working(&self, id: ObjectId, file: &File) -> Result<(), StoreError> {
        self.disk.sync_data(file).map_err(|e| {
            self.note_unsynced(std::iter::once(id));
            StoreError::io("sync", &self.object_path(id), e)
        })
    }

    pub(super) fn is_unsynced(&self, id: ObjectId) -> bool {
        guard(&self.unsynced).contains(&id)
    }

    /// Nothing becomes content whose file was not written again since its sync failed.
    pub(super) fn refuse_unsynced(&self, batch: &Batch) -> Result<(), StoreError> {
        match batch.seal.iter().find(|seal| self.is_unsynced(seal.object)) {
            Some(seal) => {
                let source = io::Error::other("its sync failed and it was not written again");
                Err(StoreError::io("seal", &self.object_path(seal.object), source))
            }
            None => Ok(()),
        }
    }

    /// Writes all bytes of a working file again if a sync of it failed; whether it did. Its mtime stays, its ctime does
    /// not. Nobody else may write it meanwhile.
    pub(super) fn rewrite_unsynced(&self, id: ObjectId) -> Result<bool, StoreError> {
        if !self.is_unsynced(id) {
            return Ok(false);
        }
        let path = self.object_path(id);
        let rewrite = || -> io::Result<()> {
            let file = File::options().read(true).write(true).open(&path)?;
            let stamp = FileStamp::of(&file)?;
            let mut at = 0;
            while let Some(range) = next_data(&file, at)? {
                let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(usize::MAX)];
                file.read_exact_at(&mut bytes, range.start)?;
                self.disk.write_at(&file, &bytes, range.start)?;
                at = range.end;
            }
            // A length without data behind it is written by a change of it only.
            self.disk.set_len(&file, stamp.size)?;
            Ok(futimens(&file, &modified(stamp.mtime))?)
        };
        rewrite().map_err(|e| StoreError::io("write again", &path, e))?;
        // The pages are dirty now: should they fail once more, the next sync tells.
        guard(&self.unsynced).remove(&id);
        tracing::info!(path = %path.display(), "a file whose sync failed was written again");
        Ok(true)
    }
}

/// mtime as given, in nanoseconds since the epoch; atime stays.
fn modified(nanos: i128) -> Timestamps {
    const SECOND: i128 = 1_000_000_000;
    let secs = i64::try_from(nanos.div_euclid(SECOND)).unwrap_or(0);
    let rest = i64::try_from(nanos.rem_euclid(SECOND)).unwrap_or(0);
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: secs, tv_nsec: rest },
    }
}
