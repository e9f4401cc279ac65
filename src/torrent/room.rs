//! How much disk torrents may take that nobody wants kept: what was read longest ago goes first, whole.
//!
//! What is pinned, seeded or open stays. Of one that goes the description and its names stay: it is listed as before, and
//! fetched again when it is read.

use std::{
    cmp::Reverse, collections::HashSet, fs, io, os::unix::fs::MetadataExt, time::SystemTime,
};

use super::{TorrentError, TorrentEvent, Torrents, about::ABOUT, known::Known};
use crate::content::InfoHash;

/// A torrent of which nothing has to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    hash: InfoHash,
    /// When it was last read.
    used: SystemTime,
    /// Bytes of disk that it takes.
    bytes: u64,
}

/// In the order in which they stay: the last is the next to go.
fn in_order(mut all: Vec<Candidate>) -> Vec<Candidate> {
    all.sort_by_key(|candidate| Reverse((candidate.used, candidate.hash)));
    all
}

impl Torrents {
    /// Removes bytes of torrents until the limits hold; whose. May wait for the disk, and for the session.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) async fn make_room(&self) -> Result<Vec<InfoHash>, TorrentError> {
        let torrents = self.clone();
        let look = move || torrents.candidates().map_err(|e| TorrentError::disk("look at", e));
        let looked = self.tasks().blocking("look at torrents", look).await;
        let (candidates, mut over) = looked.map_err(|_| TorrentError::Closed)??;
        let (mut left, mut gone) = (in_order(candidates), Vec::new());
        while over > 0
            && let Some(next) = left.pop()
        {
            if self.drop_bytes(next.hash).await? {
                over = over.saturating_sub(next.bytes);
                gone.push(next.hash);
            }
        }
        Ok(gone)
    }

    /// The torrents that something is here of. Looks at the disk.
    pub fn with_bytes(&self) -> HashSet<InfoHash> {
        let known = self.known();
        let some = |hash: &InfoHash| known.numbered(*hash).is_ok_and(|files| !files.is_empty());
        known.all().into_iter().filter(some).collect()
    }

    /// What may go, and how many bytes have to.
    fn candidates(&self) -> io::Result<(Vec<Candidate>, u64)> {
        let (known, options) = (self.known(), self.options());
        let listed = known.listed().into_iter();
        let loose = listed.filter(|(hash, about)| {
            !about.seed && about.pins.is_empty() && known.has(*hash) && !known.was_made(*hash)
        });
        let all = loose.map(|(hash, _)| {
            let (bytes, used) = (known.bytes_on_disk(hash)?, known.used(hash));
            Ok(Candidate { hash, used, bytes })
        });
        let all: Vec<_> = all.collect::<io::Result<_>>()?;
        let disk = rustix::fs::statvfs(known.dir())?;
        let (free, capacity) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
        let limit = options.cache_limit.unwrap_or(capacity / 10);
        let taken: u64 = all.iter().map(|candidate| candidate.bytes).sum();
        let min_free = options.min_free.unwrap_or_else(|| crate::store::default_min_free(capacity));
        let over = taken.saturating_sub(limit).max(min_free.saturating_sub(free));
        Ok((all.into_iter().filter(|candidate| candidate.bytes > 0).collect(), over))
    }

    /// Removes the bytes of a torrent, unless somebody has it open; whether they went.
    async fn drop_bytes(&self, hash: InfoHash) -> Result<bool, TorrentError> {
        let Some(Ok(metainfo)) = self.metainfo_now(hash) else { return Ok(false) };
        let active = self.active(&metainfo)?;
        if !self.retire_idle(&active) {
            return Ok(false);
        }
        // Until it is taken out of those that are taken up, whoever opens it finds that it is being removed, and no place
        // in a file of which it is believed that its bytes are here.
        active.retire().await;
        let known = self.known().clone();
        let dropped = self.tasks().blocking("make room", move || known.drop_bytes(hash)).await;
        self.take_active(hash);
        dropped.map_err(|_| TorrentError::Closed)?.map_err(|e| TorrentError::disk("remove", e))?;
        self.lost();
        if let Ok(status) = self.status(hash) {
            self.host().told(TorrentEvent::State(status));
        }
        tracing::info!(%hash, "what was read of a torrent was removed: the cache of torrents is full");
        Ok(true)
    }
}

impl Known {
    /// Something of the torrent is read. That is noted as the time of a file that nothing else changes often.
    pub(super) fn touch(&self, hash: InfoHash) {
        let noted = fs::File::options().append(true).open(self.folder(hash).join(ABOUT));
        if let Ok(notes) = noted
            && let Err(error) = notes.set_modified(SystemTime::now())
        {
            tracing::debug!(%hash, %error, "when a torrent was read is not noted");
        }
    }

    /// When something of it was last read.
    fn used(&self, hash: InfoHash) -> SystemTime {
        let noted = fs::metadata(self.folder(hash).join(ABOUT)).and_then(|notes| notes.modified());
        noted.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn numbered(&self, hash: InfoHash) -> io::Result<Vec<fs::DirEntry>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.folder(hash))? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()) {
                files.push(entry);
            }
        }
        Ok(files)
    }

    fn bytes_on_disk(&self, hash: InfoHash) -> io::Result<u64> {
        let sizes =
            self.numbered(hash)?.into_iter().map(|file| Ok(file.metadata()?.blocks() * 512));
        sizes.sum()
    }

    /// Removes what is here of the files of a torrent, and the notes of it before: a crash in between leaves files that
    /// are hashed again.
    fn drop_bytes(&self, hash: InfoHash) -> io::Result<()> {
        self.forget_pieces(hash)?;
        self.numbered(hash)?.into_iter().try_for_each(|file| fs::remove_file(file.path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_is_the_next_to_go() {
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let candidate =
            |n: u8, used| Candidate { hash: InfoHash([n; 20]), used: at(used), bytes: 1 };
        let mut order = in_order(vec![candidate(1, 20), candidate(2, 10), candidate(3, 30)]);
        let next = std::iter::from_fn(|| order.pop());
        assert_eq!(next.map(|c| c.hash.0[0]).collect::<Vec<_>>(), [2, 1, 3]);
    }
}
