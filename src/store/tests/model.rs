//! The store against a model of it, in random orders of what can happen.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use proptest::prelude::*;

use super::{
    super::{Batch, Object, ObjectId, Pin, Store, disk::RealDisk, recover},
    content, leaves, options, publish, root_of, scratch, whole,
};

/// Leaves of each content.
const LEAVES: usize = 3;
/// Contents that are downloaded, and the one that is published; it has its first leaf in common with the first.
const DOWNLOADS: usize = 2;

#[derive(Clone, Debug)]
enum Op {
    Place(usize, usize),
    Let(usize),
    Publish,
    Own,
    Release,
    Pin(usize),
    Unpin(usize),
    Evict,
    Gc,
    Flush,
    Close,
    Kill,
}

fn op() -> impl Strategy<Value = Op> {
    let content = 0..DOWNLOADS;
    prop_oneof![
        6 => (content.clone(), 0..LEAVES).prop_map(|(c, leaf)| Op::Place(c, leaf)),
        2 => content.clone().prop_map(Op::Let),
        2 => Just(Op::Publish),
        1 => Just(Op::Own),
        2 => Just(Op::Release),
        1 => content.clone().prop_map(Op::Pin),
        1 => content.prop_map(Op::Unpin),
        2 => Just(Op::Evict),
        1 => Just(Op::Gc),
        2 => Just(Op::Flush),
        1 => Just(Op::Close),
        1 => Just(Op::Kill),
    ]
}

#[derive(Debug, Default)]
struct Download {
    exists: bool,
    /// There is a row for it.
    committed: bool,
    present: BTreeSet<usize>,
    durable: BTreeSet<usize>,
    /// As far as the handle knows, and the index.
    ever_complete: (bool, bool),
    dirty: bool,
    handle: Option<Arc<Object>>,
    pinned: bool,
}

#[derive(Debug, Default)]
struct Model {
    downloads: [Download; DOWNLOADS],
    /// The published object and how many own it.
    published: BTreeMap<ObjectId, u64>,
}

impl Model {
    fn flush(&mut self) {
        for d in self.downloads.iter_mut().filter(|d| d.exists) {
            d.durable.clone_from(&d.present);
            d.ever_complete.1 |= d.present.len() == LEAVES;
            (d.dirty, d.committed) = (false, true);
        }
    }

    /// Whole objects that nothing holds go; without `punch` that is all.
    fn shrink(&mut self, punch: bool) {
        self.published.retain(|_, owners| *owners > 0);
        for d in self.downloads.iter_mut().filter(|d| d.exists && !d.pinned) {
            if d.handle.is_none() && !d.dirty {
                *d = Download::default();
            } else if punch && !d.ever_complete.0 {
                d.present = d.present.difference(&d.durable).copied().collect();
                d.durable.clear();
            }
        }
    }

    fn kill(&mut self) {
        for d in &mut self.downloads {
            d.handle = None;
            d.dirty = false;
            d.present.clone_from(&d.durable);
            d.exists = d.committed;
            d.ever_complete.0 = d.ever_complete.1;
        }
    }

    fn has(&self, content: usize, leaf: usize) -> bool {
        let published = !self.published.is_empty();
        let shared = leaf == 0 && (content == 0 || content == DOWNLOADS);
        if shared && (published || self.downloads[0].present.contains(&0)) {
            return true;
        }
        if content == DOWNLOADS {
            published
        } else {
            self.downloads[content].present.contains(&leaf)
        }
    }

    fn objects(&self) -> usize {
        self.published.len() + self.downloads.iter().filter(|d| d.committed).count()
    }
}

fn contents() -> Vec<Vec<u8>> {
    let mut all: Vec<_> = (1..=3).map(|seed| content(seed, LEAVES as u64)).collect();
    let (first, last) = all.split_at_mut(DOWNLOADS);
    last[0][..4096].copy_from_slice(&first[0][..4096]);
    all
}

fn open(dir: &Path) -> Store {
    let mut options = options(dir);
    options.cache_limit = Some(0);
    recover::open_idle(&options, Arc::new(RealDisk)).unwrap()
}

fn step(op: &Op, store: &mut Option<Store>, model: &mut Model, contents: &[Vec<u8>], dir: &Path) {
    let open_store = store.as_ref().unwrap();
    match *op {
        Op::Place(c, leaf) => {
            let bytes = &contents[c];
            let object =
                open_store.create_object(root_of(bytes).cid(), bytes.len() as u64).unwrap();
            let (block, range) = &leaves(bytes)[leaf];
            object.place(block, &whole(block, range.start)).unwrap();
            let d = &mut model.downloads[c];
            d.dirty |= !d.exists || !d.present.contains(&leaf);
            d.exists = true;
            d.present.insert(leaf);
            d.ever_complete.0 |= d.present.len() == LEAVES;
            d.handle = Some(object);
        }
        Op::Let(c) => model.downloads[c].handle = None,
        Op::Publish => {
            let (id, batch) = publish(open_store, &contents[DOWNLOADS]);
            open_store.commit(batch).unwrap();
            model.published.insert(id, 1);
        }
        Op::Own | Op::Release => {
            let Some((id, owners)) = model.published.iter_mut().next_back() else { return };
            let mut batch = Batch::default();
            if matches!(op, Op::Own) {
                batch.own.push((*id, *root_of(&contents[DOWNLOADS]).cid()));
                *owners += 1;
            } else {
                batch.release.push(*id);
                *owners = owners.saturating_sub(1);
            }
            open_store.commit(batch).unwrap();
            // What is owned may have just been downloaded, so that is committed with it.
            if matches!(op, Op::Own) {
                model.flush();
            }
        }
        Op::Pin(c) => {
            let root = *root_of(&contents[c]).cid();
            open_store.pin(Pin { root, name: String::new() }).unwrap();
            model.downloads[c].pinned = true;
        }
        Op::Unpin(c) => {
            let was = open_store.unpin(root_of(&contents[c]).cid()).unwrap();
            assert_eq!(was, std::mem::take(&mut model.downloads[c].pinned));
        }
        Op::Evict => {
            open_store.evict().unwrap();
            model.shrink(true);
        }
        Op::Gc => {
            open_store.gc().unwrap();
            model.flush();
            model.shrink(false);
        }
        Op::Flush => {
            open_store.flush().unwrap();
            model.flush();
        }
        Op::Close => {
            open_store.close().unwrap();
            model.flush();
            model.kill();
            drop(store.take());
            *store = Some(open(dir));
        }
        Op::Kill => {
            model.kill();
            drop(store.take());
            *store = Some(open(dir));
        }
    }
}

fn check(store: &Store, model: &Model, contents: &[Vec<u8>], op: &Op) {
    for (c, bytes) in contents.iter().enumerate() {
        for (leaf, (block, _)) in leaves(bytes).iter().enumerate() {
            let found = store.block(block.cid()).unwrap();
            assert_eq!(
                found.is_some(),
                model.has(c, leaf),
                "after {op:?}: content {c}, leaf {leaf}"
            );
            assert!(found.is_none_or(|found| found == *block), "after {op:?}: wrong bytes");
            let len = store.block_len(block.cid()).unwrap();
            assert_eq!(len.is_some(), model.has(c, leaf), "after {op:?}: length");
        }
    }
    let objects = usize::try_from(store.stats().unwrap().objects).unwrap();
    assert_eq!(objects, model.objects(), "after {op:?}: objects");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_behaves_like_its_model(ops in prop::collection::vec(op(), 1..40)) {
        let (dir, contents) = (scratch(), contents());
        let (mut store, mut model) = (Some(open(dir.path())), Model::default());
        for op in &ops {
            step(op, &mut store, &mut model, &contents, dir.path());
            check(store.as_ref().unwrap(), &model, &contents, op);
        }
        let report = store.unwrap().verify(&mut |_, _| {}).unwrap();
        prop_assert!(report.bad.is_empty());
    }
}
