//! What is kept: fetching it to its end, also after a restart, and knowing what is complete.

use std::{path::PathBuf, time::Duration};

use futures::StreamExt;

use super::{Node, NodeError, Place};
use crate::{
    content::ContentId,
    download::Strategy,
    store::{Pin, StateTree, StoreError},
    torrent::Selection,
};

/// Tree of the working state with a key for each pinned root of which everything was here. What is pinned is never
/// evicted, so that it stays; if the tree is lost, a look at the store writes it again.
const COMPLETE: &str = "pins-complete";

/// Pins that are fetched at once; the engine has more places, for those who read.
const AT_ONCE: usize = 4;

/// Wait before what nobody gave is asked for again, doubled each time up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A pin and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinState {
    /// What is kept.
    pub place: Place,
    /// The names that lead to it from its id; of a content, which has an id of its own, none.
    pub path: PathBuf,
    /// A name for people.
    pub name: String,
    /// The files that are kept, of a torrent of which not all are.
    pub only: Option<Selection>,
    /// Whether all of it is here.
    pub complete: bool,
}

impl Node {
    /// Keeps a file, or a directory with all below it, and waits until all of it is here. The pin stays when that fails:
    /// it is fetched again later, also by the next process.
    ///
    /// # Errors
    /// When somebody has to wait too long for a part, or the disk fails.
    pub async fn pin_to_end(
        &self,
        place: Place,
        name: String,
        only: Option<Selection>,
    ) -> Result<(), NodeError> {
        let protocol = self.protocol(&place);
        protocol.pin(&place, name, only)?;
        let fetched = protocol.fetch(&place).await;
        if fetched.is_err() {
            self.inner.pins_to_fetch.notify_one();
        }
        fetched
    }

    /// All pins, of all protocols.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn all_pins(&self) -> Result<Vec<PinState>, NodeError> {
        let mut all = Vec::new();
        for protocol in self.protocols() {
            all.extend(protocol.pins()?);
        }
        Ok(all)
    }

    /// Stops keeping a content; whether it was kept.
    ///
    /// # Errors
    /// When the store cannot write.
    pub(super) fn unpin_content(&self, root: &ContentId) -> Result<bool, NodeError> {
        let removed = self.store().unpin(root)?;
        self.complete_pins()?.remove(&key(root))?;
        Ok(removed)
    }

    /// The contents that are kept.
    pub(super) fn pinned_contents(&self) -> Result<Vec<PinState>, NodeError> {
        let complete = self.complete_pins()?;
        let state = |Pin { root, name }| {
            let complete = complete.get(&key(&root))?.is_some();
            let place = Place::Content { root, id: root };
            Ok(PinState { place, path: PathBuf::new(), name, only: None, complete })
        };
        self.store().pins()?.into_iter().map(state).collect()
    }

    /// Fetches what is pinned and not complete, for as long as the node runs.
    pub(super) fn keep_fetching_pins(&self) {
        let all = self.clone();
        self.tasks().lasting("pins", move || {
            let node = all.clone();
            async move {
                let cancelled = node.tasks().cancelled();
                tokio::select! {
                    () = node.fetch_pins() => {}
                    () = cancelled => {}
                }
            }
        });
    }

    async fn fetch_pins(&self) {
        let mut wait = FIRST_WAIT;
        loop {
            let node = self.clone();
            let looking = self.tasks().blocking("look at pins", move || node.missing_pins());
            // A panic was reported by the runtime; what is pinned next is looked at again.
            let missing = looking.await.unwrap_or_default();
            let all = futures::stream::iter(&missing).for_each_concurrent(AT_ONCE, async |place| {
                if let Err(error) = self.protocol(place).fetch(place).await {
                    tracing::info!(?place, %error, "a pin is not complete; it is tried again");
                }
            });
            all.await;
            if missing.is_empty() {
                self.inner.pins_to_fetch.notified().await;
                wait = FIRST_WAIT;
            } else {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }

    fn missing_pins(&self) -> Vec<Place> {
        match self.all_pins() {
            Ok(pins) => pins.into_iter().filter(|p| !p.complete).map(|p| p.place).collect(),
            Err(error) => {
                tracing::warn!(%error, "the pins cannot be read");
                Vec::new()
            }
        }
    }

    /// Fetches a content to its end.
    pub(super) async fn fetch_content(&self, root: &ContentId) -> Result<(), NodeError> {
        self.engine().fetch(root, Strategy::RarestFirst).await?;
        Ok(self.note_complete(root)?)
    }

    /// All of a pinned root is here.
    pub(super) fn note_complete(&self, root: &ContentId) -> Result<(), StoreError> {
        // It may have been given up meanwhile.
        if self.store().pins()?.iter().any(|pin| pin.root == *root) {
            self.complete_pins()?.insert(&key(root), &[])?;
        }
        Ok(())
    }

    fn complete_pins(&self) -> Result<StateTree, StoreError> {
        self.store().state(COMPLETE)
    }
}

fn key(root: &ContentId) -> Vec<u8> {
    root.to_bytes()
}
