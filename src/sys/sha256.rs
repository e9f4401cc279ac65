//! SHA-256 of sixteen messages at once.
//!
//! The function is one long chain of dependent steps, so a processor is mostly idle over a single message, even with
//! instructions made for it. A file is many leaves of one length: here each of the sixteen 32-bit lanes of an AVX-512
//! register works on a leaf of its own, at about twice the speed of the SHA instructions. FIPS 180-4 gives the names.

/// Messages that are hashed together.
pub const LANES: usize = 16;

/// The digests of sixteen messages of one length. None: the lengths differ, or the processor has no AVX-512.
#[cfg(target_arch = "x86_64")]
pub fn sha256_lanes(messages: &[&[u8]; LANES]) -> Option<[[u8; 32]; LANES]> {
    let len = messages[0].len();
    if messages.iter().any(|message| message.len() != len) || !has_lanes() {
        return None;
    }
    // SAFETY: the processor has both features.
    Some(unsafe { avx512::digests(messages, len) })
}

/// The digests of sixteen messages of one length. None: the processor has no AVX-512.
#[cfg(not(target_arch = "x86_64"))]
pub fn sha256_lanes(_messages: &[&[u8]; LANES]) -> Option<[[u8; 32]; LANES]> {
    None
}

/// Whether the processor can hash sixteen messages at once.
#[cfg(target_arch = "x86_64")]
pub fn has_lanes() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// Whether the processor can hash sixteen messages at once.
#[cfg(not(target_arch = "x86_64"))]
pub fn has_lanes() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512i, _mm_set_epi64x, _mm512_add_epi32, _mm512_broadcast_i32x4, _mm512_loadu_si512,
        _mm512_ror_epi32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_epi8,
        _mm512_shuffle_i32x4, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_ternarylogic_epi32,
        _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };

    use super::LANES;

    /// Bytes that one step takes from each message.
    const BLOCK: usize = 64;

    const INITIAL: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];

    #[rustfmt::skip]
    const K: [[u32; 16]; 4] = [
        [
            0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
            0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
        ],
        [
            0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
            0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
        ],
        [
            0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
            0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
        ],
        [
            0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
            0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
        ],
    ];

    /// One word of each message.
    type Words = __m512i;

    /// # Safety
    /// The processor has AVX-512 F and BW, and every message is of `len` bytes.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn digests(messages: &[&[u8]; LANES], len: usize) -> [[u8; 32]; LANES] {
        let mut state = INITIAL.map(|word| _mm512_set1_epi32(word.cast_signed()));
        let whole = len / BLOCK * BLOCK;
        for at in (0..whole).step_by(BLOCK) {
            // SAFETY: `at + BLOCK <= len`.
            step(&mut state, messages.map(|message| unsafe { load(message.as_ptr().add(at)) }));
        }
        // What is left over, a one bit, zeros, and the length in bits: one block, or two.
        let bits = (len as u64).wrapping_mul(8).to_be_bytes();
        let tails = messages.map(|message| {
            let rest = &message[whole..];
            let mut tail = [0; 2 * BLOCK];
            tail[..rest.len()].copy_from_slice(rest);
            tail[rest.len()] = 0x80;
            let end = if rest.len() + 9 > BLOCK { 2 * BLOCK } else { BLOCK };
            tail[end - 8..end].copy_from_slice(&bits);
            tail
        });
        let end = if len - whole + 9 > BLOCK { 2 * BLOCK } else { BLOCK };
        for at in (0..end).step_by(BLOCK) {
            // SAFETY: `at + BLOCK <= end`, and a tail is of `2 * BLOCK` bytes.
            let load = |tail: &[u8; 2 * BLOCK]| unsafe { load(tail.as_ptr().add(at)) };
            step(&mut state, tails.each_ref().map(load));
        }
        let mut digests = [[0; 32]; LANES];
        for (number, words) in state.into_iter().enumerate() {
            let mut lanes = [0u32; LANES];
            // SAFETY: the array has the size of the register; the store needs no alignment.
            unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), words) };
            for (digest, word) in digests.iter_mut().zip(lanes) {
                digest[4 * number..][..4].copy_from_slice(&word.to_be_bytes());
            }
        }
        digests
    }

    /// Loads a block of one message.
    ///
    /// # Safety
    /// The block is there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(block: *const u8) -> __m512i {
        // SAFETY: the caller vouches for the bytes; the load needs no alignment.
        unsafe { _mm512_loadu_si512(block.cast()) }
    }

    /// Takes one block of each message into the state.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn step(state: &mut [Words; 8], blocks: [__m512i; LANES]) {
        let big_endian =
            _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203));
        let mut w = transpose(blocks.map(|block| _mm512_shuffle_epi8(block, big_endian)));
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
        for (number, constants) in K.iter().enumerate() {
            for i in 0..16 {
                if number > 0 {
                    let (w15, w2) = (w[(i + 1) % 16], w[(i + 14) % 16]);
                    let s0 = xor(
                        _mm512_ror_epi32::<7>(w15),
                        _mm512_ror_epi32::<18>(w15),
                        _mm512_srli_epi32::<3>(w15),
                    );
                    let s1 = xor(
                        _mm512_ror_epi32::<17>(w2),
                        _mm512_ror_epi32::<19>(w2),
                        _mm512_srli_epi32::<10>(w2),
                    );
                    w[i] = add(add(w[i], s0), add(w[(i + 9) % 16], s1));
                }
                let s1 = xor(
                    _mm512_ror_epi32::<6>(e),
                    _mm512_ror_epi32::<11>(e),
                    _mm512_ror_epi32::<25>(e),
                );
                let choice = _mm512_ternarylogic_epi32::<0xca>(e, f, g);
                let constant = _mm512_set1_epi32(constants[i].cast_signed());
                let t1 = add(add(h, add(w[i], constant)), add(s1, choice));
                let s0 = xor(
                    _mm512_ror_epi32::<2>(a),
                    _mm512_ror_epi32::<13>(a),
                    _mm512_ror_epi32::<22>(a),
                );
                let majority = _mm512_ternarylogic_epi32::<0xe8>(a, b, c);
                (h, g, f, e) = (g, f, e, add(d, t1));
                (d, c, b, a) = (c, b, a, add(t1, add(s0, majority)));
            }
        }
        for (old, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *old = add(*old, new);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(a: Words, b: Words) -> Words {
        _mm512_add_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn xor(a: Words, b: Words, c: Words) -> Words {
        _mm512_ternarylogic_epi32::<0x96>(a, b, c)
    }

    /// From a block of each message in a register to a word of all messages in each.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose(rows: [__m512i; 16]) -> [Words; 16] {
        let zero = [_mm512_setzero_si512(); 16];
        let (mut pairs, mut fours) = (zero, zero);
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        for i in (0..16).step_by(4) {
            fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
            fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
            fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
            fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
        }
        let (mut eights, mut words) = (zero, zero);
        for i in 0..4 {
            for half in [0, 8] {
                let (low, high) = (fours[half + i], fours[half + 4 + i]);
                eights[half + i] = _mm512_shuffle_i32x4::<0x88>(low, high);
                eights[half + 4 + i] = _mm512_shuffle_i32x4::<0xdd>(low, high);
            }
        }
        for i in 0..8 {
            words[i] = _mm512_shuffle_i32x4::<0x88>(eights[i], eights[8 + i]);
            words[8 + i] = _mm512_shuffle_i32x4::<0xdd>(eights[i], eights[8 + i]);
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    fn check(messages: &[Vec<u8>; LANES]) {
        let digests = sha256_lanes(&messages.each_ref().map(Vec::as_slice));
        // Elsewhere there is nothing to compare.
        let Some(digests) = digests else { return assert!(!has_lanes()) };
        for (message, digest) in messages.iter().zip(digests) {
            assert_eq!(digest[..], Sha256::digest(message)[..], "{} bytes", message.len());
        }
    }

    /// Messages that differ from each other in every part.
    fn messages(len: usize, seed: u8) -> [Vec<u8>; LANES] {
        std::array::from_fn(|lane| {
            let byte = |n: usize| (n / 3 + n / 250 * lane + 17 * lane).to_le_bytes()[0] ^ seed;
            (0..len).map(byte).collect()
        })
    }

    #[test]
    fn each_message_has_its_own_digest_at_every_length_around_a_block() {
        for len in (0..200).chain([262_143, 262_144, 262_145]) {
            check(&messages(len, 3));
        }
    }

    #[test]
    fn messages_of_different_lengths_are_not_hashed_together() {
        let mut messages = messages(64, 1);
        messages[9].pop();
        assert_eq!(sha256_lanes(&messages.each_ref().map(Vec::as_slice)), None);
    }

    proptest! {
        #[test]
        fn digests_are_those_of_sha2(len in 0usize..3000, seed in any::<[u8; LANES]>()) {
            let mut messages = messages(len, seed[0]);
            for (message, seed) in messages.iter_mut().zip(seed) {
                message.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(seed | 1));
            }
            check(&messages);
        }
    }
}
