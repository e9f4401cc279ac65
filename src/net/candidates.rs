//! Which addresses AutoNAT is to test.

use std::{
    collections::HashSet,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::client,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

use super::address::{Scope, is_name, is_relayed, is_unspecified};

/// Addresses that are tested in the life of a node. Strangers name most of them, and AutoNAT forgets none.
const MAX_TESTED: usize = 64;

/// The AutoNAT client, told only of addresses that are worth a test.
pub(super) struct Candidates {
    inner: client::Behaviour,
    seen: HashSet<Multiaddr>,
    /// Private addresses are tested too.
    private: bool,
}

impl Candidates {
    /// Tests public addresses; private ones too where `private`.
    pub(super) fn new(private: bool) -> Self {
        Self { inner: client::Behaviour::default(), seen: HashSet::new(), private }
    }

    fn admits(&mut self, address: &Multiaddr) -> bool {
        let scope = Scope::of(address);
        let worth = scope == Some(Scope::Wan) || (self.private && scope == Some(Scope::Lan));
        if !worth || is_name(address) || is_relayed(address) || is_unspecified(address) {
            return false;
        }
        let room = self.seen.len() < MAX_TESTED;
        self.seen.contains(address) || (room && self.seen.insert(address.clone()))
    }
}

impl NetworkBehaviour for Candidates {
    type ConnectionHandler = <client::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = client::Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(connection, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::NewExternalAddrCandidate(new) = &event
            && !self.admits(new.addr)
        {
            return;
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.inner.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn public_addresses_are_tested_as_many_as_there_is_room_for() {
        let mut candidates = Candidates::new(false);
        let relay = PeerId::random();
        let over = format!("/ip4/1.1.1.1/tcp/1/p2p/{relay}/p2p-circuit");
        for address in ["/ip4/10.0.0.1/tcp/1", "/ip4/0.0.0.0/tcp/1", "/dns/x/tcp/1", &over] {
            assert!(!candidates.admits(&address.parse().unwrap()), "{address}");
        }
        let at = |n: usize| format!("/ip4/1.1.1.1/tcp/{}", n + 1).parse().unwrap();
        assert!((0..MAX_TESTED).all(|n| candidates.admits(&at(n))));
        assert!(!candidates.admits(&at(MAX_TESTED)));
        assert!(candidates.admits(&at(0)), "one that is known already");
        assert!(Candidates::new(true).admits(&"/ip4/10.0.0.1/tcp/1".parse().unwrap()));
    }
}
