//! Hashing many blocks at once: twice as fast where the processor has wide registers.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    block::{Block, BlockError, MAX_BLOCK_LEN},
    id::{ContentId, Multihash, SHA2_256},
    sha2_256_of,
};
use crate::sys::{LANES, WORTH_IT, sha256_lanes};

/// Blocks that are best hashed together.
pub const HASHED_AT_ONCE: usize = LANES;
/// From so many blocks of one length on, hashing them together takes less time than one by one.
pub const HASHED_TOGETHER: usize = WORTH_IT;
/// The intrinsics are plain function calls without optimisation, a hundred times slower than `sha2`.
const OPTIMISED: bool = !cfg!(debug_assertions);

/// The SHA2-256 multihashes of many messages, in their order. Up to [`HASHED_AT_ONCE`] of one length are hashed
/// together where the processor has AVX-512, in half the time.
pub fn sha2_256_each(messages: &[&[u8]]) -> Vec<Multihash> {
    digests(messages, OPTIMISED).into_iter().map(sha2_256_of).collect()
}

fn digests(messages: &[&[u8]], together: bool) -> Vec<[u8; 32]> {
    if !together || messages.len() < HASHED_TOGETHER {
        return messages.iter().map(|message| Sha256::digest(message).into()).collect();
    }
    let mut order: Vec<usize> = (0..messages.len()).collect();
    order.sort_by_key(|&index| messages[index].len());
    let mut digests = vec![[0; 32]; messages.len()];
    for same in order.chunk_by(|&a, &b| messages[a].len() == messages[b].len()) {
        for group in same.chunks(HASHED_AT_ONCE) {
            let lanes: Vec<&[u8]> = group.iter().map(|&index| messages[index]).collect();
            let worth = group.len() >= HASHED_TOGETHER;
            let hashed = worth.then(|| sha256_lanes(&lanes)).flatten();
            for (lane, &index) in group.iter().enumerate() {
                digests[index] = match &hashed {
                    Some(hashed) => hashed[lane],
                    None => Sha256::digest(messages[index]).into(),
                };
            }
        }
    }
    digests
}

impl Block {
    /// As [`Block::verify`] for each, in their order, and faster than one after the other.
    pub fn verify_each(blocks: Vec<(ContentId, Bytes)>) -> Vec<Result<Self, BlockError>> {
        let usual = |(cid, data): &(ContentId, Bytes)| {
            let hash = cid.hash();
            hash.code() == SHA2_256 && hash.digest().len() == 32 && data.len() <= MAX_BLOCK_LEN
        };
        let messages: Vec<&[u8]> =
            blocks.iter().filter(|block| usual(block)).map(|(_, data)| &data[..]).collect();
        let mut hashes = sha2_256_each(&messages).into_iter();
        let verify = |block: (ContentId, Bytes)| {
            if !usual(&block) {
                return Self::verify(block.0, block.1);
            }
            let (cid, data) = block;
            match hashes.next() {
                Some(hash) if hash == *cid.hash() => Ok(Self::from_store(cid, data)),
                _ => Err(BlockError::WrongHash(cid)),
            }
        };
        blocks.into_iter().map(verify).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;
    use crate::content::{hash_of, sha2_256};

    /// Messages of few lengths, so that many have the same.
    fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let message = (0usize..3, any::<u64>()).prop_map(|(len, seed)| {
            let len = [0, 64, 300][len];
            (0..len).map(|n| seed.to_le_bytes()[n % 8] ^ n.to_le_bytes()[0]).collect()
        });
        prop::collection::vec(message, 0..60)
    }

    proptest! {
        #[test]
        fn each_message_has_the_hash_that_it_has_alone(messages in messages()) {
            let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
            let hashes: Vec<_> = digests(&messages, true).into_iter().map(sha2_256_of).collect();
            let alone: Vec<_> = messages.iter().map(|message| sha2_256(message)).collect();
            prop_assert_eq!(&hashes, &alone);
            prop_assert_eq!(sha2_256_each(&messages), alone);
        }

        #[test]
        fn each_block_is_judged_as_alone(
            messages in messages(),
            wrong in prop::collection::vec(any::<bool>(), 60),
            code in prop::collection::vec(prop_oneof![4 => Just(0x12u64), 1 => Just(0x13), 1 => Just(0x1e)], 60),
        ) {
            let blocks: Vec<_> = messages
                .into_iter()
                .zip(wrong.iter().zip(&code))
                .map(|(message, (wrong, code))| {
                    let cid = ContentId::raw(hash_of(*code, 32, &message).unwrap());
                    let data: Bytes = if *wrong { b"other".to_vec() } else { message }.into();
                    (cid, data)
                })
                .collect();
            let alone: Vec<_> =
                blocks.iter().map(|(cid, data)| Block::verify(*cid, data.clone())).collect();
            prop_assert_eq!(Block::verify_each(blocks), alone);
        }
    }
}
