//! Bridges against a session that is played here.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, tcp::OwnedWriteHalf},
    sync::Semaphore,
};

use super::*;
use crate::torrent::{
    InfoBuilder,
    wire::{HANDSHAKE_LEN, tests::asks},
};

const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK: u32 = 16 << 10;
const PIECE: u32 = 4 * CHUNK;

/// The byte at a place of the torrent.
fn byte(at: u64) -> u8 {
    (at / 7 % 251) as u8
}

fn bytes_of(range: ByteRange) -> Vec<u8> {
    (range.start..range.end).map(byte).collect()
}

/// A torrent of so many pieces, the last of which is short, that nobody has anything of.
pub(in crate::torrent) fn target(session: &FakeSession, pieces: u32) -> Target {
    let len = u64::from(pieces * PIECE - 5);
    let mut builder = InfoBuilder::file("film".into(), len, PIECE);
    builder.update(&bytes_of(ByteRange::new(0, len)));
    let metainfo = Arc::new(Metainfo::parse(&builder.finish(&[]).unwrap()).unwrap());
    let have = Arc::new(Pieces::new(metainfo.clone()));
    have.load(vec![0; pieces.div_ceil(8) as usize]);
    let session = session.listener.local_addr().unwrap();
    Target { metainfo, pieces: have, session, silence: Duration::from_secs(10) }
}

/// Gives right bytes, and remembers what it was asked for.
#[derive(Debug)]
pub(in crate::torrent) struct FakeFeed {
    has: Mutex<RangeSet>,
    asked: Mutex<Vec<ByteRange>>,
    fails: Mutex<Option<FeedError>>,
    /// Reads that were given up.
    dropped: AtomicUsize,
    /// Each read takes one.
    permits: Semaphore,
}

impl FakeFeed {
    pub(in crate::torrent) fn new(target: &Target, held: bool) -> Arc<Self> {
        let mut has = RangeSet::new();
        has.insert(ByteRange::new(0, target.metainfo.len));
        Arc::new(Self {
            has: Mutex::new(has),
            asked: Mutex::default(),
            fails: Mutex::default(),
            dropped: AtomicUsize::new(0),
            permits: Semaphore::new(if held { 0 } else { 1000 }),
        })
    }

    pub(in crate::torrent) fn fail_with(&self, error: FeedError) {
        *self.fails.lock().unwrap() = Some(error);
    }

    fn asked(&self) -> Vec<ByteRange> {
        self.asked.lock().unwrap().clone()
    }
}

struct Ended<'a>(&'a FakeFeed, bool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(usize::from(!self.1), Ordering::SeqCst);
    }
}

impl Feed for FakeFeed {
    fn name(&self) -> &str {
        "fake"
    }

    fn has(&self) -> RangeSet {
        self.has.lock().unwrap().clone()
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes, FeedError>> {
        async move {
            self.asked.lock().unwrap().push(range);
            let mut ended = Ended(self, false);
            self.permits.acquire().await.unwrap().forget();
            ended.1 = true;
            match self.fails.lock().unwrap().clone() {
                Some(error) => Err(error),
                None => Ok(bytes_of(range).into()),
            }
        }
        .boxed()
    }
}

/// The side that accepts peers.
pub(in crate::torrent) struct FakeSession {
    listener: TcpListener,
}

impl FakeSession {
    pub(in crate::torrent) async fn listen() -> Self {
        Self { listener: TcpListener::bind(("127.0.0.1", 0)).await.unwrap() }
    }

    /// The next peer that comes, after the handshakes.
    pub(in crate::torrent) async fn accept(&mut self) -> FakePeer {
        let (connection, _) = self.listener.accept().await.unwrap();
        let (mut read, mut write) = connection.into_split();
        let mut hello = [0; HANDSHAKE_LEN];
        read.read_exact(&mut hello).await.unwrap();
        write.write_all(&hello).await.unwrap();
        let mut peer = FakePeer { read, write };
        let bits = peer.message().await.unwrap();
        assert_eq!(bits[0], 5);
        assert_eq!(peer.message().await.unwrap(), [1]);
        peer
    }
}

pub(in crate::torrent) struct FakePeer {
    read: tokio::net::tcp::OwnedReadHalf,
    write: OwnedWriteHalf,
}

fn chunks(piece: u32) -> impl Iterator<Item = Chunk> {
    (0..4).map(move |at| Chunk { piece, begin: at * CHUNK, len: CHUNK })
}

impl FakePeer {
    /// The next message that says something; none at the end.
    async fn message(&mut self) -> Option<Vec<u8>> {
        loop {
            let len = self.read.read_u32().await.ok()?;
            let mut message = vec![0; len as usize];
            self.read.read_exact(&mut message).await.ok()?;
            if len > 0 {
                return Some(message);
            }
        }
    }

    async fn say(&mut self, message: Message) {
        self.write.write_all(&asks(&message)).await.unwrap();
    }

    pub(in crate::torrent) async fn ask_piece(&mut self, piece: u32) {
        for chunk in chunks(piece) {
            self.say(Message::Request(chunk)).await;
        }
    }

    /// The next chunk that comes; its bytes are right.
    async fn take(&mut self) -> Option<(u32, u32)> {
        let message = self.message().await?;
        let number = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
        let (piece, begin) = (number(1), number(5));
        let range = ByteRange::at(u64::from(piece * PIECE + begin), (message.len() - 9) as u64);
        assert_eq!(message[0], 7);
        assert!(message[9..] == bytes_of(range), "wrong bytes of piece {piece} at {begin}");
        Some((piece, begin))
    }

    pub(in crate::torrent) async fn take_piece(&mut self, piece: u32) {
        for at in 0..4 {
            assert_eq!(self.take().await, Some((piece, at * CHUNK)));
        }
    }

    pub(in crate::torrent) async fn until_closed(&mut self) {
        while self.message().await.is_some() {}
    }
}

/// Runs a bridge beside what a session does, until both have ended.
async fn with_session<T>(
    target: &Target,
    feed: &FakeFeed,
    session: impl Future<Output = T>,
) -> (End, Given, T) {
    let mut given = Given::default();
    let both = async { tokio::join!(serve(target, feed, &mut given), session) };
    let (end, told) = timeout(PATIENCE, both).await.unwrap();
    (end, given, told)
}

#[tokio::test]
async fn what_is_asked_for_is_given_and_nothing_else_is_read() {
    let mut session = FakeSession::listen().await;
    let target = target(&session, 9);
    let feed = FakeFeed::new(&target, false);
    let (end, given, ()) = with_session(&target, &feed, async {
        let mut peer = session.accept().await;
        peer.say(Message::Other).await;
        peer.ask_piece(3).await;
        peer.ask_piece(4).await;
        let mut came = Vec::new();
        for _ in 0..8 {
            came.push(peer.take().await.unwrap());
        }
        came.sort_unstable();
        let all = chunks(3).chain(chunks(4)).map(|chunk| (chunk.piece, chunk.begin));
        assert_eq!(came, all.collect::<Vec<_>>());
        // The last piece is shorter, and its last chunk not of the usual length.
        let last = Chunk { piece: 8, begin: 3 * CHUNK, len: CHUNK - 5 };
        peer.say(Message::Request(last)).await;
        assert_eq!(peer.take().await, Some((8, 3 * CHUNK)));
    })
    .await;
    assert!(matches!(end, End::Closed(_)), "{end:?}");
    assert_eq!((given.bytes, given.last), (u64::from(2 * PIECE + CHUNK - 5), Some(4)));
    let mut read = RangeSet::new();
    feed.asked().into_iter().for_each(|range| read.insert(range));
    let asked: u64 = feed.asked().iter().map(ByteRange::len).sum();
    assert_eq!(asked, given.bytes, "nothing is read twice");
    let piece = u64::from(PIECE);
    assert!(read.contains(ByteRange::new(3 * piece, 5 * piece)));
}

#[tokio::test]
async fn several_reads_run_at_a_time_and_what_is_taken_back_is_given_up() {
    let mut session = FakeSession::listen().await;
    let target = target(&session, 9);
    let feed = FakeFeed::new(&target, true);
    let reads = feed.clone();
    let (end, given, ()) = with_session(&target, &feed, async move {
        let mut peer = session.accept().await;
        // Pieces that are no neighbours are read by themselves.
        peer.ask_piece(1).await;
        peer.ask_piece(5).await;
        peer.ask_piece(7).await;
        while reads.asked().len() < 3 {
            tokio::task::yield_now().await;
        }
        for chunk in chunks(5) {
            peer.say(Message::Cancel(chunk)).await;
        }
        let of_first = chunks(1).next().unwrap();
        peer.say(Message::Cancel(of_first)).await;
        while reads.dropped.load(Ordering::SeqCst) < 1 {
            tokio::task::yield_now().await;
        }
        // What comes behind a later word of ours was told the bridge after the one that took the chunk back.
        peer.ask_piece(3).await;
        while reads.asked().len() < 4 {
            tokio::task::yield_now().await;
        }
        reads.permits.add_permits(10);
        let mut came = Vec::new();
        for _ in 0..11 {
            came.push(peer.take().await.unwrap());
        }
        came.sort_unstable();
        let rest = [1, 3, 7].into_iter().flat_map(chunks).filter(|chunk| *chunk != of_first);
        assert_eq!(came, rest.map(|chunk| (chunk.piece, chunk.begin)).collect::<Vec<_>>());
    })
    .await;
    assert!(matches!(end, End::Closed(_)), "{end:?}");
    assert_eq!(given.bytes, u64::from(11 * CHUNK));
}

#[tokio::test]
async fn only_what_a_feed_has_is_offered_and_what_was_not_is_not_given() {
    let mut session = FakeSession::listen().await;
    let target = target(&session, 9);
    let feed = FakeFeed::new(&target, false);
    // All of piece 2, and not quite all of its neighbours.
    let piece = u64::from(PIECE);
    *feed.has.lock().unwrap() = [ByteRange::new(piece + 1, 4 * piece - 1)].into_iter().collect();
    let (end, _, ()) = with_session(&target, &feed, async {
        let mut peer = session.accept().await;
        peer.ask_piece(2).await;
        peer.take_piece(2).await;
        peer.ask_piece(3).await;
        peer.until_closed().await;
    })
    .await;
    assert!(matches!(end, End::Closed(ref e) if e.kind() == io::ErrorKind::InvalidData), "{end:?}");
    *feed.has.lock().unwrap() = RangeSet::new();
    let (end, _, ()) = with_session(&target, &feed, async {}).await;
    assert!(matches!(end, End::Nothing));
}

#[tokio::test(start_paused = true)]
async fn it_says_that_it_lives_and_ends_when_nobody_asks() {
    let mut session = FakeSession::listen().await;
    let target = target(&session, 9);
    let feed = FakeFeed::new(&target, false);
    let start = Instant::now();
    let (end, _, said) = with_session(&target, &feed, async {
        let mut peer = session.accept().await;
        let mut said = 0;
        while peer.read.read_u32().await.is_ok_and(|len| len == 0) {
            said += 1;
        }
        said
    })
    .await;
    assert!(matches!(end, End::Idle), "{end:?}");
    assert!(start.elapsed() >= IDLE);
    // A session sends away whoever says nothing for ten seconds.
    assert!(said >= 3, "{said}");
}

#[tokio::test]
async fn a_feed_that_fails_ends_the_connection_so_that_others_get_what_it_was_asked_for() {
    let mut session = FakeSession::listen().await;
    let target = target(&session, 9);
    let feed = FakeFeed::new(&target, false);
    feed.fail_with(FeedError::Failed("no".to_owned()));
    let (end, given, ()) = with_session(&target, &feed, async {
        let mut peer = session.accept().await;
        peer.ask_piece(0).await;
        assert_eq!(peer.take().await, None);
    })
    .await;
    assert!(matches!(end, End::Failed(FeedError::Failed(_))), "{end:?}");
    assert_eq!((given.bytes, given.last), (0, None));
}
