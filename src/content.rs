//! Content as pure data: ids, verified blocks, UnixFS building and reading. No I/O, no async.

mod block;
mod directory;
mod file;
mod id;
mod import;
mod node;
mod range;

pub use block::{Block, BlockError, MAX_BLOCK_LEN, sha2_256};
pub use directory::{DirectoryReader, Entry, EntryKind, Lookup};
pub use file::{FileLayout, Need, Placement};
pub use id::{Codec, ContentId, IdError, Multihash};
pub use import::{
    BuiltDirectory, BuiltFile, DirectoryBuilder, FileBuilder, FileInfo, ImportParams, symlink,
};
pub use node::{DagError, Metadata, Node, NodeKind};
pub use range::{ByteRange, RangeSet};
