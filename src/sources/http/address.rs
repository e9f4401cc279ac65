//! Where a stranger's words may lead, and URLs that the user names.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use futures::future::BoxFuture;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

pub(super) use crate::torrent::is_public;

/// Longest URL of a stranger: longer ones are no servers.
const MAX_URL: usize = 2048;

/// Whether a host that a URL names as an address, not as a name, is public. Names are looked at when they are resolved.
pub(super) fn may_be_public(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = host.parse::<IpAddr>() {
        return is_public(ip);
    }
    let name = host.trim_end_matches('.');
    // Never looked up in the public DNS, so that the answer would be somebody near.
    let near = ["localhost", "local", "internal", "home.arpa"];
    !near.iter().any(|end| {
        name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    })
}

/// Looks names up.
pub(super) type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// As the system does it.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move { Ok(tokio::net::lookup_host((name.as_str(), 0)).await?.collect()) })
    })
}

/// Gives a connection nothing but public addresses. The connection is made to what was looked at here and to nothing
/// that is looked up later, so that an answer that changes meanwhile leads nowhere.
pub(super) struct PublicOnly {
    lookup: Lookup,
    /// A proxy is somewhere near, and named by the user.
    proxy: Option<String>,
}

impl PublicOnly {
    pub(super) fn new(lookup: Lookup, proxy: Option<String>) -> Self {
        Self { lookup, proxy }
    }
}

/// A name leads to nobody whom a stranger may name.
#[derive(Debug, thiserror::Error)]
#[error("{0} has no public address")]
pub(super) struct NotPublic(String);

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let trusted = self.proxy.as_deref() == Some(&name);
        let found = (self.lookup)(name.clone());
        Box::pin(async move {
            let mut found = found.await?;
            found.retain(|address| trusted || is_public(address.ip()));
            if found.is_empty() {
                return Err(NotPublic(name).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// A test's or the system's lookup without the check, for what the user named.
pub(super) struct Anywhere(pub(super) Lookup);

impl Resolve for Anywhere {
    fn resolve(&self, name: Name) -> Resolving {
        let found = (self.0)(name.as_str().to_owned());
        Box::pin(async move { Ok(Box::new(found.await?.into_iter()) as Addrs) })
    }
}

/// The base URL of a multiaddress such as `/dns4/host/tcp/443/tls/http`; none where it is no HTTP server.
pub(super) fn url_of(multiaddr: &str) -> Option<Url> {
    let mut parts = multiaddr.strip_prefix('/')?.split('/');
    let host = match (parts.next()?, parts.next()?) {
        ("dns" | "dns4" | "dns6" | "ip4", host) => host.to_owned(),
        ("ip6", host) => format!("[{host}]"),
        _ => return None,
    };
    let (mut port, mut tls, mut http) = (None, false, false);
    while let Some(part) = parts.next() {
        match part {
            "tcp" => port = Some(parts.next()?.parse::<u16>().ok()?),
            "tls" => tls = true,
            "sni" => drop(parts.next()?),
            "https" => (tls, http) = (true, true),
            "http" => http = true,
            "http-path" => return None,
            "p2p" => drop(parts.next()?),
            _ => return None,
        }
    }
    let scheme = if tls { "https" } else { "http" };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    http.then(|| Url::parse(&format!("{scheme}://{host}{port}")).ok()).flatten()
}

/// Whether a stranger's URL is one that is asked at all.
pub(super) fn is_acceptable(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
        && url.as_str().len() <= MAX_URL
        && url.username().is_empty()
        && url.password().is_none()
        && may_be_public(url)
}

/// Why a text is no URL that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not the URL of a gateway or router.
    #[error("`{0}` is not a URL such as \"https://trustless-gateway.link\": {1}")]
    Server(String, String),
    /// Not the URL of a proxy.
    #[error(
        "`{0}` is not a proxy such as \"socks5h://127.0.0.1:9050\" or \"http://127.0.0.1:8080\": {1}"
    )]
    Proxy(String, String),
}

/// The base URL of a gateway or a router, without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayUrl(Url);

impl GatewayUrl {
    pub(super) fn url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for GatewayUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let wrong = |reason: &str| UrlError::Server(text.to_owned(), reason.to_owned());
        let mut url = Url::parse(text).map_err(|e| wrong(&e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("neither http nor https"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("a query or fragment"));
        }
        // Some lists of gateways have the path of the content in them.
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/ipfs").unwrap_or(path).to_owned();
        url.set_path(&path);
        Ok(Self(url))
    }
}

impl fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

/// The URL of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    pub(super) fn url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for ProxyUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let wrong = |reason: &str| UrlError::Proxy(text.to_owned(), reason.to_owned());
        let url = Url::parse(text).map_err(|e| wrong(&e.to_string()))?;
        if !matches!(url.scheme(), "socks5" | "socks5h" | "http" | "https") {
            return Err(wrong("the scheme is none of socks5h, socks5, http, https"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("no host"));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn addresses_that_a_stranger_may_not_name_are_told_from_public_ones() {
        for near in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2001:0:1::1",
        ] {
            assert!(!is_public(near.parse().unwrap()), "{near}");
        }
        for far in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(far.parse().unwrap()), "{far}");
        }
    }

    #[test]
    fn addresses_in_disguise_are_seen_through() {
        for near in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://017700000001/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://0/",
            "http://localhost/",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "http://nas.local/",
            "http://169.254.169.254/latest/meta-data",
            "http://metadata.google.internal/",
        ] {
            assert!(!is_acceptable(&Url::parse(near).unwrap()), "{near}");
        }
        for bad in ["ftp://example.org/", "file:///etc/passwd", "https://a:b@example.org/"] {
            assert!(!is_acceptable(&Url::parse(bad).unwrap()), "{bad}");
        }
        assert!(is_acceptable(&Url::parse("https://example.org/").unwrap()));
    }

    #[test]
    fn http_servers_are_read_from_multiaddresses() {
        for (multiaddr, url) in [
            ("/dns/example.org/tcp/443/https", Some("https://example.org/")),
            ("/dns4/example.org/tcp/443/tls/http", Some("https://example.org/")),
            ("/dns4/example.org/tcp/8443/tls/http", Some("https://example.org:8443/")),
            ("/dns/example.org/tls/sni/example.org/http", Some("https://example.org/")),
            ("/dns6/example.org/https", Some("https://example.org/")),
            ("/ip4/1.2.3.4/tcp/80/http", Some("http://1.2.3.4/")),
            ("/ip6/2a00::1/tcp/443/https/p2p/12D3KooW", Some("https://[2a00::1]/")),
            ("/dns/example.org/tcp/443/tls/ws", None),
            ("/dns/example.org/tcp/4001", None),
            ("/ip4/1.2.3.4/udp/4001/quic-v1", None),
            ("/dns/example.org/https/http-path/x", None),
            ("/dns/a b/https", None),
            ("nonsense", None),
            ("", None),
        ] {
            assert_eq!(url_of(multiaddr).as_ref().map(Url::as_str), url, "{multiaddr}");
        }
    }

    #[test]
    fn urls_of_gateways_and_proxies_are_checked() {
        let shown = |text: &str| text.parse::<GatewayUrl>().map(|url| url.to_string());
        assert_eq!(shown("https://ipfs.io/ipfs/").unwrap(), "https://ipfs.io");
        assert_eq!(shown("http://127.0.0.1:8080/under/").unwrap(), "http://127.0.0.1:8080/under");
        for bad in ["", "ipfs.io", "ftp://ipfs.io", "https://", "https://a/?b", "https://a/#b"] {
            assert!(shown(bad).is_err(), "{bad}");
        }
        for good in ["socks5h://127.0.0.1:9050", "socks5://tor:9050", "http://proxy:3128"] {
            assert_eq!(good.parse::<ProxyUrl>().unwrap().to_string(), good);
        }
        for bad in ["", "127.0.0.1:9050", "ftp://proxy", "socks4://proxy"] {
            assert!(bad.parse::<ProxyUrl>().is_err(), "{bad}");
        }
    }
}
