//! Archives over the control socket: a path or bytes in, bytes out.

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{
    ErrorCode, Failure, ImportLine, ImportRequest,
    add::Position,
    content::{Target, Trailing, body_of},
    server::{App, line_of, ndjson},
    told::Steps,
};
use crate::node::{CarFailure, CarInput};

/// Progress lines that may wait for a slow client.
const PROGRESS_LINES: usize = 16;

/// A line for each so many bytes is enough for a smooth bar.
const PROGRESS_STEP: u64 = 4 << 20;

/// `?pin=…`.
#[derive(Deserialize)]
pub(super) struct Streamed {
    pin: bool,
}

/// `?offline=…`, behind the id.
#[derive(Deserialize)]
pub(super) struct Exported {
    #[serde(default)]
    offline: bool,
}

pub(super) async fn import(
    State(app): State<App>,
    Json(request): Json<ImportRequest>,
) -> Result<Response, Failure> {
    let path = request.path;
    if !path.is_absolute() {
        return Err(Failure::invalid(format!("{}: the path is not absolute", path.display())));
    }
    // A thread of the daemon that reads its own mount may wait for itself.
    if let Position::Under(_) = Position::of(&path, app.node.mountpoint().as_deref()) {
        let shown = path.display();
        return Err(Failure::invalid(format!(
            "{shown} lies in the mount of this daemon; pipe it in: `chiral store import - < {shown}`"
        )));
    }
    Ok(imported(&app, CarInput::Path(path), request.pin))
}

/// The bytes come first and are written to a file; then the import begins, and tells of itself.
pub(super) async fn import_stream(
    State(app): State<App>,
    Query(query): Query<Streamed>,
    body: Body,
) -> Result<Response, Failure> {
    let mut spool = app.node.spool()?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let broken = |error| Failure::invalid(format!("the archive broke off: {error}"));
        spool.write(piece.map_err(broken)?).await?;
    }
    Ok(imported(&app, CarInput::Spool(spool), query.pin))
}

/// Imports in a task of its own, which ends when the client goes: nobody would learn how it ended.
fn imported(app: &App, input: CarInput, pin: bool) -> Response {
    let (to_client, lines) = mpsc::channel(PROGRESS_LINES);
    let progress = to_client.clone();
    let steps = Steps::of(PROGRESS_STEP);
    let watch = move |done: u64, total: u64| {
        if steps.pick(done, false) {
            // A client that does not read on misses news and holds nothing up.
            let _ = progress.try_send(ImportLine::Progress { done, total });
        }
        !progress.is_closed()
    };
    let node = app.node.clone();
    app.node.tasks().spawn("import", async move {
        let last = match node.import_car(input, pin, watch).await {
            Ok(imported) => ImportLine::Report(imported.into()),
            Err(error) => ImportLine::Failed(error.into()),
        };
        // The client may have gone.
        let _ = to_client.send(last).await;
    });
    ndjson(stream::unfold(lines, |mut lines| async move {
        let line: ImportLine = lines.recv().await?;
        Some((line_of(&line), lines))
    }))
}

pub(super) async fn export(
    State(app): State<App>,
    Target(reference): Target,
    Query(query): Query<Exported>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (root, path) = (reference.content()?, reference.path);
    let id = match (path.is_empty(), query.offline) {
        (true, _) => root,
        (false, true) => app.node.walk_now(&root, &path)?,
        (false, false) => app.node.walk(&root, &path).await?.id,
    };
    app.node.opened(&root);
    let mut pieces = app.node.export_car(root, id, query.offline).boxed();
    // The first bytes decide: a failure after them comes behind the bytes.
    let first = pieces.next().await.transpose()?;
    let trailing = Trailing::asked_for(&headers);
    let body = body_of(first, pieces, trailing);
    let mut response =
        ([(header::CONTENT_TYPE, "application/vnd.ipld.car; version=1")], body).into_response();
    trailing.announce(response.headers_mut());
    Ok(response)
}

impl From<CarFailure> for Failure {
    fn from(error: CarFailure) -> Self {
        let error = match error {
            CarFailure::Node(error) => return error.into(),
            other => other,
        };
        let code = match &error {
            CarFailure::NotAFile(_)
            | CarFailure::Format(_)
            | CarFailure::Block { .. }
            | CarFailure::Changed { .. }
            | CarFailure::Opaque(_) => ErrorCode::Invalid,
            CarFailure::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                ErrorCode::NoEntry
            }
            CarFailure::Io { .. } | CarFailure::Wrong(_) | CarFailure::Node(_) => {
                ErrorCode::Internal
            }
            CarFailure::Missing(_) => ErrorCode::NotFoundInTime,
            CarFailure::BrokenOff => ErrorCode::Refused,
        };
        Self { code, message: error.to_string() }
    }
}
