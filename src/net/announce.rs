//! The queue of what is to be announced, and when.
//!
//! Every root has one entry per DHT, so that one that has no peers yet holds nothing back in the other. Entries are
//! kept on disk with their roots and due times: a restart announces what has fallen due meanwhile and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Notify, broadcast};

use super::{address::Scope, rows::Rows};
use crate::{content::ContentId, store::StoreError};

/// Announcements on their way in one DHT. One takes seconds on the public DHT, so they overlap; many more slow each
/// other down, because a lookup's cost grows with the number of lookups.
const MAX_IN_FLIGHT: usize = 16;
/// Seconds until a root is announced again: nodes forget a provider after 48 hours, some after 24.
const INTERVAL: u64 = 22 * 3_600;
/// Seconds until a failed announcement is tried again; doubles each time.
const FIRST_RETRY: u64 = 30;
/// Longest such time.
const MAX_RETRY: u64 = 3_600;

/// Announced roots that a slow listener may be behind; it misses the oldest beyond that.
const TOLD: usize = 1024;

/// The key of a root in a DHT: the bytes of its multihash.
pub(super) type Key = Vec<u8>;

/// How an announcement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Somebody was told.
    Announced,
    /// Nobody was reached.
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

/// The entries of one DHT. Every function depends on its arguments and the state alone; times are seconds since the
/// epoch.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: BTreeMap<Key, Entry>,
    /// Those that are not in flight, by due time.
    waiting: BTreeSet<(u64, Key)>,
    in_flight: HashSet<Key>,
}

impl Queue {
    /// Puts an entry of an earlier process back. A due time further away than it could have been written means that
    /// the clock was set back since; such an entry waits one interval at most.
    pub(super) fn restore(&mut self, key: Key, entry: Entry, now: u64) {
        let due = entry.due.min(now + INTERVAL);
        self.waiting.insert((due, key.clone()));
        self.entries.insert(key, Entry { due, ..entry });
    }

    /// Makes `key` due now, whether it was on the queue or not; one in flight stays as it is.
    pub(super) fn add(&mut self, key: Key, now: u64) -> Entry {
        let entry = Entry { due: now, failures: 0 };
        if self.in_flight.contains(&key) {
            self.entries.insert(key, entry);
            return entry;
        }
        if let Some(old) = self.entries.insert(key.clone(), entry) {
            self.waiting.remove(&(old.due, key.clone()));
        }
        self.waiting.insert((now, key));
        entry
    }

    /// Forgets `key`; the outcome of one in flight changes nothing any more.
    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.waiting.remove(&(entry.due, key.to_vec()));
        }
    }

    /// The next key to announce, which is in flight from then on.
    pub(super) fn take_due(&mut self, now: u64) -> Option<Key> {
        if self.in_flight.len() >= MAX_IN_FLIGHT || self.waiting.first()?.0 > now {
            return None;
        }
        let (_, key) = self.waiting.pop_first()?;
        self.in_flight.insert(key.clone());
        Some(key)
    }

    /// Notes how the announcement of `key` ended; gives its entry, unless it was removed meanwhile.
    pub(super) fn finished(&mut self, key: &[u8], outcome: Outcome, now: u64) -> Option<Entry> {
        self.in_flight.remove(key);
        let entry = self.entries.get_mut(key)?;
        *entry = match outcome {
            Outcome::Announced => Entry { due: now + INTERVAL, failures: 0 },
            Outcome::Failed => {
                let wait = FIRST_RETRY.saturating_mul(1 << entry.failures.min(16)).min(MAX_RETRY);
                Entry { due: now + wait, failures: entry.failures.saturating_add(1) }
            }
        };
        self.waiting.insert((entry.due, key.to_vec()));
        Some(*entry)
    }

    /// When [`Queue::take_due`] has something to give next; none while nothing waits or too much is in flight.
    pub(super) fn wake_at(&self) -> Option<u64> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Everything on it.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.keys()
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
#[derive(Debug, Default)]
struct Queues {
    of: [Queue; 2],
    roots: HashMap<Key, ContentId>,
}

impl Announcer {
    /// Reads the queues back; rows that are broken are dropped.
    pub(super) fn open(rows: Arc<dyn Rows>) -> Result<Self, StoreError> {
        let mut queues = Queues::default();
        for (row, value) in rows.all()? {
            match (read_key(&row), Entry::read_row(&value)) {
                (Some((scope, key)), Some((entry, root))) => {
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
        let mut queues = self.lock();
        // A row that cannot be written must not keep the root from being announced now.
        let written = Scope::ALL.map(|scope| {
            let entry = queues.of[scope as usize].add(key.clone(), now());
            self.rows.insert(&row_key(scope, &key), &entry.row(root))
        });
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
        queues.roots.remove(&key);
        removed.into_iter().collect()
    }

    /// As [`Queue::take_due`].
    pub(super) fn take_due(&self, scope: Scope) -> Option<Key> {
        self.lock().of[scope as usize].take_due(now())
    }

    /// As [`Queue::finished`]. A row that cannot be written costs one announcement too many after a restart.
    pub(super) fn finished(&self, scope: Scope, key: &[u8], outcome: Outcome) {
        let mut queues = self.lock();
        let Some(entry) = queues.of[scope as usize].finished(key, outcome, now()) else { return };
        let Some(root) = queues.roots.get(key) else { return };
        if let Err(error) = self.rows.insert(&row_key(scope, key), &entry.row(root)) {
            tracing::warn!(%error, "the announce queue cannot be written");
        }
        if outcome == Outcome::Announced {
            // Nobody listens: nothing is lost.
            let _ = self.told.send(*root);
        }
    }

    /// The roots that are announced from now on, once for each DHT that was told.
    pub(super) fn told(&self) -> broadcast::Receiver<ContentId> {
        self.told.subscribe()
    }

    /// Seconds until [`Announcer::take_due`] has something to give.
    pub(super) fn wake_in(&self, scope: Scope) -> Option<u64> {
        self.lock().of[scope as usize].wake_at().map(|due| due.saturating_sub(now()))
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
