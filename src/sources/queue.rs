//! Which blocks are asked for with which request of a gateway or a swarm: data and pure functions.
//!
//! Blocks that follow each other in a file are one request, a *window*; all others, and all where the gateway has no
//! windows, are a request each. While as many windows run as may, further blocks that continue one of them gather here
//! and become the next window: at the speed of the line windows become long by themselves.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    content::{ByteRange, ContentId, MAX_BLOCK_LEN},
    sources::Want,
};

/// Windows of one file and gateway that run at a time: each next one is asked for before the last has come whole.
const WINDOWS: usize = 4;
/// Most bytes of one window: one that breaks off loses no more.
const WINDOW: u64 = 8 << 20;

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Job(u64);

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// One block.
    Block(ContentId),
    /// Blocks that follow each other in a file.
    Window { file: ContentId, range: ByteRange, wants: Vec<Want> },
}

#[derive(Debug)]
struct Running {
    /// Where in which file it ends; none of a single block.
    window_end: Option<(ContentId, u64)>,
    left: HashMap<ContentId, Want>,
}

#[derive(Debug)]
struct Waiting {
    want: Want,
    /// It is to be asked for by itself: a window did not bring it.
    alone: bool,
}

/// What was asked of one gateway for one root.
#[derive(Debug)]
pub(super) struct Queue {
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    /// Where the waiting block of a file that starts at an offset stands.
    starts: HashMap<(ContentId, u64), u64>,
    /// The same of the one that ends there.
    ends: HashMap<(ContentId, u64), u64>,
    running: BTreeMap<Job, Running>,
    next: u64,
    /// Requests that run at a time, windows among them.
    most: usize,
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            starts: HashMap::new(),
            ends: HashMap::new(),
            running: BTreeMap::new(),
            next: 0,
            most: most.max(1),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Asks for blocks.
    pub(super) fn add(&mut self, wants: &[Want]) {
        for want in wants {
            self.put(*want, false);
        }
    }

    fn put(&mut self, want: Want, alone: bool) {
        let number = self.number();
        if is_windowed(&want) && !alone {
            self.starts.insert((want.file, want.range.start), number);
            self.ends.insert((want.file, want.range.end), number);
        }
        self.waiting.insert(number, Waiting { want, alone });
    }

    /// The next request to make, if one is to be made now. `windows`: the gateway gives them.
    pub(super) fn next(&mut self, windows: bool) -> Option<(Job, Ask)> {
        if self.running.len() >= self.most {
            return None;
        }
        let chosen = self.waiting.keys().find_map(|number| self.begins_with(*number, windows))?;
        Some(self.begin(&chosen))
    }

    /// The request that begins with a waiting block, if it is to be made now.
    fn begins_with(&self, number: u64, windows: bool) -> Option<Vec<u64>> {
        let Waiting { want, alone } = &self.waiting[&number];
        if *alone || !windows || !is_windowed(want) {
            return Some(vec![number]);
        }
        let place = (want.file, want.range.start);
        if self.ends.contains_key(&place) {
            // A part of what begins further in front.
            return None;
        }
        let run = self.run(number);
        let under_way: Vec<(ContentId, u64)> =
            self.running.values().filter_map(|job| job.window_end).collect();
        if run.len() == 1 {
            // What continues a window gathers with what comes behind it.
            return (!under_way.contains(&place)).then_some(run);
        }
        (under_way.len() < WINDOWS).then_some(run)
    }

    /// The waiting blocks that follow each other from this one on.
    fn run(&self, first: u64) -> Vec<u64> {
        let mut run = vec![first];
        let Want { file, range, .. } = self.waiting[&first].want;
        let mut end = range.end;
        while let Some(number) = self.starts.get(&(file, end)) {
            let next = self.waiting[number].want.range;
            if next.end - range.start > WINDOW {
                break;
            }
            end = next.end;
            run.push(*number);
        }
        run
    }

    fn begin(&mut self, numbers: &[u64]) -> (Job, Ask) {
        let wants: Vec<Want> = numbers.iter().filter_map(|number| self.take(*number)).collect();
        let job = Job(self.number());
        let (first, last) = (wants[0], wants[wants.len() - 1]);
        let window_end = (wants.len() > 1).then_some((last.file, last.range.end));
        let left = wants.iter().map(|want| (want.id, *want)).collect();
        self.running.insert(job, Running { window_end, left });
        let range = ByteRange::new(first.range.start, last.range.end);
        let ask = match window_end {
            Some((file, _)) => Ask::Window { file, range, wants },
            None => Ask::Block(first.id),
        };
        (job, ask)
    }

    fn take(&mut self, number: u64) -> Option<Want> {
        let Waiting { want, .. } = self.waiting.remove(&number)?;
        for (places, at) in [(&mut self.starts, want.range.start), (&mut self.ends, want.range.end)]
        {
            if places.get(&(want.file, at)) == Some(&number) {
                places.remove(&(want.file, at));
            }
        }
        Some(want)
    }

    /// Whether a request is to bring a block that is not here.
    pub(super) fn is_left(&self, job: Job, id: &ContentId) -> bool {
        self.running.get(&job).is_some_and(|job| job.left.contains_key(id))
    }

    /// Whether a request is to bring anything still.
    pub(super) fn is_any_left(&self, job: Job) -> bool {
        self.running.get(&job).is_some_and(|job| !job.left.is_empty())
    }

    /// A block of a request is answered.
    pub(super) fn answered(&mut self, job: Job, id: &ContentId) {
        if let Some(job) = self.running.get_mut(&job) {
            job.left.remove(id);
        }
    }

    /// What a request has not brought yet, in file order.
    pub(super) fn left(&self, job: Job) -> Vec<Want> {
        let left = self.running.get(&job).map(|job| job.left.values().copied());
        let mut left: Vec<Want> = left.into_iter().flatten().collect();
        left.sort_by_key(|want| want.range.start);
        left
    }

    /// What a window has not brought is to be asked for block by block.
    pub(super) fn one_by_one(&mut self, job: Job) {
        let left = self.left(job);
        if let Some(job) = self.running.get_mut(&job) {
            job.left.clear();
        }
        for want in left {
            self.put(want, true);
        }
    }

    /// A request has ended.
    pub(super) fn ended(&mut self, job: Job) {
        self.running.remove(&job);
    }

    /// Takes wants back; the requests that have nothing left to bring.
    pub(super) fn cancel(&mut self, ids: &[ContentId]) -> Vec<Job> {
        let ids: HashSet<&ContentId> = ids.iter().collect();
        let waiting: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| ids.contains(&waiting.want.id))
            .map(|(number, _)| *number)
            .collect();
        for number in waiting {
            self.take(number);
        }
        let mut idle = Vec::new();
        for (job, running) in &mut self.running {
            let before = running.left.len();
            running.left.retain(|id, _| !ids.contains(id));
            if running.left.is_empty() && before > 0 {
                idle.push(*job);
            }
        }
        idle
    }
}

/// Whether it is known to be a piece of a file that a window can hold. What covers more than a block can hold is an
/// interior node, for which a window would bring all that lies below it.
fn is_windowed(want: &Want) -> bool {
    !want.range.is_empty() && want.range.len() <= MAX_BLOCK_LEN as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use bytes::Bytes;

    use super::*;
    use crate::content::Block;

    const LEN: u64 = 256 << 10;

    fn file() -> ContentId {
        *Block::raw(Bytes::from_static(b"file")).cid()
    }

    /// Block `at` of a file.
    fn want(at: u64) -> Want {
        let id = *Block::raw(at.to_be_bytes().to_vec().into()).cid();
        Want { id, root: file(), file: file(), range: ByteRange::at(at * LEN, LEN) }
    }

    fn add(queue: &mut Queue, blocks: impl IntoIterator<Item = u64>) {
        queue.add(&blocks.into_iter().map(want).collect::<Vec<_>>());
    }

    /// The numbers of the blocks that a request asks for.
    fn numbers(ask: &Ask) -> Vec<u64> {
        match ask {
            Ask::Block(id) => vec![(0..1000).find(|at| want(*at).id == *id).unwrap()],
            Ask::Window { range, wants, .. } => {
                assert_eq!(range.len(), wants.len() as u64 * LEN);
                wants.iter().map(|want| want.range.start / LEN).collect()
            }
        }
    }

    fn all(queue: &mut Queue, windows: bool) -> Vec<Vec<u64>> {
        std::iter::from_fn(|| queue.next(windows)).map(|(_, ask)| numbers(&ask)).collect()
    }

    #[test]
    fn blocks_that_follow_each_other_are_one_request_however_they_came() {
        let mut queue = Queue::new(16);
        add(&mut queue, [5, 6, 20, 3, 4, 9, 8]);
        assert_eq!(all(&mut queue, true), [vec![20], vec![3, 4, 5, 6], vec![8, 9]]);
    }

    #[test]
    fn without_windows_every_block_is_a_request_in_order() {
        let mut queue = Queue::new(3);
        add(&mut queue, [5, 6, 7, 8]);
        assert_eq!(all(&mut queue, false), [[5], [6], [7]]);
        queue.ended(Job(5));
        assert_eq!(all(&mut queue, false), [[8]]);
    }

    #[test]
    fn what_covers_more_than_a_block_or_nothing_is_asked_for_by_itself() {
        let mut queue = Queue::new(16);
        let node = Want { range: ByteRange::at(0, 3 << 20), ..want(100) };
        let root = Want { range: ByteRange::default(), ..want(101) };
        queue.add(&[node, root, want(0), want(1)]);
        assert_eq!(queue.next(true).unwrap().1, Ask::Block(node.id));
        assert_eq!(queue.next(true).unwrap().1, Ask::Block(root.id));
        assert_eq!(all(&mut queue, true), [[0, 1]]);
    }

    #[test]
    fn a_long_run_is_cut_into_windows_and_what_continues_them_gathers() {
        let mut queue = Queue::new(16);
        add(&mut queue, 0..4 * 32);
        let windows = all(&mut queue, true);
        assert_eq!(windows.iter().map(Vec::len).collect::<Vec<_>>(), [32; WINDOWS]);
        add(&mut queue, [128]);
        assert_eq!(all(&mut queue, true), [[0; 0]; 0], "it continues a window");
        add(&mut queue, [129, 130]);
        assert_eq!(all(&mut queue, true), [[0; 0]; 0], "as many windows run as may");
        add(&mut queue, [500]);
        assert_eq!(all(&mut queue, true), [[500]], "a read elsewhere does not wait");
        let first = *queue.running.keys().next().unwrap();
        queue.ended(first);
        assert_eq!(all(&mut queue, true), [[128, 129, 130]]);
    }

    #[test]
    fn a_block_behind_the_last_window_is_not_left_waiting() {
        let mut queue = Queue::new(16);
        add(&mut queue, [0, 1]);
        let (job, _) = queue.next(true).unwrap();
        add(&mut queue, [2]);
        assert_eq!(queue.next(true), None);
        queue.ended(job);
        assert_eq!(all(&mut queue, true), [[2]]);
    }

    #[test]
    fn what_a_window_did_not_bring_is_asked_for_block_by_block() {
        let mut queue = Queue::new(16);
        add(&mut queue, 0..4);
        let (job, _) = queue.next(true).unwrap();
        queue.answered(job, &want(1).id);
        assert!(!queue.is_left(job, &want(1).id) && queue.is_left(job, &want(2).id));
        queue.one_by_one(job);
        queue.ended(job);
        assert_eq!(all(&mut queue, true), [[0], [2], [3]]);
    }

    #[test]
    fn a_request_ends_when_nothing_of_it_is_needed_and_not_before() {
        let mut queue = Queue::new(16);
        add(&mut queue, 0..3);
        let (job, _) = queue.next(true).unwrap();
        add(&mut queue, [70, 71]);
        assert_eq!(queue.cancel(&[want(0).id, want(2).id, want(70).id]), []);
        assert_eq!(queue.left(job), [want(1)]);
        assert_eq!(queue.cancel(&[want(1).id]), [job]);
        assert_eq!(all(&mut queue, true), [[71]]);
    }
}
