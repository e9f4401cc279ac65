//! The routes, and what holds for all of them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, uri::Authority},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::BodyExt;
use tokio::sync::Semaphore;

use super::{content, headers, host::Hosts, refusal::Refusal, routing, server::GatewayOptions};
use crate::node::Node;

/// Requests that are worked on at once: with 2 MiB each, what they hold fits beside everything else.
const MAX_REQUESTS: usize = 64;

/// Time that another request waits for its turn.
const TURN: Duration = Duration::from_secs(10);

/// The methods that there are.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// What every route gets.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) node: Node,
    /// Where this gateway is reached from this machine.
    pub(super) address: SocketAddr,
    /// Whether what is not here is fetched.
    pub(super) fetch: bool,
    /// Whether there is nobody to fetch from.
    pub(super) is_offline: bool,
    hosts: Arc<Hosts>,
    turns: Arc<Semaphore>,
}

impl App {
    pub(super) fn new(
        node: Node,
        address: SocketAddr,
        hosts: Hosts,
        options: &GatewayOptions,
    ) -> Self {
        Self {
            node,
            address,
            fetch: !options.no_fetch,
            is_offline: options.offline,
            hosts: Arc::new(hosts),
            turns: Arc::new(Semaphore::new(MAX_REQUESTS)),
        }
    }
}

pub(super) fn router(app: App) -> Router {
    Router::new()
        .route("/ipfs/{*path}", get(content::get))
        .route("/routing/v1/providers/{cid}", get(routing::providers))
        .route("/routing/v1/peers/{id}", get(routing::peers))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

/// What comes before and after the answer of every route.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = match admitted(&app, &request) {
        Err(refusal) => refusal.into_response(),
        Ok(()) if request.method() == Method::OPTIONS => {
            (StatusCode::NO_CONTENT, [(header::ALLOW, METHODS)]).into_response()
        }
        Ok(()) => in_turn(&app, request, next).await,
    };
    headers::allow_all_origins(response.headers_mut());
    response
}

/// Waits for a place, which the answer keeps until its body is sent or the client has gone.
async fn in_turn(app: &App, request: Request, next: Next) -> Response {
    let turn = tokio::time::timeout(TURN, app.turns.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else { return Refusal::Busy.into_response() };
    next.run(request).await.map(move |body| {
        Body::new(body.map_frame(move |frame| {
            let _until_sent = &turn;
            frame
        }))
    })
}

fn admitted(app: &App, request: &Request) -> Result<(), Refusal> {
    let host = host_of(request.uri(), request.headers());
    let host = host.ok_or_else(|| Refusal::Wrong("the request names no host".to_owned()))?;
    if app.hosts.has(host) {
        return Ok(());
    }
    Err(Refusal::Forbidden(format!(
        "`{host}` is no name of this gateway; those that are stand in `hosts` of section [gateway]"
    )))
}

/// A proxy is asked with the whole URL, whose host counts then.
fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let named = uri.authority().map(Authority::as_str);
    named.or_else(|| headers.get(header::HOST)?.to_str().ok())
}

async fn unknown(uri: Uri) -> Refusal {
    let path = uri.path();
    if path.starts_with("/routing/") {
        return Refusal::Wrong("there is no such route".to_owned());
    }
    if path.starts_with("/ipns/") {
        return Refusal::NotImplemented("IPNS names are not resolved yet".to_owned());
    }
    if path == "/ipfs" || path == "/ipfs/" {
        return Refusal::Wrong("no CID: /ipfs/{cid} is a content".to_owned());
    }
    Refusal::NotFound("there is /ipfs/{cid}, and /routing/v1/".to_owned())
}

async fn wrong_method(uri: Uri) -> Response {
    if uri.path().starts_with("/routing/") {
        let text = "nothing can be announced through this node".to_owned();
        return Refusal::NotImplemented(text).into_response();
    }
    ([(header::ALLOW, METHODS)], Refusal::Method).into_response()
}
