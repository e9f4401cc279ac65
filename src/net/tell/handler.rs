//! One connection: opens a stream for each telling, writes, and waits for the end of the other side.

use std::{
    collections::VecDeque,
    io,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, StreamExt as _, future::BoxFuture,
    stream::FuturesUnordered,
};
use libp2p::{
    Stream, StreamProtocol,
    core::upgrade::{DeniedUpgrade, ReadyUpgrade},
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, SubstreamProtocol,
        handler::{ConnectionEvent, FullyNegotiatedOutbound},
    },
};

use super::{TellId, Told};

/// How long a stream may take to be negotiated.
const OPENING: Duration = Duration::from_secs(10);
/// How long a peer may take to read a batch: forty kilobytes, each of whose records it may have to write to a disk.
const READING: Duration = Duration::from_secs(30);

/// What a peer is to be told.
#[derive(Debug)]
pub(in crate::net) struct Work {
    pub(super) id: TellId,
    pub(super) protocol: StreamProtocol,
    pub(super) messages: Vec<u8>,
}

/// The handler of one connection.
#[derive(Default)]
pub(in crate::net) struct Handler {
    queue: VecDeque<Work>,
    /// Streams are opened one after the other: a new one does not say which it is.
    opening: Option<Work>,
    running: FuturesUnordered<BoxFuture<'static, Told>>,
    failed: VecDeque<TellId>,
}

impl Handler {
    fn on_opened(&mut self, stream: Stream) {
        let Some(work) = self.opening.take() else { return };
        let tell = async move {
            let told = tokio::time::timeout(READING, write(stream, &work.messages)).await;
            Told { id: work.id, taken: matches!(told, Ok(Ok(()))) }
        };
        self.running.push(tell.boxed());
    }
}

/// Writes all, and waits until the peer has read it: it ends its side then, and breaks it off if it does not want the
/// records.
async fn write(mut stream: Stream, messages: &[u8]) -> io::Result<()> {
    stream.write_all(messages).await?;
    stream.close().await?;
    match stream.read(&mut [0; 1]).await? {
        0 => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Work;
    type ToBehaviour = Told;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.opening.is_some() || !self.queue.is_empty()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Told>> {
        if let Some(id) = self.failed.pop_front() {
            let told = Told { id, taken: false };
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(told));
        }
        if let Poll::Ready(Some(told)) = self.running.poll_next_unpin(cx) {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(told));
        }
        if self.opening.is_none()
            && let Some(work) = self.queue.pop_front()
        {
            let upgrade = ReadyUpgrade::new(work.protocol.clone());
            self.opening = Some(work);
            let protocol = SubstreamProtocol::new(upgrade, ()).with_timeout(OPENING);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, work: Work) {
        self.queue.push_back(work);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol, ..
            }) => self.on_opened(protocol),
            ConnectionEvent::DialUpgradeError(error) => {
                tracing::debug!(error = %error.error, "no stream to tell what is provided");
                self.failed.extend(self.opening.take().map(|work| work.id));
            }
            // The upgrade of inbound streams is impossible.
            _ => {}
        }
    }
}
