//! Ids of directories: derived from the tree, recomputed from the bottom up where something changed.

use std::{
    cmp::Reverse,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    Inner, UploadIno,
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

/// A child as its directory links to it.
type Link = (String, ContentId, u64);

impl Inner {
    /// Recomputes the ids of all directories that are out of date; their nodes go with the next flush.
    pub(super) fn compute_directories(&self) {
        let _turn = self.directories.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stale: Vec<_> = {
            let names = self.names();
            let depth = |ino: &UploadIno| names.tree.ancestors(*ino).count();
            names.tree.stale().iter().map(|ino| (Reverse(depth(ino)), *ino)).collect()
        };
        stale.sort_unstable();
        for (_, ino) in stale {
            let Some(links) = self.links(ino) else { continue };
            let mut builder = DirectoryBuilder::new(self.options.import);
            links.iter().for_each(|(name, root, tsize)| builder.add(name, *root, *tsize));
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
        self.changed.notify_waiters();
    }

    /// The children that have an id; files that were never published have none yet.
    fn links(&self, ino: UploadIno) -> Option<Vec<Link>> {
        let mut names = self.names();
        names.tree.begin_root(ino);
        let directory = names.tree.get(ino).ok()?.directory().ok()?;
        let link = |(name, child): (&std::ffi::OsString, &UploadIno)| {
            let (root, tsize) = link_of(names.tree.get(*child).ok()?)?;
            // Names of a DAG are UTF-8; what is none gets the replacement character there.
            Some((name.to_string_lossy().into_owned(), root, tsize))
        };
        Some(directory.children.iter().filter_map(link).collect())
    }
}

/// Id and Tsize of an inode as far as they are known.
pub(super) fn link_of(inode: &Inode) -> Option<(ContentId, u64)> {
    match &inode.body {
        Body::File(sealed) => sealed.as_ref().map(|sealed| (sealed.root, sealed.tsize)),
        Body::Directory(dir) => dir.root.as_ref().map(|root| (root.root, root.tsize)),
        Body::Symlink(target) => {
            let block = symlink(&target.to_string_lossy(), Metadata::default());
            Some((*block.cid(), block.data().len() as u64))
        }
    }
}
