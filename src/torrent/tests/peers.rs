//! Peers that hang up, are named late, or are met twice; and what happens at the same time.

use std::{
    io::Read,
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Barrier, atomic::AtomicUsize},
};

use super::*;

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Whether the other side has closed a connection, as far as this one has heard.
fn is_closed(mut connection: &TcpStream) -> bool {
    connection.set_nonblocking(true).unwrap();
    loop {
        match connection.read(&mut [0; 1024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn a_description_that_comes_from_several_at_once_is_kept() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _in = runtime.enter();
    let here = tempfile::tempdir().unwrap();
    let peer = Peer::open(options(), here.path());
    for round in 0..50_u64 {
        let bytes = bytes_of::noise(1000, round);
        let text = seeder::torrent_of("torrent", &[("file", &bytes)], PIECE);
        let together = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    together.wait();
                    peer.torrents.keep(&text).unwrap();
                });
            }
        });
    }
    assert_eq!(peer.torrents.known_torrents().len(), 50);
    runtime.block_on(peer.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_was_asked_for_the_description_is_hung_up_on_before_it_is_asked_for_pieces() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    // A peer that says nothing.
    let (silent, address) = listener();
    let peer = Peer::open(options(), setup.here.path());
    peer.torrents.add_link(&Magnet { peers: vec![address], ..Magnet::of(hash) }).unwrap();
    let accept = |listener: TcpListener| {
        tokio::task::spawn_blocking(move || (listener.accept().unwrap().0, listener))
    };
    let (search, silent) = timeout(PATIENCE, accept(silent)).await.unwrap().unwrap();
    // It comes by itself, and nobody tells the search.
    let text = fs::read(setup.torrent()).unwrap();
    peer.torrents.known().keep(&text).unwrap();
    let film = peer.file(hash, "film.mkv").await;
    let reading = tokio::spawn(async move { film.read(1, ByteRange::at(0, 10)).await });
    let (_pieces, _) = timeout(PATIENCE, accept(silent)).await.unwrap().unwrap();
    assert!(is_closed(&search));
    reading.abort();
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_peer_that_hangs_up_is_dialled_again_while_somebody_waits() {
    let setup = setup().await;
    let (listener, address) = listener();
    let to = setup.seeder.address();
    let dialled = Arc::new(AtomicUsize::new(0));
    let counted = dialled.clone();
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            // The first one of those for pieces is cut off.
            if counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
                continue;
            }
            let far = TcpStream::connect(to).unwrap();
            let (near_back, far_back) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || io::copy(&mut &near, &mut &far));
            std::thread::spawn(move || io::copy(&mut &far_back, &mut &near_back));
        }
    });
    // Less than librqbit waits by itself.
    let short = TorrentOptions { lookup_timeout: Duration::from_secs(9), ..options() };
    let peer = Peer::open(short, setup.here.path());
    peer.torrents.keep(&fs::read(setup.torrent()).unwrap()).unwrap();
    peer.torrents.learn(&Magnet { peers: vec![address], ..Magnet::of(setup.seeder.metainfo.hash) });
    let film = peer.file(setup.seeder.metainfo.hash, "film.mkv").await;
    assert!(read(&film, ByteRange::at(0, 1000)).await.unwrap() == setup.big[..1000]);
    assert!(dialled.load(std::sync::atomic::Ordering::SeqCst) > 1);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_peer_that_is_named_while_somebody_waits_is_dialled() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(options(), setup.here.path());
    peer.torrents.keep(&fs::read(setup.torrent()).unwrap()).unwrap();
    let film = peer.file(hash, "film.mkv").await;
    let reading = tokio::spawn(async move { read(&film, ByteRange::at(0, 1000)).await });
    peer.until_waited_for(hash).await;
    peer.torrents.learn(&setup.seeder.magnet());
    assert!(reading.await.unwrap().unwrap() == setup.big[..1000]);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn torrents_that_are_taken_up_at_once_are_each_their_own() {
    let (here, peers) = (tempfile::tempdir().unwrap(), 12_u64);
    let peer = Peer::open(options(), here.path());
    let mut reads = Vec::new();
    for n in 0..peers {
        let there = tempfile::tempdir().unwrap();
        let bytes = bytes_of::noise(300_000, n);
        let seeder = Seeder::start(there.path(), &[("file", &bytes)], PIECE).await;
        peer.torrents.keep(&fs::read(there.path().join(seeder::TORRENT)).unwrap()).unwrap();
        peer.torrents.learn(&seeder.magnet());
        let file = peer.file(seeder.metainfo.hash, "file").await;
        reads.push(async move {
            let read = timeout(PATIENCE, file.read(1, ByteRange::at(0, 300_000))).await;
            assert!(read.unwrap().unwrap() == bytes);
            drop((seeder, there));
        });
    }
    futures::future::join_all(reads.into_iter().map(tokio::spawn))
        .await
        .into_iter()
        .for_each(|read| read.unwrap());
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_waits_keeps_its_window_however_many_others_come() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(options(), setup.here.path());
    let metainfo = peer.torrents.keep(&fs::read(setup.torrent()).unwrap()).unwrap();
    let number = number_of(&metainfo, "film.mkv");
    let film = Arc::new(peer.file(hash, "film.mkv").await);
    // Nobody gives anything, so that all of them wait.
    let reads: Vec<_> = (0..20_u32)
        .map(|reader| {
            let film = film.clone();
            let range = ByteRange::at(u64::from(reader) * 200_000, 10);
            tokio::spawn(async move { film.read(reader.into(), range).await })
        })
        .collect();
    let active = peer.torrents.active(&metainfo).unwrap();
    peer.poll(|| active.fetch.get().is_some_and(|fetch| fetch.windows() == 20)).await;
    active.fetch.get().unwrap().want(&active, 20, number, 0).await.unwrap();
    assert_eq!(active.fetch.get().unwrap().windows(), 21);
    for read in reads {
        read.abort();
    }
    drop(active);
    peer.stop().await;
}
