//! Files: types, names, ranges, links.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_its_bytes_its_length_and_a_type_by_name_or_by_its_first_bytes() {
    let lab = Lab::new().await;
    let root = lab
        .publish(|tree| {
            for (name, bytes) in [
                ("page.html", &b"x"[..]),
                ("style.css", b"x"),
                ("film.mp4", b"x"),
                ("README", b"hello"),
                ("noise", b"\0\xff"),
                ("picture", b"\x89PNG\r\n\x1a\n"),
                ("empty", b""),
            ] {
                fs::write(tree.join(name), bytes).unwrap();
            }
        })
        .await;
    for (path, kind) in [
        ("page.html", "text/html; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("film.mp4", "video/mp4"),
        ("README", "text/plain; charset=utf-8"),
        ("noise", "application/octet-stream"),
        ("picture", "image/png"),
        ("empty", "text/plain; charset=utf-8"),
        ("README?filename=x.svg", "image/svg+xml"),
    ] {
        let answer = lab.get(&format!("/ipfs/{root}/{path}")).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, kind), "{path}");
        assert_eq!(answer.header("content-length"), answer.body.len().to_string());
        assert_eq!(answer.header("accept-ranges"), "bytes");
    }
    let tree = lab.tree().await;
    let answer = lab.get(&format!("/ipfs/{tree}/big")).await;
    assert!(answer.body[..] == big()[..]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filename_is_told_and_download_makes_it_an_attachment() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let disposition = async |query: &str| {
        let answer = lab.get(&format!("/ipfs/{root}/hello.txt{query}")).await;
        answer.header("content-disposition").to_owned()
    };
    assert_eq!(disposition("").await, "");
    assert_eq!(disposition("?filename=a.txt").await, "inline; filename=\"a.txt\"");
    assert_eq!(
        disposition("?filename=test%D1%82%D0%B5%D1%81%D1%82.jpg").await,
        "inline; filename=\"test____.jpg\"; filename*=UTF-8''test%D1%82%D0%B5%D1%81%D1%82.jpg"
    );
    assert_eq!(disposition("?download=true").await, "attachment");
    let attached = disposition("?download=true&filename=a.txt").await;
    assert_eq!(attached, "attachment; filename=\"a.txt\"");
    assert_eq!(disposition("?download=false&filename=a.txt").await, "inline; filename=\"a.txt\"");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_range_is_answered_with_its_bytes() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let path = format!("/ipfs/{root}/big");
    let bytes = big();
    for (range, start, end) in [
        ("bytes=6-16", 6, 17),
        ("bytes=-3", BIG - 3, BIG),
        ("bytes=262100-262200", 262_100, 262_201),
        ("bytes=500000-", 500_000, BIG),
        ("bytes=0-9999999", 0, BIG),
    ] {
        let answer = lab.ask(Method::GET, &path, &[("range", range)]).await;
        assert_eq!(answer.status, 206, "{range}");
        assert!(answer.body[..] == bytes[start..end], "{range}");
        let shown = format!("bytes {start}-{}/{BIG}", end - 1);
        assert_eq!(answer.header("content-range"), shown);
        assert_eq!(answer.header("content-length"), (end - start).to_string());
    }
    let behind = lab.ask(Method::GET, &path, &[("range", "bytes=600000-")]).await;
    assert_eq!((behind.status, behind.header("content-range")), (416, "bytes */600000"));
    let odd = lab.ask(Method::GET, &path, &[("range", "lines=1-2")]).await;
    assert_eq!((odd.status, odd.body.len()), (200, BIG));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_are_parts_of_one_answer() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let path = format!("/ipfs/{root}/hello.txt");
    let answer = lab.ask(Method::GET, &path, &[("range", "bytes=6-10,0-4")]).await;
    assert_eq!(answer.status, 206);
    let kind = answer.header("content-type").to_owned();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let part = |range: &str, text: &str| {
        format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes {range}/12\r\n\r\n{text}\r\n"
        )
    };
    let expected = [part("6-10", "world"), part("0-4", "hello"), format!("--{boundary}--\r\n")];
    assert_eq!(answer.text(), expected.concat());
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    assert!(!answer.headers.contains_key("content-range"));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_another_content_is_not_answered() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let path = format!("/ipfs/{root}/big");
    let etag = lab.ask(Method::HEAD, &path, &[]).await.header("etag").to_owned();
    for (condition, status) in [(etag.as_str(), 206), ("\"other\"", 200)] {
        let headers = [("range", "bytes=0-1"), ("if-range", condition)];
        assert_eq!(lab.ask(Method::GET, &path, &headers).await.status, status, "{condition}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_given_though_blocks_before_and_behind_it_are_missing() {
    let lab = Lab::new().await;
    let parts: Vec<Block> = (1..=3).map(|byte| Block::raw(vec![byte; 1024].into())).collect();
    let links: Vec<_> = parts.iter().map(|block| (*block.cid(), 1024)).collect();
    let root = file_of(&links).pop().unwrap();
    let file = lab.put(&root);
    let object = lab.node.store().create_object(&file, 3072).unwrap();
    for at in [0, 2] {
        let place = crate::content::Placement { offset: at as u64 * 1024, data: 0..1024 };
        object.place(&parts[at], &[place]).unwrap();
    }
    for (range, byte) in [("bytes=997-1000", 1), ("bytes=2200-2203", 3)] {
        let answer = lab.ask(Method::GET, &format!("/ipfs/{file}"), &[("range", range)]).await;
        assert_eq!((answer.status, &answer.body[..]), (206, &[byte; 4][..]), "{range}");
    }
    // The whole is not here, and is not begun.
    assert_eq!(lab.get(&format!("/ipfs/{file}")).await.status, 404);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_its_text_and_is_not_followed() {
    let lab = Lab::new().await;
    let root = lab
        .publish(|tree| {
            fs::write(tree.join("foo"), "content").unwrap();
            std::os::unix::fs::symlink("foo", tree.join("bar")).unwrap();
        })
        .await;
    let answer = lab.get(&format!("/ipfs/{root}/bar")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "foo"));
    assert_eq!(answer.header("content-type"), "inode/symlink");
    let archive = lab.get(&format!("/ipfs/{root}/bar?format=car&dag-scope=entity")).await;
    assert_eq!(archive.blocks(), [root, lab.at(&root, "bar").await]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_unescaped_once_and_need_not_be_text() {
    let lab = Lab::new().await;
    let no_text = OsString::from_vec(b"\xff\xfe".to_vec());
    let root = lab
        .publish(|tree| {
            fs::write(tree.join("Portugal%2C+España=Peninsula Ibérica.txt"), "one").unwrap();
            fs::write(tree.join(&no_text), "two").unwrap();
        })
        .await;
    for (path, text) in
        [("Portugal%252C+Espa%C3%B1a=Peninsula%20Ib%C3%A9rica.txt", "one"), ("%FF%fe", "two")]
    {
        let answer = lab.get(&format!("/ipfs/{root}/{path}")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, text), "{path}");
    }
    lab.stop().await;
}
