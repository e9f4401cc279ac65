//! Where a stranger's words may lead: which addresses the whole internet can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether the whole internet can reach an address, so that a stranger who names it learns nothing about the network
/// that this machine is in, and reaches nobody there through it.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = match (a, b, c) {
        // This network, loopback, multicast and reserved.
        (0 | 127 | 224.., ..) => true,
        // Private, shared by a provider (CGNAT), link-local.
        (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) | (169, 254, _) => true,
        // Protocol assignments, documentation, relays, benchmarks.
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113) => {
            true
        }
        _ => false,
    };
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let parts = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match parts {
        // What a translator of a network without IPv4 makes of an IPv4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(embedded(high, low)),
        // Tunnels (Teredo, 6to4) lead to an IPv4 address inside, documentation nowhere.
        [0x2001, 0, ..] | [0x2002, ..] | [0x2001, 0xdb8, ..] | [0x3fff, ..] => false,
        // Only global unicast: no loopback, mapped IPv4, unique local, link-local, multicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}
