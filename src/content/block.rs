//! Blocks whose bytes are known to match their id.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    hash::{self, Check},
    id::{ContentId, Multihash, SHA2_256},
};

/// Largest block that is accepted from anyone: the limit of Bitswap and of the trustless gateways.
pub const MAX_BLOCK_LEN: usize = 2 << 20;

/// Why bytes are not the block that an id names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The bytes hash to something else.
    #[error("the bytes do not hash to {0}")]
    WrongHash(ContentId),
    /// The hash function is unknown, or its digest too short to be trusted.
    #[error("{cid}: hash function 0x{code:x} is unknown or its digest under 20 bytes")]
    Unsupported {
        /// The id that names the function.
        cid: ContentId,
        /// Its multicodec.
        code: u64,
    },
    /// Larger than [`MAX_BLOCK_LEN`].
    #[error("{cid}: a block of {len} bytes is over the limit of {MAX_BLOCK_LEN}")]
    TooLarge {
        /// The id of the block.
        cid: ContentId,
        /// Its length in bytes.
        len: usize,
    },
}

/// Bytes that hash to their id. [`Block::verify`] and hashing itself are the only ways to make one from
/// bytes that came from elsewhere, and the store takes nothing else: an unverified byte cannot be kept or shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    cid: ContentId,
    data: Bytes,
}

impl Block {
    /// Checks `data` against `cid`.
    ///
    /// # Errors
    /// When the bytes do not match, are too many, or the hash function is not one that is trusted.
    pub fn verify(cid: ContentId, data: Bytes) -> Result<Self, BlockError> {
        if data.len() > MAX_BLOCK_LEN {
            return Err(BlockError::TooLarge { cid, len: data.len() });
        }
        match hash::check(cid.hash(), &data) {
            Check::Matches => Ok(Self { cid, data }),
            Check::Differs => Err(BlockError::WrongHash(cid)),
            Check::Untrusted => Err(BlockError::Unsupported { cid, code: cid.hash().code() }),
        }
    }

    /// Hashes `data` as a raw block.
    pub fn raw(data: Bytes) -> Self {
        Self { cid: ContentId::raw(sha2_256(&data)), data }
    }

    /// Hashes `data` as a dag-pb block.
    pub fn dag_pb(data: Bytes) -> Self {
        Self { cid: ContentId::dag_pb(sha2_256(&data)), data }
    }

    /// The block that an identity id carries in itself; none for all other ids.
    pub fn inline(cid: ContentId) -> Option<Self> {
        let data = cid.inline_content().map(Bytes::copy_from_slice)?;
        Some(Self { cid, data })
    }

    /// A block that the store kept: it was verified before it was written.
    pub(crate) fn from_store(cid: ContentId, data: Bytes) -> Self {
        Self { cid, data }
    }

    /// The id that the bytes hash to.
    pub fn cid(&self) -> &ContentId {
        &self.cid
    }

    /// The bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

/// The SHA2-256 multihash of `data`.
pub fn sha2_256(data: &[u8]) -> Multihash {
    // 32 bytes always fit into a multihash of 128; `wrap` can fail on the length alone.
    Multihash::wrap(SHA2_256, &Sha256::digest(data)).unwrap_or_default()
}
