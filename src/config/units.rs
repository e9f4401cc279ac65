//! Values that are written with a unit or have a form of their own.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::node::{GatewayUrl, IgnorePatterns, Multiaddr, PatternError, ProxyUrl, UrlError};

/// Why a text is not a size or a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Neither digits nor a known unit.
    #[error(
        "`{0}` is not a size; write a whole number and a unit, such as \"10 GiB\" or \"500 MB\""
    )]
    Size(String),
    /// Neither digits nor a known unit.
    #[error(
        "`{0}` is not a time; write a whole number and a unit, such as \"250ms\", \"30s\" or \"5m\""
    )]
    Span(String),
    /// A wait that ends before it begins.
    #[error("`{0}` leaves no time at all; give at least \"1ms\"")]
    NoTime(String),
}

/// Bytes, written as "10 GiB".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A length of time, written as "30s".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A length of time that is not 0, written as "30s".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout(pub Span);

/// Bytes of disk: "auto", or a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheLimit {
    /// A part of the disk: see the setting.
    Auto,
    /// So many bytes.
    Bytes(Size),
}

/// A number of at least 1 by which a wait grows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Factor(pub f64);

/// A multiaddress, such as "/ip4/127.0.0.1/tcp/4001".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(pub Multiaddr);

/// A pattern of what is not published, as `.gitignore` has them, such as ".*".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnorePattern(pub String);

/// The URL of a gateway or router, such as `https://trustless-gateway.link`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server(pub GatewayUrl);

/// The URL of a proxy, such as `socks5h://127.0.0.1:9050`; empty: none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OptionalProxy(pub Option<ProxyUrl>);

/// Smallest first; the last that divides a size is the one that it is printed with.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
];

/// In milliseconds, smallest first.
const TIME_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// A whole number and one of `units` behind it, with at most one space between: their product. Nothing is the same
/// in every unit, so 0 needs none.
fn number_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn largest_unit(value: u64, units: &[(&'static str, u64)]) -> (u64, &'static str) {
    let fits = |(_, factor): &&(&str, u64)| value != 0 && value.is_multiple_of(*factor);
    match units.iter().rfind(fits) {
        Some((name, factor)) => (value / factor, name),
        None => (value, units[0].0),
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        number_with_unit(text, &SIZE_UNITS)
            .map(Self)
            .ok_or_else(|| UnitError::Size(text.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = largest_unit(self.0, &SIZE_UNITS);
        write!(f, "{number} {unit}")
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        number_with_unit(text, &TIME_UNITS)
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| UnitError::Span(text.to_owned()))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (number, unit) = largest_unit(millis, &TIME_UNITS);
        write!(f, "{number}{unit}")
    }
}

impl FromStr for Timeout {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text.parse::<Span>()? {
            Span(Duration::ZERO) => Err(UnitError::NoTime(text.to_owned())),
            span => Ok(Self(span)),
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl CacheLimit {
    /// The limit; none: the store's own choice.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Auto => None,
            Self::Bytes(size) => Some(size.0),
        }
    }
}

impl FromStr for CacheLimit {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Bytes) }
    }
}

impl fmt::Display for CacheLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(size) => size.fmt(f),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |reason: &dyn fmt::Display| {
            format!("`{text}` is not a multiaddress such as \"/ip4/127.0.0.1/tcp/4001\": {reason}")
        };
        match text.parse::<Multiaddr>() {
            Ok(address) if address.is_empty() => Err(wrong(&"it is empty")),
            Ok(address) => Ok(Self(address)),
            Err(error) => Err(wrong(&error)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Server {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for OptionalProxy {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.is_empty() { Ok(Self(None)) } else { text.parse().map(|url| Self(Some(url))) }
    }
}

impl fmt::Display for OptionalProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|url| url.fmt(f))
    }
}

impl FromStr for IgnorePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        IgnorePatterns::new([text]).map(|_| Self(text.to_owned()))
    }
}

impl fmt::Display for IgnorePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Factor {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let factor = f64::deserialize(from)?;
        if factor.is_finite() && factor >= 1.0 {
            Ok(Self(factor))
        } else {
            Err(D::Error::custom(format!("{factor} is not a number of at least 1")))
        }
    }
}

/// Read and written as text.
macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

pub(super) use as_text;

as_text!(Size, Span, Timeout, CacheLimit, Address, IgnorePattern, Server, OptionalProxy);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_times_need_a_whole_number_and_a_known_unit() {
        assert_eq!("10 GiB".parse(), Ok(Size(10 << 30)));
        assert_eq!("10GiB".parse(), Ok(Size(10 << 30)));
        assert_eq!("500 MB".parse(), Ok(Size(500_000_000)));
        assert_eq!("0".parse(), Ok(Size(0)));
        assert_eq!("5m".parse(), Ok(Span(Duration::from_secs(300))));
        for bad in
            ["", "10", "GiB", "1.5 GiB", "-1 GiB", "10 gib", "10  GiB", "10 GiB ", "99999999 TiB"]
        {
            assert_eq!(bad.parse::<Size>(), Err(UnitError::Size(bad.to_owned())));
        }
        for bad in ["", "30", "s", "30 sec", "+3s", "3s "] {
            assert_eq!(bad.parse::<Span>(), Err(UnitError::Span(bad.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes in any::<u64>(), shift in 0u32..64, millis in 0u64..1 << 50) {
            let size = Size(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            let span = Span(Duration::from_millis(millis));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
