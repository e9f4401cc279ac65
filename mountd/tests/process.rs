//! Causes that do and do not end a daemon: signals, limits, and outputs that take nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

const CHIRAL: &str = env!("CARGO_BIN_EXE_chiral");

/// Longest wait for something that a slow machine does late.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon in the foreground; it is gone with this.
struct Daemon {
    child: Child,
    dir: TempDir,
}

fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "no {what}");
        sleep(Duration::from_millis(10));
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

impl Daemon {
    fn start() -> Self {
        Self::start_by(&[CHIRAL], |_| {})
    }

    /// Starts it by `program`, the arguments of `chiral` behind it.
    fn start_by(program: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let (first, rest) = program.split_first().unwrap();
        let mut command = Command::new(first);
        command
            .args(rest)
            .args(["mount", "--offline", "--no-gateway", "--data-dir"])
            .arg(dir.path().join("data"))
            .arg(dir.path().join("mnt"))
            .env("HOME", dir.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(File::create(dir.path().join("out")).unwrap())
            .stderr(File::create(dir.path().join("log")).unwrap());
        prepare(&mut command);
        let mut daemon = Self { child: command.spawn().unwrap(), dir };
        let mountpoint = daemon.path("");
        eventually("mount", || {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", daemon.log());
            let listens = daemon.dir.path().join("data/control.sock").exists();
            (is_mounted(&mountpoint) && listens).then_some(())
        });
        daemon
    }

    fn path(&self, below: &str) -> PathBuf {
        match self.dir.path().join("mnt") {
            mountpoint if below.is_empty() => mountpoint,
            mountpoint => mountpoint.join(below),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success(), "{signal}");
    }

    fn ended(&mut self) -> ExitStatus {
        eventually("end", || self.child.try_wait().unwrap())
    }

    fn chiral(&self, args: &[&str]) -> Command {
        let mut command = Command::new(CHIRAL);
        command.args(args).env("CHIRAL_DATA_DIR", self.dir.path().join("data"));
        command
    }

    /// It writes, publishes, reads and answers.
    #[track_caller]
    fn serves(&self) {
        let path = self.path("upload/file");
        fs::write(&path, "hello world\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello world\n");
        let added = self.chiral(&["add", "-Q", path.to_str().unwrap()]).output().unwrap();
        let hello = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4\n";
        assert_eq!(String::from_utf8_lossy(&added.stdout), hello, "{added:?}");
        assert!(self.chiral(&["status"]).output().unwrap().status.success());
        fs::remove_file(&path).unwrap();
    }

    #[track_caller]
    fn ends_well_by(mut self, signal: &str) {
        self.signal(signal);
        let status = self.ended();
        assert_eq!(status.code(), Some(0), "{signal}: {status}: {}", self.log());
        assert!(!is_mounted(&self.path("")), "{signal}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if is_mounted(&self.path("")) {
            let _ = Command::new("umount").arg("-l").arg(self.path("")).status();
        }
    }
}

#[test]
fn signals_that_mean_nothing_do_not_end_it() {
    let mut daemon = Daemon::start();
    let named = [
        "IO", "PIPE", "XFSZ", "USR1", "USR2", "VTALRM", "PROF", "STKFLT", "TTOU", "CHLD", "URG",
        "WINCH",
    ];
    // The first of the real-time signals that the C library leaves, and the last.
    for signal in named.into_iter().chain(["34", "50", "64"]) {
        daemon.signal(signal);
        daemon.serves();
        assert!(daemon.child.try_wait().unwrap().is_none(), "{signal}");
    }
    assert_eq!(daemon.log(), "");
    daemon.ends_well_by("TERM");
}

#[test]
fn signals_that_ask_for_the_end_end_it_in_good_order() {
    for signal in ["HUP", "INT", "QUIT", "TERM", "ALRM", "XCPU", "PWR"] {
        let mut daemon = Daemon::start();
        daemon.serves();
        daemon.signal(signal);
        let status = daemon.ended();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{signal}");
        assert!(!is_mounted(&daemon.path("")), "{signal}");
        // A person at a terminal hears of a failure only.
        assert_eq!(daemon.log(), "", "{signal}");
    }
}

#[test]
fn a_signal_that_the_starter_had_blocked_is_heard() {
    let env = ["env", "--block-signal=TERM", "--block-signal=INT", "--ignore-signal=CHLD", CHIRAL];
    Daemon::start_by(&env, |_| {}).ends_well_by("TERM");
    let ignoring = ["env", "--ignore-signal=HUP", CHIRAL];
    let daemon = Daemon::start_by(&ignoring, |_| {});
    daemon.signal("HUP");
    daemon.serves();
    daemon.ends_well_by("TERM");
}

/// Each of these opens a published file amid the probe for writers, sooner or later.
#[test]
fn files_that_change_all_the_time_do_not_end_it() {
    let daemon = Daemon::start();
    let path = daemon.path("upload/file");
    let mut model = vec![7; 2 << 20];
    fs::write(&path, &model).unwrap();
    for round in 0..2000_usize {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"line\n").unwrap();
        model.extend_from_slice(b"line\n");
        if round % 3 == 0 {
            model.truncate(model.len() - 7);
            drop(file);
            // By its path, as truncate(2) does.
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(model.len() as u64)
                .unwrap();
        }
        if round % 5 == 0 {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            let at = round * 1009 % (2 << 20);
            std::os::unix::fs::FileExt::write_all_at(&file, b"page", at as u64).unwrap();
            model[at..at + 4].copy_from_slice(b"page");
        }
    }
    assert!(fs::read(&path).unwrap() == model);
    daemon.serves();
    daemon.ends_well_by("TERM");
}

#[test]
fn outputs_that_take_nothing_cost_nothing_else() {
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    for level in ["warn", "trace"] {
        let daemon = Daemon::start_by(&[CHIRAL], |command| {
            command.env("RUST_LOG", level).stdout(full()).stderr(full());
        });
        daemon.serves();
        daemon.ends_well_by("TERM");
    }
    let closed = format!("exec {CHIRAL} \"$@\" <&- >&- 2>&-");
    let daemon = Daemon::start_by(&["sh", "-c", &closed, "sh"], |_| {});
    daemon.serves();
    daemon.ends_well_by("INT");
    // A pipe whose other end is gone.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let daemon = Daemon::start_by(&[CHIRAL], |command| {
        command.env("RUST_LOG", "trace").stderr(writer);
    });
    daemon.serves();
    daemon.ends_well_by("TERM");
}

#[test]
fn a_log_that_is_not_read_holds_nothing_up() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let daemon = Daemon::start_by(&[CHIRAL], |command| {
        command.env("RUST_LOG", "trace").stderr(writer);
    });
    // More than a pipe takes.
    for _ in 0..20 {
        daemon.serves();
    }
    let reading = std::thread::spawn(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).unwrap();
        log
    });
    daemon.serves();
    daemon.ends_well_by("TERM");
    let log = reading.join().unwrap();
    assert!(log.contains("messages are lost: stderr took no more"), "{} bytes", log.len());
}

#[test]
fn a_limit_of_the_length_of_files_is_an_error_of_the_write() {
    // Blocks of 512 bytes: 64 MiB.
    let limited = format!("ulimit -f 131072; exec {CHIRAL} \"$@\"");
    let daemon = Daemon::start_by(&["sh", "-c", &limited, "sh"], |command| {
        // The daemon writes, and not the kernel for this process, which has no such limit.
        command.env("CHIRAL_MOUNT_PASSTHROUGH", "false");
    });
    let mut file = File::create(daemon.path("upload/long")).unwrap();
    let refused = (0..80).find_map(|_| file.write_all(&[7; 1 << 20]).err()).unwrap();
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EFBIG), "{refused}");
    drop(file);
    daemon.serves();
    daemon.ends_well_by("TERM");
}

fn panics_nowhere(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(output.status.signal(), None, "{said}");
}

#[test]
fn commands_whose_output_fails_say_so_and_do_not_panic() {
    let daemon = Daemon::start();
    let path = daemon.path("upload/file");
    fs::write(&path, "hello world\n").unwrap();
    let path = path.to_str().unwrap();
    let id = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4";
    assert!(daemon.chiral(&["add", path]).output().unwrap().status.success());
    for args in [
        &["status"][..],
        &["--json", "status"],
        &["id"],
        &["peers"],
        &["transfers"],
        &["ls", id],
        &["cat", id],
        &["add", path],
        &["add", "--only-hash", path],
        &["pin", "ls", "--json"],
        &["torrent", "list"],
        &["store", "export", id],
        &["config", "show"],
        &["completions", "bash"],
        &["man"],
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = daemon.chiral(args).stdout(full).output().unwrap();
        panics_nowhere(&output);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("No space left on device"), "{args:?}: {said}");

        // As `| head -c 0`, whose reader has enough.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = daemon.chiral(args).stdout(writer).output().unwrap();
        panics_nowhere(&output);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{args:?}");
    }
    for args in [&["--help"][..], &["frobnicate"], &["cat", "no-id"], &["cat", &format!("{id}/no")]]
    {
        let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = daemon.chiral(args).stdout(full()).stderr(full()).output().unwrap();
        assert!(output.status.code().is_some_and(|code| code < 3), "{args:?}: {}", output.status);
    }
    daemon.ends_well_by("TERM");
}

#[test]
fn a_second_daemon_is_told_which_one_is_in_the_way() {
    let daemon = Daemon::start();
    let other = daemon.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let mount = ["mount", "--offline", other.to_str().unwrap()];
    let refused = daemon.chiral(&mount).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    let mountpoint = daemon.path("");
    let holder = format!("process {}, mounted on {}", daemon.child.id(), mountpoint.display());
    assert!(refused.status.code() == Some(1) && said.contains(&holder), "{said}");
    assert!(said.contains("chiral umount") && said.contains("--data-dir"), "{said}");
    // One that does not answer is known by its lock.
    daemon.signal("STOP");
    let refused = daemon.chiral(&mount).output().unwrap();
    daemon.signal("CONT");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains(&format!("process {}", daemon.child.id())), "{said}");
    daemon.ends_well_by("TERM");
}
