//! What a user can set: the file `chiral.toml`, over it the environment, over that the flags.

mod layers;
mod show;
mod torrent;
mod units;

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::{
    layers::{ConfigError, Layers, default_file},
    torrent::{TorrentProxy, TorrentSettings, Tracker},
    units::{
        Address, CacheLimit, Factor, IgnorePattern, OptionalProxy, Server, Size, Span, Timeout,
        UnitError,
    },
};
use crate::node::{
    DownloadOptions, GatewayUrl, HttpOptions, IGNORED, IgnorePatterns, ImportParams, NetOptions,
    NodeOptions, PublishOptions, ReachOptions, StoreOptions, default_data_dir,
};

/// Nodes that anybody may ask first, the list that Kubo comes with. `private` drops them.
const PUBLIC_BOOTSTRAP: [&str; 7] = [
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
    "/dnsaddr/va1.bootstrap.libp2p.io/p2p/12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8",
    "/ip4/104.131.131.82/tcp/4001/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
    "/ip4/104.131.131.82/udp/4001/quic-v1/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
];

/// Gateways that anybody may ask, and that give raw blocks and CARs: the list that Helia comes with. `private` drops them.
const PUBLIC_GATEWAYS: [&str; 2] = ["https://trustless-gateway.link", "https://4everland.io"];

/// Who tells anybody who provides a root: the router that browsers use. `private` drops it.
const PUBLIC_ROUTERS: [&str; 1] = ["https://delegated-ipfs.dev"];

/// Any free port, so that several daemons run beside each other.
const LISTEN: [&str; 2] = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];

/// The name of the private key in the data folder.
const KEY_FILE: &str = "key";

/// Ten years: as good as no limit, and short enough to be added to any time of a clock.
const NO_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Every setting, as the sections of `chiral.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The data folder; empty where the user has no home and named none.
    pub data_dir: PathBuf,
    /// The mounted tree.
    pub mount: MountSettings,
    /// What is on disk.
    pub store: StoreSettings,
    /// The network.
    pub network: NetworkSettings,
    /// What is asked over HTTP.
    pub http: HttpSettings,
    /// The download engine.
    pub download: DownloadSettings,
    /// What is published.
    pub upload: UploadSettings,
    /// Torrents.
    pub torrent: TorrentSettings,
    /// The HTTP gateway.
    pub gateway: GatewaySettings,
    /// What peers owe.
    pub accounting: AccountingSettings,
}

/// Section `[mount]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountSettings {
    /// Whether other users may enter the mount.
    pub allow_other: bool,
    /// Whether complete files are read by the kernel without the daemon, where it can.
    pub passthrough: bool,
}

/// Section `[store]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// Disk that unpinned content may take.
    pub cache_limit: CacheLimit,
    /// Disk to leave free.
    pub min_free: CacheLimit,
}

/// Section `[network]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSettings {
    /// No network at all.
    pub offline: bool,
    /// Nothing public is asked: only what is named here.
    pub private: bool,
    /// Addresses to listen on.
    pub listen: Vec<Address>,
    /// Peers to ask first for the DHT.
    pub bootstrap: Vec<Address>,
    /// Peers that stay connected.
    pub peers: Vec<Address>,
    /// Whether blocks that were only read are served too.
    pub serve_cached: bool,
    /// Addresses that lead here although no test finds them.
    pub announce: Vec<Address>,
    /// Whether nodes of the local network are looked for and told of this one.
    pub mdns: bool,
    /// Whether others are asked which addresses lead here, and are answered.
    pub autonat: bool,
    /// Whether relays are used, by this node and to reach others.
    pub relay_client: bool,
    /// Whether this node is a relay to others.
    pub relay_server: bool,
    /// Whether connections over relays are turned into direct ones.
    pub dcutr: bool,
    /// Whether the router is asked to forward the ports that are listened on.
    pub upnp: bool,
}

/// Section `[http]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Gateways that are asked for everything.
    pub gateways: Vec<Server>,
    /// Delegated routers that are asked who provides a content.
    pub routers: Vec<Server>,
    /// What all requests go through.
    pub proxy: OptionalProxy,
    /// Requests at a time at one gateway.
    pub max_requests_per_gateway: NonZeroUsize,
    /// Whether strangers may name addresses of the own networks.
    pub allow_private_addresses: bool,
}

/// Section `[download]`. The names with a unit hold plain numbers, as they are known from elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DownloadSettings {
    /// Downloads at once; others queue.
    pub max_concurrent_downloads: NonZeroUsize,
    /// Blocks asked of a source before its rate is known.
    pub chunks_per_peer: NonZeroUsize,
    /// Tries per source and block.
    pub max_chunk_retries: NonZeroU32,
    /// Wait before the first retry.
    pub initial_backoff_ms: NonZeroU64,
    /// Factor between waits.
    pub backoff_multiplier: Factor,
    /// Longest wait between tries.
    pub max_backoff_ms: NonZeroU64,
    /// Failures in a row after which a source is left alone.
    pub peer_failure_threshold: NonZeroU32,
    /// For how long.
    pub peer_blacklist_duration_secs: u64,
    /// Longest wait for one answer.
    pub request_timeout: Timeout,
    /// Time that one block may take at one source while another could be asked for it.
    pub chunk_timeout_secs: NonZeroU32,
    /// Longest time for one block over all sources.
    pub chunk_timeout: Timeout,
    /// Longest time without progress before a lookup or a read gives up; 0: no limit.
    pub lookup_timeout: Span,
}

/// Section `[upload]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UploadSettings {
    /// Nothing may be published.
    pub read_only: bool,
    /// Which rules decide the ids of published files.
    pub profile: Profile,
    /// Whether everything that is published is seeded as a torrent, too.
    pub torrent: bool,
    /// Patterns of names that are published only on request.
    pub ignore: Vec<IgnorePattern>,
}

/// Section `[gateway]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewaySettings {
    /// Whether content is served over HTTP.
    pub enabled: bool,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Whether only what is here is given.
    pub no_fetch: bool,
    /// Names of this machine that requests may come for.
    pub hosts: Vec<String>,
}

/// Section `[accounting]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountingSettings {
    /// Bytes that a peer may owe before that is told; 0: nothing is told.
    pub credit: Size,
}

/// Rules that decide the shape of a DAG and so its id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// As `ipfs add --cid-version=1`.
    #[default]
    #[serde(rename = "cid-v1")]
    CidV1,
    /// IPIP-499: 1 MiB chunks, 1,024 links.
    #[serde(rename = "unixfs-v1-2025")]
    UnixfsV1_2025,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: default_data_dir().unwrap_or_default(),
            mount: MountSettings::default(),
            store: StoreSettings::default(),
            network: NetworkSettings::default(),
            http: HttpSettings::default(),
            download: DownloadSettings::default(),
            upload: UploadSettings::default(),
            torrent: TorrentSettings::default(),
            gateway: GatewaySettings::default(),
            accounting: AccountingSettings::default(),
        }
    }
}

impl Default for MountSettings {
    fn default() -> Self {
        Self { allow_other: false, passthrough: true }
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { cache_limit: CacheLimit::Auto, min_free: CacheLimit::Auto }
    }
}

impl Default for NetworkSettings {
    fn default() -> Self {
        let reach = ReachOptions::default();
        Self {
            offline: false,
            private: false,
            listen: addresses(&LISTEN),
            bootstrap: addresses(&PUBLIC_BOOTSTRAP),
            peers: Vec::new(),
            serve_cached: true,
            announce: Vec::new(),
            mdns: reach.mdns,
            autonat: reach.autonat,
            relay_client: reach.relay_client,
            relay_server: reach.relay_server,
            dcutr: reach.dcutr,
            upnp: reach.upnp,
        }
    }
}

impl Default for HttpSettings {
    fn default() -> Self {
        let options = HttpOptions::default();
        Self {
            gateways: servers(&PUBLIC_GATEWAYS),
            routers: servers(&PUBLIC_ROUTERS),
            proxy: OptionalProxy(options.proxy),
            max_requests_per_gateway: at_least_one(options.requests_per_gateway),
            allow_private_addresses: options.allow_private_addresses,
        }
    }
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            enabled: true,
            // Any free port, as for the network; only programs of this machine reach it.
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            no_fetch: false,
            hosts: Vec::new(),
        }
    }
}

impl Default for UploadSettings {
    fn default() -> Self {
        let ignore = IGNORED.map(|pattern| IgnorePattern(pattern.to_owned())).into();
        Self { read_only: false, profile: Profile::default(), torrent: false, ignore }
    }
}

impl Default for AccountingSettings {
    fn default() -> Self {
        Self { credit: Size(0) }
    }
}

impl Default for DownloadSettings {
    fn default() -> Self {
        let engine = DownloadOptions::default();
        let millis = |time: Duration| {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            NonZeroU64::new(millis).unwrap_or(NonZeroU64::MIN)
        };
        Self {
            max_concurrent_downloads: at_least_one(engine.max_concurrent_downloads),
            chunks_per_peer: at_least_one(engine.chunks_per_peer),
            max_chunk_retries: NonZeroU32::new(engine.max_chunk_retries).unwrap_or(NonZeroU32::MIN),
            initial_backoff_ms: millis(engine.initial_backoff),
            backoff_multiplier: Factor(engine.backoff_multiplier),
            max_backoff_ms: millis(engine.max_backoff),
            peer_failure_threshold: NonZeroU32::new(engine.peer_failure_threshold)
                .unwrap_or(NonZeroU32::MIN),
            peer_blacklist_duration_secs: engine.peer_blacklist.as_secs(),
            request_timeout: Timeout(Span(engine.request_timeout)),
            chunk_timeout_secs: u32::try_from(engine.chunk_attempt_timeout.as_secs())
                .ok()
                .and_then(NonZeroU32::new)
                .unwrap_or(NonZeroU32::MAX),
            chunk_timeout: Timeout(Span(engine.chunk_timeout)),
            lookup_timeout: Span(engine.lookup_timeout),
        }
    }
}

impl Settings {
    /// The same, once it is known where everything is kept.
    ///
    /// # Errors
    /// [`ConfigError::NoDataDir`].
    pub fn with_data_dir(self) -> Result<Self, ConfigError> {
        match self.data_dir.as_os_str().is_empty() {
            true => Err(ConfigError::NoDataDir),
            false => Ok(self),
        }
    }

    /// What the node is told.
    pub fn node_options(&self) -> NodeOptions {
        let download = self.download.options();
        NodeOptions {
            torrent: self.torrent.options(
                &self.network,
                self.store.min_free,
                download.lookup_timeout,
            ),
            credit: self.accounting.credit.0,
            seed_uploads: self.upload.torrent && !self.upload.read_only,
            store: StoreOptions {
                dir: self.data_dir.clone(),
                cache_limit: self.store.cache_limit.bytes(),
                min_free: self.store.min_free.bytes(),
            },
            net: self.net_options(),
            http: self.http_options(),
            download,
            publish: PublishOptions {
                import: self.upload.profile.params(),
                read_only: self.upload.read_only,
                ignore: self.upload.ignore(),
            },
        }
    }

    fn net_options(&self) -> NetOptions {
        let plain = |list: &[Address]| list.iter().map(|a| a.0.clone()).collect::<Vec<_>>();
        let mut bootstrap = plain(&self.network.bootstrap);
        if self.network.private {
            let public = plain(&addresses(&PUBLIC_BOOTSTRAP));
            bootstrap.retain(|address| !public.contains(address));
        }
        NetOptions {
            key_file: self.data_dir.join(KEY_FILE),
            listen: plain(&self.network.listen),
            bootstrap,
            peers: plain(&self.network.peers),
            offline: self.network.offline,
            serve_cached: self.network.serve_cached,
            reach: self.network.reach(),
        }
    }
}

impl NetworkSettings {
    fn reach(&self) -> ReachOptions {
        ReachOptions {
            // Nobody is spoken to whom the user did not name: whoever is on the same local network, or finds this node,
            // need not belong to a private one.
            mdns: self.mdns && !self.private,
            upnp: self.upnp && !self.private,
            autonat: self.autonat && !self.private,
            named_relays_only: self.private,
            relay_client: self.relay_client,
            relay_server: self.relay_server,
            dcutr: self.dcutr,
            announce: self.announce.iter().map(|address| address.0.clone()).collect(),
            ..ReachOptions::default()
        }
    }
}

impl Settings {
    fn http_options(&self) -> HttpOptions {
        let (http, private) = (&self.http, self.network.private);
        let named = |list: &[Server], public: &[&str]| -> Vec<GatewayUrl> {
            let public = servers(public);
            let kept = list.iter().filter(|server| !private || !public.contains(server));
            kept.map(|server| server.0.clone()).collect()
        };
        HttpOptions {
            gateways: named(&http.gateways, &PUBLIC_GATEWAYS),
            routers: named(&http.routers, &PUBLIC_ROUTERS),
            proxy: http.proxy.0.clone(),
            requests_per_gateway: http.max_requests_per_gateway.get(),
            request_timeout: self.download.request_timeout.0.0.min(NO_LIMIT),
            // Whoever a stranger names is public, or near and so not to be trusted, unless the user says otherwise.
            ask_strangers: !private || http.allow_private_addresses,
            allow_private_addresses: http.allow_private_addresses,
        }
    }
}

impl DownloadSettings {
    fn options(&self) -> DownloadOptions {
        DownloadOptions {
            max_concurrent_downloads: self.max_concurrent_downloads.get(),
            chunks_per_peer: self.chunks_per_peer.get(),
            max_chunk_retries: self.max_chunk_retries.get(),
            initial_backoff: Duration::from_millis(self.initial_backoff_ms.get()).min(NO_LIMIT),
            backoff_multiplier: self.backoff_multiplier.0,
            max_backoff: Duration::from_millis(self.max_backoff_ms.get()).min(NO_LIMIT),
            peer_failure_threshold: self.peer_failure_threshold.get(),
            peer_blacklist: Duration::from_secs(self.peer_blacklist_duration_secs).min(NO_LIMIT),
            request_timeout: self.request_timeout.0.0.min(NO_LIMIT),
            chunk_attempt_timeout: Duration::from_secs(self.chunk_timeout_secs.get().into()),
            chunk_timeout: self.chunk_timeout.0.0.min(NO_LIMIT),
            lookup_timeout: match self.lookup_timeout.0 {
                Duration::ZERO => NO_LIMIT,
                limit => limit.min(NO_LIMIT),
            },
        }
    }
}

impl UploadSettings {
    /// Patterns of names that are published only on request.
    pub fn ignore(&self) -> IgnorePatterns {
        // Each was checked when it was read.
        IgnorePatterns::new(self.ignore.iter().map(|pattern| &*pattern.0)).unwrap_or_default()
    }
}

impl Profile {
    /// The numbers behind the name.
    pub fn params(self) -> ImportParams {
        match self {
            Self::CidV1 => ImportParams::DEFAULT,
            Self::UnixfsV1_2025 => ImportParams::UNIXFS_V1_2025,
        }
    }
}

fn at_least_one(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}

/// URLs that are written in this file; a test parses each.
fn servers(texts: &[&str]) -> Vec<Server> {
    texts.iter().filter_map(|text| text.parse().ok()).map(Server).collect()
}

/// Addresses that are written in this file; a test parses each.
fn addresses(texts: &[&str]) -> Vec<Address> {
    texts.iter().filter_map(|text| text.parse().ok()).map(Address).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn every_address_that_is_built_in_is_well_formed() {
        assert_eq!(addresses(&PUBLIC_BOOTSTRAP).len(), PUBLIC_BOOTSTRAP.len());
        assert_eq!(addresses(&LISTEN).len(), LISTEN.len());
        assert_eq!(servers(&PUBLIC_GATEWAYS).len(), PUBLIC_GATEWAYS.len());
        assert_eq!(servers(&PUBLIC_ROUTERS).len(), PUBLIC_ROUTERS.len());
    }

    #[test]
    fn defaults_of_the_file_are_those_of_the_engine() {
        let engine = format!("{:?}", DownloadOptions::default());
        assert_eq!(format!("{:?}", Settings::default().node_options().download), engine);
    }

    #[test]
    fn a_credit_is_a_size_and_off_by_default() {
        assert_eq!(Settings::default().node_options().credit, 0);
        let settings: Settings = toml::from_str("[accounting]\ncredit = \"1 GiB\"\n").unwrap();
        assert_eq!(settings.node_options().credit, 1 << 30);
        toml::from_str::<Settings>("[accounting]\ncredits = \"1 GiB\"\n").unwrap_err();
    }

    #[test]
    fn time_for_a_chunk_at_one_source_and_over_all_are_two_keys() {
        let text = "[download]\nchunk_timeout_secs = 7\nchunk_timeout = \"9m\"\n";
        let settings: Settings = toml::from_str(text).unwrap();
        let options = settings.node_options().download;
        assert_eq!(options.chunk_attempt_timeout, Duration::from_secs(7));
        assert_eq!(options.chunk_timeout, Duration::from_secs(540));
        assert_eq!(Settings::default().download.chunk_timeout_secs.get(), 60);
    }

    #[test]
    fn no_time_is_no_limit_where_that_makes_sense_and_refused_elsewhere() {
        let read = |line: &str| {
            let text = format!("[download]\n{line}\n");
            Layers::new().unwrap().text(std::path::Path::new("f"), &text).map(Layers::finish)
        };
        let download = |line| read(line).unwrap().node_options().download;
        assert_eq!(download("lookup_timeout = \"0\"").lookup_timeout, NO_LIMIT);
        assert_eq!(download("lookup_timeout = \"99999999999h\"").lookup_timeout, NO_LIMIT);
        for line in [
            "request_timeout = \"0\"",
            "chunk_timeout = \"0s\"",
            "initial_backoff_ms = 0",
            "max_backoff_ms = 0",
        ] {
            let error = read(line).unwrap_err().to_string();
            assert!(error.starts_with("f:2:"), "{error}");
        }
    }

    #[test]
    fn private_drops_the_public_list_and_keeps_what_the_user_named() {
        let own: Address = "/ip4/127.0.0.1/tcp/4001".parse().map(Address).unwrap();
        let mut settings = Settings::default();
        settings.network.bootstrap.push(own.clone());
        assert_eq!(settings.node_options().net.bootstrap.len(), PUBLIC_BOOTSTRAP.len() + 1);
        settings.network.private = true;
        assert_eq!(settings.node_options().net.bootstrap, [own.0]);
    }

    #[test]
    fn each_way_to_be_found_can_be_switched_off_and_private_asks_nobody_for_any() {
        let ways = |reach: &ReachOptions| {
            [
                ("mdns", reach.mdns),
                ("autonat", reach.autonat),
                ("relay_client", reach.relay_client),
                ("relay_server", reach.relay_server),
                ("dcutr", reach.dcutr),
                ("upnp", reach.upnp),
            ]
        };
        let usual = ways(&Settings::default().node_options().net.reach);
        assert_eq!(usual.map(|(_, on)| on), [true, true, true, false, true, true]);
        for (name, on) in usual {
            let text = format!("[network]\n{name} = {}\n", !on);
            let settings: Settings = toml::from_str(&text).unwrap();
            let changed = ways(&settings.node_options().net.reach);
            let expected = usual.map(|(way, on)| (way, if way == name { !on } else { on }));
            assert_eq!(changed, expected);
        }
        assert!(!Settings::default().node_options().net.reach.named_relays_only);
        let mut private = Settings::default();
        private.network.private = true;
        let reach = private.node_options().net.reach;
        assert!(!reach.mdns && !reach.upnp && !reach.autonat && reach.named_relays_only);
    }

    #[test]
    fn private_asks_only_the_gateways_and_routers_that_the_user_named() {
        let own: Server = "http://127.0.0.1:8080".parse().map(Server).unwrap();
        let mut settings = Settings::default();
        settings.http.gateways.push(own.clone());
        let http = settings.node_options().http;
        assert_eq!((http.gateways.len(), http.routers.len()), (3, 1));
        assert!(http.ask_strangers && !http.allow_private_addresses);
        settings.network.private = true;
        let http = settings.node_options().http;
        assert_eq!((http.gateways, http.routers.len()), (vec![own.0], 0));
        assert!(!http.ask_strangers);
    }

    #[test]
    fn what_is_wrong_in_the_http_section_is_named() {
        let read = |line: &str| {
            let text = format!("[http]\n{line}\n");
            Layers::new().unwrap().text(std::path::Path::new("f"), &text).map(Layers::finish)
        };
        for (line, part) in [
            ("gateway = \"https://a\"", "unknown field `gateway`"),
            ("gateways = [\"ipfs.io\"]", "`ipfs.io` is not a URL"),
            ("proxy = \"127.0.0.1:9050\"", "is not a proxy such as"),
            ("max_requests_per_gateway = 0", "nonzero"),
        ] {
            let error = read(line).unwrap_err().to_string();
            assert!(error.starts_with("f:2:") && error.contains(part), "{error}");
        }
        let good =
            read("proxy = \"socks5h://127.0.0.1:9050\"\ngateways = []").unwrap().node_options();
        assert_eq!(good.http.proxy.unwrap().to_string(), "socks5h://127.0.0.1:9050");
        assert!(good.http.gateways.is_empty());
        assert!(read("proxy = \"\"").unwrap().node_options().http.proxy.is_none());
    }
}
