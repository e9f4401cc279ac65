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

use nix::errno::Errno;

use super::{
    answer::Outcome,
    iomode::{Ask, Held, Mode, choose},
};

/// A file that may back an inode.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) file: Arc<File>,
    pub(super) version: u64,
    pub(super) whole: bool,
    /// Whether it is written through the daemon, unless others have it in passthrough mode.
    pub(super) copied: bool,
}

/// Open modes per inode. `B` is what the kernel knows a backing file by; dropping it gives it up.
#[derive(Debug)]
pub(super) struct Backings<B> {
    /// Decision and count happen under this one lock, so that two opens never decide on the same state. Nothing that
    /// waits is done under it: the threads that serve the kernel take it at every open and release. The ioctl inside
    /// takes less than a microsecond.
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
    UploadWriter {
        /// Whether what it opens may be mapped.
        maps: bool,
    },
    UploadReader,
}

impl<B> Backings<B> {
    pub(super) fn new(enabled: bool) -> Self {
        Self { inodes: Mutex::default(), enabled: AtomicBool::new(enabled) }
    }

    /// Decides how an open is served and counts it. Each success is undone by one [`Backings::release`].
    ///
    /// The candidate was looked up while the file was open below already, which keeps it current: content never
    /// changes, and the working file of an upload stays the same one as long as somebody has it open for writing.
    ///
    /// # Errors
    /// ETXTBSY for a writer whose mapping would be one of an older version.
    pub(super) fn acquire(
        &self,
        ino: u64,
        opener: Opener,
        candidate: Option<&Candidate>,
        register: impl FnOnce(&File) -> io::Result<B>,
    ) -> Outcome<(Mode, Option<Arc<B>>)> {
        let ask = ask(opener, candidate);
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        // An inode that is refused is held by others, so that no empty entry is left behind.
        let inode = inodes.entry(ino).or_default();
        let copied = candidate.is_some_and(|candidate| candidate.copied);
        let enabled = self.enabled.load(Ordering::Relaxed) && !copied;
        let mut mode = choose(&inode.held, ask, enabled).ok_or(Errno::ETXTBSY)?;
        if mode == Mode::Passthrough && inode.backing.is_none() {
            match candidate.map(|c| (register(&c.file), c.version)) {
                Some((Ok(backing), version)) => {
                    inode.backing = Some(Arc::new(backing));
                    inode.held.version = Some(version);
                }
                failed => {
                    self.give_up(failed.and_then(|(result, _)| result.err()));
                    mode = Mode::Cached;
                }
            }
        }
        match mode {
            Mode::Cached => inode.held.cached += 1,
            Mode::Passthrough | Mode::PassthroughDirect => inode.held.backed += 1,
        }
        let backing = (mode != Mode::Cached).then(|| inode.backing.clone()).flatten();
        Ok((mode, backing))
    }

    /// Whether an inode has a backing file now.
    pub(super) fn is_backed(&self, ino: u64) -> bool {
        let inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        inodes.get(&ino).is_some_and(|inode| inode.held.backed > 0)
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

    /// This file is copied; all are from now on, if the reason is one for every file.
    fn give_up(&self, error: Option<io::Error>) {
        let Some(error) = error else { return };
        if !is_lasting(&error) {
            tracing::debug!(%error, "a file is not passed through; it is copied through the daemon");
        } else if self.enabled.swap(false, Ordering::Relaxed) {
            tracing::info!(%error, "the kernel refuses passthrough; files are copied through the daemon");
        }
    }
}

/// Whether the kernel will say the same of every file: the process lacks CAP_SYS_ADMIN (EPERM), the data folder lies on
/// a filesystem that is stacked too deep (ELOOP) or that cannot do it (EOPNOTSUPP), the kernel has no such ioctl
/// (ENOTTY). Others, such as no memory or too many open files, pass.
fn is_lasting(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EPERM | Errno::ELOOP | Errno::EOPNOTSUPP | Errno::ENOTTY))
}

fn ask(opener: Opener, candidate: Option<&Candidate>) -> Ask {
    match (opener, candidate) {
        (Opener::Content, candidate) => Ask::Content { complete: candidate.map(|c| c.version) },
        (Opener::UploadWriter { maps }, Some(c)) => {
            Ask::Writer { version: c.version, whole: c.whole, maps }
        }
        // Without a file there is no version that could match.
        (Opener::UploadWriter { maps }, None) => Ask::Writer { version: 0, whole: false, maps },
        (Opener::UploadReader, _) => Ask::Reader,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// A writer that may map what it opens, and one that may not.
    const MAPS: Opener = Opener::UploadWriter { maps: true };
    const WRITES: Opener = Opener::UploadWriter { maps: false };

    fn candidate(version: u64) -> Candidate {
        let file = Arc::new(tempfile::tempfile().unwrap());
        Candidate { file, version, whole: true, copied: false }
    }

    #[test]
    fn file_on_a_tight_disk_is_passed_through_only_beside_others() {
        let backings = Backings::new(true);
        let tight = Candidate { copied: true, ..candidate(1) };
        let (mode, _) = backings.acquire(7, WRITES, Some(&tight), |_| Ok(())).unwrap();
        assert_eq!(mode, Mode::Cached);
        let free = candidate(1);
        for candidate in [&free, &tight] {
            let (mode, _) = backings.acquire(8, WRITES, Some(candidate), |_| Ok(())).unwrap();
            assert_eq!(mode, Mode::Passthrough);
        }
    }

    #[test]
    fn passthrough_handles_of_an_inode_share_one_backing_id_until_the_last_is_gone() {
        let backings = Backings::new(true);
        let (old, new) = (candidate(1), candidate(2));
        let (mode, first) = backings.acquire(1, MAPS, Some(&old), |_| Ok(10)).unwrap();
        assert_eq!((mode, first.as_deref()), (Mode::Passthrough, Some(&10)));
        let (mode, second) = backings.acquire(1, MAPS, Some(&old), |_| Ok(11)).unwrap();
        assert_eq!((mode, second.as_deref()), (Mode::Passthrough, Some(&10)));
        let (mode, third) = backings.acquire(1, WRITES, Some(&new), |_| Ok(12)).unwrap();
        assert_eq!((mode, third.as_deref()), (Mode::PassthroughDirect, Some(&10)));
        assert_eq!(backings.acquire(1, MAPS, Some(&new), |_| Ok(12)), Err(Errno::ETXTBSY));
        drop((second, third));
        let first = first.unwrap();
        assert_eq!(Arc::strong_count(&first), 2);
        for mode in [Mode::Passthrough, Mode::Passthrough, Mode::PassthroughDirect] {
            assert!(backings.is_backed(1));
            backings.release(1, mode);
        }
        assert_eq!(Arc::strong_count(&first), 1);
        assert_eq!(backings.len(), 0);
        let (_, next) = backings.acquire(1, MAPS, Some(&new), |_| Ok(13)).unwrap();
        assert_eq!(next.as_deref(), Some(&13));
    }

    #[test]
    fn a_file_that_completes_while_it_is_read_stays_cached_until_its_last_handle_is_gone() {
        let backings = Backings::new(true);
        let complete = candidate(1);
        let open = |complete| backings.acquire(1, Opener::Content, complete, |_| Ok(1)).unwrap().0;
        assert_eq!(open(None), Mode::Cached);
        assert_eq!(open(Some(&complete)), Mode::Cached);
        backings.release(1, Mode::Cached);
        backings.release(1, Mode::Cached);
        assert_eq!(open(Some(&complete)), Mode::Passthrough);
    }

    /// How often a kernel that always gives the same error is asked by three opens.
    fn asked_of_a_kernel_that_says(errno: Errno) -> usize {
        let backings: Backings<u32> = Backings::new(true);
        let mut asked = 0;
        for ino in 0..3 {
            let refuse = |_: &File| {
                asked += 1;
                Err(io::Error::from(errno))
            };
            let file = candidate(1);
            let opened = backings.acquire(ino, Opener::Content, Some(&file), refuse);
            assert_eq!(opened, Ok((Mode::Cached, None)));
        }
        asked
    }

    #[test]
    fn a_kernel_that_refuses_every_file_is_asked_once_and_one_that_lacks_something_now_again() {
        for errno in [Errno::EPERM, Errno::ELOOP, Errno::EOPNOTSUPP, Errno::ENOTTY] {
            assert_eq!(asked_of_a_kernel_that_says(errno), 1, "{errno}");
        }
        for errno in [Errno::ENOMEM, Errno::ENFILE, Errno::EIO] {
            assert_eq!(asked_of_a_kernel_that_says(errno), 3, "{errno}");
        }
    }
}
