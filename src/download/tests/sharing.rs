//! One leaf in several files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

/// Two files of one directory that have a leaf in common, at another place in each.
fn sharing() -> (Block, [(ContentId, Vec<u8>, Blocks); 2]) {
    let leaf = |byte: u8| Block::raw(vec![byte; CHUNK].into());
    let (shared, a, b, c) = (leaf(1), leaf(2), leaf(3), leaf(4));
    let files = [file_of(&[&shared, &a, &b]), file_of(&[&c, &a, &shared])];
    (shared, files)
}

#[tokio::test(start_paused = true)]
async fn a_leaf_that_is_here_is_copied_to_the_place_that_each_file_has_for_it() {
    for at_once in [true, false] {
        let world = World::new();
        let (shared, [first, second]) = sharing();
        let other = file_of(&[&shared]);
        world.source("one", SOON, &[first.2, second.2, other.2].into_iter().flatten().collect());
        world.engine.fetch(&other.0, Strategy::Streaming).await.unwrap();
        // Both below one root, so that one actor looks the leaf up for both.
        let root = first.0;
        let one = world.engine.file(&root, &first.0).await.unwrap();
        let two = world.engine.file(&root, &second.0).await.unwrap();
        let (got_one, got_two) = if at_once {
            tokio::join!(one.read(READER, all(&first.1)), two.read(READER, all(&second.1)))
        } else {
            let later = async {
                tokio::task::yield_now().await;
                two.read(READER, all(&second.1)).await
            };
            tokio::join!(one.read(READER, all(&first.1)), later)
        };
        assert!(got_one.unwrap() == first.1, "the first file is wrong");
        assert!(got_two.unwrap() == second.1, "the second file is wrong");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leaf_from_the_network_comes_to_its_place_in_each_file_whenever_that_one_joins() {
    for pause in [0, 1, 2, 3, 5, 8, 13] {
        let world = World::new();
        let (_, [first, second]) = sharing();
        world.source("one", SOON, &[first.2, second.2].into_iter().flatten().collect());
        let root = first.0;
        let one = world.engine.file(&root, &first.0).await.unwrap();
        let two = world.engine.file(&root, &second.0).await.unwrap();
        let later = async {
            for _ in 0..pause {
                tokio::task::yield_now().await;
            }
            two.read(READER, all(&second.1)).await
        };
        let (got_one, got_two) = tokio::join!(one.read(READER, all(&first.1)), later);
        assert!(got_one.unwrap() == first.1 && got_two.unwrap() == second.1, "after {pause}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_needs_a_leaf_while_it_is_written_into_another_gets_it_too() {
    for _ in 0..10 {
        let world = World::new();
        // Large, so that it takes a moment to write.
        let leaf = |byte: u8| Block::raw(vec![byte; 1 << 20].into());
        let (shared, a, b) = (leaf(1), leaf(2), leaf(3));
        let (first, second) = (file_of(&[&shared, &a]), file_of(&[&b, &shared]));
        world.source("one", SOON, &[first.2, second.2].into_iter().flatten().collect());
        let root = first.0;
        let one = world.engine.file(&root, &first.0).await.unwrap();
        let two = world.engine.file(&root, &second.0).await.unwrap();
        let mut events = world.engine.events();
        let later = async {
            loop {
                match events.recv().await.unwrap() {
                    Event::DownloadChunkProgress { cid, .. } if cid == *shared.cid() => break,
                    _ => {}
                }
            }
            two.read(READER, ByteRange::at(1 << 20, 1 << 20)).await
        };
        let (got_one, got_two) = tokio::join!(one.read(READER, all(&first.1)), later);
        assert!(got_one.unwrap() == first.1 && got_two.unwrap() == *shared.data());
    }
}

#[tokio::test(start_paused = true)]
async fn a_leaf_that_is_here_is_refused_where_a_node_gives_it_another_length() {
    let world = World::new();
    let leaf = Block::raw(vec![1; CHUNK].into());
    let honest = file_of(&[&leaf]);
    let mut builder = FileBuilder::new(SMALL);
    let mut nodes = builder.push(*leaf.cid(), 2 * CHUNK as u64);
    nodes.extend(builder.push(*leaf.cid(), CHUNK as u64));
    let built = builder.finish(Metadata::default());
    nodes.extend(built.nodes);
    let mut blocks: Blocks = nodes.into_iter().map(|block| (*block.cid(), block)).collect();
    blocks.extend(honest.2);
    world.source("one", SOON, &blocks);
    world.engine.fetch(&honest.0, Strategy::Streaming).await.unwrap();
    let handle = world.engine.file(&built.root, &built.root).await.unwrap();
    let read = handle.read(READER, ByteRange::new(0, CHUNK as u64)).await;
    assert!(matches!(read, Err(DownloadError::Store(_))), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn leaves_that_another_file_has_are_copied_and_not_fetched() {
    let world = World::new();
    let (first, data, blocks) = file(40 * CHUNK, 6);
    world.source("one", SOON, &blocks);
    world.engine.fetch(&first, Strategy::Streaming).await.unwrap();

    // The same bytes behind a first block of their own.
    let mut builder = FileBuilder::new(SMALL);
    let head = Block::raw(Bytes::from_static(b"head"));
    let mut nodes = builder.push(*head.cid(), 4);
    for chunk in data.chunks(CHUNK) {
        nodes.extend(
            builder.push(*Block::raw(Bytes::copy_from_slice(chunk)).cid(), chunk.len() as u64),
        );
    }
    let built = builder.finish(Metadata::default());
    nodes.extend(built.nodes);
    nodes.push(head.clone());
    let second: Blocks = nodes.into_iter().map(|block| (*block.cid(), block)).collect();
    let source = world.source("two", SOON, &second);
    world.engine.fetch(&built.root, Strategy::Streaming).await.unwrap();
    let handle = world.engine.file(&built.root, &built.root).await.unwrap();
    let whole = handle.read_now(READER, ByteRange::new(0, handle.size())).unwrap().unwrap();
    assert_eq!(&whole[..4], b"head");
    assert_eq!(whole[4..], data);
    let leaves: Vec<_> =
        source.asked().into_iter().filter(|id| id.codec() == crate::content::Codec::Raw).collect();
    assert!(leaves.iter().all(|id| id == head.cid()), "{leaves:?}");
}

#[tokio::test(start_paused = true)]
async fn rotten_leaf_of_another_file_is_fetched_and_not_copied() {
    let world = World::new();
    let (first, data, blocks) = file(40 * CHUNK, 6);
    world.source("one", SOON, &blocks);
    world.engine.fetch(&first, Strategy::Streaming).await.unwrap();
    let object = world.store.object(&first).unwrap().unwrap().id();
    world.store.rot(object, 7 * CHUNK as u64 + 1).unwrap();

    let head = Block::raw(Bytes::from_static(b"head"));
    let mut builder = FileBuilder::new(SMALL);
    let mut nodes = builder.push(*head.cid(), 4);
    let leaves: Vec<_> =
        data.chunks(CHUNK).map(|chunk| Block::raw(Bytes::copy_from_slice(chunk))).collect();
    for leaf in &leaves {
        nodes.extend(builder.push(*leaf.cid(), leaf.data().len() as u64));
    }
    let built = builder.finish(Metadata::default());
    nodes.extend(built.nodes);
    nodes.extend([head.clone(), leaves[7].clone()]);
    let second: Blocks = nodes.into_iter().map(|block| (*block.cid(), block)).collect();
    let source = world.source("two", SOON, &second);
    world.engine.fetch(&built.root, Strategy::Streaming).await.unwrap();
    let handle = world.engine.file(&built.root, &built.root).await.unwrap();
    let whole = handle.read_now(READER, ByteRange::new(0, handle.size())).unwrap().unwrap();
    assert_eq!(whole[4..], data);
    assert!(source.asked().contains(leaves[7].cid()));
    assert!(!source.asked().contains(leaves[8].cid()));
}
