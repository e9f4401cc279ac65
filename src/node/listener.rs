//! What happens when something is published: it is announced, and those who watch are told.

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;

use super::seeding::{Seeds, Upload};
use crate::{
    content::{ContentId, sha2_256},
    download::{Engine, Event},
    net::Net,
    publish::Listener,
};

/// Announces published roots to the network and puts them on the event stream.
#[derive(Debug)]
pub(super) struct Announcer {
    net: Net,
    engine: Engine,
    /// Where what is published is seeded.
    seeds: Option<Seeds>,
}

impl Announcer {
    pub(super) fn new(net: Net, engine: Engine, seeds: Option<Seeds>) -> Self {
        Self { net, engine, seeds }
    }

    /// Puts the roots that are announced on the event stream, until `end`.
    pub(super) async fn tell_announced(self: Arc<Self>, end: impl Future<Output = ()>) {
        let mut announced = self.net.announced();
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                root = announced.recv() => match root {
                    Ok(cid) => self.engine.emit(Event::Announced { cid }),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }
}

impl Listener for Announcer {
    fn published(&self, root: &ContentId, name: &str, size: u64) {
        self.engine.emit(Event::Published { cid: *root, name: name.to_owned(), size });
        // Everybody has the empty file already; announcing it would only draw requests.
        if root.hash() == &sha2_256(b"") {
            return;
        }
        // What lies in a directory is seeded with that.
        if let Some(seeds) = self.seeds.as_ref().filter(|_| !name.contains('/')) {
            // It ends with the node.
            let _ = seeds.send(Upload::Published { root: *root, name: name.to_owned() });
        }
        // Peers may have asked for it before it was here.
        self.net.block_arrived(root);
        // The queue is on disk and is asked again; a failure here must not undo the publication.
        if let Err(error) = self.net.announce(root) {
            tracing::warn!(%root, %error, "cannot queue the announcement");
        }
    }

    fn unpublished(&self, root: &ContentId) {
        if let Some(seeds) = &self.seeds {
            let _ = seeds.send(Upload::Withdrawn { root: *root });
        }
        if let Err(error) = self.net.withdraw(root) {
            tracing::warn!(%root, %error, "cannot take the announcement back");
        }
    }
}
