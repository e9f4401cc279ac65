//! The names of the upload tree: directories, links, owners, modes and times, with the rules of rename(2) and unlink(2).
//!
//! Pure: no I/O, no clock, no locks. Of a file's content only what was published last is known here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    time::SystemTime,
};

use super::{
    PublishError, RenameMode, UploadEntry, UploadIno, UploadKind, dirs::DirectoryRoot, row::Sealed,
};

mod attributes;
mod links;
mod rename;
mod restore;
mod review;
mod saving;
#[cfg(test)]
mod tests;

pub(super) use review::Reviewed;

type Result<T> = std::result::Result<T, PublishError>;

/// Longest name, as on every local filesystem of Linux.
const MAX_NAME: usize = 255;
/// Longest target of a symlink: PATH_MAX without the NUL.
const MAX_TARGET: usize = 4095;

const S_ISGID: u32 = 0o2000;
const PERMISSIONS: u32 = 0o7777;

/// Where an inode hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) parent: UploadIno,
    pub(super) name: OsString,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// With what was published of it last.
    File(Option<Sealed>),
    Directory(Directory),
    Symlink(OsString),
}

/// The children of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) children: BTreeMap<OsString, UploadIno>,
    /// How many of them are directories.
    subdirs: u32,
    /// Its id, while nothing below it has changed since it was computed.
    pub(super) root: Option<DirectoryRoot>,
}

/// Request of the user beyond the ignore rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Request {
    #[default]
    None,
    /// It is published although it is hidden (`-H`).
    Hidden,
    /// It was named itself, and is published whatever the rules say.
    Named,
}

/// Owner, mode and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) atime: SystemTime,
    pub(super) mtime: SystemTime,
    pub(super) ctime: SystemTime,
}

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inode {
    /// None: the root, or unlinked and still open.
    pub(super) place: Option<Place>,
    /// Its further names; only of a file or symlink, and only beside `place`.
    pub(super) also: Vec<Place>,
    pub(super) attr: Attributes,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    pub(super) body: Body,
    pub(super) request: Request,
    /// It is not published. Follows from the rules, so no row has it.
    pub(super) ignored: bool,
}

/// Who makes an inode, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The tree, with what has changed since the caller last asked.
#[derive(Debug)]
pub(super) struct Tree {
    inodes: HashMap<UploadIno, Inode>,
    next: u64,
    /// Inodes whose rows on disk are out of date.
    dirty: BTreeSet<UploadIno>,
    /// Those of them that a commit under way writes.
    saving: BTreeSet<UploadIno>,
    /// Inodes whose rows on disk have to go.
    removed: BTreeSet<UploadIno>,
    /// Directories whose id is out of date. With a directory all its ancestors are in here. Those that are ignored have
    /// no id and are never in here.
    stale: BTreeSet<UploadIno>,
    rules: review::TreeRules,
}

impl Inode {
    pub(super) fn kind(&self) -> UploadKind {
        match self.body {
            Body::File(_) => UploadKind::File,
            Body::Directory(_) => UploadKind::Directory,
            Body::Symlink(_) => UploadKind::Symlink,
        }
    }

    /// A copy without what its row does not have: the children of a directory.
    pub(super) fn for_row(&self) -> Self {
        let body = match &self.body {
            Body::Directory(_) => Body::Directory(Directory::default()),
            other => other.clone(),
        };
        let (place, also, attr) = (self.place.clone(), self.also.clone(), self.attr.clone());
        let (request, ignored) = (self.request, self.ignored);
        Self { place, also, attr, xattrs: self.xattrs.clone(), body, request, ignored }
    }

    /// All names that it has.
    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        self.place.iter().chain(&self.also)
    }

    pub(super) fn directory(&self) -> Result<&Directory> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(PublishError::NotADirectory),
        }
    }
}

/// Refuses names that no directory can hold.
fn check_name(name: &OsStr) -> Result<()> {
    let bytes = name.as_bytes();
    match bytes {
        b"" | b"." | b".." => return Err(PublishError::Name("empty, `.` or `..`")),
        _ if bytes.len() > MAX_NAME => return Err(PublishError::NameTooLong),
        _ => {}
    }
    if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(PublishError::Name("it has `/` or NUL in it"));
    }
    Ok(())
}

impl Tree {
    /// A tree with nothing but its root.
    pub(super) fn new(owner: Owner, now: SystemTime) -> Self {
        let root = Inode {
            place: None,
            also: Vec::new(),
            attr: Attributes {
                mode: owner.mode,
                uid: owner.uid,
                gid: owner.gid,
                atime: now,
                mtime: now,
                ctime: now,
            },
            xattrs: BTreeMap::new(),
            body: Body::Directory(Directory::default()),
            request: Request::None,
            ignored: false,
        };
        Self {
            inodes: HashMap::from([(UploadIno::ROOT, root)]),
            next: UploadIno::ROOT.0 + 1,
            dirty: BTreeSet::from([UploadIno::ROOT]),
            saving: BTreeSet::new(),
            removed: BTreeSet::new(),
            stale: BTreeSet::from([UploadIno::ROOT]),
            rules: review::TreeRules::default(),
        }
    }

    /// Puts an inode at its place; gives it back when that is taken or no directory.
    fn hang(&mut self, ino: UploadIno, inode: Inode) -> Option<Inode> {
        let Some(place) = inode.place.clone() else { return Some(inode) };
        let is_dir = inode.kind() == UploadKind::Directory;
        let published = !inode.ignored;
        let Some(Inode { body: Body::Directory(dir), .. }) = self.inodes.get_mut(&place.parent)
        else {
            return Some(inode);
        };
        if dir.children.contains_key(&place.name) {
            return Some(inode);
        }
        dir.children.insert(place.name, ino);
        dir.subdirs += u32::from(is_dir);
        if is_dir && published {
            self.stale.insert(ino);
        }
        self.inodes.insert(ino, inode);
        None
    }

    // --- looking ------------------------------------------------------------------------------------------------

    pub(super) fn get(&self, ino: UploadIno) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or(PublishError::NotFound)
    }

    fn get_mut(&mut self, ino: UploadIno) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(PublishError::NotFound)
    }

    fn dir_mut(&mut self, ino: UploadIno) -> Result<&mut Directory> {
        match &mut self.get_mut(ino)?.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(PublishError::NotADirectory),
        }
    }

    pub(super) fn lookup(&self, parent: UploadIno, name: &OsStr) -> Result<UploadIno> {
        let dir = self.get(parent)?.directory()?;
        if name.as_bytes().len() > MAX_NAME {
            return Err(PublishError::NameTooLong);
        }
        dir.children.get(name).copied().ok_or(PublishError::NotFound)
    }

    pub(super) fn entries(&self, ino: UploadIno) -> Result<Vec<UploadEntry>> {
        let dir = self.get(ino)?.directory()?;
        dir.children
            .iter()
            .map(|(name, ino)| {
                Ok(UploadEntry { name: name.clone(), ino: *ino, kind: self.get(*ino)?.kind() })
            })
            .collect()
    }

    /// The directory that holds `ino`; of the root, the root.
    pub(super) fn parent(&self, ino: UploadIno) -> Result<UploadIno> {
        Ok(self.get(ino)?.place.as_ref().map_or(UploadIno::ROOT, |place| place.parent))
    }

    pub(super) fn nlink(&self, ino: UploadIno) -> Result<u32> {
        let inode = self.get(ino)?;
        Ok(match &inode.body {
            Body::Directory(dir) => 2 + dir.subdirs,
            _ => u32::try_from(inode.places().count()).unwrap_or(u32::MAX),
        })
    }

    /// All inodes, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (UploadIno, &Inode)> {
        self.inodes.iter().map(|(ino, inode)| (*ino, inode))
    }

    /// The ancestors of `ino` from its parent to the root.
    pub(super) fn ancestors(&self, ino: UploadIno) -> impl Iterator<Item = UploadIno> + '_ {
        let up = |ino: &UploadIno| self.inodes.get(ino)?.place.as_ref().map(|place| place.parent);
        std::iter::successors(up(&ino), move |ino| up(ino))
    }

    // --- changing names -----------------------------------------------------------------------------------------

    pub(super) fn add(
        &mut self,
        parent: UploadIno,
        name: &OsStr,
        owner: Owner,
        body: Body,
        now: SystemTime,
    ) -> Result<UploadIno> {
        let up = self.get(parent)?;
        let dir = up.directory()?;
        check_name(name)?;
        if dir.children.contains_key(name) {
            return Err(PublishError::Exists);
        }
        if let Body::Symlink(target) = &body {
            match target.len() {
                0 => return Err(PublishError::NotFound),
                len if len > MAX_TARGET => return Err(PublishError::NameTooLong),
                _ => {}
            }
        }
        let is_dir = matches!(body, Body::Directory(_));
        let (mut mode, mut gid) = (owner.mode & PERMISSIONS, owner.gid);
        // A set-group-id directory hands its group down, and to directories also the bit.
        if up.attr.mode & S_ISGID != 0 {
            gid = up.attr.gid;
            mode |= if is_dir { S_ISGID } else { 0 };
        }
        let ino = UploadIno(self.next);
        self.next += 1;
        let mut inode = Inode {
            place: Some(Place { parent, name: name.to_owned() }),
            also: Vec::new(),
            attr: Attributes { mode, uid: owner.uid, gid, atime: now, mtime: now, ctime: now },
            xattrs: BTreeMap::new(),
            body,
            request: Request::None,
            ignored: false,
        };
        inode.ignored = self.decide(&inode);
        self.hang(ino, inode);
        self.touched(parent, now);
        self.mark(ino);
        Ok(ino)
    }

    /// Takes a name away. With its last one the inode stays as an orphan until [`Tree::forget`], for those who have it
    /// open.
    pub(super) fn unlink(
        &mut self,
        parent: UploadIno,
        name: &OsStr,
        now: SystemTime,
    ) -> Result<UploadIno> {
        let ino = self.lookup(parent, name)?;
        if self.get(ino)?.kind() == UploadKind::Directory {
            return Err(PublishError::IsADirectory);
        }
        self.detach(ino, parent, name, now)?;
        self.touched(parent, now);
        Ok(ino)
    }

    pub(super) fn rmdir(
        &mut self,
        parent: UploadIno,
        name: &OsStr,
        now: SystemTime,
    ) -> Result<UploadIno> {
        let ino = self.lookup(parent, name)?;
        if !self.get(ino)?.directory()?.children.is_empty() {
            return Err(PublishError::NotEmpty);
        }
        self.detach(ino, parent, name, now)?;
        self.touched(parent, now);
        Ok(ino)
    }

    /// Takes one of its names from an inode.
    fn detach(
        &mut self,
        ino: UploadIno,
        parent: UploadIno,
        name: &OsStr,
        now: SystemTime,
    ) -> Result<()> {
        let is_dir = self.get(ino)?.kind() == UploadKind::Directory;
        let dir = self.dir_mut(parent)?;
        dir.children.remove(name);
        dir.subdirs -= u32::from(is_dir);
        let inode = self.get_mut(ino)?;
        inode.attr.ctime = now;
        match inode.also.iter().position(|place| place.parent == parent && place.name == name) {
            Some(at) => drop(inode.also.swap_remove(at)),
            None => inode.place = inode.also.pop(),
        }
        self.mark(ino);
        Ok(())
    }

    /// Forgets an orphan; its row goes with the next flush.
    pub(super) fn forget(&mut self, ino: UploadIno) {
        if ino != UploadIno::ROOT && self.inodes.get(&ino).is_some_and(|i| i.place.is_none()) {
            self.inodes.remove(&ino);
            self.dirty.remove(&ino);
            self.stale.remove(&ino);
            self.forget_rules(ino);
            self.removed.insert(ino);
        }
    }

    // --- what has changed ---------------------------------------------------------------------------------------

    /// The row of `ino` is out of date.
    pub(super) fn mark(&mut self, ino: UploadIno) {
        if self.inodes.contains_key(&ino) {
            self.dirty.insert(ino);
        }
    }

    /// Entries of a directory have changed.
    fn touched(&mut self, dir: UploadIno, now: SystemTime) {
        if let Some(inode) = self.inodes.get_mut(&dir) {
            inode.attr.mtime = now;
            inode.attr.ctime = now;
            self.dirty.insert(dir);
        }
        self.outdate(dir);
    }

    /// The id of a directory, and so of all above it, is out of date.
    pub(super) fn outdate(&mut self, dir: UploadIno) {
        let mut at = Some(dir);
        while let Some(ino) = at {
            let Some(inode) = self.inodes.get_mut(&ino) else { return };
            if inode.ignored {
                return;
            }
            if let Body::Directory(directory) = &mut inode.body {
                directory.root = None;
                if !self.stale.insert(ino) {
                    return;
                }
            }
            at = inode.place.as_ref().map(|place| place.parent);
        }
    }

    /// Directories whose ids are out of date.
    pub(super) fn stale(&self) -> &BTreeSet<UploadIno> {
        &self.stale
    }

    /// Somebody begins to compute the id of a directory, below which nothing is out of date: what is left in the set still
    /// has all its ancestors in it.
    pub(super) fn begin_root(&mut self, dir: UploadIno) {
        self.stale.remove(&dir);
    }

    /// The id of a directory is known, unless something below changed since [`Tree::begin_root`].
    pub(super) fn set_root(&mut self, dir: UploadIno, root: DirectoryRoot) {
        if !self.stale.contains(&dir)
            && let Ok(directory) = self.dir_mut(dir)
        {
            directory.root = Some(root);
        }
    }

    /// A new version of a file was published, as its row says already. Gives what it replaced.
    pub(super) fn set_sealed(&mut self, ino: UploadIno, sealed: Sealed) -> Option<Sealed> {
        let inode = self.inodes.get_mut(&ino)?;
        let Body::File(old) = &mut inode.body else { return None };
        let old = old.replace(sealed);
        let ups: Vec<_> = inode.places().map(|place| place.parent).collect();
        ups.into_iter().for_each(|up| self.outdate(up));
        old
    }

    /// What was published of a file last.
    pub(super) fn sealed(&self, ino: UploadIno) -> Option<&Sealed> {
        match &self.inodes.get(&ino)?.body {
            Body::File(sealed) => sealed.as_ref(),
            _ => None,
        }
    }

    /// A file is not published any more. Gives what was.
    pub(super) fn unseal(&mut self, ino: UploadIno) -> Option<Sealed> {
        let Body::File(sealed) = &mut self.inodes.get_mut(&ino)?.body else { return None };
        let sealed = sealed.take()?;
        self.mark(ino);
        Some(sealed)
    }
}
