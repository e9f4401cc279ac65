//! Bytes from elsewhere, given to the session by a peer of our own.
//!
//! librqbit takes bytes from peers and from nobody else. So whoever else has them is made one: a connection to our own
//! session that says which pieces it can have, and answers each request with what the [`Feed`] behind it gives. Which
//! piece comes from whom is the session's choice, so that nothing is fetched twice on purpose; whether a piece is right
//! is found out by its hash check, as with every other peer.

mod asked;

use std::{collections::HashMap, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, Aborted, BoxFuture},
    stream::FuturesUnordered,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use self::asked::{Asked, Number};
use super::{
    Metainfo,
    pieces::Pieces,
    wire::{Chunk, KEEP_ALIVE, Message, Reader, bits_of, greeting, near, piece_head},
};
use crate::content::{ByteRange, InfoHash, RangeSet};

/// Longest wait for a connection within this machine.
const CONNECT: Duration = Duration::from_secs(5);
/// Reads that run at a time.
const READS: usize = 4;
/// The session asks for the chunks of a piece one by one, some microseconds apart: so long another one may follow.
const SOON: Duration = Duration::from_millis(2);
/// While something is being read already nothing is lost by waiting longer for what can be read with one request.
const LATER: Duration = Duration::from_millis(25);
/// A bridge that is asked for nothing ends after this time. Who reads on makes another.
const IDLE: Duration = Duration::from_secs(20);
/// Something is said at least so often.
const SPEAK: Duration = Duration::from_secs(5);
/// Chunks that may be asked for at a time: many times what librqbit does.
const MOST_ASKED: usize = 4096;
/// Longest chunk: eight times what librqbit asks for.
const MAX_CHUNK: u32 = 128 << 10;

/// Somebody who has bytes of a torrent and is no peer of it.
pub trait Feed: fmt::Debug + Send + Sync {
    /// What it is called. Two of a torrent that are called the same are the same.
    fn name(&self) -> &str;
    /// The bytes of the torrent that it may have; it is asked for nothing else.
    fn has(&self) -> RangeSet;
    /// Fetches bytes of the torrent. Dropping the future leaves nothing behind.
    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes, FeedError>>;
    /// A piece, these bytes of the torrent, was given and was wrong.
    fn wrong(&self, _piece: ByteRange) {}
}

/// Finds out who else has bytes of a torrent.
pub trait Feeder: fmt::Debug + Send + Sync {
    /// Everybody who may be asked now. `magnet` is what is known of where the torrent is. Called again and again while
    /// somebody waits; nobody is asked anything by that.
    fn feeds(&self, torrent: &Arc<Metainfo>, magnet: &super::Magnet) -> Vec<Arc<dyn Feed>>;
    /// Somebody looks for the description of a torrent, and will hear of one that is kept.
    fn sought(&self, _hash: InfoHash) {}
}

/// Why a feed does not give bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// It may be tried again.
    #[error("{0}")]
    Failed(String),
    /// It may be tried again after this time, and not before.
    #[error("it asks to wait {} s", .0.as_secs())]
    Busy(Duration),
    /// It does not have these bytes, and has taken them off what it says to have.
    #[error("it does not have bytes {0} of the torrent")]
    Lacks(ByteRange),
    /// It is of no use.
    #[error("{0}")]
    Useless(String),
}

/// The torrent that a bridge leads to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) metainfo: Arc<Metainfo>,
    pub(super) pieces: Arc<Pieces>,
    /// Where the session accepts peers.
    pub(super) session: SocketAddr,
    /// Who says nothing for so long is sent away.
    pub(super) silence: Duration,
}

/// How a bridge ended.
#[derive(Debug)]
pub(super) enum End {
    /// The session closed the connection, or there was none.
    Closed(io::Error),
    /// Nobody asks for anything.
    Idle,
    /// There is nothing that the feed could give.
    Nothing,
    /// The feed failed.
    Failed(FeedError),
}

/// What was given over one bridge.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) bytes: u64,
    /// Bytes of pieces that are not whole yet.
    parts: HashMap<u32, u64>,
    /// The piece that was given to its end last.
    pub(super) last: Option<u32>,
}

/// Gives the session what it asks for, until one of both has enough.
pub(super) async fn serve(target: &Target, feed: &dyn Feed, given: &mut Given) -> End {
    let (metainfo, has) = (&target.metainfo, feed.has());
    let bits = bits_of(metainfo.pieces(), |piece| has.contains(metainfo.bytes_of(piece)));
    if bits.iter().all(|byte| *byte == 0) {
        return End::Nothing;
    }
    let connect = async {
        let mut connection = TcpStream::connect(near(target.session)).await?;
        // A chunk is answered as soon as it is there: the session asks for the next one then.
        connection.set_nodelay(true)?;
        connection.write_all(&greeting(metainfo.hash, &bits)).await?;
        Ok(connection.into_split())
    };
    let connected = timeout(CONNECT, connect).await;
    let (read, write) = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(halves) => halves,
        Err(error) => return End::Closed(error),
    };
    let (tell, told) = mpsc::unbounded_channel();
    let mut bridge = Bridge { target, feed, bits, asked: Asked::default(), given, write };
    tokio::select! {
        error = listen(read, tell) => End::Closed(error),
        end = bridge.answer(told) => end,
    }
}

/// Hands on what the session asks for, until it hangs up. Reading goes on while an answer is written: a session that
/// waits for its own words to be taken would take none.
async fn listen(from: impl AsyncRead + Unpin, tell: mpsc::UnboundedSender<Message>) -> io::Error {
    let mut session = Reader::new(from);
    if let Err(error) = session.handshake().await {
        return error;
    }
    loop {
        match session.next().await {
            Ok(Message::Other) => {}
            Ok(message) => drop(tell.send(message)),
            Err(error) => return error,
        }
    }
}

struct Bridge<'a, W> {
    target: &'a Target,
    feed: &'a dyn Feed,
    /// The pieces that the session was told of.
    bits: Vec<u8>,
    asked: Asked,
    given: &'a mut Given,
    write: W,
}

type Read<'a> = BoxFuture<'a, (Number, ByteRange, Result<Result<Bytes, FeedError>, Aborted>)>;

impl<'a, W: AsyncWrite + Unpin> Bridge<'a, W> {
    async fn answer(&mut self, mut told: mpsc::UnboundedReceiver<Message>) -> End {
        let mut reads: FuturesUnordered<Read<'a>> = FuturesUnordered::new();
        let mut running: HashMap<u64, AbortHandle> = HashMap::new();
        let (mut heard, mut quiet) = (Instant::now(), true);
        let mut used = heard;
        let speak = SPEAK.min(self.target.silence / 3).max(Duration::from_millis(10));
        let mut spoken = Instant::now();
        loop {
            while reads.len() < READS
                && let Some((number, bytes)) = self.asked.next(quiet)
            {
                reads.push(self.begin(number, bytes, &mut running));
            }
            let grown = heard + if reads.is_empty() { SOON } else { LATER };
            let waiting = self.asked.waiting();
            tokio::select! {
                biased;
                message = told.recv() => {
                    (heard, quiet) = (Instant::now(), false);
                    used = heard;
                    match message.map(|message| self.heard(message, &running)) {
                        Some(Ok(())) => {}
                        Some(Err(error)) => return End::Closed(error),
                        None => return End::Closed(io::ErrorKind::UnexpectedEof.into()),
                    }
                }
                Some((number, bytes, read)) = reads.next(), if !reads.is_empty() => {
                    running.remove(&number.0);
                    let bytes = match read {
                        Ok(Ok(read)) if read.len() as u64 == bytes.len() => (bytes.start, read),
                        Ok(Ok(_)) => return End::Failed(FeedError::Failed("it gave too little".to_owned())),
                        Ok(Err(error)) => return End::Failed(error),
                        Err(Aborted) => {
                            self.asked.ended(number);
                            continue;
                        }
                    };
                    if let Err(error) = self.give(number, &bytes).await {
                        return End::Closed(error);
                    }
                    spoken = Instant::now();
                    used = spoken;
                }
                () = sleep_until(grown), if !quiet && waiting > 0 => quiet = true,
                () = sleep_until(spoken + speak) => {
                    if let Err(error) = self.write.write_all(&KEEP_ALIVE).await {
                        return End::Closed(error);
                    }
                    spoken = Instant::now();
                }
                () = sleep_until(used + IDLE), if reads.is_empty() && waiting == 0 => return End::Idle,
            }
        }
    }

    fn begin(
        &self,
        number: Number,
        bytes: ByteRange,
        running: &mut HashMap<u64, AbortHandle>,
    ) -> Read<'a> {
        let (handle, registration) = AbortHandle::new_pair();
        running.insert(number.0, handle);
        let read = Abortable::new(self.feed.read(bytes), registration);
        read.map(move |read| (number, bytes, read)).boxed()
    }

    /// Takes what the session says; an error where it says what no session does.
    fn heard(&mut self, message: Message, running: &HashMap<u64, AbortHandle>) -> io::Result<()> {
        match message {
            Message::Request(chunk) => {
                let bytes = self.bytes_of(chunk).filter(|_| self.asked.waiting() < MOST_ASKED);
                self.asked.add(chunk, bytes.ok_or(io::ErrorKind::InvalidData)?);
            }
            Message::Cancel(chunk) => {
                let idle = self.asked.cancel(chunk);
                if let Some(read) = idle.and_then(|number| running.get(&number.0)) {
                    read.abort();
                }
            }
            Message::Other => {}
        }
        Ok(())
    }

    /// The bytes of the torrent that a chunk has, where it lies in a piece that was offered.
    fn bytes_of(&self, chunk: Chunk) -> Option<ByteRange> {
        let offered = self.bits.get(chunk.piece as usize / 8)? & (0x80 >> (chunk.piece % 8));
        let piece = self.target.metainfo.bytes_of(chunk.piece);
        let bytes = ByteRange::at(piece.start + u64::from(chunk.begin), chunk.len.into());
        let fits = (1..=MAX_CHUNK).contains(&chunk.len) && piece.contains(bytes);
        (offered != 0 && fits).then_some(bytes)
    }

    /// Writes what of a read is still wanted.
    async fn give(&mut self, number: Number, (start, read): &(u64, Bytes)) -> io::Result<()> {
        let wanted = self.asked.ended(number);
        let mut to = BytesMut::with_capacity(read.len() + wanted.len() * 17);
        for (chunk, bytes) in &wanted {
            let at = usize::try_from(bytes.start - start).unwrap_or(usize::MAX);
            let part = read.get(at..at + chunk.len as usize).ok_or(io::ErrorKind::InvalidData)?;
            to.extend_from_slice(&piece_head(*chunk));
            to.extend_from_slice(part);
        }
        self.write.write_all(&to).await?;
        for (chunk, bytes) in &wanted {
            self.given.add(chunk.piece, bytes.len(), self.target.metainfo.bytes_of(chunk.piece));
        }
        Ok(())
    }
}

impl Given {
    fn add(&mut self, piece: u32, len: u64, all: ByteRange) {
        self.bytes += len;
        let part = self.parts.entry(piece).or_default();
        *part += len;
        if *part >= all.len() {
            self.parts.remove(&piece);
            self.last = Some(piece);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
