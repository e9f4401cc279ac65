//! Torrents of what a node has published.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{ffi::OsStr, fs, path::Path, time::Duration};

use super::*;
use crate::{
    content::ByteRange,
    node::{NodeOptions, Place, tests::options},
    tasks::Tasks,
    torrent::{Metainfo, TorrentState},
};

const PATIENCE: Duration = Duration::from_secs(60);

async fn start(dir: &Path, change: impl FnOnce(&mut NodeOptions)) -> Node {
    let mut options = options(dir, Vec::new(), true);
    change(&mut options);
    Node::start(options, Tasks::new()).await.unwrap()
}

async fn publish(node: &Node, name: &str, make: impl FnOnce(&Path)) -> ContentId {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join(name);
    make(&path);
    node.uploads().import(&path, OsStr::new(name)).await.unwrap().last().unwrap().0
}

fn tree(path: &Path) {
    fs::create_dir_all(path.join("b/empty")).unwrap();
    fs::write(path.join("b/x"), vec![1; 600_000]).unwrap();
    fs::write(path.join("b-"), b"small").unwrap();
    fs::write(path.join("none"), b"").unwrap();
    std::os::unix::fs::symlink("b/x", path.join("link")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_becomes_a_torrent_whose_bytes_are_those_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let root = publish(&node, "tree", tree).await;
    let magnet = node.seed_content(root, "tree".into(), |_, _| {}).await.unwrap();
    let metainfo = Metainfo::parse(&node.torrents().text(magnet.hash).unwrap()).unwrap();
    assert_eq!((metainfo.name.to_str(), metainfo.len), (Some("tree"), 600_005));
    assert_eq!(metainfo.files.len(), 3);

    let place = Place::Torrent { hash: magnet.hash, node: 0 };
    let protocol = node.protocol(&place);
    let below = protocol.child(&place, OsStr::new("b")).await.unwrap().unwrap();
    let file = protocol.child(&below, OsStr::new("x")).await.unwrap().unwrap();
    let open = protocol.open(&file).await.unwrap();
    let bytes = open.read_now(crate::download::ReaderId(1), ByteRange::new(0, 600_000));
    assert!(bytes.unwrap().unwrap() == vec![1; 600_000]);
    // Also to the kernel it is the same file.
    let (backing, _) = open.backing().unwrap().unwrap();
    let object = node.store().object(&source(&node, magnet.hash).files[0]).unwrap().unwrap();
    let inode = |file: &fs::File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    assert_eq!(inode(&backing), inode(&fs::File::open(object.path()).unwrap()));
    let cached = protocol.cached(&file).unwrap();
    // The blocks are shown in `upload`.
    assert_eq!((cached.bytes, cached.allocated, cached.complete), (600_000, 0, true));

    // It is the same torrent each time.
    assert_eq!(node.seed_content(root, "tree".into(), |_, _| {}).await.unwrap().hash, magnet.hash);
    let offline = node.torrents().status(magnet.hash).unwrap();
    assert_eq!((offline.state, offline.seed), (TorrentState::Idle, true));
    node.stop(PATIENCE).await.unwrap();
}

fn source(node: &Node, hash: InfoHash) -> Source {
    node.torrents().source(hash).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_seeded_is_kept_until_its_last_torrent_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let root = publish(&node, "film", |path| fs::write(path, vec![7; 300_000]).unwrap()).await;
    let one = node.seed_content(root, "one".into(), |_, _| {}).await.unwrap().hash;
    let two = node.seed_content(root, "two".into(), |_, _| {}).await.unwrap().hash;
    assert_ne!(one, two);
    // It is not published any more, and still here.
    node.uploads().unlink(crate::publish::UploadIno::ROOT, OsStr::new("film")).unwrap();
    node.store().gc().unwrap();
    assert_eq!(node.pinned_contents().unwrap().len(), 1);
    assert!(node.torrents().text(one).is_ok());

    node.remove_torrent(one).await.unwrap();
    node.store().gc().unwrap();
    assert!(node.store().object(&root).unwrap().unwrap().is_complete());
    node.remove_torrent(two).await.unwrap();
    assert!(node.pinned_contents().unwrap().is_empty());
    let again = node.remove_torrent(two).await;
    assert!(matches!(again, Err(NodeError::Torrent(TorrentError::NoSuchTorrent(_)))), "{again:?}");

    // A pin of the user's stays.
    let root = publish(&node, "other", |path| fs::write(path, b"other").unwrap()).await;
    node.pin_to_end(Place::Content { root, id: root }, "mine".to_owned(), None).await.unwrap();
    let hash = node.seed_content(root, "other".into(), |_, _| {}).await.unwrap().hash;
    node.remove_torrent(hash).await.unwrap();
    assert_eq!(node.pinned_contents().unwrap().len(), 1);
    node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_torrent_can_be_made_of_is_not_seeded_and_nothing_of_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let root = publish(&node, "none", |path| fs::write(path, b"").unwrap()).await;
    let empty = node.seed_content(root, "none".into(), |_, _| {}).await;
    assert!(
        matches!(empty, Err(NodeError::Torrent(TorrentError::Build(BuildError::Empty)))),
        "{empty:?}"
    );
    let link = publish(&node, "link", |path| std::os::unix::fs::symlink("x", path).unwrap()).await;
    let refused = node.seed_content(link, "link".into(), |_, _| {}).await;
    assert!(matches!(refused, Err(NodeError::Seed(SeedError::Symlink))), "{refused:?}");
    let odd = |path: &Path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("back\\slash"), b"x").unwrap();
    };
    let odd = publish(&node, "odd", odd).await;
    let refused = node.seed_content(odd, "odd".into(), |_, _| {}).await;
    assert!(matches!(refused, Err(NodeError::Seed(SeedError::Name(_)))), "{refused:?}");
    assert!(node.pinned_contents().unwrap().is_empty() && node.torrents().statuses().is_empty());
    node.stop(PATIENCE).await.unwrap();
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let polling = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_published_is_seeded_where_that_is_wanted_as_long_as_it_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let before = publish(&node, "before", |path| fs::write(path, b"before").unwrap()).await;
    node.stop(PATIENCE).await.unwrap();
    drop(node);

    let node = start(dir.path(), |options| options.seed_uploads = true).await;
    let roots = |node: &Node| -> Vec<_> {
        node.torrents().made().into_iter().map(|(_, made)| made.root).collect()
    };
    until("what was published earlier is seeded", || roots(&node) == [before]).await;
    let root = publish(&node, "tree", tree).await;
    // One torrent of the whole, none of its parts.
    until("the new one is seeded", || roots(&node).contains(&root)).await;
    assert_eq!(roots(&node).len(), 2);
    // What somebody asked for by name stays.
    node.seed_content(before, "before".into(), |_, _| {}).await.unwrap();
    let top = crate::publish::UploadIno::ROOT;
    node.uploads().unlink(top, OsStr::new("before")).unwrap();
    remove_tree(&node, top, OsStr::new("tree"));
    until("what is not published any more is not seeded", || roots(&node) == [before]).await;
    node.stop(PATIENCE).await.unwrap();
}

fn remove_tree(node: &Node, parent: crate::publish::UploadIno, name: &OsStr) {
    let ino = node.uploads().lookup(parent, name).unwrap().ino;
    for entry in node.uploads().readdir(ino).unwrap() {
        match entry.kind {
            crate::publish::UploadKind::Directory => remove_tree(node, ino, &entry.name),
            _ => node.uploads().unlink(ino, &entry.name).unwrap(),
        }
    }
    node.uploads().rmdir(parent, name).unwrap();
}
