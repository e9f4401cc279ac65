//! What a name in the root of the mount means. Decided by its syntax alone: file managers and indexers probe for
//! dozens of names (`.Trash`, `autorun.inf`, `.git`), and none of them may cost a search in the network.

use std::ffi::OsStr;

use crate::{content::ContentId, node::Root};

pub(super) const UPLOAD: &str = "upload";
pub(super) const IPFS: &str = "ipfs";
pub(super) const CONTROL: &str = ".chiral";
pub(super) const TORRENTS: &str = "torrents";

/// Longest text that can be a CID: an identity CID of 128 bytes in base 2 is absurd, one in base 16 has 270 digits,
/// but a file name ends at 255.
const MAX_NAME: usize = 255;

/// A name in the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RootName {
    Upload,
    Ipfs,
    Control,
    Torrents,
    /// A CID, a magnet link or an info hash.
    Id(Root),
    /// Nothing, now and for ever.
    Nothing,
}

pub(super) fn root_name(name: &OsStr) -> RootName {
    match name.to_str() {
        Some(UPLOAD) => RootName::Upload,
        Some(IPFS) => RootName::Ipfs,
        Some(CONTROL) => RootName::Control,
        Some(TORRENTS) => RootName::Torrents,
        Some(text) => text.parse().map_or(RootName::Nothing, RootName::Id),
        None => RootName::Nothing,
    }
}

/// The content that a name in `ipfs` stands for.
pub(super) fn content_name(text: &str) -> Option<ContentId> {
    if text.len() > MAX_NAME {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    const V1: &str = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";

    #[test]
    fn ids_of_both_versions_and_any_base_are_content() {
        let id: ContentId = V1.parse().unwrap();
        let named = RootName::Id(Root::Content(id));
        assert_eq!(root_name(V1.as_ref()), named);
        let hex =
            format!("f{}", id.to_bytes().iter().map(|b| format!("{b:02x}")).collect::<String>());
        assert_eq!(root_name(hex.as_ref()), named);
        let v0 = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG";
        assert!(matches!(root_name(v0.as_ref()), RootName::Id(Root::Content(_))));
    }

    #[test]
    fn links_and_hashes_of_torrents_are_ids_and_malformed_ones_nothing() {
        let hash = "cab507494d02ebb1178b38f2e9d7be299c86b862";
        let tracker = "tr=udp%3A%2F%2Ftracker.example%3A80%2Fannounce";
        for name in [
            hash,
            &hash.to_uppercase(),
            "ZK2QOSKNALV3CF4LHDZOTV56FGOINODC",
            &format!("magnet:?xt=urn:btih:{hash}&{tracker}&dn={}", "x".repeat(300)),
        ] {
            let RootName::Id(Root::Torrent(magnet)) = root_name(name.as_ref()) else {
                panic!("{name}");
            };
            assert_eq!(magnet.hash.to_string(), hash);
        }
        for name in ["magnet:?dn=x", "magnet:?xt=urn:btih:12", &hash[1..], &format!("{hash}0")] {
            assert_eq!(root_name(name.as_ref()), RootName::Nothing, "{name}");
        }
    }

    #[test]
    fn what_file_managers_probe_for_is_nothing() {
        for name in [
            ".Trash",
            ".Trash-1000",
            ".hidden",
            "autorun.inf",
            ".git",
            ".DS_Store",
            ".xdg-volume-info",
            "Qm",
            "b",
            "",
            "upload ",
            "IPFS",
            "lost+found",
            "HEAD",
            "desktop.ini",
            "magnet",
            "ipns",
            "torrent",
        ] {
            assert_eq!(root_name(name.as_ref()), RootName::Nothing, "{name}");
        }
        assert_eq!(root_name(OsStr::from_bytes(b"\xff\xfe")), RootName::Nothing);
        assert_eq!(root_name("b".repeat(300).as_ref()), RootName::Nothing);
    }

    proptest! {
        #[test]
        fn no_name_makes_it_panic(name in prop::collection::vec(any::<u8>(), 0..300)) {
            root_name(OsStr::from_bytes(&name));
        }
    }
}
