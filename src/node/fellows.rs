//! Other chiral nodes that have the same torrent: found by a record in the DHT, asked, and made use of.
//!
//! Whoever has something of a torrent announces the CID of its info hash ([`records`]). Whoever reads one, or looks for its
//! description, looks that CID up beside the swarm and asks those who are named: for the description, for the contents
//! of the files ([`book`] answers), and for the port at which they take part in the swarm. A file whose content is
//! told comes from them over Bitswap, by way of the feed that knows both names of it; else they are dialled as peers of
//! the swarm. None of it is believed: descriptions are checked by the info hash, bytes by the hashes of the pieces.

mod book;
mod records;

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use lru::LruCache;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until},
};

pub(super) use self::{book::Book, records::Changes};
use super::twins::{Statement, Twins};
use crate::{
    content::{ContentId, InfoHash},
    net::{MAX_FILES, Net, NetError, PeerId, Provider, TorrentAnswer, TorrentQuestion},
    sources::Hearsay,
    tasks::Tasks,
    torrent::{Feed, Feeder, Magnet, Metainfo, MetainfoError, TorrentError, Torrents},
};

/// Torrents whose fellows are remembered.
const TORRENTS: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Fellows of one torrent: as many as a search in the DHT names.
const MOST: usize = 20;
/// Fellows of all torrents that are asked at a time; each may send a description of two megabytes.
const ASKED_AT_ONCE: usize = 8;
/// Time after which the DHT is asked again while somebody still waits.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The same where it named nobody, doubled each time up to that.
const LOOK_AGAIN_SOON: Duration = Duration::from_secs(10);
/// The same where the DHT could not be asked at all, as before its first peer is connected.
const NOBODY: Duration = Duration::from_secs(2);
/// How often that is tried before somebody has to ask for it anew.
const NOBODY_TRIES: u32 = 15;
/// Whoever waits so long although contents are told gets the fellows as peers of the swarm, too.
const DOORS_OPEN: Duration = Duration::from_secs(5);
/// How long one is refused whose description is that of something else: as for a wrong block.
const LIED: Duration = Duration::from_secs(3_600);

/// Finds fellows; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Fellows {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    net: Net,
    torrents: Torrents,
    twins: Arc<Twins>,
    hearsay: Hearsay,
    tasks: Tasks,
    asking: Semaphore,
    sought: Mutex<LruCache<InfoHash, Sought>>,
}

/// What was done for a torrent.
#[derive(Debug, Default)]
struct Sought {
    /// A search or a round of questions runs.
    running: bool,
    /// When the DHT may be asked again.
    next: Option<Instant>,
    /// How many times in a row it named nobody.
    in_vain: u32,
    peers: HashSet<PeerId>,
    /// The first of the files that were asked about, by so many as one question takes.
    asked: BTreeSet<u32>,
    /// Where fellows take part in the swarm who were not dialled there yet, and since when that is known.
    doors: Vec<SocketAddr>,
    known_since: Option<Instant>,
}

/// What is to be done next for a torrent.
struct Round {
    hash: InfoHash,
    /// Known fellows to be asked about files that were not asked about.
    peers: Vec<PeerId>,
    /// The first files of what is to be asked.
    batches: Vec<u32>,
    /// Whether the DHT is asked.
    look_up: bool,
}

impl Fellows {
    pub(super) fn new(
        net: &Net,
        torrents: &Torrents,
        twins: &Arc<Twins>,
        hearsay: &Hearsay,
        tasks: &Tasks,
    ) -> Self {
        let (net, torrents, twins) = (net.clone(), torrents.clone(), twins.clone());
        let (hearsay, tasks, asking) =
            (hearsay.clone(), tasks.clone(), Semaphore::new(ASKED_AT_ONCE));
        let sought = Mutex::new(LruCache::new(TORRENTS));
        Self { inner: Arc::new(Inner { net, torrents, twins, hearsay, tasks, asking, sought }) }
    }

    /// Somebody waits for a torrent. Asks nobody itself.
    fn wanted(&self, hash: InfoHash) {
        if !self.inner.torrents.seeks_fellows() {
            return;
        }
        let read = self.inner.torrents.files_read(hash);
        let lacking = read.iter().any(|file| self.inner.twins.get((hash, *file)).is_none());
        let mut all = self.sought();
        let sought = all.get_or_insert_mut(hash, Sought::default);
        let doors = sought.open_doors(lacking);
        let round = sought.next_round(hash, &read);
        drop(all);
        if !doors.is_empty() {
            self.inner.torrents.meet(hash, &doors);
        }
        let Some(round) = round else { return };
        let (fellows, cancelled) = (self.clone(), self.inner.tasks.cancelled());
        self.inner.tasks.spawn("torrent fellows", async move {
            tokio::select! {
                () = fellows.seek(round) => {}
                () = cancelled => {}
            }
        });
    }

    /// One search in the DHT, and questions to all that are named, as they are.
    async fn seek(&self, round: Round) {
        let Round { hash, peers, batches, look_up } = round;
        let mut visits = FuturesUnordered::new();
        for peer in peers {
            let known = Provider { peer, addresses: Vec::new() };
            visits.push(self.visit(hash, known, &batches));
        }
        let id = ContentId::torrent(hash);
        let mut found = look_up.then(|| self.inner.net.find_providers(&id));
        let (mut named, mut again, mut tries) = (Named::Somebody, None, 0);
        loop {
            tokio::select! {
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    (named, again) = (Named::Somebody, None);
                    found = Some(self.inner.net.find_providers(&id));
                }
                provider = next(&mut found), if found.is_some() => match provider {
                    Some(Ok(provider)) => {
                        if self.is_new(hash, provider.peer) {
                            tracing::debug!(%hash, peer = %provider.peer, "a fellow of a torrent");
                            visits.push(self.visit(hash, provider, &batches));
                        }
                    }
                    Some(Err(NetError::Bootstrap)) => named = Named::NotAsked,
                    Some(Err(_)) => named = Named::Nobody,
                    None => {
                        found = None;
                        // Whoever looks for a description does not come back for half a minute.
                        if named == Named::NotAsked && tries < NOBODY_TRIES {
                            (again, tries) = (Some(Instant::now() + NOBODY), tries + 1);
                        }
                    }
                },
                Some(()) = visits.next(), if !visits.is_empty() => {}
                else => break,
            }
        }
        drop(visits);
        let mut all = self.sought();
        let sought = all.get_or_insert_mut(hash, Sought::default);
        sought.running = false;
        if look_up {
            sought.looked_up(named);
        }
    }

    /// Whether nobody has named this fellow before.
    fn is_new(&self, hash: InfoHash, peer: PeerId) -> bool {
        let mut all = self.sought();
        let sought = all.get_or_insert_mut(hash, Sought::default);
        sought.peers.len() < MOST && sought.peers.insert(peer)
    }

    /// Asks a fellow about files, and for the description as long as it is not here.
    async fn visit(&self, hash: InfoHash, provider: Provider, batches: &[u32]) {
        let peer = provider.peer;
        if let Err(error) = self.inner.net.dial(provider.clone()).await {
            tracing::debug!(%hash, %peer, %error, "a fellow cannot be reached");
            return;
        }
        let Ok(_place) = self.inner.asking.acquire().await else { return };
        for first in batches {
            let describe = self.inner.torrents.metainfo_now(hash).is_none();
            let files = *first..first.saturating_add(MAX_FILES);
            let question = TorrentQuestion { hash, describe, files };
            let told = match self.inner.net.ask_torrent(peer, &question).await {
                Ok(told) if told.answer.known => told,
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(%hash, %peer, %error, "a fellow does not tell");
                    return;
                }
            };
            let door = told.from.zip(told.answer.port).map(SocketAddr::from);
            if !self.take(&question, &provider, told.answer).await {
                return;
            }
            if let Some(door) = door {
                self.sought().get_or_insert_mut(hash, Sought::default).doors.push(door);
            }
            // Somebody may wait for just this, and looks again in a while only.
            self.look_after(hash);
        }
    }

    /// Checks and keeps what was told; whether the fellow is worth another question.
    async fn take(
        &self,
        question: &TorrentQuestion,
        provider: &Provider,
        told: TorrentAnswer,
    ) -> bool {
        let (hash, peer) = (question.hash, provider.peer);
        if let Some(info) = told.info.filter(|_| question.describe) {
            let torrents = self.inner.torrents.clone();
            let keep = move || torrents.keep_info(hash, &info);
            match self.inner.tasks.blocking("keep a torrent", keep).await {
                Ok(Ok(_)) => {}
                Ok(Err(TorrentError::Metainfo(MetainfoError::Other(_)))) => {
                    tracing::info!(%hash, %peer, "a peer describes another torrent; it is refused");
                    self.inner.net.ban(peer, LIED);
                    return false;
                }
                Ok(Err(error)) => tracing::debug!(%hash, %error, "a description is not kept"),
                Err(_) => return false,
            }
        }
        let Some(Ok(metainfo)) = self.inner.torrents.metainfo_now(hash) else {
            // What is said of files cannot be looked at yet: it is asked for again.
            if let Some(sought) = self.sought().get_mut(&hash) {
                sought.asked.clear();
            }
            return true;
        };
        if metainfo.private {
            return false;
        }
        let (twins, files) = (self.inner.twins.clone(), question.files.clone());
        let learn = move || learn(&twins, &metainfo, &files, &told.statements);
        let learnt = self.inner.tasks.blocking("learn of torrents", learn).await;
        for id in learnt.unwrap_or_default() {
            tracing::debug!(%hash, %peer, %id, "a fellow tells of a content");
            self.inner.hearsay.name(&id, provider);
        }
        true
    }

    /// Opens the doors that somebody waits for.
    fn look_after(&self, hash: InfoHash) {
        let read = self.inner.torrents.files_read(hash);
        let known = |file: &u32| self.inner.twins.get((hash, *file)).is_some();
        // With a description, whoever reads shows what is lacking. Without one a peer of the swarm may give it.
        let shut = if read.is_empty() {
            self.inner.torrents.metainfo_now(hash).is_some()
        } else {
            read.iter().all(known)
        };
        if shut {
            return;
        }
        let doors = self.sought().get_mut(&hash).map(|sought| sought.open_doors(true));
        if let Some(doors) = doors.filter(|doors| !doors.is_empty()) {
            self.inner.torrents.meet(hash, &doors);
        }
    }

    fn sought(&self) -> MutexGuard<'_, LruCache<InfoHash, Sought>> {
        self.inner.sought.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a search in the DHT ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Somebody,
    Nobody,
    /// There was nobody to ask.
    NotAsked,
}

impl Sought {
    /// A search has ended; sets when the next one may begin.
    fn looked_up(&mut self, named: Named) {
        let pause = match named {
            Named::Somebody => LOOK_AGAIN,
            Named::Nobody => LOOK_AGAIN_SOON * 2_u32.saturating_pow(self.in_vain.min(8)),
            Named::NotAsked => NOBODY,
        };
        self.in_vain = if named == Named::Nobody { self.in_vain + 1 } else { 0 };
        self.next = Some(Instant::now() + pause.min(LOOK_AGAIN));
    }

    /// The doors that are to be knocked at now: all where a file is read whose content nobody knows, else after a
    /// while.
    fn open_doors(&mut self, lacking: bool) -> Vec<SocketAddr> {
        if self.doors.is_empty() {
            return Vec::new();
        }
        let since = *self.known_since.get_or_insert_with(Instant::now);
        if lacking || since.elapsed() >= DOORS_OPEN {
            self.known_since = None;
            return std::mem::take(&mut self.doors);
        }
        Vec::new()
    }

    /// What is to be done for files that are read; none where it is done or under way.
    fn next_round(&mut self, hash: InfoHash, read: &BTreeSet<u32>) -> Option<Round> {
        if self.running {
            return None;
        }
        let look_up = self.next.is_none_or(|next| next <= Instant::now());
        let mut batches: BTreeSet<u32> = read.iter().map(|file| file - file % MAX_FILES).collect();
        if batches.is_empty() {
            batches.insert(0);
        }
        let mut peers = Vec::new();
        if look_up {
            // Who was found before may have more by now.
            self.asked.clear();
            self.peers.clear();
        } else {
            batches.retain(|first| !self.asked.contains(first));
            peers = self.peers.iter().copied().collect();
            if batches.is_empty() || peers.is_empty() {
                return None;
            }
        }
        self.asked.extend(&batches);
        self.running = true;
        Some(Round { hash, peers, batches: batches.into_iter().collect(), look_up })
    }
}

/// Keeps statements about what was asked, as far as they fit to it; the contents that they name.
fn learn(
    twins: &Twins,
    metainfo: &Metainfo,
    files: &std::ops::Range<u32>,
    statements: &[bytes::Bytes],
) -> Vec<ContentId> {
    let mut learnt = Vec::new();
    for signed in statements {
        let Some((signer, said)) = Statement::open(signed) else { continue };
        let place = (metainfo.hash, said.file);
        let size = metainfo.files.get(said.file as usize).map(|file| file.range.len());
        if said.hash != metainfo.hash || !files.contains(&said.file) || Some(said.size) != size {
            continue;
        }
        let id = said.id;
        match twins.learn(signer, said, signed) {
            Ok(true) => learnt.push(id),
            // Known already: this peer has it, too.
            Ok(false) if twins.get(place).is_some_and(|twin| twin.id == id) => learnt.push(id),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "what peers say of torrents is not kept");
                break;
            }
        }
    }
    learnt
}

async fn next(
    found: &mut Option<mpsc::Receiver<Result<Provider, NetError>>>,
) -> Option<Result<Provider, NetError>> {
    found.as_mut()?.recv().await
}

impl Feeder for Fellows {
    /// Feeds nothing itself: what fellows tell of is fed by whoever knows both names of a file.
    fn feeds(&self, torrent: &Arc<Metainfo>, _: &Magnet) -> Vec<Arc<dyn Feed>> {
        // A private torrent is the business of its trackers alone (BEP 27).
        if !torrent.private {
            self.wanted(torrent.hash);
        }
        Vec::new()
    }

    fn sought(&self, hash: InfoHash) {
        self.wanted(hash);
    }
}

#[cfg(test)]
mod tests;
