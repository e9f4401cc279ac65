//! Which pieces of a torrent are here, and what is arriving.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::{Metainfo, TorrentError};
use crate::content::ByteRange;

/// The pieces of one torrent. Told by the storage of every piece that was verified and of every part that arrives.
#[derive(Debug)]
pub(super) struct Pieces {
    metainfo: Arc<Metainfo>,
    state: Mutex<State>,
    changed: Notify,
    /// Somebody who looks at all torrents.
    came: OnceLock<Arc<Notify>>,
}

#[derive(Debug, Default)]
struct State {
    /// A bit for each, the highest first; none until it is known what is on disk.
    here: Option<Vec<u8>>,
    /// Pieces that completed before that was known.
    early: Vec<u32>,
    /// Bytes of pieces that are not complete, as far as they have arrived.
    arriving: HashMap<u32, u64>,
    /// Bytes that have arrived in all.
    received: u64,
    /// Whether pieces have come since they were last noted.
    changed: bool,
    /// Why the last write failed.
    trouble: Option<TorrentError>,
}

impl State {
    fn set(&mut self, piece: u32) {
        let (byte, bit) = (piece as usize / 8, piece % 8);
        match self.here.as_mut() {
            Some(here) => {
                if let Some(byte) = here.get_mut(byte) {
                    *byte |= 0x80 >> bit;
                }
            }
            None => self.early.push(piece),
        }
        self.changed = true;
    }

    fn has(&self, piece: u32) -> bool {
        let (byte, bit) = (piece as usize / 8, piece % 8);
        let here = self.here.as_ref().and_then(|here| here.get(byte));
        here.is_some_and(|byte| byte & (0x80 >> bit) != 0)
    }
}

impl Pieces {
    pub(super) fn new(metainfo: Arc<Metainfo>) -> Self {
        Self { metainfo, state: Mutex::default(), changed: Notify::new(), came: OnceLock::new() }
    }

    /// Takes over what is on disk. Bits of no piece are left out.
    pub(super) fn load(&self, mut bits: Vec<u8>) -> bool {
        let pieces = self.metainfo.pieces();
        if bits.len() != pieces.div_ceil(8) as usize {
            return false;
        }
        if let (Some(last), used @ 1..) = (bits.last_mut(), pieces % 8) {
            *last &= 0xff << (8 - used);
        }
        let mut state = self.state();
        state.trouble = None;
        state.here = Some(bits);
        for piece in std::mem::take(&mut state.early) {
            state.set(piece);
        }
        drop(state);
        self.pieces_came();
        true
    }

    /// Has somebody told when pieces came, and now if some are here.
    pub(super) fn tell(&self, came: &Arc<Notify>) {
        // Each torrent has one.
        let _ = self.came.set(came.clone());
        if self.state().here.as_ref().is_some_and(|here| here.iter().any(|byte| *byte != 0)) {
            came.notify_one();
        }
    }

    fn pieces_came(&self) {
        self.changed.notify_waiters();
        if let Some(came) = self.came.get() {
            came.notify_one();
        }
    }

    /// All pieces are here: the bytes are those that the description was made from.
    pub(super) fn load_all(&self) -> Vec<u8> {
        let mut bits = vec![0xff; self.metainfo.pieces().div_ceil(8) as usize];
        if let (Some(last), used @ 1..) = (bits.last_mut(), self.metainfo.pieces() % 8) {
            *last <<= 8 - used;
        }
        self.load(bits.clone());
        bits
    }

    /// Whether everything is here.
    pub(super) fn is_complete(&self) -> bool {
        self.has(ByteRange::new(0, self.metainfo.len))
    }

    /// Has those who wait look whether they still may.
    pub(super) fn nudge(&self) {
        self.changed.notify_waiters();
    }

    /// Bytes that have arrived in all, also of pieces that turned out to be wrong.
    pub(super) fn received(&self) -> u64 {
        self.state().received
    }

    /// All bits, if there are new ones since this was last asked.
    pub(super) fn news(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        let changed = std::mem::take(&mut state.changed);
        state.here.clone().filter(|_| changed)
    }

    /// What is on disk is looked at anew: nothing of it is believed until then.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.here = None;
        state.early.clear();
        state.arriving.clear();
    }

    /// Whether it is known what is on disk.
    pub(super) fn is_loaded(&self) -> bool {
        self.state().here.is_some()
    }

    /// Whether all pieces of these bytes of the torrent are here.
    pub(super) fn has(&self, bytes: ByteRange) -> bool {
        self.first_missing(bytes).is_none() && self.is_loaded()
    }

    /// The first piece of these bytes that is not here.
    pub(super) fn first_missing(&self, bytes: ByteRange) -> Option<u32> {
        let state = self.state();
        self.metainfo.pieces_of(bytes).find(|piece| !state.has(*piece))
    }

    /// How many of these bytes of the torrent are here.
    pub(super) fn bytes_here(&self, bytes: ByteRange) -> u64 {
        let state = self.state();
        let here = self.metainfo.pieces_of(bytes).filter(|piece| state.has(*piece));
        here.map(|piece| self.metainfo.bytes_of(piece).intersect(bytes).len()).sum()
    }

    /// How many bytes of the whole torrent are here. Counts bits and looks at no piece: asked once a second of each torrent.
    pub(super) fn all_here(&self) -> u64 {
        let (state, pieces) = (self.state(), self.metainfo.pieces());
        let here =
            state.here.iter().flatten().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        let piece_len = u64::from(self.metainfo.piece_len);
        match pieces.checked_sub(1).filter(|last| state.has(*last)) {
            Some(last) => (here - 1) * piece_len + self.metainfo.bytes_of(last).len(),
            None => here * piece_len,
        }
    }

    /// A piece was verified.
    pub(super) fn completed(&self, piece: u32) {
        let mut state = self.state();
        state.arriving.remove(&piece);
        state.set(piece);
        drop(state);
        self.pieces_came();
    }

    /// Bytes of a piece arrived that are not verified yet.
    pub(super) fn arrived(&self, at: u64, len: u64) {
        let piece = u32::try_from(at / u64::from(self.metainfo.piece_len)).unwrap_or(u32::MAX);
        let mut state = self.state();
        state.received += len;
        *state.arriving.entry(piece).or_default() += len;
    }

    /// Bytes that have arrived of a piece, and in all.
    pub(super) fn progress(&self, piece: u32) -> (u64, u64) {
        let state = self.state();
        (state.arriving.get(&piece).copied().unwrap_or_default(), state.received)
    }

    /// Writing failed.
    pub(super) fn failed(&self, error: TorrentError) {
        self.state().trouble = Some(error);
        self.changed.notify_waiters();
    }

    /// The last failure is over.
    pub(super) fn settle(&self) {
        self.state().trouble = None;
    }

    /// Why the last write failed, until what is on disk was looked at anew.
    pub(super) fn trouble(&self) -> Option<TorrentError> {
        self.state().trouble.clone()
    }

    /// Resolves with the next piece that completes and the next failure, once it is enabled.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
