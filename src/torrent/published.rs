//! Torrents of what is published here: their bytes are those of the store, of which there is no second copy.

use std::{fmt, fs::File, io, sync::Arc};

use super::{Made, TorrentEvent};
use crate::content::ContentId;

/// First line of a record; one that is not known is refused, not guessed at.
const VERSION: &str = "1";

/// What torrents need of the node around them.
pub trait Host: fmt::Debug + Send + Sync {
    /// Whether all bytes of a file are here.
    fn has(&self, id: &ContentId) -> bool;
    /// Reads bytes of a file that is here.
    ///
    /// # Errors
    /// When it is not here any more, or the disk fails.
    fn read(&self, id: &ContentId, at: u64, to: &mut [u8]) -> io::Result<()>;
    /// The file on disk when all of it is here.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn backing(&self, id: &ContentId) -> io::Result<Option<Arc<File>>>;
    /// Bytes of disk that it takes.
    fn allocated(&self, id: &ContentId) -> u64;
    /// Makes room on the disk for `bytes` more of a torrent, above what is to stay free.
    ///
    /// # Errors
    /// When there is none, or the disk is read-only.
    fn admit(&self, bytes: u64) -> io::Result<()>;
    /// Returns whether something else found no room on the disk.
    fn is_full(&self) -> bool;
    /// Something happened that those who watch are to be told.
    fn told(&self, event: TorrentEvent);
}

/// What a torrent was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file or directory.
    pub root: ContentId,
    /// Whether the root was pinned for the torrent's sake.
    pub pinned: bool,
    /// Whether it was made because everything that is published is seeded.
    pub automatic: bool,
    /// The content of each of its files, in their order.
    pub files: Vec<ContentId>,
}

impl Source {
    /// As it is written down: one thing a line.
    pub(super) fn encode(&self) -> String {
        let flag = |set: bool, name: &'static str| if set { name } else { "-" };
        let mut text = format!(
            "{VERSION}\n{}\n{}\n{}\n",
            self.root,
            flag(self.pinned, "pinned"),
            flag(self.automatic, "automatic"),
        );
        for file in &self.files {
            text.push_str(&file.to_string());
            text.push('\n');
        }
        text
    }

    /// Reads the first lines of a record.
    pub(super) fn decode_head([version, root, _, automatic]: [&str; 4]) -> Option<Made> {
        let root = root.parse().ok().filter(|_| version == VERSION)?;
        Some(Made { root, automatic: automatic == "automatic" })
    }

    /// Reads a record of a torrent of so many files.
    pub(super) fn decode(text: &str, files: usize) -> Option<Self> {
        let mut lines = text.lines();
        let (version, root, pin) = (lines.next()?, lines.next()?, lines.next()?);
        let Made { root, automatic } = Self::decode_head([version, root, pin, lines.next()?])?;
        let pinned = pin == "pinned";
        let ids: Result<Vec<_>, _> = lines.map(str::parse).collect();
        let found = Self { root, pinned, automatic, files: ids.ok()? };
        (found.files.len() == files).then_some(found)
    }
}

/// Where the bytes of one torrent's files are read.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) host: Arc<dyn Host>,
    pub(super) source: Arc<Source>,
}

impl Published {
    pub(super) fn id(&self, file: u32) -> io::Result<&ContentId> {
        self.source.files.get(file as usize).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The first file that is not here, if one is not. Looks at all of them: some 20 µs each.
    pub(super) fn missing(&self) -> Option<ContentId> {
        self.source.files.iter().find(|id| !self.host.has(id)).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_damaged_one_is_refused() {
        let id: ContentId =
            "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e".parse().unwrap();
        let source = Source {
            root: id,
            pinned: true,
            automatic: false,
            files: vec![id, "bafkqaaa".parse().unwrap()],
        };
        let text = source.encode();
        assert_eq!(Source::decode(&text, 2), Some(source));
        assert_eq!(Source::decode(&text, 3), None);
        assert_eq!(Source::decode(&text.replacen('1', "9", 1), 2), None);
        assert_eq!(Source::decode(&text.replace("bafkqaaa", "x"), 2), None);
        assert_eq!(Source::decode("", 0), None);
    }
}
