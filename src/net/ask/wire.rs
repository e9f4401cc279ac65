//! Questions and answers as they lie on the wire.
//!
//! What comes is walked by hand: an answer of a million empty statements ends at the first that is too many.

use std::io;

use bytes::{Buf as _, Bytes};
use futures::{AsyncRead, AsyncReadExt as _};
use prost::{
    DecodeError, Message as _,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

use super::{Dealings, MAX_FILES, MAX_INFO, MAX_STATEMENT, TorrentAnswer, TorrentQuestion};
use crate::content::InfoHash;

/// Longest question: five numbers and a hash.
pub(super) const MAX_QUESTION: usize = 128;
/// Longest answer: all that may be in it, and some bytes around each.
pub(super) const MAX_ANSWER: usize = MAX_INFO + (MAX_FILES as usize) * (MAX_STATEMENT + 8) + 128;

/// What is written; read by hand.
mod proto {
    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Question {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) hash: Bytes,
        #[prost(bool, tag = "2")]
        pub(super) describe: bool,
        #[prost(uint32, tag = "3")]
        pub(super) first: u32,
        #[prost(uint32, tag = "4")]
        pub(super) count: u32,
        #[prost(uint64, tag = "5")]
        pub(super) received: u64,
        #[prost(uint64, tag = "6")]
        pub(super) sent: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Answer {
        #[prost(bool, tag = "1")]
        pub(super) known: bool,
        #[prost(bytes = "bytes", tag = "2")]
        pub(super) info: Bytes,
        #[prost(uint32, tag = "3")]
        pub(super) port: u32,
        #[prost(bytes = "bytes", repeated, tag = "4")]
        pub(super) statements: Vec<Bytes>,
        #[prost(uint64, tag = "5")]
        pub(super) received: u64,
        #[prost(uint64, tag = "6")]
        pub(super) sent: u64,
    }
}

/// Why a message is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    /// Not protobuf.
    #[error("something else: {0}")]
    Protobuf(#[from] DecodeError),
    /// Something in it is too long, too much or missing.
    #[error("a malformed {0}")]
    Field(&'static str),
}

/// A question with what the asker has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) asked: TorrentQuestion,
    pub(super) dealings: Dealings,
}

/// An answer with what the answerer has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) said: TorrentAnswer,
    pub(super) dealings: Dealings,
}

/// A field: a number or some bytes.
enum Field {
    Number(u64),
    Bytes(Bytes),
}

impl Field {
    fn number(self) -> Result<u64, WireError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err(WireError::Field("number")),
        }
    }

    fn bytes(self, longest: usize, what: &'static str) -> Result<Bytes, WireError> {
        match self {
            Self::Bytes(bytes) if bytes.len() <= longest => Ok(bytes),
            _ => Err(WireError::Field(what)),
        }
    }
}

/// Hands over each field of a message in turn; those of kinds that later versions may have are left out.
fn fields(
    mut from: Bytes,
    mut take: impl FnMut(u32, Field) -> Result<(), WireError>,
) -> Result<(), WireError> {
    while from.has_remaining() {
        let (tag, kind) = decode_key(&mut from)?;
        let field = match kind {
            WireType::Varint => Field::Number(decode_varint(&mut from)?),
            WireType::LengthDelimited => {
                let len = usize::try_from(decode_varint(&mut from)?).unwrap_or(usize::MAX);
                if len > from.len() {
                    return Err(WireError::Field("length"));
                }
                Field::Bytes(from.split_to(len))
            }
            _ => {
                skip_field(kind, tag, &mut from, DecodeContext::default())?;
                continue;
            }
        };
        take(tag, field)?;
    }
    Ok(())
}

impl Question {
    pub(super) fn encode(&self) -> Vec<u8> {
        let TorrentQuestion { hash, describe, files } = &self.asked;
        let message = proto::Question {
            hash: Bytes::copy_from_slice(&hash.0),
            describe: *describe,
            first: files.start,
            count: files.end.saturating_sub(files.start).min(MAX_FILES),
            received: self.dealings.received,
            sent: self.dealings.sent,
        };
        message.encode_length_delimited_to_vec()
    }

    pub(super) fn decode(from: Bytes) -> Result<Self, WireError> {
        let (mut hash, mut describe, mut first, mut count) = (None, false, 0, 0);
        let mut dealings = Dealings::default();
        let small = |number: u64| u32::try_from(number).map_err(|_| WireError::Field("number"));
        fields(from, |tag, field| {
            match tag {
                1 => hash = <[u8; 20]>::try_from(&*field.bytes(20, "info hash")?).ok(),
                2 => describe = field.number()? != 0,
                3 => first = small(field.number()?)?,
                4 => count = small(field.number()?)?,
                5 => dealings.received = field.number()?,
                6 => dealings.sent = field.number()?,
                _ => {}
            }
            Ok(())
        })?;
        let hash = InfoHash(hash.ok_or(WireError::Field("info hash"))?);
        let files = first..first.saturating_add(count.min(MAX_FILES));
        Ok(Self { asked: TorrentQuestion { hash, describe, files }, dealings })
    }
}

impl Answer {
    /// What is too long or too much for the other side is left out.
    pub(super) fn encode(&self) -> Vec<u8> {
        let TorrentAnswer { known, info, port, statements } = &self.said;
        let fits = statements.iter().filter(|said| said.len() <= MAX_STATEMENT);
        let message = proto::Answer {
            known: *known,
            info: info.clone().filter(|info| info.len() <= MAX_INFO).unwrap_or_default(),
            port: port.unwrap_or_default().into(),
            statements: fits.take(MAX_FILES as usize).cloned().collect(),
            received: self.dealings.received,
            sent: self.dealings.sent,
        };
        message.encode_length_delimited_to_vec()
    }

    pub(super) fn decode(from: Bytes) -> Result<Self, WireError> {
        let (mut said, mut dealings) = (TorrentAnswer::default(), Dealings::default());
        fields(from, |tag, field| {
            match tag {
                1 => said.known = field.number()? != 0,
                2 => {
                    let info = field.bytes(MAX_INFO, "description")?;
                    said.info = Some(info).filter(|info| !info.is_empty());
                }
                3 => {
                    let port = u16::try_from(field.number()?);
                    let port = port.map_err(|_| WireError::Field("port"))?;
                    said.port = Some(port).filter(|port| *port != 0);
                }
                4 => {
                    if said.statements.len() >= MAX_FILES as usize {
                        return Err(WireError::Field("number of statements"));
                    }
                    said.statements.push(field.bytes(MAX_STATEMENT, "statement")?);
                }
                5 => dealings.received = field.number()?,
                6 => dealings.sent = field.number()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(Self { said, dealings })
    }
}

/// Reads one message with its length before it. Memory is taken as bytes come, not as the length says.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin), longest: usize) -> io::Result<Bytes> {
    let (mut len, mut shift) = (0_usize, 0);
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte).await?;
        len |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
        shift += 7;
        if shift > 21 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a length of too many bytes"));
        }
    }
    if len > longest {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
    }
    let mut message = Vec::new();
    from.take(len as u64).read_to_end(&mut message).await?;
    if message.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn question() -> Question {
        let asked = TorrentQuestion { hash: InfoHash([7; 20]), describe: true, files: 3..9 };
        Question { asked, dealings: Dealings { received: 1 << 50, sent: 2 } }
    }

    fn answer() -> Answer {
        let said = TorrentAnswer {
            known: true,
            info: Some(Bytes::from_static(b"d4:name1:ae")),
            port: Some(6881),
            statements: vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")],
        };
        Answer { said, dealings: Dealings { received: 5, sent: u64::MAX } }
    }

    /// The message behind its length.
    fn body(message: &[u8]) -> Bytes {
        let mut left = Bytes::copy_from_slice(message);
        assert_eq!(decode_varint(&mut left).unwrap(), left.len() as u64);
        left
    }

    #[test]
    fn what_is_written_is_read_and_nothing_of_it_is_longer_than_is_taken() {
        assert_eq!(Question::decode(body(&question().encode())).unwrap(), question());
        assert_eq!(Answer::decode(body(&answer().encode())).unwrap(), answer());
        let none = Answer { said: TorrentAnswer::default(), dealings: Dealings::default() };
        assert_eq!(Answer::decode(body(&none.encode())).unwrap(), none);
        let most =
            TorrentQuestion { hash: InfoHash([255; 20]), describe: true, files: 0..u32::MAX };
        let counted = Dealings { received: u64::MAX, sent: u64::MAX };
        let most = Question { asked: most, dealings: counted }.encode();
        assert!(most.len() <= MAX_QUESTION);
        assert_eq!(Question::decode(body(&most)).unwrap().asked.files, 0..MAX_FILES);
        let said = TorrentAnswer {
            info: Some(vec![1; MAX_INFO].into()),
            statements: vec![vec![1; MAX_STATEMENT].into(); MAX_FILES as usize + 5],
            ..answer().said
        };
        let most = Answer { said, dealings: counted }.encode();
        assert!(most.len() <= MAX_ANSWER);
        let read = Answer::decode(body(&most)).unwrap().said;
        assert_eq!(read.statements.len(), MAX_FILES as usize);
        // What the other side would refuse is not sent.
        let said = TorrentAnswer {
            info: Some(vec![1; MAX_INFO + 1].into()),
            statements: vec![vec![1; MAX_STATEMENT + 1].into()],
            ..answer().said
        };
        let read = Answer::decode(body(&Answer { said, dealings: counted }.encode())).unwrap();
        assert_eq!((read.said.info, read.said.statements.len()), (None, 0));
    }

    #[test]
    fn what_is_too_much_or_missing_is_refused() {
        let many = [0x22, 0].repeat(MAX_FILES as usize + 1);
        assert_eq!(
            Answer::decode(many.into()).unwrap_err(),
            WireError::Field("number of statements")
        );
        assert_eq!(
            Answer::decode(Bytes::from_static(&[0x18, 0x80, 0x80, 4])).unwrap_err(),
            WireError::Field("port")
        );
        let long = [&[0x22, 0x81, 8][..], &[0; MAX_STATEMENT + 1]].concat();
        assert_eq!(Answer::decode(long.into()).unwrap_err(), WireError::Field("statement"));
        for (bytes, what) in [
            (&[][..], "info hash"),
            (&[0x0a, 3, 1, 2, 3], "info hash"),
            (&[0x0a, 3, 1], "length"),
            (&[0x18, 0x80, 0x80, 0x80, 0x80, 0x10], "number"),
            (&[0x1a, 0], "number"),
        ] {
            let refused = Question::decode(Bytes::copy_from_slice(bytes)).unwrap_err();
            assert_eq!(refused, WireError::Field(what), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_message_is_read_up_to_its_end_and_no_longer_one_than_is_wanted() {
        let written = question().encode();
        let more = [&written[..], b"more"].concat();
        assert_eq!(read(&mut &more[..], MAX_QUESTION).await.unwrap(), body(&written));
        for cut in 0..written.len() {
            assert!(read(&mut &written[..cut], MAX_QUESTION).await.is_err(), "{cut}");
        }
        for bad in [&[0x81, 1][..], &[0xff; 8], &[0x80, 0x80, 0x80, 0x80, 1]] {
            let refused = read(&mut &bad[..], MAX_QUESTION).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_and_changed_messages_are_read_or_refused_and_never_more(
            garbage in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
            cut in any::<prop::sample::Index>(),
        ) {
            let _ = Question::decode(garbage.clone().into());
            if let Ok(answer) = Answer::decode(garbage.into()) {
                prop_assert!(answer.said.statements.len() <= MAX_FILES as usize);
            }
            for written in [body(&question().encode()), body(&answer().encode())] {
                let mut changed = written.to_vec();
                let place = at.index(changed.len());
                changed[place] ^= 1 << bit;
                changed.truncate(cut.index(changed.len() + 1));
                let _ = Answer::decode(changed.clone().into());
                if let Ok(question) = Question::decode(changed.into()) {
                    prop_assert!(question.asked.files.len() <= MAX_FILES as usize);
                }
            }
        }
    }
}
