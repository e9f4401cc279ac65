//! Asks peers what they know of torrents, and answers them: `/chiral/torrent/1.0.0`.
//!
//! ```text
//!  Net::ask_torrent ──► Asks { links by peer } ──► Handler ──► task: question out, answer in
//!                                   inbound stream ──► Handler ──► task: question in, TorrentBook, answer out
//! ```
//!
//! A stream is one question and one answer, each one message with its length before it. A peer is asked for the
//! description of a torrent, for what its owner has signed of the contents of its files, and for the port at which it
//! takes part in the swarm. What it says of what went between the two nodes is noted and shown, and nothing else: a
//! stranger says of itself what it likes, so that only what was measured here decides whom this node prefers.

mod budget;
mod handler;
mod wire;

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    net::IpAddr,
    num::NonZeroUsize,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandlerInEvent, ToSwarm,
    },
};
use lru::LruCache;
use tokio::sync::{Semaphore, mpsc, oneshot};

#[cfg(test)]
pub(super) use self::handler::PROTOCOL;
use self::{
    budget::Budget,
    handler::{Handler, Work},
};
use super::{Net, address::is_relayed, bitswap};
use crate::{content::InfoHash, tasks::Tasks};

/// Files that one question asks about at most.
pub const MAX_FILES: u32 = 256;
/// Longest info dictionary that is given: one of 100,000 pieces. Longer ones come from the swarm.
pub const MAX_INFO: usize = 2 << 20;
/// Longest statement: some 250 bytes are usual.
const MAX_STATEMENT: usize = 1024;
/// Longest time for a question and its answer.
pub(super) const ASKING: Duration = Duration::from_secs(15);
/// Answers that are made at a time, each with up to [`MAX_INFO`] in memory.
const ANSWERS: usize = 8;
/// Peers whose word on what went between us is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What a peer is asked about a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorrentQuestion {
    /// The torrent.
    pub hash: InfoHash,
    /// Whether its description is wanted.
    pub describe: bool,
    /// The numbers of the files whose contents are wanted; those beyond [`MAX_FILES`] of them are not looked at.
    pub files: Range<u32>,
}

/// What is known of a torrent. Nothing of it is to be believed as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TorrentAnswer {
    /// Whether there is anything of it there.
    pub known: bool,
    /// Its info dictionary, whose SHA-1 is the info hash.
    pub info: Option<Bytes>,
    /// The TCP port at which the peer takes part in the swarm.
    pub port: Option<u16>,
    /// What somebody has signed of the contents of its files.
    pub statements: Vec<Bytes>,
}

/// Block bytes that went between two nodes, as one of them has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Dealings {
    /// Received by whoever says so.
    pub received: u64,
    /// Sent by whoever says so.
    pub sent: u64,
}

/// An answer, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorrentTold {
    /// What was answered.
    pub answer: TorrentAnswer,
    /// The host at the other end of the connection.
    pub from: Option<IpAddr>,
}

/// Why a peer was not asked, or did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// There is no direct connection, or it closed.
    #[error("the peer is not connected")]
    NotConnected,
    /// It speaks nothing of this, or broke off: it may have been asked too often.
    #[error("the peer does not answer: {0}")]
    Refused(String),
    /// What it said is no answer.
    #[error("the peer gave no answer but {0}")]
    Malformed(String),
    /// It took too long.
    #[error("the peer did not answer within {} s", ASKING.as_secs())]
    Late,
}

/// Knows the torrents that are here.
pub trait TorrentBook: fmt::Debug + Send + Sync {
    /// What a stranger may know. Called on a thread that may wait for the disk.
    fn answer(&self, question: &TorrentQuestion) -> TorrentAnswer;
}

/// Where a peer is asked: the handler of one of its connections.
struct Link {
    connection: ConnectionId,
    to: mpsc::UnboundedSender<Work>,
}

/// Everything of this protocol. None of its locks is held while another is taken.
pub(super) struct Asks {
    links: Mutex<HashMap<PeerId, Vec<Link>>>,
    book: Mutex<Option<Arc<dyn TorrentBook>>>,
    told: Mutex<LruCache<PeerId, Dealings>>,
    budget: Budget,
    answers: Arc<Semaphore>,
    bitswap: bitswap::Handle,
    tasks: Tasks,
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asks").finish_non_exhaustive()
    }
}

fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Asks {
    pub(super) fn new(bitswap: bitswap::Handle, tasks: &Tasks) -> Arc<Self> {
        Arc::new(Self {
            links: Mutex::default(),
            book: Mutex::default(),
            told: Mutex::new(LruCache::new(REMEMBERED)),
            budget: Budget::default(),
            answers: Arc::new(Semaphore::new(ANSWERS)),
            bitswap,
            tasks: tasks.clone(),
        })
    }

    fn connected(&self, peer: PeerId, connection: ConnectionId) -> mpsc::UnboundedReceiver<Work> {
        let (to, work) = mpsc::unbounded_channel();
        guard(&self.links).entry(peer).or_default().push(Link { connection, to });
        work
    }

    fn disconnected(&self, peer: PeerId, connection: ConnectionId) {
        let mut links = guard(&self.links);
        if let Some(its) = links.get_mut(&peer) {
            its.retain(|link| link.connection != connection);
            if its.is_empty() {
                links.remove(&peer);
            }
        }
    }

    /// What this node has counted of a peer.
    fn dealings(&self, peer: PeerId) -> Dealings {
        let (received, sent) = self.bitswap.ledger(peer);
        Dealings { received, sent }
    }

    fn heard(&self, peer: PeerId, dealings: Dealings) {
        guard(&self.told).put(peer, dealings);
    }

    async fn ask(&self, peer: PeerId, question: &TorrentQuestion) -> Result<TorrentTold, AskError> {
        let (reply, answer) = oneshot::channel();
        let question = wire::Question { asked: question.clone(), dealings: self.dealings(peer) };
        {
            let links = guard(&self.links);
            let link = links.get(&peer).and_then(|its| its.first());
            let link = link.ok_or(AskError::NotConnected)?;
            let work = Work { question: question.encode(), reply };
            link.to.send(work).map_err(|_| AskError::NotConnected)?;
        }
        match tokio::time::timeout(ASKING, answer).await {
            Ok(answered) => answered.map_err(|_| AskError::NotConnected)?,
            Err(_) => Err(AskError::Late),
        }
    }
}

impl Net {
    /// Asks a peer that is connected without a relay about a torrent.
    ///
    /// # Errors
    /// [`AskError`] says why there is no answer.
    pub async fn ask_torrent(
        &self,
        peer: PeerId,
        question: &TorrentQuestion,
    ) -> Result<TorrentTold, AskError> {
        match &self.inner.online {
            Some(online) => online.asks.ask(peer, question).await,
            None => Err(AskError::NotConnected),
        }
    }

    /// Names who answers peers that ask about torrents, until everything ends: it may hold what holds this.
    pub fn answer_torrents(&self, book: Arc<dyn TorrentBook>) {
        let Some(online) = &self.inner.online else { return };
        *guard(&online.asks.book) = Some(book);
        let asks = online.asks.clone();
        let cancelled = asks.tasks.cancelled();
        online.asks.tasks.spawn("torrent book", async move {
            cancelled.await;
            let book = guard(&asks.book).take();
            drop(book);
        });
    }

    /// What a peer has last said of what went between it and this node, as it has counted.
    pub fn claimed(&self, peer: &PeerId) -> Option<Dealings> {
        guard(&self.inner.online.as_ref()?.asks.told).peek(peer).copied()
    }
}

/// The protocol in a swarm: gives each direct connection its handler.
pub(super) struct Behaviour(pub(super) Arc<Asks>);

impl Behaviour {
    /// `address`: the end of the connection that says whether it leads over a relay.
    fn handler(
        &self,
        peer: PeerId,
        connection: ConnectionId,
        address: &Multiaddr,
        remote: &Multiaddr,
    ) -> Handler {
        if is_relayed(address) {
            return Handler::relayed();
        }
        Handler::new(self.0.clone(), peer, connection, remote)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer, connection, local, remote))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer, connection, address, address))
    }

    /// Handlers register their connections themselves and sign off when they are dropped.
    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
