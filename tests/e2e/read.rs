//! What is read through another node.

use std::{fs, os::unix::fs::FileExt};

use chiral::content::{Block, DirectoryBuilder, ImportParams, Metadata};

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
fn a_sharded_directory_is_listed_and_searched_on_another_node() {
    // Names that are long enough for Kubo's limit of 256 KiB, above which a directory is sharded.
    let name = |n: usize| format!("{n:04}{}", "x".repeat(200));
    let content = |n: usize| format!("file {n}");
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    let publisher = Daemon::start(&Setup::default());
    let tree = publisher.path("upload/tree");
    fs::create_dir(&tree).unwrap();
    for n in 0..1500 {
        fs::write(tree.join(name(n)), content(n)).unwrap();
        let block = Block::raw(content(n).into());
        builder.add(&name(n), *block.cid(), block.data().len() as u64);
    }
    let built = builder.finish(Metadata::default());
    assert!(built.nodes.len() > 100, "it is not sharded");
    let cid = publisher.cid("upload/tree");
    assert_eq!(cid, built.root.to_string());

    let reader = Daemon::start_beside(&publisher, &Setup::default());
    // One name is found without the whole listing.
    let one = reader.path(&cid).join(name(777));
    assert_eq!(fs::read_to_string(one).unwrap(), content(777));
    let absent = fs::metadata(reader.path(&cid).join("absent")).unwrap_err();
    assert_eq!(absent.kind(), std::io::ErrorKind::NotFound);
    let listed = fs::read_dir(reader.path(&cid)).unwrap();
    let mut listed: Vec<_> =
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    listed.sort();
    assert_eq!(listed, (0..1500).map(name).collect::<Vec<_>>());
    let script = format!("diff -r '{}' mnt/{cid}", publisher.path("upload/tree").display());
    sh(&script, reader.scratch());
}

#[test]
fn programs_that_look_for_holes_copy_what_is_not_here_yet_and_never_zeros() {
    let publisher = Daemon::start(&Setup::default());
    let copies = [
        ("cp", "cp \"$from\" copy"),
        ("sparse", "cp --sparse=always \"$from\" copy"),
        ("reflink", "cp --reflink=auto \"$from\" copy"),
        ("tar", "tar -C mnt -S -cf - \"$cid\" | tar -xf - && mv \"$cid\" copy"),
        ("rsync", "rsync --sparse \"$from\" copy"),
        ("dd", "dd if=\"$from\" of=copy bs=1M conv=sparse status=none"),
    ];
    let published: Vec<_> = copies
        .iter()
        .zip(10..)
        .map(|((name, _), seed)| {
            let mut content = noise(3_000_000, seed);
            // Zeros of its own, on and off the borders of blocks.
            content[1_000_000..1_700_000].fill(0);
            let path = format!("upload/{name}");
            fs::write(publisher.path(&path), &content).unwrap();
            (publisher.cid(&path), content)
        })
        .collect();
    let reader = Daemon::start_far_from(&publisher, 3_000_000);
    for ((name, copy), (cid, content)) in copies.iter().zip(published) {
        let mut part = [0; 1000];
        let file = fs::File::open(reader.path(&cid)).unwrap();
        file.read_exact_at(&mut part, 2_000_000).unwrap();
        assert!(part == content[2_000_000..2_001_000], "{name}");
        drop(file);
        let here: u64 = reader.xattr(&cid, "user.chiral.cached").parse().unwrap();
        assert!(here < 3_000_000, "{name}: all of it is here already");
        sh(&format!("cid={cid} from=mnt/{cid}; {copy}"), reader.scratch());
        let copied = fs::read(reader.scratch().join("copy")).unwrap();
        assert!(copied == content, "{name} copied something else");
        sh("rm -f copy", reader.scratch());
    }
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
