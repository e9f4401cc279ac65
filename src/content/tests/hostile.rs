//! Bytes from strangers: nothing panics, nothing is accepted that is not what it says.

use proptest::prelude::*;

use super::*;
use crate::content::{
    dag_pb::{self, NewLink},
    pb, unixfs,
};

fn decode_everything(bytes: Vec<u8>) {
    let block = Block::dag_pb(bytes.into());
    let _ = Node::decode(&block);
    if let Ok(mut layout) = FileLayout::new(&block) {
        assert!(layout.needs_iter(ByteRange::new(0, u64::MAX)).take(1000).count() <= 1000);
        let _ = layout.insert(&block);
    }
    if let Ok(reader) = DirectoryReader::new(&block) {
        assert!(
            reader.entries().iter().all(|entry| !entry.name.as_encoded_bytes().contains(&b'/'))
        );
    }
}

/// Well-formed blocks of all kinds.
fn samples() -> Vec<Vec<u8>> {
    let meta = Metadata { mode: Some(0o755), mtime: Some((-1, 5)) };
    let mut directory = DirectoryBuilder::new(ImportParams::DEFAULT);
    let mut sharded =
        DirectoryBuilder::new(ImportParams { shard_threshold: 0, ..ImportParams::DEFAULT });
    for n in 0..40u8 {
        let cid = *Block::raw(vec![n].into()).cid();
        directory.add(&format!("name {n}"), cid, 1);
        sharded.add(&format!("name {n}"), cid, 1);
    }
    let file = import_bytes(params(3, 9), &pattern(70), PLAIN).0;
    let nodes = [directory.finish(meta).nodes, sharded.finish(meta).nodes, file.nodes].concat();
    let single = [symlink("to/there", meta), dag_pb_leaf(b"bytes", meta)];
    nodes.iter().chain(&single).map(|block| block.data().to_vec()).collect()
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decode_everything(bytes.clone());
        let _ = ContentId::from_bytes(&bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let _ = (text.parse::<ContentId>(), text.parse::<InfoHash>(), ContentId::looks_like(&text));
    }

    #[test]
    fn mutated_blocks_never_panic(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
    ) {
        let samples = samples();
        let mut bytes = which.get(&samples).clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        decode_everything(bytes);
    }

    #[test]
    fn dag_pb_nodes_decode_to_what_was_encoded(
        links in prop::collection::vec((any::<u64>(), "\\PC{0,12}", any::<u64>()), 0..20),
        data in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let links: Vec<_> = links
            .into_iter()
            .map(|(n, name, tsize)| NewLink {
                hash: ContentId::raw(sha2_256(&n.to_le_bytes())).to_bytes(),
                name: name.into_bytes(),
                tsize,
            })
            .collect();
        let bytes = dag_pb::encode(&links, &data);
        let node = dag_pb::decode(&bytes).unwrap();
        prop_assert_eq!(&bytes[node.data.unwrap()], &data);
        prop_assert_eq!(node.links.len(), links.len());
        for (read, written) in node.links.iter().zip(&links) {
            prop_assert_eq!(&bytes[read.hash.clone()], &written.hash);
            prop_assert_eq!(&bytes[read.name.clone()], written.name.as_slice());
            prop_assert_eq!(read.tsize, written.tsize);
        }
        let size: usize = links.iter().map(NewLink::encoded_len).sum();
        prop_assert_eq!(bytes.len(), size + 1 + pb::varint_len(data.len() as u64) + data.len());
    }

    #[test]
    fn unixfs_decodes_to_what_was_encoded(
        data in prop::collection::vec(any::<u8>(), 0..50),
        sizes in prop::collection::vec(0u64..1 << 50, 0..30),
        mode in prop::option::of(0u32..=0o7777),
        mtime in prop::option::of((any::<i64>(), 0u32..1_000_000_000)),
    ) {
        let meta = Metadata { mode, mtime };
        let bytes = unixfs::file(&data, &sizes, meta);
        let read = unixfs::decode(&bytes, 0..bytes.len()).unwrap();
        prop_assert_eq!(&bytes[read.data.clone()], &data);
        prop_assert_eq!(read.filesize, Some(data.len() as u64 + sizes.iter().sum::<u64>()));
        prop_assert_eq!((read.blocksizes, read.meta), (sizes, meta));
        let bytes = unixfs::symlink(b"target", meta);
        prop_assert_eq!(unixfs::decode(&bytes, 0..bytes.len()).unwrap().meta, meta);
    }
}

/// Whether these bytes are a dag-pb node.
fn is_node(bytes: &[u8]) -> bool {
    dag_pb::decode(bytes).is_ok()
}

#[test]
fn dag_pb_that_the_format_forbids_is_refused() {
    let link = [0x12, 6, 0x0a, 4, 1, 0x55, 0, 0];
    let data = [0x0a, 2, 8, 1];
    let cat = |parts: &[&[u8]]| parts.concat();
    assert!(is_node(&[]) && is_node(&link) && is_node(&data));
    assert!(is_node(&cat(&[&link, &link, &data])) && is_node(&cat(&[&data, &link, &link])));
    // Data twice, links around the data, unknown field, wrong wire type.
    assert!(!is_node(&cat(&[&data, &data])));
    assert!(!is_node(&cat(&[&link, &data, &link])));
    assert!(!is_node(&[0x1a, 0]));
    assert!(!is_node(&[0x08, 1]) && !is_node(&[0x0d, 1, 2, 3, 4]));
    // A link without CID, with fields out of order or twice, with an unknown field.
    assert!(!is_node(&[0x12, 0]));
    assert!(!is_node(&[0x12, 8, 0x12, 0, 0x0a, 4, 1, 0x55, 0, 0]));
    assert!(!is_node(&[0x12, 10, 0x0a, 4, 1, 0x55, 0, 0, 0x12, 0, 0x12, 0]));
    assert!(!is_node(&[0x12, 8, 0x0a, 4, 1, 0x55, 0, 0, 0x20, 0]));
    // Cut off, and lengths that reach over the end or around the address space.
    assert!(!is_node(&link[..7]) && !is_node(&[0x0a]) && !is_node(&[0x0a, 0x80]));
    assert!(!is_node(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]));
    assert!(!is_node(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0]));
}

fn unixfs_node(links: usize, message: &[u8]) -> Result<Node, DagError> {
    let link = NewLink { hash: vec![1, 0x55, 0, 0], name: Vec::new(), tsize: 0 };
    Node::decode(&Block::dag_pb(dag_pb::encode(&vec![link; links], message).into()))
}

#[test]
fn unixfs_that_contradicts_itself_is_refused() {
    assert!(unixfs_node(1, &[8, 2, 0x20, 0]).is_ok());
    // Links and sizes differ in number; the file size is another than that of the parts.
    assert!(unixfs_node(2, &[8, 2, 0x20, 0]).is_err() && unixfs_node(0, &[8, 2, 0x20, 0]).is_err());
    assert!(unixfs_node(0, &[8, 2, 0x12, 1, 7, 0x18, 2]).is_err());
    // Sizes that overflow, one by one or together.
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(unixfs_node(1, &[&[8, 2, 0x20][..], &huge].concat()).is_ok());
    assert!(unixfs_node(2, &[&[8, 2, 0x20][..], &huge, &[0x20], &huge].concat()).is_err());
    // No type, type Metadata, unknown type, no data field at all, a shard over another hash.
    assert!(unixfs_node(0, &[0x18, 0]).is_err());
    assert!(matches!(unixfs_node(0, &[8, 3]), Err(DagError::Unsupported { .. })));
    assert!(matches!(unixfs_node(0, &[8, 6]), Err(DagError::Unsupported { .. })));
    assert!(Node::decode(&Block::dag_pb(Bytes::new())).is_err());
    assert!(unixfs_node(0, &[8, 5, 0x28, 0x12, 0x30, 8]).is_err());
    assert!(unixfs_node(0, &[8, 5, 0x28, 0x22, 0x30, 8]).is_ok());
    // Symbolic links to nowhere that can be named.
    assert!(unixfs_node(0, &[8, 4]).is_err() && unixfs_node(0, &[8, 4, 0x12, 1, 0]).is_err());
    // One to what is no text can be, on every disk.
    let Ok(Node::Symlink { target, .. }) = unixfs_node(0, &[8, 4, 0x12, 1, 0xff]) else {
        panic!("a link")
    };
    assert_eq!(target.as_encoded_bytes(), b"\xff");
}

#[test]
fn sizes_that_strangers_claim_may_add_up_to_anything() {
    for shard_threshold in [0, 1 << 20] {
        let params = ImportParams { shard_threshold, ..ImportParams::DEFAULT };
        let mut directory = DirectoryBuilder::new(params);
        for name in ["a", "b"] {
            directory.add(name, *Block::raw(Bytes::new()).cid(), u64::MAX);
        }
        assert_eq!(directory.finish(PLAIN).tsize, u64::MAX);
    }
}

#[test]
fn unixfs_that_is_only_unusual_is_read() {
    // Type Raw is file data; the file size may be absent; unknown fields are passed over.
    let file = unixfs_node(0, &[8, 0, 0x12, 2, b'h', b'i', 0x78, 1]).unwrap();
    assert!(matches!(file, Node::File { size: 2, .. }));
    // Nanoseconds out of range, and mode bits that are no permissions.
    let time = unixfs_node(0, &[8, 1, 0x42, 7, 8, 1, 0x15, 0xff, 0xff, 0xff, 0xff]).unwrap();
    assert_eq!(time.metadata().mtime, None);
    let mode = unixfs_node(0, &[8, 1, 0x38, 0xa4, 0x83, 2]).unwrap();
    assert_eq!(mode.metadata().mode, Some(0o644));
}
