//! One listener; a task for each connection, which ends with the node.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{host::Hosts, routes};
use crate::{node::Node, tasks::Tasks};

/// Connections at once; others wait to be accepted. A browser opens six for a page.
const MAX_CONNECTIONS: usize = 256;

/// Time for the head of a request, and between two of one connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// For so long a client may read nothing: longer than a player that was paused for a moment, which asks again then.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// Time that answers in progress get when the daemon ends.
const GRACE: Duration = Duration::from_secs(1);

/// Wait after a connection could not be accepted: mostly there are too many open files, and the next try fails as well.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Where and what is served.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether only what is here is given.
    pub no_fetch: bool,
    /// Whether there is no network: what is not here is then known not to be had.
    pub offline: bool,
    /// Names of this machine that a request may come for, besides `localhost`.
    pub hosts: Vec<String>,
}

/// Why nothing could be served.
#[derive(Debug, thiserror::Error)]
#[error("the gateway cannot listen on {address}: {source}")]
pub struct GatewayError {
    /// The address.
    address: SocketAddr,
    /// What failed.
    source: io::Error,
}

/// A gateway that listens.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    address: SocketAddr,
    app: routes::App,
}

impl Gateway {
    /// Takes the address; nothing is answered yet.
    ///
    /// # Errors
    /// When it is taken, or none of this machine.
    pub async fn bind(node: Node, options: GatewayOptions) -> Result<Self, GatewayError> {
        let failed = |source| GatewayError { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let hosts = Hosts::new(address.ip(), &options.hosts);
        let app = routes::App::new(node, reachable(address), hosts, &options);
        Ok(Self { listener, address, app })
    }

    /// Base URL by which this machine reaches it, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", reachable(self.address))
    }

    /// Serves until all tasks of the node are to end.
    pub fn start(self) {
        let tasks = self.app.node.tasks().clone();
        tasks.clone().spawn("gateway", async move {
            let cancelled = tasks.cancelled();
            tokio::select! {
                never = self.accept(&tasks) => match never {},
                () = cancelled => {}
            }
        });
    }

    async fn accept(self, tasks: &Tasks) -> Infallible {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let router = routes::router(self.app);
        loop {
            // The semaphore is never closed.
            let Ok(place) = places.clone().acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let served = serve(stream, router.clone(), place, tasks.cancelled());
                    tasks.spawn("gateway connection", served);
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection to the gateway could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    router: Router,
    _place: OwnedSemaphorePermit,
    cancelled: impl Future<Output = ()>,
) {
    // Heads and bodies are written at once; small ones must not wait for the other side. Neither call can fail on a
    // connection that is any good, and one that is not shows itself soon.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(STALL_TIMEOUT));
    let mut served = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    tokio::select! {
        ended = served.as_mut() => return told(ended),
        () = cancelled => served.as_mut().graceful_shutdown(),
    }
    // What is cut off then is seen by the client: it lacks its end.
    if let Ok(ended) = tokio::time::timeout(GRACE, served).await {
        told(ended);
    }
}

/// Clients that go away in the middle are nothing unusual.
fn told(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the gateway broke");
    }
}

/// What listens everywhere is reached by this machine through its loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
