//! How bytes travel: TCP, secured, with our own yamux adapter, and QUIC.

use std::{
    collections::VecDeque,
    future::{Ready, ready},
    io, iter,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite, future::Either, io::BufReader};
use libp2p::{
    PeerId, Transport,
    core::{
        UpgradeInfo,
        muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent},
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, Version},
    },
    dns, identity, quic, relay, tcp,
};

use super::{
    gather::Gather,
    security::{Security, SecurityError},
    split::Split,
};

/// Largest payload of a yamux frame. A Noise frame carries 64,511 bytes, so one yamux frame and its header of 12
/// bytes make one Noise frame and nearly fill it; yamux' own default of 16 KiB costs four times the frames.
const SPLIT_SEND_SIZE: usize = 63 << 10;

/// Bytes of inbound window that all streams of one connection may have. Windows grow with the measured
/// bandwidth-delay product, and this is what a stranger can make us buffer at most; 512 streams need 128 MiB.
const CONNECTION_WINDOW: usize = 256 << 20;

/// Bytes that one read from the socket takes in. Noise reads 8 KiB at a time without it. An idle connection touches a page of
/// it: a smaller buffer for those saves nothing that can be measured.
const READ_BUFFER: usize = 64 << 10;

/// Inbound streams that wait until the swarm takes them; more are refused.
const INBOUND_BACKLOG: usize = 256;

/// Unacknowledged bytes of one QUIC connection and of one of its streams: 64 MiB in flight to one peer is what a
/// deep pipeline of blocks asks for, and the stock 15 MB end at 150 MB/s when a round trip takes 100 ms.
const QUIC_CONNECTION_WINDOW: u32 = 64 << 20;
const QUIC_STREAM_WINDOW: u32 = 48 << 20;

/// How long it may take from a dial, or from a call, to a connection that streams can be opened on. Whoever calls and then
/// says nothing would hold one of the few places for handshakes for ever, and a silent address a dial for two minutes.
/// Less than the ten seconds within which an AutoNAT server has to answer what became of its dial.
const HANDSHAKE: Duration = Duration::from_secs(8);

/// The transport of the swarm: direct, or over a relay where there is a client of relays.
pub(super) fn build(
    key: &identity::Keypair,
    relay: Option<relay::client::Transport>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, SecurityError> {
    let direct = direct(key)?;
    let Some(relay) = relay else { return Ok(TransportTimeout::new(direct, HANDSHAKE).boxed()) };
    let relayed = relay
        .upgrade(Version::V1Lazy)
        .authenticate(Security::new(key)?)
        .multiplex(Yamux)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    // The relayed one first: it refuses what leads over no relay, which the others do not do the other way round.
    let both = relayed.or_transport(direct).map(|either, _| match either {
        Either::Left(output) | Either::Right(output) => output,
    });
    Ok(TransportTimeout::new(both, HANDSHAKE).boxed())
}

/// Names resolved, QUIC or TCP, authenticated, multiplexed.
fn direct(key: &identity::Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, SecurityError> {
    let both = |key: &identity::Keypair| -> Result<_, SecurityError> {
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .map(|socket, _| BufReader::with_capacity(READ_BUFFER, Gather::new(socket)))
            .upgrade(Version::V1Lazy)
            .authenticate(Security::new(key)?)
            .multiplex(Yamux)
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
        let mut config = quic::Config::new(key);
        config.max_connection_data = QUIC_CONNECTION_WINDOW;
        config.max_stream_data = QUIC_STREAM_WINDOW;
        let quic = quic::tokio::Transport::new(config)
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
        Ok(quic.or_transport(tcp).map(|either, _| match either {
            Either::Left(output) | Either::Right(output) => output,
        }))
    };
    Ok(match dns::tokio::Transport::system(both(key)?) {
        Ok(transport) => transport.boxed(),
        Err(error) => {
            tracing::warn!(%error, "the system names no usable DNS server: only numeric addresses can be dialled");
            both(key)?.boxed()
        }
    })
}

/// The upgrade that turns a secured connection into a [`Muxer`].
#[derive(Clone, Copy, Debug)]
struct Yamux;

fn config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_split_send_size(SPLIT_SEND_SIZE);
    config.set_max_connection_receive_window(Some(CONNECTION_WINDOW));
    config
}

impl UpgradeInfo for Yamux {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(socket, yamux::Mode::Server)))
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(socket, yamux::Mode::Client)))
    }
}

/// A yamux connection as libp2p drives it.
///
/// yamux makes progress, reads included, only while it is polled for inbound streams, and libp2p promises to call
/// [`StreamMuxer::poll`] alone at all times: streams that arrive there wait in a queue.
struct Muxer<C> {
    connection: yamux::Connection<Split<C>>,
    inbound: VecDeque<yamux::Stream>,
    /// Whoever asked for an inbound stream when there was none.
    waiting: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(socket: C, mode: yamux::Mode) -> Self {
        let connection = yamux::Connection::new(Split::new(socket), config(), mode);
        Self { connection, inbound: VecDeque::new(), waiting: None }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<yamux::Stream>> {
        self.connection.poll_next_inbound(cx).map(|next| match next {
            Some(stream) => stream.map_err(io::Error::other),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = yamux::Stream;
    type Error = io::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Self::Substream>> {
        if let Some(stream) = self.inbound.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        self.waiting = Some(cx.waker().clone());
        self.poll_next(cx)
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Self::Substream>> {
        self.connection.poll_new_outbound(cx).map_err(io::Error::other)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.poll_close(cx).map_err(io::Error::other)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        let stream = std::task::ready!(self.poll_next(cx))?;
        if self.inbound.len() < INBOUND_BACKLOG {
            self.inbound.push_back(stream);
            if let Some(waker) = self.waiting.take() {
                waker.wake();
            }
        } else {
            tracing::debug!("an inbound stream is refused: {INBOUND_BACKLOG} wait already");
        }
        // One stream per call, so that a peer that opens many cannot hold the connection's task; come back for more.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures::{AsyncReadExt, AsyncWriteExt, future};
    use libp2p::core::muxing::StreamMuxerExt;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    #[tokio::test]
    async fn streams_carry_more_than_a_window_both_ways_at_once() {
        let (a, b) = tokio::io::duplex(64 << 10);
        let mut client = Muxer::new(a.compat(), yamux::Mode::Client);
        let mut server = Muxer::new(b.compat(), yamux::Mode::Server);
        let payload: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();

        let serve = future::poll_fn(|cx| {
            // Serves one stream while its own connection makes progress.
            server.poll_inbound_unpin(cx)
        });
        let dial = async {
            let mut stream = future::poll_fn(|cx| client.poll_outbound_unpin(cx)).await.unwrap();
            // yamux announces a stream with its first bytes.
            let mut flushed = Box::pin(async {
                stream.write_all(b"x").await.unwrap();
                stream.flush().await.unwrap();
                stream
            });
            let stream = future::poll_fn(|cx| {
                let _ = client.poll_unpin(cx);
                flushed.as_mut().poll(cx)
            })
            .await;
            // The frame reaches the wire when the connection is polled once more.
            let _ = future::poll_fn(|cx| Poll::Ready(client.poll_unpin(cx))).await;
            stream
        };
        let (inbound, outbound) = future::join(serve, dial).await;
        let (mut inbound, mut outbound) = (inbound.unwrap(), outbound);

        let there = payload.clone();
        let echo = async move {
            let mut first = [0];
            inbound.read_exact(&mut first).await.unwrap();
            let mut buffer = vec![0; there.len()];
            inbound.read_exact(&mut buffer).await.unwrap();
            inbound.write_all(&buffer).await.unwrap();
            inbound.close().await.unwrap();
        };
        let sent = payload.clone();
        let exchange = async move {
            outbound.write_all(&sent).await.unwrap();
            let mut back = vec![0; sent.len()];
            outbound.read_exact(&mut back).await.unwrap();
            back
        };
        let drive = future::poll_fn(|cx| {
            let _ = client.poll_unpin(cx);
            let _ = server.poll_unpin(cx);
            Poll::<()>::Pending
        });
        tokio::select! {
            (_, back) = future::join(echo, exchange) => assert_eq!(back, payload),
            () = drive => unreachable!(),
        }
    }
}
