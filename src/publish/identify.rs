//! Ids of files and trees of this machine, found without copying anything.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use super::{
    PublishError,
    ignore::{IgnoreScope, Skipped},
    import::{MAX_DEPTH, at, no_content},
};
use crate::content::{
    ContentId, DirectoryBuilder, FileBuilder, ImportParams, Metadata, sha2_256_each, symlink,
};

type Result<T> = std::result::Result<T, PublishError>;

/// Bytes that are read and hashed at a time: several leaves, which some processors hash at once.
const READ_LEN: usize = 4 << 20;

/// Sees what is found, and may end the search by an error.
pub trait Watcher {
    /// Bytes were hashed.
    ///
    /// # Errors
    /// Whatever ends the search.
    fn hashed(&mut self, bytes: u64) -> Result<()>;
    /// A file, directory or symbolic link has its id; a directory comes after all that is in it.
    fn found(&mut self, id: ContentId, shown: &Path);
}

/// Id and Tsize.
type Identified = (ContentId, u64);

/// Finds the ids of all that publishing a path would publish.
#[derive(Debug)]
pub struct Identifier<'a, W> {
    /// The shape of the DAGs.
    pub params: ImportParams,
    /// Receiver of each step.
    pub watcher: &'a mut W,
    /// Names that were left out.
    pub skipped: Skipped,
}

impl<W: Watcher> Identifier<'_, W> {
    /// The id of a file, a tree, or a symbolic link, which is called `shown`. The rules are those of the directory, if it
    /// is one: the path itself was asked for.
    ///
    /// # Errors
    /// When something cannot be read or is no content.
    pub fn path(&mut self, path: &Path, shown: &Path, scope: IgnoreScope) -> Result<ContentId> {
        Ok(self.any(path, shown, scope, 0)?.0)
    }

    /// The id of what a reader gives.
    ///
    /// # Errors
    /// When reading fails.
    pub fn bytes(&mut self, mut from: impl Read, shown: &Path) -> Result<ContentId> {
        let (id, _) = self.contents(&mut from, shown)?;
        self.watcher.found(id, shown);
        Ok(id)
    }

    fn any(
        &mut self,
        path: &Path,
        shown: &Path,
        scope: IgnoreScope,
        depth: usize,
    ) -> Result<Identified> {
        if depth > MAX_DEPTH {
            return Err(PublishError::Invalid("the tree is too deep"));
        }
        let kind = fs::symlink_metadata(path).map_err(at("stat", path))?.file_type();
        let identified = if kind.is_dir() {
            self.directory(path, shown, scope, depth)?
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(at("readlink", path))?;
            let block = symlink(target.as_os_str().as_bytes(), Metadata::default());
            (*block.cid(), block.data().len() as u64)
        } else if kind.is_file() {
            let mut file = File::open(path).map_err(at("open", path))?;
            self.contents(&mut file, path)?
        } else {
            return Err(no_content(path));
        };
        self.watcher.found(identified.0, shown);
        Ok(identified)
    }

    fn directory(
        &mut self,
        path: &Path,
        shown: &Path,
        scope: IgnoreScope,
        depth: usize,
    ) -> Result<Identified> {
        let listed = scope.list(path, shown, &mut self.skipped);
        let (scope, names) = listed.map_err(at("readdir", path))?;
        let mut builder = DirectoryBuilder::new(self.params);
        for name in names {
            let (below, shown) = (path.join(&name), shown.join(&name));
            let (id, tsize) = self.any(&below, &shown, scope.below(&name), depth + 1)?;
            builder.add(OsStr::as_bytes(&name), id, tsize);
        }
        let built = builder.finish(Metadata::default());
        Ok((built.root, built.tsize))
    }

    fn contents(&mut self, from: &mut impl Read, path: &Path) -> Result<Identified> {
        let leaf = self.params.chunk_len;
        let whole_leaves = (READ_LEN / leaf).max(1) * leaf;
        let mut builder = FileBuilder::new(self.params);
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            let read: io::Result<usize> = from.take(whole_leaves as u64).read_to_end(&mut buffer);
            if read.map_err(at("read", path))? == 0 {
                break;
            }
            self.watcher.hashed(buffer.len() as u64)?;
            let leaves: Vec<&[u8]> = buffer.chunks(leaf).collect();
            for (leaf, hash) in leaves.iter().zip(sha2_256_each(&leaves)) {
                builder.push(ContentId::raw(hash), leaf.len() as u64);
            }
        }
        let built = builder.finish(Metadata::default());
        Ok((built.root, built.tsize))
    }
}
