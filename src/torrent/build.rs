//! Making the description of a torrent.
//!
//! Files are sorted by their paths, byte by byte, so that the same tree has the same info hash on every machine.

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use sha1::{Digest, Sha1};

use super::{
    bencode::{write_bytes, write_int},
    metainfo::{HASH_LEN, around_info},
};

/// Pieces that a torrent should have at most; its description then takes some 40 KB.
const MOST_PIECES: u64 = 2048;
/// What every program takes.
const SMALLEST: u32 = 16 << 10;
/// Longer pieces make the first byte of a file come late.
const LONGEST: u32 = 4 << 20;

/// The length of a piece that suits so many bytes: a power of two.
pub fn piece_len_for(len: u64) -> u32 {
    let mut piece = SMALLEST;
    while piece < LONGEST && len.div_ceil(u64::from(piece)) > MOST_PIECES {
        piece *= 2;
    }
    piece
}

/// Why no description can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// There is nothing to describe.
    #[error("it has no bytes")]
    Empty,
    /// More or fewer bytes were read than there were to be.
    #[error("it has changed while it was read: {read} bytes came of {expected}")]
    Changed {
        /// How many were read.
        read: u64,
        /// How many were to be.
        expected: u64,
    },
}

/// A description in the making: it is given all bytes in the order of [`InfoBuilder::files`].
#[derive(Debug)]
pub struct InfoBuilder {
    name: OsString,
    piece_len: u32,
    /// Sorted; a single file has no path.
    files: Vec<(Vec<OsString>, u64)>,
    pieces: Vec<u8>,
    hash: Sha1,
    read: u64,
}

impl InfoBuilder {
    /// A torrent that is one file.
    pub fn file(name: OsString, len: u64, piece_len: u32) -> Self {
        Self::new(name, vec![(Vec::new(), len)], piece_len)
    }

    /// A torrent that is a directory; files by their paths below it.
    pub fn directory(name: OsString, mut files: Vec<(Vec<OsString>, u64)>, piece_len: u32) -> Self {
        files.sort();
        Self::new(name, files, piece_len)
    }

    fn new(name: OsString, files: Vec<(Vec<OsString>, u64)>, piece_len: u32) -> Self {
        let (pieces, hash) = (Vec::new(), Sha1::new());
        Self { name, piece_len: piece_len.max(1), files, pieces, hash, read: 0 }
    }

    /// The files in the order in which their bytes are to come, with their lengths.
    pub fn files(&self) -> &[(Vec<OsString>, u64)] {
        &self.files
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let piece = u64::from(self.piece_len);
        while !bytes.is_empty() {
            // At most a piece.
            let room = usize::try_from(piece - self.read % piece).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hash.update(now);
            self.read += now.len() as u64;
            if self.read.is_multiple_of(piece) {
                self.pieces.extend_from_slice(&self.hash.finalize_reset());
            }
            bytes = later;
        }
    }

    /// The description, as a `.torrent` file that names trackers.
    ///
    /// # Errors
    /// When other bytes came than there were to be.
    pub fn finish(mut self, trackers: &[String]) -> Result<Vec<u8>, BuildError> {
        let expected = self.files.iter().map(|(_, len)| len).sum();
        if self.read != expected {
            return Err(BuildError::Changed { read: self.read, expected });
        }
        if self.read == 0 {
            return Err(BuildError::Empty);
        }
        if !self.read.is_multiple_of(u64::from(self.piece_len)) {
            self.pieces.extend_from_slice(&self.hash.finalize_reset());
        }
        debug_assert_eq!(
            self.pieces.len() as u64,
            self.read.div_ceil(self.piece_len.into()) * HASH_LEN as u64
        );
        Ok(around_info(&self.info(), trackers))
    }

    /// Keys in their order.
    fn info(&self) -> Vec<u8> {
        let mut to = b"d".to_vec();
        match self.files.as_slice() {
            [(path, len)] if path.is_empty() => {
                write_bytes(&mut to, b"length");
                write_int(&mut to, *len);
            }
            files => {
                write_bytes(&mut to, b"files");
                to.push(b'l');
                for (path, len) in files {
                    to.push(b'd');
                    write_bytes(&mut to, b"length");
                    write_int(&mut to, *len);
                    write_bytes(&mut to, b"path");
                    to.push(b'l');
                    path.iter().for_each(|name| write_bytes(&mut to, name.as_bytes()));
                    to.extend(*b"ee");
                }
                to.push(b'e');
            }
        }
        write_bytes(&mut to, b"name");
        write_bytes(&mut to, self.name.as_bytes());
        write_bytes(&mut to, b"piece length");
        write_int(&mut to, self.piece_len.into());
        write_bytes(&mut to, b"pieces");
        write_bytes(&mut to, &self.pieces);
        to.push(b'e');
        to
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::torrent::Metainfo;

    fn path(text: &str) -> Vec<OsString> {
        text.split('/').map(OsString::from).collect()
    }

    #[test]
    fn a_file_has_the_hash_that_other_programs_give_it() {
        let mut builder = InfoBuilder::file("hello.txt".into(), 12, 16 << 10);
        builder.update(b"hello");
        builder.update(b" world\n");
        let text = builder.finish(&["http://t/a".to_owned()]).unwrap();
        let metainfo = Metainfo::parse(&text).unwrap();
        assert_eq!(metainfo.hash.to_string(), "7b5e918f364908afab937ecdd84059dfb61102b7");
        assert_eq!((metainfo.len, metainfo.trackers), (12, vec!["http://t/a".to_owned()]));
    }

    #[test]
    fn a_tree_has_one_hash_in_whatever_order_it_is_listed() {
        let files = [("b/x", 20_000_usize), ("a", 40_000), ("b-", 1)];
        let all = [vec![1; 40_000], vec![2; 20_000], vec![3; 1]].concat();
        let mut reversed = files;
        reversed.reverse();
        for listed in [files, reversed] {
            let listed = listed.map(|(name, len)| (path(name), len as u64)).to_vec();
            let mut builder = InfoBuilder::directory("tree".into(), listed, 16 << 10);
            let order: Vec<_> = builder.files().iter().map(|(path, _)| path.clone()).collect();
            // By the names, not by the text of the path: a directory comes before what is longer than its name.
            assert_eq!(order, ["a", "b/x", "b-"].map(path));
            all.chunks(7_777).for_each(|bytes| builder.update(bytes));
            let metainfo = Metainfo::parse(&builder.finish(&[]).unwrap()).unwrap();
            assert_eq!(metainfo.hash.to_string(), "65d9a6a8c1bd56ff72163b92404664ab8aebb988");
            assert_eq!(metainfo.pieces(), 4);
        }
    }

    #[test]
    fn what_changed_or_is_empty_has_no_description() {
        let builder = || InfoBuilder::file("a".into(), 3, 16 << 10);
        let mut long = builder();
        long.update(b"abcd");
        assert_eq!(long.finish(&[]), Err(BuildError::Changed { read: 4, expected: 3 }));
        assert_eq!(builder().finish(&[]), Err(BuildError::Changed { read: 0, expected: 3 }));
        let empty = InfoBuilder::file("a".into(), 0, 16 << 10);
        assert_eq!(empty.finish(&[]), Err(BuildError::Empty));
    }

    #[test]
    fn pieces_grow_with_the_torrent_within_bounds() {
        for (len, piece) in [
            (0, 16 << 10),
            (32 << 20, 16 << 10),
            (33 << 20, 32 << 10),
            (700 << 20, 512 << 10),
            (1 << 44, 4 << 20),
        ] {
            assert_eq!(piece_len_for(len), piece, "{len}");
        }
    }
}
