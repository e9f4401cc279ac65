//! Waits of a program that looks at one entry of a directory after the other.
//!
//! Such a program waits for the first entry that is missing, and would then wait for the next one. While it waits for the
//! first, all others are sought, so that all of them together take one timeout.

use std::{
    future::Future,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lru::LruCache;
use tokio::time::Instant;

use super::{
    ahead::root_len,
    semantics::Fs,
    tree::{Content, IPFS, Ino, ROOT, TORRENTS, What},
};
use crate::node::{ListedTorrent, Place};

/// A wait of this length is more than a round trip to any peer: it may well be in vain.
const MOMENT: Duration = Duration::from_millis(500);
/// For so long after its listing a directory counts as one that a program goes through.
const LISTED: Duration = Duration::from_secs(600);
/// Directories whose listing is remembered; find(1) lists each one right before it looks at its entries.
const DIRECTORIES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Entries that are sought for one wait, and bytes of their blocks as far as the directory tells. What is beyond is
/// sought at the next wait.
const SOUGHT: usize = 4096;
const SOUGHT_BYTES: u64 = 16 << 20;

/// Directories that were listed lately.
#[derive(Debug)]
pub(super) struct Listed(Mutex<LruCache<Ino, Instant>>);

impl Default for Listed {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(DIRECTORIES)))
    }
}

impl Listed {
    pub(super) fn note(&self, dir: Ino) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(dir, Instant::now());
    }

    fn has(&self, dir: Ino) -> bool {
        let mut listed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listed.get(&dir).is_some_and(|at| at.elapsed() < LISTED)
    }
}

impl Fs {
    /// Does `work`, which may wait for a block of `content`; where it does, what its directory lists besides is sought.
    pub(super) async fn waiting<T>(
        self: &Arc<Self>,
        content: &Content,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        match tokio::time::timeout(MOMENT, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                self.seek_beside(content);
                work.await
            }
        }
    }

    fn seek_beside(self: &Arc<Self>, content: &Content) {
        // The links in `torrents` lead to what is listed in the root.
        let top = content.parent == ROOT || content.parent == IPFS;
        let walked = match top {
            true => [ROOT, TORRENTS].into_iter().any(|dir| self.listed.has(dir)),
            false => self.listed.has(content.parent),
        };
        if !walked {
            return;
        }
        let (fs, parent, place) = (self.clone(), content.parent, content.place);
        // Whether an entry is here only the disk tells.
        self.node.tasks().blocking("entries beside one", move || {
            let places = if top { fs.missing_roots() } else { fs.missing_beside(parent, &place) };
            for protocol in fs.node.protocols() {
                let its_own: Vec<Place> =
                    places.iter().filter(|place| protocol.owns(place)).copied().collect();
                protocol.seek(&its_own, MOMENT);
            }
        });
    }

    /// Entries of the root listing whose content is missing.
    fn missing_roots(&self) -> Vec<Place> {
        // A store that cannot be read has nothing to seek; its error shows elsewhere.
        let roots = self.node.roots().unwrap_or_default();
        let roots =
            roots.into_iter().map(|known| Place::Content { root: known.root, id: known.root });
        let torrents =
            self.node.torrents().names().into_iter().filter_map(|(_, listed)| match listed {
                ListedTorrent::Link(hash) => Some(Place::Torrent { hash, node: 0 }),
                ListedTorrent::File(_) => None,
            });
        roots.chain(torrents).filter(|place| self.is_missing(place)).take(SOUGHT).collect()
    }

    /// Missing children of a directory, from one of its entries on.
    fn missing_beside(&self, dir: Ino, entry: &Place) -> Vec<Place> {
        let (Ok(What::Content(dir)), Some(id)) = (self.what(dir), entry.content()) else {
            return Vec::new();
        };
        // A torrent's description tells all of its files.
        let Place::Content { root, id: dir } = dir.place else { return Vec::new() };
        let Some(Ok(entries)) = self.node.list_now(&dir) else { return Vec::new() };
        let at = entries.iter().position(|entry| entry.cid == *id).unwrap_or(0);
        let mut bytes = 0;
        let (before, after) = entries.split_at(at);
        let mut missing = Vec::new();
        for entry in after.iter().chain(before) {
            let place = Place::Content { root, id: entry.cid };
            if missing.len() == SOUGHT || bytes > SOUGHT_BYTES {
                break;
            }
            if self.is_missing(&place) {
                bytes += root_len(entry);
                missing.push(place);
            }
        }
        missing
    }

    fn is_missing(&self, place: &Place) -> bool {
        self.node.protocol(place).resolve_now(place).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_listing_is_remembered_for_a_while() {
        let listed = Listed::default();
        assert!(!listed.has(7));
        listed.note(7);
        assert!(listed.has(7) && !listed.has(8));
        tokio::time::advance(LISTED).await;
        assert!(!listed.has(7));
    }
}
