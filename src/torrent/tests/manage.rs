//! What the user does with torrents.

use super::*;

/// A foreign program that downloads a torrent from a peer, all of it.
async fn leech(text: &[u8], from: std::net::SocketAddr, into: &Path) {
    use librqbit::{AddTorrent, AddTorrentOptions, Session, SessionOptions};
    let options = SessionOptions {
        dht: None,
        disable_trackers: true,
        disable_local_service_discovery: true,
        ..SessionOptions::default()
    };
    let session = Session::new_with_opts(into.to_owned(), options).await.unwrap();
    let options = AddTorrentOptions {
        overwrite: true,
        output_folder: Some(into.to_str().unwrap().to_owned()),
        initial_peers: Some(vec![from]),
        ..AddTorrentOptions::default()
    };
    let added = session.add_torrent(AddTorrent::from_bytes(text.to_vec()), Some(options)).await;
    let torrent = added.unwrap().into_handle().unwrap();
    timeout(PATIENCE, torrent.wait_until_completed()).await.unwrap().unwrap();
    session.stop().await;
}

/// A torrent of published files by their paths.
fn published(peer: &Peer, files: &[(&str, &[u8])]) -> (Vec<u8>, Source) {
    let text = seeder::torrent_of("published", files, PIECE);
    let mut sorted = files.to_vec();
    sorted.sort_by_key(|(path, _)| path.split('/').collect::<Vec<_>>());
    let ids = sorted.iter().map(|(_, bytes)| peer.host.publish(bytes)).collect();
    let root = peer.host.publish(b"the root");
    (text, Source { root, pinned: false, automatic: false, files: ids })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_published_is_given_from_where_it_is_and_after_a_restart_again() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let big = bytes_of::noise(BIG, 3);
    let files: &[(&str, &[u8])] = &[("b/film.mkv", &big), ("b-", b"1"), ("none", b"")];
    let peer = Peer::open(options(), here.path());
    let (text, source) = published(&peer, files);
    let magnet = peer.torrents.publish(text.clone(), source.clone()).await.unwrap();
    let hash = magnet.hash;
    // The address is a certain one, so the link has it.
    assert_eq!(magnet.peers, [peer.torrents.address().unwrap()]);
    leech(&text, peer.torrents.address().unwrap(), there.path()).await;
    assert!(fs::read(there.path().join("b/film.mkv")).unwrap() == big);
    assert_eq!(fs::read(there.path().join("b-")).unwrap(), b"1");

    let status = peer.torrents.status(hash).unwrap();
    assert_eq!((status.state, status.seed), (TorrentState::Seeding, true));
    assert_eq!((status.bytes, status.total), (BIG as u64 + 1, BIG as u64 + 1));
    assert_eq!(status.cid, Some(source.root));
    // There is no second copy.
    let folder = here.path().join("torrents").join(hash.to_string());
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["about.json", "metainfo", "source"]);
    let film = peer.file(hash, "b/film.mkv").await;
    assert_eq!(film.cached(), Cached { bytes: BIG as u64, allocated: BIG as u64, complete: true });
    assert!(read_all(&film).await == big);
    let host = peer.host.clone();
    peer.stop().await;

    // Nobody asks for it: it goes on by itself.
    let peer = Peer::open(options(), here.path());
    *peer.host.published.lock().unwrap() = host.published.lock().unwrap().clone();
    peer.torrents.go_on();
    peer.until(|event| matches!(event, TorrentEvent::State(s) if s.state == TorrentState::Seeding))
        .await;
    let again = tempfile::tempdir().unwrap();
    leech(&text, peer.torrents.address().unwrap(), again.path()).await;
    assert!(fs::read(again.path().join("b/film.mkv")).unwrap() == big);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_torrent_is_paused_goes_on_and_is_removed_and_each_is_told() {
    let here = tempfile::tempdir().unwrap();
    let peer = Peer::open(options(), here.path());
    let big = bytes_of::noise(BIG, 4);
    let (text, source) = published(&peer, &[("film.mkv", &big)]);
    let hash = peer.torrents.publish(text.clone(), source.clone()).await.unwrap().hash;
    peer.torrents.pause(hash).await.unwrap();
    assert_eq!(peer.torrents.status(hash).unwrap().state, TorrentState::Paused);
    // Twice does no harm.
    peer.torrents.pause(hash).await.unwrap();
    peer.stop().await;

    // It stays paused over a restart.
    let peer = Peer::open(options(), here.path());
    let (_, _) = published(&peer, &[("film.mkv", &big)]);
    peer.torrents.go_on();
    assert_eq!(peer.torrents.status(hash).unwrap().state, TorrentState::Paused);
    assert!(peer.torrents.address().is_none());
    // What is here is read all the same.
    assert!(read_all(&peer.file(hash, "film.mkv").await).await == big);
    peer.torrents.resume(hash).await.unwrap();
    assert_eq!(peer.torrents.status(hash).unwrap().state, TorrentState::Seeding);
    let there = tempfile::tempdir().unwrap();
    leech(&text, peer.torrents.address().unwrap(), there.path()).await;
    assert!(fs::read(there.path().join("film.mkv")).unwrap() == big);

    let film = peer.file(hash, "film.mkv").await;
    assert_eq!(peer.torrents.remove(hash).await.unwrap(), Some(source));
    assert!(!here.path().join("torrents").join(hash.to_string()).exists());
    assert!(peer.torrents.statuses().is_empty() && peer.torrents.names().is_empty());
    for gone in [
        peer.torrents.pause(hash).await,
        peer.torrents.resume(hash).await,
        peer.torrents.remove(hash).await.map(drop),
    ] {
        assert!(matches!(gone, Err(TorrentError::NoSuchTorrent(_))), "{gone:?}");
    }
    // What was open is read to its end: it is published all the same.
    assert!(read_all(&film).await == big);
    let states: Vec<_> = peer.host.told.lock().unwrap().clone();
    assert!(
        states
            .iter()
            .any(|e| matches!(e, TorrentEvent::State(s) if s.state == TorrentState::Seeding))
    );
    assert_eq!(states.last(), Some(&TorrentEvent::Removed(hash)));
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_torrent_that_is_fetched_is_paused_amid_it_and_removed_with_all_that_came() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(options(), setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    let film = peer.file(hash, "film.mkv").await;
    read(&film, ByteRange::at(0, 10)).await.unwrap();
    peer.torrents.pause(hash).await.unwrap();
    let other = peer.file(hash, "other/film.mkv").await;
    let refused = read(&other, ByteRange::at(4_000_000, 10)).await;
    assert!(matches!(refused, Err(TorrentError::Paused(_))), "{refused:?}");
    peer.torrents.resume(hash).await.unwrap();
    assert!(read_all(&film).await == setup.big);
    peer.until(|event| matches!(event, TorrentEvent::Progress(s) | TorrentEvent::State(s) if s.bytes >= BIG as u64))
        .await;

    // Whoever waits for something of it hears that it is gone.
    setup.seeder.session.stop().await;
    let waiting = tokio::spawn(async move { read(&other, ByteRange::at(4_000_000, 10)).await });
    peer.until_waited_for(hash).await;
    peer.torrents.remove(hash).await.unwrap();
    let told = waiting.await.unwrap();
    assert!(matches!(told, Err(TorrentError::Removed(_))), "{told:?}");
    let torrents = setup.here.path().join("torrents");
    assert!(!torrents.join(hash.to_string()).exists());
    assert!(!torrents.join(format!("session/{hash}.bitv")).exists());
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_not_here_any_more_is_an_error_of_the_torrent_and_not_of_others() {
    let here = tempfile::tempdir().unwrap();
    let peer = Peer::open(options(), here.path());
    let big = bytes_of::noise(BIG, 6);
    let (text, source) = published(&peer, &[("film.mkv", &big)]);
    let hash = peer.torrents.publish(text, source).await.unwrap().hash;
    peer.stop().await;
    // Nothing is published around this one.
    let peer = Peer::open(options(), here.path());
    let gone = peer.torrents.seed(hash).await;
    assert!(matches!(gone, Err(TorrentError::Gone { .. })), "{gone:?}");
    let status = peer.torrents.status(hash).unwrap();
    assert_eq!(status.state, TorrentState::Error);
    assert!(status.error.unwrap().contains("is not here any more"));
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_limit_is_set_while_it_runs_and_taken_off_again() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let big = bytes_of::noise(8 << 20, 5);
    let seeder = Seeder::start(there.path(), &[("film.mkv", &big)], PIECE).await;
    let peer = Peer::open(options(), here.path());
    peer.torrents.learn(&seeder.magnet());
    let film = peer.file(seeder.metainfo.hash, "film.mkv").await;
    read(&film, ByteRange::at(0, 10)).await.unwrap();
    assert_eq!(Limits::of(100), Err(16 << 10));
    assert_eq!(Limits::of(0), Ok(None));
    let limits = Limits { upload: None, download: Limits::of(1 << 20).unwrap() };
    peer.torrents.set_limits(limits);
    peer.until_limited(limits).await;
    peer.torrents.set_limits(Limits::default());
    peer.until_limited(Limits::default()).await;
    assert!(read_all(&film).await == big);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_disk_gives_less_as_long_as_something_is_fetched() {
    let setup = setup().await;
    let there = tempfile::tempdir().unwrap();
    let peer = Peer::open(options(), setup.here.path());
    let given = bytes_of::noise(BIG, 3);
    let (text, source) = published(&peer, &[("given", &given)]);
    peer.torrents.publish(text.clone(), source).await.unwrap();
    let from = peer.torrents.address().unwrap();
    *peer.host.slow.lock().unwrap() = Duration::from_millis(10);
    let giving = async {
        leech(&text, from, there.path()).await;
        assert!(fs::read(there.path().join("given")).unwrap() == given);
    };
    let fetching = async {
        peer.torrents.learn(&setup.seeder.magnet());
        let film = peer.file(setup.seeder.metainfo.hash, "film.mkv").await;
        let limits = Limits { upload: None, download: Limits::of(64 << 10).unwrap() };
        peer.torrents.set_limits(limits);
        let reading = async { assert!(read_all(&film).await == setup.big) };
        let limited = async {
            peer.until_gives(false).await;
            peer.torrents.set_limits(Limits::default());
        };
        tokio::join!(reading, limited);
        // Nothing is fetched any more.
        peer.until_gives(true).await;
        *peer.host.slow.lock().unwrap() = Duration::ZERO;
    };
    tokio::join!(giving, fetching);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_that_is_added_is_listed_before_anybody_answers_and_looked_for_after_a_restart() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(TorrentOptions { online: false, ..options() }, setup.here.path());
    let link = Magnet { name: Some("a/film".to_owned()), ..setup.seeder.magnet() };
    peer.torrents.add_link(&link).unwrap();
    let names = |peer: &Peer| -> Vec<_> {
        peer.torrents.names().into_iter().map(|(name, _)| name.into_string().unwrap()).collect()
    };
    assert_eq!(names(&peer), ["a_film"]);
    assert_eq!(peer.torrents.status(hash).unwrap().state, TorrentState::Searching);
    peer.stop().await;

    let peer = Peer::open(options(), setup.here.path());
    assert_eq!(names(&peer), ["a_film"]);
    peer.torrents.go_on();
    // Joins the search that runs.
    let metainfo = timeout(PATIENCE, peer.torrents.metainfo(hash)).await.unwrap().unwrap();
    assert_eq!(metainfo.files, setup.seeder.metainfo.files);
    assert_eq!(names(&peer), ["a_film", "torrent.torrent"]);
    assert_eq!(peer.torrents.status(hash).unwrap().state, TorrentState::Idle);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_seeds_what_is_given_already_is_told_of_it_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::open(options(), dir.path());
    let (text, source) = published(&peer, &[("a", b"bytes")]);
    let hash = peer.torrents.publish(text, source).await.unwrap().hash;
    let told = || {
        let told = peer.host.told.lock().unwrap();
        told.iter().filter(|event| matches!(event, TorrentEvent::State(_))).count()
    };
    let before = told();
    peer.torrents.seed(hash).await.unwrap();
    assert_eq!(told(), before + 1);
    peer.stop().await;
}

/// What the seeder has, as a file that somebody may have.
fn description(setup: &Setup) -> Vec<u8> {
    let other = bytes_of::noise(BIG, 9);
    let files: &[(&str, &[u8])] = &[
        ("film.mkv", &setup.big),
        ("other/film.mkv", &other),
        ("read me", b"hello\n"),
        ("empty", b""),
    ];
    seeder::torrent_of("torrent", files, PIECE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_that_runs_hears_of_peers_and_of_none_in_the_own_network_unless_that_is_allowed()
{
    let setup = setup().await;
    let (hash, text) = (setup.seeder.metainfo.hash, description(&setup));
    for near in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let options = TorrentOptions { allow_private_addresses: near, ..options() };
        let peer = Peer::open(options, dir.path());
        peer.torrents.keep(&text).unwrap();
        let film = peer.file(hash, "film.mkv").await;
        let range = ByteRange::at(0, 100_000);
        let reading = tokio::spawn(async move { film.read(1, range).await });
        peer.until_waited_for(hash).await;
        // The session has to run for it to hear anything.
        peer.poll(|| peer.torrents.port(hash).is_some()).await;
        let nowhere = "127.0.0.1:0".parse().unwrap();
        peer.torrents.meet(hash, &[nowhere, setup.seeder.address()]);
        if near {
            let read = timeout(PATIENCE, reading).await.unwrap().unwrap().unwrap();
            assert!(read == setup.big[..100_000]);
            assert_eq!(peer.torrents.met().of(hash), [setup.seeder.address()]);
            let traffic = peer.torrents.traffic_by_peer();
            let from = traffic.iter().find(|from| from.peer == setup.seeder.address()).unwrap();
            assert!(from.named && from.received >= 100_000 && from.sent == 0, "{from:?}");
        } else {
            assert!(peer.torrents.met().of(hash).is_empty());
            reading.abort();
        }
        // Of a private torrent nobody but its trackers names peers.
        let end = text.len() - 2;
        let private = [&text[..end], b"7:privatei1e", &text[end..]].concat();
        let private = peer.torrents.keep(&private).unwrap();
        peer.torrents.meet(private.hash, &[setup.seeder.address()]);
        assert!(private.private && peer.torrents.met().of(private.hash).is_empty());
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_somebody_says_is_a_description_is_kept_where_it_has_the_hash() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let knows = Peer::open(options(), one.path());
    knows.torrents.keep(&description(&setup)).unwrap();
    let info = knows.torrents.info(hash, 1 << 20).unwrap();
    assert!(knows.torrents.info(hash, info.len() / 2 - 1).is_none());
    assert!(knows.torrents.info(InfoHash([9; 20]), 1 << 20).is_none());
    let learns = Peer::open(options(), other.path());
    for (said, of) in [(&info[..], InfoHash([9; 20])), (&info[1..], hash), (b"de", hash)] {
        learns.torrents.keep_info(of, said).unwrap_err();
    }
    let extra = [&info[..info.len() - 1], b"1:zi1ee"].concat();
    let refused = learns.torrents.keep_info(hash, &extra).unwrap_err();
    assert!(matches!(refused, TorrentError::Metainfo(MetainfoError::Other(_))), "{refused}");
    assert!(learns.torrents.known_torrents().is_empty());
    let kept = learns.torrents.keep_info(hash, &info).unwrap();
    assert_eq!((kept.hash, &kept.trackers[..]), (hash, &[][..]));
    knows.stop().await;
    learns.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_that_nobody_answers_is_looked_for_until_it_is_paused_or_removed() {
    let here = tempfile::tempdir().unwrap();
    let peer = Peer::open(options(), here.path());
    let hash = InfoHash([9; 20]);
    peer.torrents.add_link(&Magnet::of(hash)).unwrap();
    for remove in [false, true] {
        let mut waiting = Box::pin(peer.torrents.metainfo(hash));
        assert!(futures::poll!(&mut waiting).is_pending());
        match remove {
            false => peer.torrents.pause(hash).await.unwrap(),
            true => drop(peer.torrents.remove(hash).await.unwrap()),
        }
        let told = timeout(PATIENCE, waiting).await.unwrap();
        assert!(matches!(told, Err(TorrentError::Removed(_))), "{told:?}");
    }
    assert!(peer.torrents.statuses().is_empty());
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_waits_for_a_description_gets_one_that_is_dropped_meanwhile() {
    let here = tempfile::tempdir().unwrap();
    let peer = Peer::open(options(), here.path());
    let text = seeder::torrent_of("film", &[("a", b"bytes")], PIECE);
    let hash = Metainfo::parse(&text).unwrap().hash;
    let mut waiting = Box::pin(peer.torrents.metainfo(hash));
    assert!(futures::poll!(&mut waiting).is_pending());
    peer.torrents.keep(&text).unwrap();
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap().hash, hash);
    peer.stop().await;
}
