//! The index file behind a disk that takes no writes: what redb writes when it opens a file stays in memory.
//!
//! redb repairs a file that was not closed, and marks it as open, before the first read. A read-only or full disk would
//! so keep every block of the store from its readers. Nothing is committed through a shadow.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Unit in which written bytes are kept: a page of redb.
const PAGE: u64 = 4096;

/// A file that is read, under bytes that were written and are in memory only.
#[derive(Debug)]
pub(super) struct ShadowFile {
    file: File,
    state: Mutex<Shadow>,
}

#[derive(Debug)]
struct Shadow {
    len: u64,
    /// Bytes of the file that show where no page was written; a shrink lowers it for good.
    below: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl ShadowFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, state: Mutex::new(Shadow { len, below: len, pages: BTreeMap::new() }) })
    }

    fn state(&self) -> MutexGuard<'_, Shadow> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the file, and zeros behind its end.
    fn read_below(&self, below: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = below.saturating_sub(offset).min(out.len() as u64);
        let (head, tail) = out.split_at_mut(usize::try_from(there).unwrap_or(usize::MAX));
        self.file.read_exact_at(head, offset)?;
        tail.fill(0);
        Ok(())
    }
}

/// The parts of `len` bytes at `offset`, page by page: page, first byte in it, first byte of the part, length.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let at = offset + done as u64;
            let inside = usize::try_from(at % PAGE).unwrap_or(0);
            let part = (len - done).min(usize::try_from(PAGE).unwrap_or(usize::MAX) - inside);
            let found = (at / PAGE, inside, done, part);
            done += part;
            found
        })
    })
}

impl redb::StorageBackend for ShadowFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset + out.len() as u64 > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if state.pages.is_empty() {
            let below = state.below;
            drop(state);
            return self.read_below(below, offset, out);
        }
        for (page, inside, at, len) in parts(offset, out.len()) {
            let to = &mut out[at..at + len];
            match state.pages.get(&page) {
                Some(written) => to.copy_from_slice(&written[inside..inside + len]),
                None => self.read_below(state.below, page * PAGE + inside as u64, to)?,
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len < state.len {
            state.below = state.below.min(len);
            drop(state.pages.split_off(&len.div_ceil(PAGE)));
            if let Some(last) = state.pages.get_mut(&(len / PAGE)) {
                last[usize::try_from(len % PAGE).unwrap_or(0)..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let below = state.below;
        for (page, inside, at, len) in parts(offset, data.len()) {
            let from = &data[at..at + len];
            if let Some(written) = state.pages.get_mut(&page) {
                written[inside..inside + len].copy_from_slice(from);
                continue;
            }
            let mut fresh = vec![0; usize::try_from(PAGE).unwrap_or(0)].into_boxed_slice();
            self.read_below(below, page * PAGE, &mut fresh)?;
            fresh[inside..inside + len].copy_from_slice(from);
            state.pages.insert(page, fresh);
        }
        state.len = state.len.max(offset + data.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;
    use redb::StorageBackend;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        Length(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let bytes = prop::collection::vec(any::<u8>(), 1..9000);
        prop_oneof![
            (0u64..30_000, bytes).prop_map(|(at, bytes)| Op::Write(at, bytes)),
            (0u64..30_000).prop_map(Op::Length),
        ]
    }

    proptest! {
        #[test]
        fn shadow_reads_as_a_file_that_stays_as_it_was(
            first in prop::collection::vec(any::<u8>(), 0..20_000),
            ops in prop::collection::vec(op(), 0..12),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("index");
            std::fs::write(&path, &first).unwrap();
            let shadow = ShadowFile::open(&path).unwrap();
            let mut model = first.clone();
            for op in ops {
                match op {
                    Op::Write(at, bytes) => {
                        let at = usize::try_from(at).unwrap();
                        model.resize(model.len().max(at + bytes.len()), 0);
                        model[at..at + bytes.len()].copy_from_slice(&bytes);
                        shadow.write(at as u64, &bytes).unwrap();
                    }
                    Op::Length(len) => {
                        model.resize(usize::try_from(len).unwrap(), 0);
                        shadow.set_len(len).unwrap();
                    }
                }
                let mut all = vec![1; model.len()];
                prop_assert_eq!(shadow.len().unwrap(), model.len() as u64);
                shadow.read(0, &mut all).unwrap();
                prop_assert_eq!(&all, &model);
                if model.len() > 5000 {
                    let mut part = vec![1; 1000];
                    shadow.read(3900, &mut part).unwrap();
                    prop_assert_eq!(&part[..], &model[3900..4900]);
                }
            }
            prop_assert!(shadow.read(model.len() as u64, &mut [0]).is_err());
            prop_assert_eq!(std::fs::read(&path).unwrap(), first);
        }
    }
}
