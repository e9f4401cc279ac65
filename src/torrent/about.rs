//! What is to be done with each torrent, and by which names it is listed.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    fs, io,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{Selection, known::write_whole};
use crate::content::InfoHash;

/// The file in the folder of a torrent that says it.
pub(super) const ABOUT: &str = "about.json";
/// Longest name without its ending; some filesystems that a listing is copied to take 255 bytes of it.
const MAX_STEM: usize = 200;
/// How descriptions end.
pub(super) const ENDING: &str = ".torrent";

/// What is to be done with a torrent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct About {
    /// Given to others from each start on, not only while it is read.
    pub(super) seed: bool,
    /// Neither given nor fetched.
    pub(super) paused: bool,
    /// Name of the link to it.
    pub(super) link: String,
    /// Name of its description.
    pub(super) file: String,
    /// The link that it is known by, as long as nobody gave its description.
    pub(super) magnet: Option<String>,
    /// A link with what others have said of it, which its description does not say.
    pub(super) said: Option<String>,
    /// Why its description, which came, is none.
    pub(super) refused: Option<Refusal>,
    /// What of it is kept.
    pub(super) pins: Vec<TorrentPin>,
}

/// Why a description is none, to the version that said so: a later one may take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    why: String,
    version: String,
}

impl Refusal {
    pub(super) fn of(why: String) -> Self {
        Self { why, version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// The reason, unless another version gave it.
    pub(super) fn now(self) -> Option<String> {
        (self.version == env!("CARGO_PKG_VERSION")).then_some(self.why)
    }
}

/// A file or directory of a torrent that is fetched to its end and kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentPin {
    /// The node of its tree; 0 is all of it.
    pub node: u32,
    /// A name for people.
    pub name: String,
    /// The files of it that are kept, where not all of them are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Selection>,
}

impl About {
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let text = fs::read(folder.join(ABOUT)).ok()?;
        match serde_json::from_slice(&text) {
            Ok(about) => Some(about),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "what was wanted of a torrent is unreadable");
                None
            }
        }
    }

    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        write_whole(folder, ABOUT, &serde_json::to_vec(self).map_err(io::Error::other)?)
    }
}

/// What a name in the listing of all torrents stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedTorrent {
    /// The torrent itself.
    Link(InfoHash),
    /// Its description.
    File(InfoHash),
}

/// Names are given once and stay: what somebody wrote down leads to the same tomorrow.
#[derive(Debug, Default)]
pub(super) struct Listing {
    about: HashMap<InfoHash, About>,
    names: BTreeMap<OsString, ListedTorrent>,
}

impl Listing {
    pub(super) fn about(&self, hash: InfoHash) -> Option<&About> {
        self.about.get(&hash)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (InfoHash, &About)> {
        self.about.iter().map(|(hash, about)| (*hash, about))
    }

    pub(super) fn named(&self, name: &OsStr) -> Option<ListedTorrent> {
        self.names.get(name).copied()
    }

    pub(super) fn names(&self) -> Vec<(OsString, ListedTorrent)> {
        self.names.iter().map(|(name, listed)| (name.clone(), *listed)).collect()
    }

    /// Lists a torrent, or changes what is to be done with it. Names that it has already stay.
    pub(super) fn put(&mut self, hash: InfoHash, mut about: About, name: &str) -> &About {
        if about.link.is_empty() {
            about.link = self.free(hash, name, "");
        }
        self.names.insert(about.link.clone().into(), ListedTorrent::Link(hash));
        // One that is only looked for has no description.
        if about.magnet.is_none() {
            if about.file.is_empty() {
                about.file = self.free(hash, name, ENDING);
            }
            self.names.insert(about.file.clone().into(), ListedTorrent::File(hash));
        }
        self.about.entry(hash).insert_entry(about).into_mut()
    }

    /// Gives a description another name, unless a torrent has that.
    pub(super) fn rename(&mut self, hash: InfoHash, name: &str) -> Option<&About> {
        if self.names.contains_key(OsStr::new(name)) {
            return None;
        }
        let about = self.about.get_mut(&hash)?;
        self.names.remove(OsStr::new(&about.file));
        about.file = name.to_owned();
        self.names.insert(name.into(), ListedTorrent::File(hash));
        Some(about)
    }

    pub(super) fn remove(&mut self, hash: InfoHash) -> Option<About> {
        let about = self.about.remove(&hash)?;
        self.names.retain(|_, listed| {
            !matches!(listed, ListedTorrent::Link(of) | ListedTorrent::File(of) if *of == hash)
        });
        Some(about)
    }

    fn free(&self, hash: InfoHash, name: &str, ending: &str) -> String {
        let mut end = name.len().min(MAX_STEM);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let plain = format!("{}{ending}", &name[..end]);
        let taken = |name: &str| {
            let known = self.names.get(OsStr::new(name));
            known.is_some_and(|listed| {
                !matches!(listed, ListedTorrent::Link(of) | ListedTorrent::File(of) if *of == hash)
            })
        };
        if name.is_empty() || taken(&plain) {
            let stem = if name.is_empty() { String::new() } else { format!("{}-", &name[..end]) };
            return format!("{stem}{hash}{ending}");
        }
        plain
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn names_are_unlike_each_other_and_stay_when_others_come_and_go() {
        let (one, two, three) = (InfoHash([1; 20]), InfoHash([2; 20]), InfoHash([3; 20]));
        let mut listing = Listing::default();
        assert_eq!(listing.put(two, About::default(), "film").link, "film");
        let about = listing.put(one, About::default(), "film");
        assert_eq!(
            (&about.link, &about.file),
            (&format!("film-{one}"), &format!("film-{one}.torrent"))
        );
        // The name of a description is that of another torrent.
        assert_eq!(
            listing.put(three, About::default(), "film.torrent").link,
            format!("film.torrent-{three}")
        );
        assert_eq!(listing.rename(one, "film.torrent"), None);
        assert_eq!(listing.rename(one, "mine.torrent").unwrap().file, "mine.torrent");
        listing.remove(two).unwrap();
        assert_eq!(listing.named("film".as_ref()), None);
        assert_eq!(listing.named("mine.torrent".as_ref()), Some(ListedTorrent::File(one)));
        assert_eq!(
            listing.put(one, listing.about(one).unwrap().clone(), "x").link,
            format!("film-{one}")
        );
        assert_eq!(listing.names().len(), 4);
    }

    #[test]
    fn what_is_only_looked_for_has_a_link_and_long_names_are_cut() {
        let hash = InfoHash([7; 20]);
        let mut listing = Listing::default();
        let sought = About { magnet: Some("magnet:?".to_owned()), ..About::default() };
        assert_eq!(listing.put(hash, sought, "").link, hash.to_string());
        assert_eq!(listing.names().len(), 1);
        let other = InfoHash([8; 20]);
        let long = "ä".repeat(200);
        let about = listing.put(other, About::default(), &long);
        assert_eq!((about.link.len(), about.file.len()), (200, 208));
    }
}
