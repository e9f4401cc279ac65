//! `/routing/v1`: who has a content, and where a peer is.

mod filter;

use std::time::SystemTime;

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};

use self::filter::Filter;
use super::{refusal::Refusal, routes::App, target::Query};
use crate::{
    content::ContentId,
    node::{Multiaddr, PeerId},
};

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

/// Providers in an answer that is no stream.
const MAX_RECORDS: usize = 100;

/// Seconds for which an answer holds: with somebody in it, with nobody, and while it is asked for again.
const FOUND_FOR: u32 = 300;
const NOBODY_FOR: u32 = 15;
const STALE_FOR: u32 = 172_800;

/// A peer, as the delegated routing has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Record {
    pub(super) schema: String,
    #[serde(rename = "ID")]
    pub(super) id: String,
    pub(super) addrs: Vec<String>,
    pub(super) protocols: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Providers {
    providers: Vec<Record>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Peers {
    peers: Vec<Record>,
}

impl Record {
    fn of(peer: PeerId, addresses: &[Multiaddr], protocols: &[&str]) -> Self {
        Self {
            schema: "peer".to_owned(),
            id: peer.to_string(),
            addrs: addresses.iter().map(|address| without_peer(address, peer)).collect(),
            protocols: protocols.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// This node: over Bitswap, and over HTTP for those who reached it so.
    fn own(app: &App) -> Self {
        let net = app.node.net();
        let protocols = ["transport-bitswap", "transport-ipfs-gateway-http"];
        let mut own = Self::of(net.peer_id(), &net.addresses(), &protocols);
        let ip = if app.address.is_ipv4() { "ip4" } else { "ip6" };
        let (address, port) = (app.address.ip(), app.address.port());
        own.addrs.push(format!("/{ip}/{address}/tcp/{port}/http"));
        own
    }
}

/// The record has the id by itself.
fn without_peer(address: &Multiaddr, peer: PeerId) -> String {
    let text = address.to_string();
    text.strip_suffix(&format!("/p2p/{peer}")).map_or(text.clone(), str::to_owned)
}

pub(super) async fn providers(
    State(app): State<App>,
    Path(cid): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let id: ContentId = match cid.parse() {
        Ok(id) => id,
        Err(error) => return unprocessable(&format!("{error}\n")),
    };
    let filter = Filter::of(&Query::of(uri.query()));
    let found = match found(&app, id) {
        Ok(found) => found.filter_map(move |record| std::future::ready(filter.apply(record))),
        Err(refusal) => return refusal.into_response(),
    };
    if wants_lines(&headers) {
        let lines = found.map(|record| line_of(&record));
        return as_answer(LINES, false, Body::from_stream(lines));
    }
    let providers: Vec<_> = found.take(MAX_RECORDS).collect().await;
    let has_any = !providers.is_empty();
    as_json(&Providers { providers }, has_any)
}

/// This node, if it has the block, and then whoever is found, each once.
fn found(app: &App, id: ContentId) -> Result<impl Stream<Item = Record> + Send + use<>, Refusal> {
    let here = app.node.store().block_len(&id);
    let here = here.map_err(|error| Refusal::Internal(error.to_string()))?.is_some();
    let own = here.then(|| Record::own(app));
    let own_id = app.node.net().peer_id();
    // Dropping the receiver, with the answer, ends the search.
    let search = app.fetch.then(|| app.node.net().find_providers(&id));
    let others = stream::unfold(search, move |search| async move {
        let mut search = search?;
        loop {
            // The last item may be an error: then there is nobody more.
            let provider = search.recv().await?.ok()?;
            if provider.peer != own_id {
                let record = Record::of(provider.peer, &provider.addresses, &["transport-bitswap"]);
                return Some((record, Some(search)));
            }
        }
    });
    Ok(stream::iter(own).chain(others))
}

pub(super) async fn peers(
    State(app): State<App>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Some(id) = peer_id(&id) else {
        return unprocessable(&format!("`{id}` is no peer id\n"));
    };
    let net = app.node.net();
    let known = if id == net.peer_id() {
        Some(Record::own(&app))
    } else {
        let connected = net.peers().into_iter().find(|peer| peer.peer == id);
        connected.map(|peer| Record::of(id, &[peer.address], &[]))
    };
    let filter = Filter::of(&Query::of(uri.query()));
    let peers: Vec<_> = known.into_iter().filter_map(|record| filter.apply(record)).collect();
    if wants_lines(&headers) {
        let lines: Vec<_> = peers.iter().map(line_of).collect();
        return as_answer(LINES, !peers.is_empty(), Body::from_stream(stream::iter(lines)));
    }
    let has_any = !peers.is_empty();
    as_json(&Peers { peers }, has_any)
}

/// A peer id as a multihash in base58, or as a CID.
fn peer_id(text: &str) -> Option<PeerId> {
    let by_cid = || {
        let id: ContentId = text.parse().ok()?;
        PeerId::from_bytes(&id.hash().to_bytes()).ok()
    };
    text.parse().ok().or_else(by_cid)
}

fn wants_lines(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|one| one.trim().starts_with(LINES))
}

fn line_of(record: &Record) -> Result<String, serde_json::Error> {
    serde_json::to_string(record).map(|line| line + "\n")
}

fn as_json(value: &impl Serialize, has_any: bool) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => as_answer(JSON, has_any, Body::from(json)),
        Err(error) => Refusal::Internal(error.to_string()).into_response(),
    }
}

fn as_answer(media_type: &'static str, has_any: bool, body: Body) -> Response {
    let age = if has_any { FOUND_FOR } else { NOBODY_FOR };
    let cache = format!(
        "public, max-age={age}, stale-while-revalidate={STALE_FOR}, stale-if-error={STALE_FOR}"
    );
    let told = [
        (header::CONTENT_TYPE, media_type.to_owned()),
        (header::VARY, "Accept".to_owned()),
        (header::CACHE_CONTROL, cache),
        (header::LAST_MODIFIED, httpdate::fmt_http_date(SystemTime::now())),
    ];
    (told, body).into_response()
}

fn unprocessable(text: &str) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, text.to_owned()).into_response()
}
