#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

/// A file of which all blocks are wanted, and sources of these kinds that are known to be equally fast.
fn with_file(kinds: &[SourceKind], blocks: u64) -> (Scheduler, Vec<ContentId>) {
    let options = DownloadOptions { chunks_per_peer: 64, ..DownloadOptions::default() };
    let mut scheduler = Scheduler::new(Arc::new(options));
    let known = Reputation { rate: Some(100e6), latency: Some(0.01), success: 1.0 };
    for (at, kind) in kinds.iter().enumerate() {
        scheduler.add_source(Duration::ZERO, name(at), *kind, Some(known));
    }
    let (blocks, file) = (ids(blocks), ids(blocks + 1)[blocks as usize]);
    for (at, id) in blocks.iter().enumerate() {
        let mut demand = demand(*id, at as u64, Duration::from_secs(60));
        demand.want.file = file;
        scheduler.want(Duration::ZERO, demand);
    }
    (scheduler, blocks)
}

/// Lengths of the runs of blocks that follow each other, as each source is asked for them.
fn runs(scheduler: &mut Scheduler, blocks: &[ContentId]) -> HashMap<SourceId, Vec<usize>> {
    let mut runs: HashMap<SourceId, Vec<usize>> = HashMap::new();
    let mut last: HashMap<SourceId, usize> = HashMap::new();
    for (source, id) in asked(&scheduler.step(Duration::ZERO, u64::MAX)) {
        let at = blocks.iter().position(|block| *block == id).unwrap();
        let of = runs.entry(source.clone()).or_default();
        if last.insert(source, at).is_some_and(|last| last + 1 == at) {
            *of.last_mut().unwrap() += 1;
        } else {
            of.push(1);
        }
    }
    runs
}

#[test]
fn gateways_are_given_blocks_that_follow_each_other() {
    let kinds = [SourceKind::Gateway, SourceKind::Gateway];
    let (mut scheduler, blocks) = with_file(&kinds, 96);
    let runs = runs(&mut scheduler, &blocks);
    assert_eq!(runs.len(), 2, "both are asked");
    for (source, runs) in runs {
        assert!(runs.iter().rev().skip(1).all(|run| *run == 16), "{source}: {runs:?}");
    }
}

#[test]
fn bitswap_peers_are_given_each_block_by_itself_and_a_gateway_beside_them_runs() {
    let kinds = [SourceKind::Chiral, SourceKind::Gateway, SourceKind::Chiral];
    let (mut scheduler, blocks) = with_file(&kinds, 96);
    let runs = runs(&mut scheduler, &blocks);
    assert!(runs[&name(1)].iter().all(|run| *run >= 8), "{runs:?}");
    assert!(runs[&name(0)].len() > 4 && runs[&name(2)].len() > 4, "{runs:?}");
}

#[test]
fn a_slow_gateway_keeps_no_run_that_would_come_earlier_from_elsewhere() {
    let (mut scheduler, blocks) = with_file(&[SourceKind::Gateway, SourceKind::Gateway], 96);
    let slow = Reputation { rate: Some(1e6), latency: Some(0.01), success: 1.0 };
    scheduler.add_source(Duration::ZERO, name(2), SourceKind::Gateway, Some(slow));
    let runs = runs(&mut scheduler, &blocks);
    assert!(runs.get(&name(2)).is_none_or(|runs| runs.iter().all(|run| *run == 1)), "{runs:?}");
}
