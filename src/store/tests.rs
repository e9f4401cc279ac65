//! Tests over the whole store.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod basics;
mod clone;
mod crash;
mod full;
mod keeping;
mod model;
mod races;
mod reached;
mod trouble;

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use bytes::Bytes;

use super::{Batch, FileStamp, ObjectId, Seal, Store, StoreError, StoreOptions};
use crate::{
    content::{Block, ByteRange, Placement},
    tasks::Tasks,
};

/// Length of a leaf in these tests.
pub(super) const LEAF: u64 = 4096;

pub(super) fn options(dir: &Path) -> StoreOptions {
    StoreOptions { dir: dir.to_owned(), cache_limit: Some(1 << 30), min_free: Some(0) }
}

/// A runtime for the tasks of a store.
pub(super) struct Bench {
    runtime: tokio::runtime::Runtime,
    pub(super) dir: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .start_paused(false)
            .build()
            .unwrap();
        Self { runtime, dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn tasks(&self) -> Tasks {
        let _entered = self.runtime.enter();
        Tasks::new()
    }

    pub(super) fn open(&self) -> Store {
        Store::open(options(self.dir.path()), &self.tasks()).unwrap()
    }
}

/// Memory where there is any, so that thousands of files cost nothing.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Content that differs from leaf to leaf.
pub(super) fn content(seed: u8, leaves: u64) -> Vec<u8> {
    (0..leaves * LEAF / 32).flat_map(|at| sha(seed, at)).collect()
}

fn sha(seed: u8, at: u64) -> [u8; 32] {
    let mut text = at.to_le_bytes().to_vec();
    text.push(seed);
    crate::content::sha2_256(&text).digest().try_into().unwrap()
}

/// Raw leaves of some content, with their places.
pub(super) fn leaves(content: &[u8]) -> Vec<(Block, ByteRange)> {
    let chunks = content.chunks(usize::try_from(LEAF).unwrap());
    let blocks = chunks.map(|chunk| Block::raw(Bytes::copy_from_slice(chunk)));
    let ranges = (0..).map(|n| n * LEAF);
    blocks
        .zip(ranges)
        .map(|(b, at)| (b.clone(), ByteRange::at(at, b.data().len() as u64)))
        .collect()
}

/// A block that stands for the root; the store does not look into it until it walks.
pub(super) fn root_of(content: &[u8]) -> Block {
    let mut node = b"\x0a\x00".to_vec();
    node.extend_from_slice(crate::content::sha2_256(content).digest());
    Block::dag_pb(node.into())
}

pub(super) fn whole(block: &Block, at: u64) -> Vec<Placement> {
    vec![Placement { offset: at, data: 0..block.data().len() }]
}

/// Writes content into a working file and gives the batch that publishes it.
pub(super) fn publish(store: &Store, content: &[u8]) -> (ObjectId, Batch) {
    try_publish(store, content).unwrap()
}

pub(super) fn try_publish(store: &Store, content: &[u8]) -> Result<(ObjectId, Batch), StoreError> {
    let working = store.working_file()?;
    let file = working.open(true).unwrap();
    file.write_all_at(content, 0).unwrap();
    drop(file);
    let file = File::open(working.path()).unwrap();
    let root = root_of(content);
    let seal = Seal {
        object: working.id(),
        root: *root.cid(),
        stamp: FileStamp::of(&file).unwrap(),
        leaves: leaves(content).iter().map(|(b, range)| (*b.cid(), *range)).collect(),
        nodes: vec![root],
        present: None,
    };
    Ok((working.id(), Batch { seal: vec![seal], ..Batch::default() }))
}
