//! Torrents between two daemons: many at once, and over a kill.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use crate::harness::{Daemon, Setup, eventually, noise};

const FILES: usize = 40;
const TORRENTS: usize = 20;

fn setup() -> Setup {
    Setup { args: Vec::new(), config: "[torrent]\nlisten = \"127.0.0.1:0\"\n".to_owned() }
}

/// Seeds a path; its link, which names the daemon, and its info hash.
fn seed(daemon: &Daemon, path: &Path) -> (String, String) {
    let seeded = daemon.json(&["seed", path.to_str().unwrap()]);
    (seeded["magnet"].as_str().unwrap().to_owned(), seeded["infohash"].as_str().unwrap().to_owned())
}

/// The directory of a torrent in a mount.
fn directory(daemon: &Daemon, link: &str) -> PathBuf {
    daemon.path(&link.replace('/', "%2F"))
}

#[test]
fn forty_files_of_a_torrent_and_twenty_torrents_are_read_at_once() {
    let giver = Daemon::start(&setup());
    let content = |n: usize| noise(200_000 + n, u64::try_from(n).unwrap());
    let tree = giver.scratch().join("tree");
    fs::create_dir(&tree).unwrap();
    for n in 0..FILES {
        fs::write(tree.join(format!("{n:02}")), content(n)).unwrap();
    }
    let (of_tree, _) = seed(&giver, &tree);
    let reader = Daemon::start(&setup());
    let mut wanted: Vec<_> = (0..FILES)
        .map(|n| (directory(&reader, &of_tree).join(format!("{n:02}")), content(n)))
        .collect();
    for n in FILES..FILES + TORRENTS {
        let path = giver.scratch().join(format!("alone {n}"));
        fs::write(&path, content(n)).unwrap();
        let (link, _) = seed(&giver, &path);
        wanted.push((directory(&reader, &link).join(path.file_name().unwrap()), content(n)));
    }
    thread::scope(|scope| {
        for (path, bytes) in wanted {
            scope.spawn(move || assert!(fs::read(&path).unwrap() == bytes, "{}", path.display()));
        }
    });
    reader.stop();
    giver.stop();
}

#[test]
fn a_kill_amid_a_torrent_costs_what_was_not_noted_and_no_more() {
    let giver = Daemon::start(&setup());
    let film = noise(6_000_000, 7);
    let path = giver.scratch().join("film");
    fs::write(&path, &film).unwrap();
    let (link, hash) = seed(&giver, &path);
    giver.json(&["torrent", "limit", "--upload", "1 MiB"]);
    let reader = Daemon::start(&setup());
    let there = directory(&reader, &link).join("film");
    let reading = thread::spawn(move || fs::read(there));
    let noted = reader.data().join(format!("torrents/session/{hash}.bitv"));
    eventually("a note of some pieces", || {
        fs::read(&noted).ok()?.iter().any(|bits| *bits != 0).then_some(())
    });
    let scratch = reader.kill();
    assert!(reading.join().unwrap().is_err(), "all of it came before the kill");
    let of =
        |reader: &Daemon, what: &str| reader.json(&["torrent", "list"])[0][what].as_u64().unwrap();

    giver.json(&["torrent", "limit", "--upload", "0"]);
    let reader = Daemon::start_in(scratch, &setup());
    let believed = of(&reader, "bytes");
    assert!(believed > 0);
    assert!(fs::read(directory(&reader, &link).join("film")).unwrap() == film);
    // Nothing of what was noted was fetched again.
    assert_eq!((of(&reader, "bytes"), of(&reader, "received")), (6_000_000, 6_000_000 - believed));
    reader.stop();
    giver.stop();
}
