//! What happens between two steps of something that takes time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    super::{
        Batch, ObjectId, Pin, Store,
        codec::{Envelope, Leaf},
        disk::{Disk, RealDisk},
        evict, recover,
    },
    content,
    full::SmallDisk,
    leaves, options, publish, root_of, scratch, whole,
};

type Hook = Box<dyn FnOnce() + Send>;

/// Counts the syncs of each file, and does something during one of them.
#[derive(Default)]
struct WatchedDisk {
    syncs: Mutex<HashMap<u64, usize>>,
    during_sync: Mutex<Option<Hook>>,
    /// Lengths cannot be set.
    stuck: AtomicBool,
}

impl fmt::Debug for WatchedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchedDisk")
    }
}

impl WatchedDisk {
    fn syncs(&self, path: &Path) -> usize {
        let ino = std::fs::metadata(path).unwrap().ino();
        self.syncs.lock().unwrap().get(&ino).copied().unwrap_or(0)
    }
}

impl Disk for WatchedDisk {
    fn sync_data(&self, file: &File) -> io::Result<()> {
        *self.syncs.lock().unwrap().entry(file.metadata()?.ino()).or_default() += 1;
        if let Some(hook) = self.during_sync.lock().unwrap().take() {
            hook();
        }
        RealDisk.sync_data(file)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        if self.stuck.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        RealDisk.set_len(file, len)
    }
}

fn open(dir: &Path) -> (Store, Arc<WatchedDisk>) {
    let disk = Arc::new(WatchedDisk::default());
    (recover::open_idle(&options(dir), disk.clone()).unwrap(), disk)
}

#[test]
fn a_last_leaf_that_comes_while_the_others_are_synced_is_synced_before_its_row() {
    let dir = scratch();
    let (store, disk) = open(dir.path());
    let bytes = content(1, 2);
    let object = store.create_object(root_of(&bytes).cid(), bytes.len() as u64).unwrap();
    let [first, last] = &leaves(&bytes)[..] else { panic!("two leaves") };
    object.place(&first.0, &whole(&first.0, first.1.start)).unwrap();
    let (late, block, at) = (object.clone(), last.0.clone(), last.1.start);
    *disk.during_sync.lock().unwrap() =
        Some(Box::new(move || late.place(&block, &whole(&block, at)).unwrap()));
    store.flush().unwrap();
    assert!(object.is_complete());
    assert_eq!(disk.syncs(object.path()), 1);
    store.flush().unwrap();
    assert_eq!(disk.syncs(object.path()), 2, "its row says that it is on disk");
}

#[test]
fn what_was_committed_since_the_walk_is_not_swept() {
    let dir = scratch();
    let (store, _) = open(dir.path());
    store.commit(Batch { published: Some(Vec::new()), ..Batch::default() }).unwrap();
    let since = store.inner.commits().unwrap();
    let (reached, _) = store.inner.garbage().unwrap();
    let bytes = content(1, 2);
    let (_, batch) = publish(&store, &bytes);
    store.commit(batch).unwrap();
    assert_eq!(store.inner.sweep_nodes(&reached, since).unwrap(), None);
    assert!(store.block(root_of(&bytes).cid()).unwrap().is_some());
    assert_eq!(store.gc().unwrap().nodes, 0);
    assert!(store.block(root_of(&bytes).cid()).unwrap().is_some());
}

#[test]
fn nothing_that_is_published_while_garbage_is_collected_is_lost() {
    let dir = scratch();
    let (store, _) = open(dir.path());
    store.commit(Batch { published: Some(Vec::new()), ..Batch::default() }).unwrap();
    let all: Vec<_> = (0..60u8).map(|seed| content(seed, 1)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for bytes in &all {
                store.commit(publish(&store, bytes).1).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            store.gc().unwrap();
        }
    });
    for bytes in &all {
        assert!(store.block(root_of(bytes).cid()).unwrap().is_some());
    }
}

#[test]
fn a_pin_that_is_set_while_something_is_chosen_for_eviction_keeps_it() {
    let dir = scratch();
    let (store, _) = open(dir.path());
    let bytes = content(2, 1);
    let object = store.create_object(root_of(&bytes).cid(), bytes.len() as u64).unwrap();
    for (block, range) in &leaves(&bytes) {
        object.place(block, &whole(block, range.start)).unwrap();
    }
    store.flush().unwrap();
    let id = object.id();
    drop(object);
    let since = store.inner.commits().unwrap();
    store.pin(Pin { root: *root_of(&bytes).cid(), name: String::new() }).unwrap();
    assert_eq!(store.inner.remove_objects(&[id], Some(since)).unwrap(), None);
    assert_eq!(store.gc().unwrap().objects, 0);
    assert!(store.object_by_id(id).unwrap().is_some());
}

#[test]
fn an_object_that_could_not_be_made_leaves_no_file() {
    let dir = scratch();
    let (store, disk) = open(dir.path());
    disk.stuck.store(true, Ordering::SeqCst);
    assert!(store.create_object(root_of(b"x").cid(), 100).is_err());
    assert!(!store.inner.object_path(ObjectId(1)).exists());
}

#[test]
fn a_leaf_of_the_same_object_is_read_while_somebody_waits_to_punch() {
    let dir = scratch();
    let (store, _) = open(dir.path());
    let bytes = content(3, 2);
    let object = store.create_object(root_of(&bytes).cid(), bytes.len() as u64).unwrap();
    let (block, range) = leaves(&bytes)[0].clone();
    object.place(&block, &whole(&block, 0)).unwrap();
    let leaf = Leaf { object: object.id(), range, envelope: Envelope::default() };
    std::thread::scope(|scope| {
        let shared = object.shared();
        scope.spawn(|| drop(object.exclusive()));
        // Nobody else gets in once it waits.
        while object.try_shared().is_some() {
            std::thread::yield_now();
        }
        let (_, read) = store.inner.source_of(&object, &leaf).unwrap().unwrap();
        assert_eq!(read, bytes[..4096]);
        drop(shared);
    });
}

#[test]
fn a_disk_that_gets_full_is_looked_at_with_each_tick() {
    let dir = scratch();
    let mut options = options(dir.path());
    options.min_free = Some(1 << 20);
    let disk = SmallDisk::new(64 << 20);
    let store = recover::open_idle(&options, disk.clone()).unwrap();
    let bytes = content(4, 1);
    let object = store.create_object(root_of(&bytes).cid(), bytes.len() as u64).unwrap();
    let (block, _) = leaves(&bytes)[0].clone();
    object.place(&block, &whole(&block, 0)).unwrap();
    drop((object, store.flush().unwrap()));
    disk.fill();
    store.inner.gauge.forget();
    evict::maintain(&Arc::downgrade(&store.inner), false, false);
    assert!(store.object(root_of(&bytes).cid()).unwrap().is_none());
}
