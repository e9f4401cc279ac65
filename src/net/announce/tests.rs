#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use super::{
    sweep::{EARLY, INTERVAL},
    *,
};
use crate::{content::Block, net::rows::memory::MemoryRows};

fn open(rows: Arc<dyn Rows>) -> Announcer {
    Announcer::open(rows, PeerId::random()).unwrap()
}

/// Has lookups find one peer, and that peer told; gives the keys.
fn announce(announcer: &Announcer, scope: Scope, taken: bool) -> Vec<Key> {
    let mut announced = Vec::new();
    while let Some(order) = announcer.next(scope) {
        match order {
            Order::LookUp { lookup, .. } => {
                let found = vec![Contact { peer: PeerId::random(), addresses: Vec::new() }];
                announcer.looked_up(scope, lookup, found, true);
            }
            Order::Tell { send, keys, .. } => {
                announcer.told_to(scope, send, taken);
                announced.extend(keys);
            }
        }
    }
    announced
}

#[test]
fn both_queues_come_back_from_their_rows() {
    let rows = Arc::new(MemoryRows::default());
    let (kept, gone) = (*Block::raw("kept".into()).cid(), *Block::raw("gone".into()).cid());
    let first = open(rows.clone());
    first.add(&kept).unwrap();
    first.add(&gone).unwrap();
    let mut told = first.told();
    let keys: HashSet<Key> = announce(&first, Scope::Lan, true).into_iter().collect();
    assert_eq!(keys, HashSet::from([key_of(&kept), key_of(&gone)]));
    let told: HashSet<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
    assert_eq!(told, HashSet::from([kept, gone]));
    first.remove(&gone).unwrap();
    assert_eq!(first.take_added(), HashSet::from([key_of(&kept)]));
    rows.insert(b"?", b"broken").unwrap();

    let again = open(rows.clone());
    assert!(again.next(Scope::Lan).is_none(), "announced already");
    assert!((EARLY - 60..=INTERVAL).contains(&again.wake_in(Scope::Lan).unwrap()));
    let Some(Order::LookUp { key, .. }) = again.next(Scope::Wan) else { panic!() };
    assert_eq!(key, key_of(&kept), "never announced there");
    assert_eq!(again.keys(Scope::Lan), [key_of(&kept)]);
    assert_eq!(rows.all().unwrap().len(), 2, "the broken row is gone");
}

#[test]
fn rows_of_earlier_versions_are_read() {
    let root = *Block::raw("root".into()).cid();
    let due = now() + 1_000;
    let value = [&due.to_be_bytes()[..], &2_u32.to_be_bytes(), &root.to_bytes()].concat();
    let rows = Arc::new(MemoryRows::default());
    rows.insert(&[b"l", &key_of(&root)[..]].concat(), &value).unwrap();
    let announcer = open(rows);
    assert!((900..=1_000).contains(&announcer.wake_in(Scope::Lan).unwrap()));
    assert_eq!(announcer.keys(Scope::Lan), [key_of(&root)]);
    assert!(announcer.keys(Scope::Wan).is_empty());
}

#[test]
fn a_root_that_others_would_refuse_is_not_announced() {
    // One refused key costs all others of the same stream.
    let content = [7; MAX_KEY];
    let hash = multihash::Multihash::wrap(0, &content).unwrap();
    let root = ContentId::raw(hash);
    let announcer = open(Arc::new(MemoryRows::default()));
    announcer.add(&root).unwrap();
    assert!(announcer.keys(Scope::Lan).is_empty() && announcer.take_added().is_empty());
}

/// A disk that is full.
#[derive(Debug)]
struct FullRows;

impl Rows for FullRows {
    fn insert(&self, _: &[u8], _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    fn remove(&self, _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    fn all(&self) -> Result<Vec<crate::net::rows::Row>, StoreError> {
        Ok(Vec::new())
    }
}

#[test]
fn what_cannot_be_written_down_is_announced_all_the_same() {
    let root = *Block::raw("root".into()).cid();
    let announcer = open(Arc::new(FullRows));
    announcer.add(&root).unwrap_err();
    let mut told = announcer.told();
    for (scope, taken) in [(Scope::Lan, false), (Scope::Wan, true)] {
        assert!(told.is_empty(), "nobody was told yet");
        assert_eq!(announce(&announcer, scope, taken), [key_of(&root)]);
    }
    assert_eq!(told.try_recv(), Ok(root));
    announcer.add(&root).unwrap_err();
    announcer.remove(&root).unwrap_err();
    assert!(Scope::ALL.iter().all(|scope| announcer.keys(*scope).is_empty()));
}
