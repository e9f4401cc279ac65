//! `ID[/path]`, as every command takes it.

use std::{fmt, str::FromStr};

use crate::content::{ContentId, IdError};

/// A content, and a path below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The id whose providers are asked.
    pub root: ContentId,
    /// Names below it, without slashes at the ends; empty for the content itself.
    pub path: String,
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

    /// Takes `CID`, `CID/path`, `/ipfs/CID/path` and `ipfs://CID/path`.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.starts_with("magnet:") {
            return Err(ReferenceError::Unsupported("a magnet link"));
        }
        if text.starts_with("/ipns/") || text.starts_with("ipns://") {
            return Err(ReferenceError::Unsupported("an IPNS name"));
        }
        let rest = text.strip_prefix("ipfs://").or_else(|| text.strip_prefix("/ipfs/"));
        let rest = rest.unwrap_or(text).trim_matches('/');
        let (id, path) = rest.split_once('/').unwrap_or((rest, ""));
        if id.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if id.len() == 40 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ReferenceError::Unsupported("a torrent"));
        }
        Ok(Self { root: id.parse()?, path: path.trim_matches('/').to_owned() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => self.root.fmt(f),
            path => write!(f, "{}/{path}", self.root),
        }
    }
}

impl Reference {
    /// The last name of the path, else the id.
    pub fn name(&self) -> String {
        self.path
            .rsplit('/')
            .next()
            .filter(|name| !name.is_empty())
            .map_or_else(|| self.root.to_string(), ToOwned::to_owned)
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
            assert_eq!((reference.root.to_string().as_str(), reference.path.as_str()), (CID, path));
        }
        assert_eq!(format!("{CID}/a/b").parse::<Reference>().unwrap().name(), "b");
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
