//! Other nodes of our kind that have a torrent: what they are told of it, and what they tell.
//!
//! librqbit has no place in its handshakes and no call for peers that are found elsewhere. So they are found by a record
//! in the DHT of the other network, and told to a session that runs as one peer tells another of a third (BEP 11).

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use super::{Metainfo, TorrentError, Torrents};
use crate::content::InfoHash;

/// Torrents whose fellows are remembered, and how many of each.
const TORRENTS: NonZeroUsize = NonZeroUsize::new(256).unwrap();
const MOST: usize = 32;

/// What went between this node and a peer of a swarm, since the torrent last went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerTraffic {
    /// The torrent.
    pub hash: InfoHash,
    /// The peer.
    pub peer: SocketAddr,
    /// Whether it is connected and has said what program it is.
    pub named: bool,
    /// Bytes sent to it.
    pub sent: u64,
    /// Bytes that came from it, right or wrong.
    pub received: u64,
}

/// Where fellows take part in swarms.
#[derive(Debug)]
pub(super) struct Met(Mutex<LruCache<InfoHash, Vec<SocketAddr>>>);

impl Default for Met {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(TORRENTS)))
    }
}

impl Met {
    /// Those of a torrent.
    pub(super) fn of(&self, hash: InfoHash) -> Vec<SocketAddr> {
        self.lock().get(&hash).cloned().unwrap_or_default()
    }

    fn add(&self, hash: InfoHash, peers: Vec<SocketAddr>) {
        let mut lock = self.lock();
        let known = lock.get_or_insert_mut(hash, Vec::new);
        for peer in peers {
            if known.len() < MOST && !known.contains(&peer) {
                known.push(peer);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<InfoHash, Vec<SocketAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Torrents {
    /// Whether anybody is asked for torrents, and told of them, outside of their swarms. Whoever goes through a proxy wants
    /// nothing else to tell what he reads.
    pub fn seeks_fellows(&self) -> bool {
        self.options().online && self.options().proxy.is_none()
    }

    /// Whether something of a torrent is here for others: it is not private, not paused, and bytes of it are here. With
    /// `given`, only what the user gives counts, and not what was only read. May read a file.
    pub fn is_for_others(&self, hash: InfoHash, given: bool) -> bool {
        let Some(about) = self.known().about(hash).filter(|about| !about.paused) else {
            return false;
        };
        let Some(Ok(metainfo)) = self.metainfo_now(hash) else { return false };
        if metainfo.private || !self.seeks_fellows() || (given && !about.seed) {
            return false;
        }
        let some = |bits: Vec<u8>| bits.iter().any(|byte| *byte != 0);
        self.taken_up_of(hash).is_some_and(|active| active.pieces().all_here() > 0)
            || self.known().was_made(hash)
            || fs::read(self.known().bitfield_path(hash)).is_ok_and(some)
    }

    /// The info dictionary of a torrent, as others know it by its hash, where it is not longer than that. May read a file.
    pub fn info(&self, hash: InfoHash, longest: usize) -> Option<Vec<u8>> {
        self.known().info(hash, longest)
    }

    /// Where a torrent that is given or fetched now takes part in its swarm.
    pub fn port(&self, hash: InfoHash) -> Option<u16> {
        let active = self.taken_up_of(hash).filter(|active| !active.metainfo().private);
        let live = active.is_some_and(|active| active.is_managed() && active.is_live().0);
        self.address().filter(|_| live).map(|address| address.port())
    }

    /// What went between this node and the peers of all swarms that it takes part in.
    pub fn traffic_by_peer(&self) -> Vec<PeerTraffic> {
        let managed = self.managed();
        managed.iter().filter_map(|active| Some(active.fetch.get()?.by_peer())).flatten().collect()
    }

    /// Keeps a description that somebody says is that of a torrent.
    ///
    /// # Errors
    /// [`MetainfoError::Other`](super::MetainfoError::Other) where it is not; else as [`Torrents::keep`].
    pub fn keep_info(&self, hash: InfoHash, info: &[u8]) -> Result<Arc<Metainfo>, TorrentError> {
        let kept = self.known().keep_info(hash, info)?;
        self.searches().told(hash);
        Ok(kept)
    }

    /// The files of a torrent that are being read, by their numbers.
    pub fn files_read(&self, hash: InfoHash) -> BTreeSet<u32> {
        let read = self.taken_up_of(hash).map(|active| active.files_read());
        read.into_iter().flatten().collect()
    }

    /// Names peers of a torrent, who are dialled where a link may name them: now where it is fetched, else with
    /// its next start.
    pub fn meet(&self, hash: InfoHash, peers: &[SocketAddr]) {
        // The peers of a private one are named by its trackers alone.
        if matches!(self.metainfo_now(hash), Some(Ok(metainfo)) if metainfo.private) {
            return;
        }
        self.met().add(hash, self.policy().peers(peers));
        if let Some(active) = self.taken_up_of(hash).filter(|active| active.is_managed()) {
            active.introduce();
        }
    }
}
