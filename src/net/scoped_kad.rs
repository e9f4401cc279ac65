//! A Kademlia behaviour that knows of nothing outside its own kind of addresses.
//!
//! Two of them live in one swarm. Left to itself each would take every external address for its own: one private
//! address would make a server of the public one, and both would hand private addresses to strangers.

use std::{
    collections::HashSet,
    num::NonZeroUsize,
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, transport::PortUse},
    kad,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::{
    address::{Scope, is_name, is_quic, is_relayed},
    records::Records,
};

/// How long a lookup may take before what it has found so far is all.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Peers that a lookup asks at once.
const PARALLELISM: NonZeroUsize = NonZeroUsize::new(10).unwrap();
/// How often the table is refreshed, as other implementations do it.
const REFRESH: Duration = Duration::from_secs(300);

impl Scope {
    /// The protocol that its DHT speaks.
    pub(super) fn protocol(self) -> StreamProtocol {
        match self {
            Self::Lan => StreamProtocol::new("/ipfs/lan/kad/1.0.0"),
            Self::Wan => StreamProtocol::new("/ipfs/kad/1.0.0"),
        }
    }
}

/// Kademlia on the addresses of one [`Scope`].
///
/// It is a client until it has an external address of its kind, then a server. An address over a relay is told to
/// those who look for what this node provides, but makes no server of it: relays carry no lookups.
pub(super) struct ScopedKad {
    scope: Scope,
    kad: kad::Behaviour<Records>,
    /// External addresses of its kind.
    external: HashSet<Multiaddr>,
    /// When the table is refreshed next; made by the first poll, inside the runtime.
    refresh: Option<Interval>,
}

impl ScopedKad {
    /// The DHT of `scope`, its records in `records`.
    pub(super) fn new(scope: Scope, own: PeerId, records: Records) -> Self {
        let mut config = kad::Config::new(scope.protocol());
        config
            .set_query_timeout(QUERY_TIMEOUT)
            .set_parallelism(PARALLELISM)
            // Peers enter the table when they say that they serve this DHT, with addresses of its kind.
            .set_kbucket_inserts(kad::BucketInserts::Manual)
            .set_record_filtering(kad::StoreInserts::FilterBoth)
            // The announce queue republishes: it survives restarts and knows what is due when.
            .set_provider_publication_interval(None)
            .set_publication_interval(None)
            .set_replication_interval(None)
            .set_caching(kad::Caching::Disabled)
            // Its own timer complains whenever there is nobody to ask, which is no fault of a small network.
            .set_periodic_bootstrap_interval(None);
        let mut kad = kad::Behaviour::with_config(own, records, config);
        kad.set_mode(Some(kad::Mode::Client));
        Self { scope, kad, external: HashSet::new(), refresh: None }
    }

    /// The behaviour inside, for its queries.
    pub(super) fn kad(&mut self) -> &mut kad::Behaviour<Records> {
        &mut self.kad
    }

    /// Puts the addresses of a peer that serves this DHT into the table; those of the other kind are left out.
    pub(super) fn add_peer(&mut self, peer: PeerId, addresses: &[Multiaddr]) {
        let usable = |at: &&Multiaddr| self.scope.covers(at) && !is_relayed(at);
        for address in addresses.iter().filter(usable) {
            self.kad.add_address(&peer, address.clone());
        }
    }

    /// Whether there is anyone to ask.
    pub(super) fn has_peers(&mut self) -> bool {
        self.kad.kbuckets().any(|bucket| !bucket.is_empty())
    }

    /// Addresses of a peer that the table knows, and those that the answers of running lookups named. The latter are
    /// gone when their lookup ends.
    pub(super) fn addresses_of(&mut self, peer: PeerId) -> Vec<Multiaddr> {
        // kad looks at the peer alone, neither at the number of the connection nor at the role.
        let number = ConnectionId::new_unchecked(0);
        let known =
            self.kad.handle_pending_outbound_connection(number, Some(peer), &[], Endpoint::Dialer);
        self.of_its_kind(known.unwrap_or_default())
    }

    /// What strangers answer may name addresses inside this network; the public DHT has no business there, and a name
    /// may lead there.
    pub(super) fn of_its_kind(&self, mut addresses: Vec<Multiaddr>) -> Vec<Multiaddr> {
        addresses.retain(|address| self.scope.covers(address) && !is_name(address));
        // All addresses are dialled at once, and nearby QUIC would often win although TCP carries more.
        let direct_tcp = |address: &Multiaddr| !is_quic(address) && !is_relayed(address);
        if self.scope == Scope::Lan && addresses.iter().any(direct_tcp) {
            addresses.retain(|address| !is_quic(address));
        }
        addresses
    }

    /// Keeps the external addresses, and the mode that follows from them.
    fn on_external(&mut self, event: &FromSwarm<'_>) {
        let changed = match event {
            FromSwarm::ExternalAddrConfirmed(e) => self.external.insert(e.addr.clone()),
            FromSwarm::ExternalAddrExpired(e) => self.external.remove(e.addr),
            _ => false,
        };
        if changed {
            let reached = self.external.iter().any(|at| !is_relayed(at));
            let mode = if reached { kad::Mode::Server } else { kad::Mode::Client };
            if self.kad.mode() != mode {
                tracing::debug!(scope = ?self.scope, %mode, "DHT");
                self.kad.set_mode(Some(mode));
            }
        }
    }

    fn concerns(&mut self, event: &FromSwarm<'_>) -> bool {
        match event {
            // It means a search for peers to kad, which needs some to begin with. The address itself comes once
            // more, as an external one.
            FromSwarm::NewListenAddr(e) => self.scope.covers(e.addr) && self.has_peers(),
            FromSwarm::ExpiredListenAddr(e) => self.scope.covers(e.addr),
            FromSwarm::NewExternalAddrCandidate(e) => self.scope.covers(e.addr),
            FromSwarm::ExternalAddrConfirmed(e) => self.scope.covers(e.addr),
            FromSwarm::ExternalAddrExpired(e) => self.scope.covers(e.addr),
            FromSwarm::NewExternalAddrOfPeer(e) => self.scope.covers(e.addr),
            _ => true,
        }
    }
}

impl NetworkBehaviour for ScopedKad {
    type ConnectionHandler = <kad::Behaviour<Records> as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = kad::Event;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.kad.handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let known =
            self.kad.handle_pending_outbound_connection(connection, peer, addresses, role)?;
        let mut known = self.of_its_kind(known);
        // Whoever serves a DHT can be reached without.
        known.retain(|address| !is_relayed(address));
        Ok(known)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_outbound_connection(connection, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if self.concerns(&event) {
            self.on_external(&event);
            self.kad.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.kad.on_connection_handler_event(peer, connection, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let refresh = self.refresh.get_or_insert_with(|| {
            let mut refresh = interval_at(Instant::now() + REFRESH, REFRESH);
            refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
            refresh
        });
        while refresh.poll_tick(cx).is_ready() {
            // An error says that there is nobody to ask.
            let _ = self.kad.bootstrap();
        }
        self.kad.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use libp2p::swarm::behaviour::{ExternalAddrConfirmed, ExternalAddrExpired};

    use super::*;

    fn modes(external: &[&str]) -> (kad::Mode, kad::Mode) {
        let own = PeerId::random();
        let mut both = Scope::ALL.map(|scope| ScopedKad::new(scope, own, Records::in_memory(own)));
        for address in external {
            let addr: Multiaddr = address.parse().unwrap();
            for kad in &mut both {
                let event = ExternalAddrConfirmed { addr: &addr };
                kad.on_swarm_event(FromSwarm::ExternalAddrConfirmed(event));
            }
        }
        (both[0].kad.mode(), both[1].kad.mode())
    }

    #[test]
    fn a_private_address_makes_a_server_of_the_lan_alone_and_a_public_one_of_the_wan() {
        use kad::Mode::{Client, Server};
        assert_eq!(modes(&[]), (Client, Client));
        assert_eq!(modes(&["/ip4/127.0.0.1/tcp/4001"]), (Server, Client));
        assert_eq!(modes(&["/ip4/127.0.0.1/tcp/4001", "/ip4/1.1.1.1/tcp/4001"]), (Server, Server));
    }

    #[test]
    fn an_address_over_a_relay_makes_no_server_and_an_address_that_is_lost_a_client() {
        use kad::Mode::{Client, Server};
        let relay = PeerId::random();
        let over = format!("/ip4/1.1.1.1/tcp/4001/p2p/{relay}/p2p-circuit");
        assert_eq!(modes(&[&over]), (Client, Client));
        let own = PeerId::random();
        let mut kad = ScopedKad::new(Scope::Wan, own, Records::in_memory(own));
        let addr = &"/ip4/1.1.1.1/tcp/4001".parse().unwrap();
        kad.on_swarm_event(FromSwarm::ExternalAddrConfirmed(ExternalAddrConfirmed { addr }));
        assert_eq!(kad.kad.mode(), Server);
        kad.on_swarm_event(FromSwarm::ExternalAddrExpired(ExternalAddrExpired { addr }));
        assert_eq!(kad.kad.mode(), Client);
    }

    #[test]
    fn the_public_dht_neither_keeps_nor_dials_private_addresses() {
        let own = PeerId::random();
        let peer = PeerId::random();
        let addresses: Vec<Multiaddr> =
            ["/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1/udp/1/quic-v1", "/ip4/1.1.1.1/tcp/1"]
                .into_iter()
                .chain(["/dns4/router.example/tcp/80"])
                .map(|address| address.parse().unwrap())
                .collect();
        for (scope, dialled) in [(Scope::Lan, &addresses[..1]), (Scope::Wan, &addresses[2..3])] {
            let mut kad = ScopedKad::new(scope, own, Records::in_memory(own));
            assert!(!kad.has_peers());
            kad.add_peer(peer, &addresses);
            assert!(kad.has_peers());
            let found = kad.addresses_of(peer);
            let bare: Vec<String> =
                found.iter().map(|a| a.to_string().replace(&format!("/p2p/{peer}"), "")).collect();
            let wanted: Vec<String> = dialled.iter().map(ToString::to_string).collect();
            assert_eq!(bare, wanted, "{scope:?}");
        }
    }
}
