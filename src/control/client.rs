//! The client's side: a request at a time over the socket of the daemon that owns a data folder.

use std::{
    ffi::OsStr,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

pub use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
pub use hyper::Method;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};

use super::{AddOptions, Failure, Reference, socket::SocketPath, wire::FAILURE};
use crate::tasks::Tasks;

/// Longest line of a stream of JSON objects: an event with a path in it is well below.
const MAX_LINE: usize = 1 << 20;

/// Why a request had no answer, or none that helps.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon runs on {}: start one with `chiral mount MOUNTPOINT`, or name another with --data-dir", .0.display())]
    NotRunning(PathBuf),
    /// The socket cannot be used.
    #[error("control socket in {}: {source}", dir.display())]
    Socket {
        /// The data folder.
        dir: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The daemon said no.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The connection broke, or what came is not what was asked for.
    #[error("the daemon's answer broke off: {0}")]
    Broken(String),
}

/// The process of a daemon. It stays the same one, also when its number is given to another.
#[derive(Debug)]
pub struct DaemonProcess(AsyncFd<OwnedFd>);

impl DaemonProcess {
    /// Resolves when the process has ended; all that it had locked is free by then.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

/// Asks one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    dir: PathBuf,
    tasks: Tasks,
}

impl Client {
    /// A client of the daemon on `data_dir`; nothing is opened yet.
    pub fn new(data_dir: &Path, tasks: Tasks) -> Self {
        Self { dir: data_dir.to_owned(), tasks }
    }

    /// `GET` of a JSON answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        let answer = self.send(Method::GET, target, None::<&()>).await?;
        decode(answer).await
    }

    /// `POST` of a JSON request.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        decode(self.send(Method::POST, target, Some(body)).await?).await
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        decode(self.send(Method::DELETE, target, None::<&()>).await?).await
    }

    /// `GET` of bytes as they come; `from` skips as many at the beginning. At the very end there are none.
    ///
    /// # Errors
    /// [`ClientError`], also from the stream.
    pub async fn bytes(
        &self,
        target: &str,
        from: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Unpin + use<>, ClientError> {
        let answer = self.request(Method::GET, target, None::<&()>, Some(from)).await?;
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE && is_end(&answer, from) {
            return Ok(stream::empty().boxed());
        }
        Ok(body_of(succeeded(answer).await?))
    }

    /// JSON objects, one per line, as they come.
    ///
    /// # Errors
    /// [`ClientError`], also from the stream.
    pub async fn lines<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
    ) -> Result<impl Stream<Item = Result<T, ClientError>> + Unpin + use<T>, ClientError> {
        Ok(lines_of(self.send(method, target, None::<&()>).await?))
    }

    /// The same as the answer to a `POST` of a JSON request.
    ///
    /// # Errors
    /// [`ClientError`], also from the stream.
    pub async fn post_lines<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
    ) -> Result<Lines<T>, ClientError> {
        Ok(lines_of(self.send(Method::POST, target, Some(body)).await?))
    }

    /// The same as the answer to a `POST` of bytes of a media type as they come. An error among them breaks the request off.
    ///
    /// # Errors
    /// [`ClientError`], also from the stream.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        target: &str,
        kind: &str,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Lines<T>, ClientError> {
        let body = StreamBody::new(bytes.map_ok(Frame::data)).boxed_unsync();
        let request = Request::builder()
            .method(Method::POST)
            .uri(target)
            .header(header::HOST, "chiral")
            .header(header::CONTENT_TYPE, kind)
            .body(body)
            .map_err(broken)?;
        Ok(lines_of(succeeded(self.exchange(request).await?).await?))
    }

    /// A target such as `/v1/cat?id=…`; the id need not be text.
    pub fn target(route: &str, id: impl AsRef<OsStr>) -> String {
        let mut target = format!("/v1/{route}?id=");
        escape(id.as_ref().as_encoded_bytes(), &mut target);
        target
    }

    /// The target for a file whose bytes are the body of the request.
    ///
    /// # Errors
    /// When the options have no JSON form.
    pub fn target_of_stream(options: &AddOptions) -> Result<String, ClientError> {
        let mut target = "/v1/add/stream?options=".to_owned();
        escape(&serde_json::to_vec(options).map_err(broken)?, &mut target);
        Ok(target)
    }

    /// The same of a reference, whose path need not be text.
    pub fn target_of(route: &str, reference: &Reference) -> String {
        let mut target = Self::target(route, reference.root.to_string());
        if !reference.path.is_empty() {
            target.push('/');
            escape(reference.path.as_encoded_bytes(), &mut target);
        }
        target
    }

    async fn send(
        &self,
        method: Method,
        target: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response<Incoming>, ClientError> {
        succeeded(self.request(method, target, body, None).await?).await
    }

    async fn request(
        &self,
        method: Method,
        target: &str,
        body: Option<&impl Serialize>,
        from: Option<u64>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "chiral")
            .header(header::TE, "trailers")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(from) = from.filter(|from| *from > 0) {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let body = body.map(serde_json::to_vec).transpose().map_err(broken)?.unwrap_or_default();
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        self.exchange(request.body(body).map_err(broken)?).await
    }

    async fn exchange(&self, request: Request<Sent>) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        self.tasks.spawn("control client", connection);
        sender.send_request(request).await.map_err(broken)
    }

    /// The process that listens; none when it is in a world of processes of its own, or the kernel is too old to
    /// watch one.
    ///
    /// # Errors
    /// [`ClientError`] when nobody listens.
    pub async fn process(&self) -> Result<Option<DaemonProcess>, ClientError> {
        let stream = self.connect().await?;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(Pid::from_raw);
        Ok(pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).and_then(watched))
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.dir.clone())
            }
            _ => ClientError::Socket { dir: self.dir.clone(), source },
        };
        let path = SocketPath::of(&self.dir).map_err(failed)?;
        UnixStream::connect(path.as_path()).await.map_err(failed)
    }
}

/// What a query has as it is: the unreserved characters, and the slashes of a path.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Appends `bytes` as a query has them.
fn escape(bytes: &[u8], to: &mut String) {
    to.extend(percent_encode(bytes, PLAIN));
}

/// An answer that is one, or the reason why not.
async fn succeeded(answer: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
    Err(match serde_json::from_slice::<Failure>(&body) {
        Ok(failure) => ClientError::Failure(failure),
        Err(_) => broken(format!("{status}: {}", String::from_utf8_lossy(&body))),
    })
}

/// Whether a range that was refused begins where the bytes end.
fn is_end(answer: &Response<Incoming>, from: u64) -> bool {
    let told = answer.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    told.and_then(|told| told.strip_prefix("bytes */")) == Some(from.to_string().as_str())
}

#[allow(
    deprecated,
    reason = "its successor is unsafe, for types that exchange their descriptor; this one is owned"
)]
fn watched(process: OwnedFd) -> Option<DaemonProcess> {
    AsyncFd::with_interest(process, Interest::READABLE).ok().map(DaemonProcess)
}

fn broken(error: impl ToString) -> ClientError {
    ClientError::Broken(error.to_string())
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(json).map_err(broken)
}

async fn decode<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T, ClientError> {
    parse(&answer.into_body().collect().await.map_err(broken)?.to_bytes())
}

/// JSON objects as they come.
type Lines<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, ClientError>>>>;

/// What a request carries.
type Sent = UnsyncBoxBody<Bytes, io::Error>;

fn lines_of<T: DeserializeOwned>(answer: Response<Incoming>) -> Lines<T> {
    let state = (body_of(answer), Vec::new());
    Box::pin(stream::try_unfold(state, |(mut body, mut held)| async move {
        let Some(line) = next_line(&mut body, &mut held).await? else { return Ok(None) };
        Ok(Some((parse(&line)?, (body, held))))
    }))
}

type Body = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, ClientError>> + Send>>;

fn body_of(answer: Response<Incoming>) -> Body {
    let frames = TryStreamExt::map_err(BodyStream::new(answer.into_body()), broken);
    let data = frames.try_filter_map(|frame| async {
        match frame.into_data().map_err(Frame::into_trailers) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Ok(trailers)) => {
                failure_in(&trailers).map_or(Ok(None), |failure| Err(failure.into()))
            }
            Err(Err(_)) => Ok(None),
        }
    });
    data.boxed()
}

/// Why bytes broke off.
fn failure_in(trailers: &HeaderMap) -> Option<Failure> {
    serde_json::from_slice(trailers.get(FAILURE)?.as_bytes()).ok()
}

/// The next line without its end; what came behind it stays in `held`.
async fn next_line(body: &mut Body, held: &mut Vec<u8>) -> Result<Option<Vec<u8>>, ClientError> {
    loop {
        if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let rest = held.split_off(end + 1);
            let mut line = std::mem::replace(held, rest);
            line.pop();
            return Ok(Some(line));
        }
        if held.len() > MAX_LINE {
            return Err(broken(format!("a line of more than {MAX_LINE} bytes")));
        }
        match body.next().await {
            Some(bytes) => held.extend_from_slice(&bytes?),
            None => return Ok(None),
        }
    }
}
