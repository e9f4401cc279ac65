#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod ask;
#[path = "../../tests/support/raw_streams.rs"]
pub(super) mod raw_streams;
mod reach;

use std::net::TcpListener;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use tokio::{sync::oneshot, time::timeout};

use super::{bitswap::BlockStore, rows::memory::MemoryRows, start::NetRows, *};
use crate::{content::Block, store::StoreOptions};

/// Far beyond what anything here takes, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

struct Node {
    net: Net,
    tasks: Tasks,
    dir: tempfile::TempDir,
}

/// A store that has nothing to serve.
struct NoBlocks;

impl BlockStore for NoBlocks {
    fn block_len(&self, _: &ContentId) -> Option<usize> {
        None
    }

    fn block(&self, _: &ContentId) -> Option<Block> {
        None
    }

    fn is_retained(&self, _: &ContentId) -> bool {
        false
    }
}

fn rows() -> NetRows {
    NetRows {
        announce: Arc::new(MemoryRows::default()),
        providers: [Arc::new(MemoryRows::default()), Arc::new(MemoryRows::default())],
    }
}

fn options(dir: &std::path::Path, listen: &[&str]) -> NetOptions {
    NetOptions {
        key_file: dir.join("key"),
        listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
        bootstrap: Vec::new(),
        peers: Vec::new(),
        offline: false,
        serve_cached: true,
        reach: ReachOptions::default(),
    }
}

impl Node {
    async fn start(listen: &[&str], change: impl FnOnce(&mut NetOptions)) -> Self {
        Self::start_with(listen, rows(), change).await
    }

    async fn start_with(
        listen: &[&str],
        rows: NetRows,
        change: impl FnOnce(&mut NetOptions),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let mut options = options(dir.path(), listen);
        change(&mut options);
        let net = start::start(options, rows, Arc::new(NoBlocks), &tasks).await.unwrap();
        Self { net, tasks, dir }
    }

    fn id(&self) -> PeerId {
        self.net.peer_id()
    }

    fn address(&self) -> Multiaddr {
        self.net.addresses()[0].clone()
    }

    /// Waits until what is known of the peers satisfies `condition`.
    async fn until(&self, what: &str, condition: impl Fn(&[PeerInfo]) -> bool) {
        let mut changes = self.net.inner.shared.changes();
        let wait = async {
            while !condition(&self.net.peers()) {
                changes.changed().await.unwrap();
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("{what}: {:?}", self.net.peers());
        }
    }

    async fn stop(self) {
        let left = self.tasks.shutdown(PATIENCE).await;
        assert!(left.is_empty(), "{left:?}");
    }
}

fn root(text: &'static str) -> ContentId {
    *Block::raw(text.into()).cid()
}

async fn providers(net: &Net, id: &ContentId) -> Result<Vec<Provider>, NetError> {
    let mut found = net.find_providers(id);
    let mut providers = Vec::new();
    while let Some(item) = timeout(PATIENCE, found.recv()).await.unwrap() {
        providers.push(item?);
    }
    Ok(providers)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_connect_and_know_each_other_over_tcp_and_over_quic() {
    for listen in [TCP, QUIC] {
        let a = Node::start(&[listen], |_| {}).await;
        let b = Node::start(&[listen], |_| {}).await;
        assert_eq!(b.net.connect(a.address()).await.unwrap(), a.id());
        let version = concat!("chiral/", env!("CARGO_PKG_VERSION"));
        for (node, other) in [(&a, &b), (&b, &a)] {
            let known = |peers: &[PeerInfo]| {
                peers.iter().any(|peer| {
                    peer.peer == other.id()
                        && peer.agent.as_deref() == Some(version)
                        && peer.rtt.is_some()
                })
            };
            node.until("the other is identified and measured", known).await;
        }
        assert!(b.net.peers()[0].address.to_string().starts_with("/ip4/127.0.0.1/"));
        // Again, when it is connected already.
        assert_eq!(b.net.connect(a.address()).await.unwrap(), a.id());
        a.stop().await;
        b.until("the peer that stopped is gone", <[PeerInfo]>::is_empty).await;
        b.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_found_through_a_third_node_with_its_addresses_and_can_be_dialled() {
    let middle = Node::start(&[TCP], |_| {}).await;
    let provider = Node::start(&[TCP, QUIC], |o| o.bootstrap = vec![middle.address()]).await;
    let seeker = Node::start(&[TCP], |o| o.bootstrap = vec![middle.address()]).await;
    let id = root("provided");
    let mut announced = provider.net.announced();
    provider.net.announce(&id).unwrap();
    middle
        .until("both are there", |peers| peers.iter().filter(|p| p.agent.is_some()).count() == 2)
        .await;

    // The record is on its way; the search is repeated until it has arrived.
    let found = timeout(PATIENCE, async {
        loop {
            match providers(&seeker.net, &id).await {
                Ok(found) => return found,
                Err(NetError::NoProviders(missing)) => assert_eq!(missing, id),
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(timeout(PATIENCE, announced.recv()).await.unwrap(), Ok(id));
    assert_eq!(found.len(), 1, "each provider comes once");
    assert_eq!(found[0].peer, provider.id());
    assert!(!found[0].addresses.is_empty());
    seeker.net.dial(found[0].clone()).await.unwrap();
    seeker.until("connected", |peers| peers.iter().any(|p| p.peer == provider.id())).await;
    for node in [seeker, provider, middle] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_provides_after_a_restart_what_is_not_due_to_be_announced() {
    let rows = rows();
    let id = root("kept on the queue");
    let middle = Node::start(&[TCP], |_| {}).await;
    let first =
        Node::start_with(&[TCP], rows.clone(), |o| o.bootstrap = vec![middle.address()]).await;
    first.net.announce(&id).unwrap();
    let seeker = Node::start(&[TCP], |o| o.bootstrap = vec![middle.address()]).await;
    timeout(PATIENCE, async { while providers(&seeker.net, &id).await.is_err() {} }).await.unwrap();
    seeker.stop().await;
    middle.stop().await;
    first.stop().await;

    let again = Node::start_with(&[TCP], rows, |_| {}).await;
    let seeker = Node::start(&[TCP], |o| o.bootstrap = vec![again.address()]).await;
    let found = providers(&seeker.net, &id).await.unwrap();
    assert_eq!(found[0].peer, again.id());
    again.net.withdraw(&id).unwrap();
    // Withdrawing is told to the driver, which has it before the answer to anything asked later.
    again.net.connect(seeker.address()).await.unwrap();
    assert!(matches!(providers(&seeker.net, &id).await, Err(NetError::NoProviders(_))));
    seeker.stop().await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_without_anyone_to_ask_says_so() {
    let alone = Node::start(&[TCP], |_| {}).await;
    let id = root("nowhere");
    assert!(matches!(providers(&alone.net, &id).await, Err(NetError::Bootstrap)));
    alone.stop().await;

    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead: Multiaddr = format!("/ip4/127.0.0.1/tcp/{free}").parse().unwrap();
    let lost = Node::start(&[TCP], |o| o.bootstrap = vec![dead]).await;
    assert!(matches!(providers(&lost.net, &id).await, Err(NetError::Bootstrap)));
    lost.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_peer_is_cut_off_and_refused_until_its_time_is_over() {
    let a = Node::start(&[TCP], |_| {}).await;
    let b = Node::start(&[TCP], |_| {}).await;
    b.net.connect(a.address()).await.unwrap();
    a.until("b is there", |peers| peers.len() == 1).await;
    a.net.ban(b.id(), PATIENCE);
    a.until("b is gone", <[PeerInfo]>::is_empty).await;
    let error = a.net.connect(b.address()).await.unwrap_err();
    assert!(error.to_string().contains("block list"), "{error}");
    // Others are not touched by it.
    let c = Node::start(&[TCP], |_| {}).await;
    c.net.connect(a.address()).await.unwrap();
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_ends_with_its_time() {
    let a = Node::start(&[TCP], |_| {}).await;
    let b = Node::start(&[TCP], |_| {}).await;
    b.net.connect(a.address()).await.unwrap();
    a.until("b is there", |peers| peers.len() == 1).await;
    a.net.ban(b.id(), Duration::from_millis(1));
    b.until("a is gone", <[PeerInfo]>::is_empty).await;
    let again = async { while b.net.connect(a.address()).await.is_err() {} };
    timeout(PATIENCE, again).await.unwrap();
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nearby_node_is_dialled_over_tcp_although_it_offers_quic_as_well() {
    let a = Node::start(&[QUIC, TCP], |_| {}).await;
    let b = Node::start(&[TCP], |_| {}).await;
    let both = Provider { peer: a.id(), addresses: a.net.addresses() };
    assert_eq!(both.addresses.len(), 2);
    b.net.dial(both).await.unwrap();
    let address = b.net.peers()[0].address.to_string();
    assert!(address.contains("/tcp/"), "{address}");
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_dead_does_not_keep_a_peer_from_being_reached_by_another() {
    let a = Node::start(&[QUIC], |_| {}).await;
    let b = Node::start(&[TCP], |_| {}).await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead = format!("/ip4/127.0.0.1/tcp/{free}").parse().unwrap();
    let addresses = vec![dead, a.address()];
    b.net.dial(Provider { peer: a.id(), addresses }).await.unwrap();
    assert_eq!(b.net.connect(a.address()).await.unwrap(), a.id());
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_peer_is_dialled_again_when_it_comes_back() {
    let key = tempfile::tempdir().unwrap();
    let named = Node::start(&[TCP], |o| o.key_file = key.path().join("key")).await;
    let address = named.address();
    let bare = address.to_string().split("/p2p/").next().unwrap().to_owned();
    let a = Node::start(&[TCP], |o| o.peers = vec![address]).await;
    a.until("connected", |peers| peers.len() == 1).await;
    let id = named.id();
    named.stop().await;
    a.until("gone", <[PeerInfo]>::is_empty).await;
    let named = Node::start(&[&bare], |o| o.key_file = key.path().join("key")).await;
    assert_eq!(named.id(), id);
    a.until("connected again", |peers| peers.iter().any(|peer| peer.peer == id)).await;
    a.stop().await;
    named.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_to_nobody_to_oneself_and_to_somebody_else_fails_with_a_reason() {
    let a = Node::start(&[TCP], |_| {}).await;
    let b = Node::start(&[TCP], |_| {}).await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let stranger = PeerId::random();
    let at = b.address().to_string().replace(&b.id().to_string(), &stranger.to_string());
    for (address, reason) in [
        (format!("/ip4/127.0.0.1/tcp/{free}"), "refused"),
        (a.address().to_string(), "itself"),
        (at, "another peer answers there"),
    ] {
        let error = a.net.connect(address.parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{address}: {error}");
    }
    let unknown = Provider { peer: stranger, addresses: Vec::new() };
    let error = a.net.dial(unknown).await.unwrap_err().to_string();
    assert!(error.contains("no address of it is known"), "{error}");
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn who_does_not_answer_pings_is_answered() {
    let node = Node::start(&[TCP], |_| {}).await;
    let ping = StreamProtocol::new("/ipfs/ping/1.0.0");
    let (mut silent, (_inbound, requests)) = raw_streams::Raw::new(vec![ping]);
    silent.takes = false;
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| silent)
        .unwrap()
        .build();
    swarm.dial(node.address()).unwrap();
    let pings = async {
        // After some of them the node has pinged too, and was told that there is no answer.
        for n in 0..20 {
            let (answer, stream) = oneshot::channel();
            requests.send(answer).unwrap();
            let mut stream = stream.await.unwrap();
            stream.write_all(&[n; 32]).await.unwrap();
            stream.flush().await.unwrap();
            let mut back = [0; 32];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(back, [n; 32]);
        }
    };
    tokio::select! {
        () = async { while swarm.next().await.is_some() {} } => unreachable!(),
        done = timeout(PATIENCE, pings) => done.unwrap(),
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_calls_and_says_nothing_is_hung_up_on() {
    use tokio::io::AsyncReadExt as _;
    for relay_client in [true, false] {
        let node = Node::start(&[TCP], |o| o.reach.relay_client = relay_client).await;
        let at = node.address().to_string();
        let port: u16 = at.split('/').nth(4).unwrap().parse().unwrap();
        let mut silent = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // Its end, in whatever way.
        let _ = timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await.unwrap();
        node.stop().await;
    }
}

#[tokio::test]
async fn a_taken_port_and_a_foreign_address_are_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let other = Node::start(&[TCP, QUIC], |_| {}).await;
    let others = other.net.addresses();
    let mut refused: Vec<String> =
        others.iter().map(|at| address::without_peer(at).to_string()).collect();
    refused.extend([format!("/ip4/127.0.0.1/tcp/{port}"), "/ip4/192.0.2.1/tcp/0".to_owned()]);
    assert_eq!(refused.len(), 4, "{refused:?}");
    let dir = tempfile::tempdir().unwrap();
    let tasks = Tasks::new();
    for address in refused {
        let error =
            start::start(options(dir.path(), &[&address]), rows(), Arc::new(NoBlocks), &tasks)
                .await
                .unwrap_err();
        let NetError::Listen { address: named, .. } = &error else { panic!("{error}") };
        assert_eq!(named.to_string(), address);
        tracing::info!(%error);
    }
    let left = tasks.shutdown(PATIENCE).await;
    assert!(left.is_empty(), "a failed start leaves nothing behind: {left:?}");
    other.stop().await;
}

#[tokio::test]
async fn a_broken_key_file_ends_the_start() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, "rubbish").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let tasks = Tasks::new();
    let error = start::start(options(dir.path(), &[TCP]), rows(), Arc::new(NoBlocks), &tasks)
        .await
        .unwrap_err();
    assert!(matches!(&error, NetError::Key { path: named, .. } if *named == path), "{error}");
}

#[tokio::test]
async fn offline_nothing_listens_and_every_question_says_so() {
    let node = Node::start(&[TCP], |o| o.offline = true).await;
    assert!(node.net.addresses().is_empty() && node.net.peers().is_empty());
    let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    assert!(matches!(node.net.connect(address).await, Err(NetError::Offline)));
    let id = root("offline");
    assert!(matches!(providers(&node.net, &id).await, Err(NetError::Offline)));
    node.net.announce(&id).unwrap();
    node.net.withdraw(&id).unwrap();
    node.net.ban(PeerId::random(), PATIENCE);
    assert!(node.tasks.alive().is_empty());
    assert!(node.dir.path().join("key").exists(), "it has an identity all the same");
    node.stop().await;
}

async fn with_store(listen: &str) -> (Node, Store) {
    let dir = tempfile::tempdir().unwrap();
    let tasks = Tasks::new();
    let store =
        StoreOptions { dir: dir.path().join("store"), cache_limit: None, min_free: Some(0) };
    let store = Store::open(store, &tasks).unwrap();
    let net = Net::start(options(dir.path(), &[listen]), store.clone(), &tasks).await.unwrap();
    (Node { net, tasks, dir }, store)
}

/// Waits until `peer` can be spoken Bitswap with, and is known to be a chiral node.
async fn bitswap_up(net: &Net, peer: PeerId) {
    let (up, mut changes) = net.bitswap_peers();
    if up.contains(&(peer, true)) {
        return;
    }
    let wait = async {
        loop {
            match changes.recv().await.unwrap() {
                PeerEvent::Up { peer: who, chiral: true } if who == peer => return,
                _ => {}
            }
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_go_from_one_store_to_another_node_over_tcp_and_over_quic() {
    for listen in [TCP, QUIC] {
        let (server, store) = with_store(listen).await;
        let (client, _) = with_store(listen).await;
        let blocks: Vec<Block> =
            (0..64_u8).map(|n| Block::raw(vec![n; 256 << 10].into())).collect();
        for block in &blocks {
            store.put_node(block).unwrap();
        }
        client.net.connect(server.address()).await.unwrap();
        bitswap_up(&client.net, server.id()).await;

        let mut ids: Vec<ContentId> = blocks.iter().map(|block| *block.cid()).collect();
        let missing = root("nobody has this");
        ids.push(missing);
        let haves = client.net.want_haves(server.id(), &ids[62..], PATIENCE).await;
        assert_eq!(haves, [true, true, false]);

        let (sender, mut answers) = mpsc::unbounded_channel();
        let asker: Arc<dyn Asker> = Arc::new(sender);
        client.net.want_blocks(server.id(), &ids, &asker);
        let mut left: std::collections::HashSet<ContentId> = ids.into_iter().collect();
        while !left.is_empty() {
            let answer = timeout(PATIENCE, answers.recv()).await.unwrap().unwrap();
            assert!(left.remove(&answer.id), "one answer for each");
            match answer.result {
                Ok(block) => assert_eq!(*block.cid(), answer.id),
                Err(error) => assert_eq!((answer.id, error), (missing, WantError::DontHave)),
            }
        }
        let received = client.net.peers()[0].received;
        assert_eq!(received, 64 * (256 << 10));
        let server_id = server.id();
        store.close().unwrap();
        server.stop().await;
        client.net.want_blocks(server_id, &[missing], &asker);
        let answer = timeout(PATIENCE, answers.recv()).await.unwrap().unwrap();
        assert_eq!(answer.result.unwrap_err(), WantError::Disconnected);
        client.stop().await;
    }
}

mod dht;
