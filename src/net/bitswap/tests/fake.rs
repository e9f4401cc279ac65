//! A peer that speaks Bitswap byte by byte, as badly as a test wants.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{AsyncWriteExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, Stream,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, SubstreamProtocol, SwarmEvent, THandlerInEvent, ToSwarm,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{
        frame::{self, Budget},
        handler::Offer,
        wire::{Version, proto},
    },
    node::swarm,
};
use crate::{
    content::{Block, ContentId},
    tasks::Tasks,
};

/// Streams that are asked for, shared by the handlers of all connections: any of them may open one.
type Requests = Arc<Mutex<mpsc::UnboundedReceiver<oneshot::Sender<Stream>>>>;

struct FakeBehaviour {
    versions: Vec<Version>,
    inbound: mpsc::UnboundedSender<Stream>,
    requests: Requests,
}

struct FakeHandler {
    versions: Vec<Version>,
    inbound: mpsc::UnboundedSender<Stream>,
    requests: Requests,
}

impl FakeBehaviour {
    fn handler(&self) -> FakeHandler {
        FakeHandler {
            versions: self.versions.clone(),
            inbound: self.inbound.clone(),
            requests: self.requests.clone(),
        }
    }
}

impl NetworkBehaviour for FakeBehaviour {
    type ConnectionHandler = FakeHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<FakeHandler, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<FakeHandler, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

impl ConnectionHandler for FakeHandler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Stream>;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(self.versions.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Offer, oneshot::Sender<Stream>, Infallible>> {
        match self.requests.lock().unwrap().poll_recv(cx) {
            Poll::Ready(Some(answer)) => {
                let protocol = SubstreamProtocol::new(Offer(self.versions.clone()), answer);
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
            }
            _ => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Offer, Offer, (), oneshot::Sender<Stream>>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, _),
                ..
            }) => {
                let _ = self.inbound.send(stream);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, _),
                info,
            }) => {
                let _ = info.send(stream);
            }
            _ => {}
        }
    }
}

enum Command {
    Dial(Multiaddr),
    /// Closes the connection that was made last.
    CloseNewest,
}

/// A fake peer that is connected to one node.
pub(crate) struct Fake {
    pub(crate) id: PeerId,
    pub(crate) inbound: mpsc::UnboundedReceiver<Stream>,
    requests: mpsc::UnboundedSender<oneshot::Sender<Stream>>,
    commands: mpsc::UnboundedSender<Command>,
    connected: mpsc::UnboundedReceiver<()>,
    tasks: Tasks,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

impl Fake {
    /// Connects to a node, speaking all versions.
    pub(crate) async fn dial(address: &Multiaddr) -> Self {
        Self::speaking(&Version::ALL, address).await
    }

    pub(crate) async fn speaking(versions: &[Version], address: &Multiaddr) -> Self {
        let (inbound_sender, inbound) = mpsc::unbounded_channel();
        let (requests, receiver) = mpsc::unbounded_channel();
        let (commands, mut orders) = mpsc::unbounded_channel();
        let (established, connected) = mpsc::unbounded_channel();
        let mut swarm = swarm(FakeBehaviour {
            versions: versions.to_vec(),
            inbound: inbound_sender,
            requests: Arc::new(Mutex::new(receiver)),
        });
        let id = *swarm.local_peer_id();
        let tasks = Tasks::new();
        let cancelled = tasks.cancelled();
        let drive = async move {
            let mut connections = Vec::new();
            loop {
                tokio::select! {
                    event = swarm.select_next_some() => match event {
                        SwarmEvent::ConnectionEstablished { connection_id, .. } => {
                            connections.push(connection_id);
                            let _ = established.send(());
                        }
                        SwarmEvent::ConnectionClosed { connection_id, .. } => {
                            connections.retain(|id| *id != connection_id);
                        }
                        _ => {}
                    },
                    order = orders.recv() => match order {
                        Some(Command::Dial(address)) => {
                            let options = libp2p::swarm::dial_opts::DialOpts::unknown_peer_id();
                            swarm.dial(options.address(address).build()).unwrap();
                        }
                        Some(Command::CloseNewest) => {
                            swarm.close_connection(connections.pop().unwrap());
                        }
                        None => return,
                    },
                }
            }
        };
        tasks.spawn("fake", async move {
            tokio::select! {
                () = drive => {}
                () = cancelled => {}
            }
        });
        let mut fake = Self { id, inbound, requests, commands, connected, tasks };
        fake.connect(address).await;
        fake
    }

    /// Makes one connection more.
    pub(crate) async fn connect(&mut self, address: &Multiaddr) {
        self.commands.send(Command::Dial(address.clone())).ok().unwrap();
        self.connected.recv().await.unwrap();
    }

    pub(crate) fn close_newest(&self) {
        self.commands.send(Command::CloseNewest).ok().unwrap();
    }

    /// Asks for a stream; it comes, unless the connection ends.
    pub(crate) fn request(&self) -> oneshot::Receiver<Stream> {
        let (answer, stream) = oneshot::channel();
        self.requests.send(answer).ok().unwrap();
        stream
    }

    pub(crate) async fn open(&self) -> Stream {
        self.request().await.unwrap()
    }

    pub(crate) async fn accept(&mut self) -> Stream {
        self.inbound.recv().await.unwrap()
    }
}

pub(crate) async fn send(stream: &mut Stream, message: &proto::Message) {
    stream.write_all(&message.encode_length_delimited_to_vec()).await.unwrap();
    stream.flush().await.unwrap();
}

pub(crate) async fn receive(stream: &mut Stream) -> proto::Message {
    let frame = frame::read(stream, &Budget::new(8 << 20), &Arc::default(), || ())
        .await
        .unwrap()
        .unwrap()
        .0;
    proto::Message::decode(frame).unwrap()
}

/// A message that carries a block.
pub(crate) fn payload(block: &Block) -> proto::Message {
    let prefix = block.cid().prefix().into();
    let payload = proto::Payload { prefix, data: block.data().clone() };
    proto::Message { payload: vec![payload], ..Default::default() }
}

pub(crate) fn want(id: &ContentId, block: bool, send_dont_have: bool) -> proto::Entry {
    let want_type = i32::from(!block);
    let block = Bytes::from(id.to_bytes());
    proto::Entry { block, priority: 1, cancel: false, want_type, send_dont_have }
}

pub(crate) fn wantlist(full: bool, entries: Vec<proto::Entry>) -> proto::Message {
    let wantlist = Some(proto::Wantlist { entries, full });
    proto::Message { wantlist, ..Default::default() }
}

/// The ids of a wantlist, with whether they are wanted rather than cancelled.
pub(crate) fn entries(message: &proto::Message) -> Vec<(ContentId, bool)> {
    let list = message.wantlist.clone().unwrap_or_default();
    list.entries
        .iter()
        .map(|entry| (ContentId::from_bytes(&entry.block).unwrap(), !entry.cancel))
        .collect()
}
