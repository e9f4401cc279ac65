//! The files below `.chiral`: what the control interface tells, readable with `cat`.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::Write,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use nix::errno::Errno;
use tokio::{sync::broadcast, time::Instant};

use super::{
    answer::Outcome,
    errno::{During, of_node},
    tree::{CONTROL_FILES, Ino},
};
use crate::node::{Event, Node};

/// One of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum File {
    Version,
    Status,
    Transfers,
    Peers,
    /// One line of JSON for each event since it was opened, by whom it was opened first. It ends with what has happened so
    /// far and grows, so that `tail -f` follows it. Not listed.
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

/// For so long a text that was shown stays what it is: its size is that of the text which is opened right after.
const SHOWN: Duration = Duration::from_secs(1);

/// Texts that were shown lately.
#[derive(Debug, Default)]
pub(super) struct Rendered(Mutex<HashMap<File, (Instant, Bytes)>>);

impl Rendered {
    /// The text of a file now; none for what has no end.
    pub(super) fn text(&self, file: File, node: &Node) -> Outcome<Option<Bytes>> {
        self.text_at(file, Instant::now(), || file.render(node))
    }

    fn text_at(
        &self,
        file: File,
        now: Instant,
        render: impl FnOnce() -> Outcome<Option<Bytes>>,
    ) -> Outcome<Option<Bytes>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = lock().get(&file).cloned();
        if let Some((_, text)) = shown.filter(|(at, _)| now.duration_since(*at) < SHOWN) {
            return Ok(Some(text));
        }
        // The node is not asked under the lock.
        let text = render()?;
        if let Some(text) = &text {
            lock().insert(file, (now, text.clone()));
        }
        Ok(text)
    }
}

/// Bytes of events that are kept; of more, the older half goes.
const MOST_EVENTS: usize = 1 << 20;

/// Events since the file was opened, as long as it is open. A log that is not read for long loses the
/// oldest events of the bounded queue behind it, and says so.
#[derive(Debug)]
pub(super) struct EventLog(Mutex<Log>);

#[derive(Debug)]
struct Log {
    events: broadcast::Receiver<Event>,
    text: Vec<u8>,
}

impl EventLog {
    pub(super) fn new(events: broadcast::Receiver<Event>) -> Self {
        Self(Mutex::new(Log { events, text: Vec::new() }))
    }

    pub(super) fn len(&self) -> u64 {
        self.text(|text| text.len() as u64)
    }

    /// Up to `size` bytes from `offset` on; empty at the end.
    pub(super) fn read(&self, offset: u64, size: u32) -> Bytes {
        self.text(|text| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
            let end = start.saturating_add(size as usize).min(text.len());
            Bytes::copy_from_slice(&text[start..end])
        })
    }

    /// Looks at the log with all that has happened in it.
    fn text<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let line = match log.events.try_recv() {
                Ok(event) => line(&event),
                Err(broadcast::error::TryRecvError::Lagged(lost)) => {
                    line(&serde_json::json!({ "event": "lagged", "lost": lost }))
                }
                Err(
                    broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed,
                ) => break,
            };
            log.text.extend(line.unwrap_or_default());
        }
        if log.text.len() > MOST_EVENTS {
            let half = log.text.len() - MOST_EVENTS / 2;
            let end_of_line = log.text[half..].iter().position(|byte| *byte == b'\n');
            log.text.drain(..end_of_line.map_or(half, |at| half + at + 1));
        }
        look(&log.text)
    }
}

/// The log of those who have the events open; all share it.
#[derive(Debug, Default)]
pub(super) struct Events(Mutex<Weak<EventLog>>);

impl Events {
    /// The log, begun now where it is not open.
    pub(super) fn open(&self, node: &Node) -> Arc<EventLog> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.upgrade().unwrap_or_else(|| {
            let begun = Arc::new(EventLog::new(node.events()));
            *log = Arc::downgrade(&begun);
            begun
        })
    }

    /// Bytes of the log.
    pub(super) fn len(&self) -> u64 {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        log.map_or(0, |log| log.len())
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

    #[test]
    fn events_come_as_lines_and_end_with_the_last() {
        let (send, receive) = broadcast::channel(2);
        let log = EventLog::new(receive);
        let cid = "bafkqaaa".parse().unwrap();
        assert!(log.read(0, 100).is_empty());
        send.send(Event::Announced { cid }).unwrap();
        let line = b"{\"event\":\"announced\",\"cid\":\"bafkqaaa\"}\n";
        assert_eq!(log.len(), line.len() as u64);
        assert_eq!(log.read(0, 7), &line[..7]);
        assert_eq!(log.read(7, 1000), &line[7..]);
        assert!(log.read(log.len(), 1000).is_empty() && log.read(u64::MAX, u32::MAX).is_empty());
        for _ in 0..3 {
            send.send(Event::Announced { cid }).unwrap();
        }
        let lagged = [&b"{\"event\":\"lagged\",\"lost\":1}\n"[..], line, line].concat();
        assert_eq!(log.read(line.len() as u64, 1000), lagged);
    }

    #[test]
    fn a_long_log_loses_its_older_half() {
        let (send, receive) = broadcast::channel(2);
        let log = EventLog::new(receive);
        let cid = "bafkqaaa".parse().unwrap();
        for _ in 0..MOST_EVENTS / 40 + 1 {
            send.send(Event::Announced { cid }).unwrap();
            log.len();
        }
        assert!(
            (MOST_EVENTS as u64 / 3..=MOST_EVENTS as u64).contains(&log.len()),
            "{}",
            log.len()
        );
        assert!(log.read(0, 100).starts_with(b"{\"event\""));
    }

    #[test]
    fn a_text_stays_as_its_size_was_shown_for_a_moment() {
        let (rendered, start) = (Rendered::default(), Instant::now());
        let text = |after: Duration, text: &'static str| {
            let render = || Ok(Some(Bytes::from_static(text.as_bytes())));
            rendered.text_at(File::Peers, start + after, render).unwrap().unwrap()
        };
        assert_eq!(text(Duration::ZERO, "one"), "one");
        assert_eq!(text(SHOWN / 2, "two"), "one");
        assert_eq!(text(SHOWN, "three"), "three");
        let endless = rendered.text_at(File::Events, start, || Ok(None));
        assert_eq!(endless, Ok(None));
    }
}
