//! A node without network and its mount, both gone when the test is over.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use chiral::{
    content::ImportParams,
    fs::{Mount, MountOptions, unmount_path},
    node::{
        DownloadOptions, Multiaddr, NetOptions, Node, NodeOptions, PublishOptions, StoreOptions,
        TorrentOptions,
    },
    tasks::Tasks,
};
use tokio::runtime::Runtime;

use self::node_options::options;

#[path = "../support/noise.rs"]
mod bytes;
#[path = "../support/node_options.rs"]
mod node_options;

/// Longest time that a program of a test may take.
const PATIENCE: &str = "20";

pub(crate) struct Mounted {
    pub(crate) root: PathBuf,
    /// Gone first, so that nothing is in use when the rest goes.
    guard: Guard,
    pub(crate) node: Node,
    pub(crate) runtime: Runtime,
    dir: Option<tempfile::TempDir>,
}

/// Detaches whatever happens in the test.
struct Guard(Option<Mount>, PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.take());
        let _ = unmount_path(&self.1);
    }
}

/// Whether this machine can mount; says so loudly when not.
pub(crate) fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists();
    if !can {
        eprintln!(
            "SKIPPED: there is no /dev/fuse on this machine, nothing of the mount was tested"
        );
    }
    can
}

/// Mounts a new node; none where the machine cannot.
pub(crate) fn mounted(passthrough: bool) -> Option<Mounted> {
    can_mount().then(|| mounted_with(|_| {}, passthrough))
}

pub(crate) fn mounted_with(change: impl FnOnce(&mut NodeOptions), passthrough: bool) -> Mounted {
    let dir = tempfile::Builder::new().prefix("chiral-fs-").tempdir().unwrap();
    let mut mounted = mounted_in(dir.path(), change, passthrough);
    mounted.dir = Some(dir);
    mounted
}

/// Mounts on `mnt` in a folder, with what an earlier node left there.
pub(crate) fn mounted_in(
    dir: &Path,
    change: impl FnOnce(&mut NodeOptions),
    passthrough: bool,
) -> Mounted {
    let runtime = Runtime::new().unwrap();
    let mut options = options(&dir.join("data"), Vec::new(), true);
    options.download.lookup_timeout = Duration::from_secs(2);
    change(&mut options);
    let root = dir.join("mnt");
    chiral::fs::detach_stale(&root).unwrap();
    fs::create_dir_all(&root).unwrap();
    let node = runtime.block_on(async { Node::start(options, Tasks::new()).await.unwrap() });
    let mount = MountOptions {
        mountpoint: root.clone(),
        allow_other: false,
        passthrough,
        read_only: false,
    };
    let mount = Mount::start(mount, node.clone()).unwrap();
    Mounted { guard: Guard(Some(mount), root.clone()), root, node, runtime, dir: None }
}

impl Mounted {
    /// Detaches and ends the node, so that another one can be started in its folder.
    pub(crate) fn end(self) {
        let Self { guard, node, runtime, .. } = self;
        drop(guard);
        runtime.block_on(node.stop(Duration::from_secs(20))).unwrap();
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn upload(&self, path: &str) -> PathBuf {
        self.root.join("upload").join(path)
    }

    pub(crate) fn mount(&self) -> &Mount {
        self.guard.0.as_ref().unwrap()
    }

    /// The id of an upload; waits until it is known.
    pub(crate) fn cid(&self, path: &str) -> String {
        for _ in 0..10 {
            match xattr(&self.upload(path), "user.chiral.cid") {
                // Written to until now: its last handle is released a moment after close(2).
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                value => return value.unwrap(),
            }
        }
        panic!("{path} stays busy");
    }

    /// Runs a shell command in the mount with a limit of time.
    pub(crate) fn run(&self, command: &str) -> Output {
        Command::new("timeout")
            .args([PATIENCE, "bash", "-c", command])
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Output of a command that has to succeed.
    pub(crate) fn sh(&self, command: &str) -> String {
        let output = self.run(command);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {} {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

pub(crate) fn xattr(path: &Path, name: &str) -> io::Result<String> {
    let mut value = [0; 256];
    let len = rustix::fs::getxattr(path, name, &mut value[..]).map_err(io::Error::from)?;
    Ok(String::from_utf8(value[..len].to_vec()).unwrap())
}

/// Bytes that repeat nowhere.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    bytes::noise(len, 0)
}

pub(crate) fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}
