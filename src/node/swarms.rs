//! Torrents as a protocol.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

use super::{
    Child, Children, Described, Here, Known, Node, NodeError, OpenFile, PinState, Place, Protocol,
    Root, Unshown, reading::next_reader,
};
use crate::{
    content::{ByteRange, ContentId, InfoHash, Metadata, NodeKind},
    download::ReaderId,
    torrent::{
        Cached, FileKind, Metainfo, Selection, TorrentError, TorrentFile, TorrentPin, Torrents,
        TreeKind, TreeNode,
    },
};

/// Nothing in a torrent has another file under the same number.
const ONLY_VERSION: u64 = 1;

/// The torrent and the node of a place, which is one of a torrent.
fn ids(place: &Place) -> Result<(InfoHash, u32), NodeError> {
    match place {
        Place::Torrent { hash, node } => Ok((*hash, *node)),
        Place::Content { id, .. } => Err(NodeError::NoProtocol(id.to_string())),
    }
}

/// The names of a directory of a torrent.
struct Names {
    metainfo: Arc<Metainfo>,
    node: u32,
    names: Vec<(OsString, u32)>,
}

impl Children for Names {
    fn count(&self) -> usize {
        self.names.len()
    }

    fn child(&self, at: usize) -> Option<Child<'_>> {
        let (name, node) = self.names.get(at)?;
        let kind = self.metainfo.node(*node).map(kind_of);
        Some(Child { name, place: Place::Torrent { hash: self.metainfo.hash, node: *node }, kind })
    }

    fn unshown(&self) -> (Vec<Unshown>, usize) {
        let here = self.metainfo.path_of(self.node);
        let links = self.metainfo.links.iter().filter_map(|path| {
            let (name, parents) = path.split_last()?;
            // One whose directory has nothing else is told of above it.
            let shown = parents.iter().map(OsString::as_os_str);
            let rest = shown.collect::<PathBuf>();
            let nearest = self.metainfo.nearest(&rest);
            (nearest == here).then(|| Unshown {
                name: rest.strip_prefix(&here).unwrap_or(&rest).join(name).into_os_string(),
                cid: None,
                why: "it is a symbolic link".to_owned(),
            })
        });
        (links.collect(), 0)
    }
}

fn kind_of(node: &TreeNode) -> NodeKind {
    match node.what {
        TreeKind::Directory(_) => NodeKind::Directory,
        TreeKind::File(_) => NodeKind::File,
    }
}

fn node_of(metainfo: &Metainfo, node: u32) -> Result<&TreeNode, NodeError> {
    let hash = metainfo.hash;
    metainfo.node(node).ok_or_else(|| TorrentError::NoSuchFile { hash, file: node }.into())
}

fn described(metainfo: &Metainfo, node: u32) -> Result<Described, NodeError> {
    let found = node_of(metainfo, node)?;
    let file = match &found.what {
        TreeKind::File(file) => metainfo.files.get(*file as usize),
        TreeKind::Directory(_) => None,
    };
    let executable = matches!(file.map(|f| f.kind), Some(FileKind::Regular { executable: true }));
    Ok(Described {
        kind: kind_of(found),
        size: file.map_or(0, |file| file.range.len()),
        meta: Metadata { mode: executable.then_some(0o555), mtime: None },
        target: None,
    })
}

fn child_of(metainfo: &Metainfo, dir: u32, name: &OsStr) -> Result<Option<Place>, NodeError> {
    let hash = metainfo.hash;
    match &node_of(metainfo, dir)?.what {
        TreeKind::Directory(names) => {
            Ok(names.get(name).map(|node| Place::Torrent { hash, node: *node }))
        }
        TreeKind::File(_) => Err(TorrentError::NotADirectory(hash).into()),
    }
}

/// The number of the file at a node.
fn file_at(metainfo: &Metainfo, node: u32) -> Result<u32, NodeError> {
    match node_of(metainfo, node)?.what {
        TreeKind::File(file) => Ok(file),
        TreeKind::Directory(_) => Err(TorrentError::IsADirectory(metainfo.hash).into()),
    }
}

/// Asks what is known of a torrent.
fn known<T>(
    torrents: &Torrents,
    place: &Place,
    ask: impl FnOnce(&Metainfo, u32) -> Result<T, NodeError>,
) -> Known<T> {
    let (hash, node) = match ids(place) {
        Ok(ids) => ids,
        Err(error) => return Some(Err(error)),
    };
    let metainfo = torrents.metainfo_now(hash)?;
    Some(metainfo.map_err(NodeError::from).and_then(|metainfo| ask(&metainfo, node)))
}

impl Node {
    /// The id of what is at a place: of content always; of a file of a torrent that was made here, or once all of it was
    /// here and is hashed. What others say is not told. May read a file.
    pub fn id_at(&self, place: &Place) -> Option<ContentId> {
        if let Some(id) = place.content() {
            return Some(*id);
        }
        let number = |metainfo: &Metainfo, node| Ok((metainfo.hash, file_at(metainfo, node)?));
        let (hash, file) = known(self.torrents(), place, number)?.ok()?;
        match self.torrents().source(hash) {
            Some(source) => source.files.get(file as usize).copied(),
            None => self.content_found_here(hash, file),
        }
    }
}

fn opened(file: Result<TorrentFile, TorrentError>) -> Result<Arc<dyn OpenFile>, NodeError> {
    Ok(Arc::new(file?) as Arc<dyn OpenFile>)
}

impl Protocol for Torrents {
    fn name(&self) -> &'static str {
        "bittorrent"
    }

    fn owns(&self, place: &Place) -> bool {
        matches!(place, Place::Torrent { .. })
    }

    fn supports(&self, root: &Root) -> Option<Place> {
        let Root::Torrent(magnet) = root else { return None };
        self.learn(magnet);
        Some(Place::Torrent { hash: magnet.hash, node: 0 })
    }

    fn resolve_now(&self, place: &Place) -> Known<Described> {
        known(self, place, described)
    }

    fn resolve<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Described, NodeError>> {
        async move {
            let (hash, node) = ids(place)?;
            described(&*self.metainfo(hash).await?, node)
        }
        .boxed()
    }

    fn seek(&self, places: &[Place], waited: Duration) {
        for (hash, _) in places.iter().filter_map(|place| ids(place).ok()) {
            Self::seek(self, hash, waited);
        }
    }

    fn list<'a>(&'a self, dir: &'a Place) -> BoxFuture<'a, Result<Arc<dyn Children>, NodeError>> {
        async move {
            let (hash, node) = ids(dir)?;
            let metainfo = self.metainfo(hash).await?;
            let names = match &node_of(&metainfo, node)?.what {
                TreeKind::Directory(names) => names.clone().into_iter().collect(),
                TreeKind::File(_) => return Err(TorrentError::NotADirectory(hash).into()),
            };
            Ok(Arc::new(Names { metainfo, node, names }) as Arc<dyn Children>)
        }
        .boxed()
    }

    fn child_now(&self, dir: &Place, name: &OsStr) -> Known<Option<Place>> {
        known(self, dir, |metainfo, node| child_of(metainfo, node, name))
    }

    fn child<'a>(
        &'a self,
        dir: &'a Place,
        name: &'a OsStr,
    ) -> BoxFuture<'a, Result<Option<Place>, NodeError>> {
        async move {
            let (hash, node) = ids(dir)?;
            child_of(&*self.metainfo(hash).await?, node, name)
        }
        .boxed()
    }

    fn open_now(&self, file: &Place) -> Known<Arc<dyn OpenFile>> {
        let number = match known(self, file, file_at)? {
            Ok(number) => number,
            Err(error) => return Some(Err(error)),
        };
        let (hash, _) = ids(file).ok()?;
        self.file_now(hash, number).map(opened)
    }

    fn open<'a>(&'a self, file: &'a Place) -> BoxFuture<'a, Result<Arc<dyn OpenFile>, NodeError>> {
        async move {
            let (hash, node) = ids(file)?;
            let number = file_at(&*self.metainfo(hash).await?, node)?;
            opened(self.file(hash, number).await)
        }
        .boxed()
    }

    /// Of a directory: all below it.
    fn cached(&self, place: &Place) -> Result<Cached, NodeError> {
        let (hash, node) = ids(place)?;
        let Some(metainfo) = self.metainfo_now(hash).transpose()? else {
            return Ok(Cached::default());
        };
        node_of(&metainfo, node)?;
        let mut sum = Cached { complete: true, ..Cached::default() };
        for number in metainfo.files_below(node) {
            let Some(file) = self.file_now(hash, number).transpose()? else { continue };
            let cached = file.cached();
            sum.bytes += cached.bytes;
            sum.allocated += cached.allocated;
            sum.complete &= cached.complete;
        }
        Ok(sum)
    }

    fn here_at(&self, place: &Place) -> Result<Here, NodeError> {
        let (hash, node) = ids(place)?;
        let Some(metainfo) = self.metainfo_now(hash).transpose()? else {
            return Ok(Here::Nothing);
        };
        let cached = self.cached(place)?;
        // The names of a directory are here with the description.
        let directory = kind_of(node_of(&metainfo, node)?) == NodeKind::Directory;
        Ok(match (cached.complete, cached.bytes > 0 || directory) {
            (true, _) => Here::All,
            (false, true) => Here::Part,
            (false, false) => Here::Nothing,
        })
    }

    fn pin(&self, place: &Place, name: String, only: Option<Selection>) -> Result<(), NodeError> {
        let (hash, node) = ids(place)?;
        Ok(Self::pin(self, hash, TorrentPin { node, name, only })?)
    }

    fn unpin<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<bool, NodeError>> {
        async move {
            let (hash, node) = ids(place)?;
            Ok(Self::unpin(self, hash, node).await?)
        }
        .boxed()
    }

    fn pins(&self) -> Result<Vec<PinState>, NodeError> {
        let state = |(hash, pin): (InfoHash, TorrentPin)| {
            let place = Place::Torrent { hash, node: pin.node };
            let known = self.metainfo_now(hash).and_then(Result::ok);
            let path = known.map(|metainfo| metainfo.path_of(pin.node)).unwrap_or_default();
            let complete = self.is_pin_complete(hash, &pin)?;
            Ok(PinState { place, path, name: pin.name, only: pin.only, complete })
        };
        Self::pins(self).into_iter().map(state).collect()
    }

    fn fetch<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<(), NodeError>> {
        async move {
            let (hash, node) = ids(place)?;
            Ok(Self::fetch(self, hash, node, next_reader().0).await?)
        }
        .boxed()
    }

    fn seed<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<String, NodeError>> {
        async move { Ok(Self::seed(self, ids(place)?.0).await?.to_string()) }.boxed()
    }
}

impl OpenFile for TorrentFile {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn read_now(&self, reader: ReaderId, range: ByteRange) -> Known<Bytes> {
        Some(Self::read_now(self, reader.0, range)?.map_err(NodeError::from))
    }

    fn read(&self, reader: ReaderId, range: ByteRange) -> BoxFuture<'_, Result<Bytes, NodeError>> {
        async move { Ok(Self::read(self, reader.0, range).await?) }.boxed()
    }

    fn close_reader(&self, reader: ReaderId) {
        Self::close_reader(self, reader.0);
    }

    fn backing(&self) -> Result<Option<(Arc<File>, u64)>, NodeError> {
        Ok(Self::backing(self)?.map(|file| (file, ONLY_VERSION)))
    }
}
