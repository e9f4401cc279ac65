//! Building DAGs with the ids that `ipfs add --cid-version=1` gives.

use std::{collections::BTreeMap, mem, time::SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Block, ContentId, Metadata,
    dag_pb::{self, NewLink},
    pb, unixfs,
};

mod shard;

/// What decides the shape of a DAG and so its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportParams {
    /// Bytes per leaf.
    pub chunk_len: usize,
    /// Links per interior node.
    pub max_links: usize,
    /// How the size of a directory is reckoned when it is compared with `shard_threshold`.
    pub shard_by_block: bool,
    /// A directory larger than this becomes a HAMT.
    pub shard_threshold: usize,
    /// Width of a HAMT shard.
    pub shard_fanout: u32,
}

impl ImportParams {
    /// `ipfs add --cid-version=1`: 256 KiB leaves, 174 links, HAMT above 262,144 bytes of names and ids.
    pub const DEFAULT: Self = Self {
        chunk_len: 256 << 10,
        max_links: 174,
        shard_by_block: false,
        shard_threshold: 256 << 10,
        shard_fanout: 256,
    };
    /// Profile `unixfs-v1-2025` (IPIP-499): 1 MiB leaves, 1,024 links, HAMT above a block of 256 KiB.
    pub const UNIXFS_V1_2025: Self = Self {
        chunk_len: 1 << 20,
        max_links: 1024,
        shard_by_block: true,
        shard_threshold: 256 << 10,
        shard_fanout: 256,
    };
}

/// A published file as the library describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Root id.
    pub cid: ContentId,
    /// Name it was published under.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Ids of its leaves in order.
    pub chunks: Vec<ContentId>,
    /// When it was published.
    pub created_at: SystemTime,
}

/// A finished file.
#[derive(Clone, Debug)]
pub struct BuiltFile {
    /// Root id; the only leaf's own where there is just one.
    pub root: ContentId,
    /// Bytes of content.
    pub size: u64,
    /// Bytes of all blocks, as a directory link's Tsize wants it.
    pub tsize: u64,
    /// Interior nodes that were not handed out before, the root last.
    pub nodes: Vec<Block>,
}

/// A leaf or node as its parent sees it.
#[derive(Clone, Copy, Debug)]
struct Part {
    cid: ContentId,
    /// Bytes of content.
    size: u64,
    /// Bytes of all blocks.
    tsize: u64,
}

/// Builds a balanced DAG over leaves whose ids are known, in constant memory.
///
/// All leaves have the same depth. Each level keeps the links of its last node only; it is closed when a
/// further link comes, so that the root is still open when the metadata are known.
#[derive(Debug)]
pub struct FileBuilder {
    max_links: usize,
    /// Links of the open node of each level, leaves first.
    levels: Vec<Vec<Part>>,
}

impl FileBuilder {
    /// An empty file.
    pub fn new(params: ImportParams) -> Self {
        // With one link per node the levels would never come to an end.
        Self { max_links: params.max_links.max(2), levels: Vec::new() }
    }

    /// Appends a raw leaf of `len` bytes; gives the interior nodes that it completed.
    pub fn push(&mut self, leaf: ContentId, len: u64) -> Vec<Block> {
        self.push_part(Part { cid: leaf, size: len, tsize: len })
    }

    /// Appends a leaf that [`dag_pb_leaf`] made of `len` bytes.
    pub fn push_block(&mut self, leaf: &Block, len: u64) -> Vec<Block> {
        self.push_part(Part { cid: *leaf.cid(), size: len, tsize: leaf.data().len() as u64 })
    }

    fn push_part(&mut self, leaf: Part) -> Vec<Block> {
        let mut completed = Vec::new();
        self.push_at(0, leaf, &mut completed);
        completed
    }

    fn push_at(&mut self, mut level: usize, mut part: Part, completed: &mut Vec<Block>) {
        loop {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            let links = &mut self.levels[level];
            if links.len() < self.max_links {
                links.push(part);
                return;
            }
            let full = mem::replace(links, vec![part]);
            let (node, closed) = close(&full, Metadata::default());
            completed.push(node);
            part = closed;
            level += 1;
        }
    }

    /// Closes the open nodes. A file without leaves is the empty raw block. With metadata that is
    /// not empty the root is a dag-pb node even over a single leaf.
    pub fn finish(mut self, meta: Metadata) -> BuiltFile {
        let single = match self.levels.as_slice() {
            [] => return empty_file(meta),
            [only] if meta == Metadata::default() => only.first().filter(|_| only.len() == 1),
            _ => None,
        };
        if let Some(leaf) = single {
            let Part { cid, size, tsize } = *leaf;
            return BuiltFile { root: cid, size, tsize, nodes: Vec::new() };
        }
        let mut nodes = Vec::new();
        let mut level = 0;
        loop {
            let links = mem::take(&mut self.levels[level]);
            level += 1;
            if level == self.levels.len() {
                let (node, root) = close(&links, meta);
                nodes.push(node);
                return BuiltFile { root: root.cid, size: root.size, tsize: root.tsize, nodes };
            }
            let (node, closed) = close(&links, Metadata::default());
            nodes.push(node);
            // May close a full level and open one more above it.
            self.push_at(level, closed, &mut nodes);
        }
    }
}

/// An interior node over `links`, and how its parent sees it.
fn close(links: &[Part], meta: Metadata) -> (Block, Part) {
    let sizes: Vec<_> = links.iter().map(|link| link.size).collect();
    let below = unixfs::total(links.iter().map(|link| link.tsize));
    let links: Vec<_> = links
        .iter()
        .map(|link| NewLink { hash: link.cid.to_bytes(), name: Vec::new(), tsize: link.tsize })
        .collect();
    let node = Block::dag_pb(dag_pb::encode(&links, &unixfs::file(&[], &sizes, meta)).into());
    let tsize = below.saturating_add(node.data().len() as u64);
    let part = Part { cid: *node.cid(), size: unixfs::total(sizes.into_iter()), tsize };
    (node, part)
}

fn empty_file(meta: Metadata) -> BuiltFile {
    let root =
        if meta == Metadata::default() { Block::raw(Bytes::new()) } else { dag_pb_leaf(&[], meta) };
    let tsize = root.data().len() as u64;
    BuiltFile { root: *root.cid(), size: 0, tsize, nodes: vec![root] }
}

/// A file of one block that holds its bytes inside a dag-pb node, as `ipfs add` makes them when mode or mtime are
/// kept. `data` has to leave room for the node around it under the limit of a block.
pub fn dag_pb_leaf(data: &[u8], meta: Metadata) -> Block {
    Block::dag_pb(dag_pb::encode(&[], &unixfs::file(data, &[], meta)).into())
}

/// Chunks and hashes bytes that are in memory; gives the file and its leaves. As with `ipfs add`, the leaves are raw
/// unless there are metadata, which need a node to be written into.
pub fn import_bytes(params: ImportParams, data: &Bytes, meta: Metadata) -> (BuiltFile, Vec<Block>) {
    let mut builder = FileBuilder::new(params);
    let (mut leaves, mut nodes) = (Vec::new(), Vec::new());
    let plain = meta == Metadata::default();
    let chunk_len = params.chunk_len.max(1);
    let one_leaf = data.len() <= chunk_len;
    for start in (0..data.len()).step_by(chunk_len) {
        let chunk = data.slice(start..data.len().min(start + chunk_len));
        let len = chunk.len() as u64;
        if plain {
            let leaf = Block::raw(chunk);
            nodes.extend(builder.push(*leaf.cid(), len));
            leaves.push(leaf);
        } else {
            let leaf = dag_pb_leaf(&chunk, if one_leaf { meta } else { Metadata::default() });
            nodes.extend(builder.push_block(&leaf, len));
            leaves.push(leaf);
        }
    }
    // A single leaf with metadata carries them itself.
    let mut built =
        builder.finish(if one_leaf && !data.is_empty() { Metadata::default() } else { meta });
    nodes.append(&mut built.nodes);
    built.nodes = nodes;
    (built, leaves)
}

/// A finished directory.
#[derive(Clone, Debug)]
pub struct BuiltDirectory {
    /// Root id.
    pub root: ContentId,
    /// Bytes of the directory's blocks and of all below it.
    pub tsize: u64,
    /// All blocks of the directory itself, the root last.
    pub nodes: Vec<Block>,
}

/// Builds a directory node, or a HAMT when it grows over the threshold.
#[derive(Debug)]
pub struct DirectoryBuilder {
    params: ImportParams,
    /// Sorted by the bytes of the name, as links in the block are.
    entries: BTreeMap<Vec<u8>, (ContentId, u64)>,
}

impl DirectoryBuilder {
    /// An empty directory.
    pub fn new(params: ImportParams) -> Self {
        Self { params, entries: BTreeMap::new() }
    }

    /// Adds a child; a name that is there already is replaced. Names are bytes, as those of files are: two that no text
    /// can tell apart are two.
    pub fn add(&mut self, name: &(impl AsRef<[u8]> + ?Sized), cid: ContentId, tsize: u64) {
        self.entries.insert(name.as_ref().to_owned(), (cid, tsize));
    }

    /// Encodes it. Should names collide in all 64 bits of their hash, which no HAMT can hold, it is a flat
    /// directory whatever its size.
    pub fn finish(self, meta: Metadata) -> BuiltDirectory {
        let links: Vec<_> = self
            .entries
            .into_iter()
            .map(|(name, (cid, tsize))| NewLink { hash: cid.to_bytes(), name, tsize })
            .collect();
        let below = unixfs::total(links.iter().map(|link| link.tsize));
        let data = unixfs::directory(meta);
        let size: usize = if self.params.shard_by_block {
            let data = 1 + pb::varint_len(data.len() as u64) + data.len();
            data + links.iter().map(NewLink::encoded_len).sum::<usize>()
        } else {
            links.iter().map(|link| link.name.len() + link.hash.len()).sum()
        };
        if size > self.params.shard_threshold
            && let Some(built) = shard::build(&links, self.params.shard_fanout, meta)
        {
            return built;
        }
        let node = Block::dag_pb(dag_pb::encode(&links, &data).into());
        let tsize = below.saturating_add(node.data().len() as u64);
        BuiltDirectory { root: *node.cid(), tsize, nodes: vec![node] }
    }
}

/// The node of a symbolic link, whose target is bytes as every path is.
pub fn symlink(target: &(impl AsRef<[u8]> + ?Sized), meta: Metadata) -> Block {
    Block::dag_pb(dag_pb::encode(&[], &unixfs::symlink(target.as_ref(), meta)).into())
}
