//! The daemon's side: one listener, and the routes that only tell.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{FromRequest, Request, State},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::{Stream, StreamExt, stream};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixListener, sync::broadcast};
use tokio_util::sync::CancellationToken;

use super::{
    ConnectRequest, Connected, Failure, Identity, Peer, Status, add, archive, content,
    socket::SocketPath, torrents, upkeep,
};
use crate::node::{Event, Multiaddr, Node, Running};

/// Time that answers in progress get when the daemon ends.
const GRACE: Duration = Duration::from_secs(1);

/// Why nothing could be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the control socket {}: {source}", path.display())]
pub struct ServeError {
    /// The socket.
    path: PathBuf,
    /// What failed.
    source: io::Error,
}

/// The control interface of a running daemon.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: SocketPath,
    app: App,
}

/// What every route gets.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) node: Node,
    stop: CancellationToken,
}

/// The JSON body of a request; what is wrong with it is told as everything else is.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let read = Json::from_request(request, state).await;
        read.map(|Json(body)| Self(body)).map_err(|wrong| Failure::invalid(wrong.body_text()))
    }
}

impl Server {
    /// Makes the socket in the data folder, which only its owner can enter; one that a killed daemon left is
    /// replaced (the store's lock says that there is no other daemon). `stop` is cancelled when a client asks for it.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(node: Node, stop: CancellationToken) -> Result<Self, ServeError> {
        let dir = node.store().dir().to_owned();
        let failed = |source| ServeError { path: dir.clone(), source };
        let path = SocketPath::of(&dir).map_err(failed)?;
        let listener = listen(path.as_path()).map_err(failed)?;
        Ok(Self { listener, path, app: App { node, stop } })
    }

    /// Serves until all tasks of the node are to end.
    pub fn start(self) {
        let tasks = self.app.node.tasks().clone();
        tasks.spawn("control server", self.run());
    }

    async fn run(self) {
        let cancelled = self.app.node.tasks().cancelled();
        let graceful = self.app.node.tasks().cancelled();
        let served = axum::serve(self.listener, routes(self.app)).with_graceful_shutdown(graceful);
        let too_long = async {
            cancelled.await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            ended = served => if let Err(error) = ended {
                tracing::error!(%error, "the control interface ended");
            },
            () = too_long => tracing::debug!("answers in progress were cut off"),
        }
        // A socket file without a listener would only make clients guess.
        let _ = fs::remove_file(self.path.as_path());
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn routes(app: App) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/id", get(identity))
        .route("/v1/peers", get(peers))
        .route("/v1/transfers", get(transfers))
        .route("/v1/events", get(events))
        .route("/v1/connect", post(connect))
        .route("/v1/add", post(add::add))
        .route("/v1/add/stream", post(add::add_stream))
        .route("/v1/stat", get(content::stat))
        .route("/v1/ls", get(content::list))
        .route("/v1/cat", get(content::cat))
        .route("/v1/pins", get(upkeep::pins).post(upkeep::pin).delete(upkeep::unpin))
        .route("/v1/provide", post(upkeep::provide))
        .route("/v1/store/verify", post(upkeep::verify))
        .route("/v1/store/gc", post(upkeep::gc))
        .route("/v1/store/import", post(archive::import))
        .route("/v1/store/import/stream", post(archive::import_stream))
        .route("/v1/store/export", get(archive::export))
        .route("/v1/seed", post(torrents::seed))
        .route("/v1/torrents", get(torrents::list).post(torrents::add))
        .route("/v1/torrents/pause", post(torrents::pause))
        .route("/v1/torrents/resume", post(torrents::resume))
        .route("/v1/torrents/remove", post(torrents::remove))
        .route("/v1/torrents/limits", post(torrents::limit))
        .route("/v1/stop", post(stop))
        .fallback(async || Failure::no_entry("there is no such route"))
        .method_not_allowed_fallback(async || Failure::invalid("the route has no such method"))
        .with_state(app)
}

async fn status(State(app): State<App>) -> Result<Json<Status>, Failure> {
    Ok(Json(app.node.status()?))
}

async fn identity(State(app): State<App>) -> Json<Identity> {
    let net = app.node.net();
    Json(Identity {
        peer_id: net.peer_id().to_string(),
        addresses: net.addresses().iter().map(ToString::to_string).collect(),
    })
}

async fn peers(State(app): State<App>) -> Json<Vec<Peer>> {
    Json(app.node.peers())
}

async fn transfers(State(app): State<App>) -> Json<Vec<Running>> {
    Json(app.node.transfers())
}

async fn connect(
    State(app): State<App>,
    Asked(request): Asked<ConnectRequest>,
) -> Result<Json<Connected>, Failure> {
    let address: Multiaddr = request.address.parse().map_err(|e| {
        Failure::invalid(format!("`{}` is not a multiaddress: {e}", request.address))
    })?;
    let peer_id = app.node.net().connect(address).await?.to_string();
    Ok(Json(Connected { peer_id }))
}

async fn stop(State(app): State<App>) -> Json<()> {
    app.stop.cancel();
    Json(())
}

/// Stands in the stream for events that a slow reader lost.
#[derive(Serialize)]
#[serde(tag = "event", rename = "lagged")]
struct Lagged {
    lost: u64,
}

async fn events(State(app): State<App>) -> Response {
    let next = |mut receiver: broadcast::Receiver<Event>| async move {
        let line = match receiver.recv().await {
            Ok(event) => line_of(&event),
            Err(broadcast::error::RecvError::Lagged(lost)) => line_of(&Lagged { lost }),
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        Some((line, receiver))
    };
    let cancelled = Box::pin(app.node.tasks().cancelled());
    ndjson(stream::unfold(app.node.events(), next).take_until(cancelled))
}

/// An answer of one JSON object per line.
pub(super) fn ndjson(lines: impl Stream<Item = String> + Send + 'static) -> Response {
    let body = Body::from_stream(lines.map(Ok::<_, std::convert::Infallible>));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

pub(super) fn line_of(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).unwrap_or_else(|error| {
        tracing::error!(%error, "a value has no JSON form");
        "{}".to_owned()
    });
    line.push('\n');
    line
}
