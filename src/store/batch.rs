//! What is committed together.

use std::{fs::File, sync::Arc};

use super::ObjectId;
use crate::content::{Block, ByteRange, ContentId, FileInfo, Multihash, RangeSet, sha2_256_of};

/// What a file looked like when it was sealed: (mtime, ctime, size), to nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Modification time in nanoseconds since the epoch.
    pub mtime: i128,
    /// Change time in nanoseconds since the epoch.
    pub ctime: i128,
    /// Size in bytes.
    pub size: u64,
}

/// Raw leaves of a file, in its order. A file of a terabyte has four million: those of one length and of sha2-256 take
/// 32 bytes each.
#[derive(Clone, Debug, Default)]
pub struct SealLeaves {
    digests: Vec<[u8; 32]>,
    /// Bytes of each leaf but the last.
    leaf_len: u64,
    size: u64,
    /// An id or a range did not fit.
    odd: bool,
}

impl SealLeaves {
    /// Adds the next leaf.
    pub fn push(&mut self, id: &ContentId, len: u64) {
        if self.digests.is_empty() {
            self.leaf_len = len;
        }
        let regular =
            self.size == self.digests.len() as u64 * self.leaf_len && len <= self.leaf_len;
        match <[u8; 32]>::try_from(id.hash().digest()) {
            Ok(digest) if regular && *id.hash() == sha2_256_of(digest) => self.digests.push(digest),
            _ => self.odd = true,
        }
        self.size += len;
    }

    /// Bytes of all leaves; none when they are not what this type can hold, in which case the seal is refused.
    pub fn size(&self) -> Option<u64> {
        (!self.odd).then_some(self.size)
    }

    /// The leaves with the bytes that each holds.
    pub fn iter(&self) -> impl Iterator<Item = (Multihash, ByteRange)> {
        let whole = ByteRange::new(0, self.size);
        (0..).zip(&self.digests).map(move |(n, digest)| {
            let range = ByteRange::at(n * self.leaf_len, self.leaf_len).intersect(whole);
            (sha2_256_of(*digest), range)
        })
    }
}

impl FromIterator<(ContentId, ByteRange)> for SealLeaves {
    fn from_iter<I: IntoIterator<Item = (ContentId, ByteRange)>>(leaves: I) -> Self {
        let mut all = Self::default();
        for (id, range) in leaves {
            all.odd |= range.start != all.size;
            all.push(&id, range.len());
        }
        all
    }
}

/// What makes a working file an object.
#[derive(Clone, Debug)]
pub struct Seal {
    /// The working file.
    pub object: ObjectId,
    /// Root of its DAG.
    pub root: ContentId,
    /// Its stamp while it was hashed.
    pub stamp: FileStamp,
    /// Its leaves.
    pub leaves: SealLeaves,
    /// Interior nodes.
    pub nodes: Vec<Block>,
    /// The bytes that the file holds, in whole leaves; none: all. The others lie in an object that the caller keeps.
    pub present: Option<RangeSet>,
}

/// Changes that become durable together or not at all.
///
/// Order on disk (see [`super::Store::commit`]): data of `sync`, directories with new names, one durable index commit with
/// all rows, and only then the files of released objects are unlinked.
#[derive(Debug, Default)]
pub struct Batch {
    /// Files whose data must be on disk before the index says so.
    pub sync: Vec<Arc<File>>,
    /// Working files that become objects; the store counts one owner for each.
    pub seal: Vec<Seal>,
    /// Working files that stay working files but must survive a crash (closed, not hashed yet, or held open).
    pub keep: Vec<ObjectId>,
    /// One owner more for objects that are there already, whole and with this root (an identical file was published), or
    /// are sealed by this batch. Refused where they are not, or no more.
    pub own: Vec<(ObjectId, ContentId)>,
    /// One owner less; working files are dropped. Without owner and pin an object becomes cache, a working file is unlinked.
    pub release: Vec<ObjectId>,
    /// DAG nodes that belong to no object (directories, symlinks).
    pub nodes: Vec<Block>,
    /// Rows of the upload tree to write; the store does not look into them.
    pub tree_put: Vec<(u64, Vec<u8>)>,
    /// Rows of the upload tree to take out.
    pub tree_remove: Vec<u64>,
    /// Descriptions of published files (their chunks are derived, not stored).
    pub files: Vec<FileInfo>,
    /// Ids whose descriptions are taken out.
    pub files_remove: Vec<ContentId>,
    /// When given: all directories and links that the upload tree shows at its top from now on. Garbage
    /// collection keeps the nodes that they reach; until the first such list it keeps all directories.
    pub published: Option<Vec<ContentId>>,
}

impl Batch {
    /// Files whose data the index will speak of once it stands.
    pub(super) fn files(&self) -> impl Iterator<Item = ObjectId> {
        self.seal.iter().map(|seal| seal.object).chain(self.keep.iter().copied())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seal.is_empty()
            && self.keep.is_empty()
            && self.own.is_empty()
            && self.release.is_empty()
            && self.nodes.is_empty()
            && self.tree_put.is_empty()
            && self.tree_remove.is_empty()
            && self.files.is_empty()
            && self.files_remove.is_empty()
            && self.published.is_none()
    }
}
