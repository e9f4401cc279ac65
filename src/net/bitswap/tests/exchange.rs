//! Nodes that keep to the rules.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::{Node, block, blocks, ids};

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
    assert_eq!(a.handle.ledger(b.id), (bytes, bytes));
}
