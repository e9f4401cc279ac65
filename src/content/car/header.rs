//! The header of a CAR: `{"roots": [CID…], "version": 1}` in dag-cbor, of which no more is known here than that takes.

use crate::content::ContentId;

/// Major types of CBOR.
const UINT: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;

/// What some writers put in the place of no roots.
const NULL: u8 = 0xf6;

/// The tag of a link, whose bytes are a null byte and a CID.
const LINK: u64 = 42;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u64,
    pub(super) roots: Vec<ContentId>,
}

pub(super) fn encode(roots: &[ContentId]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, MAP, 2);
    // Shorter keys come first, that is the order of dag-cbor.
    put_text(&mut out, "roots");
    put(&mut out, ARRAY, roots.len() as u64);
    for root in roots {
        let cid = root.to_bytes();
        put(&mut out, TAG, LINK);
        put(&mut out, BYTES, cid.len() as u64 + 1);
        out.push(0);
        out.extend(cid);
    }
    put_text(&mut out, "version");
    put(&mut out, UINT, 1);
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put(out, TEXT, text.len() as u64);
    out.extend(text.as_bytes());
}

/// The shortest form, as dag-cbor wants it.
fn put(out: &mut Vec<u8>, major: u8, value: u64) {
    let bytes = value.to_be_bytes();
    let (form, len) = match value {
        0..24 => (bytes[7], 0),
        24..0x100 => (24, 1),
        0x100..0x1_0000 => (25, 2),
        0x1_0000..0x1_0000_0000 => (26, 4),
        _ => (27, 8),
    };
    out.push(major << 5 | form);
    out.extend(&bytes[8 - len..]);
}

pub(super) fn decode(bytes: &[u8]) -> Result<Header, String> {
    let mut reader = Reader(bytes);
    let (mut version, mut roots) = (None, None);
    for _ in 0..reader.argument(MAP)? {
        match reader.text()? {
            "version" if version.is_none() => version = Some(reader.argument(UINT)?),
            "roots" if roots.is_none() => roots = Some(reader.roots()?),
            key => return Err(format!("the field `{}`", key.escape_debug())),
        }
    }
    if !reader.0.is_empty() {
        return Err(format!("{} bytes behind the end", reader.0.len()));
    }
    let version = version.ok_or_else(|| "no version".to_owned())?;
    Ok(Header { version, roots: roots.unwrap_or_default() })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], String> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or_else(|| "it ends early".to_owned())?;
        self.0 = rest;
        Ok(taken)
    }

    /// The number of an item of the type `major`: its value, or how much of it follows.
    fn argument(&mut self, major: u8) -> Result<u64, String> {
        let first = self.take(1)?[0];
        if first >> 5 != major {
            return Err(format!("0x{first:02x} in the place of major type {major}"));
        }
        let len = match first & 0x1f {
            small @ 0..24 => return Ok(u64::from(small)),
            form @ 24..28 => 1 << (form - 24),
            // Items of no stated length are not dag-cbor.
            _ => return Err(format!("the form 0x{first:02x}")),
        };
        Ok(self.take(len)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let len = self.argument(TEXT)?;
        std::str::from_utf8(self.take(len)?).map_err(|_| "a key that is no text".to_owned())
    }

    fn roots(&mut self) -> Result<Vec<ContentId>, String> {
        if self.0.first() == Some(&NULL) {
            self.take(1)?;
            return Ok(Vec::new());
        }
        // Grows with the bytes that are there, and not with the number that is claimed.
        let mut roots = Vec::new();
        for _ in 0..self.argument(ARRAY)? {
            if self.argument(TAG)? != LINK {
                return Err("a root that is no link".to_owned());
            }
            let len = self.argument(BYTES)?;
            let Some((0, cid)) = self.take(len)?.split_first().map(|(base, cid)| (*base, cid))
            else {
                return Err("a link of an unknown form".to_owned());
            };
            roots.push(ContentId::from_bytes(cid).map_err(|error| error.to_string())?);
        }
        Ok(roots)
    }
}
