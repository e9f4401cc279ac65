//! A scripted workload over a disk on which any single step fails, or is the last before the power goes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use super::{
    super::{
        Batch, FileStamp, KnownRoot, Mergeable, ObjectId, Pin, Seal, Store, StoreError,
        WorkingFile,
        disk::{Disk, RealDisk},
        faulty::{Dice, Fault, FaultyDisk, Image, files_of},
        recover,
    },
    LEAF, content, leaves, options, root_of, scratch, try_publish, whole,
};
use crate::content::{ByteRange, FileInfo, RangeSet};

/// What the store has promised.
#[derive(Debug, Default)]
struct Promised {
    /// Content that must be one whole object.
    whole: Vec<Vec<u8>>,
    /// Content of which each block must be served, from whatever objects.
    served: Vec<Vec<u8>>,
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

/// A new version of `content` with its second leaf changed and one more at its end, and the numbers of those leaves.
fn changed(content: &[u8], seed: u8) -> (Vec<u8>, [usize; 2]) {
    let leaf = usize::try_from(LEAF).unwrap();
    let mut new = content.to_vec();
    new[leaf..2 * leaf].copy_from_slice(&super::content(seed, 1));
    new.extend(super::content(seed + 1, 1));
    (new, [1, content.len() / leaf])
}

fn bytes_of(leaves: [usize; 2]) -> RangeSet {
    leaves.into_iter().map(|leaf| ByteRange::at(leaf as u64 * LEAF, LEAF)).collect()
}

impl Script {
    fn is_promise<T>(&self, result: &Result<T, StoreError>) -> bool {
        result.is_ok() && !self.disk.is_off()
    }

    /// Publishes content under a key of the tree, in place of `old`.
    fn publish(&mut self, key: u64, bytes: &[u8], old: Option<ObjectId>) -> Option<ObjectId> {
        let (id, sealing) = try_publish(&self.store, bytes).ok()?;
        let row = bytes[..8].to_vec();
        let batch = |seal: Vec<Seal>| Batch {
            seal,
            tree_put: vec![(key, row.clone())],
            release: old.into_iter().collect(),
            files: vec![described(bytes, &format!("file {key}"))],
            ..Batch::default()
        };
        let mut result = self.store.commit(batch(sealing.seal.clone()));
        if result.is_err() && !self.disk.is_off() {
            // Just once more: a sync that succeeds now says nothing.
            result = self.store.commit(batch(sealing.seal.clone()));
        }
        if result.is_err() && self.store.rewrite_unsynced(id).is_ok_and(|written| written) {
            let mut seal = sealing.seal;
            let file = File::open(self.store.inner.object_path(id)).unwrap();
            seal[0].stamp = FileStamp::of(&file).unwrap();
            result = self.store.commit(batch(seal));
            assert!(result.is_ok() || self.disk.is_off(), "{result:?}");
        }
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
        self.promised.served.retain(|kept| kept != bytes);
        self.promised.parts.retain(|(kept, _)| kept != bytes);
    }

    /// Publishes so many files at once that the whole filesystem is synced.
    fn publish_many(&mut self, seed: u8) {
        let contents: Vec<_> = (0..10).map(|n| content(seed + n, 1)).collect();
        let sealing = contents.iter().map(|bytes| Ok(try_publish(&self.store, bytes)?.1.seal));
        let Ok(seals) = sealing.collect::<Result<Vec<_>, StoreError>>() else { return };
        let mut batch = Batch { seal: seals.concat(), ..Batch::default() };
        batch.files = contents.iter().map(|bytes| described(bytes, "one of many")).collect();
        let result = self.store.commit(batch);
        if self.is_promise(&result) {
            self.promised.whole.extend(contents);
        }
    }

    /// Takes in a file that lies elsewhere.
    fn adopt(&mut self, root: &Path, bytes: &[u8]) {
        let path = root.join("film");
        fs::write(&path, bytes).unwrap();
        let synced = self.disk.sync_data(&File::open(&path).unwrap());
        let Ok(working) = synced.and_then(|()| self.store.adopt(&path).map_err(io::Error::other))
        else {
            return;
        };
        let working = working.unwrap();
        let reader = Arc::new(working.open(false).unwrap());
        let seal = seal_of(&working, bytes, None);
        let files = vec![described(bytes, "film")];
        let batch = Batch { sync: vec![reader], seal: vec![seal], files, ..Batch::default() };
        let result = self.store.commit(batch);
        if self.is_promise(&result) {
            self.promised.whole.push(bytes.to_vec());
        }
    }

    /// Publishes a new version as a layer over `base`, and merges it into that.
    fn layer_and_merge(&mut self, key: u64, base: ObjectId, old: &[u8], seed: u8) {
        let (new, own) = changed(old, seed);
        let Some(layer) = self.layer(key, &new, own) else { return };
        self.promised.served.push(old.to_vec());
        // What a merge that failed leaves is served, too.
        let _ = self.merge(key, base, layer, old, &new, own);
        if !self.disk.is_off() {
            // Leaves that a merge kept beside it have no owner: eviction may follow.
            self.forget(old);
        }
    }

    fn write_own(working: &WorkingFile, new: &[u8], own: [usize; 2]) -> io::Result<()> {
        let writer = working.writer().map_err(io::Error::other)?;
        writer.set_len(new.len() as u64)?;
        for range in bytes_of(own).iter() {
            let bytes = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            writer.write_all_at(&new[bytes], range.start)?;
        }
        Ok(())
    }

    fn layer(&mut self, key: u64, new: &[u8], own: [usize; 2]) -> Option<ObjectId> {
        let working = self.store.working_file().ok()?;
        Self::write_own(&working, new, own).ok()?;
        let seal = seal_of(&working, new, Some(bytes_of(own)));
        let row = new[usize::try_from(LEAF).unwrap()..][..8].to_vec();
        let files = vec![described(new, "layer")];
        let tree_put = vec![(key, row.clone())];
        let result =
            self.store.commit(Batch { seal: vec![seal], tree_put, files, ..Batch::default() });
        if !self.is_promise(&result) {
            self.promised.tree.entry(key).or_default().push(Some(row));
            return None;
        }
        self.promised.tree.insert(key, vec![Some(row)]);
        self.promised.served.push(new.to_vec());
        Some(working.id())
    }

    fn merge(
        &mut self,
        key: u64,
        base: ObjectId,
        layer: ObjectId,
        old: &[u8],
        new: &[u8],
        own: [usize; 2],
    ) -> Result<(), StoreError> {
        let overwritten = bytes_of(own);
        if self.store.prepare_merge(base, &overwritten)? != Mergeable::Now {
            return Ok(());
        }
        let Some(into) = self.store.begin_merge(base, &overwritten)? else { return Ok(()) };
        let written = Self::write_own(&into, new, own);
        written.map_err(|e| StoreError::io("merge into", into.path(), e))?;
        let seal = vec![seal_of(&into, new, None)];
        let (release, files) = (vec![layer], vec![described(new, "merged")]);
        let row = new[usize::try_from(LEAF).unwrap()..][..8].to_vec();
        let tree_put = vec![(key, row)];
        // The old version may go from here on.
        self.forget(old);
        let result =
            self.store.commit(Batch { seal, release, files, tree_put, ..Batch::default() });
        if self.is_promise(&result) {
            self.forget(new);
            self.promised.whole.push(new.to_vec());
        }
        result
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
        self.publish_many(50);
        let root = self.store.dir().to_owned();
        self.adopt(&root, &content(80, 3));
        let e = content(90, 4);
        if let Some(base) = self.publish(3, &e, None) {
            self.forget(&e);
            self.promised.served.push(e.clone());
            self.layer_and_merge(3, base, &e, 91);
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

    /// What a store does that a crash has left.
    fn run_again(&mut self) {
        // A merge that began before the crash took the old version's owner, so eviction may follow.
        let e = content(90, 4);
        if self.promised.served.contains(&changed(&e, 91).0) {
            self.forget(&e);
        }
        let f = content(100, 4);
        if let Some(base) = self.publish(4, &f, None) {
            self.forget(&f);
            self.promised.served.push(f.clone());
            self.layer_and_merge(4, base, &f, 101);
        }
        self.publish_many(110);
        let _ = self.store.evict();
        let _ = self.store.gc();
        let _ = self.store.close();
    }
}

fn described(bytes: &[u8], name: &str) -> FileInfo {
    FileInfo {
        cid: *root_of(bytes).cid(),
        name: name.to_owned(),
        size: bytes.len() as u64,
        chunks: vec![],
        created_at: std::time::UNIX_EPOCH,
    }
}

fn seal_of(working: &WorkingFile, bytes: &[u8], present: Option<RangeSet>) -> Seal {
    let root = root_of(bytes);
    Seal {
        object: working.id(),
        root: *root.cid(),
        stamp: FileStamp::of(&working.open(false).unwrap()).unwrap(),
        leaves: leaves(bytes).iter().map(|(b, range)| (*b.cid(), *range)).collect(),
        nodes: vec![root],
        present,
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
    for bytes in &promised.served {
        let blocks = leaves(bytes).into_iter().map(|(block, _)| block).chain([root_of(bytes)]);
        for (index, block) in blocks.enumerate() {
            let served = store.block(block.cid()).unwrap();
            assert!(served == Some(block), "{story}: block {index} of a layer is not served");
        }
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

/// Opens the store on a disk with faults and runs a script on it, as far as it comes.
fn live(
    root: &Path,
    disk: &Arc<FaultyDisk>,
    promised: Promised,
    script: impl FnOnce(&mut Script),
) -> Promised {
    let mut options = options(root);
    options.cache_limit = Some(0);
    match recover::open_idle(&options, disk.clone()) {
        Ok(store) => {
            let mut run = Script { store, disk: disk.clone(), promised };
            script(&mut run);
            run.promised
        }
        Err(_) => promised,
    }
}

/// Runs the workload with one fault; the steps that it took.
fn run(fault: Option<(usize, Fault)>, images: &[Image]) -> usize {
    let dir = scratch();
    let root = dir.path().join("live");
    let disk = FaultyDisk::new(&root, fault.as_slice());
    let promised = live(&root, &disk, Promised::default(), Script::run);
    if fault.is_none() {
        let (merged, _) = changed(&content(90, 4), 91);
        assert!(promised.whole.contains(&merged), "the workload comes to its end");
    }
    for (n, image) in images.iter().enumerate() {
        let target = dir.path().join(n.to_string());
        disk.image(*image, &target);
        check(&promised, &target, &format!("{fault:?}, {image:?}"));
    }
    disk.steps()
}

/// Two faults: the machine stops, and the store that starts then has a failing step or a stop of its own.
fn run_twice(steps: usize, seed: u64) {
    let mut dice = Dice::new(seed);
    let dir = scratch();
    let mut roll = |below: usize| usize::try_from(dice.roll(below as u64)).unwrap();
    let first = (roll(steps), Fault::Stop);
    let failing = (roll(steps), Fault::Fails(if roll(2) == 0 { 5 } else { 28 }));
    let kind = if roll(2) == 0 { Fault::Stop } else { Fault::Fails(5) };
    // Half of them amid the recovery.
    let range = if roll(2) == 0 { 12 } else { 120 };
    let second = (roll(range), kind);
    let images = [Image::Torn(seed), Image::Everything, Image::Synced];
    let (one, two) = (images[roll(3)], images[roll(3)]);
    let story = format!("seed {seed}: {first:?}, {failing:?}, {one:?}, {second:?}, {two:?}");
    let roots = [dir.path().join("0"), dir.path().join("1"), dir.path().join("2")];
    let disk = FaultyDisk::new(&roots[0], &[first, failing]);
    disk.write_back(seed);
    let promised = live(&roots[0], &disk, Promised::default(), Script::run);
    disk.image(one, &roots[1]);
    let disk = FaultyDisk::new(&roots[1], &[second]);
    disk.write_back(seed + 1);
    let promised = live(&roots[1], &disk, promised, Script::run_again);
    disk.image(two, &roots[2]);
    check(&promised, &roots[2], &story);
}

const ALL: [Image; 4] = [Image::Synced, Image::NamesToo, Image::Everything, Image::Torn(7)];

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_goes() {
    let steps = run(None, &ALL);
    assert!(steps > 100, "{steps} steps");
    for step in 0..steps {
        // Neighbouring steps mostly differ in nothing but the image.
        let image = match ALL[step % ALL.len()] {
            Image::Torn(_) => Image::Torn(step as u64),
            other => other,
        };
        run(Some((step, Fault::Stop)), &[image]);
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

/// Runs of a normal test; `CHIRAL_CRASH_SEEDS` sets more.
const SEEDS: u64 = 40;

/// The promises are those of a journaled filesystem under a store that orders its writes: what was acknowledged is
/// there, whole; everything else is there, or not, and never wrong.
#[test]
fn two_faults_lose_nothing_acknowledged() {
    let steps = run(None, &[]);
    let seeds = std::env::var("CHIRAL_CRASH_SEEDS").map_or(SEEDS, |n| n.parse().unwrap());
    (0..seeds).for_each(|seed| run_twice(steps, seed));
}
