//! Answers to "what is its id": at once where it is known, else when it is published.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Inner, PublishError, UploadIno, dirs::link_of, file::Phase, tree::Body};
use crate::content::ContentId;

/// How long the release of a writer is waited for: the kernel sends it some time after close(2) has returned.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// How far the newest version of something is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    Published,
    /// These files have to be published first, and will be without anybody's doing.
    Underway(Vec<UploadIno>),
    /// Somebody has this file open for writing.
    Written(UploadIno),
}

/// How far the newest version of one file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Published,
    Underway,
    Written,
    /// It was being written when the daemon was killed.
    Interrupted,
    /// It has no name any more.
    Orphan,
    /// It is not to be published.
    Ignored,
}

impl Inner {
    /// The id of a file if its newest version is published.
    pub(super) fn cid_now(&self, ino: UploadIno) -> Option<ContentId> {
        (self.stage(ino)? == Stage::Published).then(|| self.root_now(ino)).flatten()
    }

    fn root_now(&self, ino: UploadIno) -> Option<ContentId> {
        link_of(self.names().tree.get(ino).ok()?).map(|(root, _)| root)
    }

    /// None: it is no file.
    fn stage(&self, ino: UploadIno) -> Option<Stage> {
        let (cell, ignored) = {
            let names = self.names();
            (names.cells.get(&ino).cloned()?, names.tree.is_ignored(ino))
        };
        if ignored {
            return Some(Stage::Ignored);
        }
        let state = cell.state();
        Some(match state.progress.phase {
            Phase::Idle | Phase::Merging => Stage::Published,
            _ if state.orphan => Stage::Orphan,
            Phase::Writing => Stage::Written,
            Phase::Interrupted => Stage::Interrupted,
            _ if state.held => Stage::Written,
            Phase::Closed | Phase::Hashing | Phase::Committing => Stage::Underway,
        })
    }

    pub(super) async fn cid(self: &Arc<Self>, ino: UploadIno) -> Result<ContentId, PublishError> {
        let deadline = Instant::now() + RELEASE_WAIT;
        loop {
            match self.progress(ino).await? {
                Progress::Published => {
                    if let Some(cid) = self.settle(ino).await? {
                        return Ok(cid);
                    }
                }
                Progress::Underway(files) => self.leave(files, Stage::Underway).await?,
                Progress::Written(file) => {
                    let leave = async {
                        self.leave(vec![file], Stage::Written).await?;
                        self.leave(vec![file], Stage::Interrupted).await
                    };
                    match timeout_at(deadline, leave).await {
                        Ok(done) => done?,
                        Err(_) => return Err(PublishError::Busy),
                    }
                }
            }
        }
    }

    /// Waits until none of the files is at `stage`. Only they are looked at again when something changes, not all that
    /// lies around them.
    async fn leave(&self, mut files: Vec<UploadIno>, stage: Stage) -> Result<(), PublishError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed, though nobody waits yet.
            changed.as_mut().enable();
            while files.last().is_some_and(|file| self.stage(*file) != Some(stage)) {
                files.pop();
            }
            if files.is_empty() {
                return Ok(());
            }
            tokio::select! {
                () = changed => {}
                () = self.tasks.cancelled() => return Err(PublishError::Closed),
            }
        }
    }

    /// Gives the id when it is durable. None: something changed again.
    async fn settle(self: &Arc<Self>, ino: UploadIno) -> Result<Option<ContentId>, PublishError> {
        // The id of a file is known only after its commit, but its name may be newer than that. Directories and symlinks
        // are known as soon as they are computed.
        let (is_file, is_saved) = {
            let names = self.names();
            (matches!(names.tree.get(ino)?.body, Body::File(_)), names.tree.is_saved(ino))
        };
        if is_file {
            if !is_saved {
                self.flush_soon().await?;
            }
            return Ok(self.cid_now(ino));
        }
        let inner = self.clone();
        let flushed = self.tasks.blocking("flush", move || {
            inner.compute_directories();
            inner.flush()
        });
        flushed.await.map_err(|_| PublishError::Closed)??;
        Ok(self.root_now(ino))
    }

    async fn progress(self: &Arc<Self>, ino: UploadIno) -> Result<Progress, PublishError> {
        let is_directory = {
            let names = self.names();
            let inode = names.tree.get(ino)?;
            if inode.ignored {
                return Err(PublishError::Ignored);
            }
            inode.directory().is_ok()
        };
        if !is_directory {
            return self.walk(ino);
        }
        // There may be millions of files below it.
        let inner = self.clone();
        let walk = self.tasks.blocking("walk", move || inner.walk(ino));
        walk.await.map_err(|_| PublishError::Closed)?
    }

    /// How far the newest version of `top`, and for a directory of all below it, is. Files that were interrupted long
    /// ago do not keep their directory from having an id.
    fn walk(&self, top: UploadIno) -> Result<Progress, PublishError> {
        #[cfg(test)]
        self.directories.walks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut below = vec![top];
        let mut underway = Vec::new();
        while let Some(ino) = below.pop() {
            match self.names().tree.get(ino) {
                Ok(inode) if inode.ignored => continue,
                Ok(inode) => {
                    if let Body::Directory(directory) = &inode.body {
                        below.extend(directory.children.values());
                    }
                }
                Err(error) if ino == top => return Err(error),
                // Removed since it was listed.
                Err(_) => continue,
            }
            match self.stage(ino) {
                None | Some(Stage::Published | Stage::Ignored) => {}
                Some(Stage::Orphan) if ino == top => return Err(PublishError::NotFound),
                Some(Stage::Orphan) => {}
                Some(Stage::Written) => return Ok(Progress::Written(ino)),
                Some(Stage::Interrupted) if ino == top => return Ok(Progress::Written(ino)),
                Some(Stage::Interrupted) => {}
                Some(Stage::Underway) => {
                    self.queue.hurry(ino);
                    underway.push(ino);
                }
            }
        }
        Ok(match underway.is_empty() {
            true => Progress::Published,
            false => Progress::Underway(underway),
        })
    }
}
