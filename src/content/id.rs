//! Content ids: the CID of a piece of IPFS content and the info hash of a torrent.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest digest that an id can carry: identity CIDs hold up to 128 bytes of content themselves.
const MAX_DIGEST: usize = 128;

/// A multihash: hash function code and digest. What the store, the DHT and Bitswap identify a block by.
pub type Multihash = cid::multihash::Multihash<MAX_DIGEST>;

type Cid = cid::CidGeneric<MAX_DIGEST>;

/// Multihash code of SHA2-256, the function of everything that is published here.
pub(crate) const SHA2_256: u64 = 0x12;
/// Multihash code of the identity "hash": the digest is the content.
pub(crate) const IDENTITY: u64 = 0x00;
const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;

/// How the bytes behind an id are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Plain bytes.
    Raw,
    /// A UnixFS node in dag-pb.
    DagPb,
    /// Any other multicodec; blocks of it can be kept and served, but are no files.
    Other(u64),
}

/// A CID of version 0 or 1.
///
/// Two ids with the same multihash name the same block; compare [`ContentId::hash`] for that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId(Cid);

/// Why a text or a byte string is not a content id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not the text form of any CID.
    #[error("`{text}` is not a CID: {reason}")]
    Text {
        /// What was given.
        text: String,
        /// What the parser objected to.
        reason: String,
    },
    /// Not the byte form of any CID.
    #[error("not a binary CID: {0}")]
    Bytes(String),
    /// Not 40 hex or 32 base32 digits.
    #[error("`{0}` is not an info hash: 40 hex or 32 base32 digits are expected")]
    InfoHash(String),
}

impl ContentId {
    /// A CIDv1 of the raw codec.
    pub fn raw(hash: Multihash) -> Self {
        Self(Cid::new_v1(RAW, hash))
    }

    /// A CIDv1 of the dag-pb codec.
    pub fn dag_pb(hash: Multihash) -> Self {
        Self(Cid::new_v1(DAG_PB, hash))
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// [`IdError::Bytes`] when the bytes are not exactly one CID.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        let mut rest = bytes;
        let cid = Cid::read_bytes(&mut rest).map_err(|e| IdError::Bytes(e.to_string()))?;
        if rest.is_empty() {
            Ok(Self(cid))
        } else {
            Err(IdError::Bytes(format!("{} bytes behind the end", rest.len())))
        }
    }

    /// The binary form, as links in dag-pb and Bitswap messages carry it.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_bytes()
    }

    /// How the content is to be read.
    pub fn codec(&self) -> Codec {
        match self.0.codec() {
            RAW => Codec::Raw,
            DAG_PB => Codec::DagPb,
            other => Codec::Other(other),
        }
    }

    /// The multihash of the block.
    pub fn hash(&self) -> &Multihash {
        self.0.hash()
    }

    /// The content itself, when the id carries it (identity multihash).
    pub fn inline_content(&self) -> Option<&[u8]> {
        (self.hash().code() == IDENTITY).then(|| self.hash().digest())
    }

    /// The CID without its digest: version, codec, hash function and digest length, each a varint.
    /// A Bitswap message carries it beside the bytes of a block.
    pub fn prefix(&self) -> Vec<u8> {
        let bytes = self.0.to_bytes();
        if self.0.version() == cid::Version::V0 {
            // A v0 CID has no version and codec of its own; its prefix spells out what they stand for.
            return vec![0, u8::try_from(DAG_PB).unwrap_or(0x70), 0x12, 0x20];
        }
        bytes[..bytes.len() - self.hash().digest().len()].to_vec()
    }

    /// The same block under CIDv1, in which all names of the mount are printed.
    pub fn to_v1(&self) -> Self {
        Self(Cid::new_v1(self.0.codec(), *self.hash()))
    }
}

impl FromStr for ContentId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse::<Cid>()
            .map(Self)
            .map_err(|e| IdError::Text { text: text.to_owned(), reason: e.to_string() })
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for ContentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
