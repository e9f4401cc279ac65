//! Peers that lie, fall silent, send garbage or flood: no wrong byte, no hang, bounded memory, and those that
//! break the rules are refused from then on.

mod stranger;

use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use chiral::content::{Block, ContentId, ImportParams, Metadata, import_bytes, sha2_256};

use self::stranger::{Entry, Message, Stranger, Wire, receive, send, write};
use crate::harness::{Daemon, Setup, eventually, noise};

/// More memory than a daemon that reads from several peers at a time may have: windows, frames under way and wants
/// of one peer are bounded, and without bounds each of these floods takes several times as much.
const MEMORY: u64 = 200 << 20;

/// The blocks of a file, by the bytes of their ids.
type Blocks = HashMap<Bytes, Block>;

fn blocks_of(content: &[u8]) -> (ContentId, Blocks) {
    let (file, leaves) =
        import_bytes(ImportParams::DEFAULT, &Bytes::copy_from_slice(content), Metadata::default());
    let blocks = file.nodes.into_iter().chain(leaves);
    (file.root, blocks.map(|block| (block.cid().to_bytes().into(), block)).collect())
}

/// A daemon with strangers and an honest peer that has `content`.
struct Scene {
    daemon: Daemon,
    honest: Daemon,
    cid: String,
}

impl Scene {
    fn new(strangers: &[&Stranger], content: &[u8]) -> Self {
        let honest = Daemon::start(&Setup::default());
        fs::write(honest.path("upload/file"), content).unwrap();
        let cid = honest.cid("upload/file");
        let addresses = strangers.iter().map(|stranger| stranger.address.clone());
        let args = addresses.flat_map(|address| ["--peer".to_owned(), address]).collect();
        let daemon = Daemon::start_beside(&honest, &Setup { args, ..Setup::default() });
        Self { daemon, honest, cid }
    }

    /// What the daemon reads, and the longest that one read took.
    fn read(&self) -> (Vec<u8>, Duration) {
        let mut file = fs::File::open(self.daemon.path(&self.cid)).unwrap();
        let (mut content, mut stall) = (Vec::new(), Duration::ZERO);
        let mut buffer = vec![0; 128 << 10];
        loop {
            let start = Instant::now();
            let len = file.read(&mut buffer).unwrap();
            stall = stall.max(start.elapsed());
            if len == 0 {
                return (content, stall);
            }
            content.extend_from_slice(&buffer[..len]);
        }
    }

    /// The connection ends, and every new one is refused.
    fn is_banned(&self, stranger: &Stranger) {
        eventually("the ban", || {
            let log = self.daemon.log();
            log.lines()
                .any(|line| line.contains("misbehaves") && line.contains(&stranger.id.to_string()))
                .then_some(())
        });
        eventually("the end of the connection", || (!stranger.is_connected()).then_some(()));
        let again = self.daemon.chiral(&["connect", &stranger.address]);
        assert!(!again.status.success(), "a banned peer is connected again");
        assert!(self.daemon.peers().iter().all(|peer| peer["peer_id"] != stranger.id.to_string()));
    }
}

/// Most memory that the daemon ever had, in bytes.
fn peak_memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Answers every want with what `answer` makes of it, on one stream.
async fn answer(mut wire: Wire, mut answer: impl FnMut(&Entry) -> Option<Message>) {
    wire.connected().await;
    let mut replies = wire.open().await.unwrap();
    loop {
        let mut wants = wire.accept().await;
        while let Some(message) = receive(&mut wants).await {
            let entries = message.wantlist.unwrap_or_default().entries;
            for entry in entries.iter().filter(|entry| !entry.cancel) {
                let Some(message) = answer(entry) else { continue };
                if !send(&mut replies, &message).await {
                    return;
                }
            }
        }
    }
}

/// Says that it has everything, gives the first blocks as they are and the others as `then` says.
fn provider(
    blocks: &Blocks,
    honest: usize,
    then: fn(&Block) -> Option<Message>,
) -> (impl FnMut(&Entry) -> Option<Message> + use<>, Arc<AtomicUsize>) {
    let (blocks, count) = (blocks.clone(), Arc::new(AtomicUsize::new(0)));
    let asked = count.clone();
    let answer = move |entry: &Entry| {
        if entry.want_type == 1 {
            return Some(Message::have(entry.cid.clone()));
        }
        let block = blocks.get(&entry.cid)?;
        if asked.fetch_add(1, Ordering::Relaxed) < honest {
            return Some(Message::block(block, block.data().clone()));
        }
        then(block)
    };
    (answer, count)
}

/// As long as the block, and not the block.
fn lie(block: &Block) -> Option<Message> {
    let mut data = block.data().to_vec();
    data[0] ^= 1;
    Some(Message::block(block, data.into()))
}

#[test]
fn wrong_bytes_are_never_read_and_who_sent_them_is_refused() {
    let content = noise(40_000_000, 21);
    let (_, blocks) = blocks_of(&content);
    // One lies from the first block, the other once it is trusted.
    let (answer_first, _) = provider(&blocks, 0, lie);
    let (answer_later, _) = provider(&blocks, 8, lie);
    let liar = Stranger::start(move |wire| answer(wire, answer_first));
    let traitor = Stranger::start(move |wire| answer(wire, answer_later));
    let scene = Scene::new(&[&liar, &traitor], &content);
    eventually("the connections", || (scene.daemon.peers().len() == 3).then_some(()));
    let (read, stall) = scene.read();
    assert!(read == content);
    eprintln!("longest read beside liars: {stall:?}");
    scene.is_banned(&liar);
    scene.is_banned(&traitor);
    assert!(scene.daemon.chiral(&["store", "verify"]).status.success());
}

#[test]
fn a_peer_that_falls_silent_is_replaced_while_the_file_is_read() {
    let content = noise(60_000_000, 22);
    let (_, blocks) = blocks_of(&content);
    let (answer_none, none) = provider(&blocks, 0, |_| None);
    let (answer_some, some) = provider(&blocks, 40, |_| None);
    let silent = Stranger::start(move |wire| answer(wire, answer_none));
    let dying = Stranger::start(move |wire| answer(wire, answer_some));
    let scene = Scene::new(&[&silent, &dying], &content);
    eventually("the connections", || (scene.daemon.peers().len() == 3).then_some(()));
    let (read, stall) = scene.read();
    assert!(read == content);
    let asked = [&silent, &dying].map(Stranger::is_connected);
    eprintln!(
        "longest read beside silent peers: {stall:?}; they were asked for {} and {} blocks",
        none.load(Ordering::Relaxed),
        some.load(Ordering::Relaxed)
    );
    // Silence breaks no rule.
    assert_eq!(asked, [true, true]);
}

#[test]
fn the_only_source_falls_silent_and_the_next_one_goes_on() {
    let content = noise(60_000_000, 23);
    let (root, blocks) = blocks_of(&content);
    let (answer_some, asked) = provider(&blocks, 60, |_| None);
    let dying = Stranger::start(move |wire| answer(wire, answer_some));
    let honest = Daemon::start(&Setup::default());
    fs::write(honest.path("upload/file"), &content).unwrap();
    assert_eq!(honest.cid("upload/file"), root.to_string());
    let daemon = Daemon::start(&Setup {
        args: vec!["--peer".into(), dying.address.clone()],
        ..Setup::default()
    });
    eventually("the connection", || (!daemon.peers().is_empty()).then_some(()));
    let reader = {
        let path = daemon.path(&root.to_string());
        std::thread::spawn(move || fs::read(path).unwrap())
    };
    eventually("the silence", || (asked.load(Ordering::Relaxed) > 60).then_some(()));
    let start = Instant::now();
    assert!(daemon.chiral(&["connect", &honest.addresses()[0]]).status.success());
    assert!(reader.join().unwrap() == content);
    eprintln!("from the second source's connection to the end: {:?}", start.elapsed());
}

#[test]
fn garbage_is_refused_and_so_is_who_sends_it() {
    let content = noise(1_000_000, 24);
    let garbage: [Vec<u8>; 3] = [
        // A frame that is no message.
        [vec![0xE8, 0x07], noise(1000, 25)].concat(),
        // A frame of 4 GiB.
        vec![0xFF, 0xFF, 0xFF, 0xFF, 0x0F],
        // A wantlist whose entry is no id: field 1 { field 1 { field 1: 4 bytes } }.
        vec![10, 10, 8, 10, 6, 10, 4, 0xFF, 0xFF, 0xFF, 0xFF],
    ];
    let strangers = garbage.map(|bytes| {
        Stranger::start(async move |mut wire: Wire| {
            wire.connected().await;
            let mut stream = wire.open().await.unwrap();
            write(&mut stream, &bytes).await;
            // It waits for an answer that does not come.
            receive(&mut stream).await;
        })
    });
    let scene = Scene::new(&strangers.each_ref(), &content);
    for stranger in &strangers {
        scene.is_banned(stranger);
    }
    assert!(scene.read().0 == content);
}

#[test]
fn ten_thousand_streams_cost_little_and_harm_nobody() {
    let content = noise(20_000_000, 26);
    let (opened, held) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (opened.clone(), held.clone());
    let flood = Stranger::start(async move |mut wire: Wire| {
        wire.connected().await;
        // As many at a time as its own multiplexer bears; the oldest gives way.
        let mut streams = VecDeque::new();
        for _ in 0..10 {
            let requests: Vec<_> = (0..1_000).map(|_| wire.open()).collect();
            for request in requests {
                let Ok(mut stream) = request.await else { continue };
                // The beginning of a frame that never ends.
                if write(&mut stream, &[0x80, 0x80, 0x04, 1]).await {
                    counters.1.fetch_add(1, Ordering::Relaxed);
                }
                counters.0.fetch_add(1, Ordering::Relaxed);
                streams.push_back(stream);
                if streams.len() > 2_000 {
                    streams.pop_front();
                }
            }
        }
        counters.0.store(10_000, Ordering::Relaxed);
        std::future::pending::<()>().await;
    });
    let scene = Scene::new(&[&flood], &content);
    assert!(scene.read().0 == content);
    eventually("the end of the flood", || (opened.load(Ordering::Relaxed) >= 10_000).then_some(()));
    let peak = peak_memory(&scene.daemon);
    eprintln!("peak beside 10,000 streams: {} MB, {held:?} written to", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes");
    assert!(scene.daemon.chiral(&["id"]).status.success());
}

#[test]
fn a_million_wants_cost_little_and_are_refused() {
    let content = noise(20_000_000, 27);
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let greedy = Stranger::start(async move |mut wire: Wire| {
        wire.connected().await;
        let mut stream = wire.open().await.unwrap();
        for part in 0..20_u64 {
            let ids = (0..50_000_u64).map(|n| {
                let hash = sha2_256(&(part * 50_000 + n).to_le_bytes());
                Bytes::from(ContentId::raw(hash).to_bytes())
            });
            if !send(&mut stream, &Message::wants(ids)).await {
                break;
            }
            count.fetch_add(50_000, Ordering::Relaxed);
        }
        receive(&mut stream).await;
    });
    let scene = Scene::new(&[&greedy], &content);
    scene.is_banned(&greedy);
    assert!(scene.read().0 == content);
    let peak = peak_memory(&scene.daemon);
    eprintln!("peak beside a million wants: {} MB, {sent:?} were taken", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes");
    assert!(scene.honest.chiral(&["id"]).status.success());
}
