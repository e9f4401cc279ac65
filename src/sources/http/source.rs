//! A gateway as a source of the blocks of one root.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::mpsc;

use super::{
    gateway::{Gateway, Rest, lie},
    window::Takes,
};
use crate::{
    content::{Block, BlockError, ContentId, Multihash},
    sources::{
        Permanent, Reply, Source, SourceError, SourceId, SourceKind, Want,
        desk::Desk,
        queue::{Ask, Job},
    },
    tasks::Tasks,
};

/// A gateway that is asked for blocks of one root.
#[derive(Debug)]
pub(super) struct HttpSource {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    gateway: Arc<Gateway>,
    tasks: Tasks,
    desk: Desk,
}

impl HttpSource {
    pub(super) fn new(gateway: Arc<Gateway>, tasks: &Tasks) -> Self {
        let desk = Desk::new(gateway.most());
        let inner = Inner { gateway, tasks: tasks.clone(), desk };
        Self { inner: Arc::new(inner) }
    }
}

impl Source for HttpSource {
    fn id(&self) -> &SourceId {
        self.inner.gateway.id()
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Gateway
    }

    fn request(&self, wants: &[Want], replies: &mpsc::UnboundedSender<Reply>) {
        self.inner.desk.request(wants, replies);
        self.inner.start();
    }

    fn cancel(&self, ids: &[ContentId]) {
        self.inner.desk.cancel(ids);
        self.inner.start();
    }

    /// A gateway that does not have a block may fetch it: asking says nothing, and costs as much as fetching.
    fn has(&self, ids: Vec<ContentId>) -> BoxFuture<'static, Vec<bool>> {
        async move { vec![false; ids.len()] }.boxed()
    }

    fn ban(&self, for_time: Duration) {
        self.inner.gateway.ban(for_time);
    }
}

impl Drop for HttpSource {
    fn drop(&mut self) {
        self.inner.desk.close();
    }
}

impl Inner {
    /// Makes the requests that are to be made now.
    fn start(self: &Arc<Self>) {
        while let Some((job, ask, token)) = self.desk.next(self.gateway.gives_windows()) {
            let (inner, ended) = (self.clone(), self.tasks.cancelled());
            self.tasks.spawn("http-request", async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = ended => return,
                    () = inner.run(job, ask) => {}
                }
                inner.desk.ended(job);
                inner.start();
            });
        }
    }

    async fn run(self: &Arc<Self>, job: Job, ask: Ask) {
        let slot = match self.gateway.slot().await {
            Ok(slot) => slot,
            Err(error) => return self.refuse(job, &error),
        };
        match ask {
            Ask::Block(id) => {
                let result = self.gateway.block(&id).await;
                self.answer(job, &id, result);
            }
            Ask::Window { file, range, wants } => {
                let ids = wants.iter().map(|want| (*want.id.hash(), want.id)).collect();
                let mut taker = Taker { inner: self, job, ids };
                match self.gateway.window(&file, range, wants.len(), &mut taker).await {
                    Rest::OneByOne => self.desk.one_by_one(job),
                    Rest::FirstTells => self.ask_first(job).await,
                    Rest::Refused(error) => self.refuse(job, &error),
                }
            }
        }
        drop(slot);
    }

    /// A window was answered with "not found": so is all of it where its first block is.
    async fn ask_first(&self, job: Job) {
        let Some(first) = self.desk.left(job).first().copied() else { return };
        let result = self.gateway.block(&first.id).await;
        let failed = result.as_ref().err().cloned();
        self.answer(job, &first.id, result);
        match failed {
            Some(error) => self.refuse(job, &error),
            None => {
                self.gateway.gives_no_windows();
                self.desk.one_by_one(job);
            }
        }
    }

    fn answer(&self, job: Job, id: &ContentId, result: Result<Block, SourceError>) {
        self.desk.answer(job, self.gateway.id(), id, result);
    }

    /// Everything that a request has not brought fails in the same way.
    fn refuse(&self, job: Job, error: &SourceError) {
        let left = self.desk.left(job);
        for want in left {
            self.answer(job, &want.id, Err(error.clone()));
        }
    }
}

/// Takes the blocks of a window.
struct Taker<'a> {
    inner: &'a Inner,
    job: Job,
    ids: HashMap<Multihash, ContentId>,
}

impl Takes for Taker<'_> {
    fn wanted(&self, hash: &Multihash) -> Option<ContentId> {
        let id = self.ids.get(hash)?;
        self.inner.desk.is_left(self.job, id).then_some(*id)
    }

    fn take(&mut self, id: &ContentId, block: Result<Block, BlockError>) {
        let result = block.map_err(|error| lie(&error));
        let lied = matches!(&result, Err(SourceError::Permanent(Permanent::BadHash)));
        self.inner.answer(self.job, id, result);
        if lied {
            // Nothing more is taken from it; what is left goes to others with the ban.
            self.inner.refuse(self.job, &Permanent::BadHash.into());
        }
    }

    fn is_waiting(&self) -> bool {
        self.inner.desk.is_any_left(self.job)
    }
}
