//! Fetching ahead for programs that look at one entry of a directory after the other (`ls -l`, `find -size`, `rsync`).
//!
//! How long a file is only its own block tells, and such a program waits for one at a time: a round trip for each. Who
//! merely lists a directory of files fetches nothing, since most who list look at nothing.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::{semantics::Fs, tree::Content};
use crate::{
    content::{Codec, ContentId, Entry, MAX_BLOCK_LEN},
    node::Place,
};

/// What fetches ahead at once; beside it programs wait for one child after the other.
pub(super) const AT_ONCE: usize = 8;
/// How many children each asks for at once: with 25 ms to the peer, 5,000 a second.
const CHILDREN_AT_ONCE: usize = 256;
/// Longest time that asking goes on in the background.
const LONGEST: Duration = Duration::from_secs(30);
/// Directories that are followed at once.
const WALKS: usize = 16;
/// Entries between two look-ups that still follow each other: programs pass over some, or sort a little differently.
const NEAR: usize = 16;
/// Look-ups of what was not here that show a walk in whatever order: some programs sort by inode numbers.
const MANY: usize = 32;
/// Entries that are asked for first, and at most; each time twice as many.
const FIRST: usize = 16;
const MOST: usize = 512;
/// Bytes that are asked for at most: a directory of films is not fetched for its listing.
const MOST_BYTES: u64 = 8 << 20;
/// What the root block of anything but a small file is taken for.
const TYPICAL_ROOT: u64 = 16 << 10;

/// The directories in which somebody looked for what was not here, the last one at the end.
#[derive(Debug, Default)]
pub(super) struct Walks(Mutex<VecDeque<Walk>>);

/// How somebody goes through a directory.
#[derive(Debug)]
struct Walk {
    dir: ContentId,
    entries: Arc<Vec<Entry>>,
    /// Which of them were looked up or asked for.
    known: Vec<bool>,
    last: usize,
    /// The last look-up followed the one before it.
    follows: bool,
    missed: usize,
    /// Entries of the next batch.
    batch: usize,
    /// Where the last batch ends, and from where on the next one is due.
    end: usize,
    due: usize,
}

impl Walk {
    fn new(dir: ContentId, entries: Arc<Vec<Entry>>) -> Self {
        let known = vec![false; entries.len()];
        Self {
            dir,
            entries,
            known,
            last: usize::MAX,
            follows: false,
            missed: 0,
            batch: FIRST,
            end: 0,
            due: usize::MAX,
        }
    }

    /// A name was looked up that is here or not; what is to be fetched now.
    fn looked(&mut self, name: &OsStr, is_here: bool) -> Vec<ContentId> {
        let place = self.entries.binary_search_by(|entry| entry.name.as_os_str().cmp(name));
        let Ok(at) = place else { return Vec::new() };
        // One stat(2) may look a name up several times.
        if at == self.last {
            return Vec::new();
        }
        self.follows = self.last < at && at - self.last <= NEAR;
        self.last = at;
        let surprised = !is_here && !self.known[at];
        self.known[at] = true;
        self.missed += usize::from(surprised);
        if self.follows && (self.due..self.end).contains(&at) {
            return self.next(self.end);
        }
        if surprised && (self.follows || self.missed >= MANY) {
            return self.next(at + 1);
        }
        Vec::new()
    }

    /// The next batch, from an entry on.
    fn next(&mut self, from: usize) -> Vec<ContentId> {
        let (mut ids, mut bytes, mut at) = (Vec::new(), 0, from);
        while at < self.entries.len() && ids.len() < self.batch && bytes < MOST_BYTES {
            if !self.known[at] {
                self.known[at] = true;
                bytes += root_len(&self.entries[at]);
                ids.push(self.entries[at].cid);
            }
            at += 1;
        }
        (self.end, self.due) = (at, from + (at - from) / 2);
        self.batch = (self.batch * 2).min(MOST);
        ids
    }
}

/// Length of the block that tells what an entry is, as far as the directory says.
pub(super) fn root_len(entry: &Entry) -> u64 {
    match entry.cid.codec() {
        Codec::Raw => entry.tsize.min(MAX_BLOCK_LEN as u64),
        Codec::DagPb | Codec::Other(_) => entry.tsize.min(TYPICAL_ROOT),
    }
}

impl Fs {
    /// Fetches the root blocks of children in the background.
    pub(super) fn fetch_ahead(
        &self,
        permit: OwnedSemaphorePermit,
        places: Vec<Place>,
    ) -> impl Future + use<> {
        let (node, cancelled) = (self.node.clone(), self.node.tasks().cancelled());
        self.node.tasks().spawn("fetch ahead", async move {
            let _permit = permit;
            let fetched =
                futures::stream::iter(places).for_each_concurrent(CHILDREN_AT_ONCE, |place| {
                    let node = &node;
                    async move {
                        if let Err(error) = node.protocol(&place).resolve(&place).await {
                            tracing::debug!(?place, %error, "a listed child is not here yet");
                        }
                    }
                });
            tokio::select! {
                _ = tokio::time::timeout(LONGEST, fetched) => {}
                () = cancelled => {}
            }
        })
    }

    /// Notes that a name was looked up in a directory, and fetches what is likely to be looked up next.
    pub(super) fn look_ahead(&self, dir: &Content, name: &OsStr, is_here: bool) {
        // A torrent's description tells all of its files.
        let Place::Content { root, id: dir } = dir.place else { return };
        let Ok(permit) = self.prefetches.clone().try_acquire_owned() else { return };
        let mut walks = self.walks.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = walks.iter().position(|walk| walk.dir == dir);
        let walk = match found.and_then(|at| walks.remove(at)) {
            Some(walk) => Some(walk),
            None if is_here => None,
            // Who has not listed it does not go through it.
            None => match self.node.list_now(&dir) {
                Some(Ok(entries)) => Some(Walk::new(dir, entries)),
                Some(Err(_)) | None => None,
            },
        };
        let Some(mut walk) = walk else { return };
        let ids = walk.looked(name, is_here);
        if walks.len() >= WALKS {
            walks.pop_front();
        }
        walks.push_back(walk);
        drop(walks);
        if !ids.is_empty() {
            let places = ids.into_iter().map(|id| Place::Content { root, id }).collect();
            // The task goes on by itself.
            drop(self.fetch_ahead(permit, places));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::sha2_256;

    fn directory(count: usize, len: u64) -> Walk {
        let entry = |n: usize| Entry {
            name: format!("{n:06}").into(),
            cid: ContentId::raw(sha2_256(&n.to_le_bytes())),
            tsize: len,
        };
        Walk::new(ContentId::raw(sha2_256(b"")), Arc::new((0..count).map(entry).collect()))
    }

    /// Looks at entries in an order; those that had to be waited for, and what was fetched ahead in all.
    fn walk(walk: &mut Walk, order: impl IntoIterator<Item = usize>) -> (Vec<usize>, usize) {
        let (mut waited, mut ahead) = (Vec::new(), std::collections::HashSet::new());
        for at in order {
            let entry = walk.entries[at].clone();
            let is_here = ahead.contains(&entry.cid);
            if !is_here {
                waited.push(at);
            }
            for id in walk.looked(&entry.name, is_here) {
                assert!(ahead.insert(id), "asked for twice");
            }
        }
        (waited, ahead.len())
    }

    #[test]
    fn who_goes_through_a_directory_waits_only_at_its_beginning() {
        let (waited, ahead) = walk(&mut directory(5200, 5), 0..5200);
        assert_eq!((waited, ahead), (vec![0, 1], 5198));
        // Every third one, from the middle.
        let (waited, _) = walk(&mut directory(5200, 5), (2000..5200).step_by(3));
        assert_eq!(waited, [2000, 2003]);
    }

    #[test]
    fn who_looks_at_one_or_here_and_there_fetches_nothing_more() {
        assert_eq!(walk(&mut directory(5200, 5), [17]).1, 0);
        assert_eq!(walk(&mut directory(5200, 5), [17, 17, 900, 40, 3000]).1, 0);
    }

    #[test]
    fn a_walk_in_any_order_is_a_walk() {
        // 2,003 is coprime to the number of entries, and far from both ends.
        let order = (0..5200).map(|n| n * 2003 % 5200);
        let (waited, ahead) = walk(&mut directory(5200, 5), order);
        assert!(waited.len() < 100, "{}", waited.len());
        assert_eq!(waited.len() + ahead, 5200);
    }

    #[test]
    fn large_files_are_few() {
        let mut walk = directory(5200, 1 << 20);
        walk.batch = MOST;
        assert_eq!(walk.next(0).len(), 8);
    }
}
