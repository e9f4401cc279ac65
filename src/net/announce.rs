//! The queue of what is to be announced, and when.
//!
//! Every root has one entry per DHT, so that one that has no peers yet holds nothing back in the other. Entries are
//! kept on disk with their roots and due times: a restart announces what has fallen due meanwhile and nothing else.

mod keyspace;
mod map;
mod outbox;
mod sweep;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use libp2p::PeerId;
use tokio::sync::{Notify, broadcast};

use self::sweep::Sweep;
pub(super) use self::{outbox::Contact, sweep::Order};
use super::{address::Scope, rows::Rows};
use crate::{content::ContentId, store::StoreError};

/// Announced roots that a slow listener may be behind; it misses the oldest beyond that.
const TOLD: usize = 1024;
/// Longest key that other implementations take. Only a root that carries its content in itself is longer, which nobody
/// looks for.
const MAX_KEY: usize = 80;

/// The key of a root in a DHT: the bytes of its multihash.
pub(super) type Key = Vec<u8>;

/// How an announcement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Enough peers were told.
    Announced,
    /// Too few were reached.
    Failed,
}

/// When an entry falls due (seconds since the epoch) and how often it has failed in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    due: u64,
    failures: u32,
}

impl Entry {
    fn to_bytes(self) -> Vec<u8> {
        [&self.due.to_be_bytes()[..], &self.failures.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (due, rest) = bytes.split_first_chunk::<8>()?;
        let failures = u32::from_be_bytes(rest.try_into().ok()?);
        Some(Self { due: u64::from_be_bytes(*due), failures })
    }

    /// The row of an entry: the entry, then its root.
    fn row(self, root: &ContentId) -> Vec<u8> {
        [self.to_bytes(), root.to_bytes()].concat()
    }

    fn read_row(row: &[u8]) -> Option<(Self, ContentId)> {
        let (entry, root) = row.split_at_checked(12)?;
        Some((Self::from_bytes(entry)?, ContentId::from_bytes(root).ok()?))
    }
}

/// Both queues with the rows that keep them. A row is written under the lock of the queues, so that rows and queues
/// change in the same order.
#[derive(Debug)]
pub(super) struct Announcer {
    queues: Mutex<Queues>,
    rows: Arc<dyn Rows>,
    changed: Notify,
    told: broadcast::Sender<ContentId>,
}

/// The queues of both DHTs, and which root each of their keys stands for.
#[derive(Debug)]
struct Queues {
    of: [Sweep; 2],
    roots: HashMap<Key, ContentId>,
    /// Keys that were added since they were last asked for.
    added: HashSet<Key>,
}

impl Announcer {
    /// Reads the queues of the node `own` back; rows that are broken are dropped.
    pub(super) fn open(rows: Arc<dyn Rows>, own: PeerId) -> Result<Self, StoreError> {
        let of = Scope::ALL.map(|_| Sweep::new(own));
        let mut queues = Queues { of, roots: HashMap::new(), added: HashSet::new() };
        for (row, value) in rows.all()? {
            match (read_key(&row), Entry::read_row(&value)) {
                (Some((scope, key)), Some((entry, root))) if key.len() <= MAX_KEY => {
                    queues.of[scope as usize].restore(key.to_vec(), entry, now());
                    queues.roots.insert(key.to_vec(), root);
                }
                _ => rows.remove(&row)?,
            }
        }
        let (queues, changed) = (Mutex::new(queues), Notify::new());
        Ok(Self { queues, rows, changed, told: broadcast::Sender::new(TOLD) })
    }

    /// Puts `root` on both queues, due now.
    pub(super) fn add(&self, root: &ContentId) -> Result<(), StoreError> {
        let key = key_of(root);
        if key.len() > MAX_KEY {
            return Ok(());
        }
        let mut queues = self.lock();
        // A row that cannot be written must not keep the root from being announced now.
        let written = Scope::ALL.map(|scope| {
            let entry = queues.of[scope as usize].add(key.clone(), now());
            self.rows.insert(&row_key(scope, &key), &entry.row(root))
        });
        queues.added.insert(key.clone());
        queues.roots.insert(key, *root);
        self.changed.notify_one();
        written.into_iter().collect()
    }

    /// Takes `root` off both queues.
    pub(super) fn remove(&self, root: &ContentId) -> Result<(), StoreError> {
        let key = key_of(root);
        let mut queues = self.lock();
        let removed = Scope::ALL.map(|scope| {
            queues.of[scope as usize].remove(&key);
            self.rows.remove(&row_key(scope, &key))
        });
        queues.added.remove(&key);
        queues.roots.remove(&key);
        removed.into_iter().collect()
    }

    /// The keys that were added since the last call and are still there.
    pub(super) fn take_added(&self) -> HashSet<Key> {
        std::mem::take(&mut self.lock().added)
    }

    /// As [`Sweep::next`].
    pub(super) fn next(&self, scope: Scope) -> Option<Order> {
        self.lock().of[scope as usize].next(now())
    }

    /// As [`Sweep::looked_up`].
    pub(super) fn looked_up(&self, scope: Scope, lookup: u32, found: Vec<Contact>, complete: bool) {
        let mut queues = self.lock();
        queues.of[scope as usize].looked_up(lookup, found, complete, now());
        self.write_finished(scope, &mut queues);
    }

    /// As [`Sweep::told`].
    pub(super) fn told_to(&self, scope: Scope, send: u32, told: bool) {
        let mut queues = self.lock();
        queues.of[scope as usize].told(send, told, now());
        self.write_finished(scope, &mut queues);
    }

    /// A row that cannot be written costs one announcement too many after a restart.
    fn write_finished(&self, scope: Scope, queues: &mut Queues) {
        for done in queues.of[scope as usize].take_finished() {
            let Some(root) = queues.roots.get(&done.key) else { continue };
            if let Err(error) = self.rows.insert(&row_key(scope, &done.key), &done.entry.row(root))
            {
                tracing::warn!(%error, "the announce queue cannot be written");
            }
            tracing::debug!(?scope, %root, outcome = ?done.outcome, "announcement");
            if done.outcome == Outcome::Announced {
                // Nobody listens: nothing is lost.
                let _ = self.told.send(*root);
            }
        }
    }

    /// The roots that are announced from now on, once for each DHT that was told.
    pub(super) fn told(&self) -> broadcast::Receiver<ContentId> {
        self.told.subscribe()
    }

    /// Seconds until [`Announcer::next`] has something to give although nothing ends before.
    pub(super) fn wake_in(&self, scope: Scope) -> Option<u64> {
        self.lock().of[scope as usize].wake_at().map(|due| due.saturating_sub(now()))
    }

    /// Whether `root` is on the queues.
    pub(super) fn contains(&self, root: &ContentId) -> bool {
        self.lock().roots.contains_key(&key_of(root))
    }

    /// The roots on the queues that `of` says.
    pub(super) fn queued(&self, of: impl Fn(&ContentId) -> bool) -> Vec<ContentId> {
        self.lock().roots.values().filter(|root| of(root)).copied().collect()
    }

    /// All keys of one queue.
    pub(super) fn keys(&self, scope: Scope) -> Vec<Key> {
        self.lock().of[scope as usize].keys().cloned().collect()
    }

    /// Resolves when something was added.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of `root` in the DHTs.
pub(super) fn key_of(root: &ContentId) -> Key {
    root.hash().to_bytes()
}

fn row_key(scope: Scope, key: &[u8]) -> Vec<u8> {
    let scope = match scope {
        Scope::Lan => b'l',
        Scope::Wan => b'w',
    };
    [&[scope], key].concat()
}

fn read_key(row: &[u8]) -> Option<(Scope, &[u8])> {
    match row.split_first()? {
        (b'l', key) => Some((Scope::Lan, key)),
        (b'w', key) => Some((Scope::Wan, key)),
        _ => None,
    }
}

/// Seconds since the epoch: due times outlive the process, so they are not of the monotonic clock.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
