//! From ids to trees: what an id is, what is in a directory, where a path leads.

use std::{collections::BTreeMap, ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc};

use futures::FutureExt;
use tokio::time::Instant;

use super::{
    Known, Node, NodeError, Resolved,
    cache::{Directory, bytes_of},
};
use crate::{
    content::{
        Block, Codec, ContentId, DagError, DirectoryReader, Entry, Lookup, Metadata,
        Node as DagNode, NodeKind, Omissions, Omitted,
    },
    download::FileHandle,
    store::KnownRoot,
};

/// Shards whose blocks one look-up may go through. 64-bit name hashes give at most 21 levels of the narrowest
/// shards; a DAG that asks for more goes round in a circle.
const MAX_SHARD_DEPTH: usize = 64;

impl Node {
    /// What an id is, as far as this node knows without the network.
    pub fn resolve_now(&self, id: &ContentId) -> Known<Arc<Resolved>> {
        if let Some(known) = self.inner.cache.resolved(id) {
            return Some(Ok(known));
        }
        // The length is all that there is to know of a raw block; it may be 2 MiB long.
        let found = if id.codec() == Codec::Raw {
            self.store().block_len(id).map(|len| len.map(|len| Ok(raw_file(*id, len as u64))))
        } else {
            self.store().block(id).map(|block| block.map(|block| described(&block)))
        };
        match found {
            Ok(None) => None,
            Ok(Some(resolved)) => Some(resolved.map(|resolved| self.keep(resolved))),
            Err(error) => Some(Err(error.into())),
        }
    }

    /// What an id is; `root` is the id of the path's first component, whose providers are asked. Ends with
    /// [`DownloadError::NotFound`](super::DownloadError::NotFound) after the lookup timeout; the search goes on in
    /// the background.
    ///
    /// # Errors
    /// When nobody has it in time, or it is nothing that UnixFS knows.
    pub async fn resolve(
        &self,
        root: &ContentId,
        id: &ContentId,
    ) -> Result<Arc<Resolved>, NodeError> {
        match self.resolve_now(id) {
            Some(known) => known,
            None => Ok(self.keep(described(&self.engine().node(root, id).await?)?)),
        }
    }

    /// Entries of a directory, sorted by name. Needs only the directory's own blocks.
    ///
    /// # Errors
    /// [`NodeError::NotADirectory`], or as [`Node::resolve`].
    pub async fn list(
        &self,
        root: &ContentId,
        id: &ContentId,
    ) -> Result<Arc<Vec<Entry>>, NodeError> {
        if let Some(known) = self.list_now(id) {
            return known;
        }
        expect_directory(&*self.resolve(root, id).await?)?;
        let reader = self.engine().directory(root, id).await?;
        let directory = Arc::new(Directory::new(reader));
        let entries =
            directory.complete_entries().unwrap_or_else(|| Arc::new(directory.reader().entries()));
        self.tell_of_omissions(id, &entries, directory.reader().omitted());
        self.inner.cache.put_directory(*id, directory, bytes_of(&entries));
        Ok(entries)
    }

    /// Entries of a directory, just listed, that cannot be shown.
    pub(super) fn omitted_of(&self, id: &ContentId) -> Result<Omissions, NodeError> {
        let directory = self.directory_now(id).transpose()?;
        Ok(directory.map(|directory| directory.reader().omitted().clone()).unwrap_or_default())
    }

    /// Says once for each directory what in it cannot be shown or read: a mount has no other place for that.
    fn tell_of_omissions(&self, id: &ContentId, entries: &[Entry], omitted: &Omissions) {
        if !self.inner.cache.is_to_be_told_of(id) {
            return;
        }
        let first = omitted.listed().first();
        if let Some(Omitted { name, cid, why }) = first {
            let count = omitted.count();
            tracing::warn!(directory = %id, count, ?name, %cid, why, "entries cannot be shown");
        }
        let mut unreadable =
            entries.iter().filter_map(|entry| Some((entry, entry.cid.unreadable()?)));
        if let Some((Entry { name, cid, .. }, why)) = unreadable.next() {
            let count = 1 + unreadable.count();
            tracing::warn!(directory = %id, count, ?name, %cid, why, "entries cannot be read");
        }
    }

    /// The entries if they are known without the network.
    pub fn list_now(&self, id: &ContentId) -> Known<Arc<Vec<Entry>>> {
        let directory = match self.directory_now(id)? {
            Ok(directory) => directory,
            Err(error) => return Some(Err(error)),
        };
        match self.fill_from_store(&directory) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Err(error)),
        }
        let entries = directory.complete_entries()?;
        self.tell_of_omissions(id, &entries, directory.reader().omitted());
        self.inner.cache.put_directory(*id, directory, bytes_of(&entries));
        Some(Ok(entries))
    }

    /// One name of a directory without the network: none = a missing shard decides.
    pub fn child_now(&self, dir: &ContentId, name: &OsStr) -> Known<Option<Entry>> {
        let directory = match self.directory_now(dir)? {
            Ok(directory) => directory,
            Err(error) => return Some(Err(error)),
        };
        match self.lookup(dir, &directory, name) {
            Ok(Lookup::Found(entry)) => Some(Ok(Some(entry))),
            Ok(Lookup::Absent) => Some(Ok(None)),
            Ok(Lookup::Need(_)) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// One name of a directory.
    ///
    /// # Errors
    /// [`NodeError::NotADirectory`], or as [`Node::resolve`].
    pub async fn child(
        &self,
        root: &ContentId,
        dir: &ContentId,
        name: &OsStr,
    ) -> Result<Option<Entry>, NodeError> {
        let directory = match self.directory_now(dir) {
            Some(known) => known?,
            None => {
                expect_directory(&*self.resolve(root, dir).await?)?;
                let block = self.engine().node(root, dir).await?;
                self.keep_directory(&block)?
            }
        };
        for _ in 0..MAX_SHARD_DEPTH {
            match self.lookup(dir, &directory, name)? {
                Lookup::Found(entry) => return Ok(Some(entry)),
                Lookup::Absent => return Ok(None),
                Lookup::Need(shard) => {
                    let block = self.engine().node(root, &shard).await?;
                    directory.reader().insert(&block)?;
                }
            }
        }
        Err(too_deep(dir))
    }

    /// The blocks of a directory that lead to a name, from its root on, without the network: none = one of them is not
    /// here.
    pub fn blocks_to(&self, dir: &ContentId, name: &OsStr) -> Known<Vec<ContentId>> {
        let directory = match self.directory_now(dir)? {
            Ok(directory) => directory,
            Err(error) => return Some(Err(error)),
        };
        match self.lookup(dir, &directory, name) {
            Ok(Lookup::Need(_)) => None,
            Ok(_) => {
                let shards = directory.reader().shards_to(name);
                Some(Ok(if shards.is_empty() { vec![*dir] } else { shards }))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Where a path below a root leads: the last component's id, and what it is. Symlinks are not followed.
    ///
    /// # Errors
    /// [`NodeError::NoEntry`], [`NodeError::NotADirectory`], or as [`Node::resolve`].
    pub async fn walk(
        &self,
        root: &ContentId,
        path: impl AsRef<OsStr>,
    ) -> Result<Arc<Resolved>, NodeError> {
        let mut at = *root;
        let names = path.as_ref().as_bytes().split(|byte| *byte == b'/');
        for name in names.filter(|name| !name.is_empty()).map(OsStr::from_bytes) {
            let Some(entry) = self.child(root, &at, name).await? else {
                return Err(NodeError::NoEntry { dir: at, path: name.display().to_string() });
            };
            at = entry.cid;
        }
        self.resolve(root, &at).await
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`NodeError::IsADirectory`], [`NodeError::IsASymlink`], or as [`Node::resolve`].
    pub async fn open(&self, root: &ContentId, id: &ContentId) -> Result<FileHandle, NodeError> {
        expect_file(&*self.resolve(root, id).await?)?;
        Ok(self.engine().file(root, id).await?)
    }

    /// Opens a file whose own root node is here; `root` as in [`Node::resolve`].
    pub fn open_now(&self, root: &ContentId, id: &ContentId) -> Known<FileHandle> {
        if let Err(error) = expect_file(&*match self.resolve_now(id)? {
            Ok(resolved) => resolved,
            Err(error) => return Some(Err(error)),
        }) {
            return Some(Err(error));
        }
        // What was resolved may have been evicted since; then the engine would have to wait for the network.
        match self.store().block_len(id) {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(error) => return Some(Err(error.into())),
        }
        let opened = self.engine().file(root, id).now_or_never()?;
        Some(opened.map_err(NodeError::from))
    }

    /// Roots for the listing of the mountpoint: at the top of the upload tree, pinned, or opened by the user; each once,
    /// in the order of their ids.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn roots(&self) -> Result<Vec<KnownRoot>, NodeError> {
        let mut roots: BTreeMap<ContentId, bool> = self
            .store()
            .known_roots()?
            .into_iter()
            .map(|known| (known.root.to_v1(), known.directory))
            .collect();
        for (_, root) in self.uploads().published() {
            if let Some(Ok(resolved)) = self.resolve_now(&root) {
                roots.insert(root.to_v1(), resolved.kind == NodeKind::Directory);
            }
        }
        let known = |(root, directory)| KnownRoot { root, directory };
        Ok(roots.into_iter().map(known).collect())
    }

    fn keep(&self, resolved: Resolved) -> Arc<Resolved> {
        let resolved = Arc::new(resolved);
        self.inner.cache.put_resolved(resolved.clone());
        resolved
    }

    /// The user opens something below a root: the root gets on the listing of the mountpoint, in the background.
    pub fn opened(&self, root: &ContentId) {
        if root.inline_content().is_some()
            || !self.inner.cache.is_to_be_listed(root, Instant::now())
        {
            return;
        }
        let (node, root) = (self.clone(), *root);
        self.tasks().blocking("listing of a root", move || node.remember(&root));
    }

    /// Puts a root that is here on the listing of the mountpoint. Waits for the disk.
    pub(super) fn remember(&self, root: &ContentId) {
        let Some(Ok(resolved)) = self.resolve_now(root) else { return };
        let known = KnownRoot { root: *root, directory: resolved.kind == NodeKind::Directory };
        // The listing is a convenience; content is readable without it.
        if let Err(error) = self.store().remember_root(known)
            && !self.store().tell(&error)
        {
            tracing::warn!(id = %root, %error, "the root is missing from the listing");
        }
    }

    /// A directory whose root block is here.
    fn directory_now(&self, id: &ContentId) -> Known<Arc<Directory>> {
        if let Some(known) = self.inner.cache.directory(id) {
            return Some(Ok(known));
        }
        match self.resolve_now(id)? {
            Ok(resolved) if resolved.kind == NodeKind::Directory => {}
            Ok(_) => return Some(Err(NodeError::NotADirectory(*id))),
            Err(error) => return Some(Err(error)),
        }
        match self.store().block(id) {
            Ok(block) => block.map(|block| self.keep_directory(&block)),
            Err(error) => Some(Err(error.into())),
        }
    }

    fn keep_directory(&self, root: &Block) -> Result<Arc<Directory>, NodeError> {
        let reader = DirectoryReader::new(root)?;
        let bytes = bytes_of(&reader.entries());
        let directory = Arc::new(Directory::new(reader));
        self.inner.cache.put_directory(*root.cid(), directory.clone(), bytes);
        Ok(directory)
    }

    /// Finds a name; puts in what shards the store has. [`Lookup::Need`] is one that it does not have.
    fn lookup(
        &self,
        dir: &ContentId,
        directory: &Directory,
        name: &OsStr,
    ) -> Result<Lookup, NodeError> {
        let mut reader = directory.reader();
        for _ in 0..MAX_SHARD_DEPTH {
            match reader.lookup(name) {
                Lookup::Need(shard) => match self.store().block(&shard)? {
                    Some(block) => reader.insert(&block)?,
                    None => return Ok(Lookup::Need(shard)),
                },
                found => return Ok(found),
            }
        }
        Err(too_deep(dir))
    }

    /// Puts in all shards that the store has; whether that is all of them.
    fn fill_from_store(&self, directory: &Directory) -> Result<bool, NodeError> {
        let mut reader = directory.reader();
        loop {
            let missing = reader.missing();
            if missing.is_empty() {
                return Ok(true);
            }
            for shard in &missing {
                match self.store().block(shard)? {
                    Some(block) => reader.insert(&block)?,
                    None => return Ok(false),
                }
            }
            // A shard that is not wanted any more was put in; one that stays wanted would come for ever.
            if reader.missing() == missing {
                return Ok(false);
            }
        }
    }
}

fn raw_file(id: ContentId, len: u64) -> Resolved {
    Resolved { id, kind: NodeKind::File, size: len, meta: Metadata::default(), target: None }
}

fn described(block: &Block) -> Result<Resolved, NodeError> {
    let (kind, size, meta, target) = match DagNode::decode(block)? {
        DagNode::File { size, meta, .. } => (NodeKind::File, size, meta, None),
        DagNode::Directory { meta, .. } | DagNode::Shard { meta, .. } => {
            (NodeKind::Directory, 0, meta, None)
        }
        DagNode::Symlink { target, meta } => {
            (NodeKind::Symlink, target.len() as u64, meta, Some(target))
        }
    };
    Ok(Resolved { id: *block.cid(), kind, size, meta, target })
}

fn expect_directory(resolved: &Resolved) -> Result<(), NodeError> {
    match resolved.kind {
        NodeKind::Directory | NodeKind::Shard => Ok(()),
        NodeKind::File | NodeKind::Symlink => Err(NodeError::NotADirectory(resolved.id)),
    }
}

fn expect_file(resolved: &Resolved) -> Result<(), NodeError> {
    match resolved.kind {
        NodeKind::File => Ok(()),
        NodeKind::Directory | NodeKind::Shard => Err(NodeError::IsADirectory(resolved.id)),
        NodeKind::Symlink => Err(NodeError::IsASymlink(resolved.id)),
    }
}

fn too_deep(dir: &ContentId) -> NodeError {
    let reason = format!("its shards go on below level {MAX_SHARD_DEPTH}");
    DagError::Malformed { cid: *dir, what: "HAMT", reason }.into()
}
