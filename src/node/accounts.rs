//! What was given to and taken from each peer, over Bitswap and in swarms, and who owes more than he is trusted with.
//!
//! Bitswap knows its peers by their keys. A swarm knows hosts, whose ports change with each connection and who may be
//! several programs: what goes there is told by the address of the host, as librqbit counts it, before it is checked.
//! Nobody is refused because of a debt: whoever wants to be paid listens to the events.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU64, NonZeroUsize},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::Node;
use crate::{
    content::InfoHash,
    download::Event,
    net::PeerId,
    store::{StateTree, Store, StoreError},
};

/// Peers that are held in memory, and of which a row is kept on disk.
const HELD: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
const KEPT: usize = 10_000;
/// How often the counters are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Whom an account is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Party {
    Peer(PeerId),
    Host(IpAddr),
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(f),
            Self::Host(host) => host.fmt(f),
        }
    }
}

/// Bytes that went between this node and a peer, over all its starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// To the peer.
    pub given: u64,
    /// From the peer.
    pub taken: u64,
}

impl Account {
    fn debt(self) -> u64 {
        self.given.saturating_sub(self.taken)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    account: Account,
    /// How many times the credit its debt was when that was last told.
    told: u64,
}

/// Counters as they were at the last look.
#[derive(Debug)]
struct Counters<K>(HashMap<K, Account>);

impl<K> Default for Counters<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Counters<K> {
    /// What was counted since the last look; those that are gone are forgotten. A counter that fell began anew.
    fn news(&mut self, now: impl IntoIterator<Item = (K, Account)>) -> Vec<(K, Account)>
    where
        K: Clone,
    {
        let mut before = std::mem::take(&mut self.0);
        let mut news = Vec::new();
        for (key, count) in now {
            let old = before.remove(&key).unwrap_or_default();
            let since = |now: u64, old: u64| now.checked_sub(old).unwrap_or(now);
            let new = Account {
                given: since(count.given, old.given),
                taken: since(count.taken, old.taken),
            };
            if new != Account::default() {
                news.push((key.clone(), new));
            }
            self.0.insert(key, count);
        }
        news
    }

    fn knows(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }
}

/// All accounts.
#[derive(Debug)]
pub(super) struct Accounts {
    /// Debt of one peer that is told, and each further such amount.
    credit: Option<NonZeroU64>,
    rows: StateTree,
    held: Mutex<LruCache<Party, Held>>,
}

impl Accounts {
    /// Reads them; `credit` of 0 tells of nobody.
    pub(super) fn open(store: &Store, credit: u64) -> Result<Self, StoreError> {
        let rows = store.state("accounts")?;
        let extra: Vec<_> = rows.iter().skip(KEPT).collect::<Result<_, _>>()?;
        extra.iter().try_for_each(|(key, _)| rows.remove(key))?;
        let held = Mutex::new(LruCache::new(HELD));
        Ok(Self { credit: NonZeroU64::new(credit), rows, held })
    }

    /// Adds what went; the debt, where it has passed the next amount that is told.
    fn add(&self, party: Party, new: Account) -> Option<u64> {
        let row = party.to_string();
        let mut held = self.held();
        if !held.contains(&party) {
            let account = self.read(&row);
            let told = self.credit.map_or(0, |credit| account.debt() / credit);
            held.put(party, Held { account, told });
        }
        let known = held.get_mut(&party)?;
        known.account.given = known.account.given.saturating_add(new.given);
        known.account.taken = known.account.taken.saturating_add(new.taken);
        let (account, debt) = (known.account, known.account.debt());
        let times = self.credit.map_or(0, |credit| debt / credit);
        let due = times > known.told;
        // One who pays a part back and takes it again is told of anew, one who goes to and fro about an amount is not.
        known.told = times.max(known.told.min(times.saturating_add(1)));
        drop(held);
        if let Ok(value) = serde_json::to_vec(&account)
            && let Err(error) = self.rows.insert(row.as_bytes(), &value)
        {
            tracing::debug!(%party, %error, "an account is not kept");
        }
        due.then_some(debt)
    }

    fn get(&self, party: Party) -> Account {
        let held = self.held().peek(&party).map(|held| held.account);
        held.unwrap_or_else(|| self.read(&party.to_string()))
    }

    fn read(&self, row: &str) -> Account {
        let kept = self.rows.get(row.as_bytes()).ok().flatten();
        kept.and_then(|row| serde_json::from_slice(&row).ok()).unwrap_or_default()
    }

    fn held(&self) -> MutexGuard<'_, LruCache<Party, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the accountant remembers between two looks.
#[derive(Debug, Default)]
struct Looked {
    peers: Counters<PeerId>,
    swarms: Counters<(InfoHash, SocketAddr)>,
}

impl Node {
    /// What went between this node and a peer, up to some seconds ago.
    pub fn account(&self, peer: PeerId) -> Account {
        self.inner.accounts.get(Party::Peer(peer))
    }

    /// Keeps the accounts for as long as the node runs.
    pub(super) fn keep_accounts(&self) {
        let (node, cancelled) = (self.clone(), self.tasks().cancelled());
        self.tasks().spawn("accounts", async move {
            let mut looked = Looked::default();
            tokio::pin!(cancelled);
            loop {
                let end = tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => false,
                    () = &mut cancelled => true,
                };
                let news = node.went(&mut looked);
                if !news.is_empty() {
                    let inside = node.clone();
                    let settling = node.tasks().blocking("accounts", move || inside.settle(news));
                    if settling.await.is_err() {
                        return;
                    }
                }
                if end {
                    return;
                }
            }
        });
    }

    /// What went since the last look. Waits for no disk.
    fn went(&self, looked: &mut Looked) -> Vec<(Party, Account)> {
        let peers = self.net().ledgers().into_iter().map(|(peer, counted)| {
            (peer, Account { given: counted.sent, taken: counted.received })
        });
        let peers = looked.peers.news(peers).into_iter();
        let mut news: Vec<_> = peers.map(|(peer, new)| (Party::Peer(peer), new)).collect();
        let mut swarms = Vec::new();
        for traffic in self.torrents().traffic_by_peer() {
            let key = (traffic.hash, traffic.peer);
            // The bridges of this node are peers of its own session, which call themselves nothing.
            let nameless = traffic.peer.ip().is_loopback() && !traffic.named;
            if !nameless || looked.swarms.knows(&key) {
                swarms.push((key, Account { given: traffic.sent, taken: traffic.received }));
            }
        }
        let swarms = looked.swarms.news(swarms).into_iter();
        news.extend(swarms.map(|((_, at), new)| (Party::Host(at.ip().to_canonical()), new)));
        news
    }

    /// Writes it down, and tells who owes too much.
    fn settle(&self, news: Vec<(Party, Account)>) {
        for (party, new) in news {
            if let Some(bytes) = self.inner.accounts.add(party, new) {
                self.engine().emit(Event::PaymentRequired { peer: party.to_string(), bytes });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::{store::StoreOptions, tasks::Tasks};

    fn given(given: u64) -> Account {
        Account { given, taken: 0 }
    }

    fn taken(taken: u64) -> Account {
        Account { given: 0, taken }
    }

    #[test]
    fn counters_are_taken_by_what_is_new_of_them() {
        let mut counters = Counters::default();
        let both = |given, taken| Account { given, taken };
        assert_eq!(counters.news([(1, both(5, 7)), (2, both(0, 0))]), [(1, both(5, 7))]);
        assert_eq!(
            counters.news([(1, both(9, 7)), (2, both(0, 3))]),
            [(1, both(4, 0)), (2, both(0, 3))]
        );
        // It went away, or began anew.
        assert_eq!(counters.news([(2, both(0, 1))]), [(2, both(0, 1))]);
        assert_eq!(counters.news([(1, both(2, 0)), (2, both(0, 1))]), [(1, both(2, 0))]);
        assert_eq!(counters.0.len(), 2);
    }

    #[tokio::test]
    async fn a_debt_is_told_once_for_each_further_amount_and_remembered() {
        let (tasks, dir) = (Tasks::new(), tempfile::tempdir().unwrap());
        let options =
            StoreOptions { dir: dir.path().to_owned(), cache_limit: None, min_free: Some(0) };
        let store = Store::open(options, &tasks).unwrap();
        let accounts = Accounts::open(&store, 100).unwrap();
        let (one, host) = (Party::Peer(PeerId::random()), Party::Host([1, 2, 3, 4].into()));
        assert_eq!(accounts.add(one, given(99)), None);
        assert_eq!(accounts.add(one, given(1)), Some(100));
        assert_eq!(accounts.add(one, given(99)), None);
        assert_eq!(accounts.add(one, given(500)), Some(699), "once, whatever it has passed");
        assert_eq!(accounts.add(one, given(1)), Some(700));
        // To and fro about an amount.
        for _ in 0..3 {
            assert_eq!(accounts.add(one, taken(1)), None);
            assert_eq!(accounts.add(one, given(1)), None);
        }
        // What was paid back and taken again.
        assert_eq!(accounts.add(one, taken(600)), None);
        assert_eq!(accounts.add(one, given(200)), Some(300));
        assert_eq!(accounts.add(host, taken(1000)), None);
        assert_eq!(accounts.add(host, given(1099)), None);

        let accounts = Accounts::open(&store, 100).unwrap();
        assert_eq!(accounts.get(one), Account { given: 903, taken: 603 });
        assert_eq!(accounts.add(one, given(50)), None, "it was told before");
        assert_eq!(accounts.add(one, given(50)), Some(400));
        assert_eq!(accounts.add(host, given(1)), Some(100));
        let silent = Accounts::open(&store, 0).unwrap();
        assert_eq!(silent.add(one, given(1 << 40)), None);
    }
}
