//! One flat sparse file of content and its present ranges.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use super::{
    FileStamp, Inner, ObjectId, StoreError,
    codec::{Envelope, Leaf, ObjectRow},
    heal::Verified,
    now_secs,
    space::Room,
};
use crate::content::{Block, ByteRange, ContentId, Multihash, Placement, RangeSet};

/// Reads that are remembered: as many as readers of one file that are worth telling apart.
const HOT_READS: usize = 64;
/// Bytes around the end of a read that are spared when holes are punched: a program that seeks back a little,
/// and what was read ahead for it.
const HOT_BEHIND: u64 = 8 << 20;
const HOT_AHEAD: u64 = 64 << 20;

/// One flat file of content, whole or in part. Its bytes never change once they are present.
///
/// The handle keeps the content from being evicted.
#[derive(Debug)]
pub struct Object {
    pub(super) store: Weak<Inner>,
    id: ObjectId,
    root: ContentId,
    size: u64,
    path: PathBuf,
    state: RwLock<State>,
    /// A new version is being written into the file: it serves blocks, and is no target for any.
    merging: bool,
    /// Every byte is here. Kept beside `state` so that the fast paths take no lock.
    complete: AtomicBool,
    /// Every byte was here once: never punched from then on, since a passthrough reader would see zeros.
    ever_complete: AtomicBool,
    /// Seconds since the epoch; 0: not read through this handle.
    last_read: AtomicU64,
    /// Opened O_RDONLY: a descriptor that could write would make the lease probe see a writer.
    reader: OnceLock<Arc<File>>,
    writer: Mutex<Option<Arc<File>>>,
    /// Held shared while bytes are read or written, exclusively while holes are punched.
    /// Lock order: `holes`, then the pending set, then `state`.
    holes: RwLock<()>,
    /// Where the latest reads ended: the surroundings are punched last.
    hot: Mutex<VecDeque<u64>>,
    /// Ranges that were hashed a short time ago.
    pub(super) verified: Verified,
    /// One hashes a file again that looks other than when it was sealed. Taken before the leader of the group commit.
    pub(super) rehashing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// Bytes that can be read.
    present: RangeSet,
    /// Bytes that the index knows; a part of `present`.
    durable: RangeSet,
    stamp: Option<FileStamp>,
}

impl Inner {
    /// The shared handle of an object; none when there is no such content.
    pub(super) fn open_object(
        self: &Arc<Self>,
        id: ObjectId,
    ) -> Result<Option<Arc<Object>>, StoreError> {
        let mut registry = self.registry();
        if registry.dying.contains(&id) {
            return Ok(None);
        }
        if let Some(object) = registry.by_id.get(&id).and_then(Weak::upgrade) {
            return Ok(Some(object));
        }
        let row = self.index.read(|txn| super::index::object_row(txn, id))?;
        let Some(row) = row else { return Ok(None) };
        let Some(root) = row.root else { return Ok(None) };
        let object = Arc::new(Object::new(self, id, root, row));
        registry.insert(&object);
        Ok(Some(object))
    }

    /// Makes the file of a new object; its row comes with the next group commit.
    pub(super) fn make_object(
        self: &Arc<Self>,
        root: ContentId,
        size: u64,
    ) -> Result<Arc<Object>, StoreError> {
        let mut registry = self.registry();
        let made = registry.made(&root);
        match made {
            Some(object) if object.size() == size => return Ok(object),
            // Dropped under no lock.
            Some(other) => {
                drop(registry);
                drop(other);
                registry = self.registry();
            }
            None => {}
        }
        let (id, path, file) = self.create_file()?;
        if let Err(error) = self.disk.set_len(&file, size) {
            self.discard(id);
            return Err(StoreError::io("set length of", &path, error));
        }
        let row = ObjectRow::content(root, size, now_secs());
        let object = Arc::new(Object::new(self, id, root, row));
        *object.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(file));
        registry.insert_made(&object);
        drop(registry);
        self.pending().mark_dirty(&object);
        Ok(object)
    }
}

impl Object {
    fn new(store: &Arc<Inner>, id: ObjectId, root: ContentId, row: ObjectRow) -> Self {
        let complete = !row.merging && row.present.contains(ByteRange::new(0, row.size));
        Self {
            store: Arc::downgrade(store),
            id,
            root,
            size: row.size,
            path: store.object_path(id),
            merging: row.merging,
            complete: AtomicBool::new(complete),
            ever_complete: AtomicBool::new(row.ever_complete || complete),
            state: RwLock::new(State {
                durable: row.present.clone(),
                present: row.present,
                stamp: row.stamp,
            }),
            last_read: AtomicU64::new(0),
            reader: OnceLock::new(),
            writer: Mutex::new(None),
            holes: RwLock::new(()),
            hot: Mutex::default(),
            verified: Verified::default(),
            rehashing: Mutex::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Root of its DAG.
    pub fn root(&self) -> &ContentId {
        &self.root
    }

    /// Where its file lies, whole or in part.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of content.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are here.
    pub fn present(&self) -> RangeSet {
        self.state_read().present.clone()
    }

    /// Whether `range` is here; without a copy of the set.
    pub fn has(&self, range: ByteRange) -> bool {
        if self.is_complete() {
            range.end <= self.size
        } else {
            self.state_read().present.contains(range)
        }
    }

    /// Whether every byte is here.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Bytes of disk that it takes.
    pub fn allocated(&self) -> u64 {
        let metadata = self.reader().and_then(|f| f.metadata().map_err(|e| self.io("stat", e)));
        metadata.map_or(0, |m| m.blocks() * 512)
    }

    /// Copies bytes out. Counts as a read for eviction.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when one is not here, or the system call's error.
    pub fn read(&self, range: ByteRange) -> Result<Bytes, StoreError> {
        self.touch();
        if !self.has(range) {
            return Err(StoreError::Missing(range));
        }
        if let Some(verified) = self.read_suspect(range)? {
            return Ok(verified);
        }
        self.verify_range(range)?;
        let _shared = self.holes.read().unwrap_or_else(PoisonError::into_inner);
        if !self.has(range) {
            return Err(StoreError::Missing(range));
        }
        let mut bytes = Vec::new();
        self.read_into(range, &mut bytes)?;
        if !self.is_ever_complete() {
            let mut hot = self.hot.lock().unwrap_or_else(PoisonError::into_inner);
            if hot.len() == HOT_READS {
                hot.pop_front();
            }
            hot.push_back(range.end);
        }
        Ok(bytes.into())
    }

    /// Appends the bytes of `range` to `out`. The caller holds `holes` and knows that they are present.
    pub(super) fn read_into(&self, range: ByteRange, out: &mut Vec<u8>) -> Result<(), StoreError> {
        let file = self.reader()?;
        let len = usize::try_from(range.len()).map_err(|_| StoreError::Missing(range))?;
        let end = out.len() + len;
        out.reserve_exact(len);
        while out.len() < end {
            let at = range.end - (end - out.len()) as u64;
            match rustix::io::pread(&file, rustix::buffer::spare_capacity(out), at) {
                // The file is shorter than the index says: somebody cut it.
                Ok(0) => return Err(self.io("read", io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.io("read", e.into())),
            }
        }
        // The allocator may have given more than was asked for, and pread filled it.
        out.truncate(end);
        Ok(())
    }

    /// The exact block of a leaf; none when its content is not here (any more).
    pub(super) fn read_block(&self, leaf: &Leaf) -> Result<Option<Bytes>, StoreError> {
        let _shared = self.holes.read().unwrap_or_else(PoisonError::into_inner);
        if !self.has(leaf.range) {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(leaf.block_len());
        bytes.extend_from_slice(&leaf.envelope.before);
        self.read_into(leaf.range, &mut bytes)?;
        bytes.extend_from_slice(&leaf.envelope.after);
        Ok(Some(bytes.into()))
    }

    /// Writes the content of a verified block to its places and marks them present. The exact block can be
    /// served from then on.
    ///
    /// # Errors
    /// ENOSPC when there is no room even after eviction; [`StoreError::Rejected`] for a place outside the file.
    pub fn place(self: &Arc<Self>, block: &Block, places: &[Placement]) -> Result<(), StoreError> {
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        store.admit(Room { bytes: block.data().len() as u64, files: 0 })?;
        self.place_admitted(block, places)
    }

    /// As [`Object::place`], with no regard to `min_free`: for what moves content within the store.
    pub(super) fn place_admitted(
        self: &Arc<Self>,
        block: &Block,
        places: &[Placement],
    ) -> Result<(), StoreError> {
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        if places.iter().all(|place| place.data.is_empty()) {
            store.pending().put_node(block);
            return Ok(());
        }
        for place in places.iter().filter(|place| !place.data.is_empty()) {
            self.place_one(&store, block, place)?;
        }
        Ok(())
    }

    fn place_one(
        self: &Arc<Self>,
        store: &Arc<Inner>,
        block: &Block,
        place: &Placement,
    ) -> Result<(), StoreError> {
        let data = block.data();
        let content = data.get(place.data.clone()).unwrap_or_default();
        let range = ByteRange::at(place.offset, content.len() as u64);
        if content.len() != place.data.len() || range.end > self.size {
            let id = block.cid();
            return Err(StoreError::Rejected(format!("{id} does not fit at {range}")));
        }
        if self.has(range) {
            return Ok(());
        }
        if self.merging {
            let text = format!("a new version is being written into object {}", self.id.0);
            return Err(StoreError::Rejected(text));
        }
        let leaf = Leaf {
            object: self.id,
            range,
            envelope: Envelope {
                before: data.slice(..place.data.start),
                after: data.slice(place.data.end..),
            },
        };
        store.with_room(|| self.write(store, block.cid().hash(), content, &leaf))
    }

    fn write(
        self: &Arc<Self>,
        store: &Arc<Inner>,
        hash: &Multihash,
        content: &[u8],
        leaf: &Leaf,
    ) -> Result<(), StoreError> {
        let _shared = self.holes.read().unwrap_or_else(PoisonError::into_inner);
        let file = self.writer(store)?;
        if !store.share_extents(self, hash, content, &file, leaf.range)? {
            let written = store.disk.write_at(&file, content, leaf.range.start);
            written.map_err(|e| self.io("write", e))?;
        }
        let mut pending = store.pending();
        pending.put_leaf(self, hash, leaf.clone());
        let mut state = self.state_write();
        state.present.insert(leaf.range);
        self.note_verified(leaf.range);
        // The store's own repair of a file changes its times; the new bytes were verified.
        state.stamp = None;
        if state.present.contains(ByteRange::new(0, self.size)) {
            self.complete.store(true, Ordering::Release);
            self.ever_complete.store(true, Ordering::Release);
        }
        drop(state);
        let full = pending.is_full();
        drop(pending);
        if full {
            store.wake.notify_one();
        }
        Ok(())
    }

    pub(super) fn is_merging(&self) -> bool {
        self.merging
    }

    pub(super) fn is_ever_complete(&self) -> bool {
        self.ever_complete.load(Ordering::Acquire)
    }

    pub(super) fn stamp(&self) -> Option<FileStamp> {
        self.state_read().stamp
    }

    /// The bytes of a sealed file were verified while it looked like `stamp`. One that was repaired since has none.
    pub(super) fn set_stamp(&self, stamp: FileStamp) {
        if let Some(old) = &mut self.state_write().stamp {
            *old = stamp;
        }
    }

    /// Takes bytes out of the memory's view; the caller makes the index follow.
    pub(super) fn mark_absent(&self, range: ByteRange) {
        self.forget_verified(range);
        let mut state = self.state_write();
        state.present.remove(range);
        state.durable.remove(range);
        if !state.present.contains(ByteRange::new(0, self.size)) {
            self.complete.store(false, Ordering::Release);
        }
    }

    /// The ranges to write into the index: what it has, and those of `synced` that are still present.
    pub(super) fn durable_with(&self, synced: &[ByteRange]) -> RangeSet {
        let state = self.state_read();
        let mut durable = state.durable.clone();
        for range in synced.iter().filter(|range| state.present.contains(**range)) {
            durable.insert(*range);
        }
        durable
    }

    /// The commit of `durable` stands. The writing descriptor is not needed once that is the whole file; while it is
    /// not, leaves that came during the commit wait for the next one.
    pub(super) fn committed(&self, synced: &[ByteRange]) {
        let durable = self.durable_with(synced);
        let whole = durable.contains(ByteRange::new(0, self.size));
        let stamp = if whole { self.stamp_of_whole() } else { None };
        let mut state = self.state_write();
        state.durable = durable;
        state.stamp = state.stamp.or(stamp);
        drop(state);
        if whole {
            self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Stamp of a file after its last write, so that a later change of it shows.
    pub(super) fn stamp_of_whole(&self) -> Option<FileStamp> {
        let file = self.reader().ok()?;
        FileStamp::of(&file).ok()
    }

    /// The file to sync after leaves were written. Any descriptor does: fdatasync writes out what all of them wrote.
    pub(super) fn written(&self) -> Result<Arc<File>, StoreError> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        writer.map_or_else(|| self.reader(), Ok)
    }

    /// Keeps those out that punch holes.
    #[cfg(test)]
    pub(super) fn shared(&self) -> std::sync::RwLockReadGuard<'_, ()> {
        self.holes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Object::shared`], unless that had to wait.
    #[cfg(test)]
    pub(super) fn try_shared(&self) -> Option<std::sync::RwLockReadGuard<'_, ()>> {
        self.holes.try_read().ok()
    }

    /// Keeps readers and writers out while holes are punched.
    pub(super) fn exclusive(&self) -> std::sync::RwLockWriteGuard<'_, ()> {
        self.holes.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn writer(&self, store: &Inner) -> Result<Arc<File>, StoreError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*writer {
            return Ok(file.clone());
        }
        let file = store.disk.open_or_create(&self.path).map_err(|e| self.io("open", e))?;
        Ok(writer.insert(Arc::new(file)).clone())
    }

    pub(super) fn reader(&self) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.reader.get() {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(&self.path).map_err(|e| self.io("open", e))?);
        Ok(self.reader.get_or_init(|| file).clone())
    }

    /// What is durable and was not read lately, from the front. The caller holds [`Object::exclusive`].
    pub(super) fn idle_ranges(&self) -> Vec<ByteRange> {
        let mut idle = self.state_read().durable.clone();
        let hot = self.hot.lock().unwrap_or_else(PoisonError::into_inner);
        for at in hot.iter() {
            idle.remove(ByteRange::new(at.saturating_sub(HOT_BEHIND), at + HOT_AHEAD));
        }
        idle.iter().collect()
    }

    pub(super) fn touch(&self) {
        self.last_read.store(now_secs(), Ordering::Relaxed);
    }

    pub(super) fn last_read(&self) -> u64 {
        self.last_read.load(Ordering::Relaxed)
    }

    fn state_read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn io(&self, what: &'static str, source: io::Error) -> StoreError {
        StoreError::io(what, &self.path, source)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            store.note_read(self.id, self.last_read());
            store.registry().forget(self);
        }
    }
}
