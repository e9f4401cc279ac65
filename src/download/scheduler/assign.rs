//! Giving queued blocks to sources.

use super::{
    Action, Allowance, ContentId, Duration, Event, HashMap, Peer, Scheduler, Sent, SourceId,
    TYPICAL_BLOCK, Typical, Wanted,
};

/// A full source that is this much earlier than the best one with room, when that one is too late, is waited for.
const WORTH_WAITING: f64 = 0.3;
/// Blocks that a reader waits for may go this far over the window of a source.
const OVER_WINDOW: u64 = 2 * TYPICAL_BLOCK;

/// A source that had none of the last so many blocks is not asked where one that may have all is only busy.
const LACKING: u32 = 4;
/// Blocks that a source which had none of the last ones is asked for at a time.
const LONG_SHOTS: usize = 8;
/// How often it is asked for one block also where another could be: it may have more by now.
const LONG_SHOT_EVERY: Duration = Duration::from_secs(1);
/// How often a source that seems not to work is tried again when there is nobody else.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Most bytes that follow each other in a file and go to one gateway because it gives them for one request: what a
/// connection of 1 Gbit/s moves within a round trip of 30 ms.
const RUN: u64 = 4 << 20;
/// A block goes where the one before it went though it would come this many seconds earlier from elsewhere.
const WORTH_KEEPING: f64 = 0.1;

/// Blocks that follow each other in a file and were given to one gateway.
struct Run {
    source: SourceId,
    file: ContentId,
    /// Where they end in the file.
    end: u64,
    /// Bytes of them.
    len: u64,
}

/// Where a block goes.
enum Choice {
    To(SourceId, f64),
    /// A better source will have room in time.
    Later,
    /// Nobody can be asked for it now.
    Nobody,
}

impl Scheduler {
    /// Gives blocks of the queue to sources, as far as there is room. `tick`: looks through the whole queue also for
    /// sources that are unlikely to have anything.
    pub(super) fn assign(&mut self, now: Duration, mut allowance: Allowance, tick: bool) {
        for peer in self.peers.values_mut() {
            let cap = peer.stats.cap();
            let free = cap.saturating_sub(peer.stats.in_flight());
            peer.open = free > 0 && (peer.open || free >= cap / 4);
        }
        let typical = Typical::of(self.peers.values().map(|peer| &peer.stats));
        let mut groups: HashMap<SourceId, Vec<_>> = HashMap::new();
        let mut sent = Vec::new();
        let mut run: Option<Run> = None;
        for (at, key) in self.queue.iter().enumerate() {
            let Some(wanted) = self.wanted.get_mut(&key.1) else { continue };
            let urgent = wanted.demand.urgency.deadline <= now;
            // The queue is in the order of urgency: behind the urgent ones nothing goes to a closed source.
            let thorough = tick || at < LONG_SHOTS;
            let worth = |peer: &Peer| peer.takes(now, false) && (thorough || !peer.is_lacking());
            if !urgent && !self.peers.values().any(worth) {
                break;
            }
            let choice = choose(&self.peers, wanted, now, typical, urgent, run.as_ref());
            let (source, predicted) = match choice {
                Choice::To(source, predicted) => (source, predicted),
                Choice::Nobody if urgent => match probe(&self.peers, wanted, now, typical) {
                    Some(probe) => probe,
                    None => continue,
                },
                Choice::Nobody | Choice::Later => continue,
            };
            let Some(peer) = self.peers.get_mut(&source) else { continue };
            if !allowance.take(now, wanted.demand.urgency, wanted.demand.len) {
                break;
            }
            if peer.paused_until > now {
                peer.probed = Some(now);
            }
            peer.send(now, wanted, predicted);
            if peer.stats.gives_runs() {
                run = Some(Run::with(run, &source, wanted));
            }
            if !std::mem::replace(&mut wanted.asked, true) {
                wanted.since = Some(now);
            }
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
    run: Option<&Run>,
) -> Choice {
    let run = run.filter(|run| run.goes_on(wanted));
    // Expected seconds, and the same with what speaks against the source.
    let mut free: Option<(f64, f64, &SourceId)> = None;
    let mut unlikely: Option<(f64, f64, &SourceId)> = None;
    let mut full: Option<f64> = None;
    let mut full_has = false;
    let mut kept: Option<(f64, &SourceId)> = None;
    for (id, peer) in peers.iter().filter(|(id, peer)| peer.may_have(id, wanted, now)) {
        let seconds = peer.stats.completion(wanted.demand.len, typical);
        if peer.takes(now, urgent) {
            let rank = seconds * f64::from(1 + peer.lacked);
            if run.is_some_and(|run| run.source == *id) && !peer.is_lacking() {
                kept = Some((seconds, id));
            }
            let best = if peer.is_long_shot(now) { &mut unlikely } else { &mut free };
            if best.is_none_or(|(_, best, _)| rank < best) {
                *best = Some((seconds, rank, id));
            }
        } else {
            full = Some(full.map_or(seconds, |best| best.min(seconds)));
            full_has |= !peer.is_lacking();
        }
    }
    let Some((seconds, _, source)) = free.or(unlikely.filter(|_| !full_has)) else {
        return if full.is_some() { Choice::Later } else { Choice::Nobody };
    };
    if let Some((kept, source)) = kept.filter(|(kept, _)| *kept < seconds + WORTH_KEEPING) {
        return Choice::To(source.clone(), kept);
    }
    let late = wanted.demand.urgency.deadline.saturating_sub(now).as_secs_f64() < seconds;
    if late && full.is_some_and(|full| full + WORTH_WAITING < seconds) {
        return Choice::Later;
    }
    Choice::To(source.clone(), seconds)
}

/// The source to try a block at that somebody waits for and nobody can be asked for: the one that was to be asked again
/// first. Where all stood still at once the fault was most likely the network's, not theirs.
fn probe(
    peers: &HashMap<SourceId, Peer>,
    wanted: &Wanted,
    now: Duration,
    typical: Typical,
) -> Option<(SourceId, f64)> {
    let may = |(id, peer): &(&SourceId, &Peer)| {
        peer.doubted
            && peer.paused_until > now
            && peer.in_flight.is_empty()
            && peer.probed.is_none_or(|at| now >= at + PROBE_EVERY)
            && wanted.may_ask(id, now)
    };
    let (id, peer) = peers.iter().filter(may).min_by_key(|(_, peer)| peer.paused_until)?;
    Some((id.clone(), peer.stats.completion(wanted.demand.len, typical)))
}

impl Run {
    /// The run that ends with a block given to `source`: `before`, where the block continues it, else a new one.
    fn with(before: Option<Self>, source: &SourceId, wanted: &Wanted) -> Self {
        let (file, range) = (wanted.demand.want.file, wanted.demand.want.range);
        let before = before.filter(|run| run.source == *source && run.goes_on(wanted));
        let len = before.map_or(0, |run| run.len) + range.len();
        Self { source: source.clone(), file, end: range.end, len }
    }

    /// Whether a block is the next in the file, and the run not long enough yet.
    fn goes_on(&self, wanted: &Wanted) -> bool {
        let want = &wanted.demand.want;
        self.file == want.file
            && self.end == want.range.start
            && !want.range.is_empty()
            && self.len + want.range.len() <= RUN
    }
}

impl Wanted {
    /// Whether this source may be asked for it now as far as the block is concerned.
    fn may_ask(&self, id: &SourceId, now: Duration) -> bool {
        !self.copies.contains(id)
            && self.trouble.get(id).is_none_or(|trouble| trouble.not_before <= now)
    }
}

impl Peer {
    /// Whether it had none of the last blocks.
    fn is_lacking(&self) -> bool {
        self.lacked >= LACKING
    }

    /// Whether others are asked before it, however long they take: it had none of the last blocks, and said so lately.
    fn is_long_shot(&self, now: Duration) -> bool {
        let rested = self.in_flight.is_empty() && now >= self.heard + LONG_SHOT_EVERY;
        self.is_lacking() && !rested
    }

    /// Whether it takes one more block now.
    pub(super) fn takes(&self, now: Duration, urgent: bool) -> bool {
        let room = self.open || (urgent && self.stats.in_flight() < self.stats.cap() + OVER_WINDOW);
        let room = room && !(self.is_lacking() && self.in_flight.len() >= LONG_SHOTS);
        room && self.paused_until <= now && self.stats.in_flight() < self.stats.cap() + OVER_WINDOW
    }

    /// Whether it is worth asking for this block.
    pub(super) fn may_have(&self, id: &SourceId, wanted: &Wanted, now: Duration) -> bool {
        self.paused_until <= now && wanted.may_ask(id, now)
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
