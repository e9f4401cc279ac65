//! Rows of the index as bytes: varints and length-prefixed strings, and the rows made of them.

use bytes::Bytes;

use super::{FileStamp, ObjectId};
use crate::content::{ByteRange, ContentId, Multihash, RangeSet};

/// A row that cannot be read: the index is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of the index is damaged")]
pub(super) struct Damaged;

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a row from its front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Damaged> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Damaged)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        self.take(N)?.try_into().map_err(|_| Damaged)
    }

    fn byte(&mut self) -> Result<u8, Damaged> {
        Ok(self.array::<1>()?[0])
    }

    fn varint(&mut self) -> Result<u64, Damaged> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Damaged)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Damaged> {
        let len = usize::try_from(self.varint()?).map_err(|_| Damaged)?;
        self.take(len)
    }

    fn content_id(&mut self) -> Result<ContentId, Damaged> {
        ContentId::from_bytes(self.bytes()?).map_err(|_| Damaged)
    }
}

/// What the index knows of a file in `objects/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObjectRow {
    /// Root of the content; none: a working file that must survive a crash.
    pub(super) root: Option<ContentId>,
    /// Bytes of content.
    pub(super) size: u64,
    /// Whether every byte was here once: somebody may have it open for passthrough, so no hole may be punched.
    pub(super) ever_complete: bool,
    /// A new version is being written into it, outside of `present`.
    pub(super) merging: bool,
    /// Bytes that are on disk.
    pub(super) present: RangeSet,
    /// What the file looked like when it was sealed; none for content that was downloaded.
    pub(super) stamp: Option<FileStamp>,
    /// It was made by publishing, not by fetching.
    pub(super) sealed: bool,
    /// Files of the upload tree that it is.
    pub(super) owners: u64,
    /// Seconds since the epoch.
    pub(super) created_at: u64,
    /// Bytes of disk at the last commit that touched it.
    pub(super) allocated: u64,
}

impl ObjectRow {
    pub(super) fn content(root: ContentId, size: u64, created_at: u64) -> Self {
        Self {
            root: Some(root),
            size,
            ever_complete: size == 0,
            merging: false,
            present: RangeSet::new(),
            stamp: None,
            sealed: false,
            owners: 0,
            created_at,
            allocated: 0,
        }
    }

    pub(super) fn working(created_at: u64) -> Self {
        Self {
            root: None,
            size: 0,
            ever_complete: false,
            merging: false,
            present: RangeSet::new(),
            stamp: None,
            sealed: false,
            owners: 0,
            created_at,
            allocated: 0,
        }
    }

    /// Whether every byte of its content is on disk.
    pub(super) fn is_whole(&self) -> bool {
        self.root.is_some() && !self.merging && self.present.contains(ByteRange::new(0, self.size))
    }

    /// Whether it is content that nobody published, and so may be evicted unless it is pinned.
    pub(super) fn is_cache(&self) -> bool {
        self.root.is_some() && self.owners == 0
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        out.push(
            u8::from(self.ever_complete)
                | u8::from(self.stamp.is_some()) << 1
                | u8::from(self.merging) << 2
                | u8::from(self.sealed) << 3,
        );
        put_bytes(&mut out, &self.root.map(|r| r.to_bytes()).unwrap_or_default());
        for value in [self.size, self.owners, self.created_at, self.allocated] {
            put_varint(&mut out, value);
        }
        if let Some(stamp) = self.stamp {
            out.extend_from_slice(&stamp.mtime.to_le_bytes());
            out.extend_from_slice(&stamp.ctime.to_le_bytes());
            put_varint(&mut out, stamp.size);
        }
        // Gap and length instead of start and end: four bytes per range are usual, also in a file of terabytes.
        put_varint(&mut out, self.present.count() as u64);
        let mut at = 0;
        for range in self.present.iter() {
            put_varint(&mut out, range.start - at);
            put_varint(&mut out, range.len());
            at = range.end;
        }
        out
    }

    pub(super) fn decode(row: &[u8]) -> Result<Self, Damaged> {
        let mut reader = Reader(row);
        let flags = reader.byte()?;
        let root = match reader.bytes()? {
            [] => None,
            bytes => Some(ContentId::from_bytes(bytes).map_err(|_| Damaged)?),
        };
        let (size, owners) = (reader.varint()?, reader.varint()?);
        let (created_at, allocated) = (reader.varint()?, reader.varint()?);
        let stamp = if flags & 2 == 0 {
            None
        } else {
            let (mtime, ctime) = (reader.array()?, reader.array()?);
            Some(FileStamp {
                mtime: i128::from_le_bytes(mtime),
                ctime: i128::from_le_bytes(ctime),
                size: reader.varint()?,
            })
        };
        let mut present = RangeSet::new();
        let mut at = 0u64;
        for _ in 0..reader.varint()? {
            let start = at.checked_add(reader.varint()?).ok_or(Damaged)?;
            at = start.checked_add(reader.varint()?).ok_or(Damaged)?;
            present.insert(ByteRange::new(start, at));
        }
        let (ever_complete, merging, sealed) = (flags & 1 != 0, flags & 4 != 0, flags & 8 != 0);
        Ok(Self {
            root,
            size,
            ever_complete,
            merging,
            present,
            stamp,
            sealed,
            owners,
            created_at,
            allocated,
        })
    }
}

/// The bytes of a leaf's block around its content: empty for raw leaves, dag-pb framing for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) before: Bytes,
    pub(super) after: Bytes,
}

/// Where a leaf lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) object: ObjectId,
    /// The content of the block, in the object.
    pub(super) range: ByteRange,
    /// What stands around it in the block.
    pub(super) envelope: Envelope,
}

impl Leaf {
    /// Length of the whole block.
    pub(super) fn block_len(&self) -> usize {
        let content = usize::try_from(self.range.len()).unwrap_or(usize::MAX);
        content + self.envelope.before.len() + self.envelope.after.len()
    }

    /// The value of its row; object and offset are in the key.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8);
        put_varint(&mut out, self.range.len());
        if self.envelope != Envelope::default() {
            put_bytes(&mut out, &self.envelope.before);
            put_bytes(&mut out, &self.envelope.after);
        }
        out
    }

    pub(super) fn decode(object: ObjectId, offset: u64, row: &[u8]) -> Result<Self, Damaged> {
        let mut reader = Reader(row);
        let range = ByteRange::at(offset, reader.varint()?);
        let envelope = if reader.0.is_empty() {
            Envelope::default()
        } else {
            let before = Bytes::copy_from_slice(reader.bytes()?);
            Envelope { before, after: Bytes::copy_from_slice(reader.bytes()?) }
        };
        Ok(Self { object, range, envelope })
    }
}

/// Key of a leaf: the block's multihash, then object and offset, so that a block can lie in many places
/// and each goes by itself. A multihash tells its own length: none is the front of another.
pub(super) fn leaf_key(hash: &Multihash, object: ObjectId, offset: u64) -> Vec<u8> {
    let mut key = hash.to_bytes();
    key.extend_from_slice(&object.0.to_be_bytes());
    key.extend_from_slice(&offset.to_be_bytes());
    key
}

/// Object and offset of a key of [`leaf_key`].
pub(super) fn parse_leaf_key(key: &[u8]) -> Result<(ObjectId, u64), Damaged> {
    let at = key.len().checked_sub(16).ok_or(Damaged)?;
    let mut reader = Reader(&key[at..]);
    let object = ObjectId(u64::from_be_bytes(reader.array()?));
    Ok((object, u64::from_be_bytes(reader.array()?)))
}

/// Key of content, of which the codec is a part: the same block is one file as raw and another one as dag-pb. Both
/// versions of a CID name the same content.
pub(super) fn content_key(id: &ContentId) -> Vec<u8> {
    id.to_v1().to_bytes()
}

/// Key of a root: its [`content_key`], then the object. A CID tells its own length: none is the front of another.
pub(super) fn root_key(root: &ContentId, object: ObjectId) -> Vec<u8> {
    let mut key = content_key(root);
    key.extend_from_slice(&object.0.to_be_bytes());
    key
}

/// The object of a key of [`root_key`].
pub(super) fn parse_root_key(key: &[u8]) -> Result<ObjectId, Damaged> {
    let at = key.len().checked_sub(8).ok_or(Damaged)?;
    Ok(ObjectId(u64::from_be_bytes(Reader(&key[at..]).array()?)))
}

/// A content id with a text: pins (name).
pub(super) fn encode_named(id: &ContentId, name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(48 + name.len());
    put_bytes(&mut out, &id.to_bytes());
    out.extend_from_slice(name.as_bytes());
    out
}

/// The reverse of [`encode_named`].
pub(super) fn decode_named(row: &[u8]) -> Result<(ContentId, String), Damaged> {
    let mut reader = Reader(row);
    let id = reader.content_id()?;
    Ok((id, String::from_utf8(reader.0.to_vec()).map_err(|_| Damaged)?))
}

/// A row of the node table: the id (for its codec) and the block.
pub(super) fn encode_node(id: &ContentId, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(48 + data.len());
    put_bytes(&mut out, &id.to_bytes());
    out.extend_from_slice(data);
    out
}

/// The reverse of [`encode_node`].
pub(super) fn decode_node(row: &[u8]) -> Result<(ContentId, &[u8]), Damaged> {
    let mut reader = Reader(row);
    Ok((reader.content_id()?, reader.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;
    use crate::content::sha2_256;

    proptest! {
        #[test]
        fn an_object_row_comes_back_as_it_was(
            working in any::<bool>(), complete in any::<bool>(), size in any::<u64>(), owners in any::<u64>(),
            stamp in prop::option::of((any::<i128>(), any::<i128>(), any::<u64>())),
            ranges in prop::collection::vec((any::<u32>(), 1u32..9000), 0..20),
        ) {
            let row = ObjectRow {
                root: (!working).then(|| ContentId::dag_pb(sha2_256(&size.to_le_bytes()))),
                size,
                ever_complete: complete,
                merging: complete,
                present: ranges.iter().map(|(at, len)| ByteRange::at(u64::from(*at), u64::from(*len))).collect(),
                stamp: stamp.map(|(mtime, ctime, size)| FileStamp { mtime, ctime, size }),
                sealed: !complete,
                owners,
                created_at: owners ^ size,
                allocated: size / 2,
            };
            let bytes = row.encode();
            prop_assert_eq!(ObjectRow::decode(&bytes).unwrap(), row);
        }

        #[test]
        fn damaged_rows_are_errors_not_panics(row in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = ObjectRow::decode(&row);
            let _ = Leaf::decode(ObjectId(1), 7, &row);
            let _ = (parse_leaf_key(&row), parse_root_key(&row), decode_named(&row), decode_node(&row).is_ok());
        }

        #[test]
        fn a_leaf_comes_back_as_it_was(
            object in any::<u64>(), offset in 0..u64::MAX / 2, len in 0..u64::from(u32::MAX),
            before in prop::collection::vec(any::<u8>(), 0..9), after in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let leaf = Leaf {
                object: ObjectId(object),
                range: ByteRange::at(offset, len),
                envelope: Envelope { before: before.into(), after: after.into() },
            };
            let key = leaf_key(&sha2_256(b"x"), leaf.object, offset);
            let (object, at) = parse_leaf_key(&key).unwrap();
            prop_assert_eq!(Leaf::decode(object, at, &leaf.encode()).unwrap(), leaf);
        }
    }
}
