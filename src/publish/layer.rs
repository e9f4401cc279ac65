//! Layers: published versions whose object holds only the leaves that differ from the version below them, which the
//! inode owns, too, and so keeps whole. An append costs what was appended, whoever reads the old version meanwhile.
//!
//! When nobody uses the version below any more, the layer is merged into it; where it stays for others (a pin, another
//! file) the layer is made whole beside it. Order of a merge, so that a crash at any moment leaves a file that reads right:
//! the layer and its row are durable; the store keeps the old leaves at their places; the layer's are copied into the
//! object below. Until the commit that seals it, the layer's leaves are read from the layer and the others from below,
//! where they are untouched. Peers are served both versions all the time.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use super::{
    Inner, PublishError,
    file::{FileCell, Work},
    fill::STEP,
    handle::io_error,
    hash::{self, Known},
    overlay::Overlay,
    row::{OverlayRow, Sealed, Seen},
    seal::Finished,
};
use crate::{
    content::{ByteRange, Placement},
    store::{Mergeable, ObjectId, StoreError, WorkingFile},
};

type Result<T> = std::result::Result<T, PublishError>;

/// How long a layer rests before it is merged: a log that is written every second is merged when that ends.
pub(super) const REST: Duration = Duration::from_secs(5);
/// How long to wait when somebody still uses the version below. To ask costs a lease; a walk over the pins, too, where
/// it would be granted.
const RETRY: Duration = Duration::from_secs(30);

/// A layer that is being merged.
struct Merge {
    generation: u64,
    layer: ObjectId,
    into: Arc<WorkingFile>,
    size: u64,
    known: Arc<Known>,
}

/// Whether the object below a layer can be written.
enum Below {
    Taken(WorkingFile),
    /// Somebody reads it.
    Used,
    /// It stays as it is, for others.
    Shared,
}

impl Inner {
    /// Merges or completes the layers that are due, one at a time, until the end of the daemon.
    pub(super) async fn run_layers(self: Arc<Self>) {
        let cancelled = self.tasks.cancelled();
        tokio::pin!(cancelled);
        loop {
            let settle = async {
                let ino = self.layers.due().await;
                let cell = self.names().cells.get(&ino).cloned();
                if let Some(cell) = cell {
                    self.settle_layer(cell).await;
                }
            };
            // What is under way then goes on at the next start.
            tokio::select! {
                () = &mut cancelled => return,
                () = settle => {}
            }
        }
    }

    /// Makes a published file one whole object, if that can be now.
    async fn settle_layer(self: &Arc<Self>, cell: Arc<FileCell>) {
        let generation = {
            let mut state = cell.state();
            if state.layer.is_none() || state.work.is_some() || state.orphan || state.dead {
                return;
            }
            state.progress.begin_merge()
        };
        let Some(generation) = generation else {
            self.layers.push(cell.ino, RETRY);
            return;
        };
        let done = match self.begin(&cell, generation).await {
            Ok(ControlFlow::Continue(merge)) => self.finish_merge(&cell, merge).await,
            Ok(ControlFlow::Break(())) => Ok(None),
            Err(error) => Err(error),
        };
        match done {
            Ok(Some(finished)) => {
                self.names().finished.push(finished);
                self.flusher.soon();
            }
            Ok(None) => self.seal_later(&cell, generation, RETRY),
            Err(error) => {
                self.warn(
                    &error,
                    "a new version could not be merged into the old one; it is tried again",
                );
                self.seal_later(&cell, generation, RETRY);
            }
        }
    }

    /// Copies the layer into the object below. Break: that object stays as it is.
    async fn begin(
        self: &Arc<Self>,
        cell: &Arc<FileCell>,
        generation: u64,
    ) -> Result<ControlFlow<(), Merge>> {
        let (inner, cell) = (self.clone(), cell.clone());
        let begun = self.tasks.blocking("merge", move || {
            let sealed = inner.names().tree.sealed(cell.ino).cloned();
            let Some(sealed) = sealed.filter(|sealed| sealed.below.is_some()) else {
                return Ok(ControlFlow::Break(()));
            };
            if inner.is_whole(&sealed)? {
                inner.let_go_below(&cell, generation, sealed);
                return Ok(ControlFlow::Break(()));
            }
            match inner.merge_below(&cell, generation)? {
                Below::Taken(into) => inner.copy(&cell, generation, &sealed, into),
                Below::Used => Ok(ControlFlow::Break(())),
                Below::Shared => {
                    if inner.complete(&cell, generation, &sealed)? {
                        inner.let_go_below(&cell, generation, sealed);
                    }
                    Ok(ControlFlow::Break(()))
                }
            }
        });
        begun.await.map_err(|_| PublishError::Closed)?
    }

    /// Whether readers have brought all the rest into the layer, durably.
    fn is_whole(&self, sealed: &Sealed) -> Result<bool> {
        let object = self.store.object_by_id(sealed.object)?;
        if !object.is_some_and(|object| object.is_complete()) {
            return Ok(false);
        }
        self.store.flush()?;
        Ok(true)
    }

    /// The layer has become whole: the version below is not needed for it any more.
    fn let_go_below(&self, cell: &FileCell, generation: u64, mut sealed: Sealed) {
        let mut state = cell.state();
        if state.dead || !state.progress.is_underway(generation) {
            return;
        }
        state.layer = None;
        state.progress.settle();
        let mut names = self.names();
        names.released.extend(sealed.below.take().map(|below| below.base));
        names.tree.set_sealed(cell.ino, sealed);
        names.tree.mark(cell.ino);
        drop(names);
        drop(state);
        self.flusher.later();
    }

    /// Takes the object below out of use, so that the layer can be merged into it.
    fn merge_below(&self, cell: &FileCell, generation: u64) -> Result<Below> {
        let overlay = cell.state().layer.as_ref().and_then(|layer| layer.overlay.clone());
        let Some(mut overlay) = overlay else { return Ok(Below::Used) };
        overlay.close_base();
        let (object, overwritten) = (overlay.base_object(), overlay.overwritten());
        // Asked first, because the pins and the old leaves cost more.
        let ask = || {
            Ok(self.store.is_in_use(object).unwrap_or_else(|error| {
                tracing::debug!(%error, "no lease");
                true
            }))
        };
        let in_use = self.with_base_closed(cell, generation, ask)?;
        if in_use != Some(false) {
            return Ok(Below::Used);
        }
        match self.store.prepare_merge(object, &overwritten)? {
            Mergeable::Now => {}
            Mergeable::Later => return Ok(Below::Used),
            Mergeable::Not => return Ok(Below::Shared),
        }
        let begin = || self.store.begin_merge(object, &overwritten);
        let into = self.with_base_closed(cell, generation, begin)?.flatten();
        Ok(into.map_or(Below::Used, Below::Taken))
    }

    /// Does something while the layer has not the object below open, which the lease would find. Readers and writers of
    /// the file wait meanwhile. None: it was opened for writing or removed.
    fn with_base_closed<T>(
        &self,
        cell: &FileCell,
        generation: u64,
        ask: impl FnOnce() -> std::result::Result<T, StoreError>,
    ) -> Result<Option<T>> {
        let mut layer = {
            let mut state = cell.state();
            if state.layer.is_none() || !state.progress.begin_commit(generation) {
                return Ok(None);
            }
            state.layer.take()
        };
        let overlay = layer.as_mut().and_then(|layer| layer.overlay.as_mut());
        let object = overlay.map(|overlay| {
            overlay.close_base();
            overlay.base_object()
        });
        let answer = ask();
        let below = object.map(|object| self.open_below(object)).transpose();
        if let (Some(overlay), Ok(Some((base, merging)))) =
            (layer.as_mut().and_then(|layer| layer.overlay.as_mut()), &below)
        {
            overlay.set_base(base.clone(), *merging);
        }
        let mut state = cell.state();
        state.layer = layer;
        state.progress.resume_merge();
        drop(state);
        cell.wake();
        below?;
        Ok(Some(answer?))
    }

    fn copy(
        &self,
        cell: &FileCell,
        generation: u64,
        sealed: &Sealed,
        into: WorkingFile,
    ) -> Result<ControlFlow<(), Merge>> {
        let overlay = cell.state().layer.as_ref().and_then(|layer| layer.overlay.clone());
        let Some(overlay) = overlay else { return Ok(ControlFlow::Break(())) };
        let Some(known) = self.known(overlay)? else { return Ok(ControlFlow::Break(())) };
        let writer = into.writer()?;
        writer.set_len(sealed.size).map_err(io_error("ftruncate"))?;
        let mut from = 0;
        loop {
            let mut state = cell.state();
            if !state.progress.is_underway(generation) || self.tasks.token().is_cancelled() {
                return Ok(ControlFlow::Break(()));
            }
            let Some(layer) = &mut state.layer else { return Ok(ControlFlow::Break(())) };
            let reader = layer.reader()?;
            let Some(overlay) = &layer.overlay else { return Ok(ControlFlow::Break(())) };
            let merge = || overlay.merge_some(&reader, &writer, from, STEP);
            match self.with_room("copy into the old version", merge)? {
                Some(next) => from = next,
                None => {
                    layer.rest();
                    break;
                }
            }
        }
        let (into, known) = (Arc::new(into), Arc::new(known));
        Ok(ControlFlow::Continue(Merge {
            generation,
            layer: sealed.object,
            into,
            size: sealed.size,
            known,
        }))
    }

    /// Hashes what was copied: what is committed was read back.
    async fn finish_merge(
        self: &Arc<Self>,
        cell: &Arc<FileCell>,
        merge: Merge,
    ) -> Result<Option<Finished>> {
        let Merge { generation, layer, into, size, known } = merge;
        let Some((file, _)) = self.open_quiet(&into).await? else { return Ok(None) };
        let hashed = self.hash_still(cell, generation, &into, file, Some(known)).await?;
        let Some((stamp, hashed)) = hashed else { return Ok(None) };
        let root = self.names().tree.sealed(cell.ino).map(|sealed| sealed.root);
        if root != Some(hashed.root) || stamp.size != size {
            let what = "the merged version does not read as it was published";
            let source = std::io::Error::from_raw_os_error(nix::libc::EIO);
            return Err(PublishError::Io { what, source });
        }
        let (cell, object) = (cell.clone(), into.id());
        let spare = Some(layer);
        Ok(Some(Finished { cell, generation, object, spare, stamp, hashed, below: None }))
    }

    /// Copies the leaves that the layer has not from wherever the store has them; false when the file was opened or
    /// removed meanwhile, or one is not there.
    fn complete(&self, cell: &FileCell, generation: u64, sealed: &Sealed) -> Result<bool> {
        let Some(object) = self.store.object_by_id(sealed.object)? else { return Ok(false) };
        let leaf = self.options.import.chunk_len as u64;
        let leaves = hash::leaves_of(&self.store, &sealed.root, sealed.size, leaf)?;
        let whole = ByteRange::new(0, sealed.size);
        for (index, id) in (0..).zip(leaves.unwrap_or_default()) {
            let range = ByteRange::at(index * leaf, leaf).intersect(whole);
            if object.has(range) {
                continue;
            }
            let current = cell.state().progress.is_underway(generation);
            if !current || self.tasks.token().is_cancelled() {
                return Ok(false);
            }
            let Some(block) = self.store.block(&id)? else { return Ok(false) };
            let place = Placement { offset: range.start, data: 0..block.data().len() };
            object.place(&block, &[place])?;
        }
        self.is_whole(sealed)
    }

    /// The layer that a published version is, as its row has it.
    pub(super) fn restore_layer(&self, sealed: &Sealed) -> Result<Option<Work>> {
        let Some(below) = &sealed.below else { return Ok(None) };
        let mut layer = Work::new(self.store.file_of(sealed.object));
        let leaf = self.options.import.chunk_len as u64;
        let size = self.size_below(below)?;
        let overlay = Overlay::restore(below.clone(), size, leaf);
        layer.overlay = Some(self.over_base(overlay));
        Ok(Some(layer))
    }

    /// Gives a working file the overlay that its row tells of.
    pub(super) fn recover_overlay(
        &self,
        work: &mut Work,
        row: OverlayRow,
        seen: Option<Seen>,
    ) -> Result<()> {
        let leaf = self.options.import.chunk_len as u64;
        let size = self.size_below(&row)?;
        let recovered = work.writer().and_then(|writer| {
            let failed = io_error("recovery of a file that was being written");
            Overlay::recover(row.clone(), seen, size, leaf, &writer).map_err(failed)
        });
        let overlay = match recovered {
            // There nothing is written after the start either, so what it shows is what the row says.
            Err(error) if is_read_only(&error) => Overlay::restore(row, size, leaf),
            done => done?,
        };
        work.overlay = Some(self.over_base(overlay));
        work.drop_writer();
        Ok(())
    }

    /// Bytes of the object below. Of one that is gone the row tells what it had: its bytes are missing, not zeros.
    fn size_below(&self, row: &OverlayRow) -> Result<u64> {
        let below = self.store.object_by_id(row.base)?;
        Ok(below.map_or(row.base_len, |object| object.size()))
    }

    /// Opens the object below. Where it cannot be read, reading the file says so.
    fn over_base(&self, mut overlay: Overlay) -> Overlay {
        match self.open_below(overlay.base_object()) {
            Ok((base, merging)) => overlay.set_base(base, merging),
            Err(error) => tracing::warn!(%error, "a published version cannot be read"),
        }
        overlay
    }

    /// Makes a working file an overlay with the content of the layer: over the object below that, with copies of the
    /// layer's own leaves.
    pub(super) fn copy_layer(&self, cell: &FileCell, work: &mut Work, size: u64) -> Result<()> {
        let (overlay, reader) = {
            let mut state = cell.quiet_state();
            // Merged meanwhile: the caller sees that and begins again.
            let Some(layer) = &mut state.layer else { return Ok(()) };
            (layer.overlay.clone(), layer.reader()?)
        };
        let writer = work.writer()?;
        let copied = overlay.map(|overlay| overlay.copy_to(&reader, &writer, size));
        work.overlay = copied.transpose().map_err(io_error("copy of the old version"))?;
        Ok(())
    }
}

/// Returns whether the disk takes no change at all.
fn is_read_only(error: &PublishError) -> bool {
    let (PublishError::Io { source, .. } | PublishError::Store(StoreError::Io { source, .. })) =
        error
    else {
        return false;
    };
    source.kind() == std::io::ErrorKind::ReadOnlyFilesystem
}
