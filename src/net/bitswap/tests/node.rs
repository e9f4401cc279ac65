//! A swarm with Bitswap alone, driven by a task.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use tokio::sync::{mpsc, watch};

use super::super::{Behaviour, BlockStore, Config, Event, Handle, new};
use crate::{
    content::{Block, ContentId, Multihash},
    net::{Asker, BlockReply, WantError},
    tasks::Tasks,
};

/// Blocks in memory, and how many were read.
#[derive(Default)]
pub(crate) struct Memory {
    blocks: Mutex<HashMap<Multihash, Bytes>>,
    retained: Mutex<HashSet<Multihash>>,
    reads: AtomicUsize,
    /// Blocks whose lookup panics.
    cursed: Mutex<HashSet<Multihash>>,
}

impl Memory {
    pub(crate) fn put(&self, blocks: &[Block]) {
        let mut map = self.blocks.lock().unwrap();
        map.extend(blocks.iter().map(|block| (*block.cid().hash(), block.data().clone())));
    }
}

impl Memory {
    pub(crate) fn retain(&self, id: &ContentId) {
        self.retained.lock().unwrap().insert(*id.hash());
    }

    pub(crate) fn curse(&self, id: &ContentId) {
        self.cursed.lock().unwrap().insert(*id.hash());
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

impl BlockStore for Memory {
    fn block_len(&self, id: &ContentId) -> Option<usize> {
        self.blocks.lock().unwrap().get(id.hash()).map(Bytes::len)
    }

    fn block(&self, id: &ContentId) -> Option<Block> {
        let cursed = self.cursed.lock().unwrap().contains(id.hash());
        assert!(!cursed, "a panic that a test ordered");
        let data = self.blocks.lock().unwrap().get(id.hash()).cloned()?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        Some(Block::from_store(*id, data))
    }

    fn is_retained(&self, id: &ContentId) -> bool {
        self.retained.lock().unwrap().contains(id.hash())
    }
}

/// What a test tells the swarm of a node.
pub(crate) enum Command {
    Dial(Multiaddr),
    Disconnect(PeerId),
}

/// A running node.
pub(crate) struct Node {
    pub(crate) id: PeerId,
    pub(crate) address: Multiaddr,
    pub(crate) handle: Handle,
    pub(crate) store: Arc<Memory>,
    pub(crate) tasks: Tasks,
    pub(crate) connections: watch::Receiver<usize>,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    commands: mpsc::UnboundedSender<Command>,
}

pub(crate) async fn listening<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Multiaddr {
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address.with_p2p(*swarm.local_peer_id()).unwrap();
        }
    }
}

pub(crate) fn swarm<B: NetworkBehaviour>(behaviour: B) -> Swarm<B> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| behaviour)
        .unwrap()
        .build()
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let tasks = Tasks::new();
        let store = Arc::new(Memory::default());
        let (behaviour, handle) = new(config, store.clone(), &tasks);
        let mut swarm = swarm(behaviour);
        let address = listening(&mut swarm).await;
        let id = *swarm.local_peer_id();
        let (commands, receiver) = mpsc::unbounded_channel();
        let (count, connections) = watch::channel(0);
        let (forward, events) = mpsc::unbounded_channel();
        let token = tasks.token().clone();
        let drive = drive(swarm, receiver, count, forward);
        tasks.spawn("swarm", async move { token.run_until_cancelled(drive).await });
        Self { id, address, handle, store, tasks, connections, events, commands }
    }

    pub(crate) async fn connect(&self, other: &Self) {
        self.dial(other.address.clone()).await;
        other.connections.clone().wait_for(|count| *count > 0).await.unwrap();
    }

    pub(crate) async fn dial(&self, address: Multiaddr) {
        let before = *self.connections.borrow();
        self.commands.send(Command::Dial(address)).ok().unwrap();
        self.connections.clone().wait_for(|count| *count > before).await.unwrap();
    }

    pub(crate) fn disconnect(&self, peer: PeerId) {
        self.commands.send(Command::Disconnect(peer)).ok().unwrap();
    }

    /// Wants blocks and collects one answer for each.
    pub(crate) async fn fetch(
        &self,
        peer: PeerId,
        ids: &[ContentId],
    ) -> Vec<Result<Block, WantError>> {
        let (asker, mut answers) = asker();
        self.handle.want_blocks(peer, ids, &asker);
        collect(&mut answers, ids).await
    }
}

/// Somebody who wants blocks, and what it is answered.
pub(crate) fn asker() -> (Arc<dyn Asker>, mpsc::UnboundedReceiver<BlockReply>) {
    let (sender, answers) = mpsc::unbounded_channel();
    (Arc::new(sender), answers)
}

/// One answer for each id, in the order of ids.
pub(crate) async fn collect(
    answers: &mut mpsc::UnboundedReceiver<BlockReply>,
    ids: &[ContentId],
) -> Vec<Result<Block, WantError>> {
    let mut got = HashMap::new();
    while got.len() < ids.len() {
        let reply = tokio::time::timeout(Duration::from_secs(60), answers.recv());
        let reply = reply.await.unwrap().unwrap();
        if let Ok(block) = &reply.result {
            assert_eq!(*block.cid(), reply.id);
            Block::verify(reply.id, block.data().clone()).unwrap();
        }
        assert!(got.insert(reply.id, reply.result).is_none(), "two answers for {}", reply.id);
    }
    ids.iter().map(|id| got.remove(id).unwrap()).collect()
}

async fn drive(
    mut swarm: Swarm<Behaviour>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    count: watch::Sender<usize>,
    forward: mpsc::UnboundedSender<Event>,
) {
    loop {
        tokio::select! {
            event = swarm.select_next_some() => match event {
                SwarmEvent::ConnectionEstablished { .. } => count.send_modify(|count| *count += 1),
                SwarmEvent::ConnectionClosed { .. } => count.send_modify(|count| *count -= 1),
                SwarmEvent::Behaviour(event) => {
                    let Event::Misbehaved { peer, .. } = &event;
                    let _ = swarm.disconnect_peer_id(*peer);
                    let _ = forward.send(event);
                }
                _ => {}
            },
            command = commands.recv() => match command {
                Some(Command::Dial(address)) => {
                    let options = libp2p::swarm::dial_opts::DialOpts::unknown_peer_id();
                    swarm.dial(options.address(address).build()).unwrap();
                }
                Some(Command::Disconnect(peer)) => {
                    let _ = swarm.disconnect_peer_id(peer);
                }
                None => return,
            },
        }
    }
}

/// A raw block of `len` bytes that differs for each `seed`.
pub(crate) fn block(seed: u64, len: usize) -> Block {
    let mut data = seed.to_le_bytes().repeat(len.div_ceil(8));
    data.truncate(len);
    Block::raw(data.into())
}

pub(crate) fn blocks(seed: u64, count: usize, len: usize) -> Vec<Block> {
    (0..count as u64).map(|n| block(n << 8 | seed, len)).collect()
}

pub(crate) fn ids(blocks: &[Block]) -> Vec<ContentId> {
    blocks.iter().map(|block| *block.cid()).collect()
}
