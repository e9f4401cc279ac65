//! Answers to "what is its id": at once where it is known, else when it is published.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Inner, PublishError, UploadIno, dirs::link_of, file::Phase, tree::Body};
use crate::content::ContentId;

/// How long the release of a writer is waited for: the kernel sends it some time after close(2) has returned.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// Whether the newest version of something is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Published,
    /// It will be without anybody's doing.
    Underway(UploadIno),
    /// Somebody has it open for writing.
    Written,
}

impl Inner {
    /// The id if the newest version is published.
    pub(super) fn cid_now(&self, ino: UploadIno) -> Option<ContentId> {
        let cell = self.names().cells.get(&ino).cloned();
        if let Some(cell) = cell
            && cell.state().progress.phase != Phase::Idle
        {
            return None;
        }
        link_of(self.names().tree.get(ino).ok()?).map(|(root, _)| root)
    }

    pub(super) async fn cid(self: &Arc<Self>, ino: UploadIno) -> Result<ContentId, PublishError> {
        let deadline = Instant::now() + RELEASE_WAIT;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed, though nobody waits yet.
            changed.as_mut().enable();
            match self.progress(ino)? {
                Progress::Published => {
                    if let Some(cid) = self.settle(ino).await? {
                        return Ok(cid);
                    }
                }
                Progress::Underway(file) => {
                    self.queue.hurry(file);
                    self.unless_closed(changed).await?;
                }
                Progress::Written => {
                    match timeout_at(deadline, self.unless_closed(changed)).await {
                        Ok(done) => done?,
                        Err(_) => return Err(PublishError::Busy),
                    }
                }
            }
        }
    }

    async fn unless_closed(&self, done: impl Future<Output = ()>) -> Result<(), PublishError> {
        tokio::select! {
            () = done => Ok(()),
            () = self.tasks.cancelled() => Err(PublishError::Closed),
        }
    }

    /// Gives the id when it is durable. None: something changed again.
    async fn settle(self: &Arc<Self>, ino: UploadIno) -> Result<Option<ContentId>, PublishError> {
        // A file is known only after its commit; directories and symlinks are as soon as they are computed.
        let is_file = matches!(self.names().tree.get(ino)?.body, Body::File(_));
        if !is_file {
            let inner = self.clone();
            let flushed = self.tasks.blocking("flush", move || {
                inner.compute_directories();
                inner.flush()
            });
            flushed.await.map_err(|_| PublishError::Closed)??;
        }
        Ok(self.cid_now(ino))
    }

    /// How far the newest version of `ino`, and for a directory of all below it, is. Files that were interrupted long
    /// ago do not keep their directory from having an id.
    fn progress(&self, top: UploadIno) -> Result<Progress, PublishError> {
        let mut below = vec![top];
        let mut underway = None;
        while let Some(ino) = below.pop() {
            let cell = {
                let names = self.names();
                match names.tree.get(ino) {
                    Ok(inode) => {
                        if let Body::Directory(directory) = &inode.body {
                            below.extend(directory.children.values());
                        }
                    }
                    Err(error) if ino == top => return Err(error),
                    // Removed since it was listed.
                    Err(_) => continue,
                }
                names.cells.get(&ino).cloned()
            };
            let Some(cell) = cell else { continue };
            let state = cell.state();
            match state.progress.phase {
                Phase::Idle => {}
                _ if state.orphan && ino == top => return Err(PublishError::NotFound),
                _ if state.orphan => {}
                Phase::Writing => return Ok(Progress::Written),
                Phase::Interrupted if ino == top => return Ok(Progress::Written),
                Phase::Interrupted => {}
                _ if state.held => return Ok(Progress::Written),
                _ => {
                    self.queue.hurry(ino);
                    underway = Some(ino);
                }
            }
        }
        Ok(underway.map_or(Progress::Published, Progress::Underway))
    }
}
