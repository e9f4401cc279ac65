//! What torrents need of the node: the bytes of published files, and somebody to tell.

use std::{
    fs::File,
    io,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use super::fellows::Changes;
use crate::{
    content::{ByteRange, ContentId},
    download::{Engine, Event},
    store::{Object, Store, Trouble},
    torrent::{Host, TorrentEvent, TorrentState, TorrentStatus},
};

/// Files that are held open between two reads; peers ask for 16 KiB at a time.
const OPEN: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// The store and the engine, as torrents see them.
#[derive(Debug)]
pub(super) struct TorrentHost {
    store: Store,
    engine: Engine,
    changes: Arc<Changes>,
    open: Mutex<LruCache<ContentId, Arc<Object>>>,
}

impl TorrentHost {
    pub(super) fn new(store: Store, engine: Engine, changes: Arc<Changes>) -> Self {
        Self { store, engine, changes, open: Mutex::new(LruCache::new(OPEN)) }
    }

    /// A file whose own root node is here; nobody is asked.
    fn object(&self, id: &ContentId) -> io::Result<Arc<Object>> {
        if let Some(object) = self.held().get(id) {
            return Ok(object.clone());
        }
        let opened = self.engine.file_now(id, id).ok_or(io::ErrorKind::NotFound)?;
        let object = opened.map_err(io::Error::other)?.object().clone();
        self.held().put(*id, object.clone());
        Ok(object)
    }

    fn held(&self) -> MutexGuard<'_, LruCache<ContentId, Arc<Object>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for TorrentHost {
    fn has(&self, id: &ContentId) -> bool {
        if id.inline_content().is_some() {
            return true;
        }
        match self.store.object(id) {
            Ok(Some(object)) => object.is_complete(),
            // A file of one block may have no object of its own.
            Ok(None) => self.object(id).is_ok_and(|object| object.is_complete()),
            Err(_) => false,
        }
    }

    fn read(&self, id: &ContentId, at: u64, to: &mut [u8]) -> io::Result<()> {
        let range = ByteRange::at(at, to.len() as u64);
        let bytes = self.object(id)?.read(range).map_err(io::Error::other)?;
        if bytes.len() != to.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.copy_from_slice(&bytes);
        Ok(())
    }

    fn backing(&self, id: &ContentId) -> io::Result<Option<Arc<File>>> {
        self.object(id)?.backing().map_err(io::Error::other)
    }

    /// The content counts where its own root is listed: it is published or pinned.
    fn allocated(&self, _: &ContentId) -> u64 {
        0
    }

    fn admit(&self, bytes: u64) -> io::Result<()> {
        Ok(self.store.admit(bytes)?)
    }

    fn is_full(&self) -> bool {
        self.store.trouble() == Some(Trouble::Full)
    }

    fn told(&self, event: TorrentEvent) {
        if matches!(event, TorrentEvent::Removed(_)) {
            // What nothing keeps any more may go.
            self.held().clear();
        }
        match &event {
            TorrentEvent::State(status) | TorrentEvent::Progress(status) => {
                if let Ok(hash) = status.infohash.parse() {
                    self.changes.note(hash);
                }
            }
            TorrentEvent::Removed(hash) => self.changes.note(*hash),
        }
        self.engine.emit(match event {
            TorrentEvent::State(TorrentStatus {
                infohash,
                name,
                state,
                error,
                bytes,
                total,
                ..
            }) => {
                Event::TorrentState { infohash, name, state: written(state), error, bytes, total }
            }
            TorrentEvent::Progress(status) => Event::TorrentProgress {
                infohash: status.infohash,
                bytes: status.bytes,
                total: status.total,
                sent: status.sent,
                download_rate: status.download_rate,
                upload_rate: status.upload_rate,
                peers: status.peers,
            },
            TorrentEvent::Removed(hash) => Event::TorrentRemoved { infohash: hash.to_string() },
        });
    }
}

/// A state as it is written everywhere.
fn written(state: TorrentState) -> &'static str {
    match state {
        TorrentState::Searching => "searching",
        TorrentState::Idle => "idle",
        TorrentState::Downloading => "downloading",
        TorrentState::Seeding => "seeding",
        TorrentState::Paused => "paused",
        TorrentState::Error => "error",
    }
}
