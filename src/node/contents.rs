//! Content of IPFS as a protocol: the node's own store, engine and network.

use std::{collections::HashMap, ffi::OsStr, fs::File, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

use super::{
    Child, Children, Described, Here, Known, Node, NodeError, OpenFile, PinState, Place, Protocol,
    Resolved, Root, Selection, Unshown,
};
use crate::{
    content::{ByteRange, Codec, ContentId, Entry, EntryKind, NodeKind, Omissions},
    download::{FileHandle, ReaderId},
    store::Pin,
    torrent::Cached,
};

impl From<&Resolved> for Described {
    fn from(resolved: &Resolved) -> Self {
        let Resolved { id: _, kind, size, meta, target } = resolved;
        Self { kind: *kind, size: *size, meta: *meta, target: target.clone() }
    }
}

/// The ids of a place, which is one of content.
fn ids(place: &Place) -> Result<(&ContentId, &ContentId), NodeError> {
    match place {
        Place::Content { root, id } => Ok((root, id)),
        Place::Torrent { hash, .. } => Err(NodeError::NoProtocol(hash.to_string())),
    }
}

/// The entries of a directory with the root of its path.
struct Entries {
    root: ContentId,
    entries: Arc<Vec<Entry>>,
    omitted: Omissions,
}

impl Children for Entries {
    fn count(&self) -> usize {
        self.entries.len()
    }

    fn child(&self, at: usize) -> Option<Child<'_>> {
        let entry = self.entries.get(at)?;
        let kind = match entry.kind() {
            EntryKind::File => Some(NodeKind::File),
            EntryKind::Unknown => None,
        };
        let place = Place::Content { root: self.root, id: entry.cid };
        Some(Child { name: &entry.name, place, kind })
    }

    fn unshown(&self) -> (Vec<Unshown>, usize) {
        let listed = self.omitted.listed();
        let told = listed.iter().map(|omitted| Unshown {
            name: omitted.name.clone(),
            cid: Some(omitted.cid),
            why: omitted.why.to_owned(),
        });
        (told.collect(), self.omitted.count() - listed.len())
    }
}

impl Protocol for Node {
    fn name(&self) -> &'static str {
        "ipfs"
    }

    fn owns(&self, place: &Place) -> bool {
        matches!(place, Place::Content { .. })
    }

    fn supports(&self, root: &Root) -> Option<Place> {
        match root {
            Root::Content(id) => Some(Place::Content { root: *id, id: *id }),
            Root::Torrent(_) => None,
        }
    }

    fn resolve_now(&self, place: &Place) -> Known<Described> {
        let id = match ids(place) {
            Ok((_, id)) => id,
            Err(error) => return Some(Err(error)),
        };
        let known = Self::resolve_now(self, id)?;
        Some(known.map(|resolved| Described::from(&*resolved)))
    }

    fn resolve<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Described, NodeError>> {
        async move {
            let (root, id) = ids(place)?;
            Ok(Described::from(&*Self::resolve(self, root, id).await?))
        }
        .boxed()
    }

    fn seek(&self, places: &[Place], waited: Duration) {
        let mut by_root: HashMap<ContentId, Vec<ContentId>> = HashMap::new();
        for (root, id) in places.iter().filter_map(|place| ids(place).ok()) {
            by_root.entry(*root).or_default().push(*id);
        }
        for (root, ids) in &by_root {
            self.engine().seek(root, ids, waited);
        }
    }

    fn list<'a>(&'a self, dir: &'a Place) -> BoxFuture<'a, Result<Arc<dyn Children>, NodeError>> {
        async move {
            let (root, id) = ids(dir)?;
            let entries = Self::list(self, root, id).await?;
            let omitted = self.omitted_of(id)?;
            Ok(Arc::new(Entries { root: *root, entries, omitted }) as Arc<dyn Children>)
        }
        .boxed()
    }

    fn child_now(&self, dir: &Place, name: &OsStr) -> Known<Option<Place>> {
        let (root, id) = match ids(dir) {
            Ok(ids) => ids,
            Err(error) => return Some(Err(error)),
        };
        let known = Self::child_now(self, id, name)?;
        Some(known.map(|entry| below(root, entry)))
    }

    fn child<'a>(
        &'a self,
        dir: &'a Place,
        name: &'a OsStr,
    ) -> BoxFuture<'a, Result<Option<Place>, NodeError>> {
        async move {
            let (root, id) = ids(dir)?;
            Ok(below(root, Self::child(self, root, id, name).await?))
        }
        .boxed()
    }

    fn open_now(&self, file: &Place) -> Known<Arc<dyn OpenFile>> {
        let (root, id) = match ids(file) {
            Ok(ids) => ids,
            Err(error) => return Some(Err(error)),
        };
        let opened = Self::open_now(self, root, id)?;
        Some(opened.map(|file| Arc::new(file) as Arc<dyn OpenFile>))
    }

    fn open<'a>(&'a self, file: &'a Place) -> BoxFuture<'a, Result<Arc<dyn OpenFile>, NodeError>> {
        async move {
            let (root, id) = ids(file)?;
            Ok(Arc::new(Self::open(self, root, id).await?) as Arc<dyn OpenFile>)
        }
        .boxed()
    }

    fn cached(&self, file: &Place) -> Result<Cached, NodeError> {
        let (_, id) = ids(file)?;
        if let Some(content) = id.inline_content() {
            return Ok(Cached { bytes: content.len() as u64, allocated: 0, complete: true });
        }
        if let Some(object) = self.store().object(id)? {
            // `upload`, or the torrent that it came with, shows what its owner takes.
            let owned = self.store().is_owned(object.id())?;
            return Ok(Cached {
                bytes: object.present().bytes(),
                allocated: if owned { 0 } else { object.allocated() },
                complete: object.is_complete(),
            });
        }
        // A small file that nobody has opened lies in the index.
        let len = if id.codec() == Codec::Raw { self.store().block_len(id)? } else { None };
        Ok(len.map_or_else(Cached::default, |len| Cached {
            bytes: len as u64,
            allocated: len as u64,
            complete: true,
        }))
    }

    fn here_at(&self, place: &Place) -> Result<Here, NodeError> {
        self.here(ids(place)?.1)
    }

    fn pin(&self, place: &Place, name: String, _only: Option<Selection>) -> Result<(), NodeError> {
        let (_, id) = ids(place)?;
        Ok(self.store().pin(Pin { root: *id, name })?)
    }

    fn unpin<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<bool, NodeError>> {
        async move { self.unpin_content(ids(place)?.1) }.boxed()
    }

    fn pins(&self) -> Result<Vec<PinState>, NodeError> {
        self.pinned_contents()
    }

    fn fetch<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<(), NodeError>> {
        async move { self.fetch_content(ids(place)?.1).await }.boxed()
    }

    /// Blocks are given to whoever asks; this tells the DHT of them.
    fn seed<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<String, NodeError>> {
        async move {
            let (root, id) = ids(place)?;
            Self::resolve(self, root, id).await?;
            self.net().announce(id)?;
            Ok(id.to_v1().to_string())
        }
        .boxed()
    }
}

fn below(root: &ContentId, entry: Option<Entry>) -> Option<Place> {
    entry.map(|entry| Place::Content { root: *root, id: entry.cid })
}

impl OpenFile for FileHandle {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn read_now(&self, reader: ReaderId, range: ByteRange) -> Known<Bytes> {
        Some(Self::read_now(self, reader, range)?.map_err(NodeError::from))
    }

    fn read(&self, reader: ReaderId, range: ByteRange) -> BoxFuture<'_, Result<Bytes, NodeError>> {
        async move { Ok(Self::read(self, reader, range).await?) }.boxed()
    }

    fn close_reader(&self, reader: ReaderId) {
        Self::close_reader(self, reader);
    }

    fn backing(&self) -> Result<Option<(Arc<File>, u64)>, NodeError> {
        let object = self.object();
        Ok(object.backing()?.map(|file| (file, object.id().0)))
    }
}
