//! Room on the disk: what it has, what must stay free, and what is short of that.

use std::{
    io,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{StoreOptions, disk::Disk, guard};

/// How old a measurement may be: a disk of 2 GB/s takes 40 MB meanwhile.
const FRESH: Duration = Duration::from_millis(20);
/// Free bytes where nothing is set; no more than a part of a small disk.
const MIN_FREE: u64 = 1 << 30;
const MIN_FREE_SHARE: u64 = 20;
/// Inodes that stay free, and the part of a small table that they are at most.
const MIN_INODES: u64 = 1024;
const MIN_INODES_SHARE: u64 = 200;

/// Bytes that stay free on a disk of `capacity` bytes where nothing is set.
pub fn default_min_free(capacity: u64) -> u64 {
    MIN_FREE.min(capacity / MIN_FREE_SHARE)
}

/// Room on the disk, without what is reserved for root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    /// Bytes that this process may write.
    pub(super) free: u64,
    /// Bytes that root may write besides.
    pub(super) reserved: u64,
    pub(super) capacity: u64,
    pub(super) inodes_free: u64,
    /// 0 where the filesystem has no limit.
    pub(super) inodes: u64,
    pub(super) read_only: bool,
}

impl Space {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self {
            free: bytes(stat.f_bavail),
            reserved: bytes(stat.f_bfree.saturating_sub(stat.f_bavail)),
            capacity: bytes(stat.f_blocks),
            inodes_free: stat.f_favail,
            inodes: stat.f_files,
            read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }
}

/// Bytes of disk and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

impl Room {
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }

    /// Returns the rest once `other` came free.
    pub(super) fn less(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            files: self.files.saturating_sub(other.files),
        }
    }
}

/// How much of the disk may be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of unpinned content that nobody published.
    pub(super) cache: u64,
    pub(super) min_free: u64,
}

impl Limits {
    pub(super) fn new(options: &StoreOptions, space: &Space) -> Self {
        Self {
            cache: options.cache_limit.unwrap_or(space.capacity / 10),
            min_free: options.min_free.unwrap_or_else(|| default_min_free(space.capacity)),
        }
    }

    /// Returns the room that has to come free before `wanted` may be written.
    pub(super) fn shortage(&self, space: &Space, wanted: Room) -> Room {
        let limited = space.inodes > 0;
        Room {
            bytes: self.min_free.saturating_add(wanted.bytes).saturating_sub(space.free),
            files: if limited {
                let kept = min_inodes(space).saturating_add(wanted.files);
                kept.saturating_sub(space.inodes_free)
            } else {
                0
            },
        }
    }

    /// Bytes that may be written while `evictable` bytes can go.
    pub(super) fn available(&self, space: &Space, evictable: u64) -> u64 {
        space.free.saturating_add(evictable).saturating_sub(self.min_free)
    }

    /// Files that may be made while `evictable` files can go; 0 where there is no limit.
    pub(super) fn available_files(space: &Space, evictable: u64) -> u64 {
        let free = space.inodes_free.saturating_add(evictable).min(space.inodes);
        free.saturating_sub(min_inodes(space))
    }
}

fn min_inodes(space: &Space) -> u64 {
    MIN_INODES.min(space.inodes / MIN_INODES_SHARE)
}

/// The latest measurement.
#[derive(Debug, Default)]
pub(super) struct Gauge(Mutex<Option<(Instant, Space)>>);

impl Gauge {
    pub(super) fn space(&self, disk: &dyn Disk, path: &Path) -> io::Result<Space> {
        let mut last = guard(&self.0);
        if let Some((at, space)) = *last
            && at.elapsed() < FRESH
        {
            return Ok(space);
        }
        let space = disk.space(path)?;
        *last = Some((Instant::now(), space));
        Ok(space)
    }

    /// So much is about to be written: until the next measurement it counts as written.
    pub(super) fn spend(&self, room: Room) {
        if let Some((_, space)) = &mut *guard(&self.0) {
            space.free = space.free.saturating_sub(room.bytes);
            space.inodes_free = space.inodes_free.saturating_sub(room.files);
        }
    }

    /// The disk has changed: it is measured again before the next answer.
    pub(super) fn forget(&self) {
        *guard(&self.0) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn space(free: u64, inodes_free: u64, inodes: u64) -> Space {
        Space { free, reserved: 0, capacity: 100 * GIB, inodes_free, inodes, read_only: false }
    }

    fn limits(min_free: Option<u64>, space: &Space) -> Limits {
        let options = StoreOptions { dir: "/x".into(), cache_limit: None, min_free };
        Limits::new(&options, space)
    }

    #[test]
    fn default_min_free_is_a_part_of_a_small_disk() {
        let large = space(0, 0, 0);
        assert_eq!(limits(None, &large).min_free, GIB);
        let small = Space { capacity: GIB, ..large };
        assert_eq!(limits(None, &small).min_free, GIB / 20);
        assert_eq!(limits(Some(5 * GIB), &small).min_free, 5 * GIB);
    }

    #[test]
    fn shortage_counts_bytes_and_inodes() {
        let disk = space(2 * GIB, 3, 1000);
        let limits = limits(Some(GIB), &disk);
        assert_eq!(limits.shortage(&disk, Room::default()), Room { bytes: 0, files: 2 });
        let wanted = Room { bytes: 3 * GIB, files: 1 };
        assert_eq!(limits.shortage(&disk, wanted), Room { bytes: 2 * GIB, files: 3 });
        let unlimited = space(0, 0, 0);
        assert_eq!(limits.shortage(&unlimited, Room::default()), Room { bytes: GIB, files: 0 });
    }

    #[test]
    fn available_is_what_is_free_or_evictable_above_the_limit() {
        let disk = space(2 * GIB, 10, 1000);
        let limits = limits(Some(GIB), &disk);
        assert_eq!(limits.available(&disk, 3 * GIB), 4 * GIB);
        assert_eq!(limits.available(&space(0, 0, 0), GIB / 2), 0);
        assert_eq!(Limits::available_files(&disk, 20), 25);
        assert_eq!(Limits::available_files(&space(0, 0, 0), 20), 0);
    }
}
