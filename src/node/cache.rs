//! Decoded nodes and directories, bounded by their number and by the bytes that their names take.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use tokio::time::Instant;

use super::Resolved;
use crate::content::{ContentId, DirectoryReader, Entry};

/// Resolved ids that are kept. At about 200 bytes each: 6 MB when full, and `ls -l` of the largest
/// directories that people keep in one place still fits.
const MAX_RESOLVED: NonZeroUsize = NonZeroUsize::new(32_768).unwrap();

/// Directories that are kept, whatever their size.
const MAX_DIRECTORIES: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// Bytes of decoded directories that are kept: about 150,000 entries.
const MAX_DIRECTORY_BYTES: usize = 32 << 20;

/// Roots whose listing is remembered.
const MAX_LISTED: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();

/// A root in use is listed again after this time: what was evicted meanwhile comes back to the listing, and a
/// root that every program looks at is not written to disk each time.
const LIST_AGAIN: Duration = Duration::from_secs(60);

/// A [`ContentId`], a length, a string header and the slots of both tables that hold an entry.
const BYTES_PER_ENTRY: usize = 200;

/// A directory as far as its shards are in.
#[derive(Debug)]
pub(super) struct Directory {
    /// Grows with each shard that is put in. Held only for look-ups in memory, never while waiting.
    pub(super) reader: Mutex<DirectoryReader>,
    /// All entries, once every shard is in.
    pub(super) entries: Mutex<Option<Arc<Vec<Entry>>>>,
}

impl Directory {
    pub(super) fn new(reader: DirectoryReader) -> Self {
        Self { reader: Mutex::new(reader), entries: Mutex::new(None) }
    }

    pub(super) fn reader(&self) -> MutexGuard<'_, DirectoryReader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries when no shard is missing.
    pub(super) fn complete_entries(&self) -> Option<Arc<Vec<Entry>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.is_none() {
            let reader = self.reader();
            if reader.missing().is_empty() {
                *entries = Some(Arc::new(reader.entries()));
            }
        }
        entries.clone()
    }
}

/// Bytes that a directory of these entries takes in memory.
pub(super) fn bytes_of(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.name.len() + BYTES_PER_ENTRY).sum::<usize>() + BYTES_PER_ENTRY
}

#[derive(Debug)]
struct Weighed {
    directory: Arc<Directory>,
    bytes: usize,
}

#[derive(Debug)]
struct Directories {
    by_id: LruCache<ContentId, Weighed>,
    bytes: usize,
}

/// The cache; the least recently used goes first.
#[derive(Debug)]
pub(super) struct Cache {
    resolved: Mutex<LruCache<ContentId, Arc<Resolved>>>,
    directories: Mutex<Directories>,
    /// When a root was last put on the listing of the mountpoint.
    listed: Mutex<LruCache<ContentId, Instant>>,
    /// Directories whose omissions were told.
    told_of: Mutex<LruCache<ContentId, ()>>,
}

impl Default for Cache {
    fn default() -> Self {
        let directories = Directories { by_id: LruCache::new(MAX_DIRECTORIES), bytes: 0 };
        Self {
            resolved: Mutex::new(LruCache::new(MAX_RESOLVED)),
            directories: Mutex::new(directories),
            listed: Mutex::new(LruCache::new(MAX_LISTED)),
            told_of: Mutex::new(LruCache::new(MAX_DIRECTORIES)),
        }
    }
}

impl Cache {
    pub(super) fn resolved(&self, id: &ContentId) -> Option<Arc<Resolved>> {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub(super) fn put_resolved(&self, resolved: Arc<Resolved>) {
        let mut cache = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        cache.put(resolved.id, resolved);
    }

    /// Whether a root was not listed within the last [`LIST_AGAIN`]; from now on it was.
    pub(super) fn is_to_be_listed(&self, root: &ContentId, now: Instant) -> bool {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.get(root).is_some_and(|then| now.duration_since(*then) < LIST_AGAIN) {
            return false;
        }
        listed.put(*root, now);
        true
    }

    /// Returns whether nothing was told yet of what a directory omits; from now on it was.
    pub(super) fn is_to_be_told_of(&self, directory: &ContentId) -> bool {
        let mut told_of = self.told_of.lock().unwrap_or_else(PoisonError::into_inner);
        told_of.put(*directory, ()).is_none()
    }

    pub(super) fn directory(&self, id: &ContentId) -> Option<Arc<Directory>> {
        let mut cache = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        cache.by_id.get(id).map(|weighed| weighed.directory.clone())
    }

    /// Keeps a directory, or notes that it has grown to `bytes`.
    pub(super) fn put_directory(&self, id: ContentId, directory: Arc<Directory>, bytes: usize) {
        let mut cache = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        cache.bytes += bytes;
        if let Some((_, old)) = cache.by_id.push(id, Weighed { directory, bytes }) {
            cache.bytes -= old.bytes;
        }
        // One directory that is larger than the whole bound is kept while it is the newest.
        while cache.bytes > MAX_DIRECTORY_BYTES && cache.by_id.len() > 1 {
            let Some((_, old)) = cache.by_id.pop_lru() else { break };
            cache.bytes -= old.bytes;
        }
    }

    /// Forgets everything, as if the node had been started anew.
    #[cfg(test)]
    pub(super) fn clear(&self) {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        directories.by_id.clear();
        directories.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::content::{DirectoryBuilder, ImportParams, Metadata, sha2_256};

    fn directory(name: &str) -> (ContentId, Arc<Directory>) {
        let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
        builder.add(name, ContentId::raw(sha2_256(name.as_bytes())), 1);
        let built = builder.finish(Metadata::default());
        let reader = DirectoryReader::new(built.nodes.last().unwrap()).unwrap();
        (built.root, Arc::new(Directory::new(reader)))
    }

    #[test]
    fn directories_are_dropped_oldest_first_when_their_bytes_pass_the_bound() {
        let cache = Cache::default();
        let ((a, first), (b, second), (c, third)) =
            (directory("a"), directory("b"), directory("c"));
        cache.put_directory(a, first, MAX_DIRECTORY_BYTES / 2);
        cache.put_directory(b, second, MAX_DIRECTORY_BYTES / 2);
        assert!(cache.directory(&a).is_some());
        cache.put_directory(c, third, 1);
        assert!(cache.directory(&b).is_none(), "the least recently used one stays");
        assert!(cache.directory(&a).is_some() && cache.directory(&c).is_some());
    }

    #[test]
    fn a_directory_that_grows_is_counted_once() {
        let cache = Cache::default();
        let (a, first) = directory("a");
        for _ in 0..10 {
            cache.put_directory(a, first.clone(), MAX_DIRECTORY_BYTES / 2);
        }
        let (b, second) = directory("b");
        cache.put_directory(b, second, MAX_DIRECTORY_BYTES / 2);
        assert!(cache.directory(&a).is_some() && cache.directory(&b).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_root_in_use_is_listed_again_after_a_while_and_not_before() {
        let cache = Cache::default();
        let (root, _) = directory("a");
        assert!(cache.is_to_be_listed(&root, Instant::now()));
        assert!(!cache.is_to_be_listed(&root, Instant::now()));
        tokio::time::advance(LIST_AGAIN).await;
        assert!(cache.is_to_be_listed(&root, Instant::now()));
    }
}
