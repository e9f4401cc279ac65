//! What the searches that run for one root share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use crate::content::ContentId;

/// One `T` for each root that is searched for; it goes with the last search that holds it. Clones are the same.
#[derive(Debug)]
pub(super) struct PerRoot<T> {
    held: Arc<Mutex<HashMap<ContentId, Weak<T>>>>,
}

impl<T> Clone for PerRoot<T> {
    fn clone(&self) -> Self {
        Self { held: self.held.clone() }
    }
}

impl<T> Default for PerRoot<T> {
    fn default() -> Self {
        Self { held: Arc::default() }
    }
}

impl<T> PerRoot<T> {
    fn held(&self) -> MutexGuard<'_, HashMap<ContentId, Weak<T>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a root's searches share, made by the first of them.
    pub(super) fn share(&self, root: &ContentId, make: impl FnOnce() -> T) -> Arc<T> {
        let mut held = self.held();
        held.retain(|_, shared| shared.strong_count() > 0);
        if let Some(shared) = held.get(root).and_then(Weak::upgrade) {
            return shared;
        }
        let shared = Arc::new(make());
        held.insert(*root, Arc::downgrade(&shared));
        shared
    }

    /// The same while a search runs.
    pub(super) fn get(&self, root: &ContentId) -> Option<Arc<T>> {
        self.held().get(root).and_then(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::content::Block;

    #[test]
    fn searches_for_one_root_share_and_nothing_stays_behind_the_last() {
        let [one, two] = [b"one", b"two"].map(|bytes| *Block::raw(bytes.to_vec().into()).cid());
        let shared = PerRoot::default();
        let first = shared.share(&one, || 1);
        assert_eq!((*shared.share(&one, || 2), *shared.share(&two, || 3)), (1, 3));
        assert_eq!(shared.get(&one), Some(first));
        assert_eq!(shared.get(&one), None);
        assert_eq!(*shared.clone().share(&two, || 4), 4);
        assert_eq!(shared.held().len(), 1);
    }
}
