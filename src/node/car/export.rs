//! Writing an archive: a tree in depth-first order.

use std::{
    collections::HashSet,
    ffi::OsStr,
    hash::{BuildHasher, RandomState},
    os::unix::ffi::OsStrExt,
    sync::{Arc, OnceLock},
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use tokio::sync::OnceCell;

use super::CarFailure;
use crate::{
    content::{
        Block, BlockError, ByteRange, Codec, ContentId, EntityBytes, MAX_BLOCK_LEN, Multihash,
        Node as DagNode, car_header, car_section_head, links_of,
    },
    download::{FileHandle, ReaderId},
    node::{Node, NodeError, reading::next_reader},
    store::{Object, StoreError},
};

/// Bytes that are given at once, where blocks are small.
const PIECE: usize = 256 << 10;

/// Bytes of neighbouring leaves that are read at once: four leaves of 256 KiB for one look at the file.
const RUN: u64 = 1 << 20;

/// Which blocks an archive holds of what its path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarScope {
    /// The first one.
    Block,
    /// Those of a file, of all or some of its bytes, or those that list a directory.
    Entity(Option<EntityBytes>),
    /// Everything below it.
    All,
}

/// What an archive holds, and how it is made.
#[derive(Clone, Debug)]
pub struct CarPlan {
    /// The content that `id` was reached through, whose sources are asked for what is not here.
    pub root: ContentId,
    /// Blocks on the way to `id`, which come first, in this order.
    pub way: Vec<ContentId>,
    /// Root of the archive.
    pub id: ContentId,
    /// Blocks of it.
    pub scope: CarScope,
    /// Whether a block is written wherever it is linked to, and not only once.
    pub duplicates: bool,
    /// Whether what is not here is fetched.
    pub fetch: bool,
    /// Whether what is here is hashed once more, instead of trusting the store.
    pub verify: bool,
}

impl Node {
    /// An archive of all below `id`, piece by piece, each block hashed once more. What is not here is fetched from the
    /// sources of `root`, the content that it was reached through, unless `offline`.
    pub fn export_car(
        &self,
        root: ContentId,
        id: ContentId,
        offline: bool,
    ) -> impl Stream<Item = Result<Bytes, CarFailure>> + Send + use<> {
        self.car(CarPlan {
            root,
            way: Vec::new(),
            id,
            scope: CarScope::All,
            duplicates: false,
            fetch: !offline,
            verify: true,
        })
    }

    /// An archive, piece by piece. The first piece ends with the block of `id`: a failure that comes before it leaves
    /// nothing behind.
    pub fn car(
        &self,
        plan: CarPlan,
    ) -> impl Stream<Item = Result<Bytes, CarFailure>> + Send + use<> {
        let below = match plan.scope {
            CarScope::Block => Below::Nothing,
            CarScope::Entity(_) => Below::Entity,
            CarScope::All => Below::All,
        };
        let mut open = vec![Step::new(plan.id, below)];
        open.extend(plan.way.iter().rev().map(|id| Step::new(*id, Below::Nothing)));
        let export = Export {
            node: self.clone(),
            out: BytesMut::from(&car_header(&[plan.id])[..]),
            until_root: open.len(),
            open,
            seen: HashSet::new(),
            keys: (RandomState::new(), RandomState::new()),
            plan,
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

/// What follows a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    Nothing,
    Entity,
    All,
}

/// A block that is to be written.
struct Step {
    id: ContentId,
    below: Below,
    /// The file that it is a part of, unless it is its root.
    file: Option<Arc<FileBlocks>>,
    /// Bytes of that file that it holds.
    range: ByteRange,
}

impl Step {
    fn new(id: ContentId, below: Below) -> Self {
        Self { id, below, file: None, range: ByteRange::new(0, 0) }
    }
}

/// A file whose blocks are written. What has to be fetched of it comes in order, through a window, as for any reader.
struct FileBlocks {
    id: ContentId,
    /// The bytes that are wanted; none: all blocks, also those without bytes.
    window: Option<ByteRange>,
    reader: ReaderId,
    object: OnceLock<Arc<Object>>,
    handle: OnceCell<FileHandle>,
}

impl FileBlocks {
    fn wants(&self, range: ByteRange) -> bool {
        self.window.is_none_or(|window| !window.intersect(range).is_empty())
    }

    /// Whether nothing of `range` is left out.
    fn wants_all(&self, range: ByteRange) -> bool {
        self.window.is_none_or(|window| window.contains(range))
    }
}

impl Drop for FileBlocks {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.get() {
            handle.close_reader(self.reader);
        }
    }
}

/// For what a block is remembered.
#[derive(Clone, Copy, Debug, Hash)]
enum Done {
    Written,
    /// All below it is written, or on its way.
    Followed,
}

struct Export {
    node: Node,
    plan: CarPlan,
    out: BytesMut,
    open: Vec<Step>,
    /// Blocks that come before the first piece ends.
    until_root: usize,
    /// What was done, by 128 bits under keys that nobody knows. Grows by some 30 bytes per block.
    seen: HashSet<(u64, u64)>,
    keys: (RandomState, RandomState),
}

impl Export {
    async fn piece(&mut self) -> Result<Option<Bytes>, CarFailure> {
        while self.out.len() < PIECE || self.until_root > 0 {
            let Some(step) = self.open.pop() else { break };
            match step.file.clone() {
                Some(file) if self.is_plain_leaf(&step) => self.run(step, &file).await?,
                _ => self.write(step).await?,
            }
            if self.until_root > 0 {
                self.until_root -= 1;
                // Whoever waits for the root is told at once.
                if self.until_root == 0 {
                    break;
                }
            }
        }
        Ok((!self.out.is_empty()).then(|| self.out.split().freeze()))
    }

    /// Whether the block is nothing but bytes of the file, as they lie in the store.
    fn is_plain_leaf(&self, step: &Step) -> bool {
        !self.plan.verify
            && step.id.codec() == Codec::Raw
            && step.id.inline_content().is_none()
            && !step.range.is_empty()
            && step.range.len() <= MAX_BLOCK_LEN as u64
    }

    /// Writes a leaf and those that follow it in the file, read as one where they are here: neither looked up nor hashed
    /// one by one.
    async fn run(&mut self, first: Step, file: &Arc<FileBlocks>) -> Result<(), CarFailure> {
        let mut run = first.range;
        let mut leaves = Vec::new();
        let mut next = Some(first);
        while let Some(leaf) = next {
            // One that is out already ends the run.
            if !self.is_wanted(leaf.id.hash()) {
                break;
            }
            run.end = leaf.range.end;
            leaves.push(leaf);
            let continues = |next: &Step| {
                next.range.start == run.end
                    && next.file.as_ref().is_some_and(|of| Arc::ptr_eq(of, file))
                    && self.is_plain_leaf(next)
            };
            let continues = run.len() < RUN && self.open.last().is_some_and(continues);
            next = if continues { self.open.pop() } else { None };
        }
        if leaves.is_empty() {
            return Ok(());
        }
        let Some(bytes) = self.read_here(file, run)? else {
            for leaf in leaves {
                let block = self.block(&leaf).await?;
                self.put(&leaf.id, block.data());
            }
            return Ok(());
        };
        let mut at = 0;
        for leaf in leaves {
            let end = at + usize::try_from(leaf.range.len()).unwrap_or(usize::MAX);
            self.put(&leaf.id, bytes.get(at..end).unwrap_or_default());
            at = end;
        }
        Ok(())
    }

    /// Bytes of a file, when all of them are here in its own object.
    fn read_here(&self, file: &FileBlocks, range: ByteRange) -> Result<Option<Bytes>, StoreError> {
        let object = match file.object.get() {
            Some(object) => object,
            None => match self.node.store().object(&file.id)? {
                Some(object) => file.object.get_or_init(|| object),
                None => return Ok(None),
            },
        };
        match object.has(range).then(|| object.read(range)) {
            // What was here a moment ago turned out wrong.
            None | Some(Err(StoreError::Missing(_))) => Ok(None),
            Some(read) => read.map(Some),
        }
    }

    fn put(&mut self, id: &ContentId, data: &[u8]) {
        let head = car_section_head(id, data.len());
        // In one step, also the first time: a buffer that doubles is copied over and over.
        self.out.reserve((head.len() + data.len()).max(2 * PIECE));
        self.out.extend_from_slice(&head);
        self.out.extend_from_slice(data);
    }

    fn is_wanted(&mut self, hash: &Multihash) -> bool {
        self.is_new(hash, Done::Written) || self.plan.duplicates
    }

    fn is_new(&mut self, hash: &Multihash, done: Done) -> bool {
        if self.plan.duplicates {
            // Nothing is asked, so nothing need be remembered.
            return false;
        }
        let key = (hash, done);
        self.seen.insert((self.keys.0.hash_one(key), self.keys.1.hash_one(key)))
    }

    async fn write(&mut self, step: Step) -> Result<(), CarFailure> {
        if step.below == Below::All && matches!(step.id.codec(), Codec::Other(_)) {
            return Err(CarFailure::Opaque(step.id));
        }
        let is_wanted = self.is_wanted(step.id.hash());
        let is_followed = self.is_followed(&step);
        if !is_wanted && !is_followed {
            return Ok(());
        }
        let block = self.block(&step).await?;
        // An id that carries its content is a block of its own nowhere.
        if is_wanted && step.id.inline_content().is_none() {
            self.put(&step.id, block.data());
        }
        if is_followed {
            self.follow(step, &block)?;
        }
        Ok(())
    }

    /// Whether links of the block lead to blocks that are wanted and not on their way yet. What is only followed in part,
    /// at the ends of a range, may be linked to again where more of it is wanted.
    fn is_followed(&mut self, step: &Step) -> bool {
        let is_cut = |file: &Arc<FileBlocks>| !file.wants_all(step.range);
        step.below != Below::Nothing
            && step.id.codec() == Codec::DagPb
            && (self.plan.duplicates
                || step.file.as_ref().is_some_and(is_cut)
                || self.is_new(step.id.hash(), Done::Followed))
    }

    fn follow(&mut self, step: Step, block: &Block) -> Result<(), CarFailure> {
        let node = DagNode::decode(block);
        let below = match (step.below, node) {
            (_, Ok(DagNode::File { children, size, .. }))
                if step.file.is_none() || size == step.range.len() =>
            {
                self.follow_file(step, size, children);
                return Ok(());
            }
            (Below::All, _) => links_of(block).map_err(NodeError::from)?,
            (_, Ok(node)) => node.shards_below(),
            // What is no UnixFS is one block.
            (_, Err(_)) => Vec::new(),
        };
        self.open.extend(below.into_iter().rev().map(|id| Step::new(id, step.below)));
        Ok(())
    }

    fn follow_file(&mut self, step: Step, size: u64, children: Vec<(ContentId, ByteRange)>) {
        let file = step.file.unwrap_or_else(|| {
            let window = match self.plan.scope {
                CarScope::Entity(bytes) => bytes.map(|bytes| bytes.within(size)),
                CarScope::Block | CarScope::All => None,
            };
            let (object, handle) = (OnceLock::new(), OnceCell::new());
            Arc::new(FileBlocks { id: step.id, window, reader: next_reader(), object, handle })
        });
        for (id, range) in children.into_iter().rev() {
            let range = ByteRange::at(step.range.start + range.start, range.len());
            if file.wants(range) {
                self.open.push(Step { id, below: step.below, file: Some(file.clone()), range });
            }
        }
    }

    async fn block(&self, step: &Step) -> Result<Block, CarFailure> {
        let id = &step.id;
        let store = self.node.store();
        if let Some(block) = store.block(id)? {
            match self.verified(block) {
                Ok(block) => return Ok(block),
                // What is wrong is fetched again.
                Err(BlockError::WrongHash(_)) => store.withdraw(id)?,
                Err(other) => return Err(CarFailure::Wrong(other)),
            }
        }
        if !self.plan.fetch {
            return Err(CarFailure::Missing(*id));
        }
        let root = &self.plan.root;
        let block = match &step.file {
            // A leaf, or a node above few of them: the bytes go to their place in the file.
            Some(file) if !step.range.is_empty() && step.range.len() <= MAX_BLOCK_LEN as u64 => {
                let open = || self.node.engine().file(root, &file.id);
                let handle = file.handle.get_or_try_init(open).await?;
                handle.read(file.reader, step.range).await?;
                store.block(id)?.ok_or(CarFailure::Missing(*id))?
            }
            _ => self.node.engine().node(root, id).await?,
        };
        self.verified(block).map_err(CarFailure::Wrong)
    }

    /// The block, hashed once more where the plan says so.
    fn verified(&self, block: Block) -> Result<Block, BlockError> {
        if self.plan.verify { Block::verify(*block.cid(), block.data().clone()) } else { Ok(block) }
    }
}
