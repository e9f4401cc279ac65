//! Nodes that are found and reached: external addresses, relays, direct connections that relays bring about.

use super::*;
use crate::net::address::{is_relayed, without_peer};

impl Node {
    /// Waits until the addresses that lead to it satisfy `condition`.
    async fn until_external(&self, what: &str, condition: impl Fn(&[Multiaddr]) -> bool) {
        let mut changes = self.net.inner.shared.changes();
        let wait = async {
            while !condition(&self.net.external_addresses()) {
                changes.changed().await.unwrap();
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("{what}: {:?}", self.net.external_addresses());
        }
    }

    fn over_relays(&self) -> Vec<Multiaddr> {
        self.net.external_addresses().into_iter().filter(is_relayed).collect()
    }
}

async fn relay() -> Node {
    Node::start(&[TCP], |o| o.reach.relay_server = true).await
}

/// Nobody is told of its addresses, and nobody tests them: only relays lead to it.
fn hidden(options: &mut NetOptions, relays: &[&Node]) {
    options.peers = relays.iter().map(|relay| relay.address()).collect();
    options.reach.relay_after = Duration::ZERO;
    options.reach.autonat = false;
    options.reach.doubt_private = true;
}

async fn with_blocks(change: impl FnOnce(&mut NetOptions)) -> (Node, Store) {
    let dir = tempfile::tempdir().unwrap();
    let tasks = Tasks::new();
    let store =
        StoreOptions { dir: dir.path().join("store"), cache_limit: None, min_free: Some(0) };
    let store = Store::open(store, &tasks).unwrap();
    let mut options = options(dir.path(), &[TCP]);
    change(&mut options);
    let net = Net::start(options, store.clone(), &tasks).await.unwrap();
    (Node { net, tasks, dir }, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_leads_here_once_another_node_has_tried_it() {
    let other = Node::start(&[TCP], |_| {}).await;
    let node = Node::start(&[TCP], |o| o.reach.doubt_private = true).await;
    assert_eq!(node.net.external_addresses(), [], "nobody has tried it yet");
    node.net.connect(other.address()).await.unwrap();
    let own = without_peer(&node.address());
    node.until_external("it was tried", |external| external == [own.clone()]).await;
    // The connection that was opened for the test is closed again.
    other.until("one connection", |peers| peers.len() == 1).await;
    node.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_address_leads_here_without_a_test() {
    let public: Multiaddr = "/ip4/192.0.2.1/tcp/4001".parse().unwrap();
    let announce = vec![public.clone()];
    let node = Node::start(&[TCP], |o| o.reach.announce = announce).await;
    node.until_external("it is known", |external| external.contains(&public)).await;
    assert_eq!(node.net.addresses().len(), 2, "what is listened on comes once");
    assert!(node.net.addresses().contains(&address::with_peer(&public, node.id())));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_autonat_off_what_is_listened_on_leads_here() {
    let node = Node::start(&[TCP], |o| o.reach.autonat = false).await;
    let own = without_peer(&node.address());
    node.until_external("taken as it is", |external| external == [own.clone()]).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_brings_about_a_direct_connection_and_blocks_go_over_that() {
    let relay = relay().await;
    let (listener, store) = with_blocks(|o| hidden(o, &[&relay])).await;
    listener.until_external("a slot", |external| external.iter().any(is_relayed)).await;
    let block = Block::raw(vec![7; 256 << 10].into());
    store.put_node(&block).unwrap();

    let (dialler, _) = with_blocks(|o| hidden(o, &[&relay])).await;
    // Whoever is to punch a hole knows by now where others see it come from.
    dialler.until("the relay is identified", |peers| peers.iter().any(|p| p.agent.is_some())).await;
    let addresses = listener.over_relays();
    dialler.net.dial(Provider { peer: listener.id(), addresses }).await.unwrap();
    let direct = |peers: &[PeerInfo]| {
        peers.iter().any(|peer| peer.peer == listener.id() && !is_relayed(&peer.address))
    };
    dialler.until("a direct connection", direct).await;

    bitswap_up(&dialler.net, listener.id()).await;
    let (sender, mut answers) = mpsc::unbounded_channel();
    let asker: Arc<dyn Asker> = Arc::new(sender);
    dialler.net.want_blocks(listener.id(), &[*block.cid()], &asker);
    let answer = timeout(PATIENCE, answers.recv()).await.unwrap().unwrap();
    assert_eq!(answer.result.unwrap().data(), block.data());
    for node in [dialler, listener, relay] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_direct_connection_a_peer_is_identified_and_no_block_is_asked_of_it() {
    let relay = relay().await;
    let change = |o: &mut NetOptions| {
        hidden(o, &[&relay]);
        o.reach.dcutr = false;
    };
    let listener = Node::start(&[TCP], change).await;
    listener.until_external("a slot", |external| external.iter().any(is_relayed)).await;
    let dialler = Node::start(&[TCP], change).await;
    let over = listener.over_relays()[0].clone();
    assert_eq!(dialler.net.connect(over.clone()).await.unwrap(), listener.id());
    let known = |peers: &[PeerInfo]| peers.iter().any(|peer| is_relayed(&peer.address));
    dialler.until("over the relay", known).await;
    listener.until("over the relay", known).await;

    let provider = Provider { peer: listener.id(), addresses: vec![over] };
    let error = dialler.net.dial(provider).await.unwrap_err().to_string();
    assert!(error.contains("only a relay reaches it"), "{error}");
    let (up, _) = dialler.net.bitswap_peers();
    assert!(up.iter().all(|(peer, _)| *peer != listener.id()), "{up:?}");
    for node in [dialler, listener, relay] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_goes_is_replaced_by_another() {
    let mut relays = vec![relay().await, relay().await, relay().await];
    let node = {
        let all: Vec<&Node> = relays.iter().collect();
        Node::start(&[TCP], |o| hidden(o, &all)).await
    };
    let used = |external: &[Multiaddr]| external.iter().filter_map(address::relay_of).collect();
    node.until_external("two slots", |e| {
        let used: std::collections::BTreeSet<PeerId> = used(e);
        used.len() == 2
    })
    .await;
    let held: std::collections::BTreeSet<PeerId> = used(&node.net.external_addresses());
    let at = relays.iter().position(|relay| held.contains(&relay.id())).unwrap();
    let gone = relays.swap_remove(at);
    let lost = gone.id();
    gone.stop().await;
    node.until_external("two slots at the others", |e| {
        let used: std::collections::BTreeSet<PeerId> = used(e);
        used.len() == 2 && !used.contains(&lost)
    })
    .await;
    node.stop().await;
    for relay in relays {
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_node_asks_only_relays_that_it_was_given_for_a_slot() {
    let key = tempfile::tempdir().unwrap();
    let named = |listen: String| {
        let key = key.path().join("key");
        let change = |o: &mut NetOptions| {
            o.key_file = key;
            o.reach.relay_server = true;
        };
        async move { Node::start(&[&listen], change).await }
    };
    let given = named(TCP.to_owned()).await;
    let at = without_peer(&given.address()).to_string();
    let change = |o: &mut NetOptions| {
        hidden(o, &[&given]);
        o.reach.named_relays_only = true;
    };
    let node = Node::start(&[TCP], change).await;
    let id = given.id();
    given.stop().await;
    node.until("the relay is gone", <[PeerInfo]>::is_empty).await;
    // Whoever else relays is not asked, also while there is nobody else.
    let other = relay().await;
    node.net.connect(other.address()).await.unwrap();
    let given = named(at).await;
    node.until_external("a slot", |external| external.iter().any(is_relayed)).await;
    let used: Vec<_> = node.over_relays().iter().map(address::relay_of).collect();
    assert!(used.iter().all(|relay| *relay == Some(id)), "{used:?}");
    for node in [node, given, other] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_switched_off_is_not_spoken() {
    let relay = relay().await;
    let off = |o: &mut NetOptions| {
        hidden(o, &[&relay]);
        o.reach.relay_client = false;
    };
    let node = Node::start(&[TCP], off).await;
    node.until("the relay is identified", |peers| peers.iter().any(|p| p.agent.is_some())).await;
    let over = format!("{}/p2p-circuit/p2p/{}", relay.address(), PeerId::random());
    let error = node.net.connect(over.parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("Unsupported"), "{error}");
    assert_eq!(node.over_relays(), []);
    node.stop().await;
    relay.stop().await;
}
