//! Garbage collection: what pins, the upload tree and open handles reach stays, the rest goes.

use std::{collections::HashSet, sync::Arc};

use super::{GcReport, Inner, Object, ObjectId, StoreError, codec, index, keep::Reached};
use crate::content::{ByteRange, ContentId, Node};

/// Attempts to walk while others commit; those after it keep them from doing so.
const OPTIMISTIC: u32 = 3;
/// Pins are set and roots are remembered past the group commit: some attempts more, then another time has to do.
const ATTEMPTS: u32 = 8;

impl Inner {
    /// Runs what rests on a walk over all that is reached and removes the rest. It gets the number of commits from before
    /// its walk, and gives none, having removed nothing, when there were others when it came to remove: something that
    /// was not reached may be by then. So it is run again, in the end with no group commit beside it.
    pub(super) fn undisturbed<T>(
        self: &Arc<Self>,
        mut attempt: impl FnMut(u64) -> Result<Option<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        for number in 0..ATTEMPTS {
            let _leader = (number >= OPTIMISTIC).then(|| self.lead());
            if let Some(done) = attempt(self.commits()?)? {
                return Ok(Some(done));
            }
        }
        Ok(None)
    }

    /// How many transactions were committed.
    pub(super) fn commits(&self) -> Result<u64, StoreError> {
        Ok(self.index.read(|txn| index::meta(txn, index::COMMITS))?.unwrap_or(0))
    }

    pub(super) fn gc(self: &Arc<Self>) -> Result<GcReport, StoreError> {
        // It makes room: a disk too full for what came last is no reason not to.
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "blocks that came last are not in the index yet");
        }
        self.close_recent();
        let mut report = GcReport::default();
        let done = self.undisturbed(|since| {
            let (reached, garbage) = self.garbage()?;
            let Some(removed) = self.remove_objects(&garbage, Some(since))? else {
                return Ok(None);
            };
            report.objects += removed.objects;
            report.bytes += removed.bytes;
            let Some(nodes) = self.sweep_nodes(&reached, since + 1)? else { return Ok(None) };
            report.nodes += nodes;
            Ok(Some(()))
        })?;
        if done.is_none() {
            tracing::info!("too much is going on: some garbage stays until the next time");
        }
        Ok(report)
    }

    /// What pins, the upload tree and open handles reach, and the objects that it does not need.
    pub(super) fn garbage(self: &Arc<Self>) -> Result<(Reached, Vec<ObjectId>), StoreError> {
        let mut roots: Vec<ContentId> = self.pins()?.into_iter().map(|pin| pin.root).collect();
        roots.extend(self.published()?);
        let (mut owned, mut cached) = (HashSet::new(), Vec::new());
        let open: HashSet<_> = self.registry().open_ids().into_iter().collect();
        self.index.read(|txn| {
            index::object_rows(txn, |id, row| {
                let Some(root) = row.root else { return Ok(()) };
                if row.owners > 0 && row.is_whole() {
                    owned.insert(root.to_v1());
                }
                if row.owners > 0 || open.contains(&id) {
                    roots.push(root);
                } else {
                    cached.push((id, root.to_v1()));
                }
                Ok(())
            })
        })?;
        let reached = self.reach(roots)?;
        // Of a file that is published, too, one copy is enough.
        cached.retain(|(id, root)| !reached.objects.contains(id) || owned.contains(root));
        Ok((reached, cached.into_iter().map(|(id, _)| id).collect()))
    }

    /// Takes out the nodes of content that was evicted: those that no object, known root, pin or upload reaches. None:
    /// there was no moment at which nothing else was going on.
    pub(super) fn sweep_evicted(self: &Arc<Self>) -> Result<Option<u64>, StoreError> {
        self.undisturbed(|since| {
            let mut roots: Vec<ContentId> = self.pins()?.into_iter().map(|pin| pin.root).collect();
            roots.extend(self.published()?);
            self.index.read(|txn| {
                let known = index::values(txn, index::KNOWN, |r| Ok(codec::decode_named(r)?.0))?;
                roots.extend(known);
                index::object_rows(txn, |_, row| {
                    roots.extend(row.root);
                    Ok(())
                })
            })?;
            let reached = self.reach(roots)?;
            self.sweep_nodes(&reached, since)
        })
    }

    /// Takes out the nodes that were not reached, and the known roots that nothing is left of. None, and nothing goes, when
    /// there were other than `since` commits.
    pub(super) fn sweep_nodes(
        &self,
        reached: &Reached,
        since: u64,
    ) -> Result<Option<u64>, StoreError> {
        let known = self.index.read(|txn| index::meta(txn, index::TREE_KNOWN))?;
        let live: HashSet<_> = reached.ids.iter().map(|id| id.hash().to_bytes()).collect();
        self.index.write(|rows| {
            if rows.commits()? != since {
                return Ok(None);
            }
            let mut swept = 0;
            let mut nodes = rows.txn.open_table(index::NODES)?;
            let dead = nodes.extract_if(|key, row| {
                !(live.contains(key) || known.is_none() && is_directory_row(row))
            })?;
            for entry in dead {
                entry?;
                swept += 1;
            }
            drop(nodes);
            let is_live =
                |key: &[u8]| ContentId::from_bytes(key).is_ok_and(|id| reached.ids.contains(&id));
            rows.txn.open_table(index::KNOWN)?.retain(|key, _| is_live(key))?;
            Ok(Some(swept))
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
