//! The part of protobuf that dag-pb and UnixFS are written in.

use std::ops::Range;

/// Longest varint of 64 bits.
const MAX_VARINT: usize = 10;

/// Where and how bytes fail to be protobuf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PbError {
    /// What is wrong.
    pub(super) reason: &'static str,
    /// Offset in the block.
    pub(super) at: usize,
}

impl PbError {
    pub(super) fn new(at: usize, reason: &'static str) -> Self {
        Self { reason, at }
    }
}

impl std::fmt::Display for PbError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}", self.reason, self.at)
    }
}

/// The value of one field. Bytes are named by their place in the block, so that nothing is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Varint(u64),
    Fixed64,
    Bytes(Range<usize>),
    Fixed32(u32),
}

impl Value {
    pub(super) fn varint(&self, at: usize) -> Result<u64, PbError> {
        match self {
            Self::Varint(value) => Ok(*value),
            _ => Err(PbError::new(at, "wrong wire type, a varint is expected")),
        }
    }

    pub(super) fn bytes(self, at: usize) -> Result<Range<usize>, PbError> {
        match self {
            Self::Bytes(range) => Ok(range),
            _ => Err(PbError::new(at, "wrong wire type, bytes are expected")),
        }
    }
}

/// One field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) number: u64,
    pub(super) value: Value,
    /// Offset of the field's key in the block.
    pub(super) at: usize,
}

/// Walks over the fields of the message in `block[range]`. Allocates nothing.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// `message` has to lie inside `block`; what sticks out is not read.
    pub(super) fn new(block: &'a [u8], message: Range<usize>) -> Self {
        let end = message.end.min(block.len());
        Self { block: &block[..end], at: message.start.min(end) }
    }

    /// The next field; none at the end of the message.
    pub(super) fn next(&mut self) -> Result<Option<Field>, PbError> {
        let at = self.at;
        if at == self.block.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => {
                let mut word = [0; 4];
                word.copy_from_slice(&self.block[self.take(4)?]);
                Value::Fixed32(u32::from_le_bytes(word))
            }
            _ => return Err(PbError::new(at, "unknown wire type")),
        };
        Ok(Some(Field { number: key >> 3, value, at }))
    }

    /// The next bytes as a bare varint; none at the end (packed repeated fields).
    pub(super) fn next_packed(&mut self) -> Result<Option<u64>, PbError> {
        if self.at == self.block.len() { Ok(None) } else { self.varint().map(Some) }
    }

    fn varint(&mut self) -> Result<u64, PbError> {
        let start = self.at;
        let mut value = 0;
        for (index, byte) in self.block[start..].iter().take(MAX_VARINT).enumerate() {
            // The tenth byte has room for the 64th bit alone.
            if index == MAX_VARINT - 1 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if *byte < 0x80 {
                self.at = start + index + 1;
                return Ok(value);
            }
        }
        Err(PbError::new(start, "varint cut off or over 64 bits"))
    }

    fn take(&mut self, len: u64) -> Result<Range<usize>, PbError> {
        let start = self.at;
        let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
        match end.filter(|end| *end <= self.block.len()) {
            Some(end) => {
                self.at = end;
                Ok(start..end)
            }
            None => Err(PbError::new(start, "length reaches over the end")),
        }
    }
}

/// Bytes that `value` takes as a varint.
pub(super) fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// A varint field. `number` stays below 16, so that its key is one byte.
pub(super) fn put_u64(out: &mut Vec<u8>, number: u8, value: u64) {
    out.push(number << 3);
    put_varint(out, value);
}

/// A field of bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A field of four fixed bytes.
pub(super) fn put_fixed32(out: &mut Vec<u8>, number: u8, value: u32) {
    out.push(number << 3 | 5);
    out.extend_from_slice(&value.to_le_bytes());
}
