//! What peers write to each other (BEP 3), as far as connections to our own session need it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use super::bencode;
use crate::content::InfoHash;

/// Longest message that is read: bitfields of other peers' pieces are as long as ours.
const MAX_MESSAGE: usize = 1 << 20;

const PROTOCOL: &[u8] = b"\x13BitTorrent protocol";
pub(super) const HANDSHAKE_LEN: usize = 68;
const UNCHOKE: u8 = 1;
const BITFIELD: u8 = 5;
const REQUEST: u8 = 6;
const PIECE: u8 = 7;
const CANCEL: u8 = 8;
/// A message of an extension (BEP 10), and the extension that tells of peers (BEP 11) as librqbit numbers it.
const EXTENDED: u8 = 20;
const PEX: u8 = 1;

/// Says nothing but that the connection lives.
pub(super) const KEEP_ALIVE: [u8; 4] = [0; 4];

/// Bytes of one piece, as they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Chunk {
    pub(super) piece: u32,
    pub(super) begin: u32,
    pub(super) len: u32,
}

/// What a session says to a peer that has nothing to ask for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Request(Chunk),
    Cancel(Chunk),
    /// Anything else.
    Other,
}

/// Where a session that listens on all addresses is reached from here.
pub(super) fn near(mut session: SocketAddr) -> SocketAddr {
    match session.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => session.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => session.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    session
}

/// A bit for each of so many pieces, the highest first.
pub(super) fn bits_of(pieces: u32, has: impl Fn(u32) -> bool) -> Vec<u8> {
    let mut bits = vec![0; pieces.div_ceil(8) as usize];
    for piece in (0..pieces).filter(|piece| has(*piece)) {
        bits[piece as usize / 8] |= 0x80 >> (piece % 8);
    }
    bits
}

/// Handshake, pieces and permission to ask, all at once: an answer is waited for nowhere. Each greeting is one of a new
/// peer.
pub(super) fn greeting(hash: InfoHash, bits: &[u8]) -> Vec<u8> {
    let mut to = handshake(hash, [0; 8]);
    message(&mut to, BITFIELD, bits);
    message(&mut to, UNCHOKE, &[]);
    to
}

/// What a peer says that only tells of others.
pub(super) fn introduction(hash: InfoHash, peers: &[SocketAddr]) -> Vec<u8> {
    // The bit of those that know extensions.
    let mut to = handshake(hash, [0, 0, 0, 0, 0, 0x10, 0, 0]);
    message(&mut to, EXTENDED, b"\0d1:md6:ut_pexi1eee");
    message(&mut to, EXTENDED, &peers_told(peers));
    to
}

/// A list of peers (BEP 11), with the number of its extension before it.
fn peers_told(peers: &[SocketAddr]) -> Vec<u8> {
    let (mut four, mut six) = (Vec::new(), Vec::new());
    for peer in peers {
        match peer.ip() {
            IpAddr::V4(ip) => four.extend(ip.octets().into_iter().chain(peer.port().to_be_bytes())),
            IpAddr::V6(ip) => six.extend(ip.octets().into_iter().chain(peer.port().to_be_bytes())),
        }
    }
    let mut told = vec![PEX, b'd'];
    for (key, list) in [("added", four), ("added6", six)] {
        if !list.is_empty() {
            bencode::write_bytes(&mut told, key.as_bytes());
            bencode::write_bytes(&mut told, &list);
        }
    }
    told.push(b'e');
    told
}

fn handshake(hash: InfoHash, extensions: [u8; 8]) -> Vec<u8> {
    let mut to = PROTOCOL.to_vec();
    to.extend(extensions);
    to.extend(hash.0);
    to.extend(*b"-CH0100-");
    to.extend(rand::random::<[u8; 12]>());
    to
}

fn message(to: &mut Vec<u8>, kind: u8, body: &[u8]) {
    // At most some 200,000 bytes: the number of pieces is bounded.
    let len = u32::try_from(body.len() + 1).unwrap_or(u32::MAX);
    to.extend(len.to_be_bytes());
    to.push(kind);
    to.extend(body);
}

/// What stands before the bytes of a chunk.
pub(super) fn piece_head(chunk: Chunk) -> [u8; 13] {
    let mut head = [0; 13];
    head[..4].copy_from_slice(&chunk.len.saturating_add(9).to_be_bytes());
    head[4] = PIECE;
    head[5..9].copy_from_slice(&chunk.piece.to_be_bytes());
    head[9..].copy_from_slice(&chunk.begin.to_be_bytes());
    head
}

/// The reading half of a connection.
pub(super) struct Reader<R> {
    from: BufReader<R>,
    message: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from: BufReader::new(from), message: Vec::new() }
    }

    /// Reads the answer to a greeting.
    pub(super) async fn handshake(&mut self) -> io::Result<()> {
        let mut answer = [0; HANDSHAKE_LEN];
        self.from.read_exact(&mut answer).await.map(drop)
    }

    /// Reads the next message. Not to be dropped before it has come.
    pub(super) async fn next(&mut self) -> io::Result<Message> {
        let len = self.from.read_u32().await? as usize;
        if len > MAX_MESSAGE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.message.resize(len, 0);
        self.from.read_exact(&mut self.message).await?;
        let message = match *self.message.as_slice() {
            [kind, ref rest @ ..] => match (kind, chunk(rest)) {
                (REQUEST, Some(chunk)) => Message::Request(chunk),
                (CANCEL, Some(chunk)) => Message::Cancel(chunk),
                (REQUEST | CANCEL, None) => return Err(io::ErrorKind::InvalidData.into()),
                _ => Message::Other,
            },
            [] => Message::Other,
        };
        Ok(message)
    }
}

fn chunk(from: &[u8]) -> Option<Chunk> {
    let number = |at: usize| Some(u32::from_be_bytes(from.get(at..at + 4)?.try_into().ok()?));
    (from.len() == 12).then_some(())?;
    Some(Chunk { piece: number(0)?, begin: number(4)?, len: number(8)? })
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// A message of a session about a chunk.
    pub(in crate::torrent) fn asks(kind: &Message) -> Vec<u8> {
        let (id, chunk) = match kind {
            Message::Request(chunk) => (REQUEST, chunk),
            Message::Cancel(chunk) => (CANCEL, chunk),
            Message::Other => return vec![0, 0, 0, 1, 2],
        };
        let mut to = vec![0, 0, 0, 13, id];
        [chunk.piece, chunk.begin, chunk.len].iter().for_each(|n| to.extend(n.to_be_bytes()));
        to
    }

    #[test]
    fn the_greeting_has_a_bit_for_each_piece_and_no_more() {
        let hash = InfoHash([7; 20]);
        for (pieces, bits) in [(1, &[0x80][..]), (8, &[0xff]), (11, &[0xff, 0xe0])] {
            let all = bits_of(pieces, |_| true);
            assert_eq!(all, bits);
            let text = greeting(hash, &all);
            let (head, tail) = text.split_at(HANDSHAKE_LEN);
            assert_eq!((&head[..20], &head[28..48]), (PROTOCOL, &[7; 20][..]));
            let len = u8::try_from(bits.len() + 1).unwrap();
            let expected = [&[0, 0, 0, len, BITFIELD], bits, &[0, 0, 0, 1, UNCHOKE]].concat();
            assert_eq!(tail, expected);
        }
        assert_eq!(bits_of(10, |piece| piece % 3 == 0), [0b1001_0010, 0b0100_0000]);
    }

    #[test]
    fn others_are_told_of_as_ten_or_eighteen_bytes_each() {
        let peers = ["1.2.3.4:258", "[::1]:3", "5.6.7.8:9"].map(|peer| peer.parse().unwrap());
        let mut said = vec![1];
        said.extend(b"d5:added12:\x01\x02\x03\x04\x01\x02\x05\x06\x07\x08\x00\x09");
        said.extend(b"6:added618:\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x03e");
        assert_eq!(peers_told(&peers), said);
        assert_eq!(peers_told(&[]), [1, b'd', b'e']);
    }

    #[test]
    fn a_session_on_all_addresses_is_reached_on_loopback() {
        for (listens, reached) in
            [("0.0.0.0:5", "127.0.0.1:5"), ("[::]:5", "[::1]:5"), ("127.0.0.2:5", "127.0.0.2:5")]
        {
            assert_eq!(near(listens.parse().unwrap()), reached.parse().unwrap());
        }
    }

    #[tokio::test]
    async fn messages_are_read_one_after_the_other_and_malformed_ones_refused() {
        let chunk = Chunk { piece: 3, begin: 16, len: 5 };
        let said = [Message::Other, Message::Request(chunk), Message::Cancel(chunk)];
        let mut bytes: Vec<u8> = said.iter().flat_map(asks).collect();
        bytes.extend(KEEP_ALIVE);
        bytes.extend([0, 0, 0, 2, REQUEST, 0]);
        let mut reader = Reader::new(&bytes[..]);
        for expected in said.into_iter().chain([Message::Other]) {
            assert_eq!(reader.next().await.unwrap(), expected);
        }
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let long = u32::try_from(MAX_MESSAGE + 1).unwrap().to_be_bytes();
        let refused = Reader::new(&long[..]).next().await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_piece_is_headed_by_its_length_and_place() {
        let head = piece_head(Chunk { piece: 1, begin: 2, len: 4 });
        assert_eq!(head, [0, 0, 0, 13, PIECE, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
}
