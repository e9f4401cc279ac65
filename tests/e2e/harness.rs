//! Starts and ends daemons; everything lives in one scratch folder that vanishes with the test.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

pub(crate) use self::bytes::noise;

#[path = "../support/noise.rs"]
mod bytes;

/// Longest wait for anything that should be quick; only a hang is ever this slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a daemon is started with besides its folders.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// More arguments of `chiral mount`.
    pub(crate) args: Vec<String>,
    /// Text of its configuration file.
    pub(crate) config: String,
}

/// A running daemon with its mount.
pub(crate) struct Daemon {
    child: Child,
    scratch: TempDir,
}

/// Says loudly that something was not tested, because the machine lacks what could be installed. With
/// `CHIRAL_REQUIRE_ALL=1`, which `scripts/test` sets when it has installed all, that is a failure.
pub(crate) fn skipped(why: &str) {
    assert!(std::env::var_os("CHIRAL_REQUIRE_ALL").is_none_or(|set| set != "1"), "{why}");
    eprintln!("SKIPPED: {why}");
}

/// Waits until `done` gives something; fails the test when it never does.
pub(crate) fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        thread::yield_now();
        // A poll, not a synchronisation: what is waited for has no handle to wait on.
        thread::sleep(Duration::from_millis(10));
    }
}

/// A file that grows, read as `tail -f` does: it ends with an error, when whoever writes it is gone.
pub(crate) struct Followed(fs::File);

impl Read for Followed {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.read(into)? {
                0 => thread::sleep(Duration::from_millis(10)),
                len => return Ok(len),
            }
        }
    }
}

/// Runs a command to its end, killing it after [`PATIENCE`].
pub(crate) fn run(command: &mut Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let drain = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let stdout = drain(Box::new(child.stdout.take().unwrap()));
    let stderr = drain(Box::new(child.stderr.take().unwrap()));
    let status = wait(&mut child, command);
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn wait(child: &mut Child, command: &Command) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{command:?} did not end within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command that must succeed and gives what it prints.
pub(crate) fn sh(script: &str, dir: &Path) -> String {
    let output = run(Command::new("bash")
        .arg("-euo")
        .arg("pipefail")
        .arg("-c")
        .arg(script)
        .current_dir(dir));
    assert!(
        output.status.success(),
        "`{script}` failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

impl Daemon {
    /// A daemon of its own private network, mounted.
    pub(crate) fn start(setup: &Setup) -> Self {
        Self::start_in(tempfile::Builder::new().prefix("chiral-e2e-").tempdir().unwrap(), setup)
    }

    /// The same that knows and keeps a connection to `peer`.
    pub(crate) fn start_beside(peer: &Daemon, setup: &Setup) -> Self {
        let mut setup = setup.clone();
        for address in peer.addresses() {
            setup.args.extend(["--peer".to_owned(), address]);
        }
        let daemon = Self::start(&setup);
        eventually("the connection", || (!daemon.peers().is_empty()).then_some(()));
        daemon
    }

    /// The same with a line to `peer` that passes `rate` bytes per second.
    pub(crate) fn start_far_from(peer: &Daemon, rate: u32) -> Self {
        Self::start_far_from_with(peer, rate, String::new())
    }

    /// The same with a configuration file of its own.
    pub(crate) fn start_far_from_with(peer: &Daemon, rate: u32, config: String) -> Self {
        let address = peer.addresses().into_iter().find(|a| a.contains("/tcp/")).unwrap();
        let (host, rest) = address.split_once("/tcp/").unwrap();
        let (port, id) = rest.split_once('/').unwrap();
        let line = slow_line((Ipv4Addr::LOCALHOST, port.parse().unwrap()).into(), rate);
        let setup = Setup {
            args: vec!["--peer".to_owned(), format!("{host}/tcp/{}/{id}", line.port())],
            config,
        };
        let daemon = Self::start(&setup);
        eventually("the connection", || (!daemon.peers().is_empty()).then_some(()));
        daemon
    }

    /// A daemon in a scratch folder that an earlier one left.
    pub(crate) fn start_in(scratch: TempDir, setup: &Setup) -> Self {
        let mountpoint = scratch.path().join("mnt");
        // After a crash the mountpoint is a dead mount, which is there but cannot be looked at.
        if fs::symlink_metadata(&mountpoint)
            .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        {
            fs::create_dir(&mountpoint).unwrap();
        }
        let config = scratch.path().join("chiral.toml");
        fs::write(&config, &setup.config).unwrap();
        let log =
            fs::File::options().create(true).append(true).open(scratch.path().join("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_chiral"))
            .args(["mount", "--private", "--listen", "/ip4/127.0.0.1/tcp/0"])
            .arg("--data-dir")
            .arg(scratch.path().join("data"))
            .arg("--config")
            .arg(&config)
            .args(&setup.args)
            .arg(&mountpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (ready, started) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The receiver is gone once the daemon is up; its later output has no reader.
                let _ = ready.send(line);
            }
        });
        let daemon = Self { child, scratch };
        let line = started
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("no start:\n{}", daemon.log()));
        assert_eq!(line, format!("mounted {}", mountpoint.display()), "{}", daemon.log());
        daemon
    }

    /// The mountpoint, or a path below it.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.scratch.path().join("mnt").join(below)
    }

    /// Its events from now on.
    pub(crate) fn events(&self) -> Followed {
        Followed(fs::File::open(self.path(".chiral/events")).unwrap())
    }

    /// A scratch folder beside data and mount.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// What the daemon logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }

    /// Process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Runs a client command against this daemon.
    pub(crate) fn chiral(&self, args: &[&str]) -> Output {
        run(Command::new(env!("CARGO_BIN_EXE_chiral"))
            .args(args)
            .env("CHIRAL_DATA_DIR", self.data()))
    }

    /// The same, parsed from `--json`; it must succeed.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.chiral(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Addresses with the peer id at their end.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let id = self.json(&["id"]);
        id["addresses"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect()
    }

    /// Connected peers.
    pub(crate) fn peers(&self) -> Vec<serde_json::Value> {
        self.json(&["peers"]).as_array().unwrap().clone()
    }

    /// Value of an extended attribute of a path below the mountpoint.
    pub(crate) fn xattr(&self, below: &str, name: &str) -> String {
        sh(
            &format!("getfattr --only-values -n {name} '{}'", self.path(below).display()),
            Path::new("/"),
        )
    }

    /// The id of a published path.
    pub(crate) fn cid(&self, below: &str) -> String {
        self.xattr(below, "user.chiral.cid")
    }

    /// The same, with the data folder on a small filesystem of its own, so that the disk can be full.
    pub(crate) fn start_on_small_disk(mib: u64, setup: &Setup) -> Self {
        let scratch = tempfile::Builder::new().prefix("chiral-e2e-").tempdir().unwrap();
        fs::create_dir(scratch.path().join("data")).unwrap();
        sh(
            &format!(
                "truncate -s {mib}M disk.img && mkfs.ext4 -q -m 0 disk.img && mount -o loop disk.img data && rmdir data/lost+found"
            ),
            scratch.path(),
        );
        Self::start_in(scratch, setup)
    }

    /// SIGKILL, as the kernel's memory killer would; gives the scratch folder for the next start.
    pub(crate) fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.take_scratch()
    }

    /// The same when nothing is started there again: the dead mount goes, too.
    pub(crate) fn kill_for_good(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit that must follow.
    pub(crate) fn stop(mut self) -> TempDir {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let status = eventually("the exit", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", self.log());
        assert!(!is_mounted(&self.path("")), "the mount is still there");
        self.take_scratch()
    }

    /// Waits for an exit that something else caused.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the exit", || self.child.try_wait().unwrap())
    }

    fn take_scratch(&mut self) -> TempDir {
        // What is left behind for `drop` is an empty folder of its own.
        std::mem::replace(&mut self.scratch, tempfile::tempdir().unwrap())
    }
}

/// A slow line: what connects to it reaches `to`, with at most `rate` bytes per second in each direction. It ends with
/// the connections, or with the test's process.
pub(crate) fn slow_line(to: SocketAddr, rate: u32) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let Ok(far) = TcpStream::connect(to) else { return };
            let (near_back, far_back) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || pass(near, far, rate));
            thread::spawn(move || pass(far_back, near_back, rate));
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream, rate: u32) {
    let mut piece = [0; 16 << 10];
    while let Ok(len @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..len]).is_err() {
            break;
        }
        // What makes the line slow.
        thread::sleep(Duration::from_secs(1) * u32::try_from(len).unwrap() / rate);
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Whether the kernel lists a mount there.
pub(crate) fn is_mounted(path: &Path) -> bool {
    let path = path.to_str().unwrap().trim_end_matches('/');
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .any(|l| l.split(' ').nth(4) == Some(path))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            let _ = kill(self.pid(), Signal::SIGTERM);
            let start = Instant::now();
            while self.child.try_wait().unwrap().is_none() {
                if start.elapsed() > Duration::from_secs(20) {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        if is_mounted(&self.path("")) {
            let _ = run(Command::new("fusermount3").arg("-uz").arg(self.path("")));
        }
        if is_mounted(&self.data()) {
            let _ = run(Command::new("umount").arg("-l").arg(self.data()));
        }
        if thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.scratch.path().display(), self.log());
        }
    }
}

/// Value of an extended attribute, unless the file or the mount is gone.
pub(crate) fn xattr(path: &Path, name: &str) -> Option<String> {
    let output = Command::new("getfattr")
        .args(["--only-values", "--absolute-names", "-n", name])
        .arg(path)
        .output()
        .unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}
