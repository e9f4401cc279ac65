//! Which bytes of a file are meant by `entity-bytes=from:to` of the trustless gateways.

use std::{fmt, str::FromStr};

use super::ByteRange;

/// A range whose ends both belong to it. Numbers below zero count from the end of the file, which need not be known
/// when the range is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityBytes {
    /// First byte.
    pub from: i64,
    /// Last byte; none is the end of the file.
    pub to: Option<i64>,
}

/// Why a text is no such range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no range of bytes: write FROM:TO, with numbers and `*` for the end")]
pub struct EntityBytesError(String);

impl FromStr for EntityBytes {
    type Err = EntityBytesError;

    fn from_str(text: &str) -> Result<Self, EntityBytesError> {
        let wrong = || EntityBytesError(text.to_owned());
        let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
        let (from, to) = text.split_once(':').ok_or_else(wrong)?;
        let to = if to == "*" { None } else { Some(number(to)?) };
        Ok(Self { from: number(from)?, to })
    }
}

impl fmt::Display for EntityBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            Some(to) => write!(f, "{}:{to}", self.from),
            None => write!(f, "{}:*", self.from),
        }
    }
}

impl EntityBytes {
    /// The bytes that are in a file of `size` bytes; none when the range has no length or lies outside.
    pub fn within(&self, size: u64) -> ByteRange {
        let (first, last) = self.ends(size);
        let end = (last + 1).clamp(0, i128::from(size));
        let at = |end: i128| u64::try_from(end.max(0)).unwrap_or(u64::MAX);
        ByteRange::new(at(first).min(size), at(end))
    }

    /// Whether all of it lies before or behind a file that has any bytes.
    pub fn is_outside(&self, size: u64) -> bool {
        let (first, last) = self.ends(size);
        size > 0 && (first >= i128::from(size) || last < 0)
    }

    fn ends(&self, size: u64) -> (i128, i128) {
        let size = i128::from(size);
        let at = |number: i64| match i128::from(number) {
            number if number < 0 => size + number,
            number => number,
        };
        (at(self.from), self.to.map_or(size - 1, at))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_ends_belong_to_the_range_and_count_from_the_end_below_zero() {
        for (text, start, end) in [
            ("0:*", 0, 1026),
            ("0:0", 0, 1),
            ("512:1023", 512, 1024),
            ("512:*", 512, 1026),
            ("512:-256", 512, 771),
            ("-5:*", 1021, 1026),
            ("-5:-1", 1021, 1026),
            ("499:-1000", 499, 499),
            ("-9999:*", 0, 1026),
            ("-9999:-3", 0, 1024),
            ("1000:99999", 1000, 1026),
            ("0:9223372036854775807", 0, 1026),
            ("-9223372036854775808:*", 0, 1026),
        ] {
            let range: EntityBytes = text.parse().unwrap();
            let within = range.within(1026);
            assert_eq!(within.len(), end - start, "{text}");
            assert!(within.is_empty() || within == ByteRange::new(start, end), "{text}");
            assert!(!range.is_outside(1026), "{text}");
            assert_eq!(range.to_string(), text);
        }
    }

    #[test]
    fn what_lies_outside_is_told_from_what_has_no_length() {
        for (text, is_outside) in [
            ("1026:*", true),
            ("5000:6000", true),
            ("0:-2000", true),
            ("-3000:-2000", true),
            ("7:5", false),
            ("-1:-5", false),
        ] {
            let range: EntityBytes = text.parse().unwrap();
            assert_eq!(
                (range.within(1026).len(), range.is_outside(1026)),
                (0, is_outside),
                "{text}"
            );
        }
        let all: EntityBytes = "0:*".parse().unwrap();
        assert!(all.within(0).is_empty() && !all.is_outside(0));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", ":", "1", "1:", ":1", "*:1", "a:b", "1:2:3", "1-2", "9223372036854775808:*"]
        {
            assert!(text.parse::<EntityBytes>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_range_never_leaves_the_file(from: i64, to: Option<i64>, size in 0..=(i64::MAX as u64)) {
            let within = EntityBytes { from, to }.within(size);
            prop_assert!(within.end <= size || within.is_empty());
        }
    }
}
