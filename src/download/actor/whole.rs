//! Fetching a file to its end in the background, in the order of a strategy.

use std::{collections::VecDeque, time::Duration};

use futures::{FutureExt, future::join_all};
use tokio::sync::oneshot;

use super::{Actor, Done, Entry, Lookup, plan};
use crate::{
    content::{ByteRange, ContentId, Need},
    download::{DownloadError, Strategy, order::order, scheduler::Urgency},
    sources::SourceId,
};

/// Blocks that are given to the scheduler while fewer than half of them are outstanding.
const FEED: usize = 512;
/// Blocks that are ordered at once: availability is asked for, and shuffled, over this many.
const ORDERED: usize = 4096;

/// Somebody waits for the end of a background download.
type Answer = oneshot::Sender<Result<(), DownloadError>>;

/// A file that is fetched to its end.
#[derive(Debug)]
pub(super) struct Whole {
    strategy: Strategy,
    answers: Vec<Answer>,
    /// Blocks in the order of the strategy that were not given to the scheduler yet.
    pending: VecDeque<Need>,
    /// Number of the next block in the order of the whole download.
    order: u64,
    /// The sources are being asked what they have.
    asking: bool,
    /// All that is known to be missing was given to the scheduler: the file need not be gone through again until more
    /// is known, or nothing is under way.
    exhausted: bool,
}

impl Whole {
    /// Joins what runs already; the last strategy counts.
    pub(super) fn new(strategy: Strategy, running: Option<Self>, answer: Answer) -> Self {
        let mut whole = running.unwrap_or(Self {
            strategy,
            answers: Vec::new(),
            pending: VecDeque::new(),
            order: 0,
            asking: false,
            exhausted: false,
        });
        whole.strategy = strategy;
        whole.answers.push(answer);
        whole
    }

    fn end(self, result: &Result<(), DownloadError>) {
        for answer in self.answers {
            // The caller may be gone.
            let _ = answer.send(result.clone());
        }
    }
}

impl Entry {
    /// Ends a background download with an error; reads go on.
    pub(super) fn stop_whole(&mut self, error: &DownloadError) {
        if let Some(whole) = self.whole.take() {
            whole.end(&Err(error.clone()));
        }
    }

    /// More blocks are known to be missing than there were.
    pub(super) fn more_to_order(&mut self) {
        if let Some(whole) = &mut self.whole {
            whole.exhausted = false;
        }
    }
}

impl Actor {
    /// Gives the scheduler the next blocks of a background download.
    pub(super) fn feed_whole(&mut self, now: Duration, id: &ContentId) {
        let Some(entry) = self.files.get_mut(id) else { return };
        let Some(whole) = &mut entry.whole else { return };
        whole.answers.retain(|answer| !answer.is_closed());
        if whole.answers.is_empty() {
            // All who asked for it went away; what is under way may come.
            entry.whole = None;
            return;
        }
        if entry.file.object.is_complete() {
            if let Some(whole) = entry.whole.take() {
                whole.end(&Ok(()));
            }
            return;
        }
        whole.exhausted &= entry.outstanding > 0;
        if whole.pending.is_empty() && !whole.asking && !whole.exhausted {
            self.order_whole(id);
        }
        let Some(entry) = self.files.get_mut(id) else { return };
        let Some(whole) = &mut entry.whole else { return };
        if entry.outstanding > FEED / 2 {
            return;
        }
        let count = whole.pending.len().min(FEED - entry.outstanding);
        let first = whole.order;
        whole.order += count as u64;
        let needs: Vec<Need> = whole.pending.drain(..count).collect();
        for (need, order) in needs.into_iter().zip(first..) {
            self.need(now, Lookup { file: *id, need, urgency: Urgency::background(order) });
        }
    }

    /// Finds the next blocks of a background download and puts them in order.
    fn order_whole(&mut self, id: &ContentId) {
        let Some(entry) = self.files.get_mut(id) else { return };
        let Some(whole) = &mut entry.whole else { return };
        let file = &entry.file;
        let all = ByteRange::new(0, file.size());
        let gaps = file.object.present().missing(all);
        let from = gaps.first().map_or(0, |gap| gap.start);
        let users = &self.users;
        let layout = file.layout();
        let mut needs: Vec<Need> = layout
            .needs_iter(ByteRange::new(from, file.size()))
            .filter(|need| !file.object.has(need.range))
            .filter(|need| {
                users.get(&need.cid).is_none_or(|users| users.iter().all(|user| user.file != *id))
            })
            .take(ORDERED)
            .collect();
        drop(layout);
        // Nodes first: what lies below them has to be known before it can be ordered.
        needs.sort_by_key(|need| !plan::is_interior(need));
        let nodes = needs.partition_point(plan::is_interior);
        if needs.is_empty() {
            whole.exhausted = true;
            return;
        }
        if nodes > 0
            && whole.strategy != Strategy::Sequential
            && whole.strategy != Strategy::Streaming
        {
            needs.truncate(nodes);
            whole.pending.extend(needs);
            return;
        }
        if whole.strategy != Strategy::RarestFirst {
            let order = order(whole.strategy, &vec![0; needs.len()]);
            whole.pending.extend(order.into_iter().map(|at| needs[at]));
            return;
        }
        whole.asking = true;
        self.ask_holders(*id, needs);
    }

    fn ask_holders(&mut self, file: ContentId, needs: Vec<Need>) {
        if self.sources.is_empty() {
            // Nobody to ask yet: the first blocks start the search, the rest is ordered when there are sources.
            let needs = needs.into_iter().take(1).collect();
            self.ordered(&file, needs, &[]);
            return;
        }
        let ids: Vec<ContentId> = needs.iter().map(|need| need.cid).collect();
        let asked = self.sources.iter().map(|(id, source)| {
            let (id, answer) = (id.clone(), source.has(ids.clone()));
            async move { (id, answer.await) }
        });
        let answers = join_all(asked.collect::<Vec<_>>());
        self.jobs.push(async move { Done::Holders { file, needs, has: answers.await } }.boxed());
    }

    /// The sources said what they have.
    pub(super) fn ordered(
        &mut self,
        id: &ContentId,
        needs: Vec<Need>,
        has: &[(SourceId, Vec<bool>)],
    ) {
        let Some(entry) = self.files.get_mut(id) else { return };
        let Some(whole) = &mut entry.whole else { return };
        whole.asking = false;
        let holders: Vec<usize> = (0..needs.len())
            .map(|at| has.iter().filter(|(_, has)| has.get(at) == Some(&true)).count())
            .collect();
        whole.pending.extend(order(whole.strategy, &holders).into_iter().map(|at| needs[at]));
        entry.dirty = true;
    }
}
