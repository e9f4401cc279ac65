//! What the tree lock guards: the tree, the files in it, and what the next commit takes along.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError},
};

use super::{
    Inner, PublishError, RenameMode, UploadAttr, UploadIno,
    dirs::link_of,
    file::FileCell,
    seal::Finished,
    tree::{Body, Owner, Request, Tree},
};
use crate::{
    content::{Block, ContentId, Metadata, symlink},
    store::ObjectId,
};

/// State under the tree lock; held for microseconds, never over I/O, and the last of all locks.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) tree: Tree,
    pub(super) cells: HashMap<UploadIno, Arc<FileCell>>,
    /// Objects and working files that lose an owner with the next commit.
    pub(super) released: Vec<ObjectId>,
    /// Nodes of directories and symlinks for the next commit.
    pub(super) nodes: Vec<Block>,
    /// Versions for the next commit.
    pub(super) finished: Vec<Finished>,
    /// Roots that no file has any more, for the next commit.
    pub(super) gone: Vec<ContentId>,
    /// How many files have each root.
    roots: HashMap<ContentId, usize>,
}

impl Names {
    pub(super) fn new(tree: Tree) -> Self {
        let mut names = Self {
            tree,
            cells: HashMap::new(),
            released: Vec::new(),
            nodes: Vec::new(),
            finished: Vec::new(),
            gone: Vec::new(),
            roots: HashMap::new(),
        };
        let roots: Vec<_> = names
            .tree
            .iter()
            .filter_map(|(_, inode)| match &inode.body {
                Body::File(sealed) => sealed.as_ref().map(|sealed| sealed.root),
                _ => None,
            })
            .collect();
        roots.into_iter().for_each(|root| names.add_root(root));
        names
    }

    pub(super) fn add_root(&mut self, root: ContentId) {
        *self.roots.entry(root).or_default() += 1;
    }

    pub(super) fn remove_root(&mut self, root: ContentId) {
        if let Some(count) = self.roots.get_mut(&root) {
            *count -= 1;
            if *count == 0 {
                self.roots.remove(&root);
                self.gone.push(root);
            }
        }
    }

    /// How many files of the tree have this root.
    pub(super) fn count(&self, root: &ContentId) -> usize {
        self.roots.get(root).copied().unwrap_or(0)
    }

    /// The last component of the path; empty for the root and orphans.
    pub(super) fn name(&self, ino: UploadIno) -> String {
        let place = self.tree.get(ino).ok().and_then(|inode| inode.place.as_ref());
        place.map(|place| place.name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The path below the root of the tree.
    pub(super) fn path(&self, ino: UploadIno) -> String {
        let mut parts: Vec<_> = std::iter::once(ino)
            .chain(self.tree.ancestors(ino))
            .filter_map(|ino| self.tree.get(ino).ok()?.place.as_ref())
            .map(|place| place.name.as_os_str())
            .collect();
        parts.reverse();
        parts.into_iter().collect::<PathBuf>().to_string_lossy().into_owned()
    }

    /// Whether it was copied by an import that has not come to its end.
    pub(super) fn is_importing(&self, ino: UploadIno) -> bool {
        let mut places = std::iter::once(ino)
            .chain(self.tree.ancestors(ino))
            .filter_map(|ino| self.tree.get(ino).ok()?.place.as_ref());
        places.any(|p| p.parent == UploadIno::ROOT && super::import::is_scratch(&p.name))
    }

    /// Ids of the directories and symlinks at the top: what their nodes reach is kept. None while one is out of date,
    /// so that its old nodes stay until the new ones are there.
    pub(super) fn top_nodes(&self) -> Option<Vec<ContentId>> {
        let top = self.tree.get(UploadIno::ROOT).ok()?.directory().ok()?;
        let entries = top.children.iter();
        let nodes = entries.filter_map(|(name, ino)| Some((name, self.tree.get(*ino).ok()?)));
        let nodes = nodes.filter(|(name, inode)| {
            !matches!(inode.body, Body::File(_))
                && !self.tree.is_entry_ignored(UploadIno::ROOT, name, inode)
        });
        nodes.map(|(_, inode)| link_of(inode).map(|(root, _)| root)).collect()
    }

    pub(super) fn cell(&self, ino: UploadIno) -> Result<Arc<FileCell>, PublishError> {
        match &self.tree.get(ino)?.body {
            Body::File(_) => self.cells.get(&ino).cloned().ok_or(PublishError::NotFound),
            Body::Directory(_) => Err(PublishError::IsADirectory),
            Body::Symlink(_) => Err(PublishError::Invalid("a symlink is not opened")),
        }
    }
}

impl Inner {
    pub(super) fn writable(&self) -> Result<(), PublishError> {
        if self.options.read_only {
            return Err(PublishError::ReadOnly);
        }
        Ok(self.store.check_writable()?)
    }

    /// Logs an error, unless it tells of trouble with the disk that was logged already.
    pub(super) fn warn(&self, error: &PublishError, message: &'static str) {
        match error {
            PublishError::Store(source) if self.store.tell(source) => {}
            error => tracing::warn!(%error, "{message}"),
        }
    }

    /// Something in the tree changed: it becomes durable, and ids of directories follow.
    pub(super) fn changed_names(&self) {
        self.flusher.later();
        self.directories.wake();
    }

    pub(super) fn add(
        &self,
        parent: UploadIno,
        name: &OsStr,
        owner: Owner,
        body: Body,
    ) -> Result<UploadIno, PublishError> {
        self.writable()?;
        self.store.admit_row()?;
        let node = match &body {
            Body::Symlink(target) => Some(symlink(target.as_bytes(), Metadata::default())),
            _ => None,
        };
        let ino = {
            let mut names = self.names();
            let ino = names.tree.add(parent, name, owner, body, super::now())?;
            if !names.tree.is_ignored(ino) {
                names.nodes.extend(node);
            }
            ino
        };
        self.changed_names();
        Ok(ino)
    }

    pub(super) fn unlink(&self, parent: UploadIno, name: &OsStr) -> Result<(), PublishError> {
        self.writable()?;
        let (ino, orphan, changed) = {
            let mut names = self.names();
            let ino = names.tree.unlink(parent, name, super::now())?;
            (ino, names.tree.is_orphan(ino), names.tree.review_linked(ino))
        };
        if orphan {
            self.orphaned(ino);
        }
        self.follow(changed);
        self.changed_names();
        self.name_changed(parent, name);
        Ok(())
    }

    pub(super) fn link(
        &self,
        ino: UploadIno,
        parent: UploadIno,
        name: &OsStr,
    ) -> Result<UploadAttr, PublishError> {
        self.writable()?;
        let changed = {
            let mut names = self.names();
            names.tree.link(ino, parent, name, super::now())?;
            names.tree.review_linked(ino)
        };
        self.follow(changed);
        self.changed_names();
        self.name_changed(parent, name);
        self.getattr(ino)
    }

    pub(super) fn rmdir(&self, parent: UploadIno, name: &OsStr) -> Result<(), PublishError> {
        self.writable()?;
        let ino = self.names().tree.rmdir(parent, name, super::now())?;
        self.orphaned(ino);
        self.changed_names();
        Ok(())
    }

    pub(super) fn rename(
        &self,
        from: (UploadIno, &OsStr),
        to: (UploadIno, &OsStr),
        mode: RenameMode,
    ) -> Result<(), PublishError> {
        self.rename_as(from, to, mode, None)
    }

    /// As [`Inner::rename`], of what the user has named by what it is called from then on.
    pub(super) fn rename_requested(
        &self,
        from: (UploadIno, &OsStr),
        to: (UploadIno, &OsStr),
        mode: RenameMode,
    ) -> Result<(), PublishError> {
        self.rename_as(from, to, mode, Some(Request::Named))
    }

    fn rename_as(
        &self,
        from: (UploadIno, &OsStr),
        to: (UploadIno, &OsStr),
        mode: RenameMode,
        request: Option<Request>,
    ) -> Result<(), PublishError> {
        self.writable()?;
        let (replaced, moved, changed) = {
            let mut names = self.names();
            // What was imported was never looked at by the rules that hold here.
            let scope = if request.is_some() { None } else { names.tree.scope(from.0) };
            let target = names.tree.lookup(to.0, to.1).ok();
            let replaced = names.tree.rename(from, to, mode, super::now())?;
            let moved = names.tree.lookup(to.0, to.1)?;
            if let Some(request) = request {
                names.tree.set_request(moved, request);
            }
            let mut changed = names.tree.review_moved(moved, scope.as_ref());
            // What an import replaces is removed next, and not published for that time.
            if mode == RenameMode::Exchange && request.is_none() {
                let other = names.tree.lookup(from.0, from.1)?;
                let scope = names.tree.scope(to.0);
                changed.extend(names.tree.review_moved(other, scope.as_ref()));
            }
            // It may have names left, and be ignored under all of them.
            changed.extend(target.map(|ino| names.tree.review_linked(ino)).unwrap_or_default());
            (replaced, moved, changed)
        };
        if to.0 == UploadIno::ROOT {
            // It may be a directory that was none of the top level before.
            self.announcer.rested(moved);
        }
        if let Some(ino) = replaced {
            self.orphaned(ino);
        }
        self.follow(changed);
        self.changed_names();
        self.name_changed(from.0, from.1);
        if from != to {
            self.name_changed(to.0, to.1);
        }
        Ok(())
    }

    /// Takes the tree lock.
    pub(super) fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An inode has lost its name. Without open handles it goes at once.
    pub(super) fn orphaned(&self, ino: UploadIno) {
        let cell = {
            let mut names = self.names();
            let cell = names.cells.get(&ino).cloned();
            if cell.is_none() {
                names.tree.forget(ino);
            }
            cell
        };
        if let Some(cell) = cell {
            let mut state = cell.quiet_state();
            state.orphan = true;
            if state.progress.handles() == 0 && !state.dead {
                self.bury(&cell, &mut state);
            }
        }
        self.announcer.removed(ino);
        self.changed.notify_waiters();
    }

    /// Gives up everything that a file without name and handles holds.
    pub(super) fn bury(&self, cell: &FileCell, state: &mut super::file::FileState) {
        state.dead = true;
        (state.linger, state.layer) = (None, None);
        let work = state.work.take().map(|work| work.id());
        let mut names = self.names();
        names.released.extend(work);
        if let Some(sealed) = names.tree.sealed(cell.ino).cloned() {
            names.released.extend(sealed.objects());
            names.remove_root(sealed.root);
        }
        names.cells.remove(&cell.ino);
        names.tree.forget(cell.ino);
    }
}
