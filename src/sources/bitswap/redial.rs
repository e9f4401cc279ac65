//! Providers of one root: who is dialled when. Pure state on a clock that is passed in.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::net::{PeerId, Provider};

/// Providers that are dialled at the same time: as many as one search of the DHT names.
pub(super) const DIALS: usize = 20;
/// Wait before a provider is dialled again, doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest such wait. A connection that held for so long was a good one, and the waits begin anew.
const LAST_WAIT: Duration = Duration::from_secs(60);
/// Providers that are remembered: several rounds of searching.
const MOST_PROVIDERS: usize = 128;

/// What a provider is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To be dialled then.
    Due(Instant),
    Dialling,
    /// Connected since then.
    Connected(Instant),
}

#[derive(Debug)]
struct Known {
    provider: Provider,
    stage: Stage,
    /// Wait before the next dial but one.
    wait: Duration,
    /// Who was named first is dialled first.
    number: u64,
}

/// Providers that the DHT named for one root.
#[derive(Debug, Default)]
pub(super) struct Providers {
    known: HashMap<PeerId, Known>,
    next: u64,
}

impl Providers {
    /// Whether the DHT named it: it needs no question whether it has the root.
    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.known.contains_key(peer)
    }

    /// The DHT named a provider. One that is not connected is dialled now, whatever became of the last dial.
    pub(super) fn named(&mut self, now: Instant, provider: Provider) {
        if let Some(known) = self.known.get_mut(&provider.peer) {
            if let Stage::Due(at) = known.stage {
                known.stage = Stage::Due(at.min(now));
            }
            if !provider.addresses.is_empty() {
                known.provider = provider;
            }
            return;
        }
        if self.known.len() >= MOST_PROVIDERS && !self.forget_worst() {
            return;
        }
        self.next += 1;
        let number = self.next;
        let known = Known { stage: Stage::Due(now), wait: FIRST_WAIT, number, provider };
        self.known.insert(known.provider.peer, known);
    }

    /// Forgets who failed most often; whether there was one.
    fn forget_worst(&mut self) -> bool {
        let idle = self.known.iter().filter(|(_, known)| matches!(known.stage, Stage::Due(_)));
        let worst = idle.max_by_key(|(_, known)| (known.wait, known.number)).map(|(peer, _)| *peer);
        worst.is_some_and(|peer| self.known.remove(&peer).is_some())
    }

    /// The next one to dial, if it is time and not too many dials are under way.
    pub(super) fn next_dial(&mut self, now: Instant) -> Option<Provider> {
        let dialling = self.known.values().filter(|known| known.stage == Stage::Dialling).count();
        let (at, _, peer) = self.first_due().filter(|_| dialling < DIALS)?;
        let known = self.known.get_mut(&peer).filter(|_| at <= now)?;
        known.stage = Stage::Dialling;
        Some(known.provider.clone())
    }

    /// When there is somebody to dial, unless a dial has to end first.
    pub(super) fn due(&self) -> Option<Instant> {
        let dialling = self.known.values().filter(|known| known.stage == Stage::Dialling).count();
        self.first_due().filter(|_| dialling < DIALS).map(|(at, _, _)| at)
    }

    fn first_due(&self) -> Option<(Instant, u64, PeerId)> {
        let due = self.known.iter().filter_map(|(peer, known)| match known.stage {
            Stage::Due(at) => Some((at, known.number, *peer)),
            Stage::Dialling | Stage::Connected(_) => None,
        });
        due.min()
    }

    /// A dial ended. One that succeeded is followed by the news that the peer is connected; without that, as where
    /// the peer does not speak Bitswap, it is as good as failed.
    pub(super) fn dialled(&mut self, now: Instant, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer)
            && known.stage == Stage::Dialling
        {
            known.rest(now);
        }
    }

    /// A peer is connected.
    pub(super) fn connected(&mut self, now: Instant, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer)
            && !matches!(known.stage, Stage::Connected(_))
        {
            known.stage = Stage::Connected(now);
        }
    }

    /// The connection to a peer closed.
    pub(super) fn lost(&mut self, now: Instant, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer)
            && let Stage::Connected(since) = known.stage
        {
            if now >= since + LAST_WAIT {
                known.wait = FIRST_WAIT;
            }
            known.rest(now);
        }
    }
}

impl Known {
    fn rest(&mut self, now: Instant) {
        self.stage = Stage::Due(now + self.wait);
        self.wait = (self.wait * 2).min(LAST_WAIT);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn provider() -> Provider {
        Provider { peer: PeerId::random(), addresses: Vec::new() }
    }

    #[test]
    fn twenty_are_dialled_at_a_time_in_the_order_of_their_naming() {
        let now = Instant::now();
        let mut providers = Providers::default();
        let all: Vec<Provider> = (0..30).map(|_| provider()).collect();
        all.iter().for_each(|one| providers.named(now, one.clone()));
        let mut dialled = Vec::new();
        while let Some(one) = providers.next_dial(now) {
            dialled.push(one.peer);
        }
        assert_eq!(dialled, all[..DIALS].iter().map(|one| one.peer).collect::<Vec<_>>());
        assert_eq!(providers.due(), None);
        providers.dialled(now, &dialled[3]);
        assert_eq!(providers.next_dial(now).unwrap().peer, all[DIALS].peer);
    }

    #[test]
    fn waits_double_to_a_minute_and_begin_anew_after_a_good_connection() {
        let mut now = Instant::now();
        let mut providers = Providers::default();
        let one = provider();
        providers.named(now, one.clone());
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert_eq!(providers.next_dial(now).unwrap().peer, one.peer);
            assert_eq!(providers.next_dial(now).map(|p| p.peer), None);
            providers.dialled(now, &one.peer);
            let due = providers.due().unwrap();
            waits.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        providers.next_dial(now).unwrap();
        providers.connected(now, &one.peer);
        providers.dialled(now, &one.peer);
        assert_eq!(providers.due(), None);
        now += Duration::from_secs(100);
        providers.lost(now, &one.peer);
        assert_eq!(providers.due(), Some(now + FIRST_WAIT));
        providers.named(now, one.clone());
        assert_eq!(providers.due(), Some(now), "the DHT still names it");
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for_and_the_worst_gives_way() {
        let now = Instant::now();
        let mut providers = Providers::default();
        let bad = provider();
        providers.named(now, bad.clone());
        providers.next_dial(now).unwrap();
        providers.dialled(now, &bad.peer);
        for _ in 0..MOST_PROVIDERS {
            providers.named(now, provider());
        }
        assert_eq!(providers.known.len(), MOST_PROVIDERS);
        assert!(!providers.contains(&bad.peer));
    }
}
