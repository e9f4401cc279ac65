//! `chiral get`: what strangers published is written where it belongs and nowhere else, whole or not at all.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
    process::{Command, Stdio},
};

use chiral::content::{ContentId, car_header, car_section_head, sha2_256};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{Daemon, Setup, eventually, noise, sh};

/// Names in a folder, also those that begin with a dot.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_symlink_where_a_file_might_be_made_is_not_written_through() {
    let daemon = Daemon::start(&Setup::default());
    let victim = daemon.scratch().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::create_dir(daemon.path("upload/tree")).unwrap();
    for name in [".a.part", "a.part", ".a", "link"] {
        symlink(&victim, daemon.path("upload/tree").join(name)).unwrap();
    }
    symlink(daemon.scratch(), daemon.path("upload/tree/dir")).unwrap();
    fs::write(daemon.path("upload/tree/a"), "evil").unwrap();
    // Others publish hidden names, too.
    let tree = daemon.path("upload/tree");
    let added = daemon.chiral(&["add", "-QH", tree.to_str().unwrap()]);
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let cid = String::from_utf8(added.stdout).unwrap().trim().to_owned();
    let to = daemon.scratch().join("got");
    let got = daemon.chiral(&["get", &cid, "-o", to.to_str().unwrap()]);
    assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(fs::read_to_string(to.join("a")).unwrap(), "evil");
    assert_eq!(names(&to), [".a", ".a.part", "a", "a.part", "dir", "link"]);

    // A tree is also not written through a link that is there already.
    let folder = daemon.scratch().join("folder");
    fs::create_dir(&folder).unwrap();
    symlink(&folder, daemon.scratch().join("elsewhere")).unwrap();
    let elsewhere = daemon.scratch().join("elsewhere");
    let refused = daemon.chiral(&["get", &cid, "-o", elsewhere.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(names(&folder), Vec::<String>::new());
}

#[test]
fn names_that_are_no_text_come_back_as_the_same_bytes() {
    let publisher = Daemon::start(&Setup::default());
    let bytes = OsStr::from_bytes;
    let tree = publisher.scratch().join("tree");
    fs::create_dir_all(tree.join(bytes(b"folder \xfe"))).unwrap();
    fs::write(tree.join(bytes(b"\xff")), "top").unwrap();
    fs::write(tree.join(bytes(b"folder \xfe/%\x80+")), "below").unwrap();
    symlink(bytes(b"\xff"), tree.join("link")).unwrap();
    let path = tree.to_str().unwrap();
    let added = publisher.chiral(&["add", "-Q", path]);
    let cid = String::from_utf8(added.stdout).unwrap().trim().to_owned();
    let hashed = publisher.chiral(&["add", "-Q", "--only-hash", path]);
    assert_eq!(String::from_utf8(hashed.stdout).unwrap().trim(), cid);

    let reader = Daemon::start_beside(&publisher, &Setup::default());
    let got = reader.scratch().join("got");
    let output = reader.chiral(&["get", &cid, "-o", got.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for root in [got, reader.path(&cid)] {
        let mut names: Vec<OsString> =
            fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [bytes(b"folder \xfe"), OsStr::new("link"), bytes(b"\xff")], "{root:?}");
        assert_eq!(fs::read_link(root.join("link")).unwrap(), bytes(b"\xff"));
        assert_eq!(fs::read_to_string(root.join("link")).unwrap(), "top");
        assert_eq!(fs::read_to_string(root.join(bytes(b"folder \xfe/%\x80+"))).unwrap(), "below");
        let absent = fs::metadata(root.join(bytes(b"\xfd"))).unwrap_err();
        assert_eq!(absent.kind(), std::io::ErrorKind::NotFound);
    }
    let listed = reader.json(&["ls", &cid]);
    assert_eq!((&listed[1]["name"], &listed[2]["name"]), (&"link".into(), &vec![0xff].into()));
}

#[test]
fn a_file_is_put_into_a_folder_that_is_there_and_has_the_usual_mode() {
    let daemon = Daemon::start(&Setup::default());
    fs::create_dir(daemon.path("upload/tree")).unwrap();
    fs::write(daemon.path("upload/tree/file"), "text").unwrap();
    let cid = daemon.cid("upload/tree");
    fs::create_dir(daemon.scratch().join("folder")).unwrap();
    let script = format!(
        "umask 022; CHIRAL_DATA_DIR=data {} get {cid}/file -o folder",
        env!("CARGO_BIN_EXE_chiral")
    );
    sh(&script, daemon.scratch());
    let file = daemon.scratch().join("folder/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn what_breaks_off_in_the_middle_ends_with_code_three_and_leaves_nothing() {
    let publisher = Daemon::start(&Setup::default());
    fs::write(publisher.path("upload/file"), noise(30_000_000, 52)).unwrap();
    let cid = publisher.cid("upload/file");
    let config = "[download]\nlookup_timeout = \"2s\"\n".to_owned();
    let daemon = Daemon::start_far_from_with(&publisher, 4_000_000, config);
    let folder = daemon.scratch().join("folder");
    fs::create_dir(&folder).unwrap();
    let start = |command: &str, more: &[&Path]| {
        Command::new(env!("CARGO_BIN_EXE_chiral"))
            .args([command, &cid])
            .args(more)
            .env("CHIRAL_DATA_DIR", daemon.data())
            .stdout(fs::File::create(daemon.scratch().join(command)).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let commands = [start("get", &[Path::new("-o"), &folder.join("file")]), start("cat", &[])];
    eventually("the first bytes", || {
        let part = fs::metadata(folder.join(names(&folder).pop()?)).ok()?;
        let printed = fs::metadata(daemon.scratch().join("cat")).ok()?;
        (part.len() > 0 && printed.len() > 0).then_some(())
    });
    publisher.kill_for_good();
    for mut command in commands {
        let status = eventually("the end", || command.try_wait().unwrap());
        assert_eq!(status.code(), Some(3));
    }
    assert_eq!(names(&folder), Vec::<String>::new());
}

#[test]
fn nothing_is_printed_from_the_end_on() {
    let daemon = Daemon::start(&Setup::default());
    fs::write(daemon.path("upload/file"), "text").unwrap();
    let cid = daemon.cid("upload/file");
    let cat = |offset| daemon.chiral(&["cat", &cid, "--offset", offset]);
    assert_eq!((cat("3").stdout.as_slice(), cat("3").status.code()), (&b"t"[..], Some(0)));
    assert_eq!((cat("4").stdout.as_slice(), cat("4").status.code()), (&b""[..], Some(0)));
    assert_eq!(cat("5").status.code(), Some(1));
}

#[test]
fn a_get_that_is_interrupted_leaves_nothing_half_written() {
    let publisher = Daemon::start(&Setup::default());
    fs::write(publisher.path("upload/file"), noise(30_000_000, 51)).unwrap();
    let cid = publisher.cid("upload/file");
    let daemon = Daemon::start_far_from(&publisher, 2_000_000);
    let folder = daemon.scratch().join("folder");
    fs::create_dir(&folder).unwrap();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut get = Command::new(env!("CARGO_BIN_EXE_chiral"))
            .args(["get", &cid, "-o"])
            .arg(folder.join("file"))
            .env("CHIRAL_DATA_DIR", daemon.data())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the first bytes", || {
            let part = names(&folder).pop()?;
            (fs::metadata(folder.join(part)).ok()?.len() > 0).then_some(())
        });
        kill(Pid::from_raw(get.id().cast_signed()), signal).unwrap();
        let status = eventually("the end", || get.try_wait().unwrap());
        assert_eq!(status.code(), Some(code));
        assert_eq!(names(&folder), Vec::<String>::new());
    }
}

/// A field of protobuf that has bytes; none of them here is longer than 16 KiB.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len();
    let low = u8::try_from(len & 0x7f).unwrap();
    let high = u8::try_from(len >> 7).unwrap();
    let len = if high == 0 { vec![low] } else { vec![low | 0x80, high] };
    [&[number << 3 | 2], &*len, bytes].concat()
}

/// A directory of any names, and its id.
fn directory(entries: &[(&[u8], ContentId)]) -> (ContentId, Vec<u8>) {
    let mut block = Vec::new();
    for (name, cid) in entries {
        let link = [field(1, &cid.to_bytes()), field(2, name), vec![0x18, 0]].concat();
        block.extend(field(2, &link));
    }
    block.extend(field(1, &[8, 1]));
    (ContentId::dag_pb(sha2_256(&block)), block)
}

#[test]
fn the_rest_is_fetched_and_what_is_left_out_listed() {
    let file = |text: &str| (ContentId::raw(sha2_256(text.as_bytes())), text.as_bytes().to_vec());
    let (one, two, gone) = (file("one"), file("two"), file("gone"));
    let cbor: ContentId =
        "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse().unwrap();
    let long = [b'x'; 300];
    let sub = directory(&[(b"..", one.0), (b"two", two.0), (b"gone", gone.0)]);
    let root = directory(&[
        (b"one", one.0),
        (b"a/b", two.0),
        (&long, two.0),
        (b"", two.0),
        (b"data", cbor),
        (b"one", two.0),
        (b"sub", sub.0),
        (b"z", two.0),
    ]);
    let id = root.0.to_string();
    let mut car = car_header(&[root.0]);
    for (cid, block) in [&root, &sub, &one, &two] {
        car.extend(car_section_head(cid, block.len()));
        car.extend(block);
    }
    let config = "[download]\nlookup_timeout = \"1s\"\n".to_owned();
    let daemon = Daemon::start(&Setup { args: vec!["--offline".into()], config });
    let archive = daemon.scratch().join("odd.car");
    fs::write(&archive, car).unwrap();
    daemon.chiral(&["store", "import", archive.to_str().unwrap()]);

    let to = daemon.scratch().join("got");
    let got = daemon.chiral(&["get", &id, "-o", to.to_str().unwrap()]);
    assert_eq!(got.status.code(), Some(1));
    assert_eq!(
        (names(&to), names(&to.join("sub"))),
        (vec!["one".into(), "sub".into(), "z".into()], vec!["two".into()])
    );
    let told = String::from_utf8(got.stderr).unwrap();
    for (name, why) in [
        ("a/b: ", "slash"),
        ("got/xxx", "255 bytes"),
        ("got/: ", "empty"),
        ("data: ", "dag-cbor"),
        ("one: ", "another entry"),
        ("sub/..: ", "stands for a directory"),
        ("sub/gone: ", ""),
    ] {
        assert!(
            told.lines().any(|line| line.contains(name) && line.contains(why)),
            "{name} {told}"
        );
    }
    assert!(told.trim_end().ends_with("7 entries were not fetched; all others were"), "{told}");
    let again = daemon.chiral(&["get", &id, "-o", to.to_str().unwrap(), "--json"]);
    let read: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((again.status.code(), read["left_out"].as_array().unwrap().len()), (Some(1), 7));

    // A listing marks them; a mount has the log alone, and one line of it for each directory.
    let listed = String::from_utf8(daemon.chiral(&["ls", &id]).stdout).unwrap();
    assert_eq!(listed.lines().filter(|line| line.contains("(left out: ")).count(), 5, "{listed}");
    sh(&format!("ls mnt/{id}; ls mnt/{id} mnt/{id}/sub"), daemon.scratch());
    assert_eq!(names(&daemon.path(&id)), ["data", "one", "sub", "z"]);
    let log = daemon.log();
    assert_eq!(log.matches("entries cannot be shown").count(), 2, "{log}");
    assert_eq!(log.matches("entries cannot be read").count(), 1, "{log}");
    daemon.stop();
}
