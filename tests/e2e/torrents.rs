//! Torrents from a foreign seeder, over the command line and through the mount of a real daemon.

use std::fs;

use chiral::{
    content::{ContentId, InfoHash},
    torrent::{InfoBuilder, Magnet, Metainfo},
};
use tokio::runtime::Runtime;

use self::seeder::Seeder;
use crate::{
    gateways::server::socks5,
    harness::{Daemon, PATIENCE, Setup, eventually, noise, sh},
};

#[path = "../support/seeder.rs"]
pub(crate) mod seeder;

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
    let none = daemon.chiral(&["provide", &hash]);
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("not a CID"));

    // All of it is here, so that it is kept without anybody.
    let note = format!("{hash}/extra/note");
    for (id, name) in [(hash.as_str(), "film"), (&note, "")] {
        let pinned = daemon.json(&["pin", "add", id, "--name", name]);
        assert_eq!((&pinned["id"], &pinned["name"]), (&id.into(), &name.into()));
        assert_eq!(
            (&pinned["infohash"], &pinned["complete"]),
            (&hash.as_str().into(), &true.into())
        );
    }
    assert_eq!(daemon.json(&["pin", "ls"]).as_array().unwrap().len(), 2);
    assert!(daemon.chiral(&["pin", "rm", &note]).status.success());
    let scratch = daemon.kill();
    let daemon = Daemon::start_in(scratch, &setup());
    let pins = daemon.json(&["pin", "ls"]);
    assert_eq!((pins.as_array().unwrap().len(), &pins[0]["id"]), (1, &hash.as_str().into()));
    assert!(!daemon.chiral(&["pin", "rm", &note]).status.success());
    daemon.stop();
}

/// A foreign program that downloads all of a torrent by its link, which names a peer.
async fn leech(link: &str, into: &std::path::Path) {
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
        initial_peers: Some(link.parse::<Magnet>().unwrap().peers),
        ..AddTorrentOptions::default()
    };
    let added = session.add_torrent(AddTorrent::from_url(link), Some(options)).await;
    added.unwrap().into_handle().unwrap().wait_until_completed().await.unwrap();
    session.stop().await;
}

#[test]
fn files_are_seeded_paused_resumed_and_removed_over_the_command_line() {
    let runtime = Runtime::new().unwrap();
    let daemon = Daemon::start(&setup());
    let film = noise(3_000_000, 2);
    fs::create_dir_all(daemon.scratch().join("show/a b")).unwrap();
    fs::write(daemon.scratch().join("show/a b/film.mkv"), &film).unwrap();
    fs::write(daemon.scratch().join("show/ümläut"), b"x").unwrap();
    let path = daemon.scratch().join("show");
    let seeded = daemon.json(&["seed", path.to_str().unwrap()]);
    let (hash, link) =
        (seeded["infohash"].as_str().unwrap().to_owned(), seeded["magnet"].as_str().unwrap());
    let torrent = std::path::PathBuf::from(seeded["torrent"].as_str().unwrap());
    assert_eq!(torrent, daemon.path("torrents/show.torrent"));
    assert_eq!(
        fs::read_link(daemon.path("torrents/show")).unwrap(),
        std::path::Path::new("..").join(&hash)
    );
    assert_eq!(Metainfo::parse(&fs::read(&torrent).unwrap()).unwrap().hash.to_string(), hash);

    let there = tempfile::tempdir().unwrap();
    let fetched = async { tokio::time::timeout(PATIENCE, leech(link, there.path())).await };
    runtime.block_on(fetched).unwrap();
    assert!(fs::read(there.path().join("a b/film.mkv")).unwrap() == film);
    assert_eq!(fs::read(there.path().join("ümläut")).unwrap(), b"x");
    // In the mount it is there, too, and takes no disk of its own.
    sh("cmp 'show/a b/film.mkv' 'mnt/torrents/show/a b/film.mkv'", daemon.scratch());
    let id = |folder: &str| daemon.xattr(&format!("{folder}/show/a b/film.mkv"), "user.chiral.cid");
    assert_eq!(id("torrents"), id("upload"));
    let one = |command: &str| daemon.json(&["torrent", command, "show"]);
    let list = || daemon.json(&["torrent", "list"]);
    assert_eq!(list()[0]["state"], "seeding");
    eventually("what was sent is told", || {
        (list()[0]["sent"].as_u64()? >= 3_000_001).then_some(())
    });
    assert_eq!(daemon.json(&["status"])["torrents"]["seeding"], 1);

    assert_eq!(one("pause")["state"], "paused");
    assert_eq!(one("resume")["state"], "seeding");
    let limits = daemon.json(&["torrent", "limit", "--upload", "1 MiB"]);
    assert_eq!((&limits["upload"], &limits["download"]), (&1_048_576.into(), &0.into()));
    let little = daemon.chiral(&["torrent", "limit", "--upload", "5 B"]);
    assert!(String::from_utf8_lossy(&little.stderr).contains("16384"), "{little:?}");

    // By its id it is the same one; it goes on after a kill.
    let published = daemon.chiral(&["add", "-Q", path.to_str().unwrap()]).stdout;
    let cid = String::from_utf8(published).unwrap();
    assert_eq!(daemon.json(&["seed", cid.trim()])["infohash"], hash.as_str());
    let scratch = daemon.kill();
    let daemon = Daemon::start_in(scratch, &setup());
    let state = || daemon.json(&["torrent", "list"])[0]["state"].as_str().unwrap().to_owned();
    eventually("it is seeded again", || (state() == "seeding").then_some(()));
    let out = daemon.scratch().join("copy.torrent");
    let seeded = daemon.json(&["seed", &hash, "-o", out.to_str().unwrap()]);
    assert_eq!(seeded["torrent"], out.to_str().unwrap());
    assert!(fs::read(&out).unwrap() == fs::read(daemon.path("torrents/show.torrent")).unwrap());

    daemon.json(&["torrent", "rm", &hash]);
    assert_eq!(daemon.json(&["torrent", "ls"]), serde_json::json!([]));
    assert!(!daemon.path("torrents/show").exists());
    assert!(daemon.path("upload/show/ümläut").exists());
    for (args, code) in [
        (&["seed", "/no/such/file"][..], 2),
        (&["torrent", "pause", "show"], 1),
        (&["torrent", "add", "magnet:?xt=urn:btih:12"], 2),
        (&["torrent", "add", path.to_str().unwrap()], 1),
    ] {
        assert_eq!(daemon.chiral(args).status.code(), Some(code), "{args:?}");
    }
    daemon.stop();
}

#[test]
fn a_torrent_that_is_fetched_is_told_and_its_rate_changes_while_it_is() {
    let runtime = Runtime::new().unwrap();
    let there = tempfile::tempdir().unwrap();
    let film = noise(4_000_000, 3);
    let files: &[(&str, &[u8])] = &[("film.mkv", &film), ("note", b"hello\n")];
    let seeder = runtime.block_on(Seeder::start(there.path(), files, 64 << 10));
    let (link, hash) = (seeder.magnet().to_string(), seeder.metainfo.hash.to_string());
    let daemon = Daemon::start(&setup());
    // What happens from now on, line by line.
    let events = std::io::BufReader::new(daemon.events());
    let (said, told) = std::sync::mpsc::channel();
    let listening = std::thread::spawn(move || {
        for line in std::io::BufRead::lines(events).map_while(Result::ok) {
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            if said.send(event).is_err() {
                return;
            }
        }
    });
    let until = |wanted: &dyn Fn(&serde_json::Value) -> bool| loop {
        let event = told.recv_timeout(PATIENCE).unwrap();
        if wanted(&event) {
            break event;
        }
    };
    daemon.json(&["torrent", "limit", "--download", "64 KiB"]);
    assert_eq!(daemon.json(&["status"])["torrents"]["download_limit"], 65_536);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| daemon.chiral(&["cat", &format!("{link}/film.mkv")]).stdout);
        let running = eventually("it is among the transfers", || {
            daemon
                .json(&["transfers"])
                .as_array()?
                .iter()
                .find(|t| t["infohash"] == hash.as_str())
                .cloned()
        });
        assert_eq!((&running["total"], &running["name"]), (&4_000_006.into(), &"torrent".into()));
        let event = until(&|e| e["event"] == "torrent_state" && e["state"] == "downloading");
        assert_eq!(
            (&event["infohash"], &event["name"]),
            (&hash.as_str().into(), &"torrent".into())
        );
        let progress = until(&|e| e["event"] == "torrent_progress");
        assert_eq!(
            (&progress["infohash"], &progress["total"]),
            (&hash.as_str().into(), &4_000_006.into())
        );
        // At that rate it would take a minute.
        daemon.json(&["torrent", "limit", "--download", "0"]);
        assert!(reader.join().unwrap() == film);
    });
    until(&|e| e["event"] == "torrent_state" && e["state"] == "seeding");
    let listed = daemon.json(&["torrent", "list"]);
    assert!(
        listed[0]["bytes"].as_u64().unwrap() >= 4_000_000
            && listed[0]["received"].as_u64().unwrap() >= 4_000_000
    );
    assert_eq!(daemon.json(&["transfers"]), serde_json::json!([]));
    daemon.json(&["torrent", "pause", &hash]);
    until(&|e| e["event"] == "torrent_state" && e["state"] == "paused");
    daemon.json(&["torrent", "remove", &hash]);
    until(&|e| e["event"] == "torrent_removed" && e["infohash"] == hash.as_str());
    daemon.stop();
    drop(told);
    listening.join().unwrap();
}

#[test]
fn torrents_go_through_a_socks_proxy_and_no_other_way() {
    let runtime = Runtime::new().unwrap();
    let there = tempfile::tempdir().unwrap();
    let film = noise(2_000_000, 4);
    let seeder = runtime.block_on(Seeder::start(there.path(), &[("film.mkv", &film)], 64 << 10));
    let (proxy, asked) = socks5(seeder.address());
    let config = format!("[torrent]\nlisten = \"127.0.0.1:0\"\nproxy = \"socks5://{proxy}\"\n");
    let daemon = Daemon::start(&Setup { args: Vec::new(), config });
    // An address that leads nowhere: nobody but the proxy knows a way.
    let peers = vec!["192.0.2.1:6881".parse().unwrap()];
    let link = Magnet { peers, ..Magnet::of(seeder.metainfo.hash) }.to_string();
    assert!(daemon.chiral(&["cat", &format!("{link}/film.mkv")]).stdout == film);
    let asked = asked.lock().unwrap();
    assert!(!asked.is_empty() && asked.iter().all(|host| host == "192.0.2.1"), "{asked:?}");
    drop(asked);
    daemon.stop();
}

#[test]
fn a_bare_info_hash_leads_to_a_daemon_that_only_the_dht_names_which_then_tells_what_it_is_owed() {
    let hub = Daemon::start(&setup());
    let mut owed = setup();
    owed.config.push_str("[accounting]\ncredit = \"1 MiB\"\n");
    let seeder = Daemon::start_beside(&hub, &owed);
    let (told, lines) = std::sync::mpsc::channel();
    let events = seeder.events();
    let listening = std::thread::spawn(move || {
        use std::io::BufRead;
        for line in std::io::BufReader::new(events).lines().map_while(Result::ok) {
            if told.send(line).is_err() {
                return;
            }
        }
    });
    let until = |wanted: &dyn Fn(&serde_json::Value) -> bool| loop {
        let line = lines.recv_timeout(PATIENCE).unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if wanted(&event) {
            break event;
        }
    };
    let film = noise(4_000_000, 7);
    let path = seeder.scratch().join("film.mkv");
    fs::write(&path, &film).unwrap();
    let seeded = seeder.json(&["seed", path.to_str().unwrap()]);
    let hash: InfoHash = seeded["infohash"].as_str().unwrap().parse().unwrap();
    let id = ContentId::torrent(hash).to_string();
    until(&|e| e["event"] == "announced" && e["cid"] == id.as_str());

    let reader = Daemon::start_beside(&hub, &setup());
    let got = reader.chiral(&["cat", &format!("{hash}/film.mkv")]);
    assert!(got.stdout == film, "{}", String::from_utf8_lossy(&got.stderr));
    let from = |daemon: &Daemon, peer: &str| {
        daemon.peers().into_iter().find(|other| other["peer_id"] == peer).unwrap()
    };
    let [own, other] = [&reader, &seeder].map(|daemon| daemon.json(&["id"])["peer_id"].clone());
    let (own, other) = (own.as_str().unwrap(), other.as_str().unwrap());
    let known = from(&reader, other);
    assert!(known["received"].as_u64() > Some(0) && known["claims_sent"].is_u64(), "{known}");
    let owed = until(&|e| e["event"] == "payment_required" && e["peer"] == own);
    assert!(owed["bytes"].as_u64() >= Some(1 << 20), "{owed}");

    reader.stop();
    seeder.stop();
    hub.stop();
    drop(lines);
    listening.join().unwrap();
}
