//! The commands against a running daemon: what they print, and how they end.

use std::{fs, process::Command};

use serde_json::Value;

use crate::harness::{Daemon, Setup, eventually, noise, run};

/// A well-formed id that nobody has.
const NOWHERE: &str = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";

fn impatient() -> Setup {
    Setup { config: "[download]\nlookup_timeout = \"2s\"\n".into(), ..Setup::default() }
}

#[track_caller]
fn keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "{key} is missing in {value}");
    }
}

#[test]
fn a_peer_is_connected_and_content_is_pinned_listed_and_collected() {
    let publisher = Daemon::start(&Setup::default());
    fs::create_dir(publisher.path("upload/tree")).unwrap();
    fs::write(publisher.path("upload/tree/file"), noise(3_000_000, 41)).unwrap();
    let cid = publisher.cid("upload/tree");
    let daemon = Daemon::start(&impatient());

    let connected = daemon.json(&["connect", &publisher.addresses()[0]]);
    assert_eq!(connected["peer_id"], publisher.json(&["id"])["peer_id"]);
    let peers = daemon.peers();
    assert_eq!(peers[0]["peer_id"], connected["peer_id"]);
    keys(&peers[0], &["address", "agent", "rtt_ms", "received", "sent"]);

    daemon.json(&["pin", "add", &cid, "--name", "kept"]);
    let pins = daemon.json(&["pin", "ls"]);
    assert_eq!((&pins[0]["cid"], &pins[0]["name"]), (&Value::from(cid.clone()), &"kept".into()));
    assert!(daemon.peers()[0]["received"].as_u64().unwrap() >= 3_000_000);
    let listed = daemon.json(&["ls", &cid]);
    assert_eq!((&listed[0]["name"], &listed[0]["size"]), (&"file".into(), &3_000_000.into()));
    keys(&listed[0], &["cid", "kind"]);

    // What is pinned outlives a collection and the peer that it came from.
    publisher.stop();
    daemon.json(&["store", "gc"]);
    let cat = daemon.chiral(&["cat", &format!("{cid}/file")]);
    assert!(cat.stdout == noise(3_000_000, 41));
    daemon.json(&["pin", "rm", &cid]);
    assert_eq!(daemon.json(&["pin", "ls"]), Value::Array(Vec::new()));
    // The download that has just ended keeps its file open for a moment.
    eventually("the collection", || {
        let freed = daemon.json(&["store", "gc"]);
        (freed["bytes"].as_u64().unwrap() >= 3_000_000).then_some(())
    });
    assert_eq!(daemon.chiral(&["cat", &format!("{cid}/file")]).status.code(), Some(3));
}

#[test]
fn what_nobody_has_ends_with_code_three_and_what_is_no_id_with_a_reason() {
    let daemon = Daemon::start(&impatient());
    for args in [
        &["cat", NOWHERE][..],
        &["ls", NOWHERE],
        &["get", NOWHERE, "-o", "/dev/null/nothing"],
        &["pin", "add", NOWHERE],
    ] {
        let output = daemon.chiral(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {error}");
        assert!(error.contains(NOWHERE), "{args:?} does not name what is missing: {error}");
    }
    for args in [&["cat", "bafynotacid"][..], &["connect", "127.0.0.1:4001"]] {
        let output = daemon.chiral(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {error}");
        assert!(error.contains(args[1]), "{args:?} does not name what is wrong: {error}");
    }
    let unreachable = daemon.chiral(&[
        "connect",
        "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWAeMUVobTiqwe6dCDgpHgzesDNGVrRxtCBMU7KGG3BZwZ",
    ]);
    assert_eq!(unreachable.status.code(), Some(1));
}

#[test]
fn events_and_transfers_tell_of_a_download_while_it_runs() {
    let publisher = Daemon::start(&Setup::default());
    fs::write(publisher.path("upload/file"), noise(10_000_000, 42)).unwrap();
    let cid = publisher.cid("upload/file");
    let daemon = Daemon::start_beside(&publisher, &Setup::default());
    assert_eq!(daemon.json(&["transfers"]), Value::Array(Vec::new()));
    let said = daemon.scratch().join("events");
    let mut events = Command::new(env!("CARGO_BIN_EXE_chiral"))
        .arg("events")
        .env("CHIRAL_DATA_DIR", daemon.data())
        .stdout(fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let told = || fs::read_to_string(&said).unwrap();
    // Events before the listener is connected are not told: something is published until one is.
    let mut n = 0;
    eventually("the first event", || {
        n += 1;
        fs::write(daemon.path(&format!("upload/{n}")), noise(10, n)).unwrap();
        told().contains("\"published\"").then_some(())
    });
    assert_eq!(fs::read(daemon.path(&cid)).unwrap().len(), 10_000_000);
    eventually("the last chunk", || {
        (told().matches("\"download_chunk_complete\"").count() >= 39).then_some(())
    });
    eventually("the announcement", || told().contains("\"announced\"").then_some(()));
    for line in told().lines().filter(|line| line.ends_with('}')) {
        let event: Value = serde_json::from_str(line).unwrap();
        match event["event"].as_str().unwrap() {
            "download_chunk_started" => keys(&event, &["file_hash", "chunk_index", "cid", "peer"]),
            "published" => keys(&event, &["cid", "name", "size"]),
            "announced" => keys(&event, &["cid"]),
            "download_chunk_complete" => keys(&event, &["file_hash", "chunk_index", "path"]),
            _ => {}
        }
    }
    events.kill().unwrap();
    events.wait().unwrap();
}

#[test]
fn the_log_of_a_quiet_start_is_empty_and_has_no_colours() {
    let daemon = Daemon::start(&Setup::default());
    // The DHT would have complained by the time that a peer has come and gone.
    drop(Daemon::start_beside(&daemon, &Setup::default()));
    eventually("the end of the connection", || daemon.peers().is_empty().then_some(()));
    assert_eq!(daemon.log(), "");
    let wrong = run(Command::new(env!("CARGO_BIN_EXE_chiral"))
        .args(["id", "--log", "debug", "--data-dir"])
        .arg(daemon.scratch().join("nowhere")));
    assert_eq!(wrong.status.code(), Some(4));
    assert!(!wrong.stderr.contains(&0x1b), "{}", String::from_utf8_lossy(&wrong.stderr));
}
