//! The tree of one file: which block holds which bytes, unfolded as its nodes arrive.

use std::ops::Range;

use super::{Block, ByteRange, Codec, ContentId, DagError, Metadata, Node};

mod interior;
mod walk;

use interior::{Child, Index, Interior};
pub use walk::Needs;

/// Levels of interior nodes that are followed. With two links per node, 64 levels hold more bytes than a file can.
const MAX_DEPTH: u8 = 64;

/// Places of one block that [`FileLayout::insert`] tells at most: 24 MiB of them, or 256 GiB of repeated
/// 256 KiB leaves. Nodes that link to one another many times over could ask for any number.
const MAX_PLACES: usize = 1 << 20;

/// A block that is needed to read some bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The block. One that carries its content itself is had from [`Block::inline`], not from the network.
    pub cid: ContentId,
    /// The bytes of the file that it holds, itself or through the nodes below it.
    pub range: ByteRange,
}

/// Where the content inside a block belongs in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Offset in the file.
    pub offset: u64,
    /// Where in the block the content lies.
    pub data: Range<usize>,
}

impl Placement {
    /// The bytes of the file that it fills.
    pub fn range(&self) -> ByteRange {
        ByteRange::at(self.offset, self.data.len() as u64)
    }
}

/// The tree of a file. Starts with its root and grows with each interior node that is put in.
///
/// An interior node is kept once however often it is linked to, so memory grows with the interior blocks
/// that were put in, by about 50 bytes per link, and never with the size that a stranger claims.
#[derive(Clone, Debug)]
pub struct FileLayout {
    root: ContentId,
    size: u64,
    meta: Metadata,
    /// Interior nodes in the order in which they came; the root, if it is one, is the first.
    nodes: Vec<Interior>,
    /// Finds the links to a block among all links of `nodes`.
    index: Index,
    /// Links to blocks of dag-pb that hold bytes and have not come yet: leaves or interior nodes.
    unknown: usize,
}

impl FileLayout {
    /// Starts with the root of a file: a raw block or a UnixFS file node.
    ///
    /// Content that lies in the root itself is placed by [`FileLayout::insert`] with the same block.
    ///
    /// # Errors
    /// When the block is no file.
    pub fn new(root: &Block) -> Result<Self, DagError> {
        let part = Part::decode(root)?;
        let mut layout = Self {
            root: *root.cid(),
            size: part.size,
            meta: part.meta,
            nodes: Vec::new(),
            index: Index::default(),
            unknown: 0,
        };
        if !part.children.is_empty() {
            layout.unfold(root.cid(), &part, 0)?;
        }
        Ok(layout)
    }

    /// The root id.
    pub fn root(&self) -> &ContentId {
        &self.root
    }

    /// Bytes of content.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Mode and mtime of the root.
    pub fn metadata(&self) -> Metadata {
        self.meta
    }

    /// The blocks, in file order, that are known to hold bytes of `range` and have not been put in as interior nodes.
    /// A leaf stays in the answer even when its block was put in: whether its bytes are present is the store's to say.
    ///
    /// The answer is as long as the range has blocks; for a whole file of unknown size take [`FileLayout::needs_iter`].
    pub fn needs(&self, range: ByteRange) -> Vec<Need> {
        self.needs_iter(range).collect()
    }

    /// The same as [`FileLayout::needs`], one by one.
    pub fn needs_iter(&self, range: ByteRange) -> Needs<'_> {
        Needs::new(self, range)
    }

    /// Takes a block of this file: unfolds it where it is an interior node and tells where its own bytes belong.
    /// One block may belong to several places, of which at most 2^20 are told, in file order; a block that is
    /// repeated all over a sparse file is better asked for by window with [`FileLayout::places_in`].
    /// A block that belongs nowhere gives an empty answer.
    ///
    /// # Errors
    /// When the block does not fit the place that its parent gave it (size, kind).
    pub fn insert(&mut self, block: &Block) -> Result<Vec<Placement>, DagError> {
        let slots = self.index.find(&self.nodes, block.cid());
        let is_root = block.cid().to_v1() == self.root.to_v1();
        if slots.is_empty() && !is_root {
            return Ok(Vec::new());
        }
        let part = Part::decode(block)?;
        for slot in &slots {
            let promised = self.child_len(*slot);
            if promised != part.size {
                return Err(size_mismatch(block.cid(), part.size, promised));
            }
        }
        // Links of the raw codec are leaves from the start.
        if block.cid().codec() == Codec::DagPb && !is_root {
            self.resolve(block.cid(), &part, &slots)?;
        }
        if part.data.is_empty() {
            return Ok(Vec::new());
        }
        let mut offsets = Vec::new();
        self.find_offsets(&slots, is_root, 0, &mut offsets);
        offsets.sort_unstable();
        Ok(offsets.into_iter().map(|offset| part.placement(offset)).collect())
    }

    /// The places inside `window` that belong to the content of a block. Tells nothing new to the layout: a block
    /// that has not been put in as interior node is looked for among the leaves.
    ///
    /// # Errors
    /// When the block is no part of a file.
    pub fn places_in(&self, block: &Block, window: ByteRange) -> Result<Vec<Placement>, DagError> {
        let part = Part::decode(block)?;
        let cid = block.cid().to_v1();
        let own = part.data.len() as u64;
        if own == 0 || !part.children.is_empty() {
            return Ok(Vec::new());
        }
        let needs = self.needs_iter(window).filter(|need| need.cid.to_v1() == cid);
        Ok(needs
            .filter(|need| need.range.len() == own)
            .map(|need| part.placement(need.range.start))
            .collect())
    }

    /// Whether all interior nodes are in, so that [`FileLayout::needs`] of the whole file lists leaves only.
    pub fn is_unfolded(&self) -> bool {
        self.unknown == 0
    }

    fn child_len(&self, slot: u32) -> u64 {
        let (node, child) = interior::locate(&self.nodes, slot);
        self.nodes[node].child_range(child).len()
    }

    /// Settles what the links to `cid` lead to: a leaf, or an interior node that is unfolded here.
    fn resolve(&mut self, cid: &ContentId, part: &Part, slots: &[u32]) -> Result<(), DagError> {
        let mut fresh = Vec::new();
        let mut depth = 0;
        for slot in slots {
            let (node, child) = interior::locate(&self.nodes, *slot);
            depth = depth.max(self.nodes[node].depth + 1);
            if self.nodes[node].child(child) == Child::Unknown {
                fresh.push((node, child));
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let child = if part.children.is_empty() {
            Child::Leaf
        } else {
            Child::Node(self.unfold(cid, part, depth)?)
        };
        self.unknown -= fresh.len();
        for (node, at) in fresh {
            self.nodes[node].set_child(at, child);
        }
        Ok(())
    }

    /// Makes an interior node out of `part`; its number.
    fn unfold(&mut self, cid: &ContentId, part: &Part, depth: u8) -> Result<u32, DagError> {
        let mut children = Vec::with_capacity(part.children.len());
        for (child, range) in &part.children {
            children.push(self.known_child(child, range.len())?);
        }
        self.deepen(cid, &children, depth)?;
        let first_slot = self.nodes.last().map_or(0, |node| node.slots().end);
        let number = u32::try_from(self.nodes.len()).ok();
        let links = u32::try_from(part.children.len()).ok();
        // Slots are numbered with 32 bits, two of whose values are taken.
        let fits = links.and_then(|links| first_slot.checked_add(links));
        let Some((number, _)) = number.zip(fits.filter(|end| *end < u32::MAX - 1)) else {
            let what = "a file of over 2^32 blocks".to_owned();
            return Err(DagError::Unsupported { cid: self.root, what });
        };
        let own = part.data.len() as u64;
        let node = Interior::new(*cid, depth, first_slot, own, &part.children, &children);
        self.unknown += children.iter().filter(|child| **child == Child::Unknown).count();
        self.index.add(&node);
        self.nodes.push(node);
        Ok(number)
    }

    /// What a new link to `cid` leads to, as far as it is known from other links to it.
    fn known_child(&self, cid: &ContentId, len: u64) -> Result<Child, DagError> {
        // Nothing has to be fetched where no bytes lie.
        if cid.codec() != Codec::DagPb || len == 0 {
            return Ok(Child::Leaf);
        }
        let Some(slot) = self.index.any(&self.nodes, cid) else { return Ok(Child::Unknown) };
        let (node, at) = interior::locate(&self.nodes, slot);
        let known = self.nodes[node].child(at);
        let size = self.child_len(slot);
        if known != Child::Unknown && size != len {
            return Err(size_mismatch(cid, size, len));
        }
        Ok(known)
    }

    /// Lowers the nodes below a new node of the given depth, and refuses a tree that is too deep to be walked.
    fn deepen(&mut self, cid: &ContentId, children: &[Child], depth: u8) -> Result<(), DagError> {
        let too_deep = || DagError::Malformed {
            cid: *cid,
            what: "file",
            reason: format!("its tree is over {MAX_DEPTH} levels deep"),
        };
        let nodes_of = |child: &Child| match child {
            Child::Node(number) => Some(*number as usize),
            Child::Leaf | Child::Unknown => None,
        };
        if depth >= MAX_DEPTH {
            return Err(too_deep());
        }
        let mut work: Vec<_> =
            children.iter().filter_map(nodes_of).map(|n| (n, depth + 1)).collect();
        while let Some((number, depth)) = work.pop() {
            if self.nodes[number].depth >= depth {
                continue;
            }
            if depth >= MAX_DEPTH {
                return Err(too_deep());
            }
            let node = &mut self.nodes[number];
            node.depth = depth;
            work.extend(node.child_nodes().map(|child| (child as usize, depth + 1)));
        }
        Ok(())
    }

    /// Adds the offsets in the file of `inner`, an offset in a block that is linked to by `slots`.
    /// Every way up ends at the root, so that the work is bounded by what is found.
    fn find_offsets(&self, slots: &[u32], is_root: bool, inner: u64, found: &mut Vec<u64>) {
        if is_root {
            found.push(inner);
        }
        for slot in slots {
            if found.len() >= MAX_PLACES {
                return;
            }
            let (number, at) = interior::locate(&self.nodes, *slot);
            let node = &self.nodes[number];
            let offset = node.child_range(at).start + inner;
            if number == 0 {
                found.push(offset);
            } else {
                self.find_offsets(&self.index.find(&self.nodes, &node.cid), false, offset, found);
            }
        }
    }
}

/// A block that has been decoded as part of a file.
struct Part {
    data: Range<usize>,
    children: Vec<(ContentId, ByteRange)>,
    size: u64,
    meta: Metadata,
}

impl Part {
    fn decode(block: &Block) -> Result<Self, DagError> {
        match Node::decode(block)? {
            Node::File { data, children, size, meta } => Ok(Self { data, children, size, meta }),
            other => {
                let (cid, found) = (*block.cid(), other.kind());
                Err(DagError::Kind { cid, expected: "a file", found })
            }
        }
    }

    fn placement(&self, offset: u64) -> Placement {
        Placement { offset, data: self.data.clone() }
    }
}

fn size_mismatch(cid: &ContentId, size: u64, promised: u64) -> DagError {
    let reason = format!("it holds {size} bytes where its parent promises {promised}");
    DagError::Malformed { cid: *cid, what: "file", reason }
}
