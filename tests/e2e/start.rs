//! The end of a daemon that has not mounted yet, whatever its start waits for.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    libc,
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, geteuid, mkfifo},
};
use tempfile::TempDir;

use crate::harness::{Daemon, Setup, eventually, is_mounted};

/// A daemon that is being started; it is gone with this.
struct Starting {
    child: Child,
    scratch: TempDir,
}

/// Opening it waits until somebody opens its other end.
fn pipe(path: &Path) {
    mkfifo(path, Mode::S_IRWXU).unwrap();
}

impl Starting {
    /// Starts it by `program`, the command line of `chiral` behind it, in a folder that `prepare` made ready.
    fn by(program: &[&str], path: Option<String>, prepare: impl FnOnce(&Path)) -> Self {
        let scratch = tempfile::Builder::new().prefix("chiral-e2e-").tempdir().unwrap();
        fs::create_dir(scratch.path().join("data")).unwrap();
        fs::create_dir(scratch.path().join("mnt")).unwrap();
        prepare(scratch.path());
        let (first, rest) = program.split_first().unwrap();
        let mut command = Command::new(first);
        command
            .args(rest)
            .args(["mount", "--offline", "--data-dir"])
            .arg(scratch.path().join("data"))
            .arg(scratch.path().join("mnt"))
            .env("HOME", scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(scratch.path().join("log")).unwrap());
        if let Some(path) = path {
            command.env("PATH", path);
        }
        Self { child: command.spawn().unwrap(), scratch }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits until it handles signals itself.
    fn listens(&mut self) {
        let status = format!("/proc/{}/status", self.child.id());
        eventually("the handling of signals", || {
            let status = fs::read_to_string(&status).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            let caught = u64::from_str_radix(caught?.trim(), 16).unwrap();
            let all = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
            all.iter().all(|signal| caught & 1 << (*signal as i32 - 1) != 0).then_some(())
        });
    }

    fn ended(&mut self) -> ExitStatus {
        eventually("the exit", || self.child.try_wait().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("log")).unwrap()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log ---\n{}", self.log());
        }
    }
}

/// Ends one whose start waits for `file` in the data folder, when `waits` has seen it there.
fn ends_at<T>(file: &str, waits: impl Fn(&mut Starting, &Path) -> T) {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let in_place = |scratch: &Path| pipe(&scratch.join("data").join(file));
        let mut daemon = Starting::by(&[env!("CARGO_BIN_EXE_chiral")], None, in_place);
        daemon.listens();
        let data = daemon.scratch.path().join("data");
        let waiting = waits(&mut daemon, &data.join(file));
        daemon.signal(signal);
        let status = daemon.ended();
        drop(waiting);
        let log = daemon.log();
        assert_eq!(status.code(), Some(1), "{signal}: {log}");
        // Because of the signal, and not when the time for an end in good order was over.
        assert!(log.contains("ended by a signal before it had mounted"), "{signal}: {log}");
        assert!(!data.join("control.sock").exists(), "{signal}");
        assert!(!is_mounted(&daemon.scratch.path().join("mnt")), "{signal}");
        // Nothing is left that the next start would stumble over.
        fs::remove_file(data.join(file)).unwrap();
        let scratch = std::mem::replace(&mut daemon.scratch, tempfile::tempdir().unwrap());
        Daemon::start_in(scratch, &Setup::default()).stop();
    }
}

#[test]
fn a_signal_ends_a_daemon_that_waits_for_the_lock_of_its_data_folder() {
    ends_at("lock", |_, _| {});
}

#[test]
fn a_signal_ends_a_daemon_that_waits_for_its_key() {
    ends_at("key", |_, key| {
        // The other end can be opened, and waits for nobody, once somebody opens this one. Without a byte the reader
        // waits as long as it is held.
        eventually("the reading of the key", || {
            File::options().write(true).custom_flags(libc::O_NONBLOCK).open(key).ok()
        })
    });
}

/// Stands where `fusermount3` is looked for, and neither mounts nor ends before it is let go.
struct Helper {
    folder: TempDir,
}

impl Helper {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pipe(&folder.path().join("gate"));
        let program = folder.path().join("fusermount3");
        let script = "#!/bin/sh\ncase \"$1\" in -h|-u) exit 0;; esac\n: >\"${0%/*}/asked\"\nread -r _ <\"${0%/*}/gate\"\nexit 1\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn asked(&self) -> PathBuf {
        self.folder.path().join("asked")
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Its reader finds the end. One that has not come this far, or that there is none, is no matter here.
        let gate = File::options().read(true).write(true).open(self.folder.path().join("gate"));
        drop(gate);
    }
}

#[test]
fn a_second_signal_ends_at_once_also_while_the_mount_is_being_made() {
    let helper = Helper::new();
    let path = format!("{}:{}", helper.folder.path().display(), std::env::var("PATH").unwrap());
    let chiral = env!("CARGO_BIN_EXE_chiral");
    // Root would mount without the helper.
    let as_user = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", chiral];
    let program = if geteuid().is_root() { &as_user[..] } else { &as_user[3..] };
    let mut daemon = Starting::by(program, Some(path), |_| {});
    eventually("the mounting", || helper.asked().exists().then_some(()));
    daemon.listens();
    // Nothing ends between the two: the helper does not answer.
    daemon.signal(Signal::SIGINT);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().code(), Some(1));
    assert!(daemon.log().contains("a second signal: ending at once"), "{}", daemon.log());
}
