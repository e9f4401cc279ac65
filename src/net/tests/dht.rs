//! Both ways through the DHT, between nodes that really run.

use std::collections::HashSet;

use futures::StreamExt as _;
use libp2p::{SwarmBuilder, identify, kad, noise, swarm::NetworkBehaviour, tcp, yamux};

use super::*;

const ROOTS: u32 = 500;

/// A node that serves the DHT of the local network, to those who look no further than its name.
#[derive(NetworkBehaviour)]
struct Mute {
    identify: identify::Behaviour,
    kad: kad::Behaviour<kad::store::MemoryStore>,
}

async fn mute() -> (libp2p::Swarm<Mute>, Multiaddr) {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| {
            let own = PeerId::from(key.public());
            let config = kad::Config::new(address::Scope::Lan.protocol());
            let store = kad::store::MemoryStore::new(own);
            let mut kad = kad::Behaviour::with_config(own, store, config);
            kad.set_mode(Some(kad::Mode::Server));
            let identify = identify::Config::new("ipfs/0.1.0".to_owned(), key.public());
            Mute { identify: identify::Behaviour::new(identify), kad }
        })
        .unwrap()
        .build();
    swarm.listen_on(TCP.parse().unwrap()).unwrap();
    loop {
        let event = swarm.select_next_some().await;
        if let libp2p::swarm::SwarmEvent::NewListenAddr { address, .. } = event {
            let own = *swarm.local_peer_id();
            return (swarm, address::with_peer(&address, own));
        }
    }
}

/// Waits for as many different announcements.
async fn announced(told: &mut broadcast::Receiver<ContentId>, roots: usize) {
    let mut seen = HashSet::new();
    while seen.len() < roots {
        seen.insert(timeout(PATIENCE, told.recv()).await.unwrap().unwrap());
    }
}

fn roots() -> Vec<ContentId> {
    (0..ROOTS).map(|n| *Block::raw(n.to_be_bytes().to_vec().into()).cid()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_roots_are_found_after_whoever_announced_them_is_gone() {
    let first = Node::start(&[TCP], |_| {}).await;
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(Node::start(&[TCP], |o| o.bootstrap = vec![first.address()]).await);
    }
    let provider = Node::start(&[TCP], |o| o.bootstrap = vec![first.address()]).await;
    let id = provider.id();
    provider.until("all are known", |peers| peers.len() == 5).await;
    let (all, mut told) = (roots(), provider.net.announced());
    for root in &all {
        provider.net.announce(root).unwrap();
    }
    announced(&mut told, all.len()).await;
    provider.stop().await;

    let seeker = &others[3];
    for root in &all {
        let found = providers(&seeker.net, root).await.unwrap();
        assert_eq!(found.iter().map(|found| found.peer).collect::<Vec<_>>(), [id]);
    }
    for node in others.into_iter().chain([first]) {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_comes_as_soon_as_one_peer_names_it_while_others_are_still_asked() {
    let middle = Node::start(&[TCP], |_| {}).await;
    let provider = Node::start(&[TCP], |o| o.bootstrap = vec![middle.address()]).await;
    let id = root("named by one, and another says nothing");
    let mut told = provider.net.announced();
    provider.net.announce(&id).unwrap();
    announced(&mut told, 1).await;

    let (mut mute, address) = mute().await;
    let silent = *mute.local_peer_id();
    let seeker = Node::start(&[TCP], |_| {}).await;
    tokio::select! {
        connected = seeker.net.connect(address) => assert_eq!(connected.unwrap(), silent),
        () = async { loop { mute.select_next_some().await; } } => {}
    }
    // From here on nobody hears what it is asked; its connection stays.
    seeker.net.connect(middle.address()).await.unwrap();
    let mut found = seeker.net.find_providers(&id);
    let first = timeout(PATIENCE, found.recv()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.peer, provider.id());
    assert!(!first.addresses.is_empty());
    assert_eq!(found.try_recv().unwrap_err(), mpsc::error::TryRecvError::Empty);
    drop(found);
    for node in [seeker, provider, middle] {
        node.stop().await;
    }
}
