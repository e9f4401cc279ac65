//! Reading over the control socket.

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

use super::{ErrorCode, Failure, Kind, Listed, Reference, Stat, server::App, wire::FAILURE};
use crate::{
    content::{ByteRange, NodeKind},
    node::{Child, Node, NodeError, Passage},
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
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let escaped = behind.split_at_checked(2).filter(|_| *first == b'%').and_then(|(hex, _)| {
            let hex = std::str::from_utf8(hex).ok().filter(|hex| !hex.starts_with('+'))?;
            u8::from_str_radix(hex, 16).ok()
        });
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if escaped.is_some() { &behind[2..] } else { behind };
    }
    bytes
}

pub(super) async fn stat(
    State(app): State<App>,
    Target(reference): Target,
) -> Result<Json<Stat>, Failure> {
    let (place, described) = app.node.walk_to(&reference.root, &reference.path).await?;
    Ok(Json(Stat::of(&place, &described)))
}

/// Entries of a directory; a file or symlink is its own only entry.
pub(super) async fn list(
    State(app): State<App>,
    Target(reference): Target,
) -> Result<Json<Vec<Listed>>, Failure> {
    let (place, described) = app.node.walk_to(&reference.root, &reference.path).await?;
    if described.kind != NodeKind::Directory {
        return Ok(Json(vec![Listed {
            name: reference.name(),
            cid: place.content().copied(),
            kind: Some(described.kind.into()),
            size: Some(described.size),
        }]));
    }
    let children = app.node.protocol(&place).list(&place).await?;
    let children = (0..children.count()).filter_map(|at| children.child(at));
    Ok(Json(children.map(|child| listed(&app.node, &child)).collect()))
}

/// A listing asks nobody about the children: what is not known is left out.
fn listed(node: &Node, child: &Child<'_>) -> Listed {
    let known = node.protocol(&child.place).resolve_now(&child.place).and_then(Result::ok);
    let kind = known.as_ref().map(|known| known.kind).or(child.kind);
    Listed {
        name: child.name.to_owned(),
        cid: child.place.content().copied(),
        kind: kind.map(Kind::from),
        size: known.map(|known| known.size),
    }
}

pub(super) async fn cat(
    State(app): State<App>,
    Target(reference): Target,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (place, _) = app.node.walk_to(&reference.root, &reference.path).await?;
    let file = app.node.protocol(&place).open(&place).await?;
    let size = file.size();
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = match asked.map(|text| parse_range(text, size)) {
        None => None,
        Some(Some(range)) => Some(range),
        Some(None) => return Ok(unsatisfiable(asked.unwrap_or_default(), size)),
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
        let shown = format!("bytes {}-{}/{size}", wanted.start, wanted.end.saturating_sub(1));
        if let Ok(value) = shown.parse() {
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
    let from = asked.strip_prefix("bytes=").and_then(|range| range.split_once('-')?.0.parse().ok());
    let message = match from {
        Some(from) if size <= from => format!("there are {size} bytes, none of them at {from}"),
        _ => format!("`{asked}` is no range of {size} bytes: write `bytes=FROM-TO`"),
    };
    let failure = Failure { code: ErrorCode::Invalid, message };
    let shown = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
    (StatusCode::RANGE_NOT_SATISFIABLE, shown, Json(failure)).into_response()
}

/// One range of a `Range` header, cut at the end of the file: `bytes=5-9`, `bytes=5-`, `bytes=-5`.
fn parse_range(text: &str, size: u64) -> Option<ByteRange> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (from, to) {
        ("", last) => ByteRange::new(size.saturating_sub(last.parse().ok()?), size),
        (from, "") => ByteRange::new(from.parse().ok()?, size),
        (from, to) => {
            let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
            if to < from {
                return None;
            }
            ByteRange::new(from, to.saturating_add(1).min(size))
        }
    };
    (range.start < size && !range.is_empty()).then_some(range)
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

    #[test]
    fn a_range_is_cut_at_the_end_and_refused_behind_it() {
        for (text, range) in [
            ("bytes=0-0", Some((0, 1))),
            ("bytes=5-", Some((5, 10))),
            ("bytes=-3", Some((7, 10))),
            ("bytes=-30", Some((0, 10))),
            ("bytes=8-99", Some((8, 10))),
            ("bytes=0-18446744073709551615", Some((0, 10))),
            ("bytes=10-", None),
            ("bytes=7-5", None),
            ("bytes=-0", None),
            ("bytes=-", None),
            ("bytes=1-2,4-5", None),
            ("lines=1-2", None),
        ] {
            let expected = range.map(|(start, end)| ByteRange::new(start, end));
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), None);
    }
}
