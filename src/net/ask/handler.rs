//! One connection: opens a stream for each question, and answers those of the other side.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    AsyncWriteExt as _,
    future::{Ready, ready},
};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::upgrade::{InboundUpgrade, ReadyUpgrade, UpgradeInfo},
    multiaddr::Protocol,
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, ConnectionId, SubstreamProtocol,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::{
    ASKING, AskError, Asks, TorrentTold,
    wire::{self, Answer, MAX_ANSWER, MAX_QUESTION, Question},
};

pub(in crate::net) const PROTOCOL: StreamProtocol = StreamProtocol::new("/chiral/torrent/1.0.0");
/// Questions of one connection that are answered at a time; whoever asks more is refused. A node of ours asks so many.
const AT_ONCE: usize = 8;
/// How long a stream may take to be negotiated.
const OPENING: Duration = Duration::from_secs(10);
/// How long the other side may take to ask, and to take its answer.
const ANSWERING: Duration = Duration::from_secs(10);

/// A question that is to be asked.
#[derive(Debug)]
pub(in crate::net) struct Work {
    pub(super) question: Vec<u8>,
    pub(super) reply: oneshot::Sender<Result<TorrentTold, AskError>>,
}

/// The protocol, or none: what the other side may open.
#[derive(Clone, Debug)]
pub(in crate::net) struct Offer(Option<StreamProtocol>);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = std::option::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

/// The handler of one connection; none of one over a relay, on which nothing is asked or answered.
pub(in crate::net) struct Handler(Option<Active>);

struct Active {
    asks: Arc<Asks>,
    peer: PeerId,
    connection: ConnectionId,
    /// The host at the other end.
    from: Option<IpAddr>,
    work: mpsc::UnboundedReceiver<Work>,
    /// Streams are opened one after the other: a new one does not say which it is.
    opening: Option<Work>,
    /// A permit for each question that is answered.
    answering: Arc<Semaphore>,
}

impl Handler {
    pub(super) fn new(
        asks: Arc<Asks>,
        peer: PeerId,
        connection: ConnectionId,
        remote: &Multiaddr,
    ) -> Self {
        let work = asks.connected(peer, connection);
        let from = remote.iter().next().and_then(|part| match part {
            Protocol::Ip4(ip) => Some(IpAddr::from(ip)),
            Protocol::Ip6(ip) => Some(ip.to_canonical()),
            _ => None,
        });
        let (opening, answering) = (None, Arc::new(Semaphore::new(AT_ONCE)));
        Self(Some(Active { asks, peer, connection, from, work, opening, answering }))
    }

    /// Of a connection over a relay.
    pub(super) fn relayed() -> Self {
        Self(None)
    }
}

impl Active {
    fn on_outbound(&mut self, stream: Stream) {
        let Some(Work { question, reply }) = self.opening.take() else { return };
        let (asks, peer, from) = (self.asks.clone(), self.peer, self.from);
        let cancelled = self.asks.tasks.cancelled();
        self.asks.tasks.spawn("torrent question", async move {
            let asked = tokio::select! {
                asked = timeout(ASKING, ask(stream, &question)) => asked,
                () = cancelled => return,
            };
            let told = asked.unwrap_or(Err(AskError::Late)).map(|answer| {
                asks.heard(peer, answer.dealings);
                TorrentTold { answer: answer.said, from }
            });
            // Whoever asked may have given up.
            let _ = reply.send(told);
        });
    }

    fn on_inbound(&self, stream: Stream) {
        // Dropping a stream resets it. Waiting for a permit would hold up the connection instead.
        let Ok(permit) = self.answering.clone().try_acquire_owned() else { return };
        let (asks, peer) = (self.asks.clone(), self.peer);
        let cancelled = self.asks.tasks.cancelled();
        self.asks.tasks.spawn("torrent answer", async move {
            let _permit = permit;
            let answered = tokio::select! {
                answered = timeout(ANSWERING, answer(&asks, peer, stream)) => answered,
                () = cancelled => return,
            };
            match answered {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a question is not answered"),
                Err(_) => tracing::debug!(%peer, "a question or its answer took too long"),
            }
        });
    }
}

async fn ask(mut stream: Stream, question: &[u8]) -> Result<Answer, AskError> {
    let asking = async {
        stream.write_all(question).await?;
        stream.close().await?;
        wire::read(&mut stream, MAX_ANSWER).await
    };
    let read = asking.await.map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => AskError::Malformed(error.to_string()),
        _ => AskError::Refused(error.to_string()),
    })?;
    Answer::decode(read).map_err(|error| AskError::Malformed(error.to_string()))
}

async fn answer(asks: &Arc<Asks>, peer: PeerId, mut stream: Stream) -> io::Result<()> {
    let question = wire::read(&mut stream, MAX_QUESTION).await?;
    let question = Question::decode(question).map_err(io::Error::other)?;
    if !asks.budget.question(peer) {
        return Err(io::Error::other("it asks too often"));
    }
    asks.heard(peer, question.dealings);
    // Held until the answer is taken, so that only so many are in memory.
    let Ok(_one) = asks.answers.acquire().await else { return Ok(()) };
    let book = super::guard(&asks.book).clone();
    let Some(book) = book else { return Err(io::Error::other("nobody answers yet")) };
    let asked = question.asked;
    let looking = asks.tasks.blocking("torrent book", move || book.answer(&asked));
    let mut said = looking.await.map_err(io::Error::other)?;
    let affordable = |info: &Bytes| asks.budget.description(peer, info.len());
    said.info = said.info.filter(affordable);
    let answer = Answer { said, dealings: asks.dealings(peer) };
    stream.write_all(&answer.encode()).await?;
    stream.close().await
}

impl Drop for Active {
    fn drop(&mut self) {
        self.asks.disconnected(self.peer, self.connection);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(self.0.as_ref().map(|_| PROTOCOL)), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.0.as_ref().is_some_and(|active| active.opening.is_some())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, (), Infallible>> {
        let Some(active) = &mut self.0 else { return Poll::Pending };
        if active.opening.is_none()
            && let Poll::Ready(Some(work)) = active.work.poll_recv(cx)
        {
            active.opening = Some(work);
            let upgrade = ReadyUpgrade::new(PROTOCOL);
            let protocol = SubstreamProtocol::new(upgrade, ()).with_timeout(OPENING);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Offer, ReadyUpgrade<StreamProtocol>>,
    ) {
        let Some(active) = &mut self.0 else { return };
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol, ..
            }) => active.on_inbound(protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol, ..
            }) => active.on_outbound(protocol),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                if let Some(work) = active.opening.take() {
                    // Whoever asked may have given up.
                    let _ = work.reply.send(Err(AskError::Refused(error.to_string())));
                }
            }
            _ => {}
        }
    }
}
