//! Reading an archive: the first pass, the pins, and what is told at the end.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use super::{CarFailure, Spool, offsets::Offsets};
use crate::{
    content::{
        Block, BlockError, CAR_SECTION_HEAD, CarError, CarHeader, CarItem, CarReader, CarSection,
        Codec, ContentId, Node as DagNode, car_section_at,
    },
    node::Node,
    store::{Pin, Store},
};

/// Bytes per read.
const READ_LEN: usize = 1 << 20;

/// Bytes that are stored before they are made durable: nodes are held in memory until then.
const FLUSH_LEN: u64 = 64 << 20;

/// Where an archive comes from.
#[derive(Debug)]
pub enum CarInput {
    /// A file of this machine.
    Path(PathBuf),
    /// What was piped in.
    Spool(Spool),
}

/// A root of an archive, and how it stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedRoot {
    /// The root.
    pub cid: ContentId,
    /// Whether it is kept.
    pub pinned: bool,
    /// Blocks below it that are neither in the archive nor here, as far as the ones that are here tell.
    pub missing: u64,
    /// Blocks below it that are no part of any file tree that could be read.
    pub unreadable: u64,
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Version of the archive.
    pub version: u8,
    /// Blocks that were read and verified.
    pub blocks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Its roots, each once.
    pub roots: Vec<ImportedRoot>,
}

/// Gets bytes done and bytes in all; whether to go on.
pub(super) type Watch = Box<dyn FnMut(u64, u64) -> bool + Send>;

impl Node {
    /// Puts the blocks of an archive into the store and, with `pin`, keeps its roots. `watch` gets bytes done and bytes
    /// in all (each byte counts twice, for it is read and then stored) and says whether to go on.
    ///
    /// # Errors
    /// [`CarFailure`]. What was stored until then stays as cache, and the next import skips it.
    pub async fn import_car(
        &self,
        input: CarInput,
        pin: bool,
        watch: impl FnMut(u64, u64) -> bool + Send + 'static,
    ) -> Result<Imported, CarFailure> {
        let (node, watch) = (self.clone(), Box::new(watch));
        let work = move || node.import_now(input, pin, watch);
        let done = self.tasks().blocking("import archive", work).await;
        let imported = done.map_err(|_| CarFailure::BrokenOff)??;
        for root in imported.roots.iter().filter(|root| root.pinned) {
            if root.missing > 0 {
                self.inner.pins_to_fetch.notify_one();
            } else if !self.is_read_only()
                && let Err(error) = self.net().announce(&root.cid)
            {
                tracing::debug!(root = %root.cid, %error, "an imported root is not announced");
            }
        }
        Ok(imported)
    }

    fn import_now(&self, input: CarInput, pin: bool, watch: Watch) -> Result<Imported, CarFailure> {
        let (file, path) = match input {
            CarInput::Path(path) => (Arc::new(open(&path)?), path),
            CarInput::Spool(spool) => spool.into_file(),
        };
        let len = match file.metadata() {
            Ok(meta) => meta.len(),
            Err(source) => return Err(CarFailure::Io { path, source }),
        };
        let mut import = Import {
            store: self.store().clone(),
            token: self.tasks().token().clone(),
            leaves: Offsets::new(self.store().dir()),
            file,
            path,
            len,
            done: 0,
            unflushed: 0,
            watch,
            sections: None,
            blocks: 0,
            bytes: 0,
        };
        let mut pins = Pins { node: self, wanted: pin, made: Vec::new() };
        let imported = import.run(&mut pins);
        if imported.is_err() {
            pins.take_back();
        }
        imported
    }
}

/// Opened only when it is a file: to open a pipe waits for its other end.
fn open(path: &Path) -> Result<File, CarFailure> {
    let failed = |source| CarFailure::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(CarFailure::NotAFile(path.to_owned()));
    }
    File::open(path).map_err(failed)
}

/// The pins of the roots.
struct Pins<'a> {
    node: &'a Node,
    wanted: bool,
    /// Those that were not there before.
    made: Vec<ContentId>,
}

impl Pins<'_> {
    /// Keeps what a walk can follow; of other roots nothing would be kept but their own block.
    fn pin(&mut self, roots: &[ContentId]) -> Result<(), CarFailure> {
        if !self.wanted {
            return Ok(());
        }
        let store = self.node.store();
        let known: HashSet<_> = store.pins()?.into_iter().map(|pin| pin.root.to_v1()).collect();
        for root in roots.iter().filter(|root| can_be_kept(root)) {
            if !known.contains(&root.to_v1()) {
                store.pin(Pin { root: *root, name: String::new() })?;
                self.made.push(*root);
            }
        }
        Ok(())
    }

    fn take_back(&self) {
        for root in &self.made {
            // The first error tells more.
            let _ = self.node.unpin_content(root);
        }
    }
}

fn can_be_kept(root: &ContentId) -> bool {
    !matches!(root.codec(), Codec::Other(_))
}

/// An import under way.
pub(super) struct Import {
    pub(super) store: Store,
    token: CancellationToken,
    /// Blocks that hold content of files.
    leaves: Offsets,
    file: Arc<File>,
    path: PathBuf,
    len: u64,
    done: u64,
    unflushed: u64,
    watch: Watch,
    /// Offsets of the first section and of the last.
    sections: Option<(u64, u64)>,
    blocks: u64,
    bytes: u64,
}

impl Import {
    fn run(&mut self, pins: &mut Pins<'_>) -> Result<Imported, CarFailure> {
        let mut header = self.read(pins)?;
        let mut seen = HashSet::new();
        header.roots.retain(|root| seen.insert(root.to_v1()));
        let mut roots = Vec::with_capacity(header.roots.len());
        for cid in header.roots {
            let below = self.walk(&cid)?;
            let (missing, unreadable) = (below.missing(), below.unreadable);
            let pinned = pins.wanted && can_be_kept(&cid);
            roots.push(ImportedRoot { cid, pinned, missing, unreadable });
        }
        self.strays()?;
        self.store.flush()?;
        for root in roots.iter().filter(|root| root.pinned && root.missing == 0) {
            pins.node.note_complete(&root.cid)?;
        }
        let (blocks, bytes) = (self.blocks, self.bytes);
        Ok(Imported { version: header.version, blocks, bytes, roots })
    }

    /// The first pass.
    fn read(&mut self, pins: &mut Pins<'_>) -> Result<CarHeader, CarFailure> {
        let mut reader = CarReader::default();
        let mut header = None;
        let mut piece = vec![0; READ_LEN];
        let mut at = 0;
        loop {
            let len = self.read_at(&mut piece, at)?;
            if len == 0 {
                break;
            }
            at += len as u64;
            reader.push(&piece[..len]);
            while let Some(item) = reader.next_item()? {
                match item {
                    CarItem::Section(section) => self.take(section)?,
                    CarItem::Header(found) => {
                        pins.pin(&found.roots)?;
                        header = Some(found);
                    }
                }
            }
            self.did(len as u64)?;
        }
        reader.finish()?;
        let empty = || CarError::Truncated { what: "header", at: 0, end: at };
        Ok(header.ok_or_else(empty)?)
    }

    fn take(&mut self, section: CarSection) -> Result<(), CarFailure> {
        let CarSection { at, cid, data } = section;
        let block = verified(at, cid, data)?;
        self.blocks += 1;
        self.bytes += block.data().len() as u64;
        let (first, _) = self.sections.unwrap_or((at, at));
        self.sections = Some((first, at));
        if cid.inline_content().is_some() {
            return Ok(());
        }
        match DagNode::decode(&block) {
            Ok(DagNode::File { data, .. }) if !data.is_empty() => self.leaves.add(cid.hash(), at),
            _ => self.keep(&block),
        }
    }

    /// Keeps a node, unless it is here.
    pub(super) fn keep(&mut self, block: &Block) -> Result<(), CarFailure> {
        // Read and hashed, since what is here may have rotted.
        if self.store.block(block.cid())?.is_none() {
            self.store.put_node(block)?;
            self.stored(block.data().len() as u64)?;
        }
        Ok(())
    }

    /// So many bytes were stored and are not durable yet.
    pub(super) fn stored(&mut self, bytes: u64) -> Result<(), CarFailure> {
        self.unflushed += bytes;
        if self.unflushed >= FLUSH_LEN {
            self.unflushed = 0;
            self.store.flush()?;
        }
        Ok(())
    }

    /// So many bytes more were looked after.
    pub(super) fn did(&mut self, bytes: u64) -> Result<(), CarFailure> {
        let total = self.len * 2;
        // A block that stands in several places is stored as often.
        self.done = (self.done + bytes).min(total);
        if self.token.is_cancelled() || !(self.watch)(self.done, total) {
            return Err(CarFailure::BrokenOff);
        }
        Ok(())
    }

    /// A block, from the store or else from the archive.
    pub(super) fn block(&mut self, id: &ContentId) -> Result<Option<Block>, CarFailure> {
        if let Some(block) = self.store.block(id)? {
            return Ok(Some(block));
        }
        for at in self.leaves.find(id.hash())? {
            let (head, cid, len) = self.section(at)?;
            if cid.hash() == id.hash() {
                return self.verified_at(at, head, *id, len).map(Some);
            }
        }
        Ok(None)
    }

    /// The section at an offset where there was one: length of what stands before the block, its id, its length.
    fn section(&self, at: u64) -> Result<(usize, ContentId, usize), CarFailure> {
        let mut head = [0; CAR_SECTION_HEAD];
        let len = self.read_at(&mut head, at)?;
        car_section_at(&head[..len]).ok_or(CarFailure::Changed { at })
    }

    fn verified_at(
        &self,
        at: u64,
        head: usize,
        id: ContentId,
        len: usize,
    ) -> Result<Block, CarFailure> {
        let mut data = vec![0; len];
        if self.read_at(&mut data, at + head as u64)? < len {
            return Err(CarFailure::Changed { at });
        }
        verified(at, id, data.into())
    }

    /// Blocks of content that no root led to: each is a file of its own.
    fn strays(&mut self) -> Result<(), CarFailure> {
        let Some((mut at, last)) = self.sections else { return Ok(()) };
        while at <= last {
            let (head, cid, len) = self.section(at)?;
            if self.store.block(&cid)?.is_none() {
                let block = self.verified_at(at, head, cid, len)?;
                self.file(&block)?;
            }
            at += (head + len) as u64;
        }
        Ok(())
    }

    /// Fills `bytes` as far as the file goes.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> Result<usize, CarFailure> {
        let mut len = 0;
        while len < bytes.len() {
            match self.file.read_at(&mut bytes[len..], at + len as u64) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(CarFailure::Io { path: self.path.clone(), source }),
            }
        }
        Ok(len)
    }
}

fn verified(at: u64, cid: ContentId, data: bytes::Bytes) -> Result<Block, CarFailure> {
    Block::verify(cid, data).map_err(|source: BlockError| CarFailure::Block { at, source })
}
