//! Pins, announcements, and care of the store.

use axum::{
    Json,
    extract::{Query, State},
    response::Response,
};
use futures::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};

use super::{
    ErrorCode, Failure, GcDone, PinRequest, PinRow, ProvideRequest, Reference, Unpinned,
    VerifyLine,
    content::Target,
    server::{App, line_of, ndjson},
};
use crate::{
    content::ContentId,
    node::{DownloadError, Node, NodeError, Pin},
    tasks,
};

/// Progress lines that may wait for a slow client.
const PROGRESS_LINES: usize = 16;

/// A line for each so many bytes is enough for a smooth bar.
const PROGRESS_STEP: u64 = 8 << 20;

pub(super) async fn pins(State(app): State<App>) -> Result<Json<Vec<PinRow>>, Failure> {
    Ok(Json(app.node.pins()?.into_iter().map(PinRow::from).collect()))
}

/// Pins and waits until everything is here; a client that leaves does not end the fetching.
pub(super) async fn pin(
    State(app): State<App>,
    Json(request): Json<PinRequest>,
) -> Result<Json<PinRow>, Failure> {
    let root = target(&app.node, &request.id).await?;
    let pin = Pin { root, name: request.name };
    pinned(&app.node, pin.clone()).await?;
    Ok(Json(PinRow { cid: root, name: pin.name, complete: true }))
}

/// Pins and fetches in a task of its own, which ends with the node.
pub(super) async fn pinned(node: &Node, pin: Pin) -> Result<(), Failure> {
    let (inside, cancelled) = (node.clone(), node.tasks().cancelled());
    let fetch = async move {
        tokio::select! {
            fetched = inside.pin(pin) => fetched,
            () = cancelled => Err(DownloadError::Closed.into()),
        }
    };
    Ok(joined(node.tasks().spawn("pin", fetch).await)??)
}

pub(super) async fn unpin(
    State(app): State<App>,
    Query(query): Query<Target>,
) -> Result<Json<Unpinned>, Failure> {
    let root = target(&app.node, &query.id).await?;
    Ok(Json(Unpinned { removed: app.node.unpin(&root)? }))
}

pub(super) async fn provide(
    State(app): State<App>,
    Json(request): Json<ProvideRequest>,
) -> Result<Json<()>, Failure> {
    let root = target(&app.node, &request.id).await?;
    if app.node.store().block_len(&root)?.is_none() {
        let message = format!("{root} is not here; `chiral pin add {root}` fetches it first");
        return Err(Failure { code: ErrorCode::Refused, message });
    }
    app.node.net().announce(&root)?;
    Ok(Json(()))
}

pub(super) async fn gc(State(app): State<App>) -> Result<Json<GcDone>, Failure> {
    let store = app.node.store().clone();
    let report = joined(app.node.tasks().blocking("gc", move || store.gc()).await)??;
    Ok(Json(GcDone { objects: report.objects, nodes: report.nodes, bytes: report.bytes }))
}

/// Verifies on a thread that nobody waits for: it ends when the store is closed under it. A client that does not read
/// on misses news of the progress and holds nothing up; one that leaves does not end the verification, since what is
/// wrong is to be withdrawn.
pub(super) async fn verify(State(app): State<App>) -> Result<Response, Failure> {
    let (to_client, lines) = mpsc::channel(PROGRESS_LINES);
    let (finish, finished) = oneshot::channel();
    let store = app.node.store().clone();
    let work = move || {
        let mut told = 0;
        let report = store.verify(&mut |done, total| {
            if done.saturating_sub(told) >= PROGRESS_STEP {
                told = done;
                let _ = to_client.try_send(VerifyLine::Progress { done, total });
            }
        });
        // The progress ends before the last line.
        drop(to_client);
        let _ = finish.send(match report {
            Ok(report) => {
                VerifyLine::Report { blocks: report.blocks, bytes: report.bytes, bad: report.bad }
            }
            Err(error) => VerifyLine::Failed(error.into()),
        });
    };
    tasks::outliving("verify", work)
        .map_err(|error| Failure { code: ErrorCode::Internal, message: error.to_string() })?;
    let progress = stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        Some((line_of(&line), lines))
    });
    let last = stream::once(finished).filter_map(|last| async { last.ok().map(|l| line_of(&l)) });
    let cancelled = Box::pin(app.node.tasks().cancelled());
    Ok(ndjson(progress.chain(last).take_until(cancelled)))
}

/// The id that `ID[/path]` leads to; without a path nobody is asked.
async fn target(node: &Node, text: &str) -> Result<ContentId, Failure> {
    let reference: Reference = text.parse()?;
    if reference.path.is_empty() {
        return Ok(reference.root);
    }
    let resolved = node.walk(&reference.root, &reference.path).await;
    Ok(resolved.map_err(|error: NodeError| Failure::from(error))?.id)
}

fn joined<T>(ended: Result<T, tokio::task::JoinError>) -> Result<T, Failure> {
    ended.map_err(|error| Failure { code: ErrorCode::Internal, message: error.to_string() })
}
