//! Files of every shape, read back through [`FileLayout`].

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::content::{
    dag_pb::{self, NewLink},
    pb, unixfs,
};

/// A node by hand: bytes of its own and children with their sizes.
fn node(own: &[u8], children: &[(ContentId, u64)]) -> Block {
    let sizes: Vec<_> = children.iter().map(|(_, size)| *size).collect();
    let link = |(cid, size): &(ContentId, u64)| NewLink {
        hash: cid.to_bytes(),
        name: Vec::new(),
        tsize: *size,
    };
    let links: Vec<_> = children.iter().map(link).collect();
    Block::dag_pb(dag_pb::encode(&links, &unixfs::file(own, &sizes, PLAIN)).into())
}

/// A trickle DAG: each node has direct leaves first, then subtrees that grow deeper.
fn trickle(
    chunks: &mut std::slice::Chunks<'_, u8>,
    depth: usize,
    raw_leaves: bool,
    blocks: &mut Blocks,
) -> Option<(ContentId, u64)> {
    let mut children = Vec::new();
    for chunk in chunks.by_ref().take(3) {
        let chunk = Bytes::copy_from_slice(chunk);
        let leaf = if raw_leaves { Block::raw(chunk.clone()) } else { dag_pb_leaf(&chunk, PLAIN) };
        children.push((*leaf.cid(), chunk.len() as u64));
        keep(blocks, [leaf]);
    }
    for below in 0..depth {
        for _ in 0..2 {
            children.extend(trickle(chunks, below, raw_leaves, blocks));
        }
    }
    let size = children.iter().map(|(_, size)| size).sum();
    let node = node(&[], &children);
    let root = (!children.is_empty()).then(|| (*node.cid(), size));
    keep(blocks, [node]);
    root
}

/// Unfolds the whole tree, checks that the needs cover it without gap or overlap, and puts the bytes together.
fn read_all(root: &ContentId, blocks: &Blocks) -> Vec<u8> {
    let root = &blocks[&root.to_v1()];
    let mut layout = FileLayout::new(root).unwrap();
    let whole = ByteRange::new(0, layout.size());
    let mut bytes = vec![None; layout.size() as usize];
    let mut place = |block: &Block, places: Vec<Placement>| {
        for Placement { offset, data } in places {
            for (at, byte) in (offset as usize..).zip(&block.data()[data]) {
                assert_eq!(bytes[at].replace(*byte).unwrap_or(*byte), *byte);
            }
        }
    };
    place(root, layout.insert(root).unwrap());
    let ids = |layout: &FileLayout| -> BTreeSet<_> {
        layout.needs_iter(whole).map(|need| need.cid).collect()
    };
    while !layout.is_unfolded() {
        for cid in ids(&layout).iter().filter(|cid| cid.codec() == Codec::DagPb) {
            let block = need_block(cid, blocks);
            place(&block, layout.insert(&block).unwrap());
        }
    }
    for cid in ids(&layout) {
        let block = need_block(&cid, blocks);
        place(&block, layout.insert(&block).unwrap());
    }
    bytes.into_iter().map(Option::unwrap).collect()
}

fn need_block(cid: &ContentId, blocks: &Blocks) -> Block {
    Block::inline(*cid).unwrap_or_else(|| blocks[&cid.to_v1()].clone())
}

fn build(params: ImportParams, data: &Bytes, meta: Metadata) -> (BuiltFile, Blocks) {
    let (built, leaves) = import_bytes(params, data, meta);
    let mut blocks = Blocks::new();
    keep(&mut blocks, leaves);
    keep(&mut blocks, built.nodes.iter().cloned());
    (built, blocks)
}

proptest! {
    #[test]
    fn what_is_built_is_read_back(
        len in 0usize..1200,
        chunk in 1usize..200,
        links in 2usize..12,
        mode in prop::option::of(0u32..0o7777),
        repeat in any::<bool>(),
    ) {
        let data = if repeat { Bytes::from(vec![7; len]) } else { pattern(len) };
        let meta = Metadata { mode, mtime: None };
        let (built, blocks) = build(params(chunk, links), &data, meta);
        prop_assert_eq!(built.size, len as u64);
        prop_assert_eq!(FileLayout::new(&blocks[&built.root]).unwrap().metadata(), meta);
        prop_assert_eq!(read_all(&built.root, &blocks), &data[..]);
        let leaves = import_bytes(params(chunk, links), &data, meta).1;
        let tsize: usize = leaves.iter().chain(&built.nodes).map(|b| b.data().len()).sum();
        prop_assert_eq!(built.tsize, tsize as u64);
    }

    #[test]
    fn needs_of_a_window_are_the_blocks_that_touch_it(
        len in 1usize..2000,
        chunk in 1usize..100,
        links in 2usize..8,
        start in 0u64..2100,
        wanted in 0u64..500,
        known in 0usize..60,
    ) {
        let (built, blocks) = build(params(chunk, links), &pattern(len), PLAIN);
        let mut layout = FileLayout::new(&blocks[&built.root]).unwrap();
        let whole = ByteRange::new(0, len as u64);
        for _ in 0..known {
            let Some(need) = layout.needs(whole).into_iter().find(|n| n.cid.codec() == Codec::DagPb)
            else { break };
            layout.insert(&blocks[&need.cid]).unwrap();
        }
        let all = layout.needs(whole);
        // In order, without gap: interior nodes that were built here hold no bytes of their own.
        prop_assert_eq!(all.first().unwrap().range.start, 0);
        prop_assert!(all.windows(2).all(|pair| pair[0].range.end == pair[1].range.start));
        prop_assert_eq!(all.last().unwrap().range.end, len as u64);
        let window = ByteRange::at(start, wanted);
        let touching: Vec<_> =
            all.into_iter().filter(|need| !need.range.intersect(window).is_empty()).collect();
        prop_assert_eq!(layout.needs(window), touching);
    }

    #[test]
    fn trickle_dags_are_read(len in 1usize..3000, chunk in 20usize..200, raw_leaves in any::<bool>()) {
        let data = pattern(len);
        let mut blocks = Blocks::new();
        let (root, size) = trickle(&mut data.chunks(chunk), 6, raw_leaves, &mut blocks).unwrap();
        prop_assert_eq!(read_all(&root, &blocks), &data[..size as usize]);
        prop_assert_eq!(size, len as u64);
    }
}

#[test]
fn bytes_inside_interior_nodes_come_before_those_of_the_children() {
    let leaf = Block::raw(Bytes::from_static(b"leaf"));
    let inner = node(b"inner-", &[(*leaf.cid(), 4), (*leaf.cid(), 4)]);
    let root = node(b"root-", &[(*inner.cid(), 14), (*leaf.cid(), 4), (*inner.cid(), 14)]);
    let mut blocks = Blocks::new();
    keep(&mut blocks, [leaf.clone(), inner.clone(), root.clone()]);
    assert_eq!(read_all(root.cid(), &blocks), b"root-inner-leafleafleafinner-leafleaf");

    let mut layout = FileLayout::new(&root).unwrap();
    let offsets = |places: Vec<Placement>| places.iter().map(|p| p.offset).collect::<Vec<_>>();
    // The leaf is known at one place until the node is in that holds the others.
    assert_eq!(offsets(layout.insert(&leaf).unwrap()), [19]);
    assert_eq!(offsets(layout.insert(&inner).unwrap()), [5, 23]);
    assert_eq!(offsets(layout.insert(&leaf).unwrap()), [11, 15, 19, 29, 33]);
    let window = ByteRange::new(12, 20);
    assert_eq!(offsets(layout.places_in(&leaf, window).unwrap()), [11, 15, 19]);
}

#[test]
fn a_file_of_one_block_stays_needed_and_an_empty_one_needs_nothing() {
    for root in [Block::raw(pattern(9)), dag_pb_leaf(&pattern(9), PLAIN)] {
        let mut layout = FileLayout::new(&root).unwrap();
        let need = Need { cid: *root.cid(), range: ByteRange::new(0, 9) };
        assert_eq!(layout.needs(ByteRange::new(3, 4)), [need]);
        let places = layout.insert(&root).unwrap();
        assert_eq!(root.data()[places[0].data.clone()], pattern(9));
        assert_eq!(layout.needs(ByteRange::new(0, 100)), [need]);
        assert!(layout.needs(ByteRange::new(9, 100)).is_empty() && layout.is_unfolded());
        assert!(layout.insert(&Block::raw(pattern(8))).unwrap().is_empty());
    }
    let empty_leaf = Block::raw(Bytes::new());
    for root in [
        empty_leaf.clone(),
        dag_pb_leaf(&[], PLAIN),
        node(&[], &[(*empty_leaf.cid(), 0), (*dag_pb_leaf(&[], PLAIN).cid(), 0)]),
    ] {
        let layout = FileLayout::new(&root).unwrap();
        assert!(layout.needs(ByteRange::new(0, u64::MAX)).is_empty() && layout.is_unfolded());
    }
}

#[test]
fn children_without_bytes_are_passed_over() {
    let (empty, leaf) = (Block::raw(Bytes::new()), Block::raw(Bytes::from_static(b"ab")));
    let hollow = node(&[], &[(*empty.cid(), 0)]);
    let none = (*hollow.cid(), 0);
    let some = (*leaf.cid(), 2);
    let root = node(&[], &[none, none, some, none, (*empty.cid(), 0), some, none]);
    let mut blocks = Blocks::new();
    keep(&mut blocks, [leaf, root.clone()]);
    assert_eq!(read_all(root.cid(), &blocks), b"abab");
}

#[test]
fn inline_blocks_are_had_without_asking() {
    let inline = |bytes: &[u8]| ContentId::raw(Multihash::wrap(0, bytes).unwrap());
    let root = node(&[], &[(inline(b"in the id, "), 11), (*Block::raw(pattern(5)).cid(), 5)]);
    let mut blocks = Blocks::new();
    keep(&mut blocks, [Block::raw(pattern(5)), root.clone()]);
    assert_eq!(read_all(root.cid(), &blocks), [b"in the id, ", &pattern(5)[..]].concat());
}

#[test]
fn children_under_version_0_are_found_by_the_same_block_under_version_1() {
    let leaf = dag_pb_leaf(b"old", PLAIN);
    let v0 = ContentId::from_bytes(&leaf.cid().hash().to_bytes()).unwrap();
    assert!(v0.to_string().starts_with("Qm"));
    let root = node(&[], &[(v0, 3)]);
    let mut layout = FileLayout::new(&root).unwrap();
    for block in [&leaf, &Block::verify(v0, leaf.data().clone()).unwrap()] {
        assert_eq!(layout.insert(block).unwrap().len(), 1);
    }
    assert!(layout.is_unfolded());
}

#[test]
fn blocks_that_break_their_parents_promise_are_refused() {
    let leaf = Block::raw(Bytes::from_static(b"four"));
    let inner = node(&[], &[(*leaf.cid(), 4)]);
    let directory = DirectoryBuilder::new(ImportParams::DEFAULT).finish(PLAIN).nodes.remove(0);
    for (child, promise) in [(&leaf, 5), (&inner, 3), (&directory, 7)] {
        let root = node(&[], &[(*child.cid(), promise)]);
        let mut layout = FileLayout::new(&root).unwrap();
        assert!(layout.insert(child).is_err(), "{child:?}");
        assert!(!layout.needs(ByteRange::new(0, 9)).is_empty());
    }
    // The second promise is broken by what is known from the first.
    let liar = node(b"x", &[(*inner.cid(), 9)]);
    let root = node(&[], &[(*inner.cid(), 4), (*liar.cid(), 10)]);
    let mut layout = FileLayout::new(&root).unwrap();
    layout.insert(&inner).unwrap();
    assert!(layout.insert(&liar).is_err());
    assert!(FileLayout::new(&directory).is_err());
}

#[test]
fn nodes_that_multiply_one_another_cost_what_their_blocks_cost() {
    let leaf = Block::raw(Bytes::from_static(b"z"));
    let mut below = (*leaf.cid(), 1);
    let mut levels = Vec::new();
    // 100^9 bytes out of nine blocks.
    for _ in 0..9 {
        let level = node(&[], &[below; 100]);
        below = (*level.cid(), below.1 * 100);
        levels.push(level);
    }
    let mut layout = FileLayout::new(levels.last().unwrap()).unwrap();
    for level in levels.iter().rev() {
        assert!(layout.insert(level).unwrap().is_empty());
    }
    assert!(layout.is_unfolded());
    assert_eq!(layout.size(), 10u64.pow(18));
    let window = ByteRange::at(123_456_789_012_345_678, 3);
    assert_eq!(layout.needs(window).len(), 3);
    assert_eq!(layout.places_in(&leaf, window).unwrap().len(), 3);
    assert_eq!(layout.insert(&leaf).unwrap().len(), 1 << 20);
}

#[test]
fn a_chain_that_never_ends_is_refused() {
    let mut chain = vec![node(b"x", &[])];
    for _ in 0..70 {
        let below = *chain.last().unwrap().cid();
        chain.push(node(&[], &[(below, 1)]));
    }
    chain.reverse();
    let mut layout = FileLayout::new(&chain[0]).unwrap();
    let accepted = chain[1..].iter().take_while(|node| layout.insert(node).is_ok()).count();
    assert_eq!(accepted, 63);

    // The same when a chain that is in is hung below another.
    let (top, bottom) = (&chain[..40], &chain[30..]);
    let both = node(&[], &[(*bottom[0].cid(), 1), (*top[1].cid(), 1)]);
    let mut layout = FileLayout::new(&both).unwrap();
    assert!(bottom.iter().all(|node| layout.insert(node).is_ok()));
    assert!(!top[1..].iter().all(|node| layout.insert(node).is_ok()));
}

#[test]
fn a_window_of_a_large_file_is_found_without_a_scan() {
    // A million leaves of 256 KiB, ids made up.
    let leaf = |n: u64| ContentId::raw(sha2_256(&n.to_le_bytes()));
    let mut builder = FileBuilder::new(ImportParams::DEFAULT);
    let mut blocks = Blocks::new();
    let count = 1_000_000;
    for n in 0..count {
        keep(&mut blocks, builder.push(leaf(n), 1 << 18));
    }
    let built = builder.finish(PLAIN);
    keep(&mut blocks, built.nodes);
    let mut layout = FileLayout::new(&blocks[&built.root]).unwrap();
    for _ in 0..3 {
        let nodes: Vec<_> = layout.needs_iter(ByteRange::new(0, u64::MAX)).collect();
        for need in nodes.iter().filter(|need| need.cid.codec() == Codec::DagPb) {
            layout.insert(&blocks[&need.cid]).unwrap();
        }
    }
    assert!(layout.is_unfolded());
    for n in (0..count).step_by(997) {
        let range = ByteRange::at(n << 18, 1 << 18);
        assert_eq!(layout.needs(range), [Need { cid: leaf(n), range }]);
    }
    assert_eq!(layout.needs_iter(ByteRange::new(0, u64::MAX)).count(), count as usize);
}

#[test]
fn packed_block_sizes_and_data_before_links_are_read() {
    let leaf = Block::raw(pattern(300));
    let mut data = Vec::new();
    pb::put_u64(&mut data, 1, 2);
    pb::put_u64(&mut data, 3, 600);
    pb::put_bytes(&mut data, 4, &[0xac, 2, 0xac, 2]);
    let mut link = Vec::new();
    pb::put_bytes(&mut link, 1, &leaf.cid().to_bytes());
    let mut bytes = Vec::new();
    pb::put_bytes(&mut bytes, 1, &data);
    pb::put_bytes(&mut bytes, 2, &link);
    pb::put_bytes(&mut bytes, 2, &link);
    let root = Block::dag_pb(bytes.into());
    let mut blocks = Blocks::new();
    keep(&mut blocks, [leaf, root.clone()]);
    assert_eq!(read_all(root.cid(), &blocks), [pattern(300), pattern(300)].concat());
}
