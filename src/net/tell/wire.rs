//! The one message of Kademlia that is needed here, as it lies on the wire.

use libp2p::{Multiaddr, PeerId};
use prost::Message as _;

/// ADD_PROVIDER: the peer at the other end keeps the record and answers nothing.
const ADD_PROVIDER: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct Message {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(message, repeated, tag = "9")]
    providers: Vec<Provider>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Provider {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    addresses: Vec<Vec<u8>>,
    /// 1: there is a connection. Nobody reads it.
    #[prost(int32, tag = "3")]
    connection: i32,
}

/// Messages that say of each key that `own` provides it at `addresses`, with their lengths before them.
pub(in crate::net) fn add_providers(
    own: PeerId,
    addresses: &[Multiaddr],
    keys: Vec<Vec<u8>>,
) -> Vec<u8> {
    let addresses = addresses.iter().map(Multiaddr::to_vec).collect();
    let provider = Provider { id: own.to_bytes(), addresses, connection: 1 };
    let mut message = Message { kind: ADD_PROVIDER, key: Vec::new(), providers: vec![provider] };
    let mut out = Vec::new();
    for key in keys {
        message.key = key;
        out.extend_from_slice(&message.encode_length_delimited_to_vec());
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let peer: PeerId = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA".parse().unwrap();
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/4001".parse().unwrap();
        let out = add_providers(peer, &[address], vec![vec![0x12, 1, 7], vec![0x12, 1, 8]]);
        let id = peer.to_bytes();
        let record =
            [&[0x0a, 38][..], &id, &[0x12, 8, 4, 127, 0, 0, 1, 6, 0x0f, 0xa1], &[0x18, 1]].concat();
        let message = |key: u8| {
            let body = [&[8, 2, 0x12, 3, 0x12, 1, key, 0x4a, 52][..], &record].concat();
            [&[u8::try_from(body.len()).unwrap()][..], &body].concat()
        };
        assert_eq!(record.len(), 52);
        assert_eq!(out, [message(7), message(8)].concat());
    }
}
