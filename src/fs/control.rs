//! The files below `.chiral`: what the control interface tells, readable with `cat`.

use std::{ffi::OsStr, fmt, io::Write};

use bytes::Bytes;
use nix::errno::Errno;
use tokio::sync::{Mutex, broadcast};

use super::{
    answer::Outcome,
    errno::{During, of_node},
    tree::{CONTROL_FILES, Ino},
};
use crate::node::{Event, Node};

/// One of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    Version,
    Status,
    Transfers,
    Peers,
    /// One line of JSON for each event from the moment of opening on; reading waits for the next.
    Events,
}

impl File {
    pub(super) const ALL: [Self; 5] =
        [Self::Version, Self::Status, Self::Transfers, Self::Peers, Self::Events];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Status => "status.json",
            Self::Transfers => "transfers.json",
            Self::Peers => "peers.json",
            Self::Events => "events",
        }
    }

    pub(super) fn named(name: &OsStr) -> Option<Self> {
        Self::ALL.into_iter().find(|file| name == file.name())
    }

    pub(super) fn ino(self) -> Ino {
        CONTROL_FILES
            + match self {
                Self::Version => 0,
                Self::Status => 1,
                Self::Transfers => 2,
                Self::Peers => 3,
                Self::Events => 4,
            }
    }

    pub(super) fn of(ino: Ino) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.ino() == ino)
    }

    /// The content at this moment; none for what has no end.
    pub(super) fn render(self, node: &Node) -> Outcome<Option<Bytes>> {
        match self {
            Self::Version => {
                Ok(Some(Bytes::from_static(concat!(env!("CARGO_PKG_VERSION"), "\n").as_bytes())))
            }
            Self::Status => json(&node.status().map_err(|e| of_node(&e, During::Read))?).map(Some),
            Self::Transfers => json(&node.transfers()).map(Some),
            Self::Peers => json(&node.peers()).map(Some),
            Self::Events => Ok(None),
        }
    }
}

fn json(value: &impl serde::Serialize) -> Outcome<Bytes> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|_| Errno::EIO)?;
    text.push(b'\n');
    Ok(text.into())
}

/// One reader of the events. Its queue is the bounded one of the stream: a reader that lags loses the oldest and is told.
pub(super) struct EventStream {
    inner: Mutex<Tail>,
}

struct Tail {
    events: broadcast::Receiver<Event>,
    /// What did not fit into the last read.
    rest: Bytes,
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl EventStream {
    pub(super) fn new(events: broadcast::Receiver<Event>) -> Self {
        Self { inner: Mutex::new(Tail { events, rest: Bytes::new() }) }
    }

    /// Up to `size` bytes: what is there, else the next event. Empty when there will be none any more.
    pub(super) async fn read(&self, size: usize) -> Outcome<Bytes> {
        let mut tail = self.inner.lock().await;
        if tail.rest.is_empty() {
            tail.rest = match tail.events.recv().await {
                Ok(event) => line(&event)?,
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    line(&serde_json::json!({ "event": "lagged", "lost": lost }))?
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(Bytes::new()),
            };
        }
        let len = size.min(tail.rest.len());
        Ok(tail.rest.split_to(len))
    }
}

fn line(value: &impl serde::Serialize) -> Outcome<Bytes> {
    let mut text = serde_json::to_vec(value).map_err(|_| Errno::EIO)?;
    text.write_all(b"\n").map_err(|_| Errno::EIO)?;
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn every_file_is_found_by_its_name_and_by_its_number() {
        for file in File::ALL {
            assert_eq!(File::named(file.name().as_ref()), Some(file));
            assert_eq!(File::of(file.ino()), Some(file));
        }
        assert_eq!(File::named("events.json".as_ref()), None);
    }

    #[tokio::test]
    async fn a_reader_gets_each_event_as_a_line_in_pieces_of_the_size_it_asks_for() {
        let (send, receive) = broadcast::channel(2);
        let stream = EventStream::new(receive);
        let cid = "bafkqaaa".parse().unwrap();
        send.send(Event::Announced { cid }).unwrap();
        let mut text = Vec::new();
        while text.last() != Some(&b'\n') {
            let piece = stream.read(7).await.unwrap();
            assert!((1..=7).contains(&piece.len()));
            text.extend_from_slice(&piece);
        }
        assert_eq!(text, b"{\"event\":\"announced\",\"cid\":\"bafkqaaa\"}\n");
        for _ in 0..3 {
            send.send(Event::Announced { cid }).unwrap();
        }
        assert_eq!(
            stream.read(100).await.unwrap().as_ref(),
            b"{\"event\":\"lagged\",\"lost\":1}\n"
        );
        drop(send);
        stream.read(100).await.unwrap();
        stream.read(100).await.unwrap();
        assert!(stream.read(100).await.unwrap().is_empty());
    }
}
