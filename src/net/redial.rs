//! Which of the configured peers to dial when.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::address::peer_of;

/// Pause before the first new try; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a peer that comes back is found within a minute, for ever.
const MAX_PAUSE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be dialled at this time.
    Waiting(Instant),
    Dialling(ConnectionId),
    /// Connected, and not yet known to be of use.
    Connected,
    /// Connected and identified; a bootstrap peer may be gone again since.
    Settled,
}

#[derive(Debug)]
struct Target {
    address: Multiaddr,
    peer: Option<PeerId>,
    /// Redialled whenever it is gone; else only while nobody else is there.
    stays: bool,
    state: State,
    failures: u32,
    /// Its first try is still under way.
    fresh: bool,
}

/// The configured peers: those that stay connected, and those to ask first for the DHT. A pure state machine; the
/// driver does what it says.
#[derive(Debug)]
pub(super) struct Redial {
    targets: Vec<Target>,
}

impl Redial {
    /// All are due at `now`.
    pub(super) fn new(stay: &[Multiaddr], bootstrap: &[Multiaddr], now: Instant) -> Self {
        let target = |address: &Multiaddr, stays| Target {
            address: address.clone(),
            peer: peer_of(address),
            stays,
            state: State::Waiting(now),
            failures: 0,
            fresh: true,
        };
        let targets = stay.iter().map(|address| target(address, true));
        let targets = targets.chain(bootstrap.iter().map(|address| target(address, false)));
        Self { targets: targets.collect() }
    }

    /// Whether one of them has still to show whether it can be reached at all.
    pub(super) fn expects(&self) -> bool {
        self.targets.iter().any(|target| target.fresh)
    }

    /// Whether `peer` is one that stays connected.
    pub(super) fn keeps(&self, peer: &PeerId) -> bool {
        self.targets.iter().any(|target| target.stays && target.peer.as_ref() == Some(peer))
    }

    /// Whether `peer` is a configured one of either kind.
    pub(super) fn names(&self, peer: &PeerId) -> bool {
        self.targets.iter().any(|target| target.peer.as_ref() == Some(peer))
    }

    /// An address that is due. The caller says with [`Redial::dialling`] or [`Redial::failed_to_start`] what became of it.
    pub(super) fn due(&self, now: Instant) -> Option<(usize, &Multiaddr)> {
        let due = |target: &Target| matches!(target.state, State::Waiting(at) if at <= now);
        let at = self.targets.iter().position(due)?;
        Some((at, &self.targets[at].address))
    }

    /// When the next is due.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let times = self.targets.iter().filter_map(|target| match target.state {
            State::Waiting(at) => Some(at),
            _ => None,
        });
        times.min()
    }

    /// The dial of target `at` has begun as `connection`.
    pub(super) fn dialling(&mut self, at: usize, connection: ConnectionId) {
        if let Some(target) = self.targets.get_mut(at) {
            target.state = State::Dialling(connection);
        }
    }

    /// The dial of target `at` could not begin.
    pub(super) fn failed_to_start(&mut self, at: usize, now: Instant) {
        if let Some(target) = self.targets.get_mut(at) {
            target.fail(now);
        }
    }

    /// A dial failed; whether it was one of these.
    pub(super) fn failed(&mut self, connection: ConnectionId, now: Instant) -> bool {
        let dialled = State::Dialling(connection);
        match self.targets.iter_mut().find(|target| target.state == dialled) {
            Some(target) => {
                target.fail(now);
                true
            }
            None => false,
        }
    }

    /// A connection to `peer` is there, whoever opened it.
    pub(super) fn connected(&mut self, connection: ConnectionId, peer: PeerId) {
        for target in &mut self.targets {
            if target.state == State::Dialling(connection) {
                target.peer = Some(peer);
            }
            if target.peer == Some(peer) && target.state != State::Settled {
                target.state = State::Connected;
            }
        }
    }

    /// `peer` is identified: it is of use.
    pub(super) fn identified(&mut self, peer: PeerId) {
        for target in self.targets.iter_mut().filter(|target| target.peer == Some(peer)) {
            target.state = State::Settled;
            target.failures = 0;
            target.fresh = false;
        }
    }

    /// The last connection to `peer` is gone. `alone`: so is everybody else.
    pub(super) fn closed(&mut self, peer: PeerId, alone: bool, now: Instant) {
        for target in &mut self.targets {
            let its = target.peer == Some(peer);
            let open = matches!(target.state, State::Connected | State::Settled);
            if its && target.state == State::Connected {
                // It was not even identified: that is no success.
                target.fail(now);
            } else if open && ((its && target.stays) || (alone && !target.stays)) {
                target.state = State::Waiting(now + FIRST_PAUSE);
            }
        }
    }
}

impl Target {
    fn fail(&mut self, now: Instant) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(6)).min(MAX_PAUSE);
        self.state = State::Waiting(now + pause);
        self.failures = self.failures.saturating_add(1);
        self.fresh = false;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn named() -> (PeerId, Multiaddr) {
        let peer = PeerId::random();
        (peer, format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}").parse().unwrap())
    }

    fn connection(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_stays_is_tried_for_ever_with_growing_pauses() {
        let start = Instant::now();
        let (peer, address) = named();
        let mut redial = Redial::new(std::slice::from_ref(&address), &[], start);
        let mut now = start;
        let mut pauses = Vec::new();
        for n in 0..10 {
            let (at, due) = redial.due(now).unwrap();
            assert_eq!(*due, address);
            redial.dialling(at, connection(n));
            assert_eq!(redial.due(now), None, "not twice at once");
            assert!(redial.failed(connection(n), now));
            assert!(!redial.expects());
            pauses.push((redial.wake_at().unwrap() - now).as_secs());
            now = redial.wake_at().unwrap();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);

        let (at, _) = redial.due(now).unwrap();
        redial.dialling(at, connection(99));
        redial.connected(connection(99), peer);
        redial.identified(peer);
        assert_eq!(redial.wake_at(), None);
        redial.closed(peer, true, now);
        assert_eq!(redial.wake_at(), Some(now + FIRST_PAUSE), "pauses begin anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_bootstrap_peer_may_go_as_long_as_others_are_there() {
        let now = Instant::now();
        let (peer, address) = named();
        let mut redial = Redial::new(&[], &[address], now);
        assert!(redial.expects());
        redial.dialling(0, connection(1));
        redial.connected(connection(1), peer);
        assert!(redial.expects(), "a connection alone tells nothing");
        redial.identified(peer);
        assert!(!redial.expects() && !redial.keeps(&peer));
        redial.closed(peer, false, now);
        assert_eq!(redial.wake_at(), None);
        redial.closed(PeerId::random(), true, now);
        assert_eq!(redial.wake_at(), Some(now + FIRST_PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_dials_us_first_is_not_dialled() {
        let now = Instant::now();
        let (peer, address) = named();
        let mut redial = Redial::new(&[address], &[], now);
        redial.connected(connection(7), peer);
        assert_eq!(redial.due(now), None);
        assert!(redial.keeps(&peer));
        redial.closed(peer, false, now);
        assert_eq!(
            redial.wake_at(),
            Some(now + FIRST_PAUSE),
            "unidentified, it counts as a failure"
        );
    }
}
