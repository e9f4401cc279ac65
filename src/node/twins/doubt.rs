//! What others said of the contents of files, and turned out to be of no use.
//!
//! A wrong word costs no wrong byte: a piece that is made of another content fails its hash. But it stands in the way of
//! the right one, so it is forgotten, and not believed a second time.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{MutexGuard, PoisonError},
};

use lru::LruCache;

use super::{Place, Statement, Twins};
use crate::{content::ContentId, net::PeerId};

/// Sayings and peers that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Doubt at which a saying is forgotten: two wrong pieces, since a session may hang up amid a right one, or three reads
/// that nobody answers. What it says of the length is wrong or not.
const ENOUGH: u32 = 3;

/// What speaks against a saying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// A piece with bytes of it was wrong.
    Wrong,
    /// Nobody gave it.
    Failed,
    /// Its content has another length than the file.
    Length,
}

impl Doubt {
    fn weight(self) -> u32 {
        match self {
            Self::Failed => 1,
            Self::Wrong => 2,
            Self::Length => ENOUGH,
        }
    }
}

/// The doubts of this start of the daemon.
#[derive(Debug)]
pub(super) struct Doubts {
    doubted: HashMap<Place, u32>,
    /// What was forgotten once because nobody gave it: they may only have been away.
    forgotten: LruCache<(Place, ContentId), ()>,
    refused: LruCache<(Place, ContentId), ()>,
    liars: LruCache<PeerId, ()>,
}

impl Default for Doubts {
    fn default() -> Self {
        Self {
            doubted: HashMap::new(),
            forgotten: LruCache::new(REMEMBERED),
            refused: LruCache::new(REMEMBERED),
            liars: LruCache::new(REMEMBERED),
        }
    }
}

impl Doubts {
    /// Whether a peer is not believed that a file of a torrent has this content.
    pub(super) fn refuses(&self, peer: &PeerId, place: Place, id: &ContentId) -> bool {
        self.liars.contains(peer) || self.refused.contains(&(place, id.to_v1()))
    }
}

impl Twins {
    /// Something speaks against what is known of a file. What was found here is not doubted.
    pub(super) fn doubt(&self, place: Place, doubt: Doubt) {
        let Some(twin) = self.get(place).filter(|twin| !twin.own) else { return };
        {
            let mut doubts = self.doubts();
            let doubted = doubts.doubted.entry(place).or_default();
            *doubted += doubt.weight();
            if *doubted < ENOUGH {
                return;
            }
            doubts.doubted.remove(&place);
            let saying = (place, twin.id.to_v1());
            if doubt != Doubt::Failed || doubts.forgotten.put(saying, ()).is_some() {
                doubts.refused.put(saying, ());
            }
            let signer = Statement::open(&twin.signed).map(|(peer, _)| peer);
            if let Some(peer) = signer.filter(|_| doubt != Doubt::Failed) {
                doubts.liars.put(peer, ());
            }
        }
        tracing::info!(hash = %place.0, file = place.1, id = %twin.id, ?doubt, "what was said of a file is forgotten");
        if let Err(error) = self.remove(place) {
            tracing::warn!(%error, "what was said of a file is kept on disk");
        }
    }

    pub(super) fn doubts(&self) -> MutexGuard<'_, Doubts> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
