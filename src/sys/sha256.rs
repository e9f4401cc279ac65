//! SHA-256 of up to sixteen messages side by side: a lane of the AVX-512 registers for each. That is twice the rate of the
//! processor's own instructions for SHA-256, each of which waits for the one before it.

/// Messages that are hashed side by side at most. Fewer take as long as all.
pub const LANES: usize = 16;

/// From so many messages on it is faster than hashing one after the other with the instructions for SHA-256.
pub const WORTH_IT: usize = 9;

/// Bytes that the function takes in at a time.
const BLOCK: usize = 64;
/// Bytes of the length at the end of the padding.
const LENGTH: usize = 8;

#[rustfmt::skip]
const START: [u32; 8] = [
    0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19,
];

/// The digests of `messages`. None when they are too many or their lengths differ, or where the processor has no AVX-512.
pub fn sha256_lanes(messages: &[&[u8]]) -> Option<Vec<[u8; 32]>> {
    let first = *messages.first()?;
    let alike = messages.len() <= LANES && messages.iter().all(|m| m.len() == first.len());
    if !alike || !avx512::is_here() {
        return None;
    }
    // Lanes that nobody needs hash the first message again.
    let lanes: [&[u8]; LANES] =
        std::array::from_fn(|lane| messages.get(lane).copied().unwrap_or(first));
    let mut state = START.map(|word| [word; LANES]);
    avx512::compress(&mut state, &lanes.map(|message| message.as_chunks().0));
    let ends: [Ending; LANES] = lanes.map(Ending::of);
    avx512::compress(&mut state, &ends.each_ref().map(Ending::blocks));
    Some((0..messages.len()).map(|lane| digest(&state, lane)).collect())
}

fn digest(state: &[[u32; LANES]; 8], lane: usize) -> [u8; 32] {
    let mut digest = [0; 32];
    for (bytes, words) in digest.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = words[lane].to_be_bytes();
    }
    digest
}

/// What follows the last whole block of a message: the rest of it, a one bit, zeros, and its length in bits.
struct Ending {
    blocks: [[u8; BLOCK]; 2],
    count: usize,
}

impl Ending {
    fn of(message: &[u8]) -> Self {
        let rest = message.as_chunks::<BLOCK>().1;
        let count = if rest.len() + 1 + LENGTH <= BLOCK { 1 } else { 2 };
        let mut blocks = [[0; BLOCK]; 2];
        let bytes = blocks.as_flattened_mut();
        bytes[..rest.len()].copy_from_slice(rest);
        bytes[rest.len()] = 0x80;
        let bits = (message.len() as u64) << 3;
        bytes[count * BLOCK - LENGTH..count * BLOCK].copy_from_slice(&bits.to_be_bytes());
        Self { blocks, count }
    }

    fn blocks(&self) -> &[[u8; BLOCK]] {
        &self.blocks[..self.count]
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod avx512 {
    use super::{BLOCK, LANES};

    pub(super) fn is_here() -> bool {
        false
    }

    pub(super) fn compress(_: &mut [[u32; LANES]; 8], _: &[&[[u8; BLOCK]]; LANES]) {}
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{BLOCK, LANES};

    #[rustfmt::skip]
    const ROUND: [u32; 64] = [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
        0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
        0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
        0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ];

    /// Whether the processor can.
    pub(super) fn is_here() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
    }

    /// Takes the blocks of each lane into its state; as many as the first lane has.
    ///
    /// # Panics
    /// When a lane has fewer blocks than the first, or the processor cannot.
    pub(super) fn compress(state: &mut [[u32; LANES]; 8], lanes: &[&[[u8; BLOCK]]; LANES]) {
        assert!(is_here());
        // SAFETY: the processor has the instructions that the function is compiled with.
        unsafe { compress_here(state, lanes) }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn compress_here(state: &mut [[u32; LANES]; 8], lanes: &[&[[u8; BLOCK]]; LANES]) {
        // Loops, since a closure that is handed to `map` would be compiled without these instructions.
        let mut sum = [_mm512_setzero_si512(); 8];
        for (sum, words) in sum.iter_mut().zip(state.iter()) {
            *sum = load(words);
        }
        for at in 0..lanes[0].len() {
            let mut words = [_mm512_setzero_si512(); 16];
            for (words, blocks) in words.iter_mut().zip(lanes) {
                *words = big_endian(&blocks[at]);
            }
            let new = rounds(sum, transpose(words));
            for (sum, new) in sum.iter_mut().zip(new) {
                *sum = _mm512_add_epi32(*sum, new);
            }
        }
        for (words, sum) in state.iter_mut().zip(sum) {
            // SAFETY: `words` has the 64 bytes that are written, and the instruction asks for no alignment.
            unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), sum) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(words: &[u32; LANES]) -> __m512i {
        // SAFETY: `words` has the 64 bytes that are read, and the instruction asks for no alignment.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    /// The words of a block, which are written with the highest byte first.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn big_endian(block: &[u8; BLOCK]) -> __m512i {
        let order = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        // SAFETY: `block` has the 64 bytes that are read, and the instruction asks for no alignment.
        let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order))
    }

    /// Sixteen words of each of sixteen lanes: first by lane, then by word.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose(mut w: [__m512i; 16]) -> [__m512i; 16] {
        let mut t = w;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(w[2 * i], w[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(w[2 * i], w[2 * i + 1]);
        }
        for i in (0..16).step_by(4) {
            w[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            w[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            w[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            w[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        for i in 0..4 {
            t[i] = _mm512_shuffle_i32x4::<0x88>(w[i], w[4 + i]);
            t[4 + i] = _mm512_shuffle_i32x4::<0xdd>(w[i], w[4 + i]);
            t[8 + i] = _mm512_shuffle_i32x4::<0x88>(w[8 + i], w[12 + i]);
            t[12 + i] = _mm512_shuffle_i32x4::<0xdd>(w[8 + i], w[12 + i]);
        }
        for i in 0..8 {
            w[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[8 + i]);
            w[8 + i] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[8 + i]);
        }
        w
    }

    /// The 64 rounds of FIPS 180-4, whose names for the variables these are.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn rounds(state: [__m512i; 8], mut w: [__m512i; 16]) -> [__m512i; 8] {
        // Truth tables of three inputs: exclusive or, choice, majority.
        const XOR: i32 = 0x96;
        const CHOICE: i32 = 0xca;
        const MAJORITY: i32 = 0xe8;
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = state;
        for (t, constant) in ROUND.into_iter().enumerate() {
            if t >= 16 {
                let (w15, w2) = (w[(t + 1) % 16], w[(t + 14) % 16]);
                let s0 = _mm512_ternarylogic_epi32::<XOR>(
                    _mm512_ror_epi32::<7>(w15),
                    _mm512_ror_epi32::<18>(w15),
                    _mm512_srli_epi32::<3>(w15),
                );
                let s1 = _mm512_ternarylogic_epi32::<XOR>(
                    _mm512_ror_epi32::<17>(w2),
                    _mm512_ror_epi32::<19>(w2),
                    _mm512_srli_epi32::<10>(w2),
                );
                let rest = _mm512_add_epi32(w[(t + 9) % 16], s1);
                w[t % 16] = _mm512_add_epi32(_mm512_add_epi32(w[t % 16], s0), rest);
            }
            let s1 = _mm512_ternarylogic_epi32::<XOR>(
                _mm512_ror_epi32::<6>(e),
                _mm512_ror_epi32::<11>(e),
                _mm512_ror_epi32::<25>(e),
            );
            let choice = _mm512_ternarylogic_epi32::<CHOICE>(e, f, g);
            let known = _mm512_add_epi32(w[t % 16], _mm512_set1_epi32(constant.cast_signed()));
            let t1 = _mm512_add_epi32(_mm512_add_epi32(h, known), _mm512_add_epi32(s1, choice));
            let s0 = _mm512_ternarylogic_epi32::<XOR>(
                _mm512_ror_epi32::<2>(a),
                _mm512_ror_epi32::<13>(a),
                _mm512_ror_epi32::<22>(a),
            );
            let t2 = _mm512_add_epi32(s0, _mm512_ternarylogic_epi32::<MAJORITY>(a, b, c));
            (h, g, f, e) = (g, f, e, _mm512_add_epi32(d, t1));
            (d, c, b, a) = (c, b, a, _mm512_add_epi32(t1, t2));
        }
        [a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// The digests where the processor can, else those of the reference: nothing is tested there.
    fn digests(messages: &[&[u8]]) -> Vec<[u8; 32]> {
        let reference = || messages.iter().map(|m| Sha256::digest(m).into()).collect();
        sha256_lanes(messages).unwrap_or_else(reference)
    }

    #[test]
    fn every_lane_has_the_digest_of_its_message_whatever_the_length() {
        for len in (0..200).chain([262_144, 262_158]) {
            // No two lanes alike, and no two blocks of a lane.
            let message = |lane| (lane..251).cycle().take(len).collect();
            let messages: Vec<Vec<u8>> = (0..16).map(message).collect();
            for count in [1, 9, LANES] {
                let messages: Vec<&[u8]> = messages[..count].iter().map(Vec::as_slice).collect();
                for (digest, message) in digests(&messages).iter().zip(&messages) {
                    assert_eq!(digest[..], Sha256::digest(message)[..], "{count} of {len} bytes");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_side_by_side_is_left_to_the_caller() {
        assert_eq!(sha256_lanes(&[]), None);
        assert_eq!(sha256_lanes(&[b"ab", b"a"]), None);
        assert_eq!(sha256_lanes(&[&b"a"[..]; LANES + 1]), None);
    }
}
