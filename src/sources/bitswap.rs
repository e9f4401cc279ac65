//! Bitswap peers as sources, and the search for them.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{broadcast, mpsc},
    time::Instant,
};

use super::{
    Finder, Found, Permanent, Reply, Source, SourceError, SourceId, SourceKind, Transient, Want,
};
use crate::{
    content::ContentId,
    net::{Asker, BlockReply, Net, PeerEvent, PeerId, Provider, WantError},
    tasks::Tasks,
};

/// Longest wait for the answer to "do you have": a silent peer counts as having nothing.
const HAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Connected peers that are asked for blocks at once. On the public network there may be hundreds, and each that does
/// not have the content costs a round trip: those beyond are first asked whether they have the root.
const ASKED_AT_ONCE: usize = 8;
/// Peers that are asked at the same time whether they have the root.
const PROBES: usize = 32;
/// Providers that are dialled at the same time.
const DIALS: usize = 8;
/// Sources of one root: more do not make it faster.
const MOST_SOURCES: usize = 64;
/// News that may wait for the receiver.
const BACKLOG: usize = 16;
/// Wait before the DHT is asked again, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Longest wait before the DHT is asked again.
const LAST_PAUSE: Duration = Duration::from_secs(960);

/// Finds Bitswap peers: those that are connected, and those that the DHT names.
#[derive(Clone, Debug)]
pub struct BitswapFinder {
    net: Net,
    tasks: Tasks,
}

impl BitswapFinder {
    /// A finder over the peers of `net`.
    pub fn new(net: Net, tasks: &Tasks) -> Self {
        Self { net, tasks: tasks.clone() }
    }
}

impl Finder for BitswapFinder {
    fn find(&self, root: &ContentId) -> mpsc::Receiver<Found> {
        let (found, receiver) = mpsc::channel(BACKLOG);
        let search = Search {
            net: self.net.clone(),
            root: *root,
            found,
            sources: HashMap::new(),
            dialled: HashSet::new(),
        };
        let cancelled = self.tasks.cancelled();
        self.tasks.spawn("find-sources", async move {
            tokio::select! {
                () = cancelled => {}
                // The receiver was dropped, or the network is gone.
                _ = search.run() => {}
            }
        });
        receiver
    }

    fn arrived(&self, block: &ContentId) {
        self.net.block_arrived(block);
    }
}

/// The receiver does not listen any more.
struct Unheard;

/// One running search.
struct Search {
    net: Net,
    root: ContentId,
    found: mpsc::Sender<Found>,
    /// Peers that were given as sources.
    sources: HashMap<PeerId, Arc<BitswapSource>>,
    /// Providers of this root that were dialled: once connected they are asked without a probe.
    dialled: HashSet<PeerId>,
}

impl Search {
    async fn run(mut self) -> Result<(), Unheard> {
        let (peers, mut changes) = self.net.bitswap_peers();
        let mut probes = FuturesUnordered::new();
        let mut dials = FuturesUnordered::new();
        let (mut waiting, mut to_dial) = (Vec::new(), Vec::new());
        // Chiral nodes first: they take deep pipelines and answer at once.
        let (mut first, rest): (Vec<_>, Vec<_>) =
            peers.into_iter().partition(|(_, chiral)| *chiral);
        first.extend(rest);
        for (peer, chiral) in first {
            self.meet(peer, chiral, &mut waiting).await?;
        }
        let mut providers = Some(self.net.find_providers(&self.root));
        let (mut pause, mut again) = (FIRST_PAUSE, Instant::now());
        let found = self.found.clone();
        loop {
            while probes.len() < PROBES
                && let Some((peer, chiral)) = waiting.pop()
            {
                probes.push(probe(self.net.clone(), self.root, peer, chiral));
            }
            while dials.len() < DIALS
                && let Some(provider) = to_dial.pop()
            {
                dials.push(dial(self.net.clone(), provider));
            }
            tokio::select! {
                () = found.closed() => return Err(Unheard),
                change = changes.recv() => match change {
                    Ok(PeerEvent::Up { peer, chiral }) => self.meet(peer, chiral, &mut waiting).await?,
                    Ok(PeerEvent::Down(peer)) => self.lose(peer).await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        changes = self.catch_up(&mut waiting).await?;
                    }
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                Some((peer, chiral, has)) = probes.next(), if !probes.is_empty() => {
                    if has {
                        self.give(peer, chiral).await?;
                    }
                }
                Some(()) = dials.next(), if !dials.is_empty() => {}
                provider = next(&mut providers) => match provider {
                    Some(provider) => self.provider(provider, &mut to_dial).await?,
                    None => {
                        providers = None;
                        again = Instant::now() + pause;
                        pause = (pause * 2).min(LAST_PAUSE);
                        self.say(Found::Searched).await?;
                    }
                },
                () = tokio::time::sleep_until(again), if providers.is_none() => {
                    providers = Some(self.net.find_providers(&self.root));
                }
            }
        }
    }

    /// A peer is connected, or known better now.
    async fn meet(
        &mut self,
        peer: PeerId,
        chiral: bool,
        waiting: &mut Vec<(PeerId, bool)>,
    ) -> Result<(), Unheard> {
        if let Some(source) = self.sources.get(&peer) {
            if source.chiral.swap(chiral, Ordering::Relaxed) != chiral {
                self.say(Found::Source(source.clone())).await?;
            }
            return Ok(());
        }
        waiting.retain(|(known, _)| *known != peer);
        if self.sources.len() < ASKED_AT_ONCE || self.dialled.contains(&peer) {
            return self.give(peer, chiral).await;
        }
        waiting.push((peer, chiral));
        Ok(())
    }

    async fn give(&mut self, peer: PeerId, chiral: bool) -> Result<(), Unheard> {
        if self.sources.len() >= MOST_SOURCES || self.sources.contains_key(&peer) {
            return Ok(());
        }
        let source = BitswapSource::new(self.net.clone(), peer, chiral);
        self.sources.insert(peer, source.clone());
        self.say(Found::Source(source)).await
    }

    async fn lose(&mut self, peer: PeerId) -> Result<(), Unheard> {
        if self.sources.remove(&peer).is_some() {
            self.say(Found::Gone(name(peer))).await?;
        }
        Ok(())
    }

    /// News were lost: compares who is connected with who was.
    async fn catch_up(
        &mut self,
        waiting: &mut Vec<(PeerId, bool)>,
    ) -> Result<broadcast::Receiver<PeerEvent>, Unheard> {
        let (peers, changes) = self.net.bitswap_peers();
        let connected: HashSet<PeerId> = peers.iter().map(|(peer, _)| *peer).collect();
        let gone: Vec<PeerId> =
            self.sources.keys().filter(|peer| !connected.contains(peer)).copied().collect();
        for peer in gone {
            self.lose(peer).await?;
        }
        for (peer, chiral) in peers {
            self.meet(peer, chiral, waiting).await?;
        }
        Ok(changes)
    }

    /// The DHT named a provider: given at once when it is connected, dialled when not.
    async fn provider(
        &mut self,
        provider: Provider,
        to_dial: &mut Vec<Provider>,
    ) -> Result<(), Unheard> {
        let peer = provider.peer;
        if peer == self.net.peer_id()
            || self.sources.contains_key(&peer)
            || !self.dialled.insert(peer)
        {
            return Ok(());
        }
        let (connected, _) = self.net.bitswap_peers();
        match connected.into_iter().find(|(known, _)| *known == peer) {
            Some((_, chiral)) => self.give(peer, chiral).await,
            None => {
                to_dial.push(provider);
                Ok(())
            }
        }
    }

    async fn say(&self, news: Found) -> Result<(), Unheard> {
        self.found.send(news).await.map_err(|_| Unheard)
    }
}

/// The next provider; errors of one search are no providers and no end.
async fn next(
    providers: &mut Option<mpsc::Receiver<Result<Provider, crate::net::NetError>>>,
) -> Option<Provider> {
    let Some(receiver) = providers else { return std::future::pending().await };
    loop {
        match receiver.recv().await? {
            Ok(provider) => return Some(provider),
            Err(error) => tracing::debug!("search for providers: {error}"),
        }
    }
}

async fn probe(net: Net, root: ContentId, peer: PeerId, chiral: bool) -> (PeerId, bool, bool) {
    let has = net.want_haves(peer, &[root], HAVE_TIMEOUT).await;
    (peer, chiral, has.first() == Some(&true))
}

async fn dial(net: Net, provider: Provider) {
    let peer = provider.peer;
    // Once connected, it comes as a change among the peers.
    if let Err(error) = net.dial(provider).await {
        tracing::debug!("provider {peer}: {error}");
    }
}

fn name(peer: PeerId) -> SourceId {
    SourceId(peer.to_string().into())
}

/// One peer that is asked for blocks of one root.
#[derive(Debug)]
struct BitswapSource {
    net: Net,
    peer: PeerId,
    /// Whether it is a chiral node; identify says so a moment after the peer is first met.
    chiral: AtomicBool,
    answers: Arc<Answers>,
    /// `answers`, as the network knows it.
    asker: Arc<dyn Asker>,
}

/// Hands the answers of a peer to whoever asked. Taken on the task that received a block, so that it costs no task
/// of its own to wake.
#[derive(Debug)]
struct Answers {
    id: SourceId,
    /// Wants without an answer. As many as the scheduler lets be in flight.
    /// Lock order: the network may hold locks of its own when it answers, so that it is never called under this one.
    routes: Mutex<HashMap<ContentId, mpsc::UnboundedSender<Reply>>>,
}

impl Answers {
    fn routes(&self) -> MutexGuard<'_, HashMap<ContentId, mpsc::UnboundedSender<Reply>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asker for Answers {
    fn answer(&self, reply: BlockReply) {
        let to = self.routes().remove(&reply.id);
        if let Some(to) = to {
            let result = reply.result.map_err(|e| error(&e));
            // The download may have ended.
            let _ = to.send(Reply { source: self.id.clone(), id: reply.id, result });
        }
    }
}

impl BitswapSource {
    fn new(net: Net, peer: PeerId, chiral: bool) -> Arc<Self> {
        let answers = Arc::new(Answers { id: name(peer), routes: Mutex::default() });
        let asker = answers.clone();
        Arc::new(Self { net, peer, chiral: AtomicBool::new(chiral), answers, asker })
    }
}

impl Source for BitswapSource {
    fn id(&self) -> &SourceId {
        &self.answers.id
    }

    fn kind(&self) -> SourceKind {
        if self.chiral.load(Ordering::Relaxed) { SourceKind::Chiral } else { SourceKind::Bitswap }
    }

    fn request(&self, wants: &[Want], replies: &mpsc::UnboundedSender<Reply>) {
        let ids: Vec<ContentId> = wants.iter().map(|want| want.id).collect();
        self.answers.routes().extend(ids.iter().map(|id| (*id, replies.clone())));
        self.net.want_blocks(self.peer, &ids, &self.asker);
    }

    fn cancel(&self, ids: &[ContentId]) {
        let mut routes = self.answers.routes();
        ids.iter().for_each(|id| drop(routes.remove(id)));
        drop(routes);
        self.net.cancel(self.peer, ids, &self.asker);
    }

    fn has(&self, ids: Vec<ContentId>) -> BoxFuture<'static, Vec<bool>> {
        let (net, peer) = (self.net.clone(), self.peer);
        async move { net.want_haves(peer, &ids, HAVE_TIMEOUT).await }.boxed()
    }

    fn ban(&self, for_time: Duration) {
        self.net.ban(self.peer, for_time);
    }
}

impl Drop for BitswapSource {
    fn drop(&mut self) {
        let left: Vec<ContentId> = self.answers.routes().drain().map(|(id, _)| id).collect();
        if !left.is_empty() {
            self.net.cancel(self.peer, &left, &self.asker);
        }
    }
}

/// What the scheduler makes of a peer's answer.
fn error(error: &WantError) -> SourceError {
    match error {
        WantError::DontHave => Permanent::NotFound.into(),
        WantError::Disconnected => Transient::Reset.into(),
        WantError::Lied => Permanent::BadHash.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lie_bans_a_closed_connection_is_tried_again_and_not_having_is_final() {
        assert_eq!(error(&WantError::Lied), Permanent::BadHash.into());
        assert_eq!(error(&WantError::Disconnected), Transient::Reset.into());
        assert_eq!(error(&WantError::DontHave), Permanent::NotFound.into());
    }
}
