//! From a path to blocks, with the network or without.

use std::{ffi::OsString, sync::Arc};

use super::refusal::Refusal;
use crate::{
    content::{Block, ContentId, Entry},
    node::{FileHandle, Node, Resolved},
};

/// Looks content up for one request.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    pub(super) node: Node,
    /// The id whose providers are asked.
    pub(super) root: ContentId,
    /// Whether what is not here is fetched.
    pub(super) fetch: bool,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub(super) struct Way {
    /// What each name leads to, from the root on.
    pub(super) roots: Vec<ContentId>,
    /// Blocks that a client needs to follow the path, without the last id's own.
    pub(super) blocks: Vec<ContentId>,
    /// Where it ends.
    pub(super) end: ContentId,
}

impl Resolver {
    pub(super) async fn way(&self, names: &[OsString]) -> Result<Way, Refusal> {
        let mut way = Way { roots: vec![self.root], blocks: Vec::new(), end: self.root };
        for name in names {
            let dir = way.end;
            let Some(entry) = self.child(&dir, name).await? else {
                let shown = name.display();
                return Err(Refusal::NotFound(format!("no link named `{shown}` under {dir}")));
            };
            // It was there a moment ago.
            let blocks = self.node.blocks_to(&dir, name).ok_or(Refusal::NotHere(dir))??;
            way.blocks.extend(blocks);
            way.roots.push(entry.cid);
            way.end = entry.cid;
        }
        Ok(way)
    }

    pub(super) async fn child(
        &self,
        dir: &ContentId,
        name: &OsString,
    ) -> Result<Option<Entry>, Refusal> {
        match self.node.child_now(dir, name) {
            Some(known) => Ok(known?),
            None if self.fetch => Ok(self.node.child(&self.root, dir, name).await?),
            None => Err(Refusal::NotHere(*dir)),
        }
    }

    pub(super) async fn resolve(&self, id: &ContentId) -> Result<Arc<Resolved>, Refusal> {
        match self.node.resolve_now(id) {
            Some(known) => Ok(known?),
            None if self.fetch => Ok(self.node.resolve(&self.root, id).await?),
            None => Err(Refusal::NotHere(*id)),
        }
    }

    pub(super) async fn entries(&self, dir: &ContentId) -> Result<Arc<Vec<Entry>>, Refusal> {
        match self.node.list_now(dir) {
            Some(known) => Ok(known?),
            None if self.fetch => Ok(self.node.list(&self.root, dir).await?),
            None => Err(Refusal::NotHere(*dir)),
        }
    }

    pub(super) async fn block(&self, id: &ContentId) -> Result<Block, Refusal> {
        match self.node.store().block(id) {
            Ok(Some(block)) => Ok(block),
            Ok(None) if self.fetch => Ok(self.node.engine().node(&self.root, id).await?),
            Ok(None) => Err(Refusal::NotHere(*id)),
            Err(error) => Err(Refusal::Internal(error.to_string())),
        }
    }

    pub(super) async fn open(&self, id: &ContentId) -> Result<FileHandle, Refusal> {
        match self.node.open_now(&self.root, id) {
            Some(opened) => Ok(opened?),
            None if self.fetch => Ok(self.node.open(&self.root, id).await?),
            None => Err(Refusal::NotHere(*id)),
        }
    }
}
