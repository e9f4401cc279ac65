//! Attaching to the kernel and detaching.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use fuser::{Config, InitFlags, KernelConfig, MountOption, Session, SessionACL};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    unistd::{getegid, geteuid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

use super::{
    adapter::Adapter,
    attr::Owner,
    mountinfo::{self, MountEntry, is_listed, mounted_at},
    refused::{HELPER, Refused},
    semantics::Fs,
};
use crate::{node::Node, tasks};

/// Requests that may wait at once. With the library's 16, that many readers of a file whose sources are gone would
/// hold up the cached reads of every other file; work per content is bounded below.
const MAX_BACKGROUND: u16 = 1024;
/// From how many on the kernel holds its read-ahead back.
const CONGESTION: u16 = 768;
/// Read-ahead, in KiB. The kernel offers 128 over the protocol; at 1 MiB sequential reads come in the largest
/// requests that it makes, and a streaming reader needs 8 times fewer of them.
const READ_AHEAD_KIB: u32 = 1024;
/// More than four threads were not faster at anything; two serve one reader as well as four.
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;
/// How long a detached filesystem gets to go away before its connection is cut off.
const DETACH_TIME: Duration = Duration::from_secs(2);
/// How often that is looked at.
const DETACH_POLL: Duration = Duration::from_millis(20);
/// As many symbolic links in a row as the kernel follows.
const MAX_LINKS: usize = 40;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// Other users may enter, as far as the permission bits let them.
    pub allow_other: bool,
    /// Complete files are read and uploads written by the kernel itself, where it can and the process may.
    pub passthrough: bool,
    /// Nothing may be written.
    pub read_only: bool,
}

/// Why a filesystem could not be mounted or detached.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint cannot be used.
    #[error("mountpoint {}: {source}", path.display())]
    Mountpoint {
        /// Which directory.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The mountpoint is no directory.
    #[error("mountpoint {}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A filesystem of chiral that answers is mounted there.
    #[error("{} is mounted already; end that daemon or run `chiral umount`", .0.display())]
    Mounted(PathBuf),
    /// The system has no FUSE, or does not let this user use it.
    #[error("cannot mount on {}: {source}", path.display())]
    Fuse {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: Refused,
    },
    /// The filesystem cannot be detached.
    #[error("cannot detach {}: {reason}", path.display())]
    Detach {
        /// Where.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
}

/// What is asked of the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capabilities {
    pub(super) passthrough: bool,
}

impl Capabilities {
    /// Asks for what the kernel offers; whether passthrough can be used.
    pub(super) fn negotiate(self, config: &mut KernelConfig) -> bool {
        let wanted = [
            // Without it every lookup in a directory waits for the one before.
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // The truncation comes with the open, so that it can be answered with an empty working file.
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            // Inodes are found by their number alone: `lookup` answers `.` and `..`.
            InitFlags::FUSE_EXPORT_SUPPORT,
        ];
        for capability in wanted {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "not offered by this kernel");
            }
        }
        // Both only fail for 0.
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(CONGESTION);
        if !self.passthrough {
            return false;
        }
        let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            // Backing files lie on an ordinary filesystem, none that is stacked itself.
            && config.set_max_stack_depth(1).is_ok();
        if !offered {
            tracing::info!(
                "this kernel has no FUSE passthrough; files are copied through the daemon"
            );
        }
        offered
    }
}

/// A mounted filesystem. Dropping it detaches.
#[derive(Debug)]
pub struct Mount {
    mountpoint: PathBuf,
    device: Option<MountEntry>,
    ended: watch::Receiver<bool>,
}

impl Mount {
    /// Mounts. A stale mount of a daemon that died is detached first.
    ///
    /// # Errors
    /// [`MountError`] says what to do.
    pub fn start(options: MountOptions, node: Node) -> Result<Self, MountError> {
        detach_stale(&options.mountpoint)?;
        let mountpoint = checked(&options.mountpoint)?;
        let fuse = |error: io::Error| MountError::Fuse {
            path: mountpoint.clone(),
            source: Refused::of(&error),
        };
        let owner = Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        let (send_ended, ended) = watch::channel(false);
        let capabilities = Capabilities { passthrough: options.passthrough };
        let tasks = node.tasks().clone();
        let adapter = Adapter::new(Fs::new(node, owner), capabilities, send_ended.clone());
        let session = Session::new(adapter, &mountpoint, &config(&options)).map_err(fuse)?;
        let background = session.spawn().map_err(fuse)?;
        // Its drop would unmount whatever is at that path by then, perhaps another daemon's mount: the library's test
        // for that is inverted. The session ends by itself when the filesystem is detached.
        std::mem::forget(background);
        let device = mounted_at(&mountpoint).ok().flatten();
        if let Some(device) = &device {
            read_ahead(device);
            let (gone, cancelled) = (gone(device.clone()), tasks.cancelled());
            tasks.spawn("watch of the mount", async move {
                tokio::select! {
                    gone = gone => match gone {
                        Ok(()) => _ = send_ended.send_replace(true),
                        Err(error) => tracing::warn!(%error, "the mount table cannot be watched; a detached mount ends with its last open file"),
                    },
                    () = cancelled => {}
                }
            });
        }
        Ok(Self { mountpoint, device, ended })
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Resolves when nothing is mounted any more, however that came about; files that are open may live on.
    pub async fn ended(&self) {
        // The sender is dropped with the session, which is the end too.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Detaches at once: the name is free, what is open stays until it is closed. Never waits for anybody.
    ///
    /// # Errors
    /// When neither the system call nor fusermount3 can.
    pub fn unmount(&self) -> Result<(), MountError> {
        if *self.ended.borrow() {
            return Ok(());
        }
        match mounted_at(&self.mountpoint) {
            // Somebody detached it, or something else is mounted over it; that is not ours to take away.
            Ok(now) if now != self.device => Ok(()),
            _ => detach(&self.mountpoint),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, "the filesystem stays mounted");
        }
    }
}

fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("chiral".into()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        // Nothing here is told of reads; without it the kernel would think about times at each.
        MountOption::NoAtime,
        // The library leaves its own subtype option out when it mounts by itself, and fusermount3 takes only that one.
        if geteuid().is_root() {
            MountOption::CUSTOM("subtype=chiral".into())
        } else {
            MountOption::Subtype("chiral".into())
        },
    ];
    if options.read_only {
        config.mount_options.push(MountOption::RO);
    }
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    config.n_threads = Some(processors.clamp(*THREADS.start(), *THREADS.end()));
    config
}

/// The mountpoint as the kernel knows it, if it can be mounted on.
fn checked(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let failed = |source| MountError::Mountpoint { path: mountpoint.to_owned(), source };
    let path = mountpoint.canonicalize().map_err(failed)?;
    if !path.is_dir() {
        return Err(MountError::NotADirectory(path));
    }
    match mounted_at(&path).map_err(failed)? {
        Some(entry) if entry.kind == mountinfo::TYPE => Err(MountError::Mounted(path)),
        _ => Ok(path),
    }
}

/// Waits until a mount is no longer listed. The kernel tells the session of the end only when the last file that is
/// open in it is closed, which may be never.
async fn gone(mounted: MountEntry) -> io::Result<()> {
    #[allow(
        deprecated,
        reason = "its successor is unsafe, for types that exchange their descriptor; a file keeps it"
    )]
    let table = AsyncFd::with_interest(fs::File::open(mountinfo::TABLE)?, Interest::PRIORITY)?;
    while is_listed(&mounted)? {
        table.ready(Interest::PRIORITY).await?.clear_ready();
    }
    Ok(())
}

/// Asks the block device layer for more read-ahead than the protocol can; only root may.
fn read_ahead(device: &MountEntry) {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.major, device.minor);
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "read-ahead stays at what the kernel offers");
    }
}

/// Detaches a mount of chiral at `mountpoint` whose daemon is dead; whether there was one. What is alive, or not of
/// chiral, stays.
///
/// Blocks for up to two seconds.
///
/// # Errors
/// [`MountError::Mounted`] when nobody can tell whether it is dead, or when a dead one cannot be detached.
pub fn detach_stale(mountpoint: &Path) -> Result<bool, MountError> {
    let path = mounted_path(mountpoint);
    let ours = mounted_at(&path).is_ok_and(|e| e.is_some_and(|e| e.kind == mountinfo::TYPE));
    if !ours {
        return Ok(false);
    }
    match ask(&path) {
        Ok(Some(Err(Errno::ENOTCONN | Errno::ECONNABORTED))) => detach(&path).map(|()| true),
        Ok(Some(_)) => Ok(false),
        // Its daemon is stopped or hangs, and so would whoever looks at it from here on.
        Ok(None) => Err(MountError::Mounted(path)),
        Err(source) => Err(MountError::Mountpoint { path, source }),
    }
}

/// Detaches a mount of chiral, alive or stale, for `chiral umount`; whether there was one. From a daemon that does not
/// answer it is taken away with all that programs wait for: they get errors instead of waiting for ever.
///
/// Blocks for up to four seconds.
///
/// # Errors
/// When it cannot be detached.
pub fn unmount_path(mountpoint: &Path) -> Result<bool, MountError> {
    let path = mounted_path(mountpoint);
    let failed = |source| MountError::Mountpoint { path: path.clone(), source };
    let entry = mounted_at(&path).map_err(failed)?;
    let Some(entry) = entry.filter(|entry| entry.kind == mountinfo::TYPE) else {
        return Ok(false);
    };
    let answers = ask(&path).map_err(failed)?.is_some();
    // Only while it is mounted can the system call cut a connection off, and only root may.
    if !answers && umount2(&path, DETACHED | MntFlags::MNT_FORCE).is_ok() {
        return Ok(true);
    }
    detach(&path)?;
    let connection = PathBuf::from(format!("/sys/fs/fuse/connections/{}", entry.minor));
    let mut left = DETACH_TIME;
    while connection.exists() && !left.is_zero() {
        thread::sleep(DETACH_POLL);
        left = left.saturating_sub(DETACH_POLL);
    }
    if is_stuck(&connection) {
        tracing::warn!(mountpoint = %path.display(), "requests wait for a daemon that does not answer; cutting it off");
        fs::write(connection.join("abort"), "1").map_err(failed)?;
    }
    Ok(true)
}

/// What the daemon behind a mount, or the kernel in place of a dead one, answers to a question that waits for nobody;
/// none when it does not.
fn ask(mountpoint: &Path) -> io::Result<Option<nix::Result<()>>> {
    let (answered, answer) = mpsc::channel();
    let path = mountpoint.to_owned();
    tasks::outliving("question to a mount", move || {
        let _ = answered.send(nix::sys::statfs::statfs(&path).map(drop));
    })?;
    Ok(answer.recv_timeout(DETACH_TIME).ok())
}

/// Whether requests wait on a connection; one that is only held open by a program that does nothing has none.
fn is_stuck(connection: &Path) -> bool {
    fs::read_to_string(connection.join("waiting")).is_ok_and(|waiting| waiting.trim() != "0")
}

/// The name is free at once; what is open lives on.
const DETACHED: MntFlags = MntFlags::MNT_DETACH.union(MntFlags::UMOUNT_NOFOLLOW);

fn detach(path: &Path) -> Result<(), MountError> {
    let error = match umount2(path, DETACHED) {
        Ok(()) => return Ok(()),
        // Nothing is mounted there any more.
        Err(Errno::EINVAL) => return Ok(()),
        Err(error) => error,
    };
    // Users may detach what they mounted through the program that mounted it for them. It is in a group of its own: Ctrl-C
    // goes to the group of the terminal, and a second one would end it amid its work.
    let mut helper = Command::new(HELPER);
    helper.process_group(0).args(["-u", "-z", "-q", "--"]).arg(path);
    match helper.output() {
        Ok(output) if output.status.success() => Ok(()),
        // Detached meanwhile, by another program or another thread of this one.
        _ if mounted_at(path)
            .is_ok_and(|entry| entry.is_none_or(|e| e.kind != mountinfo::TYPE)) =>
        {
            Ok(())
        }
        Ok(output) => Err(MountError::Detach {
            path: path.to_owned(),
            reason: format!(
                "{error}; fusermount3: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        }),
        Err(missing) => Err(MountError::Detach {
            path: path.to_owned(),
            reason: format!("{error}; fusermount3: {missing}"),
        }),
    }
}

/// A mountpoint as the mount table has it, without symbolic links. What is mounted there is not looked at: a stale
/// mount gives errors and one whose daemon hangs never answers, but neither is asked for what readlink(2) tells.
pub fn mounted_path(mountpoint: &Path) -> PathBuf {
    let mut path = known_as(mountpoint);
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&path) else { break };
        // An absolute target takes the place of the whole.
        let folder = path.parent().unwrap_or(Path::new("/"));
        path = known_as(&folder.join(target));
    }
    path
}

/// The path with the folder that its last component lies in made canonical.
fn known_as(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => {
            parent.canonicalize().map_or(absolute.clone(), |parent| parent.join(name))
        }
        // `..` at the end: there is nothing but to look.
        _ => absolute.canonicalize().unwrap_or(absolute),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_mountpoint_is_found_through_links_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        symlink(dir.path().join("link"), dir.path().join("second")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        for name in ["real", "link", "second", "real/", "link/", "real/../link"] {
            assert_eq!(mounted_path(&dir.path().join(name)), real, "{name}");
        }
        assert!(mounted_path(&dir.path().join("loop")).ends_with("loop"));
        assert_eq!(mounted_path(Path::new("/")), Path::new("/"));
    }
}
