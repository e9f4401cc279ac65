//! Changes of the upload tree. Everything outside it is read-only.

use std::{ffi::OsStr, path::Path};

use nix::errno::Errno;

use super::{
    answer::{Answer, Outcome},
    attr::{Attr, upload},
    lookup::{Found, upload_ttl},
    open::{Opened, OpenedUpload, Wanted},
    semantics::{Fs, known, of_name, published},
    tree::{Ino, TORRENTS, What},
    xattr::{is_acl, is_listed},
};
use crate::node::{OpenFlags, RenameMode, UploadAttr, UploadHandle, UploadIno, Uploads};

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

/// Something that was just made in `dir`. Its name may be kept as long as one that was looked up.
fn made(dir: UploadIno, attr: &UploadAttr) -> Found {
    Found::Entry { attr: upload(attr), ttl: upload_ttl(dir) }
}

impl Fs {
    pub(super) fn mkdir(&self, place: Place<'_>, mode: u32, caller: Caller) -> Outcome<Found> {
        let (dir, gid, inherited) = self.new_name(place, caller)?;
        // Directories pass the bit that gives their group to what is made in them on.
        let mode = mode | inherited;
        published(self.node.uploads().mkdir(dir, place.name, mode, caller.uid, gid))
            .map(|attr| made(dir, &attr))
    }

    pub(super) fn symlink(
        &self,
        place: Place<'_>,
        target: &Path,
        caller: Caller,
    ) -> Outcome<Found> {
        let (dir, gid, _) = self.new_name(place, caller)?;
        published(self.node.uploads().symlink(dir, place.name, target, caller.uid, gid))
            .map(|attr| made(dir, &attr))
    }

    pub(super) fn create(
        &self,
        place: Place<'_>,
        mode: u32,
        caller: Caller,
        wanted: Wanted,
    ) -> Answer<(Attr, Opened)> {
        if place.parent == TORRENTS {
            return Answer::Now(self.create_torrent(place.name, wanted, wanted.exclusive()));
        }
        let finish = move |_, attr: UploadAttr, handle, _: &Uploads| {
            let opened = OpenedUpload { upload: attr.ino, handle, wanted, to_be_cut: false };
            (upload(&attr), Opened::Upload(opened))
        };
        self.make_file(place, mode, caller, wanted.exclusive(), wanted.flags(), finish)
    }

    /// A regular file that is not opened. Pipes, sockets and devices are nothing that could be published.
    pub(super) fn mknod(&self, place: Place<'_>, mode: u32, caller: Caller) -> Answer<Found> {
        if !matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG) {
            let errno = self.writable(place.parent).err().unwrap_or(Errno::EPERM);
            return Answer::error(errno);
        }
        if place.parent == TORRENTS {
            return Answer::Now(self.make_torrent(place.name));
        }
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let finish = |dir, attr: UploadAttr, handle, uploads: &Uploads| {
            uploads.release(handle);
            made(dir, &attr)
        };
        self.make_file(place, mode, caller, true, flags, finish)
    }

    /// Makes a file. Its name may be there already, and a commit of that file under way.
    fn make_file<T: Send + 'static>(
        &self,
        place: Place<'_>,
        mode: u32,
        caller: Caller,
        exclusive: bool,
        flags: OpenFlags,
        finish: impl FnOnce(UploadIno, UploadAttr, UploadHandle, &Uploads) -> T + Send + 'static,
    ) -> Answer<T> {
        let (dir, gid, _) = match self.new_name(place, caller) {
            Ok(found) => found,
            Err(errno) => return Answer::error(errno),
        };
        let (uploads, name) = (self.node.uploads().clone(), place.name.to_owned());
        Answer::blocking(move || {
            let mode = mode & 0o7777;
            let created = uploads.create(dir, &name, mode, caller.uid, gid, exclusive, flags);
            let (attr, handle) = published(created)?;
            Ok(finish(dir, attr, handle, &uploads))
        })
    }

    /// What loses its name may be in a commit, which takes as long as its disk does.
    pub(super) fn unlink(&self, place: Place<'_>) -> Answer<()> {
        if place.parent == TORRENTS {
            return self.remove_torrent_named(place.name);
        }
        let dir = match self.writable(place.parent) {
            Ok(dir) => dir,
            Err(errno) => return Answer::error(errno),
        };
        let (uploads, name) = (self.node.uploads().clone(), place.name.to_owned());
        Answer::blocking(move || uploads.unlink(dir, &name).map_err(|e| of_name(&uploads, dir, &e)))
    }

    pub(super) fn rmdir(&self, place: Place<'_>) -> Outcome<()> {
        let dir = self.writable(place.parent)?;
        let uploads = self.node.uploads();
        uploads.rmdir(dir, place.name).map_err(|e| of_name(uploads, dir, &e))
    }

    /// As with [`Fs::unlink`], for what is replaced.
    pub(super) fn rename(&self, from: Place<'_>, to: Place<'_>, flags: u32) -> Answer<()> {
        match (from.parent == TORRENTS, to.parent == TORRENTS) {
            (true, true) => return self.rename_torrent(from.name, to.name, flags),
            (false, false) => {}
            // Programs copy then.
            _ => return Answer::error(Errno::EXDEV),
        }
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Answer::error(Errno::EINVAL),
        };
        let (from_dir, to_dir) = match (self.writable(from.parent), self.writable(to.parent)) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(errno), _) | (_, Err(errno)) => return Answer::error(errno),
        };
        let uploads = self.node.uploads().clone();
        let (from, to) = (from.name.to_owned(), to.name.to_owned());
        Answer::blocking(move || {
            let renamed = uploads.rename(from_dir, &from, to_dir, &to, mode);
            renamed.map_err(|e| match of_name(&uploads, from_dir, &e) {
                Errno::ENOENT => of_name(&uploads, to_dir, &e),
                errno => errno,
            })
        })
    }

    /// One more name of a file. It is published under each of them.
    pub(super) fn link(&self, ino: Ino, place: Place<'_>) -> Outcome<Found> {
        let dir = self.writable(place.parent)?;
        // For links, content and `upload` are different filesystems: programs copy then.
        let What::Upload(file) = self.what(ino)? else { return Err(Errno::EXDEV) };
        let linked = self.node.uploads().link(file, dir, place.name);
        published(linked).map(|attr| made(dir, &attr))
    }

    pub(super) fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Outcome<()> {
        if let What::Named(_) = self.what(ino)? {
            // The kernel checks permissions, as with modes. Programs that copy take the rest for a filesystem
            // without attributes, and go on.
            return if is_acl(name) { Ok(()) } else { Err(Errno::EOPNOTSUPP) };
        }
        let upload = self.writable(ino)?;
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        if is_listed(name) {
            return Ok(());
        }
        let (create, replace) = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        known(self.node.uploads().setxattr(upload, name, value, create, replace))
    }

    pub(super) fn removexattr(&self, ino: Ino, name: &OsStr) -> Outcome<()> {
        let upload = self.writable(ino)?;
        let name = name.to_str().ok_or(Errno::ENODATA)?;
        if is_listed(name) {
            return Ok(());
        }
        known(self.node.uploads().removexattr(upload, name))
    }

    /// The directory for a new name, the group of what is made there, and the bits that a directory inherits.
    fn new_name(&self, place: Place<'_>, caller: Caller) -> Outcome<(UploadIno, u32, u32)> {
        let dir = self.writable(place.parent)?;
        let attr = known(self.node.uploads().getattr(dir))?;
        let inherited = attr.mode & libc::S_ISGID;
        Ok((dir, if inherited == 0 { caller.gid } else { attr.gid }, inherited))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        fs::{attr::Owner, tree::UPLOAD_ROOT},
        node::{Node, tests::options},
        tasks::Tasks,
    };

    const CALLER: Caller = Caller { uid: 0, gid: 0 };

    fn place(name: &str) -> Place<'_> {
        Place { parent: UPLOAD_ROOT, name: OsStr::new(name) }
    }

    /// The outcome of work that is done where it may wait for the disk.
    fn run<T>(answer: Answer<T>) -> T {
        let Answer::Blocking(work) = answer else {
            unreachable!("it would hold up the thread that serves the kernel")
        };
        work().unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_commit_may_hold_up_is_not_done_by_the_thread_that_serves_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path(), Vec::new(), true);
        let node = Node::start(options, Tasks::new()).await.unwrap();
        let fs = Arc::new(Fs::new(node.clone(), Owner { uid: 0, gid: 0 }));
        let done = tokio::task::spawn_blocking(move || {
            let wanted = Wanted(libc::O_RDWR);
            let (attr, opened) = run(fs.create(place("a"), 0o644, CALLER, wanted));
            let fh = fs.keep_open(attr.ino, opened, super::super::iomode::Mode::Cached);
            assert_eq!(run(fs.write(fh, 0, b"text")), 4);
            assert_eq!(run(fs.lseek(fh, 0, libc::SEEK_DATA)), 0);
            let mut released = false;
            // The last writer: nothing of the file is committed before that.
            assert!(matches!(fs.close(fh, |_, _| released = true), Answer::Now(Ok(()))));
            assert!(released, "the kernel's own reference is given up first");
            let Answer::Now(Ok(opened)) = fs.open(attr.ino, Wanted(libc::O_RDONLY), false) else {
                unreachable!("readers wait for nothing")
            };
            let fh = fs.keep_open(attr.ino, opened, super::super::iomode::Mode::Cached);
            run(fs.close(fh, |_, _| {}));
            run(fs.mknod(place("b"), libc::S_IFREG | 0o644, CALLER));
            run(fs.rename(place("a"), place("b"), 0));
            run(fs.unlink(place("b")));
        });
        done.await.unwrap();
        node.stop(Duration::from_secs(10)).await.unwrap();
    }
}
