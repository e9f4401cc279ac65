//! One open file: its tree, its object in the store, its readers. Shared by the handles and the actor of its root.

use std::{
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
}

impl Progress {
    /// A block arrived.
    pub(super) fn count(&self, now: Duration) {
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

/// One file that somebody has open.
///
/// Lock order: `layout` before `readers`; neither is held over a call that waits.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) root: ContentId,
    pub(super) id: ContentId,
    pub(super) object: Arc<Object>,
    layout: Mutex<FileLayout>,
    readers: Mutex<Readers>,
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

    /// Whether nobody has it open.
    pub(super) fn is_idle(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0
    }
}
