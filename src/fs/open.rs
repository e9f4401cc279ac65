//! Open files: opening, reading, writing, closing.

use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;

use super::{
    answer::{Answer, Outcome},
    backing::{Candidate, Opener},
    control::{self, EventLog},
    errno::{During, of_node},
    handles::Handle,
    iomode::Mode,
    semantics::{Fs, known, published},
    torrents::OpenDraft,
    tree::{Content, Ino, Shape, What},
};
use crate::{
    content::ByteRange,
    node::{OpenFile, OpenFlags, ReaderId, SetAttr, UploadHandle, UploadIno, UploadState},
};

/// A file that was opened below and is waiting for the mode that the kernel is to use.
#[derive(Debug)]
pub(super) enum Opened {
    Content(Arc<dyn OpenFile>),
    Upload(OpenedUpload),
    Text(Bytes),
    Events(Arc<EventLog>),
    Draft(OpenDraft),
}

/// A file of the upload tree that was opened below.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenedUpload {
    pub(super) upload: UploadIno,
    pub(super) handle: UploadHandle,
    /// What was asked for.
    pub(super) wanted: Wanted,
    /// Whether it is still to be cut to nothing, once it is certain that the open succeeds.
    pub(super) to_be_cut: bool,
}

/// The kernel's own flag on what it opens to run it (FMODE_EXEC); it has no name in libc.
const EXECUTE: i32 = 0x20;

/// What open(2) asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted(pub(super) i32);

impl Wanted {
    pub(super) fn writes(self) -> bool {
        self.0 & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Whether what is opened can be mapped so that stores change it.
    pub(super) fn maps(self) -> bool {
        self.0 & libc::O_ACCMODE == libc::O_RDWR
    }

    pub(super) fn flags(self) -> OpenFlags {
        OpenFlags {
            write: self.writes(),
            truncate: self.0 & libc::O_TRUNC != 0,
            append: self.0 & libc::O_APPEND != 0,
        }
    }

    /// Whether it is opened to be run as a program.
    pub(super) fn executes(self) -> bool {
        self.0 & EXECUTE != 0
    }

    pub(super) fn exclusive(self) -> bool {
        self.0 & libc::O_EXCL != 0
    }
}

impl Opened {
    /// Who opens, as the choice of the mode sees it; none where no file could back it.
    pub(super) fn opener(&self) -> Option<Opener> {
        match self {
            Self::Content(_) => Some(Opener::Content),
            Self::Upload(OpenedUpload { wanted, .. }) if wanted.writes() => {
                Some(Opener::UploadWriter { maps: wanted.maps() })
            }
            Self::Upload(_) => Some(Opener::UploadReader),
            Self::Text(_) | Self::Events(_) | Self::Draft(_) => None,
        }
    }
}

impl Fs {
    /// Opens below. `backed`: the inode has a backing file, so that the open may still be refused afterwards.
    pub(super) fn open(self: &Arc<Self>, ino: Ino, wanted: Wanted, backed: bool) -> Answer<Opened> {
        let what = match self.what(ino) {
            Ok(what) => what,
            Err(errno) => return Answer::error(errno),
        };
        let writable = matches!(what, What::Upload(_) | What::Named(_));
        if !writable && (wanted.writes() || wanted.flags().truncate) {
            return Answer::error(Errno::EROFS);
        }
        match what {
            What::Root | What::Ipfs | What::Control | What::Torrents => {
                Answer::error(Errno::EISDIR)
            }
            What::Named(named) => Answer::Now(self.open_named(&named, wanted)),
            What::ControlFile(file) => Answer::Now(self.open_control(file)),
            What::Content(content) => self.open_content(&content),
            What::Upload(upload) => self.open_upload(upload, wanted, backed),
        }
    }

    fn open_control(&self, file: Ino) -> Outcome<Opened> {
        let file = control::File::of(file).ok_or(Errno::ENOENT)?;
        Ok(match self.rendered.text(file, &self.node)? {
            Some(text) => Opened::Text(text),
            None => Opened::Events(self.events.open(&self.node)),
        })
    }

    fn open_content(self: &Arc<Self>, content: &Arc<Content>) -> Answer<Opened> {
        if content.shape != Shape::File {
            return Answer::error(Errno::ESTALE);
        }
        self.opened(&content.place);
        match self.node.protocol(&content.place).open_now(&content.place) {
            Some(opened) => {
                Answer::Now(opened.map(Opened::Content).map_err(|e| of_node(&e, During::Lookup)))
            }
            None => {
                let (node, content) = (self.node.clone(), content.clone());
                Answer::later(async move {
                    let opened = node.protocol(&content.place).open(&content.place).await;
                    opened.map(Opened::Content).map_err(|e| of_node(&e, During::Lookup))
                })
            }
        }
    }

    fn open_upload(&self, upload: UploadIno, wanted: Wanted, backed: bool) -> Answer<Opened> {
        let (uploads, mut flags) = (self.node.uploads().clone(), wanted.flags());
        // For other opens the kernel sees to it; of this one it learns only when the truncation is done.
        if flags.truncate && !flags.write && self.handles.is_executed(upload) {
            return Answer::error(Errno::ETXTBSY);
        }
        // An open that is refused must not have cut anything.
        let to_be_cut = flags.truncate && wanted.maps() && backed;
        flags.truncate &= !to_be_cut;
        let work = move || {
            let handle = known(uploads.open_file(upload, flags))?;
            Ok(Opened::Upload(OpenedUpload { upload, handle, wanted, to_be_cut }))
        };
        // The first writer of a published file clones it or lays an overlay over it.
        if flags.write || flags.truncate { Answer::blocking(work) } else { Answer::Now(work()) }
    }

    /// The file that may back an open; none when it is not whole or cannot be had.
    pub(super) fn candidate(&self, opened: &Opened) -> Option<Candidate> {
        match opened {
            Opened::Content(file) => {
                let backing = file.backing().unwrap_or_else(|error| {
                    tracing::warn!(%error, "a complete file cannot be opened; it is copied");
                    None
                });
                backing.map(|(file, version)| Candidate {
                    file,
                    version,
                    whole: true,
                    copied: false,
                })
            }
            Opened::Upload(OpenedUpload { upload, wanted, .. }) if wanted.writes() => {
                match self.node.uploads().backing(*upload) {
                    Ok(backing) => Some(Candidate {
                        file: backing.file,
                        version: backing.version,
                        whole: backing.whole,
                        copied: self.node.store().is_tight(),
                    }),
                    Err(error) => {
                        tracing::warn!(%error, "an upload cannot be passed through; it is copied");
                        None
                    }
                }
            }
            // Readers of uploads read through the daemon.
            Opened::Upload(_) | Opened::Text(_) | Opened::Events(_) | Opened::Draft(_) => None,
        }
    }

    /// Does what was put off until it was certain that the open succeeds.
    pub(super) fn finish_open(&self, opened: &Opened) -> Outcome<()> {
        match opened {
            Opened::Upload(OpenedUpload { upload, to_be_cut: true, .. }) => {
                let cut = SetAttr { size: Some(0), ..SetAttr::default() };
                published(self.node.uploads().setattr(*upload, &cut)).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Undoes an open that does not succeed. May wait for the disk.
    pub(super) fn abandon(&self, opened: Opened) {
        if let Opened::Upload(OpenedUpload { handle, .. }) = opened {
            self.node.uploads().release(handle);
        }
    }

    /// Keeps an open file under a handle.
    pub(super) fn keep_open(&self, ino: Ino, opened: Opened, mode: Mode) -> u64 {
        self.handles.insert(|fh| match opened {
            Opened::Content(file) => Handle::Content { ino, file, reader: ReaderId(fh), mode },
            Opened::Upload(OpenedUpload { upload, handle, wanted, .. }) => {
                Handle::Upload { ino, upload, handle, mode, executes: wanted.executes() }
            }
            Opened::Text(text) => Handle::Text(text),
            Opened::Events(events) => Handle::Events(events),
            Opened::Draft(draft) => Handle::Draft(draft),
        })
    }

    /// Forgets a handle. `released` gets inode and mode before the layers below hear of it, so that the kernel's own
    /// reference to the backing file is gone when they look for writers. What is left to do may be done at any time;
    /// nobody waits for it.
    pub(super) fn close(&self, fh: u64, released: impl FnOnce(Ino, Mode)) -> Answer<()> {
        let Some(handle) = self.handles.remove(fh) else { return Answer::ok(()) };
        match &*handle {
            Handle::Content { ino, file, reader, mode } => {
                released(*ino, *mode);
                file.close_reader(*reader);
            }
            Handle::Upload { ino, upload, handle, mode, .. } => {
                released(*ino, *mode);
                let (uploads, handle) = (self.node.uploads().clone(), *handle);
                // A commit of this file may be under way, which takes as long as its disk does. While a file is
                // written there is none, and whoever looks at it right after its close is to find it closed.
                if matches!(uploads.state(*upload), Ok(UploadState::Writing)) {
                    uploads.release(handle);
                    return Answer::ok(());
                }
                return Answer::blocking(move || {
                    uploads.release(handle);
                    Ok(())
                });
            }
            Handle::Draft(draft) => self.close_draft(draft),
            Handle::Text(_) | Handle::Events(_) | Handle::Directory(_) => {}
        }
        Answer::ok(())
    }

    pub(super) fn read(&self, fh: u64, offset: u64, size: u32) -> Answer<Bytes> {
        let handle = match self.handles.get(fh) {
            Ok(handle) => handle,
            Err(errno) => return Answer::error(errno),
        };
        match &*handle {
            Handle::Content { file, reader, .. } => read_content(file, *reader, offset, size),
            Handle::Upload { handle, .. } => {
                let (uploads, handle) = (self.node.uploads().clone(), *handle);
                Answer::blocking(move || published(uploads.read(handle, offset, size as usize)))
            }
            Handle::Text(text) => Answer::ok(slice(text, offset, size)),
            Handle::Draft(draft) => Answer::ok(draft.read(offset, size)),
            Handle::Events(events) => Answer::ok(events.read(offset, size)),
            Handle::Directory(_) => Answer::error(Errno::EISDIR),
        }
    }

    /// A descriptor is closed. What is dropped into `torrents` is taken or refused now, and rules that were written hold
    /// from now on: close(2) waits for this, and not for the release.
    pub(super) fn flush(&self, fh: u64) -> Answer<()> {
        match self.handles.get(fh).as_deref() {
            Ok(Handle::Draft(draft)) => self.flush_draft(draft),
            Ok(Handle::Upload { upload, .. }) if self.node.uploads().holds_rules(*upload) => {
                let (uploads, upload) = (self.node.uploads().clone(), *upload);
                Answer::blocking(move || {
                    uploads.reread_rules(upload);
                    Ok(())
                })
            }
            _ => Answer::ok(()),
        }
    }

    pub(super) fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Answer<usize> {
        if let Ok(Handle::Draft(draft)) = self.handles.get(fh).as_deref() {
            return Answer::Now(self.write_draft(draft, offset, data));
        }
        match self.upload_handle(fh) {
            Ok((_, handle)) => {
                // The library's buffer is the next request's as soon as this returns.
                let (uploads, data) = (self.node.uploads().clone(), Bytes::copy_from_slice(data));
                Answer::blocking(move || published(uploads.write(handle, offset, &data)))
            }
            Err(errno) => Answer::error(errno),
        }
    }

    pub(super) fn fallocate(&self, fh: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        if let Ok(Handle::Draft(_)) = self.handles.get(fh).as_deref() {
            return Answer::error(Errno::EOPNOTSUPP);
        }
        match self.upload_handle(fh) {
            Ok((_, handle)) => {
                let uploads = self.node.uploads().clone();
                Answer::blocking(move || published(uploads.fallocate(handle, mode, offset, len)))
            }
            Err(errno) => Answer::error(errno),
        }
    }

    /// Data of a file, or names of a directory, on disk.
    pub(super) fn fsync(&self, ino: Ino) -> Answer<()> {
        match self.what(ino) {
            Ok(What::Upload(upload)) => {
                let uploads = self.node.uploads().clone();
                Answer::blocking(move || published(uploads.fsync(upload)))
            }
            Ok(
                What::Root
                | What::Ipfs
                | What::Control
                | What::ControlFile(_)
                | What::Content(_)
                | What::Torrents
                | What::Named(_),
            ) => Answer::ok(()),
            Err(errno) => Answer::error(errno),
        }
    }

    /// SEEK_DATA and SEEK_HOLE. Content has no holes: what is not here yet is data all the same, and a program that
    /// was told of a hole would copy zeros.
    pub(super) fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Answer<i64> {
        let handle = match self.handles.get(fh) {
            Ok(handle) => handle,
            Err(errno) => return Answer::error(errno),
        };
        match &*handle {
            Handle::Content { file, .. } => Answer::Now(seek_content(file.size(), offset, whence)),
            Handle::Upload { handle, .. } => {
                let (uploads, handle) = (self.node.uploads().clone(), *handle);
                Answer::blocking(move || published(uploads.lseek(handle, offset, whence)))
            }
            Handle::Text(_) | Handle::Events(_) | Handle::Draft(_) | Handle::Directory(_) => {
                Answer::error(Errno::EINVAL)
            }
        }
    }

    fn upload_handle(&self, fh: u64) -> Outcome<(UploadIno, UploadHandle)> {
        match &*self.handles.get(fh)? {
            Handle::Upload { upload, handle, .. } => Ok((*upload, *handle)),
            Handle::Content { .. }
            | Handle::Text(_)
            | Handle::Events(_)
            | Handle::Draft(_)
            | Handle::Directory(_) => Err(Errno::EBADF),
        }
    }
}

fn seek_content(size: u64, offset: i64, whence: i32) -> Outcome<i64> {
    let size = i64::try_from(size).map_err(|_| Errno::EOVERFLOW)?;
    match whence {
        _ if offset < 0 || offset >= size => Err(Errno::ENXIO),
        libc::SEEK_DATA => Ok(offset),
        libc::SEEK_HOLE => Ok(size),
        _ => Err(Errno::EINVAL),
    }
}

fn read_content(
    file: &Arc<dyn OpenFile>,
    reader: ReaderId,
    offset: u64,
    size: u32,
) -> Answer<Bytes> {
    let range = ByteRange::at(offset, u64::from(size)).intersect(ByteRange::new(0, file.size()));
    if range.is_empty() {
        return Answer::ok(Bytes::new());
    }
    match file.read_now(reader, range) {
        Some(bytes) => Answer::Now(bytes.map_err(|e| of_node(&e, During::Read))),
        None => {
            let file = file.clone();
            Answer::later(async move {
                file.read(reader, range).await.map_err(|e| of_node(&e, During::Read))
            })
        }
    }
}

fn slice(text: &Bytes, offset: u64, size: u32) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(size as usize).min(text.len());
    text.slice(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_end_with_the_text() {
        let text = Bytes::from_static(b"hello");
        assert_eq!(slice(&text, 0, 100), "hello");
        assert_eq!(slice(&text, 3, 1), "l");
        assert_eq!(slice(&text, 5, 1), "");
        assert_eq!(slice(&text, u64::MAX, u32::MAX), "");
    }

    #[test]
    fn flags_of_open_are_read_as_the_kernel_writes_them() {
        assert!(!Wanted(libc::O_RDONLY | libc::O_CREAT).writes());
        assert!(Wanted(libc::O_RDONLY | 0x20).executes() && !Wanted(libc::O_TRUNC).executes());
        assert!(Wanted(libc::O_WRONLY).writes() && Wanted(libc::O_RDWR).writes());
        let wanted = Wanted(libc::O_WRONLY | libc::O_APPEND | libc::O_TRUNC);
        assert_eq!(wanted.flags(), OpenFlags { write: true, truncate: true, append: true });
    }
}
