//! Further names of one file: link(2).

use std::{ffi::OsStr, time::SystemTime};

use super::{Place, PublishError, Result, Tree, UploadIno, UploadKind, check_name};

/// Most names of one file, as on ext4. All of them are in its row.
const MAX_LINKS: usize = 65_000;

impl Tree {
    /// Gives a file or symlink one more name.
    pub(in crate::publish) fn link(
        &mut self,
        ino: UploadIno,
        parent: UploadIno,
        name: &OsStr,
        now: SystemTime,
    ) -> Result<()> {
        let inode = self.get(ino)?;
        if inode.kind() == UploadKind::Directory {
            return Err(PublishError::NotPermitted("a directory has one name"));
        }
        // It lives only for those who have it open.
        if inode.place.is_none() {
            return Err(PublishError::NotFound);
        }
        if inode.places().count() >= MAX_LINKS {
            return Err(PublishError::TooManyLinks);
        }
        check_name(name)?;
        let dir = self.dir_mut(parent)?;
        if dir.children.contains_key(name) {
            return Err(PublishError::Exists);
        }
        dir.children.insert(name.to_owned(), ino);
        let inode = self.get_mut(ino)?;
        inode.also.push(Place { parent, name: name.to_owned() });
        inode.attr.ctime = now;
        self.mark(ino);
        self.touched(parent, now);
        Ok(())
    }

    /// Returns whether an inode has lost its last name.
    pub(in crate::publish) fn is_orphan(&self, ino: UploadIno) -> bool {
        ino != UploadIno::ROOT && self.get(ino).is_ok_and(|inode| inode.place.is_none())
    }

    /// Hangs the further names of restored inodes. One that is taken, or has no directory any more, is dropped.
    pub(super) fn hang_links(&mut self) {
        let linked = self.inodes.iter().filter(|(_, inode)| !inode.also.is_empty());
        let mut linked: Vec<UploadIno> = linked.map(|(ino, _)| *ino).collect();
        linked.sort_unstable();
        for ino in linked {
            let also = self.inodes.get_mut(&ino).map(|inode| std::mem::take(&mut inode.also));
            let also = also.unwrap_or_default();
            let count = also.len();
            let hung: Vec<Place> =
                also.into_iter().filter(|place| self.hang_link(ino, place)).collect();
            if hung.len() < count {
                self.dirty.insert(ino);
            }
            if let Some(inode) = self.inodes.get_mut(&ino) {
                inode.also = hung;
            }
        }
    }

    fn hang_link(&mut self, ino: UploadIno, place: &Place) -> bool {
        let is_free = self.is_free(place);
        if is_free && let Ok(dir) = self.dir_mut(place.parent) {
            dir.children.insert(place.name.clone(), ino);
        }
        is_free
    }

    /// Returns whether something can be put at a place.
    pub(super) fn is_free(&self, place: &Place) -> bool {
        let dir = self.get(place.parent).and_then(|inode| inode.directory());
        dir.is_ok_and(|dir| !dir.children.contains_key(&place.name))
    }
}
