//! The tree from its rows.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Inode, MAX_NAME, Owner, Place, Tree, UploadIno};

/// Numbers of inodes stay below this at the start, whatever the clock says; above it there is room for all to come.
const MAX_START: u64 = 1 << 56;

/// A tree that was put together.
#[derive(Debug)]
pub(in crate::publish) struct Restored {
    pub(in crate::publish) tree: Tree,
    /// Orphans: they had no name any more, and after a crash nobody has them open. Their rows are marked for removal, and
    /// their numbers are given back for what they hold.
    pub(in crate::publish) orphans: Vec<UploadIno>,
    /// What hung nowhere and was put under the root: its content was acknowledged.
    pub(in crate::publish) rescued: Vec<UploadIno>,
}

/// Rows that have no place yet.
#[derive(Default)]
struct Waiting {
    inodes: HashMap<UploadIno, Inode>,
    below: HashMap<UploadIno, Vec<UploadIno>>,
}

impl Waiting {
    /// Hangs everything that belongs below `top`.
    fn hang_below(&mut self, tree: &mut Tree, top: UploadIno) {
        let mut reached = vec![top];
        while let Some(parent) = reached.pop() {
            for ino in self.below.remove(&parent).unwrap_or_default() {
                let Some(inode) = self.inodes.remove(&ino) else { continue };
                match tree.hang(ino, inode) {
                    None => reached.push(ino),
                    Some(inode) => drop(self.inodes.insert(ino, inode)),
                }
            }
        }
    }

    /// What is left and had a name: first what others may hang below.
    fn stranded(&self) -> Vec<UploadIno> {
        let places = self.inodes.iter().filter_map(|(ino, i)| Some((*ino, i.place.as_ref()?)));
        let mut stranded: Vec<_> =
            places.map(|(ino, place)| (self.inodes.contains_key(&place.parent), ino)).collect();
        stranded.sort_unstable();
        stranded.into_iter().map(|(_, ino)| ino).collect()
    }
}

impl Tree {
    /// Puts rows that were read from disk together. Inodes whose parent is missing, no directory, or reached only through
    /// themselves are put under the root.
    pub(in crate::publish) fn restore(
        owner: Owner,
        now: SystemTime,
        rows: Vec<(UploadIno, Inode)>,
    ) -> Restored {
        let mut tree = Self::new(owner, now);
        // A number that was taken by an inode which is gone names no other one, however long a file handle is kept:
        // fewer inodes are made in a microsecond than one.
        let started = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        tree.next = tree.next.max(u64::try_from(started).unwrap_or(0).min(MAX_START));
        let mut waiting = Waiting::default();
        for (ino, inode) in rows {
            tree.next = tree.next.max(ino.0 + 1);
            match &inode.place {
                _ if ino == UploadIno::ROOT => {
                    tree.inodes.insert(ino, Inode { place: None, ..inode });
                    tree.dirty.remove(&ino);
                    continue;
                }
                Some(place) => waiting.below.entry(place.parent).or_default().push(ino),
                None => {}
            }
            waiting.inodes.insert(ino, inode);
        }
        waiting.hang_below(&mut tree, UploadIno::ROOT);
        let mut rescued = Vec::new();
        for ino in waiting.stranded() {
            // Some hang below others that were rescued before.
            let Some(mut inode) = waiting.inodes.remove(&ino) else { continue };
            // Under one of its further names it is where it belongs.
            if let Some(at) = inode.also.iter().position(|place| tree.is_free(place)) {
                inode.place = Some(inode.also.swap_remove(at));
                tree.hang(ino, inode);
                tree.dirty.insert(ino);
                continue;
            }
            let name = inode.place.take().map(|place| place.name).unwrap_or_default();
            let name = tree.free_name(&name, ino);
            inode.place = Some(Place { parent: UploadIno::ROOT, name });
            tree.hang(ino, inode);
            tree.dirty.extend([ino, UploadIno::ROOT]);
            rescued.push(ino);
            waiting.hang_below(&mut tree, ino);
        }
        tree.hang_links();
        let mut orphans: Vec<_> = waiting.inodes.into_keys().collect();
        orphans.sort_unstable();
        tree.removed.extend(&orphans);
        Restored { tree, orphans, rescued }
    }

    /// `name`, or where that is taken in the root, one made of it and the number of the inode.
    fn free_name(&self, name: &OsStr, ino: UploadIno) -> OsString {
        let is_free = |name: &OsStr| self.lookup(UploadIno::ROOT, name).is_err();
        if !name.is_empty() && is_free(name) {
            return name.to_owned();
        }
        let mut suffix = format!(".found-{}", ino.0);
        loop {
            let kept = name.as_bytes().len().min(MAX_NAME - suffix.len());
            let made = [&name.as_bytes()[..kept], suffix.as_bytes()].concat();
            let made = OsString::from_vec(made);
            if is_free(&made) {
                return made;
            }
            suffix.push('_');
        }
    }
}
