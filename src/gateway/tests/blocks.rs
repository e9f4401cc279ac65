//! Raw blocks: `application/vnd.ipld.raw`.

use super::*;
use crate::content::{Multihash, sha2_256};

const RAW: &str = "application/vnd.ipld.raw";

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_block_is_returned_by_format_and_by_accept_and_its_hash_is_that_of_the_cid() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let stored = lab.node.store().block(&root).unwrap().unwrap();
    for answer in [
        lab.get(&format!("/ipfs/{root}?format=raw")).await,
        lab.get_as(&format!("/ipfs/{root}"), RAW).await,
        lab.get_as(&format!("/ipfs/{root}"), "text/html;q=0.1, application/vnd.ipld.raw").await,
    ] {
        assert_eq!((answer.status, &answer.body), (200, stored.data()));
        Block::verify(root, answer.body.clone()).unwrap();
        assert_eq!(answer.header("content-type"), RAW);
        assert_eq!(answer.header("content-length"), stored.data().len().to_string());
    }
    let leaf = leaves()[1];
    let answer = lab.get(&format!("/ipfs/{leaf}?format=raw")).await;
    assert_eq!((answer.status, &answer.body[..]), (200, &big()[LEAF..2 * LEAF]));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_format_in_the_url_takes_precedence_over_accept() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let answer = lab.get_as(&format!("/ipfs/{root}?format=raw"), "application/vnd.ipld.car").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, RAW));
    let answer = lab.get_as(&format!("/ipfs/{root}?format=car"), RAW).await;
    assert!(answer.header("content-type").starts_with("application/vnd.ipld.car;"), "{answer:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_disposition_of_a_block_is_attachment_with_a_name_and_nosniff() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let answer = lab.get(&format!("/ipfs/{root}?format=raw")).await;
    let expected = format!("attachment; filename=\"{root}.bin\"");
    assert_eq!(answer.header("content-disposition"), expected);
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    let answer = lab.get(&format!("/ipfs/{root}?format=raw&filename=foobar.bin")).await;
    assert_eq!(answer.header("content-disposition"), "attachment; filename=\"foobar.bin\"");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_location_names_the_format_that_accept_chose() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let answer = lab.get_as(&format!("/ipfs/{root}"), RAW).await;
    assert_eq!(answer.header("content-location"), format!("/ipfs/{root}?format=raw"));
    let answer = lab.get_as(&format!("/ipfs/{root}?format=raw"), RAW).await;
    assert!(!answer.headers.contains_key("content-location"));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_block_are_served() {
    let lab = Lab::new().await;
    lab.tree().await;
    let leaf = leaves()[0];
    let path = format!("/ipfs/{leaf}?format=raw");
    let answer = lab.ask(Method::GET, &path, &[("range", "bytes=6-16")]).await;
    assert_eq!((answer.status, &answer.body[..]), (206, &big()[6..17]));
    assert_eq!(answer.header("content-range"), format!("bytes 6-16/{LEAF}"));
    let answer = lab.ask(Method::GET, &path, &[("range", "bytes=262144-")]).await;
    assert_eq!((answer.status, answer.header("content-range")), (416, "bytes */262144"));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_root_is_not_found_for_head_raw_and_car() {
    let lab = Lab::new().await;
    let absent = ContentId::dag_pb(sha2_256(b"nobody has this"));
    for query in ["", "?format=raw", "?format=car"] {
        for method in [Method::GET, Method::HEAD] {
            let answer = lab.ask(method, &format!("/ipfs/{absent}{query}"), &[]).await;
            assert_eq!(answer.status, 404, "{query}");
            assert!(!answer.headers.contains_key("cache-control"), "{query}");
        }
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_is_answered_in_both_forms_by_get_and_head() {
    let lab = Lab::new().await;
    let answer = lab.get("/ipfs/bafkqaaa?format=raw").await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let (header, blocks) = lab.get("/ipfs/bafkqaaa?format=car").await.archive();
    assert_eq!(header.roots, ["bafkqaaa".parse().unwrap()]);
    assert!(blocks.is_empty());
    for query in ["format=raw", "format=car"] {
        let answer = lab.ask(Method::HEAD, &format!("/ipfs/bafkqaaa?{query}"), &[]).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0));
    }
    let hello = lab.get("/ipfs/bafkqabtimvwgy3yk").await;
    assert_eq!((hello.status, &hello.body[..]), (200, &b"hello\n"[..]));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_the_headers_of_the_get_and_no_payload() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    for path in ["?format=raw", "/big", "/hello.txt", "?format=car", "/"] {
        let path = format!("/ipfs/{root}{path}");
        let get = lab.get(&path).await;
        let head = lab.ask(Method::HEAD, &path, &[]).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        for name in ["content-type", "etag", "cache-control", "x-ipfs-path", "x-ipfs-roots"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
            assert!(!head.header(name).is_empty(), "{path} {name}");
        }
        if get.headers.contains_key("content-length") {
            assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        }
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_codecs_are_given_as_they_are_by_their_own_type_and_by_no_other() {
    let lab = Lab::new().await;
    let data = Bytes::from_static(b"{\"a\":1}");
    let hash: Multihash = sha2_256(&data);
    // Version 1, the codec dag-json as a varint, the hash.
    let cid = ContentId::from_bytes(&[&[1, 0xa9, 0x02][..], &hash.to_bytes()].concat()).unwrap();
    lab.put(&Block::verify(cid, data.clone()).unwrap());
    for path in [format!("/ipfs/{cid}"), format!("/ipfs/{cid}?format=dag-json")] {
        let answer = lab.get(&path).await;
        assert_eq!((answer.status, &answer.body), (200, &data));
        assert_eq!(answer.header("content-type"), "application/vnd.ipld.dag-json");
    }
    assert_eq!(lab.get(&format!("/ipfs/{cid}?format=raw")).await.body, data);
    assert_eq!(lab.get(&format!("/ipfs/{cid}?format=dag-cbor")).await.status, 406);
    // Entity is the block where there are no files.
    let entity = lab.get(&format!("/ipfs/{cid}?format=car&dag-scope=entity")).await;
    assert_eq!(entity.blocks(), [cid]);
    let ranged = lab.get(&format!("/ipfs/{cid}?format=car&entity-bytes=5:9")).await;
    assert_eq!(ranged.blocks(), [cid]);
    // What is below it is not known.
    assert_eq!(lab.get(&format!("/ipfs/{cid}?format=car")).await.status, 400);
    let root = lab.tree().await;
    for format in ["dag-json", "dag-cbor", "cbor", "json", "tar"] {
        let answer = lab.get(&format!("/ipfs/{root}?format={format}")).await;
        assert_eq!(answer.status, 406, "{format}");
    }
    assert_eq!(lab.get(&format!("/ipfs/{root}?format=ipns-record")).await.status, 400);
    lab.stop().await;
}
