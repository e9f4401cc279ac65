//! The tree, errors and time limits of reading.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::{errno, mounted, mounted_with, noise, xattr};

/// The sha2-256 of nothing that anybody has.
const ABSENT_DIR: &str = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzda";
const ABSENT_RAW: &str = "bafkreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzda";

#[test]
fn the_root_lists_its_folders_and_what_is_published() {
    let Some(m) = mounted(true) else { return };
    let names = || m.sh("ls -A").lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(
        names(),
        BTreeSet::from([".chiral", "ipfs", "torrents", "upload"].map(str::to_owned))
    );
    fs::write(m.upload("a"), "a").unwrap();
    let cid = m.cid("a");
    assert!(names().contains(&cid));
    assert!(m.sh("grep chiral-fs- /proc/self/mounts | tail -1").contains(" fuse.chiral "));
}

#[test]
fn names_that_are_nothing_cost_no_search() {
    let Some(m) = mounted(true) else { return };
    let start = Instant::now();
    for name in
        [".Trash", ".Trash-1000", ".hidden", "autorun.inf", ".git", "HEAD", "ipns", "ipfs/x"]
    {
        assert_eq!(errno(fs::metadata(m.path(name))), libc::ENOENT, "{name}");
    }
    // A search would take the lookup timeout of two seconds for each.
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn what_nobody_has_times_out_and_is_not_enoent_and_holds_nobody_up() {
    let Some(m) = mounted(true) else { return };
    std::thread::scope(|scope| {
        for name in [ABSENT_DIR, ABSENT_RAW] {
            let m = &m;
            scope.spawn(move || {
                assert_eq!(errno(fs::metadata(m.path(name))), libc::ETIMEDOUT, "{name}");
                assert_eq!(
                    errno(fs::metadata(m.path(name).join("below"))),
                    if name == ABSENT_RAW { libc::ENOTDIR } else { libc::ETIMEDOUT }
                );
                let opened = File::open(m.path(name)).and_then(|mut file| file.read(&mut [0; 10]));
                assert_eq!(errno(opened), libc::ETIMEDOUT, "{name}");
            });
        }
        // Beside them everything goes on, also what needs the root's lock.
        let start = Instant::now();
        assert_eq!(errno(File::create(m.path("touched"))), libc::EROFS);
        fs::write(m.upload("a"), "a").unwrap();
        fs::metadata(m.path("ipfs")).unwrap();
        assert_eq!(fs::read(m.path(&m.cid("a"))).unwrap(), b"a");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    });
}

#[test]
fn a_reader_that_is_killed_ends_at_once() {
    if !crate::harness::can_mount() {
        return;
    }
    let m =
        mounted_with(|options| options.download.lookup_timeout = Duration::from_secs(300), true);
    for signal in ["INT", "TERM", "KILL"] {
        let mut child = Command::new("stat")
            .arg(m.path(ABSENT_DIR))
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // It has to be inside the call first.
        while !m.node.tasks().alive().contains_key("getattr") {
            std::thread::yield_now();
        }
        let killed = Instant::now();
        assert!(
            Command::new("kill")
                .args([&format!("-{signal}"), &child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        assert!(!child.wait().unwrap().success());
        assert!(killed.elapsed() < Duration::from_secs(10), "{signal}: {:?}", killed.elapsed());
        while m.node.tasks().alive().contains_key("getattr") {
            std::thread::yield_now();
        }
    }
}

#[test]
fn inline_content_and_old_ids_are_shown() {
    let Some(m) = mounted(true) else { return };
    // Version 1, raw, identity of 5 bytes.
    assert_eq!(fs::read(m.path("f0155000568656c6c6f")).unwrap(), b"hello");
    fs::write(m.upload("a"), "a").unwrap();
    let cid = m.cid("a");
    let id: chiral::content::ContentId = cid.parse().unwrap();
    let hex: String = id.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(fs::read(m.path(&format!("f{hex}"))).unwrap(), b"a");
}

#[test]
fn attributes_of_content_are_those_of_a_read_only_file() {
    let Some(m) = mounted(true) else { return };
    fs::write(m.upload("a"), noise(100_000)).unwrap();
    let cid = m.cid("a");
    let found = fs::metadata(m.path(&cid)).unwrap();
    assert_eq!((found.mode(), found.len(), found.nlink()), (libc::S_IFREG | 0o644, 100_000, 1));
    assert_eq!(found.blocks(), 1, "its blocks are those of the upload");
    assert_eq!(found.ino(), fs::metadata(m.path(&cid)).unwrap().ino());
    let dir = fs::metadata(m.path("ipfs")).unwrap();
    assert_eq!(dir.mode(), libc::S_IFDIR | 0o755);
    assert_eq!(xattr(&m.path(&cid), "user.chiral.cached").unwrap(), "100000");
    assert_eq!(errno(xattr(&m.path(&cid), "user.none")), libc::ENODATA);
    assert_eq!(errno(xattr(&m.path(&cid), "system.posix_acl_access")), libc::EOPNOTSUPP);
    let file = File::open(m.path(&cid)).unwrap();
    let seek = |from| rustix::fs::seek(&file, from);
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(5)), Ok(100_000));
    assert_eq!(seek(rustix::fs::SeekFrom::Data(5)), Ok(5));
    assert!(m.sh("df . | tail -1").contains(m.root.to_str().unwrap()));
}

#[test]
fn the_files_of_the_daemon_are_json() {
    let Some(m) = mounted(true) else { return };
    let version = fs::read_to_string(m.path(".chiral/version")).unwrap();
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
    for name in ["status.json", "transfers.json", "peers.json"] {
        let text = fs::read(m.path(".chiral").join(name)).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap();
        let shown = m.sh(&format!("cat .chiral/{name}"));
        serde_json::from_str::<serde_json::Value>(&shown).unwrap();
    }
    let mut events = File::open(m.path(".chiral/events")).unwrap();
    fs::write(m.upload("a"), "a").unwrap();
    let cid = m.cid("a");
    let mut text = String::new();
    while !text.contains("published") {
        let mut part = [0; 4096];
        // It ends with what has happened so far, and goes on from there.
        let len = events.read(&mut part).unwrap();
        text += std::str::from_utf8(&part[..len]).unwrap();
    }
    assert!(text.contains(&cid), "{text}");
}

#[test]
fn a_detached_mount_is_gone_at_once_although_a_file_is_open() {
    let Some(m) = mounted(true) else { return };
    fs::write(m.upload("a"), "a").unwrap();
    let mut open = File::open(m.upload("a")).unwrap();
    m.mount().unmount().unwrap();
    assert!(!m.path("upload").exists());
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "a");
    drop(open);
    let ended = async { tokio::time::timeout(Duration::from_secs(10), m.mount().ended()).await };
    m.runtime.block_on(ended).unwrap();
    m.mount().unmount().unwrap();
}

#[test]
fn a_mount_that_is_taken_away_from_outside_ends() {
    let Some(m) = mounted(true) else { return };
    assert!(chiral::fs::unmount_path(&m.root).unwrap());
    let ended = async { tokio::time::timeout(Duration::from_secs(10), m.mount().ended()).await };
    m.runtime.block_on(ended).unwrap();
    assert!(!chiral::fs::unmount_path(&m.root).unwrap());
}

/// Not a test of its own: the daemon that the next one kills.
#[test]
#[ignore = "runs inside of `the_mount_of_a_killed_daemon_is_detached_and_its_uploads_are_there_again`"]
fn daemon_to_be_killed() {
    let Some(dir) = std::env::var_os("CHIRAL_TEST_DIR") else { return };
    let m = crate::harness::mounted_in(dir.as_ref(), |_| {}, true);
    fs::write(m.upload("kept"), noise(500_000)).unwrap();
    fs::write(m.root.parent().unwrap().join("cid"), m.cid("kept")).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn the_mount_of_a_killed_daemon_is_detached_and_its_uploads_are_there_again() {
    if !crate::harness::can_mount() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("chiral-fs-").tempdir().unwrap();
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "reading::daemon_to_be_killed"])
        .env("CHIRAL_TEST_DIR", dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = dir.path().join("cid");
    while fs::metadata(&told).map_or(0, |found| found.len()) == 0 {
        assert!(daemon.try_wait().unwrap().is_none(), "the daemon ended by itself");
        std::thread::yield_now();
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(errno(fs::metadata(dir.path().join("mnt"))), libc::ENOTCONN);
    let m = crate::harness::mounted_in(dir.path(), |_| {}, true);
    assert_eq!(fs::read(m.upload("kept")).unwrap(), noise(500_000));
    assert_eq!(m.cid("kept"), fs::read_to_string(&told).unwrap());
}

#[test]
fn a_mountpoint_that_is_in_use_or_no_directory_is_refused() {
    let Some(m) = mounted(true) else { return };
    let start = |mountpoint: &std::path::Path| {
        let options = chiral::fs::MountOptions {
            mountpoint: mountpoint.to_owned(),
            allow_other: false,
            passthrough: true,
            read_only: false,
        };
        chiral::fs::Mount::start(options, m.node.clone())
    };
    assert!(matches!(start(&m.root), Err(chiral::fs::MountError::Mounted(_))));
    let file = m.root.parent().unwrap().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(start(&file), Err(chiral::fs::MountError::NotADirectory(_))));
    let missing = start(&m.root.parent().unwrap().join("missing"));
    assert!(matches!(missing, Err(chiral::fs::MountError::Mountpoint { .. })));
}

/// Two nodes on this machine; the first has a file of several leaves and a tree.
fn publisher_and_reader() -> Option<(crate::harness::Mounted, crate::harness::Mounted)> {
    if !crate::harness::can_mount() {
        return None;
    }
    let listen = |options: &mut chiral::node::NodeOptions| {
        options.net.offline = false;
        options.net.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    };
    let publisher = mounted_with(listen, true);
    let address = publisher.node.net().addresses().first().cloned().unwrap();
    let reader = mounted_with(
        |options| {
            listen(options);
            options.net.peers = vec![address];
            options.download.lookup_timeout = Duration::from_secs(20);
        },
        true,
    );
    Some((publisher, reader))
}

#[test]
fn a_file_and_a_tree_of_another_node_are_read_through_its_placeholder() {
    let Some((publisher, reader)) = publisher_and_reader() else { return };
    let bytes = noise(5 << 20 | 123);
    fs::write(publisher.upload("film"), &bytes).unwrap();
    fs::create_dir_all(publisher.upload("tree/deep")).unwrap();
    fs::write(publisher.upload("tree/deep/film"), noise(700_000)).unwrap();
    fs::write(publisher.upload("tree/note"), "note").unwrap();
    let (film, tree) = (publisher.cid("film"), publisher.cid("tree"));

    // Its first look-up is answered before anything is known of it, with a directory.
    assert!(fs::metadata(reader.path(&film)).unwrap().is_file());
    let mut file = File::open(reader.path(&film)).unwrap();
    let middle = usize::try_from(file.metadata().unwrap().len() / 2).unwrap();
    let mut part = [0; 5000];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut part, middle as u64).unwrap();
    assert_eq!(part, bytes[middle..middle + 5000]);
    let mut whole = Vec::new();
    file.read_to_end(&mut whole).unwrap();
    assert_eq!(whole, bytes);
    drop(file);
    assert_eq!(xattr(&reader.path(&film), "user.chiral.state").unwrap(), "complete");
    assert_eq!(fs::read(reader.path(&film)).unwrap(), bytes);

    assert_eq!(reader.sh(&format!("cd {tree} && find . -type f | sort")), "./deep/film\n./note\n");
    reader.sh(&format!("cp -r {tree} upload/copy"));
    assert_eq!(reader.cid("copy"), tree);
    assert!(reader.sh("ls").contains(&tree));
}

#[test]
fn small_files_that_were_looked_at_are_complete_without_files_of_their_own() {
    use std::os::unix::fs::MetadataExt;
    let Some((publisher, reader)) = publisher_and_reader() else { return };
    fs::create_dir_all(publisher.upload("tree")).unwrap();
    for (name, len) in [("small", 1_000), ("large", 100_000)] {
        fs::write(publisher.upload(&format!("tree/{name}")), noise(len)).unwrap();
    }
    let tree = publisher.cid("tree");
    reader.sh(&format!("ls -l {tree}"));
    let object = |name: &str| {
        let id: chiral::content::ContentId =
            publisher.cid(&format!("tree/{name}")).parse().unwrap();
        reader.node.store().object(&id).unwrap().map(|object| object.is_complete())
    };
    assert_eq!((object("small"), object("large")), (None, Some(true)));
    for (name, len) in [("small", 1_000), ("large", 100_000)] {
        let path = reader.path(&format!("{tree}/{name}"));
        let seen = fs::metadata(&path).unwrap();
        assert_eq!(seen.len(), len as u64);
        assert!(seen.blocks() * 512 >= len as u64, "du shows what is here");
        assert_eq!(xattr(&path, "user.chiral.state").unwrap(), "complete");
        assert_eq!(xattr(&path, "user.chiral.cached").unwrap(), len.to_string());
        assert_eq!(fs::read(&path).unwrap(), noise(len));
    }
    assert_eq!(object("small"), Some(true), "whoever reads a file reads from its own");
}

#[test]
fn a_listing_does_not_wait_for_children_and_a_walk_never_misses_one_silently() {
    let (Some(first), Some(second)) = (mounted(true), mounted(true)) else { return };
    fs::create_dir_all(first.upload("tree/sub")).unwrap();
    fs::write(first.upload("tree/small"), "small").unwrap();
    fs::write(first.upload("tree/big"), noise(700_000)).unwrap();
    fs::write(first.upload("tree/sub/other"), noise(600_000)).unwrap();
    let tree = first.cid("tree");
    let give = |path: &str| {
        let id: chiral::content::ContentId = first.cid(path).parse().unwrap();
        let block = first.node.store().block(&id).unwrap().unwrap();
        second.node.store().put_node(&block).unwrap();
    };
    give("tree");
    assert_eq!(second.sh(&format!("ls {tree}")), "big\nsmall\nsub\n");
    let walk = || {
        let output = second
            .run(&format!("find {tree} -type f -printf '%P\n' | sort; exit ${{PIPESTATUS[0]}}"));
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    };
    assert_eq!(walk(), ("small\n".to_owned(), false));
    give("tree/big");
    give("tree/sub");
    give("tree/sub/other");
    assert_eq!(walk(), ("big\nsmall\nsub/other\n".to_owned(), true));
}

#[test]
fn an_inode_that_showed_a_directory_and_is_a_file_is_stale_and_the_path_leads_to_the_file() {
    let (Some(first), Some(second)) = (mounted(true), mounted(true)) else { return };
    let bytes = noise(600_000);
    fs::write(first.upload("a"), &bytes).unwrap();
    let cid = first.cid("a");
    let path = second.path(&cid);
    let held =
        rustix::fs::open(&path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    assert_eq!(errno(fs::metadata(&path)), libc::ETIMEDOUT);
    fs::write(second.upload("a"), &bytes).unwrap();
    assert_eq!(second.cid("a"), cid);
    assert_eq!(rustix::fs::fstat(&held).unwrap_err(), rustix::io::Errno::STALE);
    assert!(fs::metadata(&path).unwrap().is_file());
    assert_eq!(fs::read(&path).unwrap(), bytes);
}
