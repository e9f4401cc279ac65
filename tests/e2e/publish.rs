//! What is copied into `upload/`.

use std::{fs, io::Write, os::unix::fs::FileExt, path::Path};

use crate::harness::{Daemon, Setup, eventually, noise, sh};

#[test]
fn a_file_that_is_copied_in_gets_the_id_of_ipfs_add() {
    let daemon = Daemon::start(&Setup::default());
    fs::write(daemon.path("upload/hello.txt"), "hello world\n").unwrap();
    assert_eq!(
        daemon.cid("upload/hello.txt"),
        "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"
    );
    fs::create_dir(daemon.path("upload/dir")).unwrap();
    fs::write(daemon.path("upload/dir/hello.txt"), "hello world\n").unwrap();
    assert_eq!(
        daemon.cid("upload/dir"),
        "bafybeidhkumeonuwkebh2i4fc7o7lguehauradvlk57gzake6ggjsy372a"
    );
}

#[test]
fn a_published_file_survives_a_kill_and_a_restart() {
    let daemon = Daemon::start(&Setup::default());
    let content = noise(3_000_000, 1);
    fs::write(daemon.path("upload/file"), &content).unwrap();
    let cid = daemon.cid("upload/file");
    let daemon = Daemon::start_in(daemon.kill(), &Setup::default());
    assert_eq!(daemon.cid("upload/file"), cid);
    assert_eq!(fs::read(daemon.path("upload/file")).unwrap(), content);
    assert_eq!(fs::read(daemon.path(&cid)).unwrap(), content);
    assert!(daemon.chiral(&["store", "verify"]).status.success());
}

#[test]
fn an_old_version_is_served_until_the_new_one_is_published() {
    let daemon = Daemon::start(&Setup::default());
    let old = noise(1_000_000, 2);
    fs::write(daemon.path("upload/file"), &old).unwrap();
    let old_cid = daemon.cid("upload/file");
    let reader = fs::File::open(daemon.path(&old_cid)).unwrap();

    let file = fs::File::options().write(true).open(daemon.path("upload/file")).unwrap();
    file.write_all_at(b"changed", 300_000).unwrap();
    let mut seen = vec![0; old.len()];
    reader.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == old, "the old version changed under its reader");
    drop(file);

    let mut new = old.clone();
    new[300_000..300_007].copy_from_slice(b"changed");
    let new_cid = daemon.cid("upload/file");
    assert_ne!(new_cid, old_cid);
    assert!(fs::read(daemon.path(&new_cid)).unwrap() == new);
    reader.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == old, "the old version changed under its reader");
}

#[test]
fn appending_and_truncating_give_the_id_of_the_whole_new_file() {
    let daemon = Daemon::start(&Setup::default());
    let mut content = noise(900_000, 3);
    fs::write(daemon.path("upload/log"), &content).unwrap();
    daemon.cid("upload/log");
    fs::File::options()
        .append(true)
        .open(daemon.path("upload/log"))
        .unwrap()
        .write_all(b"tail")
        .unwrap();
    content.extend_from_slice(b"tail");
    fs::write(daemon.path("upload/same"), &content).unwrap();
    assert_eq!(daemon.cid("upload/log"), daemon.cid("upload/same"));

    fs::File::options()
        .write(true)
        .open(daemon.path("upload/log"))
        .unwrap()
        .set_len(500_000)
        .unwrap();
    fs::write(daemon.path("upload/same"), &content[..500_000]).unwrap();
    assert_eq!(daemon.cid("upload/log"), daemon.cid("upload/same"));
}

#[test]
fn programs_work_on_the_upload_directory() {
    for passthrough in [true, false] {
        let setup =
            Setup { config: format!("[mount]\npassthrough = {passthrough}\n"), ..Setup::default() };
        let daemon = Daemon::start(&setup);
        let script = r#"
            mkdir src; (cd src; mkdir -p a/b; head -c 700000 /dev/urandom > a/big; echo text > a/b/text; ln -s b/text a/link; : > empty)
            cp -a src mnt/upload/copied; diff -r --no-dereference src mnt/upload/copied
            tar -C src -cf - . | (mkdir mnt/upload/tar && tar -C mnt/upload/tar -xf -); diff -r --no-dereference src mnt/upload/tar
            mv mnt/upload/tar mnt/upload/moved; test ! -e mnt/upload/tar; diff -r --no-dereference src mnt/upload/moved
            dd if=/dev/zero of=mnt/upload/copied/a/big bs=1000 count=3 seek=5 conv=notrunc status=none
            dd if=/dev/zero of=src/a/big bs=1000 count=3 seek=5 conv=notrunc status=none
            cmp src/a/big mnt/upload/copied/a/big
            truncate -s 12345 mnt/upload/copied/a/big; truncate -s 12345 src/a/big; cmp src/a/big mnt/upload/copied/a/big
            echo new > mnt/upload/tmp; mv mnt/upload/tmp mnt/upload/copied/a/b/text; grep -q new mnt/upload/copied/a/b/text
            rm -r mnt/upload/moved; test "$(ls mnt/upload)" = copied
            find mnt/upload -size +100k | wc -l; du -s mnt/upload >/dev/null; df mnt/upload >/dev/null
        "#;
        sh(script, daemon.scratch());
        assert!(
            sh("getfattr --only-values -n user.chiral.cid mnt/upload/copied", daemon.scratch())
                .starts_with("bafy")
        );
    }
}

#[test]
fn what_cannot_be_published_is_refused() {
    let daemon = Daemon::start(&Setup::default());
    let errors = sh(
        "(mkdir mnt/upload/d; ln -d mnt/upload/d mnt/upload/y; mkfifo mnt/upload/pipe) 2>&1 || true",
        daemon.scratch(),
    );
    assert_eq!(errors.matches("not permitted").count(), 2, "{errors}");
    for name in ["y", "pipe"] {
        assert!(!Path::new(&daemon.path("upload").join(name)).exists());
    }
}

#[test]
fn ids_that_the_command_line_opens_are_listed_in_the_root() {
    let daemon = Daemon::start(&Setup::default());
    sh("mkdir -p mnt/upload/tree/below; echo one > mnt/upload/tree/below/file", daemon.scratch());
    let listed =
        |id: &str| fs::symlink_metadata(daemon.path(id)).is_ok() && names(&daemon).contains(id);
    let top = daemon.cid("upload/tree");
    for (command, path) in [("ls", "below"), ("cat", "below/file")] {
        let id = daemon.cid(&format!("upload/tree/{path}"));
        assert!(!listed(&id), "a part of a tree is none of its own: {id}");
        daemon.chiral(&[command, &id]);
        eventually("the listing", || listed(&id).then_some(()));
    }
    assert!(listed(&top));
    assert_eq!(names(&daemon).len(), 4 + 3);
}

fn names(daemon: &Daemon) -> std::collections::BTreeSet<String> {
    let entries = fs::read_dir(daemon.path("")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
