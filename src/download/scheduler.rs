//! Which block is asked of which source, and when again: data and pure functions on a clock that is passed in.
//!
//! Blocks are taken by deadline and given to the source that is expected to have them here first. A block that is
//! late is asked for a second time elsewhere, within a budget; a source that falls silent is left alone for a while.
//! All times are durations since the start of the engine.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    DownloadOptions, Event,
    retry::Budget,
    stats::{Reputation, SourceStats, TYPICAL_BLOCK, Typical},
};
use crate::{
    content::ContentId,
    sources::{SourceId, SourceKind, Want},
};

mod assign;
mod late;
mod trouble;

/// How often blocks under way are looked at: a tenth of what a person notices.
const TICK: Duration = Duration::from_millis(25);
/// A source that had none of the last blocks is asked after those that may have all; more than this says no more.
const MOST_LACKED: u32 = 8;

/// How urgent a block is; the smallest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Urgency {
    /// When it should be here; the largest duration for what nobody waits for.
    pub(super) deadline: Duration,
    /// Decides among equal deadlines.
    pub(super) order: u64,
}

impl Urgency {
    /// In the background, as number `order`.
    pub(super) fn background(order: u64) -> Self {
        Self { deadline: Duration::MAX, order }
    }

    fn is_background(self) -> bool {
        self.deadline == Duration::MAX
    }
}

/// Bytes that may be asked for on top of what is in flight, by how much a block is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// For blocks that a reader waits for.
    pub(super) waited_for: u64,
    /// For blocks that a reader will come to.
    pub(super) ahead: u64,
    /// For blocks that nobody waits for.
    pub(super) background: u64,
}

impl From<u64> for Allowance {
    /// The same for all.
    fn from(bytes: u64) -> Self {
        Self { waited_for: bytes, ahead: bytes, background: bytes }
    }
}

impl Allowance {
    /// Takes `len` bytes for a block of this urgency; whether they were there.
    fn take(&mut self, now: Duration, urgency: Urgency, len: u64) -> bool {
        let left = if urgency.is_background() {
            self.background
        } else if urgency.deadline > now {
            self.ahead
        } else {
            self.waited_for
        };
        let there = len <= left;
        if there {
            for left in [&mut self.waited_for, &mut self.ahead, &mut self.background] {
                *left = left.saturating_sub(len);
            }
        }
        there
    }
}

/// A block that somebody needs.
#[derive(Clone, Debug)]
pub(super) struct Demand {
    pub(super) want: Want,
    /// Length of the block as far as it is known.
    pub(super) len: u64,
    pub(super) urgency: Urgency,
    /// The file that it is for, and which of its chunks, as events name them.
    pub(super) file: ContentId,
    pub(super) index: u64,
}

/// What the owner of the scheduler has to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Ask a source, in this order.
    Request { source: SourceId, wants: Vec<Want> },
    /// Tell a source that these are not needed any more.
    Cancel { source: SourceId, ids: Vec<ContentId> },
    /// Shut a source out.
    Ban { source: SourceId, for_time: Duration },
    /// Give up a block: every try failed for too long.
    Fail { id: ContentId },
}

#[derive(Debug)]
struct Peer {
    stats: SourceStats,
    in_flight: HashMap<ContentId, Sent>,
    /// Takes more wants. Closed when its window is full, open again when a quarter of it is free: wants go out in
    /// groups, not one by one.
    open: bool,
    paused_until: Duration,
    /// It is left alone because it seemed not to work, not because it or its bytes asked for that: it may be tried
    /// with one block when there is nobody else, and works again with the first block that comes.
    doubted: bool,
    /// When it was last tried so.
    probed: Option<Duration>,
    /// Silences in a row; each pause is twice the last.
    silences: u32,
    /// Failures in a row.
    failures: u32,
    /// Blocks in a row that it said not to have.
    lacked: u32,
    /// "Busy" answers in a row.
    busy: u32,
    /// When the last failure was counted; what was asked before it fails with it, not once more.
    failed_at: Option<Duration>,
    heard: Duration,
    /// When it answered last, or came.
    spoke: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Duration,
    /// Bytes that were in flight before it.
    ahead: u64,
    len: u64,
    /// Seconds that it was expected to take.
    predicted: f64,
}

/// What went wrong between one block and one source.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    attempts: u32,
    /// Times in a row that it said not to have the block.
    lacked: u32,
    not_before: Duration,
}

#[derive(Debug)]
struct Wanted {
    demand: Demand,
    /// Sources that were asked and have not answered.
    copies: Vec<SourceId>,
    trouble: HashMap<SourceId, Trouble>,
    /// Whether anybody was ever asked for it.
    asked: bool,
    /// Since when it fails to come: since it was first asked for, or since there is nobody to ask. Waiting in the queue
    /// behind others does not count.
    since: Option<Duration>,
    /// Who failed it last.
    failed_by: Option<SourceId>,
}

/// The scheduler of one root.
#[derive(Debug)]
pub(super) struct Scheduler {
    options: Arc<DownloadOptions>,
    peers: HashMap<SourceId, Peer>,
    wanted: HashMap<ContentId, Wanted>,
    /// Blocks that nobody is asked for at the moment.
    queue: BTreeSet<(Urgency, ContentId)>,
    budget: Budget,
    /// Bytes that may be asked for twice.
    hedge: f64,
    retries: u64,
    /// When blocks under way were last looked at.
    looked: Option<Duration>,
    actions: Vec<Action>,
    events: Vec<Event>,
}

impl Scheduler {
    pub(super) fn new(options: Arc<DownloadOptions>) -> Self {
        Self {
            options,
            peers: HashMap::new(),
            wanted: HashMap::new(),
            queue: BTreeSet::new(),
            budget: Budget::new(),
            hedge: late::FIRST_HEDGES,
            retries: 0,
            looked: None,
            actions: Vec::new(),
            events: Vec::new(),
        }
    }

    /// A source that can be asked from now on, or whose kind is known better now.
    pub(super) fn add_source(
        &mut self,
        now: Duration,
        id: SourceId,
        kind: SourceKind,
        known: Option<Reputation>,
    ) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.stats.set_kind(kind);
            return;
        }
        let stats = SourceStats::new(kind, self.options.chunks_per_peer, known);
        let peer = Peer {
            stats,
            in_flight: HashMap::new(),
            open: true,
            paused_until: Duration::ZERO,
            doubted: false,
            probed: None,
            silences: 0,
            failures: 0,
            lacked: 0,
            busy: 0,
            failed_at: None,
            heard: now,
            spoke: now,
        };
        self.peers.insert(id, peer);
    }

    /// A source that is gone; what it was asked for goes to others.
    pub(super) fn remove_source(&mut self, id: &SourceId) -> Option<Reputation> {
        let peer = self.peers.remove(id)?;
        for block in peer.in_flight.keys() {
            self.unsent(block, id);
        }
        // A source that comes back starts without grudges: its connection was what failed.
        for wanted in self.wanted.values_mut() {
            wanted.trouble.remove(id);
        }
        Some(peer.stats.reputation())
    }

    /// Asks for a block, or makes one more urgent.
    pub(super) fn want(&mut self, now: Duration, demand: Demand) {
        let id = demand.want.id;
        if let Some(wanted) = self.wanted.get_mut(&id) {
            if demand.urgency < wanted.demand.urgency {
                let old = std::mem::replace(&mut wanted.demand.urgency, demand.urgency);
                if self.queue.remove(&(old, id)) {
                    self.queue.insert((demand.urgency, id));
                }
            }
            return;
        }
        self.queue.insert((demand.urgency, id));
        self.wanted.insert(
            id,
            Wanted {
                demand,
                copies: Vec::new(),
                trouble: HashMap::new(),
                asked: false,
                since: self.peers.is_empty().then_some(now),
                failed_by: None,
            },
        );
    }

    /// Takes back wants that `needed` says no to. What was asked for already is left alone: it is on its way.
    pub(super) fn retain_unsent(
        &mut self,
        mut needed: impl FnMut(&Demand) -> bool,
    ) -> Vec<ContentId> {
        let gone: Vec<(Urgency, ContentId)> = self
            .queue
            .iter()
            .filter(|(_, id)| self.wanted.get(id).is_none_or(|w| !needed(&w.demand)))
            .copied()
            .collect();
        for key in &gone {
            self.queue.remove(key);
            self.wanted.remove(&key.1);
        }
        gone.into_iter().map(|(_, id)| id).collect()
    }

    /// Takes back wants that `needed` says no to, also where they were asked for.
    pub(super) fn retain(&mut self, mut needed: impl FnMut(&Demand) -> bool) -> Vec<ContentId> {
        let gone: Vec<ContentId> = self
            .wanted
            .iter()
            .filter(|(_, wanted)| !needed(&wanted.demand))
            .map(|(id, _)| *id)
            .collect();
        gone.iter().for_each(|id| self.forget(id));
        gone
    }

    /// Takes back a want, also where it was asked for.
    pub(super) fn forget(&mut self, id: &ContentId) {
        let Some(wanted) = self.wanted.remove(id) else { return };
        self.queue.remove(&(wanted.demand.urgency, *id));
        for source in wanted.copies {
            self.recall(&source, id);
        }
    }

    /// A source gave a block. Whether it was still needed: of several copies only the first is.
    pub(super) fn delivered(
        &mut self,
        now: Duration,
        source: &SourceId,
        id: &ContentId,
        len: u64,
    ) -> Option<Demand> {
        if let Some(peer) = self.peers.get_mut(source) {
            (peer.failures, peer.silences, peer.busy, peer.lacked) = (0, 0, 0, 0);
            (peer.heard, peer.spoke) = (now, now);
            if peer.doubted {
                peer.paused_until = now;
            }
            if let Some(sent) = peer.in_flight.remove(id) {
                peer.stats.delivered(now, sent.at, sent.ahead, sent.len);
            }
        }
        let wanted = self.wanted.remove(id)?;
        self.queue.remove(&(wanted.demand.urgency, *id));
        for other in wanted.copies.iter().filter(|other| *other != source) {
            self.recall(other, id);
        }
        self.budget.earn();
        self.hedge = late::earn(self.hedge, len);
        Some(wanted.demand)
    }

    /// Decides what to do now.
    pub(super) fn step(&mut self, now: Duration, allowance: impl Into<Allowance>) -> Vec<Action> {
        let tick = self.looked.is_none_or(|at| now.saturating_sub(at) >= TICK);
        if tick {
            self.looked = Some(now);
            self.time_out(now);
            self.look_for_late(now);
        }
        self.assign(now, allowance.into(), tick);
        std::mem::take(&mut self.actions)
    }

    /// What happened since the last call.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// When [`Scheduler::step`] is due without any news; none when nothing is wanted.
    pub(super) fn next_step(&self, now: Duration) -> Option<Duration> {
        if self.wanted.is_empty() {
            return None;
        }
        let busy = self.peers.values().any(|peer| !peer.in_flight.is_empty());
        // Nobody to ask at all: only the time limit of a block can come up.
        Some(now + if busy || !self.peers.is_empty() { TICK } else { 40 * TICK })
    }

    /// Bytes in flight.
    pub(super) fn in_flight(&self) -> u64 {
        self.peers.values().map(|peer| peer.stats.in_flight()).sum()
    }

    /// Sources that are not left alone at the moment.
    pub(super) fn usable_sources(&self, now: Duration) -> usize {
        self.peers.values().filter(|peer| peer.paused_until <= now).count()
    }

    /// Tries that failed.
    pub(super) fn retries(&self) -> u64 {
        self.retries
    }

    /// What is worth remembering of each source.
    pub(super) fn reputations(&self) -> impl Iterator<Item = (&SourceId, Reputation)> {
        self.peers.iter().map(|(id, peer)| (id, peer.stats.reputation()))
    }

    /// Returns whether no source is left for a block that is wanted: each one has said not to have it, has failed too often at
    /// it, or has not answered anything for `silence`.
    pub(super) fn is_hopeless(&self, now: Duration, id: &ContentId, silence: Duration) -> bool {
        let Some(wanted) = self.wanted.get(id) else { return false };
        self.peers.iter().all(|(source, peer)| {
            now >= peer.spoke.saturating_add(silence)
                || wanted.trouble.get(source).is_some_and(|trouble| {
                    trouble.lacked > 0 || trouble.not_before >= now + self.options.max_backoff
                })
        })
    }

    /// Whether a block is wanted.
    pub(super) fn wants(&self, id: &ContentId) -> bool {
        self.wanted.contains_key(id)
    }

    /// Takes `source` off the copies of a block and puts the block back into the queue when it was the last.
    fn unsent(&mut self, id: &ContentId, source: &SourceId) {
        let Some(wanted) = self.wanted.get_mut(id) else { return };
        wanted.copies.retain(|copy| copy != source);
        wanted.failed_by = Some(source.clone());
        if wanted.copies.is_empty() {
            self.queue.insert((wanted.demand.urgency, *id));
        }
    }

    /// Cancels one block at one source.
    fn recall(&mut self, source: &SourceId, id: &ContentId) {
        let Some(peer) = self.peers.get_mut(source) else { return };
        let Some(sent) = peer.in_flight.remove(id) else { return };
        peer.stats.lost(sent.len);
        match self.actions.last_mut() {
            Some(Action::Cancel { source: last, ids }) if last == source => ids.push(*id),
            _ => self.actions.push(Action::Cancel { source: source.clone(), ids: vec![*id] }),
        }
    }
}

#[cfg(test)]
mod tests;
