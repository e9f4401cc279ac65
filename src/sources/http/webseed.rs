//! Servers that have the files of a torrent (BEP 19): what a torrent or a link names, asked for ranges of its files.
//!
//! Each is a feed of the torrent's bridge. Whether its bytes are right is found out there, by the hash of the piece.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::Url;

use super::{
    HttpOptions, ProxyUrl,
    address::{Lookup, system_lookup},
    answer::{failure, refusal},
    client::{Answer, Http, Trust},
};
use crate::{
    content::{ByteRange, RangeSet},
    sources::{Permanent, SourceError, Transient},
    torrent::{Feed, FeedError, Feeder, FileKind, Magnet, Metainfo, TorrentOptions, is_public},
};

/// A server that gives a whole file where a part was asked for is asked for files up to this length.
const SHORT: u64 = 1 << 20;
/// Files of one read that are asked for at a time: a piece of many small files is one.
const FILES_AT_ONCE: usize = 4;

/// What need not be escaped in a path: what RFC 3986 calls unreserved.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Finds the servers of torrents.
#[derive(Clone, Debug)]
pub struct Webseeds {
    http: Http,
    /// Only the own networks are asked, and no names are looked up for it.
    only_near: bool,
}

impl Webseeds {
    /// Asks within the limits of torrents, in the way that is set for HTTP; none where a proxy is set that HTTP cannot
    /// go through.
    pub fn new(http: &HttpOptions, torrent: &TorrentOptions) -> Option<Self> {
        Self::with(http, torrent, system_lookup())
    }

    pub(super) fn with(
        http: &HttpOptions,
        torrent: &TorrentOptions,
        lookup: Lookup,
    ) -> Option<Self> {
        // Whoever has torrents go another way wants nothing of them to go this one.
        let proxy: Option<ProxyUrl> = match &torrent.proxy {
            Some(proxy) => Some(proxy.parse().ok()?),
            None => http.proxy.clone(),
        };
        let only_near = !torrent.public_trackers;
        if only_near && !torrent.allow_private_addresses {
            return None;
        }
        let options = HttpOptions {
            proxy,
            ask_strangers: !only_near,
            allow_private_addresses: torrent.allow_private_addresses,
            request_timeout: http.request_timeout,
            ..HttpOptions::default()
        };
        Some(Self { http: Http::new(&options, lookup), only_near })
    }

    /// Whether a server may be asked because a torrent names it.
    fn trust(&self, url: &Url) -> Option<Trust> {
        if self.only_near {
            let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
            let near = host.parse::<IpAddr>().is_ok_and(|ip| !is_public(ip));
            // As if the user had named it: no redirect leads from it to anybody else.
            let web = matches!(url.scheme(), "http" | "https");
            return (near && web).then_some(Trust::Configured);
        }
        self.http.accepts(url).then_some(Trust::Stranger)
    }
}

impl Feeder for Webseeds {
    fn feeds(&self, torrent: &Arc<Metainfo>, magnet: &Magnet) -> Vec<Arc<dyn Feed>> {
        let seeds = magnet.webseeds.iter().filter_map(|written| {
            let trust = self.trust(&Url::parse(written).ok()?)?;
            let seed = Webseed::new(self.http.clone(), trust, written.clone(), torrent.clone());
            Some(Arc::new(seed) as Arc<dyn Feed>)
        });
        seeds.collect()
    }
}

/// One server of one torrent.
#[derive(Debug)]
struct Webseed {
    http: Http,
    trust: Trust,
    /// The URL as it is written.
    base: String,
    torrent: Arc<Metainfo>,
    /// What stands behind the base for each file that has a name.
    paths: OnceLock<Vec<Option<String>>>,
    has: Mutex<RangeSet>,
}

impl Webseed {
    fn new(http: Http, trust: Trust, base: String, torrent: Arc<Metainfo>) -> Self {
        let given = |kind| matches!(kind, FileKind::Regular { .. } | FileKind::Padding);
        let files = torrent.files.iter().filter(|file| given(file.kind) && !file.range.is_empty());
        let has = Mutex::new(files.map(|file| file.range).collect());
        Self { http, trust, base, torrent, paths: OnceLock::new(), has }
    }

    fn known(&self) -> MutexGuard<'_, RangeSet> {
        self.has.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a file is.
    fn url(&self, file: usize) -> Option<Url> {
        let paths = self.paths.get_or_init(|| paths(&self.torrent, &self.base));
        let path = paths.get(file)?.as_ref()?;
        Url::parse(&format!("{}{path}", self.base)).ok()
    }

    /// The server does not have a file.
    fn lacks(&self, file: usize) -> FeedError {
        let range = self.torrent.files[file].range;
        self.known().remove(range);
        FeedError::Lacks(range)
    }

    /// Bytes of the torrent that lie in one file.
    async fn read_file(&self, file: usize, bytes: ByteRange) -> Result<Bytes, FeedError> {
        let entry = &self.torrent.files[file];
        if entry.kind == FileKind::Padding {
            return Ok(BytesMut::zeroed(length(bytes)).freeze());
        }
        let Some(url) = self.url(file) else { return Err(self.lacks(file)) };
        let (start, end) = (bytes.start - entry.range.start, bytes.end - entry.range.start);
        let range = ByteRange::new(start, end);
        let asked = self.http.get_range(url, self.trust, range).await;
        let mut answer = asked.map_err(|error| told(failure(error)))?;
        if answer.is_encoded() {
            return Err(FeedError::Useless("it compresses unasked".to_owned()));
        }
        match answer.status() {
            206 => {
                if began_at(&answer) != Some(range.start) {
                    let why = "it gives another part than was asked for";
                    return Err(FeedError::Useless(why.to_owned()));
                }
                body(&mut answer, range.len()).await
            }
            200 if entry.range.len() <= SHORT => {
                let whole = body(&mut answer, entry.range.len()).await?;
                let start = usize::try_from(range.start).unwrap_or(usize::MAX);
                Ok(whole.slice(start..start + length(range)))
            }
            200 => Err(FeedError::Useless("it gives no parts of files".to_owned())),
            404 | 410 | 416 | 451 => Err(self.lacks(file)),
            _ => Err(told(refusal(&answer))),
        }
    }
}

impl Feed for Webseed {
    fn name(&self) -> &str {
        &self.base
    }

    fn has(&self) -> RangeSet {
        self.known().clone()
    }

    fn read(&self, range: ByteRange) -> BoxFuture<'_, Result<Bytes, FeedError>> {
        async move {
            let parts = self.torrent.parts(range);
            let parts: Vec<_> = parts.map(|(file, _, part)| (file as usize, part)).collect();
            if let [(file, part)] = parts[..] {
                return self.read_file(file, part).await;
            }
            let reads = parts.into_iter().map(|(file, part)| self.read_file(file, part));
            let all = stream::iter(reads).buffered(FILES_AT_ONCE);
            let mut whole = BytesMut::with_capacity(length(range));
            let joined = all.try_for_each(|part| {
                whole.extend_from_slice(&part);
                futures::future::ok(())
            });
            joined.await?;
            Ok(whole.freeze())
        }
        .boxed()
    }
}

/// Of a read, which is short.
fn length(range: ByteRange) -> usize {
    usize::try_from(range.len()).unwrap_or(usize::MAX)
}

/// What stands behind the URL of a server for each file. A single file is at the URL itself, unless that is a directory;
/// those of a directory are below the torrent's name.
fn paths(torrent: &Metainfo, base: &str) -> Vec<Option<String>> {
    let escaped = |name: &[u8]| percent_encode(name, ESCAPED).to_string();
    let name = escaped(torrent.written_name());
    if torrent.single {
        return vec![Some(if base.ends_with('/') { name } else { String::new() })];
    }
    let slash = if base.ends_with('/') { "" } else { "/" };
    let below = |path: Vec<&[u8]>| {
        let path: Vec<_> = path.into_iter().map(escaped).collect();
        format!("{slash}{name}/{}", path.join("/"))
    };
    torrent.written_paths().into_iter().map(|path| path.map(below)).collect()
}

/// The first byte of the part that an answer has.
fn began_at(answer: &Answer) -> Option<u64> {
    let (unit, rest) = answer.header("content-range")?.trim().split_once(' ')?;
    let (start, _) = rest.trim().split_once('-')?;
    if unit.eq_ignore_ascii_case("bytes") { start.trim().parse().ok() } else { None }
}

/// A body of so many bytes, neither more nor less.
async fn body(answer: &mut Answer, len: u64) -> Result<Bytes, FeedError> {
    let limit = usize::try_from(len).unwrap_or(usize::MAX);
    let body = answer.body(limit).await.map_err(|error| told(failure(error)))?;
    let body =
        body.ok_or_else(|| FeedError::Useless("it gives more than was asked for".to_owned()))?;
    if body.len() < limit {
        return Err(FeedError::Failed("it broke off".to_owned()));
    }
    Ok(body)
}

/// What a bridge makes of a failure.
fn told(error: SourceError) -> FeedError {
    match error {
        SourceError::Transient(Transient::RateLimited(wait)) => FeedError::Busy(wait),
        SourceError::Transient(error) => FeedError::Failed(error.to_string()),
        SourceError::Permanent(Permanent::Rejected(why)) => FeedError::Useless(why),
        SourceError::Permanent(error) => FeedError::Useless(error.to_string()),
    }
}
