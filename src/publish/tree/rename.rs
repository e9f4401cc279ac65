//! rename(2) and renameat2(2).

use std::{ffi::OsStr, time::SystemTime};

use super::{
    Place, PublishError, RenameMode, Request, Result, Tree, UploadIno, UploadKind, check_name,
};

impl Tree {
    /// Moves a name. Gives the inode that was replaced, if it is an orphan now.
    ///
    /// The order of the checks is that of Linux, so that the first error is the same.
    pub(in crate::publish) fn rename(
        &mut self,
        (parent, name): (UploadIno, &OsStr),
        (to_parent, to_name): (UploadIno, &OsStr),
        mode: RenameMode,
        now: SystemTime,
    ) -> Result<Option<UploadIno>> {
        let ino = self.lookup(parent, name)?;
        self.get(to_parent)?.directory()?;
        check_name(to_name)?;
        let target = self.get(to_parent)?.directory()?.children.get(to_name).copied();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(PublishError::Exists),
            (RenameMode::Exchange, None) => return Err(PublishError::NotFound),
            _ => {}
        }
        if self.is_within(to_parent, ino) {
            return Err(PublishError::Cycle);
        }
        if target == Some(ino) {
            return Ok(None);
        }
        match target {
            Some(other) if mode == RenameMode::Exchange => {
                if self.is_within(parent, other) {
                    return Err(PublishError::Cycle);
                }
                self.exchange((ino, parent, name), (other, to_parent, to_name), now)?;
                return Ok(None);
            }
            Some(other) => self.may_replace(ino, other)?,
            None => {}
        }
        // What was asked for is a name: an editor that writes a new file over it does not take that back.
        let request = target.map_or(Request::None, |other| self.request(other));
        if let Some(other) = target {
            self.detach(other, to_parent, to_name, now)?;
        }
        self.set_request(ino, request);
        self.detach(ino, parent, name, now)?;
        self.attach(ino, Place { parent: to_parent, name: to_name.to_owned() })?;
        self.touched(parent, now);
        self.touched(to_parent, now);
        Ok(target.filter(|other| self.is_orphan(*other)))
    }

    /// Whether `ino` is `dir` or lies below it.
    fn is_within(&self, ino: UploadIno, dir: UploadIno) -> bool {
        ino == dir || self.ancestors(ino).any(|up| up == dir)
    }

    fn may_replace(&self, ino: UploadIno, target: UploadIno) -> Result<()> {
        let is_dir = |ino| Ok::<_, PublishError>(self.get(ino)?.kind() == UploadKind::Directory);
        match (is_dir(ino)?, is_dir(target)?) {
            (true, false) => Err(PublishError::NotADirectory),
            (false, true) => Err(PublishError::IsADirectory),
            (true, true) if !self.get(target)?.directory()?.children.is_empty() => {
                Err(PublishError::NotEmpty)
            }
            _ => Ok(()),
        }
    }

    fn exchange(
        &mut self,
        (one, parent, name): (UploadIno, UploadIno, &OsStr),
        (other, to_parent, to_name): (UploadIno, UploadIno, &OsStr),
        now: SystemTime,
    ) -> Result<()> {
        let requests = (self.request(one), self.request(other));
        self.set_request(one, requests.1);
        self.set_request(other, requests.0);
        self.detach(one, parent, name, now)?;
        self.detach(other, to_parent, to_name, now)?;
        self.touched(parent, now);
        self.touched(to_parent, now);
        self.attach(one, Place { parent: to_parent, name: to_name.to_owned() })?;
        self.attach(other, Place { parent, name: name.to_owned() })
    }

    fn attach(&mut self, ino: UploadIno, place: Place) -> Result<()> {
        let is_dir = self.get(ino)?.kind() == UploadKind::Directory;
        let dir = self.dir_mut(place.parent)?;
        dir.children.insert(place.name.clone(), ino);
        dir.subdirs += u32::from(is_dir);
        let inode = self.get_mut(ino)?;
        match inode.place {
            Some(_) => inode.also.push(place),
            None => inode.place = Some(place),
        }
        self.mark(ino);
        Ok(())
    }
}
