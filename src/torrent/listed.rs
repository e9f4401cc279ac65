//! How torrents stand, for those who look and those who watch.

use serde::{Deserialize, Serialize};

use super::{Magnet, TorrentError, Torrents, active::Active};
use crate::content::{ContentId, InfoHash};

/// What a torrent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorrentState {
    /// Nobody has told yet what is in it.
    Searching,
    /// It is read from what is here; nothing of it is fetched or given.
    Idle,
    /// Something of it is fetched; what is here is given.
    Downloading,
    /// What is here is given to whoever asks.
    Seeding,
    /// Neither given nor fetched until it is told to go on.
    Paused,
    /// It does not go on by itself.
    Error,
}

/// How a torrent stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentStatus {
    /// Its info hash.
    pub infohash: String,
    /// What it is called; empty as long as nobody has told.
    pub name: String,
    /// What it does.
    pub state: TorrentState,
    /// Why it does not go on.
    pub error: Option<String>,
    /// Bytes that are here and verified.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes that were received, since the start of the daemon.
    pub received: u64,
    /// Bytes that were sent, since the start of the daemon.
    pub sent: u64,
    /// Bytes received per second, over the last seconds.
    pub download_rate: u64,
    /// Bytes sent per second, over the last seconds.
    pub upload_rate: u64,
    /// Peers that are connected.
    pub peers: usize,
    /// Whether it is given to others from each start of the daemon on.
    pub seed: bool,
    /// What it was made from, where that is published here.
    pub cid: Option<ContentId>,
}

/// Something that happened to a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TorrentEvent {
    /// It does something else than before.
    State(TorrentStatus),
    /// Bytes came or went.
    Progress(TorrentStatus),
    /// It was removed.
    Removed(InfoHash),
}

impl Torrents {
    /// How a torrent stands.
    ///
    /// # Errors
    /// [`TorrentError::NoSuchTorrent`].
    pub fn status(&self, hash: InfoHash) -> Result<TorrentStatus, TorrentError> {
        let about = self.known().about(hash).ok_or(TorrentError::NoSuchTorrent(hash))?;
        let mut status = TorrentStatus {
            infohash: hash.to_string(),
            name: String::new(),
            state: TorrentState::Idle,
            error: None,
            bytes: 0,
            total: 0,
            received: 0,
            sent: 0,
            download_rate: 0,
            upload_rate: 0,
            peers: 0,
            seed: about.seed,
            cid: None,
        };
        match self.metainfo_now(hash) {
            Some(Ok(metainfo)) => {
                status.name = metainfo.name.to_string_lossy().into_owned();
                status.total = metainfo.len;
                self.active(&metainfo)?.describe(&mut status);
            }
            Some(Err(error)) => {
                (status.state, status.error) = (TorrentState::Error, Some(error.to_string()));
            }
            None => {
                let link = about.magnet.and_then(|magnet| magnet.parse::<Magnet>().ok());
                status.name = link.and_then(|link| link.name).unwrap_or_default();
                status.state = TorrentState::Searching;
            }
        }
        if about.paused {
            status.state = TorrentState::Paused;
        }
        Ok(status)
    }

    /// How all torrents stand that are listed.
    pub fn statuses(&self) -> Vec<TorrentStatus> {
        let all = self.known().listed();
        all.into_iter().filter_map(|(hash, _)| self.status(hash).ok()).collect()
    }

    /// How those stand of which something is fetched or given; looks at no disk.
    pub fn live(&self) -> Vec<TorrentStatus> {
        let managed = self.managed();
        managed.iter().filter_map(|active| self.status(active.metainfo().hash).ok()).collect()
    }

    /// Tells those who watch what has changed since they were last told.
    pub(super) fn tell(&self, active: &Active) {
        let Ok(status) = self.status(active.metainfo().hash) else { return };
        if let Some(event) = active.news(status) {
            self.host().told(event);
        }
    }
}

impl Active {
    /// Fills in what the session knows.
    fn describe(&self, status: &mut TorrentStatus) {
        status.bytes = self.pieces().all_here();
        status.received = self.pieces().received();
        status.cid = self.files().published().map(|published| published.source.root);
        let (live, peers) = self.is_live();
        status.peers = peers;
        let (download, upload, sent) = self.rates();
        status.sent = sent;
        if live {
            (status.download_rate, status.upload_rate) = (download, upload);
            let fetching = status.bytes < status.total && (download > 0 || self.is_waited_for());
            status.state = match (fetching, status.bytes) {
                (true, _) => TorrentState::Downloading,
                (false, 0) => TorrentState::Idle,
                (false, _) => TorrentState::Seeding,
            };
        }
        if let Some(error) = self.trouble() {
            (status.state, status.error) = (TorrentState::Error, Some(error.to_string()));
        }
    }
}
