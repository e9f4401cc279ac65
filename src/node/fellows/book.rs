//! What peers are told of the torrents here.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{
    content::InfoHash,
    net::{MAX_INFO, Net, TorrentAnswer, TorrentBook, TorrentQuestion},
    node::twins::{Statement, Twins},
    torrent::Torrents,
};

/// Answers for what is announced, and for nothing else.
pub(in crate::node) struct Book {
    net: Net,
    torrents: Torrents,
    twins: Arc<Twins>,
    /// Whether what was only read is nobody's business.
    given_only: bool,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").finish_non_exhaustive()
    }
}

impl Book {
    pub(in crate::node) fn new(
        net: &Net,
        torrents: &Torrents,
        twins: &Arc<Twins>,
        given_only: bool,
    ) -> Self {
        let (net, torrents, twins) = (net.clone(), torrents.clone(), twins.clone());
        Self { net, torrents, twins, given_only }
    }

    /// What is known of the contents of files, of those that were published here in our own words.
    fn statements(&self, hash: InfoHash, files: std::ops::Range<u32>) -> Vec<Bytes> {
        let source = self.torrents.source(hash);
        let described = self.torrents.metainfo_now(hash).and_then(Result::ok);
        let (Some(source), Some(metainfo)) = (source, described) else {
            let known = files.filter_map(|file| self.twins.get((hash, file)));
            return known.map(|twin| twin.signed.into()).collect();
        };
        let of = |file: u32| {
            let id = *source.files.get(file as usize)?;
            let size = metainfo.files.get(file as usize)?.range.len();
            // Everybody has the empty file, and what an id carries in itself.
            let worth = size > 0 && id.inline_content().is_none();
            let said = Statement { hash, file, size, id };
            worth.then(|| said.sign(&self.net)).flatten().map(Bytes::from)
        };
        files.filter_map(of).collect()
    }
}

impl TorrentBook for Book {
    fn answer(&self, question: &TorrentQuestion) -> TorrentAnswer {
        let hash = question.hash;
        if !self.torrents.is_for_others(hash, self.given_only) {
            return TorrentAnswer::default();
        }
        let info = question.describe.then(|| self.torrents.info(hash, MAX_INFO)).flatten();
        TorrentAnswer {
            known: true,
            info: info.map(Bytes::from),
            port: self.torrents.port(hash),
            statements: self.statements(hash, question.files.clone()),
        }
    }
}
