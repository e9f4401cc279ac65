//! From an overlay to one whole file: what was written is merged into the published version where that is the
//! smaller part and nobody has it open, else the rest of the published version is copied beside it.
//!
//! Order of a merge, so that a crash at any moment leaves a file that reads right: the working file and its row with
//! the filled leaves are durable; the store keeps the old leaves at their places; they are copied into the object below.
//! Until the commit that seals it, filled leaves are read from the overlay and the others from below, where they are
//! untouched. Peers are served the old version all the time, and the new one from that commit on.

use std::{fs::File, sync::Arc};

use super::{
    Inner, PublishError,
    file::{FileCell, Phase},
    handle::io_error,
    hash::{self, Known},
    overlay::Overlay,
    seal::{is_hashing, stamp_of},
};
use crate::store::{ObjectId, WorkingFile};

type Result<T> = std::result::Result<T, PublishError>;

/// Leaves that are copied under one hold of the file's lock.
const STEP: u64 = 4;

/// An overlay made whole.
#[derive(Debug)]
pub(super) struct Whole {
    /// The object below, where the overlay was merged into it.
    pub(super) into: Option<Arc<WorkingFile>>,
    /// Leaf ids of the version below. None: they are not known, everything is hashed.
    pub(super) known: Option<Arc<Known>>,
}

impl Inner {
    /// None: the file was opened or removed meanwhile.
    pub(super) async fn make_whole(
        self: &Arc<Self>,
        cell: &Arc<FileCell>,
        generation: u64,
        size: u64,
    ) -> Result<Option<Whole>> {
        let (inner, cell) = (self.clone(), cell.clone());
        let whole = self.tasks.blocking("fill", move || {
            let Some(overlay) = inner.overlay(&cell, generation)? else { return Ok(None) };
            let known = inner.known(&cell, overlay)?;
            let into = inner.merge(&cell, generation, size)?;
            let done = match &into {
                Some(into) => inner.merge_into(&cell, generation, size, into)?,
                None => inner.fill(&cell, generation, size)?,
            };
            Ok(done.then_some(Whole { into, known }))
        });
        whole.await.map_err(|_| PublishError::Closed)?
    }

    /// The overlay as it is now, with the object below open.
    fn overlay(&self, cell: &FileCell, generation: u64) -> Result<Option<Overlay>> {
        let mut state = cell.state();
        if !is_hashing(&state.progress, generation) {
            return Ok(None);
        }
        let Some(overlay) = state.work.as_mut().and_then(|work| work.overlay.as_mut()) else {
            return Ok(None);
        };
        if !overlay.has_base() {
            let (base, merging) = self.open_below(cell, overlay.base_object())?;
            overlay.set_base(base, merging);
        }
        Ok(Some(overlay.clone()))
    }

    /// The file below an overlay, and whether it is a working file.
    fn open_below(&self, cell: &FileCell, object: ObjectId) -> Result<(Arc<File>, bool)> {
        if let Some(below) = self.store.reopen_working(object)? {
            return Ok((Arc::new(below.open(false)?), true));
        }
        let sealed = self.names().tree.sealed(cell.ino).cloned().ok_or(PublishError::NotFound)?;
        Ok((self.sealed_file(&sealed)?, false))
    }

    fn known(&self, cell: &FileCell, mut overlay: Overlay) -> Result<Option<Arc<Known>>> {
        let sealed = self.names().tree.sealed(cell.ino).cloned();
        let Some(old) = sealed.filter(|old| old.object == overlay.base_object()) else {
            return Ok(None);
        };
        // Only its sets are asked; an open descriptor would be in the way of the lease.
        overlay.close_base();
        let leaf = self.options.import.chunk_len as u64;
        let leaves = hash::leaves_of(&self.store, &old.root, old.size, leaf)?;
        Ok(leaves.map(|leaves| Arc::new(Known { overlay, leaves })))
    }

    /// Begins to merge into the object below. None: the rest of it has to be copied.
    fn merge(
        &self,
        cell: &FileCell,
        generation: u64,
        size: u64,
    ) -> Result<Option<Arc<WorkingFile>>> {
        let mut state = cell.state();
        if !is_hashing(&state.progress, generation) {
            return Ok(None);
        }
        let idle = state.progress.handles() == 0;
        let Some(overlay) = state.work.as_mut().and_then(|work| work.overlay.as_mut()) else {
            return Ok(None);
        };
        let object = overlay.base_object();
        let merging = overlay.is_merging();
        if !merging && (!idle || !overlay.is_sparse() || size < overlay.row().base_len) {
            return Ok(None);
        }
        drop(state);
        // What was written must outlive a crash before the version below it is touched.
        self.names().tree.mark(cell.ino);
        self.flush()?;
        let mut state = cell.state();
        let idle = state.progress.handles() == 0;
        if !merging && !idle || state.orphan || !is_hashing(&state.progress, generation) {
            return Ok(None);
        }
        let Some(overlay) = state.work.as_mut().and_then(|work| work.overlay.as_mut()) else {
            return Ok(None);
        };
        let overwritten = overlay.overwritten();
        overlay.close_base();
        // Readers and writers wait while nothing lies below.
        state.progress.phase = Phase::Committing;
        drop(state);
        let begun = self.store.begin_merge(object, &overwritten);
        let below = self.open_below(cell, object);
        let mut state = cell.state();
        state.progress.phase = Phase::Hashing;
        if let (Some(overlay), Ok((base, merging))) =
            (state.work.as_mut().and_then(|work| work.overlay.as_mut()), &below)
        {
            overlay.set_base(base.clone(), *merging);
        }
        drop(state);
        cell.wake();
        below?;
        Ok(begun?.map(Arc::new))
    }

    /// Copies the filled leaves into the object below; false when the file was opened or removed meanwhile.
    fn merge_into(
        &self,
        cell: &FileCell,
        generation: u64,
        size: u64,
        into: &WorkingFile,
    ) -> Result<bool> {
        let writer = into.open(true)?;
        writer.set_len(size).map_err(io_error("ftruncate"))?;
        let mut from = 0;
        loop {
            let mut state = cell.state();
            if !is_hashing(&state.progress, generation) {
                return Ok(false);
            }
            let Some(work) = &mut state.work else { return Ok(false) };
            let reader = work.reader()?;
            let Some(overlay) = &work.overlay else { return Ok(false) };
            let next = overlay.merge_some(&reader, &writer, from, STEP);
            match next.map_err(io_error("copy into the old version"))? {
                Some(next) => from = next,
                None => return Ok(true),
            }
        }
    }

    /// Copies what the overlay left in the version below; false when the file was opened or removed meanwhile.
    fn fill(&self, cell: &FileCell, generation: u64, size: u64) -> Result<bool> {
        loop {
            // In steps: a writer that opens meanwhile gets the lock between two, and ends this.
            let mut state = cell.state();
            if !is_hashing(&state.progress, generation) {
                return Ok(false);
            }
            let Some(work) = &mut state.work else { return Ok(false) };
            let writer = work.writer()?;
            let Some(overlay) = &mut work.overlay else { return Ok(true) };
            let more = overlay.fill_some(&writer, STEP);
            if more.map_err(io_error("copy of the old version"))? {
                continue;
            }
            if let Some(old) = &mut work.closed {
                *old = stamp_of(&writer)?;
                old.size = size;
            }
            work.drop_writer();
            return Ok(true);
        }
    }
}
