//! Looking for what is in a torrent.

use std::{
    collections::HashMap,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::anyhow;
use futures::FutureExt;
use librqbit::{AddTorrent, AddTorrentOptions, AddTorrentResponse};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Magnet, Metainfo, TorrentError, handle::Torrents, metainfo::info_of};
use crate::{
    content::InfoHash,
    waits::{Verdict, Waits},
};

/// How long a search goes on after the last one who asked has given up: who asks again soon finds it done.
const SEARCH_ON: Duration = Duration::from_secs(300);
/// Longest single try: the first one, and all after some doublings. librqbit has no limit of its own, takes no new
/// trackers and peers while it looks, and dials each peer once. So one that was named and hung up, as it does while it
/// still holds a connection to the torrent that was removed, is dialled again soon.
const FIRST_TRY: Duration = Duration::from_secs(5);
const LONGEST_TRY: Duration = Duration::from_secs(30);
/// Wait after a try that ended early, because everybody who was named failed; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// Why a description that ended librqbit's reader is not taken.
const UNREADABLE: &str = "a peer sent a description that librqbit cannot read";
/// Peers of a search that are dialled first when the torrent is opened.
const SEEN: usize = 64;

type Outcome = Option<Result<Arc<Metainfo>, TorrentError>>;

/// The searches that run.
#[derive(Debug)]
pub(super) struct Searches {
    running: Mutex<HashMap<InfoHash, Search>>,
    /// How long callers wait for each, and the moment that its times count from.
    waits: Mutex<Waits<InfoHash>>,
    began: Instant,
    /// Peers that were met on the way.
    seen: Mutex<HashMap<InfoHash, Vec<SocketAddr>>>,
}

#[derive(Clone, Debug)]
struct Search {
    outcome: watch::Receiver<Outcome>,
    asked: Arc<Mutex<Instant>>,
    /// A link said something new of it, or its description came otherwise.
    told: Arc<Notify>,
    /// The user wants it looked for no more.
    gone: CancellationToken,
}

impl Default for Searches {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            waits: Mutex::default(),
            began: Instant::now(),
            seen: Mutex::default(),
        }
    }
}

impl Searches {
    /// Has the search of a torrent look at what is known of it now. It may lead further than what was waited for.
    pub(super) fn told(&self, hash: InfoHash) {
        self.waits().found(&hash);
        if let Some(search) = self.running().get(&hash) {
            search.told.notify_one();
        }
    }

    /// Waits for the end of the search of a torrent whose description is here: what it has dialled is closed then. Peers
    /// keep one connection to a session at a time, and a second one would cost the first.
    pub(super) async fn over(&self, hash: InfoHash) {
        let outcome = self.running().get(&hash).map(|search| search.outcome.clone());
        let Some(mut outcome) = outcome else { return };
        self.told(hash);
        // An error says that its task is gone.
        let _ = outcome.wait_for(Option::is_some).await;
    }

    /// Peers that were met while the description was looked for.
    pub(super) fn take_seen(&self, hash: InfoHash) -> Vec<SocketAddr> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash).unwrap_or_default()
    }

    /// Has nobody look any more for a torrent that was removed or paused; those who wait for it hear that it is gone.
    pub(super) fn give_up(&self, hash: InfoHash) {
        if let Some(search) = self.running().remove(&hash) {
            search.gone.cancel();
        }
        self.waits().found(&hash);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash);
    }

    fn waits(&self) -> std::sync::MutexGuard<'_, Waits<InfoHash>> {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.prune(self.began.elapsed());
        waits
    }

    fn saw(&self, hash: InfoHash, mut peers: Vec<SocketAddr>) {
        peers.truncate(SEEN);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, peers);
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<InfoHash, Search>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Torrents {
    /// What is in a torrent: from the disk, else from whoever has it. All who ask share one search.
    ///
    /// # Errors
    /// [`TorrentError::NoMetadata`] when [`super::TorrentOptions::lookup_timeout`] has passed since the first call for it;
    /// at once when that has just happened. The search goes on for a while.
    pub async fn metainfo(&self, hash: InfoHash) -> Result<Arc<Metainfo>, TorrentError> {
        if let Some(known) = self.metainfo_now(hash) {
            return known;
        }
        if !self.options().online {
            return Err(TorrentError::Offline(hash));
        }
        let waited = self.options().lookup_timeout;
        // Also a call that is refused keeps the search going.
        let mut outcome = self.search(hash);
        let searches = self.searches();
        let verdict = searches.waits().ask(hash, searches.began.elapsed(), waited);
        let Verdict::Since(since) = verdict else {
            return Err(TorrentError::NoMetadata { hash, waited });
        };
        let end = (searches.began + since).checked_add(waited);
        let found = outcome.wait_for(Option::is_some);
        let found = match end {
            Some(end) => timeout_at(end, found).await,
            None => Ok(found.await),
        };
        match &found {
            Ok(_) => searches.waits().found(&hash),
            Err(_) => searches.waits().failed(&hash, searches.began.elapsed()),
        }
        match found {
            Ok(Ok(found)) => found.clone().unwrap_or(Err(TorrentError::Closed)),
            Ok(Err(_)) if self.tasks().token().is_cancelled() => Err(TorrentError::Closed),
            Ok(Err(_)) => Err(TorrentError::Removed(hash)),
            Err(_) => Err(TorrentError::NoMetadata { hash, waited }),
        }
    }

    /// Looks for what is in a torrent that a caller is about to wait for, on behalf of one that has waited for `waited`
    /// already: they share its timeout.
    pub fn seek(&self, hash: InfoHash, waited: Duration) {
        if !self.options().online || self.known().has(hash) {
            return;
        }
        drop(self.search(hash));
        let (searches, timeout) = (self.searches(), self.options().lookup_timeout);
        let now = searches.began.elapsed();
        searches.waits().ask_since(hash, now.saturating_sub(waited), now, timeout);
    }

    /// Looks for what is in a torrent while nobody waits for it.
    pub(super) fn look_for(&self, hash: InfoHash) {
        if self.options().online && !self.known().has(hash) {
            drop(self.search(hash));
        }
    }

    fn search(&self, hash: InfoHash) -> watch::Receiver<Outcome> {
        let mut running = self.searches().running();
        if let Some(search) =
            running.get(&hash).filter(|search| search.outcome.has_changed().is_ok())
        {
            *search.asked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            return search.outcome.clone();
        }
        let (tell, outcome) = watch::channel(None);
        let asked = Arc::new(Mutex::new(Instant::now()));
        let gone = CancellationToken::new();
        let search = Search { outcome: outcome.clone(), asked, told: Arc::default(), gone };
        running.insert(hash, search.clone());
        let (torrents, cancelled) = (self.clone(), self.tasks().cancelled());
        self.tasks().spawn("torrent search", async move {
            let found = tokio::select! {
                found = torrents.look(hash, &search) => found,
                () = search.gone.cancelled() => return,
                () = cancelled => Some(Err(TorrentError::Closed)),
            };
            // Those who ask from now on find it on disk, or begin anew.
            torrents.searches().running().remove(&hash);
            if found.is_some() {
                tell.send_replace(found);
            }
        });
        outcome
    }

    /// Tries until it is found or nobody asks any more.
    async fn look(&self, hash: InfoHash, search: &Search) -> Outcome {
        let (mut wait, mut limit) = (FIRST_WAIT, FIRST_TRY);
        loop {
            // Somebody has dropped it in. A second connection to who has it would cost the first one.
            if let Some(known) = self.metainfo_now(hash) {
                return Some(known);
            }
            self.feeders().iter().for_each(|feeder| feeder.sought(hash));
            // A start of the session is not broken off by news.
            let looked = match self.session().await {
                Ok(_) => tokio::select! {
                    looked = self.look_once(hash, limit) => looked,
                    () = search.told.notified() => continue,
                },
                Err(error) => Err(error),
            };
            match looked {
                Ok(found) => return Some(Ok(found)),
                Err(
                    error @ (TorrentError::Disk { .. }
                    | TorrentError::Metainfo(_)
                    | TorrentError::Refused { .. }),
                ) => return Some(Err(error)),
                Err(error) => tracing::debug!(%hash, %error, "the torrent is not found yet"),
            }
            limit = (limit * 2).min(LONGEST_TRY);
            let next = Instant::now() + wait;
            tokio::select! {
                () = sleep_until(next) => wait = (wait * 2).min(LONGEST_WAIT),
                () = search.told.notified() => wait = FIRST_WAIT,
            }
            let asked = *search.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.elapsed() > SEARCH_ON + self.options().lookup_timeout.min(SEARCH_ON) {
                return None;
            }
        }
    }

    async fn look_once(
        &self,
        hash: InfoHash,
        limit: Duration,
    ) -> Result<Arc<Metainfo>, TorrentError> {
        let running = self.session().await?;
        let said = self.known().said(hash);
        let trackers = self.policy().trackers(&said.trackers).await;
        let mut peers = self.policy().peers(&said.peers);
        peers.extend(&self.options().peers);
        peers.extend(self.met().of(hash));
        let magnet = Magnet { trackers, ..Magnet::of(hash) };
        let options = AddTorrentOptions {
            list_only: true,
            // Nothing is written; librqbit would make one of the names in it, and refuse some of those.
            output_folder: Some(hash.to_string()),
            initial_peers: Some(peers),
            ..AddTorrentOptions::default()
        };
        let failed = |why: String| TorrentError::Session(why.into());
        let magnet = AddTorrent::from_url(magnet.to_string());
        let added = running.session().add_torrent(magnet, Some(options));
        // librqbit divides by the piece length that a peer sends before it looks whether there is one.
        let added = AssertUnwindSafe(added).catch_unwind();
        let added = added.map(|added| added.unwrap_or_else(|_| Err(anyhow!(UNREADABLE))));
        let listed = match timeout(limit, added).await {
            Ok(Ok(AddTorrentResponse::ListOnly(listed))) => listed,
            Ok(Ok(_)) => return Err(failed("it is open already".to_owned())),
            Ok(Err(error)) => match error.downcast::<librqbit_core::Error>() {
                // It has the right hash, and its lengths and pieces do not fit.
                Ok(wrong) => return Err(self.known().refuse(hash, wrong.to_string())),
                Err(error) => return Err(failed(format!("{error:#}"))),
            },
            Err(_) => return Err(failed("nobody answered in time".to_owned())),
        };
        self.searches().saw(hash, listed.seen_peers);
        let (known, text) = (self.known().clone(), listed.torrent_bytes);
        let keep = move || known.keep_info(hash, &info_of(&text)?);
        self.tasks().blocking("keep a torrent", keep).await.map_err(|_| TorrentError::Closed)?
    }
}
