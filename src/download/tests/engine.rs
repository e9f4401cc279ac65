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
async fn a_read_that_goes_elsewhere_drops_what_was_planned_and_not_asked_for() {
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
    assert!(
        source.asked().len() < blocks.len() / 2,
        "{} of {}",
        source.asked().len(),
        blocks.len()
    );
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
