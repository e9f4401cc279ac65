//! Writes all messages to one peer on one long-lived stream: our wants first, then what it wants.

use std::{sync::Arc, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle, time::Instant};

use super::{
    BlockStore,
    frame::{self, FrameError},
    peer::{Peer, Session},
    server::Want,
    shared::Shared,
    wire::{self, Version},
};
use crate::content::{Block, ContentId};

/// Bytes after which a batch is full: four blocks of usual size, since each batch is a trip to another thread and back.
/// Two batches per peer are in memory, the one that is written and the one that is read meanwhile.
const BATCH_LEN: usize = 1 << 20;

/// The same for a peer that takes its time, which may not want all of that any more when its turn comes, and where more
/// peers than a few are served: one block.
const SMALL_BATCH_LEN: usize = 256 << 10;

/// A batch that is written in less was to a fast peer: over 100 MB/s for a long one.
const SOON: Duration = Duration::from_millis(10);

/// Most wants of a batch.
const BATCH_WANTS: usize = 256;

/// Blocks up to this share a message. A larger one has its own, so that the receiver can use it at once.
const PACKED_LEN: usize = 16 << 10;

/// A block up to this is sent for a want-have: it is hardly larger than HAVE and saves the round trip.
const INLINE_LEN: usize = 1 << 10;

/// What was looked up for the peer.
struct Batch {
    answers: Vec<(Want, Answer)>,
    /// What did not fit in.
    left: Vec<Want>,
}

/// Wants that are being looked up.
struct Reading {
    wants: Vec<Want>,
    batch: JoinHandle<Batch>,
    /// Of a batch that may be long; to be kept until it is written.
    room: Option<OwnedSemaphorePermit>,
}

enum Answer {
    Block(Block),
    Have,
    DontHave,
    /// Nothing to say until the block arrives.
    Silence,
}

struct Writer {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    session: Session,
    stream: Stream,
    /// Wants to look up at a time: as many as filled the last batch, and some more.
    batch_wants: usize,
    /// Whether the peer took the last batch at once.
    fast: bool,
    dirty: bool,
    /// The peer has closed its direction of the stream.
    silent: bool,
}

/// Writes until the stream breaks or another one takes its place.
pub(super) async fn run(shared: Arc<Shared>, peer: Arc<Peer>, session: Session, stream: Stream) {
    let generation = session.generation;
    let mut writer = Writer {
        shared: shared.clone(),
        peer: peer.clone(),
        session,
        stream,
        batch_wants: 1,
        fast: false,
        dirty: false,
        silent: false,
    };
    let failed = tokio::select! {
        result = writer.run() => {
            if let Err(error) = &result {
                tracing::debug!(peer = %peer.id, %error, "bitswap stream cannot be written to");
            }
            result.is_err()
        }
        () = shared.tasks.cancelled() => false,
    };
    peer.state().writer_ended(generation, failed);
}

impl Writer {
    async fn run(&mut self) -> Result<(), FrameError> {
        let mut ahead: Option<Reading> = None;
        loop {
            if !self.write_control().await? {
                break;
            }
            let Some(mut reading) = ahead.take().or_else(|| self.start_reading()) else {
                self.flush().await?;
                self.idle().await?;
                continue;
            };
            let batch = tokio::select! {
                batch = &mut reading.batch => batch,
                () = self.session.notify.notified() => {
                    ahead = Some(reading);
                    continue;
                }
            };
            // A panic of the store is its own; the wants are answered like others that it failed on.
            let batch = batch.unwrap_or_else(|_| Batch::failed(reading.wants));
            let _room = reading.room;
            let Some(answers) = self.accept(batch) else { break };
            // The disk works on the next batch while the processor encrypts this one.
            ahead = self.start_reading();
            let started = Instant::now();
            self.write_answers(answers).await?;
            self.fast = started.elapsed() < SOON;
        }
        self.flush().await?;
        self.stream.close().await?;
        Ok(())
    }

    /// Writes wants, cancels and refusals. False when another stream has taken over.
    async fn write_control(&mut self) -> Result<bool, FrameError> {
        loop {
            let version = self.session.version;
            let step = self.peer.as_writer(self.session.generation, |state| {
                (state.client.next_message(version), state.server.take_refused())
            });
            let Some((wants, refused)) = step else { return Ok(false) };
            if wants.is_none() && refused.is_empty() {
                return Ok(true);
            }
            if let Some(wants) = wants {
                let message = wire::encode_wants(version, wants.full, &wants.entries);
                self.write(&message).await?;
            }
            if !refused.is_empty() && version >= Version::V120 {
                let presences = refused.iter().map(|id| (id, false));
                self.write(&wire::encode_packed(version, presences, [])).await?;
            }
        }
    }

    async fn write(&mut self, message: &[u8]) -> Result<(), FrameError> {
        let _busy = self.session.link.busy();
        self.dirty = true;
        frame::write(&mut self.stream, message).await
    }

    async fn flush(&mut self) -> Result<(), FrameError> {
        if std::mem::take(&mut self.dirty) {
            let _busy = self.session.link.busy();
            frame::flush(&mut self.stream).await?;
        }
        Ok(())
    }

    /// Waits for something to do. Nothing is ever received on this stream, so waiting for that tells when the peer
    /// resets it, as some do with a stream that was silent for seconds; a message into it would be lost.
    async fn idle(&mut self) -> Result<(), FrameError> {
        let notify = self.session.notify.clone();
        let mut byte = [0];
        while !self.silent {
            tokio::select! {
                () = notify.notified() => return Ok(()),
                read = self.stream.read(&mut byte) => self.silent = read? == 0,
            }
            if self.silent {
                // A reset reads like an orderly end of the other direction, with which Helia greets every stream; but
                // nothing, not even no bytes, can be written after it.
                let _nothing = self.stream.write(&[]).await?;
            }
        }
        notify.notified().await;
        Ok(())
    }

    /// Starts to look up the next wants of the peer, if it has any.
    fn start_reading(&self) -> Option<Reading> {
        let count = self.batch_wants;
        let wants = self.peer.as_writer(self.session.generation, |state| state.take_wants(count));
        let wants = wants.filter(|wants| !wants.is_empty())?;
        let store = self.shared.store.clone();
        let looked_up = wants.clone();
        let room = self.fast.then(|| self.shared.long_batches.clone().try_acquire_owned().ok());
        let room = room.flatten();
        let len = if room.is_some() { BATCH_LEN } else { SMALL_BATCH_LEN };
        let look_up = move || look_up(&*store, looked_up, len);
        let batch = self.shared.tasks.blocking("bitswap-read", look_up);
        Some(Reading { wants, batch, room })
    }

    /// Settles the wants of a batch; gives what is still to be sent. None when another stream has taken over.
    fn accept(&mut self, batch: Batch) -> Option<Vec<(Want, Answer)>> {
        self.batch_wants = if batch.left.is_empty() {
            (self.batch_wants * 2).min(BATCH_WANTS)
        } else {
            batch.answers.len().max(1)
        };
        self.peer.as_writer(self.session.generation, |state| {
            state.server.put_back(&batch.left);
            let mut answers = Vec::with_capacity(batch.answers.len());
            for (want, answer) in batch.answers {
                if matches!(answer, Answer::Silence) {
                    state.server.remember(&want);
                } else if state.server.finish(&want) {
                    answers.push((want, answer));
                }
            }
            answers
        })
    }

    /// Writes answers. Those that a broken stream did not take are queued again, for the next stream.
    async fn write_answers(&mut self, answers: Vec<(Want, Answer)>) -> Result<(), FrameError> {
        let (large, small): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|(_, answer)| answer.is_large());
        let mut result = self.write_small(&small).await;
        let mut lost = if result.is_err() { small } else { Vec::new() };
        for (want, answer) in large {
            if result.is_ok()
                && let Answer::Block(block) = &answer
            {
                result = self.write_large(&want.id, block).await;
            }
            if result.is_err() {
                lost.push((want, answer));
            }
        }
        if !lost.is_empty() {
            let mut state = self.peer.state();
            lost.iter().for_each(|(want, _)| state.server.restore(want));
        }
        result
    }

    async fn write_small(&mut self, answers: &[(Want, Answer)]) -> Result<(), FrameError> {
        let version = self.session.version;
        let (mut presences, mut blocks) = (Vec::new(), Vec::new());
        for (want, answer) in answers {
            match answer {
                Answer::Block(block) => blocks.push((&want.id, block.data())),
                Answer::Have => presences.push((&want.id, true)),
                Answer::DontHave => presences.push((&want.id, false)),
                Answer::Silence => {}
            }
        }
        if version < Version::V120 {
            presences.clear();
        }
        if presences.is_empty() && blocks.is_empty() {
            return Ok(());
        }
        let bytes = blocks.iter().map(|(_, data)| data.len()).sum();
        self.write(&wire::encode_packed(version, presences, blocks)).await?;
        self.peer.ledger.add_sent(bytes);
        Ok(())
    }

    async fn write_large(&mut self, id: &ContentId, block: &Block) -> Result<(), FrameError> {
        let _busy = self.session.link.busy();
        let header = wire::block_header(self.session.version, id, block.data().len());
        self.dirty = true;
        frame::write_with(&mut self.stream, header, block.data()).await?;
        self.peer.ledger.add_sent(block.data().len());
        Ok(())
    }
}

impl Batch {
    /// Of a lookup that broke off: nothing is here.
    fn failed(wants: Vec<Want>) -> Self {
        let answers = wants.into_iter().map(|want| (want, Answer::missing(&want))).collect();
        Self { answers, left: Vec::new() }
    }
}

impl Answer {
    /// To a want whose block is not here.
    fn missing(want: &Want) -> Self {
        if want.send_dont_have { Self::DontHave } else { Self::Silence }
    }

    /// Whether it has a message of its own.
    fn is_large(&self) -> bool {
        matches!(self, Self::Block(block) if block.data().len() > PACKED_LEN)
    }
}

/// Looks wants up, as many as fill a batch of so many bytes.
fn look_up(store: &dyn BlockStore, wants: Vec<Want>, len: usize) -> Batch {
    let mut batch = Batch { answers: Vec::with_capacity(wants.len()), left: Vec::new() };
    let mut bytes = 0;
    for want in wants {
        if bytes >= len {
            batch.left.push(want);
            continue;
        }
        let answer = answer(store, &want);
        if let Answer::Block(block) = &answer {
            bytes += block.data().len();
        }
        batch.answers.push((want, answer));
    }
    batch
}

fn answer(store: &dyn BlockStore, want: &Want) -> Answer {
    let missing = Answer::missing(want);
    if !want.block {
        match store.block_len(&want.id) {
            None => return missing,
            Some(len) if len > INLINE_LEN => return Answer::Have,
            Some(_) => {}
        }
    }
    store.block(&want.id).map_or(missing, Answer::Block)
}
