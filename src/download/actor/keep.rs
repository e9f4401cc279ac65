//! Work on files, off the runtime's threads: looking blocks up in the store and writing those that came.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;

use super::{Actor, Lookup, User};
use crate::{
    content::{Block, ByteRange, Codec, ContentId, Need, Placement},
    download::{
        DownloadError, Event, engine,
        file::OpenFile,
        scheduler::{Demand, Urgency},
    },
    sources::SourceId,
    store::{Store, StoreError},
};

/// Writes of one job: short enough that a new reader does not wait for a long row of copies.
const WRITES_AT_ONCE: usize = 32;
/// A block with more places than this in its file (a hole of zeros, say) is placed where it is needed, not everywhere.
const PLACES_AT_ONCE: usize = 64;

/// Something to keep.
#[derive(Debug)]
pub(super) enum Write {
    /// Content of a block at its places in a file.
    Place { file: Arc<OpenFile>, block: Block, places: Vec<Placement> },
    /// An interior node of a file.
    Inner { file: Arc<OpenFile>, block: Block },
    /// A leaf that another object of the store has.
    Copy { file: Arc<OpenFile>, need: Need },
    /// A node that was asked for by itself.
    Node(Block),
}

/// Writes that have not ended, and the bytes that they hold in memory.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    queue: Vec<Write>,
    bytes: u64,
}

impl Backlog {
    pub(super) fn push(&mut self, write: Write) {
        self.bytes += write.held();
        self.queue.push(write);
    }

    /// Bytes in memory, those of the writes that run included.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The writes of the next job.
    fn take(&mut self) -> Vec<Write> {
        let rest = self.queue.split_off(self.queue.len().min(WRITES_AT_ONCE));
        std::mem::replace(&mut self.queue, rest)
    }

    fn ended(&mut self, held: u64) {
        self.bytes = self.bytes.saturating_sub(held);
    }
}

/// What became of a write.
#[derive(Debug)]
pub(super) struct Written {
    id: ContentId,
    /// Bytes of memory that it does not hold any more.
    held: u64,
    /// The file it was for, and the start of the block's content in it.
    file: Option<(ContentId, u64)>,
    block: Option<Block>,
    result: Result<(), Arc<StoreError>>,
}

/// A job that ended.
#[derive(Debug)]
pub(super) enum Done {
    /// Blocks that are here with those that are not.
    Looked {
        here: Vec<(Lookup, Option<Block>)>,
        missing: Vec<Lookup>,
    },
    Written(Vec<Written>),
    /// How many sources have each block of a file, and who has not.
    Holders {
        file: ContentId,
        needs: Vec<Need>,
        has: Vec<(SourceId, Vec<bool>)>,
    },
    /// The job was cut off by the shutdown.
    Cut,
}

impl Actor {
    /// A block came that was wanted.
    pub(super) fn keep(&mut self, now: Duration, demand: &Demand, block: &Block) {
        let id = block.cid();
        if self.nodes.contains_key(&demand.want.id) {
            self.to_write.push(Write::Node(block.clone()));
        }
        self.emit(Event::DownloadChunkProgress {
            file_hash: demand.file,
            chunk_index: demand.index,
            cid: *id,
            bytes_received: block.data().len() as u64,
            total_bytes: block.data().len() as u64,
        });
        for user in self.start_writing(&demand.want.id) {
            self.insert(now, &user.file, user.range, block);
        }
    }

    /// The files that need a block and that it is not being written into yet; from now on it is.
    fn start_writing(&mut self, id: &ContentId) -> Vec<User> {
        let users = self.users.get_mut(id).into_iter().flatten();
        let idle = users.filter(|user| !user.writing);
        idle.map(|user| {
            user.writing = true;
            *user
        })
        .collect()
    }

    /// Files that came to need a block while it was written into others: the store has it now.
    fn serve_late(&mut self, now: Duration, id: &ContentId) {
        let users = self.users.get(id).map(Vec::as_slice).unwrap_or_default();
        let Some(user) = users.first().filter(|_| users.iter().all(|user| !user.writing)) else {
            return;
        };
        if !self.scheduler.wants(id) && self.to_look.iter().all(|lookup| lookup.need.cid != *id) {
            let urgency = Urgency { deadline: now, order: user.range.start };
            let need = Need { cid: *id, range: user.range };
            self.to_look.push(Lookup { file: user.file, need, urgency });
        }
    }

    /// Puts a block into the tree of a file and its content into the file. `range` is what it covers of this file;
    /// where its own content is less, there are children.
    fn insert(&mut self, now: Duration, file: &ContentId, range: ByteRange, block: &Block) {
        let Some(entry) = self.files.get_mut(file) else { return };
        let open = Arc::clone(&entry.file);
        open.progress.count(now, block.data().len() as u64);
        let mut layout = open.layout();
        let inserted = layout.insert(block);
        // A node may have bytes of its own and children too.
        if inserted.as_ref().is_ok_and(|places| range.len() > content_len(places)) {
            open.readers().replan();
            entry.dirty = true;
            entry.more_to_order();
        }
        match inserted {
            Ok(mut places) if !places.is_empty() => {
                if places.len() > PLACES_AT_ONCE {
                    let readers = open.readers();
                    let mut near = readers.windows.covered(open.size());
                    near.extend(readers.waiting());
                    drop(readers);
                    let near: Vec<Placement> = near
                        .into_iter()
                        .flat_map(|range| layout.places_in(block, range).unwrap_or_default())
                        .collect();
                    if near.is_empty() {
                        // The background goes on where the last job ended.
                        let ahead = places.iter().position(|p| !open.object.has(p.range()));
                        places.drain(..ahead.unwrap_or(0));
                        places.truncate(PLACES_AT_ONCE);
                    } else {
                        places = near;
                    }
                }
                drop(layout);
                self.to_write.push(Write::Place { file: open, block: block.clone(), places });
            }
            Ok(_) => {
                drop(layout);
                self.to_write.push(Write::Inner { file: open, block: block.clone() });
            }
            Err(error) => {
                drop(layout);
                let error = DownloadError::Dag(error);
                open.fail(ByteRange::new(0, open.size()), &error);
                entry.stop_whole(&error);
                self.forget_user(block.cid(), file);
            }
        }
    }

    /// Starts a lookup and a write where there is work and none runs.
    pub(super) fn start_jobs(&mut self) {
        if !self.looking && !self.to_look.is_empty() {
            self.looking = true;
            let (store, lookups) = (self.shared.store.clone(), std::mem::take(&mut self.to_look));
            self.job("download-look", move || look(&store, lookups));
        }
        if !self.writing && !self.to_write.queue.is_empty() {
            self.writing = true;
            let store = self.shared.store.clone();
            let writes = self.to_write.take();
            self.job("download-write", move || {
                Done::Written(writes.into_iter().map(|write| write.run(&store)).collect())
            });
        }
    }

    fn job(&mut self, name: &'static str, work: impl FnOnce() -> Done + Send + 'static) {
        let job = self.shared.tasks.blocking(name, work);
        self.jobs.push(job.map(|done| done.unwrap_or(Done::Cut)).boxed());
    }

    pub(super) fn done(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Looked { here, missing } => {
                self.looking = false;
                here.into_iter().for_each(|(lookup, block)| self.found_here(now, lookup, block));
                for lookup in missing {
                    // The file may have been closed meanwhile.
                    if self.users.contains_key(&lookup.need.cid) {
                        self.want(now, lookup.file, lookup.need, lookup.urgency);
                    }
                }
            }
            Done::Written(written) => {
                self.writing = false;
                written.into_iter().for_each(|written| self.written(now, written));
            }
            Done::Holders { file, needs, has } => self.ordered(&file, needs, &has),
            Done::Cut => (self.looking, self.writing) = (false, false),
        }
    }

    fn found_here(&mut self, now: Duration, lookup: Lookup, block: Option<Block>) {
        let cid = lookup.need.cid;
        for user in self.start_writing(&cid) {
            match &block {
                Some(block) => self.insert(now, &user.file, user.range, block),
                None => {
                    let Some(entry) = self.files.get(&user.file) else { continue };
                    let file = Arc::clone(&entry.file);
                    self.to_write.push(Write::Copy { file, need: Need { cid, range: user.range } });
                }
            }
        }
    }

    fn written(&mut self, now: Duration, written: Written) {
        self.to_write.ended(written.held);
        if written.result.is_ok() {
            self.shared.finder.arrived(&written.id);
        }
        if written.file.is_none()
            && let Some(wait) = self.nodes.remove(&written.id)
        {
            if written.result.is_ok() {
                engine::lock(&self.link.waits).found(&written.id);
            }
            for answer in wait.answers {
                let block = written.block.clone().ok_or(DownloadError::NotFound(written.id));
                let result = written.result.clone().map_err(DownloadError::Store);
                // The caller may be gone.
                let _ = answer.send(result.and(block));
            }
        }
        let Some((file, start)) = written.file else { return };
        let elsewhere = self.forget_user(&written.id, &file);
        self.serve_late(now, &written.id);
        match written.result {
            Ok(()) => {
                // A file that was closed meanwhile has nobody who follows its chunks.
                if let Some(entry) = self.files.get(&file) {
                    self.emit(Event::DownloadChunkComplete {
                        file_hash: file,
                        chunk_index: self.index(&file, start),
                        path: entry.file.object.path().to_owned(),
                    });
                }
            }
            Err(error) => self.store_failed(&file, &DownloadError::Store(error)),
        }
        if let Some(entry) = self.files.get_mut(&file) {
            if elsewhere {
                entry.file.readers().replan();
                entry.more_to_order();
            }
            entry.dirty |= elsewhere || entry.whole.is_some();
        }
    }

    /// The disk is full or broken: readers are told, and nothing more is fetched for the file until the next read.
    fn store_failed(&mut self, id: &ContentId, error: &DownloadError) {
        let Some(entry) = self.files.get_mut(id) else { return };
        tracing::warn!("{id}: {error}");
        entry.file.fail(ByteRange::new(0, entry.file.size()), error);
        entry.file.readers().replan();
        entry.stop_whole(error);
        let users = &self.users;
        let gone = self.scheduler.retain_unsent(|demand| {
            demand.file != *id || users.get(&demand.want.id).is_some_and(|users| users.len() > 1)
        });
        for block in gone {
            self.forget_user(&block, id);
        }
    }
}

/// Sorts lookups by whether the store has the block. Blocks of dag-pb come with their bytes: they may be interior.
fn look(store: &Store, lookups: Vec<Lookup>) -> Done {
    let (mut here, mut missing) = (Vec::new(), Vec::new());
    for lookup in lookups {
        let id = &lookup.need.cid;
        // A store that cannot be read has nothing; what comes from the network will show its error when it is written.
        if id.codec() == Codec::Raw {
            match store.block_len(id).ok().flatten() {
                Some(_) => here.push((lookup, None)),
                None => missing.push(lookup),
            }
        } else {
            match store.block(id).ok().flatten() {
                Some(block) => here.push((lookup, Some(block))),
                None => missing.push(lookup),
            }
        }
    }
    Done::Looked { here, missing }
}

impl Write {
    /// Bytes that it keeps in memory until it has ended.
    fn held(&self) -> u64 {
        match self {
            Self::Place { block, .. } | Self::Inner { block, .. } | Self::Node(block) => {
                block.data().len() as u64
            }
            Self::Copy { .. } => 0,
        }
    }

    fn run(self, store: &Store) -> Written {
        let held = self.held();
        match self {
            Self::Place { file, block, places } => {
                let result = file.object.place(&block, &places).map_err(Arc::new);
                file.wake();
                let start = places.first().map_or(0, |place| place.offset);
                Written {
                    id: *block.cid(),
                    held,
                    file: Some((file.id, start)),
                    block: None,
                    result,
                }
            }
            Self::Inner { file, block } => {
                let result = store.put_node(&block).map_err(Arc::new);
                Written { id: *block.cid(), held, file: Some((file.id, 0)), block: None, result }
            }
            Self::Copy { file, need } => {
                let result = copy(store, &file, &need).map_err(Arc::new);
                file.wake();
                let at = Some((file.id, need.range.start));
                Written { id: need.cid, held, file: at, block: None, result }
            }
            Self::Node(block) => {
                let result = keep_node(store, &block).map_err(Arc::new);
                Written { id: *block.cid(), held, file: None, block: Some(block), result }
            }
        }
    }
}

/// Length of the content of a block, from one of its places.
fn content_len(places: &[Placement]) -> u64 {
    places.first().map_or(0, |place| place.data.len() as u64)
}

/// Copies a leaf from wherever the store has it. When it is gone meanwhile, the next plan asks for it again.
fn copy(store: &Store, file: &OpenFile, need: &Need) -> Result<(), StoreError> {
    let Some(block) = store.block(&need.cid)? else {
        file.readers().replan();
        return Ok(());
    };
    let data = 0..block.data().len();
    if data.len() as u64 != need.range.len() {
        return Err(StoreError::Rejected(format!(
            "{}: leaf {} has {} bytes where its node says {}",
            file.id,
            need.cid,
            data.len(),
            need.range.len()
        )));
    }
    file.object.place(&block, &[Placement { offset: need.range.start, data }])
}

/// A raw block up to this is kept in the index, of which a page holds at least one: a flat file of its own would take an
/// inode besides, and that takes longer to make than all the rest of a look at a small file.
const SMALL_FILE: usize = 2 << 10;

/// Keeps a node that was asked for by itself. A raw one is a file; one that is not small is kept as such, a small one only
/// when somebody opens it.
fn keep_node(store: &Store, block: &Block) -> Result<(), StoreError> {
    let len = block.data().len();
    if block.cid().codec() != Codec::Raw || len <= SMALL_FILE {
        return store.put_node(block);
    }
    let object = store.create_object(block.cid(), len as u64)?;
    object.place(block, &[Placement { offset: 0, data: 0..len }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_counts_its_bytes_until_they_are_written() {
        let mut backlog = Backlog::default();
        for n in 0..40u8 {
            backlog.push(Write::Node(Block::raw(vec![n; 1000].into())));
        }
        let job = backlog.take();
        assert_eq!((job.len(), backlog.queue.len()), (WRITES_AT_ONCE, 40 - WRITES_AT_ONCE));
        assert_eq!(backlog.bytes(), 40_000, "what is being written is in memory");
        job.iter().for_each(|write| backlog.ended(write.held()));
        assert_eq!(backlog.bytes(), 8000);
    }
}
