//! What the handle reads without asking the driver.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::sync::watch;

/// Written by the driver alone.
#[derive(Debug, Default)]
pub(super) struct Shared {
    listening: RwLock<Vec<Multiaddr>>,
    peers: RwLock<BTreeMap<PeerId, Connected>>,
    /// Told of every change of the peers.
    changed: watch::Sender<()>,
}

/// A connected peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Connected {
    connections: Vec<(ConnectionId, Multiaddr)>,
    agent: Option<String>,
    rtt: Option<Duration>,
}

impl Connected {
    /// The address of its first connection.
    pub(super) fn address(&self) -> Multiaddr {
        self.connections.first().map_or_else(Multiaddr::empty, |(_, address)| address.clone())
    }

    /// What it calls itself.
    pub(super) fn agent(&self) -> Option<String> {
        self.agent.clone()
    }

    /// Its last round trip.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }
}

/// Longest agent version that is kept; a stranger chooses it.
const MAX_AGENT: usize = 128;

impl Shared {
    /// Addresses that are listened on.
    pub(super) fn addresses(&self) -> Vec<Multiaddr> {
        self.listening.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connected peers.
    pub(super) fn peers(&self) -> BTreeMap<PeerId, Connected> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether `peer` is connected and has said what it is.
    pub(super) fn is_identified(&self, peer: &PeerId) -> bool {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(peer).is_some_and(|peer| peer.agent.is_some())
    }

    /// The address of one connection.
    pub(super) fn address_of(&self, peer: &PeerId, connection: ConnectionId) -> Option<Multiaddr> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let mut its = peers.get(peer)?.connections.iter();
        its.find(|(id, _)| *id == connection).map(|(_, address)| address.clone())
    }

    pub(super) fn listening(&self, address: Multiaddr) {
        let mut listening = self.listening.write().unwrap_or_else(PoisonError::into_inner);
        if !listening.contains(&address) {
            listening.push(address);
        }
    }

    pub(super) fn expired(&self, address: &Multiaddr) {
        let mut listening = self.listening.write().unwrap_or_else(PoisonError::into_inner);
        listening.retain(|known| known != address);
    }

    pub(super) fn connected(&self, peer: PeerId, connection: ConnectionId, address: Multiaddr) {
        self.with_peers(|peers| {
            peers.entry(peer).or_default().connections.push((connection, address));
        });
    }

    pub(super) fn disconnected(&self, peer: &PeerId, connection: ConnectionId) {
        self.with_peers(|peers| {
            if let Some(known) = peers.get_mut(peer) {
                known.connections.retain(|(id, _)| *id != connection);
                if known.connections.is_empty() {
                    peers.remove(peer);
                }
            }
        });
    }

    pub(super) fn identified(&self, peer: &PeerId, agent: &str) {
        let agent = agent.chars().filter(|c| !c.is_control()).take(MAX_AGENT).collect();
        self.with_peers(|peers| {
            if let Some(known) = peers.get_mut(peer) {
                known.agent = Some(agent);
            }
        });
    }

    pub(super) fn measured(&self, peer: &PeerId, rtt: Duration) {
        self.with_peers(|peers| {
            if let Some(known) = peers.get_mut(peer) {
                known.rtt = Some(rtt);
            }
        });
    }

    /// Wakes whenever the peers change.
    #[cfg(test)]
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Forgets everything: the swarm is gone.
    pub(super) fn clear(&self) {
        self.listening.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.with_peers(BTreeMap::clear);
    }

    fn with_peers(&self, change: impl FnOnce(&mut BTreeMap<PeerId, Connected>)) {
        change(&mut self.peers.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }
}
