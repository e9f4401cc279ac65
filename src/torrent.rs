//! Torrents: what a magnet link leads to, its files while they are fetched, and the session that fetches them.
//!
//! The protocol is librqbit's. What is here around it: descriptions that are kept, so that a torrent that was seen once
//! is listed at once; files that are read at any place while they come; nothing that a link names is asked unless the
//! user allows it; and no name that a stranger chose is ever used on the disk.

mod about;
mod active;
mod bencode;
mod bridge;
mod bridges;
mod build;
mod descriptions;
mod ease;
mod fellows;
mod fetch;
mod file;
mod handle;
mod introduce;
mod known;
mod links;
mod listed;
mod made;
mod magnet;
mod manage;
mod metainfo;
mod meter;
mod pieces;
mod pins;
mod policy;
mod published;
mod reach;
mod room;
mod search;
mod selection;
mod session;
mod storage;
#[cfg(test)]
pub(crate) mod tests;
mod wake;
mod whole;
mod will;
mod wire;

use std::{io, net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

pub use self::{
    about::{ListedTorrent, TorrentPin},
    bencode::BencodeError,
    bridge::{Feed, FeedError, Feeder},
    build::{BuildError, InfoBuilder, piece_len_for},
    fellows::PeerTraffic,
    file::{Cached, TorrentFile},
    handle::{Limits, Torrents},
    links::{LinksError, links_in},
    listed::{TorrentEvent, TorrentState, TorrentStatus},
    made::Made,
    magnet::{Magnet, MagnetError},
    metainfo::{FileEntry, FileKind, Metainfo, MetainfoError, TreeKind, TreeNode},
    published::{Host, Source},
    reach::is_public,
    selection::{Selection, SelectionError},
    whole::WholeFile,
};
use crate::content::{ByteRange, ContentId, InfoHash};

/// Everything that can be set, with the defaults that the configuration file documents.
#[derive(Clone, Debug)]
pub struct TorrentOptions {
    /// Whether anybody is asked for torrents at all; what is here is readable in any case.
    pub online: bool,
    /// Address on which peers are accepted; none is.
    pub listen: Option<SocketAddr>,
    /// Whether the router is asked to let peers in.
    pub upnp: bool,
    /// Whether the public DHT is joined.
    pub dht: bool,
    /// Whether peers in the own network are looked for by multicast.
    pub local_discovery: bool,
    /// Trackers that are asked for every torrent.
    pub trackers: Vec<String>,
    /// Whether trackers are asked that a link names and that anybody can reach.
    pub public_trackers: bool,
    /// Whether a link may name trackers and peers at addresses of the own networks.
    pub allow_private_addresses: bool,
    /// Peers that are asked for every torrent.
    pub peers: Vec<SocketAddr>,
    /// Most peers of one torrent.
    pub peer_limit: usize,
    /// Bytes that are asked of one peer before it has sent any.
    pub peer_window: u64,
    /// Disk that torrents may take that are neither pinned nor seeded; none: a tenth of it.
    pub cache_limit: Option<u64>,
    /// Disk to leave free.
    pub min_free: Option<u64>,
    /// Most bytes per second that are sent.
    pub upload_limit: Option<NonZeroU32>,
    /// Most bytes per second that are received.
    pub download_limit: Option<NonZeroU32>,
    /// SOCKS5 proxy (`socks5h://host:port`) for everything that goes out.
    pub proxy: Option<String>,
    /// Longest wait for a connection to a peer.
    pub connect_timeout: Duration,
    /// Longest silence of a peer.
    pub read_timeout: Duration,
    /// Longest wait for a description, and for bytes that do not come.
    pub lookup_timeout: Duration,
}

impl Default for TorrentOptions {
    fn default() -> Self {
        Self {
            online: true,
            listen: Some((std::net::Ipv4Addr::UNSPECIFIED, 0).into()),
            upnp: false,
            dht: true,
            local_discovery: false,
            trackers: Vec::new(),
            public_trackers: true,
            allow_private_addresses: false,
            peers: Vec::new(),
            peer_limit: 128,
            // More fetches faster from a peer far away or with a long cycle, and a jump waits longer for what was asked for.
            peer_window: 2 << 20,
            cache_limit: None,
            min_free: None,
            upload_limit: None,
            download_limit: None,
            proxy: None,
            connect_timeout: Duration::from_secs(10),
            // Two minutes are what peers may be silent for, and one that waits for its turn is.
            read_timeout: Duration::from_secs(130),
            lookup_timeout: Duration::from_secs(30),
        }
    }
}

/// Why something about a torrent failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TorrentError {
    /// The link is none.
    #[error("not a magnet link: {0}")]
    Magnet(#[from] MagnetError),
    /// A text with links has a line that is none.
    #[error("not a text of links: {0}")]
    Links(#[from] LinksError),
    /// The description is malformed.
    #[error("a malformed torrent: {0}")]
    Metainfo(#[from] MetainfoError),
    /// Its description came, and is none.
    #[error("torrent {hash} cannot be opened: {why}")]
    Refused {
        /// The torrent.
        hash: InfoHash,
        /// The fault in it.
        why: Arc<str>,
    },
    /// Nobody gave the description in time. The search goes on for a while.
    #[error("nobody who has the torrent {hash} told what is in it within {} s", waited.as_secs())]
    NoMetadata {
        /// The torrent.
        hash: InfoHash,
        /// How long was waited.
        waited: Duration,
    },
    /// Nobody gave the bytes in time.
    #[error("torrent {hash}: no peer gave bytes {range} of file {file} in time")]
    Stalled {
        /// The torrent.
        hash: InfoHash,
        /// Which file, by its number.
        file: u32,
        /// Which bytes of it.
        range: ByteRange,
    },
    /// There is no such file or directory in the torrent.
    #[error("torrent {hash} has no file {file}")]
    NoSuchFile {
        /// The torrent.
        hash: InfoHash,
        /// Its number.
        file: u32,
    },
    /// There is a file where a directory is needed.
    #[error("torrent {0}: not a directory")]
    NotADirectory(InfoHash),
    /// There is a directory where a file is needed.
    #[error("torrent {0}: it is a directory; name one of its files")]
    IsADirectory(InfoHash),
    /// A tracker of the configuration is no address.
    #[error(
        "`{0}` is not the address of a tracker, such as \"udp://tracker.example:6969/announce\""
    )]
    Tracker(String),
    /// The disk failed, or is full.
    #[error("cannot {what} a torrent's file: {source}")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// Nothing is fetched: the daemon is offline, or torrents are switched off.
    #[error(
        "nothing of torrent {0} that is not here can be had: the daemon asks nobody for torrents"
    )]
    Offline(InfoHash),
    /// The session does not start, or refuses a torrent.
    #[error("torrents: {0}")]
    Session(Arc<str>),
    /// Nobody here has ever heard of it.
    #[error("there is no torrent {0} here")]
    NoSuchTorrent(InfoHash),
    /// It was removed while somebody had it open.
    #[error("torrent {0} was removed")]
    Removed(InfoHash),
    /// It is neither given nor fetched until somebody says so.
    #[error("torrent {0} is paused; `chiral torrent resume {0}` lets it go on")]
    Paused(InfoHash),
    /// What it was made from is not here any more.
    #[error(
        "torrent {hash} cannot be given to others: {id}, which it was made from, is not here any more"
    )]
    Gone {
        /// The torrent.
        hash: InfoHash,
        /// What is missing.
        id: ContentId,
    },
    /// No torrent can be made of it.
    #[error("no torrent can be made of it: {0}")]
    Build(#[from] BuildError),
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    Closed,
}

impl TorrentError {
    fn disk(what: &'static str, source: io::Error) -> Self {
        Self::Disk { what, source: Arc::new(source) }
    }
}
