//! The composition root: builds store, network, engine and upload tree, and resolves ids to trees.
//!
//! `fs`, `config` and `control` see the layers below through the names that are exported again here.

mod accounts;
mod cache;
mod car;
mod contents;
mod fellows;
mod here;
mod listener;
mod paths;
mod pins;
mod protocol;
mod reading;
mod resolve;
mod root;
mod seeding;
mod status;
mod swarms;
#[cfg(test)]
pub(crate) mod tests;
mod torrent_host;
mod transfers;
mod twins;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};

pub use self::{
    accounts::Account,
    car::{CarFailure, CarInput, CarPlan, CarScope, Imported, ImportedRoot, Spool},
    here::Here,
    paths::{default_data_dir, refuse_nested},
    pins::PinState,
    protocol::{Child, Children, Described, Known, OpenFile, Passage, Place, Protocol, Unshown},
    reading::Reading,
    root::{Root, RootError},
    seeding::SeedError,
    status::{Peer, Status, StoreStatus, TorrentsStatus},
    transfers::Running,
};
pub use crate::{
    content::ImportParams,
    download::{
        DownloadError, DownloadOptions, Engine, Event, FileHandle, ReaderId, Strategy, Transfer,
    },
    net::{Multiaddr, Net, NetError, NetOptions, PeerId, PeerInfo, ReachOptions},
    publish::{
        Backing, IGNORED, Identifier, IgnorePatterns, IgnoreScope, ImportOptions, ImportedTree,
        OpenFlags, PatternError, PublishError, PublishOptions, RenameMode, SetAttr, Skipped,
        UploadAttr, UploadEntry, UploadHandle, UploadIno, UploadKind, UploadState, Uploads,
        Watcher,
    },
    sources::{GatewayUrl, HttpOptions, ProxyUrl, SourceId, UrlError},
    store::{
        GcReport, KnownRoot, Object, ObjectId, Pin, Store, StoreError, StoreOptions, StoreStats,
        VerifyReport,
    },
    torrent::{
        Cached, Limits, ListedTorrent, Magnet, MagnetError, Selection, TorrentError,
        TorrentOptions, TorrentState, TorrentStatus, Torrents, links_in,
    },
};
use crate::{
    content::{ContentId, DagError, Metadata, NodeKind},
    node::{
        accounts::Accounts,
        cache::Cache,
        fellows::{Book, Changes, Fellows},
        listener::Announcer,
        torrent_host::TorrentHost,
        twins::{EngineFeeder, Twins},
    },
    sources::{BitswapFinder, Finder, Finders, Hearsay, HttpFinder, SwarmFinder, Webseeds},
    tasks::Tasks,
    torrent::Feeder,
};

/// Everything that a node can be told.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub struct NodeOptions {
    pub store: StoreOptions,
    pub net: NetOptions,
    pub http: HttpOptions,
    pub download: DownloadOptions,
    pub publish: PublishOptions,
    pub torrent: TorrentOptions,
    /// Whether everything that is published is given to others as a torrent, too.
    pub seed_uploads: bool,
    /// Bytes that a peer may owe before that is told, and again with each further such amount; 0: never.
    pub credit: u64,
}

/// Why the node could not start or resolve something.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sources say it")]
pub enum NodeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Torrent(#[from] TorrentError),
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error("nothing here can open {0}")]
    NoProtocol(String),
    #[error("{name}: no such entry in {root}")]
    NoName { root: String, name: String },
    #[error("{path}: no such entry in {dir}")]
    NoEntry { dir: ContentId, path: String },
    #[error("{0} is not a directory")]
    NotADirectory(ContentId),
    #[error("{0} is a directory")]
    IsADirectory(ContentId),
    #[error("{0} is a symbolic link")]
    IsASymlink(ContentId),
    #[error(
        "the data folder and the mountpoint {} lie in one another: the daemon would wait for itself; choose another --data-dir or mountpoint",
        .0.display()
    )]
    Nested(PathBuf),
}

impl From<DagError> for NodeError {
    fn from(error: DagError) -> Self {
        Self::Download(error.into())
    }
}

/// What an id turned out to be.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The id.
    pub id: ContentId,
    /// File, directory (sharded ones say [`NodeKind::Directory`] too) or symlink.
    pub kind: NodeKind,
    /// Bytes of a file, length of a symlink's target, 0 of a directory.
    pub size: u64,
    /// Mode and mtime where the DAG has them.
    pub meta: Metadata,
    /// Target of a symlink.
    pub target: Option<OsString>,
}

/// The node; clones share it.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    net: Net,
    engine: Engine,
    uploads: Uploads,
    torrents: Torrents,
    twins: Arc<Twins>,
    accounts: Arc<Accounts>,
    tasks: Tasks,
    cache: Cache,
    mountpoint: Mutex<Option<PathBuf>>,
    gateway: Mutex<Option<String>>,
    /// A pin could not be fetched to its end.
    pins_to_fetch: Notify,
    /// Held while a torrent is made or removed: both look at what others were made from.
    seeding: tokio::sync::Mutex<()>,
    read_only: bool,
}

/// The folder of the torrents in the data folder.
const TORRENTS: &str = "torrents";

/// Nobody can give what is not here while the daemon is offline: long enough to bring together what lies in several files.
const OFFLINE_PATIENCE: Duration = Duration::from_secs(1);

impl Node {
    /// Starts all parts, from the store up.
    ///
    /// # Errors
    /// When a part cannot start; those below it are left to the end of `tasks`.
    pub async fn start(options: NodeOptions, tasks: Tasks) -> Result<Self, NodeError> {
        let read_only = options.publish.read_only;
        // What was only read is not given to others either because a torrent has it.
        let serves_cached = options.net.serve_cached;
        let mut download = options.download;
        if options.net.offline {
            download.lookup_timeout = download.lookup_timeout.min(OFFLINE_PATIENCE);
        }
        let store = open_store(options.store, &tasks).await?;
        let http = (!options.net.offline).then_some(options.http);
        let net = Net::start(options.net, store.clone(), &tasks).await?;
        let (twins, accounts) = open_rows(&store, options.credit, &tasks).await?;
        let swarms = SwarmFinder::new(twins::places(&twins), &tasks);
        let hearsay = Hearsay::default();
        let finder = finder(&net, http.as_ref(), &swarms, &hearsay, &tasks);
        let engine = Engine::new(download, store.clone(), finder, &tasks);
        let (seeds, published) = seeding::queue(options.seed_uploads);
        let announcer = Arc::new(Announcer::new(net.clone(), engine.clone(), seeds));
        let told = announcer.clone().tell_announced(tasks.cancelled());
        tasks.spawn("announced", told);
        let uploads = open_uploads(options.publish, &store, announcer, &tasks).await?;
        let webseeds = http.as_ref().and_then(|http| Webseeds::new(http, &options.torrent));
        let changes = Arc::new(Changes::default());
        let host = TorrentHost::new(store.clone(), engine.clone(), changes.clone());
        let torrents = open_torrents(options.torrent, &store, host, &tasks).await?;
        swarms.open(&torrents);
        net.answer_torrents(Arc::new(Book::new(&net, &torrents, &twins, !serves_cached)));
        let fellows = Fellows::new(&net, &torrents, &twins, &hearsay, &tasks);
        let mut feeders: Vec<Arc<dyn Feeder>> =
            vec![Arc::new(fellows), Arc::new(EngineFeeder::new(&twins, &engine, &swarms))];
        feeders.extend(webseeds.map(|seeds| Arc::new(seeds) as Arc<dyn Feeder>));
        torrents.feed_from(feeders);
        let inner = Inner {
            store,
            net,
            engine,
            uploads,
            torrents,
            twins,
            accounts,
            tasks,
            cache: Cache::default(),
            mountpoint: Mutex::new(None),
            gateway: Mutex::new(None),
            pins_to_fetch: Notify::new(),
            seeding: tokio::sync::Mutex::default(),
            read_only,
        };
        let node = Self { inner: Arc::new(inner) };
        node.keep_fetching_pins();
        node.find_twins(serves_cached);
        node.keep_accounts();
        node.announce_torrents(changes, !serves_cached);
        node.torrents().go_on();
        node.seed_what_is_published(published);
        Ok(node)
    }

    /// Ends all parts, from the network down; what was acknowledged is on disk. Takes at most `deadline` and the
    /// time of one index commit. Tasks that did not end in time are named by [`Tasks::alive`].
    ///
    /// # Errors
    /// When something could not be written; the rest is ended all the same.
    pub async fn stop(&self, deadline: Duration) -> Result<(), NodeError> {
        let end = Instant::now() + deadline;
        // Two thirds for the hashing, which is the only part that can use more than a moment.
        let hashed = self.uploads().close(deadline * 2 / 3).await;
        let left = end.saturating_duration_since(Instant::now());
        let late = self.tasks().shutdown(left).await;
        if !late.is_empty() {
            tracing::warn!(?late, "tasks did not end in time");
        }
        let store = self.store().clone();
        // A disk that is slow to take the last commit holds up a thread for that, not the caller.
        let closed = self.tasks().blocking("close store", move || store.close()).await;
        hashed?;
        Ok(closed.map_err(|e| blocked("closing", self.store().dir(), e))??)
    }

    /// What is on disk.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The network.
    pub fn net(&self) -> &Net {
        &self.inner.net
    }

    /// The downloads.
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// The upload tree.
    pub fn uploads(&self) -> &Uploads {
        &self.inner.uploads
    }

    /// The torrents.
    pub fn torrents(&self) -> &Torrents {
        &self.inner.torrents
    }

    /// Whether nothing may be published.
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// All tasks of this node; they end with [`Node::stop`].
    pub fn tasks(&self) -> &Tasks {
        &self.inner.tasks
    }

    /// Everything that happens from now on; a receiver that lags loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.engine().events()
    }

    /// Remembers where the tree is mounted, for [`Node::status`].
    pub fn set_mountpoint(&self, mountpoint: Option<PathBuf>) {
        *self.inner.mountpoint.lock().unwrap_or_else(PoisonError::into_inner) = mountpoint;
    }

    /// Remembers where the node answers HTTP, for [`Node::status`].
    pub fn set_gateway(&self, url: Option<String>) {
        *self.inner.gateway.lock().unwrap_or_else(PoisonError::into_inner) = url;
    }

    /// Base URL at which the node answers HTTP.
    pub fn gateway(&self) -> Option<String> {
        self.inner.gateway.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the tree is mounted.
    pub fn mountpoint(&self) -> Option<PathBuf> {
        self.inner.mountpoint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Everybody who may know sources: all are asked at once. Offline there are no gateways.
fn finder(
    net: &Net,
    http: Option<&HttpOptions>,
    swarms: &SwarmFinder,
    hearsay: &Hearsay,
    tasks: &Tasks,
) -> Arc<dyn Finder> {
    let bitswap = Arc::new(BitswapFinder::new(net.clone(), hearsay, tasks));
    let mut all: Vec<Arc<dyn Finder>> = vec![bitswap, Arc::new(swarms.clone())];
    if let Some(http) = http {
        all.push(Arc::new(HttpFinder::new(http, hearsay, tasks)));
    }
    Arc::new(Finders::new(all, tasks))
}

/// Opens the store where waiting for the disk holds nobody up: repairing after a crash may take a while.
async fn open_store(options: StoreOptions, tasks: &Tasks) -> Result<Store, NodeError> {
    let inside = tasks.clone();
    let dir = options.dir.clone();
    let opened = tasks.blocking("open store", move || Store::open(options, &inside)).await;
    Ok(opened.map_err(|e| blocked("opening", &dir, e))??)
}

/// Reads the upload tree; what an earlier process left unfinished is looked at, and written.
async fn open_uploads(
    options: PublishOptions,
    store: &Store,
    announcer: Arc<Announcer>,
    tasks: &Tasks,
) -> Result<Uploads, NodeError> {
    let (inside, open) = (tasks.clone(), store.clone());
    let open = move || Uploads::open(options, open, announcer, &inside);
    let opened = tasks.blocking("open uploads", open).await;
    Ok(opened.map_err(|e| blocked("opening", store.dir(), e))??)
}

/// Reads which files of torrents are which contents, and what peers owe.
async fn open_rows(
    store: &Store,
    credit: u64,
    tasks: &Tasks,
) -> Result<(Arc<Twins>, Arc<Accounts>), NodeError> {
    let inside = store.clone();
    let open = move || Ok((Twins::open(&inside)?, Accounts::open(&inside, credit)?));
    let opened: Result<_, StoreError> =
        tasks.blocking("open rows", open).await.map_err(|e| blocked("opening", store.dir(), e))?;
    let (twins, accounts) = opened?;
    Ok((Arc::new(twins), Arc::new(accounts)))
}

/// Looks which torrents are known.
async fn open_torrents(
    options: TorrentOptions,
    store: &Store,
    host: TorrentHost,
    tasks: &Tasks,
) -> Result<Torrents, NodeError> {
    let (inside, dir) = (tasks.clone(), store.dir().join(TORRENTS));
    let open = move || Torrents::open(options, &dir, Arc::new(host), &inside);
    let opened = tasks.blocking("open torrents", open);
    Ok(opened.await.map_err(|e| blocked("opening", store.dir(), e))??)
}

/// A thread for the disk did not come to its end.
fn blocked(what: &'static str, dir: &Path, error: tokio::task::JoinError) -> StoreError {
    StoreError::Io { what, path: dir.to_owned(), source: std::io::Error::other(error) }
}
