//! The hash functions that content ids on the network name.

use std::mem;

use blake2::{
    Blake2bVarCore, Blake2sVarCore,
    digest::block_api::{Buffer, UpdateCore, VariableOutputCore},
};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use sha3::{Keccak224, Keccak256, Keccak384, Keccak512, Sha3_224, Sha3_256, Sha3_384, Sha3_512};

use super::id::{IDENTITY, Multihash, SHA2_256};

/// Shortest digest that is trusted: with fewer bytes a second content for the same id can be found.
const MIN_DIGEST: usize = 20;

const SHA1: u64 = 0x11;
const SHA2_512: u64 = 0x13;
const SHA3_512: u64 = 0x14;
const SHA3_384: u64 = 0x15;
const SHA3_256: u64 = 0x16;
const SHA3_224: u64 = 0x17;
const KECCAK_224: u64 = 0x1a;
const KECCAK_256: u64 = 0x1b;
const KECCAK_384: u64 = 0x1c;
const KECCAK_512: u64 = 0x1d;
const BLAKE3: u64 = 0x1e;
const DBL_SHA2_256: u64 = 0x56;
/// The code for a digest of `n` bytes is this plus `n`.
const BLAKE2B: u64 = 0xb200;
const BLAKE2B_MAX: u64 = BLAKE2B + 64;
/// The code for a digest of `n` bytes is this plus `n`.
const BLAKE2S: u64 = 0xb240;
const BLAKE2S_MIN: u64 = BLAKE2S + 1;
const BLAKE2S_MAX: u64 = BLAKE2S + 32;

/// What a hash says about some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// They are its bytes.
    Matches,
    /// They are not.
    Differs,
    /// The function is unknown, or the digest too short to be trusted.
    Untrusted,
}

/// Compares `data` with `hash` over the whole digest. A digest that was cut short never matches, except that
/// BLAKE3 is defined for any length.
pub(super) fn check(hash: &Multihash, data: &[u8]) -> Check {
    let want = hash.digest();
    let code = hash.code();
    if code == IDENTITY {
        return matches(want, data);
    }
    if want.len() < MIN_DIGEST {
        return Check::Untrusted;
    }
    match compute(code, want.len(), data) {
        Some(got) => matches(want, &got),
        None => Check::Untrusted,
    }
}

/// Returns whether bytes can be compared with a hash: the function is known, and the digest long enough.
pub(super) fn is_known(hash: &Multihash) -> bool {
    check(hash, b"") != Check::Untrusted
}

/// The hash of `data` by the function `code`, where ids may name it and it may be trusted. `len` is the length of the
/// digest in bytes where the function has any; of others the digest has its own.
pub fn hash_of(code: u64, len: usize, data: &[u8]) -> Option<Multihash> {
    if len < MIN_DIGEST {
        return None;
    }
    Multihash::wrap(code, &compute(code, len, data)?).ok()
}

/// The digest of `data`; none of an unknown function.
fn compute(code: u64, len: usize, data: &[u8]) -> Option<Vec<u8>> {
    Some(match code {
        SHA2_256 => Sha256::digest(data).to_vec(),
        DBL_SHA2_256 => Sha256::digest(Sha256::digest(data)).to_vec(),
        SHA1 => Sha1::digest(data).to_vec(),
        SHA2_512 => Sha512::digest(data).to_vec(),
        SHA3_224 => Sha3_224::digest(data).to_vec(),
        SHA3_256 => Sha3_256::digest(data).to_vec(),
        SHA3_384 => Sha3_384::digest(data).to_vec(),
        SHA3_512 => Sha3_512::digest(data).to_vec(),
        KECCAK_224 => Keccak224::digest(data).to_vec(),
        KECCAK_256 => Keccak256::digest(data).to_vec(),
        KECCAK_384 => Keccak384::digest(data).to_vec(),
        KECCAK_512 => Keccak512::digest(data).to_vec(),
        BLAKE3 => blake3(data, len),
        BLAKE2B..=BLAKE2B_MAX => blake2::<Blake2bVarCore>(code - BLAKE2B, data)?,
        BLAKE2S_MIN..=BLAKE2S_MAX => blake2::<Blake2sVarCore>(code - BLAKE2S, data)?,
        _ => return None,
    })
}

fn matches(want: &[u8], got: &[u8]) -> Check {
    if want == got { Check::Matches } else { Check::Differs }
}

fn blake3(data: &[u8], len: usize) -> Vec<u8> {
    let mut digest = vec![0; len];
    blake3::Hasher::new().update(data).finalize_xof().fill(&mut digest);
    digest
}

/// `len` is the length that the code names; BLAKE2 hashes it too, so that it cannot be cut off afterwards.
fn blake2<C>(len: u64, data: &[u8]) -> Option<Vec<u8>>
where
    C: VariableOutputCore + UpdateCore,
{
    let len = usize::try_from(len).ok()?;
    let mut core = C::new(len).ok()?;
    let mut buffer = Buffer::<C>::default();
    buffer.digest_blocks(data, |blocks| core.update_blocks(blocks));
    let mut digest = Default::default();
    core.finalize_variable_core(&mut mem::take(&mut buffer), &mut digest);
    digest.get(..len).map(<[u8]>::to_vec)
}
