//! Where in an archive each block lies: 16 bytes per block, in memory as far as they are few.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{CarFailure, spool};
use crate::content::Multihash;

/// Entries in memory: 16 MiB, enough for an archive of 256 GiB.
const IN_MEMORY: usize = 1 << 20;

const ENTRY: usize = 16;

/// From hashes to offsets. What it gives is to be checked: hashes are remembered by a fingerprint of 64 bits, under a
/// key that nobody who makes an archive knows.
#[derive(Debug)]
pub(super) struct Offsets {
    dir: PathBuf,
    key: RandomState,
    in_memory: Vec<(u64, u64)>,
    limit: usize,
    /// Sorted runs of `limit` entries, one behind the other.
    spilled: Option<File>,
    runs: u64,
    sorted: bool,
}

impl Offsets {
    /// What does not fit into memory goes to a file without a name in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self::with_limit(dir, IN_MEMORY)
    }

    fn with_limit(dir: &Path, limit: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            key: RandomState::new(),
            in_memory: Vec::new(),
            limit,
            spilled: None,
            runs: 0,
            sorted: true,
        }
    }

    pub(super) fn add(&mut self, hash: &Multihash, at: u64) -> Result<(), CarFailure> {
        if self.in_memory.len() == self.limit {
            self.spill()?;
        }
        self.in_memory.push((self.key.hash_one(hash), at));
        self.sorted = false;
        Ok(())
    }

    fn spill(&mut self) -> Result<(), CarFailure> {
        self.in_memory.sort_unstable();
        let failed = |source| CarFailure::Io { path: self.dir.clone(), source };
        let file = match self.spilled.take() {
            Some(file) => file,
            None => spool::nameless(&self.dir).map_err(failed)?,
        };
        let mut out = io::BufWriter::new(&file);
        for (print, at) in &self.in_memory {
            out.write_all(&print.to_le_bytes()).map_err(failed)?;
            out.write_all(&at.to_le_bytes()).map_err(failed)?;
        }
        out.flush().map_err(failed)?;
        drop(out);
        self.spilled = Some(file);
        self.runs += 1;
        self.in_memory.clear();
        Ok(())
    }

    /// Offsets where the block may lie, in no order.
    pub(super) fn find(&mut self, hash: &Multihash) -> Result<Vec<u64>, CarFailure> {
        if !self.sorted {
            self.in_memory.sort_unstable();
            self.sorted = true;
        }
        let print = self.key.hash_one(hash);
        let first = self.in_memory.partition_point(|entry| entry.0 < print);
        let here = self.in_memory[first..].iter().take_while(|entry| entry.0 == print);
        let mut found: Vec<u64> = here.map(|entry| entry.1).collect();
        if let Some(file) = &self.spilled {
            for run in 0..self.runs {
                find_in_run(file, run * self.limit as u64, self.limit as u64, print, &mut found)
                    .map_err(|source| CarFailure::Io { path: self.dir.clone(), source })?;
            }
        }
        Ok(found)
    }
}

fn find_in_run(
    file: &File,
    start: u64,
    len: u64,
    print: u64,
    found: &mut Vec<u64>,
) -> io::Result<()> {
    let entry = |n: u64| -> io::Result<(u64, u64)> {
        let mut bytes = [0; ENTRY];
        file.read_exact_at(&mut bytes, (start + n) * ENTRY as u64)?;
        let both = u128::from_le_bytes(bytes);
        let low = u64::try_from(both & u128::from(u64::MAX)).unwrap_or_default();
        Ok((low, u64::try_from(both >> 64).unwrap_or_default()))
    };
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if entry(middle)?.0 < print {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    while low < len {
        let (other, at) = entry(low)?;
        if other != print {
            break;
        }
        found.push(at);
        low += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::content::sha2_256;

    #[test]
    fn offsets_are_found_in_memory_and_in_runs() {
        let dir = tempfile::tempdir().unwrap();
        for limit in [1, 7, 100, 1000] {
            let mut offsets = Offsets::with_limit(dir.path(), limit);
            // Every block twice.
            for at in 0..200u64 {
                offsets.add(&sha2_256(&[u8::try_from(at % 100).unwrap()]), at).unwrap();
            }
            for block in 0..100u8 {
                let mut found = offsets.find(&sha2_256(&[block])).unwrap();
                found.sort_unstable();
                assert_eq!(found, [u64::from(block), u64::from(block) + 100], "{limit}");
            }
            assert!(offsets.find(&sha2_256(b"other")).unwrap().is_empty());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
