//! Section `[torrent]`.

use std::{
    fmt,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{CacheLimit, NetworkSettings, Size, Span, Timeout, units::as_text};
use crate::node::{Limits, TorrentOptions};

/// Section `[torrent]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TorrentSettings {
    /// Whether torrents are fetched.
    pub enabled: bool,
    /// Address on which peers are accepted.
    pub listen: SocketAddr,
    /// Whether the router is asked to let peers in.
    pub upnp: bool,
    /// Whether the public DHT of BitTorrent is joined.
    pub dht: bool,
    /// Whether peers in the own network are looked for.
    pub local_discovery: bool,
    /// Trackers that are asked for every torrent.
    pub trackers: Vec<Tracker>,
    /// Peers that are asked for every torrent.
    pub peers: Vec<SocketAddr>,
    /// Whether links may name trackers and peers in the own networks.
    pub allow_private_addresses: bool,
    /// Most peers of one torrent.
    pub max_peers: NonZeroUsize,
    /// Bytes that are asked of one peer before it has sent any.
    pub peer_window: Size,
    /// Disk that torrents may take that are neither pinned nor seeded.
    pub cache_limit: CacheLimit,
    /// Most bytes per second that are sent; 0: no limit.
    pub upload_limit: Size,
    /// Most bytes per second that are received; 0: no limit.
    pub download_limit: Size,
    /// SOCKS5 proxy for everything that goes out.
    pub proxy: TorrentProxy,
    /// Longest wait for a connection to a peer.
    pub connect_timeout: Timeout,
    /// Longest silence of a peer.
    pub peer_timeout: Timeout,
}

impl Default for TorrentSettings {
    fn default() -> Self {
        let options = TorrentOptions::default();
        let limit = |limit: Option<NonZeroU32>| Size(limit.map_or(0, |bytes| bytes.get().into()));
        Self {
            enabled: options.online,
            listen: options.listen.unwrap_or(([0; 4], 0).into()),
            upnp: options.upnp,
            dht: options.dht,
            local_discovery: options.local_discovery,
            trackers: Vec::new(),
            peers: options.peers,
            allow_private_addresses: options.allow_private_addresses,
            cache_limit: CacheLimit::Auto,
            max_peers: NonZeroUsize::new(options.peer_limit).unwrap_or(NonZeroUsize::MIN),
            peer_window: Size(options.peer_window),
            upload_limit: limit(options.upload_limit),
            download_limit: limit(options.download_limit),
            proxy: TorrentProxy::default(),
            connect_timeout: Timeout(Span(options.connect_timeout)),
            peer_timeout: Timeout(Span(options.read_timeout)),
        }
    }
}

impl TorrentSettings {
    /// What the node is told. A private network has no public DHT, and asks nobody whom it does not know; what a link
    /// names near by is asked there.
    pub(super) fn options(
        &self,
        network: &NetworkSettings,
        min_free: CacheLimit,
        lookup_timeout: Duration,
    ) -> TorrentOptions {
        // Below the least one that works nothing would be sent at all.
        let limit = |size: Size| match Limits::of(size.0) {
            Ok(limit) => limit,
            Err(least) => NonZeroU32::new(least),
        };
        TorrentOptions {
            online: self.enabled && !network.offline,
            listen: Some(self.listen),
            upnp: self.upnp && !network.private,
            dht: self.dht && !network.private,
            local_discovery: self.local_discovery && !network.private,
            trackers: self.trackers.iter().map(|tracker| tracker.0.clone()).collect(),
            public_trackers: !network.private,
            allow_private_addresses: self.allow_private_addresses || network.private,
            peers: self.peers.clone(),
            peer_limit: self.max_peers.get(),
            peer_window: self.peer_window.0,
            cache_limit: self.cache_limit.bytes(),
            min_free: min_free.bytes(),
            upload_limit: limit(self.upload_limit),
            download_limit: limit(self.download_limit),
            proxy: self.proxy.0.clone(),
            connect_timeout: self.connect_timeout.0.0,
            read_timeout: self.peer_timeout.0.0,
            lookup_timeout,
        }
    }
}

/// The address of a tracker, such as `udp://tracker.example:6969/announce`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracker(pub String);

/// The address of a SOCKS5 proxy, `socks5h://HOST:PORT` (names are looked up by the proxy) or `socks5://HOST:PORT`; empty:
/// none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TorrentProxy(pub Option<String>);

/// Host and port behind a scheme, as far as they can be told without asking anybody.
fn has_host(rest: &str) -> bool {
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    !host.is_empty() && !host.starts_with(':')
}

impl FromStr for Tracker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = ["udp://", "http://", "https://"].iter().find_map(|s| text.strip_prefix(s));
        match rest {
            Some(rest) if has_host(rest) => Ok(Self(text.to_owned())),
            _ => Err(format!(
                "`{text}` is not the address of a tracker such as \"udp://tracker.example:6969/announce\""
            )),
        }
    }
}

impl fmt::Display for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TorrentProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let schemes = ["socks5h://", "socks5://"];
        let address = schemes.iter().find_map(|s| text.strip_prefix(s)).unwrap_or_default();
        let port = address.trim_end_matches('/').rsplit_once(':').map(|(_, port)| port);
        if port.is_some_and(|port| port.parse::<u16>().is_ok()) && has_host(address) {
            return Ok(Self(Some(text.to_owned())));
        }
        Err(format!("`{text}` is not a proxy such as \"socks5h://127.0.0.1:9050\""))
    }
}

impl fmt::Display for TorrentProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or_default())
    }
}

as_text!(Tracker, TorrentProxy);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::config::{Layers, Settings};

    #[test]
    fn defaults_of_the_file_are_those_of_the_torrents() {
        let options = format!("{:?}", TorrentOptions::default());
        assert_eq!(format!("{:?}", Settings::default().node_options().torrent), options);
    }

    #[test]
    fn private_asks_nothing_public_and_offline_nobody() {
        let mut settings = Settings::default();
        settings.torrent.trackers.push("udp://tracker.example:6969".parse().unwrap());
        settings.network.private = true;
        let private = settings.node_options().torrent;
        assert!(private.online && private.allow_private_addresses);
        assert!(!private.dht && !private.public_trackers && !private.local_discovery);
        // What the user names is asked all the same.
        assert_eq!(private.trackers.len(), 1);
        settings.network.offline = true;
        assert!(!settings.node_options().torrent.online);
    }

    #[test]
    fn what_is_wrong_in_the_section_is_named() {
        let read = |line: &str| {
            let text = format!("[torrent]\n{line}\n");
            Layers::new().unwrap().text(std::path::Path::new("f"), &text).map(Layers::finish)
        };
        for (line, part) in [
            ("tracker = \"udp://a\"", "unknown field `tracker`"),
            (
                "trackers = [\"tracker.example\"]",
                "`tracker.example` is not the address of a tracker",
            ),
            ("trackers = [\"udp://\"]", "not the address"),
            ("proxy = \"http://127.0.0.1:1\"", "is not a proxy"),
            ("proxy = \"socks5://127.0.0.1\"", "is not a proxy"),
            ("max_peers = 0", "nonzero"),
            ("peers = [\"127.0.0.1\"]", "invalid socket address"),
        ] {
            let error = read(line).unwrap_err().to_string();
            assert!(error.starts_with("f:2:") && error.contains(part), "{error}");
        }
        let text = "proxy = \"socks5://a:1\"\nupload_limit = \"1 MiB\"\npeer_window = \"8 MiB\"";
        let good = read(text).unwrap();
        let options = good.node_options().torrent;
        assert_eq!(options.proxy.as_deref(), Some("socks5://a:1"));
        assert_eq!(options.upload_limit, NonZeroU32::new(1 << 20));
        assert_eq!(options.peer_window, 8 << 20);
        let least = read("download_limit = \"1 B\"").unwrap().node_options().torrent;
        assert_eq!(least.download_limit, NonZeroU32::new(16 << 10));
    }
}
