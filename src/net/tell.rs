//! Tells peers of a DHT what this node provides.
//!
//! libp2p's Kademlia does that with a lookup and a stream for each key. Here one stream takes all the keys that a peer
//! is to hold. The peers were found before; nothing comes in on these streams.

mod handler;
mod wire;

use std::{
    collections::{HashMap, VecDeque},
    task::{Context, Poll, Waker},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, NotifyHandler,
        THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use self::handler::{Handler, Work};
pub(super) use self::wire::add_providers;
use super::address::Scope;

/// Names a telling; one of them is on its way to a peer at a time in each scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TellId {
    /// In which DHT.
    pub(super) scope: Scope,
    /// Which.
    pub(super) number: u32,
}

/// How a telling ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Which.
    pub(super) id: TellId,
    /// The peer has read all of it and did not protest.
    pub(super) taken: bool,
}

/// The peer that is told, and where its connection is or will be.
#[derive(Debug)]
struct Running {
    peer: PeerId,
    /// None: it is being dialled.
    connection: Option<ConnectionId>,
}

/// The behaviour; it dials those that are not connected.
#[derive(Default)]
pub(super) struct Tell {
    connections: HashMap<PeerId, Vec<ConnectionId>>,
    running: HashMap<TellId, Running>,
    dialling: HashMap<PeerId, Vec<Work>>,
    queue: VecDeque<ToSwarm<Told, Work>>,
    waker: Option<Waker>,
}

impl Tell {
    /// Sends `messages`, made by [`add_providers`], to a peer; ends with a [`Told`] in any case.
    pub(super) fn send(
        &mut self,
        id: TellId,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        messages: Vec<u8>,
    ) {
        let work = Work { id, protocol: id.scope.protocol(), messages };
        let connection = self.connections.get(&peer).and_then(|all| all.first()).copied();
        self.running.insert(id, Running { peer, connection });
        match connection {
            Some(connection) => self.order(peer, connection, work),
            None => {
                self.dialling.entry(peer).or_default().push(work);
                let opts = DialOpts::peer_id(peer)
                    .addresses(addresses)
                    .extend_addresses_through_behaviour()
                    .condition(PeerCondition::NotDialing)
                    .build();
                self.queue.push_back(ToSwarm::Dial { opts });
            }
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn order(&mut self, peer_id: PeerId, connection: ConnectionId, event: Work) {
        let handler = NotifyHandler::One(connection);
        self.queue.push_back(ToSwarm::NotifyHandler { peer_id, handler, event });
    }

    fn end(&mut self, id: TellId, taken: bool) {
        if self.running.remove(&id).is_some() {
            self.queue.push_back(ToSwarm::GenerateEvent(Told { id, taken }));
        }
    }

    fn connected(&mut self, peer: PeerId, connection: ConnectionId) {
        self.connections.entry(peer).or_default().push(connection);
        for work in self.dialling.remove(&peer).unwrap_or_default() {
            if let Some(running) = self.running.get_mut(&work.id) {
                running.connection = Some(connection);
            }
            self.order(peer, connection, work);
        }
    }

    fn closed(&mut self, peer: PeerId, connection: ConnectionId) {
        if let Some(all) = self.connections.get_mut(&peer) {
            all.retain(|known| *known != connection);
            if all.is_empty() {
                self.connections.remove(&peer);
            }
        }
        let lost =
            |running: &Running| running.peer == peer && running.connection == Some(connection);
        let lost: Vec<TellId> =
            self.running.iter().filter(|(_, r)| lost(r)).map(|(id, _)| *id).collect();
        for id in lost {
            self.end(id, false);
        }
    }

    fn not_dialled(&mut self, peer: PeerId, error: &DialError) {
        // Somebody else dials it: that ends with a connection or with an error of its own.
        if matches!(error, DialError::DialPeerConditionFalse(_)) {
            return;
        }
        for work in self.dialling.remove(&peer).unwrap_or_default() {
            self.end(work.id, false);
        }
    }
}

impl NetworkBehaviour for Tell {
    type ConnectionHandler = Handler;
    type ToSwarm = Told;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            // Relays carry a few kilobytes and no lookups; whoever serves a DHT can be reached without.
            FromSwarm::ConnectionEstablished(e) if !e.endpoint.is_relayed() => {
                self.connected(e.peer_id, e.connection_id);
            }
            FromSwarm::ConnectionClosed(e) => self.closed(e.peer_id, e.connection_id),
            FromSwarm::DialFailure(e) => {
                if let Some(peer) = e.peer_id {
                    self.not_dialled(peer, e.error);
                }
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
        self.end(event.id, event.taken);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(event) = self.queue.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
