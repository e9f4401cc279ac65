//! Entries of a directory that cannot be shown, with the reasons.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use super::{Codec, ContentId, hash};

/// Entries that are listed of one directory; more are counted.
const MAX_LISTED: usize = 1000;
/// Bytes that are kept of a name: it may be as long as a block.
const MAX_NAME: usize = 300;

/// An entry of a directory that cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Omitted {
    /// Its name, or the beginning of a long one. It may be that of no file.
    pub name: OsString,
    /// Content that the entry leads to.
    pub cid: ContentId,
    /// Why it cannot be shown.
    pub why: &'static str,
}

/// All entries of a directory that cannot be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Omissions {
    listed: Vec<Omitted>,
    count: usize,
}

impl Omissions {
    /// Those that are kept, in the order of the blocks.
    pub fn listed(&self) -> &[Omitted] {
        &self.listed
    }

    /// How many there are in all.
    pub fn count(&self) -> usize {
        self.count
    }

    pub(super) fn add(&mut self, name: &[u8], cid: &ContentId, why: &'static str) {
        self.count += 1;
        if self.listed.len() < MAX_LISTED {
            let name = name[..name.len().min(MAX_NAME)].to_vec();
            self.listed.push(Omitted { name: OsString::from_vec(name), cid: *cid, why });
        }
    }

    pub(super) fn extend(&mut self, more: Self) {
        self.count += more.count;
        let room = MAX_LISTED.saturating_sub(self.listed.len());
        self.listed.extend(more.listed.into_iter().take(room));
    }
}

impl ContentId {
    /// Why what it leads to can be no part of a file tree; none where it can be one.
    pub fn unreadable(&self) -> Option<String> {
        if let Codec::Other(code) = self.codec() {
            return Some(format!("no file: its codec is {}", codec_name(code)));
        }
        (!hash::is_known(self.hash()))
            .then(|| format!("the hash function 0x{:x} is not supported", self.hash().code()))
    }
}

/// The codecs that are met in trees beside files, by the names that people know.
fn codec_name(code: u64) -> String {
    match code {
        0x71 => "dag-cbor".to_owned(),
        0x72 => "libp2p-key".to_owned(),
        0x78 => "git-raw".to_owned(),
        0x85 => "dag-jose".to_owned(),
        0x129 => "dag-json".to_owned(),
        0x0200 => "json".to_owned(),
        0x51 => "cbor".to_owned(),
        code => format!("0x{code:x}"),
    }
}
