//! Programs that go through all of the mount, copy it, or come back to what the kernel has forgotten.

use std::{
    collections::BTreeSet,
    fs::{self, File, FileTimes},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use chiral::content::{ContentId, DirectoryBuilder, ImportParams, Metadata, sha2_256};

use crate::harness::{Mounted, errno, mounted, mounted_in, mounted_with, noise, xattr};

/// What one wait may take that ends in vain, on a machine that has other things to do.
const TIMEOUT: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(2);

/// A directory of which nothing but its own block is here: `count` files, directories and links that nobody has.
fn directory_of_missing(m: &Mounted, count: u32) -> ContentId {
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    for number in 0..count {
        let hash = sha2_256(&[&count.to_le_bytes()[..], &number.to_le_bytes()].concat());
        let id = if number % 2 == 0 { ContentId::raw(hash) } else { ContentId::dag_pb(hash) };
        builder.add(&format!("{number:05}"), id, 10);
    }
    let built = builder.finish(Metadata::default());
    built.nodes.iter().for_each(|node| m.node.store().put_node(node).unwrap());
    built.root
}

/// Looks at every entry of a directory, one after the other as `ls -l` does; how many there are and how long it took.
fn look_at_all(dir: &Path) -> (usize, Duration) {
    let start = Instant::now();
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        names.push(entry.unwrap().path());
    }
    for name in &names {
        assert_eq!(errno(fs::symlink_metadata(name)), libc::ETIMEDOUT, "{}", name.display());
    }
    (names.len(), start.elapsed())
}

#[test]
fn a_walk_over_missing_entries_costs_one_timeout() {
    let Some(m) = mounted(true) else { return };
    for count in [1, 14, 1000] {
        let dir = m.path(&directory_of_missing(&m, count).to_string());
        let (seen, took) = look_at_all(&dir);
        assert_eq!(seen, count as usize);
        assert!(took < TIMEOUT + SLACK, "{count}: {took:?}");
        let (_, took) = look_at_all(&dir);
        assert!(took < TIMEOUT / 2, "{count}, once more: {took:?}");
    }
}

#[test]
fn a_tree_without_sources_costs_one_timeout() {
    let Some(m) = mounted(true) else { return };
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    for count in 2..32 {
        builder.add(&format!("{count:05}"), directory_of_missing(&m, count), 10);
    }
    let built = builder.finish(Metadata::default());
    built.nodes.iter().for_each(|node| m.node.store().put_node(node).unwrap());
    let top = m.path(&built.root.to_string());
    let start = Instant::now();
    for count in 2..32u32 {
        let (seen, _) = look_at_all(&top.join(format!("{count:05}")));
        assert_eq!(seen, count as usize);
    }
    assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}", start.elapsed());
}

#[test]
fn missing_roots_cost_one_timeout() {
    if !crate::harness::can_mount() {
        return;
    }
    let m = mounted_with(
        |options| {
            // Torrents are looked for only with a network, on this machine alone.
            options.torrent.online = true;
            options.torrent.lookup_timeout = TIMEOUT;
        },
        true,
    );
    for number in 0..20u8 {
        let id = ContentId::dag_pb(sha2_256(&[number]));
        m.node.store().pin(chiral::node::Pin { root: id, name: String::new() }).unwrap();
        let link = format!("magnet:?xt=urn:btih:{:040}&dn=nobody{number}", u32::from(number) + 1);
        m.node.torrents().add_link(&link.parse().unwrap()).unwrap();
    }
    let walk = || {
        let start = Instant::now();
        // Both fail at what is missing.
        assert!(!m.run("ls -lL . torrents").status.success());
        start.elapsed()
    };
    let took = walk();
    assert!(took < TIMEOUT + SLACK, "{took:?}");
    let took = walk();
    assert!(took < TIMEOUT / 2, "once more: {took:?}");
}

#[test]
fn recursive_readers_of_the_whole_mount_end() {
    let Some(m) = mounted(true) else { return };
    m.sh("mkdir -p upload/d/e && echo one > upload/d/e/f && ln -s f upload/d/e/l && echo two > upload/g");
    let (tree, file) = (m.cid("d"), m.cid("g"));
    m.sh(&format!("cat {file} ipfs/{file} && ls ipfs/{tree}"));
    let copy = m.root.parent().unwrap().join("copy");
    fs::create_dir(&copy).unwrap();
    let copy = copy.display();
    for command in [
        format!("grep -r one . | sort -u | grep -q '{tree}/e/f:one'"),
        format!("cp -r . {copy}/cp"),
        format!("tar cf {copy}/t.tar ."),
        format!("rsync -a ./ {copy}/rsync"),
        format!("find . -type f -exec cksum {{}} + > {copy}/sums"),
        format!("zip -qr {copy}/z.zip ."),
        "du -s . > /dev/null".to_owned(),
        "cat .chiral/events".to_owned(),
    ] {
        let program = command.split(' ').next().unwrap();
        if m.run(&format!("command -v {program}")).status.success() {
            m.sh(&command);
        }
    }
    assert!(!m.sh("ls -A .chiral").contains("events"));
    assert_eq!(m.sh("ls -A ipfs"), "");
    // The owner of a copy may do with it as he likes.
    for copied in ["cp", "rsync"].map(|name| format!("{copy}/{name}")) {
        if Path::new(&copied).exists() {
            m.sh(&format!("test -z \"$(find {copied} ! -type l ! -perm -u+w)\" && rm -r {copied}"));
        }
    }
}

#[test]
fn events_are_followed_by_tail() {
    let Some(m) = mounted(true) else { return };
    let out = m.root.parent().unwrap().join("out");
    let mut tail = std::process::Command::new("tail")
        .args(["-f", "-s", "0.1"])
        .arg(m.path(".chiral/events"))
        .stdout(File::create(&out).unwrap())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let cid = ContentId::raw(sha2_256(b"event"));
    // Again and again: nothing tells when tail has opened it.
    while !fs::read_to_string(&out).unwrap().contains(&cid.to_string()) {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing came");
        m.node.engine().emit(chiral::node::Event::Announced { cid });
        std::thread::yield_now();
    }
    tail.kill().unwrap();
    tail.wait().unwrap();
}

#[test]
fn the_root_lists_roots_and_counts_content_once() {
    let Some(m) = mounted(true) else { return };
    m.sh("mkdir upload/t && for i in $(seq 100); do echo $i > upload/t/$i; done");
    let len = 8 << 20;
    fs::write(m.upload("f"), noise(len)).unwrap();
    let (tree, file, leaf) = (m.cid("t"), m.cid("f"), m.cid("t/7"));
    let names = || m.sh("ls -A").lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let fixed = [".chiral", "ipfs", "torrents", "upload"].map(str::to_owned);
    let with = |more: &[&String]| {
        fixed.iter().chain(more.iter().copied()).cloned().collect::<BTreeSet<_>>()
    };
    assert_eq!(names(), with(&[&tree, &file]));
    let used: usize = m.sh("du -sb --apparent-size upload | cut -f1").trim().parse().unwrap();
    let counted: usize = m.sh("du -s -B1 . | cut -f1").trim().parse().unwrap();
    assert!(counted >= len && counted < used + (1 << 20), "{counted} bytes of {used}");
    // What the user opens by its own id is listed from then on.
    m.sh(&format!("cat {leaf}"));
    let start = Instant::now();
    while names() != with(&[&tree, &file, &leaf]) {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", names());
    }
}

#[test]
fn hard_links_are_names_of_one_file() {
    for passthrough in [true, false] {
        let Some(m) = mounted(passthrough) else { return };
        fs::create_dir(m.upload("d")).unwrap();
        fs::write(m.upload("a"), "one").unwrap();
        fs::hard_link(m.upload("a"), m.upload("d/b")).unwrap();
        let found = |path: &str| fs::metadata(m.upload(path)).unwrap();
        assert_eq!((found("a").nlink(), found("d/b").nlink()), (2, 2));
        assert_eq!(found("a").ino(), found("d/b").ino());
        let before = m.cid("d");
        fs::write(m.upload("a"), "another").unwrap();
        assert_eq!(fs::read(m.upload("d/b")).unwrap(), b"another");
        assert_eq!(m.cid("a"), m.cid("d/b"));
        assert_ne!(m.cid("d"), before, "the directory of each name is published anew");
        // One name goes, the other one stays.
        fs::rename(m.upload("d/b"), m.upload("c")).unwrap();
        fs::remove_file(m.upload("a")).unwrap();
        assert_eq!(found("c").nlink(), 1);
        assert_eq!(fs::read(m.upload("c")).unwrap(), b"another");
        fs::write(m.upload("x"), "x").unwrap();
        fs::hard_link(m.upload("x"), m.upload("y")).unwrap();
        fs::rename(m.upload("c"), m.upload("x")).unwrap();
        assert_eq!((fs::read(m.upload("y")).unwrap(), found("y").nlink()), (b"x".to_vec(), 1));
        let content = m.path(&m.cid("y"));
        assert_eq!(errno(fs::hard_link(content, m.upload("z"))), libc::EXDEV);
        assert_eq!(errno(fs::hard_link(m.upload("y"), m.path("z"))), libc::EROFS);
        m.sh("mkdir s && false || true; cd upload && mkdir s && echo 1 > s/a && ln s/a s/b && ln -s a s/l && ln s/l s/m \
              && cp -a s t && rsync -aH s/ r && tar cf - s | tar xf - -C t && stat -c %h t/a r/b t/s/a | uniq -c | grep -q '3 2'");
    }
}

#[test]
fn hard_links_are_there_again_after_a_restart() {
    if !crate::harness::can_mount() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("chiral-fs-").tempdir().unwrap();
    let m = mounted_in(dir.path(), |_| {}, true);
    fs::create_dir(m.upload("d")).unwrap();
    fs::write(m.upload("a"), "one").unwrap();
    fs::hard_link(m.upload("a"), m.upload("d/b")).unwrap();
    let (ino, tree) = (fs::metadata(m.upload("a")).unwrap().ino(), m.cid("d"));
    m.end();
    let m = mounted_in(dir.path(), |_| {}, true);
    for name in ["a", "d/b"] {
        let found = fs::metadata(m.upload(name)).unwrap();
        assert_eq!((found.ino(), found.nlink()), (ino, 2), "{name}");
    }
    assert_eq!(m.cid("d"), tree);
    m.end();
}

#[test]
fn access_lists_are_kept_and_give_no_more_than_they_say() {
    let Some(m) = mounted(true) else { return };
    let source = m.root.parent().unwrap().join("source");
    fs::write(&source, "x").unwrap();
    let entry = |tag: u16, mode: u16| [tag.to_le_bytes(), mode.to_le_bytes()].concat();
    let list: Vec<u8> =
        [(1, 6, u32::MAX), (2, 4, 1), (4, 0, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)]
            .into_iter()
            .fold(2u32.to_le_bytes().to_vec(), |all, (tag, mode, id): (u16, u16, u32)| {
                [all, entry(tag, mode), id.to_le_bytes().to_vec()].concat()
            });
    let name = "system.posix_acl_access";
    let set =
        |path: &Path| rustix::fs::setxattr(path, name, &list, rustix::fs::XattrFlags::empty());
    fs::write(m.upload("own"), "x").unwrap();
    assert_eq!(errno(xattr(&m.upload("own"), name)), libc::EOPNOTSUPP);
    set(&m.upload("own")).unwrap();
    assert_eq!(fs::metadata(m.upload("own")).unwrap().mode() & 0o7777, 0o600);
    if set(&source).is_err() {
        eprintln!("SKIPPED: the scratch folder has no access lists, copying them was not tested");
        return;
    }
    m.sh("cp -p ../source upload/p && cp -a ../source upload/a");
    if m.run("command -v rsync").status.success() {
        m.sh("rsync -A ../source upload/r");
    }
    for copied in ["p", "a", "own"] {
        let mut value = [0; 256];
        let len = rustix::fs::getxattr(m.upload(copied), name, &mut value[..]).unwrap();
        assert_eq!(value[..len], list, "{copied}");
    }
}

#[test]
fn times_before_1970_and_far_ahead_are_kept() {
    if !crate::harness::can_mount() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("chiral-fs-").tempdir().unwrap();
    let before = |seconds, nanos| UNIX_EPOCH - Duration::new(seconds, nanos);
    let times: [SystemTime; 6] = [
        // Half a second after 1960 begins.
        before(315_619_199, 500_000_000),
        before(0, 1),
        before(1, 0),
        // In 1901 and 2446, the first and the last second that ext4 can hold with a fraction.
        before(1 << 31, 0),
        UNIX_EPOCH + Duration::new(15_032_385_534, 999_999_999),
        UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
    ];
    let m = mounted_in(dir.path(), |_| {}, true);
    fs::write(m.upload("open"), "x").unwrap();
    let open = File::options().write(true).open(m.upload("open")).unwrap();
    for (number, time) in times.iter().enumerate() {
        let times = FileTimes::new().set_accessed(*time).set_modified(*time);
        // Of a file that is being written the working file has the times.
        open.set_times(times).unwrap();
        assert_eq!(open.metadata().unwrap().modified().unwrap(), *time);
        let path = m.upload(&number.to_string());
        fs::write(&path, "x").unwrap();
        m.cid(&number.to_string());
        File::open(&path).unwrap().set_times(times).unwrap();
    }
    drop(open);
    let expect = |m: &Mounted| {
        for (number, time) in times.iter().enumerate() {
            let found = fs::metadata(m.upload(&number.to_string())).unwrap();
            assert_eq!(found.modified().unwrap(), *time);
            assert_eq!(found.accessed().unwrap(), *time);
        }
    };
    expect(&m);
    m.end();
    let m = mounted_in(dir.path(), |_| {}, true);
    expect(&m);
    m.end();
}

/// What an NFS server does: names a file by a handle, and opens the handle when the kernel has forgotten the file.
const HANDLES: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [('bytes', ctypes.c_uint), ('type', ctypes.c_int), ('data', ctypes.c_ubyte * 128)]
def name(path):
    handle, mount = Handle(bytes=128), ctypes.c_int()
    if libc.name_to_handle_at(-100, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), path)
    return bytes(handle)
def read(root, raw):
    handle = Handle.from_buffer_copy(raw)
    fd = libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)
    if fd < 0:
        return os.strerror(ctypes.get_errno())
    return ','.join(sorted(os.listdir(fd))) if os.path.isdir(f'/proc/self/fd/{fd}') else os.read(fd, 100).decode().strip()
root, store = os.open('.', os.O_RDONLY), sys.argv[1]
if len(sys.argv) > 2:
    with open(store, 'wb') as out:
        for path in sys.argv[2:]:
            out.write(name(path))
else:
    raws = open(store, 'rb').read()
    size = ctypes.sizeof(Handle)
    for at in range(0, len(raws), size):
        print(read(root, raws[at:at + size]))
"#;

#[test]
fn file_handles_lead_to_the_same_files_again() {
    if !crate::harness::can_mount() || !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("chiral-fs-").tempdir().unwrap();
    fs::write(dir.path().join("handles.py"), HANDLES).unwrap();
    let m = mounted_in(dir.path(), |_| {}, true);
    m.sh("mkdir -p upload/d/e && echo one > upload/d/e/f && echo two > upload/g");
    let tree = m.cid("d");
    let paths = [
        "upload/g",
        "upload/d/e/f",
        "upload/d/e",
        &format!("{tree}/e/f"),
        &format!("{tree}/e"),
        "ipfs",
    ];
    if !m.run("command -v python3").status.success() {
        eprintln!("SKIPPED: without python3 nothing of file handles was tested");
        return;
    }
    m.sh(&format!("python3 ../handles.py ../store {}", paths.join(" ")));
    let forget = || fs::write("/proc/sys/vm/drop_caches", "2");
    if let Err(error) = forget() {
        eprintln!("SKIPPED: the kernel cannot be made to forget: {error}");
        return;
    }
    let opened = m.sh("python3 ../handles.py ../store");
    assert_eq!(opened, "two\none\nf\none\nf\n\n");
    // Number and file go together for ever: what comes after it has another number.
    fs::remove_file(m.upload("g")).unwrap();
    m.end();
    let m = mounted_in(dir.path(), |_| {}, true);
    fs::write(m.upload("h"), "another").unwrap();
    let opened = m.sh("python3 ../handles.py ../store");
    let stale = io::Error::from_raw_os_error(libc::ESTALE).to_string();
    let stale = stale.split(" (").next().unwrap().to_owned();
    let expected = [stale.as_str(), "one", "f", &stale, &stale, "", ""];
    assert_eq!(opened.split('\n').collect::<Vec<_>>(), expected);
    m.end();
}
