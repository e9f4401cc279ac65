//! One gateway, whichever roots it is asked about: where it is, what it can, and whether it wants to be left alone.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::Url;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::{
    answer::{failure, refusal},
    client::{Answer, Http, Trust},
    window::{self, End, Takes},
};
use crate::{
    content::{Block, BlockError, ByteRange, ContentId, MAX_BLOCK_LEN},
    sources::{Permanent, SourceError, SourceId, Transient},
};

/// One block.
const RAW: &str = "application/vnd.ipld.raw";
/// Many blocks, in the order of a walk through the file.
const CAR: &str = "application/vnd.ipld.car";
/// A gateway that gave no CAR is asked for one again after this long: it may be another program by then.
const NO_CAR: Duration = Duration::from_secs(3600);

/// A gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    id: SourceId,
    base: Url,
    trust: Trust,
    http: Http,
    /// Requests that may run at a time, over all roots. One until it has given an answer: whoever asks to wait is asked
    /// once, and not as often as there are places.
    slots: Semaphore,
    most: usize,
    state: Mutex<State>,
}

/// A place among the requests of a gateway.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    gateway: &'a Gateway,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        // At the end of the first answer, not at its beginning: the next request then finds a free connection.
        self.gateway.open_up();
    }
}

#[derive(Debug, Default)]
struct State {
    /// It has answered what it was asked.
    answered: bool,
    /// All its places may be taken.
    open: bool,
    no_car: Option<Instant>,
    /// It asked to be left alone until then.
    resting: Option<Instant>,
    banned: Option<Instant>,
}

/// How a window ended, for what was not given of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// It is to be asked for block by block.
    OneByOne,
    /// The gateway does not have the root, or knows no windows: the first block by itself tells which.
    FirstTells,
    /// The gateway does not give it.
    Refused(SourceError),
}

impl Gateway {
    pub(super) fn new(base: Url, trust: Trust, http: Http, requests: usize) -> Self {
        let name = base.as_str().trim_end_matches('/');
        Self {
            id: SourceId(name.into()),
            trust,
            http,
            slots: Semaphore::new(1),
            most: requests.max(1),
            state: Mutex::default(),
            base,
        }
    }

    /// Its base URL, under which its reputation is kept.
    pub(super) fn id(&self) -> &SourceId {
        &self.id
    }

    /// Requests that may run at a time.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shuts it out.
    pub(super) fn ban(&self, for_time: Duration) {
        self.state().banned = Some(Instant::now() + for_time);
    }

    /// Whether it sent wrong bytes not long ago.
    pub(super) fn is_banned(&self) -> bool {
        is_ahead(self.state().banned)
    }

    /// Whether it gives windows, as far as is known.
    pub(super) fn gives_windows(&self) -> bool {
        !is_ahead(self.state().no_car)
    }

    /// Notes that it gives no windows.
    pub(super) fn gives_no_windows(&self) {
        tracing::debug!("{}: no CAR, blocks are asked for one by one", self.id);
        self.state().no_car = Some(Instant::now() + NO_CAR);
    }

    /// Waits for a place among its requests.
    pub(super) async fn slot(&self) -> Result<Slot<'_>, SourceError> {
        let permit = self.slots.acquire().await.map_err(|_| Transient::Reset)?;
        let state = self.state();
        if is_ahead(state.banned) {
            return Err(Permanent::Rejected("it sent wrong bytes".to_owned()).into());
        }
        match state.resting.and_then(|until| until.checked_duration_since(Instant::now())) {
            Some(left) if !left.is_zero() => Err(Transient::RateLimited(left).into()),
            _ => Ok(Slot { gateway: self, _permit: permit }),
        }
    }

    fn open_up(&self) {
        let mut state = self.state();
        if state.answered && !std::mem::replace(&mut state.open, true) {
            self.slots.add_permits(self.most - 1);
        }
    }

    /// Notes what an error says about the gateway as such.
    fn noted(&self, error: SourceError) -> SourceError {
        if let SourceError::Transient(Transient::RateLimited(wait)) = error {
            self.state().resting = Some(Instant::now() + wait);
        }
        error
    }

    async fn get(&self, id: &ContentId, query: &str, accept: &str) -> Result<Answer, SourceError> {
        let mut url = self.base.clone();
        let path = url.path().trim_end_matches('/').to_owned();
        // Version 0 is spelt in a way that hosts of gateways, which know no capitals, cannot carry.
        url.set_path(&format!("{path}/ipfs/{}", id.to_v1()));
        url.set_query(Some(query));
        let answer = self.http.get(url, self.trust, accept).await.map_err(failure)?;
        if answer.status() < 500 && answer.status() != 429 {
            self.state().answered = true;
        }
        Ok(answer)
    }

    /// Asks for one block.
    pub(super) async fn block(&self, id: &ContentId) -> Result<Block, SourceError> {
        let mut answer = self.get(id, "format=raw", RAW).await?;
        if answer.status() != 200 {
            return Err(self.noted(refusal(&answer)));
        }
        if answer.is_encoded() {
            return Err(Permanent::Rejected("it compresses unasked".to_owned()).into());
        }
        let body = answer.body(MAX_BLOCK_LEN).await.map_err(failure)?;
        let block = body.and_then(|body| Block::verify(*id, body).ok());
        block.ok_or_else(|| {
            // A portal in between, or a gateway that knows no raw blocks: broken, but no lie about a block.
            if answer.is_of_type("text/html") {
                return Permanent::Rejected("it answers with a web page".to_owned()).into();
            }
            Permanent::BadHash.into()
        })
    }

    /// Asks for blocks that follow each other: those that hold `range` of `file`, of which so many are wanted.
    pub(super) async fn window(
        &self,
        file: &ContentId,
        range: ByteRange,
        blocks: usize,
        to: &mut impl Takes,
    ) -> Rest {
        let last = range.end.saturating_sub(1);
        let query =
            format!("format=car&dag-scope=entity&entity-bytes={}:{last}&car-dups=n", range.start);
        let mut answer = match self.get(file, &query, CAR).await {
            Ok(answer) => answer,
            Err(error) => return Rest::Refused(error),
        };
        match answer.status() {
            200 => {}
            404 | 410 => return Rest::FirstTells,
            // It knows no CAR, or none of a part.
            400 | 405 | 406 | 415 | 501 => {
                self.gives_no_windows();
                return Rest::OneByOne;
            }
            _ => return Rest::Refused(self.noted(refusal(&answer))),
        }
        if answer.is_encoded() || answer.is_of_type("text/html") || answer.is_of_type(RAW) {
            self.gives_no_windows();
            return Rest::OneByOne;
        }
        match window::read(&mut answer, window::limit(range.len(), blocks), to).await {
            End::NotACar => {
                self.gives_no_windows();
                Rest::OneByOne
            }
            End::Broken(error) => {
                tracing::debug!("{}: a window broke off: {error}", self.id);
                Rest::OneByOne
            }
            End::Whole | End::Spoilt => Rest::OneByOne,
        }
    }
}

fn is_ahead(until: Option<Instant>) -> bool {
    until.is_some_and(|until| until > Instant::now())
}

/// What the scheduler makes of a block of a window that is not what it says.
pub(super) fn lie(error: &BlockError) -> SourceError {
    match error {
        // No fault of the gateway's: nobody can prove that block.
        BlockError::Unsupported { .. } => Permanent::NotFound.into(),
        BlockError::WrongHash(_) | BlockError::TooLarge { .. } => Permanent::BadHash.into(),
    }
}
