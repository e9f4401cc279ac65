//! The only file that speaks the FUSE library's types: translates requests into [`Fs`] and outcomes into replies.
//! No handler waits; what takes time replies from a task.

use std::{ffi::OsStr, path::Path, sync::Arc, time::SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use tokio::sync::watch;

use super::{
    backing::Backings,
    dispatch::{Shared, guarded, send_created, send_opened},
    interrupt::Interrupts,
    mount::Capabilities,
    open::Wanted,
    reply::{
        errno, send_attr, send_bytes, send_empty, send_found, send_listing, send_offset,
        send_space, send_written, send_xattr,
    },
    request::{caller, place, time},
    semantics::Fs,
};
use crate::node::SetAttr;

/// The FUSE side of a mount.
#[derive(Debug)]
pub(super) struct Adapter {
    shared: Shared,
    init: Capabilities,
    ended: watch::Sender<bool>,
}

impl Adapter {
    pub(super) fn new(fs: Fs, init: Capabilities, ended: watch::Sender<bool>) -> Self {
        let tasks = fs.node.tasks().clone();
        let backings = Arc::new(Backings::new(init.passthrough));
        let shared =
            Shared { fs: Arc::new(fs), backings, interrupts: Interrupts::default(), tasks };
        Self { shared, init, ended }
    }

    fn fs(&self) -> &Arc<Fs> {
        &self.shared.fs
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        if !self.init.negotiate(config) {
            self.shared.backings = Arc::new(Backings::new(false));
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.send_replace(true);
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("lookup", || {
            self.shared.settle(
                "lookup",
                request,
                self.fs().lookup(parent.0, name),
                send_found(reply),
            );
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        guarded("forget", || self.fs().tree.forget(ino.0, lookups));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded("getattr", || {
            self.shared.settle("getattr", request, self.fs().getattr(ino.0), send_attr(reply));
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        guarded("setattr", || {
            let (atime, mtime) = (atime.map(time), mtime.map(time));
            let changes = SetAttr { mode: mode.map(|m| m & 0o7777), uid, gid, size, atime, mtime };
            self.shared.settle(
                "setattr",
                request,
                self.fs().setattr(ino.0, changes),
                send_attr(reply),
            );
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        guarded("readlink", || {
            self.shared.settle("readlink", request, self.fs().readlink(ino.0), send_bytes(reply));
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        guarded("mknod", || {
            let answer = self.fs().mknod(place(parent, name), mode, caller(request));
            self.shared.settle("mknod", request, answer, send_found(reply));
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        guarded("mkdir", || {
            send_found(reply)(self.fs().mkdir(place(parent, name), mode, caller(request)));
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        guarded("symlink", || {
            send_found(reply)(self.fs().symlink(place(parent, name), target, caller(request)));
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("unlink", || {
            let answer = self.fs().unlink(place(parent, name));
            self.shared.settle("unlink", request, answer, send_empty(reply));
        });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("rmdir", || send_empty(reply)(self.fs().rmdir(place(parent, name))));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        guarded("rename", || {
            let (from, to) = (place(parent, name), place(to_parent, to_name));
            let answer = self.fs().rename(from, to, flags.bits());
            self.shared.settle("rename", request, answer, send_empty(reply));
        });
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        guarded("link", || send_found(reply)(self.fs().link(ino.0, place(parent, name))));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded("open", || {
            let backed = self.shared.backings.is_backed(ino.0);
            let answer = self.fs().open(ino.0, Wanted(flags.0), backed);
            self.shared.settle(
                "open",
                request,
                answer,
                send_opened(self.shared.clone(), ino.0, reply),
            );
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        guarded("create", || {
            let created =
                self.fs().create(place(parent, name), mode, caller(request), Wanted(flags));
            let send = send_created(self.shared.clone(), reply);
            self.shared.settle("create", request, created, send);
        });
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded("read", || {
            let answer = self.fs().read(fh.0, offset, size);
            self.shared.settle("read", request, answer, send_bytes(reply));
        });
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        guarded("write", || {
            let answer = self.fs().write(fh.0, offset, data);
            self.shared.settle("write", request, answer, send_written(reply));
        });
    }

    /// Sent by every close, also of copies of a descriptor.
    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        guarded("flush", || {
            self.shared.settle("flush", request, self.fs().flush(fh.0), send_empty(reply));
        });
    }

    /// The kernel waits for no answer; when its message comes, its own count is lowered already.
    fn release(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        guarded("release", || {
            let rest = self.fs().close(fh.0, |ino, mode| self.shared.backings.release(ino, mode));
            reply.ok();
            self.shared.settle("release", request, rest, drop);
        });
    }

    fn fsync(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        guarded("fsync", || {
            self.shared.settle("fsync", request, self.fs().fsync(ino.0), send_empty(reply));
        });
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        guarded("fsyncdir", || {
            self.shared.settle("fsyncdir", request, self.fs().fsync(ino.0), send_empty(reply));
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        guarded("opendir", || {
            let fs = self.fs().clone();
            self.shared.settle("opendir", request, self.fs().opendir(ino.0), move |outcome| {
                match outcome {
                    Ok(listing) => {
                        let flags = if listing.lasting {
                            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
                        } else {
                            FopenFlags::empty()
                        };
                        reply.opened(FileHandle(fs.keep_listing(ino.0, listing)), flags);
                    }
                    Err(e) => reply.error(errno(e)),
                }
            });
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        guarded("readdir", || {
            send_listing(reply, offset)(self.fs().readdir(fh.0, offset));
        });
    }

    fn releasedir(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        guarded("releasedir", || {
            let rest = self.fs().close(fh.0, |_, _| {});
            self.shared.settle("releasedir", request, rest, send_empty(reply));
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        guarded("statfs", || send_space(reply)(self.fs().statfs()));
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        guarded("setxattr", || send_empty(reply)(self.fs().setxattr(ino.0, name, value, flags)));
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        guarded("getxattr", || {
            self.shared.settle(
                "getxattr",
                request,
                self.fs().getxattr(ino.0, name),
                send_xattr(reply, size),
            );
        });
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guarded("listxattr", || send_xattr(reply, size)(self.fs().listxattr(ino.0)));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("removexattr", || send_empty(reply)(self.fs().removexattr(ino.0, name)));
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        guarded("fallocate", || {
            let answer = self.fs().fallocate(fh.0, offset, len, mode);
            self.shared.settle("fallocate", request, answer, send_empty(reply));
        });
    }

    fn lseek(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        guarded("lseek", || {
            let answer = self.fs().lseek(fh.0, offset, whence);
            self.shared.settle("lseek", request, answer, send_offset(reply));
        });
    }

    /// The kernel copies by reading and writing. The library's own answer would be logged as a fault.
    fn copy_file_range(
        &self,
        _request: &Request,
        _from: INodeNo,
        _from_fh: FileHandle,
        _from_offset: u64,
        _to: INodeNo,
        _to_fh: FileHandle,
        _to_offset: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    /// As with copies: what is not answered as unknown is logged.
    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    /// No ioctl is known here; the library's own answer would be logged as a fault each time.
    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _room: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }
}
