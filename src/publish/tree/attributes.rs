//! Owner, mode, times and user attributes.

use std::time::SystemTime;

use super::{PERMISSIONS, PublishError, Result, S_ISGID, Tree, UploadIno, UploadKind};
use crate::publish::acl::{self, Acl};

/// Bytes of user attributes that one inode may carry; one attribute of the largest size that Linux allows, and as much again.
const MAX_XATTRS: usize = 128 << 10;
/// Largest value of one attribute (XATTR_SIZE_MAX).
const MAX_XATTR_VALUE: usize = 64 << 10;
const S_ISUID: u32 = 0o4000;
const S_IXGRP: u32 = 0o010;

impl Tree {
    pub(in crate::publish) fn chmod(
        &mut self,
        ino: UploadIno,
        mode: u32,
        now: SystemTime,
    ) -> Result<()> {
        let inode = self.get_mut(ino)?;
        inode.attr.mode = mode & PERMISSIONS;
        inode.attr.ctime = now;
        if let Some(list) = inode.xattrs.get_mut(acl::ACCESS) {
            let mut changed = Acl::decode(list)?;
            changed.chmod(mode);
            // The group's bits of the mode are the mask of the list, which may give its group less.
            inode.attr.mode = mode & PERMISSIONS & !0o070 | changed.mode() & 0o070;
            *list = changed.encode();
        }
        self.mark(ino);
        Ok(())
    }

    /// Sets an access list. The one that says who may do what also sets the mode, and is kept where it says more.
    pub(in crate::publish) fn set_acl(
        &mut self,
        ino: UploadIno,
        name: &str,
        value: &[u8],
        now: SystemTime,
    ) -> Result<()> {
        let list = Acl::decode(value)?;
        if name == acl::ACCESS {
            let inode = self.get_mut(ino)?;
            inode.attr.mode = inode.attr.mode & !0o777 | list.mode();
            inode.attr.ctime = now;
            if !list.is_extended() {
                inode.xattrs.remove(name);
                self.mark(ino);
                return Ok(());
            }
        } else {
            self.get(ino)?.directory()?;
        }
        self.setxattr(ino, name, value, (false, false), now)
    }

    /// chown(2): of anything but a directory it takes the set-user-id and set-group-id bits away.
    pub(in crate::publish) fn chown(
        &mut self,
        ino: UploadIno,
        uid: Option<u32>,
        gid: Option<u32>,
        now: SystemTime,
    ) -> Result<()> {
        let inode = self.get_mut(ino)?;
        inode.attr.uid = uid.unwrap_or(inode.attr.uid);
        inode.attr.gid = gid.unwrap_or(inode.attr.gid);
        inode.attr.ctime = now;
        self.mark(ino);
        self.drop_privileges(ino)
    }

    /// Takes the set-user-id bit of a file, and its set-group-id bit where the group may execute it, as a write does.
    pub(in crate::publish) fn drop_privileges(&mut self, ino: UploadIno) -> Result<()> {
        let inode = self.get_mut(ino)?;
        if inode.kind() == UploadKind::Directory {
            return Ok(());
        }
        let mode = inode.attr.mode;
        let gone = S_ISUID | if mode & S_IXGRP == 0 { 0 } else { S_ISGID };
        if mode & gone != 0 {
            inode.attr.mode = mode & !gone;
            self.mark(ino);
        }
        Ok(())
    }

    /// Sets times; what is none stays. A change of either also sets ctime.
    pub(in crate::publish) fn set_times(
        &mut self,
        ino: UploadIno,
        atime: Option<SystemTime>,
        mtime: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<()> {
        let attr = &mut self.get_mut(ino)?.attr;
        attr.atime = atime.unwrap_or(attr.atime);
        attr.mtime = mtime.unwrap_or(attr.mtime);
        attr.ctime = now;
        self.mark(ino);
        Ok(())
    }

    /// The content was changed at `mtime`, as the file itself tells.
    pub(in crate::publish) fn adopt_mtime(&mut self, ino: UploadIno, mtime: SystemTime) {
        if let Some(inode) = self.inodes.get_mut(&ino)
            && inode.attr.mtime != mtime
        {
            inode.attr.mtime = mtime;
            inode.attr.ctime = inode.attr.ctime.max(mtime);
            self.dirty.insert(ino);
        }
    }

    /// As [`crate::publish::Uploads::setxattr`], names checked by the caller.
    pub(in crate::publish) fn setxattr(
        &mut self,
        ino: UploadIno,
        name: &str,
        value: &[u8],
        (create, replace): (bool, bool),
        now: SystemTime,
    ) -> Result<()> {
        let inode = self.get_mut(ino)?;
        let old = inode.xattrs.get(name).map(|old| name.len() + old.len());
        match old {
            Some(_) if create => return Err(PublishError::Exists),
            None if replace => return Err(PublishError::NoAttribute),
            _ => {}
        }
        let used: usize = inode.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if value.len() > MAX_XATTR_VALUE
            || used - old.unwrap_or(0) + name.len() + value.len() > MAX_XATTRS
        {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(PublishError::Io { what: "attributes of one file take too much", source });
        }
        inode.xattrs.insert(name.to_owned(), value.to_vec());
        inode.attr.ctime = now;
        self.mark(ino);
        Ok(())
    }

    pub(in crate::publish) fn removexattr(
        &mut self,
        ino: UploadIno,
        name: &str,
        now: SystemTime,
    ) -> Result<()> {
        let inode = self.get_mut(ino)?;
        inode.xattrs.remove(name).ok_or(PublishError::NoAttribute)?;
        inode.attr.ctime = now;
        self.mark(ino);
        Ok(())
    }
}
