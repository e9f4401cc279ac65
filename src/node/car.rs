//! Archives (CAR) in and out of the store.
//!
//! # Import
//! A block of an archive may come before or after the nodes that say where it belongs, while the store keeps the bytes
//! of a file in one flat file, by their offset. So the archive is read twice.
//!
//! The first pass goes through it from the front, verifies every block, and keeps all that is no content of a file:
//! such nodes belong into the index wherever they stand in a tree. Of the others it notes where they lie, 16 bytes for
//! each, of which at most 16 MiB are held in memory: beyond that they go as sorted runs to a file without a name. The
//! second pass walks down from the roots, as a download does, and puts the content where it belongs; a block is read
//! from the archive only when it is not here, and verified again, since the file may have changed. So memory does not
//! grow with the archive, a second import of the same skips what is here, and a tree of which some blocks were here
//! before needs only the others. At last, blocks that no root led to become files of their own.
//!
//! What comes from a stream is first written to a file without a name in the data folder, which is gone with the
//! process whatever ends it.
//!
//! Roots are pinned before anything is stored, so that eviction spares what was imported so far; an import that fails
//! takes the pins back that it made. One that a kill ended leaves them, and with them what it has stored.
//!
//! # Export
//! The tree of a root in depth-first order, or the part of it that a [`CarPlan`] names. A block is written once unless
//! the plan says otherwise; memory then grows by some 30 bytes per block, to know which are out. An archive that somebody
//! keeps is verified once more; who fetches one over HTTP hashes it anyway, so that neighbouring leaves are read as one.

mod export;
mod import;
mod offsets;
mod spool;
#[cfg(test)]
mod tests;
mod walk;

use std::{io, path::PathBuf};

pub use self::{
    export::{CarPlan, CarScope},
    import::{CarInput, Imported, ImportedRoot},
    spool::Spool,
};
use super::NodeError;
use crate::{
    content::{BlockError, CarError, ContentId},
    download::DownloadError,
    store::StoreError,
};

/// Why an archive could not be read or written to its end.
#[derive(Debug, thiserror::Error)]
pub enum CarFailure {
    /// The file cannot be read, or the spool not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// No file that can be read twice.
    #[error("{} is no regular file; pipe it in: `chiral store import -`", .0.display())]
    NotAFile(PathBuf),
    /// It is no archive, or ends too early.
    #[error(transparent)]
    Format(#[from] CarError),
    /// A block is not what its id says.
    #[error("the block at byte {at}: {source}")]
    Block {
        /// Offset of its section.
        at: u64,
        /// What is wrong, with the id.
        source: BlockError,
    },
    /// The file was not the same in the second pass.
    #[error("the archive was changed while it was read: no section begins at byte {at} any more")]
    Changed {
        /// Where one did.
        at: u64,
    },
    /// A block that is to be exported is not here, and may not be fetched.
    #[error("the block {0} is not here")]
    Missing(ContentId),
    /// A block that is to be exported may link to others in a way that is not known.
    #[error(
        "{0} is no part of a file tree: what lies below it is not known, so that the archive would not be whole"
    )]
    Opaque(ContentId),
    /// A block that is to be exported is wrong, and stays so.
    #[error(transparent)]
    Wrong(BlockError),
    /// Whoever asked has gone, or the daemon ends.
    #[error("the import was broken off")]
    BrokenOff,
    /// The store, or the network.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl From<StoreError> for CarFailure {
    fn from(error: StoreError) -> Self {
        Self::Node(error.into())
    }
}

impl From<DownloadError> for CarFailure {
    fn from(error: DownloadError) -> Self {
        Self::Node(error.into())
    }
}
