//! What goes when torrents take too much disk.

use super::*;
use crate::torrent::TorrentPin;

/// Reads all of a film through a file that is closed then.
async fn watch(peer: &Peer, seeder: &Seeder) -> Vec<u8> {
    peer.torrents.learn(&seeder.magnet());
    let film = peer.file(seeder.metainfo.hash, "film.mkv").await;
    let bytes = read_all(&film).await;
    film.close_reader(1);
    bytes
}

fn here(peer: &Peer, seeder: &Seeder) -> u64 {
    peer.torrents.status(seeder.metainfo.hash).unwrap().bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn torrents_over_the_limit_go_whole_but_for_what_is_open_pinned_or_seeded() {
    let dir = tempfile::tempdir().unwrap();
    let (mut seeders, mut films) = (Vec::new(), Vec::new());
    for n in 0..4 {
        let (there, film) = (dir.path().join(n.to_string()), bytes_of::noise(BIG, n));
        seeders.push(Seeder::start(&there, &[("film.mkv", &film), ("x", b"1")], PIECE).await);
        films.push(film);
    }
    let limited = TorrentOptions { cache_limit: Some(0), min_free: Some(0), ..options() };
    let peer = Peer::open(limited, &dir.path().join("here"));
    for (seeder, film) in seeders.iter().zip(&films) {
        assert!(watch(&peer, seeder).await == *film);
    }
    let [idle, open, pinned, seeded] = [0, 1, 2, 3].map(|n| seeders[n].metainfo.hash);
    let held = peer.file(open, "film.mkv").await;
    peer.torrents.pin(pinned, TorrentPin { node: 0, name: String::new(), only: None }).unwrap();
    peer.torrents.seed(seeded).await.unwrap();

    // Whoever has closed a file is let go of in the background.
    let mut gone = Vec::new();
    let going = async {
        while gone.is_empty() {
            gone = peer.torrents.make_room().await.unwrap();
        }
    };
    timeout(PATIENCE, going).await.unwrap();
    assert_eq!(gone, [idle]);
    assert_eq!(here(&peer, &seeders[0]), 0);
    assert!(seeders[1..].iter().all(|seeder| here(&peer, seeder) >= BIG as u64));
    assert!(held.cached().complete);
    let folder = dir.path().join("here/torrents").join(idle.to_string());
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(
        names.into_iter().all(|name| ["about.json", "metainfo"].map(Into::into).contains(&name))
    );
    // It is there as before, and comes again.
    assert!(watch(&peer, &seeders[0]).await == films[0]);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_read_longest_ago_goes_first_and_no_more_than_has_to() {
    let dir = tempfile::tempdir().unwrap();
    let films = [bytes_of::noise(BIG, 1), bytes_of::noise(BIG, 2)];
    let first = Seeder::start(&dir.path().join("1"), &[("film.mkv", &films[0])], PIECE).await;
    let other = Seeder::start(&dir.path().join("2"), &[("film.mkv", &films[1])], PIECE).await;
    let limit = Some(BIG as u64 * 3 / 2);
    let limited = TorrentOptions { cache_limit: limit, min_free: Some(0), ..options() };
    let peer = Peer::open(limited, &dir.path().join("here"));
    watch(&peer, &first).await;
    watch(&peer, &other).await;
    // Read once more after the other.
    watch(&peer, &first).await;
    peer.stop().await;

    let limited =
        TorrentOptions { cache_limit: limit, min_free: Some(0), online: false, ..options() };
    let peer = Peer::open(limited, &dir.path().join("here"));
    assert_eq!(peer.torrents.make_room().await.unwrap(), [other.metainfo.hash]);
    assert_eq!(peer.torrents.make_room().await.unwrap(), []);
    assert_eq!((here(&peer, &first), here(&peer, &other)), (BIG as u64, 0));
    peer.stop().await;
}
