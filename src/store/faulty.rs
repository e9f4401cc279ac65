//! A disk for tests on which single steps fail, or one of them is the last before the process or the machine stops.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dice;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rustix::fs::FallocateFlags;

pub(crate) use self::dice::Dice;
use super::disk::{Disk, RealDisk};
use crate::content::ByteRange;

/// Bytes that reach the disk together.
const PAGE: usize = 4096;
/// Part of a page of the index that a torn write leaves.
const SECTOR: usize = 512;

/// Effect at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The step fails with this errno, and all others work.
    Fails(i32),
    /// The process or the machine stops: this step and all after it never happened.
    Stop,
}

/// Content of the disk after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// Exactly what was synced.
    Synced,
    /// Names and lengths made it to the disk by themselves, data only where they were synced.
    NamesToo,
    /// Each name, each length and each page made it to the disk or not, in any order; the dice are thrown from the seed.
    Torn(u64),
    /// All that was written: the process was killed, the machine went on.
    Everything,
}

/// One change of a file that is not synced.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
    /// All bytes after it.
    Whole(Vec<u8>),
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Length(len) => data.resize(usize::try_from(*len).unwrap(), 0),
            Self::Write(at, bytes) => {
                let at = usize::try_from(*at).unwrap();
                data.resize(data.len().max(at + bytes.len()), 0);
                data[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Whole(bytes) => data.clone_from(bytes),
        }
    }
}

#[derive(Debug, Default)]
struct Sim {
    steps: usize,
    faults: Vec<(usize, Fault)>,
    off: bool,
    /// Files of which a sync failed: what had not reached the disk by then never does, although the live file has it.
    lost: HashSet<u64>,
    /// Synced content, by inode.
    data: HashMap<u64, Vec<u8>>,
    changes: HashMap<u64, Vec<Change>>,
    /// Synced names.
    names: BTreeMap<PathBuf, u64>,
    /// Names and bytes at the moment of the stop.
    frozen: BTreeMap<PathBuf, (u64, Vec<u8>)>,
    /// Throws for what the kernel writes to the disk by itself. None: it waits for syncs.
    writeback: Option<Dice>,
}

/// Keeps beside the live files what a stop would leave of them.
///
/// Bytes that reach a file past this disk, as those of the kernel do, are seen at the next sync and at the stop.
#[derive(Debug)]
pub(crate) struct FaultyDisk {
    root: PathBuf,
    sim: Mutex<Sim>,
}

impl FaultyDisk {
    /// Files that lie in `root` already count as durable.
    pub(crate) fn new(root: &Path, faults: &[(usize, Fault)]) -> Arc<Self> {
        let mut sim = Sim { faults: faults.to_vec(), ..Sim::default() };
        for path in live(root) {
            let ino = fs::metadata(&path).unwrap().ino();
            sim.data.insert(ino, fs::read(&path).unwrap());
            sim.names.insert(path, ino);
        }
        Arc::new(Self { root: root.to_owned(), sim: Mutex::new(sim) })
    }

    /// From now on pages reach the disk by themselves at times that the seed decides.
    pub(crate) fn write_back(&self, seed: u64) {
        self.sim.lock().unwrap().writeback = Some(Dice::new(seed));
    }

    /// Changes of the disk so far.
    pub(crate) fn steps(&self) -> usize {
        self.sim.lock().unwrap().steps
    }

    /// Returns whether a step has failed.
    pub(crate) fn has_failed(&self) -> bool {
        let sim = self.sim.lock().unwrap();
        sim.faults.iter().any(|(at, fault)| matches!(fault, Fault::Fails(_)) && *at < sim.steps)
    }

    pub(crate) fn is_off(&self) -> bool {
        self.sim.lock().unwrap().off
    }

    /// The stop comes now, unless it has come already.
    pub(crate) fn stop(&self) {
        self.freeze(&mut self.sim.lock().unwrap());
    }

    /// A write of the kernel, which is no step: it comes whenever the kernel likes.
    pub(crate) fn write_behind(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        let mut sim = self.sim.lock().unwrap();
        if sim.off {
            return Err(io::Error::from_raw_os_error(5));
        }
        file.write_all_at(data, offset)?;
        let change = Change::Write(offset, data.to_vec());
        sim.changes.entry(ino_of(file)).or_default().push(change);
        Ok(())
    }

    fn freeze(&self, sim: &mut Sim) {
        if !std::mem::replace(&mut sim.off, true) {
            let files = live(&self.root).into_iter();
            // A file may go between the two looks at it.
            let files = files.filter_map(|path| {
                let ino = fs::metadata(&path).ok()?.ino();
                let bytes = fs::read(&path).ok()?;
                Some((path, (ino, bytes)))
            });
            sim.frozen = files.collect();
        }
    }

    fn step(&self) -> io::Result<()> {
        let mut sim = self.sim.lock().unwrap();
        let step = sim.steps;
        if sim.off {
            return Err(io::Error::from_raw_os_error(5));
        }
        sim.steps += 1;
        sim.write_some_back();
        match sim.faults.iter().find(|(at, _)| *at == step) {
            Some((_, Fault::Fails(errno))) => Err(io::Error::from_raw_os_error(*errno)),
            Some((_, Fault::Stop)) => {
                self.freeze(&mut sim);
                Err(io::Error::from_raw_os_error(5))
            }
            None => Ok(()),
        }
    }

    /// Does a change under the lock of the simulation, so that no stop comes between it and its note.
    fn change(
        &self,
        file: &File,
        act: impl FnOnce() -> io::Result<()>,
        change: impl FnOnce() -> Change,
    ) -> io::Result<()> {
        self.step()?;
        let mut sim = self.sim.lock().unwrap();
        if sim.off {
            return Err(io::Error::from_raw_os_error(5));
        }
        act()?;
        sim.changes.entry(ino_of(file)).or_default().push(change());
        Ok(())
    }

    /// A sync of the file failed.
    fn lose(&self, file: &File) {
        let ino = ino_of(file);
        let mut sim = self.sim.lock().unwrap();
        if !sim.off {
            sim.changes.remove(&ino);
            sim.lost.insert(ino);
        }
    }

    /// A name that is not on the disk. Inode numbers come back: the bytes under this one are those of a new file.
    fn note_new(&self, path: &Path) {
        let ino = fs::metadata(path).unwrap().ino();
        let mut sim = self.sim.lock().unwrap();
        if !sim.names.values().any(|known| *known == ino) {
            sim.data.remove(&ino);
            sim.changes.remove(&ino);
            sim.lost.remove(&ino);
        }
    }

    /// Writes what is left into a folder of its own.
    pub(crate) fn image(&self, kind: Image, target: &Path) {
        self.stop();
        let sim = self.sim.lock().unwrap();
        let mut dice = Dice::new(if let Image::Torn(seed) = kind { seed } else { 0 });
        for path in sim.left(kind, &mut dice) {
            let target = target.join(path.strip_prefix(&self.root).unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(target, sim.content(&path, kind, &mut dice)).unwrap();
        }
        copy_state(&self.root.join("state"), &target.join("state"), kind, &mut dice);
    }
}

impl Sim {
    fn sync(&mut self, file: &File) {
        let ino = ino_of(file);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let changes = self.changes.remove(&ino).unwrap_or_default();
        // The index is written through this disk alone; reading all of it each time would take long.
        let by_changes = self.lost.contains(&ino)
            || (self.data.contains_key(&ino) && is_index(&fs::read_link(&path).unwrap()));
        if by_changes {
            let data = self.data.entry(ino).or_default();
            changes.iter().for_each(|change| change.apply(data));
        } else {
            self.data.insert(ino, fs::read(path).unwrap());
        }
    }

    fn sync_names(&mut self, dir: &Path) {
        self.names.retain(|path, _| path.parent() != Some(dir));
        for path in files_of(dir) {
            if let Ok(meta) = fs::metadata(&path) {
                self.names.insert(path, meta.ino());
            }
        }
    }

    /// The kernel writes some pages of one file.
    fn write_some_back(&mut self) {
        let Some(dice) = &mut self.writeback else { return };
        let mut written: Vec<_> = self.changes.keys().copied().collect();
        written.retain(|ino| !self.lost.contains(ino));
        if written.is_empty() || dice.roll(4) > 0 {
            return;
        }
        written.sort_unstable();
        let ino = dice.pick(&written);
        let path = self.names.iter().find(|(_, known)| **known == ino).map(|(path, _)| path);
        let Some(path) = path.filter(|path| !is_index(path)) else { return };
        let Ok(live) = fs::read(path) else { return };
        let data = self.data.entry(ino).or_default();
        *data = torn(data, &live, dice);
    }

    /// The names that are left.
    fn left(&self, kind: Image, dice: &mut Dice) -> Vec<PathBuf> {
        let live: BTreeSet<_> = self.frozen.keys().collect();
        let synced: BTreeSet<_> = self.names.keys().collect();
        let all = live.union(&synced).filter(|path| match kind {
            Image::Synced => synced.contains(*path),
            Image::NamesToo | Image::Everything => live.contains(*path),
            Image::Torn(_) => live.contains(*path) == synced.contains(*path) || dice.coin(),
        });
        all.map(|path| (*path).clone()).collect()
    }

    fn content(&self, path: &Path, kind: Image, dice: &mut Dice) -> Vec<u8> {
        let live = self.frozen.get(path);
        let ino = self.names.get(path).or(live.map(|(ino, _)| ino)).copied().unwrap_or_default();
        let synced = self.data.get(&ino).cloned().unwrap_or_default();
        let Some((_, live)) = live else { return synced };
        match kind {
            Image::Synced => synced,
            Image::Everything => live.clone(),
            // The index orders its own writes; cutting it would be no state that it can be in.
            Image::NamesToo if is_index(path) => synced,
            Image::NamesToo => {
                let mut data = synced;
                data.resize(live.len(), 0);
                data
            }
            Image::Torn(_) if is_index(path) => self.torn_index(ino, synced, dice),
            Image::Torn(_) if self.lost.contains(&ino) => {
                let mut later = synced.clone();
                self.changes.get(&ino).into_iter().flatten().for_each(|c| c.apply(&mut later));
                torn(&synced, &later, dice)
            }
            Image::Torn(_) => torn(&synced, live, dice),
        }
    }

    /// Some of the writes since the last sync, in any order, and some of them in part.
    fn torn_index(&self, ino: u64, mut data: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
        let mut changes = self.changes.get(&ino).cloned().unwrap_or_default();
        for left in (1..changes.len()).rev() {
            let other = usize::try_from(dice.roll(left as u64 + 1)).unwrap();
            changes.swap(left, other);
        }
        for change in changes {
            match change {
                _ if dice.coin() => {}
                Change::Write(at, mut bytes) => {
                    let sectors = bytes.len().div_ceil(SECTOR) as u64;
                    if dice.roll(4) == 0 {
                        bytes.truncate(usize::try_from(dice.roll(sectors + 1)).unwrap() * SECTOR);
                    }
                    Change::Write(at, bytes).apply(&mut data);
                }
                other => other.apply(&mut data),
            }
        }
        data
    }
}

/// Each page is the old or the new one, and so is the length.
fn torn(old: &[u8], new: &[u8], dice: &mut Dice) -> Vec<u8> {
    let len = if dice.coin() { old.len() } else { new.len() };
    let mut data = vec![0; len];
    for at in (0..len).step_by(PAGE) {
        let from = if dice.coin() { old } else { new };
        let page = from.get(at..len.min(at + PAGE).min(from.len())).unwrap_or_default();
        data[at..at + page.len()].copy_from_slice(page);
    }
    data
}

/// The working state is written past this disk. After a power failure any page of it may be missing.
fn copy_state(from: &Path, to: &Path, kind: Image, dice: &mut Dice) {
    if matches!(kind, Image::Synced | Image::NamesToo) {
        return;
    }
    for path in files_of(from).collect::<BTreeSet<_>>() {
        let Ok(mut bytes) = fs::read(&path) else { continue };
        if matches!(kind, Image::Torn(_)) && dice.coin() {
            bytes.truncate(usize::try_from(dice.roll(bytes.len() as u64 + 1)).unwrap());
            for at in (0..bytes.len()).step_by(PAGE) {
                let end = bytes.len().min(at + PAGE);
                if dice.roll(8) == 0 {
                    bytes[at..end].fill(0);
                }
            }
        }
        fs::create_dir_all(to).unwrap();
        fs::write(to.join(path.file_name().unwrap()), bytes).unwrap();
    }
}

fn ino_of(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}

fn is_index(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "index")
}

/// The files of a folder, without its folders.
pub(crate) fn files_of(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file())
}

/// The files of a store, but for its working state.
fn live(root: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![root.to_owned()];
    let objects = fs::read_dir(root.join("objects")).into_iter().flatten();
    dirs.extend(objects.map(|dir| dir.unwrap().path()));
    dirs.iter().flat_map(|dir| files_of(dir)).collect()
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        let file = RealDisk.create(path)?;
        self.note_new(path);
        Ok(file)
    }

    fn open_or_create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        let write = || file.write_all_at(data, offset);
        self.change(file, write, || Change::Write(offset, data.to_vec()))
    }

    fn write_some(&self, file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        self.write_at(file, data, offset).map(|()| data.len())
    }

    fn copy(&self, from: &File, to: &File, range: ByteRange) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
        from.read_exact_at(&mut bytes, range.start)?;
        // In two steps, so that a stop comes amid a copy, too.
        let half = bytes.len() / 2 / PAGE * PAGE;
        self.write_at(to, &bytes[..half], range.start)?;
        self.write_at(to, &bytes[half..], range.start + half as u64)
    }

    fn fallocate(&self, file: &File, flags: FallocateFlags, range: ByteRange) -> io::Result<()> {
        let act = || Ok(rustix::fs::fallocate(file, flags, range.start, range.len())?);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.change(file, act, || Change::Whole(fs::read(path).unwrap()))
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.change(file, || file.set_len(len), || Change::Length(len))
    }

    /// No reserve: that would be megabytes in each of the many images.
    fn allocate(&self, _: &File, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.step().inspect_err(|_| self.lose(file))?;
        let mut sim = self.sim.lock().unwrap();
        if !sim.off {
            sim.sync(file);
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        let mut sim = self.sim.lock().unwrap();
        if !sim.off {
            sim.sync_names(dir);
        }
        Ok(())
    }

    fn sync_filesystem(&self, _: &Path) -> io::Result<()> {
        let files: Vec<_> = live(&self.root);
        let opened: Vec<_> = files.iter().filter_map(|path| File::open(path).ok()).collect();
        self.step().inspect_err(|_| opened.iter().for_each(|file| self.lose(file)))?;
        let mut sim = self.sim.lock().unwrap();
        if !sim.off {
            opened.iter().for_each(|file| sim.sync(file));
            let dirs: BTreeSet<_> = files.iter().filter_map(|path| path.parent()).collect();
            dirs.into_iter().for_each(|dir| sim.sync_names(dir));
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        RealDisk.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        RealDisk.link(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        RealDisk.unlink(path)
    }

    fn punch(&self, file: &File, range: ByteRange) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(range.len()).unwrap()];
        let change = Change::Write(range.start, zeros);
        self.change(file, || RealDisk.punch(file, range), || change.clone())?;
        // They may reach the disk before all that was written earlier, which is the worst that they can do.
        if let Some(data) = self.sim.lock().unwrap().data.get_mut(&ino_of(file)) {
            let len = data.len();
            change.apply(data);
            data.truncate(len);
        }
        Ok(())
    }
}
