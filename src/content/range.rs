//! Half-open ranges of bytes and sets of them.

use std::{fmt, ops::Range};

/// A half-open range of bytes: `start` is in it, `end` is not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; never below `start`.
    pub end: u64,
}

impl ByteRange {
    /// `start..end`; empty when `end` lies before `start`.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// `len` bytes from `start` on, cut off at the largest offset.
    pub fn at(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes that are in both.
    pub fn intersect(&self, other: ByteRange) -> ByteRange {
        let start = self.start.max(other.start);
        Self::new(start, self.end.min(other.end))
    }

    /// Whether every byte of `other` is in this range.
    pub fn contains(&self, other: ByteRange) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }
}

impl From<Range<u64>> for ByteRange {
    fn from(range: Range<u64>) -> Self {
        Self::new(range.start, range.end)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A set of bytes as sorted, disjoint, non-touching, non-empty ranges.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RangeSet(Vec<ByteRange>);

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.0.iter().copied()
    }

    /// How many ranges there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// How many bytes are in the set.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(ByteRange::len).sum()
    }

    /// Whether every byte of `range` is in the set.
    pub fn contains(&self, range: ByteRange) -> bool {
        if range.is_empty() {
            return true;
        }
        let at = self.0.partition_point(|r| r.end <= range.start);
        self.0.get(at).is_some_and(|r| r.contains(range))
    }

    /// Adds every byte of `range`.
    pub fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|r| r.end < range.start);
        let to = self.0.partition_point(|r| r.start <= range.end);
        let mut merged = range;
        if let (Some(first), Some(last)) = (self.0.get(from), to.checked_sub(1).map(|i| self.0[i]))
            && from < to
        {
            merged = ByteRange::new(range.start.min(first.start), range.end.max(last.end));
        }
        self.0.splice(from..to, [merged]);
    }

    /// Takes every byte of `range` out.
    pub fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|r| r.end <= range.start);
        let to = self.0.partition_point(|r| r.start < range.end);
        let mut kept = Vec::with_capacity(2);
        if from < to {
            kept.push(ByteRange::new(self.0[from].start, range.start));
            kept.push(ByteRange::new(range.end, self.0[to - 1].end));
            kept.retain(|r| !r.is_empty());
        }
        self.0.splice(from..to, kept);
    }

    /// The parts of `range` that are not in the set, in order.
    pub fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        let first = self.0.partition_point(|r| r.end <= range.start);
        for have in self.0[first..].iter().take_while(|r| r.start < range.end) {
            if have.start > at {
                gaps.push(ByteRange::new(at, have.start));
            }
            at = have.end;
        }
        if at < range.end {
            gaps.push(ByteRange::new(at, range.end));
        }
        gaps
    }
}

impl FromIterator<ByteRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = ByteRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_bytes(ops in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..20), 0..40)) {
            let mut set = RangeSet::new();
            let mut model = [false; 96];
            for (add, start, len) in ops {
                let range = ByteRange::at(start, len);
                if add { set.insert(range) } else { set.remove(range) }
                for byte in start..start + len {
                    model[usize::try_from(byte).unwrap()] = add;
                }
            }
            prop_assert_eq!(set.bytes(), model.iter().filter(|have| **have).count() as u64);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.iter().all(|r| !r.is_empty()));
            prop_assert!(ranges.windows(2).all(|w| w[0].end < w[1].start));
            for byte in 0..96u64 {
                prop_assert_eq!(set.contains(ByteRange::at(byte, 1)), model[usize::try_from(byte).unwrap()]);
            }
            let gaps: RangeSet = set.missing(ByteRange::new(0, 96)).into_iter().collect();
            prop_assert_eq!(gaps.bytes() + set.bytes(), 96);
        }
    }
}
