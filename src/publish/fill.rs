//! From an overlay to a version that can be committed: where little was written it is published as a layer over the
//! version below, at the cost of what was written; else the rest of that version is copied beside it.

use std::{fs::File, sync::Arc};

use super::{
    Inner, PublishError,
    file::{FileCell, Work},
    hash::{self, Known},
    overlay::Overlay,
    row::OverlayRow,
    seal::stamp_of,
};
use crate::store::{ObjectId, WorkingWriter};

type Result<T> = std::result::Result<T, PublishError>;

/// Leaves that are copied under one hold of the file's lock.
pub(super) const STEP: u64 = 4;

/// An overlay that can be hashed.
#[derive(Debug)]
pub(super) struct Whole {
    /// Leaf ids of the version below. None: they are not known, everything is hashed.
    pub(super) known: Option<Arc<Known>>,
    /// Where the rest of it lies, for a layer.
    pub(super) below: Option<OverlayRow>,
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
            let known = inner.known(overlay)?.map(Arc::new);
            if known.is_some()
                && let Some(below) = inner.as_layer(&cell, generation, size)?
            {
                return Ok(Some(Whole { known, below: Some(below) }));
            }
            let filled = inner.fill(&cell, generation, size)?;
            Ok(filled.then_some(Whole { known, below: None }))
        });
        whole.await.map_err(|_| PublishError::Closed)?
    }

    /// Copies all that an overlay shows of the version below into the working file, whatever that costs; false when the
    /// file was opened or removed meanwhile.
    pub(super) fn fill_all(&self, cell: &FileCell, generation: u64, size: u64) -> Result<bool> {
        if cell.state().work.as_ref().is_none_or(|work| work.overlay.is_none()) {
            return Ok(true);
        }
        Ok(self.overlay(cell, generation)?.is_some() && self.fill(cell, generation, size)?)
    }

    /// The overlay as it is now, with the object below open.
    fn overlay(&self, cell: &FileCell, generation: u64) -> Result<Option<Overlay>> {
        let mut state = cell.state();
        if !state.progress.is_underway(generation) {
            return Ok(None);
        }
        let Some(overlay) = state.work.as_mut().and_then(|work| work.overlay.as_mut()) else {
            return Ok(None);
        };
        if !overlay.has_base() {
            let (base, merging) = self.open_below(overlay.base_object())?;
            overlay.set_base(base, merging);
        }
        Ok(Some(overlay.clone()))
    }

    /// The file below an overlay, and whether it is a working file.
    pub(super) fn open_below(&self, object: ObjectId) -> Result<(Arc<File>, bool)> {
        match self.store.reopen_working(object)? {
            Some(below) => Ok((Arc::new(below.open(false)?), true)),
            None => Ok((self.object_file(object)?, false)),
        }
    }

    /// The ids of the leaves that an overlay left as they were.
    pub(super) fn known(&self, mut overlay: Overlay) -> Result<Option<Known>> {
        let Some(old) = self.store.object_by_id(overlay.base_object())? else { return Ok(None) };
        // Only its sets are asked; an open descriptor would be in the way of the lease.
        overlay.close_base();
        let leaf = self.options.import.chunk_len as u64;
        let leaves = hash::leaves_of(&self.store, old.root(), old.size(), leaf)?;
        Ok(leaves.map(|leaves| Known { overlay, leaves }))
    }

    /// Makes a sparse overlay hold every leaf that the version below has not. None: the rest has to be copied, or the
    /// file was opened or removed meanwhile.
    fn as_layer(&self, cell: &FileCell, generation: u64, size: u64) -> Result<Option<OverlayRow>> {
        let mut state = cell.state();
        if !state.progress.is_underway(generation) {
            return Ok(None);
        }
        let Some(work) = &mut state.work else { return Ok(None) };
        if !work.overlay.as_ref().is_some_and(Overlay::is_sparse) {
            return Ok(None);
        }
        let writer = work.writer()?;
        let Some(overlay) = &mut work.overlay else { return Ok(None) };
        self.with_room("copy of the old version", || overlay.fill_edge(&writer, size))?;
        let below = overlay.row();
        restamp(work, &writer, size)?;
        Ok(Some(below))
    }

    /// Copies what the overlay left in the version below; false when the file was opened or removed meanwhile.
    fn fill(&self, cell: &FileCell, generation: u64, size: u64) -> Result<bool> {
        loop {
            // In steps: a writer that opens meanwhile gets the lock between two, and ends this.
            let mut state = cell.state();
            if !state.progress.is_underway(generation) {
                return Ok(false);
            }
            let Some(work) = &mut state.work else { return Ok(false) };
            let writer = work.writer()?;
            let Some(overlay) = &mut work.overlay else { return Ok(true) };
            let fill = || overlay.fill_some(&writer, STEP);
            if !self.with_room("copy of the old version", fill)? {
                restamp(work, &writer, size)?;
                return Ok(true);
            }
        }
    }
}

/// What was copied beside the program is no change of the file.
fn restamp(work: &mut Work, writer: &WorkingWriter, size: u64) -> Result<()> {
    if let Some(old) = &mut work.closed {
        *old = stamp_of(writer.file())?;
        old.size = size;
    }
    work.drop_writer();
    Ok(())
}
