//! Waits that end before their time, because no source is left that could give what they wait for.

use std::time::Duration;

use super::Actor;
use crate::{content::ContentId, download::DownloadError};

/// A wait in vain makes the further waits below its root end as soon as no source is left for them. For so long: a walk
/// through a tree that has lost its sources takes one timeout, not one for each of its nodes.
const HOLD: Duration = Duration::from_secs(30);

impl Actor {
    /// Ends the waits for blocks that no source can give, where another wait of this root has just ended in vain. The
    /// blocks stay wanted: a source that comes is asked for them.
    pub(super) fn end_hopeless(&mut self, now: Duration) {
        if self.link.last_in_vain().is_none_or(|last| now >= last + HOLD) {
            return;
        }
        let timeout = self.shared.options.lookup_timeout;
        let scheduler = &self.scheduler;
        let hopeless = |id: &ContentId| scheduler.is_hopeless(now, id, timeout);
        for (id, wait) in &mut self.nodes {
            if !wait.answers.is_empty() && hopeless(id) {
                for answer in wait.answers.drain(..) {
                    // The caller may be gone.
                    let _ = answer.send(Err(DownloadError::NotFound(*id)));
                }
            }
        }
        let waits =
            self.files.values().any(|entry| entry.file.readers().waiting().next().is_some());
        if !waits {
            return;
        }
        for (_, users) in self.users.iter().filter(|(id, _)| hopeless(id)) {
            for user in users {
                let Some(entry) = self.files.get(&user.file) else { continue };
                let error = DownloadError::Stalled { id: user.file, range: user.range };
                entry.file.fail(user.range, &error);
            }
        }
    }
}
