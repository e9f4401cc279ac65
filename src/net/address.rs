//! What an address tells: whose network it belongs to, and whether it leads over a relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// Which of the two DHTs an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    /// Private, link-local and loopback addresses.
    Lan,
    /// Everything that the whole internet can reach.
    Wan,
}

impl Scope {
    /// Both, in the order of their answers' worth: who is near comes first.
    pub(super) const ALL: [Self; 2] = [Self::Lan, Self::Wan];

    /// The scope of an address; none where it begins with nothing that names a host.
    pub(super) fn of(address: &Multiaddr) -> Option<Self> {
        match address.iter().next()? {
            Protocol::Ip4(ip) => Some(Self::of_ip(ip.into())),
            Protocol::Ip6(ip) => Some(Self::of_ip(ip.into())),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
                let local =
                    name == "localhost" || name.ends_with(".localhost") || name.ends_with(".local");
                Some(if local { Self::Lan } else { Self::Wan })
            }
            Protocol::Dnsaddr(_) => Some(Self::Wan),
            _ => None,
        }
    }

    fn of_ip(ip: IpAddr) -> Self {
        let private = match ip {
            IpAddr::V4(ip) => private_v4(ip),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => private_v4(ip),
                None => private_v6(ip),
            },
        };
        if private { Self::Lan } else { Self::Wan }
    }

    /// Whether `address` is of this kind.
    pub(super) fn covers(self, address: &Multiaddr) -> bool {
        Self::of(address) == Some(self)
    }
}

fn private_v4(ip: Ipv4Addr) -> bool {
    // 100.64.0.0/10 is what providers hand out behind their own translators: as unreachable as 10.0.0.0/8.
    let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
    ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared
}

fn private_v6(ip: Ipv6Addr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()
}

/// Whether the address stays inside this machine.
pub(super) fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => {
            ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback())
        }
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => {
            name == "localhost" || name.ends_with(".localhost")
        }
        _ => false,
    }
}

/// Whether the address is one of QUIC.
pub(super) fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::QuicV1)
}

/// Whether the address leads over a relay.
pub(super) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether the address says "any": one can listen there, and not be found there.
pub(super) fn is_unspecified(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => ip.is_unspecified(),
        _ => false,
    }
}

/// The relay of an address that leads over one.
pub(super) fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    let mut before = address.iter().take_while(|part| *part != Protocol::P2pCircuit);
    match before.by_ref().last() {
        Some(Protocol::P2p(relay)) if is_relayed(address) => Some(relay),
        _ => None,
    }
}

/// Where the relay of an address is that leads over one.
pub(super) fn relay_address(address: &Multiaddr) -> Multiaddr {
    address.iter().take_while(|part| *part != Protocol::P2pCircuit).collect()
}

/// The address without the peer id at its end.
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut bare = address.clone();
    if peer_of(address).is_some() {
        bare.pop();
    }
    bare
}

/// The peer id at the end of an address.
pub(super) fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// `address` with the peer id at its end.
pub(super) fn with_peer(address: &Multiaddr, peer: PeerId) -> Multiaddr {
    match peer_of(address) {
        Some(_) => address.clone(),
        None => address.clone().with(Protocol::P2p(peer)),
    }
}

/// Whether anybody has to be asked what the address means. Who owns the name decides that, anew each time.
pub(super) fn is_name(address: &Multiaddr) -> bool {
    let name = |part| {
        matches!(
            part,
            Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)
        )
    };
    address.iter().any(name)
}

/// Addresses that one peer says it listens on and that are kept of it.
const MAX_ADDRESSES: usize = 16;

/// Those of the addresses that a peer claims which it may claim, being connected through `via`: public ones always,
/// private ones only from a private address, loopback ones only from this machine, and names never, which may lead
/// anywhere. Otherwise a stranger could have this node knock at doors inside its own network.
pub(super) fn trusted(claimed: &[Multiaddr], via: &Multiaddr) -> Vec<Multiaddr> {
    claimed.iter().filter(|at| may_claim(at, via)).take(MAX_ADDRESSES).cloned().collect()
}

/// Whether a peer that is connected through `via` may say that it is to be found at `address`.
///
/// Whoever comes over a relay may be anywhere, also where the relay itself is near.
pub(super) fn may_claim(address: &Multiaddr, via: &Multiaddr) -> bool {
    match Scope::of(address) {
        _ if is_name(address) || is_unspecified(address) => false,
        Some(Scope::Wan) => true,
        Some(Scope::Lan) => {
            !is_relayed(via)
                && Scope::Lan.covers(via)
                && (!is_loopback(address) || is_loopback(via))
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn private_and_public_addresses_are_told_apart() {
        for lan in [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/10.1.2.3/udp/1/quic-v1",
            "/ip4/192.168.0.1/tcp/1",
            "/ip4/169.254.1.1/tcp/1",
            "/ip4/100.64.0.1/tcp/1",
            "/ip6/::1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/::ffff:10.0.0.1/tcp/1",
            "/dns4/printer.local/tcp/1",
        ] {
            assert_eq!(Scope::of(&lan.parse().unwrap()), Some(Scope::Lan), "{lan}");
        }
        for wan in [
            "/ip4/100.128.0.1/tcp/1",
            "/ip4/1.1.1.1/tcp/1",
            "/ip6/2001:db8::1/tcp/1",
            "/dnsaddr/example.org",
        ] {
            assert_eq!(Scope::of(&wan.parse().unwrap()), Some(Scope::Wan), "{wan}");
        }
        assert_eq!(Scope::of(&format!("/p2p/{}", PeerId::random()).parse().unwrap()), None);
    }

    #[test]
    fn a_stranger_cannot_name_addresses_of_our_network() {
        let claimed: Vec<Multiaddr> =
            ["/ip4/127.0.0.1/tcp/22", "/ip4/192.168.0.1/tcp/80", "/ip4/1.1.1.1/tcp/4001"]
                .map(|address| address.parse().unwrap())
                .to_vec();
        let names = ["/dns4/router.example/tcp/80", "/dns/x/tcp/1", "/dnsaddr/example.org"]
            .map(|address| address.parse().unwrap());
        for (via, kept) in
            [("/ip4/127.0.0.1/tcp/1", 0), ("/ip4/10.0.0.1/tcp/1", 1), ("/ip4/8.8.8.8/tcp/1", 2)]
        {
            assert_eq!(trusted(&claimed, &via.parse().unwrap()), claimed[kept..], "{via}");
            assert_eq!(trusted(&names, &via.parse().unwrap()), [], "{via}");
        }
    }
}
