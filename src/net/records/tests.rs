#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

fn record(key: &[u8], provider: PeerId, expires: Instant) -> ProviderRecord {
    let addresses = vec!["/ip4/127.0.0.1/tcp/4001".parse().unwrap()];
    ProviderRecord {
        key: RecordKey::from(key.to_vec()),
        provider,
        expires: Some(expires),
        addresses,
    }
}

fn providers(records: &Records, key: &[u8]) -> Vec<PeerId> {
    let mut found: Vec<PeerId> =
        records.providers(&RecordKey::from(key.to_vec())).into_iter().map(|r| r.provider).collect();
    found.sort();
    found
}

fn key_number(n: usize) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}

#[test]
fn own_records_are_never_refused_however_many_strangers_there_are() {
    let own = PeerId::random();
    let mut records = Records::in_memory(own);
    let later = Instant::now() + Duration::from_secs(60);
    for stranger in 0..5 {
        let provider = PeerId::random();
        for n in 0..MAX_PER_PROVIDER {
            let _ = records.add_provider(record(
                &key_number(stranger * MAX_PER_PROVIDER + n),
                provider,
                later,
            ));
        }
    }
    assert_eq!(records.expiries.len(), MAX_FOREIGN);
    for n in 0..2_000 {
        records.add_provider(ProviderRecord::new(key_number(n), own, Vec::new())).unwrap();
    }
    assert_eq!(records.provided().count(), 2_000);
    assert!(providers(&records, &key_number(7)).contains(&own));
}

#[test]
fn one_provider_leaves_room_for_others_and_the_oldest_gives_way() {
    let mut records = Records::in_memory(PeerId::random());
    let now = Instant::now();
    let busy = PeerId::random();
    for n in 0..MAX_PER_PROVIDER {
        records.add_provider(record(&key_number(n), busy, now)).unwrap();
    }
    assert!(records.add_provider(record(b"one more", busy, now)).is_err());
    records.add_provider(record(&key_number(0), busy, now + Duration::from_secs(9))).unwrap();

    let mut strangers: Vec<PeerId> = (0..=MAX_PER_KEY).map(|_| PeerId::random()).collect();
    for (n, provider) in strangers.iter().enumerate() {
        let expires = now + Duration::from_secs(n as u64 + 1);
        records.add_provider(record(b"popular", *provider, expires)).unwrap();
    }
    strangers.remove(0);
    strangers.sort();
    assert_eq!(providers(&records, b"popular"), strangers);
}

#[test]
fn values_are_bounded_in_number_and_size_and_of_known_kinds() {
    let mut records = Records::in_memory(PeerId::random());
    assert!(records.put(Record::new(b"/ipns/x".to_vec(), vec![0; MAX_VALUE_LEN + 1])).is_err());
    for n in 0..MAX_VALUES {
        records.put(Record::new(key_number(n), Vec::new())).unwrap();
    }
    assert!(records.put(Record::new(b"more".to_vec(), Vec::new())).is_err());
    records.put(Record::new(key_number(3), vec![3])).unwrap();
    assert_eq!(records.get(&RecordKey::from(key_number(3))).unwrap().value, [3]);
    assert!(Records::is_known_kind(&Record::new(b"/ipns/x".to_vec(), Vec::new())));
    assert!(!Records::is_known_kind(&Record::new(b"/other/x".to_vec(), Vec::new())));
}

#[test]
fn records_outlive_a_restart_with_the_time_they_have_left() {
    let (to_disk, mut changes) = mpsc::channel(16);
    let own = PeerId::random();
    let provider = PeerId::random();
    let mut records = Records::restore(own, [], to_disk.clone());
    let now = Instant::now();
    let kept = record(b"kept", provider, now + Duration::from_secs(3_600));
    records.add_provider(kept.clone()).unwrap();
    records.add_provider(record(b"removed", provider, now + Duration::from_secs(3_600))).unwrap();
    records.remove_provider(&RecordKey::from(b"removed".to_vec()), &provider);
    let mut rows = std::collections::BTreeMap::new();
    while let Ok(change) = changes.try_recv() {
        match change {
            Change::Put(key, value) => drop(rows.insert(key, value)),
            Change::Remove(key) => drop(rows.remove(&key).unwrap()),
        }
    }
    rows.insert(b"broken".to_vec(), b"row".to_vec());
    let again = Records::restore(own, rows, to_disk);
    let found = again.providers(&kept.key);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].provider, &found[0].addresses), (provider, &kept.addresses));
    // Whole seconds are kept on disk.
    let moved = found[0].expires.unwrap().duration_since(now);
    assert!(moved > Duration::from_secs(3_590) && moved <= Duration::from_secs(3_660), "{moved:?}");
    assert!(providers(&again, b"removed").is_empty());
    assert_eq!(changes.try_recv().unwrap(), Change::Remove(b"broken".to_vec()));
}

#[derive(Clone, Debug)]
enum Op {
    Add { key: u8, provider: usize, expires: u64 },
    Remove { key: u8, provider: usize },
    Sweep { now: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..4_u8, 0..5_usize, 0..100_u64)
            .prop_map(|(key, provider, expires)| Op::Add { key, provider, expires }),
        1 => (0..4_u8, 0..5_usize).prop_map(|(key, provider)| Op::Remove { key, provider }),
        1 => (0..100_u64).prop_map(|now| Op::Sweep { now }),
    ]
}

proptest! {
    #[test]
    fn it_holds_what_a_plain_map_would_hold(ops in prop::collection::vec(op(), 0..200)) {
        let peers: Vec<PeerId> = (0..5).map(|_| PeerId::random()).collect();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut records = Records::in_memory(PeerId::random());
        let mut model = std::collections::BTreeMap::new();
        for op in ops {
            match op {
                Op::Add { key, provider, expires } => {
                    records.add_provider(record(&[key], peers[provider], at(expires))).unwrap();
                    model.insert((key, peers[provider]), expires);
                }
                Op::Remove { key, provider } => {
                    records.remove_provider(&RecordKey::from(vec![key]), &peers[provider]);
                    model.remove(&(key, peers[provider]));
                }
                Op::Sweep { now } => {
                    records.sweep(at(now));
                    model.retain(|_, expires| *expires > now);
                }
            }
            for key in 0..4_u8 {
                let wanted: Vec<PeerId> =
                    model.keys().filter(|(k, _)| *k == key).map(|(_, peer)| *peer).collect();
                prop_assert_eq!(providers(&records, &[key]), wanted);
            }
            prop_assert_eq!(records.expiries.len(), model.len());
            prop_assert_eq!(records.per_provider.values().sum::<usize>(), model.len());
        }
    }
}
