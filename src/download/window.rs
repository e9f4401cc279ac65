//! What the readers of one file are about to read.

use std::{collections::HashMap, time::Duration};

use super::ReaderId;
use crate::content::ByteRange;

/// Read ahead of the first read of a sequential pattern: 1 MiB and what the kernel reads ahead by itself.
const FIRST_AHEAD: u64 = (1 << 20) + (128 << 10);
/// Least full window, whatever the reader's rate.
const FULL_AHEAD: u64 = 8 << 20;
/// Most bytes ahead: what is in flight at most over all downloads.
const MOST_AHEAD: u64 = 128 << 20;
/// A full window holds this much of the reader's time.
const AHEAD_TIME: f64 = 2.0;
/// Reads of one sequential reader arrive out of order, and a player skips a little: that is no seek.
const SLACK: u64 = 2 << 20;
/// Rate that a reader is credited with before its own is known, bytes per second.
const FIRST_RATE: f64 = 8e6;
/// Weight of a new rate.
const RATE_WEIGHT: f64 = 0.25;
/// Readers that are remembered; the kernel closes each, this only bounds what a caller forgets.
const MOST_READERS: usize = 4096;

/// One reader.
#[derive(Clone, Debug)]
struct Window {
    /// Start of the furthest read.
    at: u64,
    /// Where a sequential reader goes on.
    next: u64,
    /// Bytes ahead of `next` that are wanted; 0 until a sequential pattern shows.
    ahead: u64,
    /// Bytes that were read in sequence since `ahead` last grew.
    run: u64,
    /// Bytes per second of this reader.
    rate: Option<f64>,
    /// When and where the running rate sample began.
    sample: (Duration, u64),
    /// Up to where wants were made for it.
    planned: u64,
    /// When it last read.
    last: Duration,
}

/// A part of the file that somebody is about to read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ahead {
    /// Which bytes.
    pub(super) range: ByteRange,
    /// Where the reader is: the byte that is needed first.
    pub(super) at: u64,
    /// How fast it reads, bytes per second.
    pub(super) rate: f64,
}

/// The windows of all readers of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Windows {
    readers: HashMap<ReaderId, Window>,
    sought: bool,
}

impl Windows {
    /// Counts a read of `range`; whether enough of the window is free that it is worth planning again.
    pub(super) fn read(&mut self, now: Duration, reader: ReaderId, range: ByteRange) -> bool {
        if self.readers.len() >= MOST_READERS
            && !self.readers.contains_key(&reader)
            && let Some(oldest) = self.readers.iter().min_by_key(|(_, w)| w.last).map(|(id, _)| *id)
        {
            self.readers.remove(&oldest);
        }
        let window = self.readers.entry(reader).or_insert_with(|| Window::new(now, range));
        self.sought |= window.read(now, range);
        window.free() >= (window.ahead / 4).max(1)
    }

    /// Forgets a reader.
    pub(super) fn close(&mut self, reader: ReaderId) {
        self.readers.remove(&reader);
    }

    /// What is to be planned now: what each window lacks. It counts as planned from then on.
    pub(super) fn plan(&mut self, size: u64) -> Vec<Ahead> {
        self.readers.values_mut().filter_map(|window| window.plan(size)).collect()
    }

    /// All that the windows cover, planned or not; what lies outside is not worth asking for any more.
    pub(super) fn covered(&self, size: u64) -> Vec<ByteRange> {
        self.readers
            .values()
            .map(|w| ByteRange::new(w.at.saturating_sub(SLACK).min(size), w.end().min(size)))
            .collect()
    }

    /// Makes the next [`Windows::plan`] go over the windows from their start again: more of the tree is known, or
    /// something failed.
    pub(super) fn replan(&mut self) {
        self.readers.values_mut().for_each(|window| window.planned = window.at);
    }

    /// Whether a reader left its window since the last call, so that what was planned there may be for nothing.
    pub(super) fn take_sought(&mut self) -> bool {
        std::mem::take(&mut self.sought)
    }
}

impl Window {
    fn new(now: Duration, first: ByteRange) -> Self {
        Self {
            at: first.start,
            next: first.start,
            ahead: 0,
            // A file that is read from its start is most likely read on; any other first read may be a lookup.
            run: u64::from(first.start == 0),
            rate: None,
            sample: (now, first.start),
            planned: first.start,
            last: now,
        }
    }

    fn end(&self) -> u64 {
        self.next.saturating_add(self.ahead)
    }

    fn free(&self) -> u64 {
        self.end().saturating_sub(self.planned)
    }

    /// Whether this was a seek.
    fn read(&mut self, now: Duration, range: ByteRange) -> bool {
        let goes_on = range.start <= self.next.saturating_add(SLACK.min(self.ahead))
            && range.end.saturating_add(SLACK.min(self.ahead)) >= self.next;
        self.last = now;
        if !goes_on {
            // A seek: the rate of the reader stays, its window starts again.
            let rate = self.rate;
            *self = Self { rate, run: 0, ..Self::new(now, range) };
            self.next = range.end;
            return true;
        }
        let grown = range.end.saturating_sub(self.next);
        let sequential = self.run > 0 || (range.start == self.next && range.start != self.at);
        self.at = self.at.max(range.start);
        self.next = self.next.max(range.end);
        self.measure(now);
        if !sequential {
            return false;
        }
        self.run = self.run.saturating_add(grown.max(1));
        if self.ahead == 0 {
            self.ahead = FIRST_AHEAD;
            self.run = 1;
        } else if self.run > self.ahead / 2 {
            let most = (self.rate.unwrap_or(0.0) * AHEAD_TIME) as u64;
            self.ahead = (self.ahead * 2).min(most.clamp(FULL_AHEAD, MOST_AHEAD));
            self.run = 1;
        }
        false
    }

    fn measure(&mut self, now: Duration) {
        let (since, from) = self.sample;
        let time = now.saturating_sub(since).as_secs_f64();
        if time < 0.1 {
            return;
        }
        let rate = self.next.saturating_sub(from) as f64 / time;
        self.rate = Some(self.rate.map_or(rate, |old| old + RATE_WEIGHT * (rate - old)));
        self.sample = (now, self.next);
    }

    fn plan(&mut self, size: u64) -> Option<Ahead> {
        let range =
            ByteRange::new(self.planned.max(self.at), self.end()).intersect((0..size).into());
        self.planned = self.planned.max(range.end);
        let rate = self.rate.unwrap_or(FIRST_RATE).max(1e6);
        (!range.is_empty()).then_some(Ahead { range, at: self.at, rate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;
    const READER: ReaderId = ReaderId(1);

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_small_read_in_the_middle_wants_its_own_bytes_only() {
        let mut windows = Windows::default();
        for (n, start) in [7 << 20, 900 << 20, 300 << 20, 12 << 20].into_iter().enumerate() {
            assert!(windows.read(at(n as f64), READER, ByteRange::at(start, 4096)));
            let plan = windows.plan(SIZE);
            assert_eq!(plan.len(), 1);
            assert_eq!(plan[0].range, ByteRange::at(start, 4096));
        }
    }

    #[test]
    fn a_read_from_the_start_has_a_small_window_that_grows_with_the_run() {
        let mut windows = Windows::default();
        let mut ends = Vec::new();
        for n in 0..512u64 {
            windows.read(at(n as f64 * 0.001), READER, ByteRange::at(n << 17, 1 << 17));
            ends.extend(windows.plan(SIZE).first().map(|a| a.range.end - (n << 17)));
        }
        assert_eq!(ends[0], FIRST_AHEAD + (1 << 17));
        assert!(ends.iter().any(|end| *end >= 64 << 20), "131 MB/s for 2 s: {ends:?}");
        assert!(ends.iter().all(|end| *end <= MOST_AHEAD + (1 << 17)));
    }

    #[test]
    fn the_second_read_of_a_run_in_the_middle_starts_reading_ahead() {
        let mut windows = Windows::default();
        windows.read(at(0.0), READER, ByteRange::at(50 << 20, 4096));
        windows.plan(SIZE);
        windows.read(at(0.1), READER, ByteRange::at((50 << 20) + 4096, 4096));
        assert_eq!(windows.plan(SIZE)[0].range.end, (50 << 20) + 8192 + FIRST_AHEAD);
    }

    #[test]
    fn a_seek_starts_a_new_small_window() {
        let mut windows = Windows::default();
        for n in 0..256u64 {
            windows.read(at(n as f64 * 0.001), READER, ByteRange::at(n << 17, 1 << 17));
        }
        windows.plan(SIZE);
        windows.read(at(1.0), READER, ByteRange::at(700 << 20, 1 << 17));
        assert_eq!(windows.plan(SIZE)[0].range, ByteRange::at(700 << 20, 1 << 17));
        assert!(windows.covered(SIZE).iter().all(|r| r.start >= 698 << 20));
    }

    #[test]
    fn a_window_ends_at_the_end_of_the_file_and_goes_with_its_reader() {
        let mut windows = Windows::default();
        windows.read(at(0.0), READER, ByteRange::at(0, 4096));
        assert_eq!(windows.plan(10_000)[0].range, ByteRange::new(0, 10_000));
        windows.close(READER);
        assert_eq!(windows.covered(10_000), []);
    }
}
