//! How this node is found and reached: neighbours, external addresses, relays.

use std::collections::BTreeMap;

use libp2p::{
    Multiaddr, PeerId, autonat, dcutr, mdns, relay,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::time::Instant;

use super::{
    Driver,
    dials::{Step, Waiter, innermost},
};
use crate::net::{
    address::{
        Scope, is_loopback, is_quic, is_relayed, is_unspecified, relay_address, relay_of,
        without_peer,
    },
    behaviour::BehaviourEvent,
    udp,
};

/// Dials at once, after which neighbours that are found are not dialled: anybody on the local network can make up any
/// number of them.
const MAX_DIALS: usize = 64;

impl Driver {
    pub(super) fn on_reach_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_neighbours(found),
            BehaviourEvent::Upnp(event) => tracing::debug!(?event, "port forwarding"),
            BehaviourEvent::AutonatClient(event) => self.on_tested(&event),
            BehaviourEvent::AutonatServer(autonat::v2::server::Event {
                client,
                tested_addr,
                ..
            }) => {
                // What was opened for the test is of no further use.
                if let Some(connection) = self.shared.spare(&client, &tested_addr) {
                    self.swarm.close_connection(connection);
                }
            }
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                ..
            }) => self.relays.granted(&relay_peer_id),
            BehaviourEvent::Dcutr(dcutr::Event { remote_peer_id, result: Err(error) }) => {
                tracing::debug!(peer = %remote_peer_id, %error, "no direct connection");
            }
            _ => {}
        }
    }

    /// Dials the neighbours that mDNS found, where they say that they are on this network.
    fn on_neighbours(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let now = Instant::now();
        let usable = |address: &Multiaddr| {
            Scope::Lan.covers(address) && !is_loopback(address) && !is_relayed(address)
        };
        let mut peers: Vec<PeerId> = found.iter().map(|(peer, _)| *peer).collect();
        peers.sort_unstable();
        peers.dedup();
        for peer in peers {
            let its = found.iter().filter(|(who, at)| *who == peer && usable(at));
            let addresses: Vec<Multiaddr> = its.map(|(_, at)| without_peer(at)).collect();
            let known = addresses.is_empty() || self.swarm.is_connected(&peer);
            if known || peer == *self.swarm.local_peer_id() || self.dials.len() >= MAX_DIALS {
                continue;
            }
            tracing::debug!(%peer, ?addresses, "a neighbour");
            self.book.put(peer, addresses.clone());
            self.dial_all(peer, addresses, Waiter::Nobody, now);
        }
    }

    fn on_tested(&mut self, event: &autonat::v2::client::Event) {
        let (address, server) = (&event.tested_addr, event.server);
        match &event.result {
            Ok(()) => tracing::debug!(%address, %server, "others reach this node"),
            Err(error) => {
                tracing::debug!(%address, %server, %error, "others do not reach this node");
                self.relays.unreachable(Instant::now());
            }
        }
    }

    /// Takes the configured addresses as ones that lead here.
    pub(super) fn announce_configured(&mut self) {
        for address in self.reach.announce.clone() {
            self.swarm.add_external_address(without_peer(&address));
        }
        self.on_external_change();
    }

    pub(in crate::net) fn on_listening(&mut self, address: Multiaddr) {
        if is_quic(&address) && !is_relayed(&address) {
            udp::raise_and_report();
        }
        self.shared.listening(address.clone());
        // The relay client tells of its addresses itself.
        if is_relayed(&address) || is_unspecified(&address) {
            return;
        }
        // Whether others can really reach a public address is not known yet. A private one is taken as it is: without
        // any external address nobody on the local network would take a provider record from here.
        let private = Scope::Lan.covers(&address);
        let doubted = if private { self.reach.doubt_private } else { self.reach.autonat };
        if doubted {
            self.swarm.behaviour_mut().consider(&address);
        } else {
            self.swarm.add_external_address(address);
            self.on_external_change();
        }
    }

    /// Somebody called from `from`, which reached this node at `local`.
    pub(super) fn on_called(&mut self, local: &Multiaddr, from: &Multiaddr) {
        if is_proof(local, from)
            && self.shared.addresses().contains(local)
            && !self.swarm.external_addresses().any(|known| known == local)
        {
            self.swarm.add_external_address(local.clone());
            self.on_external_change();
        }
    }

    pub(in crate::net) fn on_expired(&mut self, address: &Multiaddr) {
        self.shared.expired(address);
        if is_relayed(address) {
            return;
        }
        self.swarm.remove_external_address(address);
        if !is_loopback(address) {
            self.forget_tested();
        }
        self.on_external_change();
    }

    /// Forgets the public addresses that tests have shown: this node leaves a network, and what led to it there leads to
    /// somebody else now, or to nobody. Those that still hold are found anew.
    fn forget_tested(&mut self) {
        let listening = self.shared.addresses();
        let configured: Vec<Multiaddr> = self.reach.announce.iter().map(without_peer).collect();
        let tested = |at: &&Multiaddr| {
            let kept = listening.contains(at) || configured.contains(at);
            Scope::Wan.covers(at) && !is_relayed(at) && !kept
        };
        let gone: Vec<Multiaddr> =
            self.swarm.external_addresses().filter(tested).cloned().collect();
        for address in gone {
            self.swarm.remove_external_address(&address);
        }
    }

    /// Says everywhere which addresses lead here now.
    pub(super) fn on_external_change(&mut self) {
        let mut external: Vec<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        external.sort_unstable();
        let direct = |at: &&Multiaddr| Scope::Wan.covers(at) && !is_relayed(at);
        let reached = external.iter().any(|at| direct(&at));
        for relay in self.relays.reachable(reached, Instant::now()) {
            // An error says that it is gone already.
            let _ = self.swarm.disconnect_peer_id(relay);
        }
        if self.shared.set_external(external) {
            // They know the old ones, and whether this node serves the DHT follows from them.
            let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
            self.swarm.behaviour_mut().identify.push(peers);
        }
    }

    /// Remembers a relay that may be asked for a slot.
    pub(super) fn on_relay(
        &mut self,
        peer: PeerId,
        via: &Multiaddr,
        dialled: bool,
        claimed: &[Multiaddr],
    ) {
        let strange = self.reach.named_relays_only && !self.redial.names(&peer);
        // Whoever listens on loopback alone is not to be reached from elsewhere.
        let confined = self.shared.addresses().iter().all(is_loopback);
        if !strange && (is_loopback(via) || !confined) {
            self.relays.offers(peer, via, dialled, claimed, Instant::now());
        }
    }

    /// Asks relays for slots while nobody can reach this node.
    pub(super) fn reserve(&mut self, now: Instant) {
        while let Some((peer, address)) = self.relays.due(now) {
            match self.swarm.listen_on(address) {
                Ok(listener) => self.relays.listening(listener, peer),
                Err(error) => {
                    tracing::debug!(%peer, error = innermost(&error), "no slot at a relay");
                    self.relays.failed(&peer, now);
                }
            }
        }
    }

    /// Dials the relays in `step` that are not connected, which goes on when they are; gives what is left to dial now.
    ///
    /// Left to itself the client of relays gives up whenever somebody else is dialling the relay just then.
    pub(super) fn over_connected_relays(&mut self, step: Step) -> Option<Step> {
        let Step { attempt, peer, addresses } = step;
        let all = addresses.len();
        let mut now = Vec::new();
        let mut by_relay: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
        for address in addresses {
            match relay_of(&address).filter(|relay| !self.swarm.is_connected(relay)) {
                Some(relay) => by_relay.entry(relay).or_default().push(address),
                None => now.push(address),
            }
        }
        for (relay, mut over) in by_relay {
            let options = DialOpts::peer_id(relay)
                .condition(PeerCondition::Disconnected)
                .addresses(over.iter().map(relay_address).collect())
                .build();
            let connection = options.connection_id();
            match self.swarm.dial(options) {
                Ok(()) => {
                    // One way to the relay is enough when it is connected.
                    over.truncate(1);
                    self.to_relays.insert(connection, Step { attempt, peer, addresses: over });
                    self.dials.dialling(attempt, connection);
                }
                Err(error) => self.dials.failed_to_start(attempt, &error),
            }
        }
        (all == 0 || !now.is_empty()).then_some(Step { attempt, peer, addresses: now })
    }

    /// A dial has led to a connection or failed; goes on with what was to be dialled over it, unless no relay is there.
    pub(super) fn on_relay_dialled(&mut self, connection: ConnectionId) {
        let Some(step) = self.to_relays.get(&connection) else { return };
        let relay = step.addresses.first().and_then(relay_of);
        let connected = relay.is_some_and(|relay| self.swarm.is_connected(&relay));
        if let Some(step) = self.to_relays.remove(&connection)
            && connected
        {
            self.dial(step);
            self.dials.passed(connection);
        }
    }

    /// Closes the connections of a peer over relays: there is a direct one now.
    pub(super) fn leave_relays(&mut self, peer: &PeerId) {
        for connection in self.shared.relayed(peer) {
            self.swarm.close_connection(connection);
        }
    }
}

/// Whether a call from `from` shows that everybody reaches `local`, without which a node that only others call would be
/// tested by nobody. A call over QUIC may have come through a hole that this node punched, one over TCP has not: the
/// socket that punches takes that.
fn is_proof(local: &Multiaddr, from: &Multiaddr) -> bool {
    let public = |at: &Multiaddr| Scope::Wan.covers(at) && !is_relayed(at);
    public(local) && public(from) && !is_quic(local)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_call_from_afar_over_tcp_shows_that_a_public_address_leads_here() {
        let at = |text: &str| text.parse::<Multiaddr>().unwrap();
        let relay = format!("/ip4/1.1.1.1/tcp/1/p2p/{}/p2p-circuit", PeerId::random());
        for (local, from, proof) in [
            ("/ip4/1.1.1.1/tcp/1", "/ip4/8.8.8.8/tcp/5", true),
            ("/ip4/1.1.1.1/tcp/1", "/ip4/10.0.0.1/tcp/5", false),
            ("/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/5", false),
            ("/ip4/1.1.1.1/udp/1/quic-v1", "/ip4/8.8.8.8/udp/5/quic-v1", false),
            (relay.as_str(), "/ip4/8.8.8.8/tcp/5", false),
        ] {
            assert_eq!(is_proof(&at(local), &at(from)), proof, "{local} {from}");
        }
    }
}
