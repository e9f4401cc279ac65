//! The multi-source scheduler: one engine per open content over [`crate::sources::Source`].

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::{
    content::{Block, ByteRange, ContentId, DagError, DirectoryReader, Metadata},
    sources::{Finder, SourceId},
    store::{Object, Store, StoreError},
    tasks::Tasks,
};

/// Every number of the engine, with the defaults that the configuration file documents.
#[derive(Clone, Debug)]
pub struct DownloadOptions {
    /// Downloads at once; others queue, reads of open files go first.
    pub max_concurrent_downloads: usize,
    /// Blocks asked of a source before its rate is known.
    pub chunks_per_peer: usize,
    /// Tries per source and block.
    pub max_chunk_retries: u32,
    /// Wait before the first retry.
    pub initial_backoff: Duration,
    /// Factor between waits.
    pub backoff_multiplier: f64,
    /// Longest wait between tries.
    pub max_backoff: Duration,
    /// Failures in a row after which a source is left alone for a while.
    pub peer_failure_threshold: u32,
    /// For how long.
    pub peer_blacklist: Duration,
    /// Longest wait for one answer.
    pub request_timeout: Duration,
    /// Longest time for one block over all sources.
    pub chunk_timeout: Duration,
    /// Longest time without progress before a lookup or a read gives up.
    pub lookup_timeout: Duration,
}

impl Default for DownloadOptions {
    fn default() -> Self {
        Self {
            max_concurrent_downloads: 10,
            chunks_per_peer: 4,
            max_chunk_retries: 3,
            initial_backoff: Duration::from_millis(250),
            backoff_multiplier: 2.0,
            max_backoff: Duration::from_secs(8),
            peer_failure_threshold: 3,
            peer_blacklist: Duration::from_secs(300),
            request_timeout: Duration::from_secs(30),
            chunk_timeout: Duration::from_secs(300),
            lookup_timeout: Duration::from_secs(30),
        }
    }
}

/// In which order the blocks of a background download are fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// What readers wait for first, then in order.
    #[default]
    Streaming,
    /// Blocks that the fewest sources have first.
    RarestFirst,
    /// In order.
    Sequential,
    /// In random order.
    Random,
}

/// Why a read or a download ended without its bytes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DownloadError {
    /// Nobody who has it was found in time. The search goes on in the background.
    #[error("nobody who has {0} was found in time")]
    NotFound(ContentId),
    /// Sources were found but gave nothing in time.
    #[error("{id}: no source gave bytes {range} in time")]
    Stalled {
        /// The content.
        id: ContentId,
        /// Which bytes were waited for.
        range: ByteRange,
    },
    /// The content is not what UnixFS allows.
    #[error(transparent)]
    Dag(#[from] DagError),
    /// The store could not keep the bytes.
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    Closed,
}

/// What happens, for tests, the command line, `.chiral/events` and the dashboard.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the field names are the documented wire format")]
pub enum Event {
    DownloadChunkStarted {
        file_hash: ContentId,
        chunk_index: u64,
        cid: ContentId,
        peer: SourceId,
    },
    DownloadChunkProgress {
        file_hash: ContentId,
        chunk_index: u64,
        cid: ContentId,
        bytes_received: u64,
        total_bytes: u64,
    },
    DownloadChunkComplete {
        file_hash: ContentId,
        chunk_index: u64,
        path: PathBuf,
    },
    DownloadChunkFailed {
        file_hash: ContentId,
        chunk_index: u64,
        cid: ContentId,
        error: String,
    },
    ChunkRetry {
        chunk: ContentId,
        attempt: u32,
        of: u32,
        delay: Duration,
    },
    PeerSwitched {
        file_hash: ContentId,
        from: SourceId,
        to: SourceId,
    },
    SourceCooledDown {
        source: SourceId,
        for_time: Duration,
    },
    Published {
        cid: ContentId,
        name: String,
        size: u64,
    },
    Announced {
        cid: ContentId,
    },
}

/// How far a download is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Transfer {
    /// The content.
    pub cid: ContentId,
    /// Bytes here.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes per second of the last seconds.
    pub rate: u64,
    /// Sources that are in use.
    pub sources: usize,
    /// Seconds to the end at that rate.
    pub eta: Option<u64>,
    /// Tries that failed so far.
    pub retries: u64,
}

/// All downloads; clones share them.
#[derive(Clone, Debug)]
pub struct Engine {
    _private: (),
}

/// One file, whole or being fetched; all readers of a content share one download. Dropping the last handle
/// ends the fetching.
#[derive(Clone, Debug)]
pub struct FileHandle {
    _private: (),
}

/// Names one reader of a file, so that each has a window of its own (a file handle of the mount).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReaderId(pub u64);

impl Engine {
    /// An engine without downloads.
    pub fn new(
        _options: DownloadOptions,
        _store: Store,
        _finder: Arc<dyn Finder>,
        _tasks: &Tasks,
    ) -> Self {
        todo!()
    }
    /// One DAG node: from the store, else from the sources of `root` (the content that it was reached through). Kept.
    pub async fn node(&self, _root: &ContentId, _id: &ContentId) -> Result<Block, DownloadError> {
        todo!()
    }
    /// A directory with all its shards, fetched side by side.
    pub async fn directory(
        &self,
        _root: &ContentId,
        _id: &ContentId,
    ) -> Result<DirectoryReader, DownloadError> {
        todo!()
    }
    /// Opens a file. Fetches its root node when that is not here. `root` as in [`Engine::node`].
    pub async fn file(
        &self,
        _root: &ContentId,
        _id: &ContentId,
    ) -> Result<FileHandle, DownloadError> {
        todo!()
    }
    /// Fetches a file or a whole tree in the background until it is here (`pin`, `get`).
    pub async fn fetch(&self, _id: &ContentId, _strategy: Strategy) -> Result<(), DownloadError> {
        todo!()
    }
    /// Everything that happens from now on; a receiver that lags loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        todo!()
    }
    /// Puts an event of another part on the same stream.
    pub fn emit(&self, _event: Event) {
        todo!()
    }
    /// Downloads that run.
    pub fn transfers(&self) -> Vec<Transfer> {
        todo!()
    }
}

impl FileHandle {
    /// The id that it was opened by.
    pub fn id(&self) -> &ContentId {
        todo!()
    }
    /// Bytes.
    pub fn size(&self) -> u64 {
        todo!()
    }
    /// Mode and mtime.
    pub fn metadata(&self) -> Metadata {
        todo!()
    }
    /// Its object in the store.
    pub fn object(&self) -> &Arc<Object> {
        todo!()
    }
    /// The bytes if all are here; never waits for the network.
    pub fn read_now(&self, _range: ByteRange) -> Option<Result<Bytes, DownloadError>> {
        todo!()
    }
    /// The bytes, fetched where they are missing. `range` is cut at the end of the file. Moves the window of `reader`.
    pub async fn read(&self, _reader: ReaderId, _range: ByteRange) -> Result<Bytes, DownloadError> {
        todo!()
    }
    /// Forgets the window of a reader that closed its handle.
    pub fn close_reader(&self, _reader: ReaderId) {
        todo!()
    }
}
