//! What one search for a root hears that another can use: peers for Bitswap that an HTTP router names, and HTTP
//! addresses of providers that the DHT names.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;
use tokio::sync::broadcast;

use super::per_root::PerRoot;
use crate::{content::ContentId, net::Provider};

/// News that a search may lag behind before it loses the oldest: as many as a router names at most.
const BACKLOG: usize = 128;

/// Roots whose providers are remembered that were named while nobody looked, and how many of each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
const MOST: usize = 16;

/// What is passed on between the searches for one root.
#[derive(Debug)]
pub(super) struct Channel {
    /// Peers to be dialled.
    pub(super) peers: broadcast::Sender<Provider>,
    /// Multiaddresses of HTTP servers.
    pub(super) servers: broadcast::Sender<String>,
}

/// The channels between finders that were built with clones of it.
#[derive(Clone, Debug)]
pub struct Hearsay {
    running: PerRoot<Channel>,
    named: Arc<Mutex<LruCache<ContentId, Vec<Provider>>>>,
}

impl Default for Hearsay {
    fn default() -> Self {
        let named = Arc::new(Mutex::new(LruCache::new(REMEMBERED)));
        Self { running: PerRoot::default(), named }
    }
}

impl Hearsay {
    /// The channel of a root; all searches that run for it share one.
    pub(super) fn of(&self, root: &ContentId) -> Arc<Channel> {
        self.running.share(root, || Channel {
            peers: broadcast::Sender::new(BACKLOG),
            servers: broadcast::Sender::new(BACKLOG),
        })
    }

    /// Names a provider of a root, to a search that runs or to the next one.
    pub fn name(&self, root: &ContentId, provider: &Provider) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let known = named.get_or_insert_mut(*root, Vec::new);
        known.retain(|known| known.peer != provider.peer);
        if known.len() >= MOST {
            known.remove(0);
        }
        known.push(provider.clone());
        drop(named);
        if let Some(running) = self.running.get(root) {
            // It may just be ending.
            let _ = running.peers.send(provider.clone());
        }
    }

    /// Providers that were named of a root.
    pub(super) fn named(&self, root: &ContentId) -> Vec<Provider> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.get(root).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::net::PeerId;

    #[test]
    fn the_last_who_were_named_are_remembered_each_once_and_a_search_that_runs_hears_of_them() {
        let (hearsay, root) = (Hearsay::default(), ContentId::raw(crate::content::sha2_256(b"x")));
        let peers: Vec<PeerId> = (0..MOST + 2).map(|_| PeerId::random()).collect();
        let name = |peer: PeerId| hearsay.name(&root, &Provider { peer, addresses: Vec::new() });
        peers.iter().copied().for_each(name);
        name(peers[5]);
        let known: Vec<PeerId> = hearsay.named(&root).iter().map(|known| known.peer).collect();
        let mut expected = peers[2..].to_vec();
        expected.retain(|peer| *peer != peers[5]);
        expected.push(peers[5]);
        assert_eq!(known, expected);
        let running = hearsay.of(&root);
        let mut heard = running.peers.subscribe();
        name(peers[0]);
        assert_eq!(heard.try_recv().unwrap().peer, peers[0]);
        assert!(hearsay.named(&ContentId::raw(crate::content::sha2_256(b"y"))).is_empty());
    }
}
