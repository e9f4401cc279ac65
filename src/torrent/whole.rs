//! Which files are here to their last byte.

use std::{path::PathBuf, sync::Arc};

use super::{FileKind, Torrents, active::Active};
use crate::content::InfoHash;

/// A file that is whole and will not change any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeFile {
    /// The torrent.
    pub hash: InfoHash,
    /// Which of its files.
    pub file: u32,
    /// Bytes.
    pub size: u64,
    /// Where it is.
    pub path: PathBuf,
}

impl Torrents {
    /// Waits until pieces of any torrent have come since the last call. For one who waits at a time.
    pub async fn pieces_came(&self) {
        self.came().notified().await;
    }

    /// The files that are whole, of the torrents that are open. Empty ones are left out, and those of private torrents,
    /// which are for nobody outside of their swarm. What was made from published files has their CIDs already.
    pub fn whole_files(&self) -> Vec<WholeFile> {
        let mut found = Vec::new();
        let strangers = |active: &Arc<Active>| {
            !active.metainfo().private && active.files().published().is_none()
        };
        for active in self.taken_up().into_iter().filter(strangers) {
            let metainfo = active.metainfo();
            let hash = metainfo.hash;
            for (file, entry) in (0..).zip(&metainfo.files) {
                let shown = matches!(entry.kind, FileKind::Regular { .. });
                if shown && !entry.range.is_empty() && active.pieces.has(entry.range) {
                    let path = self.known().folder(hash).join(file.to_string());
                    found.push(WholeFile { hash, file, size: entry.range.len(), path });
                }
            }
        }
        found
    }
}
