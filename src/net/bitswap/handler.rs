//! One connection: negotiates streams and hands each to a task of its own.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::{Ready, ready};
use libp2p::{
    PeerId, Stream, StreamProtocol,
    core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo},
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, ConnectionId, StreamUpgradeError,
        SubstreamProtocol,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
            ProtocolsChange,
        },
    },
};
use tokio::sync::Semaphore;

use super::{
    frame::Budget,
    peer::{Link, Peer},
    reader,
    shared::Shared,
    wire::Version,
    writer,
};

/// The handler of one connection; none of a connection over a relay, which offers no Bitswap and is asked for none.
pub(crate) struct Handler(Option<Active>);

/// The handler of a connection that Bitswap is spoken on.
struct Active {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    link: Arc<Link>,
    /// One permit for each stream that may be read.
    streams: Arc<Semaphore>,
    budget: Budget,
    /// What is offered for the next stream: once the best common version is known, nothing is left to negotiate.
    offer: Vec<Version>,
}

impl Handler {
    /// Of a new connection.
    pub(super) fn new(shared: Arc<Shared>, peer: PeerId, connection: ConnectionId) -> Self {
        Self(Some(Active::new(shared, peer, connection)))
    }

    /// Of a new connection over a relay.
    pub(super) fn relayed() -> Self {
        Self(None)
    }
}

impl Active {
    fn new(shared: Arc<Shared>, peer: PeerId, connection: ConnectionId) -> Self {
        let link = Arc::new(Link::new(connection));
        let peer = shared.connected(peer, link.clone());
        Self {
            streams: Arc::new(Semaphore::new(shared.config.streams_per_connection)),
            budget: shared.frames.connection(shared.config.frames_per_connection),
            offer: Version::ALL.to_vec(),
            shared,
            peer,
            link,
        }
    }

    fn on_inbound(&self, mut stream: Stream) {
        self.shared.speaks(&self.peer);
        // Dropping a stream resets it. Waiting for a permit would hold up the connection instead.
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            tracing::debug!(peer = %self.peer.id, "too many bitswap streams, one is refused");
            return;
        };
        stream.ignore_for_keep_alive();
        let (shared, peer) = (self.shared.clone(), self.peer.clone());
        let read = reader::run(shared, peer, self.link.clone(), self.budget.clone(), stream);
        let token = self.shared.tasks.token().clone();
        self.shared.tasks.spawn("bitswap-reader", async move {
            let _permit = permit;
            token.run_until_cancelled(read).await;
        });
    }

    fn on_outbound(&mut self, mut stream: Stream, version: Version) {
        self.shared.speaks(&self.peer);
        self.offer = vec![version];
        stream.ignore_for_keep_alive();
        let Some(session) = self.peer.state().stream_opened(&self.link, version) else { return };
        let write = writer::run(self.shared.clone(), self.peer.clone(), session, stream);
        self.shared.tasks.spawn("bitswap-writer", write);
    }

    fn on_dial_error(&mut self, error: &StreamUpgradeError<std::convert::Infallible>) {
        tracing::debug!(peer = %self.peer.id, %error, "no bitswap stream");
        self.offer = Version::ALL.to_vec();
        let never = matches!(error, StreamUpgradeError::NegotiationFailed);
        self.peer.state().stream_failed(self.link.connection, never);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.shared.disconnected(&self.peer, self.link.connection);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = std::convert::Infallible;
    type ToBehaviour = std::convert::Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        let versions = if self.0.is_some() { Version::ALL.to_vec() } else { Vec::new() };
        SubstreamProtocol::new(Offer(versions), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.0.as_ref().is_some_and(|it| it.link.is_busy() || it.peer.needs_connection())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Offer, (), Self::ToBehaviour>> {
        if let Some(active) = &self.0
            && active.link.poll_request(cx.waker())
        {
            let protocol = SubstreamProtocol::new(Offer(active.offer.clone()), ());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer>) {
        let Some(active) = &mut self.0 else { return };
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, _),
                ..
            }) => active.on_inbound(stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, version),
                ..
            }) => active.on_outbound(stream, version),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                active.on_dial_error(&error);
            }
            ConnectionEvent::RemoteProtocolsChange(ProtocolsChange::Added(protocols)) => {
                if let Some(best) = protocols.filter_map(Version::of).max() {
                    active.offer = vec![best];
                    active.shared.speaks(&active.peer);
                }
            }
            _ => {}
        }
    }
}

/// Versions to agree on, best first; gives the stream and the one that was agreed on.
#[derive(Clone, Debug)]
pub(crate) struct Offer(pub(super) Vec<Version>);

/// A version with the name it is negotiated by.
#[derive(Clone, Debug)]
pub(crate) struct Named(Version, StreamProtocol);

impl AsRef<str> for Named {
    fn as_ref(&self) -> &str {
        self.1.as_ref()
    }
}

impl UpgradeInfo for Offer {
    type Info = Named;
    type InfoIter = std::vec::IntoIter<Named>;

    fn protocol_info(&self) -> Self::InfoIter {
        let named = |version: &Version| Named(*version, version.protocol());
        self.0.iter().map(named).collect::<Vec<_>>().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = (Stream, Version);
    type Error = std::convert::Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, named: Named) -> Self::Future {
        ready(Ok((stream, named.0)))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = (Stream, Version);
    type Error = std::convert::Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: Stream, named: Named) -> Self::Future {
        ready(Ok((stream, named.0)))
    }
}
