//! Files of torrents and their contents, each fetched as the other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, sync::Arc};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::{
    content::ByteRange,
    node::{FileHandle, Multiaddr, ReaderId, tests::options},
    tasks::Tasks,
    torrent::{
        Magnet, TorrentFile,
        tests::{bytes_of, seeder::Seeder},
    },
};

const PATIENCE: Duration = Duration::from_secs(90);
const PIECE: u32 = 64 << 10;
const BIG: usize = 5_000_000;

async fn start(dir: &Path, peers: Vec<Multiaddr>) -> Node {
    Node::start(options(dir, peers, false), Tasks::new()).await.unwrap()
}

async fn stop(node: Node) {
    node.stop(PATIENCE).await.unwrap();
    assert!(node.tasks().alive().is_empty(), "{:?}", node.tasks());
}

struct Setup {
    film: Vec<u8>,
    small: Vec<u8>,
    seeder: Seeder,
    dirs: [TempDir; 3],
}

/// A seeder of a film and a small file, number 0 and 1.
async fn setup() -> Setup {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (film, small) = (bytes_of::noise(BIG, 7), bytes_of::noise(200_000, 8));
    let files: &[(&str, &[u8])] = &[("film.mkv", &film), ("small", &small)];
    let seeder = Seeder::start(dirs[0].path(), files, PIECE).await;
    Setup { film, small, seeder, dirs }
}

async fn opened(node: &Node, link: &Magnet, file: u32) -> TorrentFile {
    node.torrents().learn(link);
    timeout(PATIENCE, node.torrents().metainfo(link.hash)).await.unwrap().unwrap();
    node.torrents().file(link.hash, file).await.unwrap()
}

async fn read_torrent(file: &TorrentFile) -> Vec<u8> {
    let mut all = Vec::new();
    while (all.len() as u64) < file.size() {
        let range = ByteRange::at(all.len() as u64, 128 << 10);
        all.extend_from_slice(&timeout(PATIENCE, file.read(1, range)).await.unwrap().unwrap());
    }
    file.close_reader(1);
    all
}

async fn read_content(file: &FileHandle) -> Vec<u8> {
    let mut all = Vec::new();
    while (all.len() as u64) < file.size() {
        let range = ByteRange::at(all.len() as u64, 128 << 10);
        let read = timeout(PATIENCE, file.read(ReaderId(1), range)).await.unwrap();
        all.extend_from_slice(&read.unwrap());
    }
    all
}

/// A node that has read both files, with their ids.
async fn completed(setup: &Setup, dir: &Path) -> (Node, ContentId, ContentId) {
    let node = start(dir, Vec::new()).await;
    let hash = setup.seeder.metainfo.hash;
    for (file, bytes) in [(0, &setup.film), (1, &setup.small)] {
        let file = opened(&node, &setup.seeder.magnet(), file).await;
        assert!(read_torrent(&file).await == *bytes);
    }
    let film = timeout(PATIENCE, node.content_found(hash, 0)).await.unwrap();
    let small = timeout(PATIENCE, node.content_found(hash, 1)).await.unwrap();
    (node, film, small)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_that_a_torrent_has_brought_is_read_by_its_id_from_a_peer_also_after_a_restart() {
    let setup = setup().await;
    let (one, film, small) = completed(&setup, setup.dirs[1].path()).await;
    let published = setup.dirs[2].path().join("published");
    std::fs::create_dir(&published).unwrap();
    let elsewhere = start(&published, Vec::new()).await;
    let path = setup.dirs[0].path().join("film.mkv");
    let same = elsewhere.uploads().import(&path, "film".as_ref()).await.unwrap();
    assert_eq!(same[0].0, film, "the id is the one of the same file when it is published");
    stop(elsewhere).await;
    stop(one).await;

    let one = start(setup.dirs[1].path(), Vec::new()).await;
    assert_eq!(one.content_of(setup.seeder.metainfo.hash, 0), Some(film));
    setup.seeder.session.stop().await;
    let two = setup.dirs[2].path().join("two");
    std::fs::create_dir(&two).unwrap();
    let two = start(&two, one.net().addresses()).await;
    for (id, bytes) in [(film, &setup.film), (small, &setup.small)] {
        let file = timeout(PATIENCE, two.engine().file(&id, &id)).await.unwrap().unwrap();
        assert!(read_content(&file).await == *bytes);
    }
    stop(two).await;
    stop(one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_content_whose_torrent_is_known_is_read_from_the_swarm_when_its_peers_are_gone() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let (one, film, small) = completed(&setup, setup.dirs[1].path()).await;
    let two = start(setup.dirs[2].path(), one.net().addresses()).await;
    two.torrents().learn(&setup.seeder.magnet());
    for file in [0, 1] {
        let said = one.twin_statement(hash, file).unwrap();
        assert_eq!(two.learn_twin(&said).unwrap(), Some(one.net().peer_id()));
        assert_eq!(two.learn_twin(&said).unwrap(), None, "known already");
        assert_eq!(two.learn_twin(&said[1..]).unwrap(), None);
    }
    // The nodes above the leaves are in no torrent, so that they come from the peer, and the leaves then from the swarm.
    let file = timeout(PATIENCE, two.engine().file(&film, &film)).await.unwrap().unwrap();
    stop(one).await;
    assert!(read_content(&file).await == setup.film);
    let file = timeout(PATIENCE, two.engine().file(&small, &small)).await.unwrap().unwrap();
    assert!(read_content(&file).await == setup.small);
    stop(two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_torrent_whose_content_is_known_is_read_from_peers_when_the_swarm_is_gone() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let (one, _, _) = completed(&setup, setup.dirs[1].path()).await;
    let two = start(setup.dirs[2].path(), one.net().addresses()).await;
    // The last piece of the film has bytes of both files.
    for file in [0, 1] {
        two.learn_twin(&one.twin_statement(hash, file).unwrap()).unwrap();
    }
    let file = opened(&two, &setup.seeder.magnet(), 0).await;
    let first = timeout(PATIENCE, file.read(1, ByteRange::new(0, 100_000))).await.unwrap();
    assert!(first.unwrap() == setup.film[..100_000]);
    setup.seeder.session.stop().await;
    assert!(read_torrent(&file).await == setup.film);
    stop(two).await;
    stop(one).await;
}

#[tokio::test]
async fn the_map_is_read_as_it_was_written() {
    let tasks = Tasks::new();
    let dir = tempfile::tempdir().unwrap();
    let options = crate::store::StoreOptions {
        dir: dir.path().to_owned(),
        cache_limit: None,
        min_free: Some(0),
    };
    let store = Store::open(options, &tasks).unwrap();
    let id: ContentId =
        "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e".parse().unwrap();
    let twins = Arc::new(Twins::open(&store).unwrap());
    let (one, other) = ((InfoHash([1; 20]), 3), (InfoHash([2; 20]), 0));
    let twin = |object: Option<ObjectId>| Twin {
        id,
        size: 5,
        own: object.is_some(),
        object,
        signed: vec![1, 2],
    };
    twins.put(one, twin(Some(ObjectId(9)))).unwrap();
    twins.put(other, twin(None)).unwrap();
    let read = Twins::open(&store).unwrap();
    assert_eq!(read.get(one), Some(twin(Some(ObjectId(9)))));
    assert_eq!(read.get(other), Some(twin(None)));
    assert_eq!(read.orphans(&HashSet::from([other.0])), [(one, ObjectId(9))]);
    assert_eq!(read.orphans(&HashSet::from([one.0])), []);
    // What was said by others goes when it is found out here.
    let found = Twin { id: ContentId::raw(crate::content::sha2_256(b"found")), ..twin(None) };
    let third = (InfoHash([3; 20]), 0);
    let said = Twin { id: ContentId::raw(crate::content::sha2_256(b"said")), ..twin(None) };
    twins.put(third, said.clone()).unwrap();
    twins.put(third, found.clone()).unwrap();
    assert_eq!(twins.place_of(&said.id), None);
    assert_eq!(twins.place_of(&found.id).map(|place| place.hash), Some(third.0));
    twins.remove(one).unwrap();
    assert_eq!(Twins::open(&store).unwrap().get(one), None);
    assert_eq!(twins.place_of(&id).map(|place| place.hash), Some(other.0));
}

#[tokio::test]
async fn what_was_said_is_forgotten_by_what_speaks_against_it_and_what_was_found_here_never() {
    let tasks = Tasks::new();
    let dir = tempfile::tempdir().unwrap();
    let options = crate::store::StoreOptions {
        dir: dir.path().to_owned(),
        cache_limit: None,
        min_free: Some(0),
    };
    let store = Store::open(options, &tasks).unwrap();
    let twins = Arc::new(Twins::open(&store).unwrap());
    let id = |text: &str| ContentId::raw(crate::content::sha2_256(text.as_bytes()));
    let (hash, peer) = (InfoHash([1; 20]), PeerId::random());
    let learn = |file: u32, text: &str| {
        let said = Statement { hash, file, size: 1, id: id(text) };
        twins.learn(peer, said, b"not looked at").unwrap()
    };
    use doubt::Doubt;
    for (file, doubts) in [
        (0, &[Doubt::Wrong, Doubt::Wrong][..]),
        (1, &[Doubt::Failed, Doubt::Wrong]),
        (2, &[Doubt::Length]),
    ] {
        let text = format!("said of {file}");
        assert!(learn(file, &text));
        for doubt in doubts {
            assert!(twins.get((hash, file)).is_some());
            twins.doubt((hash, file), *doubt);
        }
        assert_eq!(twins.get((hash, file)), None);
        assert!(!learn(file, &text), "it is not believed again");
        assert!(learn(file, &format!("other of {file}")));
    }
    // Whoever gives it may be away; twice is too much.
    for last in [false, true] {
        assert!(learn(3, "away"));
        (0..3).for_each(|_| twins.doubt((hash, 3), Doubt::Failed));
        assert_eq!(twins.get((hash, 3)), None);
        if last {
            assert!(!learn(3, "away"));
        }
    }
    let (own, signed) = (true, Vec::new());
    let found = Twin { id: id("own"), size: 1, own, object: None, signed };
    twins.put((hash, 4), found.clone()).unwrap();
    (0..9).for_each(|_| twins.doubt((hash, 4), Doubt::Wrong));
    assert_eq!(twins.get((hash, 4)), Some(found));
}
