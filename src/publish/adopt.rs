//! Files that others keep: hashed as what is published is, and served from where they are.

use std::{fs::File, path::Path, sync::Arc};

use super::{
    PublishError, Uploads,
    hash::{self, Hashed},
};
use crate::{
    content::ContentId,
    store::{Batch, FileStamp, ObjectId, Seal, WorkingFile},
};

/// What a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Its id.
    pub root: ContentId,
    /// The object that it became, which the caller owns from now on.
    pub object: Option<ObjectId>,
    /// Whether its blocks can be given to others: by that object, or by another one that was here.
    pub served: bool,
}

impl Uploads {
    /// Finds out the id of a file that lies elsewhere and that nobody changes any more, and has the store serve it from
    /// there, without a copy, where the filesystem allows that. It is neither in the tree nor announced.
    ///
    /// # Errors
    /// When the file changes meanwhile, or the disk fails; [`PublishError::Closed`] when everything ends.
    pub async fn adopt(&self, path: &Path) -> Result<Adopted, PublishError> {
        let (inner, failed) = (&self.inner, |source| PublishError::Io { what: "read", source });
        let file = Arc::new(File::open(path).map_err(failed)?);
        let before = FileStamp::of(&file).map_err(failed)?;
        let token = inner.tasks.token().clone();
        let ended = Arc::new(move || token.is_cancelled());
        let params = inner.options.import;
        let hashing = hash::hash(&inner.tasks, file.clone(), before.size, params, None, ended);
        let hashed = hashing.await?.ok_or(PublishError::Closed)?;
        let (uploads, path) = (self.clone(), path.to_owned());
        let taking = move || uploads.take_in(&path, &file, before, hashed);
        inner.tasks.blocking("take a file in", taking).await.map_err(|_| PublishError::Closed)?
    }

    fn take_in(
        &self,
        path: &Path,
        file: &Arc<File>,
        before: FileStamp,
        hashed: Hashed,
    ) -> Result<Adopted, PublishError> {
        let (store, root) = (&self.inner.store, hashed.root);
        if store.object(&root)?.is_some_and(|object| object.is_complete()) {
            return Ok(Adopted { root, object: None, served: true });
        }
        let Some(working) = store.adopt(path)? else {
            return Ok(Adopted { root, object: None, served: false });
        };
        let taken = self.seal_taken(&working, file, before, hashed);
        // A commit that failed may stand all the same: the index decides.
        if taken.is_err() && store.object_by_id(working.id()).is_ok_and(|object| object.is_none()) {
            store.discard(&working);
        }
        taken.map(|()| Adopted { root, object: Some(working.id()), served: true })
    }

    fn seal_taken(
        &self,
        working: &WorkingFile,
        file: &Arc<File>,
        before: FileStamp,
        hashed: Hashed,
    ) -> Result<(), PublishError> {
        let (store, root) = (&self.inner.store, hashed.root);
        let failed = |source| PublishError::Io { what: "read", source };
        // Getting another name changes the ctime, being written the mtime too.
        let after = FileStamp::of(file).map_err(failed)?;
        if (after.mtime, after.size) != (before.mtime, before.size) {
            return Err(failed(std::io::Error::other("the file changed while it was hashed")));
        }
        let reader = Arc::new(working.open(false)?);
        let stamp = FileStamp::of(&reader).map_err(failed)?;
        let seal = Seal {
            object: working.id(),
            root,
            stamp,
            leaves: hashed.leaves,
            nodes: hashed.nodes,
            present: None,
        };
        store.commit(Batch { sync: vec![reader], seal: vec![seal], ..Batch::default() })?;
        Ok(())
    }

    /// Gives up an object that [`Uploads::adopt`] made; its file elsewhere is gone by then. It goes when room is needed.
    ///
    /// # Errors
    /// When the index cannot be written.
    pub fn give_up(&self, object: ObjectId) -> Result<(), PublishError> {
        Ok(self.inner.store.commit(Batch { release: vec![object], ..Batch::default() })?)
    }
}
