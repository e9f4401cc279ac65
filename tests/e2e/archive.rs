//! `chiral store export` and `chiral store import`: trees that travel as files between daemons that never met.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::harness::{Daemon, Setup, eventually, noise, sh};

/// A daemon that has nobody to ask.
fn offline() -> Daemon {
    Daemon::start(&Setup { args: vec!["--offline".into()], ..Setup::default() })
}

/// An archive of a tree in the scratch folder of its publisher, and the id.
fn exported(publisher: &Daemon) -> (String, PathBuf) {
    fs::create_dir_all(publisher.path("upload/tree/sub")).unwrap();
    fs::write(publisher.path("upload/tree/big"), noise(5_000_000, 71)).unwrap();
    fs::write(publisher.path("upload/tree/sub/small"), "small").unwrap();
    fs::write(publisher.path("upload/tree/empty"), "").unwrap();
    std::os::unix::fs::symlink("sub/small", publisher.path("upload/tree/link")).unwrap();
    let cid = publisher.cid("upload/tree");
    let car = publisher.scratch().join("tree.car");
    let told = publisher.json(&["store", "export", &cid, "-o", car.to_str().unwrap()]);
    assert_eq!(told["bytes"], fs::metadata(&car).unwrap().len());
    (cid, car)
}

fn import(daemon: &Daemon, car: &Path) -> Output {
    daemon.chiral(&["store", "import", car.to_str().unwrap()])
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The sums of all files, as a user would compare two trees.
fn sums(root: &Path) -> String {
    sh("find . -type f -print0 | sort -z | xargs -0 sha256sum; readlink link", root)
}

/// The frame of version 2 around an archive of version 1, with something in the place of the index.
fn version_2(v1: &[u8]) -> Vec<u8> {
    let mut out = b"\x0a\xa1\x67version\x02".to_vec();
    out.extend([0; 16]);
    let (start, len) = (51 + 13, v1.len() as u64);
    for number in [start, len, start + len] {
        out.extend(number.to_le_bytes());
    }
    out.extend([0; 13]);
    out.extend(v1);
    out.extend(noise(1000, 72));
    out
}

fn pipe_in(daemon: &Daemon, bytes: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_chiral"))
        .args(["store", "import", "-", "--json"])
        .env("CHIRAL_DATA_DIR", daemon.data())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_tree_goes_from_one_daemon_to_another_as_a_file() {
    let publisher = Daemon::start(&Setup::default());
    let (cid, car) = exported(&publisher);
    let expected = sums(&publisher.path("upload/tree"));
    let daemon = offline();
    let imported = import(&daemon, &car);
    assert_eq!(String::from_utf8_lossy(&imported.stdout), format!("{cid}  pinned\n"));
    assert!(imported.status.success(), "{}", said(&imported));
    assert_eq!(sums(&daemon.path(&cid)), expected);
    let cat = daemon.chiral(&["cat", &format!("{cid}/big")]);
    assert!(cat.stdout == noise(5_000_000, 71));
    let pins = daemon.json(&["pin", "ls"]);
    assert_eq!((&pins[0]["cid"], &pins[0]["complete"]), (&cid.clone().into(), &true.into()));

    // What came in goes out byte by byte, offline and after a restart too; nothing that is pinned is collected.
    daemon.json(&["store", "gc"]);
    let scratch = daemon.stop();
    let daemon =
        Daemon::start_in(scratch, &Setup { args: vec!["--offline".into()], ..Setup::default() });
    let again = daemon.chiral(&["store", "export", &cid, "--offline"]);
    assert!(again.stdout == fs::read(&car).unwrap(), "{}", said(&again));

    // The second version, piped in, without a pin.
    let other = offline();
    let report = pipe_in(&other, &version_2(&fs::read(&car).unwrap()));
    assert!(report.status.success(), "{}", said(&report));
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((&report["version"], &report["roots"][0]["cid"]), (&2.into(), &cid.clone().into()));
    assert_eq!(sums(&other.path(&cid)), expected);

    // One that lies in the mount of the daemon itself is not read through the kernel.
    fs::copy(&car, other.path("upload/tree.car")).unwrap();
    let refused = import(&other, &other.path("upload/tree.car"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("pipe it in"), "{}", said(&refused));
    let piped = pipe_in(&other, &fs::read(other.path("upload/tree.car")).unwrap());
    assert!(piped.status.success(), "{}", said(&piped));
}

#[test]
fn a_sharded_directory_and_a_part_of_a_tree_travel_too() {
    let publisher = Daemon::start(&Setup::default());
    fs::create_dir_all(publisher.path("upload/tree/many")).unwrap();
    // Names long enough that some thousand of them do not fit into one block.
    let name = |n: usize| format!("{n:0>200}");
    for n in 0..1500 {
        fs::write(publisher.path("upload/tree/many").join(name(n)), n.to_string()).unwrap();
    }
    let cid = publisher.cid("upload/tree");
    let car = publisher.scratch().join("many.car");
    let id = format!("{cid}/many");
    let done = publisher.chiral(&["store", "export", &id, "-o", car.to_str().unwrap()]);
    assert!(done.status.success(), "{}", said(&done));
    let daemon = offline();
    let many = publisher.cid("upload/tree/many");
    let done = daemon.chiral(&["store", "import", "--no-pin", car.to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), format!("{many}  not pinned\n"));
    assert_eq!(daemon.json(&["ls", &many]).as_array().unwrap().len(), 1500);
    assert_eq!(fs::read_to_string(daemon.path(&many).join(name(1234))).unwrap(), "1234");
    assert!(daemon.json(&["pin", "ls"]).as_array().unwrap().is_empty());
}

#[test]
fn damaged_archives_are_refused_and_the_whole_one_completes_them() {
    let publisher = Daemon::start(&Setup::default());
    let (cid, car) = exported(&publisher);
    let bytes = fs::read(&car).unwrap();
    let daemon = offline();
    let bad = publisher.scratch().join("bad.car");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    fs::write(&bad, &flipped).unwrap();
    let refused = import(&daemon, &bad);
    assert_eq!(refused.status.code(), Some(1));
    let told = said(&refused);
    assert!(told.contains("the block at byte ") && told.contains("do not hash to baf"), "{told}");
    fs::write(&bad, &bytes[..bytes.len() - 1000]).unwrap();
    let refused = import(&daemon, &bad);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("the file ends at byte"), "{}", said(&refused));
    fs::write(&bad, "no archive".repeat(50)).unwrap();
    assert!(said(&import(&daemon, &bad)).contains("not a CAR"), "{}", said(&import(&daemon, &bad)));
    assert!(daemon.json(&["pin", "ls"]).as_array().unwrap().is_empty());
    let verified = daemon.json(&["store", "verify"]);
    assert!(verified["bad"].as_array().unwrap().is_empty());

    assert!(import(&daemon, &car).status.success());
    assert_eq!(sums(&daemon.path(&cid)), sums(&publisher.path("upload/tree")));

    // An archive without one leaf: it says so, and the rest is here.
    let other = offline();
    let leaf = bytes.len() - 300_000;
    let (at, end) = section_around(&bytes, leaf);
    fs::write(&bad, [&bytes[..at], &bytes[end..]].concat()).unwrap();
    let partly = import(&other, &bad);
    assert_eq!(partly.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&partly.stdout).contains("pinned, 1 blocks are missing"));
    assert_eq!(fs::read_to_string(other.path(&cid).join("sub/small")).unwrap(), "small");
    let to = other.scratch().join("out.car");
    let failed = other.chiral(&["store", "export", &cid, "--offline", "-o", to.to_str().unwrap()]);
    assert_eq!(failed.status.code(), Some(3), "{}", said(&failed));
    let left = fs::read_dir(other.scratch()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.map(|name| name.into_string().unwrap()).all(|name| !name.contains("car")));
}

/// Where the section that holds the byte `inside` begins and ends.
fn section_around(car: &[u8], inside: usize) -> (usize, usize) {
    let mut at = 0;
    loop {
        let (mut len, mut shift, mut start) = (0, 0, at);
        loop {
            len |= usize::from(car[start] & 0x7f) << shift;
            (shift, start) = (shift + 7, start + 1);
            if car[start - 1] & 0x80 == 0 {
                break;
            }
        }
        if start + len > inside {
            return (at, start + len);
        }
        at = start + len;
    }
}

#[test]
fn an_import_that_a_kill_ended_is_completed_by_the_next() {
    let publisher = Daemon::start(&Setup::default());
    fs::write(publisher.path("upload/file"), noise(60_000_000, 73)).unwrap();
    let cid = publisher.cid("upload/file");
    let car = publisher.scratch().join("file.car");
    let done = publisher.chiral(&["store", "export", &cid, "-o", car.to_str().unwrap()]);
    assert!(done.status.success(), "{}", said(&done));
    let daemon = offline();
    let mut running = Command::new(env!("CARGO_BIN_EXE_chiral"))
        .args(["store", "import", car.to_str().unwrap()])
        .env("CHIRAL_DATA_DIR", daemon.data())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The file of the content is made when the second pass begins. Whether that is over when the kill comes is chance;
    // either way nothing may be lost or wrong.
    eventually("the second pass", || {
        let folders = fs::read_dir(daemon.data().join("objects")).ok()?.map_while(Result::ok);
        let mut files =
            folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
        let is_it = |file: std::io::Result<fs::DirEntry>| {
            file.and_then(|file| file.metadata()).is_ok_and(|meta| meta.len() == 60_000_000)
        };
        files.any(is_it).then_some(())
    });
    let scratch = daemon.kill();
    running.wait().unwrap();
    let daemon =
        Daemon::start_in(scratch, &Setup { args: vec!["--offline".into()], ..Setup::default() });
    assert!(import(&daemon, &car).status.success());
    assert!(fs::read(daemon.path(&cid)).unwrap() == noise(60_000_000, 73));
    assert!(daemon.json(&["store", "verify"])["bad"].as_array().unwrap().is_empty());
}

#[test]
fn what_is_not_here_is_fetched_for_an_export_unless_it_is_offline() {
    let publisher = Daemon::start(&Setup::default());
    let (cid, car) = exported(&publisher);
    let daemon = Daemon::start_beside(&publisher, &Setup::default());
    let refused = daemon.chiral(&["store", "export", &cid, "--offline"]);
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(3), 0));
    let fetched = daemon.chiral(&["store", "export", &cid]);
    assert!(fetched.stdout == fs::read(&car).unwrap(), "{}", said(&fetched));

    // One whose peer dies under it leaves no file under its name.
    fs::write(publisher.path("upload/file"), noise(30_000_000, 74)).unwrap();
    let cid = publisher.cid("upload/file");
    let config = "[download]\nlookup_timeout = \"2s\"\n".to_owned();
    let far = Daemon::start_far_from_with(&publisher, 4_000_000, config);
    let folder = far.scratch().join("folder");
    fs::create_dir(&folder).unwrap();
    let mut export = Command::new(env!("CARGO_BIN_EXE_chiral"))
        .args(["store", "export", &cid, "-o"])
        .arg(folder.join("file.car"))
        .env("CHIRAL_DATA_DIR", far.data())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let parts = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    eventually("the first bytes", || {
        parts().any(|part| part.metadata().is_ok_and(|m| m.len() > 0)).then_some(())
    });
    publisher.kill_for_good();
    drop(daemon);
    assert_eq!(eventually("the end", || export.try_wait().unwrap()).code(), Some(3));
    assert_eq!(parts().count(), 0);
}
