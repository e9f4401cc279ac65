//! Which objects have a handle: one is shared by all that use the object.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use super::{Object, ObjectId};
use crate::content::ContentId;

/// The objects that have a handle.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) by_id: HashMap<ObjectId, Weak<Object>>,
    /// Objects made by this process, which may not be in the index yet.
    /// By the CID of version 1.
    by_root: HashMap<ContentId, Weak<Object>>,
    /// Being evicted: not to be opened again.
    pub(super) dying: HashSet<ObjectId>,
}

impl Registry {
    pub(super) fn insert(&mut self, object: &Arc<Object>) {
        self.by_id.insert(object.id(), Arc::downgrade(object));
    }

    /// Takes in an object that this process has made.
    pub(super) fn insert_made(&mut self, object: &Arc<Object>) {
        self.insert(object);
        self.by_root.insert(object.root().to_v1(), Arc::downgrade(object));
    }

    /// The object that this process made for a root and that still has a handle. The last handle of an object locks the
    /// registry when it goes: none may be dropped while the registry is locked, in the same statement for one.
    pub(super) fn made(&self, root: &ContentId) -> Option<Arc<Object>> {
        self.by_root.get(&root.to_v1()).and_then(Weak::upgrade)
    }

    pub(super) fn is_open(&self, id: ObjectId) -> bool {
        self.by_id.get(&id).is_some_and(|weak| weak.strong_count() > 0)
    }

    pub(super) fn open_ids(&self) -> Vec<ObjectId> {
        self.by_id.iter().filter(|(_, w)| w.strong_count() > 0).map(|(id, _)| *id).collect()
    }

    /// Claims an object that nobody has open; no handle can be made from then on.
    pub(super) fn claim(&mut self, id: ObjectId) -> bool {
        !self.is_open(id) && self.dying.insert(id)
    }

    pub(super) fn unclaim(&mut self, id: ObjectId) {
        self.dying.remove(&id);
    }

    /// The next handle is made from the row as it is by then.
    pub(super) fn renew(&mut self, id: ObjectId) {
        self.by_id.remove(&id);
    }

    pub(super) fn forget(&mut self, object: &Object) {
        // Another handle may have been made since the last one of this object went.
        if self.by_id.get(&object.id()).is_some_and(|weak| weak.strong_count() == 0) {
            self.by_id.remove(&object.id());
        }
        let root = object.root().to_v1();
        if self.by_root.get(&root).is_some_and(|weak| weak.strong_count() == 0) {
            self.by_root.remove(&root);
        }
    }
}
