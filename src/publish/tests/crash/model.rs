//! The model: acknowledged files and names, and the states that a crash may leave.

use super::*;

/// A page that is told from all others by its number; 0 is a page of zeros.
pub(super) fn page(number: u64) -> Vec<u8> {
    if number == 0 {
        return vec![0; PAGE];
    }
    let words = (0..PAGE / 16).flat_map(|at| [number, number ^ at as u64]);
    words.flat_map(u64::to_le_bytes).collect()
}

pub(super) fn pages(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| page(*number)).collect()
}

/// The numbers of pages; none where one was never written like that.
pub(super) fn parse(bytes: &[u8]) -> Option<Vec<u64>> {
    let parsed = bytes.chunks(PAGE).map(|bytes| {
        let number = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        (page(number) == bytes).then_some(number)
    });
    parsed.collect()
}

pub(super) fn id_of_pages(numbers: &[u64]) -> ContentId {
    let mut builder = FileBuilder::new(IMPORT);
    for leaf in pages(numbers).chunks(LEAF) {
        builder.push(ContentId::raw(sha2_256(leaf)), leaf.len() as u64);
    }
    builder.finish(Metadata::default()).root
}

/// Acknowledged state of a file, and the states that a crash may leave.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) pages: Vec<u64>,
    /// Values of pages since the acknowledgement, where there were others.
    pub(super) values: BTreeMap<usize, BTreeSet<u64>>,
    /// As `values`, after a kill.
    pub(super) killed: BTreeMap<usize, BTreeSet<u64>>,
    pub(super) sizes: (usize, usize),
    /// The version that was acknowledged, and those that were closed since.
    pub(super) closed: Vec<Vec<u64>>,
    pub(super) note: u64,
    pub(super) notes: BTreeSet<u64>,
    /// Its history, for the report of a failure.
    pub(super) life: Vec<String>,
}

impl File {
    pub(super) fn page(&self, at: usize) -> u64 {
        self.pages.get(at).copied().unwrap_or_default()
    }

    pub(super) fn set(&mut self, at: usize, number: u64) {
        let old = self.page(at);
        for values in [&mut self.values, &mut self.killed] {
            values.entry(at).or_insert_with(|| [old].into()).insert(number);
        }
        if let Some(page) = self.pages.get_mut(at) {
            *page = number;
        }
    }

    pub(super) fn resize(&mut self, len: usize) {
        for at in len..self.pages.len() {
            self.set(at, 0);
        }
        self.pages.resize(len, 0);
        self.sizes = (self.sizes.0.min(len), self.sizes.1.max(len));
    }

    /// A truncate has come to its end.
    pub(super) fn cut(&mut self, len: usize) {
        self.killed.split_off(&len);
        (len..self.sizes.1).for_each(|at| drop(self.killed.insert(at, [self.page(at)].into())));
    }

    pub(super) fn write(&mut self, at: usize, numbers: &[u64]) {
        if self.pages.len() < at + numbers.len() {
            self.resize(at + numbers.len());
        }
        (at..).zip(numbers).for_each(|(at, number)| self.set(at, *number));
    }

    pub(super) fn acknowledge(&mut self) {
        self.life.push("acknowledged".into());
        self.values.clear();
        self.killed.clear();
        self.sizes = (self.pages.len(), self.pages.len());
        self.closed = vec![self.pages.clone()];
    }

    /// Why these pages cannot be what a crash has left.
    pub(super) fn fault(&self, found: &[u64], killed: bool) -> Option<String> {
        let (least, most) = self.sizes;
        if !(least..=most).contains(&found.len()) {
            return Some(format!("{} pages, not {least} to {most}", found.len()));
        }
        if killed && self.closed.iter().any(|closed| closed == found) {
            return None;
        }
        let allowed = if killed { &self.killed } else { &self.values };
        let wrong = found.iter().enumerate().find(|(at, number)| {
            !allowed.get(at).map_or(**number == self.page(*at), |values| values.contains(number))
        });
        wrong.map(|(at, number)| {
            format!("page {at} is {number}, not {} of {:?}", self.page(at), allowed.get(&at))
        })
    }
}

pub(super) type Slot = (UploadIno, &'static str);

/// Acknowledged state of the tree.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) files: BTreeMap<UploadIno, File>,
    pub(super) names: BTreeMap<Slot, UploadIno>,
    /// Inodes that each name may mean since the last fsync, where it meant several.
    pub(super) may: BTreeMap<Slot, BTreeSet<Option<UploadIno>>>,
    pub(super) directories: Vec<UploadIno>,
    pub(super) next: u64,
}

impl Model {
    pub(super) fn name(&mut self, slot: Slot, ino: Option<UploadIno>) {
        let old = self.names.get(&slot).copied();
        self.may.entry(slot).or_insert_with(|| [old].into()).insert(ino);
        match ino {
            Some(ino) => drop(self.names.insert(slot, ino)),
            None => drop(self.names.remove(&slot)),
        }
    }

    /// The id of a file was given out: it keeps the name that it has.
    pub(super) fn named(&mut self, ino: UploadIno) {
        for (slot, may) in &mut self.may {
            match self.names.get(slot) {
                Some(named) if *named == ino => *may = [Some(ino)].into(),
                _ => drop(may.remove(&Some(ino))),
            }
        }
    }

    pub(super) fn numbers(&mut self, count: u64) -> Vec<u64> {
        self.next += count;
        (self.next - count + 1..=self.next).collect()
    }

    /// An fsync has come to its end: all that had happened is on the disk but for the bytes of other files.
    pub(super) fn synced(&mut self, ino: Option<UploadIno>) {
        self.may.clear();
        for file in self.files.values_mut() {
            file.notes = [file.note].into();
        }
        if let Some(file) = ino.and_then(|ino| self.files.get_mut(&ino)) {
            file.acknowledge();
        }
    }
}
