//! The libp2p swarm and its driver: connections, Kademlia, Bitswap both ways.

#[cfg_attr(not(test), allow(dead_code, reason = "the driver that composes it is not written yet"))]
mod bitswap;

use std::{path::PathBuf, time::Duration};

pub use libp2p::{Multiaddr, PeerId};
use tokio::sync::{broadcast, mpsc};

use crate::{
    content::{Block, ContentId},
    store::{Store, StoreError},
    tasks::Tasks,
};

/// Options of [`Net::start`].
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Where the private key is kept, mode 0600; made when it is not there.
    pub key_file: PathBuf,
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<Multiaddr>,
    /// Peers to ask first for the DHT.
    pub bootstrap: Vec<Multiaddr>,
    /// Peers that stay connected.
    pub peers: Vec<Multiaddr>,
    /// No network at all: nothing listens, nothing is dialled.
    pub offline: bool,
    /// Serve blocks that were only read, not published.
    pub serve_cached: bool,
}

/// Why the network could not do something.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The key file is unreadable or broken.
    #[error("key {}: {reason}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// Which address.
        address: Multiaddr,
        /// Why not.
        reason: String,
    },
    /// A peer cannot be reached.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Which address.
        address: Multiaddr,
        /// Why not.
        reason: String,
    },
    /// The network is switched off.
    #[error("the daemon runs offline")]
    Offline,
    /// No bootstrap peer answered.
    #[error("no bootstrap peer answered")]
    Bootstrap,
    /// The DHT names nobody.
    #[error("nobody provides {0}")]
    NoProviders(ContentId),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The driver has ended.
    #[error("the network is shut down")]
    Closed,
}

/// What is known of a connected peer.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PeerInfo {
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub peer: PeerId,
    /// The address it is connected by.
    #[serde(serialize_with = "as_text")]
    pub address: Multiaddr,
    /// What it calls itself, once identified.
    pub agent: Option<String>,
    /// Round trip of the last ping.
    pub rtt: Option<Duration>,
    /// Block bytes received from it.
    pub received: u64,
    /// Block bytes sent to it.
    pub sent: u64,
}

fn as_text<T: ToString, S: serde::Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

/// A change among the peers that Bitswap can be spoken with.
#[derive(Clone, Debug)]
pub enum PeerEvent {
    /// Connected, and known to speak Bitswap.
    Up {
        /// Who.
        peer: PeerId,
        /// Whether it is a chiral node, which takes deep pipelines.
        chiral: bool,
    },
    /// Its last connection closed.
    Down(PeerId),
}

/// What became of one wanted block. Every want gets exactly one answer unless it is cancelled.
#[derive(Debug)]
pub struct BlockReply {
    /// Who was asked.
    pub peer: PeerId,
    /// For what.
    pub id: ContentId,
    /// What came.
    pub result: Result<Block, WantError>,
}

/// Why a peer did not give a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantError {
    /// It says that it does not have it.
    #[error("the peer does not have it")]
    DontHave,
    /// It is not connected, or the connection closed.
    #[error("the connection closed")]
    Disconnected,
    /// It sent bytes that hash to something else, or not Bitswap. The peer is banned.
    #[error("the peer sent wrong bytes")]
    Lied,
}

/// A provider that the DHT named.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Who.
    pub peer: PeerId,
    /// Where, as far as the records say.
    pub addresses: Vec<Multiaddr>,
}

/// The network; clones share one swarm.
#[derive(Clone, Debug)]
pub struct Net {
    _private: (),
}

impl Net {
    /// Listens, dials the named peers and starts the driver.
    pub async fn start(
        _options: NetOptions,
        _store: Store,
        _tasks: &Tasks,
    ) -> Result<Self, NetError> {
        todo!()
    }
    /// Own id.
    pub fn peer_id(&self) -> PeerId {
        todo!()
    }
    /// Addresses that are listened on, with the peer id at their end.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        todo!()
    }
    /// Dials and waits until the peer is identified.
    pub async fn connect(&self, _address: Multiaddr) -> Result<PeerId, NetError> {
        todo!()
    }
    /// Dials a provider; addresses may be empty when the swarm knows some.
    pub async fn dial(&self, _provider: Provider) -> Result<(), NetError> {
        todo!()
    }
    /// Connected peers.
    pub fn peers(&self) -> Vec<PeerInfo> {
        todo!()
    }
    /// Connected peers that speak Bitswap (with whether they are chiral nodes), and every change from then on.
    pub fn bitswap_peers(&self) -> (Vec<(PeerId, bool)>, broadcast::Receiver<PeerEvent>) {
        todo!()
    }
    /// Asks both DHTs; providers come as they are found, at most 20, for at most 30 s. Dropping the receiver ends the search.
    pub fn find_providers(&self, _id: &ContentId) -> mpsc::Receiver<Result<Provider, NetError>> {
        todo!()
    }
    /// Puts a root on the persisted announce queue; it is announced soon and again in time.
    pub fn announce(&self, _root: &ContentId) -> Result<(), NetError> {
        todo!()
    }
    /// Takes a root off the queue.
    pub fn withdraw(&self, _root: &ContentId) -> Result<(), NetError> {
        todo!()
    }
    /// Asks `peer` for blocks, in this order, as one group; answers come to `replies` as they arrive. Never waits.
    pub fn want_blocks(
        &self,
        _peer: PeerId,
        _ids: &[ContentId],
        _replies: &mpsc::UnboundedSender<BlockReply>,
    ) {
        todo!()
    }
    /// Gives up wants; no answer comes for them any more.
    pub fn cancel(&self, _peer: PeerId, _ids: &[ContentId]) {
        todo!()
    }
    /// Asks `peer` which of `ids` it has; silent peers count as having none after `within`.
    pub async fn want_haves(
        &self,
        _peer: PeerId,
        _ids: &[ContentId],
        _within: Duration,
    ) -> Vec<bool> {
        todo!()
    }
    /// Closes the connection to a peer and refuses it for a while.
    pub fn ban(&self, _peer: PeerId, _for_time: Duration) {
        todo!()
    }
}
