//! Telling the session of peers while it runs.
//!
//! librqbit takes peers with a torrent, and from trackers, the DHT and other peers; there is no call that names one
//! later. So it is told as a peer tells of others: by a connection of our own to the session.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::wire::{introduction, near};
use crate::content::InfoHash;

/// Longest life of such a peer.
const LIFE: Duration = Duration::from_secs(10);

/// Tells the session of peers of a torrent that goes; whether it took it.
pub(super) async fn introduce(session: SocketAddr, hash: InfoHash, peers: &[SocketAddr]) -> bool {
    let told = timeout(LIFE, tell(near(session), &introduction(hash, peers))).await;
    matches!(told, Ok(Ok(())))
}

async fn tell(session: SocketAddr, introduction: &[u8]) -> io::Result<()> {
    let mut connection = TcpStream::connect(session).await?;
    connection.write_all(introduction).await?;
    connection.shutdown().await?;
    // To its end: one that is closed with something unread takes back what it said.
    tokio::io::copy(&mut connection, &mut tokio::io::sink()).await.map(drop)
}
