//! UnixFS: the message in the data field of a dag-pb node.

use std::ops::Range;

use super::{
    Metadata,
    pb::{self, PbError, Reader, Value},
};

/// Multihash code of murmur3-x64-64, the only hash of HAMT shards.
pub(super) const MURMUR3_X64_64: u64 = 0x22;

/// Bits of a mode that mean permissions; the others are reserved.
const PERMISSIONS: u32 = 0o7777;

/// UnixFS types by their number.
pub(super) mod kind {
    pub(in super::super) const RAW: u64 = 0;
    pub(in super::super) const DIRECTORY: u64 = 1;
    pub(in super::super) const FILE: u64 = 2;
    pub(in super::super) const METADATA: u64 = 3;
    pub(in super::super) const SYMLINK: u64 = 4;
    pub(in super::super) const HAMT_SHARD: u64 = 5;
}

/// The message as it lies in the block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UnixFs {
    pub(super) kind: u64,
    /// Bytes of the data field; empty also when it is absent.
    pub(super) data: Range<usize>,
    pub(super) filesize: Option<u64>,
    pub(super) blocksizes: Vec<u64>,
    pub(super) hash_type: Option<u64>,
    pub(super) fanout: Option<u64>,
    pub(super) meta: Metadata,
}

/// Reads the message in `block[message]`. Unknown fields are passed over, as protobuf wants it.
pub(super) fn decode(block: &[u8], message: Range<usize>) -> Result<UnixFs, PbError> {
    let start = message.start;
    let mut node = UnixFs { data: start..start, ..UnixFs::default() };
    let mut kind = None;
    let mut reader = Reader::new(block, message);
    while let Some(field) = reader.next()? {
        let at = field.at;
        match field.number {
            1 => kind = Some(field.value.varint(at)?),
            2 => node.data = field.value.bytes(at)?,
            3 => node.filesize = Some(field.value.varint(at)?),
            4 => match field.value {
                Value::Varint(size) => node.blocksizes.push(size),
                packed => {
                    let mut sizes = Reader::new(block, packed.bytes(at)?);
                    while let Some(size) = sizes.next_packed()? {
                        node.blocksizes.push(size);
                    }
                }
            },
            5 => node.hash_type = Some(field.value.varint(at)?),
            6 => node.fanout = Some(field.value.varint(at)?),
            7 => {
                let permissions = field.value.varint(at)? & u64::from(PERMISSIONS);
                node.meta.mode = u32::try_from(permissions).ok();
            }
            8 => node.meta.mtime = decode_mtime(block, field.value.bytes(at)?)?,
            _ => {}
        }
    }
    node.kind = kind.ok_or_else(|| PbError::new(start, "type is missing"))?;
    Ok(node)
}

/// A time whose nanoseconds are out of range is taken as none: it must not keep anyone from the content.
fn decode_mtime(block: &[u8], message: Range<usize>) -> Result<Option<(i64, u32)>, PbError> {
    let start = message.start;
    let (mut seconds, mut nanos) = (None, 0);
    let mut reader = Reader::new(block, message);
    while let Some(field) = reader.next()? {
        match (field.number, field.value) {
            (1, value) => seconds = Some(value.varint(field.at)?.cast_signed()),
            (2, Value::Fixed32(value)) => nanos = value,
            (2, _) => return Err(PbError::new(field.at, "nanoseconds are no fixed32")),
            _ => {}
        }
    }
    let seconds = seconds.ok_or_else(|| PbError::new(start, "mtime without seconds"))?;
    Ok((nanos < 1_000_000_000).then_some((seconds, nanos)))
}

/// A file node: `data` are the node's own bytes, `blocksizes` those of its children.
pub(super) fn file(data: &[u8], blocksizes: &[u64], meta: Metadata) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + blocksizes.len() * 4 + 40);
    pb::put_u64(&mut out, 1, kind::FILE);
    if !data.is_empty() {
        pb::put_bytes(&mut out, 2, data);
    }
    pb::put_u64(&mut out, 3, total(blocksizes.iter().copied()).saturating_add(data.len() as u64));
    for size in blocksizes {
        pb::put_u64(&mut out, 4, *size);
    }
    put_metadata(&mut out, meta);
    out
}

pub(super) fn directory(meta: Metadata) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    pb::put_u64(&mut out, 1, kind::DIRECTORY);
    put_metadata(&mut out, meta);
    out
}

/// `bitfield` says which slots are taken: big-endian, without leading zero bytes.
pub(super) fn shard(bitfield: &[u8], fanout: u32, meta: Metadata) -> Vec<u8> {
    let mut out = Vec::with_capacity(bitfield.len() + 40);
    pb::put_u64(&mut out, 1, kind::HAMT_SHARD);
    pb::put_bytes(&mut out, 2, bitfield);
    pb::put_u64(&mut out, 5, MURMUR3_X64_64);
    pb::put_u64(&mut out, 6, u64::from(fanout));
    put_metadata(&mut out, meta);
    out
}

pub(super) fn symlink(target: &[u8], meta: Metadata) -> Vec<u8> {
    let mut out = Vec::with_capacity(target.len() + 40);
    pb::put_u64(&mut out, 1, kind::SYMLINK);
    pb::put_bytes(&mut out, 2, target);
    put_metadata(&mut out, meta);
    out
}

/// A sum of sizes. Those that strangers claim may add up to more than there are numbers.
pub(super) fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

fn put_metadata(out: &mut Vec<u8>, meta: Metadata) {
    if let Some(mode) = meta.mode {
        pb::put_u64(out, 7, u64::from(mode & PERMISSIONS));
    }
    if let Some((seconds, nanos)) = meta.mtime {
        let mut time = Vec::with_capacity(16);
        pb::put_u64(&mut time, 1, seconds.cast_unsigned());
        if nanos != 0 {
            pb::put_fixed32(&mut time, 2, nanos);
        }
        pb::put_bytes(out, 8, &time);
    }
}
