//! Open files: which file backs a handle, and reading and writing through the daemon.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::{stat::futimens, time::TimeSpec},
};

use super::{
    Backing, Inner, OpenFlags, PublishError, UploadAttr, UploadHandle, UploadIno,
    file::{FileCell, FileState, Linger, Phase, Work},
    overlay::Overlay,
    queue,
    row::Sealed,
    seal::LARGE,
    tree::{Body, Owner},
};
use crate::content::ByteRange;

type Result<T> = std::result::Result<T, PublishError>;

/// One open of a file.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    cell: Arc<FileCell>,
    write: bool,
    append: bool,
}

pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> PublishError {
    move |source| PublishError::Io { what, source }
}

fn errno(what: &'static str, errno: nix::errno::Errno) -> PublishError {
    PublishError::Io { what, source: errno.into() }
}

impl Inner {
    fn handles(&self) -> MutexGuard<'_, std::collections::HashMap<UploadHandle, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_handle(&self, cell: Arc<FileCell>, flags: OpenFlags) -> UploadHandle {
        let number = self.next_handle.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let handle = UploadHandle(number);
        self.handles().insert(handle, Handle { cell, write: flags.write, append: flags.append });
        handle
    }

    fn handle(&self, handle: UploadHandle) -> Result<Handle> {
        let found = self.handles().get(&handle).cloned();
        found.ok_or(PublishError::Invalid("the handle is not open"))
    }

    pub(super) fn create(
        &self,
        parent: UploadIno,
        name: &OsStr,
        owner: Owner,
        exclusive: bool,
        flags: OpenFlags,
    ) -> Result<(UploadAttr, UploadHandle)> {
        self.writable()?;
        let existing = self.names().tree.lookup(parent, name);
        match existing {
            Ok(_) if exclusive => return Err(PublishError::Exists),
            Ok(ino) => return Ok((self.getattr(ino)?, self.open_file(ino, flags)?)),
            Err(PublishError::NotFound) => {}
            Err(error) => return Err(error),
        }
        let work = Work::new(self.store.working_file()?);
        let id = work.id();
        let phase = if flags.write { Phase::Writing } else { Phase::Closed };
        let added = {
            let mut names = self.names();
            let added = names.tree.add(parent, name, owner, Body::File(None), super::now());
            match added {
                Ok(ino) => {
                    let cell = Arc::new(FileCell::new(ino, phase, Some(work)));
                    cell.count_first(flags.write);
                    names.cells.insert(ino, cell.clone());
                    Ok(cell)
                }
                Err(error) => {
                    names.released.push(id);
                    Err(error)
                }
            }
        };
        self.flusher.later();
        let cell = match added {
            Ok(cell) => cell,
            // Another thread was faster.
            Err(PublishError::Exists) if !exclusive => {
                let ino = self.names().tree.lookup(parent, name)?;
                return Ok((self.getattr(ino)?, self.open_file(ino, flags)?));
            }
            Err(error) => return Err(error),
        };
        if !flags.write {
            self.queue.push(cell.ino, queue::REST);
        }
        self.directories.wake();
        let attr = self.getattr(cell.ino)?;
        Ok((attr, self.add_handle(cell, flags)))
    }

    pub(super) fn open_file(&self, ino: UploadIno, flags: OpenFlags) -> Result<UploadHandle> {
        let cell = self.names().cell(ino)?;
        if !flags.write && !flags.truncate {
            let mut state = cell.state();
            alive(&state)?;
            state.progress.readers += 1;
            drop(state);
            return Ok(self.add_handle(cell, flags));
        }
        self.writable()?;
        let _opening = cell.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.with_work(&cell, if flags.truncate { Some(0) } else { None })?;
        if flags.truncate {
            truncate(&mut state, 0)?;
        }
        if state.progress.phase != Phase::Writing {
            self.take_times(&cell, &mut state)?;
        }
        if flags.write {
            state.progress.open_writer();
        } else {
            state.progress.readers += 1;
            self.after_change(&cell, &mut state);
        }
        let mut names = self.names();
        names.tree.mark(ino);
        if flags.truncate {
            names.tree.drop_privileges(ino)?;
        }
        drop(names);
        drop(state);
        drop(_opening);
        self.flusher.later();
        Ok(self.add_handle(cell, flags))
    }

    /// The state with a working file in it. `size` is what the file will be cut to at once. `opening` must be held.
    fn with_work<'a>(
        &self,
        cell: &'a FileCell,
        size: Option<u64>,
    ) -> Result<MutexGuard<'a, FileState>> {
        let state = cell.quiet_state();
        alive(&state)?;
        if state.work.is_some() {
            return Ok(state);
        }
        drop(state);
        // Outside the lock: a clone may have to write the old version out first.
        let sealed = self.names().tree.sealed(cell.ino).cloned();
        let work = self.make_work(cell, sealed.as_ref(), size)?;
        let mut state = cell.quiet_state();
        if let Err(gone) = alive(&state) {
            self.names().released.push(work.id());
            return Err(gone);
        }
        state.linger = None;
        state.work = Some(work);
        Ok(state)
    }

    /// A working file with the content of the published version: empty where that is cut to nothing at once, a clone
    /// where the filesystem can, else an overlay.
    fn make_work(
        &self,
        cell: &FileCell,
        sealed: Option<&Sealed>,
        size: Option<u64>,
    ) -> Result<Work> {
        let Some(sealed) = sealed.filter(|sealed| sealed.size > 0 && size != Some(0)) else {
            return Ok(Work::new(self.store.working_file()?));
        };
        let mtime = self.names().tree.get(cell.ino)?.attr.mtime;
        if self.store.can_clone()
            && let Some(file) = self.store.clone_object(sealed.object)?
        {
            let mut work = Work::new(file);
            // Opening is no change: the times are those of the published version.
            set_times(&*work.reader()?, None, Some(mtime))?;
            work.clone_stamp = Some(work.stamp()?);
            return Ok(work);
        }
        let base = self.sealed_file(sealed)?;
        let mut work = Work::new(self.store.working_file()?);
        let writer = work.writer()?;
        writer.set_len(sealed.size).map_err(io_error("ftruncate"))?;
        set_times(&writer, None, Some(mtime))?;
        work.drop_writer();
        let leaf = self.options.import.chunk_len as u64;
        work.overlay = Some(Overlay::new(base, sealed.object, sealed.size, leaf));
        Ok(work)
    }

    /// The file of a published version.
    pub(super) fn sealed_file(&self, sealed: &Sealed) -> Result<Arc<File>> {
        let object = self.store.object_by_id(sealed.object)?;
        let file = match object {
            Some(object) => object.backing()?,
            None => None,
        };
        file.ok_or_else(|| {
            let source = io::Error::from_raw_os_error(nix::libc::EIO);
            PublishError::Io { what: "the published file was changed behind the store", source }
        })
    }

    /// From now on the working file tells the times: it gets those that are shown.
    fn take_times(&self, cell: &FileCell, state: &mut FileState) -> Result<()> {
        let shown = self.names().tree.get(cell.ino)?.attr.mtime;
        let Some(work) = &mut state.work else { return Ok(()) };
        let now = work.stamp()?;
        if work.closed.is_some_and(|closed| closed.mtime == now.mtime)
            && super::file::time_of(now.mtime) != shown
        {
            set_times(&*work.reader()?, None, Some(shown))?;
        }
        Ok(())
    }

    /// The content was changed, or the last writer has closed it: it is hashed when nobody can write it any more.
    fn after_change(&self, cell: &FileCell, state: &mut FileState) {
        if state.progress.changed() {
            self.closed(cell, state);
        }
    }

    fn closed(&self, cell: &FileCell, state: &mut FileState) {
        let idle = state.progress.handles() == 0;
        let Some(work) = &mut state.work else { return };
        work.drop_writer();
        work.closed = work.stamp().ok();
        let size = work.closed.map_or(0, |stamp| stamp.size);
        let mtime = work.closed.map(|stamp| super::file::time_of(stamp.mtime));
        if idle {
            work.rest();
        }
        let mut names = self.names();
        if let Some(mtime) = mtime {
            names.tree.adopt_mtime(cell.ino, mtime);
        }
        names.tree.mark(cell.ino);
        drop(names);
        self.queue.push(cell.ino, if size < LARGE { queue::REST } else { Duration::ZERO });
        self.flusher.later();
    }

    pub(super) fn truncate_path(&self, ino: UploadIno, size: u64) -> Result<()> {
        let cell = self.names().cell(ino)?;
        let _opening = cell.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.with_work(&cell, Some(size))?;
        let open = state.progress.phase == Phase::Writing;
        truncate(&mut state, size)?;
        self.after_change(&cell, &mut state);
        if !open && let Some(work) = &mut state.work {
            work.drop_writer();
        }
        drop(state);
        self.names().tree.drop_privileges(ino)
    }

    pub(super) fn release(&self, handle: UploadHandle) {
        let Some(Handle { cell, write, .. }) = self.handles().remove(&handle) else { return };
        let mut state = cell.quiet_state();
        let closed = state.progress.close(write);
        if state.progress.handles() == 0 {
            state.linger = None;
            if state.orphan && !state.dead {
                self.bury(&cell, &mut state);
                drop(state);
                self.flusher.later();
                return;
            }
        }
        if closed && !state.orphan {
            self.closed(&cell, &mut state);
        } else if state.progress.handles() == 0
            && let Some(work) = &mut state.work
        {
            work.rest();
        }
        drop(state);
        self.changed.notify_waiters();
    }

    pub(super) fn backing(&self, ino: UploadIno) -> Result<Backing> {
        let cell = self.names().cell(ino)?;
        let mut state = cell.state();
        let (file, object, whole) = self.current(&cell, &mut state)?;
        Ok(Backing { file, version: object.0, whole })
    }

    /// The file that handles read now, its number, and whether it is whole.
    fn current(
        &self,
        cell: &FileCell,
        state: &mut FileState,
    ) -> Result<(Arc<File>, crate::store::ObjectId, bool)> {
        alive(state)?;
        if let Some(work) = &mut state.work {
            return Ok((work.reader()?, work.id(), work.overlay.is_none()));
        }
        if let Some(linger) = &state.linger {
            return Ok((linger.file.clone(), linger.object, true));
        }
        let sealed = self.names().tree.sealed(cell.ino).cloned().ok_or(PublishError::NotFound)?;
        let file = self.sealed_file(&sealed)?;
        if state.progress.handles() > 0 {
            state.linger = Some(Linger { file: file.clone(), object: sealed.object });
        }
        Ok((file, sealed.object, true))
    }

    pub(super) fn read(&self, handle: UploadHandle, offset: u64, len: usize) -> Result<Bytes> {
        let cell = self.handle(handle)?.cell;
        let mut state = cell.state();
        let (file, _, whole) = self.current(&cell, &mut state)?;
        let mut buf = vec![0; len];
        let read = match state.work.as_ref().and_then(|work| work.overlay.as_ref()) {
            Some(overlay) if !whole => overlay.read_at(&file, offset, &mut buf),
            _ => {
                drop(state);
                read_full(&file, offset, &mut buf)
            }
        };
        buf.truncate(read.map_err(io_error("read"))?);
        Ok(buf.into())
    }

    pub(super) fn write(&self, handle: UploadHandle, offset: u64, data: &[u8]) -> Result<usize> {
        let handle = self.handle(handle)?;
        let cell = &handle.cell;
        let mut state = cell.state();
        let work = writing(&handle, &mut state)?;
        let writer = work.writer()?;
        let offset = match handle.append {
            true => writer.metadata().map_err(io_error("fstat"))?.len(),
            false => offset,
        };
        if let Some(overlay) = &mut work.overlay {
            overlay
                .prepare_write(&writer, ByteRange::at(offset, data.len() as u64))
                .map_err(io_error("copy of the old version"))?;
        }
        let written = writer.write_at(data, offset).map_err(io_error("write"))?;
        drop(state);
        self.names().tree.drop_privileges(cell.ino)?;
        Ok(written)
    }

    pub(super) fn fallocate(
        &self,
        handle: UploadHandle,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let handle = self.handle(handle)?;
        let mut state = handle.cell.state();
        let work = writing(&handle, &mut state)?;
        let writer = work.writer()?;
        let flags = FallocateFlags::from_bits(mode)
            .ok_or_else(|| errno("fallocate", nix::errno::Errno::EOPNOTSUPP))?;
        if let Some(overlay) = &mut work.overlay {
            let shifts =
                FallocateFlags::FALLOC_FL_COLLAPSE_RANGE | FallocateFlags::FALLOC_FL_INSERT_RANGE;
            if flags.intersects(shifts) {
                return Err(errno("fallocate", nix::errno::Errno::EOPNOTSUPP));
            }
            // Reserving space changes no byte; everything else does.
            let reserve = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            if !reserve.contains(flags) {
                let size = writer.metadata().map_err(io_error("fstat"))?.len();
                let range = ByteRange::at(offset, len).intersect(ByteRange::new(0, size));
                overlay
                    .prepare_write(&writer, range)
                    .map_err(io_error("copy of the old version"))?;
            }
        }
        let signed = |n: u64| i64::try_from(n).map_err(|_| PublishError::Invalid("offset"));
        fallocate(&*writer, flags, signed(offset)?, signed(len)?)
            .map_err(|error| errno("fallocate", error))
    }

    pub(super) fn lseek(&self, handle: UploadHandle, offset: i64, whence: i32) -> Result<i64> {
        use nix::unistd::{Whence, lseek};
        let cell = self.handle(handle)?.cell;
        let mut state = cell.state();
        let (file, _, whole) = self.current(&cell, &mut state)?;
        drop(state);
        let whence = match whence {
            nix::libc::SEEK_DATA => Whence::SeekData,
            nix::libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(PublishError::Invalid("only SEEK_DATA and SEEK_HOLE come here")),
        };
        if whole {
            return lseek(&*file, offset, whence).map_err(|error| errno("lseek", error));
        }
        // Holes of an overlay are bytes of the version below.
        let size = file.metadata().map_err(io_error("fstat"))?.len();
        match u64::try_from(offset) {
            Ok(at) if at < size => Ok(match whence {
                Whence::SeekHole => i64::try_from(size).unwrap_or(i64::MAX),
                _ => offset,
            }),
            _ => Err(errno("lseek", nix::errno::Errno::ENXIO)),
        }
    }

    pub(super) fn fsync(&self, ino: UploadIno) -> Result<()> {
        let cell = self.names().cell(ino);
        match cell {
            Ok(cell) => {
                let file = match &mut cell.state().work {
                    Some(work) => Some(work.reader()?),
                    None => None,
                };
                if let Some(file) = file {
                    file.sync_data().map_err(io_error("fdatasync"))?;
                }
                // Also where only the data or an overlay's leaves are new.
                self.names().tree.mark(ino);
            }
            Err(PublishError::IsADirectory) => {}
            Err(error) => return Err(error),
        }
        self.flush()
    }
}

impl FileCell {
    /// Counts the handle that the file is made with.
    fn count_first(&self, write: bool) {
        let mut state = self.state();
        if write {
            state.progress.open_writer();
        } else {
            state.progress.readers += 1;
        }
    }
}

fn alive(state: &FileState) -> Result<()> {
    if state.dead { Err(PublishError::NotFound) } else { Ok(()) }
}

fn writing<'a>(handle: &Handle, state: &'a mut FileState) -> Result<&'a mut Work> {
    if !handle.write {
        return Err(errno("write", nix::errno::Errno::EBADF));
    }
    state.work.as_mut().ok_or(PublishError::NotFound)
}

/// Cuts or lengthens the working file.
fn truncate(state: &mut FileState, size: u64) -> Result<()> {
    let Some(work) = &mut state.work else { return Err(PublishError::NotFound) };
    let writer = work.writer()?;
    match &mut work.overlay {
        Some(overlay) => overlay.truncate(&writer, size),
        None => writer.set_len(size),
    }
    .map_err(io_error("ftruncate"))
}

pub(super) fn read_full(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Sets times of a file of the store; what is none stays.
pub(super) fn set_times(
    file: &File,
    atime: Option<std::time::SystemTime>,
    mtime: Option<std::time::SystemTime>,
) -> Result<()> {
    let spec = |time: Option<std::time::SystemTime>| {
        time.map_or(TimeSpec::UTIME_OMIT, |time| match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => TimeSpec::from_duration(after),
            Err(before) => {
                let before = before.duration();
                let nanos = i64::from(before.subsec_nanos());
                let secs = -i64::try_from(before.as_secs()).unwrap_or(0);
                match nanos {
                    0 => TimeSpec::new(secs, 0),
                    nanos => TimeSpec::new(secs - 1, 1_000_000_000 - nanos),
                }
            }
        })
    };
    futimens(file, &spec(atime), &spec(mtime)).map_err(|error| errno("utimens", error))
}
