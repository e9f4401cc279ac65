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

/// The multihash of a SHA2-256 digest.
pub(crate) fn sha2_256_of(digest: [u8; 32]) -> Multihash {
    // As above: the length fits.
    Multihash::wrap(SHA2_256, &digest).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
        digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()
    }

    fn check(code: u64, digest: &[u8], data: &[u8]) -> Result<Block, BlockError> {
        let cid = ContentId::raw(Multihash::wrap(code, digest).unwrap());
        Block::verify(cid, Bytes::copy_from_slice(data))
    }

    /// Digests of `abc` as the papers that define the functions give them, or coreutils, OpenSSL and b3sum.
    const ABC: &[(u64, &str)] = &[
        (0x00, "616263"),
        (0x11, "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (0x12, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            0x13,
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
        (
            0x14,
            "b751850b1a57168a5693cd924b6b096e08f621827444f70d884f5d0240d2712e\
             10e116e9192af3c91a7ec57647e3934057340b4cf408d5a56592f8274eec53f0",
        ),
        (
            0x15,
            "ec01498288516fc926459f58e2c6ad8df9b473cb0fc08c2596da7cf0e49be4b2\
             98d88cea927ac7f539f1edf228376d25",
        ),
        (0x16, "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
        (0x17, "e642824c3f8cf24ad09234ee7d3c766fc9a3a5168d0c94ad73b46fdf"),
        (0x1a, "c30411768506ebe1c2871b1ee2e87d38df342317300a9b97a95ec6a8"),
        (0x1b, "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
        (
            0x1c,
            "f7df1165f033337be098e7d288ad6a2f74409d7a60b49c36642218de161b1f99\
             f8c681e4afaf31a34db29fb763e3c28e",
        ),
        (
            0x1d,
            "18587dc2ea106b9a1563e32b3312421ca164c7f1f07bc922a9c83d77cea3a1e5\
             d0c69910739025372dc14ac9642629379540c17e2a65b19d77aa511a9d00bb96",
        ),
        (0x1e, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
        (0x56, "4f8b42c22dd3729b519ba6f68d2da7cc5b2d606d05daed5ad5128cc03e6c6358"),
        (0xb214, "384264f676f39536840523f284921cdc68b6846b"),
        (0xb220, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"),
        (
            0xb240,
            "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1\
             7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923",
        ),
        (0xb254, "5ae3b99be29b01834c3b508521ede60438f8de17"),
        (0xb260, "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"),
    ];

    #[test]
    fn every_hash_function_of_the_network_is_checked_over_the_whole_digest() {
        for (code, digest) in ABC {
            let digest = unhex(digest);
            assert!(check(*code, &digest, b"abc").is_ok(), "0x{code:x}");
            assert!(matches!(check(*code, &digest, b"abd"), Err(BlockError::WrongHash(_))));
            let mut wrong = digest.clone();
            *wrong.last_mut().unwrap() ^= 1;
            assert!(matches!(check(*code, &wrong, b"abc"), Err(BlockError::WrongHash(_))));
            // BLAKE3 is defined for any length: a shorter digest is a digest of its own.
            if *code != 0x1e && digest.len() > 20 {
                assert!(check(*code, &digest[..20], b"abc").is_err(), "0x{code:x} cut short");
            }
        }
    }

    #[test]
    fn functions_that_nobody_should_trust_are_refused() {
        let refused = |code, digest: &[u8]| {
            matches!(check(code, digest, b"abc"), Err(BlockError::Unsupported { .. }))
        };
        // MD5, murmur3, an unknown one, and digests under 20 bytes.
        assert!(refused(0xd5, &[0; 16]) && refused(0x22, &[0; 32]) && refused(0xffff, &[0; 32]));
        assert!(refused(SHA2_256, &unhex(ABC[2].1)[..19]));
        let blake3 = blake3::hash(b"abc");
        assert!(refused(0x1e, &blake3.as_bytes()[..19]));
        assert!(check(0x1e, &blake3.as_bytes()[..20], b"abc").is_ok());
        assert!(refused(0xb200, &[]) && refused(0xb213, &[0; 19]) && refused(0xb261, &[0; 33]));
    }

    #[test]
    fn an_identity_id_carries_up_to_128_bytes() {
        let data = [7; 128];
        let block = check(0, &data, &data).unwrap();
        assert_eq!(Block::inline(*block.cid()).unwrap(), block);
        assert!(check(0, &data[..127], &data).is_err());
        assert!(Block::inline(*Block::raw(Bytes::new()).cid()).is_none());
        // One byte more is no id at all.
        let mut bytes = vec![1, 0x55, 0, 0x81, 1];
        bytes.extend([7; 129]);
        assert!(ContentId::from_bytes(&bytes).is_err());
    }

    #[test]
    fn blocks_reach_to_two_mebibytes() {
        let data = Bytes::from(vec![0; MAX_BLOCK_LEN + 1]);
        let verify = |data: Bytes| Block::verify(ContentId::raw(sha2_256(&data)), data);
        assert!(verify(data.slice(1..)).is_ok());
        assert!(matches!(verify(data), Err(BlockError::TooLarge { .. })));
    }
}
