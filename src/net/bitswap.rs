//! Bitswap 1.2.0, 1.1.0 and 1.0.0, client and server.
//!
//! ```text
//!  Handle ──► Peer { client, server, links } ◄── Handler (one per connection)
//!                ▲            │                      │ hands each stream to a task
//!      reader tasks      writer task  ◄──────────────┘
//!   (one per inbound     (one per peer: wants, then
//!    stream; verify)      answers, read one ahead)
//! ```
//!
//! Streams are one-way, as Kubo uses them: messages to a peer go out on one long-lived stream that we open,
//! messages from it come in on streams that it opens, one for all or one for each. No payload passes the
//! behaviour or the swarm, and nobody waits to write in the task that reads: under back-pressure both ends of a
//! multiplexed connection would stand still.

mod behaviour;
mod buffers;
mod client;
mod frame;
mod handler;
mod held;
mod ledger;
mod peer;
mod reader;
mod server;
mod shared;
#[cfg(test)]
mod tests;
mod wire;
mod writer;

use std::{fmt, sync::Arc, time::Duration};

use libp2p::PeerId;
use tokio::sync::{broadcast, mpsc};

pub(crate) use self::behaviour::Behaviour;
use self::{peer::Peer, shared::Shared};
use super::{Asker, BlockReply, Dealings, PeerEvent, WantError};
use crate::{
    content::{Block, ContentId, Multihash},
    store::Store,
    tasks::Tasks,
};

/// Limits. All are there because a stranger can fill what they bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Inbound streams that are read at a time on one connection; more are reset. Kubo has 8 open at a time,
    /// but a burst of short ones ends later than it begins.
    pub(crate) streams_per_connection: usize,
    /// Bytes of frames under way on one connection; a frame over it is reset.
    pub(crate) frames_per_connection: usize,
    /// Bytes of frames under way on all connections together, beyond a small share that each has for itself.
    pub(crate) frames: usize,
    /// Wants that are kept for a peer, as many as Kubo keeps.
    pub(crate) wants_per_peer: usize,
    /// Wants that are kept for a chiral node.
    pub(crate) wants_per_chiral_peer: usize,
    /// Whether what was only read is served too.
    pub(crate) serve_cached: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            streams_per_connection: 256,
            frames_per_connection: 32 << 20,
            frames: 256 << 20,
            wants_per_peer: 1024,
            wants_per_chiral_peer: 4096,
            serve_cached: true,
        }
    }
}

/// Where served blocks come from. Called on threads that may block.
pub(crate) trait BlockStore: Send + Sync {
    /// Length of a block that can be served.
    fn block_len(&self, id: &ContentId) -> Option<usize>;
    /// A block that can be served.
    fn block(&self, id: &ContentId) -> Option<Block>;
    /// Whether a block belongs to something that is published or pinned, and is not only cached.
    fn is_retained(&self, id: &ContentId) -> bool;
}

/// Serves what is retained alone.
struct Retained(Arc<dyn BlockStore>);

impl BlockStore for Retained {
    fn block_len(&self, id: &ContentId) -> Option<usize> {
        // Most wants are for what is not here at all, which is the cheaper question.
        self.0.block_len(id).filter(|_| self.0.is_retained(id))
    }

    fn block(&self, id: &ContentId) -> Option<Block> {
        self.block_len(id).and_then(|_| self.0.block(id))
    }

    fn is_retained(&self, id: &ContentId) -> bool {
        self.0.is_retained(id)
    }
}

impl BlockStore for Store {
    fn block_len(&self, id: &ContentId) -> Option<usize> {
        Self::block_len(self, id).unwrap_or_else(|error| {
            tracing::warn!(%id, %error, "a block that a peer wants cannot be looked up");
            None
        })
    }

    fn block(&self, id: &ContentId) -> Option<Block> {
        Self::block(self, id).unwrap_or_else(|error| {
            tracing::warn!(%id, %error, "a block that a peer wants cannot be read");
            None
        })
    }

    fn is_retained(&self, id: &ContentId) -> bool {
        Self::is_retained(self, id).unwrap_or_else(|error| {
            tracing::warn!(%id, %error, "whether a block may be served cannot be looked up");
            false
        })
    }
}

/// What the owner of the swarm has to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A peer lied or floods. Its wants were answered already; it is to be banned.
    Misbehaved {
        /// Who.
        peer: PeerId,
        /// What it did.
        reason: String,
    },
}

/// Bitswap for a swarm, serving from `store`, and the handle to use it by.
pub(crate) fn new(
    config: Config,
    store: Arc<dyn BlockStore>,
    tasks: &Tasks,
) -> (Behaviour, Handle) {
    let store = if config.serve_cached { store } else { Arc::new(Retained(store)) };
    let (shared, events) = Shared::new(config, store, tasks.clone());
    (Behaviour::new(shared.clone(), events), Handle { shared })
}

/// Uses Bitswap from anywhere. Clones are the same.
#[derive(Clone)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Asks `peer` for blocks, in this order, as one message; answers go to `asker`. Never waits.
    ///
    /// A peer is told of 1,024 wants at a time, the rest follow as answers come.
    pub(crate) fn want_blocks(&self, peer: PeerId, ids: &[ContentId], asker: &Arc<dyn Asker>) {
        let refuse = |error| {
            for id in ids {
                asker.answer(BlockReply { peer, id: *id, result: Err(error) });
            }
        };
        let Some(known) = self.shared.peer(&peer) else { return refuse(WantError::Disconnected) };
        let mut state = known.state();
        if state.banned {
            return refuse(WantError::Lied);
        }
        if !state.is_connected() {
            return refuse(WantError::Disconnected);
        }
        for id in ids {
            state.client.want_block(*id, asker.clone());
        }
        state.kick();
    }

    /// Gives up the blocks that `asker` wants; no answer comes for them any more.
    pub(crate) fn cancel(&self, peer: PeerId, ids: &[ContentId], asker: &Arc<dyn Asker>) {
        if let Some(peer) = self.shared.peer(&peer) {
            let mut state = peer.state();
            state.client.cancel(ids, asker);
            if state.client.has_work() {
                state.kick();
            }
        }
    }

    /// Asks `peer` which of `ids` it has. What is not answered `within` that time counts as not there, and so does
    /// everything at a peer that speaks only versions without want-have.
    pub(crate) async fn want_haves(
        &self,
        peer: PeerId,
        ids: &[ContentId],
        within: Duration,
    ) -> Vec<bool> {
        let Some(peer) = self.shared.peer(&peer) else { return vec![false; ids.len()] };
        let (asking, mut answers) = Asking::start(peer, ids);
        let mut has: std::collections::HashMap<Multihash, bool> = std::collections::HashMap::new();
        let mut distinct: Vec<_> = ids.iter().map(ContentId::hash).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let collect = async {
            while has.len() < distinct.len()
                && let Some((hash, there)) = answers.recv().await
            {
                has.insert(hash, there);
            }
        };
        // What was answered until then counts.
        let _ = tokio::time::timeout(within, collect).await;
        drop(asking);
        ids.iter().map(|id| has.get(id.hash()).copied().unwrap_or(false)).collect()
    }

    /// Peers that speak Bitswap, with whether they are chiral nodes, and every change from then on.
    /// A peer is reported as up once more when [`Handle::set_chiral`] changes what it is.
    pub(crate) fn peers(&self) -> (Vec<(PeerId, bool)>, broadcast::Receiver<PeerEvent>) {
        self.shared.up()
    }

    /// Block bytes received from and sent to a peer, also over earlier connections.
    pub(crate) fn ledger(&self, peer: PeerId) -> (u64, u64) {
        self.shared.ledgers.get(&peer)
    }

    /// The same of all peers that are remembered.
    pub(crate) fn ledgers(&self) -> Vec<(PeerId, Dealings)> {
        self.shared.ledgers.all()
    }

    /// Says what a connected peer is; forgotten when its last connection closes.
    pub(crate) fn set_chiral(&self, peer: PeerId, chiral: bool) {
        self.shared.set_chiral(&peer, chiral);
    }

    /// A block can be served from now on: peers that wait for it get it. Costs nothing while nobody waits.
    pub(crate) fn block_arrived(&self, id: &ContentId) {
        if !self.shared.waiting.any() {
            return;
        }
        for peer in self.shared.all() {
            let mut state = peer.state();
            if state.server.arrived(id.hash()) {
                state.kick();
            }
        }
    }
}

/// Questions about presence; given up when it is dropped.
struct Asking {
    peer: Arc<Peer>,
    ids: Vec<ContentId>,
    replies: client::HaveSender,
}

impl Asking {
    fn start(
        peer: Arc<Peer>,
        ids: &[ContentId],
    ) -> (Self, mpsc::UnboundedReceiver<(Multihash, bool)>) {
        let (replies, answers) = mpsc::unbounded_channel();
        let mut state = peer.state();
        for id in ids {
            if state.banned || !state.is_connected() {
                let _ = replies.send((*id.hash(), false));
            } else {
                state.client.want_have(*id, replies.clone());
            }
        }
        state.kick();
        drop(state);
        (Self { peer, ids: ids.to_vec(), replies }, answers)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut state = self.peer.state();
        state.client.cancel_haves(&self.ids, &self.replies);
        if state.client.has_work() {
            state.kick();
        }
    }
}
