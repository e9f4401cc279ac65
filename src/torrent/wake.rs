//! Waking peers that have nothing to do.
//!
//! When a reader jumps, or its window moves on after everything in it has come, a peer connection of librqbit that has
//! nothing to ask for looks at the new window only when its sleep of five seconds is over: nothing but the death of a
//! peer that had a piece to give, or a wrong hash, wakes it. So a peer is made that dies: a connection to our own
//! session that claims to have everything and closes when it is asked for a piece, which goes back to the others.

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::wire::{Message, Reader, bits_of, greeting, near};
use crate::content::InfoHash;

/// Longest life of such a peer. If it is asked for nothing, everything that is wanted is on its way already.
const LIFE: Duration = Duration::from_millis(250);

/// Wakes the peers of a torrent of `pieces` pieces; whether one of them had something to fetch.
pub(super) async fn wake(session: SocketAddr, hash: InfoHash, pieces: u32) -> bool {
    let lived = timeout(LIFE, live_and_die(near(session), hash, pieces)).await;
    matches!(lived, Ok(Ok(())))
}

async fn live_and_die(session: SocketAddr, hash: InfoHash, pieces: u32) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(session).await?;
    connection.set_nodelay(true)?;
    connection.write_all(&greeting(hash, &bits_of(pieces, |_| true))).await?;
    let mut session = Reader::new(connection);
    session.handshake().await?;
    loop {
        if let Message::Request(_) = session.next().await? {
            return Ok(());
        }
    }
}
