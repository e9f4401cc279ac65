//! `filter-addrs` and `filter-protocols`: what a client has no use for is left out.

use super::Record;
use crate::gateway::target::Query;

/// Stands for records that say nothing.
const UNKNOWN: &str = "unknown";

/// Names in a filter; transports and protocols have short ones, and there are few.
const MAX_NAMES: usize = 64;

/// Both filters of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    addresses: Vec<String>,
    protocols: Vec<String>,
}

impl Filter {
    pub(super) fn of(query: &Query) -> Self {
        let names = |key| -> Vec<String> {
            let names = query.get(key).unwrap_or_default().split(',');
            let names = names.map(|name| name.trim().to_ascii_lowercase());
            names.filter(|name| !name.is_empty()).take(MAX_NAMES).collect()
        };
        Self { addresses: names("filter-addrs"), protocols: names("filter-protocols") }
    }

    /// The record with the addresses that pass; none when it has no use.
    pub(super) fn apply(&self, mut record: Record) -> Option<Record> {
        if !self.has_protocol(&record) {
            return None;
        }
        if self.addresses.is_empty() {
            return Some(record);
        }
        if record.addrs.is_empty() {
            return self.addresses.iter().any(|name| name == UNKNOWN).then_some(record);
        }
        record.addrs.retain(|address| self.passes(address));
        (!record.addrs.is_empty()).then_some(record)
    }

    fn has_protocol(&self, record: &Record) -> bool {
        let has = |name: &String| match record.protocols.is_empty() {
            true => name == UNKNOWN,
            false => record.protocols.iter().any(|protocol| protocol.eq_ignore_ascii_case(name)),
        };
        self.protocols.is_empty() || self.protocols.iter().any(has)
    }

    /// None of the names behind an exclamation mark, and one of the others, if there are any.
    fn passes(&self, address: &str) -> bool {
        let has = |name: &str| address.split('/').any(|part| part.eq_ignore_ascii_case(name));
        let mut wanted = self.addresses.iter().filter(|name| !name.starts_with('!')).peekable();
        let mut refused = self.addresses.iter().filter_map(|name| name.strip_prefix('!'));
        !refused.any(has) && (wanted.peek().is_none() || wanted.any(|name| has(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "/ip4/127.0.0.1/tcp/4001";
    const QUIC: &str = "/ip4/127.0.0.1/udp/4001/quic-v1";
    const V6: &str = "/ip6/::1/tcp/4001";

    fn filtered(query: &str, addrs: &[&str], protocols: &[&str]) -> Option<Vec<String>> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let record = Record {
            schema: "peer".to_owned(),
            id: "x".to_owned(),
            addrs: owned(addrs),
            protocols: owned(protocols),
        };
        let left = Filter::of(&Query::of(Some(query))).apply(record)?;
        assert_eq!(left.protocols, protocols, "{query}");
        Some(left.addrs)
    }

    #[test]
    fn addresses_pass_one_positive_and_all_negative_names() {
        let all = [TCP, QUIC, V6];
        for (query, left) in [
            ("", Some(&all[..])),
            ("filter-addrs=TCP", Some(&[TCP, V6])),
            ("filter-addrs=quic-v1,ip6", Some(&[QUIC, V6])),
            ("filter-addrs=!ip6", Some(&[TCP, QUIC])),
            ("filter-addrs=!ip6,!quic-v1", Some(&[TCP])),
            ("filter-addrs=tcp%2C!ip6", Some(&[TCP])),
            ("filter-addrs=webrtc-direct", None),
            ("filter-addrs=unknown", None),
        ] {
            let left = left.map(|left| left.iter().map(|text| (*text).to_owned()).collect());
            assert_eq!(filtered(query, &all, &[]), left, "{query}");
        }
        assert_eq!(filtered("filter-addrs=unknown,tcp", &[], &[]), Some(vec![]));
        assert_eq!(filtered("filter-addrs=tcp", &[], &[]), None);
    }

    #[test]
    fn protocols_choose_records_and_leave_them_whole() {
        let both = ["transport-bitswap", "transport-ipfs-gateway-http"];
        for (query, protocols, is_left) in [
            ("filter-protocols=Transport-Bitswap", &both[..], true),
            ("filter-protocols=transport-graphsync", &both, false),
            ("filter-protocols=transport-graphsync,transport-ipfs-gateway-http", &both, true),
            ("filter-protocols=unknown", &both, false),
            ("filter-protocols=unknown", &[], true),
            ("filter-protocols=transport-bitswap", &[], false),
        ] {
            assert_eq!(filtered(query, &[TCP], protocols).is_some(), is_left, "{query}");
        }
    }
}
