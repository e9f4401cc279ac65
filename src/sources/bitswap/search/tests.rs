#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Mutex;

use super::*;
use crate::{
    content::Block,
    sources::{Hearsay, Reply, SourceId, SourceKind, Want},
};

/// A network that a test plays.
#[derive(Clone)]
struct Played(Arc<Stage>);

struct Stage {
    own: PeerId,
    began: Instant,
    connected: Mutex<Vec<(PeerId, bool)>>,
    changes: broadcast::Sender<PeerEvent>,
    /// What the DHT answers.
    named: Mutex<Vec<PeerId>>,
    reachable: AtomicBool,
    lookups: Mutex<Vec<u64>>,
    dials: Mutex<Vec<u64>>,
    probes: Mutex<Vec<u64>>,
    delivered: Mutex<Option<Arc<AtomicU64>>>,
}

impl Played {
    fn new() -> Self {
        Self(Arc::new(Stage {
            own: PeerId::random(),
            began: Instant::now(),
            connected: Mutex::default(),
            changes: broadcast::Sender::new(100),
            named: Mutex::default(),
            reachable: AtomicBool::new(true),
            lookups: Mutex::default(),
            dials: Mutex::default(),
            probes: Mutex::default(),
            delivered: Mutex::default(),
        }))
    }

    fn seconds(&self) -> u64 {
        self.0.began.elapsed().as_secs()
    }

    fn connect(&self, peer: PeerId) {
        self.0.connected.lock().unwrap().push((peer, false));
        let _ = self.0.changes.send(PeerEvent::Up { peer, chiral: false });
    }

    fn disconnect(&self, peer: PeerId) {
        self.0.connected.lock().unwrap().retain(|(known, _)| *known != peer);
        let _ = self.0.changes.send(PeerEvent::Down(peer));
    }

    /// Starts a search; it ends with the receiver.
    fn search(&self) -> (Arc<Again>, mpsc::Receiver<Found>) {
        let again: Arc<Again> = Arc::default();
        let root = *Block::raw(vec![1].into()).cid();
        let (search, found) =
            Search::new(self.clone(), root, again.clone(), Hearsay::default().of(&root));
        tokio::spawn(async move {
            let _ = search.run().await;
        });
        (again, found)
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_named_before_is_dialled_and_not_probed() {
    let net = Played::new();
    net.0.reachable.store(false, Ordering::Relaxed);
    let (far, near) = (PeerId::random(), PeerId::random());
    // As many are connected as are asked without a probe.
    (0..ASKED_AT_ONCE).for_each(|_| net.connect(PeerId::random()));
    net.connect(near);
    let root = *Block::raw(vec![1].into()).cid();
    let hearsay = Hearsay::default();
    let (mut search, mut found) = Search::new(net.clone(), root, Arc::default(), hearsay.of(&root));
    let known = [far, near, net.0.own].map(|peer| Provider { peer, addresses: Vec::new() });
    search.start_with(known.to_vec());
    let mut given = Vec::new();
    tokio::spawn(async move {
        let _ = search.run().await;
    });
    while given.len() <= ASKED_AT_ONCE {
        if let Some(Found::Source(source)) = found.recv().await {
            given.push(source.id().clone());
        }
    }
    assert!(given.contains(&name(near)), "{given:?}");
    assert!(net.0.probes.lock().unwrap().is_empty());
    while net.0.dials.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

impl Network for Played {
    fn own(&self) -> PeerId {
        self.0.own
    }

    fn peers(&self) -> (Vec<(PeerId, bool)>, broadcast::Receiver<PeerEvent>) {
        (self.0.connected.lock().unwrap().clone(), self.0.changes.subscribe())
    }

    fn providers(&self, root: &ContentId) -> mpsc::Receiver<Result<Provider, NetError>> {
        self.0.lookups.lock().unwrap().push(self.seconds());
        let (to, found) = mpsc::channel(100);
        let named = self.0.named.lock().unwrap().clone();
        for peer in &named {
            to.try_send(Ok(Provider { peer: *peer, addresses: Vec::new() })).unwrap();
        }
        if !self.0.reachable.load(Ordering::Relaxed) {
            to.try_send(Err(NetError::Bootstrap)).unwrap();
        } else if named.is_empty() {
            to.try_send(Err(NetError::NoProviders(*root))).unwrap();
        }
        found
    }

    fn dial(&self, _: Provider) -> BoxFuture<'static, Result<(), NetError>> {
        self.0.dials.lock().unwrap().push(self.seconds());
        async { Err(NetError::Closed) }.boxed()
    }

    fn has(&self, _: PeerId, _: ContentId) -> BoxFuture<'static, bool> {
        self.0.probes.lock().unwrap().push(self.seconds());
        async { false }.boxed()
    }

    fn source(&self, peer: PeerId, chiral: bool, delivered: &Arc<AtomicU64>) -> Given {
        *self.0.delivered.lock().unwrap() = Some(delivered.clone());
        Given { source: Arc::new(Silent(name(peer))), chiral: Arc::new(AtomicBool::new(chiral)) }
    }
}

/// A source that is only named.
#[derive(Debug)]
struct Silent(SourceId);

impl Source for Silent {
    fn id(&self) -> &SourceId {
        &self.0
    }
    fn kind(&self) -> SourceKind {
        SourceKind::Bitswap
    }
    fn request(&self, _: &[Want], _: &mpsc::UnboundedSender<Reply>) {}
    fn cancel(&self, _: &[ContentId]) {}
    fn has(&self, _: Vec<ContentId>) -> BoxFuture<'static, Vec<bool>> {
        async { Vec::new() }.boxed()
    }
    fn ban(&self, _: Duration) {}
}

/// Names of the sources that came and went until nothing happened for `quiet`.
async fn news(found: &mut mpsc::Receiver<Found>, quiet: Duration) -> Vec<String> {
    let mut news = Vec::new();
    while let Ok(Some(one)) = tokio::time::timeout(quiet, found.recv()).await {
        match one {
            Found::Source(source) => news.push(format!("+{}", source.id())),
            Found::Gone(id) => news.push(format!("-{id}")),
            Found::Searched => {}
        }
    }
    news
}

const MOMENT: Duration = Duration::from_millis(100);

#[tokio::test(start_paused = true)]
async fn a_provider_that_cannot_be_reached_or_goes_away_is_dialled_again_and_needs_no_probe() {
    let net = Played::new();
    let provider = PeerId::random();
    net.0.named.lock().unwrap().push(provider);
    // As many others as are asked without a probe.
    (0..ASKED_AT_ONCE).for_each(|_| net.connect(PeerId::random()));
    let (_again, mut found) = net.search();
    assert_eq!(news(&mut found, MOMENT).await.len(), ASKED_AT_ONCE);
    tokio::time::sleep(Duration::from_millis(7500)).await;
    assert_eq!(*net.0.dials.lock().unwrap(), [0, 1, 3, 7]);
    net.connect(provider);
    assert_eq!(news(&mut found, MOMENT).await, [format!("+{provider}")]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(net.0.dials.lock().unwrap().len(), 4, "it is connected");
    net.disconnect(provider);
    assert_eq!(news(&mut found, MOMENT).await, [format!("-{provider}")]);
    tokio::time::sleep(Duration::from_secs(17)).await;
    assert_eq!(net.0.dials.lock().unwrap().len(), 5);
    net.connect(provider);
    assert_eq!(news(&mut found, MOMENT).await, [format!("+{provider}")]);
    assert!(net.0.probes.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_search_that_had_nobody_to_ask_is_repeated_soon_and_one_that_had_later() {
    let net = Played::new();
    net.0.reachable.store(false, Ordering::Relaxed);
    let (again, mut found) = net.search();
    news(&mut found, Duration::from_millis(1500)).await;
    tokio::time::sleep(Duration::from_millis(2000)).await;
    net.0.reachable.store(true, Ordering::Relaxed);
    news(&mut found, Duration::from_secs(100)).await;
    assert_eq!(net.0.lookups.lock().unwrap()[..4], [0, 2, 4, 64]);
    let before = net.0.lookups.lock().unwrap().len();
    // Somebody waits.
    again.send_replace(());
    news(&mut found, MOMENT).await;
    assert_eq!(net.0.lookups.lock().unwrap().len(), before + 1);
    drop(found);
}

#[tokio::test(start_paused = true)]
async fn peers_beyond_the_first_are_asked_every_ten_seconds_while_nothing_comes() {
    let net = Played::new();
    (0..ASKED_AT_ONCE + 2).for_each(|_| net.connect(PeerId::random()));
    let (_again, mut found) = net.search();
    news(&mut found, Duration::from_secs(25)).await;
    assert_eq!(*net.0.probes.lock().unwrap(), [0, 0, 10, 10, 20, 20]);
    let delivered = net.0.delivered.lock().unwrap().clone().unwrap();
    for _ in 0..3 {
        delivered.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(net.0.probes.lock().unwrap().len(), 6, "blocks come");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(net.0.probes.lock().unwrap().len() >= 8);
}
