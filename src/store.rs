//! What is on disk: one flat sparse file per content, the index over them, pins, eviction, recovery.
//!
//! All calls are synchronous: they take microseconds unless the disk is slow, and callers on a runtime
//! whose threads must not wait use [`crate::tasks::Tasks::blocking`].
//!
//! # What a crash leaves
//! Data is synced before the index says that it is there, and the index before anyone is told. So after a power
//! failure everything that [`Store::commit`] acknowledged is there, downloads miss at most what came since their last
//! commit ([`Store::FLUSH_INTERVAL`]), and files without a row are unlinked at the next start.
//!
//! # Locks
//! From the outside in: the gate of block lookups, the leader of the group commit, the registry of open objects, an object's holes, the pending
//! set, an object's ranges, the index.

mod adopt;
mod ahead;
mod batch;
mod blocks;
mod codec;
mod commit;
mod disk;
mod evict;
#[cfg(test)]
pub(crate) mod faulty;
mod gc;
mod heal;
mod index;
mod keep;
mod merge;
mod object;
mod opening;
mod pending;
mod recheck;
mod recover;
mod registry;
mod report;
mod reserve;
mod rows;
mod shadow;
mod space;
mod state;
mod trouble;
mod unsynced;
mod verify;
mod working;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lru::LruCache;

pub use self::{
    ahead::ExpectedWrites,
    batch::{Batch, FileStamp, Seal, SealLeaves},
    merge::Mergeable,
    object::Object,
    report::{GcReport, KnownRoot, Pin, StoreStats, VerifyReport},
    space::default_min_free,
    state::StateTree,
    trouble::Trouble,
    working::{WorkingFile, WorkingWriter},
};
use self::{
    commit::Request,
    disk::{Disk, RealDisk},
    index::Index,
    pending::PendingSets,
    registry::Registry,
    reserve::Reserve,
    rows::Delta,
    space::{Gauge, Limits, Room},
    state::State,
    trouble::Health,
};
use crate::{
    content::{Block, ByteRange, ContentId, FileInfo, RangeSet},
    sys::Holder,
    tasks::Tasks,
};

/// Options of [`Store::open`].
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The data folder; made with mode 0700 when it is not there.
    pub dir: PathBuf,
    /// Bytes of disk that unpinned content may take; none: a tenth of the disk.
    pub cache_limit: Option<u64>,
    /// Bytes of disk to leave free; none: 1 GiB, and no more than a twentieth of the disk.
    pub min_free: Option<u64>,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on a file of the store failed; ENOSPC stays visible in `source`.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// Another process has the data folder open.
    #[error("{} is in use by another chiral daemon", .0.display())]
    Locked(PathBuf),
    /// The index could not be read or written.
    #[error("index: {0}")]
    Index(String),
    /// The working state could not be read or written.
    #[error("working state: {0}")]
    State(#[from] sled::Error),
    /// The index was written by another release.
    #[error("{} has format {found}, which this release does not know; start the one that wrote it", path.display())]
    Format {
        /// The index.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// A change does not fit what is there; nothing of it was done.
    #[error("refused: {0}")]
    Rejected(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Bytes were asked for that are not here.
    #[error("bytes {0} are not here")]
    Missing(ByteRange),
}

/// Names an object for ever; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u64);

macro_rules! index_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                match redb::Error::from(error) {
                    redb::Error::Io(source) => {
                        Self::Io { what: "access", path: recover::INDEX_FILE.into(), source }
                    }
                    // A call after one that the disk refused: nothing is damaged.
                    redb::Error::PreviousIo => Self::Io {
                        what: "access",
                        path: recover::INDEX_FILE.into(),
                        source: std::io::Error::other("an earlier access failed"),
                    },
                    other => Self::Index(other.to_string()),
                }
            }
        }
    )*};
}

index_errors!(
    redb::Error,
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

impl From<codec::Damaged> for StoreError {
    fn from(error: codec::Damaged) -> Self {
        Self::Index(error.to_string())
    }
}

/// The store. Clones share it.
///
/// # Errors
/// Each call that gives a [`StoreError`] fails with `Io`, `Index` or `State` where the disk does, with `Closed` after
/// [`Store::close`], and those that take in bytes with ENOSPC ([`StoreError::is_no_space`]) when the disk is full even
/// after eviction. Reading needs no room on the disk. What else can go wrong stands with each call.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Objects that are kept open for serving blocks of content that nobody reads: descriptors, 64 of 1,024.
const RECENT_OBJECTS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);

/// What the clones of a store share.
#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    objects: PathBuf,
    disk: Arc<dyn Disk>,
    index: Index,
    reserve: Arc<Reserve>,
    state: Arc<State>,
    /// Object id to the second of its last read; written behind.
    reads: StateTree,
    /// Last reads that are not in `reads` yet.
    new_reads: Mutex<HashMap<ObjectId, u64>>,
    /// Holds the lock of the data folder as long as it is open.
    lock: File,
    limits: Limits,
    gauge: Gauge,
    whole: heal::Whole,
    health: Arc<Health>,
    ahead: ahead::Writers,
    cloning: working::Cloning,
    next_id: AtomicU64,
    /// Files whose names are not durable yet.
    new_names: Mutex<HashSet<ObjectId>>,
    registry: Mutex<Registry>,
    recent: Mutex<LruCache<ObjectId, Arc<Object>>>,
    /// Held shared while a block is looked up, exclusively for the moment in which an object begins to change.
    gate: RwLock<()>,
    pending: Mutex<PendingSets>,
    queue: Mutex<Vec<Request>>,
    /// Whoever holds it runs the group commit.
    leader: Mutex<()>,
    figures: Figures,
    /// Working files whose sync failed and that were not written again since.
    unsynced: Mutex<HashSet<ObjectId>>,
    /// Objects whose files look changed and are to be hashed again.
    suspects: Mutex<HashSet<ObjectId>>,
    suspected: Arc<tokio::sync::Notify>,
    /// The daemon ends: long work stops.
    stopping: AtomicBool,
    /// Pins came or went since it was found out last how much of the cache they keep.
    pins_moved: AtomicBool,
    /// Objects went, or the upload tree let go of something, since nodes were swept last.
    evicted: AtomicBool,
    /// What was found to be retained last.
    retained: Mutex<Option<keep::Retained>>,
    /// When eviction for a full disk found nothing last.
    fruitless: Mutex<Option<Instant>>,
    /// Wakes the flusher before its time.
    wake: Arc<tokio::sync::Notify>,
}

/// Sums over the rows of objects. Signed: they are moved by differences.
#[derive(Debug, Default)]
struct Figures {
    objects: AtomicI64,
    bytes: AtomicI64,
    cache: AtomicI64,
    /// Objects of `cache`.
    cached: AtomicI64,
    /// Part of `cache` that pins reached when eviction looked last.
    pinned: AtomicI64,
}

impl Figures {
    fn add(&self, delta: Delta) {
        self.objects.fetch_add(delta.objects, Ordering::Relaxed);
        self.bytes.fetch_add(delta.bytes, Ordering::Relaxed);
        self.cache.fetch_add(delta.cache, Ordering::Relaxed);
        self.cached.fetch_add(delta.cached, Ordering::Relaxed);
    }

    fn get(figure: &AtomicI64) -> u64 {
        u64::try_from(figure.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        guard(&self.registry)
    }

    fn pending(&self) -> MutexGuard<'_, PendingSets> {
        guard(&self.pending)
    }

    fn new_names(&self) -> MutexGuard<'_, HashSet<ObjectId>> {
        guard(&self.new_names)
    }

    fn lead(&self) -> MutexGuard<'_, ()> {
        guard(&self.leader)
    }

    fn next_id(&self) -> ObjectId {
        ObjectId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Remembers when an object was read last, for the order of eviction.
    fn note_read(&self, id: ObjectId, at: u64) {
        if at > 0 {
            let mut reads = guard(&self.new_reads);
            let last = reads.entry(id).or_default();
            *last = at.max(*last);
        }
    }
}

/// Seconds since the epoch.
fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Store {
    /// Opens or makes the data folder, takes its lock and repairs what a crash left.
    pub fn open(options: StoreOptions, tasks: &Tasks) -> Result<Self, StoreError> {
        recover::open(&options, tasks, Arc::new(RealDisk))
    }
    /// As [`Store::open`] on a disk that has no room for content while `full` is on.
    #[cfg(test)]
    pub(crate) fn open_on_filling_disk(
        options: &StoreOptions,
        tasks: &Tasks,
        full: Arc<std::sync::atomic::AtomicBool>,
    ) -> Result<Self, StoreError> {
        recover::open(options, tasks, Arc::new(disk::FillingDisk(full)))
    }
    /// As [`Store::open`] on a disk that fails or stops.
    #[cfg(test)]
    pub(crate) fn open_on_faulty_disk(
        options: &StoreOptions,
        tasks: &Tasks,
        disk: Arc<faulty::FaultyDisk>,
    ) -> Result<Self, StoreError> {
        recover::open(options, tasks, disk)
    }
    /// How many transactions were committed.
    #[cfg(test)]
    pub(crate) fn commits(&self) -> Result<u64, StoreError> {
        self.inner.commits()
    }
    /// Flips a bit of an object, as a disk does: nothing about its file shows it.
    #[cfg(test)]
    pub(crate) fn rot(&self, id: ObjectId, at: u64) -> Result<(), StoreError> {
        self.inner.rot(id, at)
    }
    /// Commits what is pending and closes the files; later calls fail.
    pub fn close(&self) -> Result<(), StoreError> {
        self.inner.close()
    }
    /// The data folder.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    // --- blocks -------------------------------------------------------------------------------------------------
    /// Length of a block if it can be served: with its bytes here, or carried by the id, or the empty block.
    pub fn block_len(&self, id: &ContentId) -> Result<Option<usize>, StoreError> {
        self.inner.block_len(id)
    }
    /// The exact bytes of a block.
    pub fn block(&self, id: &ContentId) -> Result<Option<Block>, StoreError> {
        self.inner.block(id)
    }
    /// Keeps a DAG node that belongs to no object or is an interior node of one. Durable with the next group commit.
    pub fn put_node(&self, block: &Block) -> Result<(), StoreError> {
        self.inner.put_node(block)
    }
    /// Takes a block's bytes out of service: they were found wrong.
    pub fn withdraw(&self, id: &ContentId) -> Result<(), StoreError> {
        self.inner.withdraw(id)
    }

    // --- objects ------------------------------------------------------------------------------------------------
    /// The object of a file's root, if one is here, whole or in part.
    pub fn object(&self, root: &ContentId) -> Result<Option<Arc<Object>>, StoreError> {
        self.inner.object_of(root)
    }
    /// The object of a file's root, made empty when there is none.
    pub fn create_object(&self, root: &ContentId, size: u64) -> Result<Arc<Object>, StoreError> {
        self.inner.create_object(root, size)
    }
    /// An object by its id.
    pub fn object_by_id(&self, id: ObjectId) -> Result<Option<Arc<Object>>, StoreError> {
        self.inner.open_object(id)
    }

    // --- publishing ---------------------------------------------------------------------------------------------
    /// A new empty file beside the objects. Unlinked at the next start unless a [`Batch`] kept or sealed it.
    pub fn working_file(&self) -> Result<WorkingFile, StoreError> {
        self.inner.working_file()
    }
    /// Whether anyone, this process too, has the file of an object open or mapped so that it can write.
    pub fn has_writer(&self, id: ObjectId) -> Result<bool, StoreError> {
        self.inner.object_is_held(id, Holder::Writer)
    }
    /// Whether anyone, this process too, has the file of an object open or mapped at all.
    pub fn is_held(&self, id: ObjectId) -> Result<bool, StoreError> {
        self.inner.object_is_held(id, Holder::Anyone)
    }
    /// Verifies the object of a root, if there is one that was ever whole, and repairs what rotted in it from `file`, whose
    /// leaves are known by their hashes. So content that is published again is not taken for what is there but damaged.
    ///
    /// # Errors
    /// When index or files cannot be read or written.
    pub fn heal(
        &self,
        root: &ContentId,
        file: &File,
        leaves: &SealLeaves,
    ) -> Result<(), StoreError> {
        self.inner.heal(root, file, leaves)
    }
    /// Returns whether all bytes of an object were hashed a short time ago.
    pub fn is_verified(&self, id: ObjectId) -> bool {
        self.inner.whole.contains(id)
    }
    /// Opens a working file that an earlier process kept.
    pub fn reopen_working(&self, id: ObjectId) -> Result<Option<WorkingFile>, StoreError> {
        self.inner.reopen_working(id)
    }
    /// The file of an object, of which the caller knows which bytes it has.
    pub fn file_of(&self, id: ObjectId) -> WorkingFile {
        self.inner.file_of(id)
    }
    /// Makes the data of a working file durable. After an error its bytes may not be on the disk, and no later sync
    /// tells; the file is not sealed before [`Store::rewrite_unsynced`].
    ///
    /// # Errors
    /// As fdatasync(2).
    pub fn sync_working(&self, id: ObjectId, file: &File) -> Result<(), StoreError> {
        self.inner.sync_working(id, file)
    }
    /// As after a failed [`Store::sync_working`].
    #[cfg(test)]
    pub(crate) fn sync_failed(&self, id: ObjectId) {
        self.inner.note_unsynced(std::iter::once(id));
    }
    /// Whether a sync of a working file failed and it was not written again since.
    pub fn is_unsynced(&self, id: ObjectId) -> bool {
        self.inner.is_unsynced(id)
    }
    /// Writes all bytes of a working file again if a sync of it failed; whether it did. Its mtime stays, its ctime does
    /// not. Nobody else may write it meanwhile.
    pub fn rewrite_unsynced(&self, id: ObjectId) -> Result<bool, StoreError> {
        self.inner.rewrite_unsynced(id)
    }
    /// A copy of an object that shares its extents (FICLONE); none where the filesystem cannot.
    pub fn clone_object(&self, id: ObjectId) -> Result<Option<WorkingFile>, StoreError> {
        self.inner.clone_object(id)
    }
    /// Keeps the leaves of an object that a new version will overwrite, in the ranges of `overwritten` (whole leaves),
    /// beside it and durable, so that the old version is served as before.
    ///
    /// # Errors
    /// When the index cannot be read or written, or the disk has no room for the old leaves.
    pub fn prepare_merge(
        &self,
        id: ObjectId,
        overwritten: &RangeSet,
    ) -> Result<Mergeable, StoreError> {
        self.inner.prepare_merge(id, overwritten)
    }
    /// Lets a new version be written into an object, in ranges that [`Store::prepare_merge`] was called for; durable when
    /// it returns. A [`Seal`] makes it the new version. None where somebody has it open or mapped, here or elsewhere.
    ///
    /// # Errors
    /// When the index cannot be read or written.
    pub fn begin_merge(
        &self,
        id: ObjectId,
        overwritten: &RangeSet,
    ) -> Result<Option<WorkingFile>, StoreError> {
        self.inner.begin_merge(id, overwritten)
    }
    /// Whether anybody but those that serve its blocks has an object open or mapped, here or elsewhere.
    ///
    /// # Errors
    /// Where the filesystem has no leases.
    pub fn is_in_use(&self, id: ObjectId) -> Result<bool, StoreError> {
        self.inner.is_in_use(id)
    }
    /// A working file with the bytes of a file that lies elsewhere, which are not copied; none where they would have to be.
    /// Nobody may change that file any more. The object that it becomes is to have an owner as long as the file is there.
    pub fn adopt(&self, path: &Path) -> Result<Option<WorkingFile>, StoreError> {
        self.inner.adopt(path)
    }
    /// Whether FICLONE works in the data folder; probed at start.
    pub fn can_clone(&self) -> bool {
        self.inner.can_clone()
    }
    /// Makes a batch durable. Batches of several callers share one group commit; when it returns, `kill -9` and power loss
    /// cannot take it back. Blocks for some milliseconds.
    pub fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.inner.commit(batch, false)
    }
    /// Rows of the upload tree, by key.
    pub fn tree(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.inner.index.read(index::tree)
    }
    /// Description of a published file.
    pub fn file_info(&self, root: &ContentId) -> Result<Option<FileInfo>, StoreError> {
        self.inner.file_info(root)
    }
    /// Descriptions of all published files, without their chunks.
    pub fn files(&self) -> Result<Vec<FileInfo>, StoreError> {
        self.inner.files()
    }

    // --- keeping ------------------------------------------------------------------------------------------------
    /// Pins a root. Everything below it is kept from then on, also what is fetched later.
    pub fn pin(&self, pin: Pin) -> Result<(), StoreError> {
        self.inner.pin(&pin)
    }
    /// Takes a pin away; whether there was one.
    pub fn unpin(&self, root: &ContentId) -> Result<bool, StoreError> {
        self.inner.unpin(root)
    }
    /// All pins.
    pub fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        self.inner.pins()
    }
    /// Remembers a root that was opened, for the root listing; forgotten when it is evicted.
    pub fn remember_root(&self, root: KnownRoot) -> Result<(), StoreError> {
        self.inner.remember_root(root)
    }
    /// Roots that are pinned, or were opened and are here.
    pub fn known_roots(&self) -> Result<Vec<KnownRoot>, StoreError> {
        self.inner.known_roots()
    }
    /// Whether a block belongs to something that is published or pinned, and is not only cached.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn is_retained(&self, id: &ContentId) -> Result<bool, StoreError> {
        self.inner.is_retained(id)
    }
    /// Figures; never waits for the network or scans the disk.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        self.inner.stats()
    }
    /// Hashes everything and withdraws what is wrong. `progress` gets bytes done and bytes in all.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport, StoreError> {
        self.inner.verify(progress)
    }
    /// Removes everything that is neither pinned nor published nor open.
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        self.inner.gc()
    }
    /// Evicts least recently read content until the limits hold. Runs by itself; here for tests.
    pub fn evict(&self) -> Result<GcReport, StoreError> {
        self.inner.evict()
    }
    /// Evicts what nobody needs, for a write past the store that found the disk full; whether there is more room now.
    pub fn make_room(&self) -> Result<bool, StoreError> {
        let report = self.inner.evict_for_space()?;
        Ok(report.bytes > 0 || report.objects > 0)
    }
    /// Makes room for `bytes` in a file, above `min_free` and the reserve of the index.
    ///
    /// # Errors
    /// ENOSPC where nothing is left that may be evicted, EROFS on a read-only disk.
    pub fn admit(&self, bytes: u64) -> Result<(), StoreError> {
        self.inner.admit(Room { bytes, files: 0 })
    }
    /// As [`Store::admit`] for rows of the upload tree. Evicts nothing itself, and so never waits.
    ///
    /// # Errors
    /// As [`Store::admit`].
    pub fn admit_row(&self) -> Result<(), StoreError> {
        self.inner.admit_row()
    }
    /// Unlinks a working file that no batch has kept or sealed.
    pub fn discard(&self, file: &WorkingFile) {
        self.inner.discard(file.id);
    }
    /// Refuses changes of what is durable while the disk is read-only.
    ///
    /// # Errors
    /// EROFS on a read-only disk.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        self.inner.check_writable()
    }
    /// Keeps room ahead of a program that writes into a working file past the store, until it is dropped.
    pub fn expect_writes(&self) -> ExpectedWrites {
        self.inner.expect_writes()
    }
    /// Returns whether so little is free that programs should write through the daemon, which makes room for each write.
    pub fn is_tight(&self) -> bool {
        self.inner.is_tight()
    }
    /// Current trouble of the disk.
    pub fn trouble(&self) -> Option<Trouble> {
        self.inner.health.trouble()
    }
    /// Logs an error of the disk, once for all calls that fail with it. False where `error` says nothing about the disk:
    /// then the caller logs it.
    pub fn tell(&self, error: &StoreError) -> bool {
        self.inner.tell(error)
    }
    /// A tree of working state.
    pub fn state(&self, name: &'static str) -> Result<StateTree, StoreError> {
        Ok(self.inner.state.tree(name))
    }
    /// Makes downloaded blocks durable now instead of within two seconds.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.inner.flush()
    }
    /// Longest time that a downloaded block waits for its commit.
    pub const FLUSH_INTERVAL: Duration = Duration::from_secs(2);
}
