//! The descriptions of torrents: kept as they come, read again, refused for good.

use std::{fs, io, path::PathBuf, sync::Arc};

use sha1::{Digest, Sha1};

use super::{
    Magnet, Metainfo, MetainfoError, TorrentError,
    about::{About, Refusal},
    known::{Known, METAINFO, guard, shown, write_whole},
    metainfo::{MAX_METAINFO, around_info, info_of, with_link},
};
use crate::content::InfoHash;

/// Files of all descriptions that are kept in memory; each takes some 100 bytes.
const FILES_CACHED: usize = 1 << 20;

/// Reads metainfo that a session is to fetch. librqbit validates names, although the storage never uses them as paths,
/// and would fail at the first read: the reason is given here instead.
fn fetchable(text: &[u8]) -> Result<Metainfo, MetainfoError> {
    let metainfo = Metainfo::parse(text)?;
    let bare = around_info(&info_of(text)?, &[]);
    let refused = |why: &dyn std::fmt::Display| MetainfoError::Unfetchable(why.to_string().into());
    let read = librqbit::torrent_from_bytes(&bare).map_err(|error| refused(&error))?;
    read.info.data.validate().map_err(|error| refused(&error))?;
    Ok(metainfo)
}

impl Known {
    /// The description, when it is here; the reason, when it came and is none.
    pub(super) fn metainfo(&self, hash: InfoHash) -> Option<Result<Arc<Metainfo>, TorrentError>> {
        if let Some(known) = guard(&self.cached).get(&hash) {
            return Some(Ok(known.clone()));
        }
        if !guard(&self.all).contains(&hash) {
            let why = self.about(hash)?.refused?.now()?;
            return Some(Err(TorrentError::Refused { hash, why: why.into() }));
        }
        let read = self.read(hash).and_then(|text| {
            let metainfo = Metainfo::parse(&text)?;
            if metainfo.hash == hash {
                Ok(metainfo)
            } else {
                Err(MetainfoError::Other(metainfo.hash).into())
            }
        });
        Some(read.map(|metainfo| self.cache(metainfo)))
    }

    /// The description as it is on disk.
    pub(super) fn read(&self, hash: InfoHash) -> Result<Vec<u8>, TorrentError> {
        let path = self.text_path(hash);
        let len = fs::metadata(&path).map_err(|e| TorrentError::disk("read", e))?.len();
        if len > MAX_METAINFO as u64 {
            return Err(MetainfoError::TooLong.into());
        }
        fs::read(path).map_err(|e| TorrentError::disk("read", e))
    }

    /// Path of the description.
    pub(super) fn text_path(&self, hash: InfoHash) -> PathBuf {
        self.folder(hash).join(METAINFO)
    }

    /// Bytes of the description on disk.
    pub(super) fn text_len(&self, hash: InfoHash) -> u64 {
        fs::metadata(self.text_path(hash)).map_or(0, |found| found.len())
    }

    /// Keeps a description that the user gives, byte for byte: it may have a comment, dates, or layers of version 2. It
    /// takes the place of one that a peer gave.
    pub(super) fn keep(&self, text: &[u8]) -> Result<Arc<Metainfo>, TorrentError> {
        let metainfo = fetchable(text)?;
        // The one that is dropped in and the one that a peer gives may come at once.
        let _writing = guard(&self.writing);
        if let Some(Ok(known)) = self.metainfo(metainfo.hash) {
            if self.read(metainfo.hash).is_ok_and(|other| other == text) {
                return Ok(known);
            }
            // Where peers are is not forgotten with the text that said it.
            self.learn(&known.magnet());
        }
        self.put(text, metainfo)
    }

    /// Keeps the `info` dictionary of a torrent that somebody gave, with what links say of it. One that is here already
    /// stays. That of the right hash is the only one there is: a wrong one is remembered as that.
    pub(super) fn keep_info(
        &self,
        hash: InfoHash,
        info: &[u8],
    ) -> Result<Arc<Metainfo>, TorrentError> {
        let found = InfoHash(Sha1::digest(info).into());
        if found != hash {
            return Err(MetainfoError::Other(found).into());
        }
        let _writing = guard(&self.writing);
        if let Some(Ok(known)) = self.metainfo(hash) {
            return Ok(known);
        }
        let text = with_link(&around_info(info, &[]), &self.said(hash));
        let parsed = text.and_then(|text| Ok((fetchable(&text)?, text)));
        match parsed {
            Ok((metainfo, text)) if metainfo.hash == hash => self.put(&text, metainfo),
            Ok((metainfo, _)) => Err(MetainfoError::Other(metainfo.hash).into()),
            Err(error) => Err(self.put_refusal(hash, error.to_string())),
        }
    }

    /// Remembers why the description of a torrent is refused, so that no reader waits for it again.
    pub(super) fn refuse(&self, hash: InfoHash, why: String) -> TorrentError {
        let _writing = guard(&self.writing);
        self.put_refusal(hash, why)
    }

    /// To be called with `writing` held.
    fn put_refusal(&self, hash: InfoHash, why: String) -> TorrentError {
        tracing::warn!(%hash, why, "the description of a torrent is refused");
        let said = self.said(hash);
        let magnet = self.about(hash).and_then(|about| about.magnet);
        let about = About {
            magnet: magnet.or_else(|| Some(said.to_string())),
            refused: Some(Refusal::of(why.clone())),
            ..self.about(hash).unwrap_or_default()
        };
        let name = shown(said.name.as_deref().unwrap_or_default());
        let about = guard(&self.listing).put(hash, about, &name).clone();
        if let Err(error) = about.write(&self.folder(hash)) {
            tracing::warn!(%hash, %error, "that it is refused is forgotten at the next start");
        }
        TorrentError::Refused { hash, why: why.into() }
    }

    fn cache(&self, metainfo: Metainfo) -> Arc<Metainfo> {
        let metainfo = Arc::new(metainfo);
        let mut cached = guard(&self.cached);
        cached.put(metainfo.hash, metainfo.clone());
        let mut files: usize = cached.iter().map(|(_, metainfo)| metainfo.files.len()).sum();
        // One that is larger than the whole bound is kept while it is the newest.
        while files > FILES_CACHED && cached.len() > 1 {
            let Some((_, old)) = cached.pop_lru() else { break };
            files -= old.files.len();
        }
        drop(cached);
        metainfo
    }

    /// To be called with `writing` held.
    fn put(&self, text: &[u8], metainfo: Metainfo) -> Result<Arc<Metainfo>, TorrentError> {
        let hash = metainfo.hash;
        self.write(text, &metainfo).map_err(|e| TorrentError::disk("write", e))?;
        guard(&self.all).insert(hash);
        if !metainfo.links.is_empty() {
            let links = metainfo.links.len();
            tracing::warn!(%hash, links, "symbolic links of a torrent are not shown");
        }
        Ok(self.cache(metainfo))
    }

    fn write(&self, text: &[u8], metainfo: &Metainfo) -> io::Result<()> {
        let folder = self.folder(metainfo.hash);
        fs::create_dir_all(&folder)?;
        write_whole(&folder, METAINFO, text)?;
        let about = self.about(metainfo.hash).unwrap_or_default();
        let said = self.said_besides(metainfo);
        let about = About { magnet: None, refused: None, said, ..about };
        let name = shown(&metainfo.name.to_string_lossy());
        let about = guard(&self.listing).put(metainfo.hash, about, &name).clone();
        about.write(&folder)
    }

    /// Trackers and servers that links name, and the description does not.
    fn said_besides(&self, metainfo: &Metainfo) -> Option<String> {
        let said = self.said(metainfo.hash);
        let news = |said: Vec<String>, known: &[String]| -> Vec<String> {
            said.into_iter().filter(|url| !known.contains(url)).collect()
        };
        let besides = Magnet {
            trackers: news(said.trackers, &metainfo.trackers),
            webseeds: news(said.webseeds, &metainfo.webseeds),
            ..Magnet::of(metainfo.hash)
        };
        (besides != Magnet::of(metainfo.hash)).then(|| besides.to_string())
    }

    /// The `info` dictionary of a torrent, where it is not longer than that. May read a file.
    pub(super) fn info(&self, hash: InfoHash, longest: usize) -> Option<Vec<u8>> {
        let text = self.has(hash).then(|| self.read(hash).ok()).flatten()?;
        info_of(&text).ok().filter(|info| info.len() <= longest)
    }
}
