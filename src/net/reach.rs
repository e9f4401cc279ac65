//! How a node is found and reached: what of it can be switched off.

use std::time::Duration;

use libp2p::Multiaddr;

/// How long it is left to others to find out whether this node can be reached, before relays are asked for a slot.
const RELAY_AFTER: Duration = Duration::from_secs(30);

/// Which ways to be found and reached a node uses.
#[derive(Clone, Debug)]
pub struct ReachOptions {
    /// Finds nodes of the local network, and lets them find this one.
    pub mdns: bool,
    /// Has others test which addresses lead here, and tests theirs.
    pub autonat: bool,
    /// Has relays introduce others while nobody can reach this node, and reaches others over relays.
    pub relay_client: bool,
    /// Only configured peers are asked for a slot at a relay.
    pub named_relays_only: bool,
    /// Introduces others to each other.
    pub relay_server: bool,
    /// Turns connections over relays into direct ones. Of no use without [`ReachOptions::relay_client`].
    pub dcutr: bool,
    /// Has the router of the local network forward the ports that are listened on.
    pub upnp: bool,
    /// Addresses that lead here, as somebody knows who need not ask.
    pub announce: Vec<Multiaddr>,
    /// How long nobody asks for a slot at a relay, unless it is known that this node cannot be reached.
    pub relay_after: Duration,
    /// Private addresses are tested before they are taken as ones that lead here, as public ones are. For tests: on a
    /// local network there is no doubt.
    pub doubt_private: bool,
}

impl Default for ReachOptions {
    fn default() -> Self {
        Self {
            mdns: true,
            autonat: true,
            relay_client: true,
            named_relays_only: false,
            relay_server: false,
            dcutr: true,
            upnp: true,
            announce: Vec::new(),
            relay_after: RELAY_AFTER,
            doubt_private: false,
        }
    }
}
