//! Content archives (CAR, versions 1 and 2): many blocks in one file, behind a header that names the roots.
//!
//! Version 1 is a header and sections, each behind its length as a varint; a section is a CID and the block's bytes.
//! Version 2 wraps that into a frame which says where it lies, and may carry an index, which is not looked at: every
//! block is read and hashed anyway.
//!
//! Nothing here verifies a block. What a [`CarReader`] gives is to go through [`super::Block::verify`].

mod header;
#[cfg(test)]
mod tests;

use bytes::{Buf, Bytes, BytesMut};

use super::{ContentId, MAX_BLOCK_LEN, pb};

/// Longest header: some 25,000 roots, where archives have one or a few.
const MAX_HEADER: u64 = 1 << 20;

/// Longest binary CID: version, codec, function and length as varints, and a digest of 128 bytes.
const MAX_CID: usize = 1 + 9 + 9 + 2 + 128;

/// Longest section.
const MAX_SECTION: u64 = (MAX_BLOCK_LEN + MAX_CID) as u64;

/// Longest varint of a length: 63 bits, as everywhere in multiformats.
const MAX_VARINT: usize = 9;

/// What a file of version 2 begins with: a header as of version 1 that says `{version: 2}` and names no roots.
const PRAGMA: [u8; 11] = *b"\x0a\xa1\x67version\x02";

/// The header of version 2 behind the pragma: characteristics, offset and size of the data, offset of the index.
const V2_HEADER: usize = 40;

/// Why bytes are not a CAR. Every `at` is an offset in the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CarError {
    /// The header is not one.
    #[error("not a CAR: {reason} in the header at byte {at}")]
    Header {
        /// Where the header begins.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// A length is over the limit.
    #[error("the {what} at byte {at} claims {len} bytes, over the limit of {limit}")]
    TooLong {
        /// Header or section.
        what: &'static str,
        /// Where its length stands.
        at: u64,
        /// What it claims.
        len: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A length is no number.
    #[error("the length at byte {at} is no varint")]
    Length {
        /// Where it stands.
        at: u64,
    },
    /// A section does not begin with a CID.
    #[error("the section at byte {at} begins with no CID: {reason}")]
    Cid {
        /// Where the section begins.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// A section of no bytes, where padding is not allowed.
    #[error("null padding begins at byte {at}")]
    NullPadding {
        /// Where it begins.
        at: u64,
    },
    /// Behind null padding there is something else.
    #[error("null padding ends at byte {at}, before the data do")]
    BehindPadding {
        /// The first byte that is not null.
        at: u64,
    },
    /// The bytes end too early.
    #[error("the file ends at byte {end}, within the {what} at byte {at}")]
    Truncated {
        /// Header or section.
        what: &'static str,
        /// Where it begins.
        at: u64,
        /// Where the file ends.
        end: u64,
    },
}

/// What a CAR says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarHeader {
    /// 1 or 2.
    pub version: u8,
    /// The roots. Their blocks need not be in the file.
    pub roots: Vec<ContentId>,
}

/// One block of a CAR, as the file has it: unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarSection {
    /// Offset in the file, of the section's length.
    pub at: u64,
    /// The id that the file gives it.
    pub cid: ContentId,
    /// Its bytes.
    pub data: Bytes,
}

/// What comes out of a [`CarReader`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CarItem {
    /// Once, first.
    Header(CarHeader),
    /// A block.
    Section(CarSection),
}

/// What is read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The header of version 1, or the pragma of version 2.
    Start,
    /// The header of version 2.
    V2,
    /// What lies between the header of version 2 and the data.
    Gap {
        data: u64,
        end: u64,
    },
    /// The header of version 1 within version 2.
    Inner,
    Section,
    /// Nothing but null bytes up to the end.
    Padding,
    /// The index of version 2, or whatever comes behind the data.
    Rest,
}

/// Reads a CAR from pieces of any length. Holds at most one section besides what was pushed last, and makes no room
/// for what a length claims before the bytes are there.
#[derive(Clone, Debug)]
pub struct CarReader {
    state: State,
    version: u8,
    held: BytesMut,
    /// Offset of the first byte of `held` in the file.
    at: u64,
    /// Offset where the data of version 2 end.
    end: u64,
    null_padding: bool,
}

impl Default for CarReader {
    fn default() -> Self {
        Self::new(true)
    }
}

impl CarReader {
    /// A reader at the beginning of a file. With `null_padding` the data may end in null bytes, as those of archives
    /// that are filled up to some size do.
    pub fn new(null_padding: bool) -> Self {
        Self {
            state: State::Start,
            version: 1,
            held: BytesMut::new(),
            at: 0,
            end: u64::MAX,
            null_padding,
        }
    }

    /// Takes the next bytes of the file. [`CarReader::next_item`] is to be called until it gives nothing.
    pub fn push(&mut self, bytes: &[u8]) {
        match self.state {
            // Not kept: an index can be as large as it likes.
            State::Rest => self.at = self.at.saturating_add(bytes.len() as u64),
            _ => self.held.extend_from_slice(bytes),
        }
    }

    /// The next header or block; none when more bytes have to be pushed for it, or the end has come.
    ///
    /// # Errors
    /// When the bytes are no CAR. What follows cannot be read then.
    pub fn next_item(&mut self) -> Result<Option<CarItem>, CarError> {
        loop {
            let before = (self.state, self.at);
            let item = match self.state {
                State::Start => self.start()?,
                State::V2 => self.v2()?,
                State::Gap { data, end } => self.gap(data, end),
                State::Inner => self.header()?,
                State::Section => self.section()?,
                State::Padding => self.padding()?,
                State::Rest => {
                    self.skip(self.held.len());
                    None
                }
            };
            if item.is_some() || before == (self.state, self.at) {
                return Ok(item);
            }
        }
    }

    /// Whether the file may end after what was pushed.
    ///
    /// # Errors
    /// [`CarError::Truncated`].
    pub fn finish(&self) -> Result<(), CarError> {
        let end = self.at.saturating_add(self.held.len() as u64);
        // The data of version 1 end with the file, those of version 2 where its header says.
        let open_end = self.version == 1 && self.held.is_empty();
        let what = match self.state {
            State::Rest => return Ok(()),
            State::Section | State::Padding if open_end => return Ok(()),
            State::Section => "section",
            State::Padding => "padding",
            State::Start | State::V2 | State::Gap { .. } | State::Inner => "header",
        };
        Err(CarError::Truncated { what, at: self.at, end })
    }

    fn start(&mut self) -> Result<Option<CarItem>, CarError> {
        let common = self.held.len().min(PRAGMA.len());
        if self.held[..common] != PRAGMA[..common] {
            return self.header();
        }
        if common == PRAGMA.len() {
            self.skip(common);
            self.version = 2;
            self.state = State::V2;
        }
        Ok(None)
    }

    fn v2(&mut self) -> Result<Option<CarItem>, CarError> {
        let Some(header) = self.held.get(..V2_HEADER) else { return Ok(None) };
        // Characteristics say what the index covers; it is not used.
        let mut numbers = &header[16..];
        let (data, size, index) =
            (numbers.get_u64_le(), numbers.get_u64_le(), numbers.get_u64_le());
        let refused = |reason: &str| CarError::Header { at: self.at, reason: reason.to_owned() };
        if data < (PRAGMA.len() + V2_HEADER) as u64 {
            return Err(refused("the data begin before the header ends"));
        }
        if size == 0 {
            // Writers fill this in when they are done.
            return Err(refused(
                "a size of no bytes, as of a file that was not written to its end",
            ));
        }
        let Some(end) = data.checked_add(size) else {
            return Err(refused("the data end behind 2^64 bytes"));
        };
        if index != 0 && index < end {
            return Err(refused("the index begins within the data"));
        }
        self.skip(V2_HEADER);
        self.state = State::Gap { data, end };
        Ok(None)
    }

    fn gap(&mut self, data: u64, end: u64) -> Option<CarItem> {
        let left = usize::try_from(data - self.at).unwrap_or(usize::MAX);
        self.skip(left.min(self.held.len()));
        if self.at == data {
            self.end = end;
            self.state = State::Inner;
        }
        None
    }

    fn header(&mut self) -> Result<Option<CarItem>, CarError> {
        let Some((prefix, len)) = self.length("header", MAX_HEADER)? else { return Ok(None) };
        let Some(bytes) = self.held.get(prefix..prefix + len) else { return Ok(None) };
        let refused = |reason| CarError::Header { at: self.at, reason };
        let header = header::decode(bytes).map_err(refused)?;
        if header.version != 1 {
            return Err(refused(format!("version {}", header.version)));
        }
        self.skip(prefix + len);
        self.state = State::Section;
        Ok(Some(CarItem::Header(CarHeader { version: self.version, roots: header.roots })))
    }

    fn section(&mut self) -> Result<Option<CarItem>, CarError> {
        if self.at == self.end {
            self.state = State::Rest;
            return Ok(None);
        }
        if self.held.first() == Some(&0) {
            if !self.null_padding {
                return Err(CarError::NullPadding { at: self.at });
            }
            self.state = State::Padding;
            return Ok(None);
        }
        let Some((prefix, len)) = self.length("section", MAX_SECTION)? else { return Ok(None) };
        if self.held.len() < prefix + len {
            return Ok(None);
        }
        let at = self.at;
        let body = &self.held[prefix..prefix + len];
        let (cid, cid_len) = ContentId::read_prefix(body)
            .map_err(|reason| CarError::Cid { at, reason: reason.to_string() })?;
        self.skip(prefix + cid_len);
        let data = self.held.split_to(len - cid_len).freeze();
        self.at += data.len() as u64;
        Ok(Some(CarItem::Section(CarSection { at, cid, data })))
    }

    fn padding(&mut self) -> Result<Option<CarItem>, CarError> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let zeros = &self.held[..left.min(self.held.len())];
        if let Some(other) = zeros.iter().position(|byte| *byte != 0) {
            return Err(CarError::BehindPadding { at: self.at + other as u64 });
        }
        self.skip(zeros.len());
        if self.at == self.end {
            self.state = State::Rest;
        }
        Ok(None)
    }

    /// The varint at the beginning: its own length, and the length that it gives. None: it is not there whole.
    fn length(&self, what: &'static str, limit: u64) -> Result<Option<(usize, usize)>, CarError> {
        let at = self.at;
        let Some((prefix, len)) = varint(&self.held).map_err(|()| CarError::Length { at })? else {
            return Ok(None);
        };
        if len > limit {
            return Err(CarError::TooLong { what, at, len, limit });
        }
        // The data of version 2 end with a section.
        let end = at.saturating_add(prefix as u64).saturating_add(len);
        if end > self.end {
            return Err(CarError::Truncated { what, at, end: self.end });
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len == 0 {
            return Err(CarError::Length { at });
        }
        Ok(Some((prefix, len)))
    }

    fn skip(&mut self, len: usize) {
        self.held.advance(len);
        self.at = self.at.saturating_add(len as u64);
    }
}

/// A varint at the beginning of `bytes`, and how many of them it takes; none when it goes on behind them.
fn varint(bytes: &[u8]) -> Result<Option<(usize, u64)>, ()> {
    let mut value = 0;
    for (n, byte) in bytes.iter().take(MAX_VARINT).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Ok(Some((n + 1, value)));
        }
    }
    if bytes.len() < MAX_VARINT { Ok(None) } else { Err(()) }
}

/// What a CAR of version 1 begins with.
pub fn car_header(roots: &[ContentId]) -> Vec<u8> {
    let header = header::encode(roots);
    let mut out = Vec::with_capacity(header.len() + 2);
    pb::put_varint(&mut out, header.len() as u64);
    out.extend(header);
    out
}

/// What stands before the bytes of a block of `len` bytes in a CAR.
pub fn car_section_head(cid: &ContentId, len: usize) -> Vec<u8> {
    let cid = cid.to_bytes();
    let mut out = Vec::with_capacity(cid.len() + 4);
    pb::put_varint(&mut out, (cid.len() + len) as u64);
    out.extend(cid);
    out
}

/// The section at the beginning of `bytes` of a CAR without its block: its length with all that stands before the
/// block, the id, and the length of the block. None where no section begins.
pub fn car_section_at(bytes: &[u8]) -> Option<(usize, ContentId, usize)> {
    let (prefix, len) = varint(bytes).ok()??;
    if len == 0 || len > MAX_SECTION {
        return None;
    }
    let (cid, cid_len) = ContentId::read_prefix(bytes.get(prefix..)?).ok()?;
    let data = usize::try_from(len).ok()?.checked_sub(cid_len)?;
    Some((prefix + cid_len, cid, data))
}

/// Bytes that [`car_section_at`] needs at most.
pub const CAR_SECTION_HEAD: usize = MAX_VARINT + MAX_CID;
