//! How much a stranger may ask.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use libp2p::PeerId;
use lru::LruCache;
use tokio::time::Instant;

/// Peers that are counted: more than can be connected.
const PEERS: NonZeroUsize = NonZeroUsize::new(2048).unwrap();
/// Units that a peer may use at once: a torrent of 10,000 files takes 40 questions, and a description of 2 MiB 32 units.
pub(super) const BURST: u32 = 96;
/// Time after which a unit comes back.
const UNIT: Duration = Duration::from_millis(250);
/// Bytes of a description that cost a unit.
const UNIT_BYTES: usize = 64 << 10;

/// What each peer has used of late.
#[derive(Debug)]
pub(super) struct Budget(Mutex<LruCache<PeerId, Used>>);

#[derive(Debug)]
struct Used {
    units: u32,
    /// Up to when units that came back are counted.
    counted: Instant,
}

impl Default for Budget {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(PEERS)))
    }
}

impl Budget {
    /// Takes one unit for a question; whether there was one.
    pub(super) fn question(&self, peer: PeerId) -> bool {
        self.take(peer, 1)
    }

    /// Takes what a description of this length costs; whether there was as much.
    pub(super) fn description(&self, peer: PeerId, len: usize) -> bool {
        self.take(peer, u32::try_from(len.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX))
    }

    fn take(&self, peer: PeerId, units: u32) -> bool {
        let now = Instant::now();
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = peers.get_or_insert_mut(peer, || Used { units: 0, counted: now });
        let back = now.duration_since(used.counted).as_millis() / UNIT.as_millis();
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        used.units = used.units.saturating_sub(back);
        used.counted = if used.units == 0 { now } else { used.counted + UNIT * back };
        let fits = used.units.saturating_add(units) <= BURST;
        if fits {
            used.units += units;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_asks_so_much_at_once_and_then_as_it_comes_back() {
        let (budget, peer) = (Budget::default(), PeerId::random());
        assert!((0..BURST).all(|_| budget.question(peer)));
        assert!(!budget.question(peer) && budget.question(PeerId::random()));
        tokio::time::advance(UNIT * 3).await;
        assert!((0..3).all(|_| budget.question(peer)));
        assert!(!budget.question(peer));
        // A description takes as much as it is long.
        tokio::time::advance(UNIT * BURST).await;
        assert!(budget.description(peer, UNIT_BYTES * BURST as usize));
        assert!(!budget.description(peer, 1));
        tokio::time::advance(UNIT * 1000).await;
        assert!(!budget.description(peer, UNIT_BYTES * BURST as usize + 1));
        assert!(budget.description(peer, UNIT_BYTES * BURST as usize));
    }
}
