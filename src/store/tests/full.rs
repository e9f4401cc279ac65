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
        Batch, ObjectId, Store, StoreError,
        disk::{Disk, RealDisk},
        index, recover,
        reserve::RESERVE_FILE,
    },
    content, leaves, options, publish, root_of, scratch, whole,
};
use crate::content::{ByteRange, RangeSet};

/// What the disk gives room in.
const BLOCK: u64 = 4096;

/// Counts blocks: a write to a block that has none takes one, until there is none left.
#[derive(Debug)]
struct SmallDisk {
    room: Mutex<Room>,
}

#[derive(Debug)]
struct Room {
    free: u64,
    /// Blocks of each file, by inode.
    held: HashMap<u64, RangeSet>,
}

impl SmallDisk {
    fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { room: Mutex::new(Room { free: bytes / BLOCK, held: HashMap::new() }) })
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
    fn fill(&self) -> u64 {
        std::mem::take(&mut self.room.lock().unwrap().free)
    }

    fn add(&self, blocks: u64) {
        self.room.lock().unwrap().free += blocks;
    }
}

impl Disk for SmallDisk {
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

    fn allocate(&self, file: &File, len: u64) -> io::Result<()> {
        self.take(file, ByteRange::new(0, len))?;
        file.set_len(len)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let ino = fs::metadata(path)?.ino();
        self.give(ino, ByteRange::new(0, u64::MAX));
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
    let disk = SmallDisk::new(40 << 20);
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
    let (_, refused) = publish(&store, &content(4, 10));
    assert!(store.commit(refused).unwrap_err().is_no_space());

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
