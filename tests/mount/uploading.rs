//! `upload/` with real programs and calls, with kernel passthrough and without.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
};

use chiral::node::ImportOptions;

use crate::harness::{Mounted, errno, mounted, noise, xattr};

/// Runs a test with passthrough and in copy mode.
fn in_both_modes(test: impl Fn(&Mounted)) {
    for passthrough in [true, false] {
        if let Some(mounted) = mounted(passthrough) {
            test(&mounted);
        }
    }
}

#[test]
fn a_file_that_is_copied_in_is_read_back_by_its_cid() {
    in_both_modes(|m| {
        let bytes = noise(3 << 20 | 17);
        fs::write(m.upload("film.bin"), &bytes).unwrap();
        let cid = m.cid("film.bin");
        assert_eq!(fs::read(m.path(&cid)).unwrap(), bytes);
        assert_eq!(fs::read(m.path("ipfs").join(&cid)).unwrap(), bytes);
        assert_eq!(fs::read(m.upload("film.bin")).unwrap(), bytes);
        let upload = m.upload("film.bin");
        assert_eq!(xattr(&upload, "ipfs.cid").unwrap(), cid);
        assert_eq!(xattr(&upload, "user.chiral.state").unwrap(), "published");
        assert_eq!(xattr(&m.path(&cid), "user.chiral.state").unwrap(), "complete");
        assert_eq!(xattr(&m.path(&cid), "user.chiral.size").unwrap(), bytes.len().to_string());
    });
}

#[test]
fn the_cid_is_the_one_that_kubo_gives() {
    in_both_modes(|m| {
        fs::write(m.upload("hello"), "hello world\n").unwrap();
        // ipfs add --cid-version=1
        assert_eq!(m.cid("hello"), "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4");
    });
}

#[test]
fn appending_overwriting_and_truncating_give_new_cids_and_old_ones_stay_readable() {
    in_both_modes(|m| {
        fs::write(m.upload("log"), "one\n").unwrap();
        let first = m.cid("log");
        OpenOptions::new().append(true).open(m.upload("log")).unwrap().write_all(b"two\n").unwrap();
        assert_eq!(fs::read(m.upload("log")).unwrap(), b"one\ntwo\n");
        let second = m.cid("log");
        assert_ne!(first, second);
        assert_eq!(fs::read(m.path(&second)).unwrap(), b"one\ntwo\n");
        File::options().write(true).open(m.upload("log")).unwrap().set_len(2).unwrap();
        assert_eq!(fs::metadata(m.upload("log")).unwrap().len(), 2);
        let third = m.cid("log");
        assert_eq!(fs::read(m.path(&third)).unwrap(), b"on");
        fs::write(m.upload("log"), "new").unwrap();
        assert_eq!(fs::read(m.path(&m.cid("log"))).unwrap(), b"new");
    });
}

#[test]
fn a_reader_beside_the_writer_sees_each_write() {
    in_both_modes(|m| {
        let mut writer = File::create(m.upload("live")).unwrap();
        let mut reader = File::open(m.upload("live")).unwrap();
        let mut seen = String::new();
        for line in ["a\n", "bb\n", "ccc\n"] {
            writer.write_all(line.as_bytes()).unwrap();
            let mut more = String::new();
            reader.read_to_string(&mut more).unwrap();
            seen += &more;
            assert!(seen.ends_with(line), "{seen:?}");
        }
        assert_eq!(fs::metadata(m.upload("live")).unwrap().len(), 9);
    });
}

/// Opens a file for reading and writing with more flags.
fn open_both(path: &std::path::Path, flags: rustix::fs::OFlags) -> rustix::io::Result<File> {
    let flags = rustix::fs::OFlags::RDWR | flags;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map(File::from)
}

#[test]
fn no_writable_mapping_reaches_a_version_that_is_published_while_somebody_still_reads_it() {
    in_both_modes(|m| {
        let old = noise(600_000);
        let writer = File::create(m.upload("base")).unwrap();
        writer.write_all_at(&old, 0).unwrap();
        // Reads beside the writer, from the same file below, and goes on when that is published.
        let reader = File::open(m.upload("base")).unwrap();
        drop(writer);
        let first = m.cid("base");

        let none = rustix::fs::OFlags::empty();
        for flags in [none, rustix::fs::OFlags::TRUNC] {
            match open_both(&m.upload("base"), flags) {
                // The kernel could only map the old version.
                Err(error) => assert_eq!(error, rustix::io::Errno::TXTBSY),
                // Without passthrough a mapping is one of the new version.
                Ok(file) => store_through_a_mapping(&file),
            }
        }
        // What cannot be mapped may write.
        let mut more = OpenOptions::new().append(true).open(m.upload("base")).unwrap();
        more.write_all(b"more").unwrap();
        drop(more);
        assert_ne!(m.cid("base"), first);
        assert!(fs::read(m.path(&first)).unwrap() == old, "the published version changed");
        drop(reader);
        // Its release comes a moment after the close.
        let mut tries = 0;
        let file = loop {
            match open_both(&m.upload("base"), none) {
                Err(rustix::io::Errno::TXTBSY) if tries < 1000 => tries += 1,
                opened => break opened.unwrap(),
            }
        };
        store_through_a_mapping(&file);
        drop(file);
        m.cid("base");
        assert!(fs::read(m.path(&first)).unwrap() == old, "the published version changed");
    });
}

/// Changes the first bytes as a program does that maps what it writes; nothing for an empty file.
fn store_through_a_mapping(file: &File) {
    let script = "import mmap,sys; m=mmap.mmap(0,0); m[:1]=b'X'; m.flush()";
    if file.metadata().unwrap().len() > 0 {
        let status = std::process::Command::new("python3")
            .args(["-c", script])
            .stdin(file.try_clone().unwrap())
            .status();
        assert!(status.unwrap().success());
    }
}

#[test]
fn an_open_that_is_refused_cuts_nothing() {
    let Some(m) = mounted(true) else { return };
    let writer = File::create(m.upload("base")).unwrap();
    writer.write_all_at(&noise(300_000), 0).unwrap();
    let reader = File::open(m.upload("base")).unwrap();
    drop(writer);
    let cid = m.cid("base");
    let opened = open_both(&m.upload("base"), rustix::fs::OFlags::TRUNC);
    if opened.is_ok() {
        eprintln!("SKIPPED: there is no passthrough on this machine, nothing was refused");
        return;
    }
    assert_eq!(reader.metadata().unwrap().len(), 300_000);
    assert_eq!(m.cid("base"), cid);
    assert!(fs::read(m.upload("base")).unwrap() == noise(300_000));
}

#[test]
fn a_tree_that_is_replaced_past_the_kernel_is_seen_at_once() {
    in_both_modes(|m| {
        let source = m.root.parent().unwrap().join("photos");
        fs::create_dir_all(source.join("2024")).unwrap();
        fs::write(source.join("2024/a.jpg"), "old").unwrap();
        m.sh("cp -r ../photos upload/ && mkdir upload/other && mv upload/photos upload/other/ && mv upload/other/photos upload/");
        m.sh("ls -lR upload && cat upload/photos/2024/a.jpg");
        m.cid("photos");
        for round in ["one", "two"] {
            fs::write(source.join("2024/a.jpg"), round).unwrap();
            fs::write(source.join(format!("2024/{round}")), "").unwrap();
            let options = ImportOptions {
                name: Some("photos".into()),
                replace: true,
                ..ImportOptions::default()
            };
            let import = m.node.uploads().import_path(&source, options, |_, _, _| {});
            m.runtime.block_on(import).unwrap();
            // Each by itself, so that none profits from what another one has looked up.
            assert_eq!(fs::read_to_string(m.upload("photos/2024/a.jpg")).unwrap(), round);
            assert!(m.upload(&format!("photos/2024/{round}")).exists(), "{round}");
            assert_eq!(m.sh("ls upload/photos"), "2024\n");
            m.sh(&format!(
                "ls -l upload/photos/2024 | grep -q {round} && find upload/photos >/dev/null"
            ));
            m.sh("touch upload/photos/2024/new && rm upload/photos/2024/new && mkdir upload/photos/x && rmdir upload/photos/x");
        }
    });
}

#[test]
fn a_tree_is_one_directory_with_a_cid() {
    in_both_modes(|m| {
        fs::create_dir_all(m.upload("photos/2024")).unwrap();
        fs::write(m.upload("photos/2024/a.jpg"), noise(1000)).unwrap();
        fs::write(m.upload("photos/b.jpg"), noise(300_000)).unwrap();
        symlink("b.jpg", m.upload("photos/c.jpg")).unwrap();
        let cid = m.cid("photos");
        let dir = m.path(&cid);
        assert_eq!(fs::read(dir.join("2024/a.jpg")).unwrap(), noise(1000));
        assert_eq!(fs::read(dir.join("c.jpg")).unwrap(), noise(300_000));
        assert_eq!(fs::read_link(dir.join("c.jpg")).unwrap().to_str(), Some("b.jpg"));
        let listed = m.sh(&format!("cd {cid} && find . | sort"));
        assert_eq!(listed, ".\n./2024\n./2024/a.jpg\n./b.jpg\n./c.jpg\n");
        m.sh(&format!("cp -r {cid} upload/copy && diff -r {cid} upload/copy"));
        assert_eq!(m.cid("copy"), cid);
        assert!(m.sh("ls").contains(&cid));
    });
}

#[test]
fn renames_replace_exchange_and_refuse() {
    in_both_modes(|m| {
        fs::write(m.upload("a"), "a").unwrap();
        fs::write(m.upload("b"), "b").unwrap();
        fs::create_dir(m.upload("d")).unwrap();
        fs::rename(m.upload("a"), m.upload("d/a")).unwrap();
        fs::rename(m.upload("d/a"), m.upload("b")).unwrap();
        assert_eq!(fs::read(m.upload("b")).unwrap(), b"a");
        assert_eq!(errno(fs::metadata(m.upload("a"))), libc::ENOENT);
        fs::write(m.upload("c"), "c").unwrap();
        let rename = |flags| {
            let cwd = rustix::fs::CWD;
            rustix::fs::renameat_with(cwd, m.upload("b"), cwd, m.upload("c"), flags)
        };
        assert_eq!(rename(rustix::fs::RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
        rename(rustix::fs::RenameFlags::EXCHANGE).unwrap();
        assert_eq!(fs::read(m.upload("b")).unwrap(), b"c");
        assert_eq!(errno(fs::rename(m.upload("d"), m.upload("d/e"))), libc::EINVAL);
        assert_eq!(errno(fs::remove_dir(m.upload("b"))), libc::ENOTDIR);
    });
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    in_both_modes(|m| {
        let mut file =
            File::options().read(true).write(true).create_new(true).open(m.upload("tmp")).unwrap();
        file.write_all(b"still here").unwrap();
        fs::remove_file(m.upload("tmp")).unwrap();
        file.write_all(b" and here").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here and here");
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert_eq!(m.sh("ls -A upload"), "");
    });
}

#[test]
fn owners_modes_times_and_attributes_are_kept() {
    in_both_modes(|m| {
        let path = m.upload("f");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        // Only root gives files away.
        let (uid, gid) = match nix::unistd::geteuid() {
            root if root.is_root() => (7, 8),
            user => (user.as_raw(), nix::unistd::getegid().as_raw()),
        };
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        if uid != 7 {
            assert_eq!(errno(std::os::unix::fs::chown(&path, Some(7), None)), libc::EPERM);
        }
        let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::options().write(true).open(&path).unwrap().set_modified(when).unwrap();
        rustix::fs::setxattr(&path, "user.note", b"hi", rustix::fs::XattrFlags::CREATE).unwrap();
        assert_eq!(xattr(&path, "user.note").unwrap(), "hi");
        let twice = rustix::fs::setxattr(&path, "user.note", b"hi", rustix::fs::XattrFlags::CREATE);
        assert_eq!(twice, Err(rustix::io::Errno::EXIST));
        // What programs copy that copy all attributes has no effect; other names of chiral's are refused.
        let set = |name| rustix::fs::setxattr(&path, name, b"x", rustix::fs::XattrFlags::empty());
        set("user.chiral.cid").unwrap();
        rustix::fs::removexattr(&path, "user.chiral.cid").unwrap();
        assert_ne!(m.cid("f"), "x");
        assert!(set("user.chiral.other").is_err() && set("ipfs.cid").is_err());
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o640, uid, gid));
        assert_eq!(found.modified().unwrap(), when);
        let mut names = [0; 512];
        let len = rustix::fs::listxattr(&path, &mut names).unwrap();
        let names = String::from_utf8(names[..len].to_vec()).unwrap();
        assert!(names.contains("user.note\0") && names.contains("user.chiral.cid\0"));
        assert!(!names.contains("ipfs.cid"));
        rustix::fs::removexattr(&path, "user.note").unwrap();
        assert_eq!(errno(xattr(&path, "user.note")), libc::ENODATA);
    });
}

#[test]
fn sparse_files_fallocate_and_seek_work() {
    in_both_modes(|m| {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(m.upload("sparse"))
            .unwrap();
        file.write_all_at(b"end", 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (1 << 20) + 3);
        let mut start = [1; 4];
        file.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(start, [0; 4]);
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
        assert!(data > 0 && data <= 1 << 20, "{data}");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 2 << 20);
        file.sync_all().unwrap();
        File::open(m.upload("")).unwrap().sync_all().unwrap();
    });
}

#[test]
fn what_cannot_be_published_is_refused() {
    in_both_modes(|m| {
        fs::write(m.upload("a"), "a").unwrap();
        assert!(!m.run("mkfifo upload/pipe").status.success());
        for path in ["x", "ipfs/x", ".chiral/x"] {
            assert_eq!(errno(File::create(m.path(path))), libc::EROFS, "{path}");
            assert_eq!(errno(fs::create_dir(m.path(path))), libc::EROFS, "{path}");
            assert_eq!(errno(fs::rename(m.upload("a"), m.path(path))), libc::EROFS, "{path}");
        }
        let cid = m.cid("a");
        for options in [OpenOptions::new().write(true), OpenOptions::new().read(true).append(true)]
        {
            assert_eq!(errno(options.open(m.path(&cid))), libc::EROFS);
        }
        assert_eq!(errno(fs::remove_file(m.path(&cid))), libc::EROFS);
        assert_eq!(fs::read(m.path(&cid)).unwrap(), b"a");
    });
}

#[test]
fn a_running_program_is_not_truncated() {
    in_both_modes(|m| {
        fs::copy("/bin/sleep", m.upload("sleep")).unwrap();
        let mut running = std::process::Command::new(m.upload("sleep")).arg("60").spawn().unwrap();
        for flags in [libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC, libc::O_RDONLY | libc::O_TRUNC]
        {
            let flags = rustix::fs::OFlags::from_bits_retain(flags.cast_unsigned());
            let opened = rustix::fs::open(m.upload("sleep"), flags, rustix::fs::Mode::empty());
            assert_eq!(opened.unwrap_err(), rustix::io::Errno::TXTBSY, "{flags:?}");
        }
        assert_eq!(running.try_wait().unwrap(), None, "it was killed");
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(fs::read(m.upload("sleep")).unwrap(), fs::read("/bin/sleep").unwrap());
    });
}

#[test]
fn programs_work_in_it() {
    in_both_modes(|m| {
        m.sh("cd upload && mkdir src && for i in $(seq 50); do echo $i > src/$i; done && tar cf t.tar src && mkdir x \
              && tar xf t.tar -C x && diff -r src x/src && rm -r src && dd if=/dev/urandom of=d bs=64k count=20 \
              status=none && cp d e && cmp d e && echo tail >> d && ! cmp -s d e && mv e x/ && ls -l x > /dev/null");
        assert_eq!(m.sh("find upload -type f | wc -l").trim(), "53");
    });
}

#[test]
fn hidden_files_work_as_all_others_and_have_no_cid() {
    in_both_modes(|m| {
        let asked = |path: &str, name: &str| xattr(&m.upload(path), &format!("user.chiral.{name}"));
        m.sh("mkdir upload/d && echo public > upload/d/a && echo KEY=1 > upload/d/.env");
        let alone = m.cid("d");
        assert_eq!(asked("d/.env", "state").unwrap(), "ignored");
        assert_eq!(errno(asked("d/.env", "cid")), libc::ENODATA);
        let listed = m.sh("getfattr --absolute-names -m - upload/d/.env");
        assert!(listed.contains("user.chiral.state") && !listed.contains("cid"), "{listed}");
        m.sh("cd upload/d && echo KEY=2 >> .env && truncate -s 6 .env && mv .env .e && cp .e .f && mv .e .env && mkdir .sub && ln -s x .l && rm .l");
        assert_eq!(fs::read_to_string(m.upload("d/.env")).unwrap(), "KEY=1\n");
        let file = File::options().read(true).write(true).open(m.upload("d/.env")).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"end", (1 << 20) - 3).unwrap();
        drop(file);
        assert_eq!(fs::metadata(m.upload("d/.env")).unwrap().len(), 1 << 20);
        m.sh("cd upload/d && git init -q . && git add -A && git -c user.name=n -c user.email=e commit -qm one && git fsck --strict && git gc -q && git status --porcelain");
        assert_eq!(m.cid("d"), alone);
        // Programs that write beside a file and move that over it.
        m.sh("mkdir -p ../src && head -c 300000 /dev/urandom > ../src/f && rsync -a ../src/ upload/r/ && cmp ../src/f upload/r/f");
        m.cid("r/f");
        m.sh("mv upload/d/a upload/d/.a");
        assert_eq!(errno(asked("d/.a", "cid")), libc::ENODATA);
        assert_ne!(m.cid("d"), alone);
        assert_eq!(fs::read_to_string(m.upload("d/.a")).unwrap(), "public\n");
        m.sh("mv upload/d/.a upload/d/a && echo log > upload/d/x.log");
        m.cid("d/x.log");
        // Rules hold once their file is closed.
        m.sh("echo '*.log' > upload/d/.chiralignore");
        assert_eq!(m.cid("d"), alone);
        m.sh("echo '!.env' > upload/d/.chiralignore");
        assert_ne!(m.cid("d"), alone);
        m.cid("d/.env");
        m.cid("d/x.log");
    });
}
