//! At which relays a node that cannot be reached reserves a slot.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, multiaddr::Protocol};
use tokio::time::Instant;

use super::address::{is_relayed, may_claim, with_peer, without_peer};

/// Relays at once: one may go at any time, and more of them gain nothing.
const SLOTS: usize = 2;
/// Pause before a relay that refused is asked again; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Longest pause: what a reservation lasts.
const MAX_PAUSE: Duration = Duration::from_secs(3_600);

#[derive(Debug)]
struct Relay {
    address: Multiaddr,
    not_before: Instant,
    failures: u32,
}

/// The relays among the connected peers, and the slots that are reserved at them. A pure state machine; the driver
/// listens and stops listening as it says. Reservations are renewed by the relay client itself, and a listener that
/// ends says that this failed.
#[derive(Debug)]
pub(super) struct Relays {
    /// When it is known well enough that nobody reaches this node; none: it can be reached, or this is switched off.
    wanted_from: Option<Instant>,
    enabled: bool,
    relays: BTreeMap<PeerId, Relay>,
    held: HashMap<ListenerId, PeerId>,
}

impl Relays {
    /// Leaves `patience` for others to find out whether this node can be reached.
    pub(super) fn new(enabled: bool, patience: Duration, now: Instant) -> Self {
        let wanted_from = enabled.then(|| now + patience);
        Self { wanted_from, enabled, relays: BTreeMap::new(), held: HashMap::new() }
    }

    /// `peer` is connected through `via` and relays; `claimed` are the addresses that it says it listens on.
    pub(super) fn offers(
        &mut self,
        peer: PeerId,
        via: &Multiaddr,
        dialled: bool,
        claimed: &[Multiaddr],
        now: Instant,
    ) {
        if is_relayed(via) || self.relays.contains_key(&peer) {
            return;
        }
        // The address that others are to find this node by: where it called from is none that it listens on.
        let usable = |at: &&Multiaddr| !is_relayed(at) && may_claim(at, via);
        let address = if dialled { Some(via) } else { claimed.iter().find(usable) };
        let Some(address) = address else { return };
        let address = with_peer(&without_peer(address), peer).with(Protocol::P2pCircuit);
        self.relays.insert(peer, Relay { address, not_before: now, failures: 0 });
    }

    /// The last connection to `peer` is gone. What it held ends by itself.
    pub(super) fn gone(&mut self, peer: &PeerId) {
        self.relays.remove(peer);
    }

    /// Somebody tried to reach this node and could not.
    pub(super) fn unreachable(&mut self, now: Instant) {
        if let Some(from) = &mut self.wanted_from {
            *from = now.min(*from);
        }
    }

    /// This node can be reached without a relay, or not any more. Gives the relays that are of no use: a slot ends with
    /// the connection to them. Ending its listener alone while a renewal is under way is more than the client bears.
    pub(super) fn reachable(&mut self, reachable: bool, now: Instant) -> Vec<PeerId> {
        if reachable {
            self.wanted_from = None;
            return self.held.values().copied().collect();
        }
        if self.enabled && self.wanted_from.is_none() {
            self.wanted_from = Some(now);
        }
        Vec::new()
    }

    /// An address to listen on. The caller says with [`Relays::listening`] or [`Relays::failed`] what became of it.
    pub(super) fn due(&self, now: Instant) -> Option<(PeerId, Multiaddr)> {
        if self.held.len() >= SLOTS || self.wanted_from.is_none_or(|from| from > now) {
            return None;
        }
        let mut free = self.free();
        free.find(|(_, relay)| relay.not_before <= now)
            .map(|(peer, relay)| (*peer, relay.address.clone()))
    }

    /// When [`Relays::due`] has something to say without an event.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let from = self.wanted_from.filter(|_| self.held.len() < SLOTS)?;
        let first = self.free().map(|(_, relay)| relay.not_before).min()?;
        Some(first.max(from))
    }

    fn free(&self) -> impl Iterator<Item = (&PeerId, &Relay)> {
        self.relays.iter().filter(|(peer, _)| !self.held.values().any(|held| held == *peer))
    }

    /// A slot at `peer` is being asked for, or held, as `listener`.
    pub(super) fn listening(&mut self, listener: ListenerId, peer: PeerId) {
        self.held.insert(listener, peer);
    }

    /// A slot was granted.
    pub(super) fn granted(&mut self, peer: &PeerId) {
        if let Some(relay) = self.relays.get_mut(peer) {
            relay.failures = 0;
        }
    }

    /// A slot could not be asked for.
    pub(super) fn failed(&mut self, peer: &PeerId, now: Instant) {
        if let Some(relay) = self.relays.get_mut(peer) {
            let pause = FIRST_PAUSE.saturating_mul(1 << relay.failures.min(6)).min(MAX_PAUSE);
            relay.not_before = now + pause;
            relay.failures = relay.failures.saturating_add(1);
        }
    }

    /// A listener ended; whether it was one of these.
    pub(super) fn closed(&mut self, listener: ListenerId, now: Instant) -> bool {
        let Some(peer) = self.held.remove(&listener) else { return false };
        self.failed(&peer, now);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn via(n: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{n}").parse().unwrap()
    }

    fn offered(count: u16, now: Instant) -> Relays {
        let mut relays = Relays::new(true, PATIENCE, now);
        for n in 1..=count {
            relays.offers(PeerId::random(), &via(n), true, &[], now);
        }
        relays
    }

    fn take(relays: &mut Relays, now: Instant) -> (ListenerId, PeerId) {
        let (peer, address) = relays.due(now).unwrap();
        assert!(address.to_string().ends_with(&format!("/p2p/{peer}/p2p-circuit")), "{address}");
        let listener = ListenerId::next();
        relays.listening(listener, peer);
        (listener, peer)
    }

    #[tokio::test(start_paused = true)]
    async fn two_slots_are_held_and_a_lost_one_is_replaced_by_another_relay() {
        let now = Instant::now();
        let mut relays = offered(3, now);
        assert_eq!(relays.due(now), None);
        assert_eq!(relays.wake_at(), Some(now + PATIENCE));
        let now = now + PATIENCE;
        let (first, lost) = take(&mut relays, now);
        let (_, other) = take(&mut relays, now);
        assert_eq!(relays.due(now), None);
        assert_eq!(relays.wake_at(), None);

        assert!(relays.closed(first, now) && !relays.closed(first, now));
        let (_, third) = take(&mut relays, now);
        assert!(third != lost && third != other, "not the one that was just lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_refuses_is_asked_again_after_growing_pauses() {
        let mut now = Instant::now() + PATIENCE;
        let mut relays = offered(1, Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let (listener, _) = take(&mut relays, now);
            relays.closed(listener, now);
            pauses.push((relays.wake_at().unwrap() - now).as_secs() / 60);
            now = relays.wake_at().unwrap();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        let (_, peer) = take(&mut relays, now);
        relays.granted(&peer);
        relays.gone(&peer);
        assert_eq!(relays.due(now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_test_ends_the_patience_and_a_node_that_is_reached_needs_no_relay() {
        let now = Instant::now();
        let mut relays = offered(3, now);
        relays.unreachable(now);
        let (listener, relay) = take(&mut relays, now);
        assert_eq!(relays.reachable(true, now), [relay]);
        relays.closed(listener, now);
        assert_eq!((relays.due(now), relays.wake_at()), (None, None));
        assert_eq!(relays.reachable(false, now), []);
        assert!(relays.due(now).is_some());
        let off = Relays::new(false, Duration::ZERO, now);
        assert_eq!(off.due(now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_called_us_is_named_by_an_address_that_it_listens_on() {
        let now = Instant::now();
        let mut relays = Relays::new(true, Duration::ZERO, now);
        let peer = PeerId::random();
        relays.offers(peer, &via(50_000), false, &[], now);
        assert_eq!(relays.due(now), None);
        let over = via(2).with(Protocol::P2p(PeerId::random())).with(Protocol::P2pCircuit);
        relays.offers(peer, &over, true, &[via(7)], now);
        assert_eq!(relays.due(now), None, "no slot behind another relay");
        relays.offers(peer, &via(50_000), false, &[over, via(7)], now);
        let (_, address) = relays.due(now).unwrap();
        assert!(address.to_string().starts_with("/ip4/127.0.0.1/tcp/7/p2p/"), "{address}");
    }
}
