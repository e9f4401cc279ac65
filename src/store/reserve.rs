//! Room that is kept for the index, so that a full disk stops what is stored and never what is known about it.
//!
//! Removing content writes the index before it frees anything: without room of its own a full disk could never become
//! less full. So a file beside the index holds blocks that nothing uses. When a write of the index finds the disk full,
//! it gets a piece of them; from then on nothing new is taken in, until there is room to make the reserve whole again.

use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{StoreError, disk::Disk};

/// Name of the file that holds the room.
pub(super) const RESERVE_FILE: &str = "reserve";
/// Room for some commits of the largest size: 4,096 leaves, each in a page of its own, are 16 MiB.
pub(super) const RESERVE_BYTES: u64 = 16 << 20;
/// A small disk gives no more than this part of itself.
const SHARE_OF_DISK: u64 = 16;
/// What a write gets at a time: all at once, other programs would take it first.
const STEP: u64 = 1 << 20;

/// The reserve of one data folder.
pub(super) struct Reserve {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    bytes: u64,
    file: Mutex<Held>,
    whole: AtomicBool,
}

/// The file that holds the room.
enum Held {
    Open(File),
    /// The disk did not let it be opened or made: it is tried again.
    Missing,
    /// The filesystem cannot keep room: then nothing is kept, and nothing is refused for it.
    Unsupported,
}

impl fmt::Debug for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserve").field("whole", &self.is_whole()).finish_non_exhaustive()
    }
}

impl Reserve {
    /// Opens or makes the reserve in `dir`, on a disk of `capacity` bytes. A disk that is full or read-only is no error.
    pub(super) fn open(dir: &Path, capacity: u64, disk: Arc<dyn Disk>) -> Self {
        let path = dir.join(RESERVE_FILE);
        let bytes = RESERVE_BYTES.min(capacity / SHARE_OF_DISK);
        let (file, whole) = (Mutex::new(Held::Missing), AtomicBool::new(false));
        let reserve = Self { path, disk, bytes, file, whole };
        reserve.refill();
        reserve
    }

    fn file(&self) -> MutexGuard<'_, Held> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the index has all the room that it may need.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// Takes what is missing from the disk, if it has that; whether the reserve is whole now.
    pub(super) fn refill(&self) -> bool {
        let mut file = self.file();
        if self.is_whole() {
            return true;
        }
        if matches!(*file, Held::Missing) {
            match self.disk.open_or_create(&self.path) {
                Ok(opened) => *file = Held::Open(opened),
                Err(error) => tracing::debug!(%error, "no room can be kept for the index now"),
            }
        }
        match &*file {
            Held::Missing => return false,
            Held::Unsupported => return true,
            Held::Open(open) => match self.disk.allocate(open, self.bytes) {
                Ok(()) => self.whole.store(true, Ordering::Release),
                Err(error) if is_unsupported(&error) => {
                    tracing::debug!(%error, "this filesystem keeps no room for the index");
                    *file = Held::Unsupported;
                    self.whole.store(true, Ordering::Release);
                }
                // Full, read-only or broken: what is kept stays what it is.
                Err(error) => tracing::debug!(%error, "the room for the index is not whole"),
            },
        }
        self.is_whole()
    }

    /// Gives a piece back to the disk for the index to take; false when nothing is left.
    fn release(&self) -> io::Result<bool> {
        let file = self.file();
        let Held::Open(open) = &*file else { return Ok(false) };
        let len = open.metadata()?.len();
        if self.whole.swap(false, Ordering::AcqRel) {
            tracing::debug!("the index uses the room that is kept for it");
        }
        if len == 0 {
            return Ok(false);
        }
        self.disk.set_len(open, len.saturating_sub(STEP))?;
        Ok(true)
    }

    /// Does a step of the index, with room from the reserve where the disk has none. Doing it twice must do no harm.
    pub(super) fn with_room<T>(&self, mut step: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match step() {
                Err(error) if is_full(&error) => {
                    if !self.release()? {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }

    /// The error of what is refused while the reserve is not whole.
    pub(super) fn full(&self) -> StoreError {
        StoreError::io("keep room for", &self.path, rustix::io::Errno::NOSPC.into())
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(libc::ENOSYS)
}
