//! The end of a daemon, at the worst moments: in time, and nothing is left behind.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use crate::harness::{Daemon, Setup, eventually, is_mounted, noise, run, xattr};

/// The promise that is made to service managers, which kill what takes longer.
const STOP_WITHIN: Duration = Duration::from_secs(10);

const REMOTE_LEN: usize = 80_000_000;
const SERVED_LEN: usize = 40_000_000;

/// A daemon in the middle of everything: it fetches, serves and hashes, and programs have files open.
struct Busy {
    daemon: Daemon,
    source: Daemon,
    readers: Vec<Child>,
    remote: String,
    _open: Vec<File>,
}

fn cat(path: PathBuf) -> Child {
    let mut cat = Command::new("cat");
    cat.arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Busy {
    fn new() -> Self {
        // Its reader of what the other serves gives up when that has ended.
        let impatient = "[download]\nlookup_timeout = \"5s\"\n".to_owned();
        let source = Daemon::start(&Setup { config: impatient, ..Setup::default() });
        fs::write(source.path("upload/remote"), noise(REMOTE_LEN, 31)).unwrap();
        let remote = source.cid("upload/remote");
        let daemon = Daemon::start_beside(&source, &Setup::default());
        fs::write(daemon.path("upload/served"), noise(SERVED_LEN, 32)).unwrap();
        let served = daemon.cid("upload/served");
        let mut open = vec![File::open(daemon.path("upload/served")).unwrap()];
        let mut unfinished = File::create(daemon.path("upload/unfinished")).unwrap();
        unfinished.write_all(&noise(5_000_000, 33)).unwrap();
        open.push(unfinished);
        let readers = vec![cat(daemon.path(&remote)), cat(source.path(&served))];
        eventually("the download", || {
            let received =
                daemon.peers().iter().map(|peer| peer["received"].as_u64().unwrap()).sum::<u64>();
            (received > 1_000_000).then_some(())
        });
        // Still being hashed when the end comes.
        fs::write(daemon.path("upload/fresh"), noise(20_000_000, 34)).unwrap();
        Self { daemon, source, readers, remote, _open: open }
    }

    /// The daemon is gone in good order and in time, and only what it keeps is left.
    fn has_ended_well(mut self, since: Instant) {
        let status = self.daemon.wait();
        let took = since.elapsed();
        let log = self.daemon.log();
        eprintln!("ended after {took:?}");
        assert!(took < STOP_WITHIN, "{took:?}: {log}");
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("did not end in time"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        assert!(!is_mounted(&self.daemon.path("")), "the mount is still there");
        for mut reader in self.readers.drain(..) {
            eventually("the end of a reader", || reader.try_wait().unwrap());
        }
        let scratch = self.daemon.kill();
        let data = scratch.path().join("data");
        assert!(!data.join("control.sock").exists(), "the control socket is still there");
        let files = files_below(&data.join("objects"));
        let peers = self.source.addresses().into_iter().flat_map(|a| ["--peer".to_owned(), a]);
        let setup = Setup { args: peers.collect(), ..Setup::default() };
        let again = Daemon::start_in(scratch, &setup);
        let objects = again.json(&["status"])["store"]["objects"].as_u64().unwrap();
        assert_eq!(files.len() as u64, objects, "a file that nothing knows: {files:?}");
        assert!(fs::read(again.path("upload/served")).unwrap() == noise(SERVED_LEN, 32));
        assert!(fs::read(again.path("upload/fresh")).unwrap() == noise(20_000_000, 34));
        assert!(fs::read(again.path(&self.remote)).unwrap() == noise(REMOTE_LEN, 31));
        let verified = again.chiral(&["store", "verify"]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        again.stop();
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn sigterm_in_the_middle_of_everything_ends_in_good_order() {
    let busy = Busy::new();
    let start = Instant::now();
    kill(busy.daemon.pid(), Signal::SIGTERM).unwrap();
    busy.has_ended_well(start);
}

#[test]
fn umount_in_the_middle_of_everything_ends_in_good_order() {
    let busy = Busy::new();
    let start = Instant::now();
    let mountpoint = busy.daemon.path("");
    let output = run(Command::new(env!("CARGO_BIN_EXE_chiral"))
        .arg("umount")
        .arg(mountpoint.to_str().unwrap().trim_end_matches('/'))
        .env("CHIRAL_DATA_DIR", busy.daemon.data()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    busy.has_ended_well(start);
}

/// Longer than the whole end may take is what hashing this would need. It takes no room on the disk.
const ENDLESS: u64 = 256 << 30;

/// A daemon that hashes, and will for long.
fn hashing() -> Daemon {
    let daemon = Daemon::start(&Setup::default());
    fs::write(daemon.path("upload/served"), noise(SERVED_LEN, 32)).unwrap();
    daemon.cid("upload/served");
    let endless = File::create(daemon.path("upload/endless")).unwrap();
    endless.set_len(ENDLESS).unwrap();
    // Its name is on disk, whenever the end comes.
    endless.sync_all().unwrap();
    drop(endless);
    eventually("the hashing", || {
        let state = xattr(&daemon.path("upload/endless"), "user.chiral.state");
        (state.as_deref() == Some("hashing")).then_some(())
    });
    daemon
}

/// Starts again, without what cannot be hashed in a test's time.
fn nothing_was_lost(scratch: tempfile::TempDir) {
    let again = Daemon::start_in(scratch, &Setup::default());
    fs::remove_file(again.path("upload/endless")).unwrap();
    assert!(fs::read(again.path("upload/served")).unwrap() == noise(SERVED_LEN, 32));
    assert!(again.chiral(&["store", "verify"]).status.success());
    again.stop();
}

#[test]
fn one_signal_ends_in_good_order_and_in_time_whatever_is_left_to_do() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut daemon = hashing();
        let start = Instant::now();
        kill(daemon.pid(), signal).unwrap();
        let status = daemon.wait();
        let took = start.elapsed();
        assert!(took < STOP_WITHIN, "{signal}: {took:?}");
        assert_eq!(status.code(), Some(0), "{signal}: {}", daemon.log());
        assert!(!is_mounted(&daemon.path("")), "{signal}: the mount is still there");
        nothing_was_lost(daemon.kill());
    }
}

#[test]
fn a_second_signal_ends_at_once_and_loses_nothing_that_was_acknowledged() {
    let mut daemon = hashing();
    kill(daemon.pid(), Signal::SIGINT).unwrap();
    eventually("the detached mount", || (!is_mounted(&daemon.path(""))).then_some(()));
    let start = Instant::now();
    kill(daemon.pid(), Signal::SIGTERM).unwrap();
    let code = daemon.wait().code();
    let took = start.elapsed();
    // An end in good order waits for the hashing for seconds.
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(code, Some(1), "{}", daemon.log());
    nothing_was_lost(daemon.kill());
}

#[test]
fn a_daemon_that_is_stopped_loses_its_mount_to_umount_and_ends_when_it_goes_on() {
    let mut daemon = Daemon::start(&Setup::default());
    // Without root a connection is cut off through this folder, which some containers lack.
    let connections =
        fs::read_dir("/sys/fs/fuse/connections").is_ok_and(|mut all| all.next().is_some());
    kill(daemon.pid(), Signal::SIGSTOP).unwrap();
    // Another daemon does not wait for it either.
    let other = run(Command::new(env!("CARGO_BIN_EXE_chiral"))
        .args(["mount", "--offline", "--data-dir"])
        .arg(daemon.scratch().join("other"))
        .arg(daemon.path("").to_str().unwrap().trim_end_matches('/')));
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(other.status.code() == Some(1) && said.contains("is mounted already"), "{said}");
    // A program that waits for an answer, too.
    let mut waiting = Command::new("stat").arg(daemon.path("upload")).spawn().unwrap();
    let start = Instant::now();
    let output = run(Command::new(env!("CARGO_BIN_EXE_chiral"))
        .arg("umount")
        .arg(daemon.path("").to_str().unwrap().trim_end_matches('/'))
        .env("CHIRAL_DATA_DIR", daemon.data()));
    let took = start.elapsed();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("does not answer"), "{said}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(!is_mounted(&daemon.path("")), "the mount is still there");
    if connections || nix::unistd::geteuid().is_root() {
        eventually("the end of the program", || waiting.try_wait().unwrap());
    }
    kill(daemon.pid(), Signal::SIGCONT).unwrap();
    eventually("the end of the program", || waiting.try_wait().unwrap());
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}
