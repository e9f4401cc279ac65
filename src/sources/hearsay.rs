//! What one search for a root hears that another can use: peers for Bitswap that an HTTP router names, and HTTP
//! addresses of providers that the DHT names.

use std::sync::Arc;

use tokio::sync::broadcast;

use super::per_root::PerRoot;
use crate::{content::ContentId, net::Provider};

/// News that a search may lag behind before it loses the oldest: as many as a router names at most.
const BACKLOG: usize = 128;

/// What is passed on between the searches for one root.
#[derive(Debug)]
pub(super) struct Channel {
    /// Peers to be dialled.
    pub(super) peers: broadcast::Sender<Provider>,
    /// Multiaddresses of HTTP servers.
    pub(super) servers: broadcast::Sender<String>,
}

/// The channels between finders that were built with clones of it.
#[derive(Clone, Debug, Default)]
pub struct Hearsay(PerRoot<Channel>);

impl Hearsay {
    /// The channel of a root; all searches that run for it share one.
    pub(super) fn of(&self, root: &ContentId) -> Arc<Channel> {
        self.0.share(root, || Channel {
            peers: broadcast::Sender::new(BACKLOG),
            servers: broadcast::Sender::new(BACKLOG),
        })
    }
}
