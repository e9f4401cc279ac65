//! Answers to long work: how far it is, one JSON object per line, and in the last line what came of it.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::response::Response;
use futures::{FutureExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;

use super::server::{line_of, ndjson};

/// News that may wait for a slow client.
const NEWS: usize = 16;

/// Bytes between two lines of progress: enough of them for a smooth bar.
pub(super) const STEP: u64 = 8 << 20;

/// Picks those of many reports that become a line; several threads may report.
#[derive(Debug)]
pub(super) struct Steps {
    step: u64,
    told: AtomicU64,
}

impl Steps {
    pub(super) fn of(step: u64) -> Self {
        Self { step, told: AtomicU64::new(0) }
    }

    /// Whether a step was made since the last report that was picked. One that `counts` is picked anyway.
    pub(super) fn pick(&self, done: u64, counts: bool) -> bool {
        let told = self.told.load(Ordering::Relaxed);
        let picked = counts || done.saturating_sub(told) >= self.step;
        if picked {
            self.told.store(done, Ordering::Relaxed);
        }
        picked
    }
}

/// Where work tells how far it is. A client that does not read on misses news and holds nothing up.
#[derive(Clone, Debug)]
pub(super) struct News<L>(mpsc::Sender<L>);

impl<L> News<L> {
    pub(super) fn tell(&self, line: L) {
        // One that finds no room is followed by newer ones.
        let _ = self.0.try_send(line);
    }

    /// Tells what must not be missed: waits for a client that is slow. One that has left ends the work.
    pub(super) async fn insist(&self, line: L) {
        let _ = self.0.send(line).await;
    }
}

/// An answer on its way.
struct Telling<L, F> {
    lines: mpsc::Receiver<L>,
    work: Option<F>,
    /// Result of the work, while lines from before are still to go.
    last: Option<L>,
}

impl<L: Serialize, F: Future<Output = L> + Unpin> Telling<L, F> {
    async fn next(&mut self) -> Option<String> {
        if let Some(work) = &mut self.work {
            tokio::select! {
                biased;
                Some(line) = self.lines.recv() => return Some(line_of(&line)),
                last = work => self.last = Some(last),
            }
            self.work = None;
        }
        // All that was told is there by now.
        let line = match self.lines.try_recv() {
            Ok(line) => line,
            Err(_) => self.last.take()?,
        };
        Some(line_of(&line))
    }
}

/// Answers with what `work` tells and, last, with what it gives. It is dropped when the client leaves.
pub(super) fn told<L, F>(work: impl FnOnce(News<L>) -> F) -> Response
where
    L: Serialize + Send + 'static,
    F: Future<Output = L> + Send + 'static,
{
    let (news, lines) = mpsc::channel(NEWS);
    let telling = Telling { lines, work: Some(work(News(news)).boxed()), last: None };
    ndjson(stream::unfold(telling, |mut telling| async {
        let line = telling.next().await?;
        Some((line, telling))
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{pin::pin, sync::Mutex};

    use axum::{Router, routing::post};
    use futures::StreamExt;
    use tokio::{net::UnixListener, sync::oneshot};

    use super::*;
    use crate::{
        control::{Client, Method},
        tasks::Tasks,
    };

    #[test]
    fn a_line_is_picked_for_each_step_and_for_what_counts() {
        let steps = Steps::of(10);
        let picked = [9, 10, 19, 20, 35, 44].map(|done| steps.pick(done, false));
        assert_eq!(picked, [false, true, false, true, true, false]);
        assert!(steps.pick(44, true) && !steps.pick(53, false) && steps.pick(54, false));
    }

    #[tokio::test]
    async fn lines_that_matter_all_come_before_the_last() {
        let (news, lines) = mpsc::channel(2);
        let news = News(news);
        let work = async move {
            for number in 0..9 {
                news.insist(number).await;
            }
            news.tell(9);
            10
        };
        let mut telling = Telling { lines, work: Some(Box::pin(work)), last: None };
        let mut all = Vec::new();
        while let Some(line) = telling.next().await {
            all.push(line.trim().parse::<u32>().unwrap());
        }
        assert_eq!(all, (0..=10).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn work_is_dropped_when_the_client_leaves_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
        let (dropped, mut gone) = oneshot::channel::<()>();
        let dropped = Mutex::new(Some(dropped));
        let endless = async move || {
            let held = dropped.lock().unwrap().take();
            told(|news| async move {
                news.tell("begun");
                std::future::pending::<()>().await;
                drop(held);
                "never"
            })
        };
        let endless = std::sync::Arc::new(endless);
        let app = Router::new().route("/work", post(move || async move { endless().await }));
        let mut served = pin!(axum::serve(listener, app).into_future());
        let client = Client::new(dir.path(), Tasks::new());
        let asking = async {
            let mut lines = client.lines::<String>(Method::POST, "/work").await.unwrap();
            assert_eq!(lines.next().await.unwrap().unwrap(), "begun");
            assert_eq!(gone.try_recv(), Err(oneshot::error::TryRecvError::Empty));
            drop(lines);
            gone.await.unwrap_err();
        };
        tokio::select! {
            () = asking => {}
            _ = &mut served => unreachable!(),
        }
    }
}
