//! What no safe crate offers: leases, dispositions of signals, an allocator of two, and SHA-256 of many blocks at once.
#![allow(
    unsafe_code,
    reason = "fcntl(F_SETLEASE) and signal(2) have no safe wrapper in nix or rustix, GlobalAlloc is an unsafe trait, \
              mimalloc is C, and the compiler cannot know whether the processor has AVX-512"
)]

mod allocator;
mod sha256;
mod signals;

pub use allocator::{Allocator, keep_freed_memory};
pub use sha256::{LANES, WORTH_IT, sha256_lanes};
pub use signals::settle_signals;

use std::{fs::File, io, os::fd::AsRawFd};

/// From asm-generic/fcntl.h, which all processors but PA-RISC share; libc does not have it for Linux.
const F_SETSIG: libc::c_int = 10;

/// Whom [`is_free_of`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Anyone with a descriptor or a shared mapping that can write.
    Writer,
    /// Anyone else who has the file open or mapped at all.
    Anyone,
}

/// Asks the kernel, by taking a lease and dropping it at once, whether nobody of that kind holds the file.
///
/// `file` must be opened O_RDONLY, afresh, and be the only descriptor that this process has on it
/// for [`Holder::Anyone`]; filesystems without leases (NFS, 9p) give an error.
///
/// # Errors
/// As fcntl(2) with F_SETLEASE; EAGAIN is the answer `false`, not an error.
pub fn is_free_of(file: &File, holder: Holder) -> io::Result<bool> {
    Ok(Lease::take(file, holder)?.is_some())
}

/// A lease on a file. Its drop gives it back.
struct Lease<'a>(&'a File);

impl<'a> Lease<'a> {
    /// The lease, unless a holder of that kind is in the way.
    ///
    /// An open or a truncate that meets the lease breaks it: the kernel sends the process a signal, and lets that program
    /// go on once the lease is given back. The signal is SIGIO, which ends the process, unless F_SETSIG names another.
    /// SIGURG does nothing by default; the drop is all the answer that the kernel waits for.
    fn take(file: &'a File, holder: Holder) -> io::Result<Option<Self>> {
        let lease = match holder {
            Holder::Writer => libc::F_RDLCK,
            Holder::Anyone => libc::F_WRLCK,
        };
        set(file, F_SETSIG, libc::SIGURG)?;
        match set(file, libc::F_SETLEASE, lease) {
            Ok(()) => Ok(Some(Self(file))),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // It fails only without a lease, which is what it is for.
        let _ = set(self.0, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

/// An fcntl(2) that takes an int.
fn set(file: &File, what: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: with these commands fcntl touches no memory of ours; the descriptor is open as long as `file`.
    match unsafe { libc::fcntl(file.as_raw_fd(), what, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt};

    use super::*;

    /// The test process has the default disposition of SIGIO: one that was delivered would end it.
    #[test]
    fn a_lease_that_is_broken_does_not_end_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        File::create(&path).unwrap();
        let probe = File::open(&path).unwrap();
        for holder in [Holder::Writer, Holder::Anyone] {
            let lease = Lease::take(&probe, holder).unwrap().unwrap();
            // Without O_NONBLOCK it would wait for the lease.
            let mut writer = OpenOptions::new();
            writer.write(true).custom_flags(libc::O_NONBLOCK);
            let refused = writer.open(&path).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EWOULDBLOCK));
            drop(lease);
            drop(writer.open(&path).unwrap());
        }
    }

    #[test]
    fn a_writer_is_seen_and_a_reader_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let writer = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        let probe = File::open(&path).unwrap();
        assert!(!is_free_of(&probe, Holder::Writer).unwrap());
        drop(writer);
        assert!(is_free_of(&probe, Holder::Writer).unwrap());
        let reader = File::open(&path).unwrap();
        assert!(is_free_of(&probe, Holder::Writer).unwrap());
        assert!(!is_free_of(&probe, Holder::Anyone).unwrap());
        drop(reader);
        assert!(is_free_of(&probe, Holder::Anyone).unwrap());
    }
}
