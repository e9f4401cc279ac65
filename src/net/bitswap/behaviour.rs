//! What the swarm sees: a handler for each connection, and an event when a peer misbehaves. No payload comes here.
//!
//! Nothing is exchanged over a relay, as other implementations have it: its bandwidth belongs to somebody else, who
//! lends it for the agreement on a direct connection. Wants wait for that.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandlerInEvent, ToSwarm,
    },
};
use tokio::sync::mpsc;

use super::{Event, handler::Handler, shared::Shared};
use crate::net::address::is_relayed;

/// Bitswap in a swarm.
pub(crate) struct Behaviour {
    shared: Arc<Shared>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Behaviour {
    pub(super) fn new(shared: Arc<Shared>, events: mpsc::UnboundedReceiver<Event>) -> Self {
        Self { shared, events }
    }

    /// `address`: the end of the connection that says whether it leads over a relay.
    fn handler(&self, peer: PeerId, connection: ConnectionId, address: &Multiaddr) -> Handler {
        if is_relayed(address) {
            return Handler::relayed();
        }
        Handler::new(self.shared.clone(), peer, connection)
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behaviour").finish_non_exhaustive()
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer, connection, local))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer, connection, address))
    }

    /// Handlers register their connections themselves and sign off when they are dropped.
    fn on_swarm_event(&mut self, _event: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        match self.events.poll_recv(cx) {
            Poll::Ready(Some(event)) => Poll::Ready(ToSwarm::GenerateEvent(event)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
