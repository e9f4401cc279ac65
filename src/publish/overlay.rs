//! A sparse working file over a published version: leaves that were written lie in the working file, the others are
//! read from the object below, whose bytes are never touched. What such a file holds can be published as it is, as a
//! layer; an overlay over a layer lies over the object below it, and begins with copies of the layer's leaves.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use rustix::{
    fs::{SeekFrom, copy_file_range, seek},
    io::Errno,
};

use super::row::OverlayRow;
use crate::{
    content::{ByteRange, RangeSet},
    store::ObjectId,
};

/// Below this size of the published version a copy is cheap, and it stays served meanwhile.
const MERGE_MIN: u64 = 8 << 20;
/// Bytes that are copied at a time where the kernel cannot.
const COPY_BUFFER: usize = 1 << 20;

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

    /// As it was when [`Overlay::row`] was made. `original_len` is the size of the object below.
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

    /// An overlay with the same content of `size` bytes, whose filled leaves are copied from `layer` to `work`.
    pub(super) fn copy_to(&self, layer: &File, work: &File, size: u64) -> io::Result<Self> {
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
    pub(super) fn prepare_write(&mut self, work: &File, range: ByteRange) -> io::Result<()> {
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
    pub(super) fn fill_edge(&mut self, work: &File, size: u64) -> io::Result<()> {
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

    fn fill_leaf(&mut self, work: &File, index: u64) -> io::Result<()> {
        let number = ByteRange::at(index, 1);
        if self.filled.contains(number) {
            return Ok(());
        }
        let below =
            ByteRange::at(index * self.leaf, self.leaf).intersect(ByteRange::new(0, self.base_len));
        if !below.is_empty() {
            copy(self.base()?, work, below)?;
        }
        self.filled.insert(number);
        Ok(())
    }

    /// The file is cut or made longer to `size` bytes.
    pub(super) fn truncate(&mut self, work: &File, size: u64) -> io::Result<()> {
        self.changed |= work.metadata()?.len() != size;
        work.set_len(size)?;
        self.base_len = self.base_len.min(size);
        // A leaf that is filled no more than half way must not come back when the file grows again.
        let beyond = ByteRange::new(size.div_ceil(self.leaf), u64::MAX);
        self.filled.remove(beyond);
        self.written.remove(beyond);
        Ok(())
    }

    /// Copies up to `max` leaves that are not in the working file into it; false when none is left.
    pub(super) fn fill_some(&mut self, work: &File, max: u64) -> io::Result<bool> {
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
        self.base_len >= MERGE_MIN && filled.saturating_mul(self.leaf) <= self.base_len / 2
    }

    /// Copies up to `max` filled leaves from number `from` on to their places in the object below, `into`. Gives
    /// the number to go on with; none when all are there.
    pub(super) fn merge_some(
        &self,
        work: &File,
        into: &File,
        from: u64,
        max: u64,
    ) -> io::Result<Option<u64>> {
        let size = work.metadata()?.len();
        let rest = ByteRange::new(from, u64::MAX);
        let next = self.filled.iter().map(|r| r.intersect(rest)).find(|r| !r.is_empty());
        let Some(next) = next else { return Ok(None) };
        let leaves = ByteRange::new(next.start, next.end.min(next.start + max));
        let bytes = ByteRange::new(leaves.start * self.leaf, leaves.end * self.leaf);
        copy(work, into, bytes.intersect(ByteRange::new(0, size)))?;
        Ok(Some(leaves.end))
    }

    /// The object below.
    pub(super) fn base_object(&self) -> ObjectId {
        self.base_object
    }
}

/// Copies a range to the same place of a new file, and leaves out what is a hole.
fn copy_data(from: &File, to: &File, range: ByteRange) -> io::Result<()> {
    let mut start = range.start;
    while start < range.end {
        let data = match seek(from, SeekFrom::Data(start)) {
            Err(Errno::NXIO) => return Ok(()),
            found => found?,
        };
        let hole = seek(from, SeekFrom::Hole(data))?;
        copy(from, to, ByteRange::new(data, hole).intersect(range))?;
        start = hole;
    }
    Ok(())
}

/// Copies a range to the same place of another file, in the kernel where the filesystem can.
fn copy(from: &File, to: &File, range: ByteRange) -> io::Result<()> {
    let mut start = range.start;
    while start < range.end {
        let (mut read, mut write) = (start, start);
        let len = usize::try_from(range.end - start).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read), to, Some(&mut write), len) {
            Ok(copied) if copied > 0 => start += copied as u64,
            _ => {
                let mut buf = vec![0; len.min(COPY_BUFFER)];
                from.read_exact_at(&mut buf, start)?;
                to.write_all_at(&buf, start)?;
                start += buf.len() as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        Truncate(u64),
        FillSome,
        Restart,
        /// The version is published as it is, and opened for writing again.
        Layer,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..120, prop::collection::vec(1u8.., 1..30)).prop_map(|(at, data)| Op::Write(at, data)),
            2 => (0u64..150).prop_map(Op::Truncate),
            1 => Just(Op::FillSome),
            1 => Just(Op::Restart),
            1 => Just(Op::Layer),
        ]
    }

    fn files(base: &[u8]) -> (tempfile::TempDir, Arc<File>, File) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base"), base).unwrap();
        let file = File::open(dir.path().join("base")).unwrap();
        let work = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("work"))
            .unwrap();
        work.set_len(base.len() as u64).unwrap();
        (dir, Arc::new(file), work)
    }

    proptest! {
        #[test]
        fn it_reads_like_a_plain_file(base in prop::collection::vec(1u8.., 0..100), ops in prop::collection::vec(op(), 0..20)) {
            let (dir, file, mut work) = files(&base);
            let mut overlay = Overlay::new(file.clone(), ObjectId(7), base.len() as u64, 16);
            let (mut model, mut opened) = (base.clone(), base.clone());
            for (number, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Write(at, data) => {
                        let (start, end) = (usize::try_from(at).unwrap(), usize::try_from(at).unwrap() + data.len());
                        overlay.prepare_write(&work, ByteRange::at(at, data.len() as u64)).unwrap();
                        work.write_all_at(&data, at).unwrap();
                        model.resize(model.len().max(end), 0);
                        model[start..end].copy_from_slice(&data);
                    }
                    Op::Truncate(size) => {
                        overlay.truncate(&work, size).unwrap();
                        model.resize(usize::try_from(size).unwrap(), 0);
                    }
                    Op::FillSome => { overlay.fill_some(&work, 2).unwrap(); }
                    Op::Restart => {
                        overlay = Overlay::restore(overlay.row(), base.len() as u64, 16);
                        overlay.set_base(file.clone(), false);
                    }
                    Op::Layer => {
                        overlay.fill_edge(&work, model.len() as u64).unwrap();
                        for (index, leaf) in model.chunks(16).enumerate() {
                            let range = ByteRange::at(index as u64 * 16, leaf.len() as u64);
                            prop_assert!(overlay.is_known(range) || overlay.row().own(16, model.len() as u64).contains(range));
                        }
                        let next = dir.path().join(format!("work {number}"));
                        let next = File::options().read(true).write(true).create_new(true).open(next).unwrap();
                        next.set_len(model.len() as u64).unwrap();
                        overlay = overlay.copy_to(&work, &next, model.len() as u64).unwrap();
                        prop_assert!(overlay.is_unchanged(model.len() as u64));
                        (work, opened) = (next, model.clone());
                    }
                }
                let mut read = vec![0xAA; model.len() + 9];
                prop_assert_eq!(overlay.read_at(&work, 0, &mut read).unwrap(), model.len());
                prop_assert_eq!(&read[..model.len()], &model[..]);
                prop_assert!(!overlay.is_unchanged(model.len() as u64) || model == opened);
                for (index, leaf) in model.chunks(16).enumerate() {
                    let at = index * 16;
                    let range = ByteRange::at(at as u64, leaf.len() as u64);
                    if overlay.is_known(range) {
                        prop_assert_eq!(base.chunks(16).nth(index), Some(leaf));
                    }
                }
            }
            while overlay.fill_some(&work, 1).unwrap() {}
            let mut read = vec![0; model.len()];
            work.read_exact_at(&mut read, 0).unwrap();
            prop_assert_eq!(read, model);
        }
    }

    #[test]
    fn what_an_append_was_cut_off_of_again_is_a_change_after_a_restart() {
        let (dir, file, work) = files(&[1; 16]);
        let mut overlay = Overlay::new(file, ObjectId(7), 16, 16);
        overlay.prepare_write(&work, ByteRange::at(16, 1)).unwrap();
        work.write_all_at(&[1], 16).unwrap();
        // That is published, and opened again.
        let next = dir.path().join("next");
        let next = File::options().read(true).write(true).create_new(true).open(next).unwrap();
        next.set_len(17).unwrap();
        let mut overlay = overlay.copy_to(&work, &next, 17).unwrap();
        assert!(overlay.is_unchanged(17));
        overlay.truncate(&next, 16).unwrap();
        assert!(!overlay.is_unchanged(16));
        assert!(!Overlay::restore(overlay.row(), 16, 16).is_unchanged(16));
    }

    #[test]
    fn an_append_copies_one_leaf() {
        let (_dir, file, work) = files(&[7; 100]);
        let mut overlay = Overlay::new(file, ObjectId(1), 100, 16);
        overlay.prepare_write(&work, ByteRange::at(100, 5)).unwrap();
        assert_eq!(overlay.row().filled.bytes(), 1);
        assert!(overlay.is_known(ByteRange::new(80, 96)));
        assert!(!overlay.is_known(ByteRange::new(96, 105)));
    }
}
