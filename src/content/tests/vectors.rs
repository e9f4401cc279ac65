//! Ids that Kubo and the profiles of IPIP-499 give to known content.

use std::ops::Range;

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};
use sha2::{Digest, Sha256};

use super::*;
use crate::content::dag_pb;

fn file_id(params: ImportParams, data: impl Into<Bytes>) -> String {
    import_bytes(params, &data.into(), PLAIN).0.root.to_string()
}

/// `len` zero bytes; one leaf's id is used over and over.
fn zeros_id(params: ImportParams, len: u64) -> String {
    let chunk = params.chunk_len as u64;
    let full = Block::raw(vec![0; params.chunk_len].into());
    let mut builder = FileBuilder::new(params);
    for _ in 0..len / chunk {
        builder.push(*full.cid(), chunk);
    }
    let rest = len % chunk;
    if rest > 0 {
        builder.push(*Block::raw(vec![0; rest as usize].into()).cid(), rest);
    }
    builder.finish(PLAIN).root.to_string()
}

/// The ids of the chunks of a ChaCha20 stream under the hash of `seed`, with their lengths. In parts, because a gigabyte
/// of it keeps one core busy for many seconds.
fn seeded_leaves(params: ImportParams, seed: &str, len: u64) -> Vec<(ContentId, u64)> {
    const PARTS: u64 = 4;
    let chunk = params.chunk_len as u64;
    let part = len.div_ceil(PARTS).next_multiple_of(chunk);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..PARTS)
            .map(|n| (n * part).min(len)..((n + 1) * part).min(len))
            .map(|range| scope.spawn(move || seeded_part(seed, range, params.chunk_len)))
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

fn seeded_part(seed: &str, range: Range<u64>, chunk: usize) -> Vec<(ContentId, u64)> {
    let key: [u8; 32] = Sha256::digest(seed).into();
    let mut stream = ChaCha20Rng::from_seed(key);
    // The position counts words of four bytes.
    stream.set_word_pos(u128::from(range.start / 4));
    let leaf = |start: u64| {
        let mut bytes = vec![0; (range.end - start).min(chunk as u64) as usize];
        stream.fill_bytes(&mut bytes);
        (ContentId::raw(sha2_256(&bytes)), bytes.len() as u64)
    };
    range.clone().step_by(chunk).map(leaf).collect()
}

fn id_over(params: ImportParams, leaves: &[(ContentId, u64)]) -> String {
    let mut builder = FileBuilder::new(params);
    for (leaf, len) in leaves {
        builder.push(*leaf, *len);
    }
    builder.finish(PLAIN).root.to_string()
}

#[test]
fn files_of_one_block_are_their_raw_leaf() {
    let id = |data: &'static str| file_id(ImportParams::DEFAULT, data);
    assert_eq!(id(""), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku");
    assert_eq!(id("hello world"), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
    assert_eq!(id("hello world\n"), "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4");
}

#[test]
fn zero_files_around_the_limits_of_leaf_and_node() {
    for (len, id) in [
        (1, "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu"),
        (262_144, "bafkreiekhhjkxu4ztk3tyng3er3ijhg56mb44oe3gwbgquhzu4afrg2ksa"),
        (262_145, "bafybeigllfqgfpqydppr6cmv56g7ax4wyhruzswvcefv6j5kj77nzttfki"),
        (174 * 262_144, "bafybeibxsa3ioclowpaq7b6gxl65gzqneopfr3fnhedak6sqr4bjz5lnyq"),
        (174 * 262_144 + 1, "bafybeihqwzd3o6q6v3pmwhzjy22vokhr767burokmqemg63hptx2nqd7ym"),
        (348 * 262_144 + 1, "bafybeigwxvsv3tspcpqa6ri2wts2ouxkdfexjuax45heyfiwmykapwjf3a"),
    ] {
        assert_eq!(zeros_id(ImportParams::DEFAULT, len), id, "{len} zeros");
    }
}

#[test]
fn a_seeded_file_of_two_levels() {
    let params = ImportParams::DEFAULT;
    let leaves = seeded_leaves(params, "v0-seed", 174 * 262_144 + 1);
    let id = "bafybeifr472xiwfk53w5s7bayijk3lq2go6ocqqcfch6ygy5qwza5hkdl4";
    assert_eq!(id_over(params, &leaves), id);
}

#[test]
fn files_at_and_over_the_links_of_a_node_of_the_2025_profile() {
    let params = ImportParams::UNIXFS_V1_2025;
    let leaves = seeded_leaves(params, "v1-2025-seed", 1025 << 20);
    let at = "bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm";
    let over = "bafybeihmzokxxjqwxjcryerhp5ezpcog2wcawfryb2xm64xiakgm4a5jue";
    assert_eq!(id_over(params, &leaves[..1024]), at);
    assert_eq!(id_over(params, &leaves), over);
}

#[test]
fn small_chunks_make_deep_trees() {
    let id = |data: Vec<u8>, chunk: usize| file_id(params(chunk, 174), data);
    assert_eq!(
        id(b"foobar\n".to_vec(), 2),
        "bafybeiakabo5d5e25jzw2i32mymsnwyuoaqozkjfkqibnvodyxna6nuanm"
    );
    assert_eq!(id(vec![0; 1000], 7), "bafybeia3u4lcsbc6ijwivdukvlougvli4rm73r65chivjsl5l7vemqclhy");
    assert_eq!(
        id(vec![b'a'; 400], 1),
        "bafybeiajemq5ovepy7fc56ifhtn6aoctbkgxcqav44zg2bjkrfwvlbnewu"
    );
    assert_eq!(
        id(vec![b'a'; 174 * 174 + 1], 1),
        "bafybeigavzeufmuhnoqvnxpfunpguw2uhx4gun5hsu7xpreqy4xl6ezvrq"
    );
}

#[test]
fn mode_and_mtime_make_dag_pb_leaves() {
    let meta = Metadata { mode: Some(0o644), mtime: Some((1_700_000_000, 0)) };
    let data = Bytes::from_static(b"foobar\n");
    let (built, leaves) = import_bytes(ImportParams::DEFAULT, &data, meta);
    let id = "bafybeib3cxkzkogkexj4bnyx5qrbui7dulj6cudejwffwqh2fk6agbjcsi";
    assert_eq!((built.root.to_string().as_str(), leaves.len()), (id, 1));
    assert_eq!(Node::decode(&leaves[0]).unwrap().metadata(), meta);

    let empty = |meta| import_bytes(ImportParams::DEFAULT, &Bytes::new(), meta).0.root;
    let v0 = |id: &str| id.parse::<ContentId>().unwrap().to_v1();
    assert_eq!(
        empty(Metadata { mode: Some(0o640), mtime: None }),
        v0("QmQLgxypSNGNFTuUPGCecq6dDEjb6hNB5xSyVmP3cEuNtq")
    );
    assert_eq!(
        empty(Metadata { mode: None, mtime: Some((1_604_320_482, 0)) }),
        v0("QmQ6kErEW8kztQFV8vbwNU8E4dmtGsYpRiboiLxUEwibvj")
    );
}

#[test]
fn symbolic_links_and_a_small_tree() {
    assert_eq!(
        symlink("foobar", PLAIN).cid().to_string(),
        "bafybeiafb5ac2gbschcrzuqj3ewdam5vbqs7xtzbpgow5mkab7s5ilzxre"
    );
    let params = ImportParams::DEFAULT;
    let file = |data: &'static str| import_bytes(params, &data.into(), PLAIN).0;
    let text = file("some text\n");
    let to_file = symlink("files/foo/baz", PLAIN);
    let to_nothing = symlink("files/does/not/exist", PLAIN);
    let mut foo = DirectoryBuilder::new(params);
    foo.add("baz", text.root, text.tsize);
    let foo = foo.finish(PLAIN);
    let mut bar = DirectoryBuilder::new(params);
    bar.add("baz", *to_file.cid(), to_file.data().len() as u64);
    let bar = bar.finish(PLAIN);
    let mut root = DirectoryBuilder::new(params);
    root.add("foo", foo.root, foo.tsize);
    root.add("bar", bar.root, bar.tsize);
    root.add("bad", *to_nothing.cid(), to_nothing.data().len() as u64);
    assert_eq!(
        root.finish(PLAIN).root.to_string(),
        "bafybeibyhlx64cklod6isy3h7tsmr4qvam3ae3b74n3hfes5bythjrwyua"
    );
}

/// A directory of files in one leaf each.
fn directory_of(
    params: ImportParams,
    files: impl Iterator<Item = (String, Vec<u8>)>,
) -> BuiltDirectory {
    let mut builder = DirectoryBuilder::new(params);
    for (name, data) in files {
        let len = data.len() as u64;
        builder.add(&name, *Block::raw(data.into()).cid(), len);
    }
    builder.finish(PLAIN)
}

fn is_sharded(built: &BuiltDirectory) -> bool {
    Node::decode(built.nodes.last().unwrap()).unwrap().kind() == NodeKind::Shard
}

#[test]
fn small_directories() {
    let empty = directory_of(ImportParams::DEFAULT, std::iter::empty());
    assert_eq!(
        empty.root.to_string(),
        "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    );
    let v0: ContentId = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn".parse().unwrap();
    assert_eq!(empty.root, v0.to_v1());
    let hello = [("hello.txt".to_owned(), b"hello world\n".to_vec())];
    assert_eq!(
        directory_of(ImportParams::DEFAULT, hello.into_iter()).root.to_string(),
        "bafybeidhkumeonuwkebh2i4fc7o7lguehauradvlk57gzake6ggjsy372a"
    );
}

#[test]
fn a_hamt_over_two_thousand_files() {
    let params = ImportParams { shard_threshold: 1, ..ImportParams::DEFAULT };
    let files = (1..=2000).map(|n| (format!("file{n}"), format!("{n}\n").into_bytes()));
    assert_eq!(
        directory_of(params, files).root.to_string(),
        "bafybeibiemewfzzdyhq2l74wrd6qj2oz42usjlktgnlqv4yfawgouaqn4u"
    );
}

#[test]
fn directories_turn_into_hamts_just_over_the_threshold() {
    let long = |count: usize| {
        let files = (0..count).map(|n| {
            let name = format!(
                "long name to fill out bytes to make the sharded directory test flip over the \
                 sharded directory limit because link names are included in the directory entry {n}"
            );
            (name.clone(), name.into_bytes())
        });
        directory_of(ImportParams::DEFAULT, files)
    };
    let (flat, sharded) = (long(1343), long(1344));
    assert_eq!(
        flat.root.to_string(),
        "bafybeihecq4rpl4nw3cgfb2uiwltgsmw5sutouvuldv5fxn4gfbihvnalq"
    );
    assert_eq!(
        sharded.root.to_string(),
        "bafybeigyvxs6og5jbmpaa43qbhhd5swklqcfzqdrtjgfh53qjon6hpjaye"
    );
    assert_eq!((is_sharded(&flat), is_sharded(&sharded)), (false, true));
    // What the implementation that these ids come from prints as their size.
    assert_eq!((flat.tsize, sharded.tsize), (490_665, 515_735));

    let padded = |last: usize| {
        let name = move |n: usize| {
            let width = if n == 4095 { last } else { 28 };
            (format!("{:_<width$}", format!("f{n:06}")), b"x".to_vec())
        };
        directory_of(ImportParams::DEFAULT, (0..4096).map(name)).root.to_string()
    };
    assert_eq!(padded(28), "bafybeig62a6h2ehwitvgdk7537v6w4dud5xaqgiqzlk5ctrlz4ridkhvh4");
    assert_eq!(padded(29), "bafybeic6pxr5ktlpbvkrnkz3dw2f2npm3s5frm6sqapgdppfc2a6y2bxxy");
}

#[test]
fn the_2025_profile_reckons_by_the_block() {
    let one_byte = |count: usize, last: usize| {
        let name = move |n: usize| {
            let width = if n + 1 == count { last } else { 11 };
            (format!("{n:0width$}"), b"x".to_vec())
        };
        directory_of(ImportParams::UNIXFS_V1_2025, (0..count).map(name))
    };
    // 4765 links of 55 bytes, one of 65 or 66, and 4 bytes of data.
    let (at, over) = (one_byte(4766, 21), one_byte(4766, 22));
    assert_eq!(at.nodes.last().unwrap().data().len(), 262_144);
    assert_eq!((is_sharded(&at), is_sharded(&over)), (false, true));
    let id = |len: u64| zeros_id(ImportParams::UNIXFS_V1_2025, len);
    assert!(id(1 << 20).starts_with("bafkrei") && id((1 << 20) + 1).starts_with("bafybei"));
}

#[test]
fn dag_pb_is_written_byte_for_byte_as_others_write_it() {
    let link = dag_pb::NewLink { hash: vec![1, 0x55, 0, 1, 7], name: Vec::new(), tsize: 300 };
    assert_eq!(
        dag_pb::encode(&[link], &[8, 2]),
        [0x12, 12, 0x0a, 5, 1, 0x55, 0, 1, 7, 0x12, 0, 0x18, 0xac, 2, 0x0a, 2, 8, 2]
    );
}
