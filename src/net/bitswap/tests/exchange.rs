//! Nodes that keep to the rules.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use super::{Node, asker, block, blocks, collect, ids};
use crate::net::{PeerEvent, WantError};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wanted_block_arrives() {
    let (a, b) = (Node::start().await, Node::start().await);
    let block = block(1, 256 << 10);
    b.store.put(std::slice::from_ref(&block));
    a.connect(&b).await;
    let got = a.fetch(b.id, &[*block.cid()]).await;
    assert_eq!(got, [Ok(block)]);
    assert_eq!(a.handle.ledger(b.id), (256 << 10, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_and_large_blocks_flow_both_ways_at_once() {
    let (a, b) = (Node::start().await, Node::start().await);
    let of_a = [blocks(1, 3000, 1 << 10), blocks(2, 500, 256 << 10)].concat();
    let of_b = [blocks(3, 3000, 1 << 10), blocks(4, 500, 256 << 10)].concat();
    a.store.put(&of_a);
    b.store.put(&of_b);
    a.connect(&b).await;
    let (ids_a, ids_b) = (ids(&of_a), ids(&of_b));
    let (got_b, got_a) = tokio::join!(a.fetch(b.id, &ids_b), b.fetch(a.id, &ids_a));
    assert!(got_b.into_iter().eq(of_b.into_iter().map(Ok)));
    assert!(got_a.into_iter().eq(of_a.into_iter().map(Ok)));
    let bytes = 3000 * (1 << 10) + 500 * (256 << 10);
    assert_eq!(a.handle.ledger(b.id).0, bytes);
    assert_eq!(b.handle.ledger(a.id).0, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_carries_the_id_that_was_wanted() {
    let (a, b) = (Node::start().await, Node::start().await);
    let block = block(1, 5000);
    b.store.put(std::slice::from_ref(&block));
    a.connect(&b).await;
    let as_node = crate::content::ContentId::dag_pb(*block.cid().hash());
    let wanted = [as_node, *block.cid()];
    let got = a.fetch(b.id, &wanted).await;
    let got: Vec<_> = got.into_iter().map(|block| *block.unwrap().cid()).collect();
    assert_eq!(got, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_says_what_it_has_and_what_not() {
    let (a, b) = (Node::start().await, Node::start().await);
    let all = [blocks(1, 20, 100), blocks(2, 20, 100_000)].concat();
    let here: Vec<_> = all.iter().step_by(2).cloned().collect();
    b.store.put(&here);
    a.connect(&b).await;
    let has = a.handle.want_haves(b.id, &ids(&all), LONG).await;
    let expected: Vec<_> = (0..all.len()).map(|n| n % 2 == 0).collect();
    assert_eq!(has, expected);
    let got = a.fetch(b.id, &ids(&all)).await;
    for (n, (got, block)) in got.into_iter().zip(all).enumerate() {
        assert_eq!(got, if n % 2 == 0 { Ok(block) } else { Err(WantError::DontHave) });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_thousand_absent_blocks_are_all_answered() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.connect(&b).await;
    let got = a.fetch(b.id, &ids(&blocks(1, 3000, 16))).await;
    assert!(got.iter().all(|got| *got == Err(WantError::DontHave)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wants_at_a_stranger_and_after_a_disconnect_are_answered() {
    let (a, b) = (Node::start().await, Node::start().await);
    let block = block(1, 100);
    b.store.put(std::slice::from_ref(&block));
    let id = *block.cid();
    assert_eq!(a.fetch(b.id, &[id]).await, [Err(WantError::Disconnected)]);
    assert_eq!(a.handle.want_haves(b.id, &[id], LONG).await, [false]);
    a.connect(&b).await;
    assert_eq!(a.fetch(b.id, &[id]).await, [Ok(block.clone())]);
    b.disconnect(a.id);
    a.connections.clone().wait_for(|count| *count == 0).await.unwrap();
    assert_eq!(a.fetch(b.id, &[id]).await, [Err(WantError::Disconnected)]);
    a.connect(&b).await;
    assert_eq!(a.fetch(b.id, &[id]).await, [Ok(block)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_in_the_middle_answers_every_want() {
    let (a, b) = (Node::start().await, Node::start().await);
    let all = blocks(1, 400, 256 << 10);
    b.store.put(&all);
    a.connect(&b).await;
    let (asker, mut answers) = asker();
    let ids = ids(&all);
    a.handle.want_blocks(b.id, &ids, &asker);
    let first = answers.recv().await.unwrap();
    first.result.unwrap();
    b.disconnect(a.id);
    let rest: Vec<_> = ids.iter().copied().filter(|id| *id != first.id).collect();
    let got = collect(&mut answers, &rest).await;
    assert!(got.iter().all(|got| !matches!(got, Err(error) if *error != WantError::Disconnected)));
    assert!(got.contains(&Err(WantError::Disconnected)));
    a.connections.clone().wait_for(|count| *count == 0).await.unwrap();
    a.connect(&b).await;
    assert!(a.fetch(b.id, &ids).await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_come_and_go_and_turn_out_to_be_chiral() {
    let (a, b) = (Node::start().await, Node::start().await);
    let (peers, mut changes) = a.handle.peers();
    assert!(peers.is_empty());
    a.connect(&b).await;
    a.fetch(b.id, &[*block(1, 1).cid()]).await;
    let up = changes.recv().await.unwrap();
    assert!(matches!(up, PeerEvent::Up { peer, chiral: false } if peer == b.id));
    a.handle.set_chiral(b.id, true);
    let again = changes.recv().await.unwrap();
    assert!(matches!(again, PeerEvent::Up { peer, chiral: true } if peer == b.id));
    assert_eq!(a.handle.peers().0, [(b.id, true)]);
    b.disconnect(a.id);
    assert!(matches!(changes.recv().await.unwrap(), PeerEvent::Down(peer) if peer == b.id));
    assert!(a.handle.peers().0.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_may_dial_each_other_and_nothing_is_lost() {
    let (a, b) = (Node::start().await, Node::start().await);
    let all = blocks(1, 300, 100_000);
    b.store.put(&all);
    a.connect(&b).await;
    let (asker, mut answers) = asker();
    let ids = ids(&all);
    a.handle.want_blocks(b.id, &ids, &asker);
    b.dial(a.address.clone()).await;
    assert!(collect(&mut answers, &ids).await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_every_task() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.connect(&b).await;
    a.fetch(b.id, &[*block(1, 1).cid()]).await;
    let left = a.tasks.shutdown(LONG).await;
    assert!(left.is_empty(), "{left:?}");
}
