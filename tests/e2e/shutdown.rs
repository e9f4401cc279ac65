//! The end of a daemon, at the worst moments: in time, and nothing is left behind.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use crate::harness::{Daemon, Setup, eventually, is_mounted, noise, run};

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
        let source = Daemon::start(&Setup::default());
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

#[test]
fn a_second_signal_ends_at_once_and_loses_nothing_that_was_acknowledged() {
    let mut busy = Busy::new();
    kill(busy.daemon.pid(), Signal::SIGINT).unwrap();
    eventually("the detached mount", || (!is_mounted(&busy.daemon.path(""))).then_some(()));
    kill(busy.daemon.pid(), Signal::SIGINT).unwrap();
    // An end in good order that was faster than the second signal is as good.
    let code = busy.daemon.wait().code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    assert!(!is_mounted(&busy.daemon.path("")), "the mount is still there");
    let again = Daemon::start_in(busy.daemon.kill(), &Setup::default());
    assert!(fs::read(again.path("upload/served")).unwrap() == noise(SERVED_LEN, 32));
    assert!(again.chiral(&["store", "verify"]).status.success());
    again.stop();
    busy.readers.iter_mut().for_each(|reader| {
        eventually("the end of a reader", || reader.try_wait().unwrap());
    });
}
