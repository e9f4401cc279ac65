//! Trouble of the disk: logged once when it begins and once when it ends, however many calls fail meanwhile.

use std::{io, path::Path, sync::Mutex};

use super::{StoreError, guard};

/// Why the disk takes no writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It has no room left.
    Full,
    /// It is mounted read-only, or the kernel has made it so after an error.
    ReadOnly,
    /// It gives errors of the device or of the filesystem's own data.
    Failing,
}

/// What a device gives that is broken or gone, a filesystem that finds itself damaged, and a server that is.
const FAILING: [i32; 7] = [
    libc::EIO,
    libc::ENXIO,
    libc::ENODEV,
    libc::EREMOTEIO,
    libc::ESTALE,
    libc::EUCLEAN,
    libc::EBADMSG,
];

impl Trouble {
    /// None for an error that a whole disk gives as well: a file that is missing, say, or not ours.
    fn of(error: &io::Error) -> Option<Self> {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Self::Full),
            io::ErrorKind::ReadOnlyFilesystem => Some(Self::ReadOnly),
            _ => error.raw_os_error().filter(|e| FAILING.contains(e)).map(|_| Self::Failing),
        }
    }
}

impl StoreError {
    /// Returns the trouble of the disk behind it; none where it has another reason.
    pub fn trouble(&self) -> Option<Trouble> {
        match self {
            Self::Io { source, .. } => Trouble::of(source),
            Self::State(sled::Error::Io(source)) => Trouble::of(source),
            Self::Locked(_)
            | Self::Index(_)
            | Self::State(_)
            | Self::Format { .. }
            | Self::Rejected(_)
            | Self::Closed
            | Self::Missing(_) => None,
        }
    }

    /// Returns whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        self.trouble() == Some(Trouble::Full)
    }

    /// Returns whether the disk is read-only.
    pub fn is_read_only(&self) -> bool {
        self.trouble() == Some(Trouble::ReadOnly)
    }
}

impl From<StoreError> for io::Error {
    /// Keeps the errno, which is what a program is told.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { source, .. } => source,
            other => Self::other(other),
        }
    }
}

/// The trouble that was told last and has not ended.
#[derive(Debug, Default)]
pub(super) struct Health {
    now: Mutex<Option<Trouble>>,
}

impl Health {
    pub(super) fn trouble(&self) -> Option<Trouble> {
        *guard(&self.now)
    }

    /// A change of the disk below `dir` failed. False where that says nothing about the disk: then the caller tells it.
    pub(super) fn failed(&self, dir: &Path, error: &StoreError) -> bool {
        let Some(trouble) = error.trouble() else { return false };
        if guard(&self.now).replace(trouble) == Some(trouble) {
            tracing::debug!(%error, "a change of the disk failed once more");
            return true;
        }
        let dir = dir.display();
        match trouble {
            Trouble::Full => tracing::error!(
                %error,
                "the disk of {dir} is full: new content is refused until there is room; stored content stays readable. \
                 Free space on that disk, remove uploads or pins, or lower `min_free` in [store]"
            ),
            Trouble::ReadOnly => tracing::error!(
                %error,
                "the disk of {dir} is read-only: every change is refused; stored content stays readable. \
                 `dmesg` tells why the kernel did so; changes go on once the disk is mounted for writing"
            ),
            Trouble::Failing => tracing::error!(
                %error,
                "the disk of {dir} fails: changes are tried again; stored content stays readable where the disk reads it. \
                 `dmesg` and `smartctl` tell more"
            ),
        }
        true
    }

    /// A durable change of the disk below `dir` succeeded. That does not end a shortage: the index has room of its own.
    pub(super) fn works(&self, dir: &Path) {
        let ended = guard(&self.now).take_if(|now| *now != Trouble::Full);
        if let Some(trouble) = ended {
            tracing::info!(?trouble, "the disk of {} takes changes again", dir.display());
        }
    }

    /// The disk below `dir` has room for new content.
    pub(super) fn has_room(&self, dir: &Path) {
        if guard(&self.now).take_if(|now| *now == Trouble::Full).is_some() {
            tracing::info!("the disk of {} has room again", dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io_error(errno: i32) -> StoreError {
        StoreError::io("write", Path::new("/data/x"), io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn trouble_of_an_error_is_that_of_its_errno() {
        let cases = [
            (libc::ENOSPC, Some(Trouble::Full)),
            (libc::EDQUOT, Some(Trouble::Full)),
            (libc::EROFS, Some(Trouble::ReadOnly)),
            (libc::EIO, Some(Trouble::Failing)),
            (libc::ENOENT, None),
            (libc::EACCES, None),
        ];
        for (errno, trouble) in cases {
            assert_eq!(io_error(errno).trouble(), trouble, "{errno}");
        }
        assert_eq!(StoreError::Closed.trouble(), None);
    }

    #[test]
    fn trouble_lasts_until_a_change_succeeds() {
        let health = Health::default();
        let dir = Path::new("/data");
        assert!(!health.failed(dir, &StoreError::Closed));
        assert_eq!(health.trouble(), None);
        assert!(health.failed(dir, &io_error(libc::EROFS)));
        assert!(health.failed(dir, &io_error(libc::ENOSPC)));
        assert_eq!(health.trouble(), Some(Trouble::Full));
        health.works(dir);
        assert_eq!(health.trouble(), Some(Trouble::Full), "the index has room of its own");
        health.has_room(dir);
        assert_eq!(health.trouble(), None);
        assert!(health.failed(dir, &io_error(libc::EIO)));
        health.has_room(dir);
        assert_eq!(health.trouble(), Some(Trouble::Failing));
        health.works(dir);
        assert_eq!(health.trouble(), None);
    }
}
