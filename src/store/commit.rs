//! The group committer: data, then names, then one durable transaction, and only then unlinks.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use super::{
    Batch, Inner, ObjectId, Seal, StoreError,
    codec::{self, Envelope, Leaf, ObjectRow},
    guard, index, now_secs,
    pending::Pending,
    rows::Rows,
};
use crate::content::{ByteRange, ContentId};

/// Above this many files one syncfs is cheaper than their fdatasyncs, although it writes what others wrote, too.
const MAX_SINGLE_SYNCS: usize = 8;

/// Leaves that are sorted and written at a time: neighbours in the index, at some megabytes of memory.
const LEAVES_AT_ONCE: usize = 1 << 16;

type Outcome = Arc<Mutex<Option<Result<(), StoreError>>>>;

/// What one caller wants committed.
#[derive(Debug)]
pub(super) struct Request {
    batch: Batch,
    flush: bool,
    outcome: Outcome,
}

/// One group on its way to the disk.
struct Group {
    requests: Vec<Request>,
    pending: Arc<Pending>,
    /// Files to unlink once the commit stands.
    dead: Vec<ObjectId>,
}

impl Inner {
    /// Hands a batch in and waits for the group commit that holds it. Whoever comes first leads: it takes along all
    /// that came before it got its turn, and the others find their outcome when theirs comes.
    pub(super) fn commit(self: &Arc<Self>, batch: Batch, flush: bool) -> Result<(), StoreError> {
        let outcome = Outcome::default();
        let request = Request { batch, flush, outcome: outcome.clone() };
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        let _leader = self.lead();
        if let Some(done) = take(&outcome) {
            return done;
        }
        let requests =
            std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner));
        self.run_group(requests);
        take(&outcome).unwrap_or(Err(StoreError::Closed))
    }

    /// Commits what was downloaded, if anything was.
    pub(super) fn flush(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.pending().is_empty() {
            return Ok(());
        }
        self.commit(Batch::default(), true)
    }

    fn run_group(self: &Arc<Self>, requests: Vec<Request>) {
        // What was just downloaded can be owned only when its row is there.
        let flush = requests.iter().any(|r| r.flush || !r.batch.own.is_empty());
        let pending = self.begin_pending(flush);
        let mut group = Group { requests, pending, dead: Vec::new() };
        if let Err(error) = self.sync_pending(&group.pending) {
            self.drop_unsynced(&group.pending);
            // Where that was a syncfs, it has reported what it could not write of other files, too, and will not do so again.
            self.note_unsynced(group.requests.iter().flat_map(|r| r.batch.files()));
            group.pending = Arc::default();
            group.fail(|request| request.flush, &error);
        }
        self.refuse_when_full(&group);
        self.sync_requests(&mut group);
        match self.write_rows(&mut group) {
            Ok(()) => self.finish(group),
            Err(error) => {
                let mut sets = self.pending();
                sets.restore(&group.pending);
                sets.committing = Arc::default();
                drop(sets);
                group.fail(|_| true, &error);
            }
        }
    }

    /// What was published stays where it is until there is room; what removes or only moves goes on.
    fn refuse_when_full(&self, group: &Group) {
        if !self.reserve.is_whole() && !self.reserve.refill() {
            self.tell(&self.reserve.full());
            group.fail(|request| !request.batch.seal.is_empty(), &self.reserve.full());
        }
    }

    /// Takes over what is pending; without `flush` only the nodes, whose commit costs no sync of data.
    fn begin_pending(&self, flush: bool) -> Arc<Pending> {
        let mut sets = self.pending();
        let taken = if flush {
            std::mem::take(&mut sets.open)
        } else {
            Pending { nodes: std::mem::take(&mut sets.open.nodes), ..Pending::default() }
        };
        sets.committing = Arc::new(taken);
        sets.committing.clone()
    }

    fn sync_pending(&self, pending: &Pending) -> Result<(), StoreError> {
        let ranges = pending.ranges();
        let written = pending.dirty.iter().filter(|(id, _)| ranges.contains_key(id));
        let files = written.map(|(_, object)| object.written()).collect::<Result<_, _>>()?;
        self.sync(files, pending.dirty.keys().copied())
    }

    /// After a failed fsync nobody knows what is on the disk, and asking again would be told "all is well":
    /// the bytes count as lost and are fetched again.
    fn drop_unsynced(&self, pending: &Pending) {
        let mut sets = self.pending();
        for leaf in pending.leaves.values().flatten() {
            if let Some(object) = pending.dirty.get(&leaf.object) {
                object.mark_absent(leaf.range);
            }
        }
        sets.committing = Arc::default();
        // The rows of new objects are still to be written.
        for object in pending.dirty.values() {
            sets.mark_dirty(object);
        }
    }

    /// Step 1 and 2 of each batch; one that fails leaves the group.
    fn sync_requests(&self, group: &mut Group) {
        for request in group.requests.iter().filter(|r| !is_done(r)) {
            if let Err(error) = self.refuse_unsynced(&request.batch) {
                finish(request, Err(error));
            }
        }
        let waiting: Vec<_> = group.requests.iter().filter(|r| !is_done(r)).collect();
        let files = waiting.iter().map(|r| r.batch.sync.len() + r.batch.seal.len()).sum::<usize>();
        if files > MAX_SINGLE_SYNCS {
            if let Err(error) = self.sync_all() {
                self.note_unsynced(waiting.iter().flat_map(|r| r.batch.files()));
                group.fail(|_| true, &error);
            }
            return;
        }
        for request in waiting {
            if let Err(error) = self.sync_batch(&request.batch) {
                self.note_unsynced(request.batch.files());
                finish(request, Err(error));
            }
        }
    }

    fn sync_batch(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut files = batch.sync.clone();
        for seal in &batch.seal {
            let path = self.object_path(seal.object);
            let file = File::open(&path).map_err(|e| StoreError::io("open", &path, e))?;
            files.push(Arc::new(file));
        }
        self.sync(files, batch.files())
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        let names: Vec<_> = self.new_names().iter().copied().collect();
        let synced = self.disk.sync_filesystem(&self.objects);
        synced.map_err(|e| StoreError::io("sync the filesystem of", &self.objects, e))?;
        let mut left = self.new_names();
        names.iter().for_each(|id| {
            left.remove(id);
        });
        Ok(())
    }

    /// Syncs files, and the directories of those of `objects` whose names are new.
    fn sync(
        &self,
        files: Vec<Arc<File>>,
        objects: impl Iterator<Item = ObjectId>,
    ) -> Result<(), StoreError> {
        let mut dirs: BTreeMap<u64, Vec<ObjectId>> = BTreeMap::new();
        {
            let new = self.new_names();
            for id in objects.filter(|id| new.contains(id)) {
                dirs.entry(id.0 & 0xff).or_default().push(id);
            }
        }
        if files.len() + dirs.len() > MAX_SINGLE_SYNCS {
            return self.sync_all();
        }
        for file in files {
            let synced = self.disk.sync_data(&file);
            synced.map_err(|e| StoreError::io("sync a file in", &self.objects, e))?;
        }
        for ids in dirs.values() {
            let path = self.object_path(ids[0]);
            let dir = path.parent().unwrap_or(&self.objects);
            self.disk.sync_dir(dir).map_err(|e| StoreError::io("sync", dir, e))?;
            let mut new = self.new_names();
            ids.iter().for_each(|id| {
                new.remove(id);
            });
        }
        Ok(())
    }

    /// Step 3: all rows in one durable transaction.
    fn write_rows(self: &Arc<Self>, group: &mut Group) -> Result<(), StoreError> {
        let waiting = group.requests.iter().filter(|r| !is_done(r));
        let idle = waiting.clone().all(|r| r.batch.is_empty());
        if idle && group.pending.dirty.is_empty() && group.pending.nodes.is_empty() {
            return Ok(());
        }
        let (dead, delta) = self.index.write_counted(|rows| {
            let mut dead = Vec::new();
            // First, so that a batch finds the rows of what was downloaded before it.
            self.apply_pending(rows, &group.pending)?;
            for request in waiting {
                if let Err(error) = self.check(rows, &request.batch) {
                    finish(request, Err(error));
                    continue;
                }
                self.apply(rows, &request.batch, &mut dead)?;
            }
            self.put_next_id(rows)?;
            Ok(dead)
        })?;
        self.figures.add(delta);
        group.dead = dead;
        Ok(())
    }

    /// Ids are never given twice, not even those whose files are gone.
    fn put_next_id(&self, rows: &Rows<'_>) -> Result<(), StoreError> {
        let next = self.next_id.load(Ordering::Relaxed);
        rows.txn.open_table(index::META)?.insert("next_id", next)?;
        Ok(())
    }

    /// Refuses a batch that does not fit what is there, before any of it is written.
    fn check(&self, rows: &Rows<'_>, batch: &Batch) -> Result<(), StoreError> {
        for seal in &batch.seal {
            if rows.object(seal.object)?.is_some_and(|row| row.root.is_some() && !row.merging) {
                let id = seal.object.0;
                return Err(StoreError::Rejected(format!("object {id} is sealed already")));
            }
            if seal.leaves.size() != Some(seal.stamp.size) {
                let (root, size) = (seal.root, seal.stamp.size);
                let text = format!("the leaves of {root} do not cover its {size} bytes");
                return Err(StoreError::Rejected(text));
            }
        }
        for (id, root) in &batch.own {
            let same = |other: &ContentId| other.to_v1() == root.to_v1();
            let sealed = |seal: &Seal| seal.object == *id && same(&seal.root);
            let row = rows.object(*id)?;
            let there = row.is_some_and(|r| r.is_whole() && r.root.as_ref().is_some_and(same));
            if !there && !batch.seal.iter().any(sealed) {
                let text = format!("object {} is not there to own, or not (all of) {root}", id.0);
                return Err(StoreError::Rejected(text));
            }
        }
        Ok(())
    }

    fn apply(
        &self,
        rows: &mut Rows<'_>,
        batch: &Batch,
        dead: &mut Vec<ObjectId>,
    ) -> Result<(), StoreError> {
        for seal in &batch.seal {
            self.apply_seal(rows, seal)?;
        }
        for id in &batch.keep {
            if rows.object(*id)?.is_none() {
                let mut row = ObjectRow::working(now_secs());
                row.allocated = self.allocated(*id);
                rows.put_object(*id, &row)?;
            }
        }
        for (id, _) in &batch.own {
            if let Some(mut row) = rows.object(*id)? {
                row.owners += 1;
                rows.put_object(*id, &row)?;
            }
        }
        for id in &batch.release {
            apply_release(rows, *id, dead)?;
        }
        for block in &batch.nodes {
            rows.put_node(block)?;
        }
        apply_tree(rows, batch)
    }

    fn apply_seal(&self, rows: &mut Rows<'_>, seal: &Seal) -> Result<(), StoreError> {
        // What is there of a merge: the old root and leaves.
        rows.remove_object(seal.object)?;
        let size = seal.stamp.size;
        let mut row = ObjectRow::content(seal.root, size, now_secs());
        row.ever_complete = seal.present.is_none();
        row.sealed = true;
        let whole = || [ByteRange::new(0, size)].into_iter().collect();
        row.present = seal.present.clone().unwrap_or_else(whole);
        row.stamp = Some(seal.stamp);
        row.owners = 1;
        row.allocated = self.allocated(seal.object);
        rows.put_object(seal.object, &row)?;
        let leaf = |(hash, range)| {
            (hash, Leaf { object: seal.object, range, envelope: Envelope::default() })
        };
        let present =
            |(_, range): &(_, ByteRange)| !range.is_empty() && row.present.contains(*range);
        let mut leaves = seal.leaves.iter().filter(present).map(leaf);
        loop {
            let some: Vec<_> = leaves.by_ref().take(LEAVES_AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            rows.put_leaves(some.iter().map(|(hash, leaf)| (hash, leaf.clone())).collect())?;
        }
        for block in &seal.nodes {
            rows.put_node(block)?;
        }
        Ok(())
    }

    fn apply_pending(&self, rows: &mut Rows<'_>, pending: &Pending) -> Result<(), StoreError> {
        let ranges = pending.ranges();
        for (id, object) in &pending.dirty {
            let synced = ranges.get(id).map(Vec::as_slice).unwrap_or_default();
            let mut row = match rows.object(*id)? {
                Some(row) => row,
                None => ObjectRow::content(*object.root(), object.size(), now_secs()),
            };
            row.present = object.durable_with(synced);
            row.ever_complete |= row.present.contains(ByteRange::new(0, row.size));
            row.stamp = object.stamp();
            row.allocated = self.allocated(*id);
            rows.put_object(*id, &row)?;
        }
        let leaves = pending
            .leaves
            .iter()
            .flat_map(|(hash, leaves)| leaves.iter().map(move |leaf| (hash, leaf.clone())));
        // What was withdrawn since is not written.
        let leaves = leaves.filter(|(_, leaf)| {
            pending.dirty.get(&leaf.object).is_some_and(|object| object.has(leaf.range))
        });
        rows.put_leaves(leaves.collect())?;
        for block in pending.nodes.values() {
            rows.put_node(block)?;
        }
        Ok(())
    }

    /// Step 4: what only holds once the commit stands.
    fn finish(&self, group: Group) {
        let ranges = group.pending.ranges();
        for (id, object) in &group.pending.dirty {
            object.committed(ranges.get(id).map(Vec::as_slice).unwrap_or_default());
        }
        let committed = std::mem::take(&mut self.pending().committing);
        // Handles of the version that was merged over see what they share with the new one, and no more.
        for seal in group.requests.iter().filter(|r| !is_done(r)).flat_map(|r| &r.batch.seal) {
            self.registry().renew(seal.object);
            drop(guard(&self.recent).pop(&seal.object));
        }
        for id in group.dead {
            // The row is gone; the next start unlinks what is left.
            if let Err(error) = self.remove_file(id) {
                tracing::warn!(%error, "a released file stays until the next start");
            }
        }
        for request in &group.requests {
            let batch = &request.batch;
            if !is_done(request) && (!batch.release.is_empty() || batch.published.is_some()) {
                // Nodes that it reached may be reached by nothing now.
                self.evicted.store(true, Ordering::Relaxed);
                self.has_candidates();
            }
            finish(request, Ok(()));
        }
        // Dropping the last handles takes locks, so not inside one.
        drop((committed, group.pending));
    }

    /// Bytes of disk of a file of `objects/`.
    pub(super) fn allocated(&self, id: ObjectId) -> u64 {
        std::fs::metadata(self.object_path(id)).map_or(0, |m| m.blocks() * 512)
    }
}

fn apply_release(
    rows: &mut Rows<'_>,
    id: ObjectId,
    dead: &mut Vec<ObjectId>,
) -> Result<(), StoreError> {
    match rows.object(id)? {
        Some(mut row) if row.root.is_some() => {
            row.owners = row.owners.saturating_sub(1);
            rows.put_object(id, &row)
        }
        _ => {
            rows.remove_object(id)?;
            dead.push(id);
            Ok(())
        }
    }
}

fn apply_tree(rows: &mut Rows<'_>, batch: &Batch) -> Result<(), StoreError> {
    let mut tree = rows.txn.open_table(index::TREE)?;
    for (key, value) in &batch.tree_put {
        tree.insert(key, value.as_slice())?;
    }
    for key in &batch.tree_remove {
        tree.remove(key)?;
    }
    drop(tree);
    for info in &batch.files {
        let mut info = info.clone();
        info.chunks.clear();
        let json = serde_json::to_vec(&info).map_err(|e| StoreError::Index(e.to_string()))?;
        rows.put(index::FILES, &codec::content_key(&info.cid), &json)?;
    }
    for id in &batch.files_remove {
        rows.remove(index::FILES, &codec::content_key(id))?;
    }
    if let Some(roots) = &batch.published {
        rows.txn.open_table(index::META)?.insert(index::TREE_KNOWN, 1)?;
        rows.txn.open_table(index::PUBLISHED)?.retain(|_, _| false)?;
        for root in roots {
            let row = codec::encode_named(root, "");
            rows.put(index::PUBLISHED, &codec::content_key(root), &row)?;
        }
    }
    Ok(())
}

impl Group {
    /// Gives `error` to those that `which` picks and that have no outcome yet.
    fn fail(&self, which: impl Fn(&Request) -> bool, error: &StoreError) {
        for request in self.requests.iter().filter(|r| which(r) && !is_done(r)) {
            finish(request, Err(error.again()));
        }
    }
}

fn take(outcome: &Outcome) -> Option<Result<(), StoreError>> {
    outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn is_done(request: &Request) -> bool {
    request.outcome.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// The first outcome stands.
fn finish(request: &Request, result: Result<(), StoreError>) {
    request.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(result);
}

impl StoreError {
    pub(super) fn io(what: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }

    /// The same error for another caller of the same commit.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Io { what, path, source } => {
                let source = match source.raw_os_error() {
                    Some(errno) => io::Error::from_raw_os_error(errno),
                    None => io::Error::new(source.kind(), source.to_string()),
                };
                Self::Io { what, path: path.clone(), source }
            }
            Self::Closed => Self::Closed,
            other => Self::Index(other.to_string()),
        }
    }
}
