//! The limits of the cache: what is read least recently goes first, whole.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Figures, GcReport, Inner, ObjectId, Store, StoreError, StoreOptions, guard, index};
use crate::tasks::Tasks;

/// How often the limits are looked at when nothing is written: the disk also fills up by others.
const EVICT_INTERVAL: Duration = Duration::from_secs(60);
/// Room that is made at once when a write found the disk full.
const ENOSPC_ROOM: u64 = 256 << 20;
/// How often the nodes of evicted content are swept: that walks over all that is here.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// How long the answer "nothing can be evicted" holds.
const FRUITLESS: Duration = Duration::from_secs(1);
/// Objects that go in one transaction.
const EVICT_BATCH: usize = 64;

/// How much disk may be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    cache: u64,
    min_free: u64,
}

/// Room on the disk.
#[derive(Clone, Copy, Debug)]
struct Disk {
    free: u64,
    capacity: u64,
}

impl Limits {
    pub(super) fn new(
        options: &StoreOptions,
        objects: &std::path::Path,
    ) -> Result<Self, StoreError> {
        let tenth = measure(objects)?.capacity / 10;
        Ok(Self { cache: options.cache_limit.unwrap_or(tenth), min_free: options.min_free })
    }
}

/// Bytes of the disk that `path` lies on.
pub(super) fn capacity(path: &std::path::Path) -> Result<u64, StoreError> {
    Ok(measure(path)?.capacity)
}

fn measure(path: &std::path::Path) -> Result<Disk, StoreError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| StoreError::io("statvfs", path, e.into()))?;
    Ok(Disk { free: stat.f_bavail * stat.f_frsize, capacity: stat.f_blocks * stat.f_frsize })
}

/// Content that may go.
#[derive(Debug)]
struct Candidate {
    id: ObjectId,
    last_read: u64,
    allocated: u64,
}

/// Starts the task that commits downloads and holds the limits, and the one that hashes again what looks changed.
pub(super) fn start(inner: &Arc<Inner>, tasks: &Tasks) {
    super::recheck::start(inner, tasks);
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
    inner.reserve.refill();
    if let Err(error) = inner.flush() {
        tracing::warn!(%error, "downloaded blocks could not be made durable; they are tried again");
    }
    inner.write_reads_behind();
    if let Err(error) = inner.state.flush_written() {
        tracing::debug!(%error, "the working state was not written; it is tried again");
    }
    let over = Figures::get(&inner.figures.cache) > inner.cache_allowance();
    if (due || over || inner.is_short())
        && let Err(error) = inner.evict()
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

    /// Whether less of the disk is free than should be, and looking for what can go is worth it: what is uploaded comes
    /// past the store, as fast as the disk takes it.
    fn is_short(&self) -> bool {
        let barren = guard(&self.fruitless).is_some_and(|at| at.elapsed() < EVICT_INTERVAL);
        !barren && measure(&self.objects).is_ok_and(|disk| disk.free < self.limits.min_free)
    }

    /// Removes least recently read content until the limits hold.
    pub(super) fn evict(self: &Arc<Self>) -> Result<GcReport, StoreError> {
        let disk = measure(&self.objects)?;
        let room = self.limits.min_free.saturating_sub(disk.free);
        let report = self.evict_until(room)?;
        if room > 0 {
            *guard(&self.fruitless) = (report.bytes == 0).then(Instant::now);
        }
        Ok(report)
    }

    /// Makes room after a write found the disk full.
    pub(super) fn evict_for_space(self: &Arc<Self>) -> Result<GcReport, StoreError> {
        // While the disk is full each block that comes asks for room; looking through all content each time would be
        // all that the daemon does.
        if guard(&self.fruitless).is_some_and(|at| at.elapsed() < FRUITLESS) {
            return Ok(GcReport::default());
        }
        let report = self.evict_until(ENOSPC_ROOM)?;
        *guard(&self.fruitless) = (report.bytes == 0).then(Instant::now);
        Ok(report)
    }

    /// Refuses to take in more while the index could not follow.
    pub(super) fn admit(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.reserve.is_whole() || self.reserve.refill() {
            return Ok(());
        }
        self.evict_for_space()?;
        if self.reserve.refill() { Ok(()) } else { Err(self.reserve.full()) }
    }

    /// Removes content until `room` bytes came free and the cache is under its limit.
    fn evict_until(self: &Arc<Self>, room: u64) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        let over = self.undisturbed(|since| self.evict_since(since, room, &mut report))?;
        let over = over.unwrap_or(room);
        if report.bytes < over {
            report.bytes += self.punch_open(over - report.bytes)?;
        }
        Ok(report)
    }

    /// Removes whole objects as long as nothing else is committed; gives how many bytes were to go. None: something was,
    /// and what may go has to be found out again.
    fn evict_since(
        self: &Arc<Self>,
        mut since: u64,
        room: u64,
        report: &mut GcReport,
    ) -> Result<Option<u64>, StoreError> {
        let (mut candidates, total) = self.candidates()?;
        // What an earlier attempt removed counts, and is not in the total any more.
        let over = total.saturating_sub(self.limits.cache).saturating_add(report.bytes).max(room);
        if over <= report.bytes {
            return Ok(Some(over));
        }
        candidates.sort_by_key(|c| (c.last_read, c.id));
        let mut candidates = candidates.into_iter();
        while report.bytes < over {
            let mut wanted = over - report.bytes;
            let mut chunk = Vec::new();
            for candidate in candidates.by_ref().take(EVICT_BATCH) {
                wanted = wanted.saturating_sub(candidate.allocated);
                chunk.push(candidate.id);
                if wanted == 0 {
                    break;
                }
            }
            if chunk.is_empty() {
                break;
            }
            let Some(removed) = self.remove_objects(&chunk, Some(since))? else {
                return Ok(None);
            };
            since += 1;
            report.objects += removed.objects;
            report.bytes += removed.bytes;
        }
        Ok(Some(over))
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
                candidates.push(Candidate { id, last_read, allocated: row.allocated });
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
        let disk = measure(&self.objects)?;
        let pinned = self.figures.pinned.load(Ordering::Relaxed);
        let evictable =
            Figures::get(&self.figures.cache).saturating_sub(u64::try_from(pinned).unwrap_or(0));
        Ok(super::StoreStats {
            bytes: Figures::get(&self.figures.bytes),
            objects: Figures::get(&self.figures.objects),
            blocks: self.index.read(index::block_count)?,
            available: (disk.free + evictable).saturating_sub(self.limits.min_free),
            capacity: disk.capacity,
        })
    }
}
