//! Files that lie outside of the store and are to be served from where they are.

use std::{fs::File, io, path::Path, sync::Arc};

use super::{Inner, StoreError, WorkingFile};

impl Inner {
    /// A working file with the bytes of another file, of which no second copy is made: a clone where the filesystem can,
    /// else a second name. None where neither is possible, as on another filesystem.
    ///
    /// Under a second name the bytes are safe, since those of an object that is whole are never written nor punched
    /// while it has an owner besides the upload tree.
    pub(super) fn adopt(self: &Arc<Self>, path: &Path) -> Result<Option<WorkingFile>, StoreError> {
        if let Some(cloned) = self.clone_file(path)? {
            return Ok(Some(cloned));
        }
        let id = self.next_id();
        let name = self.object_path(id);
        match self.disk.link(path, &name) {
            Ok(()) => {
                self.new_names().insert(id);
                Ok(Some(self.working(id, name)))
            }
            Err(error) if is_impossible(&error) => {
                tracing::debug!(%error, path = %path.display(), "a file cannot be taken in");
                Ok(None)
            }
            Err(error) => Err(StoreError::io("link", path, error)),
        }
    }

    fn clone_file(self: &Arc<Self>, path: &Path) -> Result<Option<WorkingFile>, StoreError> {
        if !self.can_clone() {
            return Ok(None);
        }
        let source = File::open(path).map_err(|e| StoreError::io("open", path, e))?;
        let (id, path, file) = self.create_file()?;
        match rustix::fs::ioctl_ficlone(&file, &source) {
            Ok(()) => Ok(Some(self.working(id, path))),
            Err(_) => {
                self.discard(id);
                Ok(None)
            }
        }
    }
}

/// Whether the filesystem, and not the disk, is the reason.
fn is_impossible(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    matches!(error.kind(), CrossesDevices | PermissionDenied | TooManyLinks | Unsupported)
}
