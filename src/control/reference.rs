//! `ID[/path]`, as every command takes it.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::OsStrExt,
    str::FromStr,
};

use crate::content::{ContentId, IdError};

/// A content, and a path below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The id whose providers are asked.
    pub root: ContentId,
    /// Names below it, without slashes at the ends; empty for the content itself. They need not be text.
    pub path: OsString,
}

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// There is nothing to look for.
    #[error("no id: give a CID, with or without a path behind it")]
    Empty,
    /// The first part is not an id.
    #[error(transparent)]
    Id(#[from] IdError),
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
    /// Takes `CID`, `CID/path`, `/ipfs/CID/path` and `ipfs://CID/path`; names of the path need not be text.
    ///
    /// # Errors
    /// [`ReferenceError`] says what is missing.
    pub fn of(text: &[u8]) -> Result<Self, ReferenceError> {
        if text.starts_with(b"magnet:") {
            return Err(ReferenceError::Unsupported("a magnet link"));
        }
        if text.starts_with(b"/ipns/") || text.starts_with(b"ipns://") {
            return Err(ReferenceError::Unsupported("an IPNS name"));
        }
        let rest = text.strip_prefix(b"ipfs://").or_else(|| text.strip_prefix(b"/ipfs/"));
        let rest = without_slashes(rest.unwrap_or(text));
        let mut parts = rest.splitn(2, |byte| *byte == b'/');
        let id = String::from_utf8_lossy(parts.next().unwrap_or_default());
        let path = OsStr::from_bytes(without_slashes(parts.next().unwrap_or_default()));
        if id.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if id.len() == 40 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ReferenceError::Unsupported("a torrent"));
        }
        Ok(Self { root: id.parse()?, path: path.to_owned() })
    }

    /// The last name of the path, else the id.
    pub fn name(&self) -> OsString {
        let last = self.path.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if last.is_empty() {
            return self.root.to_string().into();
        }
        OsStr::from_bytes(last).to_owned()
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
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

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
    fn what_is_no_id_is_refused_with_its_reason() {
        assert_eq!("".parse::<Reference>(), Err(ReferenceError::Empty));
        assert_eq!("/ipfs/".parse::<Reference>(), Err(ReferenceError::Empty));
        assert!(matches!("hello".parse::<Reference>(), Err(ReferenceError::Id(_))));
        for later in ["magnet:?xt=urn:btih:x", "/ipns/example.org", &"a".repeat(40)] {
            assert!(matches!(later.parse::<Reference>(), Err(ReferenceError::Unsupported(_))));
        }
    }
}
