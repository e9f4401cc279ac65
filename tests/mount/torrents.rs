//! Torrents behind the real kernel, from a foreign seeder on loopback.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    time::Duration,
};

use chiral::{
    node::{Magnet, NodeOptions},
    torrent::{InfoBuilder, Metainfo},
};
use tokio::runtime::Runtime;

use self::seeder::Seeder;
use crate::harness::{can_mount, errno, mounted_in, noise, xattr};

#[path = "../support/seeder.rs"]
mod seeder;

const BIG: usize = 3_000_000;

fn online(options: &mut NodeOptions) {
    options.torrent.online = true;
    options.torrent.lookup_timeout = Duration::from_secs(20);
}

struct Setup {
    big: Vec<u8>,
    seeder: Seeder,
    runtime: Runtime,
    _there: tempfile::TempDir,
}

fn seed() -> Setup {
    let there = tempfile::tempdir().unwrap();
    let big = noise(BIG);
    let files: &[(&str, &[u8])] = &[
        ("film.mkv", &big),
        ("sub/other", &big[1000..]),
        ("sub/read me", b"hello\n"),
        ("none", b""),
    ];
    let runtime = Runtime::new().unwrap();
    let seeder = runtime.block_on(Seeder::start(there.path(), files, 64 << 10));
    Setup { big, seeder, runtime, _there: there }
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("chiral-fs-").tempdir().unwrap()
}

#[test]
fn a_magnet_link_is_a_directory_whose_files_stream() {
    if !can_mount() {
        return;
    }
    let (setup, dir) = (seed(), folder());
    let m = mounted_in(dir.path(), online, true);
    let hash = setup.seeder.metainfo.hash.to_string();
    let link = setup.seeder.magnet().to_string();
    let by_link = m.path(&link);
    assert!(fs::metadata(&by_link).unwrap().is_dir());
    let mut names: Vec<_> =
        fs::read_dir(&by_link).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["film.mkv", "none", "sub"]);
    let film = by_link.join("film.mkv");
    let found = fs::metadata(&film).unwrap();
    assert_eq!((found.len(), found.blocks(), found.mode()), (BIG as u64, 1, libc::S_IFREG | 0o644));
    assert_eq!(xattr(&film, "user.chiral.state").unwrap(), "remote");

    // A seek, then all of it.
    let mut open = File::open(&film).unwrap();
    let mut part = [0; 5000];
    open.read_exact_at(&mut part, 2_900_000).unwrap();
    assert!(part == setup.big[2_900_000..2_905_000]);
    let mut all = Vec::new();
    open.read_to_end(&mut all).unwrap();
    assert!(all == setup.big);
    drop(open);
    // By its hash it is the same.
    let by_hash = m.path(&hash);
    assert!(fs::read(by_hash.join("film.mkv")).unwrap() == setup.big);
    assert_eq!(fs::read(by_hash.join("sub/read me")).unwrap(), b"hello\n");
    assert_eq!(fs::read(by_hash.join("none")).unwrap(), b"");
    assert!(m.sh("ls -A").lines().any(|name| name == hash));

    let attribute = |name: &str| xattr(&film, name).unwrap();
    assert_eq!(attribute("user.chiral.infohash"), hash);
    assert_eq!(attribute("user.chiral.cached"), BIG.to_string());
    assert_eq!(attribute("user.chiral.state"), "complete");
    let magnet: Magnet = attribute("user.chiral.magnet").parse().unwrap();
    assert_eq!(magnet.hash, setup.seeder.metainfo.hash);
    assert_eq!(xattr(&by_hash, "user.chiral.state").unwrap(), "partial");
    assert_eq!(errno(xattr(&by_hash, "user.chiral.cid")), libc::ENODATA);
    // The id of what is whole is found in the background, and leads to the same bytes.
    let found = m.node.content_found(setup.seeder.metainfo.hash, 0);
    let found = async { tokio::time::timeout(Duration::from_secs(60), found).await };
    let id = setup.runtime.block_on(found).unwrap().to_string();
    assert_eq!(attribute("user.chiral.cid"), id);
    assert!(fs::read(m.path(&id)).unwrap() == setup.big);
    assert!(m.sh(&format!("getfattr {hash}/film.mkv")).contains("user.chiral.cid"));
    assert!(!m.sh(&format!("getfattr {hash}/sub/other")).contains("user.chiral.cid"));
    assert_eq!(errno(xattr(&by_hash.join("sub/other"), "user.chiral.cid")), libc::ENODATA);
    m.end();
}

#[test]
fn a_torrent_that_was_read_is_there_after_a_restart_without_network() {
    if !can_mount() {
        return;
    }
    let (setup, dir) = (seed(), folder());
    let m = mounted_in(dir.path(), online, true);
    let hash = setup.seeder.metainfo.hash.to_string();
    let film = m.path(&setup.seeder.magnet().to_string()).join("film.mkv");
    assert!(fs::read(film).unwrap() == setup.big);
    m.end();

    let m = mounted_in(dir.path(), |_| {}, true);
    assert!(m.sh("ls -A").lines().any(|name| name == hash));
    assert!(fs::read(m.path(&hash).join("film.mkv")).unwrap() == setup.big);
    // Its first bytes are in a piece of the film.
    let other = File::open(m.path(&hash).join("sub/other")).unwrap();
    assert_eq!(errno(other.read_at(&mut [0; 9], 1_000_000)), libc::EIO);
    // A copy program finds no holes in what is not here.
    let blocks = fs::metadata(m.path(&hash).join("sub/other")).unwrap().blocks();
    assert!((8..=128).contains(&blocks), "{blocks} of a file of which a part of a piece is here");
    m.end();
}

#[test]
fn what_nobody_has_times_out_and_what_is_no_link_is_absent_at_once() {
    if !can_mount() {
        return;
    }
    let dir = folder();
    let short = |options: &mut NodeOptions| {
        online(options);
        options.torrent.lookup_timeout = Duration::from_millis(500);
    };
    let m = mounted_in(dir.path(), short, true);
    let nobody = "magnet:?xt=urn:btih:cab507494d02ebb1178b38f2e9d7be299c86b862&x.pe=127.0.0.1:1";
    for name in [nobody, "cab507494d02ebb1178b38f2e9d7be299c86b862"] {
        assert_eq!(errno(fs::metadata(m.path(name))), libc::ETIMEDOUT, "{name}");
        assert_eq!(errno(fs::read_dir(m.path(name))), libc::ETIMEDOUT, "{name}");
        assert_eq!(errno(fs::metadata(m.path(name).join("x"))), libc::ETIMEDOUT, "{name}");
    }
    for name in
        ["magnet:?xt=urn:btih:12", "magnet:?dn=x", "magnet:", "cab507494d02ebb1178b38f2e9d7"]
    {
        assert_eq!(errno(fs::metadata(m.path(name))), libc::ENOENT, "{name}");
    }
    assert!(!dir.path().join("data/torrents/cab507494d02ebb1178b38f2e9d7be299c86b862").exists());
    m.end();
}

/// A description that nobody has been asked for.
fn description(name: &str, files: &[(&str, &[u8])]) -> (Vec<u8>, String) {
    let text = seeder::torrent_of(name, files, 64 << 10);
    let hash = Metainfo::parse(&text).unwrap().hash.to_string();
    (text, hash)
}

#[test]
fn a_description_that_is_dropped_is_listed_by_name_and_leads_to_its_files() {
    if !can_mount() {
        return;
    }
    let (setup, dir) = (seed(), folder());
    let there = tempfile::tempdir().unwrap();
    let peer = setup.seeder.address();
    let m = mounted_in(
        dir.path(),
        |options| {
            online(options);
            options.torrent.peers = vec![peer];
        },
        true,
    );
    let files: &[(&str, &[u8])] = &[
        ("film.mkv", &setup.big),
        ("sub/other", &setup.big[1000..]),
        ("sub/read me", b"hello\n"),
        ("none", b""),
    ];
    let (text, hash) = description("torrent", files);
    assert_eq!(hash, setup.seeder.metainfo.hash.to_string());
    fs::write(there.path().join("mine.torrent"), &text).unwrap();
    let from = there.path().join("mine.torrent");
    m.sh(&format!("cp -p {} torrents/", from.display()));
    assert_eq!(m.sh("ls torrents"), "mine.torrent\ntorrent\n");
    assert_eq!(m.sh("readlink torrents/torrent").trim(), format!("../{hash}"));
    assert!(fs::read(m.path("torrents/mine.torrent")).unwrap().starts_with(b"d4:info"));
    assert_eq!(xattr(&m.path("torrents/mine.torrent"), "user.chiral.infohash").unwrap(), hash);
    assert_eq!(m.sh("cat 'torrents/torrent/sub/read me'"), "hello\n");
    // A part of the film, and what of it takes disk.
    let mut part = [0; 1000];
    File::open(m.path("torrents/torrent/film.mkv")).unwrap().read_exact_at(&mut part, 5).unwrap();
    assert!(part == setup.big[5..1005]);
    assert!(m.sh("cat torrents/torrent/film.mkv | wc -c").trim() == BIG.to_string());
    let used = fs::metadata(m.path("torrents/torrent/film.mkv")).unwrap().blocks() * 512;
    assert!((BIG as u64..BIG as u64 + (64 << 10)).contains(&used), "{used}");

    // Again, over itself, and with rsync, which renames what it has written; a name that was given stays.
    m.sh(&format!("cp {} torrents/", from.display()));
    m.sh(&format!("cp {} torrents/other.torrent && rm -f torrents/none.torrent", from.display()));
    assert_eq!(m.sh("ls torrents"), "other.torrent\ntorrent\n");
    m.sh("mv torrents/other.torrent torrents/mine.torrent");
    m.end();

    let m = mounted_in(dir.path(), |_| {}, true);
    assert_eq!(m.sh("ls torrents"), "mine.torrent\ntorrent\n");
    m.sh("rm torrents/mine.torrent");
    assert_eq!(m.sh("ls torrents"), "");
    assert!(!dir.path().join("data/torrents").join(&hash).exists());
    m.end();
}

#[test]
fn what_is_no_torrent_is_refused_by_close_and_nothing_is_lost() {
    if !can_mount() {
        return;
    }
    let (dir, there) = (folder(), tempfile::tempdir().unwrap());
    let m = mounted_in(dir.path(), |_| {}, true);
    let (text, hash) = description("a film", &[("x", b"bytes")]);
    let bad = there.path().join("bad.torrent");
    let mut outside = text.clone();
    let at = outside.windows(4).position(|four| four == b"1:xe").unwrap();
    outside.splice(at..at + 3, *b"2:..");
    for (what, bytes) in [
        ("nothing that is bencode", b"hello\n".to_vec()),
        ("cut off", text[..text.len() - 5].to_vec()),
        ("a name that leads out", outside),
        ("a malformed link", b"magnet:?xt=urn:btih:12".to_vec()),
    ] {
        fs::write(&bad, bytes).unwrap();
        for command in ["cp", "mv"] {
            let refused = m.run(&format!("LC_ALL=C {command} {} torrents/", bad.display()));
            let told = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(
                !refused.status.success() && told.contains("Invalid argument"),
                "{what}: {told}"
            );
            assert!(bad.exists(), "{what}: what was refused is where it was");
        }
        assert_eq!(m.sh("ls -A torrents"), "", "{what}");
    }
    let long = File::create(m.path("torrents/long.torrent")).unwrap();
    assert_eq!(errno(long.write_at(b"x", 32 << 20)), libc::EFBIG);
    drop(long);
    m.sh("rm torrents/long.torrent");

    // What has the name of something unfinished waits for its own.
    fs::write(&bad, &text).unwrap();
    m.sh(&format!("cp {} torrents/film.torrent.part", bad.display()));
    assert_eq!(m.sh("ls torrents"), "film.torrent.part\n");
    m.sh("mv torrents/film.torrent.part torrents/film.torrent");
    assert_eq!(m.sh("ls torrents"), "a film\nfilm.torrent\n");
    let renamed = m.run(&format!(
        "cp {} torrents/b.part && printf broken > torrents/c.part && mv torrents/c.part torrents/c.torrent",
        bad.display()
    ));
    assert!(!renamed.status.success());
    assert_eq!(m.sh("ls torrents"), "a film\nb.part\nc.part\nfilm.torrent\n");
    m.sh("rm torrents/?.part");
    // What is listed is not written to, nor is anything else made there.
    for (command, told) in [
        ("mkdir torrents/d", "Operation not permitted"),
        ("echo x >> torrents/film.torrent", "Operation not permitted"),
        ("mv 'torrents/a film' torrents/e", "Operation not permitted"),
        ("ln -s x torrents/l", "Operation not permitted"),
    ] {
        let refused = m.run(&format!("LC_ALL=C {command}"));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(told), "{command}: {said}");
    }
    // Moved out, it is copied, and forgotten here.
    m.sh(&format!("mv torrents/film.torrent {}", there.path().display()));
    assert!(fs::read(there.path().join("film.torrent")).unwrap().starts_with(b"d4:info"));
    assert!(!dir.path().join("data/torrents").join(hash).exists());
    m.end();
}

#[test]
fn a_text_with_a_link_is_a_torrent_that_is_looked_for() {
    if !can_mount() {
        return;
    }
    let (setup, dir) = (seed(), folder());
    let m = mounted_in(dir.path(), online, true);
    let link = Magnet { name: Some("a film".to_owned()), ..setup.seeder.magnet() };
    fs::write(m.path("torrents/link.txt"), format!("{link}\n")).unwrap();
    assert_eq!(m.sh("cat 'torrents/a film/sub/read me'"), "hello\n");
    let hash = setup.seeder.metainfo.hash.to_string();
    assert_eq!(m.sh("readlink 'torrents/a film'").trim(), format!("../{hash}"));
    assert!(m.sh("ls torrents").lines().any(|name| name == "torrent.torrent"));
    m.end();
}

#[test]
fn a_link_that_somebody_typed_sends_nothing_into_this_machine() {
    if !can_mount() {
        return;
    }
    let dir = folder();
    let careful = |options: &mut NodeOptions| {
        online(options);
        options.torrent.allow_private_addresses = false;
        options.torrent.lookup_timeout = Duration::from_secs(1);
    };
    let m = mounted_in(dir.path(), careful, true);
    let listen = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    };
    let ((tracker, http), (peer, named), (server, seeded)) = (listen(), listen(), listen());
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let udp = datagrams.local_addr().unwrap().port();
    let (text, hash) = description("film", &[("film.mkv", b"bytes that nobody has")]);
    let link = format!(
        "magnet:?xt=urn:btih:{hash}&tr=http:%2F%2F127.0.0.1:{http}%2Fannounce\
         &tr=udp:%2F%2F127.0.0.1:{udp}&tr=http:%2F%2Flocalhost:{http}%2Fannounce\
         &x.pe=127.0.0.1:{named}&ws=http:%2F%2F127.0.0.1:{seeded}%2Ffilm"
    );
    assert_eq!(errno(fs::read_dir(m.path(&link))), libc::ETIMEDOUT);
    // Nor once it is known what to ask for.
    fs::write(m.path("torrents/film.torrent"), text).unwrap();
    assert_eq!(errno(fs::read(m.path("torrents/film/film.mkv"))), libc::EIO);
    for listener in [tracker, peer, server] {
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    assert!(datagrams.recv(&mut [0; 64]).is_err());
    m.end();
}
