#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use futures::StreamExt as _;
use libp2p::{Swarm, SwarmBuilder, kad, noise, swarm::SwarmEvent, tcp, yamux};
use tokio::time::timeout;

use super::*;
use crate::net::records::Records;

const PATIENCE: Duration = Duration::from_secs(60);

fn swarm<B: NetworkBehaviour>(make: impl FnOnce(PeerId) -> B) -> Swarm<B> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| make(PeerId::from(key.public())))
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

/// A DHT server of others, and where it listens.
async fn server() -> (Swarm<kad::Behaviour<Records>>, Multiaddr) {
    let mut server = swarm(|own| {
        let mut config = kad::Config::new(Scope::Lan.protocol());
        config.set_record_filtering(kad::StoreInserts::FilterBoth);
        let mut kad = kad::Behaviour::with_config(own, Records::in_memory(own), config);
        kad.set_mode(Some(kad::Mode::Server));
        kad
    });
    server.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
            return (server, address);
        }
    }
}

/// Runs `swarm` until it says how the telling ended.
async fn told(swarm: &mut Swarm<Tell>) -> Told {
    loop {
        if let SwarmEvent::Behaviour(told) = swarm.select_next_some().await {
            return told;
        }
    }
}

const ID: TellId = TellId { scope: Scope::Lan, number: 7 };

#[tokio::test]
async fn a_server_that_is_not_connected_takes_many_keys_over_one_stream() {
    let (mut server, address) = server().await;
    let mut client = swarm(|_| Tell::default());
    let own = *client.local_peer_id();
    let at: Multiaddr = "/ip4/127.0.0.1/tcp/4001".parse().unwrap();
    let keys: Vec<Vec<u8>> = (0..200).map(|n| vec![0x12, 1, n]).collect();
    let messages = add_providers(own, std::slice::from_ref(&at), keys.clone());
    let peer = *server.local_peer_id();
    client.behaviour_mut().send(ID, peer, vec![address], messages);

    let mut records = Vec::new();
    let taking = async {
        let mut ended = None;
        while ended.is_none() || records.len() < keys.len() {
            tokio::select! {
                told = told(&mut client) => ended = Some(told),
                event = server.select_next_some() => {
                    if let SwarmEvent::Behaviour(kad::Event::InboundRequest {
                        request: kad::InboundRequest::AddProvider { record: Some(record) },
                    }) = event {
                        records.push(record);
                    }
                }
            }
        }
        ended.unwrap()
    };
    let ended = timeout(PATIENCE, taking).await.unwrap();
    assert_eq!(ended, Told { id: ID, taken: true });
    let got: Vec<Vec<u8>> = records.iter().map(|record| record.key.to_vec()).collect();
    assert_eq!(got, keys);
    for record in records {
        assert_eq!(record.provider, own);
        let addresses: Vec<String> = record.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, [format!("{at}/p2p/{own}")]);
    }
}

#[tokio::test]
async fn whoever_is_not_there_speaks_nothing_of_it_or_goes_is_told_nothing() {
    // Nobody listens there.
    let mut client = swarm(|_| Tell::default());
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nowhere.local_addr().unwrap().port();
    drop(nowhere);
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    client.behaviour_mut().send(ID, PeerId::random(), vec![address], vec![1]);
    let ended = timeout(PATIENCE, told(&mut client)).await.unwrap();
    assert_eq!(ended, Told { id: ID, taken: false });
    // No address at all.
    client.behaviour_mut().send(ID, PeerId::random(), Vec::new(), vec![1]);
    let ended = timeout(PATIENCE, told(&mut client)).await.unwrap();
    assert_eq!(ended, Told { id: ID, taken: false });
    // Its DHT is the other one.
    let (mut server, address) = server().await;
    let peer = *server.local_peer_id();
    let wan = TellId { scope: Scope::Wan, number: 7 };
    client.behaviour_mut().send(wan, peer, vec![address.clone()], vec![1]);
    let ended = timeout(PATIENCE, async {
        tokio::select! {
            told = told(&mut client) => told,
            () = async { loop { server.select_next_some().await; } } => panic!(),
        }
    });
    assert_eq!(ended.await.unwrap(), Told { id: wan, taken: false });
    // It breaks the stream off at what is no message.
    client.behaviour_mut().send(ID, peer, vec![address], vec![3, 0xff, 0xff, 0xff, 1, 2, 3]);
    let ended = timeout(PATIENCE, async {
        tokio::select! {
            told = told(&mut client) => told,
            () = async { loop { server.select_next_some().await; } } => panic!(),
        }
    });
    assert_eq!(ended.await.unwrap().id, ID);
    assert!(client.behaviour().running.is_empty() && client.behaviour().dialling.is_empty());
}

#[tokio::test]
async fn a_connection_that_closes_ends_what_runs_on_it() {
    let mut tell = Tell::default();
    let (peer, connection) = (PeerId::random(), ConnectionId::new_unchecked(1));
    tell.connected(peer, connection);
    tell.send(ID, peer, Vec::new(), vec![1]);
    tell.closed(peer, connection);
    let ended = tell.queue.iter().any(|event| {
        matches!(event, ToSwarm::GenerateEvent(told) if *told == Told { id: ID, taken: false })
    });
    assert!(ended && tell.running.is_empty() && tell.connections.is_empty());
}
