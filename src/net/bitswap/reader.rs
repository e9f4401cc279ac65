//! Reads one stream of a peer: blocks are verified here, while they are still in the processor's cache.

use std::{borrow::Cow, pin::pin, sync::Arc};

use bytes::Bytes;
use libp2p::Stream;
use tokio::time::timeout_at;

use super::{
    frame::{self, Budget, FrameError},
    held::Held,
    peer::{Link, Peer},
    shared::Shared,
    wire::{Message, Payload},
};
use crate::content::{Block, Multihash, hash_of, sha2_256, sha2_256_each};

const SHA2_256: u64 = 0x12;

/// What a peer did wrong.
type Fault = Cow<'static, str>;

/// Takes in what comes on one stream.
struct Reader {
    peer: Arc<Peer>,
    held: Held,
}

/// Reads messages until the stream ends.
pub(super) async fn run(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    link: Arc<Link>,
    budget: Budget,
    mut stream: Stream,
) {
    let mut reader = Reader { peer: peer.clone(), held: Held::new(shared.held.clone()) };
    if let Err(reason) = reader.run(&shared, &link, &budget, &mut stream).await {
        shared.misbehaved(&peer, reason.into_owned());
    }
}

impl Reader {
    async fn run(
        &mut self,
        shared: &Shared,
        link: &Arc<Link>,
        budget: &Budget,
        stream: &mut Stream,
    ) -> Result<(), Fault> {
        loop {
            let mut next = pin!(frame::read(stream, budget, &shared.buffers, || link.busy()));
            let early = match self.held.until() {
                Some(until) => timeout_at(until, &mut next).await.ok(),
                None => None,
            };
            let next = match early {
                Some(next) => next,
                None => {
                    self.settle()?;
                    next.await
                }
            };
            let (frame, _busy) = match next {
                Ok(Some(frame)) => frame,
                Ok(None) => return self.settle(),
                Err(error @ FrameError::TooLong) => return Err(error.to_string().into()),
                Err(error) => {
                    tracing::debug!(peer = %self.peer.id, %error, "bitswap stream ends");
                    return self.settle();
                }
            };
            let message = Message::decode(frame.clone()).map_err(|error| error.to_string())?;
            self.peer.state().heard_on(link.connection);
            self.receive(frame.len(), message)?;
            if self.peer.state().banned {
                return Ok(());
            }
        }
    }

    /// Takes a message in.
    fn receive(&mut self, frame_len: usize, message: Message) -> Result<(), Fault> {
        for payload in message.blocks {
            self.receive_block(frame_len, payload)?;
        }
        if !message.presences.is_empty() {
            // Said after the blocks that are held.
            self.settle()?;
        }
        let mut state = self.peer.state();
        if state.banned {
            return Ok(());
        }
        for (id, has) in &message.presences {
            state.client.on_presence(id, *has);
        }
        if (!message.entries.is_empty() || message.full)
            && !state.server.apply(message.full, &message.entries)
        {
            return Err("it wants far more than anyone keeps".into());
        }
        if state.server.has_work() || state.client.has_work() {
            state.kick();
        }
        Ok(())
    }

    /// Takes a block in, or keeps it until it can be hashed with others.
    fn receive_block(&mut self, frame_len: usize, payload: Payload) -> Result<(), Fault> {
        let Payload { hash_code, digest_len, data } = payload;
        // A small slice would keep its whole frame in memory for as long as it lives.
        let shared = data.len() < frame_len / 2;
        let data = if shared { Bytes::copy_from_slice(&data) } else { data };
        if hash_code != SHA2_256 {
            self.settle()?;
            return self.hashed(hash_of(hash_code, digest_len, &data), &data);
        }
        let owed = self.peer.state().client.owed();
        if !self.held.fits(&data, owed) {
            self.settle()?;
            return self.hashed(Some(sha2_256(&data)), &data);
        }
        if let Err(data) = self.held.push(data) {
            self.settle()?;
            return self.hashed(Some(sha2_256(&data)), &data);
        }
        if self.held.is_full() { self.settle() } else { Ok(()) }
    }

    /// Takes in all blocks that are held.
    fn settle(&mut self) -> Result<(), Fault> {
        let blocks = self.held.take();
        let hashes = sha2_256_each(&blocks.iter().map(Bytes::as_ref).collect::<Vec<_>>());
        blocks.iter().zip(hashes).try_for_each(|(data, hash)| self.hashed(Some(hash), data))
    }

    /// Hands a block to those who wait for it. It has no hash when that is of a function that nobody can want blocks by.
    fn hashed(&self, hash: Option<Multihash>, data: &Bytes) -> Result<(), Fault> {
        let waiters = hash.and_then(|hash| self.peer.state().client.on_block(&hash));
        let Some(waiters) = waiters else {
            let lying = self.peer.state().client.on_unwanted(&hash.unwrap_or_default());
            let reason = "it sends blocks that were not asked for";
            return if lying { Err(reason.into()) } else { Ok(()) };
        };
        self.peer.ledger.add_received(data.len());
        for waiter in waiters {
            // The digest of these bytes was computed just now and is that of the id.
            let block = Block::from_store(waiter.id, data.clone());
            waiter.answer(self.peer.id, Ok(block));
        }
        Ok(())
    }
}
