//! Writing an archive: a tree in depth-first order.

use std::{
    collections::HashSet,
    ffi::OsStr,
    hash::{BuildHasher, RandomState},
    os::unix::ffi::OsStrExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use tokio::sync::OnceCell;

use super::CarFailure;
use crate::{
    content::{
        Block, BlockError, ByteRange, Codec, ContentId, MAX_BLOCK_LEN, Multihash, Node as DagNode,
        car_header, car_section_head, links_of,
    },
    download::{FileHandle, ReaderId},
    node::{Node, NodeError},
};

/// Bytes that are given at once, where blocks are small.
const PIECE: usize = 256 << 10;

/// Readers of exports are numbered from here: above the file handles of the mount, below those of the control interface.
static NEXT_READER: AtomicU64 = AtomicU64::new(1 << 62);

impl Node {
    /// An archive of all below `id`, piece by piece. What is not here is fetched from the sources of `root`, the content
    /// that it was reached through, unless `offline`.
    pub fn export_car(
        &self,
        root: ContentId,
        id: ContentId,
        offline: bool,
    ) -> impl Stream<Item = Result<Bytes, CarFailure>> + Send + use<> {
        let export = Export {
            node: self.clone(),
            root,
            offline,
            out: BytesMut::from(&car_header(&[id])[..]),
            open: vec![Step { id, file: None, range: ByteRange::new(0, 0) }],
            seen: HashSet::new(),
            keys: (RandomState::new(), RandomState::new()),
        };
        stream::try_unfold(export, |mut export| async move {
            Ok(export.piece().await?.map(|piece| (piece, export)))
        })
    }

    /// Where a path below a root leads, as far as this node knows without the network.
    ///
    /// # Errors
    /// [`CarFailure::Missing`] when a block on the way is not here, [`NodeError::NoEntry`] when the name is not.
    pub fn walk_now(
        &self,
        root: &ContentId,
        path: impl AsRef<OsStr>,
    ) -> Result<ContentId, CarFailure> {
        let mut at = *root;
        let names = path.as_ref().as_bytes().split(|byte| *byte == b'/');
        for name in names.filter(|name| !name.is_empty()).map(OsStr::from_bytes) {
            let entry = self.child_now(&at, name).ok_or(CarFailure::Missing(at))??;
            let no_entry = || NodeError::NoEntry { dir: at, path: name.display().to_string() };
            at = entry.ok_or_else(no_entry)?.cid;
        }
        Ok(at)
    }
}

/// A block that is to be written.
struct Step {
    id: ContentId,
    /// The file that it is a part of, unless it is its root.
    file: Option<Arc<Reading>>,
    /// Bytes of that file that it holds.
    range: ByteRange,
}

/// A file of which something may have to be fetched: in order, through a window, as any reader does.
struct Reading {
    id: ContentId,
    reader: ReaderId,
    handle: OnceCell<FileHandle>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.get() {
            handle.close_reader(self.reader);
        }
    }
}

struct Export {
    node: Node,
    root: ContentId,
    offline: bool,
    out: BytesMut,
    open: Vec<Step>,
    /// Blocks that are out, by 128 bits under keys that nobody knows.
    seen: HashSet<(u64, u64)>,
    keys: (RandomState, RandomState),
}

impl Export {
    async fn piece(&mut self) -> Result<Option<Bytes>, CarFailure> {
        while self.out.len() < PIECE {
            let Some(step) = self.open.pop() else { break };
            if self.is_new(step.id.hash()) {
                self.write(step).await?;
            }
        }
        Ok((!self.out.is_empty()).then(|| self.out.split().freeze()))
    }

    fn is_new(&mut self, hash: &Multihash) -> bool {
        self.seen.insert((self.keys.0.hash_one(hash), self.keys.1.hash_one(hash)))
    }

    async fn write(&mut self, step: Step) -> Result<(), CarFailure> {
        if matches!(step.id.codec(), Codec::Other(_)) {
            return Err(CarFailure::Opaque(step.id));
        }
        let block = self.block(&step).await?;
        // An id that carries its content is a block of its own nowhere.
        if step.id.inline_content().is_none() {
            self.out.extend_from_slice(&car_section_head(&step.id, block.data().len()));
            self.out.extend_from_slice(block.data());
        }
        let Ok(DagNode::File { children, .. }) = DagNode::decode(&block) else {
            let links = links_of(&block).map_err(NodeError::from)?;
            let below = |id| Step { id, file: None, range: ByteRange::new(0, 0) };
            self.open.extend(links.into_iter().rev().map(below));
            return Ok(());
        };
        if children.is_empty() {
            return Ok(());
        }
        let file = step.file.unwrap_or_else(|| {
            let reader = ReaderId(NEXT_READER.fetch_add(1, Ordering::Relaxed));
            Arc::new(Reading { id: step.id, reader, handle: OnceCell::new() })
        });
        for (id, range) in children.into_iter().rev() {
            let range = ByteRange::at(step.range.start + range.start, range.len());
            self.open.push(Step { id, file: Some(file.clone()), range });
        }
        Ok(())
    }

    /// The block, verified once more.
    async fn block(&self, step: &Step) -> Result<Block, CarFailure> {
        let id = &step.id;
        let store = self.node.store();
        if let Some(block) = store.block(id)? {
            match Block::verify(*id, block.data().clone()) {
                Ok(block) => return Ok(block),
                // What is wrong is fetched again.
                Err(BlockError::WrongHash(_)) => store.withdraw(id)?,
                Err(other) => return Err(CarFailure::Wrong(other)),
            }
        }
        if self.offline {
            return Err(CarFailure::Missing(*id));
        }
        let block = match &step.file {
            // A leaf, or a node above few of them: the bytes go to their place in the file.
            Some(file) if !step.range.is_empty() && step.range.len() <= MAX_BLOCK_LEN as u64 => {
                let open = || self.node.engine().file(&self.root, &file.id);
                let handle = file.handle.get_or_try_init(open).await?;
                handle.read(file.reader, step.range).await?;
                store.block(id)?.ok_or(CarFailure::Missing(*id))?
            }
            _ => self.node.engine().node(&self.root, id).await?,
        };
        Block::verify(*id, block.data().clone()).map_err(CarFailure::Wrong)
    }
}
