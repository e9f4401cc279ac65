//! How many connections over relays this node bears.

use std::{
    collections::HashSet,
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

use super::address::is_relayed;

/// Connections over relays at once, both ways. Each is there to agree on a direct one, which takes seconds.
const MAX_RELAYED: usize = 32;

/// There are too many already.
#[derive(Debug, thiserror::Error)]
#[error("{MAX_RELAYED} connections over relays are open already")]
struct TooMany;

/// Counts connections over relays, besides what all connections are limited to.
#[derive(Debug, Default)]
pub(super) struct RelayedLimit {
    open: HashSet<ConnectionId>,
}

impl RelayedLimit {
    fn admit(&self, address: &Multiaddr) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        if is_relayed(address) && self.open.len() >= MAX_RELAYED {
            return Err(ConnectionDenied::new(TooMany));
        }
        Ok(dummy::ConnectionHandler)
    }
}

impl NetworkBehaviour for RelayedLimit {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.admit(local).map(drop)
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(local)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(address)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(new) if new.endpoint.is_relayed() => {
                self.open.insert(new.connection_id);
            }
            FromSwarm::ConnectionClosed(old) => {
                self.open.remove(&old.connection_id);
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

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn no_more_than_the_limit_come_over_relays_and_direct_ones_do_not_count() {
        let mut limit = RelayedLimit::default();
        let relay = PeerId::random();
        let over: Multiaddr =
            format!("/ip4/1.1.1.1/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap();
        let direct: Multiaddr = "/ip4/1.1.1.1/tcp/1".parse().unwrap();
        for n in 0..MAX_RELAYED {
            assert!(limit.admit(&over).is_ok());
            limit.open.insert(ConnectionId::new_unchecked(n));
        }
        assert!(limit.admit(&over).is_err());
        assert!(limit.admit(&direct).is_ok());
        limit.open.remove(&ConnectionId::new_unchecked(0));
        assert!(limit.admit(&over).is_ok());
    }
}
