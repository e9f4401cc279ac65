#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use proptest::prelude::*;

use super::*;

fn text(value: &str) -> String {
    format!("{}:{value}", value.len())
}

/// A description of files of 10 bytes each, by their paths and attributes.
fn described(files: &[(&[&[u8]], &str)]) -> Vec<u8> {
    let mut info = b"d5:filesl".to_vec();
    for (path, attributes) in files {
        info.extend(format!("d4:attr{}6:lengthi10e4:pathl", text(attributes)).bytes());
        path.iter().for_each(|name| bencode::write_bytes(&mut info, name));
        info.extend(*b"ee");
    }
    let pieces = (files.len() * 10).div_ceil(16);
    info.extend(*b"e4:name4:tree12:piece lengthi16e6:pieces");
    bencode::write_bytes(&mut info, &vec![0; pieces * HASH_LEN]);
    info.push(b'e');
    around_info(&info, &[])
}

/// All paths of the tree with the number of their files.
fn paths(metainfo: &Metainfo) -> Vec<(String, u32)> {
    fn walk(metainfo: &Metainfo, node: u32, at: &str, found: &mut Vec<(String, u32)>) {
        match &metainfo.node(node).unwrap().what {
            TreeKind::File(file) => found.push((at.to_owned(), *file)),
            TreeKind::Directory(names) => {
                for (name, node) in names {
                    let name = name.as_bytes().escape_ascii();
                    walk(metainfo, *node, &format!("{at}/{name}"), found);
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(metainfo, 0, "", &mut found);
    found
}

fn shown(files: &[(&[&[u8]], &str)]) -> Vec<(String, u32)> {
    paths(&Metainfo::parse(&described(files)).unwrap())
}

#[test]
fn a_tree_is_shown_by_its_names_without_what_only_fills_up() {
    let files: &[(&[&[u8]], &str)] = &[
        (&[b"b", b"x"], ""),
        (&[b".pad", b"6"], "p"),
        (&[b"a"], "x"),
        (&[b"b", b"link"], "l"),
        (&[b"b", b"c", b"\xff"], ""),
    ];
    let metainfo = Metainfo::parse(&described(files)).unwrap();
    let expected = [("/a", 2), ("/b/c/\\xff", 4), ("/b/x", 0)].map(|(p, n)| (p.to_owned(), n));
    assert_eq!(paths(&metainfo), expected);
    assert_eq!(metainfo.files[2].kind, FileKind::Regular { executable: true });
    // What is not shown takes its bytes all the same.
    assert_eq!(metainfo.files[4].range, ByteRange::new(40, 50));
    assert_eq!((metainfo.len, metainfo.pieces()), (50, 4));
    assert_eq!(metainfo.pieces_of(ByteRange::new(20, 33)), 1..3);
    assert_eq!(metainfo.pieces_of(ByteRange::new(48, 50)), 3..4);
    assert_eq!(metainfo.pieces_of(ByteRange::new(5, 5)), 0..0);
    assert_eq!(metainfo.bytes_of(3), ByteRange::new(48, 50));
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in [&b".."[..], b"a/b", b"/etc/passwd", b"a\0b", b"a\\b"] {
        let error = Metainfo::parse(&described(&[(&[b"ok"], ""), (&[b"a", name], "")]));
        let Err(MetainfoError::Name { file: 1, .. }) = error else { panic!("{error:?}") };
    }
    let twice = Metainfo::parse(&described(&[(&[b"a", b"b"], ""), (&[b"a", b"b"], "")]));
    assert_eq!(twice, Err(MetainfoError::Duplicate { file: 1 }));
}

#[test]
fn names_that_are_none_become_some_and_clashes_stand_side_by_side() {
    let expect = |files: &[(&[&[u8]], &str)], expected: &[(&str, u32)]| {
        let expected: Vec<_> = expected.iter().map(|(p, n)| ((*p).to_owned(), *n)).collect();
        assert_eq!(shown(files), expected);
    };
    expect(&[(&[b"", b"."], "")], &[("/_/_", 0)]);
    // A file and a directory of one name, in both orders.
    expect(&[(&[b"a"], ""), (&[b"a", b"b"], "")], &[("/a", 0), ("/a_/b", 1)]);
    expect(&[(&[b"a", b"b"], ""), (&[b"a"], "")], &[("/a/b", 0), ("/a_", 1)]);
}

#[test]
fn a_long_name_is_cut_before_its_ending_and_not_amid_a_character() {
    let long = format!("{}.mkv", "ä".repeat(200));
    let names = shown(&[(&[long.as_bytes()], "")]);
    let expected = format!("{}.mkv", "ä".repeat(125));
    assert_eq!(expected.len(), 254);
    assert_eq!(names[0].0, format!("/{}", expected.as_bytes().escape_ascii()));
}

#[test]
fn what_is_wrong_with_a_description_is_named() {
    let wrong = |info: &str| Metainfo::parse(&around_info(info.as_bytes(), &[])).unwrap_err();
    let piece = text(&"x".repeat(20));
    for (info, field) in [
        ("de".to_owned(), "pieces"),
        (format!("d6:lengthi1e6:pieces{piece}e"), "piece length"),
        (format!("d6:lengthi1e12:piece lengthi0e6:pieces{piece}e"), "piece length"),
        (format!("d12:piece lengthi16e6:pieces{piece}e"), "files"),
        (format!("d6:lengthi17e12:piece lengthi16e6:pieces{piece}e"), "pieces"),
        (format!("d6:lengthi-1e12:piece lengthi16e6:pieces{piece}e"), "length"),
        (format!("d5:filesle12:piece lengthi16e6:pieces{piece}e"), "files"),
        (format!("d5:filesld6:lengthi1e4:pathleee12:piece lengthi16e6:pieces{piece}e"), "path"),
    ] {
        assert_eq!(wrong(&info), MetainfoError::Field(field), "{info}");
    }
    assert_eq!(wrong("d12:meta versioni2ee"), MetainfoError::Version2);
    assert_eq!(Metainfo::parse(b"de"), Err(MetainfoError::Field("info")));
    assert!(matches!(Metainfo::parse(b"junk"), Err(MetainfoError::Bencode(_))));
}

#[test]
fn the_name_of_the_whole_cannot_lead_out_either() {
    let piece = text(&"x".repeat(20));
    for name in ["../../etc", ".."] {
        let info = format!("d6:lengthi1e4:name{}12:piece lengthi16e6:pieces{piece}e", text(name));
        let metainfo = Metainfo::parse(&around_info(info.as_bytes(), &[])).unwrap();
        assert_eq!(metainfo.name.to_string_lossy(), metainfo.hash.to_string());
    }
}

#[test]
fn trackers_are_exchanged_without_touching_the_hash() {
    let text = described(&[(&[b"a"], "")]);
    let before = Metainfo::parse(&text).unwrap();
    let trackers = ["udp://t:1".to_owned(), "http://u/".to_owned()];
    let other = with_trackers(&text, &trackers).unwrap();
    let after = Metainfo::parse(&other).unwrap();
    assert_eq!((after.hash, &after.trackers[..]), (before.hash, &trackers[..]));
    assert_eq!(with_trackers(&other, &[]).unwrap(), text);
}

#[test]
fn servers_are_read_as_a_list_or_alone_and_kept() {
    let plain = described(&[(&[b"a"], "")]);
    let with =
        |list: &str| [&plain[..plain.len() - 1], b"8:url-list", list.as_bytes(), b"e"].concat();
    let alone = with("9:http://a/");
    let list = with("l9:http://b/0:9:http://b/i1e8:http://ce");
    for (text, urls) in
        [(&plain, &[][..]), (&alone, &["http://a/"]), (&list, &["http://b/", "http://c"])]
    {
        let metainfo = Metainfo::parse(text).unwrap();
        assert_eq!(metainfo.webseeds, urls);
        let other = with_trackers(text, &["udp://t:1".to_owned()]).unwrap();
        let after = Metainfo::parse(&other).unwrap();
        assert_eq!((after.hash, after.webseeds.len()), (metainfo.hash, urls.len()));
    }
    let mut link = Metainfo::parse(&list).unwrap().magnet();
    assert_eq!(link.webseeds.len(), 2);
    link.webseeds.truncate(1);
    let after = Metainfo::parse(&with_link(&list, &link).unwrap()).unwrap();
    assert_eq!(after.webseeds, link.webseeds);
}

#[test]
fn each_file_that_is_shown_has_its_path() {
    let files: &[(&[&[u8]], &str)] = &[(&[b"b", b"x"], ""), (&[b".pad"], "p"), (&[b"a"], "")];
    let metainfo = Metainfo::parse(&described(files)).unwrap();
    let expected =
        [Some(vec![OsStr::new("b"), OsStr::new("x")]), None, Some(vec![OsStr::new("a")])];
    assert_eq!(metainfo.paths(), expected);
    assert!(!metainfo.single);
}

proptest! {
    #[test]
    fn no_description_makes_it_panic_and_each_name_leads_to_one_file(
        paths in prop::collection::vec(prop::collection::vec("[a-c._]{0,2}", 1..4), 1..12),
    ) {
        let owned: Vec<Vec<&[u8]>> =
            paths.iter().map(|path| path.iter().map(String::as_bytes).collect()).collect();
        let files: Vec<(&[&[u8]], &str)> = owned.iter().map(|path| (path.as_slice(), "")).collect();
        if let Ok(metainfo) = Metainfo::parse(&described(&files)) {
            let mut numbers: Vec<u32> =
                super::tests::paths(&metainfo).into_iter().map(|(_, number)| number).collect();
            numbers.sort_unstable();
            let all: Vec<u32> = (0..u32::try_from(files.len()).unwrap()).collect();
            prop_assert_eq!(numbers, all);
        }
    }
}

#[test]
fn bytes_of_a_torrent_lie_in_the_files_that_hold_them() {
    let names: [&[&[u8]]; 3] = [&[b"a"], &[b"b"], &[b"c"]];
    let metainfo = Metainfo::parse(&described(&names.map(|name| (name, "")))).unwrap();
    let parts = |start, end| -> Vec<_> {
        let parts = metainfo.parts(ByteRange::new(start, end));
        parts.map(|(file, entry, part)| (file, entry.range.start, part.start..part.end)).collect()
    };
    assert_eq!(parts(0, 30), [(0, 0, 0..10), (1, 10, 10..20), (2, 20, 20..30)]);
    assert_eq!(parts(19, 21), [(1, 10, 19..20), (2, 20, 20..21)]);
    assert_eq!(parts(10, 20), [(1, 10, 10..20)]);
    assert!(parts(10, 10).is_empty() && parts(30, 40).is_empty());
}

#[test]
fn what_is_here_in_all_is_the_sum_of_the_pieces() {
    // 30 bytes in pieces of 16: the last one has 14.
    let names: [&[&[u8]]; 3] = [&[b"a"], &[b"b"], &[b"c"]];
    let metainfo = Metainfo::parse(&described(&names.map(|name| (name, "")))).unwrap();
    let pieces = crate::torrent::pieces::Pieces::new(metainfo.into());
    assert_eq!(pieces.all_here(), 0);
    for (bits, len) in [(0x00, 0), (0x80, 16), (0x40, 14), (0xff, 30)] {
        assert!(pieces.load(vec![bits]));
        assert_eq!((pieces.all_here(), pieces.bytes_here(ByteRange::new(0, 30))), (len, len));
    }
}
