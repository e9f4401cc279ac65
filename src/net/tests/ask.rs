//! Nodes that ask each other about torrents, and strangers that ask and answer badly.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use libp2p::{Stream, Swarm, swarm::SwarmEvent};

use super::{raw_streams::Raw, *};
use crate::{content::InfoHash, net::ask::PROTOCOL};

const HASH: InfoHash = InfoHash([7; 20]);

/// Knows one torrent.
#[derive(Debug, Default)]
struct Book {
    asked: AtomicUsize,
    info: Vec<u8>,
}

impl TorrentBook for Book {
    fn answer(&self, question: &TorrentQuestion) -> TorrentAnswer {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if question.hash != HASH {
            return TorrentAnswer::default();
        }
        let said = |file: u32| Bytes::from(format!("said of {file}"));
        TorrentAnswer {
            known: true,
            info: question.describe.then(|| self.info.clone().into()),
            port: Some(6881),
            statements: question.files.clone().map(said).collect(),
        }
    }
}

fn question(files: std::ops::Range<u32>) -> TorrentQuestion {
    TorrentQuestion { hash: HASH, describe: true, files }
}

async fn ask(node: &Node, peer: PeerId, asked: &TorrentQuestion) -> Result<TorrentTold, AskError> {
    timeout(PATIENCE, node.net.ask_torrent(peer, asked)).await.unwrap()
}

/// A peer that speaks the protocol byte by byte, and where it listens.
async fn stranger() -> (Swarm<Raw>, Multiaddr, raw_streams::Ends) {
    let (raw, ends) = Raw::new(vec![PROTOCOL]);
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| raw)
        .unwrap()
        .build();
    swarm.listen_on(TCP.parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return (swarm, address, ends);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_asked_over_a_connection_of_either_side_and_each_hears_what_the_other_counted() {
    let (a, b) = (Node::start(&[TCP], |_| {}).await, Node::start(&[TCP], |_| {}).await);
    b.net.connect(a.address()).await.unwrap();
    let unready = ask(&b, a.id(), &question(0..1)).await;
    assert!(matches!(unready, Err(AskError::Refused(_))), "{unready:?}");
    a.net.answer_torrents(Arc::new(Book { info: b"d4:name1:ae".to_vec(), ..Book::default() }));
    let told = ask(&b, a.id(), &question(3..5)).await.unwrap();
    let TorrentAnswer { known, info, port, statements } = told.answer;
    assert_eq!((known, info.as_deref(), port), (true, Some(&b"d4:name1:ae"[..]), Some(6881)));
    assert_eq!(statements, ["said of 3", "said of 4"]);
    assert_eq!(told.from, Some([127, 0, 0, 1].into()));
    // At most as many as one may ask for.
    let told = ask(&b, a.id(), &question(0..100_000)).await.unwrap();
    assert_eq!(told.answer.statements.len(), MAX_FILES as usize);
    let other = TorrentQuestion { hash: InfoHash([8; 20]), ..question(0..1) };
    assert_eq!(ask(&b, a.id(), &other).await.unwrap().answer, TorrentAnswer::default());

    b.net.answer_torrents(Arc::new(Book::default()));
    assert!(ask(&a, b.id(), &question(0..1)).await.unwrap().answer.info.is_none());
    assert_eq!(a.net.claimed(&b.id()), Some(Dealings::default()));
    assert_eq!(b.net.claimed(&a.id()), Some(Dealings::default()));
    let nobody = ask(&a, PeerId::random(), &question(0..1)).await;
    assert_eq!(nobody, Err(AskError::NotConnected));
    a.stop().await;
    b.until("the peer that stopped is gone", <[PeerInfo]>::is_empty).await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_nothing_too_much_or_too_often_is_not_answered() {
    let node = Node::start(&[TCP], |_| {}).await;
    let book = Arc::new(Book { info: vec![1; MAX_INFO], ..Book::default() });
    node.net.answer_torrents(book.clone());
    let (mut swarm, _, (_taken, requests)) = stranger().await;
    swarm.dial(node.address()).unwrap();
    let running = tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    let open = async || -> Stream {
        let (to, stream) = oneshot::channel();
        requests.send(to).unwrap();
        timeout(PATIENCE, stream).await.unwrap().unwrap()
    };
    let say = async |bytes: &[u8]| -> Vec<u8> {
        let mut stream = open().await;
        // It may have been reset already.
        let _ = stream.write_all(bytes).await;
        let _ = stream.close().await;
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        answer
    };
    for bad in [&[][..], &[0], &[3, 0xff, 0xff, 0xff], &[0xff; 9], &[5, 0x0a, 3, 1, 2, 3], &[50]] {
        assert!(say(bad).await.is_empty(), "{bad:?}");
    }
    assert_eq!(book.asked.load(Ordering::SeqCst), 0);
    let good = [&[24, 0x0a, 20][..], &HASH.0, &[0x10, 1]].concat();
    // Those that never come to an end take all places; once they are gone there are some again.
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = open().await;
        // It may be one too many.
        let _ = stream.write_all(&good[..2]).await;
        let _ = stream.flush().await;
        held.push(stream);
    }
    drop(held);
    // After some descriptions the next is one too many for now; that the torrent is here is told all the same.
    let (mut long, mut last) = (0, Vec::new());
    while last.is_empty() {
        last = say(&good).await;
    }
    while last.len() > MAX_INFO {
        long += 1;
        last = say(&good).await;
    }
    assert!(long >= 2 && !last.is_empty() && last.len() < 100, "{long} {}", last.len());
    running.abort();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_is_an_error_and_not_more() {
    let node = Node::start(&[TCP], |_| {}).await;
    let (mut swarm, address, (mut taken, _requests)) = stranger().await;
    let peer = *swarm.local_peer_id();
    let answers: [&[u8]; 6] =
        [&[], &[0xff; 9], &[3, 0xff, 0xff, 0xff], &[200, 1, 1], &[3, 0x22, 5, 1], &[2, 0x10, 1]];
    let running = tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    node.net.dial(Provider { peer, addresses: vec![address] }).await.unwrap();
    for bytes in answers {
        let answering = async {
            let mut stream = taken.recv().await.unwrap();
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream.close().await.unwrap();
        };
        let asked = question(0..1);
        let (told, ()) = tokio::join!(ask(&node, peer, &asked), answering);
        assert!(
            matches!(told, Err(AskError::Malformed(_) | AskError::Refused(_))),
            "{bytes:?}: {told:?}"
        );
    }
    running.abort();
    node.stop().await;
}
