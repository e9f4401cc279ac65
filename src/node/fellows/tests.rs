//! Nodes that find each other by a torrent, over a DHT of the local network: no link names a peer or a tracker.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{ffi::OsStr, fs, sync::Arc, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::timeout,
};

use super::*;
use crate::{
    content::ByteRange,
    download::Event,
    net::TorrentBook,
    node::{Multiaddr, Node, NodeOptions, tests::options},
    torrent::{
        TorrentFile,
        tests::{
            bytes_of,
            seeder::{Seeder, torrent_of},
        },
    },
};

const PATIENCE: Duration = Duration::from_secs(90);
const PIECE: u32 = 64 << 10;
const BIG: usize = 3_000_000;

async fn start(dir: &TempDir, hub: Option<&Node>, change: impl FnOnce(&mut NodeOptions)) -> Node {
    let peers: Vec<Multiaddr> = hub.map(|hub| hub.net().addresses()).unwrap_or_default();
    let mut options = options(dir.path(), peers, false);
    change(&mut options);
    Node::start(options, Tasks::new()).await.unwrap()
}

async fn stop(nodes: impl IntoIterator<Item = Node>) {
    for node in nodes {
        node.stop(PATIENCE).await.unwrap();
        assert!(node.tasks().alive().is_empty(), "{:?}", node.tasks());
    }
}

fn dirs<const N: usize>() -> [TempDir; N] {
    std::array::from_fn(|_| tempfile::tempdir().unwrap())
}

/// Waits until a torrent is announced.
async fn announced(node: &Node, hash: InfoHash, act: impl AsyncFnOnce()) {
    let (mut told, id) = (node.net().announced(), ContentId::torrent(hash));
    act().await;
    timeout(PATIENCE, async { while told.recv().await.unwrap() != id {} }).await.unwrap();
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let polling = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, polling).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn opened(node: &Node, link: &Magnet, file: u32) -> TorrentFile {
    node.torrents().learn(link);
    timeout(PATIENCE, node.torrents().metainfo(link.hash)).await.unwrap().unwrap();
    node.torrents().file(link.hash, file).await.unwrap()
}

async fn read(file: &TorrentFile, range: ByteRange) -> Vec<u8> {
    let mut all = Vec::new();
    while (all.len() as u64) < range.len() {
        let at = range.start + all.len() as u64;
        let next = ByteRange::new(at, (at + (128 << 10)).min(range.end));
        all.extend_from_slice(&timeout(PATIENCE, file.read(1, next)).await.unwrap().unwrap());
    }
    file.close_reader(1);
    all
}

async fn import(node: &Node, name: &str, bytes: &[u8]) -> ContentId {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join(name);
    fs::write(&path, bytes).unwrap();
    node.uploads().import(&path, OsStr::new(name)).await.unwrap().last().unwrap().0
}

/// Bytes that came from a peer over Bitswap.
fn received(node: &Node, from: &Node) -> u64 {
    let peers = node.net().peers();
    peers.iter().find(|peer| peer.peer == from.net().peer_id()).map_or(0, |peer| peer.received)
}

/// Waits until a peer is told to owe something.
async fn owes(events: &mut broadcast::Receiver<Event>) -> (String, u64) {
    let next = async {
        loop {
            match events.recv().await {
                Ok(Event::PaymentRequired { peer, bytes }) => return (peer, bytes),
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => panic!("the node has ended"),
            }
        }
    };
    timeout(PATIENCE, next).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bare_info_hash_is_described_and_read_by_way_of_the_dht_alone() {
    let [hub, there, here] = dirs();
    let hub = start(&hub, None, |_| {}).await;
    let seeder = start(&there, Some(&hub), |options| options.credit = 1_000_000).await;
    let mut events = seeder.events();
    let film = bytes_of::noise(BIG, 3);
    let root = import(&seeder, "film.mkv", &film).await;
    let hash = seeder.seed_content(root, "film.mkv".into(), |_, _| {}).await.unwrap().hash;
    until("it is queued", || seeder.net().is_queued(&ContentId::torrent(hash))).await;

    // There is nobody to be asked when it begins.
    let reader = start(&here, None, |_| {}).await;
    let connected = async {
        until("it is looked for", || reader.torrents().address().is_some()).await;
        reader.net().connect(hub.net().addresses()[0].clone()).await.unwrap();
    };
    let link = Magnet::of(hash);
    let (file, ()) = tokio::join!(opened(&reader, &link, 0), connected);
    assert!(read(&file, ByteRange::new(0, BIG as u64)).await == film);
    assert_eq!(reader.content_of(hash, 0), Some(root));
    assert!(received(&reader, &seeder) > 0, "what has two names comes over Bitswap");
    assert!(reader.net().claimed(&seeder.net().peer_id()).is_some());
    let (peer, bytes) = owes(&mut events).await;
    assert_eq!(peer, reader.net().peer_id().to_string());
    assert!(bytes >= 1_000_000 && seeder.account(reader.net().peer_id()).given >= bytes);
    // Whoever has read it is a fellow to others; whoever gives it up is none.
    let own = ContentId::torrent(hash);
    until("the reader announces it", || reader.net().is_queued(&own)).await;
    reader.torrents().pause(hash).await.unwrap();
    until("a pause ends that", || !reader.net().is_queued(&own)).await;
    let asked = TorrentQuestion { hash, describe: true, files: 0..1 };
    let told = seeder.net().ask_torrent(reader.net().peer_id(), &asked).await.unwrap();
    assert_eq!(told.answer, TorrentAnswer::default());
    reader.torrents().resume(hash).await.unwrap();
    until("it goes on", || reader.net().is_queued(&own)).await;
    reader.remove_torrent(hash).await.unwrap();
    until("its removal ends it", || !reader.net().is_queued(&own)).await;
    stop([reader, seeder, hub]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fellow_that_tells_of_no_content_is_a_peer_of_the_swarm() {
    let [hub, there, one, here] = dirs();
    let hub = start(&hub, None, |_| {}).await;
    let film = bytes_of::noise(BIG, 4);
    let seeder = Seeder::start(there.path(), &[("film.mkv", &film)], PIECE).await;
    let (hash, part) = (seeder.metainfo.hash, ByteRange::new(0, 500_000));
    // What is not served gets no id, also once all of it is here.
    let one = start(&one, Some(&hub), |options| options.net.serve_cached = false).await;
    announced(&one, hash, async || {
        let file = opened(&one, &seeder.magnet(), 0).await;
        assert!(read(&file, part).await == film[..500_000]);
        one.torrents().seed(hash).await.unwrap();
    })
    .await;
    seeder.session.stop().await;

    let reader = start(&here, Some(&hub), |_| {}).await;
    let file = opened(&reader, &Magnet::of(hash), 0).await;
    assert!(read(&file, part).await == film[..500_000]);
    assert_eq!(received(&reader, &one), 0);
    let given = || one.torrents().traffic_by_peer().iter().map(|peer| peer.sent).sum::<u64>();
    until("what was given is counted", || given() >= 500_000).await;
    stop([reader, one, hub]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_read_is_nobodys_business_where_that_is_not_served_and_a_private_torrent_never() {
    let [hub, there, here, other, shy_one] = dirs();
    let hub = start(&hub, None, |_| {}).await;
    let film = bytes_of::noise(200_000, 5);
    let seeder = Seeder::start(there.path(), &[("film.mkv", &film)], PIECE).await;
    let hash = seeder.metainfo.hash;
    let node = start(&here, Some(&hub), |options| options.net.serve_cached = false).await;
    let file = opened(&node, &seeder.magnet(), 0).await;
    assert!(read(&file, ByteRange::new(0, 200_000)).await == film);
    assert!(!node.torrents().is_for_others(hash, true));
    assert!(node.torrents().is_for_others(hash, false));
    // What the user gives is another matter.
    node.torrents().seed(hash).await.unwrap();
    assert!(node.torrents().is_for_others(hash, true));
    until("it is queued", || node.net().is_queued(&ContentId::torrent(hash))).await;

    let text = torrent_of("secret", &[("film.mkv", &film)], PIECE);
    let end = text.len() - 2;
    let text = [&text[..end], b"7:privatei1e", &text[end..]].concat();
    let metainfo = node.torrents().keep(&text).unwrap();
    assert!(metainfo.private);
    let private = start(&other, Some(&hub), |_| {}).await;
    private.torrents().keep(&text).unwrap();
    private.torrents().seed(metainfo.hash).await.unwrap();
    assert!(!private.torrents().is_for_others(metainfo.hash, false));
    // Whoever names it as the content of a file is not heard.
    let told = said(&node, metainfo.hash, ContentId::raw(crate::content::sha2_256(b"x")), 200_000);
    let [dir] = dirs();
    let false_one = liar(&dir, &hub, metainfo.hash, told).await;
    let fellows = Fellows::new(
        private.net(),
        private.torrents(),
        &private.inner.twins,
        &Hearsay::default(),
        private.tasks(),
    );
    fellows.feeds(&metainfo, &Magnet::of(metainfo.hash));
    assert!(fellows.sought().is_empty());
    let asked = TorrentQuestion { hash: metainfo.hash, describe: false, files: 0..1 };
    let named =
        Provider { peer: false_one.net().peer_id(), addresses: false_one.net().addresses() };
    private.net().dial(named.clone()).await.unwrap();
    let told = private.net().ask_torrent(named.peer, &asked).await.unwrap();
    assert!(!fellows.take(&asked, &named, told.answer).await);
    assert_eq!(private.content_of(metainfo.hash, 0), None);
    drop(fellows);
    stop([false_one]).await;
    // Behind a proxy nothing else is to tell what somebody has or reads.
    let proxy = Some("socks5://127.0.0.1:9".to_owned());
    let shy = start(&shy_one, Some(&hub), |options| options.torrent.proxy = proxy).await;
    let root = import(&shy, "film.mkv", &film).await;
    let own = shy.seed_content(root, "film.mkv".into(), |_, _| {}).await.unwrap().hash;
    assert!(!shy.torrents().is_for_others(own, false) && !shy.torrents().seeks_fellows());
    seeder.session.stop().await;
    stop([shy, private, node, hub]).await;
}

/// Says what it is told to.
#[derive(Debug)]
struct Liar(TorrentAnswer);

impl TorrentBook for Liar {
    fn answer(&self, _: &TorrentQuestion) -> TorrentAnswer {
        self.0.clone()
    }
}

/// A node that says of a torrent what is not true.
async fn liar(dir: &TempDir, hub: &Node, hash: InfoHash, answer: TorrentAnswer) -> Node {
    let node = start(dir, Some(hub), |_| {}).await;
    node.net().answer_torrents(Arc::new(Liar(TorrentAnswer { known: true, ..answer })));
    announced(&node, hash, async || node.net().announce(&ContentId::torrent(hash)).unwrap()).await;
    node
}

fn said(by: &Node, hash: InfoHash, id: ContentId, size: usize) -> TorrentAnswer {
    let said = Statement { hash, file: 0, size: size as u64, id };
    let statements = vec![said.sign(by.net()).unwrap().into()];
    TorrentAnswer { known: true, statements, ..TorrentAnswer::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_describes_another_torrent_is_refused_and_the_next_one_is_believed() {
    let [hub, there, false_one, here] = dirs();
    let hub = start(&hub, None, |_| {}).await;
    let film = bytes_of::noise(BIG, 6);
    let seeder = start(&there, Some(&hub), |_| {}).await;
    let root = import(&seeder, "film.mkv", &film).await;
    let hash = seeder.seed_content(root, "film.mkv".into(), |_, _| {}).await.unwrap().hash;
    let other = torrent_of("other", &[("a", b"b")], PIECE);
    let at = other.windows(6).position(|at| at == b"4:info").unwrap() + 6;
    let info = Some(other[at..other.len() - 1].to_vec().into());
    let answer = TorrentAnswer { info, ..TorrentAnswer::default() };
    let false_one = liar(&false_one, &hub, hash, answer).await;

    let reader = start(&here, Some(&hub), |_| {}).await;
    let file = opened(&reader, &Magnet::of(hash), 0).await;
    assert!(read(&file, ByteRange::new(0, BIG as u64)).await == film);
    assert_eq!(reader.torrents().known_torrents(), [hash]);
    stop([reader, false_one, seeder, hub]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_wrong_word_on_a_file_costs_no_wrong_byte_and_is_forgotten() {
    let [hub, there, false_one, here] = dirs();
    let hub = start(&hub, None, |_| {}).await;
    let (film, lie) = (bytes_of::noise(BIG, 7), bytes_of::noise(BIG, 8));
    let seeder = Seeder::start(there.path(), &[("film.mkv", &film)], PIECE).await;
    let hash = seeder.metainfo.hash;
    let false_one = liar(&false_one, &hub, hash, TorrentAnswer::default()).await;
    // It gives other bytes of the same length by the id that it names.
    let id = import(&false_one, "lie", &lie).await;
    let answer = said(&false_one, hash, id, BIG);
    false_one.net().answer_torrents(Arc::new(Liar(answer.clone())));

    let reader = start(&here, Some(&hub), |_| {}).await;
    reader.torrents().keep(&torrent_of("torrent", &[("film.mkv", &film)], PIECE)).unwrap();
    let file = opened(&reader, &Magnet::of(hash), 0).await;
    let whole = ByteRange::new(0, BIG as u64);
    let reading = async {
        until("the lie is heard", || reader.content_of(hash, 0) == Some(id)).await;
        until("the lie is forgotten", || reader.content_of(hash, 0).is_none()).await;
        reader.torrents().meet(hash, &[seeder.address()]);
    };
    let (got, ()) = tokio::join!(read(&file, whole), reading);
    assert!(got == film);
    // It is not believed again, also not of something else.
    let again = &answer.statements[0];
    assert_eq!(reader.learn_twin(again).unwrap(), None);
    let other = said(&false_one, hash, import(&false_one, "other", b"other").await, BIG);
    assert_eq!(reader.learn_twin(&other.statements[0]).unwrap(), None);
    seeder.session.stop().await;
    stop([reader, false_one, hub]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_word_on_somebody_elses_content_harms_neither_of_both() {
    let [hub, there, here] = dirs();
    let (hub, film) = (start(&hub, None, |_| {}).await, bytes_of::noise(BIG, 9));
    let seeder = Seeder::start(there.path(), &[("film.mkv", &film)], PIECE).await;
    let hash = seeder.metainfo.hash;
    let book = bytes_of::noise(400_000, 10);
    let id = import(&hub, "book", &book).await;
    let reader = start(&here, Some(&hub), |_| {}).await;
    let lie = said(&hub, hash, id, BIG);
    assert!(reader.learn_twin(&lie.statements[0]).unwrap().is_some());
    // Each of both is read while the lie is believed, and after that.
    let content = timeout(PATIENCE, reader.engine().file(&id, &id)).await.unwrap().unwrap();
    let all = ByteRange::new(0, 400_000);
    let reading = async || {
        let read = content.read(crate::node::ReaderId(1), ByteRange::new(0, 100_000)).await;
        assert!(read.unwrap() == book[..100_000]);
    };
    timeout(PATIENCE, reading()).await.unwrap();
    let file = opened(&reader, &seeder.magnet(), 0).await;
    assert!(read(&file, ByteRange::new(0, BIG as u64)).await == film);
    let rest = content.read(crate::node::ReaderId(1), all);
    assert!(timeout(PATIENCE, rest).await.unwrap().unwrap() == book);
    let of_film = || reader.content_of(hash, 0).is_some_and(|found| found != id);
    until("what was found here takes its place", of_film).await;
    seeder.session.stop().await;
    stop([reader, hub]).await;
}

#[test]
fn an_answer_is_learnt_only_as_far_as_it_was_asked_for() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let [dir] = dirs();
        let node = start(&dir, None, |_| {}).await;
        let text = torrent_of("torrent", &[("a", b"x"), ("b", b"y")], PIECE);
        let metainfo = Metainfo::parse(&text).unwrap();
        let (hash, other) = (metainfo.hash, InfoHash([2; 20]));
        let id = ContentId::raw(crate::content::sha2_256(b"x"));
        let sign = |hash, file, size| {
            Bytes::from(Statement { hash, file, size, id }.sign(node.net()).unwrap())
        };
        let twins = &node.inner.twins;
        // Of another torrent, of a file that was not asked for or is not there, of another length, of nothing.
        let told =
            [sign(other, 0, 1), sign(hash, 1, 1), sign(hash, 9, 1), sign(hash, 0, 2), Bytes::new()];
        assert!(learn(twins, &metainfo, &(0..1), &told).is_empty());
        assert!(learn(twins, &metainfo, &(9..10), &told).is_empty());
        assert_eq!(learn(twins, &metainfo, &(0..1), &[sign(hash, 0, 1)]), [id]);
        // One who says the same has it, too.
        assert_eq!(learn(twins, &metainfo, &(0..1), &[sign(hash, 0, 1)]), [id]);
        assert!(twins.get((hash, 1)).is_none() && twins.get((other, 0)).is_none());
        stop([node]).await;
    });
}

#[tokio::test(start_paused = true)]
async fn the_dht_is_asked_now_and_then_and_fellows_about_each_file_once() {
    let (hash, mut sought) = (InfoHash([1; 20]), Sought::default());
    let read = |files: &[u32]| files.iter().copied().collect::<BTreeSet<u32>>();
    let round = sought.next_round(hash, &read(&[])).unwrap();
    assert_eq!((round.look_up, round.batches), (true, vec![0]));
    assert!(sought.next_round(hash, &read(&[900])).is_none(), "one at a time");
    sought.running = false;
    sought.looked_up(Named::Somebody);
    assert!(sought.next_round(hash, &read(&[900])).is_none(), "nobody to be asked");
    let peer = PeerId::random();
    sought.peers.insert(peer);
    assert!(sought.next_round(hash, &read(&[3, 255])).is_none(), "asked already");
    let round = sought.next_round(hash, &read(&[3, 256, 900])).unwrap();
    assert_eq!((round.look_up, round.batches, round.peers), (false, vec![256, 768], vec![peer]));
    sought.running = false;
    tokio::time::advance(LOOK_AGAIN).await;
    let round = sought.next_round(hash, &read(&[900])).unwrap();
    assert_eq!((round.look_up, round.batches), (true, vec![768]));
    for (named, seconds) in [
        (Named::Nobody, 10),
        (Named::Nobody, 20),
        (Named::Nobody, 40),
        (Named::Nobody, 60),
        (Named::NotAsked, 2),
        (Named::Nobody, 10),
        (Named::Somebody, 60),
    ] {
        sought.looked_up(named);
        assert_eq!(sought.next, Some(Instant::now() + Duration::from_secs(seconds)), "{named:?}");
    }
    // Doors are opened at once where something is lacking, else after a while.
    sought.doors.push(([1, 1, 1, 1], 1).into());
    assert!(sought.open_doors(false).is_empty());
    tokio::time::advance(DOORS_OPEN).await;
    assert_eq!(sought.open_doors(false).len(), 1);
    sought.doors.push(([1, 1, 1, 1], 1).into());
    assert_eq!(sought.open_doors(true).len(), 1);
}
