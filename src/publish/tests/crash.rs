//! The upload tree over a disk that stops at any step, twice.
//!
//! States that a crash may leave, page by page:
//! - fsync(2) and an id that was given out acknowledge a file. After them each page is what it was then, and the file
//!   has the name that it had.
//! - A later write, hole or truncate is there or not, for each page and for the length by itself. A page is one of
//!   the values that it had since the acknowledgement, where bytes beyond the end count as zeros; the length lies
//!   between the shortest and the longest since.
//! - A process that was killed loses no truncate: what it cut off stays away, unless all of the change is gone and the
//!   file is a version that was closed before.
//! - Names and attributes are those of some moment since the last fsync, and no inode has two names.
//! - What is read after the restart is what is published later, under the id of these bytes.

mod model;

use std::collections::{BTreeMap, BTreeSet};

use self::model::{File, Model, Slot, id_of_pages, pages, parse};
use super::*;
use crate::store::faulty::{Dice, Fault, FaultyDisk, Image, files_of};

const PAGE: usize = 4096;
/// Four pages, so that pages of one leaf meet different fates.
const LEAF: usize = 4 * PAGE;
const IMPORT: ImportParams =
    ImportParams { chunk_len: LEAF, max_links: 8, ..ImportParams::DEFAULT };
/// More than the leaves of which a version can be a layer.
const LARGE: u64 = 150;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const NOTE: &str = "user.note";
/// Runs of a normal test; `CHIRAL_CRASH_SEEDS` sets more.
const SEEDS: u64 = 30;
/// Operations of one life.
const OPERATIONS: u64 = 40;

/// A daemon from its start to its end.
struct Life {
    root: std::path::PathBuf,
    disk: Arc<FaultyDisk>,
    store: Store,
    uploads: Uploads,
    tasks: Tasks,
    open: Vec<(UploadIno, UploadHandle)>,
}

/// None: the disk stopped.
type Done<T> = Option<T>;

impl Life {
    fn open(root: &Path, disk: &Arc<FaultyDisk>) -> Done<Self> {
        let tasks = Tasks::new();
        let opened = Self::try_open(root, disk, &tasks);
        match opened {
            Ok((store, uploads)) => {
                let (root, disk) = (root.to_owned(), disk.clone());
                Some(Self { root, disk, store, uploads, tasks, open: Vec::new() })
            }
            Err(error) => {
                assert!(disk.is_off() || disk.has_failed(), "it does not start: {error}");
                None
            }
        }
    }

    fn try_open(root: &Path, disk: &Arc<FaultyDisk>, tasks: &Tasks) -> Result<(Store, Uploads)> {
        let options = StoreOptions { dir: root.to_owned(), cache_limit: None, min_free: Some(0) };
        let store = Store::open_on_faulty_disk(&options, tasks, disk.clone())?;
        let ignore = IgnorePatterns::default();
        let options = PublishOptions { import: IMPORT, read_only: false, ignore };
        let uploads = Uploads::open(options, store.clone(), Arc::new(Heard::default()), tasks);
        match uploads {
            Ok(uploads) => Ok((store, uploads)),
            Err(error) => {
                let _ = store.close();
                Err(error)
            }
        }
    }

    /// The process ends; what it could not write before the disk stopped is gone.
    async fn end(self) {
        self.disk.stop();
        let left = self.tasks.shutdown(Duration::from_secs(60)).await;
        assert!(left.is_empty(), "{left:?}");
        drop(self.uploads);
        let _ = self.store.close();
    }

    /// The result of an operation; where it failed, the model takes over what the file is now.
    fn settle<T>(&self, model: &mut Model, ino: Option<UploadIno>, result: Result<T>) -> Done<T> {
        if self.disk.is_off() {
            return None;
        }
        match result {
            Ok(done) => Some(done),
            Err(error) => {
                let (Some(ino), true) = (ino, self.disk.has_failed()) else {
                    panic!("no step failed, and yet: {error}")
                };
                // After an error of the index nothing can be read before a restart.
                let read = self.read(ino).ok().filter(|_| !self.disk.is_off())?;
                let found = parse(&read).unwrap();
                let file = model.files.get_mut(&ino).unwrap();
                file.life.push(format!("{error}"));
                let fault = file.fault(&found, false);
                assert_eq!(fault, None, "after {error}; {:?}", file.life);
                file.resize(found.len());
                file.write(0, &found);
                None
            }
        }
    }

    fn read(&self, ino: UploadIno) -> Result<Vec<u8>> {
        let handle = self.uploads.open_file(ino, READ)?;
        let read = self.uploads.read(handle, 0, 2 * PAGE * usize::try_from(LARGE).unwrap());
        self.uploads.release(handle);
        Ok(read?.into())
    }

    /// A handle that can write: one that is open, or a new one.
    fn writer(
        &mut self,
        model: &mut Model,
        ino: UploadIno,
        flags: OpenFlags,
    ) -> Done<UploadHandle> {
        let open = self.open.iter().find(|(of, _)| *of == ino).map(|(_, handle)| *handle);
        if let Some(handle) = open.filter(|_| flags == WRITE) {
            return Some(handle);
        }
        let opened = self.uploads.open_file(ino, flags);
        let handle = self.settle(model, Some(ino), opened)?;
        self.open.push((ino, handle));
        Some(handle)
    }

    fn close(&mut self, model: &mut Model, ino: UploadIno) {
        let (closing, open) = std::mem::take(&mut self.open).into_iter().partition(|o| o.0 == ino);
        self.open = open;
        let closing: Vec<(UploadIno, UploadHandle)> = closing;
        closing.iter().for_each(|(_, handle)| self.uploads.release(*handle));
        if let Some(file) = model.files.get_mut(&ino).filter(|_| !closing.is_empty()) {
            file.life.push("close".into());
            file.closed.push(file.pages.clone());
        }
    }

    async fn operate(&mut self, model: &mut Model, dice: &mut Dice) -> Done<()> {
        let slot = (dice.pick(&model.directories), dice.pick(&NAMES));
        let Some(ino) = model.names.get(&slot).copied() else {
            return self.create(model, dice, slot);
        };
        match dice.roll(20) {
            0..=4 => {
                let at = dice_at(model, dice, ino);
                self.write(model, dice, ino, at)?;
            }
            5 | 6 => self.write(model, dice, ino, model.files[&ino].pages.len())?,
            7 | 8 => self.truncate(model, dice, ino)?,
            9 => self.punch(model, dice, ino)?,
            10 => self.overwrite(model, dice, ino)?,
            11 | 12 => self.fsync(model, ino)?,
            13 => {
                let to = (dice.pick(&model.directories), dice.pick(&NAMES));
                self.rename(model, slot, to)?;
            }
            14 => {
                model.name(slot, None);
                self.close(model, ino);
                let gone = self.uploads.unlink(slot.0, OsStr::new(slot.1));
                self.settle(model, None, gone)?;
            }
            15 => {
                let file = model.files.get_mut(&ino).unwrap();
                file.note += 1;
                file.notes.insert(file.note);
                let value = file.note.to_le_bytes();
                let set = self.uploads.setxattr(ino, NOTE, &value, false, false);
                self.settle(model, Some(ino), set)?;
            }
            16 | 17 => self.cid(model, ino).await?,
            _ => {
                // A commit is due within a second, a layer is merged after five.
                let rest = dice.pick(&[30, 1100, 6000, 40_000]);
                tokio::time::sleep(Duration::from_millis(rest)).await;
            }
        }
        if dice.roll(3) > 0 {
            self.close(model, ino);
        }
        (!self.disk.is_off()).then_some(())
    }

    fn create(&mut self, model: &mut Model, dice: &mut Dice, slot: Slot) -> Done<()> {
        let name = OsStr::new(slot.1);
        let made = self.uploads.create(slot.0, name, 0o644, 1, 2, true, WRITE);
        if made.is_err() {
            assert!(self.disk.is_off() || self.disk.has_failed());
            return None;
        }
        let (attr, handle) = made.unwrap();
        model.name(slot, Some(attr.ino));
        model.files.insert(attr.ino, File { notes: [0].into(), ..File::default() });
        self.open.push((attr.ino, handle));
        self.write(model, dice, attr.ino, 0)
    }

    /// Writes through the daemon, or as the kernel does.
    fn write(&mut self, model: &mut Model, dice: &mut Dice, ino: UploadIno, at: usize) -> Done<()> {
        let count = dice.pick(&[1, 1, 2, 5, 30, LARGE]);
        let numbers = model.numbers(count.min(LARGE * 2 - at as u64));
        let handle = self.writer(model, ino, WRITE)?;
        let backing = self.uploads.backing(ino);
        let backing = self.settle(model, Some(ino), backing)?;
        let file = model.files.get_mut(&ino).unwrap();
        file.life.push(format!("write {} at {at}", numbers.len()));
        file.write(at, &numbers);
        let (bytes, at) = (pages(&numbers), (at * PAGE) as u64);
        if backing.whole && dice.coin() {
            let path = format!("/proc/self/fd/{}", backing.file.as_raw_fd());
            let kernel = OpenOptions::new().write(true).open(path).unwrap();
            return self.disk.write_behind(&kernel, &bytes, at).ok();
        }
        for (part, at) in bytes.chunks(30 * PAGE).zip((at..).step_by(30 * PAGE)) {
            let written = self.uploads.write(handle, at, part);
            self.settle(model, Some(ino), written)?;
        }
        Some(())
    }

    fn truncate(&mut self, model: &mut Model, dice: &mut Dice, ino: UploadIno) -> Done<()> {
        let file = model.files.get_mut(&ino).unwrap();
        let len = usize::try_from(dice.roll(file.pages.len() as u64 + 9)).unwrap();
        file.life.push(format!("truncate {len}"));
        file.resize(len);
        let set = SetAttr { size: Some((len * PAGE) as u64), ..SetAttr::default() };
        let cut = self.uploads.setattr(ino, &set);
        self.settle(model, Some(ino), cut)?;
        let file = model.files.get_mut(&ino).unwrap();
        file.cut(len);
        if !self.open.iter().any(|(of, _)| *of == ino) {
            file.closed.push(file.pages.clone());
        }
        Some(())
    }

    fn punch(&mut self, model: &mut Model, dice: &mut Dice, ino: UploadIno) -> Done<()> {
        let at = dice_at(model, dice, ino);
        let count = usize::try_from(dice.roll(9) + 1).unwrap();
        let handle = self.writer(model, ino, WRITE)?;
        let (offset, len) = ((at * PAGE) as u64, (count * PAGE) as u64);
        let (keep, punch) = (nix::libc::FALLOC_FL_KEEP_SIZE, nix::libc::FALLOC_FL_PUNCH_HOLE);
        let mode = dice.pick(&[keep | punch, keep, 0]);
        let file = model.files.get_mut(&ino).unwrap();
        file.life.push(format!("fallocate {mode} {count} at {at}"));
        match mode {
            0 if file.pages.len() < at + count => file.resize(at + count),
            mode if mode & punch != 0 => {
                (at..(at + count).min(file.pages.len())).for_each(|at| file.set(at, 0));
            }
            _ => {}
        }
        let done = self.uploads.fallocate(handle, mode, offset, len);
        self.settle(model, Some(ino), done)
    }

    fn overwrite(&mut self, model: &mut Model, dice: &mut Dice, ino: UploadIno) -> Done<()> {
        let file = model.files.get_mut(&ino).unwrap();
        file.life.push("open to truncate".into());
        file.resize(0);
        self.writer(model, ino, TRUNCATE)?;
        model.files.get_mut(&ino).unwrap().cut(0);
        self.write(model, dice, ino, 0)
    }

    fn fsync(&mut self, model: &mut Model, ino: UploadIno) -> Done<()> {
        let synced = self.uploads.fsync(ino);
        self.settle(model, Some(ino), synced)?;
        model.synced(Some(ino));
        Some(())
    }

    fn rename(&mut self, model: &mut Model, from: Slot, to: Slot) -> Done<()> {
        let ino = model.names[&from];
        if from == to {
            return Some(());
        }
        if let Some(replaced) = model.names.get(&to).copied() {
            self.close(model, replaced);
        }
        model.name(from, None);
        model.name(to, Some(ino));
        let (old, new) = (OsStr::new(from.1), OsStr::new(to.1));
        let renamed = self.uploads.rename(from.0, old, to.0, new, RenameMode::Replace);
        self.settle(model, None, renamed)
    }

    async fn cid(&mut self, model: &mut Model, ino: UploadIno) -> Done<()> {
        if self.uploads.state(ino).ok()? == UploadState::Interrupted {
            self.writer(model, ino, WRITE)?;
        }
        self.close(model, ino);
        match self.uploads.cid(ino).await {
            Ok(root) => {
                let file = model.files.get_mut(&ino).unwrap();
                assert_eq!(root, id_of_pages(&file.pages), "{:?}", file.life);
                // It counts only if the disk was there to keep it.
                if self.disk.is_off() {
                    return None;
                }
                file.acknowledge();
                model.named(ino);
                Some(())
            }
            // The disk failed, and is tried again later.
            Err(PublishError::Busy) => None,
            Err(error) => self.settle(model, Some(ino), Err(error)),
        }
    }

    /// The result of a look at what a restart has found. None: the disk failed again.
    fn seen<T>(&self, result: Result<T>) -> Done<T> {
        if let Err(error) = &result {
            assert!(self.disk.is_off() || self.disk.has_failed(), "{error}");
        }
        result.ok()
    }

    /// Holds all that a restart has found against the model, which goes on from there.
    fn check(&self, model: &mut Model, killed: bool, story: &str) -> Done<()> {
        let mut found = BTreeMap::new();
        for dir in &model.directories {
            for entry in self.seen(self.uploads.readdir(*dir))? {
                if entry.kind == UploadKind::File {
                    let name = NAMES.into_iter().find(|name| entry.name == *name);
                    let name = name.unwrap_or_else(|| panic!("{story}: {:?} is new", entry.name));
                    found.insert((*dir, name), entry.ino);
                }
            }
        }
        let once: BTreeSet<_> = found.values().collect();
        assert_eq!(once.len(), found.len(), "{story}: a file has two names");
        for dir in &model.directories {
            for name in NAMES {
                let slot = (*dir, name);
                let is = found.get(&slot).copied();
                let said = model.names.get(&slot).copied();
                let may = model.may.get(&slot);
                let right = may.map_or(is == said, |may| may.contains(&is));
                assert!(right, "{story}: {slot:?} is {is:?}, not {said:?} of {may:?}");
            }
        }
        let mut files = model.files.clone();
        for (slot, ino) in &found {
            let file = files.get_mut(ino).unwrap();
            let bytes = self.seen(self.read(*ino))?;
            let told = |what: &str| format!("{story}: {slot:?} {ino:?}: {what}; {:?}", file.life);
            let numbers = parse(&bytes).unwrap_or_else(|| panic!("{}", told("torn pages")));
            let fault = file.fault(&numbers, killed);
            assert!(fault.is_none(), "{}", told(&fault.unwrap_or_default()));
            let note = self
                .uploads
                .getxattr(*ino, NOTE)
                .map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()));
            assert!(file.notes.contains(&note), "{}", told("an attribute that it never had"));
            *file = File { pages: numbers, note, notes: [note].into(), ..File::default() };
            file.acknowledge();
            file.life = vec!["restart".into()];
        }
        model.files = files;
        model.names = found;
        model.may.clear();
        Some(())
    }

    /// All that is left is published, under the ids of its bytes, and nothing else takes room.
    async fn check_all(&mut self, model: &mut Model, story: &str) {
        let names: Vec<_> = model.names.values().copied().collect();
        for ino in names {
            self.cid(model, ino).await;
            let root = self.uploads.cid_now(ino);
            let id = id_of_pages(&model.files[&ino].pages);
            assert_eq!(root, Some(id), "{story}: {ino:?} is not published");
        }
        self.uploads.fsync(UploadIno::ROOT).unwrap();
        assert_eq!(self.store.verify(&mut |_, _| {}).unwrap().bad, [], "{story}");
        let objects = std::fs::read_dir(self.root.join("objects")).unwrap();
        let files: usize = objects.map(|dir| files_of(&dir.unwrap().path()).count()).sum();
        assert_eq!(files as u64, self.store.stats().unwrap().objects, "{story}: a leak");
    }
}

/// Some page of a file, or one shortly behind its end.
fn dice_at(model: &Model, dice: &mut Dice, ino: UploadIno) -> usize {
    usize::try_from(dice.roll(model.files[&ino].pages.len().min(200) as u64 + 6)).unwrap()
}

/// A new tree with a directory in it.
fn begin(root: &Path) -> (Model, Life) {
    let life = Life::open(root, &FaultyDisk::new(root, &[])).unwrap();
    let sub = life.uploads.mkdir(UploadIno::ROOT, OsStr::new("sub"), 0o755, 1, 2).unwrap().ino;
    life.uploads.fsync(UploadIno::ROOT).unwrap();
    let directories = vec![UploadIno::ROOT, UploadIno::ROOT, sub];
    (Model { directories, ..Model::default() }, life)
}

/// Three lives: the first two end by a stop of the disk or a kill, and one step of each fails.
async fn run(seed: u64) {
    let mut dice = Dice::new(seed);
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (mut model, life) = begin(&dir.path().join("0"));
    let disk = life.disk.clone();
    life.end().await;
    disk.image(Image::Synced, &dir.path().join("1"));
    // Kills lose less, so they are held to more.
    let kills = dice.coin();
    let mut story = format!("seed {seed}");
    for number in 1..3 {
        let root = dir.path().join(number.to_string());
        let early = number == 2 && dice.coin();
        let steps = usize::try_from(dice.roll(if early { 20 } else { 700 })).unwrap();
        let mut faults = vec![(steps, Fault::Stop)];
        if dice.coin() {
            let at = usize::try_from(dice.roll(steps as u64 + 1)).unwrap();
            faults.push((at + 20, Fault::Fails(dice.pick(&[5, 28]))));
        }
        let disk = FaultyDisk::new(&root, &faults);
        let others = [Image::Synced, Image::NamesToo, Image::Torn(seed), Image::Everything];
        let image = if kills { Image::Everything } else { dice.pick(&others) };
        if !kills {
            disk.write_back(seed);
        }
        story.push_str(&format!(", {faults:?}, {image:?}"));
        if let Some(mut life) = Life::open(&root, &disk) {
            let go_on = number == 1 || life.check(&mut model, kills, &story).is_some();
            for _ in 0..if go_on { OPERATIONS } else { 0 } {
                if disk.is_off() {
                    break;
                }
                life.operate(&mut model, &mut dice).await;
            }
            life.end().await;
        }
        disk.image(image, &dir.path().join((number + 1).to_string()));
    }
    let root = dir.path().join("3");
    let mut life = Life::open(&root, &FaultyDisk::new(&root, &[])).unwrap();
    life.check(&mut model, kills, &story).unwrap();
    life.check_all(&mut model, &story).await;
    life.end().await;
}

#[tokio::test(start_paused = true)]
async fn crashes_leave_what_was_acknowledged() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    if let Some(seed) = number("CHIRAL_CRASH_SEED") {
        return run(seed).await;
    }
    for seed in 0..number("CHIRAL_CRASH_SEEDS").unwrap_or(SEEDS) {
        run(seed).await;
    }
}
