//! Changes of the index inside one transaction.

use redb::{ReadableTable, WriteTransaction};

use super::{
    ObjectId, StoreError,
    codec::{self, Leaf, ObjectRow},
    index::{BLOCKS, Bytes2, COMMITS, KNOWN, LEAVES, META, NODES, OBJECTS, ROOTS},
};
use crate::content::{Block, ByteRange, ContentId, Multihash};

/// How a change moves the figures of the store; applied once the commit stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    /// Objects.
    pub(super) objects: i64,
    /// Bytes of disk of all objects.
    pub(super) bytes: i64,
    /// Bytes of disk of content that nobody published.
    pub(super) cache: i64,
    /// Objects of it.
    pub(super) cached: i64,
}

impl Delta {
    pub(super) fn add(&mut self, row: &ObjectRow, sign: i64) {
        let allocated = i64::try_from(row.allocated).unwrap_or(i64::MAX).saturating_mul(sign);
        self.objects += sign;
        self.bytes += allocated;
        if row.is_cache() {
            self.cache += allocated;
            self.cached += sign;
        }
    }
}

/// Changes inside one transaction.
pub(super) struct Rows<'t> {
    pub(super) txn: &'t WriteTransaction,
    pub(super) delta: Delta,
}

impl Rows<'_> {
    /// How many transactions were committed before this one.
    pub(super) fn commits(&self) -> Result<u64, StoreError> {
        Ok(self.txn.open_table(META)?.get(COMMITS)?.map_or(0, |row| row.value()))
    }

    /// Gives the transaction its number.
    pub(super) fn count_commit(&self) -> Result<u64, StoreError> {
        let mut meta = self.txn.open_table(META)?;
        let number = meta.get(COMMITS)?.map_or(0, |row| row.value()) + 1;
        meta.insert(COMMITS, number)?;
        Ok(number)
    }

    pub(super) fn object(&self, id: ObjectId) -> Result<Option<ObjectRow>, StoreError> {
        let table = self.txn.open_table(OBJECTS)?;
        let row = table.get(id.0)?;
        Ok(row.map(|row| ObjectRow::decode(row.value())).transpose()?)
    }

    pub(super) fn put_object(&mut self, id: ObjectId, row: &ObjectRow) -> Result<(), StoreError> {
        if let Some(old) = self.object(id)? {
            self.delta.add(&old, -1);
        }
        self.delta.add(row, 1);
        self.txn.open_table(OBJECTS)?.insert(id.0, row.encode().as_slice())?;
        if let Some(root) = &row.root {
            let key = codec::root_key(root, id);
            self.put(ROOTS, &key, &[])?;
        }
        Ok(())
    }

    /// Takes out an object with its root and all its leaves.
    pub(super) fn remove_object(&mut self, id: ObjectId) -> Result<Option<ObjectRow>, StoreError> {
        let Some(row) = self.object(id)? else { return Ok(None) };
        self.delta.add(&row, -1);
        self.txn.open_table(OBJECTS)?.remove(id.0)?;
        if let Some(root) = &row.root {
            self.remove(ROOTS, &codec::root_key(root, id))?;
        }
        self.remove_leaves(id, ByteRange::new(0, u64::MAX))?;
        Ok(Some(row))
    }

    /// Writes leaves, each table in the order of its keys: neighbours then share pages that are written once.
    pub(super) fn put_leaves(
        &mut self,
        mut all: Vec<(&Multihash, Leaf)>,
    ) -> Result<(), StoreError> {
        let mut blocks = self.txn.open_table(BLOCKS)?;
        all.sort_unstable_by_key(|(hash, leaf)| (hash.digest(), leaf.object, leaf.range.start));
        for (hash, leaf) in &all {
            let key = codec::leaf_key(hash, leaf.object, leaf.range.start);
            blocks.insert(key.as_slice(), leaf.encode().as_slice())?;
        }
        let mut leaves = self.txn.open_table(LEAVES)?;
        all.sort_unstable_by_key(|(_, leaf)| (leaf.object, leaf.range.start));
        for (hash, leaf) in &all {
            let key = (leaf.object.0, leaf.range.start);
            leaves.insert(key, hash.to_bytes().as_slice())?;
        }
        Ok(())
    }

    /// Takes out the leaves of an object that begin in `range`.
    pub(super) fn remove_leaves(
        &mut self,
        object: ObjectId,
        range: ByteRange,
    ) -> Result<(), StoreError> {
        let mut leaves = self.txn.open_table(LEAVES)?;
        let mut blocks = self.txn.open_table(BLOCKS)?;
        let keys = (object.0, range.start)..(object.0, range.end);
        for entry in leaves.extract_from_if(keys, |_, _| true)? {
            let (key, hash) = entry?;
            let hash = Multihash::from_bytes(hash.value()).map_err(|_| codec::Damaged)?;
            blocks.remove(codec::leaf_key(&hash, object, key.value().1).as_slice())?;
        }
        Ok(())
    }

    pub(super) fn put_node(&mut self, block: &Block) -> Result<(), StoreError> {
        // Identity ids carry their content; a row would only repeat it.
        if block.cid().inline_content().is_some() {
            return Ok(());
        }
        let key = block.cid().hash().to_bytes();
        self.put(NODES, &key, &codec::encode_node(block.cid(), block.data()))
    }

    pub(super) fn put(
        &mut self,
        table: Bytes2,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.txn.open_table(table)?.insert(key, value)?;
        Ok(())
    }

    /// Forgets that a root was opened, once no object has it any more.
    pub(super) fn forget_known(&mut self, root: &ContentId) -> Result<(), StoreError> {
        let first = codec::root_key(root, ObjectId(0));
        let last = codec::root_key(root, ObjectId(u64::MAX));
        let roots = self.txn.open_table(ROOTS)?;
        let left = roots.range(first.as_slice()..=last.as_slice())?.next().is_some();
        drop(roots);
        if !left {
            self.remove(KNOWN, &codec::content_key(root))?;
        }
        Ok(())
    }

    /// Takes a row out; whether there was one.
    pub(super) fn remove(&mut self, table: Bytes2, key: &[u8]) -> Result<bool, StoreError> {
        let mut table = self.txn.open_table(table)?;
        let removed = table.remove(key)?.is_some();
        Ok(removed)
    }
}
