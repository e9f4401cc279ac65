#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{ops::ControlFlow, os::unix::fs::FileExt, time::SystemTime};

use super::{
    super::{
        Batch, KnownRoot, ObjectId, Pin, SealLeaves, Store, StoreError, disk::RealDisk,
        recheck::Look, recover,
    },
    Bench, LEAF, content, leaves, options, publish, root_of, whole,
};
use crate::content::{Block, ByteRange, ContentId, FileInfo, Multihash, Placement};

fn files(bench: &Bench) -> usize {
    let dirs = std::fs::read_dir(bench.dir.path().join("objects")).unwrap();
    dirs.map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap().count()).sum()
}

/// Places all leaves of some content into an object that is made for it.
fn download(store: &Store, bytes: &[u8]) -> std::sync::Arc<super::super::Object> {
    let object = store.create_object(root_of(bytes).cid(), bytes.len() as u64).unwrap();
    for (block, range) in leaves(bytes) {
        object.place(&block, &whole(&block, range.start)).unwrap();
    }
    object
}

#[test]
fn a_published_file_is_there_after_a_restart_with_its_blocks_and_description() {
    let bench = Bench::new();
    let bytes = content(1, 5);
    let root = root_of(&bytes);
    let info = FileInfo {
        cid: *root.cid(),
        name: "film.mkv".to_owned(),
        size: bytes.len() as u64,
        chunks: leaves(&bytes).iter().map(|(b, _)| *b.cid()).collect(),
        created_at: SystemTime::now(),
    };
    let store = bench.open();
    let (id, mut batch) = publish(&store, &bytes);
    batch.files.push(info.clone());
    batch.tree_put.push((7, b"row".to_vec()));
    store.commit(batch).unwrap();
    store.close().unwrap();
    assert!(matches!(store.block(root.cid()), Err(StoreError::Closed)));
    drop(store);

    let store = bench.open();
    let object = store.object(root.cid()).unwrap().unwrap();
    assert_eq!(object.id(), id);
    assert!(object.is_complete());
    assert_eq!(object.read(ByteRange::new(100, 9000)).unwrap(), bytes[100..9000]);
    assert!(object.backing().unwrap().is_some());
    for (block, _) in leaves(&bytes) {
        assert_eq!(store.block(block.cid()).unwrap().unwrap(), block);
        assert_eq!(store.block_len(block.cid()).unwrap(), Some(4096));
    }
    assert_eq!(store.block(root.cid()).unwrap().unwrap(), root);
    assert_eq!(store.file_info(root.cid()).unwrap().unwrap(), info);
    assert_eq!(store.files().unwrap()[0].chunks, vec![]);
    assert_eq!(store.tree().unwrap(), vec![(7, b"row".to_vec())]);
}

#[test]
fn a_download_is_served_at_once_and_goes_on_after_a_restart() {
    let bench = Bench::new();
    let bytes = content(2, 4);
    let blocks = leaves(&bytes);
    let store = bench.open();
    let object = store.create_object(root_of(&bytes).cid(), bytes.len() as u64).unwrap();
    for (block, range) in &blocks[1..3] {
        object.place(block, &whole(block, range.start)).unwrap();
        assert_eq!(store.block(block.cid()).unwrap().as_ref(), Some(block));
    }
    assert!(matches!(object.read(ByteRange::new(0, 1)), Err(StoreError::Missing(_))));
    assert_eq!(object.read(ByteRange::new(LEAF, 3 * LEAF)).unwrap(), bytes[4096..12288]);
    drop(object);
    store.close().unwrap();
    drop(store);

    let store = bench.open();
    let object = store.object(root_of(&bytes).cid()).unwrap().unwrap();
    assert!(object.has(ByteRange::new(LEAF, 3 * LEAF)) && !object.has(ByteRange::new(0, 1)));
    assert!(!object.is_complete() && object.backing().unwrap().is_none());
    for (block, range) in [&blocks[0], &blocks[3]] {
        assert_eq!(store.block(block.cid()).unwrap(), None);
        object.place(block, &whole(block, range.start)).unwrap();
    }
    assert!(object.is_complete() && object.backing().unwrap().is_some());
    assert_eq!(object.read(ByteRange::new(0, 4 * LEAF)).unwrap(), bytes);
}

#[test]
fn what_was_not_committed_leaves_no_file_behind() {
    let bench = Bench::new();
    let store = bench.open();
    let kept = store.working_file().unwrap().id();
    store.working_file().unwrap();
    store.create_object(root_of(b"x").cid(), 100).unwrap();
    store.commit(Batch { keep: vec![kept], ..Batch::default() }).unwrap();
    assert_eq!(files(&bench), 3);
    // Without `close`: as after a crash of the process.
    drop(store);
    let store = bench.open();
    assert_eq!(files(&bench), 1);
    assert_eq!(store.reopen_working(kept).unwrap().unwrap().id(), kept);
    assert!(store.working_file().unwrap().id() > ObjectId(3), "ids are never given twice");
    store.commit(Batch { release: vec![kept], ..Batch::default() }).unwrap();
    assert!(store.reopen_working(kept).unwrap().is_none());
}

#[test]
fn the_exact_block_of_a_dag_pb_leaf_is_served() {
    let bench = Bench::new();
    let store = bench.open();
    let framed = [b"\x0a\x0a\x08\x02\x12\x04".as_slice(), b"DATA", b"\x18\x04"].concat();
    let block = Block::dag_pb(framed.into());
    let object = store.create_object(block.cid(), 4).unwrap();
    object.place(&block, &[Placement { offset: 0, data: 6..10 }]).unwrap();
    assert_eq!(object.read(ByteRange::new(0, 4)).unwrap(), b"DATA".as_slice());
    assert_eq!(store.block(block.cid()).unwrap().unwrap(), block);
    store.flush().unwrap();
    assert_eq!(store.block(block.cid()).unwrap().unwrap(), block);
    assert_eq!(store.block_len(block.cid()).unwrap(), Some(12));
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, vec![]);
}

#[test]
fn identity_ids_and_the_empty_block_are_always_here() {
    let bench = Bench::new();
    let store = bench.open();
    let inline = ContentId::raw(Multihash::wrap(0, b"hello").unwrap());
    assert_eq!(store.block(&inline).unwrap().unwrap().data(), b"hello".as_slice());
    assert_eq!(store.block_len(&inline).unwrap(), Some(5));
    let empty = Block::raw(bytes::Bytes::new());
    assert_eq!(store.block(empty.cid()).unwrap().unwrap(), empty);
    assert_eq!(store.block_len(empty.cid()).unwrap(), Some(0));
}

#[test]
fn a_block_of_two_files_is_served_after_one_of_them_is_gone() {
    let bench = Bench::new();
    let store = bench.open();
    let (shared, mut other) = (content(3, 2), content(4, 2));
    other[..4096].copy_from_slice(&shared[..4096]);
    let (_, batch) = publish(&store, &shared);
    store.commit(batch).unwrap();
    drop(download(&store, &other));
    store.flush().unwrap();
    let block = leaves(&shared)[0].0.clone();
    let released = store.object(root_of(&shared).cid()).unwrap().unwrap().id();
    store.commit(Batch { release: vec![released], ..Batch::default() }).unwrap();
    // Keeps the other file from being collected.
    let _open = store.object(root_of(&other).cid()).unwrap().unwrap();
    assert_eq!(store.inner.remove_objects(&[released], None).unwrap().unwrap().objects, 1);
    assert!(store.object(root_of(&shared).cid()).unwrap().is_none());
    assert_eq!(store.block(block.cid()).unwrap().unwrap(), block);
    assert_eq!(store.block(leaves(&shared)[1].0.cid()).unwrap(), None);
}

#[test]
fn a_file_published_twice_is_kept_until_its_last_owner_goes() {
    let bench = Bench::new();
    let store = bench.open();
    let (id, batch) = publish(&store, &content(5, 1));
    store.commit(batch).unwrap();
    let own = vec![(id, *root_of(&content(5, 1)).cid())];
    store.commit(Batch { own, ..Batch::default() }).unwrap();
    for left in [1, 0] {
        assert_eq!(store.inner.remove_objects(&[id], None).unwrap().unwrap().objects, 0);
        store.commit(Batch { release: vec![id], ..Batch::default() }).unwrap();
        assert!(store.object_by_id(id).unwrap().is_some(), "{left} owners left");
    }
    assert_eq!(store.inner.remove_objects(&[id], None).unwrap().unwrap().objects, 1);
    assert_eq!(store.stats().unwrap().objects, 0);
}

#[test]
fn a_batch_that_does_not_fit_changes_nothing() {
    let bench = Bench::new();
    let store = bench.open();
    let (_, mut batch) = publish(&store, &content(6, 2));
    batch.own.push((ObjectId(99), *root_of(b"x").cid()));
    batch.tree_put.push((1, vec![1]));
    assert!(matches!(store.commit(batch), Err(StoreError::Rejected(_))));
    assert_eq!(store.tree().unwrap(), vec![]);
    assert_eq!(store.stats().unwrap().objects, 0);
    let (_, mut batch) = publish(&store, &content(6, 2));
    batch.seal[0].leaves = SealLeaves::default();
    assert!(matches!(store.commit(batch), Err(StoreError::Rejected(_))));
}

#[test]
fn a_published_file_that_someone_wrote_into_is_withdrawn() {
    let bench = Bench::new();
    let store = bench.open();
    let bytes = content(7, 2);
    let (id, batch) = publish(&store, &bytes);
    store.commit(batch).unwrap();
    let path = store.inner.object_path(id);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"!", 0).unwrap();
    let blocks = leaves(&bytes);
    assert_eq!(store.block(blocks[0].0.cid()).unwrap(), None);
    assert_eq!(store.block(blocks[1].0.cid()).unwrap().as_ref(), Some(&blocks[1].0));
    let object = store.object_by_id(id).unwrap().unwrap();
    assert!(object.backing().unwrap().is_none() && !object.is_complete());
    assert!(matches!(object.read(ByteRange::new(0, 9)), Err(StoreError::Missing(_))));
    assert_eq!(object.read(LEAF_1).unwrap(), bytes[4096..8192]);
    // Cut, it cannot be told what is left.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
    assert_eq!(store.block(blocks[1].0.cid()).unwrap(), None);
}

const LEAF_1: ByteRange = ByteRange { start: LEAF, end: 2 * LEAF };

#[test]
fn a_published_file_that_only_looks_changed_stays_in_service() {
    let bench = Bench::new();
    let mut store = bench.open();
    let bytes = content(9, 3);
    let (id, batch) = publish(&store, &bytes);
    store.commit(batch).unwrap();
    let path = store.inner.object_path(id);
    let touch = |mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let reopen = |store: Store| {
        store.close().unwrap();
        drop(store);
        bench.open()
    };
    for (round, verify) in [(0, false), (1, true)] {
        touch(0o640 + round);
        store = reopen(store);
        let object = store.object_by_id(id).unwrap().unwrap();
        assert_ne!(object.look().unwrap(), Look::Same);
        // Each leaf, and each part of one, is verified by itself.
        assert_eq!(object.read(ByteRange::new(100, 9000)).unwrap(), bytes[100..9000]);
        assert_eq!(store.block(leaves(&bytes)[2].0.cid()).unwrap().unwrap(), leaves(&bytes)[2].0);
        if verify {
            assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, vec![]);
            assert_eq!(object.look().unwrap(), Look::Same);
        }
        assert!(object.backing().unwrap().is_some());
        drop(object);
        store = reopen(store);
        let object = store.object_by_id(id).unwrap().unwrap();
        assert_eq!(object.look().unwrap(), Look::Same, "the new times are kept");
    }
}

#[test]
fn a_large_file_that_looks_changed_is_hashed_behind_the_one_who_opens_it() {
    let bench = Bench::new();
    let store =
        recover::open_idle(&options(bench.dir.path()), std::sync::Arc::new(RealDisk)).unwrap();
    let bytes = content(10, (17 << 20) / LEAF);
    let (id, batch) = publish(&store, &bytes);
    store.commit(batch).unwrap();
    let file = std::fs::File::open(store.inner.object_path(id)).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
    let object = store.object_by_id(id).unwrap().unwrap();
    assert!(object.backing().unwrap().is_none() && object.is_complete());
    store.inner.recheck_suspects();
    assert!(object.backing().unwrap().is_some());
}

#[test]
fn verify_finds_a_flipped_bit_and_the_block_can_be_fetched_again() {
    let bench = Bench::new();
    let store = bench.open();
    let bytes = content(8, 3);
    let object = download(&store, &bytes);
    store.flush().unwrap();
    let path = store.inner.object_path(object.id());
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[5000] ^ 1], 5000).unwrap();
    let (bad, range) = leaves(&bytes)[1].clone();
    let report = store.verify(&mut |done, all| assert!(done <= all)).unwrap();
    assert_eq!((report.blocks, report.bad), (3, vec![*bad.cid()]));
    assert_eq!(store.block(bad.cid()).unwrap(), None);
    assert!(!object.is_complete());
    object.place(&bad, &whole(&bad, range.start)).unwrap();
    assert_eq!(object.read(ByteRange::new(0, 3 * LEAF)).unwrap(), bytes);
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, vec![]);
}

#[test]
fn verify_goes_in_steps_between_which_the_index_is_free_and_it_may_end() {
    let bench = Bench::new();
    let store = bench.open();
    let bytes = content(8, 3);
    let object = download(&store, &bytes);
    // More nodes than one step takes.
    for n in 0..5u8 {
        store.put_node(&Block::raw(vec![n; 2 << 20].into())).unwrap();
    }
    store.flush().unwrap();
    let path = store.inner.object_path(object.id());
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[5000] ^ 1], 5000).unwrap();
    let bad = *leaves(&bytes)[1].0.cid();

    let stop_after = |limit: usize| {
        let mut steps = Vec::new();
        let verified = store.verify_while(&mut |done, total| {
            // Others commit between any two steps.
            store.pin(Pin { root: bad, name: steps.len().to_string() }).unwrap();
            assert_eq!(total, 3 * LEAF);
            steps.push((done, store.block_len(&bad).unwrap().is_some()));
            if steps.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (verified, steps)
    };
    let (ended, steps) = stop_after(1);
    assert!(matches!(ended, Err(StoreError::Closed)), "{ended:?}");
    assert_eq!(steps, [(0, true)], "something was looked at after the end");
    // Also of one that is ended in its last step what is wrong is withdrawn.
    let (ended, steps) = stop_after(3);
    assert!(matches!(ended, Err(StoreError::Closed)), "{ended:?}");
    assert_eq!(steps, [(0, true), (0, true), (3 * LEAF, false)]);
    assert_eq!(store.pins().unwrap().len(), 1);
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, []);
}

#[test]
fn a_second_daemon_is_refused() {
    let bench = Bench::new();
    let _store = bench.open();
    let second = Store::open(options(bench.dir.path()), &bench.tasks());
    assert!(matches!(second, Err(StoreError::Locked(_))));
}

#[test]
fn pins_and_known_roots_are_kept() {
    let bench = Bench::new();
    let store = bench.open();
    let root = *root_of(b"1").cid();
    store.pin(Pin { root, name: "music".to_owned() }).unwrap();
    store.remember_root(KnownRoot { root, directory: true }).unwrap();
    store.close().unwrap();
    drop(store);
    let store = bench.open();
    assert_eq!(store.pins().unwrap(), vec![Pin { root, name: "music".to_owned() }]);
    assert_eq!(store.known_roots().unwrap(), vec![KnownRoot { root, directory: true }]);
    assert!(store.unpin(&root).unwrap() && !store.unpin(&root).unwrap());
}

#[test]
fn a_newer_format_is_refused_with_a_clear_error() {
    let bench = Bench::new();
    bench.open().close().unwrap();
    let index = redb::Database::open(bench.dir.path().join("index.redb")).unwrap();
    let txn = index.begin_write().unwrap();
    txn.open_table(super::super::index::META).unwrap().insert("format", 9).unwrap();
    txn.commit().unwrap();
    drop(index);
    let refused = Store::open(options(bench.dir.path()), &bench.tasks()).unwrap_err();
    assert!(refused.to_string().contains("format 9"), "{refused}");
}

#[test]
fn leaves_of_a_seal_come_back_as_they_were_given() {
    let content = [content(7, 3), vec![9; 100]].concat();
    let given: Vec<_> = leaves(&content).iter().map(|(b, range)| (*b.cid(), *range)).collect();
    let held: SealLeaves = given.iter().copied().collect();
    assert_eq!(held.size(), Some(content.len() as u64));
    let back: Vec<_> = held.iter().map(|(hash, range)| (ContentId::raw(hash), range)).collect();
    assert_eq!(back, given);
    let gap: SealLeaves = [given[0], given[2]].into_iter().collect();
    assert_eq!(gap.size(), None);
    let longer: SealLeaves =
        [(given[3].0, ByteRange::new(0, 100)), (given[0].0, ByteRange::new(100, 4196))]
            .into_iter()
            .collect();
    assert_eq!(longer.size(), None);
}

#[test]
fn what_is_published_or_pinned_is_retained_and_what_is_cached_is_not() {
    let bench = Bench::new();
    let store = bench.open();
    let (published, pinned, cached) = (content(1, 3), content(2, 3), content(3, 3));
    let (_, batch) = publish(&store, &published);
    store.commit(batch).unwrap();
    for bytes in [&pinned, &cached] {
        download(&store, bytes);
        store.put_node(&root_of(bytes)).unwrap();
    }
    store.flush().unwrap();
    store.pin(Pin { root: *root_of(&pinned).cid(), name: String::new() }).unwrap();
    for (bytes, retained) in [(&published, true), (&pinned, true), (&cached, false)] {
        let leaf = leaves(bytes)[1].0.clone();
        assert_eq!(store.is_retained(leaf.cid()).unwrap(), retained);
        assert_eq!(store.is_retained(root_of(bytes).cid()).unwrap(), retained);
    }
}

#[test]
fn only_whole_content_of_the_same_root_can_be_owned() {
    let bench = Bench::new();
    let store = bench.open();
    let own = |id, root| store.commit(Batch { own: vec![(id, root)], ..Batch::default() });
    let bytes = content(1, 3);
    let root = *root_of(&bytes).cid();
    let object = download(&store, &bytes);
    own(object.id(), root).unwrap();
    let other = own(object.id(), *root_of(b"another").cid());
    assert!(matches!(other, Err(StoreError::Rejected(_))));
    store.withdraw(leaves(&bytes)[1].0.cid()).unwrap();
    assert!(matches!(own(object.id(), root), Err(StoreError::Rejected(_))));
    let whole_again = download(&store, &bytes);
    own(whole_again.id(), root).unwrap();
    drop((object, whole_again));
    let part = content(2, 2);
    let object = store.create_object(root_of(&part).cid(), 2 * LEAF).unwrap();
    assert!(matches!(own(object.id(), *root_of(&part).cid()), Err(StoreError::Rejected(_))));
}
