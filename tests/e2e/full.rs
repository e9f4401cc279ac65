//! A full disk: an error for who writes, nothing lost, and it goes on when there is room.

use std::fs;

use crate::harness::{Daemon, Setup, eventually, noise};

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
