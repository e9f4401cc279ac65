//! One connected peer: its wants, ours, its connections, and which of them is written to.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures::task::AtomicWaker;
use libp2p::{PeerId, swarm::ConnectionId};
use tokio::sync::Notify;

use super::{
    Config,
    client::Client,
    ledger::Ledger,
    server::{Waiting, Want, Wantlist},
    wire::Version,
};
use crate::net::WantError;

/// Streams that broke on a connection, without a word from the peer between them, after which it is given up.
const MAX_FAILURES: u8 = 3;

/// A connected peer. Tasks that read and write its streams share it with the handlers of its connections.
#[derive(Debug)]
pub(super) struct Peer {
    /// Who.
    pub(super) id: PeerId,
    /// Bytes exchanged.
    pub(super) ledger: Arc<Ledger>,
    state: Mutex<State>,
}

/// What is known of a peer. Never locked across an await, and no other lock is taken inside.
#[derive(Debug)]
pub(super) struct State {
    /// What is wanted from it.
    pub(super) client: Client,
    /// What it wants.
    pub(super) server: Wantlist,
    /// Whether it is a chiral node.
    pub(super) chiral: bool,
    /// Whether it is known to speak Bitswap.
    pub(super) up: bool,
    /// Whether it was caught lying; nothing is asked of it or given to it any more.
    pub(super) banned: bool,
    /// Connections, oldest first.
    links: Vec<(Arc<Link>, u8)>,
    /// The connection that was asked for a stream.
    opening: Option<ConnectionId>,
    writer: Option<Writer>,
    next_generation: u64,
}

#[derive(Debug)]
struct Writer {
    generation: u64,
    connection: ConnectionId,
    notify: Arc<Notify>,
}

/// What the tasks of a connection and its handler tell each other.
#[derive(Debug)]
pub(super) struct Link {
    /// Which connection.
    pub(super) connection: ConnectionId,
    open: AtomicBool,
    busy: AtomicUsize,
    waker: AtomicWaker,
}

/// While it lives, its connection is not idle.
#[derive(Debug)]
pub(super) struct Busy(Arc<Link>);

/// A stream to write to; the newest of a peer is the only one that is given something.
#[derive(Debug)]
pub(super) struct Session {
    /// Names the session.
    pub(super) generation: u64,
    /// Version of the protocol on it.
    pub(super) version: Version,
    /// Its connection.
    pub(super) link: Arc<Link>,
    /// Told when there may be something to write, or when the session ends.
    pub(super) notify: Arc<Notify>,
}

impl Link {
    /// Of a new connection.
    pub(super) fn new(connection: ConnectionId) -> Self {
        Self {
            connection,
            open: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            waker: AtomicWaker::new(),
        }
    }

    fn request_stream(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// For the handler: whether a stream is to be opened. Its task is woken when this changes.
    pub(super) fn poll_request(&self, waker: &std::task::Waker) -> bool {
        self.waker.register(waker);
        self.open.swap(false, Ordering::AcqRel)
    }

    /// Whether a frame is being read or written.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Marks it busy.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer {
    /// A peer without connection.
    pub(super) fn new(id: PeerId, ledger: Arc<Ledger>, config: &Config, waiting: &Waiting) -> Self {
        let state = State {
            client: Client::new(id),
            server: Wantlist::new(config.wants_per_peer, waiting.clone()),
            chiral: false,
            up: false,
            banned: false,
            links: Vec::new(),
            opening: None,
            writer: None,
            next_generation: 0,
        };
        Self { id, ledger, state: Mutex::new(state) }
    }

    /// Its state.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a connection of it is still of use.
    pub(super) fn needs_connection(&self) -> bool {
        let state = self.state();
        !state.client.is_empty() || state.server.len() > 0
    }

    /// For the writer of `generation`: runs `step` unless another writer took over.
    pub(super) fn as_writer<T>(
        &self,
        generation: u64,
        step: impl FnOnce(&mut State) -> T,
    ) -> Option<T> {
        let mut state = self.state();
        let current = state.writer.as_ref().is_some_and(|w| w.generation == generation);
        current.then(|| step(&mut state))
    }
}

impl State {
    /// Whether a connection is there.
    pub(super) fn is_connected(&self) -> bool {
        !self.links.is_empty()
    }

    /// Whether a stream is there to write to.
    #[cfg(test)]
    pub(super) fn has_stream(&self) -> bool {
        self.writer.is_some()
    }

    /// Takes a new connection in. It becomes the one that is written to: after a change of network the old one may
    /// be dead without anyone having noticed.
    pub(super) fn link_added(&mut self, link: Arc<Link>) {
        self.links.push((link, 0));
        if self.writer.is_some() || self.opening.is_some() {
            self.open_stream();
        } else {
            self.kick();
        }
    }

    /// A connection is gone; whether it was the last.
    pub(super) fn link_removed(&mut self, connection: ConnectionId) -> bool {
        self.links.retain(|(link, _)| link.connection != connection);
        if self.opening == Some(connection) {
            self.opening = None;
        }
        if self.writer.as_ref().is_some_and(|w| w.connection == connection) {
            self.end_writer();
        }
        if self.links.is_empty() {
            return true;
        }
        self.kick();
        false
    }

    /// A stream that was asked for is there: what is to be written goes to it from now on. None when a newer
    /// connection was faster.
    pub(super) fn stream_opened(&mut self, link: &Arc<Link>, version: Version) -> Option<Session> {
        if self.opening == Some(link.connection) {
            self.opening = None;
        } else if self.writer.is_some() {
            return None;
        }
        self.end_writer();
        self.client.restart();
        self.next_generation += 1;
        let (generation, notify) = (self.next_generation, Arc::new(Notify::new()));
        let connection = link.connection;
        self.writer = Some(Writer { generation, connection, notify: notify.clone() });
        Some(Session { generation, version, link: link.clone(), notify })
    }

    /// A stream could not be opened; `never` when the peer does not speak Bitswap.
    pub(super) fn stream_failed(&mut self, connection: ConnectionId, never: bool) {
        if self.opening == Some(connection) {
            self.opening = None;
        }
        self.count_failure(connection, if never { MAX_FAILURES } else { 1 });
        self.kick();
    }

    /// The writer of `generation` has ended.
    pub(super) fn writer_ended(&mut self, generation: u64, failed: bool) {
        let Some(writer) = self.writer.as_ref().filter(|w| w.generation == generation) else {
            return;
        };
        let connection = writer.connection;
        self.end_writer();
        if failed {
            self.count_failure(connection, 1);
        }
        self.kick();
    }

    /// A message came on a connection: it works.
    pub(super) fn heard_on(&mut self, connection: ConnectionId) {
        for (link, failures) in &mut self.links {
            if link.connection == connection {
                *failures = 0;
            }
        }
    }

    /// Sees to it that what is to be written is written.
    pub(super) fn kick(&mut self) {
        if let Some(writer) = &self.writer {
            writer.notify.notify_one();
        } else if self.opening.is_none()
            && (self.server.has_work() || !self.client.is_empty() || self.client.has_work())
        {
            self.open_stream();
        }
    }

    fn open_stream(&mut self) {
        let healthy = self.links.iter().rev().filter(|(_, failures)| *failures < MAX_FAILURES);
        // `min_by_key` takes the first of equals, which is the newest.
        if let Some((link, _)) = healthy.min_by_key(|(_, failures)| *failures) {
            self.opening = Some(link.connection);
            link.request_stream();
            return;
        }
        if self.writer.is_none() {
            self.client.fail(WantError::Disconnected);
            self.server.clear();
            // What is wanted later is tried anew.
            self.links.iter_mut().for_each(|(_, failures)| *failures = 0);
        }
    }

    fn end_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.notify.notify_one();
            self.server.put_back_all();
        }
    }

    fn count_failure(&mut self, connection: ConnectionId, count: u8) {
        for (link, failures) in &mut self.links {
            if link.connection == connection {
                *failures = failures.saturating_add(count);
            }
        }
    }

    /// Caught lying: everything ends.
    pub(super) fn ban(&mut self) {
        self.banned = true;
        self.client.fail(WantError::Lied);
        self.server.clear();
    }

    /// The wants to look up next, for the writer.
    pub(super) fn take_wants(&mut self, count: usize) -> Vec<Want> {
        self.server.take(count)
    }
}
