//! The records that this node keeps for a DHT.
//!
//! They are served from memory. libp2p's own store counts what it holds for others and what this node provides
//! together, stops at 1,024 keys in all, and keeps expired records until somebody asks for their key.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, hash_map::Entry},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};
use tokio::sync::mpsc;

/// Provider records kept for others: some 300 bytes each, 10 MB in all.
const MAX_FOREIGN: usize = 32_768;
/// Records of one provider, so that one busy or hostile peer leaves room for the others.
const MAX_PER_PROVIDER: usize = MAX_FOREIGN / 4;
/// Providers of one key: more than anyone asks for.
const MAX_PER_KEY: usize = 64;
/// Addresses kept of one provider.
const MAX_ADDRESSES: usize = 8;
/// Value records kept for others (IPNS names and public keys).
const MAX_VALUES: usize = 1_024;
/// Largest value record: the limit of IPNS.
const MAX_VALUE_LEN: usize = 10 << 10;
/// Longest key: a multihash, or the name of a value record.
const MAX_KEY_LEN: usize = 128;

/// A change of a foreign provider record, to be written behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A row to write: its key and its value.
    Put(Vec<u8>, Vec<u8>),
    /// The key of a row to take out.
    Remove(Vec<u8>),
}

/// Record store of one DHT.
pub(super) struct Records {
    own: PeerId,
    /// What this node provides; never expires here, never refused.
    provided: HashMap<RecordKey, ProviderRecord>,
    foreign: HashMap<RecordKey, Vec<ProviderRecord>>,
    /// Every foreign record by its expiry.
    expiries: BTreeSet<(Instant, Vec<u8>, PeerId)>,
    per_provider: HashMap<PeerId, usize>,
    values: HashMap<RecordKey, Record>,
    changes: Option<mpsc::Sender<Change>>,
}

impl Records {
    /// An empty store that nobody writes down.
    pub(super) fn in_memory(own: PeerId) -> Self {
        Self {
            own,
            provided: HashMap::new(),
            foreign: HashMap::new(),
            expiries: BTreeSet::new(),
            per_provider: HashMap::new(),
            values: HashMap::new(),
            changes: None,
        }
    }

    /// A store with the rows that an earlier process wrote; changes go to `changes`. What does not fit into it at the
    /// moment is lost: providers announce again in time.
    pub(super) fn restore(
        own: PeerId,
        rows: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
        changes: mpsc::Sender<Change>,
    ) -> Self {
        let mut records = Self::in_memory(own);
        let mut stale = Vec::new();
        for (key, value) in rows {
            match row::read(&key, &value, Instant::now(), SystemTime::now()) {
                // A full store refuses the rest; they stay on disk until they are stale.
                Some(record) => drop(records.insert(record)),
                None => stale.push(key),
            }
        }
        records.changes = Some(changes);
        for key in stale {
            records.changed(Change::Remove(key));
        }
        records
    }

    /// Takes out what has expired by `now`.
    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some((expires, key, provider)) = self.expiries.first().cloned() {
            if expires > now {
                break;
            }
            self.remove_foreign(&key.into(), &provider);
        }
        self.values.retain(|_, record| !record.is_expired(now));
    }

    /// Takes a value record only if its name is of a kind that this network uses.
    pub(super) fn is_known_kind(record: &Record) -> bool {
        let key = record.key.as_ref();
        key.starts_with(b"/ipns/") || key.starts_with(b"/pk/")
    }

    fn changed(&self, change: Change) {
        if let Some(changes) = &self.changes
            && changes.try_send(change).is_err()
        {
            tracing::debug!("a provider record is not written down: the disk is behind");
        }
    }

    fn insert(&mut self, mut record: ProviderRecord) -> Result<()> {
        let Some(expires) = record.expires else {
            // kad sets it on all that comes from others.
            return Err(Error::MaxProvidedKeys);
        };
        if record.key.as_ref().len() > MAX_KEY_LEN {
            return Err(Error::ValueTooLarge);
        }
        record.addresses.truncate(MAX_ADDRESSES);
        self.remove_in_memory(&record.key, &record.provider);
        let held = self.per_provider.get(&record.provider).copied().unwrap_or(0);
        if held >= MAX_PER_PROVIDER {
            return Err(Error::MaxProvidedKeys);
        }
        self.make_room(&record.key);
        self.expiries.insert((expires, record.key.to_vec(), record.provider));
        *self.per_provider.entry(record.provider).or_default() += 1;
        self.foreign.entry(record.key.clone()).or_default().push(record);
        Ok(())
    }

    /// What expires first gives way: it was announced longest ago.
    fn make_room(&mut self, key: &RecordKey) {
        if let Some(records) = self.foreign.get(key)
            && records.len() >= MAX_PER_KEY
            && let Some(oldest) = records.iter().min_by_key(|r| r.expires).map(|r| r.provider)
        {
            self.remove_foreign(key, &oldest);
        }
        if self.expiries.len() >= MAX_FOREIGN
            && let Some((_, key, provider)) = self.expiries.first().cloned()
        {
            self.remove_foreign(&key.into(), &provider);
        }
    }

    fn remove_foreign(&mut self, key: &RecordKey, provider: &PeerId) {
        if self.remove_in_memory(key, provider) {
            self.changed(Change::Remove(row::key(key, provider)));
        }
    }

    fn remove_in_memory(&mut self, key: &RecordKey, provider: &PeerId) -> bool {
        let Some(records) = self.foreign.get_mut(key) else { return false };
        let Some(at) = records.iter().position(|r| r.provider == *provider) else { return false };
        let record = records.swap_remove(at);
        if records.is_empty() {
            self.foreign.remove(key);
        }
        if let Some(expires) = record.expires {
            self.expiries.remove(&(expires, key.to_vec(), *provider));
        }
        if let Entry::Occupied(mut held) = self.per_provider.entry(*provider) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
        true
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = std::iter::Map<
        std::collections::hash_map::Values<'a, RecordKey, Record>,
        fn(&'a Record) -> Cow<'a, Record>,
    >;
    type ProvidedIter<'a> = std::iter::Map<
        std::collections::hash_map::Values<'a, RecordKey, ProviderRecord>,
        fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>,
    >;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        self.values.get(key).map(Cow::Borrowed)
    }

    fn put(&mut self, record: Record) -> Result<()> {
        if record.value.len() > MAX_VALUE_LEN || record.key.as_ref().len() > MAX_KEY_LEN {
            return Err(Error::ValueTooLarge);
        }
        if self.values.len() >= MAX_VALUES && !self.values.contains_key(&record.key) {
            return Err(Error::MaxRecords);
        }
        self.values.insert(record.key.clone(), record);
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        self.values.remove(key);
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        self.values.values().map(Cow::Borrowed)
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider == self.own {
            self.provided.insert(record.key.clone(), record);
            return Ok(());
        }
        let row = row::key(&record.key, &record.provider);
        let value = row::value(&record, Instant::now(), SystemTime::now());
        self.insert(record)?;
        if let Some(value) = value {
            self.changed(Change::Put(row, value));
        }
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let own = self.provided.get(key).into_iter();
        let foreign = self.foreign.get(key).into_iter().flatten();
        own.chain(foreign).cloned().collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.provided.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.own {
            self.provided.remove(key);
        } else {
            self.remove_foreign(key, provider);
        }
    }
}

/// Rows of provider records on disk. Key: length of the DHT key (one byte), DHT key, peer id. Value: expiry in seconds
/// since the epoch (8 bytes, big endian), then each address with its length (two bytes, big endian) before it.
mod row {
    use super::*;

    pub(super) fn key(key: &RecordKey, provider: &PeerId) -> Vec<u8> {
        let key = key.as_ref();
        let len = u8::try_from(key.len()).unwrap_or(u8::MAX);
        [&[len][..], key, &provider.to_bytes()].concat()
    }

    /// None when the clocks do not allow to tell the expiry.
    pub(super) fn value(
        record: &ProviderRecord,
        now: Instant,
        wall: SystemTime,
    ) -> Option<Vec<u8>> {
        let left = record.expires?.saturating_duration_since(now);
        let expires = wall.checked_add(left)?.duration_since(UNIX_EPOCH).ok()?.as_secs();
        let mut value = expires.to_be_bytes().to_vec();
        for address in record.addresses.iter().take(MAX_ADDRESSES) {
            let bytes: &[u8] = address.as_ref();
            if let Ok(len) = u16::try_from(bytes.len()) {
                value.extend_from_slice(&len.to_be_bytes());
                value.extend_from_slice(bytes);
            }
        }
        Some(value)
    }

    /// None when the row is broken or has expired.
    pub(super) fn read(
        key: &[u8],
        value: &[u8],
        now: Instant,
        wall: SystemTime,
    ) -> Option<ProviderRecord> {
        let (len, rest) = key.split_first()?;
        let (key, peer) = rest.split_at_checked(usize::from(*len))?;
        let provider = PeerId::from_bytes(peer).ok()?;
        let (expires, mut rest) = value.split_first_chunk::<8>()?;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(*expires)))?;
        let left = expires.duration_since(wall).ok()?;
        let mut addresses = Vec::new();
        while let Some((len, more)) = rest.split_first_chunk::<2>() {
            let (address, more) = more.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
            addresses.push(Multiaddr::try_from(address.to_vec()).ok()?);
            rest = more;
        }
        let key = RecordKey::from(key.to_vec());
        Some(ProviderRecord { key, provider, expires: Some(now.checked_add(left)?), addresses })
    }
}

#[cfg(test)]
mod tests;
