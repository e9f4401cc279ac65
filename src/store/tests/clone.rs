//! Files that share extents, on an image of a filesystem that can.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{fs::File, os::unix::fs::FileExt, path::Path, process::Command};

use super::{
    super::{StoreOptions, disk::RealDisk, recover},
    LEAF, content, leaves, options, publish, root_of, whole,
};
use crate::content::ByteRange;

/// A mounted image; gone with the test.
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    /// None, loudly, where images cannot be mounted or this filesystem is not there.
    fn mount(mkfs: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "truncate -s 400M disk.img && {mkfs} disk.img >/dev/null && mkdir data && mount -o loop disk.img data"
        );
        let mounted = Command::new("sh").arg("-c").arg(&script).current_dir(dir.path()).output();
        let mounted = mounted.unwrap();
        if mounted.status.success() {
            return Some(Self { dir });
        }
        eprintln!("SKIPPED: {mkfs}: {}", String::from_utf8_lossy(&mounted.stderr));
        None
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.data()).status();
    }
}

fn free(path: &Path) -> u64 {
    rustix::fs::syncfs(File::open(path).unwrap()).unwrap();
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bfree * stat.f_frsize
}

fn clones_share_and_stay_apart(mkfs: &str) {
    let Some(image) = Image::mount(mkfs) else { return };
    let dir = image.data().join("store");
    let options = StoreOptions { dir: dir.clone(), ..options(&dir) };
    let store = recover::open_idle(&options, std::sync::Arc::new(RealDisk)).unwrap();
    assert!(store.can_clone(), "{mkfs}");
    // 32 MiB: far more than what the filesystem needs for itself.
    let bytes = content(1, 8192);
    let (id, batch) = publish(&store, &bytes);
    store.commit(batch).unwrap();

    let before = free(&image.data());
    let copy = store.clone_object(id).unwrap().unwrap();
    let file = copy.open(true).unwrap();
    file.write_all_at(&[7; 4096], 3 * LEAF).unwrap();
    assert!(before - free(&image.data()).min(before) < 8 << 20, "{mkfs}: the clone is a copy");
    let object = store.object(root_of(&bytes).cid()).unwrap().unwrap();
    assert!(object.read(ByteRange::new(0, bytes.len() as u64)).unwrap() == bytes);
    let mut changed = bytes.clone();
    changed[3 * 4096..4 * 4096].fill(7);
    let mut seen = vec![0; bytes.len()];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == changed);

    // What is fetched and lies in another object already takes no room a second time.
    let twin = [&bytes[..], &content(2, 1)].concat();
    let before = free(&image.data());
    let fetched = store.create_object(root_of(&twin).cid(), twin.len() as u64).unwrap();
    for (block, range) in leaves(&twin) {
        fetched.place(&block, &whole(&block, range.start)).unwrap();
    }
    store.flush().unwrap();
    assert!(before - free(&image.data()).min(before) < 16 << 20, "{mkfs}: nothing is shared");
    assert!(fetched.read(ByteRange::new(0, twin.len() as u64)).unwrap() == twin);
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().bad, []);
}

#[test]
fn on_xfs_clones_share_extents_and_stay_apart() {
    clones_share_and_stay_apart("mkfs.xfs -q -m reflink=1");
}

#[test]
fn on_btrfs_clones_share_extents_and_stay_apart() {
    clones_share_and_stay_apart("mkfs.btrfs -q");
}
