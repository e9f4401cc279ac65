//! Interior nodes of a file in little memory, and the index over their links.

use super::{super::ContentId, ByteRange};

/// What a link is known to lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Child {
    /// A block of dag-pb that has not come.
    Unknown,
    /// A block without children.
    Leaf,
    /// The interior node with this number.
    Node(u32),
}

impl Child {
    const UNKNOWN: u32 = u32::MAX;
    const LEAF: u32 = u32::MAX - 1;

    fn pack(self) -> u32 {
        match self {
            Self::Unknown => Self::UNKNOWN,
            Self::Leaf => Self::LEAF,
            Self::Node(number) => number,
        }
    }

    fn unpack(packed: u32) -> Self {
        match packed {
            Self::UNKNOWN => Self::Unknown,
            Self::LEAF => Self::Leaf,
            number => Self::Node(number),
        }
    }
}

/// CIDs in one allocation. Those of one node nearly always have one length.
#[derive(Clone, Debug)]
struct PackedCids {
    bytes: Box<[u8]>,
    /// Where each CID ends; none when all have the length `bytes.len() / count`.
    ends: Option<Box<[u32]>>,
    count: usize,
}

impl PackedCids {
    fn new<'a>(cids: impl Iterator<Item = &'a ContentId>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for cid in cids {
            bytes.extend_from_slice(&cid.to_v1().to_bytes());
            // The CIDs come out of one block, so that their bytes stay far below 4 GiB.
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        let count = ends.len();
        let stride = ends.first().copied().unwrap_or(0);
        let even = ends.windows(2).all(|pair| pair[1] - pair[0] == stride);
        let ends = (!even).then(|| ends.into_boxed_slice());
        Self { bytes: bytes.into_boxed_slice(), ends, count }
    }

    fn get(&self, at: usize) -> &[u8] {
        match &self.ends {
            None => {
                let len = self.bytes.len() / self.count.max(1);
                &self.bytes[at * len..(at + 1) * len]
            }
            Some(ends) => {
                let start = at.checked_sub(1).map_or(0, |before| ends[before] as usize);
                &self.bytes[start..ends[at] as usize]
            }
        }
    }
}

/// An interior node. Offsets are from the start of its own content, so that one node serves all its places.
#[derive(Clone, Debug)]
pub(super) struct Interior {
    /// Its id, as CIDv1.
    pub(super) cid: ContentId,
    /// Longest way from the root, in links.
    pub(super) depth: u8,
    /// Number of its first link among the links of all nodes.
    first_slot: u32,
    /// Bytes of content that lie in the node itself, before those of its children.
    own: u64,
    /// Where each child ends.
    ends: Box<[u64]>,
    cids: PackedCids,
    /// [`Child`] of each link; none when all children are leaves, as in every node above raw leaves.
    children: Option<Box<[u32]>>,
}

impl Interior {
    /// `children` with their ranges behind `own` bytes, and what each leads to.
    pub(super) fn new(
        cid: ContentId,
        depth: u8,
        first_slot: u32,
        own: u64,
        links: &[(ContentId, ByteRange)],
        children: &[Child],
    ) -> Self {
        let only_leaves = children.iter().all(|child| *child == Child::Leaf);
        Self {
            cid: cid.to_v1(),
            depth,
            first_slot,
            own,
            ends: links.iter().map(|(_, range)| range.end).collect(),
            cids: PackedCids::new(links.iter().map(|(cid, _)| cid)),
            children: (!only_leaves).then(|| children.iter().map(|child| child.pack()).collect()),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn child_range(&self, at: usize) -> ByteRange {
        let start = at.checked_sub(1).map_or(self.own, |before| self.ends[before]);
        ByteRange::new(start, self.ends[at])
    }

    pub(super) fn child_cid(&self, at: usize) -> Option<ContentId> {
        // The bytes were written by `to_bytes` and are therefore always a CID.
        ContentId::from_bytes(self.cids.get(at)).ok()
    }

    pub(super) fn child(&self, at: usize) -> Child {
        self.children.as_ref().map_or(Child::Leaf, |children| Child::unpack(children[at]))
    }

    /// Numbers of the interior nodes right below.
    pub(super) fn child_nodes(&self) -> impl Iterator<Item = u32> + '_ {
        self.children.iter().flatten().filter_map(|packed| match Child::unpack(*packed) {
            Child::Node(number) => Some(number),
            Child::Leaf | Child::Unknown => None,
        })
    }

    /// Only for a link that was [`Child::Unknown`] so far.
    pub(super) fn set_child(&mut self, at: usize, child: Child) {
        if let Some(children) = &mut self.children {
            children[at] = child.pack();
        }
    }

    /// The first child with bytes behind `offset`; [`Interior::len`] if there is none.
    pub(super) fn child_behind(&self, offset: u64) -> usize {
        let offset = offset.max(self.own);
        self.ends.partition_point(|end| *end <= offset)
    }

    pub(super) fn slots(&self) -> std::ops::Range<u32> {
        // The number of links was checked against the free slots before the node was made.
        self.first_slot..self.first_slot + u32::try_from(self.len()).unwrap_or(0)
    }

    /// What the children link to, except where no bytes lie.
    fn fingerprints(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.slots()
            .enumerate()
            .filter(|(at, _)| !self.child_range(*at).is_empty())
            .map(|(at, slot)| (fingerprint(self.cids.get(at)), slot))
    }
}

/// The node and the child that a slot number stands for.
pub(super) fn locate(nodes: &[Interior], slot: u32) -> (usize, usize) {
    let node = nodes.partition_point(|node| node.first_slot <= slot).saturating_sub(1);
    (node, (slot - nodes[node].first_slot) as usize)
}

/// The last bytes of a CID are digest, whatever stands in front of it.
fn fingerprint(cid: &[u8]) -> u32 {
    cid.iter().rev().take(4).fold(0, |print, byte| print << 8 | u32::from(*byte))
}

/// From CIDs to the links that name them, in 8 bytes per link.
///
/// Runs of (fingerprint, slot), each sorted; their lengths at least halve from one to the next, so that a look-up
/// searches few of them and each link is moved few times. A fingerprint only points: the CIDs are compared.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    runs: Vec<Vec<(u32, u32)>>,
}

impl Index {
    pub(super) fn add(&mut self, node: &Interior) {
        let mut run: Vec<_> = node.fingerprints().collect();
        run.sort_unstable();
        while let Some(before) = self.runs.pop_if(|before| before.len() < 2 * run.len()) {
            run.extend(before);
            // Two sorted runs in a row: the stable sort merges them in one pass.
            run.sort();
        }
        run.shrink_to_fit();
        self.runs.push(run);
    }

    /// All slots with bytes behind them that link to `cid`, in no order.
    pub(super) fn find(&self, nodes: &[Interior], cid: &ContentId) -> Vec<u32> {
        let mut found = Vec::new();
        self.visit(nodes, cid, |slot| {
            found.push(slot);
            true
        });
        found
    }

    /// One of those slots.
    pub(super) fn any(&self, nodes: &[Interior], cid: &ContentId) -> Option<u32> {
        let mut found = None;
        self.visit(nodes, cid, |slot| {
            found = Some(slot);
            false
        });
        found
    }

    /// Shows slots to `visit` until it returns false.
    fn visit(&self, nodes: &[Interior], cid: &ContentId, mut visit: impl FnMut(u32) -> bool) {
        let bytes = cid.to_v1().to_bytes();
        let print = fingerprint(&bytes);
        for run in &self.runs {
            let start = run.partition_point(|(other, _)| *other < print);
            for (_, slot) in run[start..].iter().take_while(|(other, _)| *other == print) {
                let (node, at) = locate(nodes, *slot);
                if nodes[node].cids.get(at) == bytes && !visit(*slot) {
                    return;
                }
            }
        }
    }
}
