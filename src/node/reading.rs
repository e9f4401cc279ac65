//! Readers that go through a range of a file once.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::{
    content::ByteRange,
    download::{DownloadError, FileHandle, ReaderId},
};

/// Bytes per read: enough that the engine's window, not the asking, sets the rate.
const READ_LEN: u64 = 1 << 20;

/// Readers of this process are numbered from here; file handles of the mount are numbered from 1.
static NEXT_READER: AtomicU64 = AtomicU64::new(1 << 62);

/// A number that no other reader has.
pub(super) fn next_reader() -> ReaderId {
    ReaderId(NEXT_READER.fetch_add(1, Ordering::Relaxed))
}

/// A reader that goes through a range once; the engine forgets its window when it is dropped.
#[derive(Debug)]
pub struct Reading {
    handle: FileHandle,
    reader: ReaderId,
    left: ByteRange,
}

impl Reading {
    /// A reader at the beginning of a range, which ends within the file.
    pub fn new(handle: FileHandle, left: ByteRange) -> Self {
        Self { handle, reader: next_reader(), left }
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// As [`FileHandle::read`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, DownloadError> {
        let range = self.coming();
        if range.is_empty() {
            return Ok(None);
        }
        let bytes = match self.handle.read_now(self.reader, range) {
            Some(read) => read?,
            None => self.handle.read(self.reader, range).await?,
        };
        self.left = ByteRange::new(range.end, self.left.end);
        Ok(Some(bytes))
    }

    /// The same without the network: none also where the bytes are not here, which [`Reading::left`] tells.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next_now(&mut self) -> Result<Option<Bytes>, DownloadError> {
        let range = self.coming();
        if range.is_empty() {
            return Ok(None);
        }
        let Some(read) = self.handle.read_now(self.reader, range) else { return Ok(None) };
        self.left = ByteRange::new(range.end, self.left.end);
        read.map(Some)
    }

    /// What was not read yet.
    pub fn left(&self) -> ByteRange {
        self.left
    }

    fn coming(&self) -> ByteRange {
        self.left.intersect(ByteRange::at(self.left.start, READ_LEN))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.handle.close_reader(self.reader);
    }
}
