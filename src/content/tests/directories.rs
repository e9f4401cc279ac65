//! Directories against a sorted map.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use proptest::prelude::*;

use super::*;
use crate::content::{
    dag_pb::{self, NewLink},
    unixfs,
};

fn child(n: usize) -> ContentId {
    ContentId::raw(sha2_256(&n.to_le_bytes()))
}

fn build(
    params: ImportParams,
    names: &[OsString],
) -> (BuiltDirectory, BTreeMap<OsString, ContentId>) {
    let mut builder = DirectoryBuilder::new(params);
    let mut model = BTreeMap::new();
    for (n, name) in names.iter().enumerate() {
        builder.add(name.as_bytes(), child(n), n as u64);
        model.insert(name.clone(), child(n));
    }
    (builder.finish(PLAIN), model)
}

fn open(built: &BuiltDirectory) -> (DirectoryReader, Blocks) {
    let mut blocks = Blocks::new();
    keep(&mut blocks, built.nodes.iter().cloned());
    (DirectoryReader::new(&blocks[&built.root]).unwrap(), blocks)
}

/// Looks a name up, fetching the shards on its way; how many those were, too.
fn find(reader: &mut DirectoryReader, blocks: &Blocks, name: &OsStr) -> (Option<ContentId>, usize) {
    for fetched in 0.. {
        match reader.lookup(name) {
            Lookup::Found(entry) => {
                assert_eq!(entry.name, name);
                return (Some(entry.cid), fetched);
            }
            Lookup::Absent => return (None, fetched),
            Lookup::Need(cid) => reader.insert(&blocks[&cid]).unwrap(),
        }
    }
    unreachable!("a look-up ends")
}

fn load_all(reader: &mut DirectoryReader, blocks: &Blocks) {
    while let Some(cid) = reader.missing().first() {
        reader.insert(&blocks[cid]).unwrap();
    }
}

fn listed(reader: &DirectoryReader) -> Vec<(OsString, ContentId)> {
    reader.entries().into_iter().map(|entry| (entry.name, entry.cid)).collect()
}

/// A name of a file: any bytes, mostly text.
fn name(longest: usize) -> impl Strategy<Value = OsString> {
    let byte = prop_oneof![4 => b'a'..=b'z', 1 => any::<u8>()];
    prop::collection::vec(byte.prop_filter("of a name", |b| !matches!(b, 0 | b'/')), 1..=longest)
        .prop_filter("no directory of every directory", |name| !matches!(&name[..], b"." | b".."))
        .prop_map(OsString::from_vec)
}

proptest! {
    #[test]
    fn what_is_built_is_a_sorted_map(
        names in prop::collection::vec(name(20), 0..300),
        absent in prop::collection::vec(name(3), 0..20),
        bits in 3u32..=10,
        threshold in prop::sample::select(vec![0usize, 2000, 1 << 20]),
        by_block in any::<bool>(),
    ) {
        let params = ImportParams {
            shard_fanout: 1 << bits,
            shard_threshold: threshold,
            shard_by_block: by_block,
            ..ImportParams::DEFAULT
        };
        let (built, model) = build(params, &names);
        let tsize: u64 = built.nodes.iter().map(|b| b.data().len() as u64).sum();
        let (mut reader, blocks) = open(&built);
        for name in names.iter().chain(&absent) {
            prop_assert_eq!(find(&mut reader, &blocks, name).0, model.get(name).copied());
        }
        load_all(&mut reader, &blocks);
        prop_assert_eq!(listed(&reader), model.into_iter().collect::<Vec<_>>());
        let below: u64 = reader.entries().iter().map(|entry| entry.tsize).sum();
        prop_assert_eq!(built.tsize, tsize + below);
    }
}

#[test]
fn a_look_up_fetches_only_the_shards_on_its_way() {
    let names: Vec<_> = (0..20_000).map(|n| format!("file-{n:06}").into()).collect();
    let (built, model) = build(ImportParams::DEFAULT, &names);
    let (fresh, blocks) = open(&built);
    assert!(fresh.missing().len() > 200);
    for name in names.iter().step_by(1999) {
        let (found, fetched) = find(&mut fresh.clone(), &blocks, name);
        assert_eq!(found, model.get(name).copied());
        assert!(fetched <= 3, "{fetched} shards for one name");
    }
}

fn links(names: &[(&str, ContentId)]) -> Vec<NewLink> {
    let link = |(name, cid): &(&str, ContentId)| NewLink {
        hash: cid.to_bytes(),
        name: name.as_bytes().to_owned(),
        tsize: 1,
    };
    names.iter().map(link).collect()
}

#[test]
fn names_that_no_filesystem_shows_are_left_out_and_the_first_of_two_is_shown() {
    let long = "x".repeat(256);
    let bad = ["", ".", "..", "a/b", "/", "nul\0", &long];
    let mut all: Vec<_> = bad.iter().map(|name| (*name, child(0))).collect();
    all.extend([("zebra", child(1)), ("ok", child(2)), ("ok", child(3))]);
    let mut bytes = dag_pb::encode(&links(&all), &unixfs::directory(PLAIN));
    // A name need not be text.
    let at = bytes.windows(5).position(|w| w == b"zebra").unwrap();
    bytes[at] = 0xff;
    let reader = DirectoryReader::new(&Block::dag_pb(bytes.into())).unwrap();
    let no_text = OsStr::from_bytes(b"\xffebra");
    assert_eq!(listed(&reader), [("ok".into(), child(2)), (no_text.to_owned(), child(1))]);
    assert!(matches!(reader.lookup(no_text), Lookup::Found(entry) if entry.cid == child(1)));
    assert!(bad.iter().all(|name| reader.lookup(name) == Lookup::Absent));
    let told: Vec<_> = reader.omitted().listed().iter().map(|omitted| &*omitted.name).collect();
    assert_eq!(told[..7], bad.map(OsStr::new));
    let last = reader.omitted().listed().last().unwrap();
    assert_eq!(
        (&*last.name, last.cid, last.why),
        ("ok".as_ref(), child(3), "another entry has its name")
    );
    assert_eq!(reader.omitted().count(), 8);
}

#[test]
fn omissions_of_a_directory_are_bounded_and_counted() {
    let all: Vec<_> = (0..2000).map(|n| ("a/b", child(n))).collect();
    let block = Block::dag_pb(dag_pb::encode(&links(&all), &unixfs::directory(PLAIN)).into());
    let reader = DirectoryReader::new(&block).unwrap();
    assert_eq!((reader.omitted().listed().len(), reader.omitted().count()), (1000, 2000));
}

#[test]
fn ids_of_unreadable_children_tell_why() {
    assert_eq!(child(0).unreadable(), None);
    let of = |text: &str| text.parse::<ContentId>().unwrap().unreadable();
    let cbor = of("bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy");
    assert_eq!(cbor.as_deref(), Some("no file: its codec is dag-cbor"));
    // A raw block by a function that is none.
    let unknown = ContentId::raw(Multihash::wrap(0x4242, &[1; 32]).unwrap());
    assert!(unknown.unreadable().unwrap().contains("0x4242"));
    let short = ContentId::raw(Multihash::wrap(0x12, &[1; 8]).unwrap());
    assert!(short.unreadable().is_some());
}

fn shard(names: &[(&str, ContentId)], fanout: u32) -> Block {
    Block::dag_pb(dag_pb::encode(&links(names), &unixfs::shard(&[1], fanout, PLAIN)).into())
}

#[test]
fn shards_have_sane_widths_and_slots() {
    for fanout in [0, 1, 4, 7, 24, 100, 2048, 1 << 16, 1 << 31] {
        assert!(DirectoryReader::new(&shard(&[], fanout)).is_err(), "fan-out {fanout}");
    }
    for fanout in [8, 16, 256, 1024] {
        assert!(DirectoryReader::new(&shard(&[], fanout)).is_ok(), "fan-out {fanout}");
    }
    for names in [&["0"][..], &["", "00a"], &["zz"], &["0\u{e9}"], &["00a", "00b"], &["+1a"]] {
        let all: Vec<_> = names.iter().map(|name| (*name, child(0))).collect();
        assert!(Node::decode(&shard(&all, 256)).is_err(), "{names:?}");
    }
    // One digit more than 64 slots have, and a slot beyond the last.
    assert!(Node::decode(&shard(&[("3Fa", child(0))], 64)).is_ok());
    assert!(Node::decode(&shard(&[("40a", child(0))], 64)).is_err());
    let usable = |name: &str| {
        let Node::Shard { links, .. } = Node::decode(&shard(&[(name, child(0))], 256)).unwrap()
        else {
            panic!("a shard")
        };
        !links.is_empty()
    };
    assert!(usable("0Fname") && usable("0F"));
    assert!(!usable("0F..") && !usable("0Fa/b"));
}

#[test]
fn an_entry_where_its_hash_does_not_lead_is_not_shown() {
    let (built, _) =
        build(ImportParams { shard_threshold: 0, ..ImportParams::DEFAULT }, &["name".into()]);
    let Node::Shard { links, .. } = Node::decode(&built.nodes[0]).unwrap() else {
        panic!("a shard")
    };
    let right = links[0].0.clone();
    let wrong = if right.starts_with(b"00") { "01name" } else { "00name" };
    for (name, shown) in [(std::str::from_utf8(&right).unwrap(), true), (wrong, false)] {
        let reader = DirectoryReader::new(&shard(&[(name, child(0))], 256)).unwrap();
        assert_eq!(reader.entries().len(), usize::from(shown));
        assert_eq!(matches!(reader.lookup("name"), Lookup::Found(_)), shown);
    }
}

#[test]
fn shards_that_multiply_one_another_or_go_too_deep_are_refused() {
    let below = shard(&[], 256);
    let twice = shard(&[("00", *below.cid()), ("01", *below.cid())], 256);
    assert!(DirectoryReader::new(&twice).is_err());

    let mut chain = vec![below];
    for _ in 0..9 {
        let next = shard(&[("AB", *chain.last().unwrap().cid())], 256);
        chain.push(next);
    }
    chain.reverse();
    let mut reader = DirectoryReader::new(&chain[0]).unwrap();
    let accepted = chain[1..].iter().take_while(|block| reader.insert(block).is_ok()).count();
    assert_eq!(accepted, 7);

    let narrow = shard(&[], 8);
    let mut reader = DirectoryReader::new(&shard(&[("00", *narrow.cid())], 256)).unwrap();
    assert!(reader.insert(&narrow).is_err());
    // What belongs nowhere changes nothing.
    reader.insert(&shard(&[], 16)).unwrap();
    assert_eq!(reader.missing(), [*narrow.cid()]);
}

#[test]
fn kinds_are_told_without_the_childs_block() {
    let entry = |cid| Entry { name: "n".into(), cid, tsize: 0 };
    assert_eq!(entry(child(0)).kind(), EntryKind::File);
    assert_eq!(entry(ContentId::dag_pb(sha2_256(b""))).kind(), EntryKind::Unknown);
    assert!(DirectoryReader::new(&Block::raw(Bytes::new())).is_err());
}
