//! One open file: its tree, its object in the store, its readers. Shared by the handles and the actor of its root.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{DownloadError, window::Windows};
use crate::{
    content::{ByteRange, ContentId, FileLayout},
    store::Object,
};

/// A read that waits for bytes.
#[derive(Debug)]
struct Waiter {
    number: u64,
    range: ByteRange,
    /// Whether its blocks were asked for.
    planned: bool,
    answer: oneshot::Sender<Result<(), DownloadError>>,
}

/// Windows and waiting reads.
#[derive(Debug, Default)]
pub(super) struct Readers {
    pub(super) windows: Windows,
    waiters: Vec<Waiter>,
    next: u64,
}

impl Readers {
    /// Ranges of waiting reads whose blocks were not asked for yet; they count as asked for from then on.
    pub(super) fn take_waiting(&mut self) -> Vec<ByteRange> {
        let fresh = self.waiters.iter_mut().filter(|waiter| !waiter.planned);
        fresh
            .map(|waiter| {
                waiter.planned = true;
                waiter.range
            })
            .collect()
    }

    /// All ranges that reads wait for.
    pub(super) fn waiting(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.waiters.iter().map(|waiter| waiter.range)
    }

    /// Everything has to be planned again.
    pub(super) fn replan(&mut self) {
        self.windows.replan();
        self.waiters.iter_mut().for_each(|waiter| waiter.planned = false);
    }
}

/// What happened to a file lately, in milliseconds since the start of the engine.
#[derive(Debug, Default)]
pub(super) struct Progress {
    last: AtomicU64,
    blocks: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    /// A block of `len` bytes arrived.
    pub(super) fn count(&self, now: Duration, len: u64) {
        self.bytes.fetch_add(len, Ordering::Relaxed);
        self.last.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.blocks.fetch_add(1, Ordering::Relaxed);
    }

    /// When the last block arrived.
    pub(super) fn last(&self) -> Duration {
        Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Whether anything arrived at all.
    pub(super) fn any(&self) -> bool {
        self.blocks.load(Ordering::Relaxed) > 0
    }
}

/// Bytes that other readers may have asked for just before a read, besides what was under way: a full window.
const OTHERS: u64 = 8 << 20;

/// How long somebody waits for bytes: until nothing has come any nearer for a while.
///
/// What is waited for is asked for before everything else, so that it comes nearer with each byte that was under way
/// before it: behind a busy download on a slow line the wait goes on. Once more than that has come without it, it was
/// passed over, and only bytes of its own count: a block that nobody has must not keep its reader waiting until the
/// rest of the file is here.
#[derive(Debug)]
pub(super) struct Patience {
    timeout: Duration,
    /// When it last came nearer.
    last: Duration,
    /// Bytes that had come in all when whatever was asked for before it had.
    turn: u64,
}

impl Patience {
    /// Begins to wait `now`, when `under_way` bytes were asked for and not here.
    pub(super) fn new(
        progress: &Progress,
        now: Duration,
        under_way: u64,
        timeout: Duration,
    ) -> Self {
        let turn = progress.bytes.load(Ordering::Relaxed).saturating_add(under_way + OTHERS);
        Self { timeout, last: now, turn }
    }

    /// When the wait is over, unless something comes until then.
    pub(super) fn limit(&mut self, progress: &Progress) -> Duration {
        if progress.bytes.load(Ordering::Relaxed) <= self.turn {
            self.last = self.last.max(progress.last());
        }
        self.last + self.timeout
    }

    /// Some of what is waited for came.
    pub(super) fn came(&mut self, progress: &Progress) {
        self.last = self.last.max(progress.last());
        self.turn = self.turn.max(progress.bytes.load(Ordering::Relaxed).saturating_add(OTHERS));
    }
}

/// For this long a read that touches bytes for which another one waited in vain fails without waiting: where the
/// kernel reads ahead and gets an error, it asks for the page alone once more, and its reader would wait twice.
const FAILURE_HOLDS: Duration = Duration::from_secs(1);
/// Failures that are remembered; the kernel has a few reads under way at a time.
const MOST_FAILURES: usize = 16;

/// A read that waited in vain.
#[derive(Debug)]
struct Failure {
    at: Duration,
    range: ByteRange,
    /// Bytes of the range that were not here.
    missing: u64,
    error: DownloadError,
}

/// One file that somebody has open.
///
/// Lock order: `layout` before `readers`, `failures` by itself; none is held over a call that waits.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) root: ContentId,
    pub(super) id: ContentId,
    pub(super) object: Arc<Object>,
    layout: Mutex<FileLayout>,
    readers: Mutex<Readers>,
    failures: Mutex<VecDeque<Failure>>,
    pub(super) progress: Progress,
    /// Handles that are open.
    pub(super) handles: AtomicUsize,
    /// Whether the actor was told to look at this file and has not yet: at most one message is on its way.
    pub(super) nudged: AtomicBool,
}

/// A read's place among the waiting ones; dropping it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    file: &'a OpenFile,
    number: u64,
    pub(super) answer: oneshot::Receiver<Result<(), DownloadError>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.file.readers().waiters.retain(|waiter| waiter.number != self.number);
    }
}

impl OpenFile {
    pub(super) fn new(
        root: ContentId,
        id: ContentId,
        layout: FileLayout,
        object: Arc<Object>,
    ) -> Self {
        Self {
            root,
            id,
            object,
            layout: Mutex::new(layout),
            readers: Mutex::default(),
            failures: Mutex::default(),
            progress: Progress::default(),
            handles: AtomicUsize::new(0),
            nudged: AtomicBool::new(false),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.object.size()
    }

    pub(super) fn layout(&self) -> MutexGuard<'_, FileLayout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines a read up.
    pub(super) fn wait(&self, range: ByteRange) -> Waiting<'_> {
        let (sender, answer) = oneshot::channel();
        let mut readers = self.readers();
        let number = readers.next;
        readers.next += 1;
        readers.waiters.push(Waiter { number, range, planned: false, answer: sender });
        Waiting { file: self, number, answer }
    }

    /// Wakes the reads whose bytes are here.
    pub(super) fn wake(&self) {
        self.answer(|range| self.object.has(range).then_some(Ok(())));
    }

    /// Ends the reads that touch `range` with an error.
    pub(super) fn fail(&self, range: ByteRange, error: &DownloadError) {
        self.answer(|waiting| (!waiting.intersect(range).is_empty()).then(|| Err(error.clone())));
    }

    fn answer(&self, answer: impl Fn(ByteRange) -> Option<Result<(), DownloadError>>) {
        let mut readers = self.readers();
        let mut at = 0;
        while let Some(waiter) = readers.waiters.get(at) {
            match answer(waiter.range) {
                // The reader may be gone by now; then nobody minds.
                Some(result) => drop(readers.waiters.swap_remove(at).answer.send(result)),
                None => at += 1,
            }
        }
    }

    /// Bytes of `range` that are not here.
    pub(super) fn missing(&self, range: ByteRange) -> u64 {
        self.object.present().missing(range).iter().map(ByteRange::len).sum()
    }

    /// A read of `range` waited in vain until `now`.
    pub(super) fn failed(&self, now: Duration, range: ByteRange, error: &DownloadError) {
        let missing = self.missing(range);
        let mut failures = self.failures();
        if failures.len() >= MOST_FAILURES {
            failures.pop_front();
        }
        failures.push_back(Failure { at: now, range, missing, error: error.clone() });
    }

    /// The error of a read of `range` that would wait for what another has just waited for in vain.
    pub(super) fn failed_lately(&self, now: Duration, range: ByteRange) -> Option<DownloadError> {
        let mut failures = self.failures();
        failures.retain(|failure| now < failure.at + FAILURE_HOLDS);
        let same = |failure: &&Failure| {
            let common = failure.range.intersect(range);
            !common.is_empty()
                && !self.object.has(common)
                && self.missing(failure.range) == failure.missing
        };
        failures.iter().find(same).map(|failure| failure.error.clone())
    }

    fn failures(&self) -> MutexGuard<'_, VecDeque<Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody has it open.
    pub(super) fn is_idle(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn who_waits_behind_others_waits_on_while_their_bytes_come() {
        let progress = Progress::default();
        let mut patience = Patience::new(&progress, at(100), 20 * MIB, at(30));
        assert_eq!(patience.limit(&progress), at(130));
        for second in 101..=120 {
            progress.count(at(second), MIB);
            assert_eq!(patience.limit(&progress), at(second + 30));
        }
    }

    #[test]
    fn who_was_passed_over_waits_for_bytes_of_its_own_only() {
        let progress = Progress::default();
        let mut patience = Patience::new(&progress, at(100), 20 * MIB, at(30));
        for second in 101..200 {
            progress.count(at(second), MIB);
            patience.limit(&progress);
        }
        assert_eq!(patience.limit(&progress), at(128 + 30), "28 MiB were its due");
        patience.came(&progress);
        assert_eq!(patience.limit(&progress), at(199 + 30));
    }
}
