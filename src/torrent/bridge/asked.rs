//! What the session has asked a bridge for: data and pure functions.
//!
//! Chunks of 16 KiB that follow each other become one read: whoever is asked over the network should be asked for much
//! at a time.

use std::collections::{BTreeMap, VecDeque};

use crate::{content::ByteRange, torrent::wire::Chunk};

/// Bytes of one read at most. Four of them are what librqbit asks one peer for at a time.
pub(super) const RUN: u64 = 512 << 10;

/// Names a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(pub(super) u64);

#[derive(Debug, Default)]
pub(super) struct Asked {
    /// In the order in which they came, with their bytes of the torrent.
    waiting: VecDeque<(Chunk, ByteRange)>,
    /// What each read that runs is still to bring.
    reading: BTreeMap<Number, Vec<(Chunk, ByteRange)>>,
    next: u64,
}

impl Asked {
    /// Asks for a chunk that has these bytes of the torrent, unless it is asked for already.
    pub(super) fn add(&mut self, chunk: Chunk, bytes: ByteRange) {
        let mut all = self.waiting.iter().chain(self.reading.values().flatten());
        if !all.any(|(known, _)| *known == chunk) {
            self.waiting.push_back((chunk, bytes));
        }
    }

    /// Takes a chunk back; the read that has nothing left to bring.
    pub(super) fn cancel(&mut self, chunk: Chunk) -> Option<Number> {
        self.waiting.retain(|(known, _)| *known != chunk);
        for (number, left) in &mut self.reading {
            let before = left.len();
            left.retain(|(known, _)| *known != chunk);
            if left.is_empty() && before > 0 {
                return Some(*number);
            }
        }
        None
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The next read. `quiet`: nothing more is about to be asked for, else the last one may still grow.
    pub(super) fn next(&mut self, quiet: bool) -> Option<(Number, ByteRange)> {
        let (_, first) = self.waiting.front()?;
        let mut bytes = *first;
        let mut count = 0;
        for (_, next) in &self.waiting {
            let follows = count == 0 || next.start == bytes.end;
            if !follows || next.end - bytes.start > RUN.max(first.len()) {
                break;
            }
            bytes.end = next.end;
            count += 1;
        }
        if count == self.waiting.len() && bytes.len() < RUN && !quiet {
            return None;
        }
        self.next += 1;
        let number = Number(self.next);
        self.reading.insert(number, self.waiting.drain(..count).collect());
        Some((number, bytes))
    }

    /// A read has ended: what it was to bring and is still wanted.
    pub(super) fn ended(&mut self, number: Number) -> Vec<(Chunk, ByteRange)> {
        self.reading.remove(&number).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const LEN: u32 = 16 << 10;

    /// Chunk `at` of a torrent with pieces of four.
    fn add(asked: &mut Asked, at: u32) -> Chunk {
        let chunk = Chunk { piece: at / 4, begin: at % 4 * LEN, len: LEN };
        asked.add(chunk, ByteRange::at(u64::from(at * LEN), LEN.into()));
        chunk
    }

    fn chunks(read: Option<(Number, ByteRange)>) -> Option<(u64, u64)> {
        read.map(|(_, bytes)| (bytes.start / u64::from(LEN), bytes.end / u64::from(LEN)))
    }

    #[test]
    fn chunks_that_follow_each_other_are_one_read_and_the_last_waits_for_more() {
        let mut asked = Asked::default();
        for at in [3, 4, 5, 9, 10] {
            add(&mut asked, at);
        }
        assert_eq!(chunks(asked.next(false)), Some((3, 6)));
        assert_eq!(asked.next(false), None);
        add(&mut asked, 11);
        assert_eq!(chunks(asked.next(true)), Some((9, 12)));
        assert_eq!(asked.next(true), None);
        for at in 100..140 {
            add(&mut asked, at);
        }
        assert_eq!(chunks(asked.next(false)), Some((100, 132)), "as long as a read may be");
        assert_eq!(chunks(asked.next(true)), Some((132, 140)));
    }

    #[test]
    fn nothing_is_read_twice_and_what_is_taken_back_not_at_all() {
        let mut asked = Asked::default();
        let taken_back = add(&mut asked, 0);
        let (first, second) = (add(&mut asked, 1), add(&mut asked, 2));
        assert_eq!(asked.cancel(taken_back), None);
        let (number, _) = asked.next(true).unwrap();
        add(&mut asked, 1);
        assert_eq!(asked.waiting(), 0);
        assert_eq!(asked.cancel(first), None);
        assert_eq!(asked.reading[&number].len(), 1);
        assert_eq!(asked.cancel(second), Some(number), "nobody waits for the read any more");
        assert_eq!(asked.ended(number), []);
        add(&mut asked, 1);
        assert_eq!(asked.waiting(), 1);
    }
}
