//! What was given to and taken from each peer, also while it is away.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use libp2p::PeerId;
use lru::LruCache;

use crate::net::Dealings;

/// Peers whose ledgers are remembered; the least recently connected is forgotten first.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Block bytes exchanged with one peer.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Ledger {
    /// Counts block bytes that came and had been asked for.
    pub(super) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts block bytes that were handed to the connection.
    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }

    /// Bytes received and sent.
    pub(super) fn get(&self) -> (u64, u64) {
        (self.received.load(Relaxed), self.sent.load(Relaxed))
    }
}

/// The ledgers of all peers.
#[derive(Debug)]
pub(super) struct Ledgers(Mutex<LruCache<PeerId, Arc<Ledger>>>);

impl Ledgers {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED)))
    }

    /// The ledger of a peer that connects, made when it is new.
    pub(super) fn open(&self, peer: PeerId) -> Arc<Ledger> {
        let mut ledgers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ledgers.get_or_insert(peer, Arc::default).clone()
    }

    /// The figures of all of them.
    pub(super) fn all(&self) -> Vec<(PeerId, Dealings)> {
        let ledgers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let figures = ledgers.iter().map(|(peer, ledger)| {
            let (received, sent) = ledger.get();
            (*peer, Dealings { received, sent })
        });
        figures.collect()
    }

    /// The figures of a peer, zero for an unknown one.
    pub(super) fn get(&self, peer: &PeerId) -> (u64, u64) {
        let ledgers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ledgers.peek(peer).map_or((0, 0), |ledger| ledger.get())
    }
}
