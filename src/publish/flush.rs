//! The group commit of the upload tree: rows, versions, directory nodes and releases in one batch of the store.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    Inner, PublishError, UploadIno,
    file::{FileCell, Phase},
    layer,
    row::{Row, Sealed, WorkRow},
    seal::Finished,
    tree::{Body, Inode},
};
use crate::{
    content::{Block, ContentId, FileInfo},
    store::{Batch, ObjectId, Seal, StoreError},
};

/// Longest time that a change of names waits for its commit.
const LATER: Duration = Duration::from_secs(1);
/// How long a hashed file waits for others, so that a copy of many files needs few commits.
const SOON: Duration = Duration::from_millis(20);
/// How long to wait after a commit that failed.
pub(super) const FAILED: Duration = Duration::from_secs(5);

/// When the next flush is due.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    due: Mutex<Option<Instant>>,
    wake: Notify,
    /// One flush at a time, so that an older row never overwrites a newer one. Taken before every other lock and held over
    /// the commit on purpose: only flushes wait for it.
    turn: Mutex<()>,
    /// Objects that a batch wanted to own and the store refused: the next attempt seals copies of its own.
    refused: Mutex<HashSet<ObjectId>>,
}

impl Flusher {
    pub(super) fn later(&self) {
        self.within(LATER);
    }

    pub(super) fn soon(&self) {
        self.within(SOON);
    }

    pub(super) fn within(&self, delay: Duration) {
        let at = Instant::now() + delay;
        let mut due = self.due();
        if due.is_none_or(|due| at < due) {
            *due = Some(at);
            self.wake.notify_one();
        }
    }

    fn refused(&self) -> MutexGuard<'_, HashSet<ObjectId>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn due(&self) -> MutexGuard<'_, Option<Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait(&self) {
        loop {
            let due = *self.due();
            match due {
                Some(at) if at <= Instant::now() => {
                    *self.due() = None;
                    return;
                }
                Some(at) => {
                    tokio::select! { () = sleep_until(at) => {}, () = self.wake.notified() => {} }
                }
                None => self.wake.notified().await,
            }
        }
    }
}

/// Flushes what is due until the end of the daemon.
pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.tasks.cancelled() => return,
            () = inner.flusher.wait() => {}
        }
        let flushing = inner.clone();
        let flush = move || {
            flushing.tell_skipped();
            flushing.flush()
        };
        let flushed = inner.tasks.blocking("flush", flush).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                inner.warn(&error, "the upload tree could not be written; it is tried again");
                inner.flusher.within(FAILED);
            }
            // A panic, which was reported; what it left is written with the next.
            Err(_) => inner.flusher.within(FAILED),
        }
    }
}

/// A version on its way through one commit.
struct Committing {
    cell: Arc<FileCell>,
    generation: u64,
    sealed: Sealed,
    name: String,
}

/// What one flush writes, and what is needed to put it back.
#[derive(Default)]
struct Round {
    batch: Batch,
    dirty: BTreeSet<UploadIno>,
    removed: BTreeSet<UploadIno>,
    /// What is dirty as it was when the set was taken: all under one lock, so that no row names a directory which only the
    /// next round would write.
    inodes: BTreeMap<UploadIno, Inode>,
    released: Vec<ObjectId>,
    nodes: Vec<Block>,
    gone: Vec<ContentId>,
    /// Roots that end with this round, for the versions that replace theirs.
    replaced: Vec<ContentId>,
    committing: BTreeMap<UploadIno, Committing>,
    /// Working files that this round brings to the disk.
    synced: Vec<(Arc<FileCell>, ObjectId)>,
}

impl Inner {
    /// Makes everything durable that was changed before the call. Blocks for the time of a commit.
    pub(super) fn flush(&self) -> Result<(), PublishError> {
        let _turn = self.flusher.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut round, finished) = self.begin_round();
        self.choose(&mut round, finished);
        let owned: Vec<_> = round.batch.own.iter().map(|(object, _)| *object).collect();
        match self.commit(round) {
            Err(PublishError::Store(StoreError::Rejected(reason))) if !owned.is_empty() => {
                // Those files are hashed once more and get copies of their own; all else goes on without them.
                tracing::warn!(reason, "content that was to be shared is not whole any more");
                self.flusher.refused().extend(owned);
                let (round, none) = self.begin_round();
                self.names().finished.extend(none);
                self.commit(round)
            }
            done => done,
        }
    }

    /// As [`Inner::flush`], for callers that must not block.
    pub(super) async fn flush_soon(self: &Arc<Self>) -> Result<(), PublishError> {
        let inner = self.clone();
        let flushed = self.tasks.blocking("flush", move || inner.flush());
        flushed.await.map_err(|_| PublishError::Closed)?
    }

    fn commit(&self, mut round: Round) -> Result<(), PublishError> {
        let committed = self.rows(&mut round).and_then(|()| {
            self.store.commit(std::mem::take(&mut round.batch)).map_err(PublishError::from)
        });
        match committed {
            Ok(()) => {
                if !round.committing.is_empty() {
                    self.flusher.refused().clear();
                }
                self.apply(round);
            }
            Err(_) => self.undo(round),
        }
        committed
    }

    fn begin_round(&self) -> (Round, Vec<Finished>) {
        let mut names = self.names();
        let (dirty, removed) = names.tree.take_changes();
        let finished = std::mem::take(&mut names.finished);
        let inodes = dirty.iter().copied().chain(finished.iter().map(|done| done.cell.ino));
        let inodes = inodes.filter_map(|ino| Some((ino, names.tree.get(ino).ok()?.for_row())));
        let inodes = inodes.collect();
        let nodes = std::mem::take(&mut names.nodes);
        let published = if nodes.is_empty() { None } else { names.top_nodes() };
        let round = Round {
            batch: Batch { published, ..Batch::default() },
            dirty,
            removed,
            inodes,
            released: std::mem::take(&mut names.released),
            nodes,
            gone: std::mem::take(&mut names.gone),
            ..Round::default()
        };
        (round, finished)
    }

    /// Takes the versions that are still the newest into the batch. Files with the same content become one object, also
    /// where that is sealed by this very batch.
    fn choose(&self, round: &mut Round, finished: Vec<Finished>) {
        let mut chosen: HashMap<ContentId, ObjectId> = HashMap::new();
        for done in finished {
            let root = done.hashed.root;
            let existing = match chosen.get(&root) {
                Some(object) => Some(*object),
                None => self.existing(&root, done.stamp.size),
            };
            let mut state = done.cell.state();
            // One that is gone holds nothing any more, and would never let go of what it got here.
            let begun = !state.dead && state.progress.begin_commit(done.generation);
            let ignored = begun && self.names().tree.is_ignored(done.cell.ino);
            drop(state);
            if ignored {
                // Since it was hashed. It goes the way of all that is ignored.
                self.seal_later(&done.cell, done.generation, Duration::ZERO);
                done.cell.wake();
            } else if begun {
                let object = self.take(round, done, existing);
                chosen.insert(root, object);
            }
        }
    }

    /// An object that holds the content already, and whose bytes were right a short time ago: the copy that came goes.
    fn existing(&self, root: &ContentId, size: u64) -> Option<ObjectId> {
        // Where the index cannot be read the commit will say so.
        let object = self.store.object(root).ok().flatten()?;
        let right = object.is_complete()
            && object.size() == size
            && !self.flusher.refused().contains(&object.id())
            && self.store.is_verified(object.id())
            && object.verified_backing().is_ok_and(|file| file.is_some());
        right.then(|| object.id())
    }

    /// Gives the object that the version lies in.
    fn take(&self, round: &mut Round, done: Finished, existing: Option<ObjectId>) -> ObjectId {
        let Finished { cell, generation, object: work, spare, below, stamp, hashed } = done;
        let ino = cell.ino;
        let name = self.names().name(ino);
        round.batch.files.push(FileInfo {
            cid: hashed.root,
            name: name.clone(),
            size: stamp.size,
            chunks: Vec::new(),
            created_at: SystemTime::now(),
        });
        let old = self.names().tree.sealed(ino).cloned();
        let mut released: BTreeSet<_> = old.iter().flat_map(Sealed::objects).chain(spare).collect();
        let (object, below) = match existing {
            Some(existing) => {
                round.batch.own.push((existing, hashed.root));
                released.insert(work);
                // Should some be missing, publishing it once more brings them back.
                round.batch.nodes.extend(hashed.nodes);
                (existing, None)
            }
            None => {
                // The old version, where a layer was merged into it; and what the new one still lies over.
                released.remove(&work);
                below.iter().for_each(|below| {
                    released.remove(&below.base);
                });
                let leaf = self.options.import.chunk_len as u64;
                round.batch.seal.push(Seal {
                    object: work,
                    root: hashed.root,
                    stamp,
                    leaves: hashed.leaves,
                    nodes: hashed.nodes,
                    present: below.as_ref().map(|below| below.own(leaf, stamp.size)),
                });
                (work, below)
            }
        };
        let (root, size, tsize) = (hashed.root, stamp.size, hashed.tsize);
        let sealed = Sealed { object, root, size, tsize, below };
        round.batch.release.extend(released);
        round.dirty.insert(ino);
        round.committing.insert(ino, Committing { cell, generation, sealed, name });
        object
    }

    /// Rows as they are to be after the commit.
    fn rows(&self, round: &mut Round) -> Result<(), PublishError> {
        self.replaced(round);
        for (ino, mut inode) in std::mem::take(&mut round.inodes) {
            let row = match round.committing.get(&ino) {
                Some(committing) => {
                    inode.body = Body::File(Some(committing.sealed.clone()));
                    Row::encode(&inode, None)
                }
                None => {
                    let cell = self.names().cells.get(&ino).cloned();
                    if cell.is_none() && matches!(inode.body, Body::File(_)) {
                        // Gone since: the next round takes its row out, and this one leaves it as it is.
                        continue;
                    }
                    let work = cell.as_deref().map(|c| self.work_row(c)).transpose()?.flatten();
                    if cell.as_ref().is_some_and(|cell| cell.state().dead) {
                        continue;
                    }
                    let work = work.map(|(row, sync)| {
                        round.batch.keep.push(row.object);
                        if sync.is_some() {
                            round.synced.extend(cell.map(|cell| (cell, row.object)));
                        }
                        round.batch.sync.extend(sync);
                        row
                    });
                    Row::encode(&inode, work.as_ref())
                }
            };
            round.batch.tree_put.push((ino.0, row));
        }
        round.batch.tree_remove.extend(round.removed.iter().map(|ino| ino.0));
        round.batch.release.extend(&round.released);
        round.batch.nodes.extend(round.nodes.iter().cloned());
        let names = self.names();
        // A root that came back between its end and this commit keeps its description.
        let back: HashSet<_> = round.batch.files.iter().map(|file| file.cid).collect();
        let gone = round.gone.iter().filter(|root| names.count(root) == 0);
        let gone = gone.chain(&round.replaced).filter(|root| !back.contains(*root));
        round.batch.files_remove.extend(gone);
        Ok(())
    }

    /// Finds the roots that no file has any more once the new versions stand.
    fn replaced(&self, round: &mut Round) {
        let mut lost: HashMap<ContentId, usize> = HashMap::new();
        for ino in round.committing.keys() {
            if let Some(Body::File(Some(old))) = round.inodes.get(ino).map(|inode| &inode.body) {
                *lost.entry(old.root).or_default() += 1;
            }
        }
        let names = self.names();
        let ends = lost.into_iter().filter(|(root, lost)| names.count(root) <= *lost);
        round.replaced = ends.map(|(root, _)| root).collect();
    }

    fn apply(&self, round: Round) {
        self.names().tree.saved();
        for (cell, object) in round.synced {
            let mut state = cell.state();
            if let Some(work) = state.work.as_mut().filter(|work| work.id() == object) {
                work.fresh_clone = false;
            }
        }
        for (ino, done) in round.committing {
            let mut state = done.cell.state();
            if state.progress.phase == Phase::Committing
                && state.progress.generation == done.generation
            {
                state.progress.settle();
            }
            let work = state.work.take();
            state.layer = None;
            if done.sealed.below.is_some() {
                state.layer = work;
                self.layers.push(ino, layer::REST);
            } else if let Some(mut work) = work {
                state.keep_reading(&mut work);
            }
            let mut names = self.names();
            let root = done.sealed.root;
            let size = done.sealed.size;
            let old = names.tree.set_sealed(ino, done.sealed);
            names.add_root(root);
            if let Some(old) = old {
                names.remove_root(old.root);
            }
            // Their descriptions went with this very commit.
            names.gone.retain(|root| !round.replaced.contains(root));
            drop(names);
            drop(state);
            done.cell.wake();
            if self.names().tree.is_ignored(ino) {
                self.queue.push(ino, Duration::ZERO);
            } else {
                self.announcer.rested(ino);
            }
            self.directories.wake();
            tracing::debug!(ino = ino.0, %root, size, name = done.name, "published");
        }
        if !self.names().gone.is_empty() {
            self.flusher.later();
        }
        self.changed.notify_waiters();
    }

    fn undo(&self, round: Round) {
        let mut names = self.names();
        names.tree.undo_take(round.dirty, round.removed);
        names.released.extend(round.released);
        names.nodes.extend(round.nodes);
        names.gone.extend(round.gone);
        drop(names);
        for done in round.committing.into_values() {
            self.seal_later(&done.cell, done.generation, FAILED);
            done.cell.wake();
        }
    }
}

/// A working file's row, and the file to sync before it.
type Unfinished = (WorkRow, Option<Arc<File>>);

impl Inner {
    /// The working file of a cell as its row has it, and the file to sync: names must not come before the data that was
    /// closed under them.
    fn work_row(&self, cell: &FileCell) -> Result<Option<Unfinished>, PublishError> {
        let mut state = cell.state();
        let open = matches!(state.progress.phase, Phase::Writing | Phase::Interrupted);
        let idle = state.progress.handles() == 0;
        let Some(work) = &mut state.work else { return Ok(None) };
        let sync = if !open || work.overlay.is_some() {
            // What the row says of an overlay's leaves must be on disk, too. Those are written under this very lock,
            // and what is closed by nobody, so that it can be written again.
            self.store.rewrite_unsynced(work.id())?;
            Some(work.reader()?)
        } else if work.fresh_clone {
            if self.store.is_unsynced(work.id()) {
                // The kernel may be writing it, so it cannot be written again before it is closed. Until then a crash
                // leaves the published version.
                return Ok(None);
            }
            Some(work.reader()?)
        } else {
            None
        };
        let row = work.row(open)?;
        if idle {
            work.rest();
        }
        Ok(Some((row, sync)))
    }
}
