//! Disks that take no writes: what is stored stays readable, and changes go on when the disk works again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    super::{
        Batch, Pin, Store, StoreError, Trouble,
        disk::{Disk, RealDisk},
        evict, recover,
        space::Space,
    },
    content, leaves, options, publish, root_of, scratch, whole,
};
use crate::content::ByteRange;

/// Refuses every change with EROFS while a switch is on, as a disk does that the kernel has made read-only.
#[derive(Debug, Default)]
struct ReadOnlyDisk {
    on: AtomicBool,
    /// statvfs shows it. After an error of ext4 it does not on newer kernels.
    shows: bool,
}

impl ReadOnlyDisk {
    fn check(&self) -> io::Result<()> {
        match self.on.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::EROFS)),
            false => Ok(()),
        }
    }

    fn set(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }
}

impl Disk for ReadOnlyDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.check()?;
        RealDisk.create(path)
    }

    fn open_or_create(&self, path: &Path) -> io::Result<File> {
        self.check()?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        self.check()?;
        file.write_all_at(data, offset)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.check()?;
        file.set_len(len)
    }

    fn allocate(&self, file: &File, len: u64) -> io::Result<()> {
        self.check()?;
        RealDisk.allocate(file, len)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.check()?;
        file.sync_data()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.sync_dir(dir)
    }

    fn sync_filesystem(&self, dir: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.sync_filesystem(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.link(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        RealDisk.unlink(path)
    }

    fn punch(&self, file: &File, range: ByteRange) -> io::Result<()> {
        self.check()?;
        RealDisk.punch(file, range)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let read_only = self.shows && self.on.load(Ordering::SeqCst);
        Ok(Space { read_only, ..Space::of(path)? })
    }
}

fn open(dir: &Path, disk: &Arc<ReadOnlyDisk>) -> Store {
    recover::open_idle(&options(dir), disk.clone()).unwrap()
}

fn assert_readable(store: &Store, bytes: &[u8]) {
    let object = store.object(root_of(bytes).cid()).unwrap().unwrap();
    assert!(object.read(ByteRange::new(0, bytes.len() as u64)).unwrap() == bytes);
    assert!(object.verified_backing().unwrap().is_some());
    for (block, _) in leaves(bytes) {
        assert_eq!(store.block(block.cid()).unwrap(), Some(block));
    }
    assert!(store.block(root_of(bytes).cid()).unwrap().is_some());
}

fn assert_refused<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.unwrap_err();
    assert!(error.is_read_only(), "{error}");
    assert!(!error.to_string().contains("corrupt"), "{error}");
}

fn row(key: u64) -> Batch {
    Batch { tree_put: vec![(key, vec![1])], ..Batch::default() }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), &target).unwrap()),
        }
    }
}

fn read_only_disk(shows: bool) {
    let dir = scratch();
    let disk = Arc::new(ReadOnlyDisk { shows, ..ReadOnlyDisk::default() });
    let store = open(dir.path(), &disk);
    let (kept, later) = (content(1, 20), content(2, 20));
    let (_, batch) = publish(&store, &kept);
    store.commit(batch).unwrap();
    store.commit(row(1)).unwrap();
    let (_, waiting) = publish(&store, &later);

    disk.set(true);
    store.inner.gauge.forget();
    for _ in 0..2 {
        assert_refused(store.commit(row(2)));
        assert_refused(store.pin(Pin { root: *root_of(&kept).cid(), name: String::new() }));
        assert_refused(store.working_file());
        assert_refused(store.check_writable());
        assert_refused(store.admit_row());
        assert_eq!(store.trouble(), Some(Trouble::ReadOnly));
        assert_readable(&store, &kept);
        assert_eq!(store.tree().unwrap(), [(1, vec![1])]);
        assert_eq!(store.pins().unwrap(), []);
    }

    disk.set(false);
    store.inner.gauge.forget();
    evict::maintain(&Arc::downgrade(&store.inner), false, false);
    assert_eq!(store.trouble(), None);
    store.check_writable().unwrap();
    store.commit(row(2)).unwrap();
    store.commit(waiting).unwrap();
    store.close().unwrap();
    drop(store);
    let store = open(dir.path(), &disk);
    assert_readable(&store, &kept);
    assert_readable(&store, &later);
    assert_eq!(store.tree().unwrap(), [(1, vec![1]), (2, vec![1])]);
}

#[test]
fn read_only_disk_keeps_reads_and_goes_on_afterwards() {
    read_only_disk(true);
}

#[test]
fn read_only_disk_that_statvfs_does_not_show_is_found() {
    read_only_disk(false);
}

#[test]
fn store_opens_on_a_read_only_disk_after_a_kill() {
    let dir = scratch();
    let (live, killed) = (dir.path().join("live"), dir.path().join("killed"));
    let disk = Arc::new(ReadOnlyDisk { shows: true, ..ReadOnlyDisk::default() });
    let kept = content(1, 20);
    let store = open(&live, &disk);
    let (_, batch) = publish(&store, &kept);
    store.commit(batch).unwrap();
    // A file that no row names is left alone.
    store.working_file().unwrap();
    copy_tree(&live, &killed);
    let before = fs::read(killed.join(recover::INDEX_FILE)).unwrap();

    disk.set(true);
    let store = open(&killed, &disk);
    assert_readable(&store, &kept);
    assert_refused(store.commit(row(1)));
    let object = store.object(root_of(&kept).cid()).unwrap().unwrap();
    let (block, range) = leaves(&content(3, 1))[0].clone();
    assert_refused(object.place(&block, &whole(&block, range.start)));
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, []);
    assert_eq!(fs::read(killed.join(recover::INDEX_FILE)).unwrap(), before);

    disk.set(false);
    store.inner.gauge.forget();
    evict::maintain(&Arc::downgrade(&store.inner), false, false);
    store.commit(row(1)).unwrap();
    assert_readable(&store, &kept);
}

#[test]
fn empty_data_folder_on_a_read_only_disk_is_an_error() {
    let dir = scratch();
    let disk = Arc::new(ReadOnlyDisk::default());
    disk.set(true);
    let opened = recover::open_idle(&options(dir.path()), disk);
    assert_refused(opened.map(drop));
}
