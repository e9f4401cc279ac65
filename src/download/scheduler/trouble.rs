//! What follows when a source does not give a block: whom to ask when again, and who is left alone.

use super::{Action, ContentId, Duration, Event, MOST_LACKED, Scheduler, SourceId, Trouble};
use crate::{
    download::retry::backoff,
    sources::{Permanent, SourceError, Transient},
};

/// Wait before a source that did not have a block is asked for it again, doubled each time.
const FIRST_LACK: Duration = Duration::from_secs(2);
/// The same of a chiral node.
const FIRST_LACK_CHIRAL: Duration = Duration::from_millis(250);
/// Longest such wait.
pub(super) const LAST_LACK: Duration = Duration::from_secs(10);
/// Shut out for wrong bytes.
pub(super) const BAN: Duration = Duration::from_secs(3600);

/// Why a source is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It asked for it, refuses, or lied.
    Asked,
    /// It seems not to work.
    Doubted,
}

impl Scheduler {
    /// A source did not give a block.
    pub(in crate::download) fn failed(
        &mut self,
        now: Duration,
        source: &SourceId,
        id: &ContentId,
        error: &SourceError,
    ) {
        let Some(peer) = self.peers.get_mut(source) else { return };
        // A cancelled want that is answered all the same says nothing any more.
        let Some(sent) = peer.in_flight.remove(id) else { return };
        peer.stats.lost(sent.len);
        peer.heard = now;
        if !matches!(error, SourceError::Transient(Transient::Timeout)) {
            peer.spoke = now;
        }
        if matches!(error, SourceError::Permanent(Permanent::NotFound)) {
            peer.lacked = (peer.lacked + 1).min(MOST_LACKED);
        }
        self.unsent(id, source);
        match error {
            SourceError::Permanent(Permanent::NotFound) => self.lacks(now, source, id),
            SourceError::Permanent(Permanent::BadHash) => self.ban(now, source),
            SourceError::Permanent(Permanent::Rejected(_)) => {
                let pause = self.options.peer_blacklist;
                self.pause(now, source, pause, Why::Asked);
            }
            SourceError::Transient(Transient::RateLimited(wait)) => {
                let wait = (*wait).min(self.options.peer_blacklist);
                self.pause(now, source, wait, Why::Asked);
            }
            SourceError::Transient(Transient::Busy) => {
                if let Some(peer) = self.peers.get_mut(source) {
                    peer.busy += 1;
                    let wait = backoff(&self.options, peer.busy);
                    self.pause(now, source, wait, Why::Asked);
                }
            }
            SourceError::Transient(Transient::Timeout | Transient::Reset) => {
                let counted = self.count_failure(now, source, sent.at);
                if counted
                    && *error == SourceError::Transient(Transient::Timeout)
                    && let Some(peer) = self.peers.get_mut(source)
                {
                    // What it holds back counts as in flight, which others could use meanwhile.
                    peer.stats.stalled();
                }
                self.retry(now, source, id);
            }
        }
    }

    /// A source said not to have a block: it is not asked for it for a while. A chiral node may be fetching the content
    /// itself at this moment, a public one that has nothing rarely gets it soon.
    fn lacks(&mut self, now: Duration, source: &SourceId, id: &ContentId) {
        let chiral = self.peers.get(source).is_some_and(|peer| peer.stats.is_chiral());
        let Some(wanted) = self.wanted.get_mut(id) else { return };
        let trouble = wanted.trouble.entry(source.clone()).or_insert(Trouble {
            attempts: 0,
            lacked: 0,
            not_before: now,
        });
        let first = if chiral { FIRST_LACK_CHIRAL } else { FIRST_LACK };
        let wait = first.saturating_mul(1 << trouble.lacked.min(16)).min(LAST_LACK);
        trouble.lacked += 1;
        trouble.not_before = trouble.not_before.max(now + wait);
    }

    fn retry(&mut self, now: Duration, source: &SourceId, id: &ContentId) {
        let Some(wanted) = self.wanted.get_mut(id) else { return };
        self.retries += 1;
        let of = self.options.max_chunk_retries.max(1);
        let trouble = wanted.trouble.entry(source.clone()).or_insert(Trouble {
            attempts: 0,
            lacked: 0,
            not_before: now,
        });
        trouble.attempts += 1;
        let delay = if trouble.attempts >= of {
            // This source has had its tries; others go on, and much later it may be asked once more.
            trouble.attempts = 0;
            self.options.peer_blacklist
        } else if self.budget.take() {
            backoff(&self.options, trouble.attempts)
        } else {
            self.options.max_backoff
        };
        trouble.not_before = now + delay;
        let attempt = if trouble.attempts == 0 { of } else { trouble.attempts };
        self.events.push(Event::ChunkRetry { chunk: *id, attempt, of, delay });
    }

    /// Counts a failure, unless it came with one that was counted already; whether it did.
    fn count_failure(&mut self, now: Duration, source: &SourceId, sent: Duration) -> bool {
        let Some(peer) = self.peers.get_mut(source) else { return false };
        if peer.failed_at.is_some_and(|at| sent <= at) {
            return false;
        }
        peer.failed_at = Some(now);
        peer.failures += 1;
        peer.stats.failed();
        if peer.failures >= self.options.peer_failure_threshold.max(1) {
            peer.failures = 0;
            let pause = self.options.peer_blacklist;
            self.pause(now, source, pause, Why::Doubted);
        }
        true
    }

    /// Leaves a source alone; what it has not answered goes to others.
    pub(super) fn pause(&mut self, now: Duration, source: &SourceId, for_time: Duration, why: Why) {
        let Some(peer) = self.peers.get_mut(source) else { return };
        // What it asked for is kept to also where it seems broken besides.
        if why == Why::Asked || peer.paused_until <= now {
            peer.doubted = why == Why::Doubted;
        }
        peer.paused_until = peer.paused_until.max(now + for_time);
        let pending: Vec<ContentId> = peer.in_flight.keys().copied().collect();
        for id in pending {
            self.recall(source, &id);
            self.unsent(&id, source);
        }
        self.events.push(Event::SourceCooledDown { source: source.clone(), for_time });
    }

    fn ban(&mut self, now: Duration, source: &SourceId) {
        self.pause(now, source, BAN, Why::Asked);
        self.actions.push(Action::Ban { source: source.clone(), for_time: BAN });
    }
}
