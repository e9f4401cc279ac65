//! `/ipfs/…`: what a path leads to, in the form that was asked for.

use std::{ffi::OsString, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, TryStreamExt};

use super::{
    body::{self, Asked, Source, file_name},
    etag,
    format::{self, CarParams, Coding, Format, Wanted},
    headers, kind, listing,
    refusal::Refusal,
    resolver::{Resolver, Way},
    routes::App,
    target::{Query, Target},
};
use crate::{
    content::{Codec, ContentId, NodeKind},
    node::{CarPlan, CarScope, Resolved},
};

/// The page that stands for a directory.
const INDEX: &str = "index.html";

/// One request.
struct Request<'a> {
    target: Target,
    query: Query,
    /// The path as it was sent.
    path: &'a str,
    asked: Asked<'a>,
    resolver: Resolver,
    location: Option<Vec<(&'static str, String)>>,
}

pub(super) async fn get(
    State(app): State<App>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let only_if_cached = has_directive(&headers, "only-if-cached");
    let answered = answer(&app, method == Method::HEAD, &uri, &headers, only_if_cached).await;
    answered.map_err(|refusal| match refusal {
        Refusal::NotHere(id) if only_if_cached => Refusal::NotCached(id),
        // Nobody can be asked, so that nobody can be late.
        Refusal::TooLate(text) if app.is_offline => Refusal::NotFound(text),
        other => other,
    })
}

async fn answer(
    app: &App,
    is_head: bool,
    uri: &Uri,
    headers: &HeaderMap,
    only_if_cached: bool,
) -> Result<Response, Refusal> {
    let target = Target::of(uri.path())?;
    refuse_wide_service_worker(&target, headers)?;
    let query = Query::of(uri.query());
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let Wanted { format, location } = format::negotiate(&query, accept)?;
    let fetch = app.fetch && !only_if_cached;
    let resolver = Resolver { node: app.node.clone(), root: target.root, fetch };
    let asked = Asked { headers, is_head };
    let request = Request { target, query, path: uri.path(), asked, resolver, location };
    match format {
        Format::Car(params) => request.archive(params).await,
        Format::Raw => request.raw().await,
        Format::Coded(coding) => request.coded(coding).await,
        Format::Plain => request.plain().await,
    }
}

impl Request<'_> {
    async fn way(&self) -> Result<Way, Refusal> {
        self.resolver.way(&self.target.names).await
    }

    /// The answer to who has the same already.
    fn not_modified(&self, etag: &str, roots: &[ContentId]) -> Option<Response> {
        let cache = if etag::is_of_listing(etag) { headers::LISTING } else { headers::IMMUTABLE };
        let named = self.asked.headers.get_all(header::IF_NONE_MATCH).iter();
        let named = named.filter_map(|value| value.to_str().ok());
        etag::matches(named, etag).then(|| {
            let mut told = HeaderMap::new();
            headers::put_content(&mut told, self.path, roots, etag, cache);
            (StatusCode::NOT_MODIFIED, told).into_response()
        })
    }

    /// Headers of an answer of one form of several.
    fn told(&self, etag: &str, roots: &[ContentId]) -> HeaderMap {
        let mut told = HeaderMap::new();
        headers::put_content(&mut told, self.path, roots, etag, headers::IMMUTABLE);
        told.insert(header::VARY, HeaderValue::from_static("Accept"));
        if let Some(location) = &self.location {
            let url = format!("{}?{}", self.path, self.query.with(location));
            headers::put(&mut told, header::CONTENT_LOCATION, &url);
        }
        told
    }

    /// The name that a client gave, else one by the id.
    fn file_name(&self, ending: &str) -> String {
        let given = self.query.get("filename").map(str::to_owned);
        given.unwrap_or_else(|| file_name(&self.target.root, ending))
    }

    async fn raw(&self) -> Result<Response, Refusal> {
        let way = self.way().await?;
        let etag = etag::raw(&way.end);
        if let Some(same) = self.not_modified(&etag, &way.roots) {
            return Ok(same);
        }
        let mut told = self.told(&etag, &way.roots);
        let given = self.query.get("filename").map(str::to_owned);
        headers::put_opaque(&mut told, &given.unwrap_or_else(|| file_name(&way.end, "bin")));
        let block = self.resolver.block(&way.end).await?;
        let source = Source::Block(block.data().clone());
        body::answer(self.asked, source, "application/vnd.ipld.raw", &etag, told).await
    }

    /// A block of a codec, by its own type; what is of another codec is not turned into it.
    async fn coded(&self, coding: Coding) -> Result<Response, Refusal> {
        let way = self.way().await?;
        match way.end.codec() {
            Codec::Other(codec) if Coding::of(codec) == Some(coding) => {
                self.as_coded(&way, coding).await
            }
            _ => Err(Refusal::NotAcceptable(format!(
                "{} is not {}; ask for `format=raw`",
                way.end,
                coding.media_type()
            ))),
        }
    }

    async fn as_coded(&self, way: &Way, coding: Coding) -> Result<Response, Refusal> {
        let etag = etag::coded(&way.end, coding.name());
        if let Some(same) = self.not_modified(&etag, &way.roots) {
            return Ok(same);
        }
        let mut told = self.told(&etag, &way.roots);
        headers::put_opaque(&mut told, &self.file_name(coding.name()));
        let block = self.resolver.block(&way.end).await?;
        let source = Source::Block(block.data().clone());
        body::answer(self.asked, source, coding.media_type(), &etag, told).await
    }

    async fn archive(&self, params: CarParams) -> Result<Response, Refusal> {
        // It depends on the request alone: whoever has it need not wait for anything.
        let etag = etag::car(&self.target, params);
        if let Some(same) = self.not_modified(&etag, &[self.target.root]) {
            return Ok(same);
        }
        let way = self.way().await?;
        self.refuse_outside(&way, params).await?;
        let mut told = self.told(&etag, &way.roots);
        headers::put_opaque(&mut told, &self.file_name("car"));
        told.insert(header::CONTENT_TYPE, HeaderValue::from_static(params.media_type()));
        // Who wants a part asks for it by `entity-bytes`.
        told.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
        if self.asked.is_head {
            self.resolver.block(&way.end).await?;
            return Ok((told, Body::empty()).into_response());
        }
        let plan = CarPlan {
            root: self.target.root,
            way: way.blocks,
            id: way.end,
            scope: params.scope,
            duplicates: params.duplicates,
            fetch: self.resolver.fetch,
            // Clients of archives hash every block.
            verify: false,
        };
        let pieces = self.resolver.node.car(plan).map_err(Refusal::from);
        let mut pieces = Box::pin(pieces);
        let first = pieces.next().await.transpose()?;
        Ok((told, body::streamed(first, pieces)).into_response())
    }

    /// Says so at once when a range has nothing of the file in it.
    async fn refuse_outside(&self, way: &Way, params: CarParams) -> Result<(), Refusal> {
        let CarScope::Entity(Some(bytes)) = params.scope else { return Ok(()) };
        if matches!(way.end.codec(), Codec::Other(_)) {
            return Ok(());
        }
        match self.resolver.resolve(&way.end).await {
            Ok(resolved) if resolved.kind == NodeKind::File && bytes.is_outside(resolved.size) => {
                let size = resolved.size;
                Err(Refusal::Wrong(format!("none of the {size} bytes is in `{bytes}`")))
            }
            // What is no UnixFS has no bytes of its own, and is given as its block.
            Ok(_) | Err(Refusal::Wrong(_)) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    async fn plain(&self) -> Result<Response, Refusal> {
        let way = self.way().await?;
        if let Codec::Other(codec) = way.end.codec() {
            let unknown = || Refusal::Wrong(format!("{}: the codec is not known", way.end));
            return self.as_coded(&way, Coding::of(codec).ok_or_else(unknown)?).await;
        }
        let resolved = self.resolver.resolve(&way.end).await?;
        match resolved.kind {
            NodeKind::File => {
                let last = self.target.names.last().and_then(|name| name.to_str());
                self.file(&way, way.end, etag::plain(&way.end), last).await
            }
            NodeKind::Symlink => self.link(&way, &resolved).await,
            NodeKind::Directory | NodeKind::Shard => self.directory(&way).await,
        }
    }

    async fn file(
        &self,
        way: &Way,
        id: ContentId,
        etag: String,
        name: Option<&str>,
    ) -> Result<Response, Refusal> {
        if let Some(same) = self.not_modified(&etag, &way.roots) {
            return Ok(same);
        }
        let handle = self.resolver.open(&id).await?;
        let source = Source::File { handle, fetch: self.resolver.fetch };
        let named = self.query.get("filename").or(name).and_then(kind::by_name);
        let media_type = match named {
            Some(named) => named,
            None => kind::by_bytes(&source.begin(kind::SNIFFED).await?).to_owned(),
        };
        let mut told = self.told(&etag, &way.roots);
        self.put_disposition(&mut told);
        body::answer(self.asked, source, &media_type, &etag, told).await
    }

    fn put_disposition(&self, told: &mut HeaderMap) {
        let (name, download) = (self.query.get("filename"), self.query.get("download"));
        if name.is_some() || download.is_some() {
            let value = headers::disposition(download == Some("true"), name);
            headers::put(told, header::CONTENT_DISPOSITION, &value);
        }
    }

    /// The text of a link: it is not followed, since it may lead out of what was asked for.
    async fn link(&self, way: &Way, resolved: &Arc<Resolved>) -> Result<Response, Refusal> {
        let etag = etag::plain(&way.end);
        if let Some(same) = self.not_modified(&etag, &way.roots) {
            return Ok(same);
        }
        let text = resolved.target.clone().unwrap_or_default().into_encoded_bytes();
        let told = self.told(&etag, &way.roots);
        body::answer(self.asked, Source::Block(text.into()), "inode/symlink", &etag, told).await
    }

    async fn directory(&self, way: &Way) -> Result<Response, Refusal> {
        if !self.target.ends_in_slash {
            return Ok(self.with_slash());
        }
        if let Some(index) = self.resolver.child(&way.end, &OsString::from(INDEX)).await? {
            let is_file = index.cid.codec() == Codec::Raw
                || self.resolver.resolve(&index.cid).await?.kind == NodeKind::File;
            if is_file {
                return self.file(way, index.cid, etag::plain(&way.end), Some(INDEX)).await;
            }
        }
        let etag = etag::listing(&way.end);
        if let Some(same) = self.not_modified(&etag, &way.roots) {
            return Ok(same);
        }
        let entries = self.resolver.entries(&way.end).await?;
        let mut told = self.told(&etag, &way.roots);
        told.insert(header::CACHE_CONTROL, HeaderValue::from_static(headers::LISTING));
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        told.insert(header::CONTENT_TYPE, html);
        let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
        told.insert(header::CONTENT_SECURITY_POLICY, policy);
        let body = match self.asked.is_head {
            true => Body::empty(),
            false => Body::from_stream(listing::page(&self.target, &way.end, entries)),
        };
        Ok((told, body).into_response())
    }

    /// Relative links of a page lead to the right place only below a path with a slash at its end.
    fn with_slash(&self) -> Response {
        let mut url = self.target.url(self.target.names.len());
        url.push('/');
        let query = self.query.with(&[]);
        if !query.is_empty() {
            url = format!("{url}?{query}");
        }
        (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, url)]).into_response()
    }
}

/// A script of one content must not be set over those of others: `/ipfs/{cid}` without a slash would have `/ipfs/` as its
/// scope.
fn refuse_wide_service_worker(target: &Target, headers: &HeaderMap) -> Result<(), Refusal> {
    let is_script = headers.get("service-worker").is_some_and(|value| value == "script");
    if is_script && target.names.is_empty() && !target.ends_in_slash {
        let text = "a service worker may be registered below a content only";
        return Err(Refusal::Wrong(text.to_owned()));
    }
    Ok(())
}

fn has_directive(headers: &HeaderMap, directive: &str) -> bool {
    let values = headers.get_all(header::CACHE_CONTROL).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(directive))
}
