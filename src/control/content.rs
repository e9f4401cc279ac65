//! Reading over the control socket.

use std::ffi::OsString;

use axum::{
    Json,
    body::Body,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use percent_encoding::percent_decode;

use super::{ErrorCode, Failure, Kind, Listed, Reference, Stat, server::App, wire::FAILURE};
use crate::{
    content::{ByteRange, ContentId, NodeKind, Selected},
    node::{Child, Described, Node, NodeError, Passage, Place, Root, Unshown},
};

/// `?id=ID[/path]`, whose names need not be text.
pub(super) struct Target(pub(super) Reference);

impl<S: Sync> FromRequestParts<S> for Target {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let mut fields = parts.uri.query().unwrap_or_default().split('&');
        let id = fields.find_map(|field| field.strip_prefix("id=")).unwrap_or_default();
        Ok(Self(Reference::of(&unescaped(id))?))
    }
}

/// The bytes behind `%XX` and `+`, as in every query.
fn unescaped(text: &str) -> Vec<u8> {
    percent_decode(text.replace('+', " ").as_bytes()).collect()
}

/// Resolves a reference; its root gets on the listing of the mountpoint.
async fn walked(node: &Node, reference: &Reference) -> Result<(Place, Described), Failure> {
    let found = node.walk_to(&reference.root, &reference.path).await?;
    if let Place::Content { root, .. } = &found.0 {
        node.opened(root);
    }
    Ok(found)
}

pub(super) async fn stat(
    State(app): State<App>,
    Target(reference): Target,
) -> Result<Json<Stat>, Failure> {
    let (place, described) = walked(&app.node, &reference).await?;
    Ok(Json(Stat::of(&place, &described)))
}

/// Entries of a directory; a file or symlink is its own only entry.
pub(super) async fn list(
    State(app): State<App>,
    Target(reference): Target,
) -> Result<Json<Vec<Listed>>, Failure> {
    let (place, described) = walked(&app.node, &reference).await?;
    if described.kind != NodeKind::Directory {
        return Ok(Json(vec![Listed {
            name: reference.name(),
            cid: place.content().copied(),
            kind: Some(described.kind.into()),
            size: Some(described.size),
            omitted: None,
            selected: None,
        }]));
    }
    let children = app.node.protocol(&place).list(&place).await?;
    let shown = (0..children.count()).filter_map(|at| children.child(at));
    let mut all: Vec<_> = shown.map(|child| listed(&app.node, &reference, &child)).collect();
    let (unshown, more) = children.unshown();
    all.extend(unshown.into_iter().map(|Unshown { name, cid, why }| unlisted(name, cid, why)));
    if more > 0 {
        all.push(unlisted(OsString::new(), None, format!("{more} more entries cannot be shown")));
    }
    Ok(Json(all))
}

/// A listing asks nobody about the children: what is not known is left out.
fn listed(node: &Node, of: &Reference, child: &Child<'_>) -> Listed {
    let known = node.protocol(&child.place).resolve_now(&child.place).and_then(Result::ok);
    let kind = known.as_ref().map(|known| known.kind).or(child.kind);
    let selected = match (&of.root, &child.place) {
        (Root::Torrent(magnet), Place::Torrent { node: at, .. }) => {
            node.torrents().wants(magnet, *at)
        }
        _ => None,
    };
    Listed {
        name: child.name.to_owned(),
        cid: child.place.content().copied(),
        kind: kind.map(Kind::from),
        size: known.map(|known| known.size),
        omitted: child.place.content().and_then(ContentId::unreadable),
        selected,
    }
}

/// An entry that cannot be shown.
fn unlisted(name: OsString, cid: Option<ContentId>, why: String) -> Listed {
    Listed { name, cid, kind: None, size: None, omitted: Some(why), selected: None }
}

pub(super) async fn cat(
    State(app): State<App>,
    Target(reference): Target,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (place, _) = walked(&app.node, &reference).await?;
    let file = app.node.protocol(&place).open(&place).await?;
    let size = file.size();
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = match Selected::by(asked, size) {
        // Several at once are for browsers: a server may answer them with the whole.
        Selected::Whole | Selected::Many(_) => None,
        Selected::One(range) => Some(range),
        Selected::None => return Ok(unsatisfiable(asked.unwrap_or_default(), size)),
    };
    let wanted = range.unwrap_or(ByteRange::new(0, size));
    let mut reading = Passage::new(file, wanted);
    // The first bytes decide: a failure after them comes behind the bytes, for those who read what comes there.
    let first = reading.next().await?;
    let rest = stream::try_unfold(reading, |mut reading| async move {
        Ok::<_, NodeError>(reading.next().await?.map(|bytes| (bytes, reading)))
    });
    let trailing = Trailing::asked_for(&headers);
    let body = body_of(first, rest, trailing);
    let mut response = (
        [(header::ACCEPT_RANGES, "bytes"), (header::CONTENT_TYPE, "application/octet-stream")],
        body,
    )
        .into_response();
    let told = response.headers_mut();
    trailing.announce(told);
    if !trailing.0 {
        // An answer of a known length has nothing behind it.
        told.insert(header::CONTENT_LENGTH, wanted.len().into());
    }
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        if let Ok(value) = wanted.content_range(size).parse() {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
    }
    Ok(response)
}

/// Whether the client reads what comes behind the bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trailing(bool);

impl Trailing {
    pub(super) fn asked_for(headers: &HeaderMap) -> Self {
        let asked = headers.get(header::TE).and_then(|value| value.to_str().ok());
        Self(asked.is_some_and(|value| value.contains("trailers")))
    }

    pub(super) fn announce(self, headers: &mut HeaderMap) {
        if self.0 {
            headers.insert(header::TRAILER, HeaderValue::from_static(FAILURE));
        }
    }
}

/// Bytes that may break off: the reason follows them as a trailer, or the answer is cut off.
pub(super) fn body_of<E>(
    first: Option<Bytes>,
    rest: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    trailing: Trailing,
) -> Body
where
    E: Into<Failure> + std::error::Error + Send + Sync + 'static,
{
    // Nothing is asked of a stream that has failed, for it ended with that.
    let rest = rest.map(move |piece| match (piece, trailing.0) {
        (Ok(bytes), _) => Ok(Frame::data(bytes)),
        (Err(error), true) => Ok(Frame::trailers(trailer_of(error.into()))),
        (Err(error), false) => Err(error),
    });
    let first = stream::iter(first.map(|bytes| Ok::<_, E>(Frame::data(bytes))));
    Body::new(StreamBody::new(first.chain(rest)))
}

fn trailer_of(failure: Failure) -> HeaderMap {
    let text = serde_json::to_vec(&failure).unwrap_or_default();
    let value = HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("{}"));
    HeaderMap::from_iter([(HeaderName::from_static(FAILURE), value)])
}

fn unsatisfiable(asked: &str, size: u64) -> Response {
    // The commands ask for what lies behind an offset.
    let from = asked.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
    let message = match from {
        Some(from) => format!("there are {size} bytes, none of them at {from}"),
        None => format!("there are {size} bytes, none of them in `{asked}`"),
    };
    let failure = Failure { code: ErrorCode::Invalid, message };
    let shown = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
    (StatusCode::RANGE_NOT_SATISFIABLE, shown, Json(failure)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_comes_back_and_what_only_looks_so_stays() {
        assert_eq!(unescaped("a%20b+c%2B%FF/d"), b"a b c+\xff/d");
        for odd in ["%", "%1", "%zz", "a%-1", "%é"] {
            assert_eq!(unescaped(odd), odd.as_bytes());
        }
        assert_eq!(unescaped("%+1"), b"% 1");
    }
}
