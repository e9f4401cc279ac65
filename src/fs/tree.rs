//! Inode numbers and what they stand for.
//!
//! | range | what |
//! |---|---|
//! | 1..16 | root, `ipfs`, `.chiral` and its files, `torrents` |
//! | 2^32..2^62 | inodes of the upload tree, by their own number |
//! | 2^62..2^63 | content and what is in `torrents`, hashed from path and shape, so that it is the same after a restart |
//!
//! Content is numbered by path, not by id: a directory that appears in two places must be two inodes, because the
//! kernel allows a directory only one place.

use std::{
    collections::{HashMap, hash_map},
    ffi::{OsStr, OsString},
    num::NonZeroUsize,
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;

use crate::{
    content::{NodeKind, sha2_256},
    node::{Place, UploadIno},
};

/// An inode number of the mount; it is the kernel's node id too.
pub(super) type Ino = u64;

pub(super) const ROOT: Ino = 1;
pub(super) const IPFS: Ino = 2;
pub(super) const CONTROL: Ino = 3;
/// Files below `.chiral` have the numbers from here on.
pub(super) const CONTROL_FILES: Ino = 4;
pub(super) const TORRENTS: Ino = 15;
const UPLOADS: Ino = 1 << 32;
const CONTENT: Ino = 1 << 62;
/// `upload` itself.
pub(super) const UPLOAD_ROOT: Ino = UPLOADS + UploadIno::ROOT.0;

/// What a content inode shows itself as. It never changes for an inode number: the kernel takes an inode whose type
/// changes for broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    /// A directory, or content of which only its own block will tell what it is.
    Directory,
    File,
    Symlink,
}

impl Shape {
    pub(super) fn of(kind: NodeKind) -> Self {
        match kind {
            NodeKind::File => Self::File,
            NodeKind::Directory | NodeKind::Shard => Self::Directory,
            NodeKind::Symlink => Self::Symlink,
        }
    }

    /// What is shown as long as nothing of it is here.
    pub(super) fn unknown(place: &Place) -> Self {
        place.sure_kind().map_or(Self::Directory, Self::of)
    }
}

/// One place in the tree where something that an id leads to is shown.
#[derive(Clone, Debug)]
pub(super) struct Content {
    /// The inode that holds its name.
    pub(super) parent: Ino,
    /// What it is.
    pub(super) place: Place,
    pub(super) shape: Shape,
}

/// A name in `torrents`. What it stands for may change: it is looked at anew each time.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: OsString,
    pub(super) shape: Shape,
}

/// What an inode number stands for.
#[derive(Clone, Debug)]
pub(super) enum What {
    Root,
    Ipfs,
    Control,
    ControlFile(Ino),
    Upload(UploadIno),
    Content(Arc<Content>),
    Torrents,
    /// Something in `torrents`.
    Named(Arc<Named>),
}

/// Content inodes that the kernel forgot and that are remembered, for file handles; some 200 bytes each.
const FORGOTTEN: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// Content behind each inode.
#[derive(Debug, Default)]
pub(super) struct Tree(Mutex<Inodes>);

#[derive(Debug)]
struct Inodes {
    /// Those that the kernel knows, each with the number of lookups that it will take back with FORGET. Bounded by the
    /// kernel's own inode cache.
    known: HashMap<Ino, (Known, u64)>,
    forgotten: LruCache<Ino, Known>,
}

impl Default for Inodes {
    fn default() -> Self {
        Self { known: HashMap::new(), forgotten: LruCache::new(FORGOTTEN) }
    }
}

/// What is numbered by its path.
#[derive(Clone, Debug)]
enum Known {
    Content(Arc<Content>),
    Named(Arc<Named>),
}

pub(super) fn of_upload(ino: UploadIno) -> Ino {
    UPLOADS + ino.0
}

/// The number of content `name` in `parent`. 62 bits of SHA-256 over the parent's number, which stands for the path
/// above: two of a million names meet once in ten million mounts.
pub(super) fn of_content(parent: Ino, name: impl AsRef<OsStr>, shape: Shape) -> Ino {
    let mut key = parent.to_be_bytes().to_vec();
    key.push(match shape {
        Shape::Directory => b'd',
        Shape::File => b'f',
        Shape::Symlink => b'l',
    });
    key.extend_from_slice(name.as_ref().as_bytes());
    let hash = sha2_256(&key);
    let head =
        hash.digest().iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    CONTENT | head & (CONTENT - 1)
}

impl Tree {
    /// Returns the content of `ino`; none when the kernel forgot it long ago.
    pub(super) fn get(&self, ino: Ino) -> Option<What> {
        Some(match ino {
            ROOT => What::Root,
            IPFS => What::Ipfs,
            CONTROL => What::Control,
            TORRENTS => What::Torrents,
            CONTROL_FILES..UPLOADS => What::ControlFile(ino),
            UPLOADS..CONTENT => What::Upload(UploadIno(ino - UPLOADS)),
            _ => {
                let inodes = self.lock();
                let known = inodes.known.get(&ino).map(|(known, _)| known);
                match known.or_else(|| inodes.forgotten.peek(&ino))? {
                    Known::Content(content) => What::Content(content.clone()),
                    Known::Named(named) => What::Named(named.clone()),
                }
            }
        })
    }

    /// Remembers content that a LOOKUP is answered with and counts the lookup.
    pub(super) fn enter(&self, ino: Ino, content: Content) {
        self.count(ino, || Known::Content(Arc::new(content)));
    }

    /// The same for a name in `torrents`.
    pub(super) fn enter_named(&self, ino: Ino, named: Named) {
        self.count(ino, || Known::Named(Arc::new(named)));
    }

    fn count(&self, ino: Ino, new: impl FnOnce() -> Known) {
        let mut inodes = self.lock();
        inodes.forgotten.pop(&ino);
        match inodes.known.entry(ino) {
            hash_map::Entry::Occupied(mut known) => {
                // The same name below a directory always leads to the same; the root of the path can be another one.
                known.get_mut().1 += 1;
            }
            hash_map::Entry::Vacant(free) => {
                free.insert((new(), 1));
            }
        }
    }

    /// Takes lookups back.
    pub(super) fn forget(&self, ino: Ino, lookups: u64) {
        let mut inodes = self.lock();
        if let hash_map::Entry::Occupied(mut known) = inodes.known.entry(ino) {
            let left = known.get().1.saturating_sub(lookups);
            if left == 0 {
                let (known, _) = known.remove();
                inodes.forgotten.put(ino, known);
            } else {
                known.get_mut().1 = left;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inodes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn content() -> Content {
        let id = "bafkqaaa".parse().unwrap();
        let place = Place::Content { root: id, id };
        Content { parent: ROOT, place, shape: Shape::File }
    }

    #[test]
    fn numbers_of_content_are_the_same_in_every_process_and_differ_by_place_and_shape() {
        let file = of_content(ROOT, "a", Shape::File);
        assert_eq!(
            file, 0x51d9_94e2_4f61_a8ef,
            "changing this changes inode numbers over restarts"
        );
        let others = [
            of_content(ROOT, "a", Shape::Directory),
            of_content(ROOT, "a", Shape::Symlink),
            of_content(IPFS, "a", Shape::File),
            of_content(ROOT, "b", Shape::File),
        ];
        assert!(others.iter().all(|other| *other != file));
        assert!(others.iter().all(|ino| (CONTENT..1 << 63).contains(ino)));
    }

    #[test]
    fn content_is_known_as_long_as_the_kernel_knows_it_and_a_while_longer() {
        let tree = Tree::default();
        let ino = of_content(ROOT, "a", Shape::File);
        assert!(tree.get(ino).is_none());
        tree.enter(ino, content());
        tree.enter(ino, content());
        tree.forget(ino, 1);
        assert!(matches!(tree.get(ino), Some(What::Content(_))));
        tree.forget(ino, 1);
        assert!(matches!(tree.get(ino), Some(What::Content(_))), "a file handle may name it");
        tree.forget(ino, 5);
        for number in 0..FORGOTTEN.get() as u64 {
            tree.enter(CONTENT + number, content());
            tree.forget(CONTENT + number, 1);
        }
        assert!(tree.get(ino).is_none());
        assert_eq!(tree.lock().known.len(), 0);
    }

    #[test]
    fn ranges_do_not_meet() {
        let tree = Tree::default();
        assert!(matches!(tree.get(UPLOAD_ROOT), Some(What::Upload(UploadIno::ROOT))));
        assert!(
            matches!(tree.get(of_upload(UploadIno(1 << 40))), Some(What::Upload(UploadIno(n))) if n == 1 << 40)
        );
        assert!(matches!(tree.get(CONTROL_FILES), Some(What::ControlFile(CONTROL_FILES))));
    }
}
