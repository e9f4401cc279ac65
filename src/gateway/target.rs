//! What a URL names: a content path and parameters.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::refusal::Refusal;
use crate::content::ContentId;

/// Bytes of a name that stand in a URL as they are.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// More names than any path of a filesystem has: each is a look-up.
const MAX_NAMES: usize = 256;

/// A content path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The id whose providers are asked.
    pub(super) root: ContentId,
    /// Names below it, which need not be text.
    pub(super) names: Vec<OsString>,
    /// Whether a slash ends the path, as that of a directory.
    pub(super) ends_in_slash: bool,
}

impl Target {
    /// Reads the path of a URL, `/ipfs/{cid}[/{path}]`, as it was sent.
    pub(super) fn of(path: &str) -> Result<Self, Refusal> {
        let below = path.strip_prefix("/ipfs/").unwrap_or_default();
        let (id, rest) = below.split_once('/').unwrap_or((below, ""));
        let root = percent_decode_str(id).decode_utf8_lossy().parse::<ContentId>();
        let root = root.map_err(|error| Refusal::Wrong(error.to_string()))?;
        let names = rest.split('/').filter(|name| !name.is_empty());
        let names: Vec<_> =
            names.map(|name| OsString::from_vec(percent_decode_str(name).collect())).collect();
        if names.len() > MAX_NAMES {
            return Err(Refusal::Wrong(format!("a path of more than {MAX_NAMES} names")));
        }
        Ok(Self { root, names, ends_in_slash: below.ends_with('/') })
    }

    /// The path up to the first `count` names, as a URL has it.
    pub(super) fn url(&self, count: usize) -> String {
        let mut url = format!("/ipfs/{}", self.root);
        for name in self.names.iter().take(count) {
            url.push('/');
            url.push_str(&escaped(name.as_encoded_bytes()));
        }
        url
    }
}

/// A name as a URL has it.
pub(super) fn escaped(name: &[u8]) -> String {
    percent_encode(name, PLAIN).to_string()
}

/// Parameters behind the question mark; of one that comes twice the first counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(text: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(text.unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// The value of a parameter that is given and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }

    /// The same parameters with others in place of those of the same names.
    pub(super) fn with(&self, more: &[(&str, String)]) -> String {
        let kept = self.0.iter().filter(|(key, _)| more.iter().all(|(name, _)| name != key));
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.extend_pairs(kept).extend_pairs(more);
        text.finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::ffi::OsStrExt;

    use super::*;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

    fn names(path: &str) -> (Vec<Vec<u8>>, bool) {
        let target = Target::of(&format!("/ipfs/{CID}{path}")).unwrap();
        assert_eq!(target.root.to_string(), CID);
        let names = target.names.iter().map(|name| name.as_bytes().to_vec()).collect();
        (names, target.ends_in_slash)
    }

    #[test]
    fn a_path_is_cut_before_its_names_are_unescaped() {
        assert_eq!(names(""), (vec![], false));
        assert_eq!(names("/"), (vec![], true));
        assert_eq!(names("/a//b/"), (vec![b"a".to_vec(), b"b".to_vec()], true));
        assert_eq!(names("/a%2Fb/%FF+%zz"), (vec![b"a/b".to_vec(), b"\xff+%zz".to_vec()], false));
        assert!(Target::of("/ipfs/hello").is_err() && Target::of("/ipfs/").is_err());
        assert!(Target::of(&format!("/ipfs/{CID}{}", "/a".repeat(MAX_NAMES + 1))).is_err());
    }

    #[test]
    fn a_path_is_escaped_as_it_came() {
        let target = Target::of(&format!("/ipfs/{CID}/a%20b/%C4%85%3F/c")).unwrap();
        assert_eq!(target.url(2), format!("/ipfs/{CID}/a%20b/%C4%85%3F"));
        assert_eq!(target.url(0), format!("/ipfs/{CID}"));
    }

    #[test]
    fn parameters_are_found_and_replaced() {
        let query = Query::of(Some("filename=a%20b+c&format=car&format=raw&empty="));
        assert_eq!(query.get("filename"), Some("a b c"));
        assert_eq!((query.get("format"), query.get("empty")), (Some("car"), None));
        let with = query.with(&[("format", "raw".to_owned()), ("car-dups", "y".to_owned())]);
        assert_eq!(with, "filename=a+b+c&empty=&format=raw&car-dups=y");
    }
}
