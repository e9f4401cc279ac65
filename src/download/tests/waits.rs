//! How long readers wait, and for what.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

#[tokio::test(start_paused = true)]
async fn what_nobody_has_ends_after_the_lookup_timeout_and_is_found_when_somebody_comes() {
    let world = World::new();
    let (root, data, blocks) = file(60_000, 4);
    world.source("poor", Script::Gives(Duration::from_millis(1)), &Blocks::new());
    let began = tokio::time::Instant::now();
    let error = world.engine.file(&root, &root).await.unwrap_err();
    assert!(matches!(error, DownloadError::NotFound(id) if id == root), "{error}");
    assert_eq!(began.elapsed().as_secs(), 30);
    assert_eq!(*world.sources.asked_again.lock().unwrap(), 0);
    assert!(world.engine.file(&root, &root).await.is_err());
    // The search goes on: the node that comes now is kept without a new call.
    world.source("late", SOON, &blocks);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*world.sources.asked_again.lock().unwrap(), 1, "another call searches once more");
    assert!(world.store.block(&root).unwrap().is_some());
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_gets_nothing_stalls_and_the_next_one_tries_again() {
    let world = World::new();
    let (root, data, blocks) = file(60_000, 4);
    world.source("dies", Script::Dies(1), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let error = handle.read(READER, all(&data)).await.unwrap_err();
    assert!(matches!(error, DownloadError::Stalled { id, .. } if id == root), "{error}");
    world.source("late", SOON, &blocks);
    // Reads within a second of it are taken for repetitions of the same one.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_nobody_has_fails_its_reader_while_the_rest_of_the_file_comes() {
    let world = World::new();
    let leaves: Vec<Block> =
        (0..4096u64).map(|n| Block::raw(n.to_le_bytes().repeat(CHUNK / 8).into())).collect();
    let (root, data, mut blocks) = file_of(&leaves.iter().collect::<Vec<_>>());
    assert!(blocks.remove(leaves[8].cid()).is_some());
    world.source("one", Script::Gives(Duration::from_millis(5)), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let rest = handle.clone();
    let reader = ReaderId(9);
    let reads = async {
        // A player that reads everything behind the hole keeps the file busy.
        for at in (9 * CHUNK as u64..data.len() as u64).step_by(64 << 10) {
            rest.read(reader, ByteRange::at(at, 64 << 10)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let began = tokio::time::Instant::now();
    let hole = async {
        let result = handle.read(READER, ByteRange::at(8 * CHUNK as u64, CHUNK as u64)).await;
        (result, began.elapsed().as_secs())
    };
    let (_, (result, after)) = tokio::join!(reads, hole);
    assert!(matches!(result, Err(DownloadError::Stalled { .. })), "{result:?}");
    assert!(began.elapsed().as_secs() > 50, "{:?}", began.elapsed());
    assert!((30..=50).contains(&after), "{after} s");
}

#[tokio::test(start_paused = true)]
async fn who_reads_what_was_just_waited_for_in_vain_does_not_wait_again() {
    let world = World::new();
    let (root, data, blocks) = file(600_000, 4);
    world.source("dies", Script::Dies(1), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    // As the kernel reads: ahead first, then the page alone.
    let ahead = [0u64, 1, 2, 3].map(|n| handle.read(READER, ByteRange::at(n << 17, 1 << 17)));
    assert!(futures::future::join_all(ahead).await.iter().all(Result::is_err));
    let began = tokio::time::Instant::now();
    for page in 0..3 {
        let page = handle.read(READER, ByteRange::at(page << 12, 4096)).await;
        assert!(matches!(page, Err(DownloadError::Stalled { .. })), "{page:?}");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    world.sources.lose("dies");
    world.source("late", SOON, &blocks);
    tokio::time::sleep(Duration::from_millis(999)).await;
    // It is where the reader would be.
    let page = handle.read(READER, ByteRange::at(3 << 17, 4096)).await;
    assert_eq!(page.unwrap(), data[3 << 17..(3 << 17) + 4096], "it came meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_given_up_ends_the_reads_that_wait_for_it() {
    let options = DownloadOptions {
        lookup_timeout: Duration::from_secs(100_000),
        ..DownloadOptions::default()
    };
    let world = World::with(options, &Arc::default());
    let (root, data, mut blocks) = file(60_000, 4);
    let missing = Block::raw(Bytes::copy_from_slice(&data[2 * CHUNK..3 * CHUNK]));
    assert!(blocks.remove(missing.cid()).is_some());
    world.source("one", SOON, &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let began = tokio::time::Instant::now();
    let error = handle.read(READER, ByteRange::new(0, 20_000)).await.unwrap_err();
    assert!(matches!(error, DownloadError::Stalled { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), 300);
    blocks.insert(*missing.cid(), missing);
    world.source("late", SOON, &blocks);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn a_root_whose_sources_are_silent_does_not_keep_another_from_its_readers() {
    const LEAF: u64 = 256 << 10;
    let options = DownloadOptions { chunks_per_peer: 4096, ..DownloadOptions::default() };
    let world = World::with(options, &Arc::default());
    let mut builder = FileBuilder::new(ImportParams::DEFAULT);
    let leaves = (0..1000u64).map(|n| *Block::raw(n.to_le_bytes().to_vec().into()).cid());
    let mut nodes: Vec<Block> = leaves.flat_map(|leaf| builder.push(leaf, LEAF)).collect();
    let built = builder.finish(Metadata::default());
    nodes.extend(built.nodes);
    let (root, data, mut blocks) = file(300_000, 4);
    blocks.extend(nodes.into_iter().map(|node| (*node.cid(), node)));
    world.source("one", Script::Withholds, &blocks);
    let dead = world.engine.file(&built.root, &built.root).await.unwrap();
    let waits = dead.read(READER, ByteRange::new(0, 200 << 20));
    assert!(tokio::time::timeout(Duration::from_secs(5), waits).await.is_err());
    let handle = world.engine.file(&root, &root).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(5), handle.read(READER, all(&data))).await;
    assert_eq!(read.unwrap().unwrap(), data);
}

/// Waits for a node that is missing; how long that took.
async fn in_vain(world: &World, root: &ContentId, id: &ContentId) -> Duration {
    let began = tokio::time::Instant::now();
    let error = world.engine.node(root, id).await.unwrap_err();
    assert!(matches!(error, DownloadError::NotFound(missing) if missing == *id), "{error}");
    began.elapsed()
}

fn ids(count: u64) -> Vec<ContentId> {
    (0..count).map(|n| *Block::raw(n.to_le_bytes().to_vec().into()).cid()).collect()
}

/// What passes between two looks of an actor at its clock.
const TICK: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn all_nodes_of_a_walk_cost_one_timeout() {
    for count in [1, 14, 1000] {
        let world = World::new();
        let children = ids(count);
        let (root, began) = (children[0], tokio::time::Instant::now());
        let waits = async {
            for child in &children {
                in_vain(&world, &root, child).await;
            }
        };
        let seeks = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            world.engine.seek(&root, &children[1..], Duration::from_millis(200));
        };
        tokio::join!(waits, seeks);
        assert!(began.elapsed() < TIMEOUT + TICK, "{count}: {:?}", began.elapsed());
        let again = tokio::time::Instant::now();
        for child in &children {
            assert_eq!(in_vain(&world, &root, child).await, Duration::ZERO);
        }
        assert!(again.elapsed() < Duration::from_millis(500));
    }
}

#[tokio::test(start_paused = true)]
async fn roots_that_are_sought_together_cost_one_timeout() {
    let world = World::new();
    let roots = ids(50);
    let began = tokio::time::Instant::now();
    roots.iter().for_each(|root| world.engine.seek(root, &[*root], Duration::ZERO));
    for root in &roots {
        in_vain(&world, root, root).await;
    }
    assert!(began.elapsed() < TIMEOUT + TICK, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_waited_for_in_vain_gets_one_more_wait_later() {
    let world = World::new();
    let root = ids(1)[0];
    assert_eq!(in_vain(&world, &root, &root).await.as_secs(), 30);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(in_vain(&world, &root, &root).await, Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let both = tokio::join!(in_vain(&world, &root, &root), in_vain(&world, &root, &root));
    assert_eq!((both.0.as_secs(), both.1.as_secs()), (30, 30));
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(in_vain(&world, &root, &root).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_source_left_ends_at_once_after_a_wait_in_vain() {
    let world = World::new();
    let (children, root) = (ids(20), ids(1)[0]);
    // It answers, and has nothing.
    world.source("poor", Script::Gives(Duration::from_millis(20)), &Blocks::new());
    assert_eq!(in_vain(&world, &root, &children[1]).await.as_secs(), 30);
    for child in &children[2..] {
        let took = in_vain(&world, &root, child).await;
        assert!(took < TICK * 2, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_is_waited_for_also_after_a_wait_in_vain() {
    let world = World::new();
    let (root, data, blocks) = file(60_000, 4);
    let missing = ids(1)[0];
    world.source("slow", Script::Gives(Duration::from_secs(4)), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    in_vain(&world, &root, &missing).await;
    let read = handle.read(READER, all(&data)).await;
    assert_eq!(read.unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn a_reader_without_a_source_left_does_not_wait_again() {
    let world = World::new();
    let (root, data, blocks) = file(600_000, 4);
    let source = world.source(
        "poor",
        Script::Gives(Duration::from_millis(5)),
        &Blocks::from([(root, blocks[&root].clone())]),
    );
    let handle = world.engine.file(&root, &root).await.unwrap();
    let began = tokio::time::Instant::now();
    assert!(handle.read(READER, ByteRange::at(0, 4096)).await.is_err());
    assert!(began.elapsed() >= TIMEOUT);
    // Another part of it, as a program that goes on to the next file.
    let began = tokio::time::Instant::now();
    assert!(handle.read(READER, ByteRange::at(400_000, 4096)).await.is_err());
    assert!(began.elapsed() < TICK * 3, "{:?}", began.elapsed());
    drop(source);
    world.source("late", SOON, &blocks);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
}
