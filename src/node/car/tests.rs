#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::HashSet, ffi::OsStr, fs, path::Path};

use futures::TryStreamExt;
use tempfile::TempDir;

use super::*;
use crate::{
    content::{
        Block, ByteRange, CarItem, CarReader, DirectoryBuilder, ImportParams, Metadata, car_header,
        car_section_head, import_bytes, links_of,
    },
    node::{Here, Node, tests::options},
    tasks::Tasks,
};

async fn offline(dir: &Path) -> Node {
    Node::start(options(dir, Vec::new(), true), Tasks::new()).await.unwrap()
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * at + at / 251 * seed + seed) % 251).unwrap()).collect()
}

/// A directory with a file of many leaves, a small one, and a directory of shards.
struct Tree {
    root: ContentId,
    blocks: Vec<Block>,
    big: (ContentId, Vec<u8>),
}

fn tree() -> Tree {
    let params = ImportParams { chunk_len: 1000, max_links: 4, ..ImportParams::DEFAULT };
    let sharding = ImportParams { shard_threshold: 0, ..ImportParams::DEFAULT };
    let mut blocks = Vec::new();
    let mut file = |content: &[u8]| {
        let (built, leaves) =
            import_bytes(params, &bytes::Bytes::copy_from_slice(content), Metadata::default());
        blocks.extend(leaves);
        blocks.extend(built.nodes.iter().cloned());
        built.root
    };
    let content = bytes(30_500, 1);
    let big = file(&content);
    let small = file(b"small");
    let mut shards = DirectoryBuilder::new(sharding);
    for n in 0..300u16 {
        shards.add(&format!("file {n}"), file(&n.to_le_bytes()), 2);
    }
    let shards = shards.finish(Metadata::default());
    let mut top = DirectoryBuilder::new(ImportParams::DEFAULT);
    for (name, cid) in [("big", big), ("small", small), ("shards", shards.root)] {
        top.add(name, cid, 1);
    }
    let top = top.finish(Metadata::default());
    blocks.extend(shards.nodes.iter().chain(&top.nodes).cloned());
    Tree { root: top.root, blocks, big: (big, content) }
}

fn archive(roots: &[ContentId], blocks: &[Block]) -> Vec<u8> {
    let mut out = car_header(roots);
    for block in blocks {
        out.extend(car_section_head(block.cid(), block.data().len()));
        out.extend(block.data());
    }
    out
}

async fn import(node: &Node, car: &[u8]) -> Result<Imported, CarFailure> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("car");
    fs::write(&path, car).unwrap();
    node.import_car(CarInput::Path(path), true, |_, _| true).await
}

async fn export(node: &Node, id: ContentId) -> Result<Vec<u8>, CarFailure> {
    node.export_car(id, id, true).map_ok(|piece| piece.to_vec()).try_concat().await
}

fn sections(car: &[u8]) -> Vec<ContentId> {
    let mut reader = CarReader::new(false);
    reader.push(car);
    let mut ids = Vec::new();
    while let Some(item) = reader.next_item().unwrap() {
        if let CarItem::Section(section) = item {
            assert!(Block::verify(section.cid, section.data).is_ok());
            ids.push(section.cid);
        }
    }
    reader.finish().unwrap();
    ids
}

/// All blocks below `id`, each where it is met first.
fn depth_first(blocks: &[Block], id: &ContentId, order: &mut Vec<ContentId>) {
    if order.contains(id) {
        return;
    }
    order.push(*id);
    let block = blocks.iter().find(|block| block.cid() == id).unwrap();
    for link in links_of(block).unwrap() {
        depth_first(blocks, &link, order);
    }
}

/// Whether the big file lies in one flat file, as a download would have left it.
fn is_whole(node: &Node, tree: &Tree) {
    let object = node.store().object(&tree.big.0).unwrap().unwrap();
    assert!(object.is_complete());
    assert!(object.read(ByteRange::new(0, 30_500)).unwrap() == tree.big.1);
    assert_eq!(node.here(&tree.root).unwrap(), Here::All);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_comes_in_whatever_the_order_of_its_blocks_and_goes_out_depth_first() {
    let tree = tree();
    let mut reversed = tree.blocks.clone();
    reversed.reverse();
    for blocks in [&tree.blocks, &reversed] {
        let dir = tempfile::tempdir().unwrap();
        let node = offline(dir.path()).await;
        let imported = import(&node, &archive(&[tree.root, tree.root], blocks)).await.unwrap();
        let root = ImportedRoot { cid: tree.root, pinned: true, missing: 0, unreadable: 0 };
        assert_eq!((imported.version, imported.roots), (1, vec![root]));
        assert_eq!(imported.blocks, blocks.len() as u64);
        is_whole(&node, &tree);
        let pins = node.pinned_contents().unwrap();
        assert!(pins.len() == 1 && pins[0].place.content() == Some(&tree.root) && pins[0].complete);

        let exported = export(&node, tree.root).await.unwrap();
        let mut expected = Vec::new();
        depth_first(&tree.blocks, &tree.root, &mut expected);
        assert_eq!(sections(&exported), expected);
        let distinct: HashSet<_> = tree.blocks.iter().map(|block| *block.cid()).collect();
        assert_eq!(expected.len(), distinct.len());
        node.stop(std::time::Duration::from_secs(9)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_block_is_named_and_what_came_before_it_stays_without_its_pin() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let node = offline(dir.path()).await;
    let mut blocks = tree.blocks.clone();
    blocks.reverse();
    let good = archive(&[tree.root], &blocks);
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    let last = blocks.last().unwrap();
    let head = car_section_head(last.cid(), last.data().len());
    let at = good.len() - last.data().len() - head.len();
    let said = import(&node, &bad).await.unwrap_err().to_string();
    assert!(said.contains(&last.cid().to_string()), "{said}");
    assert!(said.contains(&format!("at byte {at}:")), "{said} {at}");
    assert!(node.pinned_contents().unwrap().is_empty());
    assert!(node.store().block_len(&tree.root).unwrap().is_some());
    assert!(node.store().block_len(last.cid()).unwrap().is_none());
    import(&node, &good).await.unwrap();
    is_whole(&node, &tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_or_broken_off_is_completed_by_the_next_import() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let node = offline(dir.path()).await;
    let mut blocks = tree.blocks.clone();
    blocks.reverse();
    let car = archive(&[tree.root], &blocks);
    let cut = import(&node, &car[..car.len() - 1]).await;
    assert!(matches!(cut, Err(CarFailure::Format(CarError::Truncated { .. }))), "{cut:?}");
    let path = dir.path().join("car");
    fs::write(&path, &car).unwrap();
    // Broken off when some leaves are in their places.
    let len = car.len() as u64;
    let watch = move |done, _| done < len + 10_000;
    let broken = node.import_car(CarInput::Path(path), true, watch).await;
    assert!(matches!(broken, Err(CarFailure::BrokenOff)));
    assert!(node.pinned_contents().unwrap().is_empty());
    let object = node.store().object(&tree.big.0).unwrap().unwrap();
    let before = object.present().bytes();
    assert!(before > 0 && !object.is_complete(), "{before}");
    let id = object.id();
    drop(object);
    import(&node, &car).await.unwrap();
    is_whole(&node, &tree);
    assert_eq!(node.store().object(&tree.big.0).unwrap().unwrap().id(), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_blocks_are_counted_and_come_with_another_archive() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let node = offline(dir.path()).await;
    let is_leaf = |block: &&Block| block.data().len() == 1000;
    let (some, rest): (Vec<_>, Vec<_>) =
        tree.blocks.iter().cloned().partition(|block| is_leaf(&block) && block.data()[3] % 2 == 0);
    assert!(!some.is_empty() && some.len() < 30);
    let imported = import(&node, &archive(&[tree.root], &rest)).await.unwrap();
    let distinct: HashSet<_> = some.iter().map(|block| *block.cid()).collect();
    assert_eq!(imported.roots[0].missing, distinct.len() as u64);
    assert!(imported.roots[0].pinned && !node.pinned_contents().unwrap()[0].complete);
    let said = export(&node, tree.root).await.unwrap_err();
    assert!(matches!(said, CarFailure::Missing(_)), "{said}");
    // The second archive has only what was missing, and names the root again.
    let imported = import(&node, &archive(&[tree.root], &some)).await.unwrap();
    assert_eq!(imported.roots[0].missing, 0);
    assert!(node.pinned_contents().unwrap()[0].complete);
    is_whole(&node, &tree);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_without_a_root_are_kept_and_other_codecs_are_not_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let node = offline(dir.path()).await;
    let stray = Block::raw(bytes(5000, 7).into());
    let car = archive(&[], &[stray.clone(), stray.clone()]);
    assert_eq!(import(&node, &car).await.unwrap().roots, []);
    let object = node.store().object(stray.cid()).unwrap().unwrap();
    assert!(object.is_complete() && node.pinned_contents().unwrap().is_empty());

    // Roots in dag-cbor, a directory of CIDv0 below them, and blocks in three codecs.
    let fixture = include_bytes!("../../content/tests/car/carv1-basic.car");
    let imported = import(&node, fixture).await.unwrap();
    assert_eq!((imported.blocks, imported.roots.len()), (8, 2));
    assert!(imported.roots.iter().all(|root| !root.pinned && root.missing == 0));
    for id in sections(fixture) {
        assert!(node.store().block(&id).unwrap().is_some(), "{id}");
    }
    let refused = export(&node, imported.roots[0].cid).await;
    assert!(matches!(refused, Err(CarFailure::Opaque(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_piped_in_leaves_no_file_behind() {
    let tree = tree();
    let dir = TempDir::new().unwrap();
    let node = offline(dir.path()).await;
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let mut spool = node.spool().unwrap();
    for piece in archive(&[tree.root], &tree.blocks).chunks(777) {
        spool.write(bytes::Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(names(), before);
    let imported = node.import_car(CarInput::Spool(spool), false, |_, _| true).await.unwrap();
    assert!(!imported.roots[0].pinned && node.pinned_contents().unwrap().is_empty());
    is_whole(&node, &tree);
    assert_eq!(names(), before);
    let fifo = node.import_car(CarInput::Path("/dev/null".into()), true, |_, _| true).await;
    assert!(matches!(fifo, Err(CarFailure::NotAFile(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_goes_out_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let node = offline(&dir.path().join("data")).await;
    let source = dir.path().join("tree");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), bytes(600_000, 3)).unwrap();
    let root = node.uploads().import(&source, OsStr::new("tree")).await.unwrap().last().unwrap().0;
    let file = node.walk_now(&root, "file").unwrap();
    assert_eq!(sections(&export(&node, file).await.unwrap()).len(), 4);
    assert_eq!(sections(&export(&node, root).await.unwrap()).len(), 5);
    let absent = node.walk_now(&root, "other");
    assert!(matches!(absent, Err(CarFailure::Node(NodeError::NoEntry { .. }))));
}

#[tokio::test]
async fn import_replaces_what_rotted_here() {
    let dir = tempfile::tempdir().unwrap();
    let node = offline(dir.path()).await;
    let tree = tree();
    let car = archive(&[tree.root], &tree.blocks);
    import(&node, &car).await.unwrap();
    let object = node.store().object(&tree.big.0).unwrap().unwrap();
    assert!(object.is_complete());
    node.store().rot(object.id(), 2500).unwrap();
    let again = import(&node, &car).await.unwrap();
    assert_eq!(again.roots[0].missing, 0);
    let object = node.store().object(&tree.big.0).unwrap().unwrap();
    assert!(object.read(ByteRange::new(0, object.size())).unwrap() == tree.big.1);
    assert_eq!(node.store().verify(&mut |_, _| {}).unwrap().bad, []);
}
