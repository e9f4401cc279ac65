//! Outcomes as the FUSE library's replies.

use std::{sync::Arc, time::SystemTime};

use fuser::{
    FileAttr, FileType, Generation, INodeNo, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use nix::errno::Errno;

use super::{
    answer::Outcome,
    attr::Attr,
    dir::Listing,
    lookup::Found,
    semantics::{STATFS_BLOCK, Space},
    tree::Shape,
};

/// Inode numbers are never given to something else.
pub(super) const GENERATION: Generation = Generation(0);

pub(super) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

pub(super) fn file_type(shape: Shape) -> FileType {
    match shape {
        Shape::Directory => FileType::Directory,
        Shape::File => FileType::RegularFile,
        Shape::Symlink => FileType::Symlink,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.ctime,
        kind: file_type(attr.shape),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: attr.block_size,
        flags: 0,
    }
}

pub(super) fn send_empty(reply: ReplyEmpty) -> impl FnOnce(Outcome<()>) + Send {
    move |outcome| match outcome {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn send_bytes<T: AsRef<[u8]>>(reply: ReplyData) -> impl FnOnce(Outcome<T>) + Send {
    move |outcome| match outcome {
        Ok(bytes) => reply.data(bytes.as_ref()),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn send_written(reply: ReplyWrite) -> impl FnOnce(Outcome<usize>) + Send {
    move |outcome| match outcome {
        // A request holds at most 16 MiB.
        Ok(len) => reply.written(u32::try_from(len).unwrap_or(u32::MAX)),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn send_offset(reply: ReplyLseek) -> impl FnOnce(Outcome<i64>) + Send {
    move |outcome| match outcome {
        Ok(offset) => reply.offset(offset),
        Err(e) => reply.error(errno(e)),
    }
}

/// As many entries from `offset` on as there is room for.
pub(super) fn send_listing(
    mut reply: ReplyDirectory,
    offset: u64,
) -> impl FnOnce(Outcome<Arc<Listing>>) {
    move |outcome| {
        let listing = match outcome {
            Ok(listing) => listing,
            Err(e) => return reply.error(errno(e)),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, entry) in (offset + 1..).zip(listing.entries.iter().skip(from)) {
            if reply.add(INodeNo(entry.ino), next, file_type(entry.shape), &entry.name) {
                break;
            }
        }
        reply.ok();
    }
}

pub(super) fn send_space(reply: ReplyStatfs) -> impl FnOnce(Outcome<Space>) {
    move |outcome| match outcome {
        Ok(Space { blocks, free, available, files, files_free }) => {
            let (size, name) = (STATFS_BLOCK, 255);
            reply.statfs(blocks, free, available, files, files_free, size, name, size);
        }
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn send_attr(reply: ReplyAttr) -> impl FnOnce(Outcome<Attr>) + Send {
    move |outcome| match outcome {
        Ok(attr) => reply.attr(&attr.ttl, &file_attr(&attr)),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn send_found(reply: ReplyEntry) -> impl FnOnce(Outcome<Found>) + Send {
    move |outcome| match outcome {
        Ok(Found::Entry { attr, ttl }) => {
            reply.entry_with_ttls(&attr.ttl, &ttl, &file_attr(&attr), GENERATION);
        }
        Ok(Found::Absent(ttl)) if ttl.is_zero() => reply.error(fuser::Errno::ENOENT),
        Ok(Found::Absent(ttl)) => reply.entry(&ttl, &absent(), GENERATION),
        Err(e) => reply.error(errno(e)),
    }
}

/// An entry with inode 0 tells the kernel that there is nothing, and for how long.
pub(super) fn absent() -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A value, its length when the caller gave no room, or ERANGE when it gave too little.
pub(super) fn send_xattr(reply: ReplyXattr, size: u32) -> impl FnOnce(Outcome<Vec<u8>>) + Send {
    move |outcome| match outcome {
        Ok(value) => match (u32::try_from(value.len()), size) {
            (Err(_), _) => reply.error(fuser::Errno::E2BIG),
            (Ok(len), 0) => reply.size(len),
            (Ok(len), room) if len > room => reply.error(fuser::Errno::ERANGE),
            _ => reply.data(&value),
        },
        Err(e) => reply.error(errno(e)),
    }
}
