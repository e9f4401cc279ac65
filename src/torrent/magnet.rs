//! Magnet links.

use std::{fmt, net::SocketAddr, str::FromStr};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::Selection;
use crate::content::InfoHash;

/// Longest link: the kernel ends names at 1,024 bytes, browsers links at some thousand.
const MAX_LINK: usize = 16 << 10;
/// Trackers, peers and servers that are taken from one link.
const MAX_NAMED: usize = 64;

/// What need not be escaped in a value: what RFC 3986 calls unreserved.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a magnet link says of a torrent; a bare info hash is one that says nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Magnet {
    /// The torrent.
    pub hash: InfoHash,
    /// What it is called (`dn`).
    pub name: Option<String>,
    /// Trackers (`tr`), as they are written.
    pub trackers: Vec<String>,
    /// Addresses of peers (`x.pe`).
    pub peers: Vec<SocketAddr>,
    /// Servers that have its files (`ws`), as they are written.
    pub webseeds: Vec<String>,
    /// The files that are wanted (`so`); none: all of them.
    pub selected: Option<Selection>,
}

/// Why a text is no magnet link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MagnetError {
    /// It does not begin like one.
    #[error("it does not begin with `magnet:?`")]
    Scheme,
    /// It is longer than any.
    #[error("it is longer than {MAX_LINK} bytes")]
    TooLong,
    /// It names no torrent.
    #[error("it names no torrent: `xt=urn:btih:` with 40 hex or 32 base32 digits is missing")]
    NoHash,
    /// Its info hash has the wrong digits.
    #[error("`{0}` is not an info hash: 40 hex or 32 base32 digits are expected")]
    Hash(String),
    /// It names two torrents.
    #[error("it names two torrents")]
    TwoHashes,
    /// It is one of a torrent that has only the newer kind of hash.
    #[error("it names a torrent of version 2 only (`urn:btmh:`), which this version cannot open")]
    Version2,
}

impl Magnet {
    /// A torrent of which nothing but its hash is known.
    pub fn of(hash: InfoHash) -> Self {
        let (trackers, peers, webseeds) = Default::default();
        Self { hash, name: None, trackers, peers, webseeds, selected: None }
    }

    /// Whether a text is to be read as a magnet link, well-formed or not.
    pub fn looks_like(text: &str) -> bool {
        text.get(..7).is_some_and(|head| head.eq_ignore_ascii_case("magnet:"))
    }

    /// The link without its selection of files.
    pub(super) fn without_selection(&self) -> Self {
        Self { selected: None, ..self.clone() }
    }

    /// Adds what another link says of the same torrent; what is wanted of it is no part of that.
    pub(super) fn merge(&mut self, other: &Self) {
        if self.name.is_none() {
            self.name.clone_from(&other.name);
        }
        for tracker in &other.trackers {
            if !self.trackers.contains(tracker) && self.trackers.len() < MAX_NAMED {
                self.trackers.push(tracker.clone());
            }
        }
        for url in &other.webseeds {
            if !self.webseeds.contains(url) && self.webseeds.len() < MAX_NAMED {
                self.webseeds.push(url.clone());
            }
        }
        for peer in &other.peers {
            if !self.peers.contains(peer) && self.peers.len() < MAX_NAMED {
                self.peers.push(*peer);
            }
        }
    }
}

impl FromStr for Magnet {
    type Err = MagnetError;

    fn from_str(text: &str) -> Result<Self, MagnetError> {
        if !Self::looks_like(text) {
            return Err(MagnetError::Scheme);
        }
        if text.len() > MAX_LINK {
            return Err(MagnetError::TooLong);
        }
        let query = text[7..].strip_prefix('?').ok_or(MagnetError::Scheme)?;
        let (mut hash, mut version2) = (None, false);
        let mut said = Self::of(InfoHash([0; 20]));
        for (key, written) in query.split('&').filter_map(|field| field.split_once('=')) {
            let value = percent_decode_str(written).decode_utf8_lossy();
            // `xt.1`, `tr.2`: fields of the same kind may be numbered.
            let (kind, number) = key.split_once('.').unwrap_or((key, ""));
            let numbered = number.bytes().all(|byte| byte.is_ascii_digit());
            match (kind, number) {
                ("xt", _) if numbered => match topic(&value)? {
                    Topic::Torrent(found) if hash.is_some_and(|hash| hash != found) => {
                        return Err(MagnetError::TwoHashes);
                    }
                    Topic::Torrent(found) => hash = Some(found),
                    Topic::Version2 => version2 = true,
                    Topic::Other => {}
                },
                // A `+` is a space in a name; nobody writes one so in an address.
                ("dn", "") if !written.is_empty() => {
                    let spaced = written.replace('+', " ");
                    said.name = Some(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
                }
                // What is no address came from a link that something cut at a slash, and is not passed on.
                ("tr", _) if numbered && said.trackers.len() < MAX_NAMED => {
                    said.trackers.extend(is_address(&value).then(|| value.into_owned()));
                }
                ("ws", _) if numbered && said.webseeds.len() < MAX_NAMED => {
                    said.webseeds.extend(is_address(&value).then(|| value.into_owned()));
                }
                ("so", "") => said.selected = value.parse().ok(),
                // A peer that is named by a host name is left out: looking names up is not for a stranger to order.
                ("x", "pe") if said.peers.len() < MAX_NAMED => {
                    said.peers.extend(value.parse::<SocketAddr>().ok());
                }
                _ => {}
            }
        }
        match hash {
            Some(hash) => Ok(Self { hash, ..said }),
            None if version2 => Err(MagnetError::Version2),
            None => Err(MagnetError::NoHash),
        }
    }
}

/// Returns whether a text is an address that somebody can be asked at.
pub(super) fn is_address(text: &str) -> bool {
    let url = Url::parse(text).ok();
    let host = |url: &Url| url.host_str().is_some_and(|host| !host.is_empty());
    url.is_some_and(|url| {
        matches!(url.scheme(), "udp" | "http" | "https" | "ws" | "wss" | "ftp") && host(&url)
    })
}

enum Topic {
    Torrent(InfoHash),
    Version2,
    Other,
}

fn topic(value: &str) -> Result<Topic, MagnetError> {
    let lower = value.to_ascii_lowercase();
    if lower.starts_with("urn:btmh:") {
        return Ok(Topic::Version2);
    }
    if !lower.starts_with("urn:btih:") {
        return Ok(Topic::Other);
    }
    let digits = &value["urn:btih:".len()..];
    let wrong = || MagnetError::Hash(digits.chars().take(64).collect());
    digits.parse().map(Topic::Torrent).map_err(|_| wrong())
}

impl fmt::Display for Magnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "magnet:?xt=urn:btih:{}", self.hash)?;
        let mut field =
            |key: &str, value: &str| write!(f, "&{key}={}", utf8_percent_encode(value, ESCAPED));
        if let Some(name) = &self.name {
            field("dn", name)?;
        }
        self.trackers.iter().try_for_each(|tracker| field("tr", tracker))?;
        self.webseeds.iter().try_for_each(|url| field("ws", url))?;
        self.peers.iter().try_for_each(|peer| field("x.pe", &peer.to_string()))?;
        self.selected.iter().try_for_each(|selected| field("so", &selected.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "cab507494d02ebb1178b38f2e9d7be299c86b862";

    #[test]
    fn everything_in_a_link_is_read_and_written_again() {
        let text = format!(
            "magnet:?xt=urn:btih:{HASH}&dn=A%20film+b.mkv&tr=udp%3A%2F%2Ftracker.example%3A80%2Fannounce&tr.1=http://b/a&x.pe=127.0.0.1:6881&x.pe=[::1]:7&x.pe=host:1&ws=http://x/&so=3,0-1"
        );
        let magnet: Magnet = text.parse().unwrap();
        assert_eq!(magnet.hash.to_string(), HASH);
        assert_eq!(magnet.name.as_deref(), Some("A film b.mkv"));
        assert_eq!(magnet.trackers, ["udp://tracker.example:80/announce", "http://b/a"]);
        assert_eq!(magnet.peers, ["127.0.0.1:6881", "[::1]:7"].map(|peer| peer.parse().unwrap()));
        assert_eq!(magnet.webseeds, ["http://x/"]);
        assert_eq!(magnet.selected, Some("0-1,3".parse().unwrap()));
        let written = magnet.to_string();
        assert!(!written.contains('/'), "{written} would be split by the kernel");
        assert_eq!(written.parse::<Magnet>().unwrap(), magnet);
    }

    #[test]
    fn hashes_are_taken_in_both_digits_and_any_case() {
        let base32 = "ZK2QOSKNALV3CF4LHDZOTV56FGOINODC";
        for text in [
            format!("magnet:?xt=urn:btih:{HASH}"),
            format!("MAGNET:?xt=URN:BTIH:{}", HASH.to_uppercase()),
            format!("magnet:?dn=x&xt=urn:btih:{base32}"),
            format!("magnet:?xt.1=urn:sha1:x&xt.2=urn:btih:{}", base32.to_lowercase()),
            format!("magnet:?xt=urn:btih:{HASH}&xt=urn:btmh:1220{}", "a".repeat(64)),
        ] {
            assert_eq!(text.parse::<Magnet>().unwrap().hash.to_string(), HASH, "{text}");
        }
    }

    #[test]
    fn addresses_that_are_none_are_not_passed_on() {
        // A path ends at the first slash of a tracker that is not escaped.
        for cut in
            ["tr=udp:", "tr=http", "tr=http:", "tr=", "tr=javascript:x", "ws=http:", "ws=x", "so=x"]
        {
            let link: Magnet = format!("magnet:?xt=urn:btih:{HASH}&{cut}").parse().unwrap();
            assert_eq!(link, Magnet::of(link.hash), "{cut}");
        }
        let odd: Magnet =
            format!("magnet:?xt=urn:btih:{HASH}&tr=http://t/a?k=1#x&&=&tr=udp://[::1]:1&x")
                .parse()
                .unwrap();
        assert_eq!(odd.trackers, ["http://t/a?k=1#x", "udp://[::1]:1"]);
        let written = odd.to_string();
        assert!(
            written
                .ends_with("&tr=http%3A%2F%2Ft%2Fa%3Fk%3D1%23x&tr=udp%3A%2F%2F%5B%3A%3A1%5D%3A1"),
            "{written}"
        );
    }

    #[test]
    fn what_is_wrong_with_a_link_is_said() {
        let two = format!("magnet:?xt=urn:btih:{HASH}&xt=urn:btih:{}", "0".repeat(40));
        let long = format!("magnet:?xt=urn:btih:{HASH}&dn={}", "x".repeat(MAX_LINK));
        let version2 = format!("magnet:?xt=urn:btmh:1220{}", "a".repeat(64));
        for (text, error) in [
            ("http://x", MagnetError::Scheme),
            ("magnet:", MagnetError::Scheme),
            ("magnet:?dn=x", MagnetError::NoHash),
            ("magnet:?xt=urn:btih:12", MagnetError::Hash("12".to_owned())),
            (&two, MagnetError::TwoHashes),
            (&long, MagnetError::TooLong),
            (&version2, MagnetError::Version2),
        ] {
            assert_eq!(text.parse::<Magnet>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "magnet:\\?(xt=urn:btih:)?.{0,80}") {
            let _ = text.parse::<Magnet>();
        }

        #[test]
        fn what_is_written_is_read_back(
            hash: [u8; 20],
            name in prop::option::of(".{1,20}"),
            trackers in prop::collection::vec("(udp|http)://[a-z]{1,9}/.{0,20}", 0..4),
            peers in prop::collection::vec(any::<SocketAddr>(), 0..4),
            webseeds in prop::collection::vec("https?://[a-z]{1,9}/.{0,20}", 0..4),
            selected in prop::option::of((0_u32..9).prop_map(|n| n.to_string().parse().unwrap())),
        ) {
            let peers = peers.into_iter().map(|peer| SocketAddr::new(peer.ip(), peer.port())).collect();
            let magnet = Magnet { hash: InfoHash(hash), name, trackers, peers, webseeds, selected };
            prop_assert_eq!(magnet.to_string().parse::<Magnet>().unwrap(), magnet);
        }
    }
}
