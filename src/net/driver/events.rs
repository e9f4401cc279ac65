//! What the driver does on events of the swarm.

use std::time::Duration;

use libp2p::{
    PeerId,
    core::ConnectedPoint,
    identify, kad, ping, relay,
    swarm::{ConnectionId, SwarmEvent},
};
use tokio::time::Instant;

use super::{Driver, dials};
use crate::net::{
    Provider,
    address::{Scope, is_quic, trusted, with_peer, without_peer},
    behaviour::{BehaviourEvent, is_chiral},
    bitswap,
    shared::Connection,
    udp,
};

/// Chiral peers whose connections stay open although nothing happens on them: they serve at full rate at once, but a
/// name is easily claimed, so most of the inbound connections are left to others.
const MAX_KEPT: usize = 128;

/// How long a peer is refused that sent wrong bytes: long enough to make lying useless, and it may have been repaired.
const MISBEHAVED: Duration = Duration::from_secs(3_600);

impl Driver {
    pub(in crate::net) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed {
                peer_id, connection_id, num_established, cause, ..
            } => {
                tracing::trace!(peer = %peer_id, ?cause, "connection closed");
                self.shared.disconnected(&peer_id, connection_id);
                if num_established == 0 {
                    if !self.redial.keeps(&peer_id) {
                        self.swarm.behaviour_mut().keep.remove(&peer_id);
                    }
                    let alone = self.swarm.connected_peers().next().is_none();
                    self.redial.closed(peer_id, alone, Instant::now());
                    self.relays.gone(&peer_id);
                    self.dials.lost(peer_id, "the connection closed");
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_relay_dialled(connection_id);
                self.dials.failed(connection_id, &error);
                if self.redial.failed(connection_id, Instant::now()) {
                    let reason = dials::reason(&error);
                    tracing::info!(peer = ?peer_id, reason, "a configured peer cannot be reached yet");
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => self.on_listening(address),
            SwarmEvent::ExpiredListenAddr { address, .. } => self.on_expired(&address),
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                let relay = self.relays.closed(listener_id, Instant::now());
                match reason {
                    Err(error) if relay => tracing::debug!(%error, "a slot at a relay is lost"),
                    Err(error) => tracing::warn!(%error, ?addresses, "no longer listening"),
                    Ok(()) => {}
                }
                for address in addresses {
                    self.on_expired(&address);
                }
            }
            SwarmEvent::ListenerError { error, .. } => tracing::debug!(%error, "listener"),
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.on_external_change();
            }
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                connection_id,
                info,
            }) => {
                self.on_identified(peer_id, connection_id, &info);
            }
            BehaviourEvent::Identify(identify::Event::Error { peer_id, error, .. }) => {
                self.dials.lost(peer_id, &format!("it does not identify itself: {error}"));
            }
            BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }) => {
                self.shared.measured(&peer, rtt);
            }
            BehaviourEvent::Bitswap(bitswap::Event::Misbehaved { peer, reason }) => {
                tracing::warn!(%peer, reason, "a peer misbehaves");
                self.ban(peer, MISBEHAVED, Instant::now());
            }
            BehaviourEvent::Lan(event) => self.on_dht_event(Scope::Lan, event),
            BehaviourEvent::Wan(event) => self.on_dht_event(Scope::Wan, event),
            BehaviourEvent::Tell(told) => self.on_told(told),
            other => self.on_reach_event(other),
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        self.on_relay_dialled(connection);
        let relayed = endpoint.is_relayed();
        let address = match endpoint {
            // Over a relay the remote end has no address of its own.
            ConnectedPoint::Listener { local_addr, .. } if relayed => {
                with_peer(&without_peer(local_addr), peer)
            }
            _ => endpoint.get_remote_address().clone(),
        };
        if endpoint.is_dialer() && is_quic(&address) {
            let v6 = address.to_string().starts_with("/ip6");
            if !std::mem::replace(&mut self.quic_dialled[usize::from(v6)], true) {
                udp::raise_and_report();
            }
        }
        if let ConnectedPoint::Listener { local_addr, send_back_addr } = endpoint {
            self.on_called(local_addr, send_back_addr);
        }
        let dialled = endpoint.is_dialer();
        self.shared.connected(peer, Connection { id: connection, address, dialled });
        self.redial.connected(connection, peer);
        if self.redial.keeps(&peer) {
            self.swarm.behaviour_mut().keep.insert(peer);
        }
        if relayed {
            self.dials.relayed(Some(connection), peer, Instant::now());
        } else {
            self.dials.connected(connection, peer);
            self.leave_relays(&peer);
        }
        // A further connection to one that is known already brings no news of its own that anyone waits for.
        if self.shared.is_identified(&peer) {
            self.redial.identified(peer);
            self.dials.identified(peer);
        }
    }

    fn on_identified(&mut self, peer: PeerId, connection: ConnectionId, info: &identify::Info) {
        let Some(connection) = self.shared.connection(&peer, connection) else {
            return;
        };
        let via = connection.address;
        let addresses = trusted(&info.listen_addrs, &via);
        if info.protocols.contains(&relay::HOP_PROTOCOL_NAME) {
            self.on_relay(peer, &via, connection.dialled, &info.listen_addrs);
        }
        for scope in Scope::ALL {
            if info.protocols.contains(&scope.protocol()) {
                self.swarm.behaviour_mut().dht(scope).add_peer(peer, &addresses);
            }
        }
        self.book.put(peer, addresses);
        self.shared.identified(&peer, &info.agent_version);
        let keep = &mut self.swarm.behaviour_mut().keep;
        if is_chiral(&info.agent_version) && keep.len() < MAX_KEPT {
            keep.insert(peer);
        }
        self.bitswap.set_chiral(peer, is_chiral(&info.agent_version));
        self.redial.identified(peer);
        if self.dials.identified(peer) {
            // Somebody asked for this peer by name.
            self.swarm.behaviour_mut().keep.insert(peer);
        }
    }

    fn on_dht_event(&mut self, scope: Scope, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => match result {
                kad::QueryResult::GetProviders(result) => {
                    if let Ok(kad::GetProvidersOk::FoundProviders { providers, .. }) = result {
                        self.on_providers(scope, id, providers);
                    }
                    if step.last {
                        self.searches.finished(scope, id);
                    }
                }
                kad::QueryResult::GetClosestPeers(result) => self.on_looked_up(scope, id, result),
                kad::QueryResult::Bootstrap(Err(error)) => {
                    tracing::info!(?scope, %error, "DHT bootstrap failed and is tried again");
                }
                _ => {}
            },
            kad::Event::InboundRequest { request } => self.on_dht_request(scope, request),
            _ => {}
        }
    }

    fn on_dht_request(&mut self, scope: Scope, request: kad::InboundRequest) {
        use kad::store::RecordStore as _;
        let records = self.swarm.behaviour_mut().dht(scope).kad().store_mut();
        let stored = match request {
            kad::InboundRequest::AddProvider { record: Some(record) } => {
                records.add_provider(record)
            }
            kad::InboundRequest::PutRecord { record: Some(record), .. }
                if crate::net::records::Records::is_known_kind(&record) =>
            {
                records.put(record)
            }
            _ => return,
        };
        if let Err(error) = stored {
            tracing::debug!(?scope, %error, "a record is refused");
        }
    }

    fn on_providers(
        &mut self,
        scope: Scope,
        query: kad::QueryId,
        providers: impl IntoIterator<Item = PeerId>,
    ) {
        let own = *self.swarm.local_peer_id();
        for peer in providers.into_iter().filter(|peer| *peer != own) {
            let addresses = self.addresses_of(peer);
            self.searches.found(scope, query, Provider { peer, addresses });
        }
    }
}
