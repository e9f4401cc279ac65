//! What is being fetched, from whichever network.

use serde::{Deserialize, Serialize};

use super::{Node, TorrentState, TorrentStatus, Transfer};

/// A download that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Running {
    /// Content of IPFS.
    Content(Transfer),
    /// A torrent; it has an `infohash` in place of a `cid`.
    Torrent {
        /// Its info hash.
        infohash: String,
        /// What it is called.
        name: String,
        /// Bytes here.
        bytes: u64,
        /// Bytes in all; of a torrent only what is read is fetched.
        total: u64,
        /// Bytes per second of the last seconds.
        rate: u64,
        /// Peers that are connected.
        sources: usize,
    },
}

impl From<TorrentStatus> for Running {
    fn from(status: TorrentStatus) -> Self {
        let TorrentStatus { infohash, name, bytes, total, download_rate, peers, .. } = status;
        Self::Torrent { infohash, name, bytes, total, rate: download_rate, sources: peers }
    }
}

impl Node {
    /// All downloads that run.
    pub fn transfers(&self) -> Vec<Running> {
        let contents = self.engine().transfers().into_iter().map(Running::Content);
        let torrents = self.torrents().live().into_iter();
        let fetched = torrents.filter(|torrent| torrent.state == TorrentState::Downloading);
        contents.chain(fetched.map(Running::from)).collect()
    }
}
