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

use crate::net::{NetError, address::with_peer};

/// Head start of the better group of addresses over the next, as of Happy Eyeballs.
const HEAD_START: Duration = Duration::from_millis(250);

/// Somebody who waits for a connection.
#[derive(Debug)]
pub(super) enum Waiter {
    /// Until it is there.
    Connected(oneshot::Sender<Result<(), NetError>>),
    /// Until the peer is identified as well.
    Identified(oneshot::Sender<Result<PeerId, NetError>>),
}

impl Waiter {
    pub(super) fn fail(self, error: NetError) {
        // Whoever gave up waiting does not care.
        match self {
            Self::Connected(to) => drop(to.send(Err(error))),
            Self::Identified(to) => drop(to.send(Err(error))),
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Connected(to) => to.is_closed(),
            Self::Identified(to) => to.is_closed(),
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
    groups: VecDeque<Vec<Multiaddr>>,
    next_group: Instant,
    dialling: HashSet<ConnectionId>,
    connected: bool,
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
    /// Adds an attempt, or joins the one that is under way to the same peer. `groups` are tried in order; an empty
    /// group stands for the addresses that the behaviours know.
    pub(super) fn add(
        &mut self,
        peer: Option<PeerId>,
        address: Multiaddr,
        groups: Vec<Vec<Multiaddr>>,
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
        let spent = |a: &Attempt| !a.connected && a.dialling.is_empty() && a.groups.is_empty();
        for attempt in self.attempts.extract_if(.., |attempt| spent(attempt)) {
            attempt.fail();
        }
        let ready = |a: &&mut Attempt| {
            !a.connected && !a.groups.is_empty() && (a.next_group <= now || a.dialling.is_empty())
        };
        let attempt = self.attempts.iter_mut().find(ready)?;
        attempt.next_group = now + HEAD_START;
        let addresses = attempt.groups.pop_front()?;
        Some(Step { attempt: attempt.id, peer: attempt.peer, addresses })
    }

    /// When [`Dials::step`] has something to say without an event.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let waiting = self.attempts.iter().filter(|a| !a.connected && !a.groups.is_empty());
        waiting.map(|attempt| attempt.next_group).min()
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
            if attempt.dialling.remove(&connection) {
                attempt.reason = reason(error);
            }
        }
    }

    /// A connection to `peer` is there, whoever opened it.
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
        for attempt in self.attempts.extract_if(.., |a| a.connected && a.peer == Some(peer)) {
            for waiter in attempt.waiters {
                match waiter {
                    Waiter::Connected(to) => drop(to.send(Ok(()))),
                    Waiter::Identified(to) => waited |= to.send(Ok(peer)).is_ok(),
                }
            }
        }
        waited
    }

    /// The last connection to `peer` closed, or it cannot be identified.
    pub(super) fn lost(&mut self, peer: PeerId, why: &str) {
        for mut attempt in self.attempts.extract_if(.., |a| a.connected && a.peer == Some(peer)) {
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

    #[tokio::test(start_paused = true)]
    async fn a_group_gets_a_head_start_and_the_next_begins_at_once_when_it_fails() {
        let now = Instant::now();
        let peer = PeerId::random();
        let groups: Vec<_> =
            ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2", "/ip4/127.0.0.1/tcp/3"]
                .map(|a| vec![address(a)])
                .to_vec();
        let (to, answer) = oneshot::channel();
        let mut dials = Dials::default();
        dials.add(
            Some(peer),
            groups[0][0].clone(),
            groups.clone(),
            false,
            Waiter::Connected(to),
            now,
        );

        let step = dials.step(now).unwrap();
        assert_eq!(step.addresses, groups[0]);
        dials.dialling(step.attempt, connection(1));
        assert_eq!(dials.step(now), None);
        assert_eq!(dials.wake_at(), Some(now + HEAD_START));

        dials.failed(connection(1), &DialError::NoAddresses);
        let step = dials.step(now).unwrap();
        assert_eq!(step.addresses, groups[1]);
        dials.dialling(step.attempt, connection(2));

        let step = dials.step(now + HEAD_START).unwrap();
        assert_eq!(step.addresses, groups[2]);
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
            vec![vec![at.clone()]],
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
        dials.add(None, at.clone(), vec![vec![at]], false, Waiter::Identified(to), now);
        let step = dials.step(now).unwrap();
        dials.dialling(step.attempt, connection(1));
        dials.connected(connection(1), peer);
        assert_eq!(dials.step(now), None);
        dials.lost(peer, "the connection closed");
        assert!(answer.await.unwrap().unwrap_err().to_string().ends_with("the connection closed"));
    }
}
