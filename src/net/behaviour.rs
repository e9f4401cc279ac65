//! Everything that runs on a connection, composed.

use std::time::Duration;

use libp2p::{
    Multiaddr, PeerId, allow_block_list, autonat, connection_limits, dcutr, identify,
    identity::Keypair,
    mdns, memory_connection_limits, ping, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    upnp,
};

use super::{
    address::Scope, ask, bitswap, candidates::Candidates, guard::Guard, keep::Keep, limits,
    nearby::Nearby, pong::Pong, reach::ReachOptions, records::Records, relayed::RelayedLimit,
    scoped_kad::ScopedKad, tell::Tell,
};

/// How often a peer is pinged. What waits for an answer has limits of its own; this finds out who went without a word, and
/// keeps the way through routers open, which forget a silent TCP connection after some minutes. Each ping wakes both
/// processors: with 200 peers every 15 s they are the better half of what an idle node does.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// What every agent version of a chiral node begins with.
const AGENT_PREFIX: &str = "chiral/";

/// The composed behaviour. Those that refuse connections come first: the others hear only of what they let through.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) banned: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    relayed: RelayedLimit,
    pub(super) keep: Keep,
    pub(super) identify: identify::Behaviour,
    pong: Pong,
    ping: ping::Behaviour,
    pub(super) lan: ScopedKad,
    pub(super) wan: ScopedKad,
    pub(super) tell: Tell,
    bitswap: bitswap::Behaviour,
    ask: ask::Behaviour,
    mdns: Nearby<mdns::tokio::Behaviour>,
    upnp: Nearby<upnp::tokio::Behaviour>,
    autonat_client: Toggle<Candidates>,
    autonat_server: Toggle<Guard<autonat::v2::server::Behaviour>>,
    relay_client: Toggle<relay::client::Behaviour>,
    relay_server: Toggle<relay::Behaviour>,
    dcutr: Toggle<Guard<dcutr::Behaviour>>,
}

/// The parts of the behaviour that are made elsewhere.
pub(super) struct Parts {
    /// Bitswap.
    pub(super) bitswap: bitswap::Behaviour,
    /// Questions about torrents.
    pub(super) ask: ask::Behaviour,
    /// Records of both DHTs, by the order of [`Scope::ALL`].
    pub(super) records: [Records; 2],
    /// The client of relays, whose other half is a transport; none: switched off.
    pub(super) relay_client: Option<relay::client::Behaviour>,
}

impl Behaviour {
    /// The behaviour of the node with this key.
    pub(super) fn new(key: &Keypair, reach: &ReachOptions, parts: Parts) -> Self {
        let own = PeerId::from(key.public());
        let [lan, wan] = parts.records;
        let identify = identify::Config::new("ipfs/0.1.0".to_owned(), key.public())
            .with_agent_version(format!("{AGENT_PREFIX}{}", env!("CARGO_PKG_VERSION")))
            // What is listened on is not what others can reach; that is told them by the driver.
            .with_hide_listen_addrs(true)
            // Its cache would dial whatever a stranger says that it listens on, private addresses included.
            .with_cache_size(0);
        let ping = ping::Config::new().with_interval(PING_INTERVAL);
        Self {
            banned: allow_block_list::Behaviour::default(),
            limits: limits::connections(),
            memory: limits::memory(),
            relayed: RelayedLimit::default(),
            keep: Keep::default(),
            identify: identify::Behaviour::new(identify),
            pong: Pong,
            ping: ping::Behaviour::new(ping),
            lan: ScopedKad::new(Scope::Lan, own, lan),
            wan: ScopedKad::new(Scope::Wan, own, wan),
            tell: Tell::default(),
            bitswap: parts.bitswap,
            ask: parts.ask,
            mdns: if reach.mdns { mdns(own) } else { Nearby::off() },
            upnp: if reach.upnp { upnp(!reach.autonat) } else { Nearby::off() },
            autonat_client: reach.autonat.then(|| Candidates::new(reach.doubt_private)).into(),
            autonat_server: reach.autonat.then(|| Guard::new(Default::default(), false)).into(),
            dcutr: (reach.dcutr && parts.relay_client.is_some())
                .then(|| Guard::new(dcutr::Behaviour::new(own), true))
                .into(),
            relay_client: parts.relay_client.into(),
            relay_server: reach
                .relay_server
                .then(|| relay::Behaviour::new(own, limits::relay()))
                .into(),
        }
    }

    /// Has it tested whether others reach this node at `address`.
    pub(super) fn consider(&mut self, address: &Multiaddr) {
        if let Some(client) = self.autonat_client.as_mut() {
            client.listening(address);
        }
    }

    /// The DHT of `scope`.
    pub(super) fn dht(&mut self, scope: Scope) -> &mut ScopedKad {
        match scope {
            Scope::Lan => &mut self.lan,
            Scope::Wan => &mut self.wan,
        }
    }
}

fn mdns(own: PeerId) -> Nearby<mdns::tokio::Behaviour> {
    Nearby::new(true, move || match mdns::tokio::Behaviour::new(mdns::Config::default(), own) {
        Ok(mdns) => Some(mdns),
        Err(error) => {
            tracing::warn!(%error, "nodes of the local network are not looked for");
            None
        }
    })
}

/// `believed`: what it says of the router is not tested.
fn upnp(believed: bool) -> Nearby<upnp::tokio::Behaviour> {
    Nearby::new(believed, || Some(upnp::tokio::Behaviour::default()))
}

/// Whether what a peer calls itself is the name of a chiral node.
pub(super) fn is_chiral(agent: &str) -> bool {
    agent.starts_with(AGENT_PREFIX)
}
