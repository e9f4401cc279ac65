//! Announces the torrents that others can have something of, and no longer than that.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    content::{ContentId, InfoHash},
    net::Net,
    node::Node,
};

/// Torrents that something has happened to.
#[derive(Debug, Default)]
pub(in crate::node) struct Changes {
    hashes: Mutex<HashSet<InfoHash>>,
    any: Notify,
}

impl Changes {
    pub(in crate::node) fn note(&self, hash: InfoHash) {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).insert(hash);
        self.any.notify_one();
    }

    async fn next(&self) -> HashSet<InfoHash> {
        loop {
            let hashes =
                std::mem::take(&mut *self.hashes.lock().unwrap_or_else(PoisonError::into_inner));
            if !hashes.is_empty() {
                return hashes;
            }
            self.any.notified().await;
        }
    }
}

impl Node {
    /// Keeps the announce queue in step with the torrents, for as long as the node runs.
    pub(in crate::node) fn announce_torrents(&self, changes: std::sync::Arc<Changes>, given: bool) {
        let (node, cancelled) = (self.clone(), self.tasks().cancelled());
        // With those that were removed amid the work of an earlier process.
        let queued = self.net().queued(|id| id.info_hash().is_some());
        let queued = queued.iter().filter_map(ContentId::info_hash);
        let known = self.torrents().known_torrents().into_iter();
        let mut look = known.chain(queued).collect::<HashSet<_>>();
        self.tasks().spawn("announce torrents", async move {
            let announcing = async {
                loop {
                    let node_inside = node.clone();
                    let step = move || node_inside.announce_as_they_are(&look, given);
                    if node.tasks().blocking("announce torrents", step).await.is_err() {
                        return;
                    }
                    look = changes.next().await;
                }
            };
            tokio::select! {
                () = announcing => {}
                () = cancelled => {}
            }
        });
    }

    fn announce_as_they_are(&self, hashes: &HashSet<InfoHash>, given: bool) {
        for hash in hashes {
            let wanted = self.torrents().is_for_others(*hash, given);
            let is = self.net().is_queued(&ContentId::torrent(*hash));
            if wanted != is {
                announce(self.net(), *hash, wanted);
            }
        }
    }
}

fn announce(net: &Net, hash: InfoHash, wanted: bool) {
    let id = ContentId::torrent(hash);
    tracing::debug!(%hash, wanted, "a torrent is announced, or no longer");
    let done = if wanted { net.announce(&id) } else { net.withdraw(&id) };
    if let Err(error) = done {
        tracing::warn!(%hash, %error, "the announce queue cannot be written");
    }
}
