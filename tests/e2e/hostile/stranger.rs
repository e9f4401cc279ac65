//! A peer in the test process that speaks Bitswap byte by byte, as badly as a test wants.

#[path = "../../support/raw_streams.rs"]
mod raw_streams;

use std::{future::Future, sync::mpsc as sync_mpsc, thread};

use bytes::Bytes;
use chiral::content::Block;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{
    PeerId, Stream, StreamProtocol, SwarmBuilder, identify, noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};

use self::raw_streams::Raw;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");

/// More than the daemon takes, and as many as the multiplexer allows for its window.
const STREAMS: usize = 4_096;

/// What is wanted or no longer wanted.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) cid: Bytes,
    #[prost(int32, tag = "2")]
    pub(crate) priority: i32,
    #[prost(bool, tag = "3")]
    pub(crate) cancel: bool,
    /// 0 the block, 1 whether it is there.
    #[prost(int32, tag = "4")]
    pub(crate) want_type: i32,
    #[prost(bool, tag = "5")]
    pub(crate) send_dont_have: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Wantlist {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Entry>,
    #[prost(bool, tag = "2")]
    pub(crate) full: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Payload {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) prefix: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Presence {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) cid: Bytes,
    /// 0 HAVE, 1 DONT_HAVE.
    #[prost(int32, tag = "2")]
    pub(crate) kind: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Message {
    #[prost(message, optional, tag = "1")]
    pub(crate) wantlist: Option<Wantlist>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) payload: Vec<Payload>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) presences: Vec<Presence>,
}

impl Message {
    /// One block, with the data that it really has or others.
    pub(crate) fn block(block: &Block, data: Bytes) -> Self {
        let payload = Payload { prefix: block.cid().prefix().into(), data };
        Self { payload: vec![payload], ..Self::default() }
    }

    /// HAVE.
    pub(crate) fn have(cid: Bytes) -> Self {
        Self { presences: vec![Presence { cid, kind: 0 }], ..Self::default() }
    }

    /// Wants of blocks that are to be remembered.
    pub(crate) fn wants(cids: impl Iterator<Item = Bytes>) -> Self {
        let entry = |cid| Entry { cid, priority: 1, ..Entry::default() };
        let wantlist = Wantlist { entries: cids.map(entry).collect(), full: false };
        Self { wantlist: Some(wantlist), ..Self::default() }
    }
}

/// Streams to and from the daemon.
pub(crate) struct Wire {
    inbound: mpsc::UnboundedReceiver<Stream>,
    requests: mpsc::UnboundedSender<oneshot::Sender<Stream>>,
    connected: watch::Receiver<bool>,
}

impl Wire {
    /// Waits for a connection.
    pub(crate) async fn connected(&mut self) {
        self.connected.wait_for(|connected| *connected).await.unwrap();
    }

    /// The next stream that the daemon opens.
    pub(crate) async fn accept(&mut self) -> Stream {
        self.inbound.recv().await.unwrap()
    }

    /// Asks for a stream; it comes, unless the connection ends.
    pub(crate) fn open(&self) -> oneshot::Receiver<Stream> {
        let (answer, stream) = oneshot::channel();
        self.requests.send(answer).ok().unwrap();
        stream
    }
}

/// Writes a message. False when the daemon has closed the stream or the connection.
pub(crate) async fn send(stream: &mut Stream, message: &Message) -> bool {
    write(stream, &message.encode_length_delimited_to_vec()).await
}

/// Writes bytes of any kind.
pub(crate) async fn write(stream: &mut Stream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok()
}

/// The next message, unless the stream or the connection ends.
pub(crate) async fn receive(stream: &mut Stream) -> Option<Message> {
    let (mut len, mut shift, mut byte) = (0, 0, [0x80]);
    while byte[0] & 0x80 != 0 {
        stream.read_exact(&mut byte).await.ok()?;
        len |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
    }
    let mut frame = vec![0; len];
    stream.read_exact(&mut frame).await.ok()?;
    Message::decode(&frame[..]).ok()
}

/// A peer that waits for the daemon to dial it. It ends with the process of the test.
pub(crate) struct Stranger {
    pub(crate) id: PeerId,
    /// With the id at its end.
    pub(crate) address: String,
    connected: watch::Receiver<bool>,
}

impl Stranger {
    /// Listens, and behaves as `conduct` says.
    pub(crate) fn start<F: Future<Output = ()> + Send>(
        conduct: impl FnOnce(Wire) -> F + Send + 'static,
    ) -> Self {
        let (started, ready) = sync_mpsc::channel();
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(live(conduct, &started));
        });
        ready.recv().unwrap()
    }

    /// Whether a connection to the daemon is open.
    pub(crate) fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }
}

async fn live<F: Future<Output = ()>>(
    conduct: impl FnOnce(Wire) -> F,
    started: &sync_mpsc::Sender<Stranger>,
) {
    let (raw, (inbound, requests)) = Raw::new(vec![PROTOCOL]);
    let (connected_sender, connected) = watch::channel(false);
    let mut multiplexer = yamux::Config::default();
    multiplexer.set_max_num_streams(STREAMS);
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, || multiplexer)
        .unwrap()
        .with_behaviour(|key| Both {
            identify: identify::Behaviour::new(identify::Config::new(
                "/ipfs/0.1.0".into(),
                key.public(),
            )),
            raw,
        })
        .unwrap()
        .build();
    let id = *swarm.local_peer_id();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let mut conduct =
        std::pin::pin!(conduct(Wire { inbound, requests, connected: connected.clone() }));
    let mut done = false;
    loop {
        tokio::select! {
            event = swarm.select_next_some() => match event {
                SwarmEvent::NewListenAddr { address, .. } => {
                    let address = format!("{address}/p2p/{id}");
                    started.send(Stranger { id, address, connected: connected.clone() }).unwrap();
                }
                SwarmEvent::ConnectionEstablished { .. } => {
                    connected_sender.send_replace(true);
                }
                SwarmEvent::ConnectionClosed { num_established: 0, .. } => {
                    connected_sender.send_replace(false);
                }
                _ => {}
            },
            () = &mut conduct, if !done => done = true,
        }
    }
}

#[derive(NetworkBehaviour)]
struct Both {
    identify: identify::Behaviour,
    raw: Raw,
}
