//! Descriptions: kept byte for byte, read again after a restart, refused for good.

use sha1::{Digest, Sha1};

use super::{
    bencode::write_bytes,
    metainfo::{info_of, with_trackers},
    *,
};

fn offline() -> TorrentOptions {
    TorrentOptions { online: false, ..options() }
}

fn small() -> (Vec<u8>, InfoHash) {
    let text = seeder::torrent_of("film", &[("a", b"bytes"), ("b", b"")], PIECE);
    let hash = Metainfo::parse(&text).unwrap().hash;
    (text, hash)
}

/// With a comment before the description and something behind its end.
fn decorated(text: &[u8], tracker: &str) -> Vec<u8> {
    let text = with_trackers(text, &[tracker.to_owned()]).unwrap();
    [b"d7:comment4:mine", &text[1..], b"\n"].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_description_of_the_user_replaces_that_of_a_peer() {
    let here = tempfile::tempdir().unwrap();
    let (text, hash) = small();
    let link: Magnet = format!("magnet:?xt=urn:btih:{hash}&tr=http://link/&so=1").parse().unwrap();
    let peer = Peer::open(offline(), here.path());
    peer.torrents.learn(&link);
    let info = info_of(&text).unwrap();
    assert_eq!(peer.torrents.keep_info(hash, &info).unwrap().trackers, ["http://link/"]);
    let (mine, other) = (decorated(&text, "http://mine/"), decorated(&text, "http://other/"));
    for given in [&mine, &other] {
        peer.torrents.keep(given).unwrap();
        assert!(peer.torrents.text(hash).unwrap() == *given);
        // A peer changes nothing of it.
        peer.torrents.keep_info(hash, &info).unwrap();
        assert!(peer.torrents.text(hash).unwrap() == *given);
    }
    assert_eq!(peer.torrents.info(hash, 1 << 20), Some(info));
    peer.stop().await;
    let peer = Peer::open(offline(), here.path());
    assert!(peer.torrents.text(hash).unwrap() == other);
    // Nothing that was known of it is lost, and nothing is wanted of it.
    let magnet = peer.torrents.magnet(hash);
    let mut trackers = magnet.trackers.clone();
    trackers.sort();
    assert_eq!(trackers, ["http://link/", "http://mine/", "http://other/"]);
    assert_eq!(magnet.selected, None);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_refusal_is_remembered_by_the_version_that_gave_it() {
    let here = tempfile::tempdir().unwrap();
    let mut info = b"d6:lengthi5e4:name4:film12:piece lengthi0e6:pieces".to_vec();
    write_bytes(&mut info, &[7; 20]);
    info.push(b'e');
    let hash = InfoHash(Sha1::digest(&info).into());
    let peer = Peer::open(options(), here.path());
    // Nothing is remembered of who gives something else.
    peer.torrents.keep_info(hash, b"de").unwrap_err();
    assert!(peer.torrents.metainfo_now(hash).is_none());
    let refused = |told: TorrentError| match told {
        TorrentError::Refused { why, .. } => why.to_string(),
        other => panic!("{other}"),
    };
    let why = refused(peer.torrents.keep_info(hash, &info).unwrap_err());
    assert!(why.contains("piece length"), "{why}");
    assert_eq!(
        refused(timeout(PATIENCE, peer.torrents.metainfo(hash)).await.unwrap().unwrap_err()),
        why
    );
    peer.torrents.add_link(&Magnet::of(hash)).unwrap();
    let pin = TorrentPin { node: 0, name: String::new(), only: None };
    assert_eq!(refused(peer.torrents.pin(hash, pin).unwrap_err()), why);
    peer.stop().await;

    let peer = Peer::open(options(), here.path());
    peer.torrents.go_on();
    let status = peer.torrents.status(hash).unwrap();
    assert_eq!(status.state, TorrentState::Error);
    assert!(status.error.unwrap().contains(&why));
    peer.torrents.remove(hash).await.unwrap();
    assert!(peer.torrents.metainfo_now(hash).is_none());
    peer.torrents.keep_info(hash, &info).unwrap_err();
    peer.stop().await;

    // Another version looks at it again.
    let about = here.path().join(format!("torrents/{hash}/about.json"));
    let text = fs::read_to_string(&about).unwrap();
    let version = format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&version), "{text}");
    fs::write(&about, text.replace(&version, "\"version\":\"0.0.0\"")).unwrap();
    let peer = Peer::open(offline(), here.path());
    assert!(peer.torrents.metainfo_now(hash).is_none());
    peer.stop().await;
}
