//! The other direction: files of a torrent whose content is known are read from whoever gives that.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, future::BoxFuture};

use super::{Twins, doubt::Doubt};
use crate::{
    content::{ByteRange, ContentId, RangeSet},
    download::{DownloadError, Engine},
    node::reading::next_reader,
    sources::{SwarmFile, SwarmFinder},
    torrent::{Feed, FeedError, Feeder, FileKind, Magnet, Metainfo},
};

/// Longest wait for bytes that the session waits for. Whoever else has the piece is asked then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Feeds torrents with what the download engine brings.
#[derive(Clone, Debug)]
pub(in crate::node) struct EngineFeeder {
    twins: Arc<Twins>,
    engine: Engine,
    swarms: SwarmFinder,
}

impl EngineFeeder {
    pub(in crate::node) fn new(twins: &Arc<Twins>, engine: &Engine, swarms: &SwarmFinder) -> Self {
        Self { twins: twins.clone(), engine: engine.clone(), swarms: swarms.clone() }
    }

    /// The content of a file of a torrent.
    fn twin(&self, torrent: &Metainfo, file: u32) -> Option<(ContentId, SwarmFile)> {
        let size = torrent.files.get(file as usize)?.range.len();
        let twin = self.twins.get((torrent.hash, file))?;
        // What somebody has said of another file is of no use.
        let file = SwarmFile { hash: torrent.hash, file, size };
        (twin.size == size).then_some((twin.id, file))
    }
}

impl Feeder for EngineFeeder {
    fn feeds(&self, torrent: &Arc<Metainfo>, _magnet: &Magnet) -> Vec<Arc<dyn Feed>> {
        let known = self.twins.known().by_place.keys().any(|(hash, _)| *hash == torrent.hash);
        let (feeder, torrent) = (self.clone(), torrent.clone());
        let feed = || EngineFeed { feeder, torrent, useless: Mutex::default() };
        known.then(|| Arc::new(feed()) as Arc<dyn Feed>).into_iter().collect()
    }
}

/// All files of one torrent whose content is known: as one, since a piece may have bytes of several.
#[derive(Debug)]
struct EngineFeed {
    feeder: EngineFeeder,
    torrent: Arc<Metainfo>,
    /// Files whose content turned out to be another.
    useless: Mutex<HashSet<u32>>,
}

impl EngineFeed {
    fn useless(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.useless.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_file(
        &self,
        number: u32,
        at: ByteRange,
        bytes: ByteRange,
    ) -> Result<Bytes, FeedError> {
        let EngineFeeder { engine, swarms, .. } = &self.feeder;
        let lacks = || {
            self.useless().insert(number);
            FeedError::Lacks(at)
        };
        let (id, place) = self.feeder.twin(&self.torrent, number).ok_or_else(lacks)?;
        let _passage = swarms.read_by_engine(&place).ok_or_else(|| {
            FeedError::Failed("the torrent is read for the content at the moment".to_owned())
        })?;
        let reading = async {
            let file = engine.file(&id, &id).await?;
            if file.size() != place.size {
                return Ok(None);
            }
            // A reader of its own for each read: nothing is fetched ahead that the session may get elsewhere.
            let reader = next_reader();
            let range = ByteRange::at(bytes.start - at.start, bytes.len());
            let read = file.read(reader, range).await;
            file.close_reader(reader);
            read.map(Some)
        };
        let doubt = |doubt| self.feeder.twins.doubt((self.torrent.hash, number), doubt);
        match tokio::time::timeout(PATIENCE, reading).await {
            Ok(Ok(Some(read))) => Ok(read),
            Ok(Ok(None)) => {
                doubt(Doubt::Length);
                Err(lacks())
            }
            Ok(Err(error)) => {
                // A disk that is full, or the end of the daemon, says nothing of the content.
                if matches!(error, DownloadError::NotFound(_) | DownloadError::Stalled { .. }) {
                    doubt(Doubt::Failed);
                }
                Err(FeedError::Failed(error.to_string()))
            }
            Err(_) => {
                doubt(Doubt::Failed);
                Err(FeedError::Failed("nobody gave it in time".to_owned()))
            }
        }
    }
}

impl Feed for EngineFeed {
    fn name(&self) -> &'static str {
        "ipfs"
    }

    /// Nothing of a file whose content is fetched from the torrent.
    fn has(&self) -> RangeSet {
        let mut has = RangeSet::new();
        for (number, file, at) in self.torrent.parts(ByteRange::new(0, self.torrent.len)) {
            let known = || {
                let (_, place) = self.feeder.twin(&self.torrent, number)?;
                let useful = !self.useless().contains(&number);
                (useful && self.feeder.swarms.is_free_for_engine(&place)).then_some(())
            };
            if file.kind == FileKind::Padding || known().is_some() {
                has.insert(at);
            }
        }
        has
    }

    /// Of the files in it, one whose content somebody else has told may be another.
    fn wrong(&self, piece: ByteRange) {
        for (number, ..) in self.torrent.parts(piece) {
            self.feeder.twins.doubt((self.torrent.hash, number), Doubt::Wrong);
        }
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes, FeedError>> {
        async move {
            let mut whole = BytesMut::new();
            for (number, file, bytes) in self.torrent.parts(range) {
                if file.kind == FileKind::Padding {
                    let end = whole.len() as u64 + bytes.len();
                    whole.resize(usize::try_from(end).unwrap_or(usize::MAX), 0);
                } else {
                    whole.extend_from_slice(&self.read_file(number, file.range, bytes).await?);
                }
            }
            Ok(whole.freeze())
        }
        .boxed()
    }
}
