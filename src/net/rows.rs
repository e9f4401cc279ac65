//! Small rows that outlive the process.

use std::fmt;

use crate::store::{StateTree, StoreError};

/// A row: its key and its value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

/// What the network needs of a tree of working state.
pub(super) trait Rows: Send + Sync + fmt::Debug {
    /// Writes a row.
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError>;
    /// Takes a row out.
    fn remove(&self, key: &[u8]) -> Result<(), StoreError>;
    /// All rows.
    fn all(&self) -> Result<Vec<Row>, StoreError>;
}

impl Rows for StateTree {
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        Self::insert(self, key, value)
    }

    fn remove(&self, key: &[u8]) -> Result<(), StoreError> {
        Self::remove(self, key)
    }

    fn all(&self) -> Result<Vec<Row>, StoreError> {
        self.iter().collect()
    }
}

#[cfg(test)]
pub(super) mod memory {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{collections::BTreeMap, sync::Mutex};

    use super::*;

    /// Rows of a test.
    #[derive(Debug, Default)]
    pub(in crate::net) struct MemoryRows(pub(in crate::net) Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

    impl Rows for MemoryRows {
        fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
            self.0.lock().unwrap().insert(key.to_vec(), value.to_vec());
            Ok(())
        }

        fn remove(&self, key: &[u8]) -> Result<(), StoreError> {
            self.0.lock().unwrap().remove(key);
            Ok(())
        }

        fn all(&self) -> Result<Vec<Row>, StoreError> {
            Ok(self.0.lock().unwrap().clone().into_iter().collect())
        }
    }
}
