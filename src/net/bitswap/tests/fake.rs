//! A peer that speaks Bitswap byte by byte, as badly as a test wants.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use futures::{AsyncWriteExt, StreamExt};
use libp2p::{Multiaddr, PeerId, Stream, swarm::SwarmEvent};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{
        frame::{self, Budget},
        wire::{Version, proto},
    },
    node::swarm,
};
use crate::{
    content::{Block, ContentId},
    net::tests::raw_streams::Raw,
    tasks::Tasks,
};

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
        let protocols = versions.iter().map(|version| version.protocol()).collect();
        let (raw, (inbound, requests)) = Raw::new(protocols);
        let (commands, mut orders) = mpsc::unbounded_channel();
        let (established, connected) = mpsc::unbounded_channel();
        let mut swarm = swarm(raw);
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
