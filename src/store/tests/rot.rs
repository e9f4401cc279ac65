//! Bytes that rotted on the disk are neither served nor copied, and a good copy heals them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs::File, os::unix::fs::FileExt};

use super::{
    super::{Batch, ObjectId, SealLeaves, Store, index},
    Bench, content, leaves, publish, root_of, whole,
};
use crate::content::ByteRange;

const AT: u64 = 5 * super::LEAF + 7;

fn all(bytes: &[u8]) -> ByteRange {
    ByteRange::new(0, bytes.len() as u64)
}

fn published(store: &Store, bytes: &[u8]) -> ObjectId {
    let (id, batch) = publish(store, bytes);
    store.commit(batch).unwrap();
    id
}

fn downloaded(store: &Store, bytes: &[u8]) -> ObjectId {
    let object = store.create_object(root_of(bytes).cid(), bytes.len() as u64).unwrap();
    for (block, range) in leaves(bytes) {
        object.place(&block, &whole(&block, range.start)).unwrap();
    }
    store.flush().unwrap();
    object.id()
}

fn seal_leaves(bytes: &[u8]) -> SealLeaves {
    leaves(bytes).iter().map(|(block, range)| (*block.cid(), *range)).collect()
}

fn scratch_file(bench: &Bench, bytes: &[u8]) -> File {
    let path = bench.dir.path().join("copy");
    std::fs::write(&path, bytes).unwrap();
    File::open(path).unwrap()
}

#[test]
fn rotten_leaf_is_served_from_another_place_or_not_at_all() {
    let bench = Bench::new();
    let store = bench.open();
    let bytes = content(1, 10);
    let longer = [content(2, 1), bytes.clone()].concat();
    let first = published(&store, &bytes);
    store.rot(first, AT).unwrap();
    let (block, range) = leaves(&bytes)[5].clone();
    let second = published(&store, &longer);
    assert_eq!(store.block(block.cid()).unwrap(), Some(block.clone()), "the second file has it");
    let object = store.object_by_id(first).unwrap().unwrap();
    assert!(!object.has(range));
    store.rot(second, AT + super::LEAF).unwrap();
    assert_eq!(store.block(block.cid()).unwrap(), None);
    assert_eq!(store.block_len(block.cid()).unwrap(), None);
    // The others are served as before.
    let (other, _) = leaves(&bytes)[4].clone();
    assert_eq!(store.block(other.cid()).unwrap(), Some(other));
}

#[test]
fn rotten_bytes_are_not_read_through_the_daemon() {
    let bench = Bench::new();
    let store = bench.open();
    for (bytes, id) in [
        (content(1, 10), published(&store, &content(1, 10))),
        (content(2, 10), downloaded(&store, &content(2, 10))),
    ] {
        store.rot(id, AT).unwrap();
        let object = store.object_by_id(id).unwrap().unwrap();
        let rotten = ByteRange::at(AT - 1, 2);
        assert!(object.read(rotten).is_err());
        assert!(!object.holds(rotten).unwrap() && !object.is_complete());
        let good = ByteRange::new(10, 5 * super::LEAF);
        assert!(object.read(good).unwrap() == bytes[10..5 * 4096]);
    }
}

#[test]
fn good_copy_heals_a_rotten_object() {
    let bench = Bench::new();
    let store = bench.open();
    let bytes = content(1, 10);
    for id in [published(&store, &bytes), downloaded(&store, &content(2, 10))] {
        let bytes = content(u8::try_from(id.0).unwrap(), 10);
        let file = scratch_file(&bench, &bytes);
        for at in [AT, 0, all(&bytes).end - 1] {
            store.rot(id, at).unwrap();
        }
        store.heal(root_of(&bytes).cid(), &file, &seal_leaves(&bytes)).unwrap();
        let object = store.object_by_id(id).unwrap().unwrap();
        assert!(store.is_verified(id) && object.verify().unwrap());
        assert!(object.read(all(&bytes)).unwrap() == bytes);
        // It looks like the repaired file from now on, and is opened with passthrough again.
        assert!(object.verified_backing().unwrap().is_some());
    }
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, []);
}

#[test]
fn copy_that_is_wrong_itself_heals_nothing() {
    let bench = Bench::new();
    let store = bench.open();
    let bytes = content(1, 10);
    let id = published(&store, &bytes);
    store.rot(id, AT).unwrap();
    let mut wrong = bytes.clone();
    wrong[usize::try_from(AT).unwrap()] ^= 2;
    let file = scratch_file(&bench, &wrong);
    store.heal(root_of(&bytes).cid(), &file, &seal_leaves(&bytes)).unwrap();
    let object = store.object_by_id(id).unwrap().unwrap();
    assert!(!object.is_complete() && object.has(ByteRange::new(0, 5 * super::LEAF)));
}

#[test]
fn verify_heals_from_another_copy() {
    let bench = Bench::new();
    let store = bench.open();
    let bytes = content(1, 10);
    let longer = [bytes.clone(), content(2, 1)].concat();
    let (first, _) = (published(&store, &bytes), published(&store, &longer));
    store.rot(first, AT).unwrap();
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad.len(), 1);
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, []);
    let object = store.object_by_id(first).unwrap().unwrap();
    assert!(object.read(all(&bytes)).unwrap() == bytes);
}

#[test]
fn change_of_a_downloaded_file_shows_once_it_is_whole() {
    let bench = Bench::new();
    let store = bench.open();
    let bytes = content(1, 10);
    let id = downloaded(&store, &bytes);
    let path = store.inner.object_path(id);
    File::options().write(true).open(path).unwrap().write_all_at(b"changed", AT).unwrap();
    let object = store.object_by_id(id).unwrap().unwrap();
    assert!(object.verified_backing().unwrap().is_none());
    assert!(!object.has(ByteRange::at(AT, 1)) && object.has(ByteRange::new(0, 5 * super::LEAF)));
    let (block, range) = leaves(&bytes)[5].clone();
    object.place(&block, &whole(&block, range.start)).unwrap();
    store.flush().unwrap();
    assert!(object.verified_backing().unwrap().is_some());
}

#[test]
fn rotten_node_of_the_index_is_withdrawn_and_comes_back() {
    let bench = Bench::new();
    let store = bench.open();
    let node = root_of(b"x");
    store.put_node(&node).unwrap();
    store.flush().unwrap();
    let key = node.cid().hash().to_bytes();
    let rotten = super::super::codec::encode_node(node.cid(), b"rotten");
    store.inner.index.write(|rows| rows.put(index::NODES, &key, &rotten)).unwrap();
    assert_eq!(store.block(node.cid()).unwrap(), None);
    assert_eq!(store.block_len(node.cid()).unwrap(), None);
    store.put_node(&node).unwrap();
    assert_eq!(store.block(node.cid()).unwrap(), Some(node));
}

#[test]
fn old_version_that_a_merge_keeps_has_no_rotten_leaf() {
    let bench = Bench::new();
    let store = bench.open();
    let bytes = content(1, 10);
    let id = published(&store, &bytes);
    store.rot(id, AT).unwrap();
    let overwritten = [ByteRange::new(4 * super::LEAF, 7 * super::LEAF)].into_iter().collect();
    store.prepare_merge(id, &overwritten).unwrap();
    let (rotten, _) = leaves(&bytes)[5].clone();
    let (good, _) = leaves(&bytes)[4].clone();
    assert_eq!(store.block(rotten.cid()).unwrap(), None);
    store.commit(Batch { release: vec![id], ..Batch::default() }).unwrap();
    assert_eq!(store.block(good.cid()).unwrap(), Some(good));
}
