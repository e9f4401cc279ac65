//! New versions of large files, where the filesystem cannot share extents.

use super::*;
use crate::{content::ByteRange, store::ObjectId};

const LARGE: usize = 40 * LEAF + 100;

/// Appends; gives what the file holds then.
fn append(bench: &Bench, ino: UploadIno, old: &[u8], seed: u64) -> Vec<u8> {
    let more = bytes(1000, seed);
    let handle = bench.uploads.open_file(ino, APPEND).unwrap();
    bench.write(handle, 0, &more);
    bench.uploads.release(handle);
    [old, &more].concat()
}

/// Every block of the version is there.
fn assert_old_is_served(bench: &Bench, root: &ContentId, content: &[u8]) {
    assert!(bench.store.block(root).unwrap().is_some());
    for leaf in content.chunks(LEAF) {
        let id = ContentId::raw(crate::content::sha2_256(leaf));
        assert_eq!(bench.store.block(&id).unwrap().unwrap().data(), leaf);
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_to_a_large_file_is_merged_into_it() {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let mut data = first.clone();
    let ino = bench.put("f", &data);
    let old = bench.uploads.cid(ino).await.unwrap();
    let object = bench.uploads.backing(ino).unwrap().version;
    for seed in 2..4 {
        data = append(&bench, ino, &data, seed);
        assert_eq!(bench.read(ino), data);
        assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&data));
        assert_eq!(bench.read(ino), data);
    }
    if !bench.store.can_clone() {
        assert_eq!(bench.uploads.backing(ino).unwrap().version, object, "no copy was made");
        assert_old_is_served(&bench, &old, &first);
    }
    let bench = bench.restart().await;
    assert_eq!(bench.read(ino), data);
    assert_eq!(bench.uploads.cid_now(ino), Some(id_of(&data)));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_reads_or_another_file_is_too_is_copied() {
    let bench = Bench::new();
    let data = bytes(LARGE, 1);
    let (one, two) = (bench.put("one", &data), bench.put("two", &data));
    let root = bench.uploads.cid(one).await.unwrap();
    bench.uploads.cid(two).await.unwrap();
    let appended = append(&bench, one, &data, 2);
    assert_eq!(bench.uploads.cid(one).await.unwrap(), id_of(&appended));
    assert_eq!(bench.read(two), data);
    assert_eq!(bench.uploads.cid_now(two), Some(root));
    let held = bench.store.object(&root).unwrap().unwrap().backing().unwrap().unwrap();
    let other = append(&bench, two, &data, 3);
    assert_eq!(bench.uploads.cid(two).await.unwrap(), id_of(&other));
    let mut read = vec![0; data.len()];
    held.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, data, "the reader sees the old version");
}

#[tokio::test(start_paused = true)]
async fn a_kill_amid_a_merge_loses_nothing() {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let ino = bench.put("f", &first);
    let old = bench.uploads.cid(ino).await.unwrap();
    let object = ObjectId(bench.uploads.backing(ino).unwrap().version);
    let data = append(&bench, ino, &first, 2);
    bench.uploads.fsync(ino).unwrap();
    let clones = bench.store.can_clone();
    let dir = bench.kill().await;
    if clones {
        return;
    }
    // The new version is being written into the one below, and the leaf that was written is torn in it.
    let tasks = Tasks::new();
    let options = StoreOptions { dir: dir.path().join("data"), cache_limit: None, min_free: 0 };
    let store = Store::open(options, &tasks).unwrap();
    let written = [ByteRange::new(40 * LEAF as u64, u64::MAX)].into_iter().collect();
    let below = store.begin_merge(object, &written).unwrap().unwrap();
    below.open(true).unwrap().write_all_at(&[7; 5000], 40 * LEAF as u64).unwrap();
    assert!(tasks.shutdown(Duration::from_secs(20)).await.is_empty());
    store.close().unwrap();
    drop(store);
    let bench = Bench::open(dir);
    assert_eq!(bench.read(ino), data);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&data));
    assert_eq!(bench.read(ino), data);
    assert_old_is_served(&bench, &old, &first);
}

#[tokio::test(start_paused = true)]
async fn a_reader_beside_a_writer_that_writes_nothing_reads_on() {
    let bench = Bench::new();
    let data = bytes(3 * LEAF, 1);
    let ino = bench.put("f", &data);
    bench.uploads.cid(ino).await.unwrap();
    let writer = bench.uploads.open_file(ino, WRITE).unwrap();
    let reader = bench.uploads.open_file(ino, READ).unwrap();
    assert_eq!(bench.uploads.read(reader, 0, data.len()).unwrap()[..], data[..]);
    bench.uploads.release(writer);
    bench.uploads.cid(ino).await.unwrap();
    assert_eq!(bench.uploads.state(ino).unwrap(), UploadState::Published);
    assert_eq!(bench.uploads.read(reader, 0, data.len()).unwrap()[..], data[..]);
}

#[tokio::test(start_paused = true)]
async fn the_old_version_is_served_at_every_step_of_a_merge() {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let ino = bench.put("f", &first);
    let old = bench.uploads.cid(ino).await.unwrap();
    if bench.store.can_clone() {
        return;
    }
    let object = ObjectId(bench.uploads.backing(ino).unwrap().version);
    let written = [ByteRange::new(3 * LEAF as u64, 5 * LEAF as u64)].into_iter().collect();
    let into = bench.store.begin_merge(object, &written).unwrap().unwrap();
    assert_old_is_served(&bench, &old, &first);
    into.open(true).unwrap().write_all_at(&vec![9; 2 * LEAF], 3 * LEAF as u64).unwrap();
    assert_old_is_served(&bench, &old, &first);
    assert_eq!(bench.store.verify(&mut |_, _| {}).unwrap().bad, []);
    // Nothing that is fetched may land in the file that is being written.
    let kept = bench.store.object(&old).unwrap().unwrap();
    assert_ne!(kept.id(), object);
    assert!(bench.store.object_by_id(object).unwrap().unwrap().backing().unwrap().is_none());
}
