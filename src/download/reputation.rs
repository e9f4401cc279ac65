//! What is remembered of sources over restarts.

use super::stats::Reputation;
use crate::{
    sources::SourceId,
    store::{StateTree, Store},
};

/// The reputations of all sources that were ever used, in the working state of the store.
///
/// Losing them costs a slower start only, so that failures are logged and no more.
#[derive(Debug)]
pub(super) struct Reputations(Option<StateTree>);

impl Reputations {
    pub(super) fn open(store: &Store) -> Self {
        let tree = store.state("reputation");
        Self(tree.inspect_err(|e| tracing::warn!("no reputations of sources: {e}")).ok())
    }

    pub(super) fn get(&self, source: &SourceId) -> Option<Reputation> {
        let row = self.0.as_ref()?.get(source.0.as_bytes()).ok()??;
        serde_json::from_slice(&row).ok()
    }

    pub(super) fn put(&self, source: &SourceId, reputation: Reputation) {
        let Some(tree) = &self.0 else { return };
        let Ok(row) = serde_json::to_vec(&reputation) else { return };
        if let Err(error) = tree.insert(source.0.as_bytes(), &row) {
            tracing::debug!("reputation of {source} not kept: {error}");
        }
    }
}
