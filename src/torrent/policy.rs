//! Whom a link may have us ask.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use url::{Host, Url};

use super::{TorrentOptions, is_public};

/// Longest wait for the address of a tracker. One whose name is not found in this time is asked with the next try.
const RESOLVE: Duration = Duration::from_secs(5);

/// What may be asked because a link named it.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    public_trackers: bool,
    near: bool,
    /// Everything goes through a proxy, which looks names up itself and knows no UDP.
    proxied: bool,
    online: bool,
}

impl Policy {
    pub(super) fn new(options: &TorrentOptions) -> Self {
        Self {
            public_trackers: options.public_trackers,
            near: options.allow_private_addresses,
            proxied: options.proxy.is_some(),
            online: options.online,
        }
    }

    /// The peers of a link that may be dialled.
    pub(super) fn peers(&self, named: &[SocketAddr]) -> Vec<SocketAddr> {
        let allowed = |peer: &&SocketAddr| {
            self.online && peer.port() != 0 && (self.near || is_public(peer.ip()))
        };
        named.iter().filter(allowed).copied().collect()
    }

    /// The trackers of a link that may be asked.
    pub(super) async fn trackers(&self, named: &[String]) -> Vec<String> {
        let looks = named.iter().map(|tracker| self.may_ask(tracker));
        let may = futures::future::join_all(looks).await;
        named.iter().zip(may).filter(|(_, may)| *may).map(|(tracker, _)| tracker.clone()).collect()
    }

    async fn may_ask(&self, tracker: &str) -> bool {
        let Ok(url) = Url::parse(tracker) else { return false };
        let udp = url.scheme() == "udp";
        let known = udp || matches!(url.scheme(), "http" | "https");
        if !self.online || !known || (udp && self.proxied) {
            return false;
        }
        let port = url.port_or_known_default().unwrap_or(0);
        let addresses: Vec<IpAddr> = match url.host() {
            Some(Host::Ipv4(ip)) => vec![ip.into()],
            Some(Host::Ipv6(ip)) => vec![ip.into()],
            // Looking a name up here would tell the network what the proxy is to hide.
            Some(Host::Domain(name)) if self.proxied => {
                return self.public_trackers && (self.near || !is_near(name));
            }
            Some(Host::Domain(name)) => {
                let found = tokio::net::lookup_host((name, port));
                match tokio::time::timeout(RESOLVE, found).await {
                    Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
                    Ok(Err(_)) | Err(_) => return false,
                }
            }
            None => return false,
        };
        let allowed = |ip: &IpAddr| if is_public(*ip) { self.public_trackers } else { self.near };
        let may = !addresses.is_empty() && addresses.iter().all(allowed);
        if !may {
            tracing::debug!(tracker, "a link names this tracker; it is not asked");
        }
        may
    }
}

/// Whether a name is one that no public DNS has.
fn is_near(name: &str) -> bool {
    let last = name.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    !name.trim_end_matches('.').contains('.')
        || matches!(last, "localhost" | "local" | "internal")
        || name.trim_end_matches('.').ends_with("home.arpa")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const NAMED: [&str; 8] = [
        "udp://1.1.1.1:6969/announce",
        "http://8.8.8.8/announce",
        "http://127.0.0.1:80/announce",
        "udp://192.168.1.1:6969",
        "http://[::1]/announce",
        "http://localhost:9/announce",
        "wss://1.1.1.1/announce",
        "no address",
    ];

    async fn asked(options: TorrentOptions) -> Vec<String> {
        Policy::new(&options).trackers(&NAMED.map(str::to_owned)).await
    }

    #[tokio::test]
    async fn a_link_cannot_have_a_tracker_of_the_own_network_asked() {
        assert_eq!(asked(TorrentOptions::default()).await, NAMED[..2]);
        let private = TorrentOptions {
            public_trackers: false,
            allow_private_addresses: true,
            ..TorrentOptions::default()
        };
        assert_eq!(asked(private).await, NAMED[2..6]);
        let offline = TorrentOptions { online: false, ..TorrentOptions::default() };
        assert!(asked(offline).await.is_empty());
        let proxy = Some("socks5://127.0.0.1:1".to_owned());
        let proxied = TorrentOptions { proxy, ..TorrentOptions::default() };
        assert_eq!(asked(proxied).await, NAMED[1..2]);
    }

    #[test]
    fn peers_of_the_own_network_are_dialled_only_where_that_is_allowed() {
        let named =
            ["1.1.1.1:1", "127.0.0.1:2", "10.0.0.1:3", "1.1.1.1:0"].map(|p| p.parse().unwrap());
        let dialled = |options: TorrentOptions| Policy::new(&options).peers(&named);
        assert_eq!(dialled(TorrentOptions::default()), named[..1]);
        let near = TorrentOptions { allow_private_addresses: true, ..TorrentOptions::default() };
        assert_eq!(dialled(near), named[..3]);
        let offline = TorrentOptions { online: false, ..TorrentOptions::default() };
        assert!(dialled(offline).is_empty());
    }
}
