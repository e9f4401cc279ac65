//! Single DAG nodes: how long their callers wait.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::sync::oneshot;

use super::{
    DownloadError, Engine,
    engine::{Command, Link, lock},
    file::Patience,
};
use crate::{
    content::{Block, ContentId},
    waits::Verdict,
};

impl Engine {
    /// One DAG node: from the store, else from the sources of `root` (the content that it was reached through). Kept.
    ///
    /// # Errors
    /// [`DownloadError::NotFound`] when nothing came for [`super::DownloadOptions::lookup_timeout`] since the first call
    /// for it, or only what was asked for later; at once when that has just happened. The search goes on, so that a later
    /// call finds the node in the store.
    pub async fn node(&self, root: &ContentId, id: &ContentId) -> Result<Block, DownloadError> {
        if let Some(block) = self.stored(id)? {
            return Ok(block);
        }
        let timeout = self.options().lookup_timeout;
        let mut patience: Option<Patience> = None;
        loop {
            let (answer, mut result) = oneshot::channel();
            // Also a call that is refused keeps the search going.
            let link = self.tell(root, Command::Node { id: *id, answer })?;
            let patience = match &mut patience {
                Some(patience) => patience,
                none => {
                    let verdict = lock(&link.waits).ask(*id, self.now(), timeout);
                    let Verdict::Since(since) = verdict else {
                        // It may have come between the look into the store and the verdict.
                        return self.stored(id)?.ok_or(DownloadError::NotFound(*id));
                    };
                    let under_way = link.held.load(Ordering::Relaxed);
                    none.insert(Patience::new(&link.progress, since, under_way, timeout))
                }
            };
            loop {
                let limit = patience.limit(&link.progress);
                lock(&link.waits).extend(id, limit);
                tokio::select! {
                    result = &mut result => match result {
                        Ok(result) => return self.waited(&link, id, result),
                        // The actor ended between two nodes; a new one is started.
                        Err(_) => break,
                    },
                    () = tokio::time::sleep_until(self.instant(limit)) => {}
                }
                if self.now() >= patience.limit(&link.progress) {
                    return self.waited(&link, id, Err(DownloadError::NotFound(*id)));
                }
            }
        }
    }

    /// Asks for nodes that a caller is about to wait for, on behalf of one that has waited for `waited` already: they
    /// share its timeout. What comes is kept.
    pub fn seek(&self, root: &ContentId, ids: &[ContentId], waited: Duration) {
        let (now, timeout) = (self.now(), self.options().lookup_timeout);
        for id in ids {
            let (answer, _) = oneshot::channel();
            // Closed: no caller comes any more.
            let Ok(link) = self.tell(root, Command::Node { id: *id, answer }) else { return };
            lock(&link.waits).ask_since(*id, now.saturating_sub(waited), now, timeout);
        }
    }

    fn stored(&self, id: &ContentId) -> Result<Option<Block>, DownloadError> {
        Ok(self.store().block(id).map_err(std::sync::Arc::new)?)
    }

    /// Notes how a wait ended.
    fn waited(
        &self,
        link: &Link,
        id: &ContentId,
        result: Result<Block, DownloadError>,
    ) -> Result<Block, DownloadError> {
        match &result {
            Ok(_) => lock(&link.waits).found(id),
            Err(DownloadError::NotFound(_)) => {
                lock(&link.waits).failed(id, self.now());
                link.waited_in_vain(self.now());
            }
            Err(_) => {}
        }
        result
    }
}
