//! The libp2p swarm and its driver: connections, Kademlia, Bitswap both ways.

mod address;
mod announce;
mod ask;
mod behaviour;
mod bitswap;
mod candidates;
mod driver;
mod gather;
mod guard;
mod identity;
mod keep;
mod limits;
mod nearby;
mod pong;
mod rank;
mod reach;
mod records;
mod redial;
mod relayed;
mod relays;
mod rows;
mod scoped_kad;
mod security;
mod shared;
mod signed;
mod split;
mod start;
mod tell;
mod tls;
mod transport;
mod udp;

use std::{path::PathBuf, sync::Arc, time::Duration};

use libp2p::identity::Keypair;
pub use libp2p::{Multiaddr, PeerId};
use tokio::sync::{broadcast, mpsc, oneshot};

use self::{announce::Announcer, ask::Asks, driver::Command, shared::Shared};
pub use self::{
    ask::{
        AskError, Dealings, MAX_FILES, MAX_INFO, TorrentAnswer, TorrentBook, TorrentQuestion,
        TorrentTold,
    },
    reach::ReachOptions,
    signed::signed_statement,
};
use crate::{
    content::{Block, ContentId},
    store::{Store, StoreError},
    tasks::Tasks,
};

/// How long [`Net::connect`] and [`Net::dial`] wait: a silent address costs the transport 8 s, and a peer may have
/// addresses of several kinds, which are tried one kind after the other.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// How the node is found and reached.
    pub reach: ReachOptions,
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
    /// What it has last said of that. Nothing follows from it.
    pub claimed: Option<Dealings>,
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

/// Takes the answers to wanted blocks, on the task that received them: it must not wait, and not call the network
/// from there.
pub trait Asker: std::fmt::Debug + Send + Sync {
    /// One want is answered.
    fn answer(&self, reply: BlockReply);
}

impl Asker for mpsc::UnboundedSender<BlockReply> {
    fn answer(&self, reply: BlockReply) {
        // Whoever dropped the receiver does not care.
        let _ = self.send(reply);
    }
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

/// The network; clones share one swarm, which ends with the last of them or with the tasks it runs on.
#[derive(Clone, Debug)]
pub struct Net {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    own: PeerId,
    key: Keypair,
    shared: Arc<Shared>,
    announcer: Arc<Announcer>,
    /// None: offline.
    online: Option<Online>,
}

#[derive(Debug)]
struct Online {
    commands: mpsc::UnboundedSender<Command>,
    bitswap: bitswap::Handle,
    asks: Arc<Asks>,
}

impl Net {
    /// Listens, dials the named peers and starts the driver. Returns when every address is listened on; peers are
    /// dialled after that.
    ///
    /// # Errors
    /// [`NetError::Key`] when the key file is unusable, [`NetError::Listen`] when an address is taken or no address of
    /// this machine, [`NetError::Store`] when the working state cannot be read.
    pub async fn start(options: NetOptions, store: Store, tasks: &Tasks) -> Result<Self, NetError> {
        let rows = start::NetRows::of(&store)?;
        start::start(options, rows, Arc::new(store), tasks).await
    }

    /// Own id.
    pub fn peer_id(&self) -> PeerId {
        self.inner.own
    }

    /// Addresses that are listened on, then others that lead here, with the peer id at their end.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        let mut addresses = Vec::new();
        for at in self.inner.shared.addresses().into_iter().chain(self.inner.shared.external()) {
            let at = address::with_peer(&at, self.inner.own);
            if !addresses.contains(&at) {
                addresses.push(at);
            }
        }
        addresses
    }

    /// Addresses that others reach this node at, as far as that is known: private ones that are listened on, public ones
    /// once somebody did, and those over relays.
    pub fn external_addresses(&self) -> Vec<Multiaddr> {
        self.inner.shared.external()
    }

    /// Dials and waits until the peer is identified, be it over a relay. Its direct connection stays open from then on.
    ///
    /// # Errors
    /// [`NetError::Connect`] with the reason, [`NetError::Offline`], [`NetError::Closed`].
    pub async fn connect(&self, address: Multiaddr) -> Result<PeerId, NetError> {
        self.refuse_own(address::peer_of(&address), &address)?;
        let (reply, answer) = oneshot::channel();
        self.command(Command::Connect(address.clone(), reply))?;
        wait_for(address, answer).await
    }

    /// Dials a provider and waits until it is connected without a relay, over which no blocks go; addresses may be empty
    /// when the swarm knows some. What is known besides is tried as well: nearby TCP first, then nearby QUIC, distant
    /// QUIC, distant TCP, and last the relays that bring about a direct connection.
    ///
    /// # Errors
    /// As [`Net::connect`].
    pub async fn dial(&self, provider: Provider) -> Result<(), NetError> {
        let first = provider.addresses.first().cloned().unwrap_or_else(Multiaddr::empty);
        let address = address::with_peer(&first, provider.peer);
        self.refuse_own(Some(provider.peer), &address)?;
        let (reply, answer) = oneshot::channel();
        self.command(Command::Dial(provider, reply))?;
        wait_for(address, answer).await
    }

    /// Connected peers, by their ids.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let peers = self.inner.shared.peers();
        let info = |(peer, known): (PeerId, shared::Connected)| {
            let (received, sent) = self.bitswap().map_or((0, 0), |bitswap| bitswap.ledger(peer));
            let (address, agent, rtt) = (known.address(), known.agent(), known.rtt());
            let claimed = self.claimed(&peer);
            PeerInfo { peer, address, agent, rtt, received, sent, claimed }
        };
        peers.into_iter().map(info).collect()
    }

    /// Block bytes that went between this node and each peer that it remembers, since its start.
    pub fn ledgers(&self) -> Vec<(PeerId, Dealings)> {
        self.bitswap().map(bitswap::Handle::ledgers).unwrap_or_default()
    }

    /// Connected peers that speak Bitswap (with whether they are chiral nodes), and every change from then on.
    /// A peer comes up once more when it turns out to be a chiral node.
    pub fn bitswap_peers(&self) -> (Vec<(PeerId, bool)>, broadcast::Receiver<PeerEvent>) {
        match self.bitswap() {
            Some(bitswap) => bitswap.peers(),
            // Nobody ever comes: the sender is gone.
            None => (Vec::new(), broadcast::channel(1).1),
        }
    }

    /// Asks both DHTs; providers come as they are found, at most 20, for at most 30 s. Dropping the receiver ends the
    /// search. The last item is an error when nobody was found: [`NetError::NoProviders`] when the DHT was asked,
    /// [`NetError::Bootstrap`] when there was no one to ask.
    pub fn find_providers(&self, id: &ContentId) -> mpsc::Receiver<Result<Provider, NetError>> {
        // Room for every provider and one error: the driver never waits for the receiver.
        let (to, found) = mpsc::channel(driver::MAX_PROVIDERS + 1);
        if let Err(error) = self.command(Command::Find(*id, to.clone())) {
            // The channel is empty and its receiver is in hand.
            let _ = to.try_send(Err(error));
        }
        found
    }

    /// Puts a root on the persisted announce queue; it is announced soon and again in time. One that is on it already
    /// is announced again at once. Offline it waits for a start with a network.
    ///
    /// # Errors
    /// [`NetError::Store`] when the queue cannot be written.
    pub fn announce(&self, root: &ContentId) -> Result<(), NetError> {
        Ok(self.inner.announcer.add(root)?)
    }

    /// The roots that are announced from now on, once for each DHT that was told. A receiver that lags misses the oldest.
    pub fn announced(&self) -> broadcast::Receiver<ContentId> {
        self.inner.announcer.told()
    }

    /// Whether a root is on the queue.
    pub fn is_queued(&self, root: &ContentId) -> bool {
        self.inner.announcer.contains(root)
    }

    /// The roots on the queue that `of` says. Looks at all of them.
    pub fn queued(&self, of: impl Fn(&ContentId) -> bool) -> Vec<ContentId> {
        self.inner.announcer.queued(of)
    }

    /// Takes a root off the queue. Others forget it when their records expire, after two days.
    ///
    /// # Errors
    /// As [`Net::announce`].
    pub fn withdraw(&self, root: &ContentId) -> Result<(), NetError> {
        self.inner.announcer.remove(root)?;
        // Without a driver nobody names this node as a provider anyway.
        let _ = self.command(Command::Withdraw(announce::key_of(root)));
        Ok(())
    }

    /// Asks `peer` for blocks, in this order, as one group; answers go to `asker` as they arrive. Never waits.
    pub fn want_blocks(&self, peer: PeerId, ids: &[ContentId], asker: &Arc<dyn Asker>) {
        if let Some(bitswap) = self.bitswap() {
            bitswap.want_blocks(peer, ids, asker);
            return;
        }
        for id in ids {
            asker.answer(BlockReply { peer, id: *id, result: Err(WantError::Disconnected) });
        }
    }

    /// Gives up what `asker` wants; no answer comes for that any more.
    pub fn cancel(&self, peer: PeerId, ids: &[ContentId], asker: &Arc<dyn Asker>) {
        if let Some(bitswap) = self.bitswap() {
            bitswap.cancel(peer, ids, asker);
        }
    }

    /// Asks `peer` which of `ids` it has; silent peers count as having none after `within`.
    pub async fn want_haves(&self, peer: PeerId, ids: &[ContentId], within: Duration) -> Vec<bool> {
        match self.bitswap() {
            Some(bitswap) => bitswap.want_haves(peer, ids, within).await,
            None => vec![false; ids.len()],
        }
    }

    /// Says that a block can be served from now on: peers that wait for it get it.
    pub fn block_arrived(&self, id: &ContentId) {
        if let Some(bitswap) = self.bitswap() {
            bitswap.block_arrived(id);
        }
    }

    /// Closes the connection to a peer and refuses it for a while.
    pub fn ban(&self, peer: PeerId, for_time: Duration) {
        // Without a driver there is nobody to refuse.
        let _ = self.command(Command::Ban(peer, for_time));
    }

    /// A dial to one's own port from that port meets itself half way and fails in a way that tells nothing.
    fn refuse_own(&self, peer: Option<PeerId>, address: &Multiaddr) -> Result<(), NetError> {
        if peer != Some(self.inner.own) {
            return Ok(());
        }
        let reason = "that is this node itself".to_owned();
        Err(NetError::Connect { address: address.clone(), reason })
    }

    fn bitswap(&self) -> Option<&bitswap::Handle> {
        self.inner.online.as_ref().map(|online| &online.bitswap)
    }

    fn command(&self, command: Command) -> Result<(), NetError> {
        let online = self.inner.online.as_ref().ok_or(NetError::Offline)?;
        online.commands.send(command).map_err(|_| NetError::Closed)
    }
}

async fn wait_for<T>(
    address: Multiaddr,
    answer: oneshot::Receiver<Result<T, NetError>>,
) -> Result<T, NetError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(NetError::Closed),
        Err(_) => {
            let reason = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
            Err(NetError::Connect { address, reason })
        }
    }
}

#[cfg(test)]
mod tests;
