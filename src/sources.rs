//! Where blocks come from: one trait over Bitswap peers, HTTP gateways and swarms.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::content::{Block, ByteRange, ContentId};

mod bitswap;
mod desk;
mod finders;
mod hearsay;
mod http;
mod per_root;
mod queue;
mod swarm;

pub use bitswap::BitswapFinder;
pub use finders::Finders;
pub use hearsay::Hearsay;
pub use http::{GatewayUrl, HttpFinder, HttpOptions, ProxyUrl, UrlError, Webseeds};
pub use swarm::{EngineReads, SwarmFile, SwarmFinder, SwarmPlaces};

/// Names a source for ever: a peer id, a URL. Reputation is kept under it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct SourceId(pub Arc<str>);

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What sort of source it is; the scheduler takes its limits from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// A chiral node over Bitswap: deep pipelines.
    Chiral,
    /// Any other Bitswap peer: about 1 MiB per round trip, whatever is asked.
    Bitswap,
    /// An HTTP gateway: gives many blocks for one request where they follow each other in a file.
    Gateway,
    /// A swarm: reads bytes of a torrent's file, which come in pieces.
    Swarm,
}

/// Told when somebody wants a root to be searched for once more.
type Again = watch::Sender<()>;

/// One block that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The block.
    pub id: ContentId,
    /// The content that it was reached through.
    pub root: ContentId,
    /// The file that it is a part of; sources that fetch whole ranges use it.
    pub file: ContentId,
    /// The bytes of the file that it holds; none where that is not known.
    pub range: ByteRange,
}

/// What became of a want.
#[derive(Debug)]
pub struct Reply {
    /// Who was asked.
    pub source: SourceId,
    /// For what.
    pub id: ContentId,
    /// What came.
    pub result: Result<Block, SourceError>,
}

/// Why a source did not give a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Worth another try, here or elsewhere.
    #[error(transparent)]
    Transient(#[from] Transient),
    /// No use asking this source again for this block.
    #[error(transparent)]
    Permanent(#[from] Permanent),
}

/// Failures that may pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Transient {
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The connection broke.
    #[error("the connection closed")]
    Reset,
    /// The source is at its limit.
    #[error("the source is busy")]
    Busy,
    /// The source asked to wait.
    #[error("the source asks to wait {0:?}")]
    RateLimited(Duration),
}

/// Failures that will not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Permanent {
    /// The source does not have the block.
    #[error("the source does not have it")]
    NotFound,
    /// The bytes hash to something else; the source is banned.
    #[error("the source sent wrong bytes")]
    BadHash,
    /// The source refuses.
    #[error("the source refuses: {0}")]
    Rejected(String),
}

/// Somebody who may have blocks.
pub trait Source: fmt::Debug + Send + Sync {
    /// Its lasting name.
    fn id(&self) -> &SourceId;
    /// What sort it is.
    fn kind(&self) -> SourceKind;
    /// Asks for blocks in this order. Never waits; each want gets exactly one reply unless it is cancelled.
    fn request(&self, wants: &[Want], replies: &mpsc::UnboundedSender<Reply>);
    /// Gives up wants; a reply may still be on its way.
    fn cancel(&self, ids: &[ContentId]);
    /// Which of `ids` it has; unknown counts as not.
    fn has(&self, ids: Vec<ContentId>) -> BoxFuture<'static, Vec<bool>>;
    /// Shuts the source out: it sent wrong bytes.
    fn ban(&self, for_time: Duration);
}

/// News about who may have a content.
#[derive(Clone, Debug)]
pub enum Found {
    /// Ask this one. Told again when its kind changed.
    Source(Arc<dyn Source>),
    /// This one is gone.
    Gone(SourceId),
    /// Everybody was asked once; more may still come.
    Searched,
}

/// Finds sources for a content.
pub trait Finder: fmt::Debug + Send + Sync {
    /// Searches until the receiver is dropped: those that are connected at once, then those that the DHT names.
    fn find(&self, root: &ContentId) -> mpsc::Receiver<Found>;
    /// Has the running search for `root` ask around once more now, unless it is asking already: somebody waits, and
    /// those who were found give nothing.
    fn ask_again(&self, _root: &ContentId) {}
    /// A block is in the store from now on: others who wait for it can be given it. Called for each block that is
    /// kept, so that it must be cheap while nobody waits, and must not wait itself.
    fn arrived(&self, _block: &ContentId) {}
}
