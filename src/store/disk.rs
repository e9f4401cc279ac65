//! What the store does to the disk, behind one trait, so that tests can fail or lose any single step.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use rustix::fs::FallocateFlags;

use super::{reserve::Reserve, space::Space};
use crate::content::ByteRange;

/// Every step that changes the disk. Reads go straight to the files.
pub(super) trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Makes a new file for reading and writing; an existing one is an error.
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
    }

    /// Opens or makes a file for reading and writing.
    fn open_or_create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Writes all of `data`.
    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(data, offset)
    }

    /// Writes some of `data`, as pwrite(2): fewer bytes where the disk becomes full meanwhile.
    fn write_some(&self, file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(data, offset)
    }

    /// Copies `range` of another file to the same place, in the kernel where the filesystem can.
    fn copy(&self, from: &File, to: &File, range: ByteRange) -> io::Result<()> {
        copy(from, to, range)
    }

    /// fallocate(2).
    fn fallocate(&self, file: &File, flags: FallocateFlags, range: ByteRange) -> io::Result<()> {
        Ok(rustix::fs::fallocate(file, flags, range.start, range.len())?)
    }

    /// Sets the length; new bytes are a hole.
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Makes the file as long as `len`, with blocks of the disk behind every byte.
    fn allocate(&self, file: &File, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len)?)
    }

    /// fdatasync.
    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// Makes everything on the filesystem of `dir` durable, data and names.
    fn sync_filesystem(&self, dir: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(dir)?)?)
    }

    /// Gives a file another name, in place of what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    /// Gives a file a second name.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    /// Takes a name out.
    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Room on the filesystem of `path`.
    fn space(&self, path: &Path) -> io::Result<Space> {
        Space::of(path)
    }

    /// Gives the extents of `range` back; it reads as zeros from then on.
    fn punch(&self, file: &File, range: ByteRange) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, flags, range.start, range.len())?)
    }
}

/// The disk of this machine.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {}

/// Bytes that are copied at a time where the kernel cannot.
const COPY_BUFFER: usize = 1 << 20;

fn copy(from: &File, to: &File, range: ByteRange) -> io::Result<()> {
    let mut start = range.start;
    while start < range.end {
        let (mut read, mut write) = (start, start);
        let len = usize::try_from(range.end - start).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), len) {
            Ok(copied) if copied > 0 => start += copied as u64,
            _ => {
                let mut buf = vec![0; len.min(COPY_BUFFER)];
                from.read_exact_at(&mut buf, start)?;
                to.write_all_at(&buf, start)?;
                start += buf.len() as u64;
            }
        }
    }
    Ok(())
}

/// The disk of this machine with no room for content while a switch is on. The index goes on.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct FillingDisk(pub(super) Arc<std::sync::atomic::AtomicBool>);

#[cfg(test)]
impl Disk for FillingDisk {
    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(file);
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}"))?;
        let content = path.components().any(|part| part.as_os_str() == "objects");
        if content && self.0.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write_all_at(data, offset)
    }
}

/// The file of the index, its changes going through [`Disk`], with the reserve behind it when the disk is full.
/// It takes no lock: the data folder has one.
#[derive(Debug)]
pub(super) struct IndexFile {
    file: File,
    disk: Arc<dyn Disk>,
    reserve: Arc<Reserve>,
}

impl IndexFile {
    pub(super) fn open(
        path: &Path,
        disk: Arc<dyn Disk>,
        reserve: Arc<Reserve>,
    ) -> io::Result<Self> {
        Ok(Self { file: disk.open_or_create(path)?, disk, reserve })
    }
}

impl redb::StorageBackend for IndexFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.reserve.with_room(|| self.disk.set_len(&self.file, len))
    }

    fn sync_data(&self) -> io::Result<()> {
        // Not tried twice: after a failed sync nobody knows what is on the disk.
        self.disk.sync_data(&self.file)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.reserve.with_room(|| self.disk.write_at(&self.file, data, offset))
    }
}
