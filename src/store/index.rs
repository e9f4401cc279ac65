//! The index: redb tables over the files, and the typed way in and out of them.
//!
//! | table | key | value |
//! |---|---|---|
//! | objects | object id | [`ObjectRow`] |
//! | roots | CID of version 1, object id | – |
//! | blocks | multihash, object id, offset | length, envelope ([`Leaf`]) |
//! | leaves | object id, offset | multihash |
//! | nodes | multihash | id, block |
//! | pins, known, published | CID of version 1 | id, name or kind |
//! | tree | key of the upload tree | its row |
//! | files | CID of version 1 | `FileInfo` without chunks, JSON |
//! | meta | name | number |

use std::{
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use redb::{
    Durability, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition, TableError,
};

use super::{
    ObjectId, StoreError,
    codec::{self, Leaf, ObjectRow},
    disk::Disk,
    opening::{self, State},
    recover::INDEX_FILE,
    reserve::Reserve,
    rows::{Delta, Rows},
    trouble::Health,
};
use crate::content::{Block, Codec, ContentId, Multihash};

pub(super) type Bytes2 = TableDefinition<'static, &'static [u8], &'static [u8]>;
pub(super) const OBJECTS: TableDefinition<u64, &[u8]> = TableDefinition::new("objects");
pub(super) const ROOTS: Bytes2 = TableDefinition::new("roots");
pub(super) const BLOCKS: Bytes2 = TableDefinition::new("blocks");
pub(super) const LEAVES: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("leaves");
pub(super) const NODES: Bytes2 = TableDefinition::new("nodes");
pub(super) const PINS: Bytes2 = TableDefinition::new("pins");
pub(super) const KNOWN: Bytes2 = TableDefinition::new("known");
pub(super) const TREE: TableDefinition<u64, &[u8]> = TableDefinition::new("tree");
pub(super) const FILES: Bytes2 = TableDefinition::new("files");
/// Ids of the directories that the upload tree shows.
pub(super) const PUBLISHED: Bytes2 = TableDefinition::new("published");
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Version of the tables and rows. Any other one on disk was written by another release and is refused.
const FORMAT: u64 = 2;

/// Name in `meta` of a number that is there once the upload tree has told which directories it shows.
pub(super) const TREE_KNOWN: &str = "tree known";
/// Name in `meta` under which commits are counted.
pub(super) const COMMITS: &str = "commits";

/// How a transaction failed.
enum Failure<T> {
    /// Before its commit: nothing of it is in the index.
    Rows(StoreError),
    /// In its commit, which had this number: the index may have it or not.
    Commit { done: (T, Delta), number: u64, error: StoreError },
}

/// The open index.
pub(super) struct Index {
    pub(super) path: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) reserve: Arc<Reserve>,
    pub(super) health: Arc<Health>,
    /// Held shared for each transaction, exclusively to close and to open again. Innermost lock.
    pub(super) state: RwLock<State>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Index {
    pub(super) fn open(
        path: &Path,
        disk: Arc<dyn Disk>,
        reserve: Arc<Reserve>,
        health: Arc<Health>,
    ) -> Result<Self, StoreError> {
        if !path.exists() {
            opening::create(path, &disk, &reserve)?;
        }
        Self::open_existing(path, disk, reserve, health)
    }

    pub(super) fn open_existing(
        path: &Path,
        disk: Arc<dyn Disk>,
        reserve: Arc<Reserve>,
        health: Arc<Health>,
    ) -> Result<Self, StoreError> {
        let state = RwLock::new(State::Failed);
        let index = Self { path: path.to_owned(), disk, reserve, health, state };
        index.reopen()?;
        index.check_format()?;
        Ok(index)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let found = self.read(|txn| {
            let Some(meta) = opened(txn.open_table(META))? else { return Ok(None) };
            Ok(meta.get("format")?.map(|v| v.value()))
        })?;
        match found {
            Some(FORMAT) => Ok(()),
            Some(found) => Err(StoreError::Format { path: self.path.clone(), found }),
            None => self.write(|rows| {
                // All tables are made at once, so that readers need not ask whether one is there.
                rows.txn.open_table(OBJECTS)?;
                rows.txn.open_table(LEAVES)?;
                rows.txn.open_table(TREE)?;
                for table in [ROOTS, BLOCKS, NODES, PINS, KNOWN, FILES, PUBLISHED] {
                    rows.txn.open_table(table)?;
                }
                rows.txn.open_table(META)?.insert("format", FORMAT)?;
                Ok(())
            }),
        }
    }

    /// Runs `f` over a snapshot of all that was committed.
    pub(super) fn read<T>(
        &self,
        f: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.reopen()?;
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = state.database() else { return Err(StoreError::Closed) };
        let done = db.begin_read().map_err(StoreError::from).and_then(|txn| f(&txn));
        drop(state);
        // After one page that the disk could not read redb gives no other page either, until it is opened again.
        if let Err(error) = &done
            && is_of_index(error)
        {
            self.fail();
        }
        done
    }

    /// Runs `f` in a transaction and makes it durable; an error from `f` or the disk leaves everything as it was.
    pub(super) fn write<T>(
        &self,
        f: impl FnOnce(&mut Rows<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.write_counted(f).map(|(value, _)| value)
    }

    /// As [`Index::write`], with what it did to the figures.
    pub(super) fn write_counted<T>(
        &self,
        f: impl FnOnce(&mut Rows<'_>) -> Result<T, StoreError>,
    ) -> Result<(T, Delta), StoreError> {
        self.open_for_writing().inspect_err(|error| self.tell(error))?;
        let (done, error) = match self.attempt(f) {
            Ok(done) => {
                self.health.works(self.dir());
                return Ok(done);
            }
            Err(Failure::Commit { done, number, error }) => (Some((done, number)), error),
            Err(Failure::Rows(error)) => (None, error),
        };
        if !matches!(error, StoreError::Io { .. } | StoreError::Index(_)) {
            return Err(error);
        }
        self.fail();
        // A commit whose last sync failed may stand all the same, and its callers must be told what the index will
        // tell everyone else. A further durable commit shows that the disk takes writes again.
        match done {
            Some((done, number)) if self.stands(number).unwrap_or(false) => Ok(done),
            _ => {
                self.tell(&error);
                Err(error)
            }
        }
    }

    fn attempt<T>(
        &self,
        f: impl FnOnce(&mut Rows<'_>) -> Result<T, StoreError>,
    ) -> Result<(T, Delta), Failure<T>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let State::Open(db) = &*state else { return Err(Failure::Rows(StoreError::Closed)) };
        let prepare = || {
            let mut txn = db.begin_write()?;
            txn.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
            // Without it the next start after a crash walks the whole index: seconds where milliseconds are promised.
            txn.set_quick_repair(true);
            let mut rows = Rows { txn: &txn, delta: Delta::default() };
            let value = f(&mut rows)?;
            let (delta, number) = (rows.delta, rows.count_commit()?);
            Ok((txn, (value, delta), number))
        };
        let (txn, done, number) = prepare().map_err(Failure::Rows)?;
        match txn.commit() {
            Ok(()) => Ok(done),
            Err(error) => Err(Failure::Commit { done, number, error: error.into() }),
        }
    }

    fn fail(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.database().is_some() {
            *state = State::Failed;
        }
    }

    /// Whether the commit with this number is in the index, which is opened again for the answer.
    fn stands(&self, number: u64) -> Result<bool, StoreError> {
        let stands = self.read(|txn| Ok(meta(txn, COMMITS)? == Some(number)))?;
        if stands {
            self.attempt(|_| Ok(())).map_err(|_| StoreError::Closed)?;
        }
        Ok(stands)
    }

    /// Closes the files; later calls fail.
    pub(super) fn close(&self) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State::Closed;
    }
}

/// Returns whether the index itself could not be read.
fn is_of_index(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { path, .. } if path.as_os_str() == INDEX_FILE)
}

/// A table that may not be there yet.
fn opened<T>(table: Result<T, TableError>) -> Result<Option<T>, StoreError> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn object_row(
    txn: &ReadTransaction,
    id: ObjectId,
) -> Result<Option<ObjectRow>, StoreError> {
    let table = txn.open_table(OBJECTS)?;
    let row = table.get(id.0)?;
    Ok(row.map(|row| ObjectRow::decode(row.value())).transpose()?)
}

/// All objects in the order of their ids.
pub(super) fn object_rows(
    txn: &ReadTransaction,
    mut each: impl FnMut(ObjectId, ObjectRow) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for entry in txn.open_table(OBJECTS)?.iter()? {
        let (id, row) = entry?;
        each(ObjectId(id.value()), ObjectRow::decode(row.value())?)?;
    }
    Ok(())
}

/// At most `limit` objects in the order of their ids, from `from` on.
pub(super) fn objects_from(
    txn: &ReadTransaction,
    from: ObjectId,
    limit: usize,
) -> Result<Vec<(ObjectId, ObjectRow)>, StoreError> {
    let mut rows = Vec::new();
    for entry in txn.open_table(OBJECTS)?.range(from.0..)?.take(limit) {
        let (id, row) = entry?;
        rows.push((ObjectId(id.value()), ObjectRow::decode(row.value())?));
    }
    Ok(rows)
}

/// Objects that have this root.
pub(super) fn roots(txn: &ReadTransaction, root: &ContentId) -> Result<Vec<ObjectId>, StoreError> {
    let first = codec::root_key(root, ObjectId(0));
    let last = codec::root_key(root, ObjectId(u64::MAX));
    let mut ids = Vec::new();
    for entry in txn.open_table(ROOTS)?.range(first.as_slice()..=last.as_slice())? {
        ids.push(codec::parse_root_key(entry?.0.value())?);
    }
    Ok(ids)
}

/// The first place of a block behind `after`, in the order of objects.
pub(super) fn leaf_after(
    txn: &ReadTransaction,
    hash: &Multihash,
    after: Option<(ObjectId, u64)>,
) -> Result<Option<Leaf>, StoreError> {
    let (object, offset) = after.unwrap_or((ObjectId(0), 0));
    // Object 0 is never given, so that the place before all others can stand for "from the start".
    let first = codec::leaf_key(hash, object, offset);
    let last = codec::leaf_key(hash, ObjectId(u64::MAX), u64::MAX);
    let keys = (Bound::Excluded(first.as_slice()), Bound::Included(last.as_slice()));
    let Some(entry) = txn.open_table(BLOCKS)?.range::<&[u8]>(keys)?.next() else {
        return Ok(None);
    };
    let (key, row) = entry?;
    let (object, offset) = codec::parse_leaf_key(key.value())?;
    Ok(Some(Leaf::decode(object, offset, row.value())?))
}

/// One value of a table of bytes.
pub(super) fn get(
    txn: &ReadTransaction,
    table: Bytes2,
    key: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(txn.open_table(table)?.get(key)?.map(|row| row.value().to_vec()))
}

/// A number of the table `meta`.
pub(super) fn meta(txn: &ReadTransaction, name: &str) -> Result<Option<u64>, StoreError> {
    Ok(txn.open_table(META)?.get(name)?.map(|row| row.value()))
}

/// Rows of the upload tree.
pub(super) fn tree(txn: &ReadTransaction) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
    let mut rows = Vec::new();
    for entry in txn.open_table(TREE)?.iter()? {
        let (key, value) = entry?;
        rows.push((key.value(), value.value().to_vec()));
    }
    Ok(rows)
}

/// Leaves of an object in the order of the file, from `from` on, at most `limit`.
pub(super) fn leaves(
    txn: &ReadTransaction,
    object: ObjectId,
    from: u64,
    limit: usize,
) -> Result<Vec<(Multihash, Leaf)>, StoreError> {
    let (leaves, blocks) = (txn.open_table(LEAVES)?, txn.open_table(BLOCKS)?);
    let mut found = Vec::new();
    for entry in leaves.range((object.0, from)..=(object.0, u64::MAX))?.take(limit) {
        let (key, hash) = entry?;
        let offset = key.value().1;
        let hash = Multihash::from_bytes(hash.value()).map_err(|_| codec::Damaged)?;
        if let Some(row) = blocks.get(codec::leaf_key(&hash, object, offset).as_slice())? {
            found.push((hash, Leaf::decode(object, offset, row.value())?));
        }
    }
    Ok(found)
}

/// The leaf of an object that has the byte at `at`.
pub(super) fn leaf_at(
    txn: &ReadTransaction,
    object: ObjectId,
    at: u64,
) -> Result<Option<(Multihash, Leaf)>, StoreError> {
    let table = txn.open_table(LEAVES)?;
    let Some(entry) = table.range((object.0, 0)..=(object.0, at))?.next_back() else {
        return Ok(None);
    };
    let start = entry?.0.value().1;
    let mut found = leaves(txn, object, start, 1)?;
    Ok(found.pop().filter(|(_, leaf)| leaf.range.end > at))
}

/// The id that a leaf's block is known by: raw without an envelope, dag-pb with one.
pub(super) fn leaf_id(hash: Multihash, leaf: &Leaf) -> ContentId {
    if leaf.envelope == codec::Envelope::default() {
        ContentId::raw(hash)
    } else {
        ContentId::dag_pb(hash)
    }
}

pub(super) fn node(txn: &ReadTransaction, hash: &Multihash) -> Result<Option<Block>, StoreError> {
    let table = txn.open_table(NODES)?;
    let Some(row) = table.get(hash.to_bytes().as_slice())? else { return Ok(None) };
    let (id, data) = codec::decode_node(row.value())?;
    Ok(Some(Block::from_store(id, bytes::Bytes::copy_from_slice(data))))
}

pub(super) fn node_len(
    txn: &ReadTransaction,
    hash: &Multihash,
) -> Result<Option<usize>, StoreError> {
    let table = txn.open_table(NODES)?;
    let Some(row) = table.get(hash.to_bytes().as_slice())? else { return Ok(None) };
    Ok(Some(codec::decode_node(row.value())?.1.len()))
}

/// All values of a table of bytes, decoded.
pub(super) fn values<T>(
    txn: &ReadTransaction,
    table: Bytes2,
    mut decode: impl FnMut(&[u8]) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    txn.open_table(table)?.iter()?.map(|entry| decode(entry?.1.value())).collect()
}

/// Leaves, and nodes, that have a row.
pub(super) fn block_count(txn: &ReadTransaction) -> Result<u64, StoreError> {
    Ok(txn.open_table(BLOCKS)?.len()? + txn.open_table(NODES)?.len()?)
}

/// Whether a row of `known` says directory: a raw id never is one.
pub(super) fn encode_known(root: &ContentId, directory: bool) -> Vec<u8> {
    let directory = directory && root.codec() != Codec::Raw;
    codec::encode_named(root, if directory { "d" } else { "f" })
}
