//! What the rest of the daemon holds.

use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU32,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OnceCell},
    time::Instant,
};

use super::{
    Feeder, Host, Magnet, Metainfo, TorrentError, TorrentFile, TorrentOptions,
    active::Active,
    ease::{Ease, Sample, Waited},
    fellows::Met,
    known::Known,
    policy::Policy,
    search::Searches,
    session::{self, Running},
};
use crate::{content::InfoHash, tasks::Tasks};

/// Torrents that are kept taken up while nobody reads them and nothing is fetched: their bits and open files.
const IDLE: usize = 256;

/// How often those who watch are told.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How many times that passes between two notes of what is here: at most so much of what has come is forgotten when the
/// daemon is killed.
const NOTE_EVERY: u32 = 2;

/// How many times that passes between two looks at how much disk is taken.
const ROOM_EVERY: u32 = 15;

/// All torrents of this node; clones share them.
#[derive(Clone, Debug)]
pub struct Torrents {
    inner: Arc<Inner>,
}

/// Most bytes per second of all torrents together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// That are sent.
    pub upload: Option<NonZeroU32>,
    /// That are received.
    pub download: Option<NonZeroU32>,
}

struct Inner {
    options: TorrentOptions,
    host: Arc<dyn Host>,
    /// Those in effect now; whoever looks after the session is told of new ones.
    limits: tokio::sync::watch::Sender<Limits>,
    policy: Policy,
    known: Arc<Known>,
    searches: Searches,
    met: Met,
    feeders: Mutex<Vec<Arc<dyn Feeder>>>,
    /// Pieces of any torrent came.
    came: Arc<Notify>,
    losses: AtomicU64,
    waited: Arc<Waited>,
    active: Mutex<HashMap<InfoHash, Arc<Active>>>,
    /// Whether the notes of the last session were looked at.
    prepared: Mutex<bool>,
    session: OnceCell<Running>,
    /// Torrents that were added to the session.
    added: AtomicUsize,
    tasks: Tasks,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Torrents {
    /// Looks which torrents are in a folder. Nobody is asked, and nothing is made there, before a torrent is.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(
        options: TorrentOptions,
        dir: &Path,
        host: Arc<dyn Host>,
        tasks: &Tasks,
    ) -> Result<Self, TorrentError> {
        let limits = Limits { upload: options.upload_limit, download: options.download_limit };
        let inner = Inner {
            policy: Policy::new(&options),
            options,
            host,
            limits: tokio::sync::watch::Sender::new(limits),
            known: Arc::new(Known::open(dir)?),
            searches: Searches::default(),
            met: Met::default(),
            feeders: Mutex::default(),
            came: Arc::default(),
            losses: AtomicU64::new(0),
            waited: Arc::default(),
            active: Mutex::default(),
            prepared: Mutex::default(),
            session: OnceCell::new(),
            added: AtomicUsize::new(0),
            tasks: tasks.clone(),
        };
        let torrents = Self { inner: Arc::new(inner) };
        torrents.let_go_at_the_end();
        Ok(torrents)
    }

    /// What is taken up holds all this, and the store behind it, until it is let go of. With a session that is the last
    /// thing which that one's task does.
    fn let_go_at_the_end(&self) {
        let (torrents, cancelled) = (self.clone(), self.tasks().cancelled());
        self.tasks().spawn("torrents", async move {
            cancelled.await;
            if torrents.inner.session.get().is_none() {
                torrents.let_go();
            }
        });
    }

    fn let_go(&self) {
        // Dropped under no lock.
        let all = std::mem::take(&mut *self.guard());
        drop(all);
    }

    /// Remembers what a link says, for when its torrent is looked for; one that goes is told of new peers now.
    pub fn learn(&self, magnet: &Magnet) {
        if !self.inner.known.learn(magnet) {
            return;
        }
        self.inner.searches.told(magnet.hash);
        if let Some(active) = self.taken_up_of(magnet.hash) {
            active.introduce();
        }
    }

    /// Keeps a `.torrent` file.
    ///
    /// # Errors
    /// When it is malformed, or the disk fails.
    pub fn keep(&self, text: &[u8]) -> Result<Arc<Metainfo>, TorrentError> {
        let kept = self.inner.known.keep(text)?;
        self.inner.searches.told(kept.hash);
        Ok(kept)
    }

    /// Torrents that can be listed without asking anybody.
    pub fn known_torrents(&self) -> Vec<InfoHash> {
        self.inner.known.all()
    }

    /// What is in a torrent, without asking anybody. May read a file.
    pub fn metainfo_now(&self, hash: InfoHash) -> Option<Result<Arc<Metainfo>, TorrentError>> {
        self.inner.known.metainfo(hash)
    }

    /// A link that leads to a torrent, with all that is known of where it is.
    pub fn magnet(&self, hash: InfoHash) -> Magnet {
        let mut magnet = match self.metainfo_now(hash) {
            Some(Ok(metainfo)) => metainfo.magnet(),
            Some(Err(_)) | None => Magnet::of(hash),
        };
        magnet.merge(&self.inner.known.said(hash));
        magnet
    }

    /// A file of a torrent whose description is here, by its number. Nobody is asked before it is read.
    ///
    /// # Errors
    /// [`TorrentError::NoSuchFile`], or when the disk fails.
    pub fn file_now(&self, hash: InfoHash, file: u32) -> Option<Result<TorrentFile, TorrentError>> {
        let metainfo = match self.metainfo_now(hash)? {
            Ok(metainfo) => metainfo,
            Err(error) => return Some(Err(error)),
        };
        if metainfo.files.len() <= file as usize {
            return Some(Err(TorrentError::NoSuchFile { hash, file }));
        }
        Some(self.active(&metainfo).map(|active| TorrentFile::new(active, file)))
    }

    /// A file of a torrent, by its number.
    ///
    /// # Errors
    /// As [`Torrents::metainfo`] and [`Torrents::file_now`].
    pub async fn file(&self, hash: InfoHash, file: u32) -> Result<TorrentFile, TorrentError> {
        self.metainfo(hash).await?;
        self.file_now(hash, file).unwrap_or(Err(TorrentError::NoSuchFile { hash, file }))
    }

    /// Where peers are accepted, once they are.
    pub fn address(&self) -> Option<SocketAddr> {
        self.inner.session.get().and_then(|running| session::address(running.session()))
    }

    /// Most bytes per second now.
    pub fn limits(&self) -> Limits {
        *self.inner.limits.borrow()
    }

    pub(super) fn put_limits(&self, limits: Limits) {
        self.inner.limits.send_replace(limits);
    }

    pub(super) fn host(&self) -> &Arc<dyn Host> {
        &self.inner.host
    }

    /// Those in the session.
    pub(super) fn managed(&self) -> Vec<Arc<Active>> {
        self.guard().values().filter(|active| active.is_managed()).cloned().collect()
    }

    /// Marks one as removed of which nobody but the caller has anything; whether that is so. Under the lock, nobody takes it
    /// up meanwhile.
    pub(super) fn retire_idle(&self, active: &Arc<Active>) -> bool {
        let _all = self.guard();
        let idle = Arc::strong_count(active) <= 2;
        if idle {
            active.set_removed();
        }
        idle
    }

    /// How many torrents have lost what was here of them since the start.
    pub fn losses(&self) -> u64 {
        self.inner.losses.load(Ordering::Relaxed)
    }

    /// What was here of a torrent is gone. Whoever waits for pieces has something to look at, too.
    pub(super) fn lost(&self) {
        self.inner.losses.fetch_add(1, Ordering::Relaxed);
        self.inner.came.notify_one();
    }

    /// Takes a torrent out of those that are taken up.
    pub(super) fn take_active(&self, hash: InfoHash) -> Option<Arc<Active>> {
        self.guard().remove(&hash)
    }

    pub(super) fn options(&self) -> &TorrentOptions {
        &self.inner.options
    }

    /// A number that no other torrent has in the session.
    pub(super) fn next_id(&self) -> usize {
        self.inner.added.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.inner.policy
    }

    pub(super) fn known(&self) -> &Arc<Known> {
        &self.inner.known
    }

    pub(super) fn searches(&self) -> &Searches {
        &self.inner.searches
    }

    pub(super) fn met(&self) -> &Met {
        &self.inner.met
    }

    pub(super) fn feeders(&self) -> MutexGuard<'_, Vec<Arc<dyn Feeder>>> {
        self.inner.feeders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn waited(&self) -> &Arc<Waited> {
        &self.inner.waited
    }

    pub(super) fn came(&self) -> &Arc<Notify> {
        &self.inner.came
    }

    /// What is taken up of a torrent, if it is.
    pub(super) fn taken_up_of(&self, hash: InfoHash) -> Option<Arc<Active>> {
        self.guard().get(&hash).cloned()
    }

    /// All that are taken up.
    pub(super) fn taken_up(&self) -> Vec<Arc<Active>> {
        self.guard().values().cloned().collect()
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.inner.tasks
    }

    /// What is taken up of a torrent; nothing is fetched because of it.
    pub(super) fn active(&self, metainfo: &Arc<Metainfo>) -> Result<Arc<Active>, TorrentError> {
        self.prepare()?;
        let mut active = self.guard();
        if let Some(known) = active.get(&metainfo.hash) {
            return Ok(known.clone());
        }
        if active.len() >= IDLE {
            active.retain(|_, torrent| Arc::strong_count(torrent) > 1 || torrent.is_managed());
        }
        let made = Arc::new(Active::new(self.clone(), metainfo.clone()));
        made.pieces.tell(&self.inner.came);
        active.insert(metainfo.hash, made.clone());
        Ok(made)
    }

    /// The session; the first who needs it waits for its start.
    pub(super) async fn session(&self) -> Result<Running, TorrentError> {
        let start = async {
            if self.inner.tasks.token().is_cancelled() {
                return Err(TorrentError::Closed);
            }
            let torrents = self.clone();
            let prepared = self.tasks().blocking("prepare torrents", move || {
                torrents.prepare()?;
                torrents.known().begins().map_err(|e| TorrentError::disk("prepare", e))
            });
            prepared.await.map_err(|_| TorrentError::Closed)??;
            let running =
                session::start(&self.inner.options, &self.inner.known, self.tasks()).await?;
            self.end_with_the_rest(running.clone());
            Ok(running)
        };
        self.inner.session.get_or_try_init(|| start).await.cloned()
    }

    /// Ends the session with everything else. What librqbit starts by itself is counted as the threads that it runs on.
    fn end_with_the_rest(&self, running: Running) {
        let (torrents, cancelled) = (self.clone(), self.tasks().cancelled());
        self.tasks().spawn("torrent session", async move {
            tokio::select! {
                () = torrents.look_after(&running) => {}
                () = cancelled => {}
            }
            running.stop().await;
            let noted = torrents.note_pieces();
            if let Err(error) = noted.and_then(|()| torrents.inner.known.ended()) {
                tracing::warn!(%error, "what is here of torrents is hashed again at the next start");
            }
            torrents.let_go();
        });
    }

    /// Tells those who watch, notes what is here, and hands new limits on.
    async fn look_after(&self, running: &Running) {
        let mut limits = self.inner.limits.subscribe();
        let (mut round, mut looked_at, mut received) = (0_u32, 0, 0);
        let (mut ease, mut eased) = (Ease::default(), None);
        let mut is_noted = true;
        loop {
            let most = limits.borrow_and_update().with_upload(eased);
            session::limit(running.session(), most);
            tokio::select! {
                // The sender lives as long as this does.
                _ = limits.changed() => continue,
                () = tokio::time::sleep(TELL_EVERY) => {}
            }
            (received, eased) = self.look_at_all(received, &mut ease);
            round = round.wrapping_add(1);
            // What was received fills the disk, and what others found no room for may have it.
            let fills = received != looked_at && round.is_multiple_of(ROOM_EVERY);
            if fills || (round.is_multiple_of(NOTE_EVERY) && self.host().is_full()) {
                looked_at = received;
                if let Err(error) = self.make_room().await {
                    tracing::warn!(%error, "the limit of what torrents take does not hold");
                }
            }
            if !round.is_multiple_of(NOTE_EVERY) {
                continue;
            }
            let torrents = self.clone();
            let noting = self.tasks().blocking("note pieces", move || torrents.note_pieces());
            let Ok(noted) = noting.await else { continue };
            // A disk that takes nothing refuses each of them.
            match &noted {
                Err(error) if is_noted => {
                    tracing::warn!(%error, "what is here of torrents could not be noted; it is tried again");
                }
                _ => {}
            }
            is_noted = noted.is_ok();
        }
    }

    /// Tells those who watch. How many bytes have come, and how many more may be given each second for the disk's sake.
    fn look_at_all(&self, came: u64, ease: &mut Ease) -> (u64, Option<NonZeroU32>) {
        let (mut received, mut given, mut waiting) = (0, 0, false);
        for active in self.managed() {
            let (came, went) = active.measure();
            self.tell(&active);
            (received, given) = (received + came, given + went);
            waiting |= active.is_waited_for();
        }
        let (at, waited) = (Instant::now(), self.inner.waited.total());
        let fetching = waiting || received > came;
        (received, ease.next(Sample { at, waited, given, fetching }))
    }

    /// librqbit notes what is here every 16 MiB and at its end, but nobody waits for that, and a kill would lose it.
    fn note_pieces(&self) -> std::io::Result<()> {
        self.taken_up().iter().try_for_each(|torrent| torrent.note_pieces())
    }

    /// Has the notes of the last session looked at before anything believes or changes them.
    fn prepare(&self) -> Result<(), TorrentError> {
        let mut prepared = self.inner.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !*prepared {
            self.inner.known.trust_pieces()?;
            *prepared = true;
        }
        Ok(())
    }

    fn guard(&self) -> MutexGuard<'_, HashMap<InfoHash, Arc<Active>>> {
        self.inner.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
