//! A behaviour for peers of tests that speak a protocol byte by byte: it hands out streams as they are. Unit tests and
//! end-to-end tests take this file in by its path.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{
        Endpoint, UpgradeInfo,
        transport::PortUse,
        upgrade::{InboundUpgrade, OutboundUpgrade},
    },
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, SubstreamProtocol, THandlerInEvent, ToSwarm,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{mpsc, oneshot};

/// Streams that are asked for, shared by the handlers of all connections: any of them may open one.
type Requests = Arc<Mutex<mpsc::UnboundedReceiver<oneshot::Sender<Stream>>>>;

/// Hands streams out as they are.
#[derive(Clone)]
pub(crate) struct Raw {
    protocols: Vec<StreamProtocol>,
    /// Whether it takes streams of these, or opens them only.
    pub(crate) takes: bool,
    inbound: mpsc::UnboundedSender<Stream>,
    requests: Requests,
}

/// Streams that the other end opened, and the way to ask for one to it.
pub(crate) type Ends =
    (mpsc::UnboundedReceiver<Stream>, mpsc::UnboundedSender<oneshot::Sender<Stream>>);

impl Raw {
    /// Of a peer that speaks these protocols, best first.
    pub(crate) fn new(protocols: Vec<StreamProtocol>) -> (Self, Ends) {
        let (inbound, accepted) = mpsc::unbounded_channel();
        let (requests, receiver) = mpsc::unbounded_channel();
        let requested = Arc::new(Mutex::new(receiver));
        (Self { protocols, takes: true, inbound, requests: requested }, (accepted, requests))
    }

    fn offer(&self) -> Any {
        Any(self.protocols.clone())
    }
}

impl NetworkBehaviour for Raw {
    type ConnectionHandler = Self;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Self, ConnectionDenied> {
        Ok(self.clone())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Self, ConnectionDenied> {
        Ok(self.clone())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

impl ConnectionHandler for Raw {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Any;
    type OutboundProtocol = Any;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Stream>;

    fn listen_protocol(&self) -> SubstreamProtocol<Any> {
        let offer = if self.takes { self.offer() } else { Any(Vec::new()) };
        SubstreamProtocol::new(offer, ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Any, oneshot::Sender<Stream>, Infallible>> {
        match self.requests.lock().unwrap().poll_recv(cx) {
            Poll::Ready(Some(answer)) => {
                let protocol = SubstreamProtocol::new(self.offer(), answer);
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
            }
            _ => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Any, Any, (), oneshot::Sender<Stream>>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol, ..
            }) => {
                // Whoever does not accept streams resets them.
                let _ = self.inbound.send(protocol);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol,
                info,
            }) => {
                let _ = info.send(protocol);
            }
            _ => {}
        }
    }
}

/// Gives the stream as it is.
#[derive(Clone)]
pub(crate) struct Any(Vec<StreamProtocol>);

impl UpgradeInfo for Any {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Any {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

impl OutboundUpgrade<Stream> for Any {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
