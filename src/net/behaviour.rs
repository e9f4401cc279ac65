//! Everything that runs on a connection, composed.

use std::time::Duration;

use libp2p::{
    PeerId, allow_block_list, connection_limits, identify, identity::Keypair,
    memory_connection_limits, ping, swarm::NetworkBehaviour,
};

use super::{
    address::Scope, bitswap, keep::Keep, limits, records::Records, scoped_kad::ScopedKad,
    tell::Tell,
};

/// What every agent version of a chiral node begins with.
const AGENT_PREFIX: &str = "chiral/";

/// The composed behaviour. Those that refuse connections come first: the others hear only of what they let through.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) banned: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    pub(super) keep: Keep,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(super) lan: ScopedKad,
    pub(super) wan: ScopedKad,
    pub(super) tell: Tell,
    bitswap: bitswap::Behaviour,
}

impl Behaviour {
    /// The behaviour of the node with this key.
    pub(super) fn new(
        key: &Keypair,
        bitswap: bitswap::Behaviour,
        lan: Records,
        wan: Records,
    ) -> Self {
        let own = PeerId::from(key.public());
        let identify = identify::Config::new("ipfs/0.1.0".to_owned(), key.public())
            .with_agent_version(format!("{AGENT_PREFIX}{}", env!("CARGO_PKG_VERSION")))
            .with_push_listen_addr_updates(true)
            // Its cache would dial whatever a stranger says that it listens on, private addresses included.
            .with_cache_size(0);
        let ping = ping::Config::new().with_interval(Duration::from_secs(15));
        Self {
            banned: allow_block_list::Behaviour::default(),
            limits: limits::connections(),
            memory: limits::memory(),
            keep: Keep::default(),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            lan: ScopedKad::new(Scope::Lan, own, lan),
            wan: ScopedKad::new(Scope::Wan, own, wan),
            tell: Tell::default(),
            bitswap,
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

/// Whether what a peer calls itself is the name of a chiral node.
pub(super) fn is_chiral(agent: &str) -> bool {
    agent.starts_with(AGENT_PREFIX)
}
