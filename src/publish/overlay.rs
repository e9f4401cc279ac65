//! A sparse working file over a published version: leaves that were written lie in the working file, the others are
//! read from the object below, whose bytes are never touched. What such a file holds can be published as it is, as a
//! layer; an overlay over a layer lies over the object below it, and begins with copies of the layer's leaves.

//!
//! Invariant: a leaf that is not filled is a hole of the working file. Bytes that read as zero because nothing lies
//! below them stay zero when their leaf is filled.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use super::row::{OverlayRow, Seen};
use crate::{
    content::{ByteRange, RangeSet},
    store::{ObjectId, WorkingWriter},
};

/// Leaves of the published version below which a copy is cheap, and it stays served meanwhile: 8 MiB of usual ones.
const MERGE_MIN: u64 = 32;

/// What lies where. The size is that of the working file, which is as long as the whole.
#[derive(Clone, Debug)]
pub(super) struct Overlay {
    /// None while the object below is asked whether anybody has it open: nobody reads then.
    base: Option<Arc<File>>,
    base_object: ObjectId,
    /// The object below is a working file now, into which what was written is merged. Leaves that are not filled are
    /// still as they were.
    merging: bool,
    /// Bytes of the object below that still show through; a truncate lowers it for good.
    base_len: u64,
    /// Size of the object below.
    original_len: u64,
    /// Bytes per leaf.
    leaf: u64,
    /// Numbers of the leaves that lie in the working file.
    filled: RangeSet,
    /// Numbers of those whose bytes may differ from the object below.
    written: RangeSet,
    /// Size of the version that was opened for writing.
    opened_len: u64,
    /// It may differ from the version that was opened.
    changed: bool,
}

impl Overlay {
    /// Nothing written yet.
    pub(super) fn new(base: Arc<File>, base_object: ObjectId, len: u64, leaf: u64) -> Self {
        Self {
            base: Some(base),
            base_object,
            merging: false,
            base_len: len,
            original_len: len,
            leaf,
            filled: RangeSet::new(),
            written: RangeSet::new(),
            opened_len: len,
            changed: false,
        }
    }

    /// As it was when [`Overlay::row`] was made, for a layer: its file is an object, which nothing has changed since.
    /// `original_len` is the size of the object below.
    pub(super) fn restore(row: OverlayRow, original_len: u64, leaf: u64) -> Self {
        Self {
            base: None,
            base_object: row.base,
            merging: false,
            base_len: row.base_len.min(original_len),
            original_len,
            leaf,
            written: row.filled.clone(),
            opened_len: original_len,
            // The version that was opened may have been a layer over the object, and this what the object was before.
            changed: true,
            filled: row.filled,
        }
    }

    /// As [`Overlay::restore`], for a working file that may be newer than its row. The row decides: bytes of the file
    /// that it does not tell of go, and bytes below the end of the file do not come back.
    pub(super) fn recover(
        row: OverlayRow,
        seen: Option<Seen>,
        original_len: u64,
        leaf: u64,
        work: &WorkingWriter,
    ) -> io::Result<Self> {
        let mut overlay = Self::restore(row, original_len, leaf);
        let written = work.size()?;
        let size = overlay.recovered_size(seen.map_or(written, |seen| seen.size)).min(written);
        if size < written {
            work.set_len(size)?;
        }
        overlay.forget_beyond(size);
        for gap in overlay.filled.missing(overlay.leaves(ByteRange::new(0, size))) {
            work.clear(ByteRange::new(gap.start * leaf, gap.end * leaf))?;
        }
        Ok(overlay)
    }

    /// Upper bound of the end of the file: at the size in its row, or at the end of the filled leaves that follow, which
    /// hold what was appended since.
    fn recovered_size(&self, row_size: u64) -> u64 {
        let index = row_size / self.leaf;
        let run = self.filled.iter().find(|run| run.contains(ByteRange::at(index, 1)));
        run.map_or(row_size, |run| run.end.saturating_mul(self.leaf))
    }

    /// An overlay with the same content of `size` bytes, whose filled leaves are copied from `layer` to `work`.
    pub(super) fn copy_to(
        &self,
        layer: &File,
        work: &WorkingWriter,
        size: u64,
    ) -> io::Result<Self> {
        let whole = ByteRange::new(0, size);
        for leaves in self.filled.iter() {
            let bytes =
                ByteRange::new(leaves.start * self.leaf, leaves.end.saturating_mul(self.leaf));
            copy_data(layer, work, bytes.intersect(whole))?;
        }
        let written = self.filled.clone();
        Ok(Self { written, opened_len: size, changed: false, ..self.clone() })
    }

    pub(super) fn row(&self) -> OverlayRow {
        OverlayRow { base: self.base_object, base_len: self.base_len, filled: self.filled.clone() }
    }

    /// Whether the whole of `size` bytes is still exactly the version that was opened.
    pub(super) fn is_unchanged(&self, size: u64) -> bool {
        !self.merging && !self.changed && size == self.opened_len
    }

    /// Whether a leaf with these bytes is the object's own leaf, so that its id is known.
    pub(super) fn is_known(&self, range: ByteRange) -> bool {
        let index = range.start / self.leaf;
        let original = ByteRange::new(
            range.start,
            (index + 1).saturating_mul(self.leaf).min(self.original_len),
        );
        range == original
            && range.end <= self.base_len
            && !self.written.contains(ByteRange::at(index, 1))
    }

    /// Bytes of the object below that the new version has not: whole leaves, also those beyond its end.
    pub(super) fn overwritten(&self) -> RangeSet {
        let ranges = self.filled.iter();
        let ranges =
            ranges.map(|r| ByteRange::new(r.start * self.leaf, r.end.saturating_mul(self.leaf)));
        let mut overwritten: RangeSet = ranges.collect();
        overwritten.insert(ByteRange::new(self.base_len / self.leaf * self.leaf, u64::MAX));
        overwritten
    }

    /// Numbers of the leaves that hold bytes of `range`.
    fn leaves(&self, range: ByteRange) -> ByteRange {
        if range.is_empty() {
            return ByteRange::default();
        }
        ByteRange::new(range.start / self.leaf, (range.end - 1) / self.leaf + 1)
    }

    /// Fills `buf` from `offset` on; short only at the end of the working file.
    pub(super) fn read_at(&self, work: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let size = work.metadata()?.len();
        let len = size.saturating_sub(offset).min(buf.len() as u64);
        let wanted = ByteRange::at(offset, len);
        let leaves = self.leaves(wanted);
        for index in leaves.start..leaves.end {
            let part = ByteRange::at(index * self.leaf, self.leaf).intersect(wanted);
            let at = |byte: u64| usize::try_from(byte - offset).unwrap_or(usize::MAX);
            let out = &mut buf[at(part.start)..at(part.end)];
            if self.filled.contains(ByteRange::at(index, 1)) {
                work.read_exact_at(out, part.start)?;
            } else {
                let below = part.intersect(ByteRange::new(0, self.base_len));
                let below_len = usize::try_from(below.len()).unwrap_or(usize::MAX);
                self.base()?.read_exact_at(&mut out[..below_len], part.start)?;
                // Above the object below the file was only made longer: zeros.
                out[below_len..].fill(0);
            }
        }
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Makes `range` the working file's own, so that it can be written there.
    pub(super) fn prepare_write(
        &mut self,
        work: &WorkingWriter,
        range: ByteRange,
    ) -> io::Result<()> {
        let leaves = self.leaves(range);
        for index in leaves.start..leaves.end {
            // Also where the write covers the whole leaf: it may be cut short, by a full disk for one.
            self.fill_leaf(work, index)?;
        }
        self.written.insert(leaves);
        self.changed |= !leaves.is_empty();
        Ok(())
    }

    /// Fills all leaves of a whole of `size` bytes that are not leaves of the object below: the one that it ends in,
    /// where the new version goes on or ends earlier, and the zeros above it.
    pub(super) fn fill_edge(&mut self, work: &WorkingWriter, size: u64) -> io::Result<()> {
        let all = self.leaves(ByteRange::new(0, size));
        let edge = self.base_len / self.leaf;
        let range = ByteRange::at(edge * self.leaf, self.leaf).intersect(ByteRange::new(0, size));
        if edge >= all.end || self.is_known(range) {
            return Ok(());
        }
        self.fill_leaf(work, edge)?;
        // There the working file is a hole, which reads as zeros.
        self.filled.insert(ByteRange::new(edge, all.end));
        Ok(())
    }

    fn fill_leaf(&mut self, work: &WorkingWriter, index: u64) -> io::Result<()> {
        let number = ByteRange::at(index, 1);
        if self.filled.contains(number) {
            return Ok(());
        }
        let below =
            ByteRange::at(index * self.leaf, self.leaf).intersect(ByteRange::new(0, self.base_len));
        if !below.is_empty() {
            work.copy(self.base()?, below)?;
        }
        self.filled.insert(number);
        Ok(())
    }

    /// The file is cut or made longer to `size` bytes. Gives whether bytes of the object below are hidden from now on:
    /// then a row from before must not outlive the call.
    pub(super) fn truncate(&mut self, work: &WorkingWriter, size: u64) -> io::Result<bool> {
        self.changed |= work.size()? != size;
        work.set_len(size)?;
        let hides = size < self.base_len;
        self.forget_beyond(size);
        Ok(hides)
    }

    /// The file ends at `size`: what lay beyond does not come back when it grows again.
    fn forget_beyond(&mut self, size: u64) {
        self.base_len = self.base_len.min(size);
        let beyond = ByteRange::new(size.div_ceil(self.leaf), u64::MAX);
        self.filled.remove(beyond);
        self.written.remove(beyond);
    }

    /// Copies up to `max` leaves that are not in the working file into it; false when none is left.
    pub(super) fn fill_some(&mut self, work: &WorkingWriter, max: u64) -> io::Result<bool> {
        let all = self.leaves(ByteRange::new(0, self.base_len));
        let Some(gap) = self.filled.missing(all).first().copied() else { return Ok(false) };
        for index in gap.start..gap.end.min(gap.start + max) {
            self.fill_leaf(work, index)?;
        }
        Ok(true)
    }

    fn base(&self) -> io::Result<&File> {
        let closed = || io::Error::other("the published version is not open");
        self.base.as_deref().ok_or_else(closed)
    }

    /// Closes the object below, so that a lease on it can be taken.
    pub(super) fn close_base(&mut self) {
        self.base = None;
    }

    /// The object below was opened again; `merging`: as a working file.
    pub(super) fn set_base(&mut self, base: Arc<File>, merging: bool) {
        self.base = Some(base);
        self.merging = merging;
    }

    /// Takes over how another overlay over the same object has it open.
    pub(super) fn share_base(&mut self, other: &Self) {
        self.base.clone_from(&other.base);
        self.merging = other.merging;
    }

    pub(super) fn has_base(&self) -> bool {
        self.base.is_some()
    }

    /// Whether little enough was written that merging it is cheaper than copying the rest.
    pub(super) fn is_sparse(&self) -> bool {
        let filled: u64 = self.filled.bytes();
        self.base_len >= MERGE_MIN.saturating_mul(self.leaf)
            && filled.saturating_mul(self.leaf) <= self.base_len / 2
    }

    /// Copies up to `max` filled leaves from number `from` on to their places in the object below, `into`. Gives
    /// the number to go on with; none when all are there.
    pub(super) fn merge_some(
        &self,
        work: &File,
        into: &WorkingWriter,
        from: u64,
        max: u64,
    ) -> io::Result<Option<u64>> {
        let size = work.metadata()?.len();
        let rest = ByteRange::new(from, u64::MAX);
        let next = self.filled.iter().map(|r| r.intersect(rest)).find(|r| !r.is_empty());
        let Some(next) = next else { return Ok(None) };
        let leaves = ByteRange::new(next.start, next.end.min(next.start + max));
        let bytes = ByteRange::new(leaves.start * self.leaf, leaves.end * self.leaf);
        into.copy(work, bytes.intersect(ByteRange::new(0, size)))?;
        Ok(Some(leaves.end))
    }

    /// The object below.
    pub(super) fn base_object(&self) -> ObjectId {
        self.base_object
    }
}

/// Copies a range to the same place of a new file, and leaves out what is a hole.
fn copy_data(from: &File, to: &WorkingWriter, range: ByteRange) -> io::Result<()> {
    let mut start = range.start;
    while start < range.end {
        let data = match seek(from, SeekFrom::Data(start)) {
            Err(Errno::NXIO) => return Ok(()),
            found => found?,
        };
        let hole = seek(from, SeekFrom::Hole(data))?;
        to.copy(from, ByteRange::new(data, hole).intersect(range))?;
        start = hole;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
