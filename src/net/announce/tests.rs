#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;
use crate::{content::Block, net::rows::memory::MemoryRows};

fn key(n: u8) -> Key {
    vec![n]
}

#[test]
fn a_root_is_announced_at_once_and_again_before_it_is_forgotten() {
    let mut queue = Queue::default();
    queue.add(key(1), 100);
    assert_eq!(queue.take_due(100), Some(key(1)));
    assert_eq!(queue.take_due(100), None, "not twice at once");
    let entry = queue.finished(&key(1), Outcome::Announced, 110).unwrap();
    assert_eq!(entry, Entry { due: 110 + INTERVAL, failures: 0 });
    assert_eq!(queue.take_due(109 + INTERVAL), None);
    assert_eq!(queue.wake_at(), Some(110 + INTERVAL));
    assert_eq!(queue.take_due(110 + INTERVAL), Some(key(1)));
}

#[test]
fn failures_are_retried_with_growing_pauses_and_success_forgives_them() {
    let mut queue = Queue::default();
    let mut now = 0;
    queue.add(key(1), now);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        assert_eq!(queue.take_due(now), Some(key(1)));
        let entry = queue.finished(&key(1), Outcome::Failed, now).unwrap();
        pauses.push(entry.due - now);
        now = entry.due;
    }
    assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600]);
    queue.take_due(now).unwrap();
    queue.finished(&key(1), Outcome::Announced, now).unwrap();
    now += INTERVAL;
    queue.take_due(now).unwrap();
    assert_eq!(queue.finished(&key(1), Outcome::Failed, now).unwrap().due - now, 30);
}

#[test]
fn what_is_removed_in_flight_stays_removed_and_may_come_back() {
    let mut queue = Queue::default();
    queue.add(key(1), 0);
    queue.take_due(0).unwrap();
    queue.remove(&key(1));
    assert_eq!(queue.finished(&key(1), Outcome::Announced, 1), None);
    assert_eq!(queue.wake_at(), None);
    queue.add(key(1), 2);
    assert_eq!(queue.take_due(2), Some(key(1)));
}

#[test]
fn a_clock_that_was_set_back_does_not_silence_a_root() {
    let mut queue = Queue::default();
    queue.restore(key(1), Entry { due: 1_000_000_000, failures: 0 }, 5);
    assert_eq!(queue.wake_at(), Some(5 + INTERVAL));
}

#[test]
fn both_queues_come_back_from_their_rows() {
    let rows = Arc::new(MemoryRows::default());
    let (kept, gone) = (*Block::raw("kept".into()).cid(), *Block::raw("gone".into()).cid());
    let first = Announcer::open(rows.clone()).unwrap();
    first.add(&kept).unwrap();
    first.add(&gone).unwrap();
    let due: Vec<Key> = std::iter::from_fn(|| first.take_due(Scope::Lan)).collect();
    assert_eq!(due.len(), 2);
    let mut told = first.told();
    for key in due {
        first.finished(Scope::Lan, &key, Outcome::Announced);
    }
    let told: HashSet<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
    assert_eq!(told, HashSet::from([kept, gone]));
    first.remove(&gone).unwrap();
    rows.insert(b"?", b"broken").unwrap();

    let again = Announcer::open(rows.clone()).unwrap();
    assert_eq!(again.take_due(Scope::Lan), None, "announced already");
    assert!(again.wake_in(Scope::Lan).unwrap() > INTERVAL / 2);
    assert_eq!(again.take_due(Scope::Wan), Some(key_of(&kept)), "never announced there");
    assert_eq!(again.keys(Scope::Lan), [key_of(&kept)]);
    assert_eq!(rows.all().unwrap().len(), 2, "the broken row is gone");
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
    let announcer = Announcer::open(Arc::new(FullRows)).unwrap();
    announcer.add(&root).unwrap_err();
    let mut told = announcer.told();
    for (scope, outcome) in [(Scope::Lan, Outcome::Failed), (Scope::Wan, Outcome::Announced)] {
        assert!(told.is_empty(), "nobody was told yet");
        assert_eq!(announcer.take_due(scope), Some(key_of(&root)));
        announcer.finished(scope, &key_of(&root), outcome);
    }
    assert_eq!(told.try_recv(), Ok(root));
    announcer.add(&root).unwrap_err();
    announcer.remove(&root).unwrap_err();
    assert!(Scope::ALL.iter().all(|scope| announcer.keys(*scope).is_empty()));
}

#[derive(Clone, Debug)]
enum Op {
    Add(u8),
    Remove(u8),
    Take,
    Finish { pick: usize, told: bool },
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..40_u8).prop_map(Op::Add),
        1 => (0..40_u8).prop_map(Op::Remove),
        4 => Just(Op::Take),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(pick, told)| Op::Finish { pick, told }),
        1 => (0..2 * INTERVAL).prop_map(Op::Wait),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_announced_twice_at_once_or_over_the_limit(
        ops in prop::collection::vec(op(), 0..300),
    ) {
        let mut queue = Queue::default();
        let mut wanted = BTreeSet::new();
        let mut flying: Vec<Key> = Vec::new();
        let mut now = 0;
        for op in ops {
            match op {
                Op::Add(n) => {
                    queue.add(key(n), now);
                    wanted.insert(key(n));
                }
                Op::Remove(n) => {
                    queue.remove(&key(n));
                    wanted.remove(&key(n));
                }
                Op::Take => {
                    let promised = queue.wake_at().is_some_and(|at| at <= now);
                    let taken = queue.take_due(now);
                    prop_assert_eq!(taken.is_some(), promised);
                    if let Some(taken) = taken {
                        prop_assert!(wanted.contains(&taken));
                        prop_assert!(!flying.contains(&taken));
                        flying.push(taken);
                    }
                }
                Op::Finish { pick, told } if !flying.is_empty() => {
                    let done = flying.swap_remove(pick % flying.len());
                    let outcome = if told { Outcome::Announced } else { Outcome::Failed };
                    let entry = queue.finished(&done, outcome, now);
                    prop_assert_eq!(entry.is_some(), wanted.contains(&done));
                }
                Op::Finish { .. } => {}
                Op::Wait(seconds) => now += seconds,
            }
            prop_assert!(flying.len() <= MAX_IN_FLIGHT);
            let keys: BTreeSet<Key> = queue.keys().cloned().collect();
            prop_assert_eq!(&keys, &wanted);
            // Whatever is wanted either flies or will fall due.
            for key in &wanted {
                let waits = queue.waiting.iter().any(|(_, waiting)| waiting == key);
                prop_assert!(waits != flying.contains(key));
            }
        }
    }
}
