//! Which bytes of a content a `Range` header of HTTP asks for.
//! <https://www.rfc-editor.org/rfc/rfc9110#name-range-requests>

use super::ByteRange;

/// Ranges that are answered one by one: a viewer asks for a few. More are an old way to make servers work, and are
/// answered with the whole, as a server may.
const MAX_RANGES: usize = 16;

/// What is sent of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selected {
    /// All of it.
    Whole,
    /// One part.
    One(ByteRange),
    /// In the order in which they were asked for.
    Many(Vec<ByteRange>),
    /// All of them lie behind the end.
    None,
}

impl Selected {
    /// Reads the header. One that is not understood is to be passed over, as the protocol has it.
    pub fn by(header: Option<&str>, size: u64) -> Self {
        let Some(asked) = header.and_then(parse) else { return Self::Whole };
        if asked.len() > MAX_RANGES {
            return Self::Whole;
        }
        let mut ranges: Vec<_> = asked.into_iter().filter_map(|range| range.within(size)).collect();
        // Ranges over one another would send the same bytes many times.
        if ranges.iter().map(ByteRange::len).sum::<u64>() > size {
            return Self::Whole;
        }
        match ranges.len() {
            0 => Self::None,
            1 => Self::One(ranges.remove(0)),
            _ => Self::Many(ranges),
        }
    }
}

impl ByteRange {
    /// The `Content-Range` header of an answer with these bytes, of which there is at least one, out of `size`.
    pub fn content_range(&self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.end.saturating_sub(1))
    }
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

impl Asked {
    fn within(self, size: u64) -> Option<ByteRange> {
        let range = match self {
            Self::From(first) => ByteRange::new(first, size),
            Self::Between(first, last) => ByteRange::new(first, last.saturating_add(1).min(size)),
            Self::Last(count) => ByteRange::new(size.saturating_sub(count), size),
        };
        (!range.is_empty()).then_some(range)
    }
}

fn parse(header: &str) -> Option<Vec<Asked>> {
    let (unit, ranges) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let number = |text: &str| -> Option<u64> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // One that is too long for any file is behind its end.
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let one = |range: &str| {
        let (first, last) = range.trim().split_once('-')?;
        match (first, last) {
            ("", last) => Some(Asked::Last(number(last)?)),
            (first, "") => Some(Asked::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Asked::Between(first, last))
            }
        }
    };
    // Empty elements of a list are allowed.
    let asked: Option<Vec<_>> =
        ranges.split(',').filter(|range| !range.trim().is_empty()).map(one).collect();
    asked.filter(|asked| !asked.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(header: &str) -> Selected {
        Selected::by(Some(header), 31)
    }

    #[test]
    fn one_range_is_cut_at_the_end() {
        for (header, start, end) in [
            ("bytes=6-16", 6, 17),
            ("bytes=6-", 6, 31),
            ("Bytes = 6-6", 6, 7),
            ("bytes=-3", 28, 31),
            ("bytes=-99", 0, 31),
            ("bytes=30-99999999999999999999999", 30, 31),
            ("bytes=6-16,", 6, 17),
            ("bytes=6-16, 40-50", 6, 17),
        ] {
            assert_eq!(of(header), Selected::One(ByteRange::new(start, end)), "{header}");
        }
    }

    #[test]
    fn what_lies_behind_the_end_is_no_range() {
        for header in ["bytes=31-", "bytes=40-50", "bytes=-0", "bytes=40-50,60-70"] {
            assert_eq!(of(header), Selected::None, "{header}");
        }
        assert_eq!(Selected::by(Some("bytes=0-"), 0), Selected::None);
    }

    #[test]
    fn what_is_not_understood_is_passed_over() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "lines=1-2",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=1-2,x",
            "bytes=+1-2",
        ] {
            assert_eq!(of(header), Selected::Whole, "{header}");
        }
        assert_eq!(Selected::by(None, 31), Selected::Whole);
    }

    #[test]
    fn several_ranges_keep_their_order_unless_they_are_too_many_or_more_than_the_whole() {
        let expected = vec![ByteRange::new(6, 17), ByteRange::new(0, 5)];
        assert_eq!(of("bytes=6-16,0-4"), Selected::Many(expected));
        assert_eq!(of("bytes=0-,0-,0-"), Selected::Whole);
        let many = |count| format!("bytes={}", vec!["1-1"; count].join(","));
        assert!(matches!(of(&many(MAX_RANGES)), Selected::Many(_)));
        assert_eq!(of(&many(MAX_RANGES + 1)), Selected::Whole);
    }
}
