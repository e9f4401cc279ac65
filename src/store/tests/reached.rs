//! Content by its id: which is which, and what holds what.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{path::Path, sync::Arc};

use super::{
    super::{Batch, Mergeable, Object, Pin, Store, StoreError, disk::RealDisk, recover},
    LEAF, content, leaves, options, publish, root_of, scratch, whole,
};
use crate::content::{
    Block, ByteRange, ContentId, DirectoryBuilder, FileBuilder, ImportParams, Metadata, Placement,
    RangeSet,
};

fn open(dir: &Path) -> Store {
    let mut options = options(dir);
    options.cache_limit = Some(0);
    recover::open_idle(&options, Arc::new(RealDisk)).unwrap()
}

fn place(object: &Arc<Object>, bytes: &[u8], which: &[usize]) {
    let leaves = leaves(bytes);
    for (block, range) in which.iter().map(|n| &leaves[*n]) {
        object.place(block, &whole(block, range.start)).unwrap();
    }
}

/// A root that can be walked.
fn real_root(bytes: &[u8]) -> Block {
    let mut builder = FileBuilder::new(ImportParams::DEFAULT);
    leaves(bytes).iter().for_each(|(block, range)| {
        builder.push(*block.cid(), range.len());
    });
    builder.finish(Metadata::default()).nodes.pop().unwrap()
}

fn pin(root: &ContentId) -> Pin {
    Pin { root: *root, name: String::new() }
}

#[test]
fn one_block_is_another_file_under_another_codec() {
    for raw_first in [true, false] {
        let dir = scratch();
        let store = open(dir.path());
        let framed = [b"\x0a\x0a\x08\x02\x12\x04".as_slice(), b"DATA", b"\x18\x04"].concat();
        let node = Block::dag_pb(framed.clone().into());
        let raw = Block::raw(framed.clone().into());
        let as_node = || {
            let object = store.create_object(node.cid(), 4).unwrap();
            object.place(&node, &[Placement { offset: 0, data: 6..10 }]).unwrap();
            object
        };
        let as_raw = || {
            let object = store.create_object(raw.cid(), framed.len() as u64).unwrap();
            object.place(&raw, &whole(&raw, 0)).unwrap();
            object
        };
        // Made by this process, and then known by the index only.
        let objects = if raw_first { [as_raw(), as_node()] } else { [as_node(), as_raw()] };
        store.pin(pin(raw.cid())).unwrap();
        store.pin(pin(node.cid())).unwrap();
        for _ in 0..2 {
            let (one, other) =
                (store.object(raw.cid()).unwrap(), store.object(node.cid()).unwrap());
            let (one, other) = (one.unwrap(), other.unwrap());
            assert_eq!(one.read(ByteRange::new(0, 12)).unwrap(), framed);
            assert_eq!(other.read(ByteRange::new(0, 4)).unwrap(), b"DATA".as_slice());
            store.flush().unwrap();
        }
        drop(objects);
        assert_eq!(store.gc().unwrap().objects, 0, "both are pinned");
        assert_eq!(store.pins().unwrap().len(), 2);
        store.unpin(raw.cid()).unwrap();
        assert_eq!(store.gc().unwrap().objects, 1);
        assert!(store.object(raw.cid()).unwrap().is_none());
        assert_eq!(store.block(raw.cid()).unwrap().unwrap(), raw, "as a block it is the same");
    }
}

#[test]
fn both_versions_of_an_id_name_one_content() {
    let dir = scratch();
    let store = open(dir.path());
    let v0: ContentId = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn".parse().unwrap();
    let object = store.create_object(&v0, 5).unwrap();
    assert_eq!(store.object(&v0.to_v1()).unwrap().unwrap().id(), object.id());
    store.flush().unwrap();
    drop(object);
    assert!(store.object(&v0.to_v1()).unwrap().is_some());
    store.pin(pin(&v0)).unwrap();
    assert!(store.unpin(&v0.to_v1()).unwrap());
}

#[test]
fn an_object_of_another_length_is_not_taken_for_the_content() {
    let dir = scratch();
    let store = open(dir.path());
    let root = *root_of(b"x").cid();
    let short = store.create_object(&root, 5).unwrap();
    let long = store.create_object(&root, 6).unwrap();
    assert_eq!((short.size(), long.size()), (5, 6));
}

#[test]
fn a_pin_holds_the_object_in_which_a_leaf_lies_that_its_own_lacks() {
    let dir = scratch();
    let store = open(dir.path());
    let (mine, mut other) = (content(1, 3), content(2, 3));
    other[..4096].copy_from_slice(&mine[..4096]);
    let root = real_root(&mine);
    store.put_node(&root).unwrap();
    store.pin(pin(root.cid())).unwrap();
    let object = store.create_object(root.cid(), 3 * LEAF).unwrap();
    place(&object, &mine, &[1, 2]);
    place(&store.create_object(root_of(&other).cid(), 3 * LEAF).unwrap(), &other, &[0, 1, 2]);
    store.flush().unwrap();
    drop(object);
    assert_eq!(store.gc().unwrap().objects, 0);
    assert_eq!(store.evict().unwrap().objects, 0);
    for (block, _) in leaves(&mine) {
        assert!(store.block(block.cid()).unwrap().is_some());
    }
    store.inner.close_recent();
    place(&store.create_object(root.cid(), 3 * LEAF).unwrap(), &mine, &[0]);
    store.flush().unwrap();
    assert_eq!(store.evict().unwrap().objects, 1, "now its own has all of them");
}

#[test]
fn a_pin_of_something_else_does_not_forbid_a_merge() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = content(3, 4);
    let (id, batch) = publish(&store, &bytes);
    store.commit(batch).unwrap();
    let mut first = RangeSet::new();
    first.insert(ByteRange::new(0, LEAF));
    store.pin(pin(root_of(&bytes).cid())).unwrap();
    assert_eq!(store.prepare_merge(id, &first).unwrap(), Mergeable::Not);
    store.unpin(root_of(&bytes).cid()).unwrap();
    store.pin(pin(root_of(b"something else").cid())).unwrap();
    assert_eq!(store.prepare_merge(id, &first).unwrap(), Mergeable::Now);
    assert!(store.begin_merge(id, &first).unwrap().is_some());
}

#[test]
fn directories_go_when_the_tree_shows_none_and_letting_go_of_a_file_is_a_reason_to_look() {
    let dir = scratch();
    let store = open(dir.path());
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    builder.add("f", *root_of(b"x").cid(), 1);
    let directory = builder.finish(Metadata::default()).nodes.pop().unwrap();
    store.put_node(&directory).unwrap();
    assert_eq!(store.gc().unwrap().nodes, 0, "it is not known yet what the tree shows");
    store.commit(Batch { published: Some(Vec::new()), ..Batch::default() }).unwrap();
    assert_eq!(store.gc().unwrap().nodes, 1);
    let evicted = || store.inner.evicted.swap(false, std::sync::atomic::Ordering::SeqCst);
    assert!(evicted());
    let (id, batch) = publish(&store, &content(4, 1));
    store.commit(batch).unwrap();
    assert!(!evicted());
    store.commit(Batch { release: vec![id], ..Batch::default() }).unwrap();
    assert!(evicted());
}

#[test]
fn what_no_store_has_put_among_the_objects_is_left_alone() {
    let dir = scratch();
    drop(open(dir.path()));
    let objects = dir.path().join("objects");
    std::fs::write(objects.join("stray"), b"file").unwrap();
    std::fs::create_dir(objects.join("lost+found")).unwrap();
    std::fs::write(objects.join("00/0000000000000001"), b"of another folder").unwrap();
    std::fs::create_dir(objects.join("01/0000000000000001")).unwrap();
    drop(open(dir.path()));
    assert!(objects.join("stray").exists() && objects.join("00/0000000000000001").exists());
}

#[test]
fn a_store_whose_files_are_all_gone_does_not_start_and_forgets_nothing() {
    let dir = scratch();
    let store = open(dir.path());
    let bytes = content(5, 1);
    let (id, batch) = publish(&store, &bytes);
    store.commit(batch).unwrap();
    let path = store.inner.object_path(id);
    drop(store);
    let elsewhere = dir.path().join("elsewhere");
    std::fs::rename(&path, &elsewhere).unwrap();
    let refused = recover::open_idle(&options(dir.path()), Arc::new(RealDisk)).unwrap_err();
    assert!(matches!(refused, StoreError::Io { .. }) && refused.to_string().contains("mount"));
    std::fs::rename(&elsewhere, &path).unwrap();
    assert!(open(dir.path()).object(root_of(&bytes).cid()).unwrap().is_some());
}
