//! Where a name belongs in a HAMT directory.

/// Bits of the hash of a name; a HAMT cannot tell names apart that agree in all of them.
const HASH_BITS: u32 = 64;

/// The hash of a name: the first half of murmur3-x64-128, used up from the most significant bit down.
pub(super) fn hash(mut name: &[u8]) -> u64 {
    // Reading from memory cannot fail. The first half of the digest is the low half of this number.
    let digest = murmur3::murmur3_x64_128(&mut name, 0).unwrap_or_default();
    u64::try_from(digest & u128::from(u64::MAX)).unwrap_or_default()
}

/// Bits of the hash that choose the slot in a shard of this width.
fn slot_bits(fanout: u32) -> u32 {
    fanout.trailing_zeros()
}

/// The slot of a hash in a shard that lies `depth` shards below the root one; none when the hash is used up.
pub(super) fn slot(hash: u64, depth: u32, fanout: u32) -> Option<u32> {
    let bits = slot_bits(fanout);
    let used = (depth + 1).checked_mul(bits).filter(|used| *used <= HASH_BITS)?;
    let slot = (hash >> (HASH_BITS - used)) & u64::from(fanout - 1);
    u32::try_from(slot).ok()
}

/// Whether `hash` leads through the slots of `path`, a hash of which the bits for `depth` shards count.
pub(super) fn is_below(hash: u64, path: u64, depth: u32, fanout: u32) -> bool {
    let used = depth * slot_bits(fanout);
    used == 0 || (hash ^ path) >> (HASH_BITS - used) == 0
}

/// `path` with the slot at `depth` filled in.
pub(super) fn descend(path: u64, depth: u32, slot: u32, fanout: u32) -> Option<u64> {
    let used = (depth + 1).checked_mul(slot_bits(fanout)).filter(|used| *used <= HASH_BITS)?;
    Some(path | u64::from(slot) << (HASH_BITS - used))
}
