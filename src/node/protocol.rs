//! One trait over everything that an id can lead to, so that the mount and the command line treat all of it alike.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    os::unix::ffi::OsStrExt,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{Here, Node, NodeError, PinState, Root, reading::next_reader};
use crate::{
    content::{ByteRange, Codec, ContentId, InfoHash, Metadata, NodeKind},
    download::ReaderId,
    torrent::{Cached, Selection},
};

/// What is known without the network: none when something that is not here decides.
pub type Known<T> = Option<Result<T, NodeError>>;

/// A file or directory in the tree of an id.
#[allow(
    clippy::large_enum_variant,
    reason = "most places are the larger one; a box would be an allocation for each name of a listing"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Content of IPFS.
    Content {
        /// The id at the top of the path, whose providers are asked.
        root: ContentId,
        /// The id of the place.
        id: ContentId,
    },
    /// A node of a torrent's tree.
    Torrent {
        /// The torrent.
        hash: InfoHash,
        /// The node; 0 is the torrent itself.
        node: u32,
    },
}

impl Place {
    /// The content that is there, where it is content of IPFS.
    pub fn content(&self) -> Option<&ContentId> {
        match self {
            Self::Content { id, .. } => Some(id),
            Self::Torrent { .. } => None,
        }
    }

    /// The torrent that it is in.
    pub fn torrent(&self) -> Option<InfoHash> {
        match self {
            Self::Content { .. } => None,
            Self::Torrent { hash, .. } => Some(*hash),
        }
    }

    /// What it can only be, as long as nothing of it is here.
    pub fn sure_kind(&self) -> Option<NodeKind> {
        match self {
            Self::Content { id, .. } => (id.codec() == Codec::Raw).then_some(NodeKind::File),
            // Also one with a single file is a directory.
            Self::Torrent { node, .. } => (*node == 0).then_some(NodeKind::Directory),
        }
    }
}

/// What is at a place.
#[derive(Clone, Debug)]
pub struct Described {
    /// File, directory (sharded ones say [`NodeKind::Directory`] too) or symlink.
    pub kind: NodeKind,
    /// Bytes of a file, length of a symlink's target, 0 of a directory.
    pub size: u64,
    /// Mode and mtime where they are known.
    pub meta: Metadata,
    /// Target of a symlink.
    pub target: Option<OsString>,
}

/// One name of a directory.
#[derive(Clone, Copy, Debug)]
pub struct Child<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// Where it leads.
    pub place: Place,
    /// What it is, when the directory tells.
    pub kind: Option<NodeKind>,
}

/// All names of a directory, sorted.
pub trait Children: Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;
    /// One of them.
    fn child(&self, at: usize) -> Option<Child<'_>>;
    /// Entries that cannot be shown, and the count of those beyond the list.
    fn unshown(&self) -> (Vec<Unshown>, usize);
}

/// Something in a directory that cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unshown {
    /// Its name, which may be that of no file.
    pub name: OsString,
    /// CID that the entry leads to, where it has one.
    pub cid: Option<ContentId>,
    /// Why it cannot be shown.
    pub why: String,
}

/// An open file, whole or being fetched.
pub trait OpenFile: fmt::Debug + Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;
    /// The bytes if all are here; never waits for the network. Moves the window of the reader.
    fn read_now(&self, reader: ReaderId, range: ByteRange) -> Known<Bytes>;
    /// The bytes, fetched where they are missing. Dropping the future leaves nothing behind.
    fn read(&self, reader: ReaderId, range: ByteRange) -> BoxFuture<'_, Result<Bytes, NodeError>>;
    /// Forgets the window of a reader that closed its handle.
    fn close_reader(&self, reader: ReaderId);
    /// The file on disk when all of it is here and will not change, and a number that no other file of the same place
    /// has.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn backing(&self) -> Result<Option<(Arc<File>, u64)>, NodeError>;
}

/// A kind of ids, and the network that their content comes from.
///
/// Each implementation is given only places that are its own.
pub trait Protocol: Send + Sync {
    /// What it is called.
    fn name(&self) -> &'static str;
    /// Returns whether a place is one of its own.
    fn owns(&self, place: &Place) -> bool;
    /// The place that an id leads to, if it is one of this kind. What the id says besides is kept for the search.
    fn supports(&self, root: &Root) -> Option<Place>;
    /// What is at a place, without the network.
    fn resolve_now(&self, place: &Place) -> Known<Described>;
    /// What is at a place; ends after the lookup timeout, while the search goes on.
    fn resolve<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Described, NodeError>>;
    /// Looks for what is at places that a caller is about to resolve, on behalf of one that has waited for `waited`
    /// already: all of them share one timeout.
    fn seek(&self, places: &[Place], waited: Duration);
    /// All names of a directory.
    fn list<'a>(&'a self, dir: &'a Place) -> BoxFuture<'a, Result<Arc<dyn Children>, NodeError>>;
    /// One name of a directory, without the network.
    fn child_now(&self, dir: &Place, name: &OsStr) -> Known<Option<Place>>;
    /// One name of a directory.
    fn child<'a>(
        &'a self,
        dir: &'a Place,
        name: &'a OsStr,
    ) -> BoxFuture<'a, Result<Option<Place>, NodeError>>;
    /// Opens a file, without the network.
    fn open_now(&self, file: &Place) -> Known<Arc<dyn OpenFile>>;
    /// Opens a file.
    fn open<'a>(&'a self, file: &'a Place) -> BoxFuture<'a, Result<Arc<dyn OpenFile>, NodeError>>;
    /// How much of a file is here; bytes of disk only where no other file of the mount shows them, so that `du` counts
    /// them once. May wait for the disk.
    ///
    /// # Errors
    /// When the disk fails.
    fn cached(&self, file: &Place) -> Result<Cached, NodeError>;
    /// How much of a file, or of a directory with all below it, is here. May wait for the disk.
    ///
    /// # Errors
    /// When the disk fails.
    fn here_at(&self, place: &Place) -> Result<Here, NodeError>;
    /// Keeps a file, or a directory with all below it, from now on. `name` is for people; `only` names files of a torrent
    /// where not all of them are kept.
    ///
    /// # Errors
    /// When it does not exist, or the disk fails.
    fn pin(&self, place: &Place, name: String, only: Option<Selection>) -> Result<(), NodeError>;
    /// Stops keeping it; whether it was kept.
    fn unpin<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<bool, NodeError>>;
    /// All that is kept, with whether all of it is here. May wait for the disk.
    ///
    /// # Errors
    /// When the disk fails.
    fn pins(&self) -> Result<Vec<PinState>, NodeError>;
    /// Fetches a file, or a directory with all below it, to its end.
    fn fetch<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<(), NodeError>>;
    /// Gives it to others from now on; a link that leads to it.
    fn seed<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<String, NodeError>>;
}

impl Node {
    /// Everything that ids can be of.
    pub fn protocols(&self) -> [&dyn Protocol; 2] {
        [self, self.torrents()]
    }

    /// The protocol of a place.
    pub fn protocol(&self, place: &Place) -> &dyn Protocol {
        match place {
            Place::Content { .. } => self,
            Place::Torrent { .. } => self.torrents(),
        }
    }

    /// The place that an id leads to.
    ///
    /// # Errors
    /// [`NodeError::NoProtocol`].
    pub fn place(&self, root: &Root) -> Result<Place, NodeError> {
        let found = self.protocols().iter().find_map(|protocol| protocol.supports(root));
        found.ok_or_else(|| NodeError::NoProtocol(root.to_string()))
    }

    /// Where a path below an id leads. Symlinks are not followed.
    ///
    /// # Errors
    /// [`NodeError::NoName`], or as the protocol.
    pub async fn walk_to(
        &self,
        root: &Root,
        path: impl AsRef<OsStr>,
    ) -> Result<(Place, Described), NodeError> {
        let mut at = self.place(root)?;
        let names = path.as_ref().as_bytes().split(|byte| *byte == b'/');
        for name in names.filter(|name| !name.is_empty()).map(OsStr::from_bytes) {
            let child = self.protocol(&at).child(&at, name).await?;
            at = child.ok_or_else(|| NodeError::NoName {
                root: root.to_string(),
                name: name.display().to_string(),
            })?;
        }
        let described = self.protocol(&at).resolve(&at).await?;
        Ok((at, described))
    }
}

/// Bytes per read of those who go through a range.
const READ_LEN: u64 = 1 << 20;

/// A reader that goes through a range of a file once; its window is forgotten when it is dropped.
#[derive(Debug)]
pub struct Passage {
    file: Arc<dyn OpenFile>,
    reader: ReaderId,
    left: ByteRange,
}

impl Passage {
    /// A reader at the beginning of a range, which ends within the file.
    pub fn new(file: Arc<dyn OpenFile>, left: ByteRange) -> Self {
        Self { file, reader: next_reader(), left }
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// As [`OpenFile::read`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, NodeError> {
        let range = self.left.intersect(ByteRange::at(self.left.start, READ_LEN));
        if range.is_empty() {
            return Ok(None);
        }
        let bytes = match self.file.read_now(self.reader, range) {
            Some(read) => read?,
            None => self.file.read(self.reader, range).await?,
        };
        self.left = ByteRange::new(range.end, self.left.end);
        Ok(Some(bytes))
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.file.close_reader(self.reader);
    }
}
