//! What the tree means, in terms of the node; knows no FUSE type. The operations are split by what they are about.

use std::{ffi::OsString, sync::Arc};

use nix::errno::Errno;
use tokio::sync::Semaphore;

use super::{
    ahead::{self, Walks},
    answer::{Answer, Outcome},
    attr::{Attr, Owner, upload},
    control::{self, Events, Rendered},
    errno::{During, of_known, of_node, of_publish},
    handles::Handles,
    torrents::Drafts,
    tree::{Content, Ino, Shape, Tree, What},
    walker::Listed,
};
use crate::node::{Cached, Described, Node, Place, PublishError, SetAttr, UploadIno, Uploads};

/// Figures of statfs(2), in blocks of [`STATFS_BLOCK`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) blocks: u64,
    /// Not used, or used by what may go; some of it cannot be written.
    pub(super) free: u64,
    /// The writable parts of the tree.
    pub(super) available: u64,
    /// Inodes of the disk below, which is what limits them; 0 where it has no such limit.
    pub(super) files: u64,
    pub(super) files_free: u64,
}

/// Unit of [`Space`]; what every Linux filesystem uses.
pub(super) const STATFS_BLOCK: u32 = 4096;

/// The filesystem.
#[derive(Debug)]
pub(super) struct Fs {
    pub(super) node: Node,
    pub(super) tree: Tree,
    pub(super) handles: Handles,
    pub(super) owner: Owner,
    /// What may fetch ahead at once: listings and walks.
    pub(super) prefetches: Arc<Semaphore>,
    /// Who goes through which directory.
    pub(super) walks: Walks,
    /// Directories that were listed lately.
    pub(super) listed: Listed,
    /// What is written in `torrents`.
    pub(super) drafts: Arc<Drafts>,
    /// Texts of `.chiral` that were shown lately.
    pub(super) rendered: Rendered,
    pub(super) events: Events,
}

impl Fs {
    pub(super) fn new(node: Node, owner: Owner) -> Self {
        let prefetches = Arc::new(Semaphore::new(ahead::AT_ONCE));
        Self {
            node,
            tree: Tree::default(),
            handles: Handles::default(),
            owner,
            prefetches,
            walks: Walks::default(),
            listed: Listed::default(),
            drafts: Arc::default(),
            rendered: Rendered::default(),
            events: Events::default(),
        }
    }

    pub(super) fn what(&self, ino: Ino) -> Outcome<What> {
        self.tree.get(ino).ok_or(Errno::ESTALE)
    }

    /// The upload that `ino` is; everything else is read-only.
    pub(super) fn writable(&self, ino: Ino) -> Outcome<UploadIno> {
        match self.what(ino)? {
            What::Upload(upload) => Ok(upload),
            What::Root | What::Ipfs | What::Control | What::ControlFile(_) | What::Content(_) => {
                Err(Errno::EROFS)
            }
            // What is there is no tree, and what is in it is written as a whole.
            What::Torrents | What::Named(_) => Err(Errno::EPERM),
        }
    }

    pub(super) fn getattr(self: &Arc<Self>, ino: Ino) -> Answer<Attr> {
        match self.what(ino) {
            Err(errno) => Answer::error(errno),
            Ok(What::Root | What::Ipfs | What::Control) => Answer::ok(self.owner.directory(ino)),
            Ok(What::ControlFile(file)) => Answer::Now(self.control_attr(file)),
            Ok(What::Torrents) => Answer::ok(self.torrents_attr()),
            Ok(What::Named(named)) => Answer::Now(self.named_attr(&named)),
            Ok(What::Upload(upload_ino)) => Answer::Now(
                known(self.node.uploads().getattr(upload_ino)).map(|attr| upload(&attr)),
            ),
            Ok(What::Content(content)) => {
                let fs = self.clone();
                self.resolved(&content, move |content, resolved| {
                    fs.content_attr(ino, &content.place, resolved)
                })
            }
        }
    }

    pub(super) fn setattr(self: &Arc<Self>, ino: Ino, changes: SetAttr) -> Answer<Attr> {
        if let Ok(What::Named(named)) = self.what(ino) {
            return Answer::Now(self.set_named(&named, changes.size));
        }
        let upload_ino = match self.writable(ino) {
            Ok(upload_ino) => upload_ino,
            Err(errno) => return Answer::error(errno),
        };
        let fs = self.clone();
        let resizes = changes.size.is_some();
        let work = move || {
            known(fs.node.uploads().setattr(upload_ino, &changes)).map(|attr| upload(&attr))
        };
        // Truncating what lies over a published file copies the chunk that is cut.
        if resizes { Answer::blocking(work) } else { Answer::Now(work()) }
    }

    pub(super) fn readlink(self: &Arc<Self>, ino: Ino) -> Answer<Vec<u8>> {
        match self.what(ino) {
            Err(errno) => Answer::error(errno),
            Ok(What::Upload(upload_ino)) => Answer::Now(
                known(self.node.uploads().readlink(upload_ino)).map(OsString::into_encoded_bytes),
            ),
            Ok(What::Content(content)) => self.resolved(&content, |_, resolved| {
                resolved.target.clone().map(OsString::into_encoded_bytes).ok_or(Errno::EINVAL)
            }),
            Ok(What::Named(named)) => Answer::Now(self.named_link(&named)),
            Ok(What::Root | What::Ipfs | What::Control | What::ControlFile(_) | What::Torrents) => {
                Answer::error(Errno::EINVAL)
            }
        }
    }

    /// Figures of the disk; never waits for anybody.
    pub(super) fn statfs(&self) -> Outcome<Space> {
        let stats = self.node.store().stats().map_err(|e| super::errno::of_store(&e))?;
        let block = u64::from(STATFS_BLOCK);
        Ok(Space {
            blocks: stats.capacity / block,
            free: stats.free / block,
            available: stats.available / block,
            files: stats.files,
            files_free: stats.files_free,
        })
    }

    /// Gives `answer` what a content node is, waiting for its block if need be. A node that is of another kind than
    /// its inode shows is stale: the kernel walks the path again and gets an inode of the right kind.
    pub(super) fn resolved<T: Send + 'static>(
        self: &Arc<Self>,
        content: &Arc<Content>,
        answer: impl FnOnce(&Content, &Described) -> Outcome<T> + Send + 'static,
    ) -> Answer<T> {
        let answer = move |content: &Content, resolved: &Described| {
            if Shape::of(resolved.kind) == content.shape {
                answer(content, resolved)
            } else {
                Err(Errno::ESTALE)
            }
        };
        match self.node.protocol(&content.place).resolve_now(&content.place) {
            Some(Ok(resolved)) => Answer::Now(answer(content, &resolved)),
            Some(Err(error)) => Answer::error(of_node(&error, During::Lookup)),
            None => {
                let (fs, content) = (self.clone(), content.clone());
                Answer::later(async move {
                    let resolving = fs.node.protocol(&content.place).resolve(&content.place);
                    let resolved = fs.waiting(&content, resolving).await;
                    answer(&content, &resolved.map_err(|e| of_node(&e, During::Lookup))?)
                })
            }
        }
    }

    pub(super) fn content_attr(
        &self,
        ino: Ino,
        place: &Place,
        resolved: &Described,
    ) -> Outcome<Attr> {
        let cached = match Shape::of(resolved.kind) {
            Shape::File => self.cached(place)?,
            Shape::Directory | Shape::Symlink => Cached::default(),
        };
        Ok(self.owner.content(ino, resolved, cached.allocated, cached.complete))
    }

    /// How much of a file is here.
    pub(super) fn cached(&self, place: &Place) -> Outcome<Cached> {
        let cached = self.node.protocol(place).cached(place);
        cached.map_err(|e| of_node(&e, During::Lookup))
    }

    pub(super) fn control_attr(&self, file: Ino) -> Outcome<Attr> {
        let file = control::File::of(file).ok_or(Errno::ENOENT)?;
        Ok(match self.rendered.text(file, &self.node)? {
            Some(text) => self.owner.control(file.ino(), text.len() as u64),
            None => self.owner.log(file.ino(), self.events.len()),
        })
    }
}

/// The errno of an operation on a name in a directory of the upload tree. If the directory itself is gone, its own name
/// may lead to another one by now; see [`of_known`].
pub(super) fn of_name(uploads: &Uploads, dir: UploadIno, error: &PublishError) -> Errno {
    match error {
        PublishError::NotFound if uploads.parent(dir).is_err() => Errno::ESTALE,
        error => of_publish(error),
    }
}

/// The outcome of an operation on an inode of the upload tree that the kernel knows; see [`of_known`].
pub(super) fn known<T>(result: Result<T, PublishError>) -> Outcome<T> {
    result.map_err(|e| of_known(&e))
}

/// The outcome of an operation on the upload tree.
pub(super) fn published<T>(result: Result<T, PublishError>) -> Outcome<T> {
    result.map_err(|e| of_publish(&e))
}
