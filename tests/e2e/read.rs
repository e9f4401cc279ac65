//! What is read through another node.

use std::{fs, os::unix::fs::FileExt};

use crate::harness::{Daemon, Setup, noise, sh};

#[test]
fn a_tree_is_read_by_its_id_on_another_node() {
    let publisher = Daemon::start(&Setup::default());
    sh(
        r"mkdir -p mnt/upload/tree/sub; echo hello > mnt/upload/tree/sub/hello; : > mnt/upload/tree/empty
          head -c 5000000 /dev/urandom > mnt/upload/tree/big; ln -s sub/hello mnt/upload/tree/link",
        publisher.scratch(),
    );
    let cid = publisher.cid("upload/tree");
    let reader = Daemon::start_beside(&publisher, &Setup::default());
    sh(
        &format!(
            "diff -r --no-dereference '{}' 'mnt/{cid}'",
            publisher.path("upload/tree").display()
        ),
        reader.scratch(),
    );
    assert_eq!(sh(&format!("cat mnt/ipfs/{cid}/link"), reader.scratch()), "hello\n");
    assert!(sh("ls mnt", reader.scratch()).contains(&cid));
    sh(
        &format!("cp -r mnt/{cid} copy && diff -r --no-dereference copy mnt/{cid}"),
        reader.scratch(),
    );
}

#[test]
fn a_file_of_many_leaves_is_read_whole_by_seeks_and_again_offline() {
    let publisher = Daemon::start(&Setup::default());
    // Over 174 leaves, so that there are interior nodes below the root.
    let content = noise(50_000_000, 4);
    fs::write(publisher.path("upload/film"), &content).unwrap();
    let cid = publisher.cid("upload/film");
    let reader = Daemon::start_beside(&publisher, &Setup::default());

    let file = fs::File::open(reader.path(&cid)).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 50_000_000);
    let mut part = vec![0; 100_000];
    for offset in [45_000_000, 10, 24_999_999] {
        file.read_exact_at(&mut part, offset).unwrap();
        let at = usize::try_from(offset).unwrap();
        assert!(part == content[at..at + part.len()], "wrong bytes at {offset}");
    }
    drop(file);
    assert!(fs::read(reader.path(&cid)).unwrap() == content);
    assert_eq!(reader.xattr(&cid, "user.chiral.cached"), "50000000");

    drop(publisher);
    let reader = Daemon::start_in(reader.stop(), &Setup::default());
    assert!(fs::read(reader.path(&cid)).unwrap() == content);
    assert!(reader.chiral(&["store", "verify"]).status.success());
}

#[test]
fn the_command_line_gets_what_the_mount_shows() {
    let publisher = Daemon::start(&Setup::default());
    sh("mkdir -p mnt/upload/tree; echo hello > mnt/upload/tree/hello", publisher.scratch());
    let cid = publisher.cid("upload/tree");
    let reader = Daemon::start_beside(&publisher, &Setup::default());
    let cat = reader.chiral(&["cat", &format!("{cid}/hello")]);
    assert_eq!(String::from_utf8_lossy(&cat.stdout), "hello\n");
    let ls = reader.chiral(&["ls", &cid]);
    assert!(String::from_utf8_lossy(&ls.stdout).contains("hello"));
    let target = reader.scratch().join("got");
    assert!(reader.chiral(&["get", &cid, "-o", target.to_str().unwrap()]).status.success());
    assert_eq!(fs::read_to_string(target.join("hello")).unwrap(), "hello\n");
    assert!(reader.chiral(&["pin", "add", &cid]).status.success());
    assert!(String::from_utf8_lossy(&reader.chiral(&["pin", "ls"]).stdout).contains(&cid));
}
