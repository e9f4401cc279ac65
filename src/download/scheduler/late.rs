//! Blocks that do not come: second requests elsewhere, silent sources, time limits.

use super::{
    Action, ContentId, Duration, Event, Peer, Scheduler, Sent, SourceId, TYPICAL_BLOCK, Typical,
    trouble::Why,
};
use crate::sources::{SourceError, Transient};

/// Bytes that may be asked for twice before anything came.
pub(super) const FIRST_HEDGES: f64 = 8.0 * TYPICAL_BLOCK as f64;
/// Most bytes of second requests that can be saved up.
const MOST_HEDGES: f64 = 32.0 * TYPICAL_BLOCK as f64;
/// Share of the bytes that arrive which may be asked for twice.
const HEDGE_SHARE: f64 = 0.04;
/// Copies of one block in flight.
const MOST_COPIES: usize = 3;
/// Blocks that are left when the last ones of a background download may be asked for twice.
const END_GAME: usize = 16;
/// A block is late after this many times its expected duration, or `SOON` times when a reader needs it next.
const LATE: f64 = 2.0;
const SOON: f64 = 1.5;
const LATE_GRACE: f64 = 0.05;
/// A source is silent when it says nothing for this many times what it was expected to take.
const SILENT: f64 = 4.0;
const SILENT_GRACE: f64 = 0.2;
/// A source that delivers other blocks has skipped one that takes this many times what was expected.
const SKIPPED: f64 = 20.0;
/// First pause of a silent source; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause of a silent source.
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A block that a reader needs next is asked for elsewhere too when it would come this many seconds earlier from there.
const WORTH_HEDGING: f64 = 0.1;
/// A block whose deadline is this close is needed next.
const NEXT: Duration = Duration::from_millis(100);

/// Hedge budget after `len` bytes arrived.
pub(super) fn earn(hedge: f64, len: u64) -> f64 {
    (hedge + HEDGE_SHARE * len as f64).min(MOST_HEDGES)
}

impl Scheduler {
    /// Second requests for late blocks, pauses for silent sources.
    pub(super) fn look_for_late(&mut self, now: Duration) {
        let typical = Typical::of(self.peers.values().map(|peer| &peer.stats));
        for source in self.silent(now) {
            self.silence(now, &source);
        }
        let mut late: Vec<(super::Urgency, ContentId)> = Vec::new();
        let end_game = self.wanted.len() < END_GAME;
        let quickest = self
            .peers
            .values()
            .filter(|peer| peer.takes(now, true))
            .map(|peer| peer.stats.completion(TYPICAL_BLOCK, typical))
            .fold(f64::INFINITY, f64::min);
        for peer in self.peers.values() {
            late.extend(peer.in_flight.iter().filter_map(|(id, sent)| {
                let urgency = self.wanted.get(id)?.demand.urgency;
                let next = urgency.deadline <= now + NEXT;
                let factor = if next { SOON } else { LATE };
                let overdue = sent.age(now) > factor * sent.predicted + LATE_GRACE;
                let slow = next && sent.remaining(now) > quickest + WORTH_HEDGING;
                let may = end_game || !urgency.is_background();
                (may && (overdue || slow)).then_some((urgency, *id))
            }));
        }
        late.sort_unstable();
        for (_, id) in late {
            self.hedge(now, &id, typical);
        }
    }

    /// Asks one more source for a block when that one is expected to be earlier than waiting on.
    fn hedge(&mut self, now: Duration, id: &ContentId, typical: Typical) {
        let Some(wanted) = self.wanted.get_mut(id) else { return };
        let len = wanted.demand.len;
        if wanted.copies.len() >= MOST_COPIES || self.hedge < len as f64 {
            return;
        }
        // Each copy has its own time to be late; the youngest decides whether one more helps.
        let peers = wanted.copies.iter().filter_map(|source| self.peers.get(source));
        let copies: Vec<Sent> = peers.filter_map(|peer| peer.in_flight.get(id).copied()).collect();
        let young = copies.iter().any(|s| s.age(now) < SOON * s.predicted + LATE_GRACE);
        let remaining = copies.iter().map(|s| s.remaining(now)).fold(f64::INFINITY, f64::min);
        let best = self
            .peers
            .iter()
            .filter(|(other, peer)| peer.may_have(other, wanted, now) && peer.takes(now, true))
            .map(|(other, peer)| (peer.stats.completion(len, typical), other))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(seconds, other)| (seconds, other.clone()));
        let Some((seconds, source)) = best else { return };
        if young && remaining <= seconds + WORTH_HEDGING {
            return;
        }
        let Some(peer) = self.peers.get_mut(&source) else { return };
        self.hedge -= len as f64;
        peer.send(now, wanted, seconds);
        wanted.copies.push(source.clone());
        self.actions.push(Action::Request { source, wants: vec![wanted.demand.want] });
    }

    /// Sources that say nothing although they should have, while another could be asked instead.
    fn silent(&self, now: Duration) -> Vec<SourceId> {
        let others = self.usable_sources(now);
        if others < 2 {
            return Vec::new();
        }
        let silent = |peer: &Peer| {
            let quiet = now.saturating_sub(peer.heard).as_secs_f64();
            peer.paused_until <= now
                && peer.in_flight.values().any(|sent| {
                    let age = now.saturating_sub(sent.at).as_secs_f64();
                    // What it was expected to take for this block alone, without the queue that it had before it.
                    let step = sent.predicted * sent.len as f64 / (sent.ahead + sent.len) as f64;
                    age > SILENT * sent.predicted + SILENT_GRACE
                        || (quiet > SILENT * step + 2.0 * SILENT_GRACE
                            && age > sent.predicted + SILENT_GRACE)
                })
        };
        // One at least stays: silence of all is the network's, not theirs.
        self.peers
            .iter()
            .filter(|(_, peer)| silent(peer))
            .map(|(id, _)| id.clone())
            .take(others - 1)
            .collect()
    }

    fn silence(&mut self, now: Duration, source: &SourceId) {
        let Some(peer) = self.peers.get_mut(source) else { return };
        peer.silences = (peer.silences + 1).min(16);
        peer.stats.stalled();
        peer.stats.failed();
        let pause = FIRST_PAUSE.saturating_mul(1 << (peer.silences - 1)).min(LAST_PAUSE);
        self.pause(now, source, pause, Why::Doubted);
    }

    /// Ends what took longer than a request, or a block in all, may take.
    pub(super) fn time_out(&mut self, now: Duration) {
        for (source, id) in self.expired(now) {
            self.actions.push(Action::Cancel { source: source.clone(), ids: vec![id] });
            self.failed(now, &source, &id, &SourceError::Transient(Transient::Timeout));
        }
        self.count_waits(now);
        let limit = self.options.chunk_timeout;
        let over =
            |since: Option<Duration>| since.is_some_and(|at| now.saturating_sub(at) >= limit);
        let hopeless: Vec<ContentId> =
            self.wanted.iter().filter(|(_, w)| over(w.since)).map(|(id, _)| *id).collect();
        for id in hopeless {
            if let Some(wanted) = self.wanted.get(&id) {
                self.events.push(Event::DownloadChunkFailed {
                    file_hash: wanted.demand.file,
                    chunk_index: wanted.demand.index,
                    cid: id,
                    error: format!("no source gave it within {limit:?}"),
                });
            }
            self.forget(&id);
            self.actions.push(Action::Fail { id });
        }
    }

    /// Requests that took too long.
    fn expired(&self, now: Duration) -> Vec<(SourceId, ContentId)> {
        let (request, chunk) = (self.options.request_timeout, self.options.chunk_attempt_timeout);
        let elsewhere = |source: &SourceId, id: &ContentId| {
            let Some(wanted) = self.wanted.get(id) else { return false };
            self.peers.iter().any(|(other, p)| other != source && p.may_have(other, wanted, now))
        };
        let mut expired = Vec::new();
        for (source, peer) in &self.peers {
            let silent = now.saturating_sub(peer.heard) >= request;
            for (id, sent) in &peer.in_flight {
                let age = now.saturating_sub(sent.at);
                // A source that delivers is not timed out for the length of its own queue, only for a block that it
                // has skipped, or has had for so long that another may be faster.
                let skipped = sent.age(now) > SKIPPED * sent.predicted;
                if (age >= request && (silent || skipped))
                    || (age >= chunk && elsewhere(source, id))
                {
                    expired.push((source.clone(), *id));
                }
            }
        }
        expired
    }

    /// The time of a block that was never asked for runs only while there is nobody to ask.
    fn count_waits(&mut self, now: Duration) {
        let peers = &self.peers;
        let usable = peers.values().any(|peer| peer.paused_until <= now);
        for wanted in self.wanted.values_mut().filter(|wanted| !wanted.asked) {
            let somebody = usable
                && (wanted.trouble.is_empty()
                    || peers.iter().any(|(id, peer)| peer.may_have(id, wanted, now)));
            wanted.since = if somebody { None } else { wanted.since.or(Some(now)) };
        }
    }
}

impl Sent {
    /// Seconds since it was asked for.
    fn age(&self, now: Duration) -> f64 {
        now.saturating_sub(self.at).as_secs_f64()
    }

    /// Seconds that it is expected to take still.
    fn remaining(&self, now: Duration) -> f64 {
        (self.predicted - self.age(now)).max(0.0)
    }
}
