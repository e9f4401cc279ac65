//! Behaviours that speak to the local network: mDNS to everybody on it, UPnP to the router.

use std::task::{Context, Poll};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

use super::address::{Scope, is_loopback, is_relayed, is_unspecified};

type Make<B> = Box<dyn FnOnce() -> Option<B> + Send>;

/// A behaviour that begins when this node first listens on an address of a local network. One that listens on loopback
/// alone says nothing to the network, and neither does one in a data centre, where such packets count as an attack.
pub(super) struct Nearby<B> {
    make: Option<Make<B>>,
    inner: Option<B>,
    /// Whether an external address that it names is taken as one without being tested.
    believed: bool,
}

impl<B> Nearby<B> {
    /// Begins with `make`, which says why when it cannot.
    pub(super) fn new(believed: bool, make: impl FnOnce() -> Option<B> + Send + 'static) -> Self {
        Self { make: Some(Box::new(make)), inner: None, believed }
    }

    /// Never begins.
    pub(super) fn off() -> Self {
        Self { make: None, inner: None, believed: false }
    }
}

fn is_nearby(address: &Multiaddr) -> bool {
    Scope::Lan.covers(address)
        && !is_loopback(address)
        && !is_unspecified(address)
        && !is_relayed(address)
}

impl<B> NetworkBehaviour for Nearby<B>
where
    B: NetworkBehaviour<ConnectionHandler = dummy::ConnectionHandler>,
{
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    // `handle_pending_outbound_connection` is not handed on: what was found is known to the driver, which ranks it.

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::NewListenAddr(new) = event {
            if !is_nearby(new.addr) {
                return;
            }
            if let Some(make) = self.make.take() {
                self.inner = make();
            }
        }
        if let Some(inner) = &mut self.inner {
            inner.on_swarm_event(event);
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
        let Some(inner) = &mut self.inner else { return Poll::Pending };
        inner.poll(cx).map(|action| match action {
            ToSwarm::ExternalAddrConfirmed(address) if !self.believed => {
                ToSwarm::NewExternalAddrCandidate(address)
            }
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use libp2p::{core::transport::ListenerId, swarm::behaviour::NewListenAddr};

    use super::*;

    #[test]
    fn it_begins_with_an_address_of_a_local_network_and_with_no_other() {
        let mut nearby = Nearby::new(false, || Some(dummy::Behaviour));
        let relay = PeerId::random();
        let over = format!("/ip4/192.168.0.1/tcp/1/p2p/{relay}/p2p-circuit");
        for (address, begun) in [
            ("/ip4/127.0.0.1/tcp/1", false),
            ("/ip6/::1/tcp/1", false),
            ("/ip4/1.1.1.1/tcp/1", false),
            (over.as_str(), false),
            ("/ip4/192.168.0.2/tcp/1", true),
        ] {
            let addr = &address.parse().unwrap();
            let listener_id = ListenerId::next();
            nearby.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr { listener_id, addr }));
            assert_eq!(nearby.inner.is_some(), begun, "{address}");
        }
    }
}
