//! What the user has said of a torrent that is taken up, and what those who watch are told.

use std::{
    collections::HashSet,
    sync::{MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{TorrentError, TorrentEvent, TorrentStatus, active::Active, fetch::Fetch};

/// What the user has said of a torrent, and why that could not be done.
#[derive(Debug, Default)]
pub(super) struct Will {
    pub(super) paused: bool,
    pub(super) removed: bool,
    pub(super) trouble: Option<TorrentError>,
}

impl Active {
    /// Whether it may be fetched and given.
    pub(super) fn may_go(&self) -> Result<(), TorrentError> {
        let (hash, will) = (self.metainfo().hash, self.will());
        match (will.removed, will.paused) {
            (true, _) => Err(TorrentError::Removed(hash)),
            (false, true) => Err(TorrentError::Paused(hash)),
            (false, false) => Ok(()),
        }
    }

    pub(super) fn set_removed(&self) {
        self.will().removed = true;
    }

    pub(super) fn unpause(&self) {
        let mut will = self.will();
        (will.paused, will.trouble) = (false, None);
    }

    /// Neither fetches nor gives it. Those who wait for something hear of it.
    pub(super) async fn pause(&self) -> Result<(), TorrentError> {
        {
            let mut will = self.will();
            (will.paused, will.trouble) = (true, None);
        }
        self.pieces.nudge();
        match self.fetch.get() {
            Some(fetch) => fetch.stop().await,
            // One who is just taking it up finds that it is paused.
            None => Ok(()),
        }
    }

    /// Has the session told of peers that were named meanwhile, if it goes.
    pub(super) fn introduce(&self) {
        if let Some(fetch) = self.fetch.get() {
            fetch.introduce(self);
        }
    }

    /// Whether it goes, and with how many peers.
    pub(super) fn is_live(&self) -> (bool, usize) {
        match self.fetch.get().and_then(Fetch::traffic) {
            Some((peers, _)) => (true, peers),
            None => (false, 0),
        }
    }

    /// Whether somebody waits for a part of it.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting().is_empty()
    }

    /// The readers that wait for a part of it.
    pub(super) fn waiting(&self) -> HashSet<u64> {
        let readers = self.readers();
        let waiting = readers.iter().filter(|(_, reader)| !reader.waiting.is_empty());
        waiting.map(|(id, _)| *id).collect()
    }

    /// The files of which somebody reads.
    pub(super) fn files_read(&self) -> Vec<u32> {
        self.readers().values().map(|reader| reader.file).collect()
    }

    /// Why it does not go on.
    pub(super) fn trouble(&self) -> Option<TorrentError> {
        let of_will = self.will().trouble.clone();
        of_will.or_else(|| self.pieces.trouble()).or_else(|| self.fetch.get()?.trouble())
    }

    /// Notes how many bytes have come and gone, and gives both. To be called once a second.
    pub(super) fn measure(&self) -> (u64, u64) {
        let sent = self.fetch.get().and_then(Fetch::traffic).map_or(0, |(_, sent)| sent);
        let received = self.pieces.received();
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.sample(Instant::now(), received, sent);
        (received, meter.sent())
    }

    /// Bytes per second received and sent, and sent in all.
    pub(super) fn rates(&self) -> (u64, u64, u64) {
        let meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let (received, sent) = meter.rates();
        (received, sent, meter.sent())
    }

    /// Those who watch are told next how it stands, whatever they know.
    pub(super) fn forget_told(&self) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// What is new to those who watch.
    pub(super) fn news(&self, status: TorrentStatus) -> Option<TorrentEvent> {
        let now = (status.state, status.bytes, status.sent);
        let before = self.told.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        match before {
            Some(before) if before == now => None,
            Some((state, ..)) if state == status.state => Some(TorrentEvent::Progress(status)),
            _ => Some(TorrentEvent::State(status)),
        }
    }

    pub(super) fn will(&self) -> MutexGuard<'_, Will> {
        self.will.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
