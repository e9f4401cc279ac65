//! Reads one stream of a peer: blocks are verified here, while they are still in the processor's cache.

use std::sync::Arc;

use bytes::Bytes;
use libp2p::Stream;

use super::{
    frame::{self, Budget, FrameError},
    peer::{Link, Peer},
    shared::Shared,
    wire::{Message, Payload},
};
use crate::content::{Block, Multihash, hash_of, sha2_256};

const SHA2_256: u64 = 0x12;

/// Reads messages until the stream ends.
pub(super) async fn run(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    link: Arc<Link>,
    budget: Budget,
    mut stream: Stream,
) {
    loop {
        let (frame, _busy) =
            match frame::read(&mut stream, &budget, &shared.buffers, || link.busy()).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error @ FrameError::TooLong) => {
                    return shared.misbehaved(&peer, error.to_string());
                }
                Err(error) => {
                    tracing::debug!(peer = %peer.id, %error, "bitswap stream ends");
                    return;
                }
            };
        let message = match Message::decode(frame.clone()) {
            Ok(message) => message,
            Err(error) => return shared.misbehaved(&peer, error.to_string()),
        };
        peer.state().heard_on(link.connection);
        if let Err(reason) = receive(&peer, frame.len(), message) {
            return shared.misbehaved(&peer, reason.to_owned());
        }
        if peer.state().banned {
            return;
        }
    }
}

/// Takes a message in. An error says what is wrong with the peer.
fn receive(peer: &Peer, frame_len: usize, message: Message) -> Result<(), &'static str> {
    for payload in message.blocks {
        receive_block(peer, frame_len, payload)?;
    }
    let mut state = peer.state();
    if state.banned {
        return Ok(());
    }
    for (id, has) in &message.presences {
        state.client.on_presence(id, *has);
    }
    if (!message.entries.is_empty() || message.full)
        && !state.server.apply(message.full, &message.entries)
    {
        return Err("it wants far more than anyone keeps");
    }
    if state.server.has_work() || state.client.has_work() {
        state.kick();
    }
    Ok(())
}

fn receive_block(peer: &Peer, frame_len: usize, payload: Payload) -> Result<(), &'static str> {
    let len = payload.data.len();
    let (hash, data) = identify(frame_len, payload);
    let waiters = hash.and_then(|hash| peer.state().client.on_block(&hash));
    let Some(waiters) = waiters else {
        let lying = peer.state().client.on_unwanted(&hash.unwrap_or_default());
        return if lying { Err("it sends blocks that were not asked for") } else { Ok(()) };
    };
    peer.ledger.add_received(len);
    for waiter in waiters {
        // The digest of these bytes was computed just now and is that of the id.
        let block = Block::from_store(waiter.id, data.clone());
        waiter.answer(peer.id, Ok(block));
    }
    Ok(())
}

/// The hash of a block, none when it is of a function that nobody can want blocks by, and its bytes.
fn identify(frame_len: usize, payload: Payload) -> (Option<Multihash>, Bytes) {
    // A small slice would keep its whole frame in memory for as long as it lives.
    let data = if payload.data.len() < frame_len / 2 {
        Bytes::copy_from_slice(&payload.data)
    } else {
        payload.data
    };
    let hash = match payload.hash_code {
        SHA2_256 => Some(sha2_256(&data)),
        code => hash_of(code, payload.digest_len, &data),
    };
    (hash, data)
}
