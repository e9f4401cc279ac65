//! Whole directories and whole trees.

use futures::{StreamExt, TryStreamExt, stream};

use super::{DownloadError, Engine, Strategy};
use crate::content::{Block, ContentId, DirectoryReader, Node, NodeKind};

/// Shards of a directory, or files of a tree, that are fetched side by side.
const SIDE_BY_SIDE: usize = 64;
/// Files of one tree that are fetched at once; their blocks share the sources of the tree anyway.
const FILES_AT_ONCE: usize = 4;
/// Levels of directories that a tree may have; real ones have a dozen.
const MAX_DEPTH: usize = 256;

impl Engine {
    /// A directory with all its shards, fetched side by side.
    ///
    /// # Errors
    /// As [`Engine::node`], and [`DownloadError::Dag`] when it is no directory.
    pub async fn directory(
        &self,
        root: &ContentId,
        id: &ContentId,
    ) -> Result<DirectoryReader, DownloadError> {
        let block = self.node(root, id).await?;
        let mut directory = DirectoryReader::new(&block)?;
        loop {
            let missing = directory.missing();
            if missing.is_empty() {
                return Ok(directory);
            }
            let mut shards = stream::iter(missing)
                .map(|shard| async move { self.node(root, &shard).await })
                .buffer_unordered(SIDE_BY_SIDE);
            while let Some(shard) = shards.try_next().await? {
                directory.insert(&shard)?;
            }
        }
    }

    /// Fetches a file or a whole tree in the background until it is here (`pin`, `get`).
    ///
    /// # Errors
    /// The first error of any part; what came until then is kept, and the next call goes on from there.
    pub async fn fetch(&self, id: &ContentId, strategy: Strategy) -> Result<(), DownloadError> {
        let _slot = self.slot().await?;
        let mut level = vec![*id];
        for _ in 0..MAX_DEPTH {
            let mut below = stream::iter(std::mem::take(&mut level))
                .map(|child| async move { self.fetch_one(id, &child, strategy).await })
                .buffer_unordered(FILES_AT_ONCE);
            while let Some(children) = below.try_next().await? {
                level.extend(children);
            }
            if level.is_empty() {
                return Ok(());
            }
            level.sort_unstable();
            level.dedup();
        }
        Ok(())
    }

    /// Fetches a file, or a directory without what is in it; gives the children of a directory.
    async fn fetch_one(
        &self,
        root: &ContentId,
        id: &ContentId,
        strategy: Strategy,
    ) -> Result<Vec<ContentId>, DownloadError> {
        let block: Block = self.node(root, id).await?;
        match Node::decode(&block)?.kind() {
            NodeKind::Symlink => Ok(Vec::new()),
            NodeKind::File => {
                let handle = self.file(root, id).await?;
                self.whole(&handle, strategy).await.map(|()| Vec::new())
            }
            NodeKind::Directory | NodeKind::Shard => {
                let directory = self.directory(root, id).await?;
                Ok(directory.entries().into_iter().map(|entry| entry.cid).collect())
            }
        }
    }
}
