//! dag-pb: the links and the data of one node.

use std::ops::Range;

use super::{
    ContentId,
    pb::{self, PbError, Reader},
};

/// A link as it lies in the block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PbLink {
    /// Bytes of the child's CID.
    pub(super) hash: Range<usize>,
    /// Bytes of the name; empty also when the block has no name at all.
    pub(super) name: Range<usize>,
    /// Bytes of the blocks below, as the publisher counted them.
    pub(super) tsize: u64,
}

impl PbLink {
    /// Parses the child's CID.
    pub(super) fn cid(&self, block: &[u8]) -> Result<ContentId, PbError> {
        ContentId::from_bytes(&block[self.hash.clone()])
            .map_err(|_| PbError::new(self.hash.start, "link to what is no CID"))
    }
}

/// A node as it lies in the block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PbNode {
    pub(super) links: Vec<PbLink>,
    pub(super) data: Option<Range<usize>>,
}

/// Reads a node. Links and data may come in either order, as the network has both; everything else that
/// the format forbids is refused: unknown fields, repeated data, links on both sides of the data, link fields
/// out of order.
pub(super) fn decode(block: &[u8]) -> Result<PbNode, PbError> {
    let mut node = PbNode::default();
    let mut reader = Reader::new(block, 0..block.len());
    let mut links_ended = false;
    while let Some(field) = reader.next()? {
        match field.number {
            1 if node.data.is_some() => return Err(PbError::new(field.at, "second data field")),
            1 => {
                node.data = Some(field.value.bytes(field.at)?);
                links_ended = !node.links.is_empty();
            }
            2 if links_ended => return Err(PbError::new(field.at, "links around the data")),
            2 => node.links.push(decode_link(block, field.value.bytes(field.at)?)?),
            _ => return Err(PbError::new(field.at, "unknown field of a node")),
        }
    }
    Ok(node)
}

fn decode_link(block: &[u8], message: Range<usize>) -> Result<PbLink, PbError> {
    let start = message.start;
    let mut reader = Reader::new(block, message);
    let (mut hash, mut name, mut tsize) = (None, start..start, 0);
    let mut last = 0;
    while let Some(field) = reader.next()? {
        if field.number <= last {
            return Err(PbError::new(field.at, "link field repeated or out of order"));
        }
        last = field.number;
        match field.number {
            1 => hash = Some(field.value.bytes(field.at)?),
            2 => name = field.value.bytes(field.at)?,
            3 => tsize = field.value.varint(field.at)?,
            _ => return Err(PbError::new(field.at, "unknown field of a link")),
        }
    }
    let hash = hash.ok_or_else(|| PbError::new(start, "link without a CID"))?;
    Ok(PbLink { hash, name, tsize })
}

/// A link that is to be written.
#[derive(Clone, Debug)]
pub(super) struct NewLink {
    /// The child's CID in bytes.
    pub(super) hash: Vec<u8>,
    /// Written even when it is empty: that is what all builders do, and the ids depend on it.
    pub(super) name: Vec<u8>,
    pub(super) tsize: u64,
}

impl NewLink {
    fn body_len(&self) -> usize {
        let field = |len: usize| 1 + pb::varint_len(len as u64) + len;
        field(self.hash.len()) + field(self.name.len()) + 1 + pb::varint_len(self.tsize)
    }

    /// Bytes that the link takes in a block.
    pub(super) fn encoded_len(&self) -> usize {
        let body = self.body_len();
        1 + pb::varint_len(body as u64) + body
    }
}

/// Writes a node in the canonical form: links before data.
pub(super) fn encode(links: &[NewLink], data: &[u8]) -> Vec<u8> {
    let len = links.iter().map(NewLink::encoded_len).sum::<usize>() + data.len() + 10;
    let mut out = Vec::with_capacity(len);
    for link in links {
        out.push(2 << 3 | 2);
        pb::put_varint(&mut out, link.body_len() as u64);
        pb::put_bytes(&mut out, 1, &link.hash);
        pb::put_bytes(&mut out, 2, &link.name);
        pb::put_u64(&mut out, 3, link.tsize);
    }
    pb::put_bytes(&mut out, 1, data);
    out
}
