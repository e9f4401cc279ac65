//! Names of answers for caches: what is the same has the same name, what may differ has another.

use super::{format::CarParams, target::Target};
use crate::{
    content::{ContentId, sha2_256},
    node::CarScope,
};

/// Grows with the looks of the listings: pages of an older look are not to come out of a cache.
const LISTING: u32 = 1;

/// What their names begin with, as those of other gateways do.
const INDEX: &str = "DirIndex-";

/// A file, or the page that a directory has of its own.
pub(super) fn plain(id: &ContentId) -> String {
    format!("\"{id}\"")
}

/// A block.
pub(super) fn raw(id: &ContentId) -> String {
    format!("\"{id}.raw\"")
}

/// A block of a codec, with the type of that.
pub(super) fn coded(id: &ContentId, name: &str) -> String {
    format!("\"{id}.{name}\"")
}

/// A page that was made for a directory.
pub(super) fn listing(id: &ContentId) -> String {
    format!("\"{INDEX}{LISTING}_CID-{id}\"")
}

/// Whether it is the name of such a page.
pub(super) fn is_of_listing(etag: &str) -> bool {
    etag.trim_start_matches('"').starts_with(INDEX)
}

/// An archive, by everything that decides about its blocks. Weak: the specification promises no order of bytes, and
/// neither do releases of this program.
pub(super) fn car(target: &Target, params: CarParams) -> String {
    let (scope, range) = match params.scope {
        CarScope::Block => ("block", None),
        CarScope::Entity(range) => ("entity", range),
        CarScope::All => ("all", None),
    };
    let range = range.map(|range| format!(".{range}")).unwrap_or_default();
    // Names may hold what cannot stand in a header, and be long.
    let way = match target.names.as_slice() {
        [] => String::new(),
        _ => {
            let hash = sha2_256(target.url(target.names.len()).as_bytes());
            let digits = hash.digest().iter().take(16).map(|byte| format!("{byte:02x}"));
            format!(".{}", digits.collect::<String>())
        }
    };
    let duplicates = if params.duplicates { "y" } else { "n" };
    format!("W/\"{scope}{range}.{}{way}.car.dfs.{duplicates}\"", target.root)
}

/// Whether `If-None-Match` names an answer. Weak names count, as for every conditional GET.
pub(super) fn matches<'a>(mut headers: impl Iterator<Item = &'a str>, etag: &str) -> bool {
    let opaque = |etag: &'a str| etag.trim().trim_start_matches("W/");
    let own = etag.trim_start_matches("W/");
    headers.any(|value| value.trim() == "*" || value.split(',').any(|one| opaque(one) == own))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::HashSet;

    use super::*;
    use crate::content::EntityBytes;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

    #[test]
    fn answers_that_differ_have_names_that_differ() {
        let id: ContentId = CID.parse().unwrap();
        let mut names = vec![plain(&id), raw(&id), listing(&id), coded(&id, "dag-json")];
        let range = |from, to| CarScope::Entity(Some(EntityBytes { from, to }));
        for scope in [
            CarScope::All,
            CarScope::Block,
            CarScope::Entity(None),
            range(0, None),
            range(0, Some(1)),
            range(1, Some(1)),
            range(-1, None),
        ] {
            for duplicates in [true, false] {
                for path in ["", "/a", "/b", "/a/b", "/a%2Fb"] {
                    let target = Target::of(&format!("/ipfs/{CID}{path}")).unwrap();
                    names.push(car(&target, CarParams { scope, duplicates }));
                }
            }
        }
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        assert!(names.iter().all(|name| name.ends_with('"') && name.bytes().all(|b| b > 0x20)));
    }

    #[test]
    fn any_of_several_names_matches_weak_or_strong_and_a_star_always() {
        let own = "\"bafy\"";
        for (value, is_match) in [
            ("\"bafy\"", true),
            ("W/\"bafy\"", true),
            ("\"x\", \"y\",W/\"bafy\"", true),
            ("*", true),
            ("bafy", false),
            ("\"bafy.raw\"", false),
            ("", false),
        ] {
            assert_eq!(matches([value].into_iter(), own), is_match, "{value}");
            assert_eq!(matches(["\"x\"", value].into_iter(), "W/\"bafy\""), is_match, "{value}");
        }
    }
}
