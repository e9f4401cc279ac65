//! `ID[/path]`, as every command takes it.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::OsStrExt,
    str::FromStr,
};

use super::uri::{self, Uri};
use crate::{
    content::ContentId,
    node::{Root, RootError, Selection},
};

/// Name of the IPNS scheme in an error.
const NAME: &str = "an IPNS name";

/// What an id leads to, and a path below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The id whose providers are asked.
    pub root: Root,
    /// Names below it, without slashes at the ends; empty for the content itself. They need not be text.
    pub path: OsString,
}

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// There is nothing to look for.
    #[error("no id: give a CID, a magnet link or an info hash, with or without a path behind it")]
    Empty,
    /// The first part is not an id.
    #[error(transparent)]
    Id(#[from] RootError),
    /// It is an id, but not a CID, and only that would do.
    #[error("{0} is not a CID")]
    NotContent(String),
    /// A page of a server.
    #[error(
        "{0} leads to no content: a link to a gateway has /ipfs/CID in its path, or CID.ipfs. before its host"
    )]
    Page(String),
    /// An id of a network that this build does not speak.
    #[error("{0} cannot be opened by this version")]
    Unsupported(&'static str),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::of(text.as_bytes())
    }
}

impl Reference {
    /// Takes `CID`, `CID/path`, `/ipfs/CID/path`, the same of an info hash, and `magnet:?…` with a path behind it, whose
    /// names stand as they are and need not be text; and percent-encoded `ipfs://CID/path`, `dweb:/ipfs/CID/path` and links
    /// to gateways. A magnet link ends at its first slash: where one is in a tracker, it has to be written as `%2F`, unless
    /// no path follows.
    ///
    /// # Errors
    /// [`ReferenceError`] says what is missing.
    pub fn of(text: &[u8]) -> Result<Self, ReferenceError> {
        let decoded = match uri::read(text) {
            Some(Uri::Content(path)) => path,
            Some(Uri::Name) => return Err(ReferenceError::Unsupported(NAME)),
            Some(Uri::Page) => {
                return Err(ReferenceError::Page(String::from_utf8_lossy(text).into_owned()));
            }
            None if text.starts_with(b"/ipns/") => return Err(ReferenceError::Unsupported(NAME)),
            None => text.strip_prefix(b"/ipfs/").unwrap_or(text).to_owned(),
        };
        let rest = without_slashes(&decoded);
        let (id, path) = split(rest);
        let id = String::from_utf8_lossy(id);
        let path = OsStr::from_bytes(without_slashes(path));
        if id.is_empty() {
            return Err(ReferenceError::Empty);
        }
        Ok(Self { root: id.parse()?, path: path.to_owned() })
    }

    /// The id, where it is a CID.
    ///
    /// # Errors
    /// [`ReferenceError::NotContent`].
    pub fn content(&self) -> Result<ContentId, ReferenceError> {
        match &self.root {
            Root::Content(id) => Ok(*id),
            Root::Torrent(magnet) => Err(ReferenceError::NotContent(magnet.hash.to_string())),
        }
    }

    /// The files of a torrent that its link selects; none where it does not, or a path behind it names something.
    pub fn selected(&self) -> Option<Selection> {
        match &self.root {
            Root::Torrent(magnet) if self.path.is_empty() => magnet.selected.clone(),
            Root::Torrent(_) | Root::Content(_) => None,
        }
    }

    /// The last name of the path, else the id.
    pub fn name(&self) -> OsString {
        let last = self.path.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if last.is_empty() {
            return match &self.root {
                Root::Content(id) => id.to_string().into(),
                Root::Torrent(magnet) => magnet.hash.to_string().into(),
            };
        }
        OsStr::from_bytes(last).to_owned()
    }
}

/// The id and the path behind it. A link as people copy it has slashes in its trackers (`tr=udp://…`); where its first
/// one stands behind a colon, all of the text is the link.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    let magnet = text.get(..7).is_some_and(|head| head.eq_ignore_ascii_case(b"magnet:"));
    let slash = text.iter().position(|byte| *byte == b'/');
    match slash {
        Some(at) if magnet && text[..at].ends_with(b":") => (text, b""),
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, b""),
    }
}

fn without_slashes(mut text: &[u8]) -> &[u8] {
    while let [b'/', rest @ ..] | [rest @ .., b'/'] = text {
        text = rest;
    }
    text
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => self.root.fmt(f),
            false => write!(f, "{}/{}", self.root, self.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

    #[test]
    fn an_id_is_taken_in_all_forms_that_people_write_it() {
        for (text, path) in [
            (CID.to_owned(), ""),
            (format!("{CID}/"), ""),
            (format!("/ipfs/{CID}/a/b.txt"), "a/b.txt"),
            (format!("ipfs://{CID}/a"), "a"),
            (format!("{CID}/a b/"), "a b"),
            (format!("{CID}/a%20b"), "a%20b"),
            (format!("/ipfs/{CID}/a%20b?c"), "a%20b?c"),
            (format!("ipfs://{CID}/a%20b?c"), "a b"),
            (format!("https://dweb.link/ipfs/{CID}/a%20b/"), "a b"),
            (format!("https://{CID}.ipfs.dweb.link/a#b"), "a"),
            (format!("dweb:/ipfs/{CID}"), ""),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(
                (reference.root.to_string().as_str(), &*reference.path),
                (CID, OsStr::new(path))
            );
        }
        assert_eq!(format!("{CID}/a/b").parse::<Reference>().unwrap().name(), "b");
        let no_text = [CID.as_bytes(), b"/a/\xff/"].concat();
        let reference = Reference::of(&no_text).unwrap();
        assert_eq!(reference.path.as_bytes(), b"a/\xff");
        assert_eq!(reference.name().as_bytes(), b"\xff");
    }

    #[test]
    fn torrents_are_taken_by_hash_and_by_link_whose_trackers_may_have_slashes() {
        let hash = "cab507494d02ebb1178b38f2e9d7be299c86b862";
        let escaped = format!("magnet:?xt=urn:btih:{hash}&tr=http%3A%2F%2Fa%2Fb");
        let plain = format!("magnet:?xt=urn:btih:{hash}&tr=http://a/b");
        for (text, path) in [
            (hash.to_owned(), ""),
            (format!("{hash}/a/b"), "a/b"),
            (format!("{escaped}/a b"), "a b"),
            (escaped.clone(), ""),
            (plain, ""),
        ] {
            let reference: Reference = text.parse().unwrap();
            let Root::Torrent(magnet) = &reference.root else { panic!("{text}") };
            assert_eq!(
                (magnet.hash.to_string().as_str(), &*reference.path),
                (hash, OsStr::new(path))
            );
            if text.contains("tr=") {
                assert_eq!(magnet.trackers, ["http://a/b"], "{text}");
            }
            assert!(matches!(reference.content(), Err(ReferenceError::NotContent(_))));
            // What is shown leads to the same place.
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn what_is_no_id_is_refused_with_its_reason() {
        assert_eq!("".parse::<Reference>(), Err(ReferenceError::Empty));
        assert_eq!("/ipfs/".parse::<Reference>(), Err(ReferenceError::Empty));
        assert!(matches!("hello".parse::<Reference>(), Err(ReferenceError::Id(_))));
        let link = "magnet:?xt=urn:btih:x".parse::<Reference>();
        assert!(matches!(link, Err(ReferenceError::Id(RootError::Magnet(_)))));
        for name in ["/ipns/example.org", "ipns://example.org", "https://k51.ipns.dweb.link"] {
            let later = name.parse::<Reference>();
            assert!(matches!(later, Err(ReferenceError::Unsupported(_))), "{name}");
        }
        let page = "https://example.org/x".parse::<Reference>();
        assert!(matches!(page, Err(ReferenceError::Page(_))));
    }
}
