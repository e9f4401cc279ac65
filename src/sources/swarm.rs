//! A swarm as a source: blocks of a content that is known to be a file of a torrent, cut out of that file.
//!
//! The same bytes have two names then, and each of both networks can feed the other: the download of the content reads
//! the torrent's file here, and a feed of the torrent reads the content. So that the two do not wait for each other,
//! only one of both directions is open for a file at a time ([`SwarmFinder::read_by_engine`]).

mod source;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use self::source::SwarmSource;
use super::{Finder, Found};
use crate::{
    content::{ContentId, InfoHash},
    tasks::Tasks,
    torrent::Torrents,
};

/// After the last read in one direction the other one stays shut for so long: whoever goes through a file reads again.
const REST: Duration = Duration::from_secs(5);

/// A file of a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwarmFile {
    /// The torrent.
    pub hash: InfoHash,
    /// Which of its files.
    pub file: u32,
    /// Its bytes.
    pub size: u64,
}

/// Knows which contents are files of torrents.
pub trait SwarmPlaces: std::fmt::Debug + Send + Sync {
    /// The file of a torrent that has the same bytes as a content.
    fn place_of(&self, id: &ContentId) -> Option<SwarmFile>;
}

/// Finds the swarm of a content.
#[derive(Clone, Debug)]
pub struct SwarmFinder {
    places: Arc<dyn SwarmPlaces>,
    /// Set once they are open: they are opened after whatever fetches.
    torrents: Arc<Mutex<Option<Torrents>>>,
    uses: Arc<Uses>,
    tasks: Tasks,
}

impl SwarmFinder {
    /// A finder that finds nothing before [`SwarmFinder::open`].
    pub fn new(places: Arc<dyn SwarmPlaces>, tasks: &Tasks) -> Self {
        let (torrents, uses) = Default::default();
        Self { places, torrents, uses, tasks: tasks.clone() }
    }

    /// From now on files of these torrents are read, until everything ends: the torrents may hold what holds this.
    pub fn open(&self, torrents: &Torrents) {
        *self.torrents() = Some(torrents.clone());
        let (finder, cancelled) = (self.clone(), self.tasks.cancelled());
        self.tasks.spawn("swarms", async move {
            cancelled.await;
            let torrents = finder.torrents().take();
            drop(torrents);
        });
    }

    fn torrents(&self) -> MutexGuard<'_, Option<Torrents>> {
        self.torrents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the content of a file is read for its torrent, as long as the result lives; none while the torrent is
    /// read for the content.
    pub fn read_by_engine(&self, file: &SwarmFile) -> Option<EngineReads> {
        self.uses.enter(file, Direction::Engine).map(|passage| EngineReads { _passage: passage })
    }

    /// Whether [`SwarmFinder::read_by_engine`] would give something now.
    pub fn is_free_for_engine(&self, file: &SwarmFile) -> bool {
        self.uses.is_free(file, Direction::Engine)
    }
}

impl Finder for SwarmFinder {
    fn find(&self, root: &ContentId) -> mpsc::Receiver<Found> {
        // One that is dropped has asked everybody that it can.
        let (to, found) = mpsc::channel(1);
        let torrents = self.torrents().clone();
        let (Some(place), Some(torrents)) = (self.places.place_of(root), torrents) else {
            return found;
        };
        let source = SwarmSource::new(place, torrents, self.uses.clone(), &self.tasks);
        // There is room for one.
        let _ = to.try_send(Found::Source(Arc::new(source)));
        found
    }
}

/// Who reads a file for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// The torrent, for the content.
    Swarm,
    /// The content, for the torrent.
    Engine,
}

#[derive(Debug)]
struct Use {
    direction: Direction,
    reads: usize,
    /// When the last read ended.
    rested: Instant,
}

/// The files that are read in either direction.
#[derive(Debug, Default)]
struct Uses {
    files: Mutex<HashMap<(InfoHash, u32), Use>>,
}

impl Uses {
    fn enter(self: &Arc<Self>, file: &SwarmFile, direction: Direction) -> Option<Passage> {
        let mut files = self.files();
        files.retain(|_, used| used.reads > 0 || used.rested.elapsed() < REST);
        let key = (file.hash, file.file);
        let used = files.entry(key).or_insert(Use { direction, reads: 0, rested: Instant::now() });
        if used.direction != direction {
            return None;
        }
        used.reads += 1;
        Some(Passage { uses: self.clone(), key })
    }

    fn is_free(&self, file: &SwarmFile, direction: Direction) -> bool {
        self.files().get(&(file.hash, file.file)).is_none_or(|used| {
            used.direction == direction || (used.reads == 0 && used.rested.elapsed() >= REST)
        })
    }

    fn files(&self) -> MutexGuard<'_, HashMap<(InfoHash, u32), Use>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A read in one direction.
#[derive(Debug)]
struct Passage {
    uses: Arc<Uses>,
    key: (InfoHash, u32),
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(used) = self.uses.files().get_mut(&self.key) {
            used.reads -= 1;
            used.rested = Instant::now();
        }
    }
}

/// Keeps the other direction shut while the content of a file is read for its torrent.
#[derive(Debug)]
pub struct EngineReads {
    _passage: Passage,
}

#[cfg(test)]
mod tests;
