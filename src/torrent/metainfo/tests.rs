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
fn odd_names_are_shown_tamed_and_kept_as_written() {
    let files: &[(&[&[u8]], &str)] = &[
        (&[b"..", b"AC/DC.mp3"], ""),
        (&[b"a\\b"], ""),
        (&[b"same"], ""),
        (&[b"same"], ""),
        (&[b"..", b"link"], "l"),
        (&[], ""),
        (&[b"_____padding_file_0_if you see this"], ""),
    ];
    let metainfo = Metainfo::parse(&described(files)).unwrap();
    let expected = [("/AC_DC.mp3", 0), ("/_", 5), ("/a_b", 1), ("/same", 2), ("/same.1", 3)];
    assert_eq!(paths(&metainfo), expected.map(|(path, number)| (path.to_owned(), number)));
    assert_eq!(metainfo.files[6].kind, FileKind::Padding);
    assert_eq!(metainfo.links, [vec![OsString::from("link")]]);
    let written = metainfo.written_paths();
    assert_eq!(written[0], Some(vec![&b".."[..], b"AC/DC.mp3"]));
    assert_eq!(written[3], Some(vec![&b"same"[..]]));
    assert_eq!((&written[4], &written[5], &written[6]), (&None, &Some(vec![]), &None));
}

#[test]
fn names_in_utf8_are_shown_before_others() {
    let piece = text(&"x".repeat(20));
    let file = "d6:lengthi1e4:pathl3:olde10:path.utf-8l3:newee";
    let info =
        format!("d5:filesl{file}e4:name3:one10:name.utf-83:two12:piece lengthi16e6:pieces{piece}e");
    let metainfo = Metainfo::parse(&around_info(info.as_bytes(), &[])).unwrap();
    assert_eq!((metainfo.name.to_str(), paths(&metainfo)), (Some("two"), vec![("/new".into(), 0)]));
}

#[test]
fn oddly_written_descriptions_are_those_of_other_programs() {
    let plain = described(&[(&[b"a"], "")]);
    let metainfo = Metainfo::parse(&plain).unwrap();
    let info = info_of(&plain).unwrap();
    let other = around_info(b"de", &[]);
    // A newline behind the end, and a second description of another torrent.
    let newline = [&plain[..], b"\n"].concat();
    let twice = [&plain[..plain.len() - 1], &other[1..]].concat();
    for text in [&newline, &twice] {
        assert_eq!(Metainfo::parse(text).as_ref(), Ok(&metainfo), "{}", text.escape_ascii());
        assert_eq!(info_of(text).unwrap(), info);
    }
    // Of a key that stands twice the first counts; the hash is that of what is written.
    let odd = [&info[..info.len() - 1], b"4:name5:other6:lengthi3ee"].concat();
    let odd = Metainfo::parse(&around_info(&odd, &[])).unwrap();
    assert_eq!((odd.name.to_str(), paths(&odd)), (Some("tree"), paths(&metainfo)));
    assert!(odd.hash != metainfo.hash);
}

#[test]
fn the_session_reads_what_is_read_here() {
    let long = [b'x'; 300];
    let odd: &[(&[&[u8]], &str)] = &[
        (&[b"a", b"b"], ""),
        (&[b"A"], ""),
        (&[&long], ""),
        (&[b"\xff\0"], "x"),
        (&[b"link"], "l"),
    ];
    let text = described(odd);
    let ours = Metainfo::parse(&text).unwrap();
    let theirs = librqbit::torrent_from_bytes(&text).unwrap();
    assert_eq!(theirs.info_hash.0, ours.hash.0);
    let theirs = theirs.info.data.validate().unwrap();
    assert_eq!(theirs.lengths().total_length(), ours.len);
    assert_eq!(theirs.lengths().default_piece_length(), ours.piece_len);
    let lens: Vec<_> = ours.files.iter().map(|file| file.range.len()).collect();
    assert_eq!(theirs.iter_file_lengths().collect::<Vec<_>>(), lens);
}

#[test]
fn a_description_of_170_000_files_is_read() {
    let names: Vec<String> = (0..170_000).map(|n| format!("{n:07}.jpg")).collect();
    let files: Vec<[&[u8]; 3]> =
        names.iter().map(|name| [&b"a"[..], b"b", name.as_bytes()]).collect();
    let files: Vec<(&[&[u8]], &str)> = files.iter().map(|path| (&path[..], "")).collect();
    let metainfo = Metainfo::parse(&described(&files)).unwrap();
    assert_eq!((metainfo.files.len(), metainfo.files_below(0).len()), (170_000, 170_000));
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
        (format!("d5:filesld4:pathl1:aeee12:piece lengthi16e6:pieces{piece}e"), "length"),
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
    for (name, shown) in
        [("../../etc", ".._.._etc"), ("..", ""), ("", ""), ("R1/beta.iso", "R1_beta.iso")]
    {
        let info = format!("d6:lengthi1e4:name{}12:piece lengthi16e6:pieces{piece}e", text(name));
        let metainfo = Metainfo::parse(&around_info(info.as_bytes(), &[])).unwrap();
        let shown = if shown.is_empty() { metainfo.hash.to_string() } else { shown.to_owned() };
        assert_eq!(paths(&metainfo), [(format!("/{shown}"), 0)]);
        assert_eq!(
            (metainfo.name.to_str(), metainfo.written_name()),
            (Some(&*shown), name.as_bytes())
        );
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
        {
            let metainfo = Metainfo::parse(&described(&files)).unwrap();
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
