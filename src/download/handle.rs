//! What a reader of a file holds.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    DownloadError,
    engine::{Command, Engine},
    file::{OpenFile, Patience},
};
use crate::{
    content::{ByteRange, ContentId, Metadata},
    store::{Object, StoreError},
};

/// Tries to read bytes that were present a moment ago and are gone: they were found wrong and withdrawn.
const READ_TRIES: usize = 3;

/// Names one reader of a file, so that each has a window of its own (a file handle of the mount).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReaderId(pub u64);

/// One file, whole or being fetched; all readers of a content share one download. Dropping the last handle
/// ends the fetching, a few seconds later: a player that opens the file again goes on.
#[derive(Clone, Debug)]
pub struct FileHandle {
    opened: Arc<Opened>,
}

/// Counts an opened file as long as any clone of its handle lives.
#[derive(Debug)]
struct Opened {
    engine: Engine,
    file: Arc<OpenFile>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.file.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.engine.tell_existing(&self.file.root, Command::Idle(self.file.id));
        }
    }
}

impl FileHandle {
    pub(super) fn new(engine: Engine, file: Arc<OpenFile>) -> Self {
        file.handles.fetch_add(1, Ordering::AcqRel);
        Self { opened: Arc::new(Opened { engine, file }) }
    }

    pub(super) fn file(&self) -> &Arc<OpenFile> {
        &self.opened.file
    }

    /// The id that it was opened by.
    pub fn id(&self) -> &ContentId {
        &self.opened.file.id
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.opened.file.size()
    }

    /// Mode and mtime.
    pub fn metadata(&self) -> Metadata {
        self.opened.file.layout().metadata()
    }

    /// Its object in the store.
    pub fn object(&self) -> &Arc<Object> {
        &self.opened.file.object
    }

    /// The bytes if all are here; never waits for the network. Moves the window of `reader` then: a reader that finds
    /// what was fetched ahead of it is the one whose window has to go on.
    pub fn read_now(
        &self,
        reader: ReaderId,
        range: ByteRange,
    ) -> Option<Result<Bytes, DownloadError>> {
        let range = range.intersect((0..self.size()).into());
        if !self.object().has(range) {
            return None;
        }
        self.move_window(reader, range);
        Some(self.object().read(range).map_err(|e| Arc::new(e).into()))
    }

    fn move_window(&self, reader: ReaderId, range: ByteRange) {
        let Opened { engine, file } = &*self.opened;
        // Nothing to plan for where all is here.
        if !file.object.is_complete() && file.readers().windows.read(engine.now(), reader, range) {
            engine.nudge(file);
        }
    }

    /// The bytes, fetched where they are missing. `range` is cut at the end of the file. Moves the window of `reader`.
    ///
    /// # Errors
    /// [`DownloadError::NotFound`] or [`DownloadError::Stalled`] when the bytes came no nearer for
    /// [`super::DownloadOptions::lookup_timeout`]; a read a second later tries again, one before that fails at once.
    /// Dropping the future leaves nothing behind.
    pub async fn read(&self, reader: ReaderId, range: ByteRange) -> Result<Bytes, DownloadError> {
        let file = &self.opened.file;
        let range = range.intersect((0..self.size()).into());
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.move_window(reader, range);
        for _ in 0..READ_TRIES {
            if !file.object.has(range) {
                self.wait(range).await?;
            }
            match file.object.read(range) {
                Err(StoreError::Missing(_)) => {}
                result => return result.map_err(|e| Arc::new(e).into()),
            }
        }
        Err(DownloadError::Stalled { id: file.id, range })
    }

    async fn wait(&self, range: ByteRange) -> Result<(), DownloadError> {
        let Opened { engine, file } = &*self.opened;
        if let Some(error) = file.failed_lately(engine.now(), range) {
            // The search goes on all the same.
            engine.nudge(file);
            return Err(error);
        }
        let result = self.wait_for(range).await;
        if let Err(error @ (DownloadError::Stalled { .. } | DownloadError::NotFound(_))) = &result {
            file.failed(engine.now(), range, error);
        }
        result
    }

    async fn wait_for(&self, range: ByteRange) -> Result<(), DownloadError> {
        let Opened { engine, file } = &*self.opened;
        let (under_way, timeout) = (engine.under_way(&file.root), engine.options().lookup_timeout);
        let mut patience = Patience::new(&file.progress, engine.now(), under_way, timeout);
        let mut missing = file.missing(range);
        loop {
            let mut waiting = file.wait(range);
            // The bytes may have come between the first look and the queue.
            if file.object.has(range) {
                return Ok(());
            }
            engine.nudge(file);
            loop {
                let timer = engine.instant(patience.limit(&file.progress));
                tokio::select! {
                    answer = &mut waiting.answer => match answer {
                        Ok(result) => return result,
                        // The actor ended; a new one is started.
                        Err(_) => break,
                    },
                    () = tokio::time::sleep_until(timer) => {}
                }
                if std::mem::replace(&mut missing, file.missing(range)) > missing {
                    patience.came(&file.progress);
                }
                if engine.now() >= patience.limit(&file.progress) {
                    return Err(engine.nothing_came(&file.root, file.id, range));
                }
            }
            if engine.is_closed() {
                return Err(DownloadError::Closed);
            }
        }
    }

    /// Forgets the window of a reader that closed its handle.
    pub fn close_reader(&self, reader: ReaderId) {
        self.opened.file.readers().windows.close(reader);
    }
}

impl Engine {
    /// Time since the engine's start.
    pub(super) fn now(&self) -> Duration {
        self.instant_of_start().elapsed()
    }

    /// The instant of a time since the engine's start.
    pub(super) fn instant(&self, at: Duration) -> Instant {
        let start = self.instant_of_start();
        start.checked_add(at).unwrap_or(start + Duration::from_secs(86_400 * 365))
    }
}
