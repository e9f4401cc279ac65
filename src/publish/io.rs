//! Reading and writing through the daemon: overlays, copy mode, and what passthrough leaves to it.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use rustix::fs::FallocateFlags;

use super::{
    Inner, PublishError, UploadHandle, UploadIno,
    file::{FileCell, FileState, Linger, Work},
    handle::{Handle, alive, errno, io_error},
};
use crate::{content::ByteRange, store::ObjectId};

type Result<T> = std::result::Result<T, PublishError>;

impl Inner {
    /// The file that handles read now, its number, and whether it is whole.
    pub(super) fn current(
        &self,
        cell: &FileCell,
        state: &mut FileState,
    ) -> Result<(Arc<File>, ObjectId, bool)> {
        alive(state)?;
        if let Some(work) = state.shown() {
            return Ok((work.reader()?, work.id(), work.overlay.is_none()));
        }
        if let Some(linger) = &state.linger {
            return Ok((linger.file.clone(), linger.object, true));
        }
        let sealed = self.names().tree.sealed(cell.ino).cloned().ok_or(PublishError::NotFound)?;
        let file = self.object_file(sealed.object)?;
        if state.progress.handles() > 0 {
            state.linger = Some(Linger { file: file.clone(), object: sealed.object });
        }
        Ok((file, sealed.object, true))
    }

    pub(super) fn read(&self, handle: UploadHandle, offset: u64, len: usize) -> Result<Bytes> {
        let cell = self.handle(handle)?.cell;
        let mut state = cell.quiet_state();
        let (file, _, whole) = self.current(&cell, &mut state)?;
        let mut buf = vec![0; len];
        let read = match state.shown().and_then(|work| work.overlay.as_ref()) {
            Some(overlay) if !whole => overlay.read_at(&file, offset, &mut buf),
            _ => {
                drop(state);
                read_full(&file, offset, &mut buf)
            }
        };
        buf.truncate(read.map_err(io_error("read"))?);
        Ok(buf.into())
    }

    /// Does a step that writes, and again as long as the disk is full and what is only cached makes room. Doing it twice
    /// must do no harm.
    pub(super) fn with_room<T>(
        &self,
        what: &'static str,
        mut step: impl FnMut() -> io::Result<T>,
    ) -> Result<T> {
        self.retry_with_room(|| step().map_err(io_error(what)))
    }

    /// As [`Inner::with_room`] for steps with other errors besides.
    pub(super) fn retry_with_room<T>(&self, mut step: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match step() {
                Err(error) if error.is_no_space() && self.store.make_room().unwrap_or(false) => {}
                done => return done,
            }
        }
    }

    pub(super) fn write(&self, handle: UploadHandle, offset: u64, data: &[u8]) -> Result<usize> {
        let handle = self.handle(handle)?;
        self.store.admit(data.len() as u64)?;
        let cell = &handle.cell;
        let mut state = cell.quiet_state();
        let work = writing(&handle, &mut state)?;
        let writer = work.writer()?;
        let offset = match handle.append {
            true => writer.size().map_err(io_error("fstat"))?,
            false => offset,
        };
        if let Some(overlay) = &mut work.overlay {
            let range = ByteRange::at(offset, data.len() as u64);
            self.with_room("copy of the old version", || overlay.prepare_write(&writer, range))?;
        }
        let written = self.with_room("write", || writer.write_at(data, offset))?;
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
        let unknown = || errno("fallocate", Errno::EOPNOTSUPP);
        let bits = u32::try_from(mode).map_err(|_| unknown())?;
        let flags = FallocateFlags::from_bits(bits).ok_or_else(unknown)?;
        self.admit_range(&handle, flags, ByteRange::at(offset, len))?;
        let mut state = handle.cell.quiet_state();
        let work = writing(&handle, &mut state)?;
        let writer = work.writer()?;
        if let Some(overlay) = &mut work.overlay {
            let shifts = FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE;
            if flags.intersects(shifts) {
                return Err(unknown());
            }
            // Reserving space changes no byte; everything else does.
            let reserve = FallocateFlags::KEEP_SIZE;
            if !reserve.contains(flags) {
                let size = writer.size().map_err(io_error("fstat"))?;
                let range = ByteRange::at(offset, len).intersect(ByteRange::new(0, size));
                let copy = || overlay.prepare_write(&writer, range);
                self.with_room("copy of the old version", copy)?;
            }
        }
        let range = ByteRange::at(offset, len);
        self.with_room("fallocate", || writer.fallocate(flags, range))
    }

    /// Makes room for what an fallocate may take: blocks that the range has already count as new, but no more than there
    /// can be.
    fn admit_range(&self, handle: &Handle, flags: FallocateFlags, range: ByteRange) -> Result<()> {
        let gives = FallocateFlags::PUNCH_HOLE | FallocateFlags::COLLAPSE_RANGE;
        if flags.intersects(gives) {
            return Ok(());
        }
        let held = {
            let mut state = handle.cell.quiet_state();
            let work = writing(handle, &mut state)?;
            let meta = work.writer()?.file().metadata();
            meta.map_err(io_error("fstat"))?.blocks() * 512
        };
        let size = ByteRange::new(0, range.end).len();
        Ok(self.store.admit(range.len().min(size.saturating_sub(held)))?)
    }

    pub(super) fn lseek(&self, handle: UploadHandle, offset: i64, whence: i32) -> Result<i64> {
        let cell = self.handle(handle)?.cell;
        let mut state = cell.quiet_state();
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
            _ => Err(errno("lseek", Errno::ENXIO)),
        }
    }

    pub(super) fn fsync(&self, ino: UploadIno) -> Result<()> {
        let cell = self.names().cell(ino);
        match cell {
            Ok(cell) => {
                if let Some((id, file)) = self.file_to_sync(&cell)? {
                    self.store.sync_working(id, &file)?;
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

impl Inner {
    /// The working file, if there is one. One whose sync failed is written again first; where the kernel may be writing it
    /// that cannot be done, and each fsync fails until it was closed.
    fn file_to_sync(&self, cell: &FileCell) -> Result<Option<(ObjectId, Arc<File>)>> {
        // A commit under way may unlink the file.
        let mut state = cell.quiet_state();
        let writers = state.progress.writers > 0;
        let Some(work) = &mut state.work else { return Ok(None) };
        let id = work.id();
        if writers && work.overlay.is_none() && self.store.is_unsynced(id) {
            return Err(errno("fdatasync: an earlier one failed", Errno::EIO));
        }
        self.store.rewrite_unsynced(id)?;
        Ok(Some((id, work.reader()?)))
    }
}

fn writing<'a>(handle: &Handle, state: &'a mut FileState) -> Result<&'a mut Work> {
    if !handle.write {
        return Err(errno("write", Errno::EBADF));
    }
    state.work.as_mut().ok_or(PublishError::NotFound)
}

fn read_full(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
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
