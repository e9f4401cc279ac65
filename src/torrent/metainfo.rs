//! What a torrent consists of: the description that a `.torrent` file or a peer gives, checked.

mod names;
mod text;
mod tree;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    sync::Arc,
};

use sha1::{Digest, Sha1};

pub(super) use self::text::{around_info, info_of, with_link, with_trackers};
use self::tree::Tree;
pub use self::tree::{TreeKind, TreeNode};
use super::{
    bencode::{self, BencodeError, Dict, Value},
    magnet::{Magnet, is_address},
};
use crate::content::{ByteRange, InfoHash};

/// Longest description. The hashes of 300,000 pieces take 6 MB of it.
pub(super) const MAX_METAINFO: usize = 32 << 20;
/// Longest piece. Real ones end at 64 MiB; a piece is hashed in one go, and read back from the disk for it.
const MAX_PIECE: i64 = 256 << 20;
/// Most pieces: as many as fit into the longest description.
const MAX_PIECES: u64 = (MAX_METAINFO / HASH_LEN) as u64;
/// Most files: each takes some 100 bytes of memory and as little as 20 of the description.
const MAX_FILES: usize = 1 << 20;
/// Trackers that are kept of one description, and servers.
const MAX_TRACKERS: usize = 64;
/// Bytes of the SHA-1 of a piece.
pub(super) const HASH_LEN: usize = 20;

/// Paths as they are written, by the numbers of their files.
type WrittenPaths = BTreeMap<u32, Vec<Vec<u8>>>;

/// Why a description is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// It is too long to be looked at.
    #[error("it is longer than {MAX_METAINFO} bytes")]
    TooLong,
    /// It is not bencode.
    #[error("it is no torrent: {0}")]
    Bencode(#[from] BencodeError),
    /// It lacks something, or has it in a wrong form.
    #[error("it is no torrent: `{0}` is missing or malformed")]
    Field(&'static str),
    /// Only readers of version 2 can read it.
    #[error("it is a torrent of version 2 only, which this version cannot open")]
    Version2,
    /// It is well-formed, and librqbit does not take it.
    #[error("its names or lengths are none that librqbit can fetch: {0}")]
    Unfetchable(Arc<str>),
    /// It describes another torrent than the one that was asked for.
    #[error("it is the torrent {0}")]
    Other(InfoHash),
}

/// What a file of a torrent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Bytes.
    Regular {
        /// Whether it is marked as a program.
        executable: bool,
    },
    /// Zeros that only fill up a piece; not shown.
    Padding,
    /// A link; not shown, since what it leads to is a stranger's choice.
    Symlink,
}

/// One file of a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its bytes among those of the torrent.
    pub range: ByteRange,
    /// What it is.
    pub kind: FileKind,
}

/// A torrent's description. Immutable, as its hash is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metainfo {
    /// SHA-1 of the `info` dictionary as it is written.
    pub hash: InfoHash,
    /// Its name, made harmless.
    pub name: OsString,
    /// Bytes of a piece, but for the last.
    pub piece_len: u32,
    /// Bytes in all.
    pub len: u64,
    /// Whether only its trackers may tell peers of each other.
    pub private: bool,
    /// All files in their order, also those that are not shown.
    pub files: Vec<FileEntry>,
    /// Whether it is one file and no directory.
    pub single: bool,
    /// Trackers, as they are written.
    pub trackers: Vec<String>,
    /// Servers that have its files (`url-list`, BEP 19), as they are written.
    pub webseeds: Vec<String>,
    /// Links, by where they would stand; they are not shown.
    pub links: Vec<Vec<OsString>>,
    tree: Vec<TreeNode>,
    /// Names as they are written, where they are not those that are shown: of the whole, and of files by their numbers.
    written: (Option<Vec<u8>>, WrittenPaths),
}

/// The names of a path, as they are written.
type Written<'a> = Vec<&'a [u8]>;

impl Metainfo {
    /// Reads a `.torrent` file.
    ///
    /// # Errors
    /// [`MetainfoError`] says what is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, MetainfoError> {
        if text.len() > MAX_METAINFO {
            return Err(MetainfoError::TooLong);
        }
        let top = bencode::decode(text)?;
        let (Some(info), Some(raw)) = (top.dict("info"), top.raw("info")) else {
            return Err(MetainfoError::Field("info"));
        };
        let mut metainfo = Self::of_info(&info, InfoHash(Sha1::digest(raw).into()))?;
        metainfo.trackers = trackers(&top);
        metainfo.webseeds = webseeds(&top);
        Ok(metainfo)
    }

    fn of_info(info: &Dict<'_>, hash: InfoHash) -> Result<Self, MetainfoError> {
        let Some(pieces) = info.bytes("pieces") else {
            let version2 = info.int("meta version") == Some(2);
            return Err(if version2 {
                MetainfoError::Version2
            } else {
                MetainfoError::Field("pieces")
            });
        };
        let piece_len = info
            .int("piece length")
            .filter(|len| (1..=MAX_PIECE).contains(len))
            .and_then(|len| u32::try_from(len).ok())
            .ok_or(MetainfoError::Field("piece length"))?;
        let listed = info.list("files");
        let single = listed.is_none();
        let written = info.bytes("name.utf-8").or_else(|| info.bytes("name")).unwrap_or_default();
        let name = names::harmless_name(written).filter(|_| !written.is_empty());
        let name = name.map_or_else(|| hash.to_string().into(), OsString::from_vec);
        let (files, paths) = match listed {
            Some(list) => files_of(&list)?,
            None => {
                let len = info.int("length").ok_or(MetainfoError::Field("files"))?;
                let file = FileEntry { range: range(0, len)?, kind: kind_of(info) };
                (vec![file], vec![vec![name.as_bytes()]])
            }
        };
        let len = files.last().map_or(0, |file| file.range.end);
        let count = len.div_ceil(u64::from(piece_len));
        if count > MAX_PIECES || pieces.len() as u64 != count * HASH_LEN as u64 {
            return Err(MetainfoError::Field("pieces"));
        }
        let private = info.int("private").is_some_and(|private| private != 0);
        let links = links_of(&files, &paths);
        let (tree, others) = shown(&files, paths)?;
        let whole = (written != name.as_bytes()).then(|| written.to_vec());
        Ok(Self {
            hash,
            name,
            piece_len,
            len,
            private,
            files,
            single,
            trackers: Vec::new(),
            webseeds: Vec::new(),
            links,
            tree,
            written: (whole, others),
        })
    }

    /// How many pieces it has.
    pub fn pieces(&self) -> u32 {
        // At most MAX_PIECES.
        u32::try_from(self.len.div_ceil(u64::from(self.piece_len))).unwrap_or(u32::MAX)
    }

    /// The pieces that hold bytes of the torrent.
    pub fn pieces_of(&self, bytes: ByteRange) -> std::ops::Range<u32> {
        let len = u64::from(self.piece_len);
        let number = |piece: u64| u32::try_from(piece).unwrap_or(u32::MAX).min(self.pieces());
        if bytes.is_empty() {
            return 0..0;
        }
        number(bytes.start / len)..number(bytes.end.div_ceil(len))
    }

    /// The bytes of the torrent that a piece holds.
    pub fn bytes_of(&self, piece: u32) -> ByteRange {
        let len = u64::from(self.piece_len);
        let start = u64::from(piece) * len;
        ByteRange::new(start, (start + len).min(self.len))
    }

    /// The files that bytes of the torrent lie in, by their numbers, each with those that do.
    pub fn parts(&self, bytes: ByteRange) -> impl Iterator<Item = (u32, &FileEntry, ByteRange)> {
        let first = self.files.partition_point(|file| file.range.end <= bytes.start);
        let rest = self.files.get(first..).unwrap_or_default();
        let rest = (u32::try_from(first).unwrap_or(u32::MAX)..).zip(rest);
        let within = rest.take_while(move |(_, file)| file.range.start < bytes.end);
        let cut = within.map(move |(number, file)| (number, file, file.range.intersect(bytes)));
        cut.filter(|(.., part)| !part.is_empty())
    }

    /// A link that leads to it.
    pub fn magnet(&self) -> Magnet {
        let name = Some(self.name.to_string_lossy().into_owned());
        let addresses =
            |all: &[String]| all.iter().filter(|url| is_address(url)).cloned().collect();
        let (trackers, webseeds) = (addresses(&self.trackers), addresses(&self.webseeds));
        Magnet { name, trackers, webseeds, ..Magnet::of(self.hash) }
    }
}

/// Servers: a list, or one by itself.
fn webseeds(top: &Dict<'_>) -> Vec<String> {
    let listed = top.list("url-list").unwrap_or_default();
    texts(listed.into_iter().filter_map(Value::as_bytes).chain(top.bytes("url-list")))
}

fn trackers(top: &Dict<'_>) -> Vec<String> {
    let tiers = top.list("announce-list").unwrap_or_default();
    let listed = tiers.into_iter().flat_map(|tier| tier.as_list().unwrap_or_default());
    texts(listed.filter_map(Value::as_bytes).chain(top.bytes("announce")))
}

/// Each text once.
fn texts<'a>(all: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut found = Vec::new();
    for text in all.filter_map(|bytes| std::str::from_utf8(bytes).ok()) {
        let known = text.is_empty() || found.iter().any(|known| known == text);
        if !known && found.len() < MAX_TRACKERS {
            found.push(text.to_owned());
        }
    }
    found
}

/// The tree of what is shown, and the paths that are written otherwise than they are shown.
fn shown(
    files: &[FileEntry],
    paths: Vec<Written<'_>>,
) -> Result<(Vec<TreeNode>, WrittenPaths), MetainfoError> {
    let regular = |file: &FileEntry| matches!(file.kind, FileKind::Regular { .. });
    let written: Vec<_> =
        files.iter().zip(paths).map(|(file, path)| regular(file).then_some(path)).collect();
    let (mut tree, mut others) = (Tree::default(), BTreeMap::new());
    for (number, (path, written)) in (0..).zip(names::harmless(&written).into_iter().zip(&written))
    {
        let (Some(path), Some(written)) = (path, written) else { continue };
        if !path.iter().map(|name| &**name).eq(written.iter().copied()) {
            others.insert(number, written.iter().map(|name| name.to_vec()).collect());
        }
        let path = path.into_iter().map(|name| OsString::from_vec(name.into_owned()));
        tree.add(path.collect(), number)?;
    }
    Ok((tree.nodes, others))
}

fn links_of(files: &[FileEntry], paths: &[Written<'_>]) -> Vec<Vec<OsString>> {
    let links = files.iter().zip(paths).filter(|(file, _)| file.kind == FileKind::Symlink);
    let paths: Vec<_> = links.map(|(_, path)| Some(path.clone())).collect();
    let shown = names::harmless(&paths).into_iter().flatten();
    let owned = |name: std::borrow::Cow<'_, [u8]>| OsString::from_vec(name.into_owned());
    shown.map(|path| path.into_iter().map(owned).collect()).collect()
}

fn range(start: u64, len: i64) -> Result<ByteRange, MetainfoError> {
    let end = u64::try_from(len).ok().and_then(|len| start.checked_add(len));
    // What a file offset can say.
    let end = end.filter(|end| i64::try_from(*end).is_ok());
    Ok(ByteRange::new(start, end.ok_or(MetainfoError::Field("length"))?))
}

fn kind_of(file: &Dict<'_>) -> FileKind {
    let attributes = file.bytes("attr").unwrap_or_default();
    if attributes.contains(&b'p') {
        FileKind::Padding
    } else if attributes.contains(&b'l') {
        FileKind::Symlink
    } else {
        FileKind::Regular { executable: attributes.contains(&b'x') }
    }
}

/// The files of a list, each with its path as it is written; those that only fill up have none.
fn files_of<'a>(list: &[Value<'a>]) -> Result<(Vec<FileEntry>, Vec<Written<'a>>), MetainfoError> {
    let (mut files, mut paths) = (Vec::with_capacity(list.len()), Vec::with_capacity(list.len()));
    let mut start = 0;
    for file in list {
        let file = file.as_dict().ok_or(MetainfoError::Field("files"))?;
        let path = path_of(&file);
        let mut kind = kind_of(&file);
        if path.last().is_some_and(|name| is_bitcomet_padding(name)) {
            kind = FileKind::Padding;
        }
        let len = match (file.int("length"), kind) {
            // A link takes no bytes and need not say so.
            (None, FileKind::Symlink) => 0,
            (len, _) => len.ok_or(MetainfoError::Field("length"))?,
        };
        let entry = FileEntry { range: range(start, len)?, kind };
        start = entry.range.end;
        files.push(entry);
        paths.push(path);
    }
    if files.is_empty() || files.len() > MAX_FILES {
        return Err(MetainfoError::Field("files"));
    }
    Ok((files, paths))
}

/// The names of a path as they are written, those in UTF-8 before others: some programs write both.
fn path_of<'a>(file: &Dict<'a>) -> Written<'a> {
    let listed = |key| {
        let names = file.list(key)?;
        Some(names.into_iter().filter_map(Value::as_bytes).collect::<Vec<_>>())
    };
    let path = listed("path.utf-8").filter(|path| !path.is_empty()).or_else(|| listed("path"));
    path.unwrap_or_default()
}

/// BitComet marks what fills up a piece by its name alone.
fn is_bitcomet_padding(name: &[u8]) -> bool {
    name.starts_with(b"_____padding_file_")
}

#[cfg(test)]
mod tests;
