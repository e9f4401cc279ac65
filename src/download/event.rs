//! What happens in the downloads, as tests, the command line and the dashboard see it.

use std::{path::PathBuf, time::Duration};

use crate::{content::ContentId, sources::SourceId};

/// What happens, for tests, the command line, `.chiral/events` and the dashboard. Times are in seconds.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the field names are the documented wire format")]
pub enum Event {
    DownloadChunkStarted {
        file_hash: ContentId,
        chunk_index: u64,
        cid: ContentId,
        peer: SourceId,
    },
    DownloadChunkProgress {
        file_hash: ContentId,
        chunk_index: u64,
        cid: ContentId,
        bytes_received: u64,
        total_bytes: u64,
    },
    DownloadChunkComplete {
        file_hash: ContentId,
        chunk_index: u64,
        path: PathBuf,
    },
    DownloadChunkFailed {
        file_hash: ContentId,
        chunk_index: u64,
        cid: ContentId,
        error: String,
    },
    ChunkRetry {
        chunk: ContentId,
        attempt: u32,
        of: u32,
        #[serde(serialize_with = "seconds")]
        delay: Duration,
    },
    PeerSwitched {
        file_hash: ContentId,
        from: SourceId,
        to: SourceId,
    },
    SourceCooledDown {
        source: SourceId,
        #[serde(serialize_with = "seconds")]
        for_time: Duration,
    },
    Published {
        cid: ContentId,
        name: String,
        size: u64,
    },
    /// One DHT was told; each is told again in time.
    Announced {
        cid: ContentId,
    },
    /// A torrent does something else than before.
    TorrentState {
        infohash: String,
        name: String,
        state: &'static str,
        error: Option<String>,
        bytes: u64,
        total: u64,
    },
    /// Bytes of a torrent came or went.
    TorrentProgress {
        infohash: String,
        bytes: u64,
        total: u64,
        sent: u64,
        download_rate: u64,
        upload_rate: u64,
        peers: usize,
    },
    TorrentRemoved {
        infohash: String,
    },
    /// A peer was given so much more than it gave: its id, or the address of a host in a swarm.
    PaymentRequired {
        peer: String,
        bytes: u64,
    },
}

fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

/// How far a download is; also what the control socket tells of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Transfer {
    /// The content.
    pub cid: ContentId,
    /// Bytes here.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes per second of the last seconds.
    pub rate: u64,
    /// Sources that are in use.
    pub sources: usize,
    /// Seconds to the end at that rate.
    pub eta: Option<u64>,
    /// Tries that failed so far.
    pub retries: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn times_are_told_in_seconds() {
        let chunk = ContentId::raw(crate::content::sha2_256(b""));
        let delay = Duration::from_millis(1500);
        let retry = Event::ChunkRetry { chunk, attempt: 1, of: 3, delay };
        assert_eq!(serde_json::to_value(&retry).unwrap()["delay"], 1.5);
        let source = SourceId("peer".into());
        let rest = Event::SourceCooledDown { source, for_time: Duration::from_secs(30) };
        assert_eq!(serde_json::to_value(&rest).unwrap()["for_time"], 30.0);
    }
}
