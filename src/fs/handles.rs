//! What the kernel's file handles stand for.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use nix::errno::Errno;

use super::{
    answer::Outcome, control::EventLog, dir::OpenDirectory, iomode::Mode, torrents::OpenDraft,
    tree::Ino,
};
use crate::node::{OpenFile, ReaderId, UploadHandle, UploadIno};

/// An open file or directory.
#[derive(Debug)]
pub(super) enum Handle {
    /// Content. The handle keeps it from being evicted.
    Content {
        ino: Ino,
        file: Arc<dyn OpenFile>,
        reader: ReaderId,
        mode: Mode,
    },
    /// A file of the upload tree.
    Upload {
        ino: Ino,
        upload: UploadIno,
        handle: UploadHandle,
        mode: Mode,
        /// Open for as long as it runs as a program.
        executes: bool,
    },
    /// A file of `.chiral`, as it was when it was opened.
    Text(Bytes),
    /// The stream of events.
    Events(Arc<EventLog>),
    /// A file that is written into `torrents`.
    Draft(OpenDraft),
    Directory(OpenDirectory),
}

/// All open handles. Bounded by the kernel's own limit on open files.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    /// Adds the handle that `make` gives for its number.
    pub(super) fn insert(&self, make: impl FnOnce(u64) -> Handle) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(make(fh));
        self.lock().insert(fh, handle);
        fh
    }

    pub(super) fn get(&self, fh: u64) -> Outcome<Arc<Handle>> {
        self.lock().get(&fh).cloned().ok_or(Errno::EBADF)
    }

    /// Whether an upload runs as a program. Looks at all handles; what asks is rare.
    pub(super) fn is_executed(&self, asked: UploadIno) -> bool {
        let runs = |handle: &Handle| matches!(handle, Handle::Upload { upload, executes: true, .. } if *upload == asked);
        self.lock().values().any(|handle| runs(handle))
    }

    pub(super) fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        self.lock().remove(&fh)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Handle>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
