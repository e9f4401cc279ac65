//! Hashing a file: leaves read in pieces that both cores work on, in memory that does not depend on the file's size
//! but for the ids themselves.

use std::{fs::File, io, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use rustix::{
    buffer::spare_capacity,
    io::{Errno, pread},
};

use super::{PublishError, overlay::Overlay};
use crate::{
    content::{
        Block, ByteRange, ContentId, FileBuilder, FileLayout, ImportParams, Metadata, sha2_256_each,
    },
    store::{SealLeaves, Store},
    tasks::Tasks,
};

/// Bytes that one task hashes: some milliseconds of work, so that handing it over costs nothing beside it.
const SEGMENT: u64 = 4 << 20;
/// Segments of one file that are hashed at the same time.
const WORKERS: usize = 2;

/// A finished DAG.
#[derive(Debug)]
pub(super) struct Hashed {
    pub(super) root: ContentId,
    pub(super) tsize: u64,
    pub(super) leaves: SealLeaves,
    pub(super) nodes: Vec<Block>,
}

/// Leaves whose ids need no hashing: those of the version below that nobody wrote.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) overlay: Overlay,
    pub(super) leaves: Vec<ContentId>,
}

impl Known {
    fn id(&self, range: ByteRange, leaf_len: u64) -> Option<ContentId> {
        let index = usize::try_from(range.start / leaf_len).ok()?;
        self.overlay.is_known(range).then(|| self.leaves.get(index).copied()).flatten()
    }
}

/// Ids of all leaves of a published file, in order; none when its DAG has another shape than what is built here.
pub(super) fn leaves_of(
    store: &Store,
    root: &ContentId,
    size: u64,
    leaf_len: u64,
) -> Result<Option<Vec<ContentId>>, PublishError> {
    let Some(block) = store.block(root)? else { return Ok(None) };
    let Ok(mut layout) = FileLayout::new(&block) else { return Ok(None) };
    let whole = ByteRange::new(0, size);
    let mut needs = layout.needs(whole);
    while !layout.is_unfolded() {
        let before = needs.len();
        for need in &needs {
            if need.range.len() > leaf_len || needs_unfolding(&need.cid) {
                let Some(node) = store.block(&need.cid)? else { return Ok(None) };
                if layout.insert(&node).is_err() {
                    return Ok(None);
                }
            }
        }
        needs = layout.needs(whole);
        if needs.len() == before && !layout.is_unfolded() {
            return Ok(None);
        }
    }
    let regular = needs.iter().enumerate().all(|(index, need)| {
        let start = index as u64 * leaf_len;
        need.range == ByteRange::new(start, (start + leaf_len).min(size))
    });
    Ok(regular.then(|| needs.into_iter().map(|need| need.cid).collect()))
}

fn needs_unfolding(id: &ContentId) -> bool {
    id.codec() != crate::content::Codec::Raw
}

/// Hashes `size` bytes of `file`. None when `cancelled` said so.
pub(super) async fn hash(
    tasks: &Tasks,
    file: Arc<File>,
    size: u64,
    params: ImportParams,
    known: Option<Arc<Known>>,
    cancelled: Arc<dyn Fn() -> bool + Send + Sync>,
) -> Result<Option<Hashed>, PublishError> {
    let leaf_len = params.chunk_len as u64;
    // Whole leaves only, also when a leaf is larger than a segment.
    let segment = (SEGMENT / leaf_len).max(1) * leaf_len;
    let count = size.div_ceil(segment);
    let mut parts = stream::iter(0..count)
        .map(|index| {
            let range = ByteRange::at(index * segment, segment).intersect(ByteRange::new(0, size));
            let (file, known, cancelled) = (file.clone(), known.clone(), cancelled.clone());
            tasks.blocking("hash", move || {
                if cancelled() {
                    return Ok(None);
                }
                hash_segment(&file, range, leaf_len, known.as_deref()).map(Some)
            })
        })
        .buffered(WORKERS)
        .map(|joined| joined.map_err(|_| PublishError::Closed));
    let mut builder = FileBuilder::new(params);
    let (mut leaves, mut nodes) = (SealLeaves::default(), Vec::new());
    while let Some(part) = parts.try_next().await? {
        let part = part.map_err(|source| PublishError::Io { what: "read", source })?;
        let Some(part) = part else { return Ok(None) };
        for (id, range) in part {
            nodes.extend(builder.push(id, range.len()));
            leaves.push(&id, range.len());
        }
    }
    let built = builder.finish(Metadata::default());
    nodes.extend(built.nodes);
    Ok(Some(Hashed { root: built.root, tsize: built.tsize, leaves, nodes }))
}

fn hash_segment(
    file: &File,
    segment: ByteRange,
    leaf_len: u64,
    known: Option<&Known>,
) -> io::Result<Vec<(ContentId, ByteRange)>> {
    let mut leaves: Vec<(Option<ContentId>, ByteRange)> = Vec::new();
    let mut unknown: Vec<(usize, ByteRange)> = Vec::new();
    let mut start = segment.start;
    while start < segment.end {
        let range = ByteRange::new(start, (start + leaf_len).min(segment.end));
        let id = known.and_then(|known| known.id(range, leaf_len));
        if id.is_none() {
            unknown.push((leaves.len(), range));
        }
        leaves.push((id, range));
        start = range.end;
    }
    for group in unknown.chunk_by(|(_, a), (_, b)| a.end == b.start) {
        let (first, last) = (group[0].1, group[group.len() - 1].1);
        let bytes = read_exact(file, ByteRange::new(first.start, last.end))?;
        let messages: Vec<&[u8]> =
            bytes.chunks(usize::try_from(leaf_len).unwrap_or(usize::MAX)).collect();
        for ((index, _), hash) in group.iter().zip(sha2_256_each(&messages)) {
            leaves[*index].0 = Some(ContentId::raw(hash));
        }
    }
    Ok(leaves.into_iter().filter_map(|(id, range)| Some((id?, range))).collect())
}

/// The bytes of a range; an error where the file ends before.
fn read_exact(file: &File, range: ByteRange) -> io::Result<Vec<u8>> {
    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
    // Read into space that nobody has to zero first.
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = range.start + bytes.len() as u64;
        match pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}
