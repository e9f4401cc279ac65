//! What the behaviour, its handlers and the handle share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::sync::{Semaphore, broadcast, mpsc};

use super::{
    BlockStore, Config, Event,
    buffers::Buffers,
    frame::SharedBudget,
    ledger::Ledgers,
    peer::{Link, Peer},
    server::Waiting,
};
use crate::{
    net::{PeerEvent, WantError},
    tasks::Tasks,
};

/// Changes among the peers that a slow listener may be behind; it is told that it missed some beyond that.
const MAX_CHANGES: usize = 1024;

/// Bytes of blocks that wait to be hashed together, on all connections: sixteen blocks of usual size for each of four
/// peers that are fast enough. Whoever finds no room hashes at once.
const HELD: usize = 16 << 20;

/// Long batches that are read or written on all connections: two for each of eight peers, 16 MiB.
const LONG_BATCHES: usize = 16;

/// Everything of Bitswap. Lock order: `peers`, then the state of one peer.
pub(super) struct Shared {
    /// Limits.
    pub(super) config: Config,
    /// What is served.
    pub(super) store: Arc<dyn BlockStore>,
    /// Where readers and writers run.
    pub(super) tasks: Tasks,
    /// Bytes exchanged with each peer.
    pub(super) ledgers: Ledgers,
    /// Memory for inbound frames.
    pub(super) buffers: Arc<Buffers>,
    /// Wants of peers for blocks that are not here.
    pub(super) waiting: Waiting,
    /// Memory that the frames under way on all connections share.
    pub(super) frames: SharedBudget,
    /// Memory, in bytes, of the blocks that wait to be hashed together.
    pub(super) held: Arc<Semaphore>,
    /// A permit for each batch to a peer that may be long.
    pub(super) long_batches: Arc<Semaphore>,
    peers: Mutex<HashMap<PeerId, Arc<Peer>>>,
    changes: broadcast::Sender<PeerEvent>,
    events: mpsc::UnboundedSender<Event>,
}

impl Shared {
    /// Without peers; what the swarm has to be told comes out of the receiver.
    pub(super) fn new(
        config: Config,
        store: Arc<dyn BlockStore>,
        tasks: Tasks,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let shared = Self {
            config,
            store,
            tasks,
            ledgers: Ledgers::new(),
            buffers: Arc::default(),
            waiting: Waiting::default(),
            frames: SharedBudget::new(config.frames),
            held: Arc::new(Semaphore::new(HELD)),
            long_batches: Arc::new(Semaphore::new(LONG_BATCHES)),
            peers: Mutex::default(),
            changes: broadcast::Sender::new(MAX_CHANGES),
            events,
        };
        (Arc::new(shared), receiver)
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer that is connected.
    pub(super) fn peer(&self, id: &PeerId) -> Option<Arc<Peer>> {
        self.peers().get(id).cloned()
    }

    /// All connected peers.
    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        self.peers().values().cloned().collect()
    }

    /// The peers that speak Bitswap, with whether they are chiral nodes, and the changes after that.
    pub(super) fn up(&self) -> (Vec<(PeerId, bool)>, broadcast::Receiver<PeerEvent>) {
        let peers = self.peers();
        let up = peers.values().filter_map(|peer| {
            let state = peer.state();
            state.up.then_some((peer.id, state.chiral))
        });
        (up.collect(), self.changes.subscribe())
    }

    /// A connection was made.
    pub(super) fn connected(&self, id: PeerId, link: Arc<Link>) -> Arc<Peer> {
        let mut peers = self.peers();
        let new = || Arc::new(Peer::new(id, self.ledgers.open(id), &self.config, &self.waiting));
        let peer = peers.entry(id).or_insert_with(new).clone();
        peer.state().link_added(link);
        peer
    }

    /// A connection is gone. With the last one everything that was wanted is answered.
    pub(super) fn disconnected(&self, peer: &Peer, connection: ConnectionId) {
        let mut peers = self.peers();
        let mut state = peer.state();
        if !state.link_removed(connection) {
            return;
        }
        state.client.fail(WantError::Disconnected);
        state.server.clear();
        let was_up = std::mem::take(&mut state.up);
        drop(state);
        peers.remove(&peer.id);
        if was_up {
            let _ = self.changes.send(PeerEvent::Down(peer.id));
        }
    }

    /// The peer speaks Bitswap.
    pub(super) fn speaks(&self, peer: &Peer) {
        let _peers = self.peers();
        let mut state = peer.state();
        if !std::mem::replace(&mut state.up, true) {
            let _ = self.changes.send(PeerEvent::Up { peer: peer.id, chiral: state.chiral });
        }
    }

    /// The peer is a chiral node, or not. Listeners that know it otherwise are told again.
    pub(super) fn set_chiral(&self, id: &PeerId, chiral: bool) {
        let peers = self.peers();
        let Some(peer) = peers.get(id) else { return };
        let mut state = peer.state();
        if state.chiral == chiral {
            return;
        }
        state.chiral = chiral;
        state.server.set_limit(if chiral {
            self.config.wants_per_chiral_peer
        } else {
            self.config.wants_per_peer
        });
        if state.up {
            let _ = self.changes.send(PeerEvent::Up { peer: *id, chiral });
        }
    }

    /// The peer broke the rules. Its wants end, ours are answered, and the swarm is told once.
    pub(super) fn misbehaved(&self, peer: &Peer, reason: String) {
        let mut state = peer.state();
        if state.banned {
            return;
        }
        state.ban();
        drop(state);
        let _ = self.events.send(Event::Misbehaved { peer: peer.id, reason });
    }
}
