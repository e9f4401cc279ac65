//! Where keys and peers lie in a DHT.

use libp2p::{PeerId, kad::KBucketKey};

/// The place of a key or of a peer: the hash of its name. Two are as far apart as their XOR says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::net) struct Id {
    high: u128,
    low: u128,
}

impl Id {
    pub(super) const FIRST: Self = Self { high: 0, low: 0 };

    /// The place of a key.
    pub(super) fn of_key(key: &[u8]) -> Self {
        let place = KBucketKey::new(key);
        let (words, _) = place.hashed_bytes().as_chunks::<16>();
        let mut words = words.iter().map(|word| u128::from_be_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        Self { high: next(), low: next() }
    }

    /// The place of a peer.
    pub(super) fn of_peer(peer: PeerId) -> Self {
        Self::of_key(&peer.to_bytes())
    }

    /// The first 64 bits: no DHT is so large that two of its nodes share more.
    pub(super) fn top(self) -> u64 {
        // The upper half of 128 bits has 64.
        u64::try_from(self.high >> 64).unwrap_or_default()
    }

    /// How far `other` is away; also leads from one to the other.
    pub(super) fn xor(self, other: Self) -> Self {
        Self { high: self.high ^ other.high, low: self.low ^ other.low }
    }

    /// The place after this one.
    pub(super) fn next(self) -> Option<Self> {
        match self.low.checked_add(1) {
            Some(low) => Some(Self { low, ..self }),
            None => Some(Self { high: self.high.checked_add(1)?, low: 0 }),
        }
    }

    #[cfg(test)]
    pub(super) fn of_top(top: u64) -> Self {
        Self { high: u128::from(top) << 64, low: 0 }
    }
}

/// All places that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    /// Zero behind the first `len` bits.
    bits: u64,
    len: u8,
}

/// The first `len` bits set.
fn mask(len: u8) -> u64 {
    u64::MAX.checked_shl(64 - u32::from(len)).unwrap_or(0)
}

impl Prefix {
    /// Bits that a prefix may have.
    pub(super) const MAX_LEN: u8 = 64;
    /// The whole space.
    pub(super) const ROOT: Self = Self { bits: 0, len: 0 };

    /// The first `len` bits of a place.
    pub(super) fn of(id: Id, len: u8) -> Self {
        let len = len.min(Self::MAX_LEN);
        Self { bits: id.top() & mask(len), len }
    }

    pub(super) fn len(self) -> u8 {
        self.len
    }

    pub(super) fn contains(self, id: Id) -> bool {
        id.top() & mask(self.len) == self.bits
    }

    /// Whether all of `other` lies in it.
    pub(super) fn covers(self, other: Self) -> bool {
        self.len <= other.len && other.bits & mask(self.len) == self.bits
    }

    /// Its halves, that of `id` first, which need not lie in it; none where it has as many bits as it may have.
    pub(super) fn halves(self, id: Id) -> Option<[Self; 2]> {
        if self.len >= Self::MAX_LEN {
            return None;
        }
        let bit = 1 << (63 - self.len);
        let (left, right) = (
            Self { bits: self.bits, len: self.len + 1 },
            Self { bits: self.bits | bit, len: self.len + 1 },
        );
        Some(if id.top() & bit == 0 { [left, right] } else { [right, left] })
    }

    /// Its first place.
    pub(super) fn first(self) -> Id {
        Id { high: u128::from(self.bits) << 64, low: 0 }
    }

    /// Its last place.
    pub(super) fn last(self) -> Id {
        let top = u128::from(self.bits | !mask(self.len));
        Id { high: top << 64 | u128::from(u64::MAX), low: u128::MAX }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn places_are_those_of_the_dht_and_prefixes_split_the_space() {
        let (peer, key) = (PeerId::random(), b"key".to_vec());
        let place = |id: Id| [id.high.to_be_bytes(), id.low.to_be_bytes()].concat();
        assert_eq!(place(Id::of_peer(peer)), KBucketKey::from(peer).hashed_bytes());
        assert_eq!(place(Id::of_key(&key)), KBucketKey::from(key.clone()).hashed_bytes());

        let id = Id::of_key(&key);
        let mut prefix = Prefix::ROOT;
        while let Some([near, far]) = prefix.halves(id) {
            assert!(near.contains(id) && !far.contains(id));
            assert!(prefix.covers(near) && prefix.covers(far) && !near.covers(prefix));
            let (low, high) = if near.first() < far.first() { (near, far) } else { (far, near) };
            assert_eq!((low.first(), high.last()), (prefix.first(), prefix.last()));
            assert_eq!(low.last().next(), Some(high.first()));
            assert_eq!(near, Prefix::of(id, near.len()));
            prefix = near;
        }
        assert_eq!(prefix.len(), Prefix::MAX_LEN);
        assert_eq!(Prefix::ROOT.last().next(), None);
    }
}
