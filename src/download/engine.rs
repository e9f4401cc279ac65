//! The registry: which roots are being fetched, which files are open, what all share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, broadcast, mpsc, oneshot},
    time::Instant,
};

use super::{
    DownloadError, DownloadOptions, Event, FileHandle, Strategy, Transfer,
    actor::Actor,
    file::{OpenFile, Progress},
    reputation::Reputations,
    scheduler::Allowance,
};
use crate::{
    content::{Block, ByteRange, ContentId, FileLayout},
    sources::{Finder, Found},
    store::Store,
    tasks::Tasks,
    waits::Waits,
};

/// Events that a slow receiver may lag behind before it loses the oldest.
const EVENT_BACKLOG: usize = 4096;
/// Bytes over all downloads that are asked for, or here and not written yet: what is asked for has to fit into memory
/// when it all comes at once.
const MOST_IN_FLIGHT: u64 = 128 << 20;

/// What background work leaves free of that, so that readers need not wait until some of it has come.
const RESERVE: u64 = 16 << 20;
/// What a root may always ask for when somebody waits for it: others may be full of requests that nobody answers.
const ALWAYS: u64 = 8 << 20;

/// What the actor of a root is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Fetch one node.
    Node { id: ContentId, answer: oneshot::Sender<Result<Block, DownloadError>> },
    /// Look at the readers of this file.
    Look(Arc<OpenFile>),
    /// Fetch the whole file.
    Whole {
        file: Arc<OpenFile>,
        strategy: Strategy,
        answer: oneshot::Sender<Result<(), DownloadError>>,
    },
    /// The last handle of a file was dropped.
    Idle(ContentId),
}

/// The way to the actor of a root, and what it tells.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) progress: Progress,
    /// Bytes that are asked for, or here and not written yet.
    pub(super) held: AtomicU64,
    /// Sources that can be asked.
    pub(super) sources: AtomicUsize,
    pub(super) retries: AtomicU64,
    /// How long callers wait for each node.
    pub(super) waits: Mutex<Waits<ContentId>>,
    /// When a wait ended in vain last, in milliseconds since the start of the engine; 0: none did.
    in_vain: AtomicU64,
    /// What runs below this root, for [`Engine::transfers`].
    pub(super) transfers: Mutex<Vec<Transfer>>,
}

impl Link {
    /// A wait for something of this root ended in vain.
    pub(super) fn waited_in_vain(&self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.in_vain.store(now.max(1), Ordering::Relaxed);
    }

    /// When a wait ended in vain last.
    pub(super) fn last_in_vain(&self) -> Option<Duration> {
        let last = self.in_vain.load(Ordering::Relaxed);
        (last > 0).then(|| Duration::from_millis(last))
    }
}

/// All downloads; clones share them.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Arc<DownloadOptions>,
    pub(super) store: Store,
    pub(super) finder: Arc<dyn Finder>,
    pub(super) tasks: Tasks,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) reputations: Reputations,
    start: Instant,
    roots: Mutex<HashMap<ContentId, Arc<Link>>>,
    files: Mutex<HashMap<(ContentId, ContentId), Weak<OpenFile>>>,
    in_flight: AtomicU64,
    slots: Semaphore,
}

impl Shared {
    /// Bytes that a root which holds `held` may ask for.
    pub(super) fn allowance(&self, held: u64) -> Allowance {
        allowance(self.in_flight.load(Ordering::Relaxed), held)
    }

    /// Corrects the bytes in flight by what one root had and has.
    pub(super) fn account(&self, had: u64, has: u64) {
        if has >= had {
            self.in_flight.fetch_add(has - had, Ordering::Relaxed);
        } else {
            self.in_flight.fetch_sub(had - has, Ordering::Relaxed);
        }
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// Takes the actor of `root` out of the registry, unless somebody told it something meanwhile.
    pub(super) fn retire(
        &self,
        root: &ContentId,
        commands: &mpsc::UnboundedReceiver<Command>,
    ) -> bool {
        let mut roots = self.roots();
        // Commands are sent under this lock, so that none can slip in between the look and the removal.
        let idle = commands.is_empty();
        if idle {
            roots.remove(root);
        }
        idle
    }

    fn roots(&self) -> MutexGuard<'_, HashMap<ContentId, Arc<Link>>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a root may ask for that holds `held` of the `in_flight` bytes of all.
fn allowance(in_flight: u64, held: u64) -> Allowance {
    let left = MOST_IN_FLIGHT.saturating_sub(in_flight);
    Allowance {
        waited_for: left.max(ALWAYS.saturating_sub(held)),
        ahead: left,
        background: left.saturating_sub(RESERVE),
    }
}

impl Engine {
    /// An engine without downloads.
    pub fn new(
        options: DownloadOptions,
        store: Store,
        finder: Arc<dyn Finder>,
        tasks: &Tasks,
    ) -> Self {
        let slots = Semaphore::new(options.max_concurrent_downloads.max(1));
        let shared = Shared {
            reputations: Reputations::open(&store),
            options: Arc::new(options),
            store,
            finder,
            tasks: tasks.clone(),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            start: Instant::now(),
            roots: Mutex::default(),
            files: Mutex::default(),
            in_flight: AtomicU64::new(0),
            slots,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Opens a file. Fetches its root node when that is not here. `root` as in [`Engine::node`].
    ///
    /// # Errors
    /// As [`Engine::node`], and [`DownloadError::Dag`] when it is no file.
    pub async fn file(
        &self,
        root: &ContentId,
        id: &ContentId,
    ) -> Result<FileHandle, DownloadError> {
        if let Some(file) = self.opened(root, id) {
            return Ok(FileHandle::new(self.clone(), file));
        }
        let block = self.node(root, id).await?;
        self.open(root, &block)
    }

    /// As [`Engine::file`] for a file whose root node is here; none when it is not. Never waits for the network.
    pub fn file_now(
        &self,
        root: &ContentId,
        id: &ContentId,
    ) -> Option<Result<FileHandle, DownloadError>> {
        if let Some(file) = self.opened(root, id) {
            return Some(Ok(FileHandle::new(self.clone(), file)));
        }
        match self.shared.store.block(id) {
            Ok(block) => Some(self.open(root, &block?)),
            Err(error) => Some(Err(Arc::new(error).into())),
        }
    }

    fn open(&self, root: &ContentId, block: &Block) -> Result<FileHandle, DownloadError> {
        let id = block.cid();
        let mut layout = FileLayout::new(block)?;
        let places = layout.insert(block)?;
        let object = self.shared.store.create_object(id, layout.size()).map_err(Arc::new)?;
        // A root with bytes of its own: a small file is this one block.
        let missing = |p: &crate::content::Placement| {
            !object.has(ByteRange::at(p.offset, p.data.len() as u64))
        };
        if places.iter().any(missing) {
            object.place(block, &places).map_err(Arc::new)?;
        }
        let mut files = self.files();
        files.retain(|_, file| file.strong_count() > 0);
        let file = files.get(&(*root, *id)).and_then(Weak::upgrade).unwrap_or_else(|| {
            let file = Arc::new(OpenFile::new(*root, *id, layout, object));
            files.insert((*root, *id), Arc::downgrade(&file));
            file
        });
        Ok(FileHandle::new(self.clone(), file))
    }

    fn opened(&self, root: &ContentId, id: &ContentId) -> Option<Arc<OpenFile>> {
        self.files().get(&(*root, *id)).and_then(Weak::upgrade)
    }

    /// Fetches what is missing of a file, in the order of `strategy`.
    pub(super) async fn whole(
        &self,
        handle: &FileHandle,
        strategy: Strategy,
    ) -> Result<(), DownloadError> {
        let file = handle.file();
        while !file.object.is_complete() {
            let (answer, result) = oneshot::channel();
            let file = Arc::clone(file);
            let root = file.root;
            self.tell(&root, Command::Whole { file, strategy, answer })?;
            if let Ok(result) = result.await {
                return result;
            }
        }
        Ok(())
    }

    /// Waits for a place among the downloads that run at once.
    pub(super) async fn slot(&self) -> Result<tokio::sync::SemaphorePermit<'_>, DownloadError> {
        self.shared.slots.acquire().await.map_err(|_| DownloadError::Closed)
    }

    /// Everything that happens from now on; a receiver that lags loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Puts an event of another part on the same stream.
    pub fn emit(&self, event: Event) {
        // Nobody listens: nothing is lost.
        let _ = self.shared.events.send(event);
    }

    /// Downloads that run.
    pub fn transfers(&self) -> Vec<Transfer> {
        let links: Vec<Arc<Link>> = self.shared.roots().values().cloned().collect();
        let transfers =
            links.iter().flat_map(|link| lock(&link.transfers).iter().cloned().collect::<Vec<_>>());
        transfers.collect()
    }

    pub(super) fn store(&self) -> &Store {
        &self.shared.store
    }

    pub(super) fn options(&self) -> &DownloadOptions {
        &self.shared.options
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.shared.tasks
    }

    pub(super) fn find(&self, root: &ContentId) -> mpsc::Receiver<Found> {
        self.shared.finder.find(root)
    }

    pub(super) fn instant_of_start(&self) -> Instant {
        self.shared.start
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.tasks.token().is_cancelled()
    }

    /// Bytes that are under way for `root`.
    pub(super) fn under_way(&self, root: &ContentId) -> u64 {
        self.shared.roots().get(root).map_or(0, |link| link.held.load(Ordering::Relaxed))
    }

    /// The error of a read that got nothing for too long.
    pub(super) fn nothing_came(
        &self,
        root: &ContentId,
        id: ContentId,
        range: ByteRange,
    ) -> DownloadError {
        let link = self.shared.roots().get(root).cloned();
        if let Some(link) = &link {
            link.waited_in_vain(self.now());
        }
        if link.is_some_and(|link| link.progress.any()) {
            DownloadError::Stalled { id, range }
        } else {
            DownloadError::NotFound(id)
        }
    }

    /// Has the actor look at a file, if it has not been told already.
    pub(super) fn nudge(&self, file: &Arc<OpenFile>) {
        if !file.nudged.swap(true, Ordering::AcqRel) {
            // Closed: the read ends by itself.
            let _ = self.tell(&file.root, Command::Look(Arc::clone(file)));
        }
    }

    /// Tells the actor of `root` something; starts it when it does not run.
    pub(super) fn tell(
        &self,
        root: &ContentId,
        command: Command,
    ) -> Result<Arc<Link>, DownloadError> {
        if self.is_closed() {
            return Err(DownloadError::Closed);
        }
        let mut roots = self.shared.roots();
        let command = match roots.get(root) {
            Some(link) => match link.commands.send(command) {
                Ok(()) => return Ok(Arc::clone(link)),
                Err(unsent) => unsent.0,
            },
            None => command,
        };
        let (commands, receiver) = mpsc::unbounded_channel();
        // The receiver is in hand, so that this cannot fail.
        let _ = commands.send(command);
        let link = Arc::new(Link {
            commands,
            progress: Progress::default(),
            held: AtomicU64::new(0),
            sources: AtomicUsize::new(0),
            retries: AtomicU64::new(0),
            waits: Mutex::default(),
            in_vain: AtomicU64::new(0),
            transfers: Mutex::default(),
        });
        roots.insert(*root, Arc::clone(&link));
        drop(roots);
        let actor = Actor::new(*root, Arc::clone(&self.shared), Arc::clone(&link), receiver);
        self.shared.tasks.spawn("download", actor.run());
        Ok(link)
    }

    /// Tells the actor of `root` something if it runs.
    pub(super) fn tell_existing(&self, root: &ContentId, command: Command) {
        if let Some(link) = self.shared.roots().get(root) {
            // An actor that has just ended needs no news.
            let _ = link.commands.send(command);
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<(ContentId, ContentId), Weak<OpenFile>>> {
        self.shared.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_somebody_waits_for_may_ask_though_others_hold_everything() {
        let full = allowance(MOST_IN_FLIGHT, 0);
        assert_eq!((full.waited_for, full.ahead, full.background), (ALWAYS, 0, 0));
        assert_eq!(allowance(MOST_IN_FLIGHT + ALWAYS, ALWAYS).waited_for, 0);
        let nearly = allowance(MOST_IN_FLIGHT - RESERVE, 0);
        assert_eq!((nearly.ahead, nearly.background), (RESERVE, 0));
        assert_eq!(allowance(0, 0).background, MOST_IN_FLIGHT - RESERVE);
    }
}
