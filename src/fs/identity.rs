//! Inodes by their number alone: LOOKUP of `.` and `..`, by which the kernel finds again what a file handle names.
//!
//! An NFS server, or a program with `open_by_handle_at(2)`, comes back with a number that the kernel has forgotten
//! meanwhile. Inodes of the upload tree are found by it as long as they live. Content is numbered by a hash of its path,
//! which tells no path: the last ones that the kernel forgot are remembered, others are ESTALE, as NFS allows.

use std::{sync::Arc, time::Duration};

use nix::errno::Errno;

use super::{
    answer::Outcome,
    attr::upload,
    errno::{During, of_node},
    lookup::Found,
    semantics::{Fs, known},
    tree::{self, Content, Ino, Shape, What},
};
use crate::node::{Place, UploadIno};

impl Fs {
    /// An inode itself. Its name is not looked up, so that nothing may be kept for it.
    pub(super) fn lookup_self(&self, ino: Ino) -> Outcome<Found> {
        let attr = match self.what(ino)? {
            What::Root | What::Ipfs | What::Control => self.owner.directory(ino),
            What::Torrents => self.torrents_attr(),
            What::ControlFile(file) => self.control_attr(file)?,
            What::Upload(upload_ino) => upload(&known(self.node.uploads().getattr(upload_ino))?),
            What::Named(named) => {
                let attr = self.named_attr(&named)?;
                self.tree.enter_named(ino, (*named).clone());
                attr
            }
            What::Content(content) => {
                let place = &content.place;
                let resolved = self.node.protocol(place).resolve_now(place).transpose();
                let attr = match resolved.map_err(|e| of_node(&e, During::Lookup))? {
                    Some(resolved) if Shape::of(resolved.kind) != content.shape => {
                        return Err(Errno::ESTALE);
                    }
                    Some(resolved) => self.content_attr(ino, place, &resolved)?,
                    None => self.owner.placeholder(ino, content.shape),
                };
                self.tree.enter(ino, Content::clone(&content));
                attr
            }
        };
        Ok(Found::Entry { attr, ttl: Duration::ZERO })
    }

    /// The directory that holds an inode.
    pub(super) fn lookup_parent(&self, ino: Ino) -> Outcome<Found> {
        let parent = match self.what(ino)? {
            What::Root | What::Ipfs | What::Control | What::Torrents => tree::ROOT,
            What::ControlFile(_) => tree::CONTROL,
            What::Upload(UploadIno::ROOT) => tree::ROOT,
            What::Upload(upload_ino) => {
                tree::of_upload(known(self.node.uploads().parent(upload_ino))?)
            }
            What::Named(_) => tree::TORRENTS,
            What::Content(content) => content.parent,
        };
        self.lookup_self(parent)
    }

    /// The user opens something: the root above it gets on the listing of the mountpoint.
    pub(super) fn opened(self: &Arc<Self>, place: &Place) {
        if let Place::Content { root, .. } = place {
            self.node.opened(root);
        }
    }
}
