//! One task per root that is being fetched: it owns the scheduler, plans what the readers need, asks the sources and
//! keeps what comes.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    DownloadError, Event,
    engine::{self, Command, Link, Shared},
    file::OpenFile,
    scheduler::{Action, Demand, Scheduler, Urgency},
};
use crate::{
    content::{Block, ByteRange, ContentId, Need},
    sources::{Found, Permanent, Reply, Source, SourceId, Want},
};

mod hopeless;
mod keep;
mod plan;
mod whole;

use keep::{Backlog, Done};
use plan::Lookup;
use whole::Whole;

/// A file that nobody has open any more is fetched on for this long: a player closes and opens again.
const GRACE: Duration = Duration::from_secs(5);
/// A node that nobody waits for any more is searched for this long.
const SEARCH_ON: Duration = Duration::from_secs(60);
/// The longest such search, where a longer time than that is configured for waits.
const LONGEST_SEARCH: Duration = Duration::from_secs(600);
/// An actor with nothing to do keeps its sources for this long, so that the next file of the root starts at once.
const LINGER: Duration = Duration::from_secs(60);
/// How often figures are taken and what nobody needs any more is looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// When the last search has ended this long ago and nothing came since, whoever asks for something starts another.
const SEARCH_AGAIN: Duration = Duration::from_secs(10);
/// How often what was learnt about the sources is kept; a crash costs a slower start only.
const REMEMBER: Duration = Duration::from_secs(30);
/// Replies that are taken at once.
const BATCH: usize = 64;

/// Callers that wait for one node.
#[derive(Debug)]
struct NodeWait {
    answers: Vec<oneshot::Sender<Result<Block, DownloadError>>>,
    asked: Duration,
}

/// A file that needs a block.
#[derive(Clone, Copy, Debug)]
struct User {
    file: ContentId,
    /// What it covers of this file where it was needed first. Each file has its own: one block may stand at another
    /// place in each.
    range: ByteRange,
    /// Its bytes are being written into this file.
    writing: bool,
    /// It was needed in another place too while it was under way. What came may have been placed before that place
    /// was known.
    elsewhere: bool,
}

/// A file below this root.
#[derive(Debug)]
struct Entry {
    file: Arc<OpenFile>,
    /// Since when nobody has it open.
    idle_since: Option<Duration>,
    /// Whether there is something to plan.
    dirty: bool,
    /// Blocks that are looked up, asked for or written.
    outstanding: usize,
    /// Length of its leaves: the longest that was seen.
    chunk_len: u64,
    whole: Option<Whole>,
    /// Present bytes and rate at the last look, and when that was.
    measured: (u64, u64, Duration),
}

/// The owner of one root's download.
pub(super) struct Actor {
    root: ContentId,
    shared: Arc<Shared>,
    link: Arc<Link>,
    commands: mpsc::UnboundedReceiver<Command>,
    scheduler: Scheduler,
    sources: HashMap<SourceId, Arc<dyn Source>>,
    /// News of the finder; none until something is needed that is not here.
    found: Option<mpsc::Receiver<Found>>,
    searching: bool,
    /// When everybody had been asked who has the root.
    searched: Option<Duration>,
    replies_in: mpsc::UnboundedSender<Reply>,
    replies: mpsc::UnboundedReceiver<Reply>,
    files: HashMap<ContentId, Entry>,
    /// Which files need a block that is being looked up, fetched or written.
    users: HashMap<ContentId, Vec<User>>,
    nodes: HashMap<ContentId, NodeWait>,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    to_look: Vec<Lookup>,
    looking: bool,
    to_write: Backlog,
    writing: bool,
    /// Bytes in flight, and in memory until they are written, that the engine counts for this root.
    accounted: u64,
    housekeeping: Duration,
    busy_at: Duration,
    remembered: Duration,
}

impl Actor {
    pub(super) fn new(
        root: ContentId,
        shared: Arc<Shared>,
        link: Arc<Link>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let (replies_in, replies) = mpsc::unbounded_channel();
        let now = shared.start().elapsed();
        Self {
            root,
            scheduler: Scheduler::new(Arc::clone(&shared.options)),
            shared,
            link,
            commands,
            sources: HashMap::new(),
            found: None,
            searching: false,
            searched: None,
            replies_in,
            replies,
            files: HashMap::new(),
            users: HashMap::new(),
            nodes: HashMap::new(),
            jobs: FuturesUnordered::new(),
            to_look: Vec::new(),
            looking: false,
            to_write: Backlog::default(),
            writing: false,
            accounted: 0,
            housekeeping: now,
            busy_at: now,
            remembered: now,
        }
    }

    fn now(&self) -> Duration {
        self.shared.start().elapsed()
    }

    pub(super) async fn run(mut self) {
        let cancelled = self.shared.tasks.cancelled();
        tokio::pin!(cancelled);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let timer = self.timer();
            tokio::select! {
                biased;
                () = &mut cancelled => break,
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.done(done),
                _ = self.replies.recv_many(&mut batch, BATCH) => {
                    batch.drain(..).for_each(|reply| self.reply(reply));
                }
                Some(command) = self.commands.recv() => self.command(command),
                news = news(&mut self.found) => self.news(news),
                () = tokio::time::sleep_until(timer) => {}
            }
            // Replies go first above; a stream of them must not keep a new reader waiting, nor a new source.
            while let Ok(command) = self.commands.try_recv() {
                self.command(command);
            }
            while let Some(Ok(found)) = self.found.as_mut().map(mpsc::Receiver::try_recv) {
                self.news(Some(found));
            }
            self.work();
            if self.may_end() && self.shared.retire(&self.root, &self.commands) {
                break;
            }
        }
        self.end();
    }

    fn timer(&self) -> Instant {
        let now = self.now();
        let housekeeping = self.housekeeping + HOUSEKEEPING;
        let next = self.scheduler.next_step(now).map_or(housekeeping, |at| at.min(housekeeping));
        self.shared.start() + next
    }

    fn command(&mut self, command: Command) {
        let now = self.now();
        if !matches!(command, Command::Idle(_)) {
            self.search_again(now);
        }
        match command {
            Command::Node { id, answer } => self.node(now, id, answer),
            Command::Look(file) => {
                file.nudged.store(false, Ordering::Release);
                self.entry(now, file).dirty = true;
            }
            Command::Whole { file, strategy, answer } => {
                let entry = self.entry(now, file);
                entry.whole = Some(Whole::new(strategy, entry.whole.take(), answer));
                entry.dirty = true;
            }
            Command::Idle(id) => {
                if let Some(entry) = self.files.get_mut(&id) {
                    entry.idle_since = entry.file.is_idle().then_some(now);
                }
            }
        }
    }

    fn entry(&mut self, now: Duration, file: Arc<OpenFile>) -> &mut Entry {
        let idle_since = file.is_idle().then_some(now);
        let entry = self.files.entry(file.id).or_insert_with(|| Entry {
            measured: (file.object.present().bytes(), 0, now),
            file,
            idle_since,
            dirty: true,
            outstanding: 0,
            chunk_len: 0,
            whole: None,
        });
        entry.idle_since = idle_since;
        entry
    }

    fn node(
        &mut self,
        now: Duration,
        id: ContentId,
        answer: oneshot::Sender<Result<Block, DownloadError>>,
    ) {
        let wait =
            self.nodes.entry(id).or_insert_with(|| NodeWait { answers: Vec::new(), asked: now });
        wait.asked = now;
        wait.answers.retain(|answer| !answer.is_closed());
        wait.answers.push(answer);
        let range = ByteRange::new(0, 0);
        let urgency = Urgency { deadline: now, order: 0 };
        self.want(now, id, Need { cid: id, range }, urgency);
    }

    /// Somebody asks for something: where those who were found give nothing, it is worth looking for others.
    fn search_again(&mut self, now: Duration) {
        let last = self.searched.map(|searched| searched.max(self.link.progress.last()));
        if last.is_some_and(|last| now >= last + SEARCH_AGAIN) {
            self.searched = None;
            self.shared.finder.ask_again(&self.root);
        }
    }

    /// Asks the network for a block.
    fn want(&mut self, now: Duration, file: ContentId, need: Need, urgency: Urgency) {
        if !self.searching {
            self.searching = true;
            self.found = Some(self.shared.finder.find(&self.root));
        }
        let want = Want { id: need.cid, root: self.root, file, range: need.range };
        let (len, index) = (plan::expected_len(&need), self.index(&file, need.range.start));
        self.scheduler.want(now, Demand { want, len, urgency, file, index });
    }

    /// Number of the chunk that starts at `start`, in a file of equal chunks.
    fn index(&self, file: &ContentId, start: u64) -> u64 {
        let len = self.files.get(file).map_or(0, |entry| entry.chunk_len);
        start.checked_div(len).unwrap_or(0)
    }

    fn news(&mut self, news: Option<Found>) {
        let now = self.now();
        match news {
            Some(Found::Source(source)) => {
                let id = source.id().clone();
                let known = self.shared.reputations.get(&id);
                self.scheduler.add_source(now, id.clone(), source.kind(), known);
                self.sources.insert(id, source);
                self.files.values_mut().for_each(|entry| entry.dirty |= entry.whole.is_some());
            }
            Some(Found::Gone(id)) => {
                self.sources.remove(&id);
                if let Some(reputation) = self.scheduler.remove_source(&id) {
                    self.shared.reputations.put(&id, reputation);
                }
            }
            Some(Found::Searched) => self.searched = Some(now),
            // The search ended by itself; the next want starts another.
            None => (self.found, self.searching) = (None, false),
        }
        self.link.sources.store(self.sources.len(), Ordering::Relaxed);
    }

    fn reply(&mut self, reply: Reply) {
        let now = self.now();
        match reply.result {
            Ok(block) if block.cid().hash() != reply.id.hash() => {
                let error = Permanent::BadHash.into();
                self.scheduler.failed(now, &reply.source, &reply.id, &error);
            }
            Ok(block) => {
                let len = block.data().len() as u64;
                self.link.progress.count(now, len);
                // A source may name the block by another version or codec; what was wanted is what the tree knows.
                let block = Block::from_store(reply.id, block.data().clone());
                let demand = self.scheduler.delivered(now, &reply.source, &reply.id, len);
                if let Some(demand) = demand {
                    self.keep(now, &demand, &block);
                }
            }
            Err(error) => self.scheduler.failed(now, &reply.source, &reply.id, &error),
        }
    }

    /// Everything that follows from what has just happened.
    fn work(&mut self) {
        let now = self.now();
        if now >= self.housekeeping + HOUSEKEEPING {
            self.keep_house(now);
        }
        self.plan(now);
        self.start_jobs();
        let allowance = self.shared.allowance(self.accounted);
        for action in self.scheduler.step(now, allowance) {
            self.act(action);
        }
        self.end_hopeless(now);
        // Where the disk is slower than the network, blocks that wait for it take the room of further ones.
        let held = self.scheduler.in_flight() + self.to_write.bytes();
        self.shared.account(self.accounted, held);
        self.accounted = held;
        self.link.held.store(held, Ordering::Relaxed);
        self.link.retries.store(self.scheduler.retries(), Ordering::Relaxed);
        for event in self.scheduler.take_events() {
            self.emit(event);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Request { source, wants } => {
                if let Some(source) = self.sources.get(&source) {
                    source.request(&wants, &self.replies_in);
                }
            }
            Action::Cancel { source, ids } => {
                if let Some(source) = self.sources.get(&source) {
                    source.cancel(&ids);
                }
            }
            Action::Ban { source, for_time } => {
                tracing::warn!("{source} sent wrong bytes and is shut out");
                if let Some(source) = self.sources.get(&source) {
                    source.ban(for_time);
                }
            }
            Action::Fail { id } => self.give_up(&id),
        }
    }

    /// Nobody gave a block for too long.
    fn give_up(&mut self, id: &ContentId) {
        if let Some(wait) = self.nodes.remove(id) {
            for answer in wait.answers {
                // The caller may be gone.
                let _ = answer.send(Err(DownloadError::NotFound(*id)));
            }
        }
        for user in self.users.remove(id).unwrap_or_default() {
            let Some(entry) = self.files.get_mut(&user.file) else { continue };
            entry.outstanding = entry.outstanding.saturating_sub(1);
            let error = DownloadError::Stalled { id: user.file, range: user.range };
            entry.file.fail(user.range, &error);
            // The next read asks for it again; so does what needs it in another place now.
            entry.file.readers().replan();
            entry.dirty |= user.elsewhere;
            entry.stop_whole(&error);
        }
    }

    fn emit(&self, event: Event) {
        // Nobody listens: nothing is lost.
        let _ = self.shared.events.send(event);
    }

    fn keep_house(&mut self, now: Duration) {
        self.housekeeping = now;
        engine::lock(&self.link.waits).prune(now);
        // A caller that walks comes to the last of the nodes that were sought for it when the first wait is over.
        let search_on = SEARCH_ON.max(self.shared.options.lookup_timeout.min(LONGEST_SEARCH));
        self.nodes.retain(|id, wait| {
            wait.answers.retain(|answer| !answer.is_closed());
            let keep = !wait.answers.is_empty() || now < wait.asked + search_on;
            if !keep && !self.users.contains_key(id) {
                self.scheduler.forget(id);
            }
            keep
        });
        let idle: Vec<ContentId> = self
            .files
            .iter()
            .filter(|(_, e)| e.whole.is_none() && e.file.is_idle())
            .filter(|(_, e)| e.idle_since.is_none_or(|since| now >= since + GRACE))
            .map(|(id, _)| *id)
            .collect();
        idle.iter().for_each(|id| self.close(id));
        if !self.files.is_empty() || !self.nodes.is_empty() {
            self.busy_at = now;
        }
        self.publish_transfers(now);
        if now >= self.remembered + REMEMBER {
            self.remembered = now;
            self.remember();
        }
    }

    /// Ends the fetching of a file.
    fn close(&mut self, id: &ContentId) {
        self.files.remove(id);
        let scheduler = &mut self.scheduler;
        let nodes = &self.nodes;
        self.users.retain(|block, users| {
            users.retain(|user| user.file != *id);
            if users.is_empty() && !nodes.contains_key(block) {
                scheduler.forget(block);
            }
            !users.is_empty()
        });
        self.to_look.retain(|lookup| lookup.file != *id);
    }

    fn may_end(&self) -> bool {
        self.files.is_empty()
            && self.nodes.is_empty()
            && self.jobs.is_empty()
            && self.now() >= self.busy_at + LINGER
    }

    /// Keeps what was learnt about the sources.
    fn remember(&self) {
        for (id, reputation) in self.scheduler.reputations() {
            self.shared.reputations.put(id, reputation);
        }
    }

    fn end(&mut self) {
        self.shared.account(self.accounted, 0);
        self.remember();
        for entry in self.files.values() {
            entry.file.fail((0..u64::MAX).into(), &DownloadError::Closed);
        }
    }
}

async fn news(found: &mut Option<mpsc::Receiver<Found>>) -> Option<Found> {
    match found {
        Some(found) => found.recv().await,
        None => std::future::pending().await,
    }
}
