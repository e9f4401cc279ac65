//! Listings.

use std::{
    ffi::OsString,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::errno::Errno;

use super::{
    answer::{Answer, Outcome},
    control,
    errno::{During, of_node},
    handles::Handle,
    lookup::of_directory,
    names,
    semantics::{Fs, known},
    tree::{self, Content, Ino, Shape, What},
};
use crate::node::{Child, Children, Place, UploadIno, UploadKind};

/// Longest wait for what the children of a listed directory are. The FUSE library cannot say "unknown" of an entry,
/// so one whose block does not come in time is listed as what a lookup of it would give, a directory. A wrong guess
/// has to be loud: walkers (find, du, rm -r, grep -r) believe "file" and never look below it, so that a whole tree
/// would be missing without an error, but they stat or open what is said to be a directory, which waits for the block
/// and ends with its kind, or with ETIMEDOUT. Such a listing is not kept by the kernel; the next one knows more.
const KINDS_WAIT: Duration = Duration::from_millis(250);
/// Children whose root blocks one listing asks for ahead; programs that list do go on to look at them.
const PREFETCH: usize = 1024;
/// Entries between which a long listing lets other work of the thread run.
const YIELD_EVERY: usize = 64;

/// One name of a listing.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) ino: Ino,
    pub(super) shape: Shape,
    pub(super) name: OsString,
}

/// All names of a directory, `.` and `..` first.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) entries: Vec<Listed>,
    /// Whether the kernel may keep it: it cannot change, and every kind in it is known.
    pub(super) lasting: bool,
}

/// A directory that is open. What was listed stays while it is read on, so that removing what was read skips nothing.
#[derive(Debug)]
pub(super) struct OpenDirectory {
    ino: Ino,
    listing: Mutex<Arc<Listing>>,
}

impl Listing {
    pub(super) fn new(ino: Ino, parent: Ino) -> Self {
        let dot = |ino, name: &str| Listed { ino, shape: Shape::Directory, name: name.into() };
        Self { entries: vec![dot(ino, "."), dot(parent, "..")], lasting: false }
    }

    pub(super) fn add(&mut self, ino: Ino, shape: Shape, name: impl Into<OsString>) {
        self.entries.push(Listed { ino, shape, name: name.into() });
    }
}

impl Fs {
    pub(super) fn opendir(self: &Arc<Self>, ino: Ino) -> Answer<Listing> {
        let fs = self.clone();
        match self.what(ino) {
            Err(errno) => Answer::error(errno),
            Ok(What::Root) => Answer::blocking(move || fs.list_roots()),
            // Every id is in it.
            Ok(What::Ipfs) => Answer::ok(Listing::new(tree::IPFS, tree::ROOT)),
            Ok(What::Control) => Answer::ok(list_control()),
            Ok(What::Torrents) => {
                self.listed.note(ino);
                Answer::ok(self.list_torrents())
            }
            Ok(What::ControlFile(_) | What::Named(_)) => Answer::error(Errno::ENOTDIR),
            Ok(What::Upload(dir)) => Answer::Now(self.list_upload(ino, dir)),
            Ok(What::Content(dir)) => {
                self.listed.note(ino);
                self.opened(&dir.place);
                Answer::later(async move { fs.list_content(ino, &dir).await })
            }
        }
    }

    /// Keeps a listing for READDIR; gives its handle.
    pub(super) fn keep_listing(&self, ino: Ino, listing: Listing) -> u64 {
        let listing = Mutex::new(Arc::new(listing));
        self.handles.insert(|_| Handle::Directory(OpenDirectory { ino, listing }))
    }

    /// The listing of an open directory. Reading from the start again (rewinddir) shows what is new in `upload`.
    pub(super) fn readdir(&self, fh: u64, offset: u64) -> Outcome<Arc<Listing>> {
        let handle = self.handles.get(fh)?;
        let Handle::Directory(open) = &*handle else {
            return Err(Errno::EBADF);
        };
        let mut listing = open.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0
            && let What::Upload(dir) = self.what(open.ino)?
        {
            *listing = Arc::new(self.list_upload(open.ino, dir)?);
        }
        Ok(listing.clone())
    }

    /// Roots of each kind that belong to the user; other local content is found by its id.
    fn list_roots(&self) -> Outcome<Listing> {
        self.listed.note(tree::ROOT);
        let mut listing = Listing::new(tree::ROOT, tree::ROOT);
        listing.add(tree::UPLOAD_ROOT, Shape::Directory, names::UPLOAD);
        listing.add(tree::IPFS, Shape::Directory, names::IPFS);
        listing.add(tree::TORRENTS, Shape::Directory, names::TORRENTS);
        listing.add(tree::CONTROL, Shape::Directory, names::CONTROL);
        for known in self.node.roots().map_err(|e| of_node(&e, During::Lookup))? {
            let name = known.root.to_v1().to_string();
            let shape = match self.node.resolve_now(&known.root) {
                Some(Ok(resolved)) => Shape::of(resolved.kind),
                _ if known.directory => Shape::Directory,
                _ => Shape::File,
            };
            listing.add(tree::of_content(tree::ROOT, &name, shape), shape, name);
        }
        for hash in self.node.torrents().known_torrents() {
            let (name, shape) = (hash.to_string(), Shape::Directory);
            listing.add(tree::of_content(tree::ROOT, &name, shape), shape, name);
        }
        Ok(listing)
    }

    fn list_upload(&self, ino: Ino, dir: UploadIno) -> Outcome<Listing> {
        let uploads = self.node.uploads();
        let parent = match dir {
            UploadIno::ROOT => tree::ROOT,
            dir => tree::of_upload(known(uploads.parent(dir))?),
        };
        let mut listing = Listing::new(ino, parent);
        for entry in known(uploads.readdir(dir))? {
            let shape = match entry.kind {
                UploadKind::File => Shape::File,
                UploadKind::Directory => Shape::Directory,
                UploadKind::Symlink => Shape::Symlink,
            };
            listing.add(tree::of_upload(entry.ino), shape, entry.name);
        }
        Ok(listing)
    }

    async fn list_content(self: &Arc<Self>, ino: Ino, dir: &Content) -> Outcome<Listing> {
        let protocol = self.node.protocol(&dir.place);
        let listed = self.waiting(dir, protocol.list(&dir.place)).await;
        let children = listed.map_err(|error| of_directory(&error, &dir.place))?;
        let mut shapes = self.shapes(&*children).await;
        if shapes.contains(&None) {
            self.prefetch(&*children, &shapes).await;
            shapes = self.shapes(&*children).await;
        }
        let mut listing = Listing::new(ino, dir.parent);
        listing.lasting = !shapes.contains(&None);
        for (child, shape) in each(&*children).zip(shapes) {
            let shape = shape.unwrap_or(Shape::unknown(&child.place));
            listing.add(tree::of_content(ino, child.name, shape), shape, child.name);
        }
        Ok(listing)
    }

    /// What is known of the children; a broken one is listed like one that is not here, and fails when it is used.
    async fn shapes(&self, children: &dyn Children) -> Vec<Option<Shape>> {
        let mut shapes = Vec::with_capacity(children.count());
        for (at, child) in each(children).enumerate() {
            if at % YIELD_EVERY == 0 {
                tokio::task::yield_now().await;
            }
            shapes.push(match child.kind {
                Some(kind) => Some(Shape::of(kind)),
                None => match self.node.protocol(&child.place).resolve_now(&child.place) {
                    Some(Ok(resolved)) => Some(Shape::of(resolved.kind)),
                    Some(Err(_)) => Some(Shape::unknown(&child.place)),
                    None => None,
                },
            });
        }
        shapes
    }

    /// Fetches the root blocks of children of which nothing is known, in the background; waits a moment for them.
    async fn prefetch(&self, children: &dyn Children, shapes: &[Option<Shape>]) {
        let Ok(permit) = self.prefetches.clone().try_acquire_owned() else { return };
        let missing = each(children).zip(shapes).filter(|(_, shape)| shape.is_none());
        let missing: Vec<Place> = missing.take(PREFETCH).map(|(child, _)| child.place).collect();
        let task = self.fetch_ahead(permit, missing);
        // What is late is listed as a directory; nothing is lost by not knowing.
        let _ = tokio::time::timeout(KINDS_WAIT, task).await;
    }
}

fn each(children: &dyn Children) -> impl Iterator<Item = Child<'_>> {
    (0..children.count()).filter_map(|at| children.child(at))
}

fn list_control() -> Listing {
    let mut listing = Listing::new(tree::CONTROL, tree::ROOT);
    // What walks through the mount reads what is listed, and the events have no end that stays one.
    for file in control::File::ALL.into_iter().filter(|file| *file != control::File::Events) {
        listing.add(file.ino(), Shape::File, file.name());
    }
    listing
}
