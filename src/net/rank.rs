//! In which order the addresses of one peer are dialled.

use std::{net::IpAddr, time::Duration};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use super::address::{Scope, is_quic, is_relayed, is_unspecified, relay_of, without_peer};

/// Head start of the better addresses over the next, as of Happy Eyeballs (RFC 8305): about one round trip.
const HEAD_START: Duration = Duration::from_millis(250);
/// Head start of the last direct addresses over a relay, which lends its bandwidth to whoever needs it.
const RELAY_HEAD_START: Duration = Duration::from_millis(500);

/// Addresses that are dialled at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// How long the group before it is left alone; if that fails, this one begins at once.
    pub(super) after: Duration,
    /// Empty: whatever the behaviours know.
    pub(super) addresses: Vec<Multiaddr>,
}

impl Group {
    /// A group that begins at once.
    pub(super) fn first(addresses: Vec<Multiaddr>) -> Self {
        Self { after: Duration::ZERO, addresses }
    }
}

/// Orders the addresses of a peer. `own` listens on `listening`; what leads back here is left out, as is what leads
/// nowhere.
///
/// Nearby TCP comes first: on a local network it moves blocks at nearly twice the rate of QUIC for two thirds of the
/// processor time. Then nearby QUIC, distant QUIC, which keeps several blocks moving where TCP waits and passes
/// translators more often, and distant TCP. Of distant ones a single address of IPv6 comes first, then a single one of
/// IPv4, those with the lowest ports, which are more likely listened on than lent by a translator; then all others.
/// Relays come last.
pub(super) fn rank(
    addresses: impl IntoIterator<Item = Multiaddr>,
    own: PeerId,
    listening: &[Multiaddr],
) -> Vec<Group> {
    let mut near = [const { Vec::new() }; 2];
    let mut far = [const { Vec::new() }; 2];
    let mut relayed = Vec::new();
    for address in addresses {
        if leads_nowhere(&address, own, listening) {
            continue;
        }
        let list = match (Scope::of(&address), is_quic(&address)) {
            _ if is_relayed(&address) => &mut relayed,
            (Some(Scope::Lan), quic) => &mut near[usize::from(quic)],
            (_, quic) => &mut far[usize::from(!quic)],
        };
        if !list.contains(&address) {
            list.push(address);
        }
    }
    let direct = near.into_iter().chain(far.into_iter().flat_map(one_of_each_family));
    let mut groups: Vec<Group> = direct
        .filter(|addresses| !addresses.is_empty())
        .map(|addresses| Group { after: HEAD_START, addresses })
        .collect();
    if !relayed.is_empty() {
        groups.push(Group { after: RELAY_HEAD_START, addresses: relayed });
    }
    if let Some(first) = groups.first_mut() {
        first.after = Duration::ZERO;
    }
    groups
}

fn leads_nowhere(address: &Multiaddr, own: PeerId, listening: &[Multiaddr]) -> bool {
    if let Some(relay) = relay_of(address) {
        // One that this node has a slot at leads to others as well.
        return relay == own;
    }
    let bare = without_peer(address);
    is_unspecified(address)
        || port(address) == Some(0)
        || listening.iter().any(|at| without_peer(at) == bare)
}

/// The best address of IPv6, the best of IPv4, and the others.
fn one_of_each_family(mut addresses: Vec<Multiaddr>) -> [Vec<Multiaddr>; 3] {
    addresses.sort_by_key(port);
    let mut take = |v6: bool| {
        let its = |address: &Multiaddr| ip(address).is_some_and(|ip| ip.is_ipv6() == v6);
        let at = addresses.iter().position(its)?;
        Some(addresses.remove(at))
    };
    let [six, four] = [true, false].map(|v6| take(v6).into_iter().collect());
    [six, four, addresses]
}

fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

fn port(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn ranked(addresses: &[&str], listening: &[&str]) -> Vec<(u64, Vec<String>)> {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        let groups = rank(parse(addresses), PeerId::random(), &parse(listening));
        let row = |group: Group| {
            let millis = u64::try_from(group.after.as_millis()).unwrap();
            (millis, group.addresses.iter().map(ToString::to_string).collect())
        };
        groups.into_iter().map(row).collect()
    }

    fn texts(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect()
    }

    #[test]
    fn tcp_is_tried_first_nearby_and_quic_first_far_away() {
        let groups = ranked(
            &[
                "/ip4/1.1.1.1/tcp/1",
                "/ip4/1.1.1.1/udp/1/quic-v1",
                "/ip4/127.0.0.1/udp/1/quic-v1",
                "/ip4/127.0.0.1/tcp/1",
                "/ip4/10.0.0.1/tcp/1",
                "/ip4/127.0.0.1/tcp/1",
            ],
            &[],
        );
        let (after, order): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
        assert_eq!(after, [0, 250, 250, 250]);
        let expected = texts(&[
            &["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1"],
            &["/ip4/127.0.0.1/udp/1/quic-v1"],
            &["/ip4/1.1.1.1/udp/1/quic-v1"],
            &["/ip4/1.1.1.1/tcp/1"],
        ]);
        assert_eq!(order, expected);
    }

    #[test]
    fn far_away_one_address_of_each_family_has_a_head_start_the_lowest_port_first() {
        let groups = ranked(
            &[
                "/ip4/1.1.1.1/udp/40000/quic-v1",
                "/ip4/1.1.1.1/udp/4001/quic-v1",
                "/ip6/2001:db8::1/udp/9/quic-v1",
                "/ip6/2001:db8::1/udp/7/quic-v1",
                "/ip4/1.1.1.1/tcp/4001",
            ],
            &[],
        );
        let (after, order): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
        assert_eq!(after, [0, 250, 250, 250]);
        let expected = texts(&[
            &["/ip6/2001:db8::1/udp/7/quic-v1"],
            &["/ip4/1.1.1.1/udp/4001/quic-v1"],
            &["/ip6/2001:db8::1/udp/9/quic-v1", "/ip4/1.1.1.1/udp/40000/quic-v1"],
            &["/ip4/1.1.1.1/tcp/4001"],
        ]);
        assert_eq!(order, expected);
    }

    #[test]
    fn relays_come_last_and_at_once_where_there_is_nothing_else() {
        let relay = PeerId::random();
        let over = format!("/ip4/1.1.1.1/tcp/1/p2p/{relay}/p2p-circuit");
        let groups = ranked(&[&over, "/ip4/2.2.2.2/tcp/1"], &[]);
        assert_eq!(groups[0], (0, vec!["/ip4/2.2.2.2/tcp/1".to_owned()]));
        assert_eq!(groups[1], (500, vec![over.clone()]));
        assert_eq!(ranked(&[&over], &[]), [(0, vec![over])]);
    }

    #[test]
    fn a_relay_that_this_node_has_a_slot_at_too_leads_to_others() {
        let (own, peer) = (PeerId::random(), PeerId::random());
        let relay = format!("/ip4/127.0.0.1/tcp/1/p2p/{}/p2p-circuit", PeerId::random());
        let [ours, its] = [own, peer].map(|who| format!("{relay}/p2p/{who}"));
        for its in [&its, &relay] {
            assert_eq!(ranked(&[its], &[&ours]), [(0, vec![its.clone()])]);
        }
    }

    #[test]
    fn what_leads_back_here_or_nowhere_is_not_dialled() {
        let own = PeerId::random();
        let over_us: Multiaddr =
            format!("/ip4/1.1.1.1/tcp/1/p2p/{own}/p2p-circuit").parse().unwrap();
        assert_eq!(rank([over_us], own, &[]), []);
        let peer = PeerId::random();
        let listening = ["/ip4/192.168.0.2/tcp/4001"];
        for address in [
            "/ip4/0.0.0.0/tcp/1".to_owned(),
            "/ip6/::/udp/1/quic-v1".to_owned(),
            "/ip4/1.1.1.1/tcp/0".to_owned(),
            listening[0].to_owned(),
            format!("{}/p2p/{peer}", listening[0]),
        ] {
            assert_eq!(ranked(&[&address], &listening), [], "{address}");
        }
    }
}
