//! Looks at what a behaviour dials because a stranger asked for it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    task::{Context, Poll, ready},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, DialFailure, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::address::{is_relayed, may_claim};

/// Dials at once on behalf of others: each costs them one message, and this node a handshake.
const AT_ONCE: usize = 16;

/// The addresses are none that the peer may name, or too many dials are under way.
#[derive(Debug, thiserror::Error)]
#[error("a stranger may not have this dialled")]
struct Refused;

/// A behaviour whose dials go only to where the peer that named the address may say that it is. Otherwise a stranger
/// could have this node knock at doors inside its own network.
///
/// Dials to some addresses that may be named and some that may not are replaced by dials to the former.
pub(super) struct Guard<B> {
    inner: B,
    /// Whether somebody who comes over a relay may name addresses of the network that the relay is in: its hole has to
    /// be punched there.
    trusts_relays: bool,
    via: HashMap<ConnectionId, (PeerId, Multiaddr)>,
    /// Dials that `inner` has begun and that were not looked at yet.
    begun: HashSet<ConnectionId>,
    under_way: HashSet<ConnectionId>,
    /// New dials, and for which of `inner` each stands.
    replaced: HashMap<ConnectionId, ConnectionId>,
    queue: VecDeque<DialOpts>,
}

impl<B> Guard<B> {
    /// Around `inner`.
    pub(super) fn new(inner: B, trusts_relays: bool) -> Self {
        Self {
            inner,
            trusts_relays,
            via: HashMap::new(),
            begun: HashSet::new(),
            under_way: HashSet::new(),
            replaced: HashMap::new(),
            queue: VecDeque::new(),
        }
    }

    /// Where a connection comes from, as far as that says what its peer may name.
    fn origin(&self, endpoint: &ConnectedPoint) -> Multiaddr {
        let address = match endpoint {
            ConnectedPoint::Listener { local_addr, .. } if endpoint.is_relayed() => local_addr,
            _ => endpoint.get_remote_address(),
        };
        if !is_relayed(address) || !self.trusts_relays {
            return address.clone();
        }
        address.iter().take_while(|part| !matches!(part, Protocol::P2p(_))).collect()
    }

    fn may_dial(&self, peer: PeerId, address: &Multiaddr) -> bool {
        let mut its = self.via.values().filter(|(who, _)| *who == peer);
        !is_relayed(address) && its.any(|(_, via)| may_claim(address, via))
    }

    /// Looks at a dial of `inner`; puts one in its place where not all addresses may be dialled.
    fn judge(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<(), Refused> {
        if self.under_way.len() >= AT_ONCE {
            return Err(Refused);
        }
        let good: Vec<Multiaddr> =
            addresses.iter().filter(|at| self.may_dial(peer, at)).cloned().collect();
        if good.len() == addresses.len() {
            self.under_way.insert(connection);
            return Ok(());
        }
        tracing::debug!(%peer, ?addresses, ?good, "asked to dial what it may not name");
        if !good.is_empty() {
            let options = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(good);
            let options = match role {
                Endpoint::Dialer => options.build(),
                Endpoint::Listener => options.override_role().build(),
            };
            self.under_way.insert(options.connection_id());
            self.replaced.insert(options.connection_id(), connection);
            self.queue.push_back(options);
        }
        Err(Refused)
    }
}

impl<B: NetworkBehaviour> Guard<B> {
    fn on_dial_failure(&mut self, failure: DialFailure<'_>) {
        let connection = failure.connection_id;
        self.begun.remove(&connection);
        self.under_way.remove(&connection);
        if self.replaced.values().any(|replaced| *replaced == connection) {
            // The dial in its place goes on.
            return;
        }
        let connection_id = self.replaced.remove(&connection).unwrap_or(connection);
        self.inner.on_swarm_event(FromSwarm::DialFailure(DialFailure { connection_id, ..failure }));
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Guard<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if self.begun.remove(&connection)
            && let Some(peer) = peer
        {
            self.judge(connection, peer, addresses, role).map_err(ConnectionDenied::new)?;
        }
        self.inner.handle_pending_outbound_connection(connection, peer, addresses, role)
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
        match event {
            FromSwarm::ConnectionEstablished(new) => {
                let origin = self.origin(new.endpoint);
                self.via.insert(new.connection_id, (new.peer_id, origin));
                self.under_way.remove(&new.connection_id);
                self.replaced.remove(&new.connection_id);
            }
            FromSwarm::ConnectionClosed(old) => {
                self.via.remove(&old.connection_id);
            }
            FromSwarm::DialFailure(failure) => return self.on_dial_failure(failure),
            _ => {}
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
        if let Some(opts) = self.queue.pop_front() {
            return Poll::Ready(ToSwarm::Dial { opts });
        }
        let action = ready!(self.inner.poll(cx));
        if let ToSwarm::Dial { opts } = &action {
            self.begun.insert(opts.connection_id());
        }
        Poll::Ready(action)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use libp2p::swarm::dummy;

    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn guard(peer: PeerId, via: &str, trusts_relays: bool) -> Guard<dummy::Behaviour> {
        let mut guard = Guard::new(dummy::Behaviour, trusts_relays);
        let endpoint = ConnectedPoint::Dialer {
            address: address(via),
            role_override: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        let origin = guard.origin(&endpoint);
        guard.via.insert(ConnectionId::new_unchecked(0), (peer, origin));
        guard
    }

    #[test]
    fn a_stranger_has_only_public_addresses_dialled_and_a_neighbour_nearby_ones_too() {
        let peer = PeerId::random();
        let private = address("/ip4/192.168.0.1/tcp/80");
        let public = address("/ip4/1.1.1.1/tcp/80");
        let name = address("/dns4/router.example/tcp/80");
        let stranger = guard(peer, "/ip4/8.8.8.8/tcp/1", false);
        assert!(stranger.may_dial(peer, &public));
        assert!(!stranger.may_dial(peer, &private) && !stranger.may_dial(peer, &name));
        assert!(!stranger.may_dial(PeerId::random(), &public), "nobody else");
        let neighbour = guard(peer, "/ip4/10.0.0.7/tcp/1", false);
        assert!(neighbour.may_dial(peer, &private) && neighbour.may_dial(peer, &public));
        assert!(!neighbour.may_dial(peer, &address("/ip4/127.0.0.1/tcp/22")));
    }

    #[test]
    fn over_a_relay_nearby_addresses_count_only_for_the_punching_of_holes() {
        let (peer, relay) = (PeerId::random(), PeerId::random());
        let via = format!("/ip4/127.0.0.1/tcp/1/p2p/{relay}/p2p-circuit/p2p/{peer}");
        let near = address("/ip4/127.0.0.1/tcp/9");
        assert!(guard(peer, &via, true).may_dial(peer, &near));
        assert!(!guard(peer, &via, false).may_dial(peer, &near));
    }

    #[test]
    fn a_dial_to_good_and_bad_addresses_is_replaced_and_one_to_bad_ones_refused() {
        let peer = PeerId::random();
        let mut guard = guard(peer, "/ip4/8.8.8.8/tcp/1", false);
        let (good, bad) = (address("/ip4/1.1.1.1/tcp/1"), address("/ip4/10.0.0.1/tcp/1"));
        let [first, second, third] = [1, 2, 3].map(ConnectionId::new_unchecked);
        let mut ask = |id, list: &[Multiaddr]| guard.judge(id, peer, list, Endpoint::Dialer);
        assert!(ask(first, std::slice::from_ref(&good)).is_ok());
        assert!(ask(second, std::slice::from_ref(&bad)).is_err());
        assert!(ask(third, &[good, bad]).is_err());
        assert_eq!(guard.queue.len(), 1);
        assert_eq!(guard.replaced.values().collect::<Vec<_>>(), [&third]);
    }

    #[test]
    fn only_so_many_dials_are_under_way_for_others() {
        let peer = PeerId::random();
        let mut guard = guard(peer, "/ip4/8.8.8.8/tcp/1", false);
        let good = [address("/ip4/1.1.1.1/tcp/1")];
        let mut ask =
            |n| guard.judge(ConnectionId::new_unchecked(n), peer, &good, Endpoint::Dialer);
        assert!((0..AT_ONCE).all(|n| ask(n).is_ok()));
        assert!(ask(AT_ONCE).is_err());
    }
}
