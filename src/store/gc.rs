//! Garbage collection: what pins, the upload tree and open handles reach stays, the rest goes.

use std::{collections::HashSet, sync::Arc};

use super::{GcReport, Inner, Object, StoreError, codec, index};
use crate::content::{ByteRange, ContentId, Multihash, Node};

impl Inner {
    pub(super) fn gc(self: &Arc<Self>) -> Result<GcReport, StoreError> {
        // It makes room: a disk too full for what came last is no reason not to.
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "blocks that came last are not in the index yet");
        }
        self.close_recent();
        let mut roots: Vec<ContentId> = self.pins()?.into_iter().map(|pin| pin.root).collect();
        roots.extend(self.published()?);
        let (mut owned, mut cached) = (HashSet::new(), Vec::new());
        let open: HashSet<_> = self.registry().open_ids().into_iter().collect();
        self.index.read(|txn| {
            index::object_rows(txn, |id, row| {
                let Some(root) = row.root else { return Ok(()) };
                if row.owners > 0 {
                    owned.insert(*root.hash());
                }
                if row.owners > 0 || open.contains(&id) {
                    roots.push(root);
                } else {
                    cached.push((id, *root.hash()));
                }
                Ok(())
            })
        })?;
        let reached = self.reach(roots)?;
        // Of a file that is published, too, one copy is enough.
        cached.retain(|(id, root)| !reached.objects.contains(id) || owned.contains(root));
        let ids: Vec<_> = cached.into_iter().map(|(id, _)| id).collect();
        let mut report = self.remove_objects(&ids)?;
        report.nodes = self.sweep_nodes(&reached)?;
        Ok(report)
    }

    /// Takes out the nodes that were not reached, and the known roots that nothing is left of.
    fn sweep_nodes(&self, reached: &super::keep::Reached) -> Result<u64, StoreError> {
        let keep_directories = self.published()?.is_empty();
        let live: HashSet<_> = reached.hashes.iter().map(Multihash::to_bytes).collect();
        self.index.write(|rows| {
            let mut swept = 0;
            let mut nodes = rows.txn.open_table(index::NODES)?;
            let dead = nodes.extract_if(|key, row| {
                !(live.contains(key) || keep_directories && is_directory_row(row))
            })?;
            for entry in dead {
                entry?;
                swept += 1;
            }
            drop(nodes);
            rows.txn.open_table(index::KNOWN)?.retain(|key, _| live.contains(key))?;
            Ok(swept)
        })
    }

    /// Punches the part of an object that is farthest behind its readers; how many bytes came free.
    pub(super) fn punch_behind(
        &self,
        object: &Arc<Object>,
        wanted: u64,
    ) -> Result<u64, StoreError> {
        let _leader = self.lead();
        let row = self.index.read(|txn| index::object_row(txn, object.id()))?;
        if object.is_ever_complete() || !row.is_some_and(|row| row.is_cache()) {
            return Ok(0);
        }
        let file = object.writer(self)?;
        let mut freed = 0;
        let _exclusive = object.exclusive();
        for range in object.idle_ranges() {
            if freed >= wanted {
                break;
            }
            let range = ByteRange::new(range.start, range.end.min(range.start + wanted - freed));
            let range = self.whole_leaves(object, range)?;
            if range.is_empty() {
                continue;
            }
            self.remove_range(object, range)?;
            self.disk.punch(&file, range).map_err(|e| object.io("punch a hole in", e))?;
            freed += range.len();
        }
        Ok(freed)
    }

    /// The leaves that begin in `range`: half a leaf is no use.
    fn whole_leaves(&self, object: &Object, range: ByteRange) -> Result<ByteRange, StoreError> {
        self.index.read(|txn| {
            let leaves = index::leaves(txn, object.id(), range.start, usize::MAX)?;
            let mut inside = leaves.iter().map(|(_, l)| l.range).filter(|r| r.start < range.end);
            let Some(first) = inside.next() else { return Ok(ByteRange::new(0, 0)) };
            let end = inside.last().map_or(first.end, |last| last.end);
            Ok(ByteRange::new(first.start, end))
        })
    }
}

/// Whether a row of the node table holds a directory or a link.
fn is_directory_row(row: &[u8]) -> bool {
    let Ok((id, data)) = codec::decode_node(row) else { return false };
    let block = crate::content::Block::from_store(id, bytes::Bytes::copy_from_slice(data));
    !matches!(Node::decode(&block), Ok(Node::File { .. }))
}
