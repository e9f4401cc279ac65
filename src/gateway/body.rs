//! Bytes of a file or a block as the body of an answer, all of them or ranges.

use std::collections::VecDeque;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};

use super::{headers, refusal::Refusal};
use crate::{
    content::{ByteRange, ContentId, Selected},
    node::{FileHandle, Reading},
};

/// Where bytes come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Block(Bytes),
    File {
        handle: FileHandle,
        /// Whether what is not here is fetched.
        fetch: bool,
    },
}

impl Source {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Block(bytes) => bytes.len() as u64,
            Self::File { handle, .. } => handle.size(),
        }
    }

    /// Refuses before anything is said where bytes are missing that nobody will fetch.
    fn require(&self, parts: &VecDeque<Part>) -> Result<(), Refusal> {
        let Self::File { handle, fetch: false } = self else { return Ok(()) };
        let is_here = |part: &Part| match part {
            Part::Text(_) => true,
            Part::Range(range) => handle.object().has(*range),
        };
        parts.iter().all(is_here).then_some(()).ok_or(Refusal::NotHere(*handle.id()))
    }

    /// The first bytes, at most as many as given.
    pub(super) async fn begin(&self, count: u64) -> Result<Bytes, Refusal> {
        let range = ByteRange::new(0, count.min(self.size()));
        let mut sending = Sending { source: self.clone(), parts: VecDeque::new(), reading: None };
        sending.parts.push_back(Part::Range(range));
        Ok(sending.next().await?.unwrap_or_default())
    }
}

/// A piece of a body.
#[derive(Debug)]
enum Part {
    Text(Bytes),
    Range(ByteRange),
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Range(range) => range.len(),
        }
    }
}

/// A body on its way.
#[derive(Debug)]
struct Sending {
    source: Source,
    parts: VecDeque<Part>,
    reading: Option<Reading>,
}

impl Sending {
    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            if let Some(reading) = &mut self.reading {
                match read(&self.source, reading).await? {
                    Some(bytes) => return Ok(Some(bytes)),
                    None => self.reading = None,
                }
            }
            match (self.parts.pop_front(), &self.source) {
                (None, _) => return Ok(None),
                (Some(Part::Text(text)), _) => return Ok(Some(text)),
                (Some(Part::Range(range)), Source::Block(bytes)) => {
                    let at = |at| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                    return Ok(Some(bytes.slice(at(range.start)..at(range.end))));
                }
                (Some(Part::Range(range)), Source::File { handle, .. }) => {
                    self.reading = Some(Reading::new(handle.clone(), range));
                }
            }
        }
    }
}

async fn read(source: &Source, reading: &mut Reading) -> Result<Option<Bytes>, Refusal> {
    let Source::File { handle, fetch: false } = source else { return Ok(reading.next().await?) };
    match reading.next_now()? {
        None if !reading.left().is_empty() => Err(Refusal::NotHere(*handle.id())),
        read => Ok(read),
    }
}

/// What a request says of the bytes that it wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) headers: &'a HeaderMap,
    /// Whether there is to be a body at all.
    pub(super) is_head: bool,
}

impl Asked<'_> {
    /// The ranges of `Range`, unless `If-Range` says that they are of another content.
    fn selected(&self, etag: &str, size: u64) -> Selected {
        let get = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        match get(header::IF_RANGE) {
            Some(condition) if condition != etag => Selected::Whole,
            _ => Selected::by(get(header::RANGE), size),
        }
    }
}

/// Answers with bytes; `told` are the headers of the whole. The first bytes decide: a failure that comes later breaks the
/// connection off.
pub(super) async fn answer(
    asked: Asked<'_>,
    source: Source,
    media_type: &str,
    etag: &str,
    mut told: HeaderMap,
) -> Result<Response, Refusal> {
    let size = source.size();
    told.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers::put(&mut told, header::CONTENT_TYPE, media_type);
    let mut status = StatusCode::PARTIAL_CONTENT;
    let mut parts = VecDeque::new();
    match asked.selected(etag, size) {
        Selected::Whole => {
            status = StatusCode::OK;
            parts.push_back(Part::Range(ByteRange::new(0, size)));
        }
        Selected::One(range) => {
            headers::put(&mut told, header::CONTENT_RANGE, &range.content_range(size));
            parts.push_back(Part::Range(range));
        }
        Selected::Many(ranges) => {
            // No content can foresee it.
            let boundary = format!("{:032x}", rand::random::<u128>());
            parts = multipart(&ranges, &boundary, media_type, size);
            let media_type = format!("multipart/byteranges; boundary={boundary}");
            headers::put(&mut told, header::CONTENT_TYPE, &media_type);
        }
        Selected::None => return Ok(unsatisfiable(size)),
    }
    told.insert(header::CONTENT_LENGTH, parts.iter().map(Part::len).sum::<u64>().into());
    source.require(&parts)?;
    let mut body = Body::empty();
    if !asked.is_head {
        let mut sending = Sending { source, parts, reading: None };
        let first = sending.next().await?;
        let rest = stream::try_unfold(sending, |mut sending| async move {
            Ok::<_, Refusal>(sending.next().await?.map(|bytes| (bytes, sending)))
        });
        body = streamed(first, rest);
    }
    Ok((status, told, body).into_response())
}

/// A body whose first bytes are there.
pub(super) fn streamed(
    first: Option<Bytes>,
    rest: impl Stream<Item = Result<Bytes, Refusal>> + Send + 'static,
) -> Body {
    let rest = rest.then(async |piece| {
        if let Err(error) = &piece {
            tracing::debug!(%error, "an answer of the gateway broke off");
            // What came before is sent while this waits for its turn; an error drops it.
            tokio::task::yield_now().await;
        }
        piece
    });
    Body::from_stream(stream::iter(first.map(Ok)).chain(rest))
}

fn multipart(ranges: &[ByteRange], boundary: &str, media_type: &str, size: u64) -> VecDeque<Part> {
    let mut parts = VecDeque::new();
    for range in ranges {
        let lead = if parts.is_empty() { "" } else { "\r\n" };
        let shown = range.content_range(size);
        let text = format!(
            "{lead}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {shown}\r\n\r\n"
        );
        parts.extend([Part::Text(text.into()), Part::Range(*range)]);
    }
    parts.push_back(Part::Text(format!("\r\n--{boundary}--\r\n").into()));
    parts
}

fn unsatisfiable(size: u64) -> Response {
    let shown = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
    let text = format!("there are {size} bytes, none of them in the range\n");
    (StatusCode::RANGE_NOT_SATISFIABLE, shown, text).into_response()
}

/// An id for a name that nobody gave.
pub(super) fn file_name(id: &ContentId, ending: &str) -> String {
    format!("{id}.{ending}")
}
