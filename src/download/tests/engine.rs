#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

#[tokio::test(start_paused = true)]
async fn callers_of_one_node_share_one_request() {
    let world = World::new();
    let (root, _, blocks) = file(60_000, 4);
    let source = world.source("one", Script::Gives(Duration::from_millis(30)), &blocks);
    let calls = (0..10).map(|_| world.engine.node(&root, &root));
    let nodes = futures::future::join_all(calls).await;
    assert!(nodes.into_iter().all(|node| node.unwrap() == blocks[&root]));
    assert_eq!(source.asked(), [root]);
}

#[tokio::test(start_paused = true)]
async fn a_malformed_node_is_an_error_of_its_reader_only() {
    let world = World::new();
    let bad = Block::dag_pb(Bytes::from_static(b"no dag-pb at all"));
    let (good, data, mut blocks) = file(60_000, 4);
    blocks.insert(*bad.cid(), bad.clone());
    world.source("one", SOON, &blocks);
    assert!(matches!(world.engine.file(bad.cid(), bad.cid()).await, Err(DownloadError::Dag(_))));
    let handle = world.engine.file(bad.cid(), &good).await.unwrap();
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn one_chunk_from_one_peer_is_tried_three_times_with_its_events() {
    let world = World::new();
    let (root, data, blocks) = file(60_000, 4);
    world.source("one", Script::FailsFirst(2, Transient::Reset.into()), &blocks);
    let leaf = *Block::raw(Bytes::copy_from_slice(&data[..CHUNK])).cid();
    let mut events = world.engine.events();
    let path = world.dir.path().join("chunk");
    let peer = SourceId("one".into());
    world.engine.start_chunk_download(&peer, &leaf, &root, 0, &path).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), data[..CHUNK]);
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        let event = serde_json::to_value(&event).unwrap();
        seen.push(event["event"].as_str().unwrap().to_owned());
    }
    let expected = [
        "download_chunk_started",
        "chunk_retry",
        "chunk_retry",
        "download_chunk_progress",
        "download_chunk_complete",
    ];
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_goes_elsewhere_cancels_what_no_reader_needs() {
    let world = World::new();
    let (root, data, blocks) = file(4 << 20, 4);
    let source = world.source("one", Script::Gives(Duration::from_millis(20)), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    for at in 0..8u64 {
        handle.read(READER, ByteRange::at(at * 4096, 4096)).await.unwrap();
    }
    let far = ByteRange::at(3 << 20, 4096);
    assert_eq!(handle.read(READER, far).await.unwrap(), data[3 << 20..(3 << 20) + 4096]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let present = handle.object().present().bytes();
    assert!(present < 512 << 10, "{present} bytes came of a window of over a MiB that was left");
    assert!(!source.cancelled.lock().unwrap().is_empty());
    // What was cancelled is asked for again when it is read.
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn what_another_reader_needs_is_not_cancelled() {
    let world = World::new();
    let (root, data, blocks) = file(1 << 20, 4);
    let source = world.source("one", Script::Gives(Duration::from_millis(20)), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let stays = handle.read(ReaderId(1), all(&data));
    let leaves = async {
        handle.read(ReaderId(2), ByteRange::new(0, 4096)).await.unwrap();
        handle.read(ReaderId(2), ByteRange::at(1_000_000, 4096)).await.unwrap();
    };
    let (stays, ()) = tokio::join!(stays, leaves);
    assert_eq!(stays.unwrap(), data);
    assert!(source.cancelled.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_finds_what_was_fetched_ahead_moves_its_window() {
    let world = World::new();
    let (root, data, blocks) = file(8 << 20, 4);
    world.source("one", SOON, &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let mut waited = 0;
    for at in (0..data.len() as u64).step_by(128 << 10) {
        let range = ByteRange::at(at, 128 << 10);
        if handle.read_now(READER, range).is_none() {
            waited += 1;
            handle.read(READER, range).await.unwrap();
        }
        // Slower than the source, so that a window that moves is always ahead.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(waited, 1, "only the first read waits");
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_named_by_another_version_and_codec_is_the_one_that_was_wanted() {
    let world = World::new();
    let (root, data, blocks) = file(100_000, 2);
    world.source("one", Script::Renames, &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_not_the_wanted_one_is_a_lie() {
    let world = World::new();
    let (root, data, blocks) = file(100_000, 2);
    let liar = world.source("liar", Script::Mixes, &blocks);
    world.source("honest", Script::Gives(Duration::from_millis(50)), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
    assert!(liar.banned.lock().unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn all_downloads_together_ask_for_no_more_than_fits_into_memory() {
    const LEAF: u64 = 256 << 10;
    let options = DownloadOptions { chunks_per_peer: 4096, ..DownloadOptions::default() };
    let world = World::with(options, &Arc::default());
    let mut nodes = Blocks::new();
    let roots: Vec<ContentId> = (0..4u64)
        .map(|file| {
            let mut builder = FileBuilder::new(ImportParams::DEFAULT);
            // Nobody gives the leaves, so that only their ids matter.
            let leaves = (0..1000u64)
                .map(|n| *Block::raw((file << 32 | n).to_le_bytes().to_vec().into()).cid());
            let mut made: Vec<Block> = leaves.flat_map(|leaf| builder.push(leaf, LEAF)).collect();
            let built = builder.finish(Metadata::default());
            made.extend(built.nodes);
            nodes.extend(made.into_iter().map(|node| (*node.cid(), node)));
            built.root
        })
        .collect();
    let source = world.source("one", Script::Withholds, &nodes);
    let fetches = roots.iter().map(|root| world.engine.fetch(root, Strategy::Sequential));
    let fetches = futures::future::join_all(fetches);
    assert!(tokio::time::timeout(Duration::from_secs(5), fetches).await.is_err());
    let leaves = source.asked().iter().filter(|id| !nodes.contains_key(id)).count() as u64;
    // What is left is for readers.
    let limit = (128 - 16) << 20;
    assert!((limit - LEAF * 4..=limit).contains(&(leaves * LEAF)), "{leaves} leaves");
}

#[tokio::test(start_paused = true)]
async fn so_many_downloads_run_at_a_time_and_a_read_waits_for_none() {
    let options = DownloadOptions { max_concurrent_downloads: 2, ..DownloadOptions::default() };
    let world = World::with(options, &Arc::default());
    let files: Vec<_> = (1..=5).map(|seed| file(60_000, seed)).collect();
    let all_blocks: Blocks = files.iter().flat_map(|(.., blocks)| blocks.clone()).collect();
    let nobody = world.source("nobody", Script::Withholds, &Blocks::new());
    let fetches = files.iter().map(|(root, ..)| world.engine.fetch(root, Strategy::Sequential));
    let mut fetches = std::pin::pin!(futures::future::join_all(fetches));
    assert!(tokio::time::timeout(Duration::from_secs(5), &mut fetches).await.is_err());
    let begun: HashSet<_> = nobody.asked().into_iter().collect();
    assert_eq!(begun, [files[0].0, files[1].0].into());
    world.source("late", SOON, &all_blocks);
    let (root, data, _) = &files[4];
    let handle = world.engine.file(root, root).await.unwrap();
    assert_eq!(handle.read(READER, all(data)).await.unwrap(), *data);
    assert!(fetches.await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_to_the_readers_and_the_download_goes_on_when_there_is_room() {
    let full = Arc::new(AtomicBool::new(true));
    let world = World::with(DownloadOptions::default(), &full);
    let (root, data, blocks) = file(400_000, 4);
    world.source("one", SOON, &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let error = handle.read(READER, all(&data)).await.unwrap_err();
    assert!(matches!(&error, DownloadError::Store(e) if e.is_no_space()), "{error}");
    let error = world.engine.fetch(&root, Strategy::Streaming).await.unwrap_err();
    assert!(matches!(&error, DownloadError::Store(e) if e.is_no_space()), "{error}");
    full.store(false, Ordering::SeqCst);
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
}

/// A file that is one leaf `repeats` times, and another leaf in the middle.
fn repeated(repeats: usize) -> (ContentId, Vec<u8>, Blocks) {
    let (zeros, odd) = (Block::raw(vec![0; CHUNK].into()), Block::raw(vec![1; CHUNK].into()));
    let mut builder = FileBuilder::new(SMALL);
    let (mut data, mut all) = (Vec::new(), vec![zeros.clone(), odd.clone()]);
    for n in 0..repeats {
        let leaf = if n == repeats / 2 { &odd } else { &zeros };
        all.extend(builder.push(*leaf.cid(), CHUNK as u64));
        data.extend_from_slice(leaf.data());
    }
    let built = builder.finish(Metadata::default());
    all.extend(built.nodes);
    (built.root, data, all.into_iter().map(|block| (*block.cid(), block)).collect())
}

#[tokio::test(start_paused = true)]
async fn a_leaf_in_many_places_is_fetched_once_and_placed_in_all_that_are_needed() {
    let world = World::new();
    let (root, data, blocks) = repeated(500);
    let source = world.source("one", SOON, &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let middle = ByteRange::at(1_000_000, 50_000);
    assert_eq!(handle.read(READER, middle).await.unwrap(), data[1_000_000..1_050_000]);
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
    assert_eq!(source.asked().len(), blocks.len(), "each block once");

    let world = World::new();
    let source = world.source("one", SOON, &blocks);
    world.engine.fetch(&root, Strategy::Streaming).await.unwrap();
    assert_eq!(source.asked().len(), blocks.len(), "each block once");
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.read_now(READER, all(&data)).unwrap().unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn a_silent_source_is_passed_over_for_one_that_speaks() {
    let world = World::new();
    let (root, data, blocks) = file(60_000, 4);
    world.source("silent", Script::Silent, &blocks);
    world.source("speaks", Script::Gives(Duration::from_millis(5)), &blocks);
    let began = tokio::time::Instant::now();
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_a_source_was_like_is_known_after_a_restart() {
    let mut world = World::new();
    let (root, _, blocks) = file(200_000, 4);
    let source = world.source("one", Script::Gives(Duration::from_millis(5)), &blocks);
    world.engine.fetch(&root, Strategy::Streaming).await.unwrap();
    tokio::time::sleep(Duration::from_secs(130)).await;
    world.restart();
    let known =
        crate::download::reputation::Reputations::open(&world.store).get(source.id()).unwrap();
    assert!(known.rate.is_some() && known.latency.is_some() && known.success > 0.9, "{known:?}");
}

#[tokio::test(start_paused = true)]
async fn a_running_download_tells_its_progress() {
    let world = World::new();
    let (root, data, blocks) = file(1 << 20, 4);
    world.source("one", Script::Gives(Duration::from_millis(40)), &blocks);
    let engine = world.engine.clone();
    let fetch = tokio::spawn(async move { engine.fetch(&root, Strategy::Sequential).await });
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let transfers = world.engine.transfers();
    assert_eq!(transfers.len(), 1);
    let transfer = &transfers[0];
    assert_eq!((transfer.cid, transfer.total, transfer.sources), (root, data.len() as u64, 1));
    assert!(transfer.bytes > 0 && transfer.bytes < transfer.total && transfer.rate > 0);
    fetch.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_shuts_down_ends_its_reads() {
    let world = World::new();
    let (root, data, blocks) = file(60_000, 4);
    world.source("dies", Script::Dies(1), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let read = handle.read(READER, all(&data));
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.tasks.token().cancel();
    };
    let (read, ()) = tokio::join!(read, stop);
    assert!(matches!(read, Err(DownloadError::Closed)), "{read:?}");
}
