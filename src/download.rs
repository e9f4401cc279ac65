//! The multi-source scheduler: one engine per open content over [`crate::sources::Source`].

use std::{sync::Arc, time::Duration};

use crate::{
    content::{ByteRange, ContentId, DagError},
    store::StoreError,
};

mod actor;
mod chunk;
mod engine;
mod event;
mod file;
mod handle;
mod node;
mod order;
mod reputation;
mod retry;
mod scheduler;
mod stats;
mod tree;
mod window;

pub use engine::Engine;
pub use event::{Event, Transfer};
pub use handle::{FileHandle, ReaderId};

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
    /// Time that one block may take at one source while another could be asked for it.
    pub chunk_attempt_timeout: Duration,
    /// Longest time for one block over all sources.
    pub chunk_timeout: Duration,
    /// Longest time without progress before a lookup or a read gives up. All who ask for one block share it; once it has
    /// passed, further calls for that block fail at once for a while.
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
            chunk_attempt_timeout: Duration::from_secs(60),
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

#[cfg(test)]
mod tests;
