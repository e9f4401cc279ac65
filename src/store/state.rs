//! Working state: small rows that can all be rebuilt, in sled.
//!
//! An error of the disk, a full one for one, makes sled refuse every call from then on. So it is closed and opened again,
//! with what reached the disk before. Where it does not open, changes are kept in memory until it does: the daemon starts
//! and goes on without it, on a full or read-only disk for one.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{StoreError, guard};

/// Memory that sled may use for pages. Its trees are small; the default of a gigabyte would be ours to answer for.
const CACHE_BYTES: u64 = 8 << 20;
/// How long after an attempt to open it again the next one may come: a disk that is full mostly stays so for a while.
const REOPEN_INTERVAL: Duration = Duration::from_secs(10);

/// Longest wait for a lock on it that is just being let go of, and how often it is looked at.
const UNLOCK: Duration = Duration::from_secs(2);
const UNLOCK_LOOK: Duration = Duration::from_millis(5);

/// The database of the working state.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    /// Held shared for each call, exclusively to open it again: sled lets go of its file with the last handle only.
    backend: RwLock<Backend>,
    reopened: Mutex<Option<Instant>>,
    /// Rows were written since the last flush.
    written: AtomicBool,
}

/// Backend of the rows.
#[derive(Debug)]
enum Backend {
    Sled(Open),
    /// Rows that were written since sled failed, by tree; none: removed.
    Memory(Mutex<Changes>),
}

type Changes = HashMap<&'static str, Rows>;
type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

#[derive(Debug)]
struct Open {
    db: sled::Db,
    trees: Mutex<HashMap<&'static str, sled::Tree>>,
}

impl Open {
    fn tree(&self, name: &'static str) -> sled::Result<sled::Tree> {
        let mut trees = guard(&self.trees);
        if let Some(tree) = trees.get(name) {
            return Ok(tree.clone());
        }
        let tree = self.db.open_tree(name)?;
        trees.insert(name, tree.clone());
        Ok(tree)
    }

    fn take_in(&self, changes: &Changes) -> sled::Result<()> {
        for (name, rows) in changes {
            let tree = self.tree(name)?;
            for (key, value) in rows {
                match value {
                    Some(value) => tree.insert(key, value.as_slice())?,
                    None => tree.remove(key)?,
                };
            }
        }
        self.db.flush().map(|_| ())
    }
}

impl State {
    /// Opens the database. One that a crash has damaged is moved aside; one that the disk does not let open is begun in
    /// memory.
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let backend = match open(path) {
            Ok(open) => Backend::Sled(open),
            Err(error @ (StoreError::State(sled::Error::Io(_)) | StoreError::Io { .. }))
                if !is_locked(&error) =>
            {
                tracing::warn!(%error, "the working state does not open; it is kept in memory until the disk takes it");
                Backend::Memory(Mutex::default())
            }
            Err(error) => return Err(error),
        };
        Ok(Arc::new(Self {
            path: path.to_owned(),
            backend: RwLock::new(backend),
            reopened: Mutex::default(),
            written: AtomicBool::new(false),
        }))
    }

    pub(super) fn tree(self: &Arc<Self>, name: &'static str) -> StateTree {
        StateTree { state: self.clone(), name }
    }

    /// Runs `op` on a tree, and once more on a database that was opened again when the disk failed; `memory` where it
    /// does not open.
    fn with<T>(
        &self,
        name: &'static str,
        op: impl Fn(&sled::Tree) -> sled::Result<T>,
        memory: impl Fn(&mut Rows) -> T,
    ) -> Result<T, StoreError> {
        match self.attempt(name, &op, &memory) {
            Err(StoreError::State(error)) if !matches!(error, sled::Error::Unsupported(_)) => {
                self.reopen(&error);
                self.attempt(name, &op, &memory)
            }
            done => done,
        }
    }

    fn attempt<T>(
        &self,
        name: &'static str,
        op: impl Fn(&sled::Tree) -> sled::Result<T>,
        memory: impl Fn(&mut Rows) -> T,
    ) -> Result<T, StoreError> {
        match &*self.backend.read().unwrap_or_else(PoisonError::into_inner) {
            Backend::Sled(open) => Ok(op(&open.tree(name)?)?),
            Backend::Memory(changes) => Ok(memory(guard(changes).entry(name).or_default())),
        }
    }

    /// Closes the database and opens it again, unless that was done a moment ago.
    fn reopen(&self, reason: &sled::Error) {
        let mut backend = self.backend.write().unwrap_or_else(PoisonError::into_inner);
        // By another call that met the same error, mostly.
        if matches!(*backend, Backend::Memory(_)) || !self.is_due() {
            return;
        }
        tracing::warn!(error = %reason, "the working state failed; it is opened again");
        *backend = Backend::Memory(Mutex::default());
        match open(&self.path) {
            Ok(open) => *backend = Backend::Sled(open),
            Err(error) => {
                tracing::warn!(%error, "the working state does not open; it is kept in memory");
            }
        }
    }

    /// Returns whether an attempt to open it may be made now, which is noted.
    fn is_due(&self) -> bool {
        let mut reopened = guard(&self.reopened);
        let due = reopened.is_none_or(|at| at.elapsed() >= REOPEN_INTERVAL);
        if due {
            *reopened = Some(Instant::now());
        }
        due
    }

    /// Brings what is in memory into the database, if that opens now.
    fn leave_memory(&self) {
        let in_memory = || {
            matches!(
                *self.backend.read().unwrap_or_else(PoisonError::into_inner),
                Backend::Memory(_)
            )
        };
        if !in_memory() || !self.is_due() {
            return;
        }
        let open = match open(&self.path) {
            Ok(open) => open,
            Err(error) => {
                return tracing::debug!(%error, "the working state is still kept in memory");
            }
        };
        let mut backend = self.backend.write().unwrap_or_else(PoisonError::into_inner);
        let taken = match &*backend {
            Backend::Memory(changes) => open.take_in(&guard(changes)),
            Backend::Sled(_) => return,
        };
        match taken {
            Ok(()) => {
                tracing::info!("the working state is on the disk again");
                *backend = Backend::Sled(open);
            }
            Err(error) => tracing::debug!(%error, "the working state is still kept in memory"),
        }
    }

    /// As `with`, for what the next flush is to write out.
    fn change<T>(
        &self,
        name: &'static str,
        op: impl Fn(&sled::Tree) -> sled::Result<T>,
        memory: impl Fn(&mut Rows) -> T,
    ) -> Result<(), StoreError> {
        self.with(name, op, memory)?;
        // After the row: a flush that ran before it leaves the next one something to do.
        self.written.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes out what waits, if anything does: sled's own timer would sync its file twice a second for ever, and no
    /// disk could sleep.
    pub(super) fn flush_written(&self) -> Result<bool, StoreError> {
        self.leave_memory();
        let written = self.written.swap(false, Ordering::Acquire);
        if written && let Err(error) = self.flush() {
            self.written.store(true, Ordering::Release);
            return Err(error);
        }
        Ok(written)
    }

    /// Writes out what waits.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        match &*self.backend.read().unwrap_or_else(PoisonError::into_inner) {
            Backend::Sled(open) => Ok(open.db.flush().map(|_| ())?),
            Backend::Memory(_) => Ok(()),
        }
    }
}

/// Returns whether another process has the database open.
fn is_locked(error: &StoreError) -> bool {
    matches!(error, StoreError::State(sled::Error::Io(e)) if is_lock_message(e))
}

/// sled has no kind of its own for a lock that is held.
fn is_lock_message(error: &io::Error) -> bool {
    error.to_string().starts_with("could not acquire lock")
}

/// A named tree of small rows that can be rebuilt (sled).
#[derive(Clone, Debug)]
pub struct StateTree {
    state: Arc<State>,
    name: &'static str,
}

impl StateTree {
    /// The value of `key`.
    ///
    /// # Errors
    /// When sled cannot read it.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.state.with(
            self.name,
            |tree| Ok(tree.get(key)?.map(|value| value.to_vec())),
            |rows| rows.get(key).cloned().flatten(),
        )
    }

    /// Writes a row; on disk within [`Store::FLUSH_INTERVAL`](super::Store::FLUSH_INTERVAL).
    ///
    /// # Errors
    /// When sled cannot write it.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.state.change(
            self.name,
            |tree| tree.insert(key, value).map(drop),
            |rows| drop(rows.insert(key.to_vec(), Some(value.to_vec()))),
        )
    }

    /// Takes a row out.
    ///
    /// # Errors
    /// When sled cannot write it.
    pub fn remove(&self, key: &[u8]) -> Result<(), StoreError> {
        self.state.change(
            self.name,
            |tree| tree.remove(key).map(drop),
            |rows| drop(rows.insert(key.to_vec(), None)),
        )
    }

    /// All rows in key order.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>> + use<> {
        let in_memory = |rows: &mut Rows| {
            rows.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect()
        };
        let rows = self.state.with(
            self.name,
            |tree| Ok(Listing::Sled(Box::new(tree.iter()))),
            |rows| Listing::Memory(in_memory(rows)),
        );
        let (listing, failed) = match rows {
            Ok(listing) => (Some(listing), None),
            Err(error) => (None, Some(Err(error))),
        };
        let (sled, memory) = match listing {
            Some(Listing::Sled(rows)) => (Some(rows), Vec::new()),
            Some(Listing::Memory(rows)) => (None, rows),
            None => (None, Vec::new()),
        };
        let rows = sled.into_iter().flatten().map(|row| {
            let (key, value) = row?;
            Ok((key.to_vec(), value.to_vec()))
        });
        rows.chain(memory.into_iter().map(Ok)).chain(failed)
    }
}

/// The rows of a tree.
enum Listing {
    Sled(Box<sled::Iter>),
    Memory(Vec<(Vec<u8>, Vec<u8>)>),
}

/// Opens the database. One that is damaged, or written in a way that sled does not know, is moved aside: nothing in it is
/// worth more than a start that works. A disk that fails is no reason to forget it.
fn open(path: &Path) -> Result<Open, StoreError> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let db = match open_unlocked(&config) {
        Err(error @ (sled::Error::Corruption { .. } | sled::Error::Unsupported(_))) => {
            let aside = path.with_extension("damaged");
            tracing::warn!(%error, "the working state does not open; it is moved to {} and rebuilt", aside.display());
            match fs::remove_dir_all(&aside) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &aside, e));
                }
                _ => {}
            }
            fs::rename(path, &aside).map_err(|e| StoreError::io("move aside", path, e))?;
            open_unlocked(&config)?
        }
        opened => opened?,
    };
    Ok(Open { db, trees: Mutex::default() })
}

/// Opens the database, and waits for whoever is just closing it: a child process between fork and exec holds every lock
/// of its parent a moment longer. Another daemon does not get so far.
fn open_unlocked(config: &sled::Config) -> sled::Result<sled::Db> {
    let end = Instant::now() + UNLOCK;
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if is_lock_message(&error) && Instant::now() < end => {
                std::thread::sleep(UNLOCK_LOOK);
            }
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_damaged_state_is_moved_aside_and_started_afresh() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("conf"), b"this is no sled configuration").unwrap();
        let state = State::open(&path).unwrap();
        state.tree("t").insert(b"a", b"b").unwrap();
        assert!(dir.path().join("state.damaged").exists());
    }

    #[test]
    fn rows_are_written_out_once_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap();
        let tree = state.tree("t");
        assert!(!state.flush_written().unwrap());
        tree.insert(b"a", b"b").unwrap();
        assert!(state.flush_written().unwrap());
        tree.get(b"a").unwrap();
        assert!(!state.flush_written().unwrap());
        tree.remove(b"a").unwrap();
        assert!(state.flush_written().unwrap());
    }

    #[test]
    fn a_lock_that_is_just_let_go_of_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        drop(State::open(&path).unwrap());
        let held = fs::File::options().write(true).open(path.join("db")).unwrap();
        held.lock().unwrap();
        let closing = std::thread::spawn(move || {
            // What a child takes from fork to exec on a slow machine.
            std::thread::sleep(UNLOCK_LOOK * 4);
            drop(held);
        });
        State::open(&path).unwrap();
        closing.join().unwrap();
    }

    #[test]
    fn state_that_does_not_open_is_kept_in_memory_until_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        {
            let state = State::open(&path).unwrap();
            let tree = state.tree("t");
            tree.insert(b"a", b"old").unwrap();
            tree.insert(b"b", b"old").unwrap();
            state.flush().unwrap();
        }
        // No folder can be made there.
        fs::rename(&path, dir.path().join("away")).unwrap();
        fs::write(&path, b"in the way").unwrap();
        let state = State::open(&path).unwrap();
        let tree = state.tree("t");
        tree.insert(b"c", b"new").unwrap();
        tree.insert(b"d", b"new").unwrap();
        tree.remove(b"a").unwrap();
        tree.remove(b"d").unwrap();
        assert_eq!(tree.get(b"c").unwrap().unwrap(), b"new");
        assert_eq!(tree.get(b"d").unwrap(), None);
        let rows: Vec<_> = tree.iter().map(Result::unwrap).collect();
        assert_eq!(rows, [(b"c".to_vec(), b"new".to_vec())]);
        assert_eq!(fs::read(&path).unwrap(), b"in the way");
        assert!(!dir.path().join("state.damaged").exists());

        fs::remove_file(&path).unwrap();
        fs::rename(dir.path().join("away"), &path).unwrap();
        *guard(&state.reopened) = None;
        state.flush_written().unwrap();
        let row = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
        let rows: Vec<_> = tree.iter().map(Result::unwrap).collect();
        assert_eq!(rows, [row(b"b", b"old"), row(b"c", b"new")]);
        drop((state, tree));
        let state = State::open(&path).unwrap();
        let rows: Vec<_> = state.tree("t").iter().map(Result::unwrap).collect();
        assert_eq!(rows, [row(b"b", b"old"), row(b"c", b"new")]);
    }

    #[test]
    fn after_an_error_of_the_disk_it_is_opened_again_with_its_rows() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap();
        let tree = state.tree("t");
        tree.insert(b"a", b"b").unwrap();
        state.flush().unwrap();
        let failing = std::cell::Cell::new(true);
        let full = || sled::Error::Io(io::ErrorKind::StorageFull.into());
        let get = |tree: &sled::Tree| match failing.replace(false) {
            true => Err(full()),
            false => tree.get(b"a"),
        };
        assert_eq!(state.with("t", get, |_| None).unwrap().unwrap(), b"b");
        // Not with each call while the disk goes on failing; and handles from before go on.
        assert!(state.with("t", |_| Err::<(), _>(full()), |_| ()).is_err());
        tree.insert(b"c", b"d").unwrap();
        let rows: Vec<_> = tree.iter().map(Result::unwrap).collect();
        assert_eq!(rows, [(b"a".to_vec(), b"b".to_vec()), (b"c".to_vec(), b"d".to_vec())]);
    }
}
