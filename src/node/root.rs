//! Ids as people write them.

use std::{fmt, str::FromStr};

use crate::{
    content::{ContentId, IdError, InfoHash},
    torrent::{Magnet, MagnetError},
};

/// Digits of an info hash in hex and in base32.
const HEX: usize = 40;
const BASE32: usize = 32;

/// What a path begins with: a CID, a magnet link or an info hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// Content of IPFS.
    Content(ContentId),
    /// A torrent, with what its link says besides.
    Torrent(Magnet),
}

/// Why a text is no id of any kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// It begins like a magnet link and is none.
    #[error("not a magnet link: {0}")]
    Magnet(#[from] MagnetError),
    /// It is nothing.
    #[error(transparent)]
    Id(#[from] IdError),
}

impl Root {
    /// The same without a selection: all of it.
    pub fn whole(self) -> Self {
        match self {
            Self::Torrent(magnet) => Self::Torrent(Magnet { selected: None, ..magnet }),
            Self::Content(id) => Self::Content(id),
        }
    }
}

impl FromStr for Root {
    type Err = RootError;

    /// 40 hex digits are an info hash, although one of ten thousand million could be read as a CID. 32 digits of base32
    /// are one only where they are no CID: that is as long as inline content of 15 bytes.
    fn from_str(text: &str) -> Result<Self, RootError> {
        if Magnet::looks_like(text) {
            return Ok(Self::Torrent(text.parse()?));
        }
        let torrent = |hash: InfoHash| Self::Torrent(Magnet::of(hash));
        if text.len() == HEX
            && let Ok(hash) = text.parse()
        {
            return Ok(torrent(hash));
        }
        match text.parse().map(Self::Content) {
            Err(_) if text.len() == BASE32 => Ok(torrent(text.parse()?)),
            content => Ok(content?),
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(id) => id.fmt(f),
            Self::Torrent(magnet) if *magnet == Magnet::of(magnet.hash) => magnet.hash.fmt(f),
            Self::Torrent(magnet) => magnet.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const HASH: &str = "cab507494d02ebb1178b38f2e9d7be299c86b862";

    #[test]
    fn every_kind_of_id_is_told_from_the_others_and_written_as_it_is_read() {
        let magnet = format!("magnet:?xt=urn:btih:{HASH}&dn=x");
        for (text, shown) in [
            (HASH, HASH),
            ("ZK2QOSKNALV3CF4LHDZOTV56FGOINODC", HASH),
            (&magnet, &magnet),
            ("bafkqaaa", "bafkqaaa"),
            // Inline content of 15 bytes, 32 digits long.
            ("bafkqad3bmfqwcylbmfqwcylbmfqwcyi", "bafkqad3bmfqwcylbmfqwcylbmfqwcyi"),
        ] {
            let root: Root = text.parse().unwrap();
            assert_eq!(root.to_string(), shown);
            assert_eq!(matches!(root, Root::Content(_)), text.starts_with("bafk"), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused_as_what_it_looks_like() {
        for text in ["", "hello", "HEAD", &HASH[1..], "magnet", "0123456789abcdef0123456789abcdef"]
        {
            assert!(matches!(text.parse::<Root>(), Err(RootError::Id(_))), "{text}");
        }
        assert!(matches!(
            "magnet:?dn=x".parse::<Root>(),
            Err(RootError::Magnet(MagnetError::NoHash))
        ));
    }
}
