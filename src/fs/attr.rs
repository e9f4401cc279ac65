//! Attributes and how long the kernel may keep them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::tree::{Ino, Shape, of_upload};
use crate::{
    content::Metadata,
    node::{Described, UploadAttr, UploadIno, UploadKind},
};

/// Content never changes under its id.
pub(super) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// A name that can only come into being by being written here, through the kernel.
pub(super) const HOUR: Duration = Duration::from_secs(3600);
/// What changes behind the kernel's back: sizes through mappings of a backing file, blocks of a download.
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// What cp reads at a time anyway. More would make every buffered reader of a few bytes fetch that much.
const BLOCK_SIZE: u32 = 128 << 10;
/// Fewest blocks of 512 bytes of what is not empty: with 0, tar takes a file for one hole and archives zeros.
const MIN_BLOCKS: u64 = 1;
/// Modes of content without one. Its owner may write as far as they say, which EROFS denies: a copy takes them over, and
/// has to be one that its owner can change and remove.
const DIRECTORY_MODE: u16 = 0o755;
const FILE_MODE: u16 = 0o644;
/// Owner permissions that are always shown, for the same reason.
const OWNER_WRITES: u16 = 0o200;

/// What stat(2) shows.
#[derive(Clone, Debug)]
pub(super) struct Attr {
    pub(super) ino: Ino,
    pub(super) shape: Shape,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) atime: SystemTime,
    pub(super) mtime: SystemTime,
    pub(super) ctime: SystemTime,
    pub(super) perm: u16,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) block_size: u32,
    /// How long the kernel may keep them.
    pub(super) ttl: Duration,
}

/// Who owns what nobody wrote: the mounter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owner {
    /// A directory of the mount itself.
    pub(super) fn directory(self, ino: Ino) -> Attr {
        self.plain(ino, Shape::Directory, DIRECTORY_MODE, SECOND)
    }

    /// Content of which nothing is known yet; nothing of it may be kept.
    pub(super) fn placeholder(self, ino: Ino, shape: Shape) -> Attr {
        self.plain(ino, shape, mode_of(shape), Duration::ZERO)
    }

    /// A link of the mount itself, to a path of so many bytes.
    pub(super) fn link(self, ino: Ino, len: u64) -> Attr {
        Attr { size: len, ..self.plain(ino, Shape::Symlink, 0o777, Duration::ZERO) }
    }

    /// A file of `.chiral`.
    pub(super) fn control(self, ino: Ino, size: u64) -> Attr {
        Attr {
            size,
            blocks: blocks_of(size, size),
            ..self.plain(ino, Shape::File, FILE_MODE, Duration::ZERO)
        }
    }

    /// A file of `.chiral` that grows. `tail -f` looks at it again whenever its time has changed.
    pub(super) fn log(self, ino: Ino, size: u64) -> Attr {
        Attr { mtime: SystemTime::now(), ..self.control(ino, size) }
    }

    /// Content that is known; `allocated`: bytes of disk that it takes, `complete`: whether that will stay.
    pub(super) fn content(
        self,
        ino: Ino,
        resolved: &Described,
        allocated: u64,
        complete: bool,
    ) -> Attr {
        let shape = Shape::of(resolved.kind);
        let Metadata { mode, mtime } = resolved.meta;
        let mode = mode.and_then(|m| u16::try_from(m & 0o7777).ok());
        let perm = mode.map_or(mode_of(shape), |mode| mode | OWNER_WRITES);
        let mtime = mtime.and_then(time).unwrap_or(UNIX_EPOCH);
        // Also a complete file may be evicted one day, and take no blocks then.
        let ttl = match shape {
            Shape::File if complete => HOUR,
            Shape::File => SECOND,
            Shape::Directory | Shape::Symlink => FOREVER,
        };
        let size = if shape == Shape::Directory { 0 } else { resolved.size };
        Attr {
            size,
            blocks: blocks_of(size, allocated),
            atime: mtime,
            mtime,
            ctime: mtime,
            ..self.plain(ino, shape, perm, ttl)
        }
    }

    fn plain(self, ino: Ino, shape: Shape, perm: u16, ttl: Duration) -> Attr {
        Attr {
            ino,
            shape,
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            perm,
            nlink: if shape == Shape::Directory { 2 } else { 1 },
            uid: self.uid,
            gid: self.gid,
            block_size: if shape == Shape::Directory { 4096 } else { BLOCK_SIZE },
            ttl,
        }
    }
}

/// Attributes of an upload.
pub(super) fn upload(attr: &UploadAttr) -> Attr {
    Attr {
        ino: of_upload(attr.ino),
        shape: match attr.kind {
            UploadKind::File => Shape::File,
            UploadKind::Directory => Shape::Directory,
            UploadKind::Symlink => Shape::Symlink,
        },
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        block_size: if attr.kind == UploadKind::Directory { 4096 } else { BLOCK_SIZE },
        // A store through a mapping of the backing file is seen by nobody here; a sealed file has no such mapping.
        // `upload` itself is also changed by `chiral add`, past the kernel, and so is the number of names of a file.
        ttl: if attr.sealed && attr.nlink == 1 && attr.ino != UploadIno::ROOT {
            HOUR
        } else {
            SECOND
        },
    }
}

fn blocks_of(size: u64, allocated: u64) -> u64 {
    if size == 0 { 0 } else { allocated.div_ceil(512).max(MIN_BLOCKS) }
}

fn mode_of(shape: Shape) -> u16 {
    match shape {
        Shape::Directory => DIRECTORY_MODE,
        Shape::File => FILE_MODE,
        Shape::Symlink => 0o777,
    }
}

/// A time as the kernel and the DAG write it: seconds that may be negative, and nanoseconds after them. None for one that
/// the kernel's message cannot carry.
fn time((seconds, nanoseconds): (i64, u32)) -> Option<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let whole =
        if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    whole?.checked_add(Duration::from_nanos(u64::from(nanoseconds)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::content::NodeKind;

    const OWNER: Owner = Owner { uid: 7, gid: 8 };

    fn resolved(kind: NodeKind, size: u64, meta: Metadata) -> Described {
        Described { kind, size, meta, target: None }
    }

    #[test]
    fn a_file_of_which_nothing_is_here_has_blocks_so_that_tar_does_not_take_it_for_a_hole() {
        let file = resolved(NodeKind::File, 1 << 30, Metadata::default());
        assert_eq!(OWNER.content(20, &file, 0, false).blocks, 1);
        assert_eq!(OWNER.content(20, &file, 1 << 30, true).blocks, 1 << 21);
        let empty = resolved(NodeKind::File, 0, Metadata::default());
        assert_eq!(OWNER.content(20, &empty, 0, true).blocks, 0);
    }

    #[test]
    fn attributes_are_kept_for_long_only_when_they_cannot_change() {
        let file = resolved(NodeKind::File, 5, Metadata::default());
        assert_eq!(OWNER.content(20, &file, 0, false).ttl, SECOND);
        assert_eq!(OWNER.content(20, &file, 4096, true).ttl, HOUR);
        let directory = resolved(NodeKind::Directory, 0, Metadata::default());
        assert_eq!(OWNER.content(20, &directory, 0, false).ttl, FOREVER);
        assert_eq!(OWNER.placeholder(20, Shape::Directory).ttl, Duration::ZERO);
    }

    #[test]
    fn mode_and_mtime_of_the_dag_are_shown_and_its_owner_may_write() {
        let meta = Metadata { mode: Some(0o100_755), mtime: Some((1_700_000_000, 5)) };
        let attr = OWNER.content(20, &resolved(NodeKind::File, 1, meta), 0, true);
        assert_eq!(attr.perm, 0o755);
        assert_eq!(attr.mtime, UNIX_EPOCH + Duration::new(1_700_000_000, 5));
        let old = Metadata { mode: None, mtime: Some((-10, 5)) };
        let attr = OWNER.content(20, &resolved(NodeKind::Directory, 1, old), 0, true);
        assert_eq!((attr.perm, attr.mtime), (0o755, UNIX_EPOCH - Duration::new(9, 999_999_995)));
        let read_only = Metadata { mode: Some(0o100_444), mtime: Some((-1, 999_999_999)) };
        let attr = OWNER.content(20, &resolved(NodeKind::File, 1, read_only), 0, true);
        assert_eq!((attr.perm, attr.mtime), (0o644, UNIX_EPOCH - Duration::from_nanos(1)));
        let plain = OWNER.content(20, &resolved(NodeKind::File, 1, Metadata::default()), 0, true);
        assert_eq!(plain.perm, 0o644);
        let absurd = Metadata { mode: None, mtime: Some((i64::MAX, 0)) };
        let _ = OWNER.content(20, &resolved(NodeKind::File, 1, absurd), 0, true);
    }
}
