//! Whole nodes, one alone and two that fetch from each other over loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{ffi::OsStr, fs, path::Path, time::Duration};

use tempfile::TempDir;

pub(crate) use self::node_options::options;
use super::*;
use crate::content::ByteRange;

#[path = "../../tests/support/node_options.rs"]
mod node_options;

/// More than a busy machine needs for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

/// 600,000 bytes make a file of three leaves below a root.
const BIG: usize = 600_000;

async fn offline(dir: &Path) -> Node {
    Node::start(options(dir, Vec::new(), true), Tasks::new()).await.unwrap()
}

fn big() -> Vec<u8> {
    (0..BIG).map(|at| u8::try_from(at * at % 251).unwrap()).collect()
}

/// `tree` with a big and a small file, a directory below and a symlink.
fn source() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("big"), big()).unwrap();
    fs::write(tree.join("sub/hello"), "hello world\n").unwrap();
    std::os::unix::fs::symlink("sub/hello", tree.join("link")).unwrap();
    scratch
}

async fn publish(node: &Node) -> ContentId {
    let source = source();
    let tree = source.path().join("tree");
    let published = node.uploads().import(&tree, OsStr::new("tree")).await.unwrap();
    published.last().unwrap().0
}

async fn expect_tree(node: &Node, root: &ContentId) {
    let listed = node.list(root, root).await.unwrap();
    let names: Vec<_> = listed.iter().map(|entry| entry.name.to_str().unwrap()).collect();
    assert_eq!(names, ["big", "link", "sub"]);

    let file = node.walk(root, "big").await.unwrap();
    assert_eq!((file.kind, file.size), (NodeKind::File, BIG as u64));
    let handle = node.open(root, &file.id).await.unwrap();
    let mut read = Vec::new();
    while read.len() < BIG {
        let range = ByteRange::at(read.len() as u64, 1 << 18);
        read.extend_from_slice(&handle.read(ReaderId(1), range).await.unwrap());
    }
    assert!(read == big());

    let small = node.walk(root, "sub/hello").await.unwrap();
    assert_eq!(small.id.to_string(), "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4");
    let link = node.walk(root, "link").await.unwrap();
    assert_eq!(
        (link.kind, link.target.as_deref()),
        (NodeKind::Symlink, Some(OsStr::new("sub/hello")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_resolved_listed_and_read_by_its_id_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = offline(dir.path()).await;
    let root = publish(&node).await;
    expect_tree(&node, &root).await;
    assert!(node.roots().unwrap().contains(&KnownRoot { root, directory: true }));
    assert_eq!(node.status().unwrap().uploads, 1);
    node.stop(PATIENCE).await.unwrap();
    assert!(node.tasks().alive().is_empty(), "{:?}", node.tasks());
    drop(node);

    let node = offline(dir.path()).await;
    // From the store alone, without a wait.
    let resolved = node.resolve_now(&root).unwrap().unwrap();
    assert_eq!(resolved.kind, NodeKind::Directory);
    assert_eq!(node.list_now(&root).unwrap().unwrap().len(), 3);
    let entry = node.child_now(&root, "big".as_ref()).unwrap().unwrap().unwrap();
    let handle = node.open_now(&root, &entry.cid).unwrap().unwrap();
    let start =
        handle.read_now(crate::download::ReaderId(1), ByteRange::new(0, 10)).unwrap().unwrap();
    assert_eq!(&start[..], &big()[..10]);
    assert_eq!(node.child_now(&root, "none".as_ref()).unwrap().unwrap(), None);
    expect_tree(&node, &root).await;
    node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn offline_nobody_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let node = offline(dir.path()).await;
    let absent = ContentId::dag_pb(crate::content::sha2_256(b"nobody has this"));
    let asked = tokio::time::Instant::now();
    assert!(matches!(node.resolve(&absent, &absent).await, Err(NodeError::Download(_))));
    assert!(asked.elapsed() <= 2 * OFFLINE_PATIENCE, "{:?} of the paused clock", asked.elapsed());
    node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_leads_nowhere_says_where_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let node = offline(dir.path()).await;
    let root = publish(&node).await;
    let no_entry = node.walk(&root, "sub/none").await;
    assert!(matches!(no_entry, Err(NodeError::NoEntry { path, .. }) if path == "none"));
    let through_a_file = node.walk(&root, "big/none").await;
    assert!(matches!(through_a_file, Err(NodeError::NotADirectory(_))));
    assert!(
        matches!(node.open(&root, &root).await, Err(NodeError::IsADirectory(id)) if id == root)
    );
    let link = node.walk(&root, "link").await.unwrap().id;
    assert!(matches!(node.open(&root, &link).await, Err(NodeError::IsASymlink(id)) if id == link));
    node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_here_is_not_known_without_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let node = offline(dir.path()).await;
    let absent: ContentId =
        "bafybeidhkumeonuwkebh2i4fc7o7lguehauradvlk57gzake6ggjsy372a".parse().unwrap();
    assert!(node.resolve_now(&absent).is_none());
    assert!(node.list_now(&absent).is_none());
    assert!(node.child_now(&absent, "hello.txt".as_ref()).is_none());
    assert!(node.open_now(&absent, &absent).is_none());
    node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reads_from_another_what_that_one_published() {
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let publisher =
        Node::start(options(far.path(), Vec::new(), false), Tasks::new()).await.unwrap();
    let root = publish(&publisher).await;
    let reader =
        Node::start(options(near.path(), publisher.net().addresses(), false), Tasks::new())
            .await
            .unwrap();
    tokio::time::timeout(PATIENCE, expect_tree(&reader, &root)).await.unwrap();
    assert!(reader.roots().unwrap().is_empty(), "only what the user opens is listed");
    reader.remember(&root);
    assert_eq!(reader.roots().unwrap(), [KnownRoot { root, directory: true }]);
    publisher.stop(PATIENCE).await.unwrap();
    // All of it is kept.
    reader.inner.cache.clear();
    expect_tree(&reader, &root).await;
    reader.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_complete_when_all_below_it_is_here() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (node, empty) = (offline(dir.path()).await, offline(other.path()).await);
    let root = publish(&node).await;
    assert_eq!(node.here(&root).unwrap(), Here::All);
    assert_eq!(empty.here(&root).unwrap(), Here::Nothing);
    empty.store().put_node(&node.store().block(&root).unwrap().unwrap()).unwrap();
    assert_eq!(empty.here(&root).unwrap(), Here::Part);
    for node in [node, empty] {
        node.stop(PATIENCE).await.unwrap();
    }
}
