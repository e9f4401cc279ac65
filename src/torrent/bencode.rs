//! Bencode, as far as torrents need it: a bounded reader that knows the bytes of every value, and a writer.

use std::collections::BTreeMap;

/// Deepest nesting: a torrent needs five levels.
const MAX_DEPTH: usize = 32;
/// Most values in one text. Each takes some 50 bytes of memory and as little as two of the text; a torrent of 100,000
/// files has 600,000.
const MAX_VALUES: usize = 1_000_000;
/// Digits of the longest length that is believed: no text is longer than a few megabytes.
const MAX_LEN_DIGITS: usize = 9;

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct BencodeError {
    /// Where.
    pub at: usize,
    /// What.
    pub what: &'static str,
}

/// A value that points into the text that it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    List(Vec<Value<'a>>),
    Dict(Dict<'a>),
}

/// A dictionary with the bytes of each of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dict<'a> {
    entries: BTreeMap<&'a [u8], (Value<'a>, &'a [u8])>,
}

impl<'a> Dict<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.entries.get(key.as_bytes()).map(|(value, _)| value)
    }

    /// The value as it is written.
    pub(super) fn raw(&self, key: &str) -> Option<&'a [u8]> {
        self.entries.get(key.as_bytes()).map(|(_, raw)| *raw)
    }

    pub(super) fn bytes(&self, key: &str) -> Option<&'a [u8]> {
        self.get(key)?.as_bytes()
    }

    pub(super) fn int(&self, key: &str) -> Option<i64> {
        match self.get(key)? {
            Value::Int(number) => Some(*number),
            Value::Bytes(_) | Value::List(_) | Value::Dict(_) => None,
        }
    }

    pub(super) fn list(&self, key: &str) -> Option<&[Value<'a>]> {
        self.get(key)?.as_list()
    }

    pub(super) fn dict(&self, key: &str) -> Option<&Dict<'a>> {
        self.get(key)?.as_dict()
    }
}

impl<'a> Value<'a> {
    pub(super) fn as_bytes(&self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Int(_) | Self::List(_) | Self::Dict(_) => None,
        }
    }

    pub(super) fn as_list(&self) -> Option<&[Value<'a>]> {
        match self {
            Self::List(list) => Some(list),
            Self::Int(_) | Self::Bytes(_) | Self::Dict(_) => None,
        }
    }

    pub(super) fn as_dict(&self) -> Option<&Dict<'a>> {
        match self {
            Self::Dict(dict) => Some(dict),
            Self::Int(_) | Self::Bytes(_) | Self::List(_) => None,
        }
    }
}

/// Reads a text that is one dictionary and nothing else.
pub(super) fn decode(text: &[u8]) -> Result<Dict<'_>, BencodeError> {
    let mut reader = Reader { text, at: 0, values: 0 };
    let value = reader.value(0)?;
    if reader.at != text.len() {
        return Err(reader.wrong("there is something behind the end"));
    }
    match value {
        Value::Dict(dict) => Ok(dict),
        _ => Err(BencodeError { at: 0, what: "not a dictionary" }),
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    values: usize,
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: &'static str) -> BencodeError {
        BencodeError { at: self.at, what }
    }

    fn peek(&self) -> Result<u8, BencodeError> {
        self.text.get(self.at).copied().ok_or_else(|| self.wrong("it ends in the middle"))
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, BencodeError> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("it is nested too deep"));
        }
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.wrong("it has too many values"));
        }
        match self.peek()? {
            b'i' => self.int().map(Value::Int),
            b'0'..=b'9' => self.string().map(Value::Bytes),
            b'l' => self.list(depth).map(Value::List),
            b'd' => self.dict(depth).map(Value::Dict),
            _ => Err(self.wrong("neither a number, a string, a list nor a dictionary")),
        }
    }

    /// The bytes up to `end`, of which the first `longest` are looked at; steps behind `end`.
    fn until(&mut self, end: u8, longest: usize) -> Result<&'a str, BencodeError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let len = rest
            .iter()
            .take(longest + 1)
            .position(|byte| *byte == end)
            .ok_or_else(|| self.wrong("a number has no end"))?;
        let digits = std::str::from_utf8(&rest[..len]);
        let digits = digits.map_err(|_| self.wrong("a number has other characters than digits"))?;
        self.at += len + 1;
        Ok(digits)
    }

    fn int(&mut self) -> Result<i64, BencodeError> {
        self.at += 1;
        let begin = self.at;
        // The longest i64 has 19 digits and a sign.
        let digits = self.until(b'e', 20)?;
        let number = (!digits.starts_with('+')).then(|| digits.parse().ok()).flatten();
        number.ok_or(BencodeError { at: begin, what: "not a number" })
    }

    fn string(&mut self) -> Result<&'a [u8], BencodeError> {
        let begin = self.at;
        let digits = self.until(b':', MAX_LEN_DIGITS)?;
        let wrong = |what| BencodeError { at: begin, what };
        let len: usize = digits.parse().map_err(|_| wrong("not a length"))?;
        let bytes = self.text.get(self.at..).and_then(|rest| rest.get(..len));
        self.at += len;
        bytes.ok_or_else(|| wrong("a string is longer than the rest"))
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Value<'a>>, BencodeError> {
        self.at += 1;
        let mut list = Vec::new();
        while self.peek()? != b'e' {
            list.push(self.value(depth + 1)?);
        }
        self.at += 1;
        Ok(list)
    }

    /// Keys out of order are met in the wild and taken; a key that stands twice is not: two readers could read it
    /// differently, and what one of them checked would not be what the other one uses.
    fn dict(&mut self, depth: usize) -> Result<Dict<'a>, BencodeError> {
        self.at += 1;
        let mut dict = Dict::default();
        while self.peek()? != b'e' {
            let key = self.string()?;
            let begin = self.at;
            let value = self.value(depth + 1)?;
            let raw = &self.text[begin..self.at];
            if dict.entries.insert(key, (value, raw)).is_some() {
                return Err(BencodeError { at: begin, what: "a key stands twice" });
            }
        }
        self.at += 1;
        Ok(dict)
    }
}

/// Writes a string.
pub(super) fn write_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(bytes.len().to_string().as_bytes());
    to.push(b':');
    to.extend_from_slice(bytes);
}

/// Writes a number.
pub(super) fn write_int(to: &mut Vec<u8>, number: u64) {
    to.push(b'i');
    to.extend_from_slice(number.to_string().as_bytes());
    to.push(b'e');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_read_and_dictionaries_keep_the_bytes_of_their_values() {
        let dict = decode(b"d1:ai-3e1:bl1:x2:yzee").unwrap();
        assert_eq!(dict.int("a"), Some(-3));
        assert_eq!(dict.list("b").unwrap().len(), 2);
        assert_eq!(dict.raw("b").unwrap(), b"l1:x2:yze");
        assert_eq!((dict.int("b"), dict.bytes("none")), (None, None));
        assert_eq!(decode(b"de").unwrap(), Dict::default());
    }

    #[test]
    fn what_is_malformed_is_refused_at_its_place() {
        for (text, at) in [
            (&b""[..], 0),
            (b"i1e", 0),
            (b"d", 1),
            (b"d1:a", 4),
            (b"d1:ai1e", 7),
            (b"d1:ai1ee1:b", 8),
            (b"d1:ai+1ee", 5),
            (b"d1:aiee", 5),
            (b"d1:a5:xe", 4),
            (b"d1:a9999999999:xe", 4),
            (b"d1:ai1e1:ai2ee", 10),
            (b"di1ei2ee", 1),
            (b"d1:axe", 4),
            (b"d1:ai99999999999999999999e", 5),
        ] {
            let error = decode(text).unwrap_err();
            assert_eq!(error.at, at, "{}: {error}", text.escape_ascii());
        }
    }

    #[test]
    fn depth_and_number_of_values_are_bounded() {
        let deep = [&b"d1:a"[..], &b"l".repeat(100_000)].concat();
        assert_eq!(decode(&deep).unwrap_err().what, "it is nested too deep");
        let many = [&b"d1:al"[..], &b"le".repeat(MAX_VALUES), b"ee"].concat();
        assert_eq!(decode(&many).unwrap_err().what, "it has too many values");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in prop::collection::vec(
            prop_oneof![Just(b'd'), Just(b'l'), Just(b'i'), Just(b'e'), Just(b':'), b'0'..=b'9', any::<u8>()], 0..200,
        )) {
            let _ = decode(&text);
        }
    }
}
