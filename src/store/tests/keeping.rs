//! Eviction, pins and garbage collection.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use super::{
    super::{Batch, GcReport, KnownRoot, Object, Pin, Store, StoreError, disk::RealDisk, recover},
    LEAF, content, leaves, options, publish, root_of, scratch, whole,
};
use crate::content::{Block, ByteRange, DirectoryBuilder, ImportParams, Metadata};

fn open(dir: &std::path::Path, cache_limit: u64) -> Store {
    let mut options = options(dir);
    options.cache_limit = Some(cache_limit);
    recover::open_idle(&options, Arc::new(RealDisk)).unwrap()
}

fn download(store: &Store, bytes: &[u8], which: std::ops::Range<usize>) -> Arc<Object> {
    let object = store.create_object(root_of(bytes).cid(), bytes.len() as u64).unwrap();
    for (block, range) in &leaves(bytes)[which] {
        object.place(block, &whole(block, range.start)).unwrap();
    }
    store.flush().unwrap();
    object
}

fn has(store: &Store, bytes: &[u8]) -> bool {
    store.object(root_of(bytes).cid()).unwrap().is_some()
}

/// A directory with one file in it.
fn directory(name: &str, file: &[u8]) -> Block {
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    builder.add(name, *root_of(file).cid(), 1);
    builder.finish(Metadata::default()).nodes.pop().unwrap()
}

#[test]
fn what_was_read_longest_ago_goes_first_and_what_is_open_stays() {
    let dir = scratch();
    let store = open(dir.path(), 9 * LEAF);
    let files: Vec<_> = (1..=4).map(|seed| content(seed, 4)).collect();
    let objects: Vec<_> = files.iter().map(|bytes| download(&store, bytes, 0..4)).collect();
    for (object, at) in objects.iter().zip([30, 10, 40, 20]) {
        store.inner.note_read(object.id(), at);
    }
    let handle = objects[1].clone();
    drop(objects);
    let report = store.evict().unwrap();
    assert_eq!(report, GcReport { objects: 2, nodes: 0, bytes: 8 * LEAF });
    assert_eq!(
        files.iter().map(|f| has(&store, f)).collect::<Vec<_>>(),
        [false, true, true, false]
    );
    assert_eq!(handle.read(ByteRange::new(0, 4 * LEAF)).unwrap(), files[1]);
    assert_eq!(store.stats().unwrap().bytes, 8 * LEAF);
    assert_eq!(store.evict().unwrap(), GcReport::default());
}

#[test]
fn a_pin_keeps_what_lies_below_its_directory_also_what_is_fetched_later() {
    let dir = scratch();
    let store = open(dir.path(), 0);
    let bytes = content(1, 2);
    let directory = directory("song", &bytes);
    store.put_node(&directory).unwrap();
    store.pin(Pin { root: *directory.cid(), name: String::new() }).unwrap();
    drop(download(&store, &bytes, 0..2));
    store.remember_root(KnownRoot { root: *root_of(&bytes).cid(), directory: false }).unwrap();
    assert_eq!(store.evict().unwrap().objects, 0);
    assert_eq!(store.gc().unwrap(), GcReport::default());
    assert!(
        store
            .known_roots()
            .unwrap()
            .contains(&KnownRoot { root: *directory.cid(), directory: true })
    );
    store.unpin(directory.cid()).unwrap();
    assert_eq!(store.evict().unwrap().objects, 1);
    assert!(!has(&store, &bytes) && store.known_roots().unwrap().is_empty());
}

#[test]
fn a_file_that_never_was_complete_is_punched_under_its_reader() {
    let dir = scratch();
    let store = open(dir.path(), 0);
    let bytes = content(2, 4);
    let object = download(&store, &bytes, 0..3);
    assert_eq!(store.evict().unwrap().bytes, 3 * LEAF);
    assert_eq!(object.allocated(), 0);
    assert!(matches!(object.read(ByteRange::new(0, 1)), Err(StoreError::Missing(_))));
    for (block, _) in leaves(&bytes) {
        assert_eq!(store.block(block.cid()).unwrap(), None);
    }
    download(&store, &bytes, 0..4);
    assert!(object.is_complete());
    assert_eq!(store.evict().unwrap(), GcReport::default(), "complete and open");
    assert_eq!(object.read(ByteRange::new(0, 4 * LEAF)).unwrap(), bytes);
}

#[test]
fn gc_keeps_what_the_upload_tree_shows_and_sweeps_what_it_showed_before() {
    let dir = scratch();
    let store = open(dir.path(), 1 << 30);
    let bytes = content(3, 2);
    let (old, new) = (directory("old name", &bytes), directory("new name", &bytes));
    let (_, mut batch) = publish(&store, &bytes);
    batch.nodes.push(old.clone());
    store.commit(batch).unwrap();
    assert_eq!(store.gc().unwrap(), GcReport::default(), "no list of directories yet");
    let published = Some(vec![*new.cid()]);
    store.commit(Batch { nodes: vec![new.clone()], published, ..Batch::default() }).unwrap();
    drop(download(&store, &content(4, 1), 0..1));
    assert_eq!(store.gc().unwrap(), GcReport { objects: 1, nodes: 1, bytes: LEAF });
    assert_eq!(store.block(old.cid()).unwrap(), None);
    assert_eq!(store.block(new.cid()).unwrap(), Some(new));
    assert!(has(&store, &bytes));
    assert!(store.block(root_of(&bytes).cid()).unwrap().is_some(), "the file's own root node");
}

#[test]
fn batches_of_many_threads_share_commits_and_none_is_lost() {
    let dir = scratch();
    let store = open(dir.path(), 1 << 30);
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..5u8 {
                    let key = u64::from(thread) * 100 + u64::from(n);
                    let (_, mut batch) = publish(store, &content(thread * 8 + n, 1));
                    batch.tree_put.push((key, vec![thread, n]));
                    store.commit(batch).unwrap();
                    drop(download(store, &content(100 + thread * 8 + n, 2), 0..2));
                }
            });
        }
    });
    drop(store);
    let store = open(dir.path(), 1 << 30);
    assert_eq!(store.tree().unwrap().len(), 40);
    assert_eq!(store.stats().unwrap().objects, 80);
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, vec![]);
    for thread in 0..8u8 {
        let bytes = content(100 + thread * 8, 2);
        let object = store.object(root_of(&bytes).cid()).unwrap().unwrap();
        assert!(object.read(ByteRange::new(0, 2 * LEAF)).unwrap() == bytes);
    }
}

#[test]
fn a_working_file_shows_its_writers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 0);
    let working = store.working_file().unwrap();
    let writer = working.open(true).unwrap();
    assert!(working.has_writer().unwrap() && store.is_held(working.id()).unwrap());
    drop(writer);
    let reader = working.open(false).unwrap();
    assert!(!store.has_writer(working.id()).unwrap() && working.is_held().unwrap());
    drop(reader);
    assert!(!working.is_held().unwrap());
}

#[test]
fn nodes_of_evicted_content_are_swept_and_those_of_cached_content_stay() {
    let dir = scratch();
    let store = open(dir.path(), 1 << 30);
    let (evicted, cached) = (content(21, 4), content(22, 4));
    for bytes in [&evicted, &cached] {
        let object = store.create_object(root_of(bytes).cid(), bytes.len() as u64).unwrap();
        for (block, range) in leaves(bytes) {
            object.place(&block, &whole(&block, range.start)).unwrap();
        }
        store.put_node(&root_of(bytes)).unwrap();
    }
    store.flush().unwrap();
    // The test's roots are no files, and directories are kept until it is known which ones are published.
    let published = Some(vec![*Block::raw(vec![1].into()).cid()]);
    store.commit(Batch { published, ..Batch::default() }).unwrap();
    let gone = store.object(root_of(&evicted).cid()).unwrap().unwrap().id();
    store.inner.close_recent();
    assert_eq!(store.inner.remove_objects(&[gone], None).unwrap().unwrap().objects, 1);
    assert_eq!(store.inner.sweep_evicted().unwrap(), Some(1));
    assert!(store.block(root_of(&evicted).cid()).unwrap().is_none());
    assert!(store.block(root_of(&cached).cid()).unwrap().is_some());
}
