//! Content ids: the CID of a piece of IPFS content and the info hash of a torrent.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest digest that an id can carry: identity CIDs hold up to 128 bytes of content themselves.
const MAX_DIGEST: usize = 128;

/// A multihash: hash function code and digest. What the store, the DHT and Bitswap identify a block by.
pub type Multihash = cid::multihash::Multihash<MAX_DIGEST>;

/// Characters of a CID of version 0.
const V0_LEN: usize = 46;
/// The shortest CID of version 1: four bytes in base58, behind the letter of the base.
const V1_MIN_LEN: usize = 6;
/// The longest name that a file can have; longer CIDs cannot be named in the mount.
const V1_MAX_LEN: usize = 255;

type Cid = cid::CidGeneric<MAX_DIGEST>;

/// Multihash code of SHA2-256, the function of everything that is published here.
pub(crate) const SHA2_256: u64 = 0x12;
/// Multihash code of the identity "hash": the digest is the content.
pub(crate) const IDENTITY: u64 = 0x00;
const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;
const SHA1: u64 = 0x11;
const TORRENT_INFO: u64 = 0x7b;

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

    /// The id of a torrent: a CIDv1 of the codec torrent-info, whose block is the info dictionary. Nothing is lost: the
    /// digest is the info hash.
    pub fn torrent(hash: InfoHash) -> Self {
        let digest = Multihash::wrap(SHA1, &hash.0).unwrap_or_default();
        Self(Cid::new_v1(TORRENT_INFO, digest))
    }

    /// The torrent that this is the id of.
    pub fn info_hash(&self) -> Option<InfoHash> {
        let of_torrent = self.0.codec() == TORRENT_INFO && self.hash().code() == SHA1;
        self.hash().digest().try_into().ok().filter(|_| of_torrent).map(InfoHash)
    }

    /// Whether a text could be a CID, by its first characters, alphabet and length. Cheap, and never false for a
    /// CID that fits into a file name, so that names that programs probe for (`.Trash`, `HEAD`) are refused at once.
    pub fn looks_like(name: &str) -> bool {
        let bytes = name.as_bytes();
        // `Qm…` is base58 of 34 bytes; version 1 takes four bytes at least, behind the letter of its base.
        if name.starts_with("Qm") {
            return bytes.len() == V0_LEN && bytes.iter().all(u8::is_ascii_alphanumeric);
        }
        if !(V1_MIN_LEN..=V1_MAX_LEN).contains(&bytes.len()) {
            return false;
        }
        match (bytes[0], bytes[1], bytes[2]) {
            // The version fills the first eight bits with 00000001.
            (b'b', b'a', b'e'..=b'h') => {
                bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
            }
            (b'B', b'A', b'E'..=b'H') => {
                bytes.iter().all(|b| matches!(b, b'A'..=b'Z' | b'2'..=b'7'))
            }
            (b'b' | b'B', ..) => false,
            (b'f' | b'F', b'0', b'1') => bytes.iter().all(u8::is_ascii_hexdigit),
            (b'f' | b'F', ..) => false,
            (first, ..) => {
                first.is_ascii_alphanumeric()
                    && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_+=".contains(b))
            }
        }
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

    /// Reads the binary form at the beginning of `bytes`, and how many of them it takes.
    pub(super) fn read_prefix(bytes: &[u8]) -> Result<(Self, usize), IdError> {
        let mut rest = bytes;
        let cid = Cid::read_bytes(&mut rest).map_err(|e| IdError::Bytes(e.to_string()))?;
        Ok((Self(cid), bytes.len() - rest.len()))
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
        let error = |reason: String| IdError::Text { text: shorten(text), reason };
        // The parser would take what stands behind `/ipfs/` in any text.
        if text.contains('/') {
            return Err(error("it has a slash in it".to_owned()));
        }
        text.parse::<Cid>().map(Self).map_err(|e| error(e.to_string()))
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

/// As much of a text from outside as belongs into a message.
fn shorten(text: &str) -> String {
    const MAX: usize = 128;
    if text.chars().count() <= MAX {
        return text.to_owned();
    }
    text.chars().take(MAX).chain(['…']).collect()
}

/// The info hash of a BitTorrent v1 torrent: SHA-1 of its info dictionary. Printed as 40 hex digits; 32 digits of
/// base32, as older magnet links have them, are read too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoHash(pub [u8; 20]);

impl FromStr for InfoHash {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError::InfoHash(shorten(text));
        let bits = match text.len() {
            40 => 4,
            32 => 5,
            _ => return Err(error()),
        };
        let mut hash = [0; 20];
        let (mut buffer, mut held, mut at) = (0u32, 0, 0);
        for digit in text.bytes() {
            buffer = buffer << bits | digit_value(digit, bits).ok_or_else(error)?;
            held += bits;
            if held >= 8 {
                held -= 8;
                hash[at] = (buffer >> held & 0xff) as u8;
                at += 1;
            }
        }
        Ok(Self(hash))
    }
}

/// The value of a digit of hex (4 bits) or base32 (5 bits), in either case.
fn digit_value(digit: u8, bits: u32) -> Option<u32> {
    match (bits, digit.to_ascii_lowercase()) {
        (4, digit) => char::from(digit).to_digit(16),
        (_, letter @ b'a'..=b'z') => Some(u32::from(letter - b'a')),
        (_, number @ b'2'..=b'7') => Some(u32::from(number - b'2') + 26),
        _ => None,
    }
}

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for InfoHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InfoHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use cid::multibase::Base;
    use proptest::prelude::*;

    use super::*;

    const V0: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";

    #[test]
    fn a_torrent_has_an_id_of_its_own_and_no_other_id_is_one() {
        let hash = InfoHash(*b"twenty bytes of hash");
        let id = ContentId::torrent(hash);
        assert_eq!(id.codec(), Codec::Other(TORRENT_INFO));
        assert_eq!(id.hash().to_bytes(), [&[0x11, 20][..], &hash.0].concat());
        assert_eq!(id.info_hash(), Some(hash));
        // As other programs write it.
        let known: ContentId = "baf5rcfhi2zy3dlivng76mwhx2uwvvhhdvfojuxy".parse().unwrap();
        assert_eq!(known.info_hash().map(ContentId::torrent), Some(known));
        assert_eq!(ContentId::raw(*id.hash()).info_hash(), None);
        assert_eq!(V0.parse::<ContentId>().unwrap().info_hash(), None);
    }

    #[test]
    fn ids_are_printed_as_they_are_read() {
        for text in [V0, "bafkqaaa", "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"]
        {
            let id: ContentId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(ContentId::from_bytes(&id.to_bytes()).unwrap(), id);
            assert_eq!(serde_json::from_str::<ContentId>(&format!("\"{text}\"")).unwrap(), id);
            assert!(ContentId::looks_like(text));
            // The prefix and the digest are the whole of a v1 id.
            let whole = [id.prefix(), id.hash().digest().to_vec()].concat();
            assert_eq!(whole.len(), id.to_v1().to_bytes().len());
        }
        let v0: ContentId = V0.parse().unwrap();
        assert_eq!(v0.codec(), Codec::DagPb);
        assert_ne!(v0, v0.to_v1());
        assert_eq!(v0.hash(), v0.to_v1().hash());
    }

    #[test]
    fn what_is_no_id_is_refused_with_a_short_message() {
        let long = "b".repeat(10_000);
        for text in [
            "",
            "Q",
            V0.get(1..).unwrap(),
            &format!("/ipfs/{V0}"),
            &long,
            "bafy",
            "b\u{e9}\u{e9}\u{e9}",
        ] {
            let error = text.parse::<ContentId>().unwrap_err().to_string();
            assert!(error.len() < 400, "{error}");
        }
        let mut bytes = V0.parse::<ContentId>().unwrap().to_v1().to_bytes();
        bytes.push(0);
        assert!(ContentId::from_bytes(&bytes).is_err());
    }

    #[test]
    fn names_that_programs_probe_for_do_not_look_like_ids() {
        for name in [
            ".Trash",
            ".Trash-1000",
            "HEAD",
            ".git",
            "autorun.inf",
            "desktop.ini",
            "BDMV",
            "bin",
            "build",
            "bootstrap",
            "backup2024",
            "folder.jpg",
            "Qmail",
            "QmNotLongEnough",
            "f00d",
            "README.md",
            "",
        ] {
            assert!(!ContentId::looks_like(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_id_in_every_base_looks_like_one(
            digest in prop::collection::vec(any::<u8>(), 0..=40),
            codec in prop_oneof![Just(RAW), Just(DAG_PB), any::<u64>().prop_map(|n| n >> 1)],
            code in prop_oneof![Just(IDENTITY), Just(SHA2_256), 0u64..0xc000],
        ) {
            let cid = Cid::new_v1(codec, Multihash::wrap(code, &digest).unwrap());
            let bases = [
                Base::Base32Lower, Base::Base32Upper, Base::Base16Lower, Base::Base16Upper, Base::Base36Lower,
                Base::Base36Upper, Base::Base58Btc, Base::Base58Flickr, Base::Base64Url, Base::Base64UrlPad,
                Base::Base32HexLower, Base::Base32PadLower, Base::Base32Z,
            ];
            for base in bases {
                let text = cid.to_string_of_base(base).unwrap();
                prop_assert!(ContentId::looks_like(&text), "{}", text);
                prop_assert_eq!(text.parse::<ContentId>().unwrap(), ContentId(cid));
            }
        }

        #[test]
        fn info_hashes_are_read_in_hex_and_base32(bytes: [u8; 20]) {
            let hash = InfoHash(bytes);
            let hex = hash.to_string();
            prop_assert_eq!(hex.len(), 40);
            let base32 = cid::multibase::encode(Base::Base32Lower, bytes)[1..].to_owned();
            for text in [&hex, &hex.to_uppercase(), &base32, &base32.to_uppercase()] {
                prop_assert_eq!(text.parse::<InfoHash>().unwrap(), hash);
            }
            prop_assert!(hex[1..].parse::<InfoHash>().is_err());
            prop_assert!(hex.replace(&hex[..1], "g").parse::<InfoHash>().is_err());
            prop_assert!(base32.replace(&base32[..1], "1").parse::<InfoHash>().is_err());
        }
    }
}
