//! What the handle reads without asking the driver.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::sync::watch;

use super::address::{is_relayed, without_peer};

/// Written by the driver alone.
#[derive(Debug, Default)]
pub(super) struct Shared {
    listening: RwLock<Vec<Multiaddr>>,
    /// Where others can reach this node, as far as that is known.
    external: RwLock<Vec<Multiaddr>>,
    peers: RwLock<BTreeMap<PeerId, Connected>>,
    /// Told of every change of the peers.
    changed: watch::Sender<()>,
}

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// Its number.
    pub(super) id: ConnectionId,
    /// Where its other end is; over a relay, the address that leads there.
    pub(super) address: Multiaddr,
    /// Whether this node opened it.
    pub(super) dialled: bool,
}

impl Connection {
    fn is_relayed(&self) -> bool {
        is_relayed(&self.address)
    }
}

/// A connected peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Connected {
    connections: Vec<Connection>,
    agent: Option<String>,
    rtt: Option<Duration>,
}

impl Connected {
    /// The address of its first direct connection, else of its first.
    pub(super) fn address(&self) -> Multiaddr {
        let direct = self.connections.iter().find(|connection| !connection.is_relayed());
        let first = direct.or(self.connections.first());
        first.map_or_else(Multiaddr::empty, |connection| connection.address.clone())
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

    /// Addresses that others can reach this node at, as far as that is known.
    pub(super) fn external(&self) -> Vec<Multiaddr> {
        self.external.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces what [`Shared::external`] gives; whether that is a change.
    pub(super) fn set_external(&self, addresses: Vec<Multiaddr>) -> bool {
        let mut external = self.external.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *external != addresses;
        *external = addresses;
        drop(external);
        if changed {
            self.changed.send_replace(());
        }
        changed
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

    /// Whether `peer` is connected without a relay.
    pub(super) fn is_direct(&self, peer: &PeerId) -> bool {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let direct = |known: &Connected| known.connections.iter().any(|c| !c.is_relayed());
        peers.get(peer).is_some_and(direct)
    }

    /// The connections of `peer` that lead over relays.
    pub(super) fn relayed(&self, peer: &PeerId) -> Vec<ConnectionId> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let connections = peers.get(peer).map_or(&[][..], |known| &known.connections);
        connections.iter().filter(|c| c.is_relayed()).map(|c| c.id).collect()
    }

    /// A connection of `peer` through `address`, if it has another besides.
    pub(super) fn spare(&self, peer: &PeerId, address: &Multiaddr) -> Option<ConnectionId> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let connections = &peers.get(peer)?.connections;
        let its = |c: &&Connection| without_peer(&c.address) == without_peer(address);
        let last = connections.iter().rfind(its)?;
        (connections.len() > 1).then_some(last.id)
    }

    /// One connection.
    pub(super) fn connection(&self, peer: &PeerId, id: ConnectionId) -> Option<Connection> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(peer)?.connections.iter().find(|connection| connection.id == id).cloned()
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

    pub(super) fn connected(&self, peer: PeerId, connection: Connection) {
        self.with_peers(|peers| peers.entry(peer).or_default().connections.push(connection));
    }

    pub(super) fn disconnected(&self, peer: &PeerId, connection: ConnectionId) {
        self.with_peers(|peers| {
            if let Some(known) = peers.get_mut(peer) {
                known.connections.retain(|known| known.id != connection);
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
        self.external.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.with_peers(BTreeMap::clear);
    }

    fn with_peers(&self, change: impl FnOnce(&mut BTreeMap<PeerId, Connected>)) {
        change(&mut self.peers.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }
}
