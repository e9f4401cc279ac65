//! Keeps the connections of chosen peers open while nothing happens on them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    task::{Context, Poll, Waker},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse, upgrade::DeniedUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, handler::ConnectionEvent,
    },
};

use super::address::is_relayed;

/// A set of peers whose direct connections do not count as idle. It speaks no protocol.
#[derive(Default)]
pub(super) struct Keep {
    peers: HashSet<PeerId>,
    connections: HashMap<ConnectionId, PeerId>,
    orders: VecDeque<(PeerId, ConnectionId, bool)>,
    waker: Option<Waker>,
}

impl Keep {
    /// Whether the connections of `peer` are kept.
    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.peers.contains(peer)
    }

    /// How many peers are kept.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Keeps the connections of `peer`, those that are open and those to come.
    pub(super) fn insert(&mut self, peer: PeerId) {
        if self.peers.insert(peer) {
            self.order(peer, true);
        }
    }

    /// Lets the connections of `peer` fall idle again.
    pub(super) fn remove(&mut self, peer: &PeerId) {
        if self.peers.remove(peer) {
            self.order(*peer, false);
        }
    }

    fn order(&mut self, peer: PeerId, keep: bool) {
        let its = self.connections.iter().filter(|(_, of)| **of == peer);
        self.orders.extend(its.map(|(connection, _)| (peer, *connection, keep)));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl NetworkBehaviour for Keep {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler { keep: self.contains(&peer) && !is_relayed(local) })
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler { keep: self.contains(&peer) && !is_relayed(address) })
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(e) if !e.endpoint.is_relayed() => {
                self.connections.insert(e.connection_id, e.peer_id);
            }
            FromSwarm::ConnectionClosed(e) => {
                self.connections.remove(&e.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some((peer_id, connection, keep)) = self.orders.pop_front() {
            let handler = NotifyHandler::One(connection);
            return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event: keep });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Says of one connection whether it is to stay.
#[derive(Debug)]
pub(super) struct Handler {
    keep: bool,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = bool;
    type ToBehaviour = Infallible;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep
    }

    fn on_behaviour_event(&mut self, keep: bool) {
        self.keep = keep;
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        Poll::Pending
    }

    fn on_connection_event(
        &mut self,
        _: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
    }
}
