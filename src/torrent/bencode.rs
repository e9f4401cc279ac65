//! Bencode, as far as torrents need it: a bounded reader that knows the bytes of every value, and a writer.
//!
//! A text is checked once, as a whole; its values are slices of it and are looked into one level at a time. So a
//! description of a million files takes no memory besides its text.

/// Deepest nesting, as libtorrent has it: a torrent needs five levels, one of version 2 as many as its directories.
const MAX_DEPTH: usize = 100;
/// Digits of the longest length that is believed: no text is longer than a few megabytes.
const MAX_LEN_DIGITS: usize = 9;
/// Digits of a number; those that do not fit into 64 bits are taken for absent.
const MAX_INT_DIGITS: usize = 64;

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct BencodeError {
    /// Where.
    pub at: usize,
    /// What.
    pub what: &'static str,
}

/// A value, as it is written in a text that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value<'a>(&'a [u8]);

/// A dictionary. Keys may be out of order; of one that stands twice the first value counts, as in libtorrent and in the
/// session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dict<'a> {
    entries: Vec<(&'a [u8], Value<'a>)>,
}

impl<'a> Dict<'a> {
    pub(super) fn get(&self, key: &str) -> Option<Value<'a>> {
        let found = self.entries.iter().find(|(name, _)| *name == key.as_bytes());
        found.map(|(_, value)| *value)
    }

    /// The value as it is written.
    pub(super) fn raw(&self, key: &str) -> Option<&'a [u8]> {
        self.get(key).map(|value| value.0)
    }

    pub(super) fn bytes(&self, key: &str) -> Option<&'a [u8]> {
        self.get(key)?.as_bytes()
    }

    pub(super) fn int(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_int()
    }

    pub(super) fn list(&self, key: &str) -> Option<Vec<Value<'a>>> {
        self.get(key)?.as_list()
    }

    pub(super) fn dict(&self, key: &str) -> Option<Dict<'a>> {
        self.get(key)?.as_dict()
    }
}

impl<'a> Value<'a> {
    pub(super) fn as_int(self) -> Option<i64> {
        let digits = self.0.strip_prefix(b"i")?.strip_suffix(b"e")?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    pub(super) fn as_bytes(self) -> Option<&'a [u8]> {
        let first = self.0.first().filter(|byte| byte.is_ascii_digit());
        first.and_then(|_| Reader { text: self.0, at: 0 }.string().ok())
    }

    pub(super) fn as_list(self) -> Option<Vec<Value<'a>>> {
        self.0.first().filter(|byte| **byte == b'l')?;
        let (mut reader, mut list) = (Reader { text: self.0, at: 1 }, Vec::new());
        while reader.peek().ok()? != b'e' {
            list.push(reader.value(0).ok()?);
        }
        Some(list)
    }

    pub(super) fn as_dict(self) -> Option<Dict<'a>> {
        self.0.first().filter(|byte| **byte == b'd')?;
        let (mut reader, mut entries) = (Reader { text: self.0, at: 1 }, Vec::new());
        while reader.peek().ok()? != b'e' {
            entries.push((reader.string().ok()?, reader.value(0).ok()?));
        }
        Some(Dict { entries })
    }
}

/// Reads the dictionary that a text begins with. What stands behind it is left alone: some programs end a file with a
/// newline, and all others take it.
pub(super) fn decode(text: &[u8]) -> Result<Dict<'_>, BencodeError> {
    let value = Reader { text, at: 0 }.value(0)?;
    value.as_dict().ok_or(BencodeError { at: 0, what: "not a dictionary" })
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: &'static str) -> BencodeError {
        BencodeError { at: self.at, what }
    }

    fn peek(&self) -> Result<u8, BencodeError> {
        self.text.get(self.at).copied().ok_or_else(|| self.wrong("it ends too early"))
    }

    /// Steps over a value and all within it.
    fn value(&mut self, depth: usize) -> Result<Value<'a>, BencodeError> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("it is nested too deep"));
        }
        let begin = self.at;
        match self.peek()? {
            b'i' => self.int()?,
            b'0'..=b'9' => drop(self.string()?),
            kind @ (b'l' | b'd') => {
                self.at += 1;
                while self.peek()? != b'e' {
                    if kind == b'd' {
                        self.string()?;
                    }
                    self.value(depth + 1)?;
                }
                self.at += 1;
            }
            _ => return Err(self.wrong("neither a number, a string, a list nor a dictionary")),
        }
        Ok(Value(&self.text[begin..self.at]))
    }

    /// The bytes up to `end`, of which the first `longest` are looked at; steps behind `end`.
    fn until(&mut self, end: u8, longest: usize) -> Result<&'a [u8], BencodeError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let len = rest
            .iter()
            .take(longest + 1)
            .position(|byte| *byte == end)
            .ok_or_else(|| self.wrong("a number has no end"))?;
        self.at += len + 1;
        Ok(&rest[..len])
    }

    fn int(&mut self) -> Result<(), BencodeError> {
        self.at += 1;
        let begin = self.at;
        let number = self.until(b'e', MAX_INT_DIGITS)?;
        let digits = number.strip_prefix(b"-").unwrap_or(number);
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(BencodeError { at: begin, what: "not a number" });
        }
        Ok(())
    }

    fn string(&mut self) -> Result<&'a [u8], BencodeError> {
        let begin = self.at;
        let digits = self.until(b':', MAX_LEN_DIGITS)?;
        let wrong = |what| BencodeError { at: begin, what };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(wrong("not a length"));
        }
        // At most nine digits.
        let len = digits.iter().fold(0, |len, digit| len * 10 + usize::from(digit - b'0'));
        let bytes = self.text.get(self.at..).and_then(|rest| rest.get(..len));
        self.at += len;
        bytes.ok_or_else(|| wrong("a string is longer than the rest"))
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
            (b"d1:ai+1ee", 5),
            (b"d1:aiee", 5),
            (b"d1:a5:xe", 4),
            (b"d1:a9999999999:xe", 4),
            (b"di1ei2ee", 1),
            (b"d1:axe", 4),
            (b"d1:ai-e", 5),
            (b"d-1:ai1ee", 1),
        ] {
            let error = decode(text).unwrap_err();
            assert_eq!(error.at, at, "{}: {error}", text.escape_ascii());
        }
    }

    #[test]
    fn nesting_is_bounded_and_length_is_not() {
        let deep = [&b"d1:a"[..], &b"l".repeat(100_000)].concat();
        assert_eq!(decode(&deep).unwrap_err().what, "it is nested too deep");
        let many = [&b"d1:al"[..], &b"le".repeat(2_000_000), b"ee"].concat();
        assert_eq!(decode(&many).unwrap().list("a").unwrap().len(), 2_000_000);
    }

    #[test]
    fn oddly_written_texts_mean_what_they_mean_elsewhere() {
        // Something behind the end, keys out of order, a key twice, a number that is too large.
        for text in [&b"d1:ai1e1:bi2ee\n"[..], b"d1:bi2e1:ai1ee", b"d1:bi2e1:ai1e1:ai3ee"] {
            let dict = decode(text).unwrap();
            assert_eq!(
                (dict.int("a"), dict.int("b")),
                (Some(1), Some(2)),
                "{}",
                text.escape_ascii()
            );
        }
        let large = decode(b"d1:ai99999999999999999999e1:b03:abce").unwrap();
        assert_eq!((large.int("a"), large.bytes("b")), (None, Some(&b"abc"[..])));
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
