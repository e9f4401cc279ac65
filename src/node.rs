//! The composition root: builds store, network, engine and upload tree, and resolves ids to trees.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    content::{ContentId, Entry, Metadata, NodeKind},
    download::{DownloadError, DownloadOptions, Engine, FileHandle},
    net::{Net, NetError, NetOptions},
    publish::{PublishError, PublishOptions, Uploads},
    store::{Store, StoreError, StoreOptions},
    tasks::Tasks,
};

/// Everything that a node can be told.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub struct NodeOptions {
    pub store: StoreOptions,
    pub net: NetOptions,
    pub download: DownloadOptions,
    pub publish: PublishOptions,
}

/// Why the node could not start or resolve something.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sources say it")]
pub enum NodeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("{path}: no such entry in {dir}")]
    NoEntry { dir: ContentId, path: String },
    #[error("{0} is not a directory")]
    NotADirectory(ContentId),
    #[error("{0} is a directory")]
    IsADirectory(ContentId),
    #[error("the data folder {} and the mountpoint lie in one another", .0.display())]
    Nested(PathBuf),
}

/// What an id turned out to be.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The id.
    pub id: ContentId,
    /// File, directory (sharded ones say [`NodeKind::Directory`] too) or symlink.
    pub kind: NodeKind,
    /// Bytes of a file, length of a symlink's target, 0 of a directory.
    pub size: u64,
    /// Mode and mtime where the DAG has them.
    pub meta: Metadata,
    /// Target of a symlink.
    pub target: Option<String>,
}

/// The node; clones share it.
#[derive(Clone, Debug)]
pub struct Node {
    _private: (),
}

impl Node {
    /// Starts all parts, from the store up.
    pub async fn start(_options: NodeOptions, _tasks: Tasks) -> Result<Self, NodeError> {
        todo!()
    }
    /// Ends all parts, from the network down; what was acknowledged is on disk.
    pub async fn stop(&self, _deadline: Duration) -> Result<(), NodeError> {
        todo!()
    }
    #[allow(missing_docs, reason = "the type says it")]
    pub fn store(&self) -> &Store {
        todo!()
    }
    #[allow(missing_docs, reason = "the type says it")]
    pub fn net(&self) -> &Net {
        todo!()
    }
    #[allow(missing_docs, reason = "the type says it")]
    pub fn engine(&self) -> &Engine {
        todo!()
    }
    #[allow(missing_docs, reason = "the type says it")]
    pub fn uploads(&self) -> &Uploads {
        todo!()
    }
    #[allow(missing_docs, reason = "the type says it")]
    pub fn tasks(&self) -> &Tasks {
        todo!()
    }

    /// What an id is, as far as this node knows without the network.
    pub fn resolve_now(&self, _id: &ContentId) -> Option<Result<Arc<Resolved>, NodeError>> {
        todo!()
    }
    /// What an id is; `root` is the id of the path's first component, whose providers are asked. Ends with
    /// [`DownloadError::NotFound`] after the lookup timeout; the search goes on in the background.
    pub async fn resolve(
        &self,
        _root: &ContentId,
        _id: &ContentId,
    ) -> Result<Arc<Resolved>, NodeError> {
        todo!()
    }
    /// Entries of a directory, sorted by name. Needs only the directory's own blocks.
    pub async fn list(
        &self,
        _root: &ContentId,
        _id: &ContentId,
    ) -> Result<Arc<Vec<Entry>>, NodeError> {
        todo!()
    }
    /// The entries if they are known without the network.
    pub fn list_now(&self, _id: &ContentId) -> Option<Result<Arc<Vec<Entry>>, NodeError>> {
        todo!()
    }
    /// One name of a directory without the network: none = a missing shard decides.
    pub fn child_now(
        &self,
        _dir: &ContentId,
        _name: &str,
    ) -> Option<Result<Option<Entry>, NodeError>> {
        todo!()
    }
    /// One name of a directory.
    pub async fn child(
        &self,
        _root: &ContentId,
        _dir: &ContentId,
        _name: &str,
    ) -> Result<Option<Entry>, NodeError> {
        todo!()
    }
    /// Opens a file.
    pub async fn open(&self, _root: &ContentId, _id: &ContentId) -> Result<FileHandle, NodeError> {
        todo!()
    }
    /// Opens a file whose root node is here.
    pub fn open_now(&self, _id: &ContentId) -> Option<Result<FileHandle, NodeError>> {
        todo!()
    }
    /// Roots for the listing of the mountpoint.
    pub fn roots(&self) -> Result<Vec<crate::store::KnownRoot>, NodeError> {
        todo!()
    }
}
