//! From a name to an inode.
//!
//! A LOOKUP that waits holds its directory's lock, and one `touch` beside it makes every further lookup there wait in
//! a state that no signal ends. So a name of content whose block is not here is answered at once, with a directory of
//! which nothing may be kept; GETATTR, OPENDIR and lookups below it wait, while the lock of its parent is free. If it
//! turns out to be a file, they answer ESTALE: the kernel walks the path again by itself, and this time the name
//! leads to a file, under another inode number. Programs notice nothing.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc, time::Duration};

use nix::errno::Errno;

use super::{
    answer::{Answer, Outcome},
    attr::{Attr, FOREVER, HOUR, SECOND, upload},
    control,
    errno::{During, of_node, of_publish},
    names::{RootName, content_name, root_name},
    semantics::{Fs, of_name},
    tree::{self, Content, Ino, Shape, What},
};
use crate::node::{NodeError, Place, UploadIno};

/// What a name leads to.
#[derive(Debug)]
pub(super) enum Found {
    /// An inode; the kernel may keep the name for `ttl`.
    Entry { attr: Attr, ttl: Duration },
    /// Nothing, and the kernel may keep that for so long.
    Absent(Duration),
}

impl Fs {
    pub(super) fn lookup(self: &Arc<Self>, parent: Ino, name: &OsStr) -> Answer<Found> {
        match name.as_bytes() {
            b"." => return Answer::Now(self.lookup_self(parent)),
            b".." => return Answer::Now(self.lookup_parent(parent)),
            _ => {}
        }
        match self.what(parent) {
            Err(errno) => Answer::error(errno),
            Ok(What::Root) => Answer::Now(self.lookup_root(name)),
            Ok(What::Ipfs) => Answer::Now(match name.to_str().and_then(content_name) {
                Some(id) => self.enter(parent, Place::Content { root: id, id }, name),
                None => Ok(Found::Absent(HOUR)),
            }),
            Ok(What::Control) => Answer::Now(self.lookup_control(name)),
            Ok(What::ControlFile(_) | What::Named(_)) => Answer::error(Errno::ENOTDIR),
            Ok(What::Torrents) => Answer::Now(self.lookup_torrent(name)),
            Ok(What::Upload(dir)) => Answer::Now(self.lookup_upload(dir, name)),
            Ok(What::Content(dir)) => self.lookup_child(parent, &dir, name),
        }
    }

    fn lookup_root(&self, name: &OsStr) -> Outcome<Found> {
        let directory = |ino| Ok(Found::Entry { attr: self.owner.directory(ino), ttl: FOREVER });
        match root_name(name) {
            RootName::Upload => {
                let attr =
                    self.node.uploads().getattr(UploadIno::ROOT).map_err(|e| of_publish(&e))?;
                Ok(Found::Entry { attr: upload(&attr), ttl: FOREVER })
            }
            RootName::Ipfs => directory(tree::IPFS),
            RootName::Control => directory(tree::CONTROL),
            RootName::Torrents => Ok(Found::Entry { attr: self.torrents_attr(), ttl: FOREVER }),
            RootName::Id(root) => {
                let place = self.node.place(&root).map_err(|e| of_node(&e, During::Lookup))?;
                self.enter(tree::ROOT, place, name)
            }
            RootName::Nothing => Ok(Found::Absent(HOUR)),
        }
    }

    fn lookup_control(&self, name: &OsStr) -> Outcome<Found> {
        let Some(file) = control::File::named(name) else {
            return Ok(Found::Absent(HOUR));
        };
        // The size is what the next GETATTR says; rendering it here as well would be done for nothing.
        Ok(Found::Entry { attr: self.owner.control(file.ino(), 0), ttl: FOREVER })
    }

    /// Below `upload` names come and go only through the kernel; in it also by `chiral add`, past the kernel.
    fn lookup_upload(&self, dir: UploadIno, name: &OsStr) -> Outcome<Found> {
        let ttl = upload_ttl(dir);
        let uploads = self.node.uploads();
        match uploads.lookup(dir, name) {
            Ok(attr) => Ok(Found::Entry { attr: upload(&attr), ttl }),
            Err(error) => match of_name(uploads, dir, &error) {
                Errno::ENOENT => Ok(Found::Absent(ttl)),
                errno => Err(errno),
            },
        }
    }

    fn lookup_child(
        self: &Arc<Self>,
        parent: Ino,
        dir: &Arc<Content>,
        name: &OsStr,
    ) -> Answer<Found> {
        match self.node.protocol(&dir.place).child_now(&dir.place, name) {
            Some(child) => Answer::Now(self.child(parent, dir, name, child)),
            None => {
                let (fs, dir, name) = (self.clone(), dir.clone(), name.to_owned());
                Answer::later(async move {
                    let looking = fs.node.protocol(&dir.place).child(&dir.place, &name);
                    let child = fs.waiting(&dir, looking).await;
                    fs.child(parent, &dir, &name, child)
                })
            }
        }
    }

    fn child(
        &self,
        parent: Ino,
        dir: &Content,
        name: &OsStr,
        child: Result<Option<Place>, NodeError>,
    ) -> Outcome<Found> {
        match child.map_err(|error| of_directory(&error, &dir.place))? {
            Some(place) => {
                let found = self.enter(parent, place, name)?;
                // What is not here is shown as a placeholder.
                let is_here = !matches!(&found, Found::Entry { ttl, .. } if ttl.is_zero());
                self.look_ahead(dir, name, is_here);
                Ok(found)
            }
            None => Ok(Found::Absent(FOREVER)),
        }
    }

    /// Makes content known to the kernel under a name.
    fn enter(&self, parent: Ino, place: Place, name: &OsStr) -> Outcome<Found> {
        let known = self.node.protocol(&place).resolve_now(&place);
        let resolved = known.transpose().map_err(|e| of_node(&e, During::Lookup))?;
        let shape =
            resolved.as_ref().map_or(Shape::unknown(&place), |resolved| Shape::of(resolved.kind));
        let ino = tree::of_content(parent, name, shape);
        let (attr, ttl) = match resolved {
            Some(resolved) => (self.content_attr(ino, &place, &resolved)?, FOREVER),
            // Also a raw block's name is asked for again: with it the kernel would keep the file's size of 0.
            None => (self.owner.placeholder(ino, shape), Duration::ZERO),
        };
        self.tree.enter(ino, Content { parent, place, shape });
        Ok(Found::Entry { attr, ttl })
    }
}

/// How long the kernel may keep a name of a directory of the upload tree.
pub(super) fn upload_ttl(dir: UploadIno) -> Duration {
    if dir == UploadIno::ROOT { SECOND } else { HOUR }
}

/// The errno of a directory operation on `dir`: one that is no directory after all was a placeholder.
pub(super) fn of_directory(error: &NodeError, dir: &Place) -> Errno {
    match error {
        NodeError::NotADirectory(id) if dir.content() == Some(id) => Errno::ESTALE,
        error => of_node(error, During::Lookup),
    }
}
