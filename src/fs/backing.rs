//! Who holds which inode open in which mode, and the one backing id that all passthrough handles of an inode share.

use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::iomode::{Ask, Held, Mode, choose};

/// A file that may back an inode.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) file: Arc<File>,
    pub(super) version: u64,
    pub(super) whole: bool,
}

/// Open modes per inode. `B` is what the kernel knows a backing file by; dropping it gives it up.
#[derive(Debug)]
pub(super) struct Backings<B> {
    /// Decision and count happen under this one lock, so that two opens never decide on the same state.
    /// Nothing below takes it; the ioctl inside takes less than a microsecond.
    inodes: Mutex<HashMap<u64, Inode<B>>>,
    enabled: AtomicBool,
}

#[derive(Debug)]
struct Inode<B> {
    held: Held,
    backing: Option<Arc<B>>,
}

impl<B> Default for Inode<B> {
    fn default() -> Self {
        Self { held: Held::default(), backing: None }
    }
}

/// Whether the opener writes; what it may get depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opener {
    Content,
    UploadWriter,
    UploadReader,
}

impl<B> Backings<B> {
    pub(super) fn new(enabled: bool) -> Self {
        Self { inodes: Mutex::default(), enabled: AtomicBool::new(enabled) }
    }

    /// Decides how an open is served and counts it. The candidate is looked at under the lock, so that its version is
    /// not older than one that was decided on before. Each call is undone by one [`Backings::release`].
    pub(super) fn acquire(
        &self,
        ino: u64,
        opener: Opener,
        candidate: impl FnOnce() -> Option<Candidate>,
        register: impl FnOnce(&File) -> io::Result<B>,
    ) -> (Mode, Option<Arc<B>>) {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        let inode = inodes.entry(ino).or_default();
        let candidate = candidate();
        let ask = ask(opener, candidate.as_ref());
        let mut mode = choose(&inode.held, ask, self.enabled.load(Ordering::Relaxed));
        if mode == Mode::Passthrough && inode.backing.is_none() {
            match candidate.as_ref().map(|c| (register(&c.file), c.version)) {
                Some((Ok(backing), version)) => {
                    inode.backing = Some(Arc::new(backing));
                    inode.held.version = Some(version);
                }
                failed => {
                    self.give_up(failed.and_then(|(result, _)| result.err()));
                    mode = choose(&inode.held, ask, false);
                }
            }
        }
        match mode {
            Mode::Cached => inode.held.cached += 1,
            Mode::Passthrough | Mode::PassthroughDirect => inode.held.backed += 1,
        }
        let backing = (mode != Mode::Cached).then(|| inode.backing.clone()).flatten();
        (mode, backing)
    }

    /// Undoes one [`Backings::acquire`]; the last passthrough handle gives the backing id up.
    pub(super) fn release(&self, ino: u64, mode: Mode) {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inode) = inodes.get_mut(&ino) else { return };
        match mode {
            Mode::Cached => inode.held.cached = inode.held.cached.saturating_sub(1),
            Mode::Passthrough | Mode::PassthroughDirect => {
                inode.held.backed = inode.held.backed.saturating_sub(1);
                if inode.held.backed == 0 {
                    inode.held.version = None;
                    inode.backing = None;
                }
            }
        }
        if inode.held == Held::default() {
            inodes.remove(&ino);
        }
    }

    /// How many inodes are held open.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn give_up(&self, error: Option<io::Error>) {
        let Some(error) = error else { return };
        // A process without CAP_SYS_ADMIN gets EPERM and a filesystem that is stacked too deep ELOOP, for every file.
        if self.enabled.swap(false, Ordering::Relaxed) {
            tracing::warn!(%error, "the kernel refuses passthrough; files are copied through the daemon");
        }
    }
}

fn ask(opener: Opener, candidate: Option<&Candidate>) -> Ask {
    match (opener, candidate) {
        (Opener::Content, candidate) => Ask::Content { complete: candidate.map(|c| c.version) },
        (Opener::UploadWriter, Some(c)) => Ask::Writer { version: c.version, whole: c.whole },
        // Without a file there is no version that could match.
        (Opener::UploadWriter, None) => Ask::Writer { version: 0, whole: false },
        (Opener::UploadReader, _) => Ask::Reader,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn candidate(version: u64) -> Option<Candidate> {
        Some(Candidate { file: Arc::new(tempfile::tempfile().unwrap()), version, whole: true })
    }

    #[test]
    fn passthrough_handles_of_an_inode_share_one_backing_id_until_the_last_is_gone() {
        let backings = Backings::new(true);
        let (mode, first) = backings.acquire(1, Opener::UploadWriter, || candidate(1), |_| Ok(10));
        assert_eq!((mode, first.as_deref()), (Mode::Passthrough, Some(&10)));
        let (mode, second) = backings.acquire(1, Opener::UploadWriter, || candidate(1), |_| Ok(11));
        assert_eq!((mode, second.as_deref()), (Mode::Passthrough, Some(&10)));
        let (mode, third) = backings.acquire(1, Opener::UploadWriter, || candidate(2), |_| Ok(12));
        assert_eq!((mode, third.as_deref()), (Mode::PassthroughDirect, Some(&10)));
        drop((second, third));
        let first = first.unwrap();
        assert_eq!(Arc::strong_count(&first), 2);
        for mode in [Mode::Passthrough, Mode::Passthrough, Mode::PassthroughDirect] {
            backings.release(1, mode);
        }
        assert_eq!(Arc::strong_count(&first), 1);
        assert_eq!(backings.len(), 0);
        let (_, next) = backings.acquire(1, Opener::UploadWriter, || candidate(2), |_| Ok(13));
        assert_eq!(next.as_deref(), Some(&13));
    }

    #[test]
    fn a_file_that_completes_while_it_is_read_stays_cached_until_its_last_handle_is_gone() {
        let backings = Backings::new(true);
        assert_eq!(backings.acquire(1, Opener::Content, || None, |_| Ok(1)).0, Mode::Cached);
        assert_eq!(
            backings.acquire(1, Opener::Content, || candidate(1), |_| Ok(1)).0,
            Mode::Cached
        );
        backings.release(1, Mode::Cached);
        backings.release(1, Mode::Cached);
        assert_eq!(
            backings.acquire(1, Opener::Content, || candidate(1), |_| Ok(1)).0,
            Mode::Passthrough
        );
    }

    #[test]
    fn a_kernel_that_refuses_passthrough_is_asked_once() {
        let backings: Backings<u32> = Backings::new(true);
        let mut asked = 0;
        for ino in 0..3 {
            let (mode, backing) = backings.acquire(
                ino,
                Opener::Content,
                || candidate(1),
                |_| {
                    asked += 1;
                    Err(io::Error::from_raw_os_error(1))
                },
            );
            assert_eq!((mode, backing), (Mode::Cached, None));
        }
        assert_eq!(asked, 1);
    }
}
