//! Opening the data folder: its lock, what a crash left, and the tasks that keep it in order.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

use lru::LruCache;

use super::{
    Figures, Inner, ObjectId, RECENT_OBJECTS, Store, StoreError, StoreOptions,
    ahead::Writers,
    disk::Disk,
    heal::Whole,
    index::{self, Index},
    reserve::Reserve,
    rows::Delta,
    space::{Gauge, Limits},
    state::State,
    trouble::Health,
    working,
};
use crate::tasks::Tasks;

pub(super) const INDEX_FILE: &str = "index.redb";

/// Opens the store and starts its tasks.
pub(super) fn open(
    options: &StoreOptions,
    tasks: &Tasks,
    disk: Arc<dyn Disk>,
) -> Result<Store, StoreError> {
    let store = open_idle(options, disk)?;
    super::evict::start(&store.inner, tasks);
    Ok(store)
}

/// Opens the store without the tasks that flush and evict by themselves.
pub(super) fn open_idle(options: &StoreOptions, disk: Arc<dyn Disk>) -> Result<Store, StoreError> {
    let inner = Arc::new(open_inner(options, disk)?);
    inner.clean_up()?;
    Ok(Store { inner })
}

fn open_inner(options: &StoreOptions, disk: Arc<dyn Disk>) -> Result<Inner, StoreError> {
    let dir = &options.dir;
    let objects = dir.join("objects");
    make_dir(dir)?;
    let lock = lock(dir)?;
    make_dir(&objects)?;
    for low in 0..=0xffu64 {
        let path = working::object_path(&objects, ObjectId(low));
        make_dir(path.parent().unwrap_or(&objects))?;
    }
    let space = disk.space(&objects).map_err(|e| StoreError::io("statvfs", &objects, e))?;
    sync_names(&*disk, &objects)?;
    let index_path = dir.join(INDEX_FILE);
    let health = Arc::new(Health::default());
    let reserve = Arc::new(Reserve::open(dir, space.capacity, disk.clone()));
    let index = Index::open(&index_path, disk.clone(), reserve.clone(), health.clone())?;
    sync_names(&*disk, dir)?;
    let state = State::open(&dir.join("state"))?;
    Ok(Inner {
        dir: dir.clone(),
        cloning: working::Cloning::default(),
        reads: state.tree("store.last_read"),
        objects,
        disk,
        index,
        reserve,
        state,
        new_reads: Mutex::default(),
        lock,
        limits: Limits::new(options, &space),
        gauge: Gauge::default(),
        whole: Whole::default(),
        health,
        ahead: Writers::default(),
        next_id: AtomicU64::new(1),
        new_names: Mutex::default(),
        registry: Mutex::default(),
        recent: Mutex::new(LruCache::new(RECENT_OBJECTS)),
        gate: RwLock::default(),
        pending: Mutex::default(),
        queue: Mutex::default(),
        leader: Mutex::default(),
        figures: Figures::default(),
        unsynced: Mutex::default(),
        suspects: Mutex::default(),
        suspected: Arc::default(),
        stopping: AtomicBool::new(false),
        pins_moved: AtomicBool::new(true),
        evicted: AtomicBool::new(false),
        retained: Mutex::default(),
        fruitless: Mutex::default(),
        wake: Arc::default(),
    })
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| StoreError::io("make", path, e))
}

/// Makes the names in a folder durable. On a disk that is read-only there are no new ones.
fn sync_names(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    match disk.sync_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::ReadOnlyFilesystem => {
            Err(StoreError::io("sync", dir, error))
        }
        _ => Ok(()),
    }
}

/// How long a lock that is held is asked for again. A program that a process has just forked keeps what that process had
/// open until it executes another one: also the lock of a store that was closed meanwhile, for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);
const LOCK_POLL: Duration = Duration::from_millis(10);

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let mut options = File::options();
    let opened = match options.write(true).create(true).truncate(false).mode(0o600).open(&path) {
        // A lock needs no descriptor that can write.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
        opened => opened,
    };
    let file = opened.map_err(|e| StoreError::io("open", &path, e))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_POLL);
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(dir.to_owned())),
            Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", &path, e)),
        }
    }
}

impl Inner {
    /// Makes files and rows agree: a file without a row was never acknowledged, a row without a file lost its content.
    fn clean_up(&self) -> Result<(), StoreError> {
        let mut files = self.list_files()?;
        let mut next = files.iter().max().map_or(1, |id| id.0 + 1);
        let (mut lost, found) = (Vec::new(), files.len());
        let mut delta = Delta::default();
        self.index.read(|txn| {
            index::object_rows(txn, |id, row| {
                next = next.max(id.0 + 1);
                delta.add(&row, 1);
                if !files.remove(&id) {
                    lost.push(id);
                }
                Ok(())
            })?;
            next = next.max(index::meta(txn, "next_id")?.unwrap_or(1));
            Ok(())
        })?;
        if found == 0 && !lost.is_empty() {
            // Rather a disk that is not mounted than one that lost all; taking out the rows would make it so.
            let text = format!(
                "the index knows {} files and not one is there: mount the disk that holds them, or remove {INDEX_FILE} \
                 to begin with nothing",
                lost.len()
            );
            let source = io::Error::new(io::ErrorKind::NotFound, text);
            return Err(StoreError::io("find content in", &self.objects, source));
        }
        self.figures.add(delta);
        self.next_id.store(next, std::sync::atomic::Ordering::Relaxed);
        for id in files {
            if let Err(error) = self.remove_file(id) {
                // A read-only disk for one. The next start tries again.
                self.tell(&error);
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        tracing::warn!(count = lost.len(), "files of the store are gone; their rows are taken out");
        let removed = self.index.write_counted(|rows| {
            lost.iter().try_for_each(|id| rows.remove_object(*id).map(|_| ()))
        });
        match removed {
            Ok(((), delta)) => self.figures.add(delta),
            // A read-only disk for one. Rows without a file harm no other content.
            Err(error) if error.trouble().is_some() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Ids of all files in `objects/`. What no store has put there is left alone: other files, other folders, and
    /// those that a filesystem keeps for itself.
    fn list_files(&self) -> Result<HashSet<ObjectId>, StoreError> {
        let mut ids = HashSet::new();
        for low in 0..=0xffu64 {
            let path = self.object_path(ObjectId(low));
            let dir = path.parent().unwrap_or(&self.objects);
            let failed = |e: io::Error| StoreError::io("list", dir, e);
            for entry in fs::read_dir(dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                let id = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
                let Some(id) = id.map(ObjectId) else { continue };
                if self.object_path(id) == entry.path()
                    && entry.file_type().map_err(failed)?.is_file()
                {
                    ids.insert(id);
                }
            }
        }
        Ok(ids)
    }

    /// Commits what is pending and closes index and state.
    pub(super) fn close(self: &Arc<Self>) -> Result<(), StoreError> {
        let flushed = match self.flush() {
            Err(StoreError::Closed) => return Ok(()),
            other => other,
        };
        self.close_recent();
        // Working state can be rebuilt: a disk that is too full for it is no reason not to close the rest.
        if let Err(error) = self.write_reads().and_then(|()| self.state.flush()) {
            tracing::warn!(%error, "the working state was not written");
        }
        self.index.close();
        self.lock.unlock().map_err(|e| StoreError::io("unlock", &self.dir, e))?;
        flushed
    }
}
