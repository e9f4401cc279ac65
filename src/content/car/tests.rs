#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;
use crate::content::{Block, Multihash};

/// The fixtures of the specification.
const V1_BASIC: &[u8] = include_bytes!("../tests/car/carv1-basic.car");
const V2_BASIC: &[u8] = include_bytes!("../tests/car/carv2-basic.car");

type Read = (Option<CarHeader>, Vec<CarSection>, Result<(), CarError>);

/// Everything that comes out when the bytes come in pieces of these lengths, one after the other and again.
fn read_pieces(bytes: &[u8], lens: &[usize], null_padding: bool) -> Read {
    let mut reader = CarReader::new(null_padding);
    let (mut header, mut sections) = (None, Vec::new());
    let (mut rest, mut lens) = (bytes, lens.iter().cycle());
    let end = loop {
        let mut items = || loop {
            match reader.next_item()? {
                Some(CarItem::Header(found)) => assert!(header.replace(found).is_none()),
                Some(CarItem::Section(section)) => sections.push(section),
                None => return Ok(()),
            }
        };
        if let Err(error) = items() {
            break Err(error);
        }
        if rest.is_empty() {
            break reader.finish();
        }
        let (piece, left) = rest.split_at((*lens.next().unwrap()).clamp(1, rest.len()));
        reader.push(piece);
        rest = left;
    };
    (header, sections, end)
}

fn read(bytes: &[u8]) -> Read {
    read_pieces(bytes, &[bytes.len()], true)
}

fn write(roots: &[ContentId], blocks: &[Block]) -> Vec<u8> {
    let mut out = car_header(roots);
    for block in blocks {
        out.extend(car_section_head(block.cid(), block.data().len()));
        out.extend(block.data());
    }
    out
}

/// A frame of version 2 around a file of version 1.
fn wrap(v1: &[u8], gap: usize, index: &[u8]) -> Vec<u8> {
    let mut out = PRAGMA.to_vec();
    let data = (PRAGMA.len() + V2_HEADER + gap) as u64;
    let end = data + v1.len() as u64;
    out.extend([0x80; 16]);
    for number in [data, v1.len() as u64, if index.is_empty() { 0 } else { end }] {
        out.extend(number.to_le_bytes());
    }
    out.extend(vec![0xaa; gap]);
    out.extend(v1);
    out.extend(index);
    out
}

fn ids(sections: &[CarSection]) -> Vec<String> {
    sections.iter().map(|section| section.cid.to_string()).collect()
}

fn sample() -> Vec<u8> {
    let blocks: Vec<Block> =
        (0..5u8).map(|n| Block::raw(vec![n; 70 * usize::from(n)].into())).collect();
    let identity = Multihash::wrap(0, b"inline").unwrap();
    let inline = Block::inline(ContentId::raw(identity)).unwrap();
    write(
        &[*blocks[3].cid(), *blocks[1].cid()],
        &[&blocks[..], &[inline, blocks[2].clone()]].concat(),
    )
}

#[test]
fn the_first_fixture_is_read_and_written_byte_by_byte() {
    let (header, sections, end) = read(V1_BASIC);
    assert_eq!(end, Ok(()));
    let header = header.unwrap();
    let roots: Vec<_> = header.roots.iter().map(ToString::to_string).collect();
    assert_eq!(
        (header.version, roots.iter().map(String::as_str).collect::<Vec<_>>()),
        (
            1,
            vec![
                "bafyreihyrpefhacm6kkp4ql6j6udakdit7g3dmkzfriqfykhjw6cad5lrm",
                "bafyreidj5idub6mapiupjwjsyyxhyhedxycv4vihfsicm2vt46o7morwlm"
            ]
        )
    );
    assert_eq!(
        ids(&sections),
        [
            "bafyreihyrpefhacm6kkp4ql6j6udakdit7g3dmkzfriqfykhjw6cad5lrm",
            "QmNX6Tffavsya4xgBi2VJQnSuqy9GsxongxZZ9uZBqp16d",
            "bafkreifw7plhl6mofk6sfvhnfh64qmkq73oeqwl6sloru6rehaoujituke",
            "QmWXZxVQ9yZfhQxLD35eDR8LiMRsYtHxYqTFCBbJoiJVys",
            "bafkreiebzrnroamgos2adnbpgw5apo3z4iishhbdx77gldnbk57d4zdio4",
            "QmdwjhxpxzcMsR3qUuj7vUL8pbA7MgR3GAxWi2GLHjsKCT",
            "bafkreidbxzk2ryxwwtqxem4l3xyyjvw35yu4tcct4cqeqxwo47zhxgxqwq",
            "bafyreidj5idub6mapiupjwjsyyxhyhedxycv4vihfsicm2vt46o7morwlm",
        ]
    );
    let blocks: Vec<_> =
        sections.iter().map(|s| Block::verify(s.cid, s.data.clone()).unwrap()).collect();
    assert_eq!((sections[0].at, sections[1].at), (100, 192));
    assert!(write(&header.roots, &blocks) == V1_BASIC);
}

#[test]
fn the_second_fixture_is_read_without_its_frame() {
    let (header, sections, end) = read(V2_BASIC);
    assert_eq!(end, Ok(()));
    let header = header.unwrap();
    assert_eq!(header.version, 2);
    assert_eq!(header.roots[0].to_string(), "QmfEoLyB5NndqeKieExd1rtJzTduQUPEV8TwAYcUiy3H5Z");
    assert_eq!(
        ids(&sections),
        [
            "QmfEoLyB5NndqeKieExd1rtJzTduQUPEV8TwAYcUiy3H5Z",
            "QmczfirA7VEH7YVvKPTPoU69XM3qY4DC39nnTsWd4K3SkM",
            "Qmcpz2FHJD7VAhg1fxFXdYJKePtkx1BsHuCrAgWVnaHMTE",
            "bafkreifuosuzujyf4i6psbneqtwg2fhplc2wxptc5euspa2gn3bwhnihfu",
            "bafkreifc4hca3inognou377hfhvu2xfchn2ltzi7yu27jkaeujqqqdbjju",
        ]
    );
    for section in sections {
        assert!(Block::verify(section.cid, section.data).is_ok());
    }
}

#[test]
fn a_frame_with_gap_and_index_gives_what_is_in_it() {
    let v1 = sample();
    let (header, plain, _) = read(&v1);
    let (wrapped, sections, end) = read(&wrap(&v1, 1000, &[7; 5000]));
    assert_eq!((end, wrapped.unwrap().roots), (Ok(()), header.unwrap().roots));
    let contents = |sections: &[CarSection]| -> Vec<_> {
        sections.iter().map(|s| (s.cid, s.data.clone())).collect()
    };
    assert_eq!(contents(&sections), contents(&plain));
    assert_eq!(sections[0].at, plain[0].at + 51 + 1000);
    // The index is not kept while it is passed over.
    let mut reader = CarReader::default();
    reader.push(&wrap(&v1, 0, &[7; 9]));
    while reader.next_item().unwrap().is_some() {}
    reader.push(&[7; 1 << 16]);
    assert!(reader.held.is_empty());
}

#[test]
fn null_padding_is_passed_over_or_named() {
    let v1 = sample();
    let padded = [&v1[..], &[0; 500]].concat();
    let (_, sections, end) = read(&padded);
    assert_eq!((sections.len(), end), (7, Ok(())));
    let (_, sections, end) = read_pieces(&padded, &[13], false);
    assert_eq!((sections.len(), end), (7, Err(CarError::NullPadding { at: v1.len() as u64 })));
    let hidden = [&padded[..], &[9]].concat();
    let at = padded.len() as u64;
    assert_eq!(read_pieces(&hidden, &[13], true).2, Err(CarError::BehindPadding { at }));
    let (_, sections, end) = read(&wrap(&padded, 3, &[7; 9]));
    assert_eq!((sections.len(), end), (7, Ok(())));
}

#[test]
fn claims_over_the_limits_are_refused_before_the_bytes_come() {
    let mut long = car_header(&[]);
    let at = long.len() as u64;
    pb::put_varint(&mut long, MAX_SECTION + 1);
    let (len, limit) = (MAX_SECTION + 1, MAX_SECTION);
    assert_eq!(read(&long).2, Err(CarError::TooLong { what: "section", at, len, limit }));
    let header = [0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(matches!(read(&header).2, Err(CarError::TooLong { what: "header", at: 0, .. })));
    assert_eq!(read(&[0xff; 9]).2, Err(CarError::Length { at: 0 }));
    // The largest block with the longest id still goes through.
    let digest = [1; 128];
    let cid = ContentId::raw(Multihash::wrap(0x13, &digest).unwrap());
    let mut largest = car_header(&[]);
    largest.extend(car_section_head(&cid, MAX_BLOCK_LEN));
    largest.resize(largest.len() + MAX_BLOCK_LEN, 3);
    let (_, sections, end) = read_pieces(&largest, &[65_536], true);
    assert_eq!((sections[0].data.len(), end), (MAX_BLOCK_LEN, Ok(())));
}

#[test]
fn headers_that_are_none_are_refused() {
    let header = |cbor: &[u8]| {
        let mut out = Vec::new();
        pb::put_varint(&mut out, cbor.len() as u64);
        out.extend(cbor);
        read(&out)
    };
    for bad in [
        &b"\xa1\x67version\x03"[..],
        b"\xa0",
        b"\xa1\x65roots\x80",
        b"\xa2\x67version\x01\x67version\x01",
        b"\xa2\x67version\x01\x65other\x01",
        b"\xa2\x67version\x01\x65roots\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x67version\x01\x00",
        b"\xbf\x67version\x01\xff",
        b"not cbor",
    ] {
        assert!(matches!(header(bad).2, Err(CarError::Header { at: 0, .. })), "{bad:?}");
    }
    for rootless in [&b"\xa1\x67version\x01"[..], b"\xa2\x65roots\xf6\x67version\x01"] {
        let (header, sections, end) = header(rootless);
        assert_eq!((header.unwrap().roots.len(), sections.len(), end), (0, 0, Ok(())));
    }
    for (field, value) in [(0, 50), (1, 0), (1, u64::MAX), (2, 60)] {
        let mut frame = wrap(&sample(), 0, &[]);
        frame[27 + 8 * field..][..8].copy_from_slice(&u64::to_le_bytes(value));
        assert!(matches!(read(&frame).2, Err(CarError::Header { at: 11, .. })), "{field} {value}");
    }
}

#[test]
fn what_ends_early_is_truncated() {
    let v1 = sample();
    let starts: Vec<u64> = read(&v1).1.iter().map(|s| s.at).collect();
    for len in 0..v1.len() {
        let (_, sections, end) = read(&v1[..len]);
        let whole = starts.iter().filter(|at| **at < len as u64).count();
        let clean = starts.contains(&(len as u64));
        assert_eq!(end.is_ok(), clean, "{len}");
        assert_eq!(sections.len(), if clean { whole } else { whole.saturating_sub(1) }, "{len}");
    }
    let v2 = wrap(&v1, 5, &[]);
    for len in 0..v2.len() {
        assert!(matches!(read(&v2[..len]).2, Err(CarError::Truncated { .. })), "{len}");
    }
}

#[test]
fn a_section_is_found_again_by_its_offset() {
    let v1 = sample();
    for section in read(&v1).1 {
        let from = &v1[usize::try_from(section.at).unwrap()..];
        let (head, cid, len) = car_section_at(&from[..from.len().min(CAR_SECTION_HEAD)]).unwrap();
        assert_eq!((cid, &from[head..head + len]), (section.cid, &section.data[..]));
    }
    assert!(car_section_at(&[]).is_none() && car_section_at(&[0; 40]).is_none());
    assert!(car_section_at(&[3, 1, 0x55, 0, 40]).is_none());
}

proptest! {
    #[test]
    fn what_was_written_is_read_however_it_is_cut(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..12),
        roots in 0..4usize,
        lens in prop::collection::vec(1..200usize, 1..8),
        frame in any::<bool>(),
        padding in 0..40usize,
    ) {
        let blocks: Vec<Block> = contents.into_iter().map(|c| Block::raw(c.into())).collect();
        let roots: Vec<_> = blocks.iter().take(roots).map(|b| *b.cid()).collect();
        let mut bytes = write(&roots, &blocks);
        bytes.resize(bytes.len() + padding, 0);
        if frame {
            bytes = wrap(&bytes, padding, b"index");
        }
        let whole = read(&bytes);
        prop_assert_eq!(&whole, &read_pieces(&bytes, &lens, true));
        let (header, sections, end) = whole;
        prop_assert_eq!((header.unwrap().roots, end), (roots, Ok(())));
        let found: Vec<_> = sections.into_iter().map(|s| (s.cid, s.data)).collect();
        let written: Vec<_> = blocks.iter().map(|b| (*b.cid(), b.data().clone())).collect();
        prop_assert_eq!(found, written);
    }

    #[test]
    fn mutated_archives_never_panic_and_give_no_section_that_is_not_there(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        lens in prop::collection::vec(1..200usize, 1..4),
        frame in any::<bool>(),
    ) {
        let mut bytes = if frame { wrap(&sample(), 7, b"index") } else { sample() };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let (_, sections, _) = read_pieces(&bytes, &lens, true);
        for section in sections {
            let from = &bytes[usize::try_from(section.at).unwrap()..];
            let (head, cid, len) = car_section_at(from).unwrap();
            prop_assert_eq!(cid, section.cid);
            prop_assert_eq!(from.get(head..head + len).unwrap(), &section.data[..]);
        }
    }

    #[test]
    fn random_bytes_never_panic_as_an_archive(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        lens in prop::collection::vec(1..90usize, 1..4),
    ) {
        let _ = read_pieces(&bytes, &lens, true);
        let _ = car_section_at(&bytes);
    }
}
