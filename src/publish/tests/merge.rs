//! New versions of large files, where the filesystem cannot share extents.

use super::*;
use crate::{
    content::ByteRange,
    store::{Mergeable, ObjectId, Pin},
};

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

impl Bench {
    fn sealed(&self, ino: UploadIno) -> row::Sealed {
        self.uploads.inner.names().tree.sealed(ino).cloned().unwrap()
    }

    fn object_of(&self, ino: UploadIno) -> ObjectId {
        self.sealed(ino).object
    }

    /// Waits until the published version is one whole object.
    async fn until_whole(&self, ino: UploadIno) {
        tokio::time::timeout(Duration::from_secs(600), async {
            while self.sealed(ino).below.is_some() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
        .await
        .unwrap();
        self.uploads.fsync(ino).unwrap();
    }

    /// Bytes of disk of all objects.
    fn allocated(&self) -> u64 {
        self.store.stats().unwrap().bytes
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_to_a_large_file_is_a_layer_until_it_is_merged() {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let mut data = first.clone();
    let ino = bench.put("f", &data);
    let old = bench.uploads.cid(ino).await.unwrap();
    let object = bench.object_of(ino);
    for seed in 2..4 {
        data = append(&bench, ino, &data, seed);
        assert_eq!(bench.read(ino), data);
        assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&data));
        assert_eq!(bench.sealed(ino).below.is_some(), !bench.store.can_clone());
        assert_eq!(bench.read(ino), data);
        bench.until_whole(ino).await;
        assert_eq!(bench.uploads.cid_now(ino), Some(id_of(&data)));
        assert_eq!(bench.read(ino), data);
    }
    if !bench.store.can_clone() {
        assert_eq!(bench.object_of(ino), object, "no copy was made");
        assert_old_is_served(&bench, &old, &first);
    }
    let bench = bench.restart().await;
    assert_eq!(bench.read(ino), data);
    assert_eq!(bench.uploads.cid_now(ino), Some(id_of(&data)));
    assert_eq!(bench.store.verify(&mut |_, _| {}).unwrap().bad, []);
}

#[tokio::test(start_paused = true)]
async fn versions_of_a_file_that_somebody_reads_cost_what_was_written() {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let ino = bench.put("f", &first);
    let old = bench.uploads.cid(ino).await.unwrap();
    if bench.store.can_clone() {
        return;
    }
    let object = bench.object_of(ino);
    let held = bench.store.object(&old).unwrap().unwrap().backing().unwrap().unwrap();
    let before = bench.allocated();
    let mut data = first.clone();
    for seed in 2..5 {
        data = append(&bench, ino, &data, seed);
        let root = bench.uploads.cid(ino).await.unwrap();
        assert_eq!(root, id_of(&data));
        assert_eq!(bench.read(ino), data);
        assert_old_is_served(&bench, &root, &data);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(bench.sealed(ino).below.is_some_and(|below| below.base == object), "it is held");
    }
    let writer = bench.uploads.open_file(ino, WRITE).unwrap();
    bench.write(writer, 5 * LEAF as u64 + 7, b"in the middle");
    data[5 * LEAF + 7..][..13].copy_from_slice(b"in the middle");
    bench.uploads.release(writer);
    bench
        .uploads
        .setattr(ino, &SetAttr { size: Some(35 * LEAF as u64 + 1), ..SetAttr::default() })
        .unwrap();
    data.truncate(35 * LEAF + 1);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&data));
    assert_eq!(bench.read(ino), data);
    let grown = bench.allocated() - before;
    assert!(grown < 12 * LEAF as u64, "four small changes took {grown} bytes");
    let mut read = vec![0; first.len()];
    held.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, first, "the reader sees the old version");
    let bench = bench.restart().await;
    assert_eq!(bench.read(ino), data, "after a restart, too");
    assert_old_is_served(&bench, &old, &first);
    drop(held);
    bench.until_whole(ino).await;
    assert_eq!(bench.object_of(ino), object);
    assert_eq!(bench.read(ino), data);
    assert_old_is_served(&bench, &old, &first);
    assert_eq!(bench.store.verify(&mut |_, _| {}).unwrap().bad, []);
}

#[tokio::test(start_paused = true)]
async fn opening_a_layer_and_writing_nothing_changes_nothing() {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let ino = bench.put("f", &first);
    let old = bench.uploads.cid(ino).await.unwrap();
    let held = bench.store.object(&old).unwrap().unwrap().backing().unwrap().unwrap();
    let data = append(&bench, ino, &first, 2);
    bench.uploads.cid(ino).await.unwrap();
    let sealed = bench.sealed(ino);
    let writer = bench.uploads.open_file(ino, WRITE).unwrap();
    assert_eq!(bench.read(ino), data);
    bench.uploads.release(writer);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&data));
    assert_eq!(bench.sealed(ino), sealed);
    drop(held);
    bench.until_whole(ino).await;
    assert_eq!(bench.read(ino), data);
}

#[tokio::test(start_paused = true)]
async fn a_layer_over_what_stays_for_others_is_made_whole_beside_it() {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let ino = bench.put("f", &first);
    let old = bench.uploads.cid(ino).await.unwrap();
    bench.store.pin(Pin { root: old, name: String::new() }).unwrap();
    let data = append(&bench, ino, &first, 2);
    let root = bench.uploads.cid(ino).await.unwrap();
    bench.until_whole(ino).await;
    assert_eq!(bench.read(ino), data);
    assert_eq!(bench.uploads.cid_now(ino), Some(root));
    assert!(bench.store.object(&old).unwrap().unwrap().is_complete());
    assert!(bench.store.object(&root).unwrap().unwrap().is_complete());
    let bench = bench.restart().await;
    assert_eq!(bench.read(ino), data);
    bench.unlink("f");
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    bench.store.gc().unwrap();
    assert_eq!(bench.objects(), 1, "the pinned version alone is left");
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_is_removed_leaves_nothing() {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let ino = bench.put("f", &first);
    let old = bench.uploads.cid(ino).await.unwrap();
    let held = bench.store.object(&old).unwrap().unwrap().backing().unwrap().unwrap();
    append(&bench, ino, &first, 2);
    bench.uploads.cid(ino).await.unwrap();
    bench.unlink("f");
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    drop(held);
    bench.store.gc().unwrap();
    assert_eq!(bench.objects(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_is_overwritten_or_written_back_gives_up_what_lay_below() {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let ino = bench.put("f", &first);
    let old = bench.uploads.cid(ino).await.unwrap();
    append(&bench, ino, &first, 2);
    bench.uploads.cid(ino).await.unwrap();
    // Back to the old version: its object is the file's again, once.
    let size = Some(first.len() as u64);
    bench.uploads.setattr(ino, &SetAttr { size, ..SetAttr::default() }).unwrap();
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), old);
    assert_eq!(bench.read(ino), first);
    append(&bench, ino, &first, 3);
    bench.uploads.cid(ino).await.unwrap();
    let writer = bench.uploads.open_file(ino, TRUNCATE).unwrap();
    bench.write(writer, 0, b"new");
    bench.uploads.release(writer);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(b"new"));
    bench.store.gc().unwrap();
    assert_eq!(bench.objects(), 1);
    assert_eq!(bench.read(ino), b"new");
}

#[tokio::test(start_paused = true)]
async fn what_another_file_is_too_stays_as_it_is() {
    let bench = Bench::new();
    let data = bytes(LARGE, 1);
    let (one, two) = (bench.put("one", &data), bench.put("two", &data));
    let root = bench.uploads.cid(one).await.unwrap();
    bench.uploads.cid(two).await.unwrap();
    let appended = append(&bench, one, &data, 2);
    assert_eq!(bench.uploads.cid(one).await.unwrap(), id_of(&appended));
    bench.until_whole(one).await;
    assert_eq!(bench.read(one), appended);
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
    kill_amid_a_merge(false).await;
    kill_amid_a_merge(true).await;
}

/// `published`: the version above is published as a layer when its merge begins.
async fn kill_amid_a_merge(published: bool) {
    let bench = Bench::new();
    let first = bytes(LARGE, 1);
    let ino = bench.put("f", &first);
    let old = bench.uploads.cid(ino).await.unwrap();
    let object = ObjectId(bench.uploads.backing(ino).unwrap().version);
    let data = append(&bench, ino, &first, 2);
    if published {
        assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&data));
    }
    bench.uploads.fsync(ino).unwrap();
    let clones = bench.store.can_clone();
    let dir = bench.kill().await;
    if clones {
        return;
    }
    // The new version is being written into the one below, and the leaf that was written is torn in it.
    let tasks = Tasks::new();
    let options =
        StoreOptions { dir: dir.path().join("data"), cache_limit: None, min_free: Some(0) };
    let store = Store::open(options, &tasks).unwrap();
    let written = [ByteRange::new(40 * LEAF as u64, u64::MAX)].into_iter().collect();
    assert_eq!(store.prepare_merge(object, &written).unwrap(), Mergeable::Now);
    let below = store.begin_merge(object, &written).unwrap().unwrap();
    below.open(true).unwrap().write_all_at(&[7; 5000], 40 * LEAF as u64).unwrap();
    assert!(tasks.shutdown(Duration::from_secs(20)).await.is_empty());
    store.close().unwrap();
    drop(store);
    let bench = Bench::open(dir);
    assert_eq!(bench.read(ino), data);
    let root = bench.uploads.cid(ino).await.unwrap();
    assert_eq!(root, id_of(&data));
    assert_eq!(bench.read(ino), data);
    assert_old_is_served(&bench, &old, &first);
    assert_old_is_served(&bench, &root, &data);
    bench.until_whole(ino).await;
    assert_eq!(bench.object_of(ino), object);
    assert_eq!(bench.read(ino), data);
    assert_old_is_served(&bench, &old, &first);
    assert_eq!(bench.store.verify(&mut |_, _| {}).unwrap().bad, []);
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
    assert_eq!(bench.store.prepare_merge(object, &written).unwrap(), Mergeable::Now);
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
