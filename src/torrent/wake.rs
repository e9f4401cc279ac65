//! Waking peers that have nothing to do.
//!
//! When a reader jumps, or its window moves on after everything in it has come, a peer connection of librqbit that has
//! nothing to ask for looks at the new window only when its sleep of five seconds is over: nothing but the death of a
//! peer that had a piece to give, or a wrong hash, wakes it. So a peer is made that dies: a connection to our own
//! session that claims to have everything and closes when it is asked for a piece, which goes back to the others.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::content::InfoHash;

/// Longest life of such a peer. If it is asked for nothing, everything that is wanted is on its way already.
const LIFE: Duration = Duration::from_millis(250);
/// Longest message that is read: bitfields of other peers' pieces are as long as ours.
const MAX_MESSAGE: usize = 1 << 20;

const PROTOCOL: &[u8] = b"\x13BitTorrent protocol";
const HANDSHAKE_LEN: usize = 68;
const UNCHOKE: u8 = 1;
const BITFIELD: u8 = 5;
const REQUEST: u8 = 6;

/// Wakes the peers of a torrent of `pieces` pieces; whether one of them had something to fetch.
pub(super) async fn wake(session: SocketAddr, hash: InfoHash, pieces: u32) -> bool {
    let lived = timeout(LIFE, live_and_die(near(session), hash, pieces)).await;
    matches!(lived, Ok(Ok(())))
}

/// Where a session that listens on all addresses is reached from here.
fn near(mut session: SocketAddr) -> SocketAddr {
    match session.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => session.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => session.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    session
}

async fn live_and_die(session: SocketAddr, hash: InfoHash, pieces: u32) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(session).await?;
    connection.set_nodelay(true)?;
    // All at once: an answer is waited for nowhere.
    connection.write_all(&greeting(hash, pieces)).await?;
    let mut answer = [0; HANDSHAKE_LEN];
    connection.read_exact(&mut answer).await?;
    let mut message = Vec::new();
    loop {
        let len = connection.read_u32().await? as usize;
        if len > MAX_MESSAGE {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        message.resize(len, 0);
        connection.read_exact(&mut message).await?;
        if message.first() == Some(&REQUEST) {
            return Ok(());
        }
    }
}

fn greeting(hash: InfoHash, pieces: u32) -> Vec<u8> {
    let mut to = PROTOCOL.to_vec();
    to.extend([0; 8]);
    to.extend(hash.0);
    to.extend(*b"-CH0100-");
    to.extend(rand::random::<[u8; 12]>());
    let mut bits = vec![0xff; pieces.div_ceil(8) as usize];
    if let (Some(last), used @ 1..) = (bits.last_mut(), pieces % 8) {
        *last <<= 8 - used;
    }
    // At most some 40,000 bytes: the number of pieces is bounded.
    let len = u32::try_from(bits.len() + 1).unwrap_or(u32::MAX);
    to.extend(len.to_be_bytes());
    to.push(BITFIELD);
    to.extend(bits);
    to.extend([0, 0, 0, 1, UNCHOKE]);
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_has_a_bit_for_each_piece_and_no_more() {
        let hash = InfoHash([7; 20]);
        for (pieces, bits) in [(1, &[0x80][..]), (8, &[0xff]), (11, &[0xff, 0xe0])] {
            let text = greeting(hash, pieces);
            let (head, tail) = text.split_at(HANDSHAKE_LEN);
            assert_eq!((&head[..20], &head[28..48]), (PROTOCOL, &[7; 20][..]));
            let len = u8::try_from(bits.len() + 1).unwrap_or_default();
            let expected = [&[0, 0, 0, len, BITFIELD], bits, &[0, 0, 0, 1, UNCHOKE]].concat();
            assert_eq!(tail, expected);
        }
    }

    #[test]
    fn a_session_on_all_addresses_is_reached_on_loopback() {
        for (listens, reached) in
            [("0.0.0.0:5", "127.0.0.1:5"), ("[::]:5", "[::1]:5"), ("127.0.0.2:5", "127.0.0.2:5")]
        {
            let (listens, reached): (SocketAddr, SocketAddr) = (
                listens.parse().unwrap_or(([0; 4], 0).into()),
                reached.parse().unwrap_or(([0; 4], 1).into()),
            );
            assert_eq!(near(listens), reached);
        }
    }
}
