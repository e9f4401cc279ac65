//! Attributes: what stat(2) shows, and what chmod, chown, utimens and setxattr change.

use std::{
    ffi::OsString,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
};

use super::{
    Inner, PublishError, SetAttr, UploadAttr, UploadIno, UploadState, acl,
    file::{Phase, time_of},
    handle::{io_error, set_times},
    tree::Body,
};

type Result<T> = std::result::Result<T, PublishError>;

/// Blocks of 512 bytes that a file of any size at least shows: programs take 0 blocks for a hole from end to end.
const MIN_BLOCKS: u64 = 8;

fn blocks(size: u64, real: u64) -> u64 {
    if size == 0 { real } else { real.max(MIN_BLOCKS) }
}

impl Inner {
    pub(super) fn getattr(&self, ino: UploadIno) -> Result<UploadAttr> {
        let (mut attr, cell) = {
            let names = self.names();
            let inode = names.tree.get(ino)?;
            let size = match &inode.body {
                Body::File(sealed) => sealed.as_ref().map_or(0, |sealed| sealed.size),
                Body::Symlink(target) => target.len() as u64,
                Body::Directory(_) => 0,
            };
            let is_file = matches!(inode.body, Body::File(_));
            let attr = UploadAttr {
                ino,
                kind: inode.kind(),
                size,
                blocks: if is_file { blocks(size, size.div_ceil(4096) * 8) } else { 0 },
                mode: inode.attr.mode,
                uid: inode.attr.uid,
                gid: inode.attr.gid,
                nlink: names.tree.nlink(ino)?,
                atime: inode.attr.atime,
                mtime: inode.attr.mtime,
                ctime: inode.attr.ctime,
                sealed: false,
            };
            (attr, names.cells.get(&ino).cloned())
        };
        let Some(cell) = cell else { return Ok(attr) };
        let mut state = cell.state();
        let phase = state.progress.phase;
        let idle = state.progress.handles() == 0;
        let Some(work) = &mut state.work else {
            attr.sealed = true;
            return Ok(attr);
        };
        if let (Phase::Committing, Some(closed)) = (phase, work.closed) {
            // The file may be unlinked at this moment: it gives way to an object with the same content.
            attr.size = closed.size;
            attr.blocks = blocks(attr.size, attr.size.div_ceil(4096) * 8);
            return Ok(attr);
        }
        // The kernel writes to the working file without telling us: only it knows size and times.
        let file = work.reader()?;
        let meta = file.metadata().map_err(io_error("fstat"))?;
        let base = if work.overlay.is_some() { attr.blocks } else { 0 };
        attr.size = meta.len();
        attr.blocks = blocks(attr.size, meta.blocks().max(base));
        if matches!(phase, Phase::Writing | Phase::Interrupted) {
            let nanos = |secs: i64, nanos: i64| {
                time_of(i128::from(secs) * 1_000_000_000 + i128::from(nanos))
            };
            attr.mtime = nanos(meta.mtime(), meta.mtime_nsec());
            attr.ctime = attr.ctime.max(nanos(meta.ctime(), meta.ctime_nsec()));
        }
        if idle {
            work.rest();
        }
        Ok(attr)
    }

    pub(super) fn setattr(&self, ino: UploadIno, changes: &SetAttr) -> Result<UploadAttr> {
        self.writable()?;
        let now = super::now();
        {
            let mut names = self.names();
            if changes.size.is_some() {
                names.cell(ino)?;
            }
            if changes.uid.is_some() || changes.gid.is_some() {
                names.tree.chown(ino, changes.uid, changes.gid, now)?;
            }
            if let Some(mode) = changes.mode {
                names.tree.chmod(ino, mode, now)?;
            }
        }
        if let Some(size) = changes.size {
            self.truncate_path(ino, size)?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            self.utimens(ino, changes)?;
        }
        self.flusher.later();
        self.getattr(ino)
    }

    /// Sets times where they are shown from: the working file while somebody may write it, the row afterwards. A file
    /// that is being hashed is not touched, so that its stamp stays.
    fn utimens(&self, ino: UploadIno, changes: &SetAttr) -> Result<()> {
        let cell = self.names().cells.get(&ino).cloned();
        if let Some(cell) = cell {
            let mut state = cell.state();
            if matches!(state.progress.phase, Phase::Writing | Phase::Interrupted)
                && let Some(work) = &mut state.work
            {
                set_times(&*work.reader()?, changes.atime, changes.mtime)?;
            }
            return self.names().tree.set_times(ino, changes.atime, changes.mtime, super::now());
        }
        self.names().tree.set_times(ino, changes.atime, changes.mtime, super::now())
    }

    pub(super) fn readlink(&self, ino: UploadIno) -> Result<OsString> {
        match &self.names().tree.get(ino)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(PublishError::Invalid("it is not a symlink")),
        }
    }

    pub(super) fn state(&self, ino: UploadIno) -> Result<UploadState> {
        let cell = {
            let names = self.names();
            if names.tree.get(ino)?.ignored {
                return Ok(UploadState::Ignored);
            }
            names.cells.get(&ino).cloned()
        };
        if let Some(cell) = cell {
            return Ok(match cell.state().progress.phase {
                Phase::Idle | Phase::Merging => UploadState::Published,
                Phase::Writing => UploadState::Writing,
                Phase::Interrupted => UploadState::Interrupted,
                Phase::Closed | Phase::Hashing | Phase::Committing => UploadState::Hashing,
            });
        }
        Ok(if self.cid_now(ino).is_some() { UploadState::Published } else { UploadState::Hashing })
    }

    pub(super) fn setxattr(
        &self,
        ino: UploadIno,
        name: &str,
        value: &[u8],
        flags: (bool, bool),
    ) -> Result<()> {
        self.writable()?;
        match name {
            acl::ACCESS | acl::DEFAULT => self.names().tree.set_acl(ino, name, value, super::now()),
            name => {
                own_name(name)?;
                self.names().tree.setxattr(ino, name, value, flags, super::now())
            }
        }?;
        self.flusher.later();
        Ok(())
    }

    pub(super) fn removexattr(&self, ino: UploadIno, name: &str) -> Result<()> {
        self.writable()?;
        let is_acl = matches!(name, acl::ACCESS | acl::DEFAULT);
        if !is_acl {
            own_name(name)?;
        }
        match self.names().tree.removexattr(ino, name, super::now()) {
            // A file without a list has the one that its mode is.
            Err(PublishError::NoAttribute) if is_acl => return Ok(()),
            removed => removed?,
        }
        self.flusher.later();
        Ok(())
    }
}

/// Lets through the attributes that programs may set.
fn own_name(name: &str) -> Result<()> {
    if name.starts_with("user.chiral.")
        || name.starts_with("ipfs.")
        || name.starts_with("user.ipfs.")
    {
        return Err(PublishError::NotPermitted("the attribute is chiral's own"));
    }
    if !name.starts_with("user.") || name.len() > 255 {
        let source = std::io::Error::from_raw_os_error(nix::libc::EOPNOTSUPP);
        return Err(PublishError::Io { what: "only attributes of `user.` are kept", source });
    }
    Ok(())
}

/// The bytes of a target, as the tree keeps it.
pub(super) fn target(path: &std::path::Path) -> OsString {
    OsString::from_vec(path.as_os_str().to_owned().into_vec())
}
