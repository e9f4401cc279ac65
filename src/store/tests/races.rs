//! What happens between two steps of something that takes time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex},
};

use super::{
    super::{
        Store,
        disk::{Disk, RealDisk},
        recover,
    },
    content, leaves, options, root_of, scratch, whole,
};

type Hook = Box<dyn FnOnce() + Send>;

/// Counts the syncs of each file, and does something during one of them.
#[derive(Default)]
struct WatchedDisk {
    syncs: Mutex<HashMap<u64, usize>>,
    during_sync: Mutex<Option<Hook>>,
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
