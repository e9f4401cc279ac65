//! A scripted workload over a disk on which any single step fails, or is the last before the power goes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::{
    super::{
        Batch, KnownRoot, ObjectId, Pin, Store, StoreError,
        disk::{Disk, RealDisk},
        recover,
    },
    content, leaves, options, root_of, scratch, try_publish, whole,
};
use crate::content::{ByteRange, FileInfo};

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The step fails with this errno, and all others work.
    Fails(i32),
    /// The power goes: this step and all after it never happened.
    PowerOff,
}

/// What the disk holds after the power came back.
#[derive(Clone, Copy, Debug)]
enum Image {
    /// Exactly what was synced.
    Synced,
    /// Names and lengths made it to the disk by themselves, data only where they were synced.
    NamesToo,
    /// All that was written: the process was killed, the machine went on.
    Everything,
}

/// One change of a file that is not synced.
#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Default)]
struct Sim {
    steps: usize,
    fault: Option<(usize, Fault)>,
    off: bool,
    /// Synced content, by inode.
    data: HashMap<u64, Vec<u8>>,
    changes: HashMap<u64, Vec<Change>>,
    /// Synced names.
    names: BTreeMap<PathBuf, u64>,
}

/// Keeps beside the live files what would be left of them without power.
#[derive(Debug)]
struct FaultyDisk {
    root: PathBuf,
    sim: Mutex<Sim>,
}

impl FaultyDisk {
    fn new(root: &Path, fault: Option<(usize, Fault)>) -> Arc<Self> {
        let sim = Sim { fault, ..Sim::default() };
        Arc::new(Self { root: root.to_owned(), sim: Mutex::new(sim) })
    }

    fn step(&self) -> io::Result<()> {
        let mut sim = self.sim.lock().unwrap();
        let step = sim.steps;
        sim.steps += 1;
        match sim.fault {
            Some((at, Fault::Fails(errno))) if at == step => {
                Err(io::Error::from_raw_os_error(errno))
            }
            Some((at, Fault::PowerOff)) if at <= step => {
                sim.off = true;
                Err(io::Error::from_raw_os_error(5))
            }
            _ => Ok(()),
        }
    }

    fn is_off(&self) -> bool {
        self.sim.lock().unwrap().off
    }

    fn note(&self, file: &File, change: Change) {
        let ino = file.metadata().unwrap().ino();
        self.sim.lock().unwrap().changes.entry(ino).or_default().push(change);
    }

    fn sync_inode(&self, file: &File) {
        let ino = file.metadata().unwrap().ino();
        let mut sim = self.sim.lock().unwrap();
        let Some(changes) = sim.changes.remove(&ino) else {
            // Written by the workload itself, past this disk.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            if !sim.data.contains_key(&ino) || !is_index(&fs::read_link(&path).unwrap()) {
                sim.data.insert(ino, fs::read(path).unwrap());
            }
            return;
        };
        let data = sim.data.entry(ino).or_default();
        for change in changes {
            match change {
                Change::Length(len) => data.resize(usize::try_from(len).unwrap(), 0),
                Change::Write(at, bytes) => {
                    let at = usize::try_from(at).unwrap();
                    data.resize(data.len().max(at + bytes.len()), 0);
                    data[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
    }

    fn sync_names(&self, dir: &Path) {
        let live: Vec<_> = files_of(dir).collect();
        let mut sim = self.sim.lock().unwrap();
        sim.names.retain(|path, _| path.parent() != Some(dir));
        for path in live {
            let ino = fs::metadata(&path).unwrap().ino();
            sim.names.insert(path, ino);
        }
    }

    /// Writes what is left into a folder of its own.
    fn image(&self, kind: Image, target: &Path) {
        let sim = self.sim.lock().unwrap();
        let copy_to = |path: &Path| {
            let target = target.join(path.strip_prefix(&self.root).unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            target
        };
        let synced = |ino: u64| sim.data.get(&ino).cloned().unwrap_or_default();
        match kind {
            Image::Synced => {
                for (path, ino) in &sim.names {
                    fs::write(copy_to(path), synced(*ino)).unwrap();
                }
            }
            Image::NamesToo | Image::Everything => {
                for path in self.live() {
                    let live = fs::metadata(&path).unwrap();
                    let target = copy_to(&path);
                    if matches!(kind, Image::Everything) {
                        fs::copy(&path, target).unwrap();
                    } else {
                        fs::write(&target, synced(live.ino())).unwrap();
                        // The index orders its own writes; cutting it would be no state that it can be in.
                        if !is_index(&path) {
                            File::options()
                                .write(true)
                                .open(target)
                                .unwrap()
                                .set_len(live.len())
                                .unwrap();
                        }
                    }
                }
            }
        }
    }

    fn live(&self) -> Vec<PathBuf> {
        let mut dirs = vec![self.root.clone()];
        let objects = fs::read_dir(self.root.join("objects")).into_iter().flatten();
        dirs.extend(objects.map(|dir| dir.unwrap().path()));
        dirs.iter().flat_map(|dir| files_of(dir)).collect()
    }
}

fn is_index(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "index")
}

fn files_of(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file())
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        RealDisk.create(path)
    }

    fn open_or_create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        self.step()?;
        self.note(file, Change::Write(offset, data.to_vec()));
        file.write_all_at(data, offset)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.step()?;
        self.note(file, Change::Length(len));
        file.set_len(len)
    }

    /// No reserve: that would be megabytes in each of the many images.
    fn allocate(&self, _: &File, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.step()?;
        self.sync_inode(file);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        self.sync_names(dir);
        Ok(())
    }

    fn sync_filesystem(&self, _: &Path) -> io::Result<()> {
        self.step()?;
        let live = self.live();
        for path in &live {
            self.sync_inode(&File::open(path).unwrap());
            self.sync_names(path.parent().unwrap());
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        RealDisk.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        RealDisk.unlink(path)
    }

    fn punch(&self, file: &File, range: ByteRange) -> io::Result<()> {
        self.step()?;
        RealDisk.punch(file, range)?;
        // Zeros may reach the disk at once, which is the worst that they can do.
        self.note(file, Change::Write(range.start, vec![0; usize::try_from(range.len()).unwrap()]));
        self.sync_inode(file);
        Ok(())
    }
}

/// What the store has promised.
#[derive(Debug, Default)]
struct Promised {
    /// Content that must be whole.
    whole: Vec<Vec<u8>>,
    /// Leaves that must be there.
    parts: Vec<(Vec<u8>, ByteRange)>,
    /// Rows of the upload tree; several where a commit failed: either may be found.
    tree: BTreeMap<u64, Vec<Option<Vec<u8>>>>,
    kept: Vec<ObjectId>,
    pins: Vec<Pin>,
}

/// The store under test, what it promised, and the disk that says whether a promise still counts.
struct Script {
    store: Store,
    disk: Arc<FaultyDisk>,
    promised: Promised,
}

impl Script {
    fn is_promise<T>(&self, result: &Result<T, StoreError>) -> bool {
        result.is_ok() && !self.disk.is_off()
    }

    /// Publishes content under a key of the tree, in place of `old`.
    fn publish(&mut self, key: u64, bytes: &[u8], old: Option<ObjectId>) -> Option<ObjectId> {
        let (id, mut batch) = try_publish(&self.store, bytes).ok()?;
        let row = bytes[..8].to_vec();
        batch.tree_put.push((key, row.clone()));
        batch.release.extend(old);
        batch.files.push(FileInfo {
            cid: *root_of(bytes).cid(),
            name: format!("file {key}"),
            size: bytes.len() as u64,
            chunks: vec![],
            created_at: std::time::UNIX_EPOCH,
        });
        let result = self.store.commit(batch);
        let rows = self.promised.tree.entry(key).or_insert_with(|| vec![None]);
        if self.disk.is_off() {
            // It may have reached the disk or not; nobody was told.
            rows.push(Some(row));
        } else if result.is_ok() {
            *rows = vec![Some(row)];
        }
        if self.is_promise(&result) {
            self.promised.whole.push(bytes.to_vec());
            return Some(id);
        }
        None
    }

    /// Downloads leaves and flushes them.
    fn download(&mut self, bytes: &[u8], which: std::ops::Range<usize>) {
        let root = root_of(bytes);
        let Ok(object) = self.store.create_object(root.cid(), bytes.len() as u64) else { return };
        let mut placed = Vec::new();
        for (block, range) in &leaves(bytes)[which] {
            if object.place(block, &whole(block, range.start)).is_ok() {
                placed.push(*range);
            }
        }
        let _ = self.store.put_node(&root);
        let result = self.store.flush();
        if self.is_promise(&result) {
            self.promised.parts.extend(placed.into_iter().map(|range| (bytes.to_vec(), range)));
        }
    }

    fn forget(&mut self, bytes: &[u8]) {
        self.promised.whole.retain(|kept| kept != bytes);
        self.promised.parts.retain(|(kept, _)| kept != bytes);
    }

    fn run(&mut self) {
        let (a, a2, b) = (content(1, 3), content(2, 2), content(3, 4));
        let (c, d) = (content(4, 4), content(5, 3));
        let first = self.publish(1, &a, None);
        self.publish(2, &b, None);
        self.download(&c, 0..3);
        let pin = Pin { root: *root_of(&c).cid(), name: "c".to_owned() };
        let result = self.store.pin(pin.clone());
        if self.is_promise(&result) {
            self.promised.pins.push(pin);
        }
        if self.publish(1, &a2, first).is_some() {
            self.forget(&a);
        } else if self.disk.is_off() {
            // Whether the old one still has its owner is not known; it is there in any case.
            self.promised.tree.entry(1).or_default().push(None);
        }
        self.download(&c, 3..4);
        self.download(&d, 0..2);
        let _ = self.store.remember_root(KnownRoot { root: *root_of(&d).cid(), directory: false });
        let working = self.store.working_file();
        if let Ok(working) = working {
            let kept = self.store.commit(Batch { keep: vec![working.id()], ..Batch::default() });
            if self.is_promise(&kept) {
                self.promised.kept.push(working.id());
            }
        }
        // From here on content that nobody holds may go.
        self.forget(&a);
        self.forget(&d);
        if self.promised.pins.is_empty() {
            self.forget(&c);
        }
        let _ = self.store.evict();
        let _ = self.store.gc();
        let _ = self.store.close();
    }
}

/// Copies have times of their own, as a restored backup has: the store finds that their bytes are right.
fn check(promised: &Promised, dir: &Path, story: &str) {
    let store = recover::open_idle(&options(dir), Arc::new(RealDisk))
        .unwrap_or_else(|e| panic!("{story}: does not open: {e}"));
    let report = store.verify(&mut |_, _| {}).unwrap();
    assert_eq!(report.bad, vec![], "{story}: wrong bytes were called present");
    for bytes in &promised.whole {
        let object = store.object(root_of(bytes).cid()).unwrap();
        let object = object.unwrap_or_else(|| panic!("{story}: a published file is lost"));
        assert!(object.is_complete(), "{story}: a published file has holes");
        let all = ByteRange::new(0, bytes.len() as u64);
        assert!(object.read(all).unwrap() == *bytes, "{story}: wrong bytes");
        for (block, _) in leaves(bytes) {
            let served = store.block(block.cid()).unwrap();
            assert!(served == Some(block), "{story}: a block is not served");
        }
        assert!(store.block(root_of(bytes).cid()).unwrap().is_some(), "{story}: no root node");
        assert!(
            store.file_info(root_of(bytes).cid()).unwrap().is_some(),
            "{story}: no description"
        );
    }
    for (bytes, range) in &promised.parts {
        let object = store.object(root_of(bytes).cid()).unwrap();
        assert!(object.is_some_and(|o| o.has(*range)), "{story}: a flushed leaf is lost");
    }
    let tree: BTreeMap<_, _> = store.tree().unwrap().into_iter().collect();
    for (key, rows) in &promised.tree {
        assert!(rows.contains(&tree.get(key).cloned()), "{story}: row {key} of the tree");
    }
    for id in &promised.kept {
        assert!(store.reopen_working(*id).unwrap().is_some(), "{story}: a kept file is lost");
    }
    let pins = store.pins().unwrap();
    assert!(promised.pins.iter().all(|pin| pins.contains(pin)), "{story}: a pin is lost");
    let objects = fs::read_dir(dir.join("objects")).unwrap();
    let files: usize = objects.map(|dir| files_of(&dir.unwrap().path()).count()).sum();
    assert_eq!(files as u64, store.stats().unwrap().objects, "{story}: files without a row");
}

/// Runs the workload with one fault; the steps that it took.
fn run(fault: Option<(usize, Fault)>, images: &[Image]) -> usize {
    let dir = scratch();
    let root = dir.path().join("live");
    let disk = FaultyDisk::new(&root, fault);
    let mut options = options(&root);
    options.cache_limit = Some(0);
    let mut promised = Promised::default();
    if let Ok(store) = recover::open_idle(&options, disk.clone()) {
        let mut script = Script { store, disk: disk.clone(), promised };
        script.run();
        promised = script.promised;
    }
    for (n, image) in images.iter().enumerate() {
        let target = dir.path().join(n.to_string());
        disk.image(*image, &target);
        check(&promised, &target, &format!("{fault:?}, {image:?}"));
    }
    disk.sim.lock().unwrap().steps
}

const ALL: [Image; 3] = [Image::Synced, Image::NamesToo, Image::Everything];

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_goes() {
    let steps = run(None, &ALL);
    assert!(steps > 100, "{steps} steps");
    for step in 0..steps {
        // Neighbouring steps mostly differ in nothing but the image.
        run(Some((step, Fault::PowerOff)), &ALL[step % ALL.len()..][..1]);
    }
}

#[test]
fn nothing_acknowledged_is_lost_whatever_step_fails() {
    let steps = run(None, &[]);
    for step in 0..steps {
        let errno = if step % 2 == 0 { 5 } else { 28 };
        run(Some((step, Fault::Fails(errno))), &[Image::Synced]);
    }
}
