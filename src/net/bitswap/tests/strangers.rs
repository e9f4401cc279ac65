//! Peers as other programs behave, and peers that do not keep to the rules.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use futures::{AsyncWriteExt, StreamExt, stream};
use prost::Message as _;
use tokio::sync::mpsc;

use super::{
    Node, asker, block, blocks, collect,
    fake::{Fake, entries, payload, receive, send, want, wantlist},
    ids,
};
use crate::{
    content::{Block, ContentId},
    net::{
        BlockReply, WantError,
        bitswap::{
            Config, Event,
            wire::{Version, proto},
        },
    },
};

/// A node with a fake peer.
async fn pair() -> (Node, Fake) {
    let node = Node::start().await;
    let fake = Fake::dial(&node.address).await;
    node.connections.clone().wait_for(|count| *count > 0).await.unwrap();
    (node, fake)
}

fn wanting(node: &Node, fake: &Fake, ids: &[ContentId]) -> mpsc::UnboundedReceiver<BlockReply> {
    let (asker, answers) = asker();
    node.handle.want_blocks(fake.id, ids, &asker);
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_for_each_reply_loses_no_block() {
    let (node, mut fake) = pair().await;
    let all = blocks(1, 500, 10_000);
    let ids = ids(&all);
    let mut answers = wanting(&node, &fake, &ids);
    let mut wants = fake.accept().await;
    let message = receive(&mut wants).await;
    assert!(message.wantlist.as_ref().unwrap().full);
    let wanted: Vec<_> = entries(&message).into_iter().map(|(id, _)| id).collect();
    assert_eq!(wanted, ids);
    let reply = async |block: &Block| {
        let mut stream = fake.open().await;
        send(&mut stream, &payload(block)).await;
        stream.close().await.unwrap();
    };
    // Eight at a time, as Kubo does, and then all the rest in one burst.
    stream::iter(&all[..300]).for_each_concurrent(8, reply).await;
    stream::iter(&all[300..]).for_each_concurrent(None, reply).await;
    let got = collect(&mut answers, &ids).await;
    assert!(got.into_iter().eq(all.into_iter().map(Ok)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_the_peer_closes_in_its_own_direction_is_used_on() {
    let (node, mut fake) = pair().await;
    let [first, second] = [block(1, 1000), block(2, 1000)];
    let mut answers = wanting(&node, &fake, &[*first.cid()]);
    let mut wants = fake.accept().await;
    // As Helia does before it reads anything.
    wants.close().await.unwrap();
    assert_eq!(entries(&receive(&mut wants).await), [(*first.cid(), true)]);
    send(&mut fake.open().await, &payload(&first)).await;
    assert_eq!(collect(&mut answers, &[*first.cid()]).await, [Ok(first)]);
    let mut answers = wanting(&node, &fake, &[*second.cid()]);
    let told = entries(&receive(&mut wants).await);
    assert!(told.contains(&(*second.cid(), true)), "{told:?}");
    send(&mut fake.open().await, &payload(&second)).await;
    assert_eq!(collect(&mut answers, &[*second.cid()]).await, [Ok(second)]);
    assert!(fake.inbound.try_recv().is_err(), "it opened another stream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_that_are_hashed_together_are_told_apart_and_do_not_wait_for_ever() {
    let (node, mut fake) = pair().await;
    let all = blocks(1, 100, 64 << 10);
    let mut answers = wanting(&node, &fake, &ids(&all));
    let mut wants = fake.accept().await;
    receive(&mut wants).await;
    // Fewer than are hashed at once in the last round, which nothing follows, and one that nobody asked for.
    let sent: Vec<_> = all[..44].iter().filter(|block| *block != &all[20]).cloned().collect();
    let mut messages: Vec<_> = sent.iter().map(payload).collect();
    messages.insert(20, payload(&block(7, 64 << 10)));
    let bytes: Vec<u8> =
        messages.iter().flat_map(proto::Message::encode_length_delimited_to_vec).collect();
    let mut stream = fake.open().await;
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    let got = collect(&mut answers, &ids(&sent)).await;
    assert!(got.into_iter().eq(sent.into_iter().map(Ok)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_blocks_answer_a_want_have_and_larger_ones_are_named() {
    let (node, mut fake) = pair().await;
    let (small, large, absent) = (block(1, 1024), block(2, 1025), block(3, 10));
    node.store.put(&[small.clone(), large.clone()]);
    let list = [&small, &large, &absent].map(|block| want(block.cid(), false, true));
    let mut stream = fake.open().await;
    send(&mut stream, &wantlist(true, list.to_vec())).await;
    let mut replies = fake.accept().await;
    let (mut payloads, mut presences) = (Vec::new(), Vec::new());
    while payloads.len() + presences.len() < 3 {
        let message = receive(&mut replies).await;
        payloads.extend(message.payload);
        presences.extend(message.presences);
    }
    assert_eq!(payloads.len(), 1);
    assert_eq!(payloads[0].data, *small.data());
    presences.sort_by_key(|presence| presence.kind);
    let told: Vec<_> = presences.iter().map(|p| (&p.cid[..], p.kind)).collect();
    assert_eq!(told, [(&large.cid().to_bytes()[..], 0), (&absent.cid().to_bytes()[..], 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_cached_is_not_served_when_that_is_forbidden() {
    let node = Node::with(Config { serve_cached: false, ..Config::default() }).await;
    let mut fake = Fake::dial(&node.address).await;
    let [cached, kept, cached_small] = [block(1, 50_000), block(2, 50_000), block(3, 10)];
    node.store.put(&[cached.clone(), kept.clone(), cached_small.clone()]);
    node.store.retain(kept.cid());
    let mut stream = fake.open().await;
    let list = vec![
        want(cached.cid(), true, true),
        want(cached_small.cid(), false, true),
        want(kept.cid(), true, true),
    ];
    send(&mut stream, &wantlist(true, list)).await;
    let mut replies = fake.accept().await;
    let (mut payloads, mut absent) = (Vec::new(), 0);
    while payloads.len() + absent < 3 {
        let message = receive(&mut replies).await;
        payloads.extend(message.payload);
        absent += message.presences.iter().filter(|presence| presence.kind == 1).count();
    }
    assert_eq!((payloads.len(), absent), (1, 2));
    assert_eq!(payloads[0].data, *kept.data());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_1_0_0_gets_and_gives_bare_blocks() {
    let node = Node::start().await;
    let mut fake = Fake::speaking(&[Version::V100], &node.address).await;
    let (here, there) = (block(1, 40_000), block(2, 300));
    node.store.put(std::slice::from_ref(&here));
    node.connections.clone().wait_for(|count| *count > 0).await.unwrap();
    let mut answers = wanting(&node, &fake, &[*there.cid()]);
    let mut from_node = fake.accept().await;
    let asked = receive(&mut from_node).await.wantlist.unwrap();
    assert_eq!((asked.entries[0].want_type, asked.entries[0].send_dont_have), (0, false));
    let mut to_node = fake.open().await;
    let bare = proto::Message { blocks: vec![there.data().clone()], ..Default::default() };
    send(&mut to_node, &bare).await;
    assert_eq!(collect(&mut answers, &[*there.cid()]).await, [Ok(there.clone())]);
    send(&mut to_node, &wantlist(false, vec![want(here.cid(), true, false)])).await;
    let given = receive(&mut from_node).await;
    assert_eq!(given.blocks, std::slice::from_ref(here.data()));
    let has = node.handle.want_haves(fake.id, &[*there.cid()], std::time::Duration::MAX).await;
    assert_eq!(has, [false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_want_is_cancelled_at_the_peer_and_not_answered() {
    let (node, mut fake) = pair().await;
    let all = blocks(1, 2, 5000);
    let (asker, mut answers) = asker();
    node.handle.want_blocks(fake.id, &ids(&all), &asker);
    let mut wants = fake.accept().await;
    receive(&mut wants).await;
    node.handle.cancel(fake.id, &[*all[0].cid()], &asker);
    drop(asker);
    assert_eq!(entries(&receive(&mut wants).await), [(*all[0].cid(), false)]);
    let mut stream = fake.open().await;
    // It was under way already; the peer is not to blame.
    send(&mut stream, &payload(&all[0])).await;
    send(&mut stream, &payload(&all[1])).await;
    let reply = answers.recv().await.unwrap();
    assert_eq!(reply.result, Ok(all[1].clone()));
    assert!(answers.recv().await.is_none(), "no answer for the cancelled want");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wanted_block_is_sent_when_it_arrives_unless_the_list_was_replaced() {
    let (node, mut fake) = pair().await;
    let all = blocks(1, 3, 2000);
    let mut stream = fake.open().await;
    send(&mut stream, &wantlist(true, vec![want(all[0].cid(), true, false)])).await;
    let list = vec![want(all[1].cid(), true, false), want(all[2].cid(), false, true)];
    send(&mut stream, &wantlist(true, list)).await;
    let mut replies = fake.accept().await;
    // The answer to the last want tells that the lists were looked at.
    assert_eq!(receive(&mut replies).await.presences[0].kind, 1);
    node.store.put(&all);
    node.handle.block_arrived(all[0].cid());
    node.handle.block_arrived(all[1].cid());
    let message = receive(&mut replies).await;
    assert_eq!(message.payload.len(), 1);
    assert_eq!(message.payload[0].data, *all[1].data());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wants_move_to_the_newest_connection_and_back_when_it_closes() {
    let (node, mut fake) = pair().await;
    let all = blocks(1, 2, 5000);
    let mut answers = wanting(&node, &fake, &ids(&all));
    let mut old = fake.accept().await;
    let first = receive(&mut old).await;
    fake.connect(&node.address).await;
    let mut new = fake.accept().await;
    let second = receive(&mut new).await;
    assert_eq!(entries(&first), entries(&second));
    let mut stream = fake.open().await;
    send(&mut stream, &payload(&all[0])).await;
    assert_eq!(answers.recv().await.unwrap().result, Ok(all[0].clone()));
    fake.close_newest();
    let mut wants = fake.accept().await;
    let third = receive(&mut wants).await;
    assert!(third.wantlist.as_ref().unwrap().full);
    assert_eq!(entries(&third), [(*all[1].cid(), true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_the_peer_resets_is_replaced_and_nothing_is_lost() {
    let (node, mut fake) = pair().await;
    let there = block(1, 5000);
    let mut answers = wanting(&node, &fake, &[*there.cid()]);
    let mut wants = fake.accept().await;
    receive(&mut wants).await;
    drop(wants);
    let mut again = fake.accept().await;
    let message = receive(&mut again).await;
    assert!(message.wantlist.as_ref().unwrap().full);
    assert_eq!(entries(&message), [(*there.cid(), true)]);
    let mut stream = fake.open().await;
    send(&mut stream, &payload(&there)).await;
    assert_eq!(collect(&mut answers, &[*there.cid()]).await, [Ok(there)]);
    // Now nothing is wanted, and no stream is opened until there is something to say.
    for here in [block(2, 100_000), block(3, 100_000)] {
        node.store.put(std::slice::from_ref(&here));
        drop(again);
        while node.handle.shared.peer(&fake.id).unwrap().state().has_stream() {
            tokio::task::yield_now().await;
        }
        send(&mut stream, &wantlist(false, vec![want(here.cid(), true, true)])).await;
        again = fake.accept().await;
        assert_eq!(receive(&mut again).await.payload[0].data, *here.data());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_resets_every_stream_is_given_up() {
    let (node, mut fake) = pair().await;
    let mut answers = wanting(&node, &fake, &[*block(1, 5000).cid()]);
    let reply = loop {
        tokio::select! {
            stream = fake.accept() => drop(stream),
            reply = answers.recv() => break reply.unwrap(),
        }
    };
    assert_eq!(reply.result, Err(WantError::Disconnected));
}

/// The node answers the want with `Lied` and reports the peer.
async fn is_caught(mut node: Node, fake: &Fake, mut answers: mpsc::UnboundedReceiver<BlockReply>) {
    assert_eq!(answers.recv().await.unwrap().result, Err(WantError::Lied));
    let Event::Misbehaved { peer, .. } = node.events.recv().await.unwrap();
    assert_eq!(peer, fake.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_for_a_want_are_a_lie() {
    let (node, mut fake) = pair().await;
    let answers = wanting(&node, &fake, &[*block(1, 5000).cid()]);
    receive(&mut fake.accept().await).await;
    send(&mut fake.open().await, &payload(&block(2, 5000))).await;
    is_caught(node, &fake, answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_a_lie() {
    let (node, mut fake) = pair().await;
    let answers = wanting(&node, &fake, &[*block(1, 5000).cid()]);
    receive(&mut fake.accept().await).await;
    let mut stream = fake.open().await;
    stream.write_all(&[5, 0xff, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    stream.flush().await.unwrap();
    is_caught(node, &fake, answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversize_frame_is_a_lie() {
    let (node, mut fake) = pair().await;
    let answers = wanting(&node, &fake, &[*block(1, 5000).cid()]);
    receive(&mut fake.accept().await).await;
    let mut stream = fake.open().await;
    // 4 MiB and one byte.
    stream.write_all(&[0x81, 0x80, 0x80, 0x02]).await.unwrap();
    stream.flush().await.unwrap();
    is_caught(node, &fake, answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_nobody_asked_for_is_ignored() {
    let (mut node, mut fake) = pair().await;
    let mut stream = fake.open().await;
    for block in blocks(1, 100, 100) {
        send(&mut stream, &payload(&block)).await;
    }
    let wanted = block(2, 100);
    // The peer is still good for a want, and nothing was counted as received.
    send(&mut stream, &wantlist(false, vec![want(wanted.cid(), true, true)])).await;
    assert_eq!(receive(&mut fake.accept().await).await.presences.len(), 1);
    assert_eq!(node.handle.ledger(fake.id).0, 0);
    assert!(node.events.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_harm_nobody_else() {
    let (node, fake) = pair().await;
    let requests: Vec<_> = (0..10_000).map(|_| fake.request()).collect();
    // Each holds a stream that is begun and not ended; the connection may be closed over it.
    let open = stream::iter(requests).map(async |request| {
        let mut stream = request.await.ok()?;
        stream.write_all(&[200]).await.ok()?;
        stream.flush().await.ok()?;
        Some(stream)
    });
    let streams: Vec<_> = open.buffer_unordered(400).take(2000).collect().await;
    let readers = node.tasks.alive().get("bitswap-reader").copied().unwrap_or(0);
    assert!(readers <= 256, "{readers} readers");
    let other = Node::start().await;
    let block = block(1, 100_000);
    node.store.put(std::slice::from_ref(&block));
    other.connect(&node).await;
    assert_eq!(other.fetch(node.id, &[*block.cid()]).await, [Ok(block)]);
    drop(streams);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wants_beyond_the_limit_are_bounded_and_the_list_goes_on_working() {
    let (node, mut fake) = pair().await;
    let mut to_node = fake.open().await;
    send(&mut to_node, &wantlist(false, absent(0..50_000).collect())).await;
    let here = block(1, 100_000);
    node.store.put(std::slice::from_ref(&here));
    let peer = node.handle.shared.peer(&fake.id).unwrap();
    while peer.state().server.len() == 0 {
        tokio::task::yield_now().await;
    }
    let held = peer.state().server.len();
    assert!(held <= 2048, "{held} wants held");
    send(&mut to_node, &wantlist(true, vec![want(here.cid(), true, true)])).await;
    let reply = receive(&mut fake.accept().await).await;
    assert_eq!(reply.payload[0].data, *here.data());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_wants_a_million_blocks_is_reported() {
    let (mut node, fake) = pair().await;
    let mut to_node = fake.open().await;
    for round in 0..20_u32 {
        let message = wantlist(false, absent(round * 50_000..(round + 1) * 50_000).collect());
        // The node stops to read from it in the middle.
        if to_node.write_all(&message.encode_length_delimited_to_vec()).await.is_err() {
            break;
        }
    }
    let Event::Misbehaved { peer, .. } = node.events.recv().await.unwrap();
    assert_eq!(peer, fake.id);
}

/// Wants of blocks that exist nowhere.
fn absent(numbers: std::ops::Range<u32>) -> impl Iterator<Item = proto::Entry> {
    numbers.map(|n| {
        let digest = [&[0; 28][..], &n.to_be_bytes()].concat();
        let hash = crate::content::Multihash::wrap(0x12, &digest).unwrap();
        want(&ContentId::raw(hash), true, false)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_costs_two_batches_and_nobody_elses_time() {
    let (node, mut fake) = pair().await;
    let all = blocks(1, 300, 256 << 10);
    node.store.put(&all);
    let list = all.iter().map(|block| want(block.cid(), true, true)).collect();
    send(&mut fake.open().await, &wantlist(true, list)).await;
    // The stream is there and is not read.
    let stalled = fake.accept().await;
    let other = Node::start().await;
    other.connect(&node).await;
    let got = other.fetch(node.id, &ids(&all)).await;
    assert!(got.iter().all(Result::is_ok));
    // One block fills the window of the stream, one is being written and one was read ahead.
    let for_stalled = node.store.reads() - 300;
    assert!(for_stalled <= 8, "{for_stalled} blocks read for a reader that stalls");
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_by_rare_hash_functions_are_known_among_many() {
    const SHA3_256: u64 = 0x16;
    const BLAKE3: u64 = 0x1e;
    for code in [SHA3_256, BLAKE3] {
        let (node, mut fake) = pair().await;
        let all: Vec<Block> = blocks(1, 256, 500)
            .into_iter()
            .map(|block| {
                let hash = crate::content::hash_of(code, 32, block.data()).unwrap();
                Block::verify(ContentId::raw(hash), block.data().clone()).unwrap()
            })
            .collect();
        let mut answers = wanting(&node, &fake, &ids(&all));
        receive(&mut fake.accept().await).await;
        let mut stream = fake.open().await;
        for block in all.iter().rev() {
            send(&mut stream, &payload(block)).await;
        }
        let got = collect(&mut answers, &ids(&all)).await;
        assert!(got.into_iter().eq(all.into_iter().map(Ok)), "{code:#x}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wants_whose_lookup_panics_are_answered_and_the_stream_goes_on() {
    let (node, mut fake) = pair().await;
    let all = blocks(1, 3, 2000);
    node.store.put(&all);
    node.store.curse(all[0].cid());
    let mut stream = fake.open().await;
    send(&mut stream, &wantlist(true, vec![want(all[0].cid(), true, true)])).await;
    let mut replies = fake.accept().await;
    assert_eq!(receive(&mut replies).await.presences[0].kind, 1);
    send(&mut stream, &wantlist(false, vec![want(all[1].cid(), true, true)])).await;
    assert_eq!(receive(&mut replies).await.payload[0].data, *all[1].data());
    assert_eq!(node.handle.shared.peer(&fake.id).unwrap().state().server.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_of_an_arrival_that_nobody_waits_for() {
    let (node, mut fake) = pair().await;
    let all = blocks(1, 2, 2000);
    assert!(!node.handle.shared.waiting.any());
    let mut stream = fake.open().await;
    let list = vec![want(all[0].cid(), true, false), want(all[1].cid(), false, true)];
    send(&mut stream, &wantlist(true, list)).await;
    let mut replies = fake.accept().await;
    assert_eq!(receive(&mut replies).await.presences[0].kind, 1);
    assert!(node.handle.shared.waiting.any());
    node.store.put(&all);
    node.handle.block_arrived(all[0].cid());
    assert_eq!(receive(&mut replies).await.payload[0].data, *all[0].data());
    assert!(!node.handle.shared.waiting.any());
}
