//! Where the bytes of a torrent are: one file for each of its files, named by its number.
//!
//! librqbit's own storage would make names of what a stranger wrote into the torrent, opens all files of a torrent at
//! once, and tells nobody what arrives.

use std::{
    any::TypeId,
    fs::{self, File, OpenOptions},
    io,
    num::NonZeroUsize,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use librqbit::{
    ManagedTorrentShared, TorrentMetadata,
    storage::{
        BoxStorageFactory, StorageFactory, TorrentStorage, filesystem::FilesystemStorageFactory,
    },
};
use librqbit_core::lengths::ValidPieceIndex;
use lru::LruCache;

use super::{
    Metainfo, TorrentError,
    ease::Waited,
    pieces::Pieces,
    published::{Host, Published},
};

/// Files of one torrent that are held open.
const OPEN: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// The files of one torrent.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    metainfo: Arc<Metainfo>,
    pieces: Arc<Pieces>,
    open: Mutex<LruCache<u32, Arc<File>>>,
    /// Where the bytes are instead, of a torrent that was made from what is published.
    published: Option<Published>,
    waited: Arc<Waited>,
    host: Arc<dyn Host>,
}

impl Files {
    pub(super) fn new(
        folder: PathBuf,
        metainfo: Arc<Metainfo>,
        pieces: Arc<Pieces>,
        published: Option<Published>,
        waited: Arc<Waited>,
        host: Arc<dyn Host>,
    ) -> Arc<Self> {
        let open = Mutex::new(LruCache::new(OPEN));
        Arc::new(Self { folder, metainfo, pieces, open, published, waited, host })
    }

    /// What it was made from.
    pub(super) fn published(&self) -> Option<&Published> {
        self.published.as_ref()
    }

    /// What makes librqbit use them.
    pub(super) fn factory(self: &Arc<Self>) -> BoxStorageFactory {
        Box::new(Factory(self.clone()))
    }

    fn path(&self, file: u32) -> PathBuf {
        self.folder.join(file.to_string())
    }

    /// A file that is there; `make`: or a new one.
    fn file(&self, file: u32, make: bool) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = open.get(&file) {
            return Ok(known.clone());
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(make).truncate(false).mode(0o600);
        let opened = Arc::new(options.open(self.path(file))?);
        open.put(file, opened.clone());
        Ok(opened)
    }

    /// Reads bytes that are here.
    pub(super) fn read(&self, file: u32, at: u64, to: &mut [u8]) -> io::Result<()> {
        match &self.published {
            Some(published) => published.host.read(published.id(file)?, at, to),
            None => self.file(file, false)?.read_exact_at(to, at),
        }
    }

    fn write(&self, file: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.published.is_some() {
            // A piece of it was found wrong and somebody gave another one.
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.host.admit(bytes.len() as u64)?;
        self.file(file, true)?.write_all_at(bytes, at)
    }

    /// A handle of its own on a file, which cannot be written through.
    pub(super) fn open_read_only(&self, file: u32) -> io::Result<Option<Arc<File>>> {
        match &self.published {
            Some(published) => published.host.backing(published.id(file)?),
            None => File::open(self.path(file)).map(|file| Some(Arc::new(file))),
        }
    }

    /// Bytes of disk that a file takes.
    pub(super) fn allocated(&self, file: u32) -> u64 {
        match &self.published {
            Some(published) => published.id(file).map_or(0, |id| published.host.allocated(id)),
            None => fs::metadata(self.path(file)).map_or(0, |found| found.blocks() * 512),
        }
    }

    fn number(file: usize) -> anyhow::Result<u32> {
        Ok(u32::try_from(file)?)
    }
}

#[derive(Debug)]
struct Factory(Arc<Files>);

impl StorageFactory for Factory {
    type Storage = Box<dyn TorrentStorage>;

    fn create(
        &self,
        _shared: &ManagedTorrentShared,
        _metadata: &TorrentMetadata,
    ) -> anyhow::Result<Self::Storage> {
        Ok(Box::new(Storage(self.0.clone())))
    }

    /// What asks for the type of storage wants to know whether the bytes are there after a restart, in ordinary files.
    fn is_type_id(&self, asked: TypeId) -> bool {
        asked == TypeId::of::<FilesystemStorageFactory>() || asked == TypeId::of::<Self>()
    }

    fn clone_box(&self) -> BoxStorageFactory {
        self.0.factory()
    }
}

#[derive(Debug)]
struct Storage(Arc<Files>);

impl TorrentStorage for Storage {
    /// Files are made when their first byte is written.
    fn init(
        &mut self,
        _shared: &ManagedTorrentShared,
        _metadata: &TorrentMetadata,
    ) -> anyhow::Result<()> {
        Ok(fs::create_dir_all(&self.0.folder)?)
    }

    fn pread_exact(&self, file_id: usize, offset: u64, buf: &mut [u8]) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.0.read(Files::number(file_id)?, offset, buf)?;
        self.0.waited.note(begun.elapsed());
        Ok(())
    }

    fn pwrite_all(&self, file_id: usize, offset: u64, buf: &[u8]) -> anyhow::Result<()> {
        let (files, number) = (&self.0, Files::number(file_id)?);
        if buf.is_empty() {
            return Ok(());
        }
        if let Err(error) = files.write(number, offset, buf) {
            // librqbit keeps only the text of an error, and gives the torrent up.
            let error = TorrentError::disk("write", error);
            files.pieces.failed(error.clone());
            return Err(error.into());
        }
        if let Some(file) = files.metainfo.files.get(file_id) {
            files.pieces.arrived(file.range.start + offset, buf.len() as u64);
        }
        Ok(())
    }

    fn remove_file(&self, file_id: usize, _filename: &Path) -> anyhow::Result<()> {
        match &self.0.published {
            Some(_) => Ok(()),
            None => Ok(fs::remove_file(self.0.path(Files::number(file_id)?))?),
        }
    }

    /// There are no directories besides the one of the torrent, which has its description, too.
    fn remove_directory_if_empty(&self, _path: &Path) -> anyhow::Result<()> {
        Ok(())
    }

    fn ensure_file_length(&self, file_id: usize, length: u64) -> anyhow::Result<()> {
        match &self.0.published {
            Some(_) => Ok(()),
            None => Ok(self.0.file(Files::number(file_id)?, true)?.set_len(length)?),
        }
    }

    fn take(&self) -> anyhow::Result<Box<dyn TorrentStorage>> {
        Ok(Box::new(Self(self.0.clone())))
    }

    fn on_piece_completed(&self, piece: ValidPieceIndex) -> anyhow::Result<()> {
        self.0.pieces.completed(piece.get());
        Ok(())
    }
}
