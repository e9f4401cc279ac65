//! The swarm of one file as a source of the blocks of its content.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Direction, SwarmFile, Uses};
use crate::{
    content::{Block, ByteRange, Codec, ContentId, MAX_BLOCK_LEN},
    sources::{
        Permanent, Reply, Source, SourceError, SourceId, SourceKind, Transient, Want,
        queue::{Ask, Job, Queue},
    },
    tasks::Tasks,
    torrent::{TorrentError, Torrents},
};

/// Runs of blocks that are read at a time. Each is a place from which librqbit fetches ahead.
const RUNS: usize = 4;

/// Names those who read for a swarm; nobody else counts from here.
static NEXT_READER: AtomicU64 = AtomicU64::new(1 << 63);

#[derive(Debug)]
pub(super) struct SwarmSource {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: SourceId,
    file: SwarmFile,
    torrents: Torrents,
    uses: Arc<Uses>,
    tasks: Tasks,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    /// Who waits for what.
    routes: HashMap<ContentId, (Want, mpsc::UnboundedSender<Reply>)>,
    /// Ends a read that nobody needs any more.
    running: HashMap<Job, CancellationToken>,
    banned: Option<Instant>,
}

impl SwarmSource {
    pub(super) fn new(file: SwarmFile, torrents: Torrents, uses: Arc<Uses>, tasks: &Tasks) -> Self {
        let state = State {
            queue: Queue::new(RUNS),
            routes: HashMap::new(),
            running: HashMap::new(),
            banned: None,
        };
        let id = SourceId(format!("torrent:{}/{}", file.hash, file.file).into());
        let (tasks, state) = (tasks.clone(), Mutex::new(state));
        Self { inner: Arc::new(Inner { id, file, torrents, uses, tasks, state }) }
    }
}

impl Source for SwarmSource {
    fn id(&self) -> &SourceId {
        &self.inner.id
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Swarm
    }

    fn request(&self, wants: &[Want], replies: &mpsc::UnboundedSender<Reply>) {
        let mut state = self.inner.state();
        state.routes.extend(wants.iter().map(|want| (want.id, (*want, replies.clone()))));
        state.queue.add(wants);
        drop(state);
        self.inner.start();
    }

    fn cancel(&self, ids: &[ContentId]) {
        let mut state = self.inner.state();
        ids.iter().for_each(|id| drop(state.routes.remove(id)));
        for job in state.queue.cancel(ids) {
            if let Some(token) = state.running.get(&job) {
                token.cancel();
            }
        }
        drop(state);
        self.inner.start();
    }

    /// Whether somebody in the swarm has it is not known before it comes.
    fn has(&self, ids: Vec<ContentId>) -> BoxFuture<'static, Vec<bool>> {
        async move { vec![false; ids.len()] }.boxed()
    }

    fn ban(&self, for_time: Duration) {
        self.inner.state().banned = Instant::now().checked_add(for_time);
    }
}

impl Drop for SwarmSource {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.queue = Queue::new(RUNS);
        state.running.values().for_each(CancellationToken::cancel);
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the reads that are to begin now.
    fn start(self: &Arc<Self>) {
        let mut state = self.state();
        while let Some((job, ask)) = state.queue.next(true) {
            let token = CancellationToken::new();
            state.running.insert(job, token.clone());
            let wants = match ask {
                Ask::Window { wants, .. } => wants,
                Ask::Block(id) => {
                    state.routes.get(&id).map(|(want, _)| *want).into_iter().collect()
                }
            };
            let (inner, ended) = (self.clone(), self.tasks.cancelled());
            self.tasks.spawn("read a swarm", async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = ended => return,
                    () = inner.run(job, wants) => {}
                }
                inner.end(job);
            });
        }
    }

    fn end(self: &Arc<Self>, job: Job) {
        let mut state = self.state();
        state.queue.ended(job);
        state.running.remove(&job);
        drop(state);
        self.start();
    }

    /// Reads blocks that follow each other, each handed on as it comes.
    async fn run(&self, job: Job, wants: Vec<Want>) {
        let reader = Reader { inner: self, number: NEXT_READER.fetch_add(1, Ordering::Relaxed) };
        for want in wants {
            // Nobody may want it any more by now.
            if self.state().queue.is_left(job, &want.id) {
                let block = reader.read(&want).await;
                self.answer(job, &want.id, block);
            }
        }
    }

    fn answer(&self, job: Job, id: &ContentId, result: Result<Block, SourceError>) {
        let mut state = self.state();
        if !state.queue.is_left(job, id) {
            return;
        }
        state.queue.answered(job, id);
        let to = state.routes.remove(id);
        drop(state);
        if let Some((_, to)) = to {
            // The download may have ended.
            let _ = to.send(Reply { source: self.id.clone(), id: *id, result });
        }
    }

    /// The bytes of the file that are the block. Of the nodes above the leaves a torrent knows nothing.
    fn bytes_of(&self, want: &Want) -> Option<ByteRange> {
        let whole = ByteRange::new(0, self.file.size);
        let range = if want.range.is_empty() && want.id == want.root { whole } else { want.range };
        let fits =
            !range.is_empty() && range.len() <= MAX_BLOCK_LEN as u64 && whole.contains(range);
        (want.id.codec() == Codec::Raw && fits).then_some(range)
    }
}

/// A reader of the torrent's file; its window is forgotten when it is dropped.
struct Reader<'a> {
    inner: &'a Inner,
    number: u64,
}

impl Reader<'_> {
    async fn read(&self, want: &Want) -> Result<Block, SourceError> {
        let Inner { file, torrents, uses, .. } = self.inner;
        let range = self.inner.bytes_of(want).ok_or(Permanent::NotFound)?;
        if self.inner.state().banned.is_some_and(|until| until > Instant::now()) {
            return Err(Permanent::Rejected("it gave wrong bytes".to_owned()).into());
        }
        let _passage = uses.enter(file, Direction::Swarm).ok_or(Transient::Busy)?;
        let opened = torrents.file(file.hash, file.file).await.map_err(|e| told(&e))?;
        if opened.size() != file.size {
            return Err(Permanent::NotFound.into());
        }
        let bytes = opened.read(self.number, range).await.map_err(|e| told(&e))?;
        // Where the map is wrong, or was a lie.
        Block::verify(want.id, bytes).map_err(|_| Permanent::BadHash.into())
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let file = &self.inner.file;
        if let Some(Ok(opened)) = self.inner.torrents.file_now(file.hash, file.file) {
            opened.close_reader(self.number);
        }
    }
}

/// What the scheduler makes of a failure of the torrent.
fn told(error: &TorrentError) -> SourceError {
    match error {
        TorrentError::NoMetadata { .. } | TorrentError::Stalled { .. } => Transient::Timeout.into(),
        TorrentError::NoSuchFile { .. } => Permanent::NotFound.into(),
        TorrentError::Offline(_) | TorrentError::Closed => {
            Permanent::Rejected(error.to_string()).into()
        }
        _ => Transient::Reset.into(),
    }
}
