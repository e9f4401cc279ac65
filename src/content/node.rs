//! One UnixFS node: what a block of the raw or dag-pb codec says.

use std::{
    ffi::{OsStr, OsString},
    ops::{Range, RangeInclusive},
    os::unix::ffi::OsStrExt,
};

use super::{
    Block, BlockError, ByteRange, Codec, ContentId, Omissions,
    dag_pb::{self, PbLink},
    unixfs::{self, MURMUR3_X64_64, UnixFs, kind},
};

/// Longest name of a directory entry in bytes: NAME_MAX of every kernel.
const MAX_NAME: usize = 255;

/// Longest target of a symbolic link: PATH_MAX without its NUL.
const MAX_TARGET: usize = 4095;

/// Widths of HAMT shards. Wider ones are an attack on the memory of readers; the writers use 256.
pub(super) const FANOUTS: RangeInclusive<u32> = 8..=1024;

/// Why a block is not a node that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DagError {
    /// The bytes are not dag-pb or not UnixFS.
    #[error("{cid}: malformed {what}: {reason}")]
    Malformed {
        /// The block.
        cid: ContentId,
        /// Which format is broken.
        what: &'static str,
        /// How.
        reason: String,
    },
    /// The codec or the UnixFS type is none that has files in it.
    #[error("{cid}: {what} is not supported")]
    Unsupported {
        /// The block.
        cid: ContentId,
        /// The codec or type.
        what: String,
    },
    /// The node is of another kind than its place in the DAG asks for.
    #[error("{cid}: expected {expected}, found {found:?}")]
    Kind {
        /// The block.
        cid: ContentId,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: NodeKind,
    },
    /// The block does not match its id.
    #[error(transparent)]
    Block(#[from] BlockError),
}

/// What a node is, as far as a directory entry or `stat` needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A file, or a part of one.
    File,
    /// A directory in one block.
    Directory,
    /// A directory spread over a HAMT.
    Shard,
    /// A symbolic link.
    Symlink,
}

/// UnixFS 1.5 metadata; absent unless the publisher asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: Option<(i64, u32)>,
}

/// A decoded node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file or a part of one: bytes of its own, children, or both.
    File {
        /// Where the node's own content lies inside the block.
        data: Range<usize>,
        /// Children with the bytes of this node's content that each holds, in order. They follow the own content.
        children: Vec<(ContentId, ByteRange)>,
        /// Bytes of content in the node and below it.
        size: u64,
        /// Mode and mtime.
        meta: Metadata,
    },
    /// A directory in one block: name, child and Tsize.
    Directory {
        /// Sorted as in the block.
        entries: Vec<(OsString, ContentId, u64)>,
        /// Those that are left out.
        omitted: Omissions,
        /// Mode and mtime.
        meta: Metadata,
    },
    /// One shard of a HAMT directory.
    Shard {
        /// Width of the shard; a power of two, 8 to 1024.
        fanout: u32,
        /// Link name with its hex prefix, child and Tsize.
        links: Vec<(Vec<u8>, ContentId, u64)>,
        /// Those that are left out.
        omitted: Omissions,
        /// Mode and mtime.
        meta: Metadata,
    },
    /// A symbolic link.
    Symlink {
        /// Its target.
        target: OsString,
        /// Mode and mtime.
        meta: Metadata,
    },
}

impl Node {
    /// Decodes a block of the raw or dag-pb codec. Bounded by the block; never panics.
    ///
    /// Entries of a directory or shard whose name no filesystem can show (empty, `.`, `..`, with `/` or NUL,
    /// over 255 bytes) are left out, and told of; they do not keep anyone from the others. Names need not be UTF-8, as they need not
    /// on a disk: dag-pb asks for it, but what writes it, Kubo too, takes names as they are.
    ///
    /// # Errors
    /// When the block is not well-formed UnixFS.
    pub fn decode(block: &Block) -> Result<Self, DagError> {
        match block.cid().codec() {
            Codec::Raw => {
                let len = block.data().len();
                let meta = Metadata::default();
                Ok(Self::File { data: 0..len, children: Vec::new(), size: len as u64, meta })
            }
            Codec::DagPb => Decoder { cid: block.cid(), bytes: block.data() }.node(),
            Codec::Other(code) => Err(DagError::Unsupported {
                cid: *block.cid(),
                what: format!("codec 0x{code:x} in a file tree"),
            }),
        }
    }

    /// What the node is.
    pub fn kind(&self) -> NodeKind {
        match self {
            Self::File { .. } => NodeKind::File,
            Self::Directory { .. } => NodeKind::Directory,
            Self::Shard { .. } => NodeKind::Shard,
            Self::Symlink { .. } => NodeKind::Symlink,
        }
    }

    /// The shards right below a shard, in its order; none of any other node.
    pub fn shards_below(&self) -> Vec<ContentId> {
        let Self::Shard { fanout, links, .. } = self else { return Vec::new() };
        // The name of an entry stands behind its slot; a shard has no other name.
        let width = slot_width(*fanout);
        links.iter().filter(|(name, ..)| name.len() == width).map(|(_, cid, _)| *cid).collect()
    }

    /// Mode and mtime, whatever the node is.
    pub fn metadata(&self) -> Metadata {
        match self {
            Self::File { meta, .. }
            | Self::Directory { meta, .. }
            | Self::Shard { meta, .. }
            | Self::Symlink { meta, .. } => *meta,
        }
    }
}

/// All links of a block, in its order, also those that [`Node::decode`] leaves out; none for codecs other than dag-pb.
///
/// # Errors
/// When the block is not well-formed dag-pb.
pub fn links_of(block: &Block) -> Result<Vec<ContentId>, DagError> {
    if block.cid().codec() != Codec::DagPb {
        return Ok(Vec::new());
    }
    let decoder = Decoder { cid: block.cid(), bytes: block.data() };
    let pb = dag_pb::decode(block.data()).map_err(|e| decoder.malformed("dag-pb", &e))?;
    pb.links.iter().map(|link| decoder.child(link)).collect()
}

/// Why no directory of a filesystem can show the name; none where it can.
pub(super) fn unusable(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("its name is empty"),
        b"." | b".." => Some("its name stands for a directory"),
        name if name.len() > MAX_NAME => Some("its name is longer than 255 bytes"),
        name if name.contains(&b'/') => Some("its name has a slash"),
        name if name.contains(&0) => Some("its name has a NUL byte"),
        _ => None,
    }
}

/// Hex digits that name a slot of a shard.
pub(super) fn slot_width(fanout: u32) -> usize {
    // 0xFF needs two digits, 0x100 three.
    let bits = 32 - fanout.saturating_sub(1).leading_zeros();
    bits.div_ceil(4) as usize
}

/// One dag-pb block on its way to a [`Node`].
struct Decoder<'a> {
    cid: &'a ContentId,
    bytes: &'a [u8],
}

impl Decoder<'_> {
    fn node(&self) -> Result<Node, DagError> {
        let pb = dag_pb::decode(self.bytes).map_err(|e| self.malformed("dag-pb", &e))?;
        let Some(message) = pb.data.clone() else {
            return Err(self.malformed("UnixFS", &"the node has no data field"));
        };
        let fs = unixfs::decode(self.bytes, message).map_err(|e| self.malformed("UnixFS", &e))?;
        match fs.kind {
            kind::RAW | kind::FILE => self.file(&pb.links, &fs),
            kind::DIRECTORY => self.directory(&pb.links, &fs),
            kind::HAMT_SHARD => self.shard(&pb.links, &fs),
            kind::SYMLINK => self.symlink(&fs),
            kind::METADATA => Err(self.unsupported("UnixFS type Metadata".to_owned())),
            other => Err(self.unsupported(format!("UnixFS type {other}"))),
        }
    }

    fn file(&self, links: &[PbLink], fs: &UnixFs) -> Result<Node, DagError> {
        if links.len() != fs.blocksizes.len() {
            let (links, sizes) = (links.len(), fs.blocksizes.len());
            return Err(self.malformed("UnixFS", &format!("{links} links, {sizes} block sizes")));
        }
        let mut size = fs.data.len() as u64;
        let mut children = Vec::with_capacity(links.len());
        for (link, len) in links.iter().zip(&fs.blocksizes) {
            // Offsets of files are signed 64-bit numbers for every kernel.
            let end = size.checked_add(*len).filter(|end| i64::try_from(*end).is_ok());
            let Some(end) = end else {
                return Err(self.malformed("UnixFS", &"the block sizes add up to over 2^63"));
            };
            children.push((self.child(link)?, ByteRange::new(size, end)));
            size = end;
        }
        if let Some(filesize) = fs.filesize.filter(|filesize| *filesize != size) {
            let reason = format!("file size {filesize}, but the parts have {size} bytes");
            return Err(self.malformed("UnixFS", &reason));
        }
        Ok(Node::File { data: fs.data.clone(), children, size, meta: fs.meta })
    }

    fn directory(&self, links: &[PbLink], fs: &UnixFs) -> Result<Node, DagError> {
        let mut entries = Vec::with_capacity(links.len());
        let mut omitted = Omissions::default();
        for link in links {
            let child = self.child(link)?;
            let name = &self.bytes[link.name.clone()];
            match unusable(name) {
                None => entries.push((OsStr::from_bytes(name).to_owned(), child, link.tsize)),
                Some(why) => omitted.add(name, &child, why),
            }
        }
        Ok(Node::Directory { entries, omitted, meta: fs.meta })
    }

    fn shard(&self, links: &[PbLink], fs: &UnixFs) -> Result<Node, DagError> {
        let fanout = self.fanout(fs)?;
        let width = slot_width(fanout);
        let mut taken = vec![false; fanout as usize];
        let mut out = Vec::with_capacity(links.len().min(fanout as usize));
        let mut omitted = Omissions::default();
        for link in links {
            let child = self.child(link)?;
            let name = &self.bytes[link.name.clone()];
            let slot = name.get(..width).and_then(parse_slot).and_then(|slot| taken.get_mut(slot));
            match slot {
                None => return Err(self.malformed("HAMT shard", &"a link names no slot")),
                Some(taken) if *taken => {
                    return Err(self.malformed("HAMT shard", &"two links in one slot"));
                }
                Some(free) => *free = true,
            }
            match unusable(&name[width..]).filter(|_| name.len() > width) {
                None => out.push((name.to_owned(), child, link.tsize)),
                Some(why) => omitted.add(&name[width..], &child, why),
            }
        }
        Ok(Node::Shard { fanout, links: out, omitted, meta: fs.meta })
    }

    fn fanout(&self, fs: &UnixFs) -> Result<u32, DagError> {
        if fs.hash_type != Some(MURMUR3_X64_64) {
            return Err(self.unsupported(format!("HAMT over hash {:?}", fs.hash_type)));
        }
        match fs.fanout.and_then(|fanout| u32::try_from(fanout).ok()) {
            Some(fanout) if FANOUTS.contains(&fanout) && fanout.is_power_of_two() => Ok(fanout),
            _ => Err(self.malformed("HAMT shard", &format!("fan-out {:?}", fs.fanout))),
        }
    }

    fn symlink(&self, fs: &UnixFs) -> Result<Node, DagError> {
        let target = &self.bytes[fs.data.clone()];
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
            return Err(self.malformed("symbolic link", &"its target is no usable path"));
        }
        Ok(Node::Symlink { target: OsStr::from_bytes(target).to_owned(), meta: fs.meta })
    }

    fn child(&self, link: &PbLink) -> Result<ContentId, DagError> {
        link.cid(self.bytes).map_err(|e| self.malformed("dag-pb", &e))
    }

    fn malformed(&self, what: &'static str, reason: &dyn std::fmt::Display) -> DagError {
        DagError::Malformed { cid: *self.cid, what, reason: reason.to_string() }
    }

    fn unsupported(&self, what: String) -> DagError {
        DagError::Unsupported { cid: *self.cid, what }
    }
}

/// The number of a slot from its hex digits.
pub(super) fn parse_slot(digits: &[u8]) -> Option<usize> {
    let digit = |b: &u8| char::from(*b).to_digit(16);
    digits.iter().try_fold(0, |slot, b| Some(slot << 4 | digit(b)? as usize))
}
