//! Start and end: the tree from its rows, and what an earlier process left unfinished.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use super::{
    Inner, Listener, PublishError, PublishOptions, UploadIno, announce,
    announce::Announcer,
    dirs,
    dirs::{Directories, link_of},
    file::{FileCell, Phase, Work},
    flush,
    flush::Flusher,
    layer,
    names::Names,
    queue,
    queue::Queue,
    row::{Row, Seen, WorkRow},
    tree::{Body, Owner, Tree},
};
use crate::{
    store::{Store, StoreError},
    tasks::Tasks,
};

type Result<T> = std::result::Result<T, PublishError>;

impl Inner {
    pub(super) fn open(
        options: PublishOptions,
        store: Store,
        listener: Arc<dyn Listener>,
        tasks: &Tasks,
    ) -> Result<Arc<Self>> {
        let mut works = HashMap::new();
        let mut rows = Vec::new();
        let mut objects = HashMap::new();
        for (ino, bytes) in store.tree()? {
            let row = Row::decode(&bytes).map_err(|error| {
                StoreError::Index(format!("row {ino} of the upload tree: {error}"))
            })?;
            let ino = UploadIno(ino);
            if let Body::File(Some(sealed)) = &row.inode.body {
                objects.insert(ino, sealed.objects().collect::<Vec<_>>());
            }
            works.extend(row.work.map(|work| (ino, work)));
            rows.push((ino, row.inode));
        }
        let owner = Owner {
            mode: 0o755,
            uid: nix::unistd::Uid::effective().as_raw(),
            gid: nix::unistd::Gid::effective().as_raw(),
        };
        let restored = Tree::restore(owner, super::now(), rows);
        let mut names = Names::new(restored.tree);
        for ino in restored.rescued {
            let name = names.name(ino);
            tracing::warn!(name, "the directory of an upload is missing; it is put under the root");
        }
        for ino in restored.orphans {
            names.released.extend(objects.remove(&ino).unwrap_or_default());
            names.released.extend(works.remove(&ino).map(|work| work.object));
        }
        let told = store.state("publish.announced")?;
        let inner = Arc::new(Self {
            options,
            store,
            listener,
            tasks: tasks.clone(),
            names: Mutex::new(names),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            flusher: Flusher::default(),
            queue: Queue::default(),
            layers: Queue::default(),
            directories: Directories::default(),
            announcer: Announcer::new(told),
            rules_turn: Mutex::default(),
            skipped: Mutex::default(),
            changed: Notify::new(),
        });
        inner.restore_files(works)?;
        inner.unless_in_trouble(inner.remove_leftovers())?;
        inner.read_all_rules();
        inner.compute_directories();
        inner.assume_announced();
        inner.unless_in_trouble(inner.flush())?;
        let all = inner.clone();
        tasks.lasting("publish hash", move || queue::run(all.clone()));
        let all = inner.clone();
        tasks.lasting("publish layers", move || all.clone().run_layers());
        let all = inner.clone();
        tasks.lasting("publish flush", move || flush::run(all.clone()));
        let all = inner.clone();
        tasks.lasting("publish directories", move || dirs::run(all.clone()));
        let all = inner.clone();
        tasks.lasting("publish announce", move || announce::run(all.clone()));
        Ok(inner)
    }

    /// What the disk does not take at a start is written when it does: what it holds is shown meanwhile.
    fn unless_in_trouble(&self, done: Result<()>) -> Result<()> {
        match done {
            Err(PublishError::Store(error)) if self.store.tell(&error) => {
                self.flusher.within(flush::FAILED);
                Ok(())
            }
            done => done,
        }
    }

    /// The working file of a name whose content never reached the disk. None where the disk has no room for it: a writer
    /// gets one when there is.
    fn empty_work(&self) -> Result<Option<Work>> {
        match self.store.working_file() {
            Ok(file) => Ok(Some(Work::new(file))),
            Err(error) if self.store.tell(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn restore_files(&self, mut works: HashMap<UploadIno, WorkRow>) -> Result<()> {
        let files: Vec<_> = {
            let names = self.names();
            let files = names.tree.iter().filter(|(_, inode)| matches!(inode.body, Body::File(_)));
            files.map(|(ino, _)| ino).collect()
        };
        for ino in files {
            let row = works.remove(&ino);
            let row_open = row.as_ref().is_some_and(|row| row.open);
            let work = match row {
                Some(row) => self.restore_work(ino, row)?,
                None => None,
            };
            let (work, newer) = work.unzip();
            let open = row_open || newer == Some(true);
            let sealed = self.names().tree.sealed(ino).is_some();
            let (phase, work) = match work {
                Some(work) if open => (Phase::Interrupted, Some(work)),
                Some(work) => (Phase::Closed, Some(work)),
                None if sealed => (Phase::Idle, None),
                // A name whose content never reached the disk: an empty file, as on any filesystem after a crash.
                None => (Phase::Interrupted, self.empty_work()?),
            };
            let layer = match self.names().tree.sealed(ino).cloned() {
                Some(sealed) => self.restore_layer(&sealed)?,
                None => None,
            };
            if layer.is_some() {
                self.layers.push(ino, layer::REST);
            }
            let cell = Arc::new(FileCell::new(ino, phase, work).with_layer(layer));
            self.names().cells.insert(ino, cell);
            if phase == Phase::Closed {
                self.queue.push(ino, Duration::ZERO);
            }
        }
        Ok(())
    }

    /// The working file that a row tells of, and whether it was written after the row was made.
    fn restore_work(&self, ino: UploadIno, row: WorkRow) -> Result<Option<(Work, bool)>> {
        let Some(file) = self.store.reopen_working(row.object)? else { return Ok(None) };
        let mut work = Work::new(file);
        work.has_row = true;
        let Some(overlay) = row.overlay else {
            // One that was closed by then is open again, or mapped: a sync of its data does not cover the time, so
            // only a later one tells.
            let now = work.stamp()?;
            work.rest();
            let newer = |seen: Seen| seen.size != now.size || seen.mtime < now.mtime;
            return Ok(Some((work, row.seen.is_some_and(newer))));
        };
        let sealed = self.names().tree.sealed(ino).cloned();
        if !sealed.is_some_and(|sealed| sealed.objects().any(|id| id == overlay.base)) {
            self.names().released.push(row.object);
            return Ok(None);
        }
        self.recover_overlay(&mut work, overlay, row.seen)?;
        work.rest();
        Ok(Some((work, false)))
    }

    /// Takes out what an import had copied when the daemon was killed.
    fn remove_leftovers(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        let mut entries = self.names().tree.entries(UploadIno::ROOT)?;
        entries.retain(|entry| super::import::is_scratch(&entry.name));
        entries.iter().try_for_each(|entry| self.remove_tree(UploadIno::ROOT, &entry.name))
    }

    /// What the tree holds is told again unless an earlier process did.
    fn assume_announced(&self) {
        let names = self.names();
        for (ino, inode) in names.tree.iter() {
            let top = inode.places().any(|place| place.parent == UploadIno::ROOT);
            let announced = match &inode.body {
                Body::File(sealed) => sealed.as_ref().is_some_and(|sealed| sealed.size > 0),
                Body::Directory(_) => top,
                Body::Symlink(_) => false,
            };
            if announced && let Some((root, _)) = link_of(inode) {
                self.announcer.assume(ino, root);
            }
        }
    }

    pub(super) async fn close(self: &Arc<Self>, deadline: Duration) -> Result<()> {
        let finish = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                self.queue.hurry_all();
                if !self.is_hashing() {
                    return;
                }
                changed.await;
            }
        };
        if timeout(deadline, finish).await.is_err() {
            tracing::warn!("some files are hashed at the next start: there was no time left");
        }
        let inner = self.clone();
        let flushed = self.tasks.blocking("flush", move || {
            inner.compute_directories();
            match inner.flush() {
                // Nodes of directories are made again at the next start.
                Err(PublishError::Store(error)) if error.is_read_only() && inner.is_saved() => {}
                flushed => flushed?,
            }
            inner.announce_all();
            Ok(())
        });
        flushed.await.map_err(|_| PublishError::Closed)?
    }

    /// Returns whether all changes of names and files are durable.
    fn is_saved(&self) -> bool {
        let names = self.names();
        names.finished.is_empty() && names.released.is_empty() && !names.tree.is_changed()
    }

    /// Whether a file waits to be hashed or committed that nobody holds back.
    fn is_hashing(&self) -> bool {
        let cells: Vec<_> = {
            let names = self.names();
            let published = names.cells.iter().filter(|(ino, _)| !names.tree.is_ignored(**ino));
            published.map(|(_, cell)| cell.clone()).collect()
        };
        cells.iter().any(|cell| {
            let state = cell.state();
            let waits =
                matches!(state.progress.phase, Phase::Closed | Phase::Hashing | Phase::Committing);
            // A layer that is merged is published already.
            waits && state.work.is_some() && !state.held && !state.orphan
        })
    }
}
