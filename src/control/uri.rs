//! Content as URIs and links to gateways name it. What they hold is percent-encoded, and has a query and a fragment that
//! are for a browser.

use percent_encoding::percent_decode;

/// Target of a URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Uri {
    /// `ID[/path]`, decoded.
    Content(Vec<u8>),
    /// A name that leads to content.
    Name,
    /// A page of a server that is none of a gateway.
    Page,
}

/// Reads a URI: `ipfs:…`, `dweb:/ipfs/…`, `ipns:…`, and `http:…` and `https:…` of a gateway, which names content in its
/// path or in its host. None for any other text, which is an id, a path or a link of another kind.
pub(super) fn read(text: &[u8]) -> Option<Uri> {
    let (scheme, rest) = split(text, b':')?;
    let end = rest.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(rest.len());
    let rest = &rest[..end];
    match scheme.to_ascii_lowercase().as_slice() {
        b"ipfs" | b"web+ipfs" | b"dweb" => Some(namespaced(rest).unwrap_or_else(|| content(rest))),
        b"ipns" | b"web+ipns" => Some(Uri::Name),
        b"http" | b"https" => Some(gateway(rest.strip_prefix(b"//")?)),
        _ => None,
    }
}

/// The part behind `/ipfs/` or `/ipns/`.
fn namespaced(path: &[u8]) -> Option<Uri> {
    let (space, rest) = split(without_slashes(path), b'/')?;
    match space {
        b"ipfs" => Some(content(rest)),
        b"ipns" => Some(Uri::Name),
        _ => None,
    }
}

fn content(path: &[u8]) -> Uri {
    Uri::Content(percent_decode(without_slashes(path)).collect())
}

/// `{host}/ipfs/{id}[/path]`, or `{id}.ipfs.{host}[/path]`.
fn gateway(text: &[u8]) -> Uri {
    let slash = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
    let (host, path) = text.split_at(slash);
    // A name and a password before the host.
    let host = host.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
    let mut labels = host.split(|byte| *byte == b'.');
    match (labels.next(), labels.next()) {
        (Some(id), Some(b"ipfs")) => content(&[id, path].concat()),
        (Some(_), Some(b"ipns")) => Uri::Name,
        _ => namespaced(path).unwrap_or(Uri::Page),
    }
}

/// The text before the first `at`, and that behind it.
fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = text.iter().position(|byte| *byte == at)?;
    Some((&text[..place], &text[place + 1..]))
}

fn without_slashes(mut text: &[u8]) -> &[u8] {
    while let [b'/', rest @ ..] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_and_links_to_gateways_are_decoded() {
        for (text, expected) in [
            ("ipfs://cid/a%20b", "cid/a b"),
            ("IPFS://cid/a?filename=x#y", "cid/a"),
            ("ipfs:cid", "cid"),
            ("ipfs:/ipfs/cid/a", "cid/a"),
            ("ipfs://ipfs/cid/a", "cid/a"),
            ("web+ipfs://cid", "cid"),
            ("dweb:/ipfs/cid/%C3%A4", "cid/ä"),
            ("https://ipfs.io/ipfs/cid/a+b?format=car", "cid/a+b"),
            ("http://127.0.0.1:8080/ipfs/cid/", "cid/"),
            ("http://[::1]:8080/ipfs/cid#top", "cid"),
            ("https://user:word@dweb.link/ipfs/cid", "cid"),
            ("https://cid.ipfs.dweb.link/a%2525/", "cid/a%25/"),
            ("https://cid.ipfs.localhost:8080", "cid"),
            ("https://cid.ipfs.dweb.link?x", "cid"),
            ("https://ipfs.io/ipfs/cid/a%zz", "cid/a%zz"),
        ] {
            assert_eq!(read(text.as_bytes()), Some(Uri::Content(expected.into())), "{text}");
        }
        assert_eq!(read(b"ipfs://cid/%ff"), Some(Uri::Content(b"cid/\xff".into())));
        assert_eq!(read(b"ipfs://cid/\xff"), Some(Uri::Content(b"cid/\xff".into())));
    }

    #[test]
    fn names_and_pages_are_told_from_content() {
        for text in [
            "ipns://example.org",
            "dweb:/ipns/k51/a",
            "https://ipfs.io/ipns/k51",
            "https://k51.ipns.dweb.link/",
        ] {
            assert_eq!(read(text.as_bytes()), Some(Uri::Name), "{text}");
        }
        for text in [
            "https://example.org",
            "https://example.org/a/ipfs/cid",
            "http://",
            "https://host/ipfs",
        ] {
            assert_eq!(read(text.as_bytes()), Some(Uri::Page), "{text}");
        }
    }

    #[test]
    fn other_texts_are_left_as_they_are() {
        for text in [
            "",
            "cid",
            "cid/a%20b",
            "cid/a:b",
            "/ipfs/cid/a%20b",
            "magnet:?xt=urn:btih:x",
            "cid:a",
            "http:x",
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
    }
}
