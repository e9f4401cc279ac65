#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Truncate(u64),
    FillSome,
    Restart,
    /// The version is published as it is, and opened for writing again.
    Layer,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..120, prop::collection::vec(1u8.., 1..30)).prop_map(|(at, data)| Op::Write(at, data)),
        2 => (0u64..150).prop_map(Op::Truncate),
        1 => Just(Op::FillSome),
        1 => Just(Op::Restart),
        1 => Just(Op::Layer),
    ]
}

fn files(base: &[u8]) -> (tempfile::TempDir, Arc<File>, WorkingWriter) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base"), base).unwrap();
    let file = File::open(dir.path().join("base")).unwrap();
    let work = new_file(&dir, "work", base.len());
    (dir, Arc::new(file), work)
}

fn new_file(dir: &tempfile::TempDir, name: &str, len: usize) -> WorkingWriter {
    let mut options = File::options();
    let opened = options.read(true).write(true).create_new(true).open(dir.path().join(name));
    let work = WorkingWriter::of(opened.unwrap());
    work.set_len(len as u64).unwrap();
    work
}

proptest! {
    #[test]
    fn it_reads_like_a_plain_file(base in prop::collection::vec(1u8.., 0..100), ops in prop::collection::vec(op(), 0..20)) {
        let (dir, file, mut work) = files(&base);
        let mut overlay = Overlay::new(file.clone(), ObjectId(7), base.len() as u64, 16);
        let (mut model, mut opened) = (base.clone(), base.clone());
        for (number, op) in ops.into_iter().enumerate() {
            match op {
                Op::Write(at, data) => {
                    let (start, end) = (usize::try_from(at).unwrap(), usize::try_from(at).unwrap() + data.len());
                    overlay.prepare_write(&work, ByteRange::at(at, data.len() as u64)).unwrap();
                    work.write_all_at(&data, at).unwrap();
                    model.resize(model.len().max(end), 0);
                    model[start..end].copy_from_slice(&data);
                }
                Op::Truncate(size) => {
                    overlay.truncate(&work, size).unwrap();
                    model.resize(usize::try_from(size).unwrap(), 0);
                }
                Op::FillSome => { overlay.fill_some(&work, 2).unwrap(); }
                Op::Restart => {
                    overlay = Overlay::restore(overlay.row(), base.len() as u64, 16);
                    overlay.set_base(file.clone(), false);
                }
                Op::Layer => {
                    overlay.fill_edge(&work, model.len() as u64).unwrap();
                    for (index, leaf) in model.chunks(16).enumerate() {
                        let range = ByteRange::at(index as u64 * 16, leaf.len() as u64);
                        prop_assert!(overlay.is_known(range) || overlay.row().own(16, model.len() as u64).contains(range));
                    }
                    let next = new_file(&dir, &format!("work {number}"), model.len());
                    overlay = overlay.copy_to(work.file(), &next, model.len() as u64).unwrap();
                    prop_assert!(overlay.is_unchanged(model.len() as u64));
                    (work, opened) = (next, model.clone());
                }
            }
            let mut read = vec![0xAA; model.len() + 9];
            prop_assert_eq!(overlay.read_at(work.file(), 0, &mut read).unwrap(), model.len());
            prop_assert_eq!(&read[..model.len()], &model[..]);
            prop_assert!(!overlay.is_unchanged(model.len() as u64) || model == opened);
            for (index, leaf) in model.chunks(16).enumerate() {
                let at = index * 16;
                let range = ByteRange::at(at as u64, leaf.len() as u64);
                if overlay.is_known(range) {
                    prop_assert_eq!(base.chunks(16).nth(index), Some(leaf));
                }
            }
        }
        while overlay.fill_some(&work, 1).unwrap() {}
        let mut read = vec![0; model.len()];
        work.file().read_exact_at(&mut read, 0).unwrap();
        prop_assert_eq!(read, model);
    }
}

#[test]
fn what_an_append_was_cut_off_of_again_is_a_change_after_a_restart() {
    let (dir, file, work) = files(&[1; 16]);
    let mut overlay = Overlay::new(file, ObjectId(7), 16, 16);
    overlay.prepare_write(&work, ByteRange::at(16, 1)).unwrap();
    work.write_all_at(&[1], 16).unwrap();
    // That is published, and opened again.
    let next = new_file(&dir, "next", 17);
    let mut overlay = overlay.copy_to(work.file(), &next, 17).unwrap();
    assert!(overlay.is_unchanged(17));
    overlay.truncate(&next, 16).unwrap();
    assert!(!overlay.is_unchanged(16));
    assert!(!Overlay::restore(overlay.row(), 16, 16).is_unchanged(16));
}

#[test]
fn an_append_copies_one_leaf() {
    let (_dir, file, work) = files(&[7; 100]);
    let mut overlay = Overlay::new(file, ObjectId(1), 100, 16);
    overlay.prepare_write(&work, ByteRange::at(100, 5)).unwrap();
    assert_eq!(overlay.row().filled.bytes(), 1);
    assert!(overlay.is_known(ByteRange::new(80, 96)));
    assert!(!overlay.is_known(ByteRange::new(96, 105)));
}

const LEAF: u64 = 16;
/// Bytes that reach the disk together.
const PAGE: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Truncate(u64),
    Zero(u64, u64),
    FillSome,
    /// The row is committed.
    Commit,
    /// The process ends and another one recovers the file.
    Kill,
    /// The power goes: each page is there or not, and so is the length.
    PowerOff(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u64..120, prop::collection::vec(1u8.., 1..30)).prop_map(|(at, data)| Step::Write(at, data)),
        2 => (0u64..150).prop_map(Step::Truncate),
        1 => (0u64..120, 1u64..40).prop_map(|(at, len)| Step::Zero(at, len)),
        1 => Just(Step::FillSome),
        2 => Just(Step::Commit),
        2 => Just(Step::Kill),
        2 => any::<u64>().prop_map(Step::PowerOff),
    ]
}

/// One file that is written, and what a crash may leave of it.
struct Bench {
    dir: tempfile::TempDir,
    base: Arc<File>,
    base_len: u64,
    work: WorkingWriter,
    overlay: Overlay,
    model: Vec<u8>,
    /// Row, bytes on disk, and what each byte was since.
    row: OverlayRow,
    seen: Seen,
    synced: Vec<u8>,
    values: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    files: usize,
}

impl Bench {
    fn new(base: &[u8]) -> Self {
        let (dir, file, work) = files(base);
        let overlay = Overlay::new(file.clone(), ObjectId(7), base.len() as u64, LEAF);
        let mut bench = Self {
            dir,
            base: file,
            base_len: base.len() as u64,
            row: overlay.row(),
            work,
            overlay,
            model: base.to_vec(),
            seen: Seen { size: 0, mtime: 0 },
            synced: Vec::new(),
            values: Vec::new(),
            sizes: Vec::new(),
            files: 0,
        };
        bench.commit();
        bench
    }

    fn raw(&self) -> Vec<u8> {
        let mut raw = vec![0; usize::try_from(self.work.size().unwrap()).unwrap()];
        self.work.file().read_exact_at(&mut raw, 0).unwrap();
        raw
    }

    fn commit(&mut self) {
        self.row = self.overlay.row();
        self.seen = Seen { size: self.work.size().unwrap(), mtime: 0 };
        self.synced = self.raw();
        self.values = self.model.iter().map(|byte| vec![*byte]).collect();
        self.sizes = vec![self.model.len()];
    }

    /// Bytes beyond the end count as zeros.
    fn note(&mut self) {
        self.values.resize(self.values.len().max(self.model.len()), vec![0]);
        let now = self.model.iter().copied().chain(std::iter::repeat(0));
        self.values.iter_mut().zip(now).for_each(|(values, byte)| values.push(byte));
        self.sizes.push(self.model.len());
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Write(at, data) => {
                let (start, end) = (usize::try_from(at).unwrap(), at + data.len() as u64);
                let end = usize::try_from(end).unwrap();
                self.overlay
                    .prepare_write(&self.work, ByteRange::at(at, data.len() as u64))
                    .unwrap();
                self.work.write_all_at(&data, at).unwrap();
                self.model.resize(self.model.len().max(end), 0);
                self.model[start..end].copy_from_slice(&data);
            }
            Step::Truncate(size) => {
                let hides = self.overlay.truncate(&self.work, size).unwrap();
                self.model.resize(usize::try_from(size).unwrap(), 0);
                if hides {
                    self.commit();
                }
            }
            Step::Zero(at, len) => {
                let range =
                    ByteRange::at(at, len).intersect(ByteRange::new(0, self.model.len() as u64));
                self.overlay.prepare_write(&self.work, range).unwrap();
                self.work.clear(range).unwrap();
                let bytes = |at| usize::try_from(at).unwrap();
                if !range.is_empty() {
                    self.model[bytes(range.start)..bytes(range.end)].fill(0);
                }
            }
            Step::FillSome => drop(self.overlay.fill_some(&self.work, 2).unwrap()),
            Step::Commit => self.commit(),
            Step::Kill => self.recover(),
            Step::PowerOff(seed) => {
                self.tear(seed);
                self.recover();
            }
        }
        self.note();
    }

    /// Leaves a file of which each page is as it was synced or as it is now.
    fn tear(&mut self, seed: u64) {
        let mut bits = seed | 1;
        let mut coin = || {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            bits.is_multiple_of(2)
        };
        let live = self.raw();
        let len = if coin() { live.len() } else { self.synced.len() };
        self.files += 1;
        let torn = new_file(&self.dir, &format!("torn {}", self.files), len);
        for at in (0..len).step_by(PAGE) {
            let from = if coin() { &live } else { &self.synced };
            let page = from.get(at..len.min(at + PAGE).min(from.len())).unwrap_or_default();
            torn.write_all_at(page, at as u64).unwrap();
        }
        self.work = torn;
    }

    fn recover(&mut self) {
        let (row, seen) = (self.row.clone(), Some(self.seen));
        self.overlay = Overlay::recover(row, seen, self.base_len, LEAF, &self.work).unwrap();
        self.overlay.set_base(self.base.clone(), false);
        let found = self.read();
        let (least, most) = (self.sizes.iter().min().unwrap(), self.sizes.iter().max().unwrap());
        assert!((least..=most).contains(&&found.len()), "{} bytes", found.len());
        for (at, byte) in found.iter().enumerate() {
            assert!(self.values[at].contains(byte), "byte {at}: {byte}");
        }
        self.model = found;
        self.commit();
    }

    fn read(&self) -> Vec<u8> {
        let mut read = vec![0xAA; usize::try_from(self.work.size().unwrap()).unwrap()];
        self.overlay.read_at(self.work.file(), 0, &mut read).unwrap();
        read
    }
}

proptest! {
    /// After a crash each byte is one that it was since the last commit, and the length one that the file had. What
    /// is read then stays as it is, whatever is written beside it.
    #[test]
    fn a_crash_leaves_what_a_byte_was_before(
        base in prop::collection::vec(1u8.., 0..100),
        steps in prop::collection::vec(step(), 0..30),
    ) {
        let mut bench = Bench::new(&base);
        for step in steps {
            bench.run(step);
            prop_assert_eq!(bench.read(), bench.model.clone());
        }
        while bench.overlay.fill_some(&bench.work, 1).unwrap() {}
        prop_assert_eq!(bench.raw(), bench.model);
    }
}

#[test]
fn bytes_cut_off_after_the_row_stay_away() {
    let mut bench = Bench::new(&[1; 100]);
    // As when the commit that follows a truncate does not come about.
    bench.overlay.truncate(&bench.work, 40).unwrap();
    let (row, seen) = (bench.row.clone(), Some(bench.seen));
    let mut overlay = Overlay::recover(row, seen, 100, LEAF, &bench.work).unwrap();
    overlay.set_base(bench.base.clone(), false);
    overlay.prepare_write(&bench.work, ByteRange::at(40, 2)).unwrap();
    bench.work.write_all_at(&[9; 2], 40).unwrap();
    overlay.fill_edge(&bench.work, 42).unwrap();
    let mut read = [0; 42];
    overlay.read_at(bench.work.file(), 0, &mut read).unwrap();
    assert_eq!((&read[..40], &read[40..]), (&[1; 40][..], &[9; 2][..]));
}

#[test]
fn appends_to_a_filled_leaf_outlive_a_kill() {
    let mut bench = Bench::new(&[1; 20]);
    bench.run(Step::Write(20, vec![2; 3]));
    bench.run(Step::Commit);
    bench.run(Step::Write(23, vec![3; 30]));
    bench.run(Step::Kill);
    // The third leaf was not filled when the row was made.
    assert_eq!(bench.model, [&[1; 20][..], &[2; 3], &[3; 9]].concat());
}
