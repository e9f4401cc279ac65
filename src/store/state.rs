//! Working state: small rows that can all be rebuilt, in sled.
//!
//! An error of the disk, a full one for one, makes sled refuse every call from then on. So it is closed and opened again,
//! with what reached the disk before.

use std::{
    collections::HashMap,
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
    open: RwLock<Option<Open>>,
    reopened: Mutex<Option<Instant>>,
    /// Rows were written since the last flush.
    written: AtomicBool,
}

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
}

impl State {
    /// Opens the database; one that a crash has damaged is moved aside.
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let open = RwLock::new(Some(open(path)?));
        Ok(Arc::new(Self {
            path: path.to_owned(),
            open,
            reopened: Mutex::default(),
            written: AtomicBool::new(false),
        }))
    }

    pub(super) fn tree(self: &Arc<Self>, name: &'static str) -> StateTree {
        StateTree { state: self.clone(), name }
    }

    /// Runs `op` on a tree, and once more on a database that was opened again when the disk failed.
    fn with<T>(
        &self,
        name: &'static str,
        op: impl Fn(&sled::Tree) -> sled::Result<T>,
    ) -> Result<T, StoreError> {
        let done = self.attempt(name, &op);
        match done {
            Err(StoreError::State(sled::Error::Unsupported(_))) => done,
            Err(StoreError::State(error)) if !self.reopen(&error) => Err(error.into()),
            Err(StoreError::State(_)) => self.attempt(name, &op),
            done => done,
        }
    }

    fn attempt<T>(
        &self,
        name: &'static str,
        op: impl Fn(&sled::Tree) -> sled::Result<T>,
    ) -> Result<T, StoreError> {
        let state = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = &*state else {
            return Err(sled::Error::Io(io::Error::other("it is not open")).into());
        };
        Ok(op(&open.tree(name)?)?)
    }

    /// Closes and opens the database, unless that was tried a moment ago; whether it is open then.
    fn reopen(&self, reason: &sled::Error) -> bool {
        let mut state = self.open.write().unwrap_or_else(PoisonError::into_inner);
        {
            let mut reopened = guard(&self.reopened);
            if reopened.is_some_and(|at| at.elapsed() < REOPEN_INTERVAL) {
                // By another call that met the same error, mostly.
                return state.is_some();
            }
            *reopened = Some(Instant::now());
        }
        tracing::warn!(error = %reason, "the working state failed; it is opened again");
        drop(state.take());
        match open(&self.path) {
            Ok(open) => *state = Some(open),
            Err(error) => tracing::warn!(%error, "the working state does not open"),
        }
        state.is_some()
    }

    /// As `with`, for what the next flush is to write out.
    fn change<T>(
        &self,
        name: &'static str,
        op: impl Fn(&sled::Tree) -> sled::Result<T>,
    ) -> Result<(), StoreError> {
        self.with(name, op)?;
        // After the row: a flush that ran before it leaves the next one something to do.
        self.written.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes out what waits, if anything does: sled's own timer would sync its file twice a second for ever, and no
    /// disk could sleep.
    pub(super) fn flush_written(&self) -> Result<bool, StoreError> {
        let written = self.written.swap(false, Ordering::Acquire);
        if written && let Err(error) = self.flush() {
            self.written.store(true, Ordering::Release);
            return Err(error);
        }
        Ok(written)
    }

    /// Writes out what waits.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        match &*self.open.read().unwrap_or_else(PoisonError::into_inner) {
            Some(open) => Ok(open.db.flush().map(|_| ())?),
            None => Ok(()),
        }
    }
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
        self.state.with(self.name, |tree| Ok(tree.get(key)?.map(|value| value.to_vec())))
    }

    /// Writes a row; on disk within [`Store::FLUSH_INTERVAL`](super::Store::FLUSH_INTERVAL).
    ///
    /// # Errors
    /// When sled cannot write it.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.state.change(self.name, |tree| tree.insert(key, value))
    }

    /// Takes a row out.
    ///
    /// # Errors
    /// When sled cannot write it.
    pub fn remove(&self, key: &[u8]) -> Result<(), StoreError> {
        self.state.change(self.name, |tree| tree.remove(key))
    }

    /// All rows in key order.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>> + use<> {
        let (rows, failed) = match self.state.with(self.name, |tree| Ok(tree.iter())) {
            Ok(rows) => (Some(rows), None),
            Err(error) => (None, Some(Err(error))),
        };
        let rows = rows.into_iter().flatten().map(|row| {
            let (key, value) = row?;
            Ok((key.to_vec(), value.to_vec()))
        });
        rows.chain(failed)
    }
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
            // sled has no kind of its own for it.
            Err(sled::Error::Io(error))
                if error.to_string().starts_with("could not acquire lock")
                    && Instant::now() < end =>
            {
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
    fn a_disk_that_fails_does_not_make_it_forget() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        // No folder can be made here.
        fs::write(&path, b"in the way").unwrap();
        assert!(State::open(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"in the way");
        assert!(!dir.path().join("state.damaged").exists());
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
        let found = state.with("t", |tree| match failing.replace(false) {
            true => Err(full()),
            false => tree.get(b"a"),
        });
        assert_eq!(found.unwrap().unwrap(), b"b");
        // Not with each call while the disk goes on failing; and handles from before go on.
        assert!(state.with("t", |_| Err::<(), _>(full())).is_err());
        tree.insert(b"c", b"d").unwrap();
        let rows: Vec<_> = tree.iter().map(Result::unwrap).collect();
        assert_eq!(rows, [(b"a".to_vec(), b"b".to_vec()), (b"c".to_vec(), b"d".to_vec())]);
    }
}
