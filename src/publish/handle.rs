//! Opening and closing: who has a file open, and which working file a writer gets.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use nix::sys::{stat::futimens, time::TimeSpec};

use super::{
    Backing, Inner, OpenFlags, PublishError, UploadAttr, UploadHandle, UploadIno,
    file::{FileCell, FileState, Phase, Work},
    overlay::Overlay,
    queue,
    row::Sealed,
    seal::LARGE,
    tree::{Body, Owner},
};
use crate::store::{ExpectedWrites, ObjectId, WorkingFile};

type Result<T> = std::result::Result<T, PublishError>;

/// One open of a file.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) cell: Arc<FileCell>,
    pub(super) write: bool,
    pub(super) append: bool,
    /// Room on the disk for what is written past the daemon.
    _room: Option<Arc<ExpectedWrites>>,
}

pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> PublishError {
    move |source| PublishError::Io { what, source }
}

pub(super) fn errno(what: &'static str, errno: nix::errno::Errno) -> PublishError {
    PublishError::Io { what, source: errno.into() }
}

impl Inner {
    fn handles(&self) -> MutexGuard<'_, std::collections::HashMap<UploadHandle, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_handle(&self, cell: Arc<FileCell>, flags: OpenFlags) -> UploadHandle {
        let number = self.next_handle.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let handle = UploadHandle(number);
        let room = flags.write.then(|| Arc::new(self.store.expect_writes()));
        let opened = Handle { cell, write: flags.write, append: flags.append, _room: room };
        self.handles().insert(handle, opened);
        handle
    }

    pub(super) fn handle(&self, handle: UploadHandle) -> Result<Handle> {
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
                    let cell = FileCell::new(ino, phase, Some(work)).with_handle(flags.write);
                    let cell = Arc::new(cell);
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
        let opening = cell.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.with_work(&cell, if flags.truncate { Some(0) } else { None })?;
        let hides = flags.truncate && truncate(&mut state, 0)?;
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
        drop(opening);
        self.flusher.later();
        if hides {
            self.keep_hidden();
        }
        Ok(self.add_handle(cell, flags))
    }

    /// The state with a working file in it. `size` is what the file will be cut to at once. `opening` must be held.
    pub(super) fn with_work<'a>(
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
        loop {
            // Outside the lock: a clone may have to write the old version out first.
            let sealed = self.names().tree.sealed(cell.ino).cloned();
            let mut work = self.make_work(cell, sealed.as_ref(), size)?;
            let mut state = cell.quiet_state();
            if let Err(gone) = alive(&state) {
                self.names().released.push(work.id());
                return Err(gone);
            }
            // A layer may have been merged meanwhile, or its merge begun.
            let mut names = self.names();
            if names.tree.sealed(cell.ino) != sealed.as_ref() {
                names.released.push(work.id());
                continue;
            }
            drop(names);
            let base = state.layer.as_ref().and_then(|layer| layer.overlay.as_ref());
            if let (Some(overlay), Some(base)) = (&mut work.overlay, base) {
                overlay.share_base(base);
            }
            state.linger = None;
            state.work = Some(work);
            return Ok(state);
        }
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
            && sealed.below.is_none()
            && let Some(file) = self.store.clone_object(sealed.object)?
        {
            return self.fill_in(file, |work| {
                // Opening is no change: the times are those of the published version.
                set_times(&*work.reader()?, None, Some(mtime))?;
                work.clone_stamp = Some(work.stamp()?);
                work.fresh_clone = true;
                Ok(())
            });
        }
        self.fill_in(self.store.working_file()?, |work| {
            let writer = work.writer()?;
            writer.set_len(sealed.size).map_err(io_error("ftruncate"))?;
            if sealed.below.is_some() {
                self.retry_with_room(|| self.copy_layer(cell, work, sealed.size))?;
            } else {
                let base = self.object_file(sealed.object)?;
                let leaf = self.options.import.chunk_len as u64;
                work.overlay = Some(Overlay::new(base, sealed.object, sealed.size, leaf));
            }
            set_times(writer.file(), None, Some(mtime))?;
            work.drop_writer();
            Ok(())
        })
    }

    /// Makes a version of a new working file, which does not outlive an error: no row names it.
    fn fill_in(
        &self,
        file: WorkingFile,
        fill: impl FnOnce(&mut Work) -> Result<()>,
    ) -> Result<Work> {
        let mut work = Work::new(file);
        match fill(&mut work) {
            Ok(()) => Ok(work),
            Err(error) => {
                self.store.discard(&work.file);
                Err(error)
            }
        }
    }

    /// The file of a whole object.
    pub(super) fn object_file(&self, object: ObjectId) -> Result<Arc<File>> {
        let object = self.store.object_by_id(object)?;
        let file = match object {
            Some(object) => object.verified_backing()?,
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
        let hides = truncate(&mut state, size)?;
        self.after_change(&cell, &mut state);
        if !open && let Some(work) = &mut state.work {
            work.drop_writer();
        }
        drop(state);
        {
            let mut names = self.names();
            names.tree.mark(ino);
            names.tree.drop_privileges(ino)?;
        }
        if hides {
            self.keep_hidden();
        }
        self.content_changed(ino);
        Ok(())
    }

    /// A truncate hid bytes of the published version that a row on disk still shows. A kill before the next commit
    /// would bring them back once the file grew again, so the truncate ends with a commit of its own.
    fn keep_hidden(&self) {
        if let Err(error) = self.flush() {
            // The file was cut; on a full disk that may be what makes the next commit possible.
            tracing::warn!(%error, "a truncate is not on the disk yet; its commit is tried again");
            self.flusher.later();
        }
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
        } else if state.progress.handles() == 0 {
            state.rest();
        }
        drop(state);
        if closed {
            self.content_changed(cell.ino);
        }
        self.changed.notify_waiters();
    }

    pub(super) fn backing(&self, ino: UploadIno) -> Result<Backing> {
        let cell = self.names().cell(ino)?;
        let mut state = cell.quiet_state();
        let (file, object, whole) = self.current(&cell, &mut state)?;
        Ok(Backing { file, version: object.0, whole })
    }
}

pub(super) fn alive(state: &FileState) -> Result<()> {
    if state.dead { Err(PublishError::NotFound) } else { Ok(()) }
}

/// Cuts or lengthens the working file; whether that hides bytes of the published version that a row shows.
fn truncate(state: &mut FileState, size: u64) -> Result<bool> {
    let Some(work) = &mut state.work else { return Err(PublishError::NotFound) };
    let writer = work.writer()?;
    match &mut work.overlay {
        Some(overlay) => overlay.truncate(&writer, size).map(|hides| hides && work.has_row),
        None => writer.set_len(size).map(|()| false),
    }
    .map_err(io_error("ftruncate"))
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
