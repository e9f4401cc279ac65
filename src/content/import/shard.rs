//! Writing a directory as a HAMT.

use super::{Block, BuiltDirectory, Metadata, NewLink, dag_pb, unixfs};
use crate::content::{
    hamt,
    node::{FANOUTS, slot_width},
};

/// Builds the shards bottom up, the root last; none when names cannot be told apart by their hashes.
pub(super) fn build(links: &[NewLink], fanout: u32, meta: Metadata) -> Option<BuiltDirectory> {
    // Readers take no other widths.
    let fanout = fanout.clamp(*FANOUTS.start(), *FANOUTS.end()).next_power_of_two();
    let mut hashed: Vec<_> = links.iter().map(|link| (hamt::hash(&link.name), link)).collect();
    // Links of one shard are then a run, at every depth.
    hashed.sort_unstable_by_key(|(hash, _)| *hash);
    let mut nodes = Vec::new();
    let writer = Writer { fanout, width: slot_width(fanout) };
    let root = writer.shard(&hashed, 0, meta, &mut nodes)?;
    let root_cid = *nodes.last().map(Block::cid)?;
    Some(BuiltDirectory { root: root_cid, tsize: root.tsize, nodes })
}

#[derive(Clone, Copy)]
struct Writer {
    fanout: u32,
    /// Hex digits of a slot.
    width: usize,
}

impl Writer {
    /// Writes the shard over `run` and those below it; the link to it has no name yet.
    fn shard(
        self,
        run: &[(u64, &NewLink)],
        depth: u32,
        meta: Metadata,
        nodes: &mut Vec<Block>,
    ) -> Option<NewLink> {
        let mut links = Vec::new();
        let mut slots = Vec::new();
        let mut rest = run;
        while let Some((hash, first)) = rest.first() {
            let slot = hamt::slot(*hash, depth, self.fanout)?;
            let len = rest
                .partition_point(|(hash, _)| hamt::slot(*hash, depth, self.fanout) == Some(slot));
            let prefix = format!("{slot:0width$X}", width = self.width).into_bytes();
            links.push(if len == 1 {
                let name = [prefix.as_slice(), &first.name].concat();
                NewLink { hash: first.hash.clone(), name, tsize: first.tsize }
            } else {
                let child = self.shard(&rest[..len], depth + 1, Metadata::default(), nodes)?;
                NewLink { name: prefix, ..child }
            });
            slots.push(slot);
            rest = &rest[len..];
        }
        let data = unixfs::shard(&bitfield(&slots, self.fanout), self.fanout, meta);
        let below = unixfs::total(links.iter().map(|link| link.tsize));
        let node = Block::dag_pb(dag_pb::encode(&links, &data).into());
        let tsize = below.saturating_add(node.data().len() as u64);
        let link = NewLink { hash: node.cid().to_bytes(), name: Vec::new(), tsize };
        nodes.push(node);
        Some(link)
    }
}

/// One bit per slot in use, as a big-endian number without leading zero bytes.
fn bitfield(slots: &[u32], fanout: u32) -> Vec<u8> {
    let mut bits = vec![0; fanout as usize / 8];
    for slot in slots {
        let last = bits.len() - 1;
        bits[last - *slot as usize / 8] |= 1 << (slot % 8);
    }
    let zeros = bits.iter().take_while(|byte| **byte == 0).count();
    bits.split_off(zeros)
}
