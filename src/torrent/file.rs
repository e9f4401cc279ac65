//! What a reader of a torrent's file holds.

use std::{fs::File, sync::Arc};

use bytes::Bytes;

use super::{TorrentError, active::Active};
use crate::content::{ByteRange, InfoHash};

/// How much of a file is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    /// Bytes that are here and verified.
    pub bytes: u64,
    /// Bytes of disk that it takes.
    pub allocated: u64,
    /// Whether all of it is here.
    pub complete: bool,
}

/// One file of a torrent, whole or being fetched. Nobody is asked before bytes are read that are not here.
#[derive(Clone, Debug)]
pub struct TorrentFile {
    active: Arc<Active>,
    file: u32,
}

impl TorrentFile {
    pub(super) fn new(active: Arc<Active>, file: u32) -> Self {
        Self { active, file }
    }

    /// The torrent that it is in.
    pub fn hash(&self) -> InfoHash {
        self.active.metainfo().hash
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.active.entry(self.file).map_or(0, |entry| entry.range.len())
    }

    /// The bytes if all are here; never waits for the network. The window of `reader` goes on with it.
    pub fn read_now(&self, reader: u64, range: ByteRange) -> Option<Result<Bytes, TorrentError>> {
        match self.cut(range) {
            range if range.is_empty() => Some(Ok(Bytes::new())),
            range => self.active.read_now(reader, self.file, range),
        }
    }

    /// The bytes, fetched where they are missing; cut at the end of the file.
    ///
    /// # Errors
    /// [`TorrentError::Stalled`] when they came no nearer for [`super::TorrentOptions::lookup_timeout`]. Dropping the
    /// future leaves nothing behind.
    pub async fn read(&self, reader: u64, range: ByteRange) -> Result<Bytes, TorrentError> {
        match self.cut(range) {
            range if range.is_empty() => Ok(Bytes::new()),
            range => self.active.read(reader, self.file, range).await,
        }
    }

    /// Forgets the window of a reader that closed its handle.
    pub fn close_reader(&self, reader: u64) {
        self.active.torrents().known().touch(self.hash());
        self.active.close_reader(reader);
    }

    /// How much of it is here. May look at the disk.
    pub fn cached(&self) -> Cached {
        let Ok(entry) = self.active.entry(self.file) else { return Cached::default() };
        let bytes = self.active.pieces().bytes_here(entry.range);
        Cached {
            bytes,
            allocated: self.active.files().allocated(self.file),
            complete: bytes == entry.range.len(),
        }
    }

    /// The file itself when all of it is here: it is not written any more.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn backing(&self) -> Result<Option<Arc<File>>, TorrentError> {
        let entry = self.active.entry(self.file)?;
        if entry.range.is_empty() || !self.active.pieces().has(entry.range) {
            return Ok(None);
        }
        // Its reads go past here.
        self.active.torrents().known().touch(self.hash());
        let opened = self.active.files().open_read_only(self.file);
        opened.map_err(|e| TorrentError::disk("open", e))
    }

    fn cut(&self, range: ByteRange) -> ByteRange {
        range.intersect(ByteRange::new(0, self.size()))
    }
}
