//! Blocks that do not come: second requests elsewhere, silent sources, time limits.

use super::{
    Action, ContentId, Duration, Event, Scheduler, SourceError, SourceId, TYPICAL_BLOCK, Transient,
    Typical,
};

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
        for peer in self.peers.values() {
            late.extend(peer.in_flight.iter().filter_map(|(id, sent)| {
                let urgency = self.wanted.get(id)?.demand.urgency;
                let factor = if urgency.deadline <= now + NEXT { SOON } else { LATE };
                let age = now.saturating_sub(sent.at).as_secs_f64();
                let may = end_game || !urgency.is_background();
                (may && age > factor * sent.predicted + LATE_GRACE).then_some((urgency, *id))
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
        let young = wanted.copies.iter().filter_map(|source| self.peers.get(source)).any(|peer| {
            peer.in_flight.get(id).is_some_and(|sent| {
                now.saturating_sub(sent.at).as_secs_f64() < SOON * sent.predicted + LATE_GRACE
            })
        });
        if young {
            return;
        }
        let best = self
            .peers
            .iter()
            .filter(|(other, peer)| peer.may_have(other, wanted, now) && peer.takes(now, true))
            .map(|(other, peer)| (peer.stats.completion(len, typical), other))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(seconds, other)| (seconds, other.clone()));
        let Some((seconds, source)) = best else { return };
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
        let silent = |peer: &super::Peer| {
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
        self.pause(now, source, pause);
    }

    /// Ends what took longer than a request, or a block in all, may take.
    pub(super) fn time_out(&mut self, now: Duration) {
        let limit = self.options.request_timeout;
        let expired: Vec<(SourceId, ContentId)> = self
            .peers
            .iter()
            .flat_map(|(source, peer)| {
                let silent = now.saturating_sub(peer.heard) >= limit;
                let old = peer.in_flight.iter().filter(move |(_, sent)| {
                    let age = now.saturating_sub(sent.at);
                    // A source that delivers is not timed out for the length of its own queue, only for a block
                    // that it has skipped.
                    age >= limit && (silent || age.as_secs_f64() > SKIPPED * sent.predicted)
                });
                old.map(|(id, _)| (source.clone(), *id))
            })
            .collect();
        for (source, id) in expired {
            self.actions.push(Action::Cancel { source: source.clone(), ids: vec![id] });
            self.failed(now, &source, &id, &SourceError::Transient(Transient::Timeout));
        }
        let limit = self.options.chunk_timeout;
        let hopeless: Vec<ContentId> = self
            .wanted
            .iter()
            .filter(|(_, wanted)| now.saturating_sub(wanted.since) >= limit)
            .map(|(id, _)| *id)
            .collect();
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
}
