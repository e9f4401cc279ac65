//! Torrents and links as other programs take them, against a real daemon: odd names, selections, texts of links.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, path::Path, process::Command};

use self::raw_seeder::{RawSeeder, RawTorrent, text};
use crate::harness::{Daemon, Setup, noise, run, sh};

#[path = "../support/raw_seeder.rs"]
mod raw_seeder;

/// Nothing here ends because time runs out.
fn patient() -> Setup {
    let config = "[torrent]\nlisten = \"127.0.0.1:0\"\n[download]\nlookup_timeout = \"1h\"\n";
    Setup { args: Vec::new(), config: config.to_owned() }
}

/// A torrent, and its files by the names that are shown.
type Shown = (RawTorrent, Vec<(&'static str, Vec<u8>)>);

fn odd() -> Vec<Shown> {
    let long = |last: &str| format!("{}{last}.flac", "Л".repeat(140)).into_bytes();
    let (one, two) = (noise(40_000, 1), noise(300, 2));
    let cut = ["Л".repeat(125), "Л".repeat(119)];
    let cut = [format!("{}.flac", cut[0]).leak(), format!("{}.1.flac", cut[1]).leak()];
    let twice = |names: [&[u8]; 2], shown: [&'static str; 2]| {
        let files: [(&[&[u8]], &[u8]); 2] = [(&[names[0]], &one), (&[names[1]], &two)];
        let torrent = RawTorrent::of(b"odd", &files, 16_383);
        (torrent, vec![(shown[0], one.clone()), (shown[1], two.clone())])
    };
    let (long_one, long_two) = (long("1"), long("2"));
    vec![
        twice([&long_one, &long_two], [&*cut[0], &*cut[1]]),
        twice([b"a\nb\x1b[2J", b" "], ["a_b_[2J", " "]),
        twice([b"A", b"a"], ["A", "a"]),
    ]
}

/// Well-formed metainfo that librqbit does not fetch, with a part of the reason.
fn unfetchable() -> Vec<(RawTorrent, &'static str)> {
    let bytes = noise(40_000, 6);
    let of = |names: &[&[u8]]| {
        let paths: Vec<[&[u8]; 1]> = names.iter().map(|name| [*name]).collect();
        let files: Vec<(&[&[u8]], &[u8])> =
            paths.iter().map(|path| (&path[..], &bytes[..])).collect();
        RawTorrent::of(b"odd", &files, 1 << 14)
    };
    vec![
        (of(&[b"x", b"x"]), "duplicate"),
        (of(&[b"AC/DC.mp3"]), "separator"),
        (of(&[b"a\\b"]), "separator"),
        (of(&[b"x", b".."]), "traversal"),
        (of(&[b"x", b""]), "no name"),
        (RawTorrent::single(b"System R1/beta.iso", &bytes, 1 << 14), "separator"),
    ]
}

fn check(daemon: &Daemon, below: &str, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = daemon.path(below).join(OsStr::from_bytes(name.as_bytes()));
        assert!(fs::read(&path).unwrap() == *bytes, "{}", path.display());
    }
    let found = sh(&format!("find 'mnt/{below}/' -type f -printf x"), daemon.scratch());
    assert_eq!(found.len(), files.len(), "{below}");
}

#[test]
fn torrents_with_odd_names_are_read_by_link_and_file() {
    let all = odd();
    let torrents: Vec<_> = all.iter().map(|(torrent, _)| torrent.clone()).collect();
    let seeder = RawSeeder::start(&torrents);
    let (by_link, by_file) = (Daemon::start(&patient()), Daemon::start(&patient()));
    for (number, (torrent, files)) in all.iter().enumerate() {
        check(&by_link, &seeder.link(torrent), files);
        // The description alone, with a newline behind its end; the link tells where the bytes are.
        let text = [&torrent.file()[..], b"\n"].concat();
        let file = by_file.scratch().join(format!("{number}.torrent"));
        fs::write(&file, &text).unwrap();
        sh(&format!("cp {number}.torrent mnt/torrents/"), by_file.scratch());
        assert_eq!(fs::read(by_file.path(&format!("torrents/{number}.torrent"))).unwrap(), text);
        check(&by_file, &seeder.link(torrent), files);
    }
    // They are there offline after a restart.
    let scratch = by_link.stop();
    let offline = Setup { args: vec!["--offline".into()], ..patient() };
    let by_link = Daemon::start_in(scratch, &offline);
    all.iter().for_each(|(torrent, files)| check(&by_link, &torrent.hash(), files));
    by_link.stop();
    by_file.stop();
}

#[test]
fn unfetchable_torrents_are_refused_with_a_reason() {
    let all = unfetchable();
    let torrents: Vec<_> = all.iter().map(|(torrent, _)| torrent.clone()).collect();
    let seeder = RawSeeder::start(&torrents);
    let daemon = Daemon::start(&patient());
    for (torrent, reason) in &all {
        let refused = daemon.chiral(&["ls", &seeder.link(torrent)]);
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(1) && text.contains(reason), "{reason}: {text}");
        let file = daemon.scratch().join("odd.torrent");
        fs::write(&file, torrent.file()).unwrap();
        let copied = run(Command::new("cp").arg(&file).arg(daemon.path("torrents/")));
        let text = String::from_utf8_lossy(&copied.stderr);
        assert!(text.contains("Invalid argument"), "{reason}: {text}");
    }
    daemon.stop();
}

#[test]
fn a_torrent_of_170_000_files_is_listed_and_read() {
    let names: Vec<String> = (0..170_000).map(|n| format!("{n:07}.jpg")).collect();
    let bytes = noise(names.len(), 3);
    let paths: Vec<[&[u8]; 2]> =
        names.iter().map(|name| [&b"pictures"[..], name.as_bytes()]).collect();
    let files: Vec<(&[&[u8]], &[u8])> =
        paths.iter().zip(bytes.chunks(1)).map(|(path, byte)| (&path[..], byte)).collect();
    let torrent = RawTorrent::of(b"many", &files, 1 << 16);
    let seeder = RawSeeder::start(std::slice::from_ref(&torrent));
    let daemon = Daemon::start(&patient());
    let link = seeder.link(&torrent);
    assert_eq!(fs::read_dir(daemon.path(&link).join("pictures")).unwrap().count(), names.len());
    let path = daemon.path(&link).join("pictures/0123456.jpg");
    assert_eq!(fs::read(path).unwrap(), bytes[123_456..123_457]);
    daemon.stop();
}

#[test]
fn a_refused_description_tells_its_reason_at_once() {
    let mut wrong = RawTorrent::single(b"film", &noise(50_000, 4), 1 << 14);
    let length = b"12:piece lengthi16384e";
    let at = wrong.info.windows(length.len()).position(|window| window == length).unwrap();
    wrong.info.splice(at..at + length.len(), *b"12:piece lengthi0e");
    // Only the reader of this program knows that one.
    let mut large = RawTorrent::single(b"film", &noise(50_000, 5), 1 << 14);
    large.info.splice(at..at + length.len(), *b"12:piece lengthi2147483648e");
    let hashes = large.info.windows(8).position(|window| window == b"6:pieces").unwrap();
    large.info.splice(hashes.., [b"6:pieces", &*text(&[7; 20]), b"e"].concat());
    let seeder = RawSeeder::start(std::slice::from_ref(&large));
    let mut daemon = Daemon::start(&patient());
    for restarted in [false, true] {
        let link = seeder.link(&large);
        let told = daemon.chiral(&["ls", &link]);
        let told = (told.status.code(), String::from_utf8(told.stderr).unwrap());
        assert_eq!(told.0, Some(1), "{told:?}");
        assert!(told.1.contains("piece length"), "{told:?}");
        let error = fs::read_dir(daemon.path(&link)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EINVAL), "{error}");
        let listed = daemon.json(&["torrent", "list"]);
        let mut listed = listed.as_array().unwrap().iter();
        let found = listed.find(|row| row["infohash"] == large.hash().as_str()).unwrap();
        assert_eq!(found["state"], "error");
        assert!(found["error"].as_str().unwrap().contains("piece length"), "{found}");
        if !restarted {
            daemon = Daemon::start_in(daemon.stop(), &patient());
        }
    }
    assert!(daemon.chiral(&["torrent", "rm", &large.hash()]).status.success());
    assert!(daemon.log().contains("piece length"), "{}", daemon.log());
    // As a file it is refused by close(2).
    let file = daemon.scratch().join("wrong.torrent");
    fs::write(&file, wrong.file()).unwrap();
    let copied = run(Command::new("cp").arg(&file).arg(daemon.path("torrents/")));
    assert!(String::from_utf8_lossy(&copied.stderr).contains("Invalid argument"), "{copied:?}");
    daemon.stop();
}

#[test]
fn a_link_selects_files_for_get_and_pins() {
    let bytes: Vec<Vec<u8>> = (0..5).map(|n| noise(40_000, n)).collect();
    let paths: [&[&[u8]]; 5] = [&[b"a"], &[b"d", b"b"], &[b"c"], &[b"d", b"e"], &[b"g", b"f"]];
    let files: Vec<(&[&[u8]], &[u8])> =
        paths.iter().zip(&bytes).map(|(path, bytes)| (*path, &bytes[..])).collect();
    let torrent = RawTorrent::of(b"five", &files, 1 << 14);
    let seeder = RawSeeder::start(std::slice::from_ref(&torrent));
    let daemon = Daemon::start(&patient());
    let link = format!("{}&so=0,3-3", seeder.link(&torrent));
    let listed = daemon.chiral(&["ls", &link]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let rows: Vec<_> = listed.lines().map(|row| row.contains("(not selected)")).collect();
    assert_eq!(rows, [false, true, false, true], "{listed}");
    let got = |link: &str, to: &str| {
        let to = daemon.scratch().join(to);
        let got = daemon.chiral(&["get", link, "-o", to.to_str().unwrap()]);
        (got.status.code(), String::from_utf8(got.stderr).unwrap())
    };
    assert_eq!(got(&link, "some"), (Some(0), String::new()));
    let found = sh("cd some && find . -type f | sort", daemon.scratch());
    assert_eq!(found, "./a\n./d/e\n");
    assert!(fs::read(daemon.scratch().join("some/d/e")).unwrap() == bytes[3]);
    // A path is what is wanted, whatever the link selects; one that selects nothing is an error.
    assert_eq!(got(&format!("{link}/g"), "path").0, Some(0));
    assert!(fs::read(daemon.scratch().join("path/f")).unwrap() == bytes[4]);
    let none = got(&format!("{}&so=9", seeder.link(&torrent)), "none");
    assert!(none.0 == Some(1) && none.1.contains("selects no file"), "{none:?}");

    let pinned = daemon.json(&["pin", "add", &link]);
    assert_eq!((&pinned["only"], &pinned["complete"]), (&"0,3".into(), &true.into()));
    // Pieces lie across files: of one that is not selected some bytes may be here, and not all.
    let state = daemon.xattr(&format!("{}/c", torrent.hash()), "user.chiral.state");
    assert_ne!(state, "complete");
    let shown = String::from_utf8(daemon.chiral(&["pin", "ls"]).stdout).unwrap();
    assert!(shown.contains("files 0,3"), "{shown}");
    // All of it takes the place of some of it.
    let pinned = daemon.json(&["pin", "add", &torrent.hash()]);
    assert_eq!((&pinned["only"], &pinned["complete"]), (&serde_json::Value::Null, &true.into()));
    assert_eq!(daemon.xattr(&format!("{}/c", torrent.hash()), "user.chiral.state"), "complete");
    assert_eq!(daemon.json(&["pin", "ls"]).as_array().unwrap().len(), 1);
    daemon.stop();
}

#[test]
fn texts_of_links_are_taken_in_by_mount_and_command() {
    let hashes: Vec<String> = (1..=6).map(|n| format!("{n:040x}")).collect();
    let daemon = Daemon::start(&patient());
    let list = format!(
        "\u{feff}# films\r\nmagnet:?xt=urn:btih:{}&dn=one\r\n\r\n{}\r\n",
        hashes[0], hashes[1]
    );
    let shortcut = format!("[InternetShortcut]\r\nURL=magnet:?xt=urn:btih:{}\r\n", hashes[2]);
    let desktop = format!("[Desktop Entry]\nType=Link\nURL=magnet:?xt=urn:btih:{}\n", hashes[3]);
    let more = format!("{}\nmagnet:?xt=urn:btih:{}\n", hashes[4], hashes[5]);
    for (name, text) in
        [("list.txt", &list), ("a.url", &shortcut), ("a.desktop", &desktop), ("more.txt", &more)]
    {
        fs::write(daemon.scratch().join(name), text).unwrap();
    }
    sh("cp list.txt a.url a.desktop mnt/torrents/", daemon.scratch());
    let added =
        daemon.json(&["torrent", "add", daemon.scratch().join("more.txt").to_str().unwrap()]);
    assert_eq!(added["infohash"], hashes[4].as_str());
    assert_eq!(added["others"][0]["infohash"], hashes[5].as_str());
    let listed = daemon.json(&["torrent", "list"]);
    let mut found: Vec<_> =
        listed.as_array().unwrap().iter().map(|row| row["infohash"].as_str().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, hashes);
    // One wrong line is told by its number, and nothing of the text is taken.
    fs::write(daemon.scratch().join("wrong.txt"), format!("{:040x}\nsee above\n", 7)).unwrap();
    let copied =
        run(Command::new("cp").current_dir(daemon.scratch()).args(["wrong.txt", "mnt/torrents/"]));
    assert!(String::from_utf8_lossy(&copied.stderr).contains("Invalid argument"), "{copied:?}");
    assert!(daemon.log().contains("line 2"), "{}", daemon.log());
    assert_eq!(daemon.json(&["torrent", "list"]).as_array().unwrap().len(), hashes.len());
    daemon.stop();
}

#[test]
fn a_description_moved_in_comes_out_byte_for_byte() {
    let torrent = RawTorrent::single(b"film", &noise(50_000, 6), 1 << 14);
    let seeder = RawSeeder::start(std::slice::from_ref(&torrent));
    let daemon = Daemon::start(&patient());
    // A peer has given a description of it already.
    let film = daemon.path(&seeder.link(&torrent)).join("film");
    assert!(fs::read(&film).unwrap() == torrent.bytes);
    let layers = [b"d", &*text(&[1; 32]), &*text(&[2; 32]), b"e"].concat();
    let own = [
        b"d7:comment8:about it10:created by2:me13:creation datei1700000000e4:info",
        &*torrent.info,
        b"12:piece layers",
        &*layers,
        b"1:z3:odde\n",
    ]
    .concat();
    fs::write(daemon.scratch().join("mine.torrent"), &own).unwrap();
    sh("mv mine.torrent mnt/torrents/", daemon.scratch());
    assert!(fs::read(daemon.path("torrents/mine.torrent")).unwrap() == own);
    let daemon = Daemon::start_in(daemon.stop(), &patient());
    assert!(fs::read(daemon.path("torrents/mine.torrent")).unwrap() == own);
    assert!(fs::read(daemon.path(&torrent.hash()).join("film")).unwrap() == torrent.bytes);
    daemon.stop();
}

#[test]
fn a_removed_torrent_is_there_again_at_once() {
    let bytes = noise(200_000, 7);
    let torrent = RawTorrent::of(b"five", &[(&[b"film"], &bytes)], 1 << 15);
    let seeder = RawSeeder::start(std::slice::from_ref(&torrent));
    let daemon = Daemon::start(&patient());
    let link = seeder.link(&torrent);
    for by_mount in [true, false, true, false] {
        assert!(fs::read(daemon.path(&link).join("film")).unwrap() == bytes);
        let to = daemon.scratch().join("film");
        let got = daemon.chiral(&["get", &format!("{link}/film"), "-o", to.to_str().unwrap()]);
        assert!(got.status.success() && fs::read(to).unwrap() == bytes, "{got:?}");
        match by_mount {
            true => fs::remove_file(daemon.path("torrents/five.torrent")).unwrap(),
            false => assert!(daemon.chiral(&["torrent", "rm", &torrent.hash()]).status.success()),
        }
        assert!(daemon.json(&["torrent", "list"]).as_array().unwrap().is_empty());
    }
    daemon.stop();
}

#[test]
fn links_that_are_shown_are_escaped() {
    let torrent = RawTorrent::single(b"a film & more", &noise(50_000, 8), 1 << 14);
    let seeder = RawSeeder::start(std::slice::from_ref(&torrent));
    let daemon = Daemon::start(&patient());
    // What something has cut at a slash, and what nobody has escaped.
    let odd = format!("{}&tr=udp:&tr=http://t.example/a?k=1&ws=http", seeder.link(&torrent));
    assert!(daemon.chiral(&["ls", &odd]).status.success());
    let seeded = daemon.json(&["seed", &torrent.hash()]);
    let link = seeded["magnet"].as_str().unwrap();
    assert!(link.contains("&tr=http%3A%2F%2Ft.example%2Fa%3Fk%3D1&"), "{link}");
    assert!(link.contains("&dn=a%20film%20%26%20more&"), "{link}");
    assert!(!link.contains("udp") && !link.contains("ws="), "{link}");
    assert!(!Path::new(link).to_str().unwrap()[8..].contains(['/', ' ', '+']), "{link}");
    daemon.stop();
}
