//! Disks that take no more: an error for who writes, nothing lost, and it goes on when there is room.

use std::{collections::BTreeMap, fs, io, path::Path};

use crate::harness::{Daemon, Setup, eventually, noise, sh, small_disk};

/// A data folder of 64 MiB in which nothing is kept free.
const SETUP: &str = "[store]\nmin_free = \"0\"\ncache_limit = \"1 GiB\"\n";

/// Loop mounts need root; elsewhere this says so instead of passing silently.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root can mount the small disk that this test fills");
    }
    root
}

#[test]
fn publishing_on_a_full_disk_fails_cleanly_and_goes_on_when_there_is_room() {
    if !is_root() {
        return;
    }
    let daemon =
        Daemon::start_on_small_disk(64, &Setup { config: SETUP.into(), ..Setup::default() });
    let kept = noise(10_000_000, 1);
    fs::write(daemon.path("upload/kept"), &kept).unwrap();
    let cid = daemon.cid("upload/kept");
    let error = fs::write(daemon.path("upload/big"), noise(80_000_000, 2)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC), "{error}");
    assert!(fs::read(daemon.path(&cid)).unwrap() == kept);
    fs::remove_file(daemon.path("upload/big")).unwrap();
    let later = noise(20_000_000, 3);
    eventually("room", || fs::write(daemon.path("upload/later"), &later).ok());
    let later_cid = daemon.cid("upload/later");
    assert!(fs::read(daemon.path(&later_cid)).unwrap() == later);
    assert!(daemon.chiral(&["store", "verify"]).status.success());
}

#[test]
fn fetching_onto_a_full_disk_fails_cleanly_and_what_is_there_stays_readable() {
    if !is_root() {
        return;
    }
    let publisher = Daemon::start(&Setup::default());
    let big = noise(80_000_000, 4);
    fs::write(publisher.path("upload/big"), &big).unwrap();
    let remote = publisher.cid("upload/big");
    let args = publisher.addresses().into_iter().flat_map(|a| ["--peer".to_owned(), a]).collect();
    let daemon = Daemon::start_on_small_disk(64, &Setup { config: SETUP.into(), args });
    let kept = noise(10_000_000, 5);
    fs::write(daemon.path("upload/kept"), &kept).unwrap();
    let cid = daemon.cid("upload/kept");
    let error = fs::read(daemon.path(&remote)).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(nix::libc::ENOSPC | nix::libc::EIO)), "{error}");
    assert!(fs::read(daemon.path(&cid)).unwrap() == kept);
    assert!(daemon.chiral(&["id"]).status.success());
    assert!(daemon.chiral(&["store", "verify"]).status.success());
}

/// Stored files by path below the mount.
struct Kept(BTreeMap<String, Vec<u8>>);

impl Kept {
    /// Publishes some files, and reads them by their ids too from then on.
    fn publish(daemon: &Daemon) -> Self {
        fs::create_dir(daemon.path("upload/kept")).unwrap();
        let mut all = BTreeMap::new();
        for n in 0..20 {
            let bytes = noise(100_000 + n * 50_000, n as u64);
            fs::write(daemon.path(&format!("upload/kept/{n}")), &bytes).unwrap();
            all.insert(format!("upload/kept/{n}"), bytes);
        }
        let dir = daemon.cid("upload/kept");
        let by_id: Vec<_> = all
            .iter()
            .map(|(path, bytes)| (path.replace("upload/kept", &dir), bytes.clone()))
            .collect();
        all.extend(by_id);
        Self(all)
    }

    fn assert_readable(&self, daemon: &Daemon) {
        for (path, bytes) in &self.0 {
            assert!(fs::read(daemon.path(path)).unwrap() == *bytes, "{path}: {}", daemon.log());
        }
        assert_eq!(fs::read_dir(daemon.path("upload/kept")).unwrap().count(), self.0.len() / 2);
    }
}

fn is_no_space(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENOSPC)
}

fn is_read_only(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EROFS)
}

/// Bytes that a program may write, as df shows them.
fn available(path: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(path).unwrap();
    stat.blocks_available() * stat.fragment_size()
}

fn fill(data: &Path) {
    // Twice: what the first one leaves is less than its buffer.
    sh(
        "for bs in 1M 4k; do dd if=/dev/zero bs=$bs of=filler.$bs 2>/dev/null || true; done; sync",
        data,
    );
}

#[test]
fn full_disk_keeps_content_readable_over_a_kill_and_a_start() {
    if !is_root() {
        return;
    }
    let setup = Setup { config: SETUP.into(), ..Setup::default() };
    let daemon = Daemon::start_on_small_disk(96, &setup);
    let kept = Kept::publish(&daemon);
    fill(&daemon.data());
    kept.assert_readable(&daemon);
    assert!(is_no_space(&fs::write(daemon.path("upload/new"), noise(5_000_000, 7)).unwrap_err()));
    let daemon = Daemon::start_in(daemon.kill(), &setup);
    kept.assert_readable(&daemon);
    assert!(is_no_space(&fs::write(daemon.path("upload/new"), noise(5_000_000, 7)).unwrap_err()));
    // The kernel tells the writer; the daemon finds it out with its next commit.
    eventually("the log says it", || daemon.log().contains("is full").then_some(()));
    assert!(!daemon.log().contains("orrupt"), "{}", daemon.log());
    sh("rm filler.*", &daemon.data());
    let later = noise(5_000_000, 8);
    eventually("room", || fs::write(daemon.path("upload/later"), &later).ok());
    let later_cid = daemon.cid("upload/later");
    let daemon = Daemon::start_in(daemon.stop(), &setup);
    assert!(fs::read(daemon.path(&later_cid)).unwrap() == later);
    kept.assert_readable(&daemon);
}

#[test]
fn upload_evicts_what_was_removed_and_df_says_so() {
    if !is_root() {
        return;
    }
    let config = "[store]\nmin_free = \"32 MiB\"\ncache_limit = \"1 GiB\"\n";
    let setup = Setup { config: config.into(), ..Setup::default() };
    let daemon = Daemon::start_on_small_disk(256, &setup);
    let first = noise(120_000_000, 1);
    let before = available(&daemon.path(""));
    assert!(before + (32 << 20) <= available(&daemon.data()), "{before}");
    for seed in 1..4 {
        let bytes = noise(120_000_000, seed);
        fs::write(daemon.path("upload/big"), &bytes).unwrap();
        let cid = daemon.cid("upload/big");
        assert!(fs::read(daemon.path(&cid)).unwrap() == bytes);
        fs::remove_file(daemon.path("upload/big")).unwrap();
        eventually("df shows the room", || {
            let slack = 4 << 20;
            (available(&daemon.path("")) + slack >= before).then_some(())
        });
    }
    // As much as df shows can be reserved at once.
    let reserved = fs::File::create(daemon.path("upload/reserved")).unwrap();
    let len = i64::try_from(first.len()).unwrap();
    nix::fcntl::fallocate(&reserved, nix::fcntl::FallocateFlags::empty(), 0, len).unwrap();
    let more = fs::File::create(daemon.path("upload/more")).unwrap();
    let flags = nix::fcntl::FallocateFlags::empty();
    assert_eq!(nix::fcntl::fallocate(&more, flags, 0, len), Err(nix::errno::Errno::ENOSPC));
}

#[test]
fn full_inode_table_keeps_content_readable_and_evicts() {
    if !is_root() {
        return;
    }
    let setup = Setup { config: SETUP.into(), ..Setup::default() };
    let daemon = Daemon::start_in(small_disk(64, "-N 600"), &setup);
    let kept = Kept::publish(&daemon);
    let fill = |dir: &str| {
        fs::create_dir(daemon.path(dir)).unwrap();
        let made = (0..).find(|n| {
            let text = format!("{dir} {n}");
            fs::write(daemon.path(&format!("{dir}/{n}")), text).is_err_and(|e| is_no_space(&e))
        });
        made.unwrap()
    };
    let first = fill("upload/a");
    assert!(first > 100, "{first} files");
    kept.assert_readable(&daemon);
    daemon.cid("upload/a");
    fs::remove_dir_all(daemon.path("upload/a")).unwrap();
    let second = eventually("inodes of what was removed", || {
        fs::create_dir_all(daemon.path("upload/b")).unwrap();
        fs::write(daemon.path("upload/b/first"), "x").ok()?;
        Some(fill("upload/c"))
    });
    assert!(second + 20 > first, "{second} files after {first}");
    let daemon = Daemon::start_in(daemon.kill(), &setup);
    kept.assert_readable(&daemon);
}

#[test]
fn read_only_disk_is_served_and_goes_on_without_a_restart() {
    if !is_root() {
        return;
    }
    let setup = Setup { config: SETUP.into(), ..Setup::default() };
    let daemon = Daemon::start_on_small_disk(96, &setup);
    let kept = Kept::publish(&daemon);
    let scratch = daemon.stop();
    sh("mount -o remount,ro data", scratch.path());
    let daemon = Daemon::start_in(scratch, &setup);
    kept.assert_readable(&daemon);
    let refused = [
        fs::write(daemon.path("upload/new"), "x").unwrap_err(),
        fs::create_dir(daemon.path("upload/dir")).unwrap_err(),
        fs::remove_file(daemon.path("upload/kept/1")).unwrap_err(),
        fs::rename(daemon.path("upload/kept/1"), daemon.path("upload/kept/x")).unwrap_err(),
        fs::File::options().append(true).open(daemon.path("upload/kept/1")).unwrap_err(),
    ];
    assert!(refused.iter().all(is_read_only), "{refused:?}");
    let log = daemon.log();
    assert_eq!(log.matches("is read-only").count(), 1, "{log}");
    assert!(!log.contains("orrupt"), "{log}");
    // Nothing was changed, so nothing is lost by its end.
    let daemon = Daemon::start_in(daemon.stop(), &setup);
    kept.assert_readable(&daemon);
    sh("mount -o remount,rw data", daemon.scratch());
    eventually("a disk that takes writes", || fs::write(daemon.path("upload/new"), "x").ok());
    let cid = daemon.cid("upload/new");
    let daemon = Daemon::start_in(daemon.stop(), &setup);
    assert_eq!(fs::read(daemon.path(&cid)).unwrap(), b"x");
    kept.assert_readable(&daemon);
}

#[test]
fn disk_that_the_kernel_makes_read_only_keeps_content_readable() {
    if !is_root() {
        return;
    }
    let setup = Setup { config: SETUP.into(), ..Setup::default() };
    let daemon = Daemon::start_on_small_disk(96, &setup);
    let kept = Kept::publish(&daemon);
    sh("mount -o remount,abort data", daemon.scratch());
    // The first change may be taken before the disk refuses it; its fsync is not.
    let _ = fs::create_dir(daemon.path("upload/dir"));
    let error = fs::File::open(daemon.path("upload")).unwrap().sync_all().unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(nix::libc::EROFS | nix::libc::EIO)), "{error}");
    kept.assert_readable(&daemon);
    assert!(is_read_only(&fs::create_dir(daemon.path("upload/more")).unwrap_err()));
    assert!(daemon.chiral(&["status"]).status.success());
    kept.assert_readable(&daemon);
    daemon.kill_for_good();
}
