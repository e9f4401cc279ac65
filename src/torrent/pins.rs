//! What of torrents is fetched to its end and kept, whether somebody reads it or not.

use std::{collections::HashSet, sync::Arc};

use super::{
    Magnet, Metainfo, TorrentError, TorrentFile, TorrentPin, Torrents, about::About, active::Active,
};
use crate::content::{ByteRange, InfoHash};

/// The window of somebody who fetches; closed when it is dropped.
struct Window<'a> {
    active: &'a Arc<Active>,
    reader: u64,
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        self.active.close_reader(self.reader);
    }
}

impl Torrents {
    /// Keeps a file or directory of a torrent from now on; 0 is all of it. One whose description nobody gave yet is looked
    /// for, also after a restart.
    ///
    /// # Errors
    /// [`TorrentError::NoSuchFile`], or when the disk fails.
    pub fn pin(&self, hash: InfoHash, pin: TorrentPin) -> Result<(), TorrentError> {
        match self.metainfo_now(hash).transpose()? {
            Some(metainfo) if metainfo.node(pin.node).is_none() => {
                return Err(TorrentError::NoSuchFile { hash, file: pin.node });
            }
            Some(_) => {}
            None => self.add_link(&self.magnet(hash))?,
        }
        self.known().change(hash, |about| {
            about.pins.retain(|other| other.node != pin.node);
            about.pins.push(pin);
        })
    }

    /// Stops keeping it; whether it was kept. What is here stays.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn unpin(&self, hash: InfoHash, node: u32) -> Result<bool, TorrentError> {
        let kept = |about: About| about.pins.iter().any(|pin| pin.node == node);
        if !self.known().about(hash).is_some_and(kept) {
            return Ok(false);
        }
        self.known().change(hash, |about| about.pins.retain(|pin| pin.node != node))?;
        if let Some(metainfo) = self.metainfo_now(hash).transpose()? {
            self.active(&metainfo)?.select_pins().await?;
        }
        Ok(true)
    }

    /// All that is kept.
    pub fn pins(&self) -> Vec<(InfoHash, TorrentPin)> {
        let listed = self.known().listed().into_iter();
        listed
            .flat_map(|(hash, about)| about.pins.into_iter().map(move |pin| (hash, pin)))
            .collect()
    }

    /// The files of a torrent that are kept.
    pub(super) fn pinned_files(&self, metainfo: &Metainfo) -> HashSet<usize> {
        let about = self.known().about(metainfo.hash).unwrap_or_default();
        let files = about.pins.iter().flat_map(|pin| pin.files(metainfo));
        files.map(|file| file as usize).collect()
    }

    /// The files at and below a node that are fetched: those that are kept, where it is kept, else all of them.
    fn files_to_fetch(&self, metainfo: &Metainfo, node: u32) -> Vec<u32> {
        let about = self.known().about(metainfo.hash).unwrap_or_default();
        match about.pins.iter().find(|pin| pin.node == node) {
            Some(pin) => pin.files(metainfo),
            None => metainfo.files_below(node),
        }
    }

    /// Returns whether all that a pin keeps is here. May look at the disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn is_pin_complete(&self, hash: InfoHash, pin: &TorrentPin) -> Result<bool, TorrentError> {
        let Some(metainfo) = self.metainfo_now(hash).transpose()? else { return Ok(false) };
        let active = self.active(&metainfo)?;
        let here = |file: &u32| {
            let entry = metainfo.files.get(*file as usize);
            entry.is_some_and(|entry| active.pieces().has(entry.range))
        };
        Ok(pin.files(&metainfo).iter().all(here))
    }

    /// Returns whether a link wants something at or below a node; none where it does not say what it wants.
    pub fn wants(&self, magnet: &Magnet, node: u32) -> Option<bool> {
        let selected = magnet.selected.as_ref()?;
        let metainfo = self.metainfo_now(magnet.hash)?.ok()?;
        Some(metainfo.files_below(node).into_iter().any(|file| selected.contains(file)))
    }

    /// Returns when all of a file or directory is here. `reader` is nobody else's number.
    ///
    /// # Errors
    /// As [`TorrentFile::read`]; what is kept goes on to be fetched all the same.
    pub async fn fetch(&self, hash: InfoHash, node: u32, reader: u64) -> Result<(), TorrentError> {
        let metainfo = self.metainfo(hash).await?;
        let active = self.active(&metainfo)?;
        active.select_pins().await?;
        let window = Window { active: &active, reader };
        for number in self.files_to_fetch(&metainfo, node) {
            let (entry, file) = (active.entry(number)?, TorrentFile::new(active.clone(), number));
            // The first byte that is missing is waited for as by one who reads: that wakes peers, dials again and starts
            // over where it has to, while the session fetches all that is kept in its own order.
            while let Some(piece) = active.pieces().first_missing(entry.range) {
                let missing = metainfo.bytes_of(piece).start.max(entry.range.start);
                let byte = ByteRange::at(missing - entry.range.start, 1);
                file.read(window.reader, byte).await?;
            }
        }
        Ok(())
    }
}

impl TorrentPin {
    /// The numbers of the files that are kept.
    fn files(&self, metainfo: &Metainfo) -> Vec<u32> {
        let mut files = metainfo.files_below(self.node);
        if let Some(only) = &self.only {
            files.retain(|file| only.contains(*file));
        }
        files
    }
}

impl Active {
    /// Has the session fetch what is kept, if it is in the session; else it is told when it comes in.
    async fn select_pins(&self) -> Result<(), TorrentError> {
        match self.fetch.get() {
            Some(fetch) => fetch.select(self.torrents().pinned_files(self.metainfo())).await,
            None => Ok(()),
        }
    }
}
