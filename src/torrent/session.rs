//! The librqbit session: started with the first torrent that needs it, stopped with everything else.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use librqbit::{
    AddTorrent, AddTorrentOptions, AddTorrentResponse, ConnectionOptions, DhtSessionConfig,
    ListenerOptions, ManagedTorrent, PeerConnectionOptions, Session, SessionOptions,
    SessionPersistenceConfig, dht::DhtPersistenceConfig, limits::LimitsConfig,
};
use librqbit_core::constants::CHUNK_SIZE;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{Limits, TorrentError, TorrentOptions, known::Known};
use crate::tasks::{Apart, Tasks};

/// Size of librqbit's one semaphore. Each open stream holds one of its permits for good, and each torrent that is added
/// does for a moment: at its default of 8 the eighth open file stops everything. So it is more than there are ever
/// torrents that are read, each of which may hold some; it stands for no thread.
const PERMITS: usize = 1 << 20;
/// Torrents that are hashed at once when they are taken up.
const CHECKS: NonZeroUsize = NonZeroUsize::new(3).unwrap();
/// Longest wait for the greeting of somebody who calls: of these only so many are waited for at a time.
const GREETING: Duration = Duration::from_secs(10);
/// What other peers see of us.
const CLIENT: &str = concat!("chiral/", env!("CARGO_PKG_VERSION"));
/// Longest wait for the session's end: it sleeps a second by itself.
const STOP: Duration = Duration::from_secs(3);

/// A session, and what it runs on.
///
/// Torrents are fetched and given on one thread. librqbit takes a piece out of those that are under way before its hash
/// is checked, and among those that are here after that; a peer that asks for work in between, on another thread, is
/// given it once more, and it stays under way for ever, fetched by one peer after the other. With two fast peers half of
/// all that came was that. One thread is also faster: peers do not wait for each other's locks.
///
/// What may take long, hashing what is on disk and waiting until it is written, has threads of its own.
#[derive(Clone)]
pub(super) struct Running {
    session: Arc<Session>,
    network: Apart,
    disk: Apart,
    over: CancellationToken,
}

impl Running {
    /// The session, for calls that leave nothing behind that goes on: what they start runs on the runtime of the caller.
    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Adds a torrent that is paused.
    pub(super) async fn add(
        &self,
        torrent: AddTorrent<'static>,
        options: AddTorrentOptions,
    ) -> Result<AddTorrentResponse, TorrentError> {
        let session = self.session.clone();
        let add = async move { session.add_torrent(torrent, Some(options)).await };
        self.disk.run(add).await.map_err(|_| TorrentError::Closed)?.map_err(failed)
    }

    /// Sets a torrent going. One that has failed is hashed before, and goes for a moment where that is done.
    pub(super) async fn unpause(
        &self,
        torrent: &Arc<ManagedTorrent>,
        has_failed: bool,
    ) -> Result<(), TorrentError> {
        if has_failed {
            let (session, torrent) = (self.session.clone(), torrent.clone());
            let hash = async move {
                session.unpause(&torrent).await?;
                torrent.wait_until_initialized().await?;
                session.pause(&torrent).await
            };
            self.disk.run(hash).await.map_err(|_| TorrentError::Closed)?.map_err(failed)?;
        }
        let (session, torrent) = (self.session.clone(), torrent.clone());
        let unpause = async move { session.unpause(&torrent).await };
        self.network.run(unpause).await.map_err(|_| TorrentError::Closed)?.map_err(failed)
    }

    /// What runs where is hashed.
    #[cfg(test)]
    pub(super) fn hashing(&self) -> usize {
        self.disk.alive()
    }

    /// Ends the session and all that it has started.
    pub(super) async fn stop(&self) {
        if tokio::time::timeout(STOP, self.session.stop()).await.is_err() {
            tracing::warn!("the torrents did not end in time");
        }
        self.over.cancel();
    }
}

/// What librqbit says went wrong.
pub(super) fn failed(error: anyhow::Error) -> TorrentError {
    // A failure of the disk that came through librqbit.
    match error.downcast::<TorrentError>() {
        Ok(error) => error,
        Err(error) => match error.downcast::<std::io::Error>() {
            Ok(error) => TorrentError::disk("use", error),
            Err(error) => TorrentError::Session(format!("{error:#}").into()),
        },
    }
}

/// Starts a session.
pub(super) async fn start(
    options: &TorrentOptions,
    known: &Arc<Known>,
    tasks: &Tasks,
) -> Result<Running, TorrentError> {
    let over = CancellationToken::new();
    let unless_it_starts = over.clone().drop_guard();
    let apart = |name, threads| tasks.apart(name, threads, &over);
    let apart = |name, threads| apart(name, threads).map_err(|e| TorrentError::disk("start", e));
    let (network, disk) =
        (apart("torrent network", NonZeroUsize::MIN)?, apart("torrent disk", CHECKS)?);
    let session = begin(options, known, &network).await?;
    unless_it_starts.disarm();
    Ok(Running { session, network, disk, over })
}

async fn begin(
    options: &TorrentOptions,
    known: &Known,
    network: &Apart,
) -> Result<Arc<Session>, TorrentError> {
    let folder = known.session_folder();
    let new = async |options: SessionOptions| {
        // Nothing is ever written there: each torrent comes with a storage of its own.
        let new = Session::new_with_opts(folder.clone(), options);
        network.run(new).await.map_err(|_| TorrentError::Closed)
    };
    let started = new(session_options(options, known)?).await?;
    let unspecified_v6 =
        options.listen.filter(|address| address.is_ipv6() && address.ip().is_unspecified());
    match (started, unspecified_v6) {
        (Err(error), Some(address)) => {
            tracing::debug!(error = %format_args!("{error:#}"), "listening on IPv4 alone");
            let listen = Some((Ipv4Addr::UNSPECIFIED, address.port()).into());
            let options = TorrentOptions { listen, ..options.clone() };
            new(session_options(&options, known)?).await?.map_err(failed)
        }
        (started, _) => started.map_err(failed),
    }
}

fn session_options(
    options: &TorrentOptions,
    known: &Known,
) -> Result<SessionOptions, TorrentError> {
    let listen = options.listen.filter(|_| options.online);
    // Whoever goes through a proxy wants nothing else to tell where it is.
    let open = options.online && options.proxy.is_none();
    let dht = (open && options.dht).then(|| DhtSessionConfig {
        persistence: Some(DhtPersistenceConfig {
            config_filename: Some(known.session_folder().join("dht.json")),
            ..DhtPersistenceConfig::default()
        }),
        ..DhtSessionConfig::default()
    });
    Ok(SessionOptions {
        dht,
        disable_trackers: !options.online,
        fastresume: true,
        persistence: Some(SessionPersistenceConfig::Json { folder: Some(known.session_folder()) }),
        listen: listen.map(|listen_addr| ListenerOptions {
            listen_addr,
            enable_upnp_port_forwarding: options.upnp && open,
            ipv4_only: listen_addr.is_ipv4(),
            ..ListenerOptions::default()
        }),
        connect: Some(ConnectionOptions {
            proxy_url: options.proxy.clone(),
            peer_opts: Some(PeerConnectionOptions {
                connect_timeout: Some(options.connect_timeout),
                // Each torrent has its own; this holds for those who have not said yet which one they want.
                read_write_timeout: Some(options.read_timeout.min(GREETING)),
                max_request_window: Some(requests(options.peer_window)),
                ..PeerConnectionOptions::default()
            }),
            ..ConnectionOptions::default()
        }),
        concurrent_init_limit: Some(CHECKS.get()),
        runtime_worker_threads: Some(PERMITS),
        ratelimits: LimitsConfig {
            upload_bps: options.upload_limit,
            download_bps: options.download_limit,
        },
        trackers: if options.online { trackers(&options.trackers)? } else { HashSet::new() },
        peer_limit: Some(options.peer_limit),
        disable_local_service_discovery: !(open && options.local_discovery),
        ipv4_only: listen.is_some_and(|address| address.is_ipv4()),
        client_name_and_version: Some(CLIENT.to_owned()),
        ..SessionOptions::default()
    })
}

fn trackers(named: &[String]) -> Result<HashSet<Url>, TorrentError> {
    let parsed = named.iter().map(|text| {
        let url = Url::parse(text).ok();
        let url = url.filter(|url| matches!(url.scheme(), "udp" | "http" | "https"));
        url.ok_or_else(|| TorrentError::Tracker(text.clone()))
    });
    parsed.collect()
}

/// The requests that a window of so many bytes has room for, of one chunk each.
fn requests(window: u64) -> usize {
    usize::try_from(window / u64::from(CHUNK_SIZE)).unwrap_or(usize::MAX).max(1)
}

/// Most bytes per second from now on. One that is set anew lets as much as that pass at once.
pub(super) fn limit(session: &Session, limits: Limits) {
    let rates = &session.ratelimits;
    if rates.get_upload_bps() != limits.upload {
        rates.set_upload_bps(limits.upload);
    }
    if rates.get_download_bps() != limits.download {
        rates.set_download_bps(limits.download);
    }
}

/// Where a session accepts peers.
pub(super) fn address(session: &Session) -> Option<SocketAddr> {
    session.listen_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_counted_in_requests_and_never_closed() {
        let windows = [0, 1, 16 << 10, (32 << 10) - 1, 2 << 20];
        assert_eq!(windows.map(requests), [1, 1, 1, 1, 128]);
    }
}
