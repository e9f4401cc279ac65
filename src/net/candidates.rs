//! Which addresses AutoNAT is to test, and when.

use std::{
    collections::HashSet,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::client,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, behaviour::NewExternalAddrCandidate,
    },
};
use tokio::time::{Instant, Sleep, sleep};

use super::address::{Scope, is_loopback, is_name, is_relayed, is_unspecified};

/// Addresses that are tested between two renewals. Strangers name most of them, and the client forgets none.
const MAX_TESTED: usize = 64;
/// How long the first tests wait for the router to forward the ports: it mostly does within ten seconds, and what failed
/// before that is not tested again until the next renewal.
const BEGIN_AFTER: Duration = Duration::from_secs(15);
/// How often everything is tested anew while no address leads here: one server that lies, or goes away before it has
/// answered, must not decide for ever.
const RENEWAL: Duration = Duration::from_secs(3_600);

/// The AutoNAT client, told only of addresses that are worth a test.
pub(super) struct Candidates {
    inner: client::Behaviour,
    /// Connections that `inner` was told of; it panics at events of others.
    known: HashSet<ConnectionId>,
    seen: HashSet<Multiaddr>,
    /// What is listened on, of what is worth a test.
    own: HashSet<Multiaddr>,
    /// Public addresses that lead here.
    confirmed: HashSet<Multiaddr>,
    /// Whether `inner` is told of what others observed yet.
    begun: bool,
    /// Private addresses are tested too, and at once.
    private: bool,
    /// When tests begin, or all is tested anew; made by the first poll, inside the runtime.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Candidates {
    /// Tests public addresses; private ones too where `private`.
    pub(super) fn new(private: bool) -> Self {
        Self {
            inner: client::Behaviour::default(),
            known: HashSet::new(),
            seen: HashSet::new(),
            own: HashSet::new(),
            confirmed: HashSet::new(),
            begun: private,
            private,
            timer: None,
        }
    }

    /// Has an address tested that is listened on.
    pub(super) fn listening(&mut self, address: &Multiaddr) {
        if self.admits(address) {
            self.own.insert(address.clone());
            self.propose(address);
        }
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

    /// What is listened on has no router before it to wait for.
    fn may_begin(&self, address: &Multiaddr) -> bool {
        self.begun || self.own.contains(address)
    }

    fn propose(&mut self, addr: &Multiaddr) {
        if self.may_begin(addr) {
            let event = NewExternalAddrCandidate { addr };
            self.inner.on_swarm_event(FromSwarm::NewExternalAddrCandidate(event));
        }
    }

    /// Forgets what the tests have shown. Only connections to come are asked then: which of the open ones are to
    /// servers was told to the old client.
    fn renew(&mut self) {
        self.inner = client::Behaviour::default();
        self.known.clear();
        self.seen.clone_from(&self.own);
        self.propose_all();
    }

    fn propose_all(&mut self) {
        for address in self.seen.clone() {
            self.propose(&address);
        }
    }

    fn on_time(&mut self) {
        if !self.begun {
            self.begun = true;
            self.propose_all();
        } else if self.confirmed.is_empty() {
            self.renew();
        }
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
        match &event {
            FromSwarm::NewExternalAddrCandidate(new)
                if !self.admits(new.addr) || !self.may_begin(new.addr) =>
            {
                return;
            }
            FromSwarm::ConnectionEstablished(new) => {
                self.known.insert(new.connection_id);
            }
            FromSwarm::ConnectionClosed(old) if !self.known.remove(&old.connection_id) => return,
            FromSwarm::ExpiredListenAddr(old)
                if !is_relayed(old.addr) && !is_loopback(old.addr) =>
            {
                // This node leaves a network; the driver forgets what led to it there.
                self.own.remove(old.addr);
                self.renew();
            }
            FromSwarm::ExternalAddrConfirmed(new)
                if Scope::Wan.covers(new.addr) && !is_relayed(new.addr) =>
            {
                self.confirmed.insert(new.addr.clone());
            }
            FromSwarm::ExternalAddrExpired(old) => {
                self.confirmed.remove(old.addr);
            }
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
        if self.known.contains(&connection) {
            self.inner.on_connection_handler_event(peer, connection, event);
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let first = if self.begun { RENEWAL } else { BEGIN_AFTER };
        let mut timer = self.timer.take().unwrap_or_else(|| Box::pin(sleep(first)));
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(Instant::now() + RENEWAL);
            self.on_time();
        }
        self.timer = Some(timer);
        self.inner.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use libp2p::{
        core::{ConnectedPoint, transport::ListenerId},
        swarm::behaviour::{
            ConnectionClosed, ConnectionEstablished, ExpiredListenAddr, ExternalAddrConfirmed,
            ExternalAddrExpired,
        },
    };

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
    fn connected(candidates: &mut Candidates, n: usize) {
        let endpoint = ConnectedPoint::Listener {
            local_addr: "/ip4/127.0.0.1/tcp/1".parse().unwrap(),
            send_back_addr: "/ip4/127.0.0.1/tcp/2".parse().unwrap(),
        };
        let event = ConnectionEstablished {
            peer_id: PeerId::random(),
            connection_id: ConnectionId::new_unchecked(n),
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        };
        candidates.on_swarm_event(FromSwarm::ConnectionEstablished(event));
    }

    fn closed(candidates: &mut Candidates, n: usize) {
        let endpoint = ConnectedPoint::Listener {
            local_addr: "/ip4/127.0.0.1/tcp/1".parse().unwrap(),
            send_back_addr: "/ip4/127.0.0.1/tcp/2".parse().unwrap(),
        };
        let event = ConnectionClosed {
            peer_id: PeerId::random(),
            connection_id: ConnectionId::new_unchecked(n),
            endpoint: &endpoint,
            cause: None,
            remaining_established: 0,
        };
        candidates.on_swarm_event(FromSwarm::ConnectionClosed(event));
    }

    #[tokio::test]
    async fn what_was_tested_is_forgotten_with_the_network_and_what_is_listened_on_is_kept() {
        let mut candidates = Candidates::new(false);
        let [own, observed, lan] =
            ["/ip4/1.1.1.1/tcp/1", "/ip4/1.1.1.1/tcp/2", "/ip4/10.0.0.1/tcp/1"]
                .map(|at| at.parse::<Multiaddr>().unwrap());
        candidates.listening(&own);
        assert!(candidates.admits(&observed));
        connected(&mut candidates, 1);
        let listener_id = ListenerId::next();
        for addr in [&"/ip4/127.0.0.1/tcp/1".parse().unwrap(), &lan] {
            assert_eq!(candidates.seen.len(), 2);
            let event = ExpiredListenAddr { listener_id, addr };
            candidates.on_swarm_event(FromSwarm::ExpiredListenAddr(event));
        }
        assert_eq!(candidates.seen, HashSet::from([own]));
        // The new client knows nothing of the connection, and bears no word of it.
        closed(&mut candidates, 1);
        connected(&mut candidates, 2);
        closed(&mut candidates, 2);
    }

    #[tokio::test]
    async fn all_is_tested_anew_in_time_unless_an_address_leads_here() {
        let mut candidates = Candidates::new(false);
        let observed: Multiaddr = "/ip4/1.1.1.1/tcp/2".parse().unwrap();
        assert!(candidates.admits(&observed) && !candidates.begun);
        candidates.on_time();
        assert!(candidates.begun && candidates.seen.contains(&observed), "the first tests");
        let confirmed = FromSwarm::ExternalAddrConfirmed(ExternalAddrConfirmed { addr: &observed });
        candidates.on_swarm_event(confirmed);
        candidates.on_time();
        assert!(candidates.seen.contains(&observed));
        let expired = FromSwarm::ExternalAddrExpired(ExternalAddrExpired { addr: &observed });
        candidates.on_swarm_event(expired);
        candidates.on_time();
        assert!(candidates.seen.is_empty());
    }
}
