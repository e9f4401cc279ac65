//! Rows that are out of date, and rows on their way to the disk.

use std::collections::BTreeSet;

use super::{Inode, Tree, UploadIno};

impl Tree {
    /// Rows to write and rows to take out since the last call. What could not be written is put back by [`Tree::undo_take`].
    pub(in crate::publish) fn take_changes(
        &mut self,
    ) -> (BTreeSet<UploadIno>, BTreeSet<UploadIno>) {
        let dirty = std::mem::take(&mut self.dirty);
        self.saving.clone_from(&dirty);
        (dirty, std::mem::take(&mut self.removed))
    }

    /// Returns whether there is a change that [`Tree::take_changes`] has not given.
    pub(in crate::publish) fn is_changed(&self) -> bool {
        !self.dirty.is_empty() || !self.removed.is_empty()
    }

    /// Marks the taken rows as durable.
    pub(in crate::publish) fn saved(&mut self) {
        self.saving.clear();
    }

    /// Returns whether the rows of an inode and of all above it are on the disk, and so its path.
    pub(in crate::publish) fn is_saved(&self, ino: UploadIno) -> bool {
        let parents = self.inodes.get(&ino).into_iter().flat_map(Inode::places).map(|p| p.parent);
        let above = parents.flat_map(|parent| [parent].into_iter().chain(self.ancestors(parent)));
        let mut path = [ino].into_iter().chain(above);
        path.all(|ino| !self.dirty.contains(&ino) && !self.saving.contains(&ino))
    }

    pub(in crate::publish) fn undo_take(
        &mut self,
        dirty: BTreeSet<UploadIno>,
        removed: BTreeSet<UploadIno>,
    ) {
        self.saving.clear();
        self.removed.extend(removed);
        dirty.into_iter().for_each(|ino| self.mark(ino));
    }
}
