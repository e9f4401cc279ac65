//! The swarm of one file as a source of the blocks of its content.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::mpsc, time::Instant};

use super::{Direction, SwarmFile, Uses};
use crate::{
    content::{Block, ByteRange, Codec, ContentId, MAX_BLOCK_LEN},
    sources::{
        Permanent, Reply, Source, SourceError, SourceId, SourceKind, Transient, Want, desk::Desk,
        queue::Job,
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
    desk: Desk,
    banned: Mutex<Option<Instant>>,
}

impl SwarmSource {
    pub(super) fn new(file: SwarmFile, torrents: Torrents, uses: Arc<Uses>, tasks: &Tasks) -> Self {
        let id = SourceId(format!("torrent:{}/{}", file.hash, file.file).into());
        let (desk, banned) = (Desk::new(RUNS), Mutex::default());
        let tasks = tasks.clone();
        Self { inner: Arc::new(Inner { id, file, torrents, uses, tasks, desk, banned }) }
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
        self.inner.desk.request(wants, replies);
        self.inner.start();
    }

    fn cancel(&self, ids: &[ContentId]) {
        self.inner.desk.cancel(ids);
        self.inner.start();
    }

    /// Whether somebody in the swarm has it is not known before it comes.
    fn has(&self, ids: Vec<ContentId>) -> BoxFuture<'static, Vec<bool>> {
        async move { vec![false; ids.len()] }.boxed()
    }

    fn ban(&self, for_time: Duration) {
        let mut banned = self.inner.banned.lock().unwrap_or_else(PoisonError::into_inner);
        *banned = Instant::now().checked_add(for_time);
    }
}

impl Drop for SwarmSource {
    fn drop(&mut self) {
        self.inner.desk.close();
    }
}

impl Inner {
    /// Begins the reads that are to begin now.
    fn start(self: &Arc<Self>) {
        while let Some((job, _, token)) = self.desk.next(true) {
            let (inner, ended) = (self.clone(), self.tasks.cancelled());
            self.tasks.spawn("read a swarm", async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = ended => return,
                    () = inner.run(job) => {}
                }
                inner.desk.ended(job);
                inner.start();
            });
        }
    }

    fn is_banned(&self) -> bool {
        let banned = *self.banned.lock().unwrap_or_else(PoisonError::into_inner);
        banned.is_some_and(|until| until > Instant::now())
    }

    /// Reads blocks that follow each other, each handed on as it comes.
    async fn run(&self, job: Job) {
        let reader = Reader { inner: self, number: NEXT_READER.fetch_add(1, Ordering::Relaxed) };
        for want in self.desk.left(job) {
            // Nobody may want it any more by now.
            if self.desk.is_left(job, &want.id) {
                let block = reader.read(&want).await;
                self.desk.answer(job, &self.id, &want.id, block);
            }
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
        if self.inner.is_banned() {
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
