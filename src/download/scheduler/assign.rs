//! Giving queued blocks to sources.

use super::{
    Action, Duration, Event, HashMap, Peer, Scheduler, Sent, SourceId, TYPICAL_BLOCK, Typical,
    Wanted,
};

/// A full source that is this much earlier than the best one with room, when that one is too late, is waited for.
const WORTH_WAITING: f64 = 0.3;
/// Blocks that a reader waits for may go this far over the window of a source.
const OVER_WINDOW: u64 = 2 * TYPICAL_BLOCK;

/// Where a block goes.
enum Choice {
    To(SourceId, f64),
    /// A better source will have room in time.
    Later,
    /// Nobody can be asked for it now.
    Nobody,
}

impl Scheduler {
    pub(super) fn assign(&mut self, now: Duration, mut allowance: u64) {
        for peer in self.peers.values_mut() {
            let cap = peer.stats.cap();
            let free = cap.saturating_sub(peer.stats.in_flight());
            peer.open = free > 0 && (peer.open || free >= cap / 4);
        }
        let typical = Typical::of(self.peers.values().map(|peer| &peer.stats));
        let mut groups: HashMap<SourceId, Vec<_>> = HashMap::new();
        let mut sent = Vec::new();
        for key in &self.queue {
            let Some(wanted) = self.wanted.get_mut(&key.1) else { continue };
            let urgent = wanted.demand.urgency.deadline <= now;
            // The queue is in the order of urgency: behind the urgent ones nothing goes to a closed source.
            if !urgent && !self.peers.values().any(|peer| peer.takes(now, false)) {
                break;
            }
            if wanted.demand.len > allowance {
                break;
            }
            let Choice::To(source, predicted) = choose(&self.peers, wanted, now, typical, urgent)
            else {
                continue;
            };
            let Some(peer) = self.peers.get_mut(&source) else { continue };
            allowance -= wanted.demand.len;
            peer.send(now, wanted, predicted);
            groups.entry(source.clone()).or_default().push(wanted.demand.want);
            announce(&mut self.events, wanted, &source);
            wanted.copies.push(source);
            sent.push(*key);
        }
        for key in &sent {
            self.queue.remove(key);
        }
        self.actions
            .extend(groups.into_iter().map(|(source, wants)| Action::Request { source, wants }));
    }
}

fn announce(events: &mut Vec<Event>, wanted: &mut Wanted, source: &SourceId) {
    let demand = &wanted.demand;
    if let Some(from) = wanted.failed_by.take_if(|from| from != source) {
        events.push(Event::PeerSwitched { file_hash: demand.file, from, to: source.clone() });
    }
    events.push(Event::DownloadChunkStarted {
        file_hash: demand.file,
        chunk_index: demand.index,
        cid: demand.want.id,
        peer: source.clone(),
    });
}

fn choose(
    peers: &HashMap<SourceId, Peer>,
    wanted: &Wanted,
    now: Duration,
    typical: Typical,
    urgent: bool,
) -> Choice {
    // Expected seconds, and the same with what speaks against the source.
    let mut free: Option<(f64, f64, &SourceId)> = None;
    let mut full: Option<f64> = None;
    for (id, peer) in peers.iter().filter(|(id, peer)| peer.may_have(id, wanted, now)) {
        let seconds = peer.stats.completion(wanted.demand.len, typical);
        if peer.takes(now, urgent) {
            let rank = seconds * f64::from(1 + peer.lacked);
            if free.is_none_or(|(_, best, _)| rank < best) {
                free = Some((seconds, rank, id));
            }
        } else if full.is_none_or(|best| seconds < best) {
            full = Some(seconds);
        }
    }
    let Some((seconds, _, source)) = free else { return Choice::Nobody };
    let late = wanted.demand.urgency.deadline.saturating_sub(now).as_secs_f64() < seconds;
    if late && full.is_some_and(|full| full + WORTH_WAITING < seconds) {
        return Choice::Later;
    }
    Choice::To(source.clone(), seconds)
}

impl Peer {
    /// Whether it takes one more block now.
    pub(super) fn takes(&self, now: Duration, urgent: bool) -> bool {
        let room = self.open || (urgent && self.stats.in_flight() < self.stats.cap() + OVER_WINDOW);
        room && self.paused_until <= now && self.stats.in_flight() < self.stats.cap() + OVER_WINDOW
    }

    /// Whether it is worth asking for this block.
    pub(super) fn may_have(&self, id: &SourceId, wanted: &Wanted, now: Duration) -> bool {
        self.paused_until <= now
            && !wanted.copies.contains(id)
            && wanted.trouble.get(id).is_none_or(|trouble| trouble.not_before <= now)
    }

    pub(super) fn send(&mut self, now: Duration, wanted: &Wanted, predicted: f64) {
        let (ahead, len) = (self.stats.in_flight(), wanted.demand.len);
        if self.in_flight.is_empty() {
            // Silence counts from the first request after a pause.
            self.heard = now;
        }
        self.stats.sent(len);
        self.open = self.open && self.stats.in_flight() < self.stats.cap();
        self.in_flight.insert(wanted.demand.want.id, Sent { at: now, ahead, len, predicted });
    }
}
