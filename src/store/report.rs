//! Pins, figures and reports.

use crate::content::ContentId;

/// A pinned root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The root; everything below it is kept.
    pub root: ContentId,
    /// A name for people.
    pub name: String,
}

/// Figures for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes of disk in `objects/`.
    pub bytes: u64,
    /// Objects.
    pub objects: u64,
    /// Blocks that can be served.
    pub blocks: u64,
    /// Bytes of disk that may still be written without evicting what must be kept.
    pub available: u64,
    /// Bytes of disk that hold nothing that must be kept, `min_free` and what is reserved for root included.
    pub free: u64,
    /// Bytes of the disk.
    pub capacity: u64,
    /// Inodes of the disk; 0 where they have no limit.
    pub files: u64,
    /// Files that may still be made without evicting what must be kept.
    pub files_free: u64,
}

/// What a known root is, for the root listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownRoot {
    /// Its id.
    pub root: ContentId,
    /// Whether it is a directory.
    pub directory: bool,
}

/// What [`super::Store::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blocks that were hashed.
    pub blocks: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// Blocks whose bytes were wrong; they are withdrawn and will be fetched again.
    pub bad: Vec<ContentId>,
}

/// What [`super::Store::gc`] freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Objects that were removed.
    pub objects: u64,
    /// DAG nodes that were removed.
    pub nodes: u64,
    /// Bytes of disk that came free.
    pub bytes: u64,
}
