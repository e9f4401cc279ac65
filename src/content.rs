//! Content as pure data: ids, verified blocks, UnixFS building and reading. No I/O, no async.

mod block;
mod car;
mod dag_pb;
mod directory;
mod entity;
mod file;
mod hamt;
mod hash;
mod id;
mod import;
mod lanes;
mod node;
mod omitted;
mod pb;
mod range;
mod range_header;
mod unixfs;

pub(crate) use block::sha2_256_of;
pub use block::{Block, BlockError, MAX_BLOCK_LEN, sha2_256};
pub use car::{
    CAR_SECTION_HEAD, CarError, CarHeader, CarItem, CarReader, CarSection, car_header,
    car_section_at, car_section_head,
};
pub use directory::{DirectoryReader, Entry, EntryKind, Lookup};
pub use entity::{EntityBytes, EntityBytesError};
pub use file::{FileLayout, Need, Needs, Placement};
pub use hash::hash_of;
pub use id::{Codec, ContentId, IdError, InfoHash, Multihash};
pub use import::{
    BuiltDirectory, BuiltFile, DirectoryBuilder, FileBuilder, FileInfo, ImportParams, dag_pb_leaf,
    import_bytes, symlink,
};
pub use lanes::{HASHED_AT_ONCE, HASHED_TOGETHER, sha2_256_each};
pub use node::{DagError, Metadata, Node, NodeKind, links_of};
pub use omitted::{Omissions, Omitted};
pub use range::{ByteRange, RangeSet};
pub use range_header::Selected;

#[cfg(test)]
mod tests;
