//! Where a source that fetches by itself keeps what it was asked for: its queue, who waits for what, and what runs.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Reply, SourceError, SourceId, Want,
    queue::{Ask, Job, Queue},
};
use crate::content::{Block, ContentId};

/// The wants of one source.
#[derive(Debug)]
pub(super) struct Desk(Mutex<State>);

#[derive(Debug)]
struct State {
    queue: Queue,
    /// Who waits for what.
    routes: HashMap<ContentId, mpsc::UnboundedSender<Reply>>,
    /// Ends a request that nobody needs any more.
    running: HashMap<Job, CancellationToken>,
    most: usize,
}

impl Desk {
    /// Of a source that makes so many requests at a time.
    pub(super) fn new(most: usize) -> Self {
        let (queue, routes, running) = (Queue::new(most), HashMap::new(), HashMap::new());
        Self(Mutex::new(State { queue, routes, running, most }))
    }

    /// Takes wants in.
    pub(super) fn request(&self, wants: &[Want], replies: &mpsc::UnboundedSender<Reply>) {
        let mut state = self.state();
        state.routes.extend(wants.iter().map(|want| (want.id, replies.clone())));
        state.queue.add(wants);
    }

    /// Gives wants up, and ends the requests that nobody needs any more.
    pub(super) fn cancel(&self, ids: &[ContentId]) {
        let mut state = self.state();
        ids.iter().for_each(|id| drop(state.routes.remove(id)));
        for job in state.queue.cancel(ids) {
            if let Some(token) = state.running.get(&job) {
                token.cancel();
            }
        }
    }

    /// Gives all wants up.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.queue = Queue::new(state.most);
        state.running.values().for_each(CancellationToken::cancel);
    }

    /// The next request to make, and what ends it. `windows` as in [`Queue::next`].
    pub(super) fn next(&self, windows: bool) -> Option<(Job, Ask, CancellationToken)> {
        let mut state = self.state();
        let (job, ask) = state.queue.next(windows)?;
        let token = CancellationToken::new();
        state.running.insert(job, token.clone());
        Some((job, ask, token))
    }

    /// A request has ended. What was taken back and asked for again meanwhile is a want of its own by now; of a request
    /// that was given up nothing is left.
    pub(super) fn ended(&self, job: Job) {
        let mut state = self.state();
        state.queue.ended(job);
        state.running.remove(&job);
    }

    /// Hands on what became of a want, where somebody waits for it still.
    pub(super) fn answer(
        &self,
        job: Job,
        source: &SourceId,
        id: &ContentId,
        result: Result<Block, SourceError>,
    ) {
        let mut state = self.state();
        if !state.queue.is_left(job, id) {
            return;
        }
        state.queue.answered(job, id);
        let to = state.routes.remove(id);
        drop(state);
        if let Some(to) = to {
            // The download may have ended.
            let _ = to.send(Reply { source: source.clone(), id: *id, result });
        }
    }

    /// What a request has not brought yet, in file order.
    pub(super) fn left(&self, job: Job) -> Vec<Want> {
        self.state().queue.left(job)
    }

    /// Whether a request is to bring a block that is not here.
    pub(super) fn is_left(&self, job: Job, id: &ContentId) -> bool {
        self.state().queue.is_left(job, id)
    }

    /// Whether a request is to bring anything still.
    pub(super) fn is_any_left(&self, job: Job) -> bool {
        self.state().queue.is_any_left(job)
    }

    /// What a window has not brought is to be asked for block by block.
    pub(super) fn one_by_one(&self, job: Job) {
        self.state().queue.one_by_one(job);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
