//! A disk with little room: what is stored stays, the index never starves, and it goes on when there is room.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, Mutex},
};

use super::{
    super::{
        Batch, ObjectId, Store, StoreError, StoreOptions, Trouble,
        disk::{Disk, RealDisk},
        evict, index, recover,
        reserve::RESERVE_FILE,
        space::{Room as Wanted, Space},
    },
    content, leaves, options, publish, root_of, scratch, try_publish, whole,
};
use crate::content::{ByteRange, RangeSet};

/// What the disk gives room in.
const BLOCK: u64 = 4096;

/// Counts blocks: a write to a block that has none takes one, until there is none left.
#[derive(Debug)]
pub(super) struct SmallDisk {
    room: Mutex<Room>,
    blocks: u64,
}

#[derive(Debug)]
struct Room {
    free: u64,
    /// Files that can still be made, and all that there can be; none: no limit.
    inodes: Option<(u64, u64)>,
    /// Blocks of each file, by inode.
    held: HashMap<u64, RangeSet>,
}

impl SmallDisk {
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        let blocks = bytes / BLOCK;
        let room = Room { free: blocks, inodes: None, held: HashMap::new() };
        Arc::new(Self { room: Mutex::new(room), blocks })
    }

    /// From now on so many more files can be made.
    pub(super) fn limit_inodes(&self, free: u64) {
        self.room.lock().unwrap().inodes = Some((free, 1000));
    }

    fn take(&self, file: &File, range: ByteRange) -> io::Result<()> {
        let mut room = self.room.lock().unwrap();
        let held = room.held.entry(file.metadata()?.ino()).or_default();
        let blocks = ByteRange::new(range.start / BLOCK, range.end.div_ceil(BLOCK));
        let new: u64 = held.missing(blocks).iter().map(ByteRange::len).sum();
        if new > room.free {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        room.held.get_mut(&file.metadata()?.ino()).unwrap().insert(blocks);
        room.free -= new;
        Ok(())
    }

    fn give(&self, ino: u64, range: ByteRange) {
        let mut room = self.room.lock().unwrap();
        let held = room.held.entry(ino).or_default();
        let before = held.bytes();
        held.remove(range);
        let freed = before - held.bytes();
        room.free += freed;
    }

    /// Somebody else takes all that is left.
    pub(super) fn fill(&self) -> u64 {
        std::mem::take(&mut self.room.lock().unwrap().free)
    }

    fn add(&self, blocks: u64) {
        self.room.lock().unwrap().free += blocks;
    }
}

impl Disk for SmallDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        if let Some((free, _)) = &mut self.room.lock().unwrap().inodes {
            *free = free.checked_sub(1).ok_or(io::Error::from_raw_os_error(libc::ENOSPC))?;
        }
        RealDisk.create(path)
    }

    fn open_or_create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        self.take(file, ByteRange::at(offset, data.len() as u64))?;
        file.write_all_at(data, offset)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.give(file.metadata()?.ino(), ByteRange::new(len.div_ceil(BLOCK), u64::MAX));
        file.set_len(len)
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let (free, capacity) = (self.room.lock().unwrap().free * BLOCK, self.blocks * BLOCK);
        let (inodes_free, inodes) = self.room.lock().unwrap().inodes.unwrap_or_default();
        let (reserved, read_only) = (0, false);
        Ok(Space { free, reserved, capacity, inodes_free, inodes, read_only })
    }

    fn allocate(&self, file: &File, len: u64) -> io::Result<()> {
        self.take(file, ByteRange::new(0, len))?;
        file.set_len(len)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let ino = fs::metadata(path)?.ino();
        self.give(ino, ByteRange::new(0, u64::MAX));
        if let Some((free, _)) = &mut self.room.lock().unwrap().inodes {
            *free += 1;
        }
        RealDisk.unlink(path)
    }
}

fn open(dir: &Path, disk: &Arc<SmallDisk>) -> Store {
    recover::open_idle(&options(dir), disk.clone()).unwrap()
}

/// Downloads content until the disk is full; the leaves that were taken in.
fn download(store: &Store, bytes: &[u8]) -> (Vec<(crate::content::Block, ByteRange)>, StoreError) {
    let object = store.create_object(root_of(bytes).cid(), bytes.len() as u64).unwrap();
    let mut placed = Vec::new();
    for (block, range) in leaves(bytes) {
        match object.place(&block, &whole(&block, range.start)) {
            Ok(()) => placed.push((block, range)),
            Err(error) => return (placed, error),
        }
    }
    panic!("the disk was not filled");
}

fn assert_readable(store: &Store, bytes: &[u8]) {
    let object = store.object(root_of(bytes).cid()).unwrap().unwrap();
    assert!(object.read(ByteRange::new(0, bytes.len() as u64)).unwrap() == bytes);
}

#[test]
fn a_full_disk_stops_what_comes_and_nothing_else() {
    let dir = scratch();
    let disk = SmallDisk::new(30 << 20);
    let store = open(dir.path(), &disk);
    let kept = content(1, 300);
    let (id, batch) = publish(&store, &kept);
    store.commit(batch).unwrap();
    store.pin(super::super::Pin { root: *root_of(&kept).cid(), name: String::new() }).unwrap();

    let big = content(2, 8000);
    let (placed, error) = download(&store, &big);
    assert!(error.is_no_space(), "{error}");
    assert!(!placed.is_empty());
    // What was taken in can be made durable: the index has room of its own.
    store.flush().unwrap();
    assert_readable(&store, &kept);
    for (block, _) in &placed {
        assert_eq!(store.block(block.cid()).unwrap().as_ref(), Some(block));
    }
    let report = store.verify(&mut |_, _| {}).unwrap();
    assert_eq!((report.bad.len(), report.blocks), (0, 301 + placed.len() as u64));

    // What removes goes on, and makes the room that the rest then has.
    store.commit(Batch { release: vec![id], ..Batch::default() }).unwrap();
    store.unpin(root_of(&kept).cid()).unwrap();
    assert_eq!(store.gc().unwrap().objects, 2);
    let later = content(3, 300);
    let (_, batch) = publish(&store, &later);
    store.commit(batch).unwrap();
    assert_readable(&store, &later);
}

#[test]
fn an_index_without_any_room_fails_each_commit_and_goes_on_when_there_is_room() {
    let dir = scratch();
    let disk = SmallDisk::new(64 << 20);
    let store = open(dir.path(), &disk);
    let kept = content(1, 300);
    let (_, batch) = publish(&store, &kept);
    store.commit(batch).unwrap();
    let (_, refused) = publish(&store, &content(4, 10));
    // Another program takes the disk, and the reserve piece by piece.
    let taken = disk.fill();
    let reserve = File::options().write(true).open(dir.path().join(RESERVE_FILE)).unwrap();
    disk.set_len(&reserve, 0).unwrap();
    let taken = taken + disk.fill();
    let mut row = 0;
    let error = loop {
        row += 1;
        assert!(row < 10_000, "the index found room where there is none");
        let tree_put = vec![(row, vec![7; 3000])];
        if let Err(error) = store.commit(Batch { tree_put, ..Batch::default() }) {
            break error;
        }
    };
    assert!(error.is_no_space(), "{error}");
    assert_eq!(store.tree().unwrap().len() as u64, row - 1);
    assert_readable(&store, &kept);
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, []);
    assert!(store.commit(refused).unwrap_err().is_no_space());
    assert!(try_publish(&store, &content(5, 10)).unwrap_err().is_no_space());
    assert_eq!(store.trouble(), Some(Trouble::Full));

    disk.add(taken);
    let later = content(5, 300);
    let (_, batch) = publish(&store, &later);
    store.commit(batch).unwrap();
    assert_readable(&store, &later);
    store.close().unwrap();
    drop(store);
    let store = open(dir.path(), &disk);
    assert_readable(&store, &kept);
    assert_eq!(store.tree().unwrap().len() as u64, row - 1);
}

#[test]
fn a_store_opens_on_a_full_disk() {
    let dir = scratch();
    let disk = SmallDisk::new(64 << 20);
    let kept = content(1, 300);
    {
        let store = open(dir.path(), &disk);
        let (_, batch) = publish(&store, &kept);
        store.commit(batch).unwrap();
        // As after a kill: nothing is closed.
        disk.fill();
    }
    let store = open(dir.path(), &disk);
    assert_readable(&store, &kept);
    let mut ids = Vec::new();
    store
        .inner
        .index
        .read(|txn| {
            index::object_rows(txn, |id, _| {
                ids.push(id);
                Ok(())
            })
        })
        .unwrap();
    assert_eq!(ids, [ObjectId(1)]);
}

/// Publishes content and lets its owner go.
fn publish_and_remove(store: &Store, bytes: &[u8]) {
    let (id, batch) = publish(store, bytes);
    store.commit(batch).unwrap();
    store.commit(Batch { release: vec![id], ..Batch::default() }).unwrap();
}

/// Downloads all of some content; how it ended.
fn fetch(store: &Store, bytes: &[u8]) -> Result<(), StoreError> {
    let object = store.create_object(root_of(bytes).cid(), bytes.len() as u64)?;
    for (block, range) in leaves(bytes) {
        object.place(&block, &whole(&block, range.start))?;
    }
    store.flush()
}

fn is_here(store: &Store, bytes: &[u8]) -> bool {
    store.object(root_of(bytes).cid()).unwrap().is_some()
}

#[test]
fn min_free_holds_for_downloads_and_evicts_first() {
    let dir = scratch();
    let disk = SmallDisk::new(64 << 20);
    let limited = StoreOptions { min_free: Some(32 << 20), ..options(dir.path()) };
    let store = recover::open_idle(&limited, disk.clone()).unwrap();
    let kept = content(1, 300);
    let (_, batch) = publish(&store, &kept);
    store.commit(batch).unwrap();
    let big = content(2, 5000);
    fetch(&store, &big).unwrap();
    // The second one finds room where the first was.
    let other = content(3, 5000);
    fetch(&store, &other).unwrap();
    assert!(is_here(&store, &other) && !is_here(&store, &big));
    let free = || disk.space(dir.path()).unwrap().free;
    assert!(free() >= 32 << 20, "{} bytes are free", free());
    let stats = store.stats().unwrap();
    assert!(stats.available >= other.len() as u64, "what may go can be written: {stats:?}");

    // What is pinned stays, so there is nothing to evict.
    store.pin(super::super::Pin { root: *root_of(&other).cid(), name: String::new() }).unwrap();
    let error = fetch(&store, &content(4, 5000)).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    let slack = 41 * BLOCK;
    assert!(free() + slack >= 32 << 20, "{} bytes are free", free());
    assert_readable(&store, &other);
    assert_readable(&store, &kept);
}

#[test]
fn removed_uploads_are_evicted_before_the_cache() {
    let dir = scratch();
    let disk = SmallDisk::new(64 << 20);
    let store = open(dir.path(), &disk);
    let (upload, cached) = (content(1, 300), content(2, 300));
    fetch(&store, &cached).unwrap();
    publish_and_remove(&store, &upload);
    disk.fill();
    store.inner.gauge.forget();
    let report = store.inner.evict_room(Wanted { bytes: 1, files: 0 }).unwrap();
    assert_eq!(report.objects, 1);
    assert!(is_here(&store, &cached) && !is_here(&store, &upload));
}

#[test]
fn full_inode_table_evicts_and_then_refuses() {
    let dir = scratch();
    let disk = SmallDisk::new(64 << 20);
    let store = open(dir.path(), &disk);
    let kept = content(1, 3);
    let (_, batch) = publish(&store, &kept);
    store.commit(batch).unwrap();
    for seed in 10..40 {
        publish_and_remove(&store, &content(seed, 1));
    }
    disk.limit_inodes(0);
    store.inner.gauge.forget();
    assert_eq!(store.stats().unwrap().files_free, 30 - 5, "5 of 1,000 inodes stay free");
    for seed in 40..60 {
        let (_, batch) = publish(&store, &content(seed, 1));
        store.commit(batch).unwrap();
    }
    let error = loop {
        if let Err(error) = store.working_file() {
            break error;
        }
    };
    assert!(error.is_no_space(), "{error}");
    assert_readable(&store, &kept);
    assert!((40..60).all(|seed| is_here(&store, &content(seed, 1))));
    store.admit_row().unwrap();
}

#[test]
fn available_bytes_do_not_count_what_pins_keep() {
    let dir = scratch();
    let disk = SmallDisk::new(64 << 20);
    let store = open(dir.path(), &disk);
    let cached = content(1, 3000);
    fetch(&store, &cached).unwrap();
    let maintained = || {
        evict::maintain(&Arc::downgrade(&store.inner), false, false);
        store.inner.gauge.forget();
        let stats = store.stats().unwrap();
        (stats.available, disk.space(dir.path()).unwrap().free)
    };
    let (available, free) = maintained();
    assert!(available >= free + cached.len() as u64);
    let root = *root_of(&cached).cid();
    store.pin(super::super::Pin { root, name: String::new() }).unwrap();
    let (available, free) = maintained();
    assert_eq!(available, free);
    store.unpin(&root).unwrap();
    let (available, free) = maintained();
    assert!(available >= free + cached.len() as u64);
}
