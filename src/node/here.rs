//! How much of a content is here.

use std::collections::HashSet;

use super::{Node, NodeError};
use crate::content::{Codec, ContentId, NodeKind};

/// Files and directories below one that are looked at; what has more counts as not complete. A look takes some 20 µs.
const MAX_LOOKED_AT: usize = 100_000;

/// How much of a content is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// Not even its own block.
    Nothing,
    /// Some of it.
    Part,
    /// All, with everything below it.
    All,
}

impl Node {
    /// How much of a content is here, without the network. May wait for the disk.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn here(&self, root: &ContentId) -> Result<Here, NodeError> {
        let (mut seen, mut left) = (HashSet::from([*root]), vec![*root]);
        while let Some(id) = left.pop() {
            match self.own(&id)? {
                Here::All => {}
                part => return Ok(if id == *root { part } else { Here::Part }),
            }
            // A file has nothing below it, and nothing is known of what is not here.
            let Some(Ok(entries)) = self.list_now(&id) else { continue };
            left.extend(entries.iter().map(|entry| entry.cid).filter(|id| seen.insert(*id)));
            if seen.len() > MAX_LOOKED_AT {
                return Ok(Here::Part);
            }
        }
        Ok(Here::All)
    }

    /// The same of a file, a symlink, or a directory without what is below it.
    fn own(&self, id: &ContentId) -> Result<Here, NodeError> {
        let resolved = match self.resolve_now(id) {
            None => return Ok(Here::Nothing),
            Some(resolved) => resolved?,
        };
        Ok(match resolved.kind {
            NodeKind::Directory | NodeKind::Shard => match self.list_now(id) {
                Some(entries) => entries.map(|_| Here::All)?,
                None => Here::Part,
            },
            NodeKind::Symlink => Here::All,
            // The block of a raw file is all of it.
            NodeKind::File if id.codec() == Codec::Raw || resolved.size == 0 => Here::All,
            NodeKind::File => match self.store().object(id)? {
                Some(object) if object.is_complete() => Here::All,
                Some(object) if object.present().bytes() > 0 => Here::Part,
                _ => Here::Nothing,
            },
        })
    }
}
