//! One running search for the sources of a root.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{broadcast, mpsc},
    time::Instant,
};

use super::{name, redial::Providers};
use crate::{
    content::ContentId,
    net::{NetError, PeerEvent, PeerId, Provider},
    sources::{Again, Found, Source, hearsay::Channel},
};

/// Connected peers that are asked for blocks at once. On the public network there may be hundreds, and each that does
/// not have the content costs a round trip: those beyond are first asked whether they have the root.
const ASKED_AT_ONCE: usize = 8;
/// Peers that are asked at the same time whether they have the root.
const PROBES: usize = 32;
/// Who did not have the root is asked again after this long while nobody gives anything: it may have it by then.
const PROBE_AGAIN: Duration = Duration::from_secs(10);
/// Sources of one root: more do not make it faster.
const MOST_SOURCES: usize = 64;
/// News that may wait for the receiver.
const BACKLOG: usize = 16;
/// Wait before the DHT is asked again, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Longest wait before the DHT is asked again.
const LAST_PAUSE: Duration = Duration::from_secs(960);
/// Wait where the DHT could not be asked at all, as before the first peer of it is connected.
const NOBODY_PAUSE: Duration = Duration::from_secs(2);

/// What a search needs of the network.
pub(super) trait Network: Clone + Send + Sync + 'static {
    /// Own id.
    fn own(&self) -> PeerId;
    /// Connected peers that speak Bitswap, with whether they are chiral nodes, and every change from then on.
    fn peers(&self) -> (Vec<(PeerId, bool)>, broadcast::Receiver<PeerEvent>);
    /// Asks the DHT once.
    fn providers(&self, root: &ContentId) -> mpsc::Receiver<Result<Provider, NetError>>;
    /// Dials a provider; once connected, it comes as a change among the peers.
    fn dial(&self, provider: Provider) -> BoxFuture<'static, Result<(), NetError>>;
    /// Whether a peer has the root.
    fn has(&self, peer: PeerId, root: ContentId) -> BoxFuture<'static, bool>;
    /// A connected peer as a source, which counts the blocks that it gives.
    fn source(&self, peer: PeerId, chiral: bool, delivered: &Arc<AtomicU64>) -> Given;
}

/// A source that was given.
pub(super) struct Given {
    pub(super) source: Arc<dyn Source>,
    /// Whether it is a chiral node, as [`Source::kind`] tells.
    pub(super) chiral: Arc<AtomicBool>,
}

/// The receiver does not listen any more.
pub(super) struct Unheard;

/// One running search.
pub(super) struct Search<N> {
    net: N,
    root: ContentId,
    found: mpsc::Sender<Found>,
    again: Arc<Again>,
    heard: Arc<Channel>,
    /// Peers that were given as sources.
    sources: HashMap<PeerId, Given>,
    /// Who the DHT named: once connected they are asked without a probe.
    providers: Providers,
    /// Peers to be asked whether they have the root, with whether they are chiral nodes, which are asked first.
    waiting: VecDeque<(PeerId, bool)>,
    /// Peers that said not to have it.
    without: Vec<(PeerId, bool)>,
    /// Blocks that the sources gave.
    delivered: Arc<AtomicU64>,
    /// How many these were at the last look.
    seen: u64,
}

/// News of the searches in the DHT.
enum Named {
    Provider(Provider),
    /// Everybody was asked.
    End,
    /// It is time to ask once more.
    Due,
}

/// The searches in the DHT, one after the other.
struct Lookups {
    running: Option<mpsc::Receiver<Result<Provider, NetError>>>,
    /// Whether there was anybody to ask.
    asked: bool,
    /// When the next one begins, where none runs.
    next: Instant,
    /// Wait after the one that runs.
    pause: Duration,
}

impl Lookups {
    fn new() -> Self {
        Self { running: None, asked: false, next: Instant::now(), pause: FIRST_PAUSE }
    }

    fn start(&mut self, found: mpsc::Receiver<Result<Provider, NetError>>) {
        (self.running, self.asked) = (Some(found), true);
    }

    /// Has the next one begin at once; one that runs is as good.
    fn hurry(&mut self) {
        (self.next, self.pause) = (Instant::now(), FIRST_PAUSE);
    }

    async fn next(&mut self) -> Named {
        let Some(found) = &mut self.running else {
            tokio::time::sleep_until(self.next).await;
            return Named::Due;
        };
        loop {
            match found.recv().await {
                Some(Ok(provider)) => return Named::Provider(provider),
                Some(Err(error)) => {
                    tracing::debug!("search for providers: {error}");
                    self.asked &= !matches!(error, NetError::Bootstrap);
                }
                None => break,
            }
        }
        self.running = None;
        self.next = Instant::now() + if self.asked { self.pause } else { NOBODY_PAUSE };
        if self.asked {
            self.pause = (self.pause * 2).min(LAST_PAUSE);
        }
        Named::End
    }
}

impl<N: Network> Search<N> {
    /// A search that has not begun; what it finds comes out of the receiver. A change of `again` has it ask the DHT.
    pub(super) fn new(
        net: N,
        root: ContentId,
        again: Arc<Again>,
        heard: Arc<Channel>,
    ) -> (Self, mpsc::Receiver<Found>) {
        let (found, receiver) = mpsc::channel(BACKLOG);
        let search = Self {
            net,
            root,
            found,
            again,
            heard,
            sources: HashMap::new(),
            providers: Providers::default(),
            waiting: VecDeque::new(),
            without: Vec::new(),
            delivered: Arc::default(),
            seen: 0,
        };
        (search, receiver)
    }

    /// Providers that are known from elsewhere: asked without a probe, dialled where they are not connected.
    pub(super) fn start_with(&mut self, providers: Vec<Provider>) {
        let (now, own) = (Instant::now(), self.net.own());
        for provider in providers.into_iter().filter(|provider| provider.peer != own) {
            self.providers.named(now, provider);
        }
    }

    /// Searches until nobody listens any more.
    pub(super) async fn run(mut self) -> Result<(), Unheard> {
        let (peers, mut changes) = self.net.peers();
        let mut again = self.again.subscribe();
        let mut heard = self.heard.peers.subscribe();
        let (mut probes, mut dials) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut lookups = Lookups::new();
        let mut next_probes = Instant::now() + PROBE_AGAIN;
        let found = self.found.clone();
        self.meet_all(peers).await?;
        loop {
            while probes.len() < PROBES
                && let Some((peer, chiral)) = self.waiting.pop_front()
            {
                probes.push(self.net.has(peer, self.root).map(move |has| (peer, chiral, has)));
            }
            while let Some(provider) = self.providers.next_dial(Instant::now()) {
                dials.push(dial(&self.net, provider));
            }
            let due = self.providers.due();
            tokio::select! {
                () = found.closed() => return Err(Unheard),
                change = changes.recv() => match change {
                    Ok(PeerEvent::Up { peer, chiral }) => self.meet(peer, chiral).await?,
                    Ok(PeerEvent::Down(peer)) => self.lose(peer).await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => changes = self.catch_up().await?,
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                Some((peer, chiral, has)) = probes.next(), if !probes.is_empty() => {
                    self.probed(peer, chiral, has).await?;
                }
                Some(peer) = dials.next(), if !dials.is_empty() => {
                    self.providers.dialled(Instant::now(), &peer);
                }
                named = lookups.next() => match named {
                    Named::Provider(provider) => self.named(provider).await?,
                    Named::End => self.say(Found::Searched).await?,
                    Named::Due => lookups.start(self.net.providers(&self.root)),
                },
                // This search holds a sender of both, so that they never close. One that was lost is named again.
                Ok(provider) = heard.recv() => self.named(provider).await?,
                Ok(()) = again.changed() => lookups.hurry(),
                () = tokio::time::sleep_until(next_probes) => {
                    next_probes = Instant::now() + PROBE_AGAIN;
                    self.probe_again();
                }
                () = sleep_until(due) => {}
            }
        }
    }

    /// Those that did not have the root are to be asked again, unless something came since the last call.
    fn probe_again(&mut self) {
        let delivered = self.delivered.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.seen, delivered) == delivered {
            self.waiting.extend(self.without.drain(..));
        }
    }

    /// Chiral nodes first: they take deep pipelines and answer at once.
    async fn meet_all(&mut self, peers: Vec<(PeerId, bool)>) -> Result<(), Unheard> {
        let (first, rest): (Vec<_>, Vec<_>) = peers.into_iter().partition(|(_, chiral)| *chiral);
        for (peer, chiral) in first.into_iter().chain(rest) {
            self.meet(peer, chiral).await?;
        }
        Ok(())
    }

    /// A peer is connected, or known better now.
    async fn meet(&mut self, peer: PeerId, chiral: bool) -> Result<(), Unheard> {
        self.providers.connected(Instant::now(), &peer);
        if let Some(given) = self.sources.get(&peer) {
            if given.chiral.swap(chiral, Ordering::Relaxed) != chiral {
                self.say(Found::Source(given.source.clone())).await?;
            }
            return Ok(());
        }
        self.forget(&peer);
        if self.sources.len() < ASKED_AT_ONCE || self.providers.contains(&peer) {
            return self.give(peer, chiral).await;
        }
        if chiral {
            self.waiting.push_front((peer, chiral));
        } else {
            self.waiting.push_back((peer, chiral));
        }
        Ok(())
    }

    /// Takes a peer off the lists of those that are or were asked whether they have the root.
    fn forget(&mut self, peer: &PeerId) {
        self.waiting.retain(|(known, _)| known != peer);
        self.without.retain(|(known, _)| known != peer);
    }

    async fn probed(&mut self, peer: PeerId, chiral: bool, has: bool) -> Result<(), Unheard> {
        if has {
            return self.give(peer, chiral).await;
        }
        let (connected, _) = self.net.peers();
        if connected.iter().any(|(known, _)| *known == peer) && !self.sources.contains_key(&peer) {
            self.forget(&peer);
            self.without.push((peer, chiral));
        }
        Ok(())
    }

    async fn give(&mut self, peer: PeerId, chiral: bool) -> Result<(), Unheard> {
        if self.sources.len() >= MOST_SOURCES || self.sources.contains_key(&peer) {
            return Ok(());
        }
        let given = self.net.source(peer, chiral, &self.delivered);
        let source = given.source.clone();
        self.sources.insert(peer, given);
        self.say(Found::Source(source)).await
    }

    async fn lose(&mut self, peer: PeerId) -> Result<(), Unheard> {
        self.forget(&peer);
        self.providers.lost(Instant::now(), &peer);
        if self.sources.remove(&peer).is_some() {
            self.say(Found::Gone(name(peer))).await?;
        }
        Ok(())
    }

    /// News were lost: compares who is connected with who was.
    async fn catch_up(&mut self) -> Result<broadcast::Receiver<PeerEvent>, Unheard> {
        let (peers, changes) = self.net.peers();
        let connected: HashSet<PeerId> = peers.iter().map(|(peer, _)| *peer).collect();
        let known = self.sources.keys().chain(self.waiting.iter().map(|(peer, _)| peer));
        let gone: Vec<PeerId> = known
            .chain(self.without.iter().map(|(peer, _)| peer))
            .filter(|peer| !connected.contains(peer))
            .copied()
            .collect();
        for peer in gone {
            self.lose(peer).await?;
        }
        self.meet_all(peers).await?;
        Ok(changes)
    }

    /// Somebody named a provider: given at once when it is connected, dialled when not.
    async fn named(&mut self, provider: Provider) -> Result<(), Unheard> {
        let peer = provider.peer;
        if peer == self.net.own() {
            return Ok(());
        }
        for address in provider.addresses.iter().map(ToString::to_string) {
            if address.contains("/http") {
                // Nobody asks gateways.
                let _ = self.heard.servers.send(address);
            }
        }
        self.providers.named(Instant::now(), provider);
        let (connected, _) = self.net.peers();
        match connected.into_iter().find(|(known, _)| *known == peer) {
            Some((_, chiral)) => self.meet(peer, chiral).await,
            None => Ok(()),
        }
    }

    async fn say(&self, news: Found) -> Result<(), Unheard> {
        self.found.send(news).await.map_err(|_| Unheard)
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn dial<N: Network>(net: &N, provider: Provider) -> BoxFuture<'static, PeerId> {
    let peer = provider.peer;
    let dialled = net.dial(provider);
    async move {
        if let Err(error) = dialled.await {
            tracing::debug!("provider {peer}: {error}");
        }
        peer
    }
    .boxed()
}

#[cfg(test)]
mod tests;
