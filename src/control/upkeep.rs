//! Pins, announcements, and care of the store.

use axum::{
    Json,
    extract::{Query, State},
    response::Response,
};
use futures::stream;
use tokio::sync::mpsc;

use super::{
    ErrorCode, Failure, GcDone, PinRequest, PinRow, ProvideRequest, Reference, Unpinned,
    VerifyLine,
    content::Target,
    server::{App, line_of, ndjson},
};
use crate::{
    content::ContentId,
    node::{Node, NodeError, Pin, Strategy},
};

/// Progress lines that may wait for a slow client before the verification waits too.
const PROGRESS_LINES: usize = 16;

/// A line for each so many bytes is enough for a smooth bar.
const PROGRESS_STEP: u64 = 8 << 20;

pub(super) async fn pins(State(app): State<App>) -> Result<Json<Vec<PinRow>>, Failure> {
    let row = |pin: Pin| PinRow { cid: pin.root, name: pin.name };
    Ok(Json(app.node.store().pins()?.into_iter().map(row).collect()))
}

/// Pins and waits until everything is here; a client that leaves does not end the fetching.
pub(super) async fn pin(
    State(app): State<App>,
    Json(request): Json<PinRequest>,
) -> Result<Json<PinRow>, Failure> {
    let root = target(&app.node, &request.id).await?;
    app.node.store().pin(Pin { root, name: request.name.clone() })?;
    let engine = app.node.engine().clone();
    let fetch = async move { engine.fetch(&root, Strategy::RarestFirst).await };
    joined(app.node.tasks().spawn("pin", fetch).await)??;
    Ok(Json(PinRow { cid: root, name: request.name }))
}

pub(super) async fn unpin(
    State(app): State<App>,
    Query(query): Query<Target>,
) -> Result<Json<Unpinned>, Failure> {
    let root = target(&app.node, &query.id).await?;
    Ok(Json(Unpinned { removed: app.node.store().unpin(&root)? }))
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

pub(super) async fn verify(State(app): State<App>) -> Response {
    let (to_client, lines) = mpsc::channel(PROGRESS_LINES);
    let store = app.node.store().clone();
    app.node.tasks().blocking("verify", move || {
        let mut told = 0;
        let report = store.verify(&mut |done, total| {
            if done.saturating_sub(told) >= PROGRESS_STEP {
                told = done;
                // A client that left does not end the verification: what is wrong is to be withdrawn.
                let _ = to_client.blocking_send(VerifyLine::Progress { done, total });
            }
        });
        let last = match report {
            Ok(report) => {
                VerifyLine::Report { blocks: report.blocks, bytes: report.bytes, bad: report.bad }
            }
            Err(error) => VerifyLine::Failed(error.into()),
        };
        let _ = to_client.blocking_send(last);
    });
    ndjson(stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        Some((line_of(&line), lines))
    }))
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
