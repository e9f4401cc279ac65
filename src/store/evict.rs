//! The limits of the cache: what is read least recently goes first, whole.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    Figures, GcReport, Inner, ObjectId, Store, StoreError, Trouble, guard, index,
    space::{Room, Space},
};
use crate::tasks::Tasks;

/// How often the limits are looked at when nothing is written: the disk also fills up by others.
const EVICT_INTERVAL: Duration = Duration::from_secs(60);
/// Room that is made at once when a write found the disk full.
const ENOSPC_ROOM: u64 = 256 << 20;
/// How often the nodes of evicted content are swept: that walks over all that is here.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// How long the answer "nothing can be evicted" holds.
const FRUITLESS: Duration = Duration::from_secs(1);
/// Objects that go in one transaction, and their bytes: some 16,000 leaves.
const EVICT_BATCH: usize = 1024;
const EVICT_BYTES: u64 = 4 << 30;
/// Objects that go at once when the disk has no inode left.
const ENOSPC_FILES: u64 = 64;

/// Content that may go.
#[derive(Debug)]
struct Candidate {
    id: ObjectId,
    /// It is an upload that was removed: those go first.
    removed: bool,
    last_read: u64,
    allocated: u64,
}

/// Starts the task that commits downloads and holds the limits, and the one that hashes again what looks changed.
pub(super) fn start(inner: &Arc<Inner>, tasks: &Tasks) {
    super::recheck::start(inner, tasks);
    super::ahead::start(inner, tasks);
    // Weak, so that a store whose last clone is dropped goes at once.
    let store = Arc::downgrade(inner);
    let (cancelled, runner) = (tasks.cancelled(), tasks.clone());
    tasks.spawn("store flusher", async move {
        tokio::pin!(cancelled);
        let mut since_evict = Duration::ZERO;
        let mut swept = Instant::now();
        loop {
            let Some(inner) = store.upgrade() else { return };
            let woken = wait_for_wake(inner);
            tokio::select! {
                () = &mut cancelled => {
                    if let Some(inner) = store.upgrade() {
                        inner.stopping.store(true, Ordering::Relaxed);
                    }
                    return;
                }
                () = woken => {}
                () = tokio::time::sleep(Store::FLUSH_INTERVAL) => since_evict += Store::FLUSH_INTERVAL,
            }
            let due = since_evict >= EVICT_INTERVAL;
            if due {
                since_evict = Duration::ZERO;
            }
            let sweep = due && swept.elapsed() >= SWEEP_INTERVAL;
            if sweep {
                swept = Instant::now();
            }
            let store = store.clone();
            // A panic of the work was reported by the runtime; the next round tries again.
            let _ = runner.blocking("store flush", move || maintain(&store, due, sweep)).await;
        }
    });
}

/// Waits on a handle of its own: the loop must not hold the store open.
async fn wait_for_wake(inner: Arc<Inner>) {
    let wake = inner.wake.clone();
    drop(inner);
    wake.notified().await;
}

pub(super) fn maintain(store: &Weak<Inner>, due: bool, sweep: bool) {
    let Some(inner) = store.upgrade() else { return };
    inner.recover_from_trouble();
    if let Err(error) = inner.flush()
        && !inner.tell(&error)
    {
        tracing::warn!(%error, "downloaded blocks could not be made durable; they are tried again");
    }
    inner.write_reads_behind();
    if let Err(error) = inner.state.flush_written() {
        tracing::debug!(%error, "the working state was not written; it is tried again");
    }
    if inner.pins_moved.swap(false, Ordering::Relaxed)
        && let Err(error) = inner.candidates()
    {
        inner.pins_moved.store(true, Ordering::Relaxed);
        tracing::debug!(%error, "what pins keep of the cache is not known yet");
    }
    let over = Figures::get(&inner.figures.cache) > inner.cache_allowance();
    if (due || over || inner.is_short())
        && let Err(error) = inner.evict()
        && !inner.tell(&error)
    {
        tracing::warn!(%error, "eviction failed");
    }
    if sweep && inner.evicted.swap(false, Ordering::Relaxed) {
        let swept = inner.sweep_evicted();
        if !matches!(swept, Ok(Some(_))) {
            inner.evicted.store(true, Ordering::Relaxed);
        }
        if let Err(error) = swept {
            tracing::warn!(%error, "nodes of evicted content are still there");
        }
    }
}

impl Inner {
    /// Bytes of cache at which eviction is worth a look: the limit, and what is pinned anyway.
    fn cache_allowance(&self) -> u64 {
        let pinned = self.figures.pinned.load(Ordering::Relaxed);
        self.limits.cache.saturating_add(u64::try_from(pinned).unwrap_or(0))
    }

    /// A change of the disk failed. False where that says nothing about the disk: then the caller logs it.
    pub(super) fn tell(&self, error: &StoreError) -> bool {
        self.health.failed(&self.dir, error)
    }

    /// Finds out whether the disk works again where it did not.
    fn recover_from_trouble(&self) {
        let whole = self.reserve.refill();
        match self.health.trouble() {
            Some(Trouble::Full) if whole && self.shortage(Room::default()).is_none() => {
                self.health.has_room(&self.dir);
            }
            // The commit tells by itself how it ended.
            Some(Trouble::ReadOnly | Trouble::Failing) => drop(self.index.probe()),
            Some(Trouble::Full) | None => {}
        }
    }

    pub(super) fn space(&self) -> Result<Space, StoreError> {
        let space = self.gauge.space(&*self.disk, &self.objects);
        space.map_err(|e| StoreError::io("statvfs", &self.objects, e))
    }

    /// Whether less of the disk is free than should be, and looking for what can go is worth it: what is uploaded comes
    /// past the store, as fast as the disk takes it.
    fn is_short(&self) -> bool {
        let barren = guard(&self.fruitless).is_some_and(|at| at.elapsed() < EVICT_INTERVAL);
        !barren && !self.shortage(Room::default()).is_none()
    }

    /// Returns the room that has to come free before `wanted` may be written. A disk that cannot be measured is not short: the write shows
    /// what is wrong with it.
    pub(super) fn shortage(&self, wanted: Room) -> Room {
        self.space().map_or(Room::default(), |space| self.limits.shortage(&space, wanted))
    }

    /// Removes least recently read content until the limits hold.
    pub(super) fn evict(self: &Arc<Self>) -> Result<GcReport, StoreError> {
        let room = self.shortage(Room::default());
        let report = self.evict_until(room)?;
        if !room.is_none() {
            self.note_fruitless(report);
            let left = self.shortage(Room::default());
            if !left.is_none() {
                self.tell(&self.too_short(left));
            }
        }
        Ok(report)
    }

    fn too_short(&self, short: Room) -> StoreError {
        let what =
            if short.bytes > 0 { "keep `min_free` on the disk of" } else { "keep inodes free for" };
        StoreError::io(what, &self.dir, rustix::io::Errno::NOSPC.into())
    }

    fn note_fruitless(&self, report: GcReport) {
        *guard(&self.fruitless) = (report.objects == 0 && report.bytes == 0).then(Instant::now);
    }

    /// Makes room after a write found the disk full: some bytes and inodes above the limits, whatever the disk says of
    /// itself.
    pub(super) fn evict_for_space(self: &Arc<Self>) -> Result<GcReport, StoreError> {
        self.gauge.forget();
        let files =
            self.space().is_ok_and(|space| space.inodes > 0 && space.inodes_free < ENOSPC_FILES);
        let least = Room { bytes: ENOSPC_ROOM, files: if files { ENOSPC_FILES } else { 0 } };
        let short = self.shortage(Room::default());
        self.evict_room(Room {
            bytes: short.bytes.max(least.bytes),
            files: short.files.max(least.files),
        })
    }

    /// Removes content until `room` came free, unless a moment ago there was none to remove.
    pub(super) fn evict_room(self: &Arc<Self>, room: Room) -> Result<GcReport, StoreError> {
        // While the disk is full each block that comes asks for room; looking through all content each time would be
        // all that the daemon does.
        if guard(&self.fruitless).is_some_and(|at| at.elapsed() < FRUITLESS) {
            return Ok(GcReport::default());
        }
        let report = self.evict_until(room)?;
        self.note_fruitless(report);
        Ok(report)
    }

    /// Something may be evicted now that could not be before.
    pub(super) fn has_candidates(&self) {
        *guard(&self.fruitless) = None;
        if self.health.trouble() == Some(Trouble::Full) {
            self.wake.notify_one();
        }
    }

    /// Refuses to take in more where `min_free` would not hold or the index could not follow, after eviction.
    pub(super) fn admit(self: &Arc<Self>, wanted: Room) -> Result<(), StoreError> {
        self.check_writable()?;
        if !self.reserve.is_whole() && !self.reserve.refill() {
            self.evict_for_space()?;
            if !self.reserve.refill() {
                return Err(self.refused(self.reserve.full()));
            }
        }
        let mut short = self.shortage(wanted);
        if !short.is_none() {
            self.evict_room(short)?;
            self.gauge.forget();
            short = self.shortage(wanted);
        }
        if short.is_none() {
            self.gauge.spend(wanted);
            return Ok(());
        }
        Err(self.refused(self.too_short(short)))
    }

    /// As [`Inner::admit`] for what only the index takes. The flusher evicts meanwhile; where it found nothing the disk is
    /// known to be full.
    pub(super) fn admit_row(&self) -> Result<(), StoreError> {
        self.check_writable()?;
        if self.reserve.is_whole() && self.shortage(Room::default()).bytes == 0 {
            return Ok(());
        }
        self.wake.notify_one();
        match self.health.trouble() {
            Some(Trouble::Full) => Err(self.reserve.full()),
            _ => Ok(()),
        }
    }

    pub(super) fn refused(&self, error: StoreError) -> StoreError {
        self.tell(&error);
        error
    }

    /// Refuses changes while the disk is read-only, so that nothing is acknowledged that only memory has.
    pub(super) fn check_writable(&self) -> Result<(), StoreError> {
        let read_only = self.health.trouble() == Some(Trouble::ReadOnly)
            || self.space().is_ok_and(|space| space.read_only);
        if !read_only {
            return Ok(());
        }
        let source = rustix::io::Errno::ROFS.into();
        Err(self.refused(StoreError::io("write to", &self.dir, source)))
    }

    /// Removes content until `room` came free and the cache is under its limit.
    fn evict_until(self: &Arc<Self>, room: Room) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        let over = self.undisturbed(|since| self.evict_since(since, room, &mut report))?;
        let over = over.unwrap_or(room).bytes;
        if report.bytes < over {
            report.bytes += self.punch_open(over - report.bytes)?;
        }
        self.gauge.forget();
        Ok(report)
    }

    /// Removes whole objects as long as nothing else is committed; gives how much was to go. None: something was, and what
    /// may go has to be found out again.
    fn evict_since(
        self: &Arc<Self>,
        mut since: u64,
        room: Room,
        report: &mut GcReport,
    ) -> Result<Option<Room>, StoreError> {
        let (mut candidates, total) = self.candidates()?;
        // What an earlier attempt removed counts, and is not in the total any more.
        let over = total.saturating_sub(self.limits.cache).saturating_add(report.bytes);
        let over = Room { bytes: over.max(room.bytes), files: room.files };
        candidates.sort_by_key(|c| (!c.removed, c.last_read, c.id));
        let mut candidates = candidates.into_iter();
        loop {
            let mut wanted = over.less(Room { bytes: report.bytes, files: report.objects });
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while !wanted.is_none() && chunk.len() < EVICT_BATCH && bytes < EVICT_BYTES {
                let Some(next) = candidates.next() else { break };
                wanted = wanted.less(Room { bytes: next.allocated, files: 1 });
                bytes += next.allocated;
                chunk.push(next.id);
            }
            if chunk.is_empty() {
                return Ok(Some(over));
            }
            let Some(removed) = self.remove_objects(&chunk, Some(since))? else {
                return Ok(None);
            };
            since += 1;
            report.objects += removed.objects;
            report.bytes += removed.bytes;
        }
    }

    /// Content that is neither published nor pinned, and its bytes on disk.
    fn candidates(self: &Arc<Self>) -> Result<(Vec<Candidate>, u64), StoreError> {
        let pinned = self.reach(self.pins()?.into_iter().map(|pin| pin.root))?.objects;
        self.write_reads_behind();
        let reads = self.last_reads()?;
        let (mut candidates, mut total, mut kept) = (Vec::new(), 0u64, 0u64);
        self.index.read(|txn| {
            index::object_rows(txn, |id, row| {
                if !row.is_cache() {
                    return Ok(());
                }
                if pinned.contains(&id) {
                    kept += row.allocated;
                    return Ok(());
                }
                total += row.allocated;
                let last_read = reads.get(&id).copied().unwrap_or(row.created_at);
                let (removed, allocated) = (row.sealed, row.allocated);
                candidates.push(Candidate { id, removed, last_read, allocated });
                Ok(())
            })
        })?;
        let kept = i64::try_from(kept).unwrap_or(i64::MAX);
        self.figures.pinned.store(kept, Ordering::Relaxed);
        Ok((candidates, total))
    }

    /// Removes those of `ids` that nobody owns or has open: rows first, then files. None, and nothing is removed, when
    /// there were other than `since` commits.
    pub(super) fn remove_objects(
        self: &Arc<Self>,
        ids: &[ObjectId],
        since: Option<u64>,
    ) -> Result<Option<GcReport>, StoreError> {
        let served: Vec<_> = {
            let mut recent = guard(&self.recent);
            ids.iter().filter_map(|id| recent.pop(id)).collect()
        };
        drop(served);
        let claimed: Vec<_> = {
            let mut registry = self.registry();
            ids.iter().copied().filter(|id| registry.claim(*id)).collect()
        };
        let result = self.remove_claimed(&claimed, since);
        let mut registry = self.registry();
        claimed.iter().for_each(|id| registry.unclaim(*id));
        result
    }

    fn remove_claimed(
        &self,
        ids: &[ObjectId],
        since: Option<u64>,
    ) -> Result<Option<GcReport>, StoreError> {
        let (removed, delta) = self.index.write_counted(|rows| {
            if since.is_some_and(|since| rows.commits().ok() != Some(since)) {
                return Ok(None);
            }
            let mut removed = Vec::new();
            for id in ids {
                // It may have got an owner since it was chosen.
                let Some(row) = rows.object(*id)?.filter(super::codec::ObjectRow::is_cache) else {
                    continue;
                };
                rows.remove_object(*id)?;
                if let Some(root) = &row.root {
                    rows.forget_known(root)?;
                }
                removed.push((*id, row.allocated));
            }
            Ok(Some(removed))
        })?;
        self.figures.add(delta);
        let Some(removed) = removed else { return Ok(None) };
        let mut report = GcReport::default();
        for (id, allocated) in removed {
            self.remove_file(id)?;
            if let Err(error) = self.reads.remove(&id.0.to_be_bytes()) {
                tracing::debug!(%error, "the time of a last read stays");
            }
            self.evicted.store(true, Ordering::Relaxed);
            report.objects += 1;
            report.bytes += allocated;
        }
        Ok(Some(report))
    }

    /// Punches what never was complete and is open: its readers have cached handles only, and find the bytes missing.
    fn punch_open(self: &Arc<Self>, wanted: u64) -> Result<u64, StoreError> {
        let pinned = self.reach(self.pins()?.into_iter().map(|pin| pin.root))?.objects;
        let open: HashSet<_> = self.registry().open_ids().into_iter().collect();
        let mut freed = 0;
        for id in open.into_iter().filter(|id| !pinned.contains(id)) {
            if freed >= wanted {
                break;
            }
            let Some(object) = self.open_object(id)? else { continue };
            freed += self.punch_behind(&object, wanted - freed)?;
        }
        Ok(freed)
    }

    /// Last reads, as far as they were written down, and of the open objects.
    fn last_reads(&self) -> Result<HashMap<ObjectId, u64>, StoreError> {
        let mut reads = HashMap::new();
        for row in self.reads.iter() {
            let Ok((key, value)) = row else { break };
            if let (Ok(key), Ok(value)) = (key[..].try_into(), value[..].try_into()) {
                reads.insert(ObjectId(u64::from_be_bytes(key)), u64::from_be_bytes(value));
            }
        }
        Ok(reads)
    }

    /// Times of last reads only order eviction: a disk that is too full for them is no reason to keep it full.
    fn write_reads_behind(&self) {
        if let Err(error) = self.write_reads() {
            tracing::debug!(%error, "times of last reads were not written");
        }
    }

    /// Writes the times of last reads behind.
    pub(super) fn write_reads(&self) -> Result<(), StoreError> {
        let reads = std::mem::take(&mut *guard(&self.new_reads));
        let mut reads = reads.into_iter();
        while let Some((id, at)) = reads.next() {
            let written = self.reads.insert(&id.0.to_be_bytes(), &at.to_be_bytes());
            if written.is_err() {
                // For the next time, which knows later reads of some.
                self.note_read(id, at);
                reads.for_each(|(id, at)| self.note_read(id, at));
                return written;
            }
        }
        Ok(())
    }

    pub(super) fn stats(&self) -> Result<super::StoreStats, StoreError> {
        let space = self.space()?;
        let pinned = self.figures.pinned.load(Ordering::Relaxed);
        let evictable =
            Figures::get(&self.figures.cache).saturating_sub(u64::try_from(pinned).unwrap_or(0));
        let evictable_files = Figures::get(&self.figures.cached);
        Ok(super::StoreStats {
            bytes: Figures::get(&self.figures.bytes),
            objects: Figures::get(&self.figures.objects),
            blocks: self.index.read(index::block_count)?,
            available: self.limits.available(&space, evictable),
            free: space.free.saturating_add(space.reserved).saturating_add(evictable),
            capacity: space.capacity,
            files: space.inodes,
            files_free: super::Limits::available_files(&space, evictable_files),
        })
    }
}
