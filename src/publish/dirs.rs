//! Ids of directories: derived from the tree, recomputed from the bottom up where something changed.

use std::{
    cmp::Reverse,
    ffi::OsString,
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    Inner, UploadIno, import,
    tree::{Body, Inode},
};
use crate::content::{ContentId, DirectoryBuilder, Metadata, symlink};

/// How long nothing must change before ids are recomputed: a copy of many files needs few recomputations.
const REST: Duration = Duration::from_millis(200);
/// Longest time that steady changes put them off.
const LONGEST: Duration = Duration::from_secs(5);

/// Id of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DirectoryRoot {
    pub(super) root: ContentId,
    /// Bytes of all blocks of it and below it.
    pub(super) tsize: u64,
}

/// When ids are recomputed.
#[derive(Debug, Default)]
pub(super) struct Directories {
    changed: Mutex<Option<(Instant, Instant)>>,
    wake: Notify,
    /// One computation at a time. Taken before the tree lock.
    turn: Mutex<()>,
    /// Walks over whole subtrees, which those that wait for an id make.
    #[cfg(test)]
    pub(super) walks: std::sync::atomic::AtomicUsize,
}

impl Directories {
    /// Something in a directory changed.
    pub(super) fn wake(&self) {
        let now = Instant::now();
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        *changed = Some((changed.map_or(now, |(first, _)| first), now));
        drop(changed);
        self.wake.notify_one();
    }

    fn due(&self) -> Option<Instant> {
        let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        changed.map(|(first, last)| (last + REST).min(first + LONGEST))
    }

    async fn wait(&self) {
        loop {
            match self.due() {
                Some(due) if due <= Instant::now() => {
                    *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    return;
                }
                Some(due) => {
                    tokio::select! { () = sleep_until(due) => {}, () = self.wake.notified() => {} }
                }
                None => self.wake.notified().await,
            }
        }
    }
}

/// Recomputes what is due until the end of the daemon.
pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.tasks.cancelled() => return,
            () = inner.directories.wait() => {}
        }
        let computing = inner.clone();
        // An error is a panic, which the runtime has reported.
        let _ = inner.tasks.blocking("directories", move || computing.compute_directories()).await;
        inner.flusher.later();
    }
}

/// A child as its directory links to it. Names are bytes, in a DAG as on a disk.
type Link = (OsString, ContentId, u64);

/// How often what went out of date meanwhile is computed, too; after that the next round does it.
const ROUNDS: u32 = 16;

impl Inner {
    /// Recomputes the ids of all directories that are out of date; their nodes go with the next flush.
    pub(super) fn compute_directories(&self) {
        let _turn = self.directories.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ROUNDS {
            let mut stale: Vec<_> = {
                let names = self.names();
                let depth = |ino: &UploadIno| names.tree.ancestors(*ino).count();
                names.tree.stale().iter().map(|ino| (Reverse(depth(ino)), *ino)).collect()
            };
            if stale.is_empty() {
                break;
            }
            stale.sort_unstable();
            stale.into_iter().for_each(|(_, ino)| self.compute_directory(ino));
        }
        self.changed.notify_waiters();
    }

    fn compute_directory(&self, ino: UploadIno) {
        let Some(links) = self.links(ino) else { return };
        let mut builder = DirectoryBuilder::new(self.options.import);
        links.iter().for_each(|(name, root, tsize)| builder.add(name.as_bytes(), *root, *tsize));
        let built = builder.finish(Metadata::default());
        let mut names = self.names();
        names.nodes.extend(built.nodes);
        let root = DirectoryRoot { root: built.root, tsize: built.tsize };
        let top = names.tree.parent(ino).is_ok_and(|up| up == UploadIno::ROOT);
        names.tree.set_root(ino, root);
        drop(names);
        if top && ino != UploadIno::ROOT {
            self.announcer.rested(ino);
        }
    }

    /// The children that have an id; files that were never published have none yet. None while a directory among them has
    /// none, because it was made or changed since it had its turn: this one has to wait for it, and stays out of date.
    pub(super) fn links(&self, ino: UploadIno) -> Option<Vec<Link>> {
        let mut names = self.names();
        let directory = names.tree.get(ino).ok()?.directory().ok()?;
        let mut links = Vec::with_capacity(directory.children.len());
        for (name, child) in &directory.children {
            if ino == UploadIno::ROOT && import::is_scratch(name) {
                continue;
            }
            let child = names.tree.get(*child).ok()?;
            if names.tree.is_entry_ignored(ino, name, child) {
                continue;
            }
            match link_of(child) {
                Some((root, tsize)) => links.push((name.clone(), root, tsize)),
                None if matches!(child.body, Body::Directory(_)) => return None,
                None => {}
            }
        }
        names.tree.begin_root(ino);
        Some(links)
    }
}

/// Id and Tsize of an inode as far as they are known. What is ignored has none.
pub(super) fn link_of(inode: &Inode) -> Option<(ContentId, u64)> {
    if inode.ignored {
        return None;
    }
    match &inode.body {
        Body::File(sealed) => sealed.as_ref().map(|sealed| (sealed.root, sealed.tsize)),
        Body::Directory(dir) => dir.root.as_ref().map(|root| (root.root, root.tsize)),
        Body::Symlink(target) => {
            let block = symlink(target.as_bytes(), Metadata::default());
            Some((*block.cid(), block.data().len() as u64))
        }
    }
}
