//! Ignored files: they stay in the tree and on the disk as any upload, and are neither hashed nor given an id.
//!
//! A file that was published and is ignored from now on becomes a working file again, with all bytes of its own; then its
//! object is given up as that of a file which was removed.

use std::{
    ffi::OsStr,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    Inner, OpenFlags, PublishError, UploadIno, UploadKind,
    dirs::link_of,
    file::{FileCell, FileState, Phase},
    handle::alive,
    ignore::{IgnoreScope, Ignored, MAX_RULES, RULE_FILE, Rules, Skipped},
    queue,
    tree::{Body, Request, Reviewed},
};
use crate::content::{Metadata, symlink};

type Result<T> = std::result::Result<T, PublishError>;

/// How long a file waits that could not be made private, for a full or failing disk for one.
const FAILED_RETRY: Duration = Duration::from_secs(5);

impl Inner {
    /// The rules for what is copied in under a name of the top.
    pub(super) fn scope_of_import(&self, name: &OsStr, hidden: bool) -> IgnoreScope {
        let top = self.names().tree.scope(UploadIno::ROOT);
        let scope = top.unwrap_or_else(|| IgnoreScope::top(&self.options.ignore)).below(name);
        if hidden { scope.with_hidden() } else { scope }
    }

    /// An inode is asked for by its name, and with `hidden` also what is hidden below it. Gives what is left out.
    pub(super) async fn want(self: &Arc<Self>, ino: UploadIno, hidden: bool) -> Result<Skipped> {
        let inner = self.clone();
        let wanting = self.tasks.blocking("want", move || {
            let skipped = inner.want_now(ino, hidden)?;
            inner.flush()?;
            Ok(skipped)
        });
        wanting.await.map_err(|_| PublishError::Closed)?
    }

    fn want_now(&self, ino: UploadIno, hidden: bool) -> Result<Skipped> {
        let (changed, skipped) = {
            let mut names = self.names();
            names.tree.get(ino)?;
            if hidden {
                let below: Vec<_> = names.tree.below(ino).collect();
                below.into_iter().for_each(|ino| names.tree.set_request(ino, Request::Hidden));
            }
            names.tree.set_request(ino, Request::Named);
            let changed = names.tree.review(ino);
            (changed, names.skipped_below(ino))
        };
        self.follow(changed);
        self.changed_names();
        Ok(skipped)
    }

    /// Does what follows from a review.
    pub(super) fn follow(&self, changed: Vec<Reviewed>) {
        if changed.is_empty() {
            return;
        }
        for Reviewed { ino, ignored } in changed {
            let (kind, is_sealed) = {
                let mut names = self.names();
                let Ok(inode) = names.tree.get(ino) else { continue };
                let kind = inode.kind();
                let node = match &inode.body {
                    Body::Symlink(target) if !ignored => {
                        Some(symlink(target.as_encoded_bytes(), Metadata::default()))
                    }
                    _ => None,
                };
                let is_sealed = link_of(inode).is_some();
                names.nodes.extend(node);
                (kind, is_sealed)
            };
            match (ignored, kind) {
                (true, UploadKind::File) => {
                    self.announcer.removed(ino);
                    self.queue.push(ino, Duration::ZERO);
                }
                (true, _) => self.announcer.removed(ino),
                (false, UploadKind::File) if is_sealed => self.announcer.rested(ino),
                (false, UploadKind::File) => self.queue.push(ino, queue::REST),
                (false, _) => {}
            }
        }
        self.changed_names();
        self.changed.notify_waiters();
    }

    /// Takes an ignored file out of what is published, if it is.
    pub(super) async fn keep_private(self: &Arc<Self>, cell: Arc<FileCell>) {
        let (inner, file) = (self.clone(), cell.clone());
        let made = self.tasks.blocking("make private", move || inner.make_private(&file));
        if let Ok(Err(error)) = made.await {
            tracing::warn!(ino = cell.ino.0, %error, "a file that is ignored is still published; it is tried again");
            self.queue.push(cell.ino, FAILED_RETRY);
        }
    }

    fn make_private(&self, cell: &FileCell) -> Result<()> {
        self.note_skipped(cell);
        if self.names().tree.sealed(cell.ino).is_none() {
            return Ok(());
        }
        let Some((generation, size)) = self.begin_private(cell)? else { return Ok(()) };
        let filled = self.fill_all(cell, generation, size).and_then(|filled| {
            // What was published may go only once its bytes are on the disk elsewhere.
            if filled { self.sync_private(cell, generation) } else { Ok(false) }
        });
        match filled {
            Ok(true) => self.end_private(cell, generation),
            // Somebody writes it: its close brings it here again.
            Ok(false) => {}
            Err(error) => {
                cell.state().progress.retry(generation);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives a published file a working file. None: it is being written, or gone.
    fn begin_private(&self, cell: &FileCell) -> Result<Option<(u64, u64)>> {
        let _opening = cell.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = match self.with_work(cell, None) {
            Err(PublishError::NotFound) => return Ok(None),
            state => state?,
        };
        if state.progress.phase == Phase::Writing || state.orphan {
            return Ok(None);
        }
        let size = state.work.as_mut().map(super::file::Work::stamp).transpose()?;
        state.progress.changed();
        let generation = state.progress.begin_hash();
        Ok(generation.zip(size.map(|stamp| stamp.size)))
    }

    fn sync_private(&self, cell: &FileCell, generation: u64) -> Result<bool> {
        let (id, file) = {
            let mut state = cell.state();
            let underway = state.progress.is_underway(generation);
            let Some(work) = state.work.as_mut().filter(|_| underway) else { return Ok(false) };
            self.store.rewrite_unsynced(work.id())?;
            (work.id(), work.reader()?)
        };
        self.store.sync_working(id, &file)?;
        Ok(true)
    }

    fn end_private(&self, cell: &FileCell, generation: u64) {
        let mut state = cell.state();
        if alive(&state).is_err() || !state.progress.retry(generation) {
            return;
        }
        let mut names = self.names();
        if !names.tree.is_ignored(cell.ino) {
            // It is wanted again.
            self.queue.push(cell.ino, queue::REST);
            return;
        }
        make_own(&mut state);
        if let Some(sealed) = names.tree.unseal(cell.ino) {
            names.released.extend(sealed.objects());
            names.remove_root(sealed.root);
        }
        drop(names);
        drop(state);
        self.flusher.later();
        self.changed.notify_waiters();
    }

    /// The directories whose rules a file holds.
    pub(super) fn rules_of(&self, ino: UploadIno) -> Vec<UploadIno> {
        let names = self.names();
        let Ok(inode) = names.tree.get(ino) else { return Vec::new() };
        let holding = inode.places().filter(|place| place.name == RULE_FILE);
        holding.map(|place| place.parent).collect()
    }

    /// The content of a file has changed.
    pub(super) fn content_changed(&self, ino: UploadIno) {
        self.rules_of(ino).into_iter().for_each(|dir| self.reread_rules(dir));
    }

    /// A name in a directory has changed.
    pub(super) fn name_changed(&self, dir: UploadIno, name: &OsStr) {
        if name == RULE_FILE {
            self.reread_rules(dir);
        }
    }

    fn reread_rules(&self, dir: UploadIno) {
        let _turn = self.rules_turn();
        let rules = self.read_rules(dir);
        let changed = {
            let mut names = self.names();
            names.tree.set_rules(dir, rules);
            names.tree.review(dir)
        };
        self.follow(changed);
    }

    fn rules_turn(&self) -> MutexGuard<'_, ()> {
        self.rules_turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all rule files at the start, and decides what is published before anything is.
    pub(super) fn read_all_rules(&self) {
        let dirs: Vec<_> = {
            let mut names = self.names();
            names.tree.set_patterns(self.options.ignore.clone());
            let places = names.tree.iter().flat_map(|(_, inode)| inode.places());
            places.filter(|place| place.name == RULE_FILE).map(|place| place.parent).collect()
        };
        for dir in dirs {
            let rules = self.read_rules(dir);
            self.names().tree.set_rules(dir, rules);
        }
        let changed = self.names().tree.review(UploadIno::ROOT);
        // What other rules had published is announced no more.
        for Reviewed { ino, .. } in &changed {
            let root = self.names().tree.sealed(*ino).map(|sealed| sealed.root);
            root.into_iter().for_each(|root| self.announcer.assume(*ino, root));
        }
        self.follow(changed);
    }

    /// The rules in a directory. A file that cannot be read has none, and the log says so.
    fn read_rules(&self, dir: UploadIno) -> Option<Rules> {
        let file = self.names().tree.lookup(dir, OsStr::new(RULE_FILE)).ok()?;
        if self.names().tree.get(file).ok()?.kind() != UploadKind::File {
            return None;
        }
        let path = self.names().path(file);
        let read = self.open_file(file, OpenFlags::default()).and_then(|handle| {
            let max = usize::try_from(MAX_RULES).unwrap_or(usize::MAX);
            let text = self.read(handle, 0, max);
            self.release(handle);
            text
        });
        let text = match read {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(path, %error, "the rules of what is not published cannot be read");
                return None;
            }
        };
        let (rules, wrong) = Rules::parse(&text);
        for error in wrong {
            tracing::warn!(path, %error, "a rule is passed over");
        }
        Some(rules)
    }

    /// Takes note of an ignored file once, for the next line of the log.
    fn note_skipped(&self, cell: &FileCell) {
        if std::mem::replace(&mut cell.state().told_ignored, true) {
            return;
        }
        let name = {
            let names = self.names();
            names.path(names.tree.ignored_top(cell.ino)).into()
        };
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        if skipped.first.last() == Some(&name) {
            skipped.count += 1;
        } else {
            skipped.note(&name, Ignored::BySettings);
        }
        drop(skipped);
        self.flusher.later();
    }

    /// Writes into the log what was left out since the last time.
    pub(super) fn tell_skipped(&self) {
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        let Skipped { count, first, .. } = std::mem::take(&mut *skipped);
        drop(skipped);
        if count > 0 {
            tracing::info!(count, ?first, "what is ignored is not published");
        }
    }
}

/// The working file has all bytes of its own: nothing of it depends on what was published.
fn make_own(state: &mut FileState) {
    let idle = state.progress.handles() == 0;
    if let Some(work) = &mut state.work {
        // A clone that was not written counts as unchanged against its object, which goes now.
        (work.overlay, work.clone_stamp, work.fresh_clone) = (None, None, false);
        work.drop_writer();
        if idle {
            work.rest();
        }
    }
    state.layer = None;
}

impl super::names::Names {
    /// The ignored entries below an inode; of a directory only itself.
    fn skipped_below(&self, top: UploadIno) -> Skipped {
        let mut skipped = Skipped::default();
        for ino in self.tree.below(top).filter(|ino| self.tree.is_ignored(*ino)) {
            if self.tree.ignored_top(ino) == ino {
                let by_rules = self.tree.is_ignored_by_rules(ino);
                let why = if by_rules { Ignored::ByRules } else { Ignored::BySettings };
                skipped.note(self.path(ino).as_ref(), why);
            }
        }
        skipped
    }
}
