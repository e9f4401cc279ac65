//! The task that owns the swarm: commands come in, events are turned into answers and shared state.

mod announcing;
mod dials;
mod events;
mod reach;
mod searches;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    kad::{QueryId, RecordKey},
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use lru::LruCache;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub(super) use self::{dials::innermost, searches::MAX_PROVIDERS};
use self::{
    dials::{Dials, Step, Waiter},
    searches::Searches,
};
use super::{
    NetError, Provider,
    address::{Scope, peer_of},
    announce::{Announcer, Key},
    behaviour::Behaviour,
    bitswap,
    rank::{Group, rank},
    reach::ReachOptions,
    redial::Redial,
    relays::Relays,
    shared::Shared,
};
use crate::content::ContentId;

/// Peers whose addresses are remembered after they are gone.
const ADDRESS_BOOK: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();
/// Peers that are refused at once; beyond it the ban that ends first is lifted.
const MAX_BANS: usize = 4_096;
/// How often expired records are taken out.
const SWEEP: Duration = Duration::from_secs(600);
/// How long the end waits for connections to close in good order.
const CLOSING: Duration = Duration::from_secs(1);

/// What the handle asks of the driver.
#[derive(Debug)]
pub(super) enum Command {
    /// Dial, and answer when the peer is identified.
    Connect(Multiaddr, oneshot::Sender<Result<PeerId, NetError>>),
    /// Dial, and answer when the connection is there.
    Dial(Provider, oneshot::Sender<Result<(), NetError>>),
    /// Look for providers.
    Find(ContentId, mpsc::Sender<Result<Provider, NetError>>),
    /// Stop naming this node as a provider.
    Withdraw(Key),
    /// Refuse a peer for a while.
    Ban(PeerId, Duration),
}

/// The swarm and everything that is decided on its task.
pub(super) struct Driver {
    swarm: Swarm<Behaviour>,
    commands: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
    announcer: Arc<Announcer>,
    /// Lookups for announcements.
    announcing: HashMap<(Scope, QueryId), u32>,
    dials: Dials,
    /// Dials to relays, and what is dialled over them once they are connected.
    to_relays: HashMap<ConnectionId, Step>,
    searches: Searches,
    redial: Redial,
    relays: Relays,
    reach: ReachOptions,
    bitswap: bitswap::Handle,
    bans: HashMap<PeerId, Instant>,
    book: LruCache<PeerId, Vec<Multiaddr>>,
    next_sweep: Instant,
    /// Sockets for dialling over QUIC are made with the first dial of each family, and need larger buffers then.
    quic_dialled: [bool; 2],
}

/// What was ready first.
enum Woken {
    Swarm(Box<libp2p::swarm::SwarmEvent<super::behaviour::BehaviourEvent>>),
    Command(Option<Command>),
    SearchEnd(u64),
    Timer,
    Cancelled,
}

impl Driver {
    /// A driver of a swarm that listens already.
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        commands: mpsc::UnboundedReceiver<Command>,
        (shared, announcer): (Arc<Shared>, Arc<Announcer>),
        redial: Redial,
        reach: ReachOptions,
        bitswap: bitswap::Handle,
    ) -> Self {
        let relays = Relays::new(reach.relay_client, reach.relay_after, Instant::now());
        Self {
            swarm,
            commands,
            shared,
            announcer,
            announcing: HashMap::new(),
            dials: Dials::default(),
            to_relays: HashMap::new(),
            searches: Searches::default(),
            redial,
            relays,
            reach,
            bitswap,
            bans: HashMap::new(),
            book: LruCache::new(ADDRESS_BOOK),
            next_sweep: Instant::now() + SWEEP,
            quic_dialled: [false; 2],
        }
    }

    /// Runs until `token` is cancelled, then closes connections and answers everybody who waits.
    pub(super) async fn run(mut self, token: CancellationToken) {
        self.restore_provided();
        self.announce_configured();
        let announcer = self.announcer.clone();
        loop {
            let wake = self.advance(Instant::now());
            let woken = tokio::select! {
                biased;
                () = token.cancelled() => Woken::Cancelled,
                event = self.swarm.select_next_some() => Woken::Swarm(Box::new(event)),
                command = self.commands.recv() => Woken::Command(command),
                search = self.searches.next_end() => Woken::SearchEnd(search),
                () = announcer.changed() => Woken::Timer,
                () = tokio::time::sleep_until(wake) => Woken::Timer,
            };
            match woken {
                Woken::Swarm(event) => {
                    self.on_swarm_event(*event);
                    // Events go first above; a stream of them must not keep whoever asks for something waiting.
                    while let Ok(command) = self.commands.try_recv() {
                        self.on_command(command);
                    }
                }
                Woken::Command(Some(command)) => self.on_command(command),
                Woken::SearchEnd(search) => {
                    let queries = self.searches.end(search);
                    self.stop_queries(queries);
                }
                Woken::Timer => {}
                // Every handle is gone: nobody can ask for anything any more.
                Woken::Command(None) | Woken::Cancelled => break,
            }
        }
        Box::pin(self.close()).await;
    }

    /// Does what is due; says when the next thing is.
    fn advance(&mut self, now: Instant) -> Instant {
        while let Some(step) = self.dials.step(now) {
            self.dial(step);
        }
        self.redial(now);
        self.reserve(now);
        self.search();
        self.announce();
        self.lift_bans(now);
        if self.next_sweep <= now {
            self.next_sweep = now + SWEEP;
            for scope in Scope::ALL {
                let records = self.swarm.behaviour_mut().dht(scope).kad().store_mut();
                records.sweep(StdInstant::now());
            }
        }
        let mut times = vec![self.next_sweep];
        times.extend(self.dials.wake_at());
        times.extend(self.redial.wake_at());
        times.extend(self.relays.wake_at());
        times.extend(self.bans.values().min());
        for scope in Scope::ALL {
            if self.can_announce(scope)
                && let Some(seconds) = self.announcer.wake_in(scope)
            {
                times.push(now + Duration::from_secs(seconds));
            }
        }
        times.into_iter().min().unwrap_or(now + SWEEP)
    }

    fn on_command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Connect(address, reply) => self.connect(address, reply, now),
            Command::Dial(provider, reply) => self.dial_provider(provider, reply, now),
            Command::Find(id, to) => self.searches.add(id, to),
            Command::Withdraw(key) => {
                for scope in Scope::ALL {
                    let key = RecordKey::from(key.clone());
                    self.swarm.behaviour_mut().dht(scope).kad().stop_providing(&key);
                }
            }
            Command::Ban(peer, time) => self.ban(peer, time, now),
        }
    }

    fn connect(
        &mut self,
        address: Multiaddr,
        reply: oneshot::Sender<Result<PeerId, NetError>>,
        now: Instant,
    ) {
        let peer = peer_of(&address);
        if let Some(peer) = peer
            && self.shared.is_identified(&peer)
        {
            self.swarm.behaviour_mut().keep.insert(peer);
            // Whoever gave up waiting does not care.
            let _ = reply.send(Ok(peer));
            return;
        }
        let connected = peer.is_some_and(|peer| self.swarm.is_connected(&peer));
        let groups = vec![Group::first(vec![address.clone()])];
        self.dials.add(peer, address, groups, connected, Waiter::Identified(reply), now);
    }

    fn dial_provider(
        &mut self,
        provider: Provider,
        reply: oneshot::Sender<Result<(), NetError>>,
        now: Instant,
    ) {
        let Provider { peer, addresses } = provider;
        if self.shared.is_direct(&peer) {
            // Whoever gave up waiting does not care.
            let _ = reply.send(Ok(()));
            return;
        }
        self.dial_all(peer, addresses, Waiter::Connected(reply), now);
        if self.swarm.is_connected(&peer) {
            self.dials.relayed(None, peer, now);
        }
    }

    /// Dials `peer` at `addresses` and at what is known besides, the best first.
    fn dial_all(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, waiter: Waiter, now: Instant) {
        let known = self.addresses_of(peer);
        let own = *self.swarm.local_peer_id();
        let mut groups = rank(addresses.into_iter().chain(known), own, &self.shared.addresses());
        if groups.is_empty() {
            groups.push(Group::first(Vec::new()));
        }
        let mut all = groups.iter().flat_map(|group| &group.addresses);
        let address = all.next().cloned().unwrap_or_else(Multiaddr::empty);
        self.dials.add(Some(peer), address, groups, false, waiter, now);
    }

    fn dial(&mut self, step: Step) {
        let Some(step) = self.over_connected_relays(step) else { return };
        // A dial to the peer that the DHT began may take another address, and a connection over a relay is no direct
        // one: this dial goes on beside them.
        let direct = step.peer.is_some_and(|peer| self.shared.is_direct(&peer));
        let condition = if direct { PeerCondition::Disconnected } else { PeerCondition::Always };
        let options = match step.peer {
            Some(peer) if step.addresses.is_empty() => {
                DialOpts::peer_id(peer).condition(condition).build()
            }
            Some(peer) => {
                DialOpts::peer_id(peer).condition(condition).addresses(step.addresses).build()
            }
            None => match step.addresses.into_iter().next() {
                Some(address) => DialOpts::unknown_peer_id().address(address).build(),
                None => return,
            },
        };
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => self.dials.dialling(step.attempt, connection),
            Err(error) => self.dials.failed_to_start(step.attempt, &error),
        }
    }

    fn redial(&mut self, now: Instant) {
        while let Some((at, address)) = self.redial.due(now) {
            let options = match peer_of(address) {
                Some(peer) => DialOpts::peer_id(peer)
                    .condition(PeerCondition::Disconnected)
                    .addresses(vec![address.clone()])
                    .build(),
                None => DialOpts::unknown_peer_id().address(address.clone()).build(),
            };
            let connection = options.connection_id();
            match self.swarm.dial(options) {
                Ok(()) => self.redial.dialling(at, connection),
                Err(error) => {
                    tracing::debug!(%address, reason = dials::reason(&error), "not redialled");
                    self.redial.failed_to_start(at, now);
                }
            }
        }
    }

    /// Addresses of `peer` that the DHTs or an earlier connection told.
    fn addresses_of(&mut self, peer: PeerId) -> Vec<Multiaddr> {
        let mut known = self.book.get(&peer).cloned().unwrap_or_default();
        for scope in Scope::ALL {
            known.extend(self.swarm.behaviour_mut().dht(scope).addresses_of(peer));
        }
        known
    }

    fn search(&mut self) {
        self.searches.admit();
        for scope in Scope::ALL {
            let waiting = self.searches.waiting(scope);
            let dht = self.swarm.behaviour_mut().dht(scope);
            if waiting.is_empty() || !dht.has_peers() {
                continue;
            }
            for (search, id) in waiting {
                let query = dht.kad().get_providers(RecordKey::from(super::announce::key_of(&id)));
                self.searches.running(search, scope, query);
            }
        }
        let useless = self.searches.conclude(self.redial.expects());
        self.stop_queries(useless);
    }

    fn stop_queries(&mut self, queries: Vec<(Scope, QueryId)>) {
        for (scope, query) in queries {
            if let Some(mut query) = self.swarm.behaviour_mut().dht(scope).kad().query_mut(&query) {
                query.finish();
            }
        }
    }

    fn ban(&mut self, peer: PeerId, time: Duration, now: Instant) {
        if self.bans.len() >= MAX_BANS
            && let Some(first) = self.bans.iter().min_by_key(|(_, until)| **until).map(|(p, _)| *p)
        {
            self.lift(first);
        }
        let until = now + time;
        self.bans.entry(peer).and_modify(|old| *old = until.max(*old)).or_insert(until);
        self.swarm.behaviour_mut().keep.remove(&peer);
        self.swarm.behaviour_mut().banned.block_peer(peer);
        tracing::info!(%peer, ?time, "peer banned");
    }

    fn lift_bans(&mut self, now: Instant) {
        let over: Vec<PeerId> =
            self.bans.iter().filter(|(_, until)| **until <= now).map(|(peer, _)| *peer).collect();
        for peer in over {
            self.lift(peer);
        }
    }

    fn lift(&mut self, peer: PeerId) {
        self.bans.remove(&peer);
        self.swarm.behaviour_mut().banned.unblock_peer(peer);
    }

    async fn close(mut self) {
        self.dials.close();
        self.searches.close();
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error says that it is gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let gone = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        if tokio::time::timeout(CLOSING, gone).await.is_err() {
            tracing::debug!("some connections did not close in time and are cut");
        }
        self.shared.clear();
    }
}
