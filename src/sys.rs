//! What no safe crate offers: leases, an allocator of two, and SHA-256 of many blocks at once.
#![allow(
    unsafe_code,
    reason = "fcntl(F_SETLEASE) has no safe wrapper in nix or rustix, GlobalAlloc is an unsafe trait, mimalloc is C, and \
              the compiler cannot know whether the processor has AVX-512"
)]

mod allocator;
mod sha256;

pub use allocator::{Allocator, keep_freed_memory};
pub use sha256::{LANES, WORTH_IT, sha256_lanes};

use std::{fs::File, io, os::fd::AsRawFd};

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
    let lease = match holder {
        Holder::Writer => libc::F_RDLCK,
        Holder::Anyone => libc::F_WRLCK,
    };
    // SAFETY: fcntl with F_SETLEASE takes an int and touches no memory of ours; the descriptor is open as long as `file`.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, lease) } == 0 {
        // SAFETY: as above.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        e => Err(e),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::OpenOptions;

    use super::*;

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
