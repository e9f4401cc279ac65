//! Changes of the upload tree. Everything outside it is read-only.

use std::{ffi::OsStr, path::Path};

use nix::errno::Errno;

use super::{
    answer::Outcome,
    attr::{Attr, upload},
    open::{Opened, Wanted},
    semantics::{Fs, published},
    tree::Ino,
};
use crate::node::{OpenFlags, RenameMode, UploadIno};

/// Who makes something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A place for a new name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) parent: Ino,
    pub(super) name: &'a OsStr,
}

impl Fs {
    pub(super) fn mkdir(&self, place: Place<'_>, mode: u32, caller: Caller) -> Outcome<Attr> {
        let (dir, gid, inherited) = self.new_name(place, caller)?;
        // Directories pass the bit that gives their group to what is made in them on.
        let mode = mode | inherited;
        published(self.node.uploads().mkdir(dir, place.name, mode, caller.uid, gid))
            .map(|attr| upload(&attr))
    }

    pub(super) fn symlink(&self, place: Place<'_>, target: &Path, caller: Caller) -> Outcome<Attr> {
        let (dir, gid, _) = self.new_name(place, caller)?;
        published(self.node.uploads().symlink(dir, place.name, target, caller.uid, gid))
            .map(|attr| upload(&attr))
    }

    pub(super) fn create(
        &self,
        place: Place<'_>,
        mode: u32,
        caller: Caller,
        wanted: Wanted,
    ) -> Outcome<(Attr, Opened)> {
        let (dir, gid, _) = self.new_name(place, caller)?;
        let (attr, handle) = published(self.node.uploads().create(
            dir,
            place.name,
            mode & 0o7777,
            caller.uid,
            gid,
            wanted.exclusive(),
            wanted.flags(),
        ))?;
        let writes = wanted.writes();
        let opened = Opened::Upload { upload: attr.ino, handle, writes, executes: false };
        Ok((upload(&attr), opened))
    }

    /// A regular file that is not opened. Pipes, sockets and devices are nothing that could be published.
    pub(super) fn mknod(&self, place: Place<'_>, mode: u32, caller: Caller) -> Outcome<Attr> {
        let (dir, gid, _) = self.new_name(place, caller)?;
        if !matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG) {
            return Err(Errno::EPERM);
        }
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let uploads = self.node.uploads();
        let created = uploads.create(dir, place.name, mode & 0o7777, caller.uid, gid, true, flags);
        let (attr, handle) = published(created)?;
        uploads.release(handle);
        Ok(upload(&attr))
    }

    pub(super) fn unlink(&self, place: Place<'_>) -> Outcome<()> {
        let dir = self.writable(place.parent)?;
        published(self.node.uploads().unlink(dir, place.name))
    }

    pub(super) fn rmdir(&self, place: Place<'_>) -> Outcome<()> {
        let dir = self.writable(place.parent)?;
        published(self.node.uploads().rmdir(dir, place.name))
    }

    pub(super) fn rename(&self, from: Place<'_>, to: Place<'_>, flags: u32) -> Outcome<()> {
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Errno::EINVAL),
        };
        let (from_dir, to_dir) = (self.writable(from.parent)?, self.writable(to.parent)?);
        published(self.node.uploads().rename(from_dir, from.name, to_dir, to.name, mode))
    }

    /// Hard links: a name of a file is its place in the published tree, and it has one.
    pub(super) fn link(&self, place: Place<'_>) -> Errno {
        self.writable(place.parent).err().unwrap_or(Errno::EPERM)
    }

    pub(super) fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Outcome<()> {
        let upload = self.writable(ino)?;
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        let (create, replace) = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        published(self.node.uploads().setxattr(upload, name, value, create, replace))
    }

    pub(super) fn removexattr(&self, ino: Ino, name: &OsStr) -> Outcome<()> {
        let upload = self.writable(ino)?;
        published(self.node.uploads().removexattr(upload, name.to_str().ok_or(Errno::ENODATA)?))
    }

    /// The directory for a new name, the group of what is made there, and the bits that a directory inherits.
    fn new_name(&self, place: Place<'_>, caller: Caller) -> Outcome<(UploadIno, u32, u32)> {
        let dir = self.writable(place.parent)?;
        let attr = published(self.node.uploads().getattr(dir))?;
        let inherited = attr.mode & libc::S_ISGID;
        Ok((dir, if inherited == 0 { caller.gid } else { attr.gid }, inherited))
    }
}
