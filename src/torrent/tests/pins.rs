//! What is kept of torrents.

use super::*;
use crate::torrent::TorrentPin;

/// The node of a path.
fn node_of(metainfo: &Metainfo, path: &str) -> u32 {
    path.split('/').fold(0, |at, name| match &metainfo.node(at).unwrap().what {
        TreeKind::Directory(names) => names[std::ffi::OsStr::new(name)],
        TreeKind::File(_) => panic!("{path}"),
    })
}

fn pin(node: u32) -> TorrentPin {
    TorrentPin { node, name: "mine".to_owned(), only: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_pinned_of_a_torrent_comes_to_its_end_and_nothing_else() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    // A reader has what is near fetched, too: it leaves before all of the file can have come.
    let slow = TorrentOptions { download_limit: Limits::of(1 << 20).unwrap(), ..options() };
    let peer = Peer::open(slow, setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    let metainfo = timeout(PATIENCE, peer.torrents.metainfo(hash)).await.unwrap().unwrap();
    let nowhere = peer.torrents.pin(hash, pin(99));
    assert!(matches!(nowhere, Err(TorrentError::NoSuchFile { .. })), "{nowhere:?}");
    // It is in the session when it is pinned: that is told then.
    let (film, other) =
        (peer.file(hash, "film.mkv").await, peer.file(hash, "other/film.mkv").await);
    read(&film, ByteRange::at(0, 10)).await.unwrap();
    film.close_reader(1);
    peer.torrents.set_limits(Limits::default());

    let node = node_of(&metainfo, "other");
    assert_eq!(metainfo.path_of(node_of(&metainfo, "other/film.mkv")), Path::new("other/film.mkv"));
    peer.torrents.pin(hash, pin(node)).unwrap();
    assert_eq!(peer.torrents.pins(), [(hash, pin(node))]);
    timeout(PATIENCE, peer.torrents.fetch(hash, node, 7)).await.unwrap().unwrap();
    assert!(other.cached().complete && !film.cached().complete);
    assert!(peer.torrents.unpin(hash, node).await.unwrap());
    assert!(!peer.torrents.unpin(hash, node).await.unwrap());
    assert!(peer.torrents.pins().is_empty() && other.cached().complete);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pin_of_a_link_that_nobody_answered_is_fetched_after_a_restart() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let offline = TorrentOptions { online: false, ..options() };
    let peer = Peer::open(offline, setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    peer.torrents.pin(hash, pin(0)).unwrap();
    assert!(peer.torrents.fetch(hash, 0, 7).await.is_err());
    peer.stop().await;

    let peer = Peer::open(options(), setup.here.path());
    assert_eq!(peer.torrents.pins(), [(hash, pin(0))]);
    timeout(PATIENCE, peer.torrents.fetch(hash, 0, 7)).await.unwrap().unwrap();
    assert_eq!(peer.torrents.pins(), [(hash, pin(0))], "the description came");
    let status = peer.torrents.status(hash).unwrap();
    assert_eq!((status.bytes, status.name.as_str()), (status.total, "torrent"));
    assert!(read_all(&peer.file(hash, "film.mkv").await).await == setup.big);
    peer.stop().await;
}
