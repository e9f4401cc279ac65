//! Dials that somebody waits for.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    swarm::{ConnectionId, DialError},
};
use tokio::{sync::oneshot, time::Instant};

use crate::net::{
    NetError,
    address::{is_relayed, with_peer},
    rank::Group,
};

/// How long a peer that only a relay reaches is waited for until it can be reached directly: three tries, each with a
/// round trip over the relay and the handshakes after it.
const PUNCHING: Duration = Duration::from_secs(15);

/// Why a peer is of no use that only a relay reaches.
const ONLY_RELAYED: &str = "only a relay reaches it, and blocks do not go over relays";

/// Somebody who waits for a connection.
#[derive(Debug)]
pub(super) enum Waiter {
    /// Until it is there, and without a relay.
    Connected(oneshot::Sender<Result<(), NetError>>),
    /// Until the peer is identified as well, be it over a relay.
    Identified(oneshot::Sender<Result<PeerId, NetError>>),
    /// Nobody: the network found a neighbour.
    Nobody,
}

impl Waiter {
    pub(super) fn fail(self, error: NetError) {
        // Whoever gave up waiting does not care.
        match self {
            Self::Connected(to) => drop(to.send(Err(error))),
            Self::Identified(to) => drop(to.send(Err(error))),
            Self::Nobody => tracing::debug!(%error, "a neighbour is not reached"),
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Connected(to) => to.is_closed(),
            Self::Identified(to) => to.is_closed(),
            Self::Nobody => false,
        }
    }
}

/// What to dial next: the peer, if it is known, and addresses that are tried at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) attempt: u64,
    pub(super) peer: Option<PeerId>,
    /// Empty: whatever the behaviours know.
    pub(super) addresses: Vec<Multiaddr>,
}

#[derive(Debug)]
struct Attempt {
    id: u64,
    peer: Option<PeerId>,
    /// What the first group began with, for messages.
    address: Multiaddr,
    groups: VecDeque<Group>,
    next_group: Instant,
    dialling: HashSet<ConnectionId>,
    /// There is a direct connection.
    connected: bool,
    /// There is one over a relay, and until when a direct one is waited for.
    relayed: Option<Instant>,
    reason: String,
    waiters: Vec<Waiter>,
}

/// All attempts under way. It holds who waits; the driver dials what it says.
#[derive(Debug, Default)]
pub(super) struct Dials {
    attempts: Vec<Attempt>,
    next_id: u64,
}

impl Dials {
    /// Adds an attempt, or joins the one that is under way to the same peer. `groups` are tried in order.
    pub(super) fn add(
        &mut self,
        peer: Option<PeerId>,
        address: Multiaddr,
        groups: Vec<Group>,
        connected: bool,
        waiter: Waiter,
        now: Instant,
    ) {
        let same = |attempt: &&mut Attempt| peer.is_some() && attempt.peer == peer;
        if let Some(attempt) = self.attempts.iter_mut().find(same) {
            attempt.groups.extend(groups);
            attempt.waiters.push(waiter);
            return;
        }
        self.next_id += 1;
        self.attempts.push(Attempt {
            id: self.next_id,
            peer,
            address,
            groups: groups.into(),
            next_group: now,
            dialling: HashSet::new(),
            connected,
            relayed: None,
            reason: "no address of it is known".to_owned(),
            waiters: vec![waiter],
        });
    }

    /// What to dial now. Attempts that have nothing left fail; those that nobody waits for any more end.
    pub(super) fn step(&mut self, now: Instant) -> Option<Step> {
        for attempt in &mut self.attempts {
            attempt.waiters.retain(|waiter| !waiter.is_closed());
        }
        self.attempts.retain(|attempt| !attempt.waiters.is_empty());
        for attempt in self.attempts.extract_if(.., |attempt| attempt.is_spent(now)) {
            attempt.fail();
        }
        let ready = |a: &&mut Attempt| {
            !a.connected && !a.groups.is_empty() && (a.next_group <= now || a.dialling.is_empty())
        };
        let attempt = self.attempts.iter_mut().find(ready)?;
        let Group { addresses, .. } = attempt.groups.pop_front()?;
        if let Some(next) = attempt.groups.front() {
            attempt.next_group = now + next.after;
        }
        Some(Step { attempt: attempt.id, peer: attempt.peer, addresses })
    }

    /// When [`Dials::step`] has something to say without an event.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let open = self.attempts.iter().filter(|a| !a.connected);
        let next = |a: &Attempt| {
            let group = (!a.groups.is_empty()).then_some(a.next_group);
            group.into_iter().chain(a.relayed).min()
        };
        open.filter_map(next).min()
    }

    /// The dial of a step began as `connection`.
    pub(super) fn dialling(&mut self, attempt: u64, connection: ConnectionId) {
        if let Some(attempt) = self.attempts.iter_mut().find(|a| a.id == attempt) {
            attempt.dialling.insert(connection);
        }
    }

    /// The dial of a step could not begin.
    pub(super) fn failed_to_start(&mut self, attempt: u64, error: &DialError) {
        if let Some(attempt) = self.attempts.iter_mut().find(|a| a.id == attempt) {
            attempt.reason = reason(error);
        }
    }

    /// A dial failed.
    pub(super) fn failed(&mut self, connection: ConnectionId, error: &DialError) {
        for attempt in &mut self.attempts {
            if attempt.dialling.remove(&connection) && attempt.relayed.is_none() {
                attempt.reason = reason(error);
            }
        }
    }

    /// A dial has served its purpose, and led to nobody who is waited for.
    pub(super) fn passed(&mut self, connection: ConnectionId) {
        for attempt in &mut self.attempts {
            attempt.dialling.remove(&connection);
        }
    }

    /// Attempts under way.
    pub(super) fn len(&self) -> usize {
        self.attempts.len()
    }

    /// A connection to `peer` over a relay is there.
    pub(super) fn relayed(&mut self, connection: Option<ConnectionId>, peer: PeerId, now: Instant) {
        for attempt in &mut self.attempts {
            if connection.is_some_and(|connection| attempt.dialling.remove(&connection)) {
                attempt.peer = Some(peer);
            }
            if attempt.peer != Some(peer) || attempt.connected {
                continue;
            }
            ONLY_RELAYED.clone_into(&mut attempt.reason);
            attempt.relayed.get_or_insert(now + PUNCHING);
            // What is left of the direct addresses is still tried.
            attempt.groups.retain(|group| !group.addresses.iter().all(is_relayed));
        }
    }

    /// A direct connection to `peer` is there, whoever opened it.
    pub(super) fn connected(&mut self, connection: ConnectionId, peer: PeerId) {
        for attempt in &mut self.attempts {
            if attempt.dialling.remove(&connection) {
                attempt.peer = Some(peer);
            }
            if attempt.peer != Some(peer) {
                continue;
            }
            attempt.connected = true;
            attempt.groups.clear();
            for waiter in attempt.waiters.extract_if(.., |w| matches!(w, Waiter::Connected(_))) {
                if let Waiter::Connected(to) = waiter {
                    // Whoever gave up waiting does not care.
                    let _ = to.send(Ok(()));
                }
            }
        }
    }

    /// `peer` is identified; whether somebody waited for that.
    pub(super) fn identified(&mut self, peer: PeerId) -> bool {
        let mut waited = false;
        for attempt in self.attempts.iter_mut().filter(|a| a.is_open_to(peer)) {
            for waiter in attempt.waiters.extract_if(.., |w| matches!(w, Waiter::Identified(_))) {
                if let Waiter::Identified(to) = waiter {
                    waited |= to.send(Ok(peer)).is_ok();
                }
            }
        }
        // The others have had their answer when the connection came; whoever is connected over a relay waits on.
        self.attempts.retain(|a| !(a.connected && a.peer == Some(peer)));
        waited
    }

    /// The last connection to `peer` closed, or it cannot be identified.
    pub(super) fn lost(&mut self, peer: PeerId, why: &str) {
        for mut attempt in self.attempts.extract_if(.., |a| a.is_open_to(peer)) {
            why.clone_into(&mut attempt.reason);
            attempt.fail();
        }
    }

    /// Ends everything.
    pub(super) fn close(&mut self) {
        for waiter in self.attempts.drain(..).flat_map(|attempt| attempt.waiters) {
            waiter.fail(NetError::Closed);
        }
    }
}

impl Attempt {
    /// Whether it has led to a connection to `peer`, of any kind.
    fn is_open_to(&self, peer: PeerId) -> bool {
        (self.connected || self.relayed.is_some()) && self.peer == Some(peer)
    }

    /// Whether nothing is left to wait for.
    fn is_spent(&self, now: Instant) -> bool {
        let punching = self.relayed.is_some_and(|until| until > now);
        let dialling = !self.dialling.is_empty() || !self.groups.is_empty();
        !self.connected && !punching && (!dialling || self.relayed.is_some())
    }

    fn fail(self) {
        let address = match self.peer {
            Some(peer) => with_peer(&self.address, peer),
            None => self.address,
        };
        for waiter in self.waiters {
            let (address, reason) = (address.clone(), self.reason.clone());
            waiter.fail(NetError::Connect { address, reason });
        }
    }
}

/// One line that says why a dial failed, down to the first cause.
pub(super) fn reason(error: &DialError) -> String {
    match error {
        DialError::LocalPeerId { .. } => "that is this node itself".to_owned(),
        DialError::NoAddresses => "no address of it is known".to_owned(),
        DialError::WrongPeerId { obtained, .. } => {
            format!("another peer answers there: {obtained}")
        }
        DialError::Denied { cause } => innermost(cause),
        DialError::Transport(errors) => {
            let each: Vec<String> = errors.iter().map(|(_, error)| innermost(error)).collect();
            let mut seen = HashSet::new();
            let distinct = each.into_iter().filter(|text| seen.insert(text.clone()));
            distinct.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}

pub(in crate::net) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn connection(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    const HEAD_START: Duration = Duration::from_millis(250);

    fn group(port: u16) -> Group {
        let addresses = vec![address(&format!("/ip4/127.0.0.1/tcp/{port}"))];
        Group { after: HEAD_START, addresses }
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_gets_a_head_start_and_the_next_begins_at_once_when_it_fails() {
        let now = Instant::now();
        let peer = PeerId::random();
        let groups: Vec<_> = [1, 2, 3].map(group).to_vec();
        let (to, answer) = oneshot::channel();
        let mut dials = Dials::default();
        dials.add(
            Some(peer),
            groups[0].addresses[0].clone(),
            groups.clone(),
            false,
            Waiter::Connected(to),
            now,
        );

        let step = dials.step(now).unwrap();
        assert_eq!(step.addresses, groups[0].addresses);
        dials.dialling(step.attempt, connection(1));
        assert_eq!(dials.step(now), None);
        assert_eq!(dials.wake_at(), Some(now + HEAD_START));

        dials.failed(connection(1), &DialError::NoAddresses);
        let step = dials.step(now).unwrap();
        assert_eq!(step.addresses, groups[1].addresses);
        dials.dialling(step.attempt, connection(2));

        let step = dials.step(now + HEAD_START).unwrap();
        assert_eq!(step.addresses, groups[2].addresses);
        dials.dialling(step.attempt, connection(3));
        dials.connected(connection(3), peer);
        answer.await.unwrap().unwrap();
        assert_eq!(dials.step(now + HEAD_START), None);
        assert!(dials.attempts.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_who_waits_for_a_peer_hears_why_it_cannot_be_reached() {
        let now = Instant::now();
        let peer = PeerId::random();
        let at = address("/ip4/127.0.0.1/tcp/1");
        let (first, one) = oneshot::channel();
        let (second, two) = oneshot::channel();
        let mut dials = Dials::default();
        dials.add(
            Some(peer),
            at.clone(),
            vec![Group::first(vec![at.clone()])],
            false,
            Waiter::Connected(first),
            now,
        );
        let step = dials.step(now).unwrap();
        dials.dialling(step.attempt, connection(1));
        dials.add(Some(peer), at.clone(), Vec::new(), false, Waiter::Identified(second), now);
        assert_eq!(dials.step(now), None, "the second joins the first");
        dials.failed(connection(1), &DialError::Aborted);
        assert_eq!(dials.step(now), None);
        for error in [one.await.unwrap().unwrap_err(), two.await.unwrap().unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains(&peer.to_string()) && text.contains("aborted"), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_closes_before_it_is_identified_is_a_failure() {
        let now = Instant::now();
        let peer = PeerId::random();
        let at = address("/ip4/127.0.0.1/tcp/1");
        let (to, answer) = oneshot::channel();
        let mut dials = Dials::default();
        let groups = vec![Group::first(vec![at.clone()])];
        dials.add(None, at, groups, false, Waiter::Identified(to), now);
        let step = dials.step(now).unwrap();
        dials.dialling(step.attempt, connection(1));
        dials.connected(connection(1), peer);
        assert_eq!(dials.step(now), None);
        dials.lost(peer, "the connection closed");
        assert!(answer.await.unwrap().unwrap_err().to_string().ends_with("the connection closed"));
    }

    /// An attempt that has led to a connection over a relay.
    fn relayed(waiter: Waiter, now: Instant) -> (Dials, PeerId) {
        let (peer, relay) = (PeerId::random(), PeerId::random());
        let over = address(&format!("/ip4/127.0.0.1/tcp/2/p2p/{relay}/p2p-circuit"));
        let groups = vec![Group::first(vec![over.clone()])];
        let mut dials = Dials::default();
        dials.add(Some(peer), over, groups, false, waiter, now);
        let step = dials.step(now).unwrap();
        dials.dialling(step.attempt, connection(1));
        dials.relayed(Some(connection(1)), peer, now);
        (dials, peer)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_wants_blocks_waits_for_a_direct_connection_after_one_over_a_relay() {
        let now = Instant::now();
        let (to, mut answer) = oneshot::channel();
        let (mut dials, peer) = relayed(Waiter::Connected(to), now);
        assert!(!dials.identified(peer), "nobody waits for that");
        assert_eq!(dials.step(now), None);
        assert!(answer.try_recv().is_err(), "not yet");
        assert_eq!(dials.wake_at(), Some(now + PUNCHING));
        dials.connected(connection(2), peer);
        answer.await.unwrap().unwrap();
        dials.identified(peer);
        assert!(dials.attempts.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_only_a_relay_reaches_is_given_up_with_that_as_the_reason() {
        let now = Instant::now();
        let (to, answer) = oneshot::channel();
        let (mut dials, _) = relayed(Waiter::Connected(to), now);
        assert_eq!(dials.step(now + PUNCHING), None);
        let text = answer.await.unwrap().unwrap_err().to_string();
        assert!(text.ends_with(ONLY_RELAYED), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn over_a_relay_a_peer_can_be_identified() {
        let (to, answer) = oneshot::channel();
        let (mut dials, peer) = relayed(Waiter::Identified(to), Instant::now());
        assert!(dials.identified(peer));
        assert_eq!(answer.await.unwrap().unwrap(), peer);
        assert_eq!(dials.step(Instant::now()), None);
        assert!(dials.attempts.is_empty(), "nobody waits any more");
    }
}
