//! What is remembered of sources over restarts.

use super::stats::Reputation;
use crate::{
    sources::SourceId,
    store::{StateTree, Store, StoreError},
};

/// Sources that are remembered: a node that meets more than this forgets some at its next start.
const MOST_SOURCES: usize = 10_000;

/// The reputations of the sources that gave something, in the working state of the store.
///
/// Losing them costs a slower start only, so that failures are logged and no more.
#[derive(Debug)]
pub(super) struct Reputations(Option<StateTree>);

impl Reputations {
    pub(super) fn open(store: &Store) -> Self {
        let tree = store.state("reputation").and_then(|tree| trim(&tree).map(|()| tree));
        Self(tree.inspect_err(|e| tracing::warn!("no reputations of sources: {e}")).ok())
    }

    pub(super) fn get(&self, source: &SourceId) -> Option<Reputation> {
        let row = self.0.as_ref()?.get(source.0.as_bytes()).ok()??;
        serde_json::from_slice(&row).ok()
    }

    pub(super) fn put(&self, source: &SourceId, reputation: Reputation) {
        let Some(tree) = &self.0 else { return };
        // A stranger who never gave a block is not worth a row.
        if reputation.rate.is_none() {
            return;
        }
        let Ok(row) = serde_json::to_vec(&reputation) else { return };
        if let Err(error) = tree.insert(source.0.as_bytes(), &row) {
            tracing::debug!("reputation of {source} not kept: {error}");
        }
    }
}

fn trim(tree: &StateTree) -> Result<(), StoreError> {
    let extra: Vec<_> = tree.iter().skip(MOST_SOURCES).collect::<Result<_, _>>()?;
    extra.iter().try_for_each(|(key, _)| tree.remove(key))
}
