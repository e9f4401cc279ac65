//! The state of the node in one glance.

use std::{num::NonZeroU32, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Node, NodeError, PeerInfo, TorrentState};

/// What `chiral status` and `.chiral/status.json` tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Own peer id.
    pub peer_id: String,
    /// Addresses that are listened on, with the peer id at their end.
    pub addresses: Vec<String>,
    /// Where the tree is mounted.
    pub mountpoint: Option<PathBuf>,
    /// Base URL of the HTTP gateway, when there is one.
    pub gateway: Option<String>,
    /// Port on which torrent peers are accepted, when there is one.
    pub torrent_port: Option<u16>,
    /// Torrents.
    pub torrents: TorrentsStatus,
    /// What is on disk.
    pub store: StoreStatus,
    /// Connected peers.
    pub peers: usize,
    /// Downloads that run.
    pub downloads: usize,
    /// Entries of the upload directory that are published.
    pub uploads: usize,
}

/// Torrents at a glance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentsStatus {
    /// All that are listed.
    pub known: usize,
    /// Those of which something is fetched.
    pub downloading: usize,
    /// Those of which something is given.
    pub seeding: usize,
    /// Bytes received per second.
    pub download_rate: u64,
    /// Bytes sent per second.
    pub upload_rate: u64,
    /// Most bytes per second that are received; none: no limit.
    pub download_limit: Option<u32>,
    /// Most bytes per second that are sent; none: no limit.
    pub upload_limit: Option<u32>,
}

/// What is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Bytes of disk that content takes.
    pub bytes: u64,
    /// Files of content.
    pub objects: u64,
    /// Blocks that can be served.
    pub blocks: u64,
    /// Bytes of disk that may still be written.
    pub available: u64,
}

/// A connected peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub peer_id: String,
    /// The address it is connected by.
    pub address: String,
    /// What it calls itself, once identified.
    pub agent: Option<String>,
    /// Round trip of the last ping in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Block bytes received from it.
    pub received: u64,
    /// Block bytes sent to it.
    pub sent: u64,
    /// Block bytes that it says to have received from this node, where it has said so.
    #[serde(default)]
    pub claims_received: Option<u64>,
    /// Block bytes that it says to have sent.
    #[serde(default)]
    pub claims_sent: Option<u64>,
}

impl From<PeerInfo> for Peer {
    fn from(peer: PeerInfo) -> Self {
        Self {
            peer_id: peer.peer.to_string(),
            address: peer.address.to_string(),
            agent: peer.agent,
            rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            received: peer.received,
            sent: peer.sent,
            claims_received: peer.claimed.map(|claimed| claimed.received),
            claims_sent: peer.claimed.map(|claimed| claimed.sent),
        }
    }
}

impl Node {
    /// The peers that are connected.
    pub fn peers(&self) -> Vec<Peer> {
        self.net().peers().into_iter().map(Peer::from).collect()
    }

    fn torrents_status(&self) -> TorrentsStatus {
        let (live, limits) = (self.torrents().live(), self.torrents().limits());
        let count = |state| live.iter().filter(|torrent| torrent.state == state).count();
        TorrentsStatus {
            known: self.torrents().count(),
            downloading: count(TorrentState::Downloading),
            seeding: count(TorrentState::Seeding),
            download_rate: live.iter().map(|torrent| torrent.download_rate).sum(),
            upload_rate: live.iter().map(|torrent| torrent.upload_rate).sum(),
            download_limit: limits.download.map(NonZeroU32::get),
            upload_limit: limits.upload.map(NonZeroU32::get),
        }
    }

    /// The state of the node; never waits for the network.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn status(&self) -> Result<Status, NodeError> {
        let stats = self.store().stats()?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer_id: self.net().peer_id().to_string(),
            addresses: self.net().addresses().iter().map(ToString::to_string).collect(),
            mountpoint: self.mountpoint(),
            gateway: self.gateway(),
            torrent_port: self.torrents().address().map(|address| address.port()),
            torrents: self.torrents_status(),
            store: StoreStatus {
                bytes: stats.bytes,
                objects: stats.objects,
                blocks: stats.blocks,
                available: stats.available,
            },
            peers: self.net().peers().len(),
            downloads: self.transfers().len(),
            uploads: self.uploads().published().len(),
        })
    }
}
