//! Archives: `application/vnd.ipld.car`.

use super::*;
use crate::content::{DirectoryBuilder, DirectoryReader, Lookup};

/// A sharded directory of many names for one small file, and the id of that.
fn sharded(lab: &Lab) -> (ContentId, ContentId) {
    let file = lab.put(&Block::raw(Bytes::from_static(b"x")));
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    for number in 0..6_000 {
        builder.add(&format!("file-{number:05}"), file, 1);
    }
    let built = builder.finish(Metadata::default());
    assert!(built.nodes.len() > 1);
    for block in &built.nodes {
        lab.put(block);
    }
    (built.root, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_tree_comes_depth_first_and_each_block_once() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let (header, blocks) = lab.get(&format!("/ipfs/{root}?format=car")).await.archive();
    assert_eq!((header.version, header.roots), (1, vec![root]));
    let mut expected = vec![root, lab.at(&root, "big").await];
    expected.extend(leaves());
    for path in ["hello.txt", "sub", "sub/hello"] {
        expected.push(lab.at(&root, path).await);
    }
    assert_eq!(blocks, expected);
    for all in ["dag-scope=all", "car-version=1", "car-order=dfs", "car-order=unk"] {
        assert_eq!(lab.get(&format!("/ipfs/{root}?format=car&{all}")).await.blocks(), expected);
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_type_has_the_version_of_the_header_and_all_known_parameters() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let both = "application/vnd.ipld.car; version=1; order=dfs; dups=";
    for (query, accept, duplicates) in [
        ("?format=car", "*/*", "n"),
        ("", "application/vnd.ipld.car", "n"),
        ("", "application/vnd.ipld.car; version=1; order=unk; dups=y", "y"),
        ("?format=car", "application/vnd.ipld.car; dups=y", "y"),
        ("?format=car&car-dups=n", "application/vnd.ipld.car; dups=y", "n"),
        ("?format=car&car-dups=y", "application/vnd.ipld.car; dups=n", "y"),
    ] {
        let answer = lab.get_as(&format!("/ipfs/{root}{query}"), accept).await;
        assert_eq!(
            answer.header("content-type"),
            format!("{both}{duplicates}"),
            "{query} {accept}"
        );
        assert_eq!(answer.archive().0.version, 1);
    }
    let odd = lab.get_as(&format!("/ipfs/{root}"), "application/vnd.ipld.car; version=2").await;
    assert_eq!(odd.status, 406);
    assert_eq!(lab.get(&format!("/ipfs/{root}?format=car&car-version=2")).await.status, 400);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_an_attachment_without_ranges_under_an_etag() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let answer = lab.get(&format!("/ipfs/{root}?format=car")).await;
    let expected = format!("attachment; filename=\"{root}.car\"");
    assert_eq!(answer.header("content-disposition"), expected);
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("accept-ranges"), "none");
    assert_eq!(answer.header("cache-control"), "public, max-age=29030400, immutable");
    assert!(answer.header("etag").starts_with("W/\"all."), "{answer:?}");
    let path = format!("/ipfs/{root}?format=car");
    let ranged = lab.ask(Method::GET, &path, &[("range", "bytes=0-1")]).await;
    assert_eq!(ranged.blocks(), answer.blocks());
    let car = "application/vnd.ipld.car; dups=y";
    let answer = lab.get_as(&format!("/ipfs/{root}?dag-scope=block"), car).await;
    let location = format!("/ipfs/{root}?dag-scope=block&format=car&car-dups=y");
    assert_eq!(answer.header("content-location"), location);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_etag_begins_with_the_scope_and_differs_by_entity_bytes() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let mut etags = Vec::new();
    for (query, scope) in [
        ("", "all"),
        ("&dag-scope=block", "block"),
        ("&dag-scope=entity", "entity"),
        ("&entity-bytes=0:9", "entity"),
        ("&entity-bytes=0:*", "entity"),
    ] {
        let path = format!("/ipfs/{root}/big?format=car{query}");
        let answer = lab.get(&path).await;
        let etag = answer.header("etag").to_owned();
        assert!(etag.starts_with(&format!("W/\"{scope}.")), "{etag}");
        let again = lab.ask(Method::GET, &path, &[("if-none-match", &etag)]).await;
        assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, etag.as_str()));
        etags.push(etag);
    }
    etags.dedup();
    assert_eq!(etags.len(), 5);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_goes_before_what_it_leads_to_also_through_shards() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let (sub, hello) = (lab.at(&root, "sub").await, lab.at(&root, "sub/hello").await);
    let answer = lab.get(&format!("/ipfs/{root}/sub/hello?format=car")).await;
    assert_eq!(answer.blocks(), [root, sub, hello]);
    assert_eq!(answer.header("x-ipfs-roots"), format!("{root},{sub},{hello}"));

    let (dir, file) = sharded(&lab);
    let blocks = lab.get(&format!("/ipfs/{dir}/file-00042?format=car")).await.blocks();
    assert_eq!((blocks.first(), blocks.last()), (Some(&dir), Some(&file)));
    // A client that has nothing but these blocks finds the name.
    let block = |cid: &ContentId| lab.node.store().block(cid).unwrap().unwrap();
    let mut reader = DirectoryReader::new(&block(&dir)).unwrap();
    for shard in &blocks[1..blocks.len() - 1] {
        assert_eq!(reader.lookup("file-00042"), Lookup::Need(*shard));
        reader.insert(&block(shard)).unwrap();
    }
    assert!(matches!(reader.lookup("file-00042"), Lookup::Found(_)));
    assert_eq!(lab.get(&format!("/ipfs/{root}/sub/none?format=car")).await.status, 404);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scope_block_is_the_root_alone_and_entity_what_a_file_or_a_listing_needs() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let file = lab.at(&root, "big").await;
    let scoped = async |path: String, scope: &str| {
        lab.get(&format!("/ipfs/{path}?format=car&dag-scope={scope}")).await.blocks()
    };
    assert_eq!(scoped(format!("{root}/big"), "block").await, [root, file]);
    assert_eq!(scoped(root.to_string(), "block").await, [root]);
    assert_eq!(scoped(root.to_string(), "entity").await, [root]);
    let whole = [vec![root, file], leaves()].concat();
    assert_eq!(scoped(format!("{root}/big"), "entity").await, whole);

    let (dir, file) = sharded(&lab);
    let shards = scoped(dir.to_string(), "entity").await;
    assert!(shards.len() > 1 && !shards.contains(&file));
    let mut reader = DirectoryReader::new(&lab.node.store().block(&dir).unwrap().unwrap()).unwrap();
    for shard in &shards[1..] {
        reader.insert(&lab.node.store().block(shard).unwrap().unwrap()).unwrap();
    }
    assert_eq!((reader.missing().len(), reader.entries().len()), (0, 6_000));
    let answer = lab.get(&format!("/ipfs/{root}?format=car&dag-scope=some")).await;
    assert_eq!(answer.status, 400);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entity_bytes_returns_only_the_blocks_that_verify_the_range() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let file = lab.at(&root, "big").await;
    let leaves = leaves();
    for (range, expected) in [
        ("0:0", &leaves[..1]),
        ("0:262143", &leaves[..1]),
        ("0:262144", &leaves[..2]),
        ("262144:524287", &leaves[1..2]),
        ("300000:*", &leaves[1..]),
        ("-1:*", &leaves[2..]),
        ("-5:-1", &leaves[2..]),
        ("100:-400000", &leaves[..1]),
        ("0:*", &leaves[..]),
    ] {
        let path = format!("/ipfs/{file}?format=car&dag-scope=entity&entity-bytes={range}");
        assert_eq!(lab.get(&path).await.blocks(), [&[file], expected].concat(), "{range}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_partly_outside_returns_the_blocks_within() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let file = lab.at(&root, "big").await;
    let leaves = leaves();
    for (range, expected) in [
        ("524288:9999999", &leaves[2..]),
        ("-9999999:*", &leaves[..]),
        ("-9999999:100", &leaves[..1]),
        ("-9999999:-3", &leaves[..]),
    ] {
        let path = format!("/ipfs/{file}?format=car&entity-bytes={range}");
        assert_eq!(lab.get(&path).await.blocks(), [&[file], expected].concat(), "{range}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_no_length_is_the_root_block_and_one_wholly_outside_a_bad_request() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let file = lab.at(&root, "big").await;
    for range in ["9:5", "-5:-10"] {
        let path = format!("/ipfs/{file}?format=car&entity-bytes={range}");
        assert_eq!(lab.get(&path).await.blocks(), [file], "{range}");
    }
    for range in ["600000:*", "700000:800000", "0:-700000", "1", "a:b", "*:5"] {
        let path = format!("/ipfs/{file}?format=car&entity-bytes={range}");
        assert_eq!(lab.get(&path).await.status, 400, "{range}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entity_bytes_of_a_directory_is_ignored() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    for range in ["0:*", "0:5", "999999:*"] {
        let path = format!("/ipfs/{root}?format=car&entity-bytes={range}");
        assert_eq!(lab.get(&path).await.blocks(), [root], "{range}");
    }
    let (dir, _) = sharded(&lab);
    let entity = lab.get(&format!("/ipfs/{dir}?format=car&dag-scope=entity")).await.blocks();
    let ranged = lab.get(&format!("/ipfs/{dir}?format=car&entity-bytes=0:5")).await.blocks();
    assert_eq!(ranged, entity);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_are_sent_every_time_with_y_and_once_with_n() {
    let lab = Lab::new().await;
    let root = lab
        .publish(|tree| {
            fs::write(tree.join("a"), vec![0; 2 * LEAF]).unwrap();
            fs::write(tree.join("b"), vec![0; 2 * LEAF]).unwrap();
        })
        .await;
    let file = lab.at(&root, "a").await;
    let leaf = *Block::raw(vec![0; LEAF].into()).cid();
    for (duplicates, expected) in
        [("y", vec![root, file, leaf, leaf, file, leaf, leaf]), ("n", vec![root, file, leaf])]
    {
        let path = format!("/ipfs/{root}?format=car&car-dups={duplicates}");
        assert_eq!(lab.get(&path).await.blocks(), expected);
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_over_nodes_that_are_repeated_has_all_its_blocks() {
    let lab = Lab::new().await;
    let part = |byte: u8| Block::raw(vec![byte; 1000].into());
    let (one, two) = (part(1), part(2));
    for block in [&one, &two] {
        lab.put(block);
    }
    let pair = file_of(&[(*one.cid(), 1000), (*two.cid(), 1000)]).pop().unwrap();
    let pair = (lab.put(&pair), 2000);
    let file = file_of(&[pair, pair, pair]).pop().unwrap();
    let file = lab.put(&file);
    // The first pair is cut, the second one whole: its first block is wanted there.
    let path = format!("/ipfs/{file}?format=car&entity-bytes=1500:4500");
    let blocks = lab.get(&path).await.blocks();
    assert_eq!(blocks, [file, pair.0, *two.cid(), *one.cid()]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_virtual_block_of_an_identity_cid_is_in_an_archive() {
    let lab = Lab::new().await;
    let inline: ContentId = "bafkqabtimvwgy3yk".parse().unwrap();
    let leaf = Block::raw(vec![7; 1000].into());
    lab.put(&leaf);
    let file = file_of(&[(inline, 6), (*leaf.cid(), 1000)]).pop().unwrap();
    let file = lab.put(&file);
    for query in ["car-dups=y", "car-dups=n", "entity-bytes=0:*", "entity-bytes=0:6"] {
        let blocks = lab.get(&format!("/ipfs/{file}?format=car&{query}")).await.blocks();
        assert_eq!(blocks, [file, *leaf.cid()], "{query}");
    }
    let first = lab.get(&format!("/ipfs/{file}?format=car&entity-bytes=0:5")).await.blocks();
    assert_eq!(first, [file]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_child_ends_the_stream_and_does_not_matter_outside_the_range() {
    let lab = Lab::new().await;
    let parts: Vec<Block> = (1..=3).map(|byte| Block::raw(vec![byte; 1024].into())).collect();
    let links: Vec<_> = parts.iter().map(|block| (*block.cid(), 1024)).collect();
    let file = lab.put(&file_of(&links).pop().unwrap());
    // The middle one is missing.
    for block in [&parts[0], &parts[2]] {
        lab.put(block);
    }
    let answer = lab.get(&format!("/ipfs/{file}?format=car")).await;
    assert_eq!((answer.status, answer.is_broken), (200, true));
    for (range, at) in [("0:1000", 0), ("2200:*", 2)] {
        let path = format!("/ipfs/{file}?format=car&dag-scope=entity&entity-bytes={range}");
        assert_eq!(lab.get(&path).await.blocks(), [file, *parts[at].cid()], "{range}");
    }
    let answer = lab.get(&format!("/ipfs/{file}?format=car&entity-bytes=0:1024")).await;
    assert_eq!((answer.status, answer.is_broken), (200, true));
    lab.stop().await;
}
