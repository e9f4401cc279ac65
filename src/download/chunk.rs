//! One chunk from one named peer into a file of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use super::{DownloadError, Engine, Event, retry::backoff};
use crate::{
    content::{Block, ByteRange, ContentId},
    sources::{Found, Permanent, Reply, Source, SourceError, SourceId, Transient, Want},
    store::StoreError,
};

/// Which chunk, for the events.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    peer: &'a SourceId,
    cid: ContentId,
    file_hash: ContentId,
    index: u64,
}

impl Engine {
    /// Fetches one chunk of a file from `peer` into the file `output_path`, which is made or replaced. Others who have
    /// it are asked when `peer` is not found or fails [`super::DownloadOptions::max_chunk_retries`] times.
    ///
    /// # Errors
    /// [`DownloadError::NotFound`] when no source gave it, [`DownloadError::Store`] when the output cannot be written.
    pub async fn start_chunk_download(
        &self,
        peer: &SourceId,
        cid: &ContentId,
        file_hash: &ContentId,
        chunk_index: u64,
        output_path: &Path,
    ) -> Result<(), DownloadError> {
        let chunk = Chunk { peer, cid: *cid, file_hash: *file_hash, index: chunk_index };
        self.emit(Event::DownloadChunkStarted {
            file_hash: *file_hash,
            chunk_index,
            cid: *cid,
            peer: peer.clone(),
        });
        let result = match self.ask_peer(chunk).await {
            Ok(block) => Ok(block),
            Err(error) => {
                tracing::debug!("{cid} from {peer}: {error}");
                self.node(file_hash, cid).await
            }
        };
        let result = match result {
            Ok(block) => self.write_chunk(chunk, block, output_path.to_owned()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            self.emit(Event::DownloadChunkFailed {
                file_hash: *file_hash,
                chunk_index,
                cid: *cid,
                error: error.to_string(),
            });
        }
        result
    }

    async fn ask_peer(&self, chunk: Chunk<'_>) -> Result<Block, SourceError> {
        let source = self.source(chunk).await.ok_or(Transient::Timeout)?;
        let of = self.options().max_chunk_retries.max(1);
        let mut attempt = 1;
        loop {
            match self.ask_once(&*source, chunk).await {
                Ok(block) => return Ok(block),
                Err(SourceError::Permanent(Permanent::BadHash)) => {
                    source.ban(self.options().peer_blacklist);
                    return Err(Permanent::BadHash.into());
                }
                Err(SourceError::Permanent(error)) => return Err(error.into()),
                Err(error) if attempt >= of => return Err(error),
                Err(error) => {
                    let delay = match error {
                        SourceError::Transient(Transient::RateLimited(wait)) => wait,
                        _ => backoff(self.options(), attempt),
                    };
                    self.emit(Event::ChunkRetry { chunk: chunk.cid, attempt, of, delay });
                    tokio::time::sleep(delay).await;
                    attempt += 1;
                }
            }
        }
    }

    /// The peer as a source, if the search for the file comes across it in time.
    async fn source(&self, chunk: Chunk<'_>) -> Option<Arc<dyn Source>> {
        let mut found = self.find(&chunk.file_hash);
        let limit = Instant::now() + self.options().request_timeout;
        loop {
            match tokio::time::timeout_at(limit, found.recv()).await.ok()?? {
                Found::Source(source) if source.id() == chunk.peer => return Some(source),
                Found::Searched => return None,
                Found::Source(_) | Found::Gone(_) => {}
            }
        }
    }

    async fn ask_once(&self, source: &dyn Source, chunk: Chunk<'_>) -> Result<Block, SourceError> {
        let (replies, mut reply) = mpsc::unbounded_channel();
        let range = ByteRange::default();
        let (root, file) = (chunk.file_hash, chunk.file_hash);
        let want = Want { id: chunk.cid, root, file, range };
        source.request(&[want], &replies);
        let limit: Duration = self.options().request_timeout;
        match tokio::time::timeout(limit, reply.recv()).await {
            Ok(Some(Reply { result, .. })) => result,
            Ok(None) => Err(Transient::Reset.into()),
            Err(_) => {
                source.cancel(&[chunk.cid]);
                Err(Transient::Timeout.into())
            }
        }
    }

    async fn write_chunk(
        &self,
        chunk: Chunk<'_>,
        block: Block,
        path: PathBuf,
    ) -> Result<(), DownloadError> {
        let len = block.data().len() as u64;
        self.emit(Event::DownloadChunkProgress {
            file_hash: chunk.file_hash,
            chunk_index: chunk.index,
            cid: chunk.cid,
            bytes_received: len,
            total_bytes: len,
        });
        let to = path.clone();
        let write = self.tasks().blocking("write-chunk", move || std::fs::write(&to, block.data()));
        let written = write.await.map_err(|_| DownloadError::Closed)?;
        written.map_err(|source| {
            Arc::new(StoreError::Io { what: "write", path: path.clone(), source })
        })?;
        let (file_hash, chunk_index) = (chunk.file_hash, chunk.index);
        self.emit(Event::DownloadChunkComplete { file_hash, chunk_index, path });
        Ok(())
    }
}
