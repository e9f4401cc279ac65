//! A torrent in the librqbit session: taken up, set going, and told what is read.

use std::{
    collections::{HashMap, HashSet},
    io::SeekFrom,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use librqbit::{
    AddTorrent, AddTorrentOptions, AddTorrentResponse, ManagedTorrent, ManagedTorrentState,
    PeerConnectionOptions,
};
use tokio::{io::AsyncSeek, time::Instant};

use super::{
    PeerTraffic, TorrentError,
    active::Active,
    bridges::Bridges,
    introduce::introduce,
    metainfo::with_trackers,
    session::{self, Running, failed},
};
use crate::content::InfoHash;

/// Streams of one torrent that are kept for readers who wait for nothing. Each is a window of 32 MiB from which librqbit
/// fetches in turn.
const STREAMS: usize = 8;

/// Longest wait for librqbit to see what went wrong, and how often it is looked at.
const GIVE_UP: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Stands for no reader: a stream that a reader has left behind.
const ANCHOR: u64 = u64::MAX;

/// A stream of librqbit, of which only the place matters: it is what is fetched next.
type Cursor = Box<dyn AsyncSeek + Send + Unpin>;

/// A torrent in the session.
pub(super) struct Fetch {
    running: Running,
    torrent: Arc<ManagedTorrent>,
    /// Held while it is set going, so that of several readers one does.
    starting: tokio::sync::Mutex<()>,
    /// Peers that it was taken up with, and those that it knows now besides what it found itself.
    named: HashSet<SocketAddr>,
    introduced: Mutex<HashSet<SocketAddr>>,
    /// By the reader. Held for a moment only, never while waiting.
    streams: Mutex<HashMap<u64, Stream>>,
    bridges: Bridges,
}

struct Stream {
    file: u32,
    cursor: Cursor,
    used: Instant,
}

impl std::fmt::Debug for Fetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetch").finish_non_exhaustive()
    }
}

impl Fetch {
    /// Takes a torrent up: what is on disk is looked at, nobody is asked yet.
    pub(super) async fn take_up(active: &Active) -> Result<Self, TorrentError> {
        let torrents = active.torrents();
        let running = torrents.session().await?;
        let hash = active.metainfo().hash;
        torrents.searches().over(hash).await;
        if active.files().published().is_some() {
            // Nothing of it is hashed but what librqbit looks at for a sample.
            let bits = active.pieces().load_all();
            let noted = torrents.known().note_pieces(hash, &bits);
            noted.map_err(|e| TorrentError::disk("prepare", e))?;
        }
        let text = torrents.known().read(hash)?;
        let magnet = torrents.magnet(hash);
        let trackers = torrents.policy().trackers(&magnet.trackers).await;
        let mut peers = torrents.policy().peers(&magnet.peers);
        peers.extend(&torrents.options().peers);
        peers.extend(torrents.met().of(hash));
        peers.extend(torrents.searches().take_seen(hash));
        let named: HashSet<_> = peers.iter().copied().collect();
        let options = || AddTorrentOptions {
            paused: true,
            // librqbit's own choice is the same for two that are added at once, and one of both would be the other.
            preferred_id: Some(torrents.next_id()),
            // What is read or kept is fetched, and nothing else.
            only_files: Some(torrents.pinned_files(active.metainfo()).into_iter().collect()),
            overwrite: true,
            // Not used by our storage, but asked for.
            output_folder: Some(hash.to_string()),
            initial_peers: Some(peers.clone()),
            storage_factory: Some(active.files().factory()),
            peer_opts: Some(PeerConnectionOptions {
                read_write_timeout: Some(torrents.options().read_timeout),
                ..PeerConnectionOptions::default()
            }),
            ..AddTorrentOptions::default()
        };
        let text = with_trackers(&text, &trackers)?;
        let torrent = loop {
            let add = AddTorrent::from_bytes(text.clone());
            match running.add(add, options()).await? {
                AddTorrentResponse::Added(_, torrent) => break torrent,
                // One who took it up has left before it was. That one would tell nobody here of its pieces.
                AddTorrentResponse::AlreadyManaged(id, _) => {
                    running.session().delete(id.into(), false).await.map_err(failed)?;
                }
                AddTorrentResponse::ListOnly(_) => return Err(TorrentError::Closed),
            }
        };
        let (starting, streams, bridges) = Default::default();
        let introduced = Mutex::new(named.clone());
        let fetch = Self { running, torrent, starting, named, introduced, streams, bridges };
        fetch.checked(active).await?;
        Ok(fetch)
    }

    /// Waits until what is on disk is looked at, and takes over what that was.
    async fn checked(&self, active: &Active) -> Result<(), TorrentError> {
        self.torrent.wait_until_initialized().await.map_err(failed)?;
        // Written before it is used, and from then on each piece is told of as it completes.
        let path = active.torrents().known().bitfield_path(active.metainfo().hash);
        let bits = tokio::fs::read(path).await.map_err(|e| TorrentError::disk("read", e))?;
        if active.pieces().load(bits) {
            Ok(())
        } else {
            Err(TorrentError::Session("the notes of what is here have another length".into()))
        }
    }

    /// Sets it going, unless it goes already; one that failed is looked at anew.
    pub(super) async fn go_live(&self, active: &Active) -> Result<(), TorrentError> {
        if self.is_live() && active.pieces().trouble().is_none() {
            return Ok(());
        }
        let _one = self.starting.lock().await;
        active.may_go()?;
        if active.pieces().trouble().is_some() {
            self.until_given_up().await;
        }
        if self.is_live() {
            active.pieces().settle();
            return Ok(());
        }
        let failed_before = self.trouble().is_some();
        if failed_before {
            active.pieces().forget();
        }
        // It begins with those that it was taken up with.
        self.introduced().clone_from(&self.named);
        if let Err(error) = self.running.unpause(&self.torrent, failed_before).await {
            // Another one was faster.
            if !self.is_live() {
                return Err(error);
            }
        }
        if failed_before {
            self.checked(active).await?;
        }
        Ok(())
    }

    /// Stops it, unless it is stopped.
    pub(super) async fn stop(&self) -> Result<(), TorrentError> {
        let _one = self.starting.lock().await;
        if self.is_live() {
            self.running.session().pause(&self.torrent).await.map_err(failed)
        } else {
            Ok(())
        }
    }

    /// Takes it out of the session for good.
    pub(super) async fn leave(&self) {
        let _one = self.starting.lock().await;
        let streams = std::mem::take(&mut *self.streams());
        drop(streams);
        if let Err(error) = self.running.session().delete(self.torrent.id().into(), false).await {
            tracing::debug!(error = %format_args!("{error:#}"), "a torrent was gone already");
        }
    }

    /// Peers that are connected, and bytes sent since it last went on; none while it does not go.
    pub(super) fn traffic(&self) -> Option<(usize, u64)> {
        let live = self.torrent.live()?;
        Some((live.stats_snapshot().peer_stats.live as usize, live.get_uploaded_bytes()))
    }

    /// What went to and came from each peer since it last went on, also of those that are gone.
    pub(super) fn by_peer(&self) -> Vec<PeerTraffic> {
        let Some(live) = self.torrent.live() else { return Vec::new() };
        let hash = InfoHash(self.torrent.info_hash().0);
        // The type of the filter has no name outside of librqbit.
        let all = serde_json::from_value(serde_json::json!({ "state": "all" })).unwrap_or_default();
        let peers = live.per_peer_stats_snapshot(all).peers.into_iter();
        let traffic = peers.filter_map(|(peer, stats)| {
            let (sent, received) = (stats.counters.uploaded_bytes, stats.counters.fetched_bytes);
            let named = stats.client_name.is_some();
            Some(PeerTraffic { hash, peer: peer.parse().ok()?, named, sent, received })
        });
        traffic.collect()
    }

    /// librqbit gives a torrent up after a failure of the disk, some moments after we have heard of it.
    async fn until_given_up(&self) {
        let end = Instant::now() + GIVE_UP;
        while self.is_live() && Instant::now() < end {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn is_live(&self) -> bool {
        self.torrent.with_state(|state| matches!(state, ManagedTorrentState::Live(_)))
    }

    /// Why it does not go on.
    pub(super) fn trouble(&self) -> Option<TorrentError> {
        self.torrent.with_state(|state| match state {
            ManagedTorrentState::Error(error) => {
                Some(TorrentError::Session(error.to_string().into()))
            }
            _ => None,
        })
    }

    /// Has exactly these files fetched besides what is read.
    pub(super) async fn select(&self, files: HashSet<usize>) -> Result<(), TorrentError> {
        self.running.session().update_only_files(&self.torrent, &files).await.map_err(failed)
    }

    /// Has what stands from `at` on in a file fetched before everything else.
    pub(super) async fn want(
        &self,
        active: &Active,
        reader: u64,
        file: u32,
        at: u64,
    ) -> Result<(), TorrentError> {
        if self.move_to(reader, file, SeekFrom::Start(at)) {
            return Ok(());
        }
        self.open(reader, file, at).await?;
        // Readers whose streams go get a new one with their next read that waits. One that waits already would wait until
        // all others are done: nothing of what it waits for would be fetched.
        let waiting = active.waiting();
        let oldest = {
            let mut streams = self.streams();
            let others = streams.iter().filter(|(id, _)| **id != reader && !waiting.contains(id));
            let oldest = others.min_by_key(|(_, stream)| stream.used).map(|(id, _)| *id);
            oldest.filter(|_| streams.len() > STREAMS).and_then(|id| streams.remove(&id))
        };
        drop(oldest);
        Ok(())
    }

    async fn open(&self, reader: u64, file: u32, at: u64) -> Result<(), TorrentError> {
        let stream = self.torrent.clone().stream(file as usize).await.map_err(failed)?;
        let mut cursor: Cursor = Box::new(stream);
        seek(&mut cursor, SeekFrom::Start(at))?;
        let old = self.streams().insert(reader, Stream { file, cursor, used: Instant::now() });
        drop(old);
        Ok(())
    }

    /// The same with a new stream: that also has peers dialled again that had nothing to do here.
    pub(super) async fn want_again(
        &self,
        reader: u64,
        file: u32,
        at: u64,
    ) -> Result<(), TorrentError> {
        self.open(reader, file, at).await
    }

    /// Moves the window of a reader that has one; whether it has.
    pub(super) fn move_to(&self, reader: u64, file: u32, to: SeekFrom) -> bool {
        let mut streams = self.streams();
        let Some(stream) = streams.get_mut(&reader).filter(|stream| stream.file == file) else {
            return false;
        };
        stream.used = Instant::now();
        seek(&mut stream.cursor, to).is_ok()
    }

    /// Forgets the window of a reader. Its stream stays for a while, at the end of its file: when a piece comes while
    /// there is no stream, librqbit sends away all peers that have everything, and never again asks for the pieces that
    /// it was waiting for from them. Whether it is to be let go of later.
    pub(super) fn close(&self, reader: u64) -> bool {
        let mut streams = self.streams();
        let Some(mut stream) = streams.remove(&reader) else { return false };
        let parked = seek(&mut stream.cursor, SeekFrom::End(0)).is_ok();
        let old = if parked { streams.insert(ANCHOR, stream) } else { Some(stream) };
        drop(streams);
        drop(old);
        parked
    }

    /// Lets go of what the last reader left, once nothing arrives any more.
    pub(super) fn let_go(&self) {
        let anchor = self.streams().remove(&ANCHOR);
        drop(anchor);
    }

    /// Stops and starts it, because nothing has come since a time: all pieces that are waited for are asked for anew, of
    /// whoever has them. Those that are being dialled are better left to connect, as long as that may take; where those
    /// are gone that were named, they are dialled, which librqbit does only ten seconds and then a minute after they hung
    /// up. Whether it did.
    pub(super) async fn start_over(
        &self,
        active: &Active,
        since: Instant,
    ) -> Result<bool, TorrentError> {
        let Some(live) = self.torrent.live() else { return Ok(false) };
        let peers = live.stats_snapshot().peer_stats;
        let dialling = peers.connecting + peers.queued > 0
            && since.elapsed() < active.torrents().options().connect_timeout;
        if peers.live == 0 && (dialling || self.introduced().is_empty()) {
            return Ok(false);
        }
        tracing::debug!(
            hash = %active.metainfo().hash, peers = peers.live,
            "nothing comes; the torrent starts over"
        );
        self.stop().await?;
        self.go_live(active).await?;
        Ok(true)
    }

    /// Has those give what somebody waits for who are no peers.
    pub(super) fn feed(&self, active: &Active) {
        self.bridges.wanted(active);
        self.introduce(active);
    }

    /// Tells the session of peers that links and other nodes have named since it took the torrent up.
    pub(super) fn introduce(&self, active: &Active) {
        let (torrents, hash) = (active.torrents(), active.metainfo().hash);
        // One that does not go takes no connection.
        let Some(session) = self.address().filter(|_| self.is_live()) else { return };
        let mut peers = torrents.policy().peers(&torrents.known().said(hash).peers);
        peers.extend(torrents.met().of(hash));
        {
            let mut introduced = self.introduced();
            peers.retain(|peer| introduced.insert(*peer));
        }
        if !peers.is_empty() {
            torrents.tasks().spawn("introduce peers", async move {
                let took = introduce(session, hash, &peers).await;
                tracing::debug!(%hash, ?peers, took, "peers are told to the session");
            });
        }
    }

    /// Where the session is reached.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        session::address(self.running.session())
    }

    fn introduced(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.introduced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many readers have a window.
    #[cfg(test)]
    pub(super) fn windows(&self) -> usize {
        self.streams().len()
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u64, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seek(cursor: &mut Cursor, to: SeekFrom) -> Result<(), TorrentError> {
    Pin::new(cursor).start_seek(to).map_err(|e| TorrentError::disk("seek in", e))
}
