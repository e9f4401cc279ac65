//! What strangers write into torrents and links, against a real daemon.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use chiral::torrent::Metainfo;

use crate::{
    harness::{Daemon, Setup, noise, run},
    torrents::seeder,
};

/// Mutations that are dropped into the mount, and that are added by the command.
const DROPPED: u64 = 400;
const ADDED: u64 = 60;

fn impatient() -> Setup {
    let config = "[torrent]\nlisten = \"127.0.0.1:0\"\n[download]\nlookup_timeout = \"1s\"\n";
    Setup { args: Vec::new(), config: config.to_owned() }
}

fn description() -> Vec<u8> {
    let (film, note) = (noise(400_000, 1), noise(300, 2));
    seeder::torrent_of("a film", &[("film.mkv", &film), ("sub/note", &note)], 16 << 10)
}

/// A description with some of its bytes changed, left out, put in or cut off.
fn mutated(text: &[u8], seed: u64) -> Vec<u8> {
    let chosen = noise(160, seed);
    let mut chosen = chosen.chunks(8).map(|eight| u64::from_le_bytes(eight.try_into().unwrap()));
    let mut next = |below: usize| usize::try_from(chosen.next().unwrap() % below as u64).unwrap();
    let mut text = text.to_vec();
    // Where the structure is: behind that are hashes, of which any bytes will do.
    let structure = text.len().min(260);
    for _ in 0..=next(2) {
        let at = next(structure.min(text.len()));
        match next(4) {
            0 => text[at] = b"0123456789ideln:-/.\0\xff"[next(21)],
            1 => drop(text.remove(at)),
            2 => text.insert(at, b"0129ile:."[next(9)]),
            _ => text.truncate(at + 1),
        }
    }
    text
}

/// No name of any torrent leads out of it.
fn tame(daemon: &Daemon, least: usize) {
    let torrents = daemon.json(&["torrent", "list"]);
    let torrents = torrents.as_array().unwrap();
    assert!(torrents.len() >= least, "{}", torrents.len());
    for torrent in torrents {
        let hash = torrent["infohash"].as_str().unwrap();
        for entry in daemon.json(&["ls", hash]).as_array().unwrap() {
            let name = entry["name"].as_str().unwrap();
            assert!(
                !name.is_empty() && !name.contains('/') && name != ".." && name != ".",
                "{name:?}"
            );
        }
    }
}

/// Everything below a folder but for the data of the daemon and its mount.
fn outside(daemon: &Daemon) -> BTreeSet<PathBuf> {
    fn walk(dir: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_name() != "mnt" && entry.file_name() != "data" {
                found.insert(entry.path());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), found);
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(daemon.scratch(), &mut found);
    found
}

#[test]
fn mutated_descriptions_are_taken_or_refused_and_the_daemon_goes_on() {
    let daemon = Daemon::start(&impatient());
    let text = description();
    let file = daemon.scratch().join("mutated.torrent");
    fs::write(&file, &text).unwrap();
    let before = outside(&daemon);
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..DROPPED {
        let bytes = mutated(&text, seed);
        match fs::write(daemon.path(&format!("torrents/{seed}.torrent")), &bytes) {
            // Closing it tells, which the standard library does not hear; whether it is there tells, too.
            Ok(()) if Metainfo::parse(&bytes).is_ok() => taken += 1,
            Ok(()) => refused += 1,
            Err(error) => panic!("{seed}: {error}"),
        }
    }
    assert!(taken > 10 && refused > 100, "{taken} taken, {refused} refused");
    for seed in DROPPED..DROPPED + ADDED {
        let bytes = mutated(&text, seed);
        fs::write(&file, &bytes).unwrap();
        let added = daemon.chiral(&["torrent", "add", file.to_str().unwrap()]);
        let good = Metainfo::parse(&bytes).is_ok();
        assert_eq!(added.status.success(), good, "{seed}: {added:?}");
        assert!(good || !added.stderr.is_empty());
    }
    tame(&daemon, 5);
    assert_eq!(outside(&daemon), before);
    // And what is right still works.
    fs::write(daemon.path("torrents/right.torrent"), &text).unwrap();
    let hash = Metainfo::parse(&text).unwrap().hash.to_string();
    assert_eq!(fs::read_dir(daemon.path(&hash)).unwrap().count(), 2);
    daemon.stop();
}

#[test]
fn names_that_lead_out_of_a_torrent_are_tamed() {
    let daemon = Daemon::start(&impatient());
    let before = outside(&daemon);
    let file = daemon.scratch().join("x.torrent");
    let in_files = |path: &str| format!("5:filesld6:lengthi5e4:pathl{path}eee4:name4:name");
    // librqbit does not fetch those: they are refused before anything is kept of them.
    let refused = ["2:..2:..4:evil", "9:/tmp/evil", "4:a/..4:evil"].map(in_files);
    let whole = ["2:..", "9:/tmp/evil", "7:../evil", "0:"];
    let whole = whole.map(|name| format!("6:lengthi5e4:name{name}"));
    let tamed = ["4:a\0b ", "1:.4:evil", "0:4:evil"].map(in_files);
    let refused = refused.into_iter().chain(whole).map(|names| (names, false));
    for (names, good) in refused.chain(tamed.map(|names| (names, true))) {
        let pieces = "20:aaaaaaaaaaaaaaaaaaaa";
        let text = format!("d4:infod{names}12:piece lengthi16384e6:pieces{pieces}ee");
        fs::write(&file, &text).unwrap();
        let added = daemon.chiral(&["torrent", "add", file.to_str().unwrap()]);
        assert_eq!(added.status.success(), good, "{names:?} {added:?}");
        let copied = run(Command::new("cp").arg(&file).arg(daemon.path("torrents/")));
        assert_eq!(copied.status.success(), good, "{names:?}");
    }
    fs::remove_file(file).unwrap();
    tame(&daemon, 3);
    for name in fs::read_dir(daemon.path("torrents")).unwrap().map(|e| e.unwrap().file_name()) {
        assert!(name != "..", "{name:?}");
    }
    assert_eq!(outside(&daemon), before);
    assert!(!Path::new("/tmp/evil").exists());
    daemon.stop();
}

#[test]
fn links_that_are_none_or_lead_to_nobody_are_told_apart() {
    let daemon = Daemon::start(&impatient());
    let hash = "cab507494d02ebb1178b38f2e9d7be299c86b862";
    for (link, what) in [
        ("magnet:", "nothing"),
        ("magnet:?dn=x", "no hash"),
        ("magnet:?xt=urn:btih:12", "a short hash"),
        ("magnet:?xt=urn:btih:zzb507494d02ebb1178b38f2e9d7be299c86b862", "no hexadecimal"),
        (
            "magnet:?xt=urn:btmh:1220cab507494d02ebb1178b38f2e9d7be299c86b862cab507494d02ebb1178b38f2",
            "a hash of the second version",
        ),
    ] {
        for command in [&["ls", link][..], &["cat", link], &["torrent", "add", link]] {
            let refused = daemon.chiral(command);
            assert_eq!(refused.status.code(), Some(2), "{what}: {command:?} {refused:?}");
        }
        let dropped = daemon.scratch().join("link.txt");
        fs::write(&dropped, link).unwrap();
        let copied = run(Command::new("cp").arg(&dropped).arg(daemon.path("torrents/")));
        assert!(!copied.status.success(), "{what}");
        let absent = fs::metadata(daemon.path(link)).unwrap_err();
        assert_eq!(absent.kind(), std::io::ErrorKind::NotFound, "{what}");
    }
    // Nobody has it: not in time, and never absent.
    let link = format!("magnet:?xt=urn:btih:{hash}&x.pe=127.0.0.1:1");
    assert_eq!(daemon.chiral(&["ls", &link]).status.code(), Some(3));
    let nobody = fs::read_dir(daemon.path(&link)).unwrap_err();
    assert_eq!(nobody.raw_os_error(), Some(nix::libc::ETIMEDOUT));
    // One whose description is here and whose bytes nobody has.
    let text = description();
    fs::write(daemon.path("torrents/film.torrent"), &text).unwrap();
    let stalled = fs::read(daemon.path("torrents/a film/film.mkv")).unwrap_err();
    assert_eq!(stalled.raw_os_error(), Some(nix::libc::EIO));
    daemon.stop();
}
