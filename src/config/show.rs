//! Printing the settings as a file that can be read back, each key with what it means and what it is by default.

use std::fmt::Write;

use toml::{Table, Value};

use super::{ConfigError, Settings};

/// What each key means. A test holds the list complete.
const MEANINGS: &[(&str, &str)] = &[
    ("data_dir", "where everything is kept; each daemon has its own"),
    (
        "mount.allow_other",
        "let other users enter the mount (needs user_allow_other in /etc/fuse.conf)",
    ),
    ("mount.passthrough", "let the kernel read complete files without the daemon, where it can"),
    (
        "store.cache_limit",
        "disk that unpinned content may take: \"auto\" (a tenth of the disk) or a size",
    ),
    (
        "store.min_free",
        "disk to leave free: \"auto\" (1 GiB, and a twentieth of a smaller disk) or a size; what would go below it is refused once nothing is left to evict, whoever has filled the disk",
    ),
    ("network.offline", "no network at all"),
    (
        "network.private",
        "ask nobody whom you did not name: none of the built-in bootstrap nodes, gateways and routers, no HTTP server that only a stranger named, no mDNS, UPnP and AutoNAT, no relay but your peers",
    ),
    ("network.listen", "addresses to listen on; port 0 takes a free one"),
    ("network.bootstrap", "peers to ask first for the DHT"),
    ("network.peers", "peers that stay connected"),
    ("network.serve_cached", "serve also what was only read, not published"),
    ("network.announce", "addresses that lead here, where others need not test that"),
    ("network.mdns", "find nodes of the local network, and be found by them"),
    ("network.autonat", "have others test which addresses lead here, and test theirs"),
    (
        "network.relay_client",
        "have up to two relays introduce others while nobody can reach this node; no content goes over them",
    ),
    ("network.relay_server", "introduce others to each other, within narrow limits"),
    ("network.dcutr", "turn connections over relays into direct ones"),
    ("network.upnp", "have the router of a local network forward the ports that are listened on"),
    ("http.gateways", "trustless gateways that are asked for everything"),
    ("http.routers", "delegated routers that are asked who provides a content"),
    (
        "http.proxy",
        "what all HTTP requests go through, such as \"socks5h://127.0.0.1:9050\" or \"http://127.0.0.1:8080\"; empty: nothing",
    ),
    ("http.max_requests_per_gateway", "requests at a time at one gateway"),
    (
        "http.allow_private_addresses",
        "let what a stranger wrote (provider records, redirects) lead to private and loopback addresses, also with network.private",
    ),
    ("download.max_concurrent_downloads", "downloads at once; others queue"),
    ("download.chunks_per_peer", "blocks asked of a source before its rate is known"),
    ("download.max_chunk_retries", "tries per source and block"),
    ("download.initial_backoff_ms", "wait before the first retry, in milliseconds"),
    ("download.backoff_multiplier", "factor between waits"),
    ("download.max_backoff_ms", "longest wait between tries, in milliseconds"),
    ("download.peer_failure_threshold", "failures in a row after which a source is left alone"),
    ("download.peer_blacklist_duration_secs", "for how long, in seconds"),
    ("download.request_timeout", "longest wait for one answer"),
    (
        "download.chunk_timeout_secs",
        "time for one block at one source while another could be asked for it, in seconds",
    ),
    ("download.chunk_timeout", "longest time for one block over all sources"),
    (
        "download.lookup_timeout",
        "longest time without progress before a lookup or a read gives up; 0: no limit",
    ),
    ("torrent.enabled", "fetch torrents; what is here of them can be read in any case"),
    (
        "torrent.listen",
        "address on which peers are accepted once a torrent was asked for; port 0 takes a free one",
    ),
    ("torrent.upnp", "ask the router to let peers in"),
    ("torrent.dht", "join the public DHT of BitTorrent, unless network.private"),
    (
        "torrent.cache_limit",
        "disk that torrents may take that are neither pinned nor seeded: \"auto\" (a tenth of the disk) or a size",
    ),
    (
        "torrent.local_discovery",
        "look for peers in the own network by multicast, unless network.private",
    ),
    ("torrent.trackers", "trackers that are asked for every torrent"),
    ("torrent.peers", "peers that are asked for every torrent, such as \"192.168.1.5:6881\""),
    (
        "torrent.allow_private_addresses",
        "let links name trackers and peers at private and loopback addresses; with network.private they always may",
    ),
    ("torrent.max_peers", "peers of one torrent at a time"),
    (
        "torrent.peer_window",
        "bytes asked of one peer ahead: more is faster where it is far away, less is faster to jump",
    ),
    (
        "torrent.upload_limit",
        "bytes per second that are sent, of all torrents together, at least 16 KiB; \"0 B\": no limit",
    ),
    (
        "torrent.download_limit",
        "bytes per second that are received, at least 16 KiB; \"0 B\": no limit",
    ),
    (
        "torrent.proxy",
        "SOCKS5 proxy for everything that goes out, such as \"socks5h://127.0.0.1:9050\"; no DHT then; empty: none",
    ),
    ("torrent.connect_timeout", "longest wait for a connection to a peer"),
    ("torrent.peer_timeout", "longest silence of a peer"),
    ("upload.read_only", "publish nothing"),
    (
        "upload.ignore",
        "names that are not published, in upload/ and by `chiral add`, unless they are asked for: patterns of .gitignore, over which a file .chiralignore goes; what they fit can be used in upload/ as anything else",
    ),
    ("upload.torrent", "give everything that is published to others as a torrent, too"),
    ("gateway.enabled", "serve content over HTTP"),
    (
        "gateway.listen",
        "address of the HTTP gateway; port 0 takes a free one, which `chiral status` shows",
    ),
    ("gateway.no_fetch", "give only what is here, and fetch nothing for a request"),
    ("gateway.hosts", "names of this machine, besides localhost, that requests may come for"),
    (
        "accounting.credit",
        "bytes that a peer may be given beyond what it gave before an event `payment_required` tells so, and again with each further such amount; nobody is refused for it; \"0 B\": no events",
    ),
    ("upload.profile", "ids as \"cid-v1\" (ipfs add --cid-version=1) or \"unixfs-v1-2025\""),
];

impl Settings {
    /// The settings as a configuration file.
    ///
    /// # Errors
    /// When a path cannot be written in TOML (it is not UTF-8).
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let now = Table::try_from(self)?;
        let default = Table::try_from(Self::default())?;
        let mut text = String::new();
        for (key, value) in now.iter().filter(|(_, value)| !value.is_table()) {
            write_key(&mut text, key, key, value, default.get(key));
        }
        for (section, keys) in now.iter().filter_map(|(name, v)| Some((name, v.as_table()?))) {
            text.push_str(&format!("\n[{section}]\n"));
            for (key, value) in keys {
                let default = default.get(section).and_then(|section| section.get(key));
                write_key(&mut text, &format!("{section}.{key}"), key, value, default);
            }
        }
        Ok(text)
    }
}

fn write_key(text: &mut String, path: &str, key: &str, value: &Value, default: Option<&Value>) {
    if let Some((_, meaning)) = MEANINGS.iter().find(|(name, _)| *name == path) {
        let _ = writeln!(text, "# {meaning}");
    }
    match default.filter(|default| *default != value) {
        Some(default) => {
            let _ = writeln!(text, "# default: {default}");
        }
        None => text.push_str("# (default)\n"),
    }
    let _ = writeln!(text, "{key} = {value}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::Path;

    use super::*;
    use crate::config::Layers;

    #[test]
    fn what_is_shown_is_read_back() {
        let mut settings = Settings::default();
        settings.network.private = true;
        settings.store.min_free = "3 GiB".parse().unwrap();
        let text = settings.to_toml().unwrap();
        assert!(text.contains("# default: \"auto\"\nmin_free = \"3 GiB\"\n"), "{text}");
        let read = Layers::new().unwrap().text(Path::new("shown"), &text).unwrap().finish();
        assert_eq!(read, settings);
    }

    #[test]
    fn every_key_is_explained_and_nothing_else_is() {
        let mut keys = Vec::new();
        for (name, value) in Table::try_from(Settings::default()).unwrap() {
            match value {
                Value::Table(section) => {
                    keys.extend(section.keys().map(|key| format!("{name}.{key}")));
                }
                _ => keys.push(name),
            }
        }
        let mut explained: Vec<_> = MEANINGS.iter().map(|(key, _)| (*key).to_owned()).collect();
        keys.sort();
        explained.sort();
        assert_eq!(keys, explained);
    }
}
