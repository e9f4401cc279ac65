//! Which torrents were made from what is published here: an index by that, so that nobody reads all of their records.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
    sync::PoisonError,
};

use super::{Source, TorrentError, Torrents, known::Known};
use crate::content::{ContentId, InfoHash};

/// Bytes in which the head of a record lies; the ids of the files follow.
const HEAD: u64 = 1024;

/// What a torrent was made from, without the contents of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// The file or directory.
    pub root: ContentId,
    /// As [`Source::automatic`].
    pub automatic: bool,
}

impl Made {
    /// Reads the head of a record.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let mut lines = BufReader::new(File::open(path).ok()?.take(HEAD)).lines();
        let mut line = || lines.next()?.ok();
        Source::decode_head([line()?, line()?, line()?, line()?].each_ref().map(String::as_str))
    }
}

/// All that were made here.
#[derive(Debug, Default)]
pub(super) struct Index {
    of: HashMap<InfoHash, Made>,
    by_root: HashMap<ContentId, BTreeSet<InfoHash>>,
}

impl Index {
    pub(super) fn put(&mut self, hash: InfoHash, made: Made) {
        self.remove(hash);
        self.of.insert(hash, made);
        self.by_root.entry(made.root).or_default().insert(hash);
    }

    pub(super) fn remove(&mut self, hash: InfoHash) {
        let Some(made) = self.of.remove(&hash) else { return };
        if let Some(its) = self.by_root.get_mut(&made.root) {
            its.remove(&hash);
            if its.is_empty() {
                self.by_root.remove(&made.root);
            }
        }
    }

    fn from(&self, root: &ContentId) -> Vec<(InfoHash, Made)> {
        let its = self.by_root.get(root).into_iter().flatten();
        its.filter_map(|hash| Some((*hash, *self.of.get(hash)?))).collect()
    }
}

impl Known {
    /// Whether a torrent was made here.
    pub(super) fn was_made(&self, hash: InfoHash) -> bool {
        self.made().of.contains_key(&hash)
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Index> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Torrents {
    /// All that were made from what is published.
    pub fn made(&self) -> Vec<(InfoHash, Made)> {
        self.known().made().of.iter().map(|(hash, made)| (*hash, *made)).collect()
    }

    /// Those that were made from this.
    pub fn made_from(&self, root: &ContentId) -> Vec<(InfoHash, Made)> {
        self.known().made().from(root)
    }

    /// What a torrent was made from, with the contents of its files. Reads a file.
    pub fn source(&self, hash: InfoHash) -> Option<Source> {
        if !self.known().was_made(hash) {
            return None;
        }
        let metainfo = self.metainfo_now(hash)?.ok()?;
        self.known().source(&metainfo)
    }

    /// Changes what is written down of what a torrent was made from; nothing happens to one that was not.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn change_source(
        &self,
        hash: InfoHash,
        change: impl FnOnce(&mut Source),
    ) -> Result<(), TorrentError> {
        let Some(mut source) = self.source(hash) else { return Ok(()) };
        change(&mut source);
        self.known().put_source(hash, &source)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn id(text: &str) -> ContentId {
        ContentId::raw(crate::content::sha2_256(text.as_bytes()))
    }

    #[test]
    fn torrents_are_found_by_what_they_were_made_from_as_long_as_they_are() {
        let mut index = Index::default();
        let (one, two) = (InfoHash([1; 20]), InfoHash([2; 20]));
        let made = |text: &str, automatic| Made { root: id(text), automatic };
        index.put(one, made("a", true));
        index.put(two, made("a", false));
        assert_eq!(index.from(&id("a")), [(one, made("a", true)), (two, made("a", false))]);
        // The same torrent, asked for by name.
        index.put(one, made("a", false));
        assert_eq!(index.from(&id("a"))[0].1, made("a", false));
        // One description may be made from two trees that differ in what no torrent has.
        index.put(two, made("b", true));
        assert_eq!(index.from(&id("a")), [(one, made("a", false))]);
        index.remove(one);
        index.remove(one);
        assert!(index.from(&id("a")).is_empty());
        index.remove(two);
        assert!(index.of.is_empty() && index.by_root.is_empty());
    }

    #[test]
    fn the_head_of_a_record_is_read_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source");
        assert_eq!(Made::read(&path), None);
        let files = vec![id("x"); 1000];
        let source = Source { root: id("root"), pinned: true, automatic: true, files };
        let text = source.encode();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(Made::read(&path), Some(Made { root: id("root"), automatic: true }));
        for damaged in ["", "1\n", "1\nx\n-\n-\n", &text.replacen('1', "2", 1)] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(Made::read(&path), None, "{damaged:.10}");
        }
    }
}
