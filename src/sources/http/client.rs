//! The one way out over HTTP: every request of the daemon to a gateway or a router goes through here, and so through
//! the proxy that is configured, past the check of addresses, and within the limits.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    Client, ClientBuilder, Proxy, Response, Url,
    dns::Resolve,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RANGE},
    redirect,
};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout_at},
};

use super::{
    HttpOptions,
    address::{Anywhere, Lookup, NotPublic, PublicOnly, is_acceptable},
};
use crate::content::ByteRange;

/// Redirects that are followed: a gateway needs one or two (other host, subdomain).
const MAX_REDIRECTS: usize = 5;
/// An idle connection is kept for this long: the pause between two windows of a player, not between two films.
const IDLE: Duration = Duration::from_secs(60);
/// Longest wait for a connection: two lost packets at its beginning.
const CONNECT: Duration = Duration::from_secs(10);

/// Who named a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The user: it may be anywhere.
    Configured,
    /// Anybody: it leads to public addresses only.
    Stranger,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HttpError {
    /// Nothing came for too long.
    #[error("no answer in time")]
    Timeout,
    /// No connection, or it broke.
    #[error("{0}")]
    Broken(String),
    /// It leads where a stranger's words may not lead, or round in circles.
    #[error("{0}")]
    Refused(String),
}

/// The client, with its connections; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Http {
    inner: Arc<Inner>,
}

struct Inner {
    proxy: Option<Url>,
    answer_timeout: Duration,
    ask_strangers: bool,
    allow_private: bool,
    lookup: Lookup,
    /// Two sets of connections, so that none that was made for the user is given to a stranger's URL. Each is made with
    /// the first request: reading the certificates of the system takes some milliseconds.
    anywhere: OnceCell<Result<Client, HttpError>>,
    public: OnceCell<Result<Client, HttpError>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("proxy", &self.proxy).finish_non_exhaustive()
    }
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(super) struct Answer {
    response: Response,
    patience: Duration,
}

impl Http {
    pub(super) fn new(options: &HttpOptions, lookup: Lookup) -> Self {
        let inner = Inner {
            proxy: options.proxy.as_ref().map(|proxy| proxy.url().clone()),
            answer_timeout: options.request_timeout,
            ask_strangers: options.ask_strangers,
            allow_private: options.allow_private_addresses,
            lookup,
            anywhere: OnceCell::new(),
            public: OnceCell::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether a URL that a stranger named may be asked.
    pub(super) fn accepts(&self, url: &Url) -> bool {
        let web = matches!(url.scheme(), "http" | "https") && url.has_host();
        self.inner.ask_strangers && (is_acceptable(url) || (self.inner.allow_private && web))
    }

    /// Asks for a URL and follows redirects: one that stays at the same origin is as good as the first URL, any other
    /// was written by a stranger.
    pub(super) async fn get(
        &self,
        url: Url,
        trust: Trust,
        accept: &str,
    ) -> Result<Answer, HttpError> {
        self.ask(url, trust, accept, None).await
    }

    /// Asks for a part of what is at a URL, in the same way.
    pub(super) async fn get_range(
        &self,
        url: Url,
        trust: Trust,
        range: ByteRange,
    ) -> Result<Answer, HttpError> {
        self.ask(url, trust, "*/*", Some(range)).await
    }

    async fn ask(
        &self,
        url: Url,
        trust: Trust,
        accept: &str,
        part: Option<ByteRange>,
    ) -> Result<Answer, HttpError> {
        let origin = url.origin();
        let mut url = url;
        let patience = self.inner.answer_timeout;
        let limit = Instant::now() + patience;
        for _ in 0..=MAX_REDIRECTS {
            let own = trust == Trust::Configured && url.origin() == origin;
            if !own && !self.accepts(&url) {
                return Err(HttpError::Refused(format!(
                    "{url} leads where only the user may send it"
                )));
            }
            let client = self.inner.client(own).await?;
            let ask = client.get(url.clone()).header(ACCEPT, accept);
            // What is compressed could be a gigabyte in a kilobyte, and blocks rarely get smaller.
            let ask = ask.header(ACCEPT_ENCODING, "identity");
            let asked = match part {
                Some(part) => ask
                    .header(RANGE, format!("bytes={}-{}", part.start, part.end.saturating_sub(1))),
                None => ask,
            };
            let asked = asked.send();
            let response = match timeout_at(limit, asked).await {
                Ok(response) => response.map_err(failed)?,
                Err(_) => return Err(HttpError::Timeout),
            };
            match next(&url, &response)? {
                Some(next) => url = next,
                None => return Ok(Answer { response, patience }),
            }
        }
        Err(HttpError::Refused(format!("more than {MAX_REDIRECTS} redirects")))
    }
}

impl Inner {
    /// The client for what the user named, or for all else.
    async fn client(&self, own: bool) -> Result<&Client, HttpError> {
        let lookup = self.lookup.clone();
        let client = if own || self.allow_private {
            let resolver = Arc::new(Anywhere(lookup));
            self.anywhere.get_or_init(async || self.build(&resolver)).await
        } else {
            let proxy = self.proxy.as_ref().and_then(Url::host_str).map(ToOwned::to_owned);
            let resolver = Arc::new(PublicOnly::new(lookup, proxy));
            self.public.get_or_init(async || self.build(&resolver)).await
        };
        client.as_ref().map_err(Clone::clone)
    }

    fn build<R: Resolve + 'static>(&self, resolver: &Arc<R>) -> Result<Client, HttpError> {
        let builder = || {
            Client::builder()
                .user_agent(concat!("chiral/", env!("CARGO_PKG_VERSION")))
                // Each is looked at before it is followed.
                .redirect(redirect::Policy::none())
                // Nothing goes another way than the one that is configured, whatever the environment says.
                .no_proxy()
                .connect_timeout(CONNECT)
                .pool_idle_timeout(IDLE)
                .tcp_nodelay(true)
                // Over distance the fixed window of 64 KiB would be the limit of every stream.
                .http2_adaptive_window(true)
                .dns_resolver(resolver.clone())
        };
        let build = |builder: ClientBuilder| {
            let builder = match &self.proxy {
                Some(url) => builder.proxy(Proxy::all(url.clone())?),
                None => builder,
            };
            builder.build()
        };
        build(builder())
            .or_else(|error| {
                // A machine without certificates still has gateways in its own network.
                tracing::warn!("no https: the certificates of this system cannot be used: {error}");
                build(builder().tls_certs_only([]))
            })
            .map_err(failed)
    }
}

/// Where a response leads; none where it is the answer itself.
fn next(url: &Url, response: &Response) -> Result<Option<Url>, HttpError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let refused = || HttpError::Refused("a redirect to nowhere".to_owned());
    let location = response.headers().get(LOCATION).ok_or_else(refused)?;
    let location = location.to_str().map_err(|_| refused())?;
    let next = url.join(location).map_err(|_| refused())?;
    if url.scheme() == "https" && next.scheme() != "https" {
        return Err(HttpError::Refused("a redirect from https to plain http".to_owned()));
    }
    Ok(Some(next))
}

fn failed(error: reqwest::Error) -> HttpError {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if cause.is::<NotPublic>() {
        return HttpError::Refused(cause.to_string());
    }
    if error.is_timeout() {
        return HttpError::Timeout;
    }
    // Without the URL, which has the content in it, and with the cause, which says what is wrong.
    HttpError::Broken(cause.to_string())
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Whether its body is of this media type, parameters aside.
    pub(super) fn is_of_type(&self, media: &str) -> bool {
        let of = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        of.split(';').next().is_some_and(|of| of.trim().eq_ignore_ascii_case(media))
    }

    /// Whether its body is encoded in a way that was not asked for.
    pub(super) fn is_encoded(&self) -> bool {
        self.header(CONTENT_ENCODING.as_str())
            .is_some_and(|encoding| !encoding.trim().eq_ignore_ascii_case("identity"))
    }

    /// Length of the body, if it is told.
    pub(super) fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next piece of the body; none at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        match tokio::time::timeout(self.patience, self.response.chunk()).await {
            Ok(chunk) => chunk.map_err(failed),
            Err(_) => Err(HttpError::Timeout),
        }
    }

    /// The whole body, if it has no more than `limit` bytes.
    pub(super) async fn body(&mut self, limit: usize) -> Result<Option<Bytes>, HttpError> {
        if self.length().is_some_and(|len| len > limit as u64) {
            return Ok(None);
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > limit {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body.into()))
    }
}
