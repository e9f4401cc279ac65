//! What the user does with torrents: adds, seeds, pauses, removes.

use std::{ffi::OsString, io, num::NonZeroU32};

use super::{
    Limits, ListedTorrent, Magnet, Metainfo, Source, TorrentError, TorrentEvent, Torrents,
    active::Active,
};
use crate::content::{ContentId, InfoHash};

impl Torrents {
    /// Makes a torrent of published files known, and gives it to others from now on. `text` is its description.
    ///
    /// # Errors
    /// When the disk fails, or the session refuses it. It is seeded from the next start on all the same.
    pub async fn publish(&self, text: Vec<u8>, source: Source) -> Result<Magnet, TorrentError> {
        let hash = Metainfo::parse(&text)?.hash;
        // Whoever has it open as somebody else's opens it again.
        self.retire(hash).await;
        let torrents = self.clone();
        let kept = self.tasks().blocking("keep a torrent", move || {
            torrents.known().put_source(hash, &source)?;
            torrents.keep(&text)
        });
        kept.await.map_err(|_| TorrentError::Closed)??;
        self.seed(hash).await
    }

    /// Keeps a `.torrent` file under the name that it has for the user.
    ///
    /// # Errors
    /// When it is malformed, or the disk fails.
    pub fn add_named(&self, text: &[u8], name: &str) -> Result<InfoHash, TorrentError> {
        let hash = self.keep(text)?.hash;
        self.known().rename(hash, name)?;
        Ok(hash)
    }

    /// Keeps a link and looks for what is in it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn add_link(&self, magnet: &Magnet) -> Result<(), TorrentError> {
        self.learn(magnet);
        self.known().seek(magnet)?;
        self.look_for(magnet.hash);
        Ok(())
    }

    /// Trackers of the configuration.
    pub fn trackers(&self) -> &[String] {
        &self.options().trackers
    }

    /// Reads bytes of a published file.
    ///
    /// # Errors
    /// When it is not here, or the disk fails.
    pub fn read_published(&self, id: &ContentId, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.host().read(id, at, to)
    }

    /// How many are listed.
    pub fn count(&self) -> usize {
        self.known().listed().len()
    }

    /// The names of all torrents and what each stands for.
    pub fn names(&self) -> Vec<(OsString, ListedTorrent)> {
        self.known().names()
    }

    /// What a name of the listing stands for.
    pub fn named(&self, name: &std::ffi::OsStr) -> Option<ListedTorrent> {
        self.known().named(name)
    }

    /// The name under which a torrent's description is listed; none as long as nobody gave that.
    pub fn file_name(&self, hash: InfoHash) -> Option<String> {
        self.known().about(hash).map(|about| about.file).filter(|file| !file.is_empty())
    }

    /// Gives the description another name in the listing.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn rename(&self, hash: InfoHash, name: &str) -> Result<(), TorrentError> {
        self.known().rename(hash, name)
    }

    /// The description as a `.torrent` file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn text(&self, hash: InfoHash) -> Result<Vec<u8>, TorrentError> {
        self.known().read(hash)
    }

    /// Where the description is on disk.
    pub fn text_path(&self, hash: InfoHash) -> std::path::PathBuf {
        self.known().text_path(hash)
    }

    /// Bytes of [`Torrents::text`].
    pub fn text_len(&self, hash: InfoHash) -> u64 {
        self.known().text_len(hash)
    }

    /// Neither fetches nor gives a torrent, until [`Torrents::resume`].
    ///
    /// # Errors
    /// [`TorrentError::NoSuchTorrent`], or when the disk fails.
    pub async fn pause(&self, hash: InfoHash) -> Result<(), TorrentError> {
        self.known().change(hash, |about| about.paused = true)?;
        let Some(metainfo) = self.metainfo_now(hash).transpose()? else {
            self.searches().give_up(hash);
            return Ok(());
        };
        let active = self.active(&metainfo)?;
        let stopped = active.pause().await;
        self.tell(&active);
        stopped
    }

    /// Lets a torrent go on: what is here is given.
    ///
    /// # Errors
    /// [`TorrentError::NoSuchTorrent`], or as [`Torrents::seed`].
    pub async fn resume(&self, hash: InfoHash) -> Result<(), TorrentError> {
        self.known().change(hash, |about| about.paused = false)?;
        let Some(metainfo) = self.metainfo_now(hash).transpose()? else {
            self.look_for(hash);
            return Ok(());
        };
        let active = self.active(&metainfo)?;
        active.unpause();
        let started = if self.options().online { active.go_live().await } else { Ok(()) };
        self.tell(&active);
        started
    }

    /// Forgets a torrent, with all of it that is on disk but what it was made from; that is given back.
    ///
    /// # Errors
    /// [`TorrentError::NoSuchTorrent`], or when the disk fails.
    pub async fn remove(&self, hash: InfoHash) -> Result<Option<Source>, TorrentError> {
        if self.known().about(hash).is_none() {
            return Err(TorrentError::NoSuchTorrent(hash));
        }
        let source = self.source(hash);
        self.searches().give_up(hash);
        self.retire(hash).await;
        let known = self.known().clone();
        let forgotten = self.tasks().blocking("remove a torrent", move || known.forget(hash));
        forgotten.await.map_err(|_| TorrentError::Closed)??;
        self.host().told(TorrentEvent::Removed(hash));
        self.lost();
        Ok(source)
    }

    /// Takes a torrent out of the session.
    async fn retire(&self, hash: InfoHash) {
        let taken = self.take_active(hash);
        if let Some(active) = taken {
            active.retire().await;
        }
    }

    /// Goes on with what was seeded and looked for when the daemon last ended. Nobody waits for it.
    pub fn go_on(&self) {
        let listed = self.known().listed().into_iter();
        let wanted: Vec<_> = listed
            .filter(|(_, about)| !about.paused && (about.seed || about.magnet.is_some()))
            .collect();
        if wanted.is_empty() || !self.options().online {
            return;
        }
        let (torrents, cancelled) = (self.clone(), self.tasks().cancelled());
        self.tasks().spawn("torrents go on", async move {
            let going_on = async {
                for (hash, about) in wanted {
                    if about.magnet.is_some() {
                        torrents.look_for(hash);
                    } else if let Err(error) = torrents.go_live(hash).await {
                        tracing::warn!(%hash, %error, "a torrent is not seeded");
                    }
                }
            };
            tokio::select! {
                () = going_on => {}
                () = cancelled => {}
            }
        });
    }

    async fn go_live(&self, hash: InfoHash) -> Result<(), TorrentError> {
        let metainfo = self.metainfo(hash).await?;
        let active = self.active(&metainfo)?;
        let started = active.go_live().await;
        self.tell(&active);
        started
    }

    /// Gives a torrent to others from now on, as far as it is here; also after a restart.
    ///
    /// # Errors
    /// When nobody has its description, or the session refuses it.
    pub async fn seed(&self, hash: InfoHash) -> Result<Magnet, TorrentError> {
        self.metainfo(hash).await?;
        self.known().change(hash, |about| (about.seed, about.paused) = (true, false))?;
        if let Some(metainfo) = self.metainfo_now(hash).transpose()? {
            let active = self.active(&metainfo)?;
            active.unpause();
            // It may be given already; whoever tells others of what the user gives hears of it all the same.
            active.forget_told();
        }
        // With the next start that is not offline.
        if !self.options().online {
            return Ok(self.magnet_here(hash));
        }
        self.go_live(hash).await?;
        Ok(self.magnet_here(hash))
    }

    /// A link that leads to a torrent and names this node, where one address of it is known for sure.
    pub fn magnet_here(&self, hash: InfoHash) -> Magnet {
        let mut magnet = self.magnet(hash);
        let own = self.address().filter(|address| !address.ip().is_unspecified());
        magnet.merge(&Magnet { peers: own.into_iter().collect(), ..Magnet::of(hash) });
        magnet
    }

    /// Most bytes per second of all torrents together, from now on. None: no limit.
    pub fn set_limits(&self, limits: Limits) {
        self.put_limits(limits);
    }
}

/// What librqbit waits for at once: with a limit below it, nothing would ever be sent.
const SMALLEST_LIMIT: u32 = 16 << 10;

impl Limits {
    /// A limit in bytes per second; 0, and what does not fit into the number, is none.
    ///
    /// # Errors
    /// The smallest one that works, for one that is smaller.
    pub fn of(bytes: u64) -> Result<Option<NonZeroU32>, u32> {
        match u32::try_from(bytes).ok().and_then(NonZeroU32::new) {
            Some(limit) if limit.get() < SMALLEST_LIMIT => Err(SMALLEST_LIMIT),
            limit => Ok(limit),
        }
    }

    /// The same where no more than this may be sent.
    pub(super) fn with_upload(self, most: Option<NonZeroU32>) -> Self {
        let upload = self.upload.into_iter().chain(most).min();
        Self { upload, ..self }
    }
}

impl Active {
    /// Gives it to others and fetches what is wanted of it.
    pub(super) async fn go_live(&self) -> Result<(), TorrentError> {
        let started = self.try_to_go_live().await;
        let failed = started.as_ref().err();
        let trouble = failed.filter(|e| !matches!(e, TorrentError::Paused(_))).cloned();
        self.will().trouble = trouble;
        started
    }

    async fn try_to_go_live(&self) -> Result<(), TorrentError> {
        self.may_go()?;
        if self.metainfo().len == 0 {
            // There is nothing to be asked for; the session takes no torrent without bytes.
            return Ok(());
        }
        let hash = self.metainfo().hash;
        if let Some(published) = self.files().published().cloned() {
            let look = move || published.missing();
            let missing = self.torrents().tasks().blocking("look at what is seeded", look).await;
            if let Some(id) = missing.map_err(|_| TorrentError::Closed)? {
                return Err(TorrentError::Gone { hash, id });
            }
        }
        let fetch = self.fetch().await?;
        if let Some(published) = self.files().published().filter(|_| !self.pieces().is_complete()) {
            return Err(TorrentError::Gone { hash, id: published.source.root });
        }
        fetch.go_live(self).await
    }

    /// Takes it out of the session for good; whoever has it open hears that it was removed.
    pub(super) async fn retire(&self) {
        self.set_removed();
        self.pieces().nudge();
        // Waits for one who is just taking it up.
        let gone = async || Err(TorrentError::Removed(self.metainfo().hash));
        if let Ok(fetch) = self.fetch_or(gone).await {
            fetch.leave().await;
        }
    }
}
