//! Files of a torrent by their numbers, as a link selects them (BEP 53).

use std::{fmt, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Serialize};

/// Some files of a torrent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selection(Vec<RangeInclusive<u32>>);

/// A text that selects nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` selects no files: numbers and ranges are expected, as in `0,2,5-7`")]
pub struct SelectionError(String);

impl Selection {
    /// Returns whether a file is one of them.
    pub fn contains(&self, file: u32) -> bool {
        let at = self.0.partition_point(|range| *range.end() < file);
        self.0.get(at).is_some_and(|range| range.contains(&file))
    }
}

impl FromStr for Selection {
    type Err = SelectionError;

    /// Takes what of a text selects something; the rest of it says nothing.
    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u32, u32) = (number(first)?, number(last)?);
            (first <= last).then_some(first..=last)
        };
        let mut ranges: Vec<_> = text.split(',').filter_map(range).collect();
        ranges.sort_unstable_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u32>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        if merged.is_empty() {
            return Err(SelectionError(text.chars().take(64).collect()));
        }
        Ok(Self(merged))
    }
}

fn number(text: &str) -> Option<u32> {
    // No sign: `-` stands between numbers.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (one, same) if one == same => write!(f, "{comma}{one}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for Selection {
    type Error = SelectionError;

    fn try_from(text: String) -> Result<Self, SelectionError> {
        text.parse()
    }
}

impl From<Selection> for String {
    fn from(selection: Selection) -> Self {
        selection.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_and_ranges_are_read_and_written_in_order() {
        for (text, written) in [
            ("1,3", "1,3"),
            ("0", "0"),
            ("5-7,1,6-9,10", "1,5-10"),
            ("3,x,2-1,-4,4-,7", "3,7"),
            ("4294967295,0-4294967295", "0-4294967295"),
        ] {
            assert_eq!(text.parse::<Selection>().unwrap().to_string(), written, "{text}");
        }
        for none in ["", ",", "x", "9-1", "-", "4294967296"] {
            none.parse::<Selection>().unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn a_selection_contains_what_its_parts_name(
            parts in prop::collection::vec((0_u32..60, 0_u32..5), 1..8),
        ) {
            let text: Vec<_> = parts.iter().map(|(at, more)| format!("{at}-{}", at + more)).collect();
            let selection: Selection = text.join(",").parse().unwrap();
            for file in 0..70 {
                let named = parts.iter().any(|(at, more)| (*at..=at + more).contains(&file));
                prop_assert_eq!(selection.contains(file), named);
            }
            prop_assert_eq!(&selection.to_string().parse::<Selection>().unwrap(), &selection);
        }
    }
}
