//! Hashes of many blocks at once. Here because the layers above have no other way to [`crate::sys`], and [`crate::content`]
//! is pure.

use crate::{
    content::{Multihash, sha2_256, sha2_256_of},
    sys,
};

/// Blocks that are best hashed together.
pub const HASHED_AT_ONCE: usize = sys::LANES;

/// From so many blocks of one length on, hashing them together takes less time than one by one.
pub const HASHED_TOGETHER: usize = sys::WORTH_IT;

/// The SHA2-256 multihash of each block. Blocks of one length, where there are [`HASHED_TOGETHER`] of them or more, take
/// half the time or so where the processor has AVX-512.
pub fn sha2_256_all(blocks: &[&[u8]]) -> Vec<Multihash> {
    let mut hashes = Vec::with_capacity(blocks.len());
    for some in blocks.chunks(HASHED_AT_ONCE) {
        let together = (some.len() >= HASHED_TOGETHER).then(|| sys::sha256_lanes(some)).flatten();
        match together {
            Some(digests) => hashes.extend(digests.into_iter().map(sha2_256_of)),
            None => hashes.extend(some.iter().map(|block| sha2_256(block))),
        }
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn together_or_alone_the_hash_is_the_same() {
        let blocks: Vec<Vec<u8>> = (0..40).map(|n| vec![n; 3000 + usize::from(n == 30)]).collect();
        for count in [0, 1, HASHED_TOGETHER - 1, HASHED_TOGETHER, HASHED_AT_ONCE, 20, 40] {
            let blocks: Vec<&[u8]> = blocks[..count].iter().map(Vec::as_slice).collect();
            let alone: Vec<Multihash> = blocks.iter().map(|block| sha2_256(block)).collect();
            assert_eq!(sha2_256_all(&blocks), alone);
        }
    }
}
