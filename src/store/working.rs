//! Files that are being written: beside the objects, under an id that they keep when they become one.

use std::{
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use rustix::{
    fs::{FallocateFlags, SeekFrom, seek},
    io::Errno,
};

use super::{
    FileStamp, Inner, Object, ObjectId, StoreError,
    codec::{Envelope, Leaf},
    disk::Disk,
    guard, index,
    reserve::is_full,
    space::Room,
};
use crate::{
    content::{ByteRange, Multihash},
    sys::{self, Holder},
};

/// A file that is being written and is no content yet.
#[derive(Debug)]
pub struct WorkingFile {
    pub(super) id: ObjectId,
    pub(super) path: PathBuf,
    disk: Arc<dyn Disk>,
}

/// A working file that is open for writing. Its changes are steps of the store's disk, so that tests can fail or
/// lose each of them.
#[derive(Debug)]
pub struct WorkingWriter {
    file: File,
    disk: Arc<dyn Disk>,
}

impl WorkingWriter {
    /// The file, for what changes no byte of it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes from the start of the file to its end.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Writes some of `data`, as pwrite(2).
    ///
    /// # Errors
    /// As pwrite(2).
    pub fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.write_some(&self.file, data, offset)
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// As pwrite(2).
    pub fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.disk.write_at(&self.file, data, offset)
    }

    /// Sets the length; new bytes are a hole.
    ///
    /// # Errors
    /// As ftruncate(2).
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(&self.file, len)
    }

    /// Copies `range` of another file to the same place.
    ///
    /// # Errors
    /// As copy_file_range(2).
    pub fn copy(&self, from: &File, range: ByteRange) -> io::Result<()> {
        self.disk.copy(from, &self.file, range)
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// As fallocate(2).
    pub fn fallocate(&self, flags: FallocateFlags, range: ByteRange) -> io::Result<()> {
        self.disk.fallocate(&self.file, flags, range)
    }

    /// Makes `range` read as zeros and gives its extents back where the filesystem can. The length stays.
    ///
    /// # Errors
    /// As fallocate(2) and pwrite(2).
    pub fn clear(&self, range: ByteRange) -> io::Result<()> {
        let range = range.intersect(ByteRange::new(0, self.size()?));
        let mut at = range.start;
        while let Some(data) = next_data(&self.file, at)?.map(|data| data.intersect(range)) {
            if data.is_empty() {
                break;
            }
            self.clear_data(data)?;
            at = data.end;
        }
        Ok(())
    }

    fn clear_data(&self, data: ByteRange) -> io::Result<()> {
        match self.disk.punch(&self.file, data) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let zeros = vec![0; usize::try_from(data.len()).unwrap_or(usize::MAX)];
                self.disk.write_at(&self.file, &zeros, data.start)
            }
            done => done,
        }
    }

    /// A file on the disk of this machine.
    #[cfg(test)]
    pub(crate) fn of(file: File) -> Self {
        Self { file, disk: Arc::new(super::disk::RealDisk) }
    }
}

/// Longest piece of data that [`next_data`] gives.
const STEP: u64 = 1 << 20;

/// The next bytes from `at` on that are not in a hole, at most [`STEP`] of them. All bytes are data on a filesystem
/// that knows no holes.
pub(super) fn next_data(file: &File, at: u64) -> io::Result<Option<ByteRange>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some(ByteRange::new(start, end.min(start + STEP))))
}

impl WorkingFile {
    /// Its id; it keeps it as an object.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it once more, for reading or also for writing.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(&self, write: bool) -> Result<File, StoreError> {
        let opened = OpenOptions::new().read(true).write(write).open(&self.path);
        opened.map_err(|e| StoreError::io("open", &self.path, e))
    }

    /// Opens it once more for changes that are steps of the store's disk.
    ///
    /// # Errors
    /// As open(2).
    pub fn writer(&self) -> Result<WorkingWriter, StoreError> {
        Ok(WorkingWriter { file: self.open(true)?, disk: self.disk.clone() })
    }

    /// Whether a descriptor or a shared mapping that can write exists anywhere on the machine.
    ///
    /// # Errors
    /// Where the filesystem has no leases.
    pub fn has_writer(&self) -> Result<bool, StoreError> {
        probe(&self.path, Holder::Writer)
    }

    /// Whether anyone has it open or mapped at all.
    ///
    /// # Errors
    /// Where the filesystem has no leases.
    pub fn is_held(&self) -> Result<bool, StoreError> {
        probe(&self.path, Holder::Anyone)
    }
}

impl FileStamp {
    /// What `file` looks like now.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn of(file: &File) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let nanos = |secs: i64, nanos: i64| i128::from(secs) * 1_000_000_000 + i128::from(nanos);
        let m = file.metadata()?;
        Ok(Self {
            mtime: nanos(m.mtime(), m.mtime_nsec()),
            ctime: nanos(m.ctime(), m.ctime_nsec()),
            size: m.size(),
        })
    }
}

/// Asks with a descriptor of its own, opened O_RDONLY: one that could write would be the writer it finds.
fn probe(path: &Path, holder: Holder) -> Result<bool, StoreError> {
    let file = File::open(path).map_err(|e| StoreError::io("open", path, e))?;
    let free = sys::is_free_of(&file, holder);
    free.map(|free| !free).map_err(|e| StoreError::io("take a lease on", path, e))
}

impl Inner {
    pub(super) fn object_path(&self, id: ObjectId) -> PathBuf {
        object_path(&self.objects, id)
    }

    /// A new empty file in `objects/`, and its name noted for the next sync of directories.
    pub(super) fn create_file(&self) -> Result<(ObjectId, PathBuf, File), StoreError> {
        let id = self.next_id();
        let path = self.object_path(id);
        let file = self.disk.create(&path).map_err(|e| StoreError::io("create", &path, e))?;
        self.new_names().insert(id);
        Ok((id, path, file))
    }

    /// A new file where there is room for one.
    pub(super) fn working_file(self: &Arc<Self>) -> Result<WorkingFile, StoreError> {
        self.admit(Room { bytes: 0, files: 1 })?;
        let (id, path, _) = self.with_room(|| self.create_file())?;
        Ok(self.working(id, path))
    }

    pub(super) fn working(&self, id: ObjectId, path: PathBuf) -> WorkingFile {
        WorkingFile { id, path, disk: self.disk.clone() }
    }

    /// Does a step that takes room on the disk, and again as long as it finds the disk full and eviction helps. Doing it
    /// twice must do no harm.
    pub(super) fn with_room<T>(
        self: &Arc<Self>,
        mut step: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        loop {
            let error = match step() {
                Err(error) if error.is_no_space() => error,
                other => return other,
            };
            let report = self.evict_for_space()?;
            if report.bytes == 0 && report.objects == 0 {
                self.tell(&error);
                return Err(error);
            }
        }
    }

    /// Unlinks a working file that never became anything.
    pub(super) fn discard(&self, id: ObjectId) {
        if let Err(error) = self.remove_file(id)
            && !self.tell(&error)
        {
            tracing::warn!(%error, "a file that is not needed stays until the next start");
        }
    }

    pub(super) fn file_of(&self, id: ObjectId) -> WorkingFile {
        self.working(id, self.object_path(id))
    }

    pub(super) fn reopen_working(&self, id: ObjectId) -> Result<Option<WorkingFile>, StoreError> {
        let row = self.index.read(|txn| index::object_row(txn, id))?;
        let kept = row.is_some_and(|row| row.root.is_none() || row.merging);
        Ok(kept.then(|| self.file_of(id)))
    }

    pub(super) fn clone_object(
        self: &Arc<Self>,
        id: ObjectId,
    ) -> Result<Option<WorkingFile>, StoreError> {
        if !self.can_clone() {
            return Ok(None);
        }
        let Some(object) = self.open_object(id)? else { return Ok(None) };
        let source = object.reader()?;
        self.admit(Room { bytes: 0, files: 1 })?;
        self.with_room(|| self.try_clone(&source))
    }

    fn try_clone(&self, source: &File) -> Result<Option<WorkingFile>, StoreError> {
        let (id, path, file) = self.create_file()?;
        match rustix::fs::ioctl_ficlone(&file, source) {
            Ok(()) => Ok(Some(self.working(id, path))),
            Err(e) => {
                self.discard(id);
                let error = io::Error::from(e);
                if is_full(&error) {
                    return Err(StoreError::io("clone into", &path, error));
                }
                tracing::warn!(%error, path = %path.display(), "a file cannot be cloned; it is copied");
                Ok(None)
            }
        }
    }

    /// Unlinks a file of `objects/`; one that is gone already is no error.
    pub(super) fn remove_file(&self, id: ObjectId) -> Result<(), StoreError> {
        let path = self.object_path(id);
        self.new_names().remove(&id);
        guard(&self.unsynced).remove(&id);
        match self.disk.unlink(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("unlink", &path, e))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn object_is_held(&self, id: ObjectId, holder: Holder) -> Result<bool, StoreError> {
        probe(&self.object_path(id), holder)
    }

    /// Where the filesystem can, lets a range share the extents of another object that has the same block.
    /// Its bytes are compared first: what is placed was verified, what lies there may have rotted since.
    pub(super) fn share_extents(
        self: &Arc<Self>,
        into: &Object,
        hash: &Multihash,
        content: &[u8],
        file: &File,
        range: ByteRange,
    ) -> Result<bool, StoreError> {
        // Extents are shared in whole filesystem blocks.
        const ALIGNED: u64 = 4096;
        if !self.can_clone()
            || !range.start.is_multiple_of(ALIGNED)
            || !range.len().is_multiple_of(ALIGNED)
        {
            return Ok(false);
        }
        let Some(leaf) = self.index.read(|txn| index::leaf_after(txn, hash, None))? else {
            return Ok(false);
        };
        if leaf.range.len() != range.len() || !leaf.range.start.is_multiple_of(ALIGNED) {
            return Ok(false);
        }
        let Some((source, bytes)) = self.source_of(into, &leaf)? else { return Ok(false) };
        if bytes != content {
            return Ok(false);
        }
        let (mut from, mut to, mut left) = (leaf.range.start, range.start, content.len());
        while left > 0 {
            match rustix::fs::copy_file_range(&source, Some(&mut from), file, Some(&mut to), left) {
                Ok(copied) if copied > 0 => left -= copied,
                // A part that was copied is written over by the caller.
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The file that a leaf lies in, and the leaf's bytes. The caller holds the holes of `into` shared: taking them a second
    /// time would wait for whoever waits for them exclusively, and that one waits for the caller.
    pub(super) fn source_of(
        self: &Arc<Self>,
        into: &Object,
        leaf: &Leaf,
    ) -> Result<Option<(Arc<File>, Bytes)>, StoreError> {
        if leaf.object == into.id() {
            let mut bytes = Vec::new();
            let read = into.has(leaf.range) && into.read_into(leaf.range, &mut bytes).is_ok();
            return Ok(if read { Some((into.reader()?, bytes.into())) } else { None });
        }
        let Some(object) = self.open_object(leaf.object)? else { return Ok(None) };
        let bytes = object.read_block(&Leaf { envelope: Envelope::default(), ..leaf.clone() });
        Ok(match bytes {
            Ok(Some(bytes)) => Some((object.reader()?, bytes)),
            _ => None,
        })
    }
}

/// `objects/3f/000000000000123f`: spread by the low byte, so that no directory gets large.
pub(super) fn object_path(objects: &Path, id: ObjectId) -> PathBuf {
    objects.join(format!("{:02x}", id.0 & 0xff)).join(format!("{:016x}", id.0))
}

/// Whether FICLONE works between two files of the data folder; unknown until a disk with room was asked.
#[derive(Debug, Default)]
pub(super) struct Cloning(Mutex<Option<bool>>);

impl Inner {
    pub(super) fn can_clone(&self) -> bool {
        let mut known = guard(&self.cloning.0);
        if let Some(known) = *known {
            return known;
        }
        match probe_clone(&self.dir) {
            Ok(()) => *known = Some(true),
            // A disk that is full or read-only may clone once it is not.
            Err(error) if is_full(&error) || error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
            Err(_) => *known = Some(false),
        }
        known.unwrap_or(false)
    }
}

fn probe_clone(dir: &Path) -> io::Result<()> {
    let (a, b) = (dir.join("clone-probe-a"), dir.join("clone-probe-b"));
    let try_it = || -> io::Result<()> {
        std::fs::write(&a, [1u8; 4096])?;
        let target = File::create(&b)?;
        Ok(rustix::fs::ioctl_ficlone(&target, &File::open(&a)?)?)
    };
    let tried = try_it();
    // What is left behind would only be overwritten by the next probe.
    let _ = (std::fs::remove_file(&a), std::fs::remove_file(&b));
    tried
}
