//! Messages of Bitswap as they lie on the wire.
//!
//! What is sent is encoded with `prost`. What is received is walked by hand down to the single entry, so that a
//! message of four million tiny entries fails at the first bad one instead of becoming a hundred megabytes of
//! structs, and the bytes of a block are a slice of the frame.

use bytes::{Buf, Bytes};
use libp2p::StreamProtocol;
use prost::{
    DecodeError, Message as _,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

use crate::content::{ContentId, MAX_BLOCK_LEN, Multihash};

/// Longest frame that is taken from anyone; Kubo resets a stream at the same length.
pub(super) const MAX_FRAME_LEN: usize = 4 << 20;

/// Most entries, presences and blocks together in one message. A frame of [`MAX_FRAME_LEN`] holds some 100,000
/// ids of usual length; more are only possible with ids that nobody uses.
const MAX_ITEMS: usize = 1 << 17;

const SHA2_256: u64 = 0x12;
const SHA2_256_LEN: usize = 32;

/// A version of the protocol; later ones compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// Blocks without prefix: SHA2-256 and CIDv0 only.
    V100,
    /// Blocks with prefix.
    V110,
    /// Want-have, HAVE and DONT_HAVE.
    V120,
}

impl Version {
    /// All, best first: the order of negotiation.
    pub(super) const ALL: [Self; 3] = [Self::V120, Self::V110, Self::V100];

    /// The name that is negotiated.
    pub(super) fn protocol(self) -> StreamProtocol {
        StreamProtocol::new(match self {
            Self::V120 => "/ipfs/bitswap/1.2.0",
            Self::V110 => "/ipfs/bitswap/1.1.0",
            Self::V100 => "/ipfs/bitswap/1.0.0",
        })
    }

    /// The version of a negotiated name.
    pub(super) fn of(protocol: &StreamProtocol) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.protocol() == *protocol)
    }
}

/// The messages as `prost` sees them.
pub(super) mod proto {
    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Message {
        #[prost(message, optional, tag = "1")]
        pub(crate) wantlist: Option<Wantlist>,
        #[prost(bytes = "bytes", repeated, tag = "2")]
        pub(crate) blocks: Vec<Bytes>,
        #[prost(message, repeated, tag = "3")]
        pub(crate) payload: Vec<Payload>,
        #[prost(message, repeated, tag = "4")]
        pub(crate) presences: Vec<Presence>,
        #[prost(int32, tag = "5")]
        pub(crate) pending_bytes: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Wantlist {
        #[prost(message, repeated, tag = "1")]
        pub(crate) entries: Vec<Entry>,
        #[prost(bool, tag = "2")]
        pub(crate) full: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Entry {
        #[prost(bytes = "bytes", tag = "1")]
        pub(crate) block: Bytes,
        #[prost(int32, tag = "2")]
        pub(crate) priority: i32,
        #[prost(bool, tag = "3")]
        pub(crate) cancel: bool,
        /// 0: the block, 1: whether it is there.
        #[prost(int32, tag = "4")]
        pub(crate) want_type: i32,
        #[prost(bool, tag = "5")]
        pub(crate) send_dont_have: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Payload {
        #[prost(bytes = "bytes", tag = "1")]
        pub(crate) prefix: Bytes,
        #[prost(bytes = "bytes", tag = "2")]
        pub(crate) data: Bytes,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Presence {
        #[prost(bytes = "bytes", tag = "1")]
        pub(crate) cid: Bytes,
        /// 0: HAVE, 1: DONT_HAVE.
        #[prost(int32, tag = "2")]
        pub(crate) kind: i32,
    }
}

/// Why a frame is no Bitswap message. Each is something that no honest peer sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    /// Not protobuf.
    #[error("not a Bitswap message: {0}")]
    Protobuf(#[from] DecodeError),
    /// A length that reaches behind the end.
    #[error("a field of {len} bytes where {left} are left")]
    Length {
        /// The length that is claimed.
        len: u64,
        /// What the message still holds.
        left: usize,
    },
    /// An id that is none.
    #[error("wantlist or presence: {0}")]
    Id(#[from] crate::content::IdError),
    /// The prefix of a block is malformed.
    #[error("block prefix {0:02x?} is not version, codec, hash function and digest length")]
    Prefix(Bytes),
    /// A block over the limit.
    #[error("a block of {0} bytes is over the limit of {MAX_BLOCK_LEN}")]
    Block(usize),
    /// More entries than any use has.
    #[error("over {MAX_ITEMS} entries in one message")]
    Items,
}

/// A message that was received.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Message {
    /// Changes of the sender's wantlist, in order.
    pub(super) entries: Vec<Entry>,
    /// Whether the entries replace its wantlist.
    pub(super) full: bool,
    /// Blocks.
    pub(super) blocks: Vec<Payload>,
    /// Ids with whether the sender has them.
    pub(super) presences: Vec<(ContentId, bool)>,
}

/// One change of a wantlist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What it is about.
    pub(super) id: ContentId,
    /// Greater is served first.
    pub(super) priority: i32,
    /// What to do.
    pub(super) action: Action,
}

/// What an [`Entry`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The want is given up.
    Cancel,
    /// The block, or whether it is there.
    Want {
        /// The block itself, not only HAVE.
        block: bool,
        /// Whether to answer when it is not there.
        send_dont_have: bool,
    },
}

/// A block that nobody has looked at yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Payload {
    /// Code of its hash function.
    pub(super) hash_code: u64,
    /// Length of its digest.
    pub(super) digest_len: usize,
    /// Its bytes, a slice of the frame.
    pub(super) data: Bytes,
}

impl Message {
    /// Reads a frame without its length.
    ///
    /// # Errors
    /// When it is no message; nothing of it is to be used then.
    pub(super) fn decode(mut frame: Bytes) -> Result<Self, WireError> {
        let mut message = Self::default();
        let mut items = 0;
        while frame.has_remaining() {
            let (tag, wire) = decode_key(&mut frame)?;
            if !(wire == WireType::LengthDelimited && (1..=4).contains(&tag)) {
                skip_field(wire, tag, &mut frame, DecodeContext::default())?;
                continue;
            }
            let field = delimited(&mut frame)?;
            match tag {
                1 => message.decode_wantlist(field, &mut items)?,
                2 => message.blocks.push(Payload::new(SHA2_256, SHA2_256_LEN, field)?),
                3 => message.blocks.push(Payload::decode(field)?),
                _ => {
                    let presence = proto::Presence::decode(field)?;
                    message
                        .presences
                        .push((ContentId::from_bytes(&presence.cid)?, presence.kind == 0));
                }
            }
            count(&mut items)?;
        }
        Ok(message)
    }

    fn decode_wantlist(&mut self, mut list: Bytes, items: &mut usize) -> Result<(), WireError> {
        while list.has_remaining() {
            match decode_key(&mut list)? {
                (1, WireType::LengthDelimited) => {
                    self.entries.push(Entry::decode(delimited(&mut list)?)?);
                    count(items)?;
                }
                (2, WireType::Varint) => self.full = decode_varint(&mut list)? != 0,
                (tag, wire) => skip_field(wire, tag, &mut list, DecodeContext::default())?,
            }
        }
        Ok(())
    }
}

impl Entry {
    fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let entry = proto::Entry::decode(bytes)?;
        let action = if entry.cancel {
            Action::Cancel
        } else {
            Action::Want { block: entry.want_type != 1, send_dont_have: entry.send_dont_have }
        };
        Ok(Self { id: ContentId::from_bytes(&entry.block)?, priority: entry.priority, action })
    }

    /// As it is sent to a peer of `version`; earlier ones know neither want-have nor DONT_HAVE.
    fn encode(&self, version: Version) -> proto::Entry {
        let mut entry = proto::Entry {
            block: self.id.to_bytes().into(),
            priority: self.priority,
            ..Default::default()
        };
        match self.action {
            Action::Cancel => entry.cancel = true,
            Action::Want { block, send_dont_have } if version >= Version::V120 => {
                entry.want_type = i32::from(!block);
                entry.send_dont_have = send_dont_have;
            }
            Action::Want { .. } => {}
        }
        entry
    }
}

impl Payload {
    fn new(hash_code: u64, digest_len: usize, data: Bytes) -> Result<Self, WireError> {
        if data.len() > MAX_BLOCK_LEN {
            return Err(WireError::Block(data.len()));
        }
        Ok(Self { hash_code, digest_len, data })
    }

    fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let payload = proto::Payload::decode(bytes)?;
        let bad = || WireError::Prefix(payload.prefix.clone());
        let mut prefix = payload.prefix.clone();
        let mut next = || decode_varint(&mut prefix).map_err(|_| bad());
        let (version, _codec, hash_code, digest_len) = (next()?, next()?, next()?, next()?);
        let digest_len = usize::try_from(digest_len).map_err(|_| bad())?;
        let right = prefix.is_empty()
            && version <= 1
            && Multihash::wrap(hash_code, &[]).is_ok()
            && digest_len <= MAX_DIGEST_LEN
            && (hash_code != SHA2_256 || digest_len == SHA2_256_LEN);
        if !right {
            return Err(bad());
        }
        Self::new(hash_code, digest_len, payload.data)
    }
}

/// Longest digest that an id may have.
const MAX_DIGEST_LEN: usize = 128;

fn delimited(from: &mut Bytes) -> Result<Bytes, WireError> {
    let len = decode_varint(from)?;
    let left = from.len();
    match usize::try_from(len) {
        Ok(fits) if fits <= left => Ok(from.split_to(fits)),
        _ => Err(WireError::Length { len, left }),
    }
}

fn count(items: &mut usize) -> Result<(), WireError> {
    *items += 1;
    if *items > MAX_ITEMS { Err(WireError::Items) } else { Ok(()) }
}

/// A frame that changes the own wantlist at the receiver.
pub(super) fn encode_wants(version: Version, full: bool, entries: &[Entry]) -> Vec<u8> {
    let entries = entries.iter().map(|entry| entry.encode(version)).collect();
    let wantlist = Some(proto::Wantlist { entries, full });
    proto::Message { wantlist, ..Default::default() }.encode_length_delimited_to_vec()
}

/// A frame of presences and small blocks.
pub(super) fn encode_packed<'a>(
    version: Version,
    presences: impl IntoIterator<Item = (&'a ContentId, bool)>,
    blocks: impl IntoIterator<Item = (&'a ContentId, &'a Bytes)>,
) -> Vec<u8> {
    let mut message = proto::Message::default();
    if version >= Version::V120 {
        let presence = |(id, has): (&ContentId, bool)| proto::Presence {
            cid: id.to_bytes().into(),
            kind: i32::from(!has),
        };
        message.presences = presences.into_iter().map(presence).collect();
    }
    for (id, data) in blocks {
        if version == Version::V100 {
            message.blocks.push(data.clone());
        } else {
            let prefix = id.prefix().into();
            message.payload.push(proto::Payload { prefix, data: data.clone() });
        }
    }
    message.encode_length_delimited_to_vec()
}

/// All of a frame with one block but the bytes of the block, which follow.
pub(super) fn block_header(version: Version, id: &ContentId, len: usize) -> Vec<u8> {
    let mut fields = Vec::with_capacity(64);
    if version == Version::V100 {
        // Field 2, length-delimited.
        put_delimited(&mut fields, 0x12, len);
    } else {
        let prefix = id.prefix();
        let mut payload = Vec::with_capacity(48);
        put_delimited(&mut payload, 0x0a, prefix.len());
        payload.extend(prefix);
        put_delimited(&mut payload, 0x12, len);
        // Field 3, length-delimited.
        put_delimited(&mut fields, 0x1a, payload.len() + len);
        fields.extend(payload);
    }
    let mut frame = Vec::with_capacity(fields.len() + 8);
    prost::encoding::encode_varint((fields.len() + len) as u64, &mut frame);
    frame.extend(fields);
    frame
}

fn put_delimited(into: &mut Vec<u8>, key: u8, len: usize) {
    into.push(key);
    prost::encoding::encode_varint(len as u64, into);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;
    use crate::content::Block;

    /// The message in a frame.
    fn body(frame: &[u8]) -> Bytes {
        let mut bytes = Bytes::copy_from_slice(frame);
        let len = decode_varint(&mut bytes).unwrap();
        assert_eq!(len, bytes.len() as u64);
        bytes
    }

    fn sample() -> proto::Message {
        let block = Block::raw(vec![7; 100].into());
        let entry = |n: u8, cancel| proto::Entry {
            block: Block::raw(vec![n].into()).cid().to_bytes().into(),
            priority: i32::from(n) - 3,
            cancel,
            want_type: i32::from(n % 2),
            send_dont_have: n > 2,
        };
        proto::Message {
            wantlist: Some(proto::Wantlist {
                entries: vec![entry(1, false), entry(2, true), entry(4, false)],
                full: true,
            }),
            blocks: vec![vec![1, 2, 3].into()],
            payload: vec![proto::Payload {
                prefix: block.cid().prefix().into(),
                data: block.data().clone(),
            }],
            presences: vec![
                proto::Presence { cid: block.cid().to_bytes().into(), kind: 0 },
                proto::Presence { cid: block.cid().to_bytes().into(), kind: 1 },
            ],
            pending_bytes: 9,
        }
    }

    #[test]
    fn a_message_is_read_as_it_was_meant() {
        let message = Message::decode(sample().encode_to_vec().into()).unwrap();
        assert!(message.full);
        let actions: Vec<_> =
            message.entries.iter().map(|entry| (entry.priority, entry.action)).collect();
        let want = |block, send_dont_have| Action::Want { block, send_dont_have };
        assert_eq!(
            actions,
            [(-2, want(false, false)), (-1, Action::Cancel), (1, want(true, true))]
        );
        assert_eq!(message.blocks.len(), 2);
        assert_eq!(message.blocks[0].data, [1, 2, 3][..]);
        assert_eq!((message.blocks[1].hash_code, message.blocks[1].digest_len), (0x12, 32));
        let id = *Block::raw(vec![7; 100].into()).cid();
        assert_eq!(message.presences, [(id, true), (id, false)]);
    }

    #[test]
    fn blocks_are_slices_of_the_frame() {
        let frame = Bytes::from(sample().encode_to_vec());
        let range = frame.as_ptr_range();
        let message = Message::decode(frame).unwrap();
        assert!(message.blocks.iter().all(|block| range.contains(&block.data.as_ptr())));
    }

    #[test]
    fn a_block_written_by_hand_is_what_prost_writes() {
        let id_v0 = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn".parse::<ContentId>().unwrap();
        for (id, len) in [(*Block::raw(vec![0; 5].into()).cid(), 5), (id_v0, 300_000), (id_v0, 0)] {
            let data = Bytes::from(vec![3; len]);
            for version in Version::ALL {
                let mut frame = block_header(version, &id, len);
                frame.extend(&data);
                let packed = encode_packed(version, [], [(&id, &data)]);
                // An empty field is left out by prost; it means the same.
                if len > 0 {
                    assert_eq!(frame, packed);
                }
                let block = Message::decode(body(&frame)).unwrap().blocks.remove(0);
                assert_eq!((block.hash_code, block.data), (0x12, data.clone()));
            }
        }
    }

    #[test]
    fn old_versions_are_told_nothing_that_they_do_not_know() {
        let id = *Block::raw(vec![1].into()).cid();
        let action = Action::Want { block: true, send_dont_have: true };
        let entry = Entry { id, priority: 1, action };
        let sent =
            proto::Message::decode(body(&encode_wants(Version::V100, true, &[entry]))).unwrap();
        let sent = sent.wantlist.unwrap();
        assert!(sent.full && !sent.entries[0].send_dont_have);
        assert_eq!(body(&encode_packed(Version::V110, [(&id, true)], [])), Bytes::new());
    }

    #[test]
    fn bad_prefixes_ids_and_sizes_are_named() {
        let decode = |change: &dyn Fn(&mut proto::Message)| {
            let mut message = sample();
            change(&mut message);
            Message::decode(message.encode_to_vec().into())
        };
        for prefix in [&[][..], &[1, 0x55, 0x12], &[1, 0x55, 0x12, 20], &[1, 0x55, 0x12, 32, 0]] {
            let bad = decode(&|m| m.payload[0].prefix = prefix.into());
            assert_eq!(bad, Err(WireError::Prefix(Bytes::copy_from_slice(prefix))));
        }
        let long = decode(&|m| m.payload[0].data = vec![0; MAX_BLOCK_LEN + 1].into());
        assert_eq!(long, Err(WireError::Block(MAX_BLOCK_LEN + 1)));
        let id = decode(&|m| m.presences[0].cid = vec![1, 2].into());
        assert!(matches!(id, Err(WireError::Id(_))));
        let empty = decode(&|m| m.wantlist.as_mut().unwrap().entries[0].block = Bytes::new());
        assert!(matches!(empty, Err(WireError::Id(_))));
    }

    #[test]
    fn millions_of_empty_entries_cost_nothing() {
        let entries = vec![[0x0a, 0x00]; 1 << 20].concat();
        let mut frame = Vec::new();
        put_delimited(&mut frame, 0x0a, entries.len());
        frame.extend(entries);
        assert!(matches!(Message::decode(frame.into()), Err(WireError::Id(_))));
        let blocks = vec![[0x12, 0x00]; 1 << 20].concat();
        assert_eq!(Message::decode(blocks.into()), Err(WireError::Items));
    }

    proptest! {
        #[test]
        fn mutated_messages_are_read_or_refused_and_never_grow(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
            shorten in any::<bool>(),
        ) {
            let mut bytes = sample().encode_to_vec();
            for (at, to) in changes {
                let at = at.index(bytes.len());
                bytes[at] = to;
            }
            if shorten {
                bytes.truncate(cut.index(bytes.len()));
            }
            let len = bytes.len();
            if let Ok(message) = Message::decode(bytes.into()) {
                let data: usize = message.blocks.iter().map(|block| block.data.len()).sum();
                prop_assert!(data <= len);
                prop_assert!(message.entries.len() + message.presences.len() <= len / 4);
            }
        }

        #[test]
        fn what_is_read_agrees_with_prost(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let read = Message::decode(bytes.clone().into());
            // Known fields of an unexpected kind are skipped here and refused there.
            if let (Ok(message), Ok(oracle)) = (read, proto::Message::decode(Bytes::from(bytes))) {
                prop_assert_eq!(message.presences.len(), oracle.presences.len());
                prop_assert_eq!(message.blocks.len(), oracle.blocks.len() + oracle.payload.len());
            }
        }
    }
}
