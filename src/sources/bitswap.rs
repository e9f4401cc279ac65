//! Bitswap peers as sources, and the search for them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::{broadcast, mpsc};

use super::{
    Again, Finder, Found, Hearsay, Permanent, Reply, Source, SourceError, SourceId, SourceKind,
    Transient, Want, per_root::PerRoot,
};
use crate::{
    content::ContentId,
    net::{Asker, BlockReply, Net, NetError, PeerEvent, PeerId, Provider, WantError},
    tasks::Tasks,
};

mod redial;
mod search;

use search::{Given, Network, Search};

/// Longest wait for the answer to "do you have": a silent peer counts as having nothing.
const HAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Finds Bitswap peers: those that are connected, and those that the DHT names.
#[derive(Clone, Debug)]
pub struct BitswapFinder {
    net: Net,
    hearsay: Hearsay,
    tasks: Tasks,
    running: PerRoot<Again>,
}

impl BitswapFinder {
    /// A finder over the peers of `net`. `hearsay` is shared with the finder of gateways.
    pub fn new(net: Net, hearsay: &Hearsay, tasks: &Tasks) -> Self {
        let (hearsay, tasks) = (hearsay.clone(), tasks.clone());
        Self { net, hearsay, tasks, running: PerRoot::default() }
    }
}

impl Finder for BitswapFinder {
    fn find(&self, root: &ContentId) -> mpsc::Receiver<Found> {
        let again = self.running.share(root, Again::default);
        let (mut search, receiver) =
            Search::new(self.net.clone(), *root, again, self.hearsay.of(root));
        search.start_with(self.hearsay.named(root));
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

    fn ask_again(&self, root: &ContentId) {
        if let Some(again) = self.running.get(root) {
            again.send_replace(());
        }
    }

    fn arrived(&self, block: &ContentId) {
        self.net.block_arrived(block);
    }
}

impl Network for Net {
    fn own(&self) -> PeerId {
        self.peer_id()
    }

    fn peers(&self) -> (Vec<(PeerId, bool)>, broadcast::Receiver<PeerEvent>) {
        self.bitswap_peers()
    }

    fn providers(&self, root: &ContentId) -> mpsc::Receiver<Result<Provider, NetError>> {
        self.find_providers(root)
    }

    fn dial(&self, provider: Provider) -> BoxFuture<'static, Result<(), NetError>> {
        let net = self.clone();
        async move { Self::dial(&net, provider).await }.boxed()
    }

    fn has(&self, peer: PeerId, root: ContentId) -> BoxFuture<'static, bool> {
        let net = self.clone();
        let ask = async move { net.want_haves(peer, &[root], HAVE_TIMEOUT).await };
        ask.map(|has| has.first() == Some(&true)).boxed()
    }

    fn source(&self, peer: PeerId, chiral: bool, delivered: &Arc<AtomicU64>) -> Given {
        let source = BitswapSource::new(self.clone(), peer, chiral, delivered.clone());
        Given { chiral: source.chiral.clone(), source }
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
    chiral: Arc<AtomicBool>,
    answers: Arc<Answers>,
    /// `answers`, as the network knows it.
    asker: Arc<dyn Asker>,
}

/// Hands the answers of a peer to whoever asked. Taken on the task that received a block, so that it costs no task
/// of its own to wake.
#[derive(Debug)]
struct Answers {
    id: SourceId,
    /// Blocks that all sources of the root gave, for the search.
    delivered: Arc<AtomicU64>,
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
            if reply.result.is_ok() {
                self.delivered.fetch_add(1, Ordering::Relaxed);
            }
            let result = reply.result.map_err(|e| error(&e));
            // The download may have ended.
            let _ = to.send(Reply { source: self.id.clone(), id: reply.id, result });
        }
    }
}

impl BitswapSource {
    fn new(net: Net, peer: PeerId, chiral: bool, delivered: Arc<AtomicU64>) -> Arc<Self> {
        let answers = Arc::new(Answers { id: name(peer), delivered, routes: Mutex::default() });
        let asker = answers.clone();
        Arc::new(Self { net, peer, chiral: Arc::new(AtomicBool::new(chiral)), answers, asker })
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
