//! Working state: small rows that can all be rebuilt, in sled.

use std::{fs, io, path::Path};

use super::StoreError;

/// Memory that sled may use for pages. Its trees are small; the default of a gigabyte would be ours to answer for.
const CACHE_BYTES: u64 = 8 << 20;
/// Longest time that a row waits for the disk, in milliseconds.
const FLUSH_MS: u64 = 500;

/// A named tree of small rows that can be rebuilt (sled).
#[derive(Clone, Debug)]
pub struct StateTree {
    tree: sled::Tree,
}

impl StateTree {
    pub(super) fn new(tree: sled::Tree) -> Self {
        Self { tree }
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// When sled cannot read it.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.tree.get(key)?.map(|value| value.to_vec()))
    }

    /// Writes a row; on disk within half a second.
    ///
    /// # Errors
    /// When sled cannot write it.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.tree.insert(key, value)?;
        Ok(())
    }

    /// Takes a row out.
    ///
    /// # Errors
    /// When sled cannot write it.
    pub fn remove(&self, key: &[u8]) -> Result<(), StoreError> {
        self.tree.remove(key)?;
        Ok(())
    }

    /// All rows in key order.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>> + use<> {
        self.tree.iter().map(|row| {
            let (key, value) = row?;
            Ok((key.to_vec(), value.to_vec()))
        })
    }
}

/// Opens the database of the working state. One that a crash has damaged is moved aside: nothing in it is
/// worth more than a start that works.
pub(super) fn open(path: &Path) -> Result<sled::Db, StoreError> {
    let config =
        sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSH_MS));
    match config.open() {
        Ok(db) => Ok(db),
        // Held by this very process: the folder has a lock, so nobody else can have it.
        Err(error) if error.to_string().contains("could not acquire lock") => Err(error.into()),
        Err(error) => {
            let aside = path.with_extension("damaged");
            tracing::warn!(%error, "the working state does not open; it is moved to {} and rebuilt", aside.display());
            match fs::remove_dir_all(&aside) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &aside, e));
                }
                _ => {}
            }
            fs::rename(path, &aside).map_err(|e| StoreError::io("move aside", path, e))?;
            Ok(config.open()?)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_damaged_state_is_moved_aside_and_started_afresh() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("conf"), b"this is no sled configuration").unwrap();
        let db = open(&path).unwrap();
        db.insert("a", "b").unwrap();
        assert!(dir.path().join("state.damaged").exists());
    }
}
