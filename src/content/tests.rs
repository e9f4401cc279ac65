//! The module as a whole: ids that other implementations give, and DAGs read back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test data are small")]

mod directories;
mod files;
mod hostile;
mod vectors;

use std::collections::HashMap;

use bytes::Bytes;

use super::*;

/// Blocks by their id, as CIDv1.
pub(super) type Blocks = HashMap<ContentId, Block>;

pub(super) const PLAIN: Metadata = Metadata { mode: None, mtime: None };

pub(super) fn keep(blocks: &mut Blocks, new: impl IntoIterator<Item = Block>) {
    blocks.extend(new.into_iter().map(|block| (block.cid().to_v1(), block)));
}

pub(super) fn params(chunk_len: usize, max_links: usize) -> ImportParams {
    ImportParams { chunk_len, max_links, ..ImportParams::DEFAULT }
}

/// Bytes that differ from offset to offset, so that a misplaced block shows.
pub(super) fn pattern(len: usize) -> Bytes {
    let byte = |i: usize| (i as u32).wrapping_mul(2_654_435_761).rotate_right(13) as u8;
    (0..len).map(byte).collect::<Vec<_>>().into()
}
