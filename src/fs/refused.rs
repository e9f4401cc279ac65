//! Why a mount was refused, out of what the library and the system tell, and the help that is for that reason only.

use std::{
    env,
    fs::File,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, unistd::geteuid};

/// The device by which a filesystem talks to the kernel.
const DEVICE: &str = "/dev/fuse";

/// The program that mounts for users other than root.
pub(super) const HELPER: &str = "fusermount3";

/// Message of fusermount3 where allow_other is not allowed.
const NOT_ALLOWED: &str = "user_allow_other";

/// Why the kernel or fusermount3 did not mount.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The kernel has no FUSE, or the container no device for it.
    #[error(
        "{DEVICE} is missing: load the kernel module with `modprobe fuse`, or give the container the device with `--device {DEVICE}`"
    )]
    NoDevice,
    /// This user may not open the device.
    #[error("{DEVICE} cannot be opened ({0}): this user needs to read and write it")]
    Device(io::Error),
    /// Root without the capability to mount.
    #[error(
        "root may not mount here, without CAP_SYS_ADMIN: give the container `--cap-add SYS_ADMIN`"
    )]
    NoCapability,
    /// The program that mounts for users is not installed, or for a group only.
    #[error(
        "the program {HELPER}, which mounts for users other than root, is missing or not for this user to run: install it, such as with `apt install fuse3`"
    )]
    NoHelper,
    /// The system does not let users show a mount to others.
    #[error(
        "other users may not be let in: add the line `user_allow_other` to /etc/fuse.conf, or mount without --allow-other"
    )]
    OthersNotAllowed,
    /// Anything else, as it was told.
    #[error("{0}")]
    Other(String),
}

/// Further facts about a refused mount.
#[derive(Debug)]
struct Surroundings {
    device: io::Result<()>,
    has_helper: bool,
    is_root: bool,
}

impl Refused {
    /// The reason behind the library's error.
    pub(super) fn of(error: &io::Error) -> Self {
        let device = File::options().read(true).write(true).open(DEVICE).map(drop);
        let is_root = geteuid().is_root();
        Self::within(error, Surroundings { device, has_helper: has_helper(), is_root })
    }

    fn within(error: &io::Error, around: Surroundings) -> Self {
        match around.device {
            Err(e)
                if matches!(
                    e.raw_os_error().map(Errno::from_raw),
                    Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO)
                ) =>
            {
                return Self::NoDevice;
            }
            Err(e) if e.kind() == ErrorKind::PermissionDenied => return Self::Device(e),
            _ => {}
        }
        // The library asks fusermount3 where mount(2) gave EPERM.
        let is_absent = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied);
        if is_absent && !around.has_helper {
            return if around.is_root { Self::NoCapability } else { Self::NoHelper };
        }
        let said = error.to_string();
        if said.contains(NOT_ALLOWED) {
            return Self::OthersNotAllowed;
        }
        let said = said.trim().trim_start_matches(&format!("{HELPER}: ")).to_owned();
        match said.is_empty() {
            true => Self::Other(format!("{HELPER} ended without a reason")),
            false => Self::Other(said),
        }
    }
}

/// Returns whether fusermount3 is where it is looked for.
fn has_helper() -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    let usual = ["/sbin", "/bin"].map(PathBuf::from);
    env::split_paths(&folders).chain(usual).any(|folder| is_program(&folder.join(HELPER)))
}

fn is_program(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which nothing is missing.
    fn sound() -> Surroundings {
        Surroundings { device: Ok(()), has_helper: true, is_root: false }
    }

    fn told(error: &io::Error, around: Surroundings) -> String {
        Refused::within(error, around).to_string()
    }

    fn os(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno as i32)
    }

    #[test]
    fn each_reason_has_its_own_help_and_no_other() {
        let helps = [
            "modprobe",
            "apt install fuse3",
            "user_allow_other",
            "CAP_SYS_ADMIN",
            "read and write it",
        ];
        let said = |text: &str| io::Error::other(text.to_owned());
        let allow = said(
            "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n",
        );
        let no_write = said("fusermount3: user has no write access to mountpoint /mnt\n");
        for (error, around, help) in [
            (
                os(Errno::ENOENT),
                Surroundings { device: Err(os(Errno::ENOENT)), ..sound() },
                Some("modprobe"),
            ),
            (
                os(Errno::ENODEV),
                Surroundings { device: Err(os(Errno::ENODEV)), ..sound() },
                Some("modprobe"),
            ),
            (
                os(Errno::EACCES),
                Surroundings { device: Err(os(Errno::EACCES)), ..sound() },
                Some("read and write it"),
            ),
            (
                os(Errno::ENOENT),
                Surroundings { has_helper: false, ..sound() },
                Some("apt install fuse3"),
            ),
            (
                os(Errno::EACCES),
                Surroundings { has_helper: false, ..sound() },
                Some("apt install fuse3"),
            ),
            (
                os(Errno::ENOENT),
                Surroundings { has_helper: false, is_root: true, ..sound() },
                Some("CAP_SYS_ADMIN"),
            ),
            (allow, sound(), Some("user_allow_other")),
            (no_write, sound(), None),
            (os(Errno::EACCES), sound(), None),
            (said(""), sound(), None),
        ] {
            let text = told(&error, around);
            let given: Vec<_> = helps.into_iter().filter(|part| text.contains(part)).collect();
            assert_eq!(given, Vec::from_iter(help), "{error:?}: {text}");
        }
    }

    #[test]
    fn what_the_helper_said_is_told_without_its_name() {
        let error = io::Error::other("fusermount3: user has no write access to mountpoint /mnt\n");
        assert_eq!(told(&error, sound()), "user has no write access to mountpoint /mnt");
        assert_eq!(told(&io::Error::other(""), sound()), "fusermount3 ended without a reason");
    }
}
