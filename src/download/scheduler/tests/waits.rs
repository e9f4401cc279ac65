#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

#[test]
fn a_long_queue_on_a_slow_line_ends_well() {
    let mut peers = vec![peer(0.2, 100.0)];
    let blocks = ids(512);
    let mut scheduler = with_sources(1);
    for (at, id) in blocks.iter().enumerate() {
        let demand = demand(*id, at as u64, Duration::ZERO);
        let urgency = Urgency::background(at as u64);
        scheduler.want(Duration::ZERO, Demand { urgency, ..demand });
    }
    let mut missing = blocks.len();
    let mut now = Duration::ZERO;
    while missing > 0 {
        assert!(now < Duration::from_secs(1000), "{missing} blocks did not come");
        let time = now.as_secs_f64();
        while let Some((id, asked)) = peers[0].queue.front().copied() {
            let done = peers[0].free_at.max(asked + peers[0].latency) + BLOCK as f64 / 0.2e6;
            if done > time {
                break;
            }
            peers[0].queue.pop_front();
            peers[0].free_at = done;
            missing -= usize::from(scheduler.delivered(now, &name(0), &id, BLOCK).is_some());
        }
        for action in scheduler.step(now, u64::MAX) {
            act(&mut peers, action, time);
        }
        now += 50 * STEP;
    }
    assert!(now > Duration::from_secs(600), "longer than a block may take: {now:?}");
}

#[test]
fn a_source_that_lacks_a_block_is_asked_again_ever_more_rarely() {
    for (kind, expected) in [
        (SourceKind::Chiral, [0, 250, 750, 1750, 3750, 7750, 15_750, 25_750]),
        (SourceKind::Bitswap, [0, 2000, 6000, 14_000, 24_000, 34_000, 44_000, 54_000]),
    ] {
        let mut scheduler = Scheduler::new(Arc::default());
        scheduler.add_source(Duration::ZERO, name(0), kind, None);
        let id = ids(1)[0];
        scheduler.want(Duration::ZERO, demand(id, 0, Duration::ZERO));
        let mut tries = Vec::new();
        for ms in 0..60_000u64 {
            let now = Duration::from_millis(ms);
            if !asked(&scheduler.step(now, u64::MAX)).is_empty() {
                tries.push(ms);
                scheduler.failed(now, &name(0), &id, &Permanent::NotFound.into());
            }
        }
        assert_eq!(tries[..8], expected, "{kind:?}");
    }
}

#[test]
fn sources_that_all_seemed_dead_are_tried_with_one_block_when_somebody_waits() {
    let mut scheduler = with_sources(2);
    let blocks = ids(20);
    let mut now = Duration::ZERO;
    // Both fail three times.
    for (at, id) in blocks[..6].iter().enumerate() {
        scheduler.want(now, demand(*id, at as u64, now));
        for (source, id) in asked(&scheduler.step(now, u64::MAX)) {
            scheduler.failed(now, &source, &id, &Transient::Reset.into());
            scheduler.forget(&id);
        }
        now += Duration::from_secs(1);
    }
    assert_eq!(scheduler.usable_sources(now), 0);
    let background = Demand { urgency: Urgency::background(0), ..demand(blocks[7], 7, now) };
    scheduler.want(now, background);
    assert_eq!(asked(&scheduler.step(now, u64::MAX)), [], "nobody waits for it");
    for (at, id) in blocks[8..].iter().enumerate() {
        scheduler.want(now, demand(*id, at as u64, now));
    }
    let probes = asked(&scheduler.step(now, u64::MAX));
    assert!((1..=2).contains(&probes.len()), "one block each at most: {probes:?}");
    let (source, id) = probes[0].clone();
    scheduler.delivered(now, &source, &id, BLOCK);
    assert_eq!(scheduler.usable_sources(now), 1, "it works");
    let more = asked(&scheduler.step(now, u64::MAX));
    assert!(more.len() > 1 && more.iter().all(|(to, _)| *to == source), "{more:?}");
}

#[test]
fn a_block_that_is_needed_now_is_asked_for_where_it_comes_sooner() {
    let mut scheduler = with_sources(0);
    let blocks = ids(1);
    let mut now = Duration::ZERO;
    let slow = Reputation { rate: Some(1e5), latency: Some(0.1), success: 1.0 };
    scheduler.add_source(now, name(1), SourceKind::Bitswap, Some(slow));
    scheduler.want(now, demand(blocks[0], 0, now));
    assert_eq!(asked(&scheduler.step(now, u64::MAX)), [(name(1), blocks[0])]);
    let quick = Reputation { rate: Some(1e7), latency: Some(0.02), success: 1.0 };
    scheduler.add_source(now, name(2), SourceKind::Bitswap, Some(quick));
    now += TICK;
    assert_eq!(asked(&scheduler.step(now, u64::MAX)), [(name(2), blocks[0])]);
    now += TICK;
    assert_eq!(asked(&scheduler.step(now, u64::MAX)), [], "not again");
}

#[test]
fn a_source_that_has_nothing_is_not_asked_while_one_that_has_is_only_busy() {
    let mut scheduler = with_sources(2);
    let blocks = ids(400);
    for (at, id) in blocks.iter().enumerate() {
        let demand = demand(*id, at as u64, Duration::ZERO);
        let urgency = Urgency::background(at as u64);
        scheduler.want(Duration::ZERO, Demand { urgency, ..demand });
    }
    let (mut now, mut in_vain, mut came) = (Duration::ZERO, 0, 0);
    let mut flying = VecDeque::new();
    for _ in 0..1000 {
        for (source, id) in asked(&scheduler.step(now, u64::MAX)) {
            if source == name(0) {
                in_vain += 1;
                scheduler.failed(now, &source, &id, &Permanent::NotFound.into());
            } else {
                flying.push_back(id);
            }
        }
        now += 10 * STEP;
        if let Some(id) = flying.pop_front() {
            came += 1;
            scheduler.delivered(now, &name(1), &id, BLOCK);
        }
    }
    assert_eq!(came, 400);
    assert!((4..=20).contains(&in_vain), "{in_vain} questions in vain");
}

#[test]
fn a_block_that_one_source_has_held_for_a_minute_is_asked_for_elsewhere() {
    let mut scheduler = with_sources(0);
    let blocks = ids(200);
    let id = blocks[0];
    scheduler.want(Duration::ZERO, demand(id, 0, Duration::ZERO));
    // The first block is expected to take so long that it is not late, and others come all the time.
    let slow = Reputation { rate: Some(1e3), latency: Some(60.0), success: 1.0 };
    scheduler.add_source(Duration::ZERO, name(1), SourceKind::Bitswap, Some(slow));
    assert_eq!(asked(&scheduler.step(Duration::ZERO, u64::MAX)), [(name(1), id)]);
    let background = |at: usize| Demand {
        urgency: Urgency::background(at as u64),
        ..demand(blocks[at], at as u64, Duration::ZERO)
    };
    let mut second = None;
    for seconds in 1..100usize {
        let now = Duration::from_secs(seconds as u64);
        scheduler.want(now, background(seconds));
        if seconds == 59 {
            let slower = Reputation { rate: Some(1e3), latency: Some(80.0), success: 1.0 };
            scheduler.add_source(now, name(2), SourceKind::Bitswap, Some(slower));
        }
        for (source, asked) in asked(&scheduler.step(now, u64::MAX)) {
            if asked == id && source == name(2) {
                second = second.or(Some(seconds));
            } else if asked != id {
                scheduler.delivered(now, &source, &asked, BLOCK);
            }
        }
    }
    assert_eq!(second, Some(60));
}

#[test]
fn what_background_work_may_take_leaves_room_for_a_block_that_is_waited_for() {
    let mut scheduler = with_sources(4);
    let blocks = ids(60);
    for (at, id) in blocks[..50].iter().enumerate() {
        let demand = demand(*id, at as u64, Duration::ZERO);
        let urgency = Urgency::background(at as u64);
        scheduler.want(Duration::ZERO, Demand { urgency, ..demand });
    }
    let allowance = Allowance { waited_for: 2 * BLOCK, ahead: BLOCK, background: 0 };
    assert_eq!(asked(&scheduler.step(Duration::ZERO, allowance)), []);
    for (at, id) in blocks[50..].iter().enumerate() {
        let later = Duration::from_secs(5 * u64::from(at >= 1));
        scheduler.want(Duration::ZERO, demand(*id, at as u64, later));
    }
    let requests = asked(&scheduler.step(Duration::ZERO, allowance));
    assert_eq!(requests.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [blocks[50]]);
}

#[test]
fn a_timeout_leaves_little_in_flight_at_a_source_that_holds_back() {
    let mut scheduler = Scheduler::new(Arc::default());
    scheduler.add_source(Duration::ZERO, name(0), SourceKind::Chiral, None);
    let blocks = ids(2000);
    for (at, id) in blocks.iter().enumerate() {
        let demand = demand(*id, at as u64, Duration::ZERO);
        let urgency = Urgency::background(at as u64);
        scheduler.want(Duration::ZERO, Demand { urgency, ..demand });
    }
    let mut flying: VecDeque<ContentId> = VecDeque::new();
    for ms in 0..500 {
        let now = Duration::from_millis(ms);
        if let Some(id) = flying.pop_front() {
            scheduler.delivered(now, &name(0), &id, BLOCK);
        }
        flying.extend(asked(&scheduler.step(now, u64::MAX)).into_iter().map(|(_, id)| id));
    }
    assert!(scheduler.in_flight() > 16 * BLOCK);
    let rate = scheduler.reputations().next().unwrap().1.rate.unwrap();
    scheduler.step(Duration::from_secs(40), u64::MAX);
    assert!(scheduler.in_flight() <= 4 * BLOCK, "{}", scheduler.in_flight());
    let after = scheduler.reputations().next().unwrap().1.rate.unwrap();
    assert!((after - rate / 2.0).abs() < 1.0, "one timeout, however many blocks: {rate} {after}");
}
