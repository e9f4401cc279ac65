//! Torrents from a foreign seeder, over the command line and through the mount of a real daemon.

use std::fs;

use chiral::torrent::{InfoBuilder, Magnet, Metainfo};
use tokio::runtime::Runtime;

use self::seeder::Seeder;
use crate::harness::{Daemon, Setup, eventually, noise, sh};

#[path = "../support/seeder.rs"]
mod seeder;

fn setup() -> Setup {
    Setup { args: Vec::new(), config: "[torrent]\nlisten = \"127.0.0.1:0\"\n".to_owned() }
}

#[test]
fn a_magnet_link_is_listed_printed_and_fetched_and_its_port_is_told() {
    let runtime = Runtime::new().unwrap();
    let there = tempfile::tempdir().unwrap();
    let film = noise(4_000_000, 1);
    let files: &[(&str, &[u8])] = &[("film.mkv", &film), ("extra/note", b"hello\n")];
    let seeder = runtime.block_on(Seeder::start(there.path(), files, 64 << 10));
    let (link, hash) = (seeder.magnet().to_string(), seeder.metainfo.hash.to_string());

    let daemon = Daemon::start(&setup());
    assert_eq!(daemon.json(&["status"])["torrent_port"], serde_json::Value::Null);
    let listed = daemon.json(&["ls", &link]);
    let names: Vec<_> =
        listed.as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["extra", "film.mkv"]);
    assert_eq!(
        (&listed[1]["size"], &listed[1]["cid"]),
        (&4_000_000.into(), &serde_json::Value::Null)
    );
    assert!(daemon.json(&["status"])["torrent_port"].as_u64().is_some());

    let told = daemon.chiral(&["cat", &format!("{hash}/extra/note")]);
    assert_eq!(String::from_utf8_lossy(&told.stdout), "hello\n");
    let middle = daemon.chiral(&[
        "cat",
        &format!("{link}/film.mkv"),
        "--offset",
        "3000000",
        "--length",
        "1000",
    ]);
    assert!(middle.stdout == film[3_000_000..3_001_000]);
    let to = daemon.scratch().join("got");
    let got = daemon.chiral(&["get", &link, "-o", to.to_str().unwrap()]);
    assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
    assert!(fs::read(to.join("film.mkv")).unwrap() == film);
    assert_eq!(fs::read(to.join("extra/note")).unwrap(), b"hello\n");

    // A copy out of the mount of what is complete, and after a crash of what was.
    sh(&format!("cmp got/film.mkv 'mnt/{hash}/film.mkv'"), daemon.scratch());
    // 62 pieces.
    let noted = daemon.data().join(format!("torrents/session/{hash}.bitv"));
    let all = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfc];
    eventually("the note of all pieces", || (fs::read(&noted).ok()? == all).then_some(()));
    let scratch = daemon.kill();
    let daemon = Daemon::start_in(scratch, &setup());
    runtime.block_on(seeder.session.stop());
    sh(
        &format!("ls mnt/{hash} && timeout 50 head -c 1000 'mnt/{hash}/film.mkv' > head"),
        daemon.scratch(),
    );
    assert!(fs::read(daemon.scratch().join("head")).unwrap() == film[..1000]);

    for (wrong, code) in [("magnet:?xt=urn:btih:12", 2), ("magnet:?dn=x", 2)] {
        let refused = daemon.chiral(&["ls", wrong]);
        assert_eq!(refused.status.code(), Some(code), "{wrong}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("magnet link"), "{wrong}");
    }
    let none = daemon.chiral(&["pin", "add", &hash]);
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("not a CID"));
    daemon.stop();
}
