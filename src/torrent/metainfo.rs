//! What a torrent consists of: the description that a `.torrent` file or a peer gives, checked.

mod tree;

use std::{collections::BTreeMap, ffi::OsString, os::unix::ffi::OsStringExt};

use sha1::{Digest, Sha1};

pub use self::tree::{TreeKind, TreeNode};
use super::{
    bencode::{self, BencodeError, Dict, Value},
    magnet::Magnet,
};
use crate::content::{ByteRange, InfoHash};

/// Longest description. The hashes of 300,000 pieces take 6 MB of it.
pub(super) const MAX_METAINFO: usize = 32 << 20;
/// Longest piece. Real ones end at 64 MiB; a piece is hashed in one go, and read back from the disk for it.
const MAX_PIECE: i64 = 256 << 20;
/// Most pieces: as many as fit into the longest description.
const MAX_PIECES: u64 = (MAX_METAINFO / HASH_LEN) as u64;
/// Most names above one another.
const MAX_LEVELS: usize = 64;
/// Longest name of a file, as everywhere on Linux.
const MAX_NAME: usize = 255;
/// Trackers that are kept of one description, and servers.
const MAX_TRACKERS: usize = 64;
/// Bytes of the SHA-1 of a piece.
pub(super) const HASH_LEN: usize = 20;

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
    /// A name leads out of the torrent, or nowhere.
    #[error(
        "file {file} has the name `{name}`, which not every system takes for the name of a file"
    )]
    Name {
        /// Which one, counted from 0.
        file: usize,
        /// The name.
        name: String,
    },
    /// Two files have the same name.
    #[error("file {file} has the same name as another one")]
    Duplicate {
        /// Which one, counted from 0.
        file: usize,
    },
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
    /// What it is called; a name of a file.
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
    tree: Vec<TreeNode>,
}

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
        let mut metainfo = Self::of_info(info, InfoHash(Sha1::digest(raw).into()))?;
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
        let name = name_of(info, hash);
        let mut tree = Tree::default();
        let single = info.list("files").is_none();
        let files = match (info.int("length"), info.list("files")) {
            (Some(len), None) => {
                let file = FileEntry { range: range(0, len)?, kind: kind_of(info) };
                tree.add(vec![name.clone()], 0, file.kind)?;
                vec![file]
            }
            (None, Some(list)) => files_of(list, &mut tree)?,
            _ => return Err(MetainfoError::Field("files")),
        };
        let len = files.last().map_or(0, |file| file.range.end);
        let count = len.div_ceil(u64::from(piece_len));
        if count > MAX_PIECES || pieces.len() as u64 != count * HASH_LEN as u64 {
            return Err(MetainfoError::Field("pieces"));
        }
        let private = info.int("private") == Some(1);
        let (trackers, webseeds, tree) = (Vec::new(), Vec::new(), tree.nodes);
        Ok(Self { hash, name, piece_len, len, private, files, single, trackers, webseeds, tree })
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
        let (trackers, webseeds) = (self.trackers.clone(), self.webseeds.clone());
        Magnet { name, trackers, webseeds, ..Magnet::of(self.hash) }
    }
}

/// The same description with other trackers. Servers are kept, and nothing else of what stands beside `info`.
///
/// # Errors
/// When `text` is no description.
pub(super) fn with_trackers(text: &[u8], trackers: &[String]) -> Result<Vec<u8>, MetainfoError> {
    let top = bencode::decode(text)?;
    Ok(around(top.raw("info").ok_or(MetainfoError::Field("info"))?, trackers, &webseeds(&top)))
}

/// The same description with the trackers and servers of a link.
///
/// # Errors
/// When `text` is no description.
pub(super) fn with_link(text: &[u8], link: &Magnet) -> Result<Vec<u8>, MetainfoError> {
    let top = bencode::decode(text)?;
    let info = top.raw("info").ok_or(MetainfoError::Field("info"))?;
    Ok(around(info, &link.trackers, &link.webseeds))
}

/// The `info` dictionary of a description, as it is written.
///
/// # Errors
/// When `text` is no description.
pub(super) fn info_of(text: &[u8]) -> Result<Vec<u8>, MetainfoError> {
    let top = bencode::decode(text)?;
    Ok(top.raw("info").ok_or(MetainfoError::Field("info"))?.to_vec())
}

/// A description around an `info` dictionary.
pub(super) fn around_info(info: &[u8], trackers: &[String]) -> Vec<u8> {
    around(info, trackers, &[])
}

fn around(info: &[u8], trackers: &[String], webseeds: &[String]) -> Vec<u8> {
    let mut to = b"d".to_vec();
    if let Some(first) = trackers.first() {
        bencode::write_bytes(&mut to, b"announce");
        bencode::write_bytes(&mut to, first.as_bytes());
        bencode::write_bytes(&mut to, b"announce-list");
        to.push(b'l');
        for tracker in trackers {
            to.push(b'l');
            bencode::write_bytes(&mut to, tracker.as_bytes());
            to.push(b'e');
        }
        to.push(b'e');
    }
    bencode::write_bytes(&mut to, b"info");
    to.extend_from_slice(info);
    if !webseeds.is_empty() {
        bencode::write_bytes(&mut to, b"url-list");
        to.push(b'l');
        webseeds.iter().for_each(|url| bencode::write_bytes(&mut to, url.as_bytes()));
        to.push(b'e');
    }
    to.push(b'e');
    to
}

/// Servers: a list, or one by itself.
fn webseeds(top: &Dict<'_>) -> Vec<String> {
    let listed = top.list("url-list").unwrap_or_default().iter().filter_map(Value::as_bytes);
    texts(listed.chain(top.bytes("url-list")))
}

fn trackers(top: &Dict<'_>) -> Vec<String> {
    let tiers = top.list("announce-list").unwrap_or_default();
    let listed = tiers.iter().flat_map(|tier| tier.as_list().unwrap_or_default());
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

/// The name of the whole; one that is no name of a file is replaced by the hash, since nothing depends on it.
fn name_of(info: &Dict<'_>, hash: InfoHash) -> OsString {
    let name = info.bytes("name.utf-8").or_else(|| info.bytes("name"));
    name.and_then(|name| component(name).ok()).unwrap_or_else(|| hash.to_string().into())
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

fn files_of(list: &[Value<'_>], tree: &mut Tree) -> Result<Vec<FileEntry>, MetainfoError> {
    let mut files = Vec::with_capacity(list.len());
    let mut start = 0;
    for (number, file) in list.iter().enumerate() {
        let file = file.as_dict().ok_or(MetainfoError::Field("files"))?;
        let len = file.int("length").ok_or(MetainfoError::Field("length"))?;
        let entry = FileEntry { range: range(start, len)?, kind: kind_of(file) };
        start = entry.range.end;
        // The name in UTF-8, which some programs write beside one in another encoding.
        let path = file.list("path.utf-8").or_else(|| file.list("path"));
        let path = path.filter(|path| !path.is_empty() && path.len() <= MAX_LEVELS);
        let path = path.ok_or(MetainfoError::Field("path"))?;
        let mut names = Vec::with_capacity(path.len());
        for name in path {
            let bytes = name.as_bytes().ok_or(MetainfoError::Field("path"))?;
            let wrong = |()| MetainfoError::Name { file: number, name: shown(bytes) };
            names.push(component(bytes).map_err(wrong)?);
        }
        let place = u32::try_from(number).map_err(|_| MetainfoError::Field("files"))?;
        tree.add(names, place, entry.kind)?;
        files.push(entry);
    }
    if files.is_empty() {
        return Err(MetainfoError::Field("files"));
    }
    Ok(files)
}

fn shown(name: &[u8]) -> String {
    name.iter().take(64).copied().collect::<Vec<_>>().escape_ascii().to_string()
}

/// One name of a path. Nothing is ever written under it; it is refused where a program that copies the tree would be
/// led elsewhere, and made a name where it merely is none.
fn component(name: &[u8]) -> Result<OsString, ()> {
    // A backslash is a separator elsewhere, and librqbit takes no torrent with one.
    if name == b".." || name.iter().any(|byte| matches!(byte, b'/' | b'\\' | 0)) {
        return Err(());
    }
    let mut name = match name {
        b"" | b"." => b"_".to_vec(),
        name => name.to_vec(),
    };
    if name.len() > MAX_NAME {
        // The ending says what it is, so it is kept; the cut is not made amid a character.
        let ending = name.iter().rposition(|byte| *byte == b'.').map_or(name.len(), |at| at);
        let ending = if name.len() - ending <= 16 { name.split_off(ending) } else { Vec::new() };
        let mut cut = (MAX_NAME - ending.len()).min(name.len());
        while cut > 0 && name.get(cut).is_some_and(|byte| byte & 0xc0 == 0x80) {
            cut -= 1;
        }
        name.truncate(cut);
        name.extend(ending);
    }
    Ok(OsString::from_vec(name))
}

/// A tree under construction.
#[derive(Debug)]
struct Tree {
    nodes: Vec<TreeNode>,
}

impl Default for Tree {
    fn default() -> Self {
        let root = TreeNode { parent: 0, what: TreeKind::Directory(BTreeMap::new()) };
        Self { nodes: vec![root] }
    }
}

impl Tree {
    fn add(&mut self, path: Vec<OsString>, file: u32, kind: FileKind) -> Result<(), MetainfoError> {
        if !matches!(kind, FileKind::Regular { .. }) {
            return Ok(());
        }
        let mut names = path.into_iter();
        let Some(last) = names.next_back() else { return Err(MetainfoError::Field("path")) };
        let mut at = 0;
        for name in names {
            at = self.directory(at, name)?;
        }
        let what = TreeKind::File(file);
        match self.child(at, &last) {
            None => self.insert(at, last, what).map(drop),
            // A directory has the name already: both are shown, the file under a name beside it.
            Some(child) if matches!(self.nodes[child as usize].what, TreeKind::Directory(_)) => {
                let free = self.free(at, last);
                self.insert(at, free, what).map(drop)
            }
            Some(_) => Err(MetainfoError::Duplicate { file: file as usize }),
        }
    }

    fn child(&self, dir: u32, name: &OsString) -> Option<u32> {
        match &self.nodes[dir as usize].what {
            TreeKind::Directory(names) => names.get(name).copied(),
            TreeKind::File(_) => None,
        }
    }

    /// The directory of a name; a new one beside a file that has the name.
    fn directory(&mut self, parent: u32, name: OsString) -> Result<u32, MetainfoError> {
        let is_file =
            |tree: &Self, child: u32| matches!(tree.nodes[child as usize].what, TreeKind::File(_));
        let mut name = name;
        loop {
            match self.child(parent, &name) {
                None => break,
                Some(child) if is_file(self, child) => name.push("_"),
                Some(child) => return Ok(child),
            }
        }
        self.insert(parent, name, TreeKind::Directory(BTreeMap::new()))
    }

    fn free(&self, dir: u32, mut name: OsString) -> OsString {
        while self.child(dir, &name).is_some() {
            name.push("_");
        }
        name
    }

    fn insert(&mut self, dir: u32, name: OsString, what: TreeKind) -> Result<u32, MetainfoError> {
        let number = u32::try_from(self.nodes.len()).map_err(|_| MetainfoError::Field("files"))?;
        self.nodes.push(TreeNode { parent: dir, what });
        if let TreeKind::Directory(names) = &mut self.nodes[dir as usize].what {
            names.insert(name, number);
        }
        Ok(number)
    }
}

#[cfg(test)]
mod tests;
