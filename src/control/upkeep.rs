//! Pins, announcements, and care of the store.

use std::ops::ControlFlow;

use axum::{Json, extract::State, response::Response};
use tokio_util::sync::CancellationToken;

use super::{
    ErrorCode, Failure, GcDone, PinRequest, PinRow, ProvideRequest, Reference, Unpinned,
    VerifyLine,
    content::Target,
    server::{App, Asked},
    told::{STEP, Steps, told},
};
use crate::{
    content::ContentId,
    node::{DownloadError, Node, NodeError, PinState, Place, Selection},
};

pub(super) async fn pins(State(app): State<App>) -> Result<Json<Vec<PinRow>>, Failure> {
    Ok(Json(rows(&app.node, |_| true).await?))
}

/// The pins that are wanted. What of a torrent is here is looked up on the disk.
async fn rows(
    node: &Node,
    wanted: impl Fn(&PinState) -> bool + Send + 'static,
) -> Result<Vec<PinRow>, Failure> {
    let inside = node.clone();
    let pins = joined(node.tasks().blocking("list pins", move || inside.all_pins()).await)??;
    Ok(pins.into_iter().filter(wanted).map(PinRow::from).collect())
}

/// Pins and waits until everything is here; a client that leaves does not end the fetching.
pub(super) async fn pin(
    State(app): State<App>,
    Asked(request): Asked<PinRequest>,
) -> Result<Json<PinRow>, Failure> {
    let reference = Reference::of(request.id.as_encoded_bytes())?;
    let place = place(&app.node, &reference).await?;
    // One that is asked for again to see it complete keeps the name that it has.
    let name = match request.name.is_empty() {
        true => name_of(&app.node, place).await?.unwrap_or_default(),
        false => request.name,
    };
    pinned(&app.node, place, name, reference.selected()).await?;
    let row = rows(&app.node, move |pin| pin.place == place).await?.pop();
    row.map(Json).ok_or_else(|| Failure::invalid("it was unpinned meanwhile"))
}

/// The name under which something is pinned.
pub(super) async fn name_of(node: &Node, place: Place) -> Result<Option<String>, Failure> {
    let row = rows(node, move |pin| pin.place == place).await?.pop();
    Ok(row.map(|row| row.name))
}

/// Pins and fetches in a task of its own, which ends with the node.
pub(super) async fn pinned(
    node: &Node,
    place: Place,
    name: String,
    only: Option<Selection>,
) -> Result<(), Failure> {
    let (inside, cancelled) = (node.clone(), node.tasks().cancelled());
    let fetch = async move {
        tokio::select! {
            fetched = inside.pin_to_end(place, name, only) => fetched,
            () = cancelled => Err(DownloadError::Closed.into()),
        }
    };
    Ok(joined(node.tasks().spawn("pin", fetch).await)??)
}

pub(super) async fn unpin(
    State(app): State<App>,
    Target(reference): Target,
) -> Result<Json<Unpinned>, Failure> {
    let place = place(&app.node, &reference).await?;
    Ok(Json(Unpinned { removed: app.node.protocol(&place).unpin(&place).await? }))
}

/// Where a reference leads; without a path nobody is asked. The root of a content's path is the content itself.
async fn place(node: &Node, reference: &Reference) -> Result<Place, Failure> {
    if reference.path.is_empty() {
        return Ok(node.place(&reference.root)?);
    }
    Ok(match node.walk_to(&reference.root, &reference.path).await?.0 {
        Place::Content { id, .. } => Place::Content { root: id, id },
        place @ Place::Torrent { .. } => place,
    })
}

pub(super) async fn provide(
    State(app): State<App>,
    Asked(request): Asked<ProvideRequest>,
) -> Result<Json<()>, Failure> {
    let root = target(&app.node, &Reference::of(request.id.as_encoded_bytes())?).await?;
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

/// Ends with the client: what was found wrong by then is withdrawn already.
pub(super) async fn verify(State(app): State<App>) -> Response {
    told(|news| async move {
        let asked = CancellationToken::new();
        let _until_dropped = asked.clone().drop_guard();
        let (store, ending) = (app.node.store().clone(), app.node.tasks().token().clone());
        let ended = ending.clone();
        let work = move || {
            let steps = Steps::of(STEP);
            store.verify_while(&mut |done, total| {
                if steps.pick(done, false) {
                    news.tell(VerifyLine::Progress { done, total });
                }
                match asked.is_cancelled() || ended.is_cancelled() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })
        };
        match joined(app.node.tasks().blocking("verify", work).await) {
            Ok(Ok(report)) => {
                VerifyLine::Report { blocks: report.blocks, bytes: report.bytes, bad: report.bad }
            }
            Ok(Err(_)) if ending.is_cancelled() => {
                let message = "the daemon ended before the verification did".to_owned();
                VerifyLine::Failed(Failure { code: ErrorCode::Refused, message })
            }
            Ok(Err(error)) => VerifyLine::Failed(error.into()),
            Err(failure) => VerifyLine::Failed(failure),
        }
    })
}

/// The id that a reference leads to; without a path nobody is asked.
async fn target(node: &Node, reference: &Reference) -> Result<ContentId, Failure> {
    let root = reference.content()?;
    if reference.path.is_empty() {
        return Ok(root);
    }
    let resolved = node.walk(&root, &reference.path).await;
    Ok(resolved.map_err(|error: NodeError| Failure::from(error))?.id)
}

fn joined<T>(ended: Result<T, tokio::task::JoinError>) -> Result<T, Failure> {
    ended.map_err(|error| Failure { code: ErrorCode::Internal, message: error.to_string() })
}
