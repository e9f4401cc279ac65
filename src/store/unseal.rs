//! Making an object a working file again: what a new version is merged into where a copy would cost too much.

use std::sync::Arc;

use super::{Inner, ObjectId, StoreError, WorkingFile, codec::ObjectRow, now_secs};
use crate::sys::Holder;

impl Inner {
    /// As [`super::Store::unseal`].
    pub(super) fn unseal(
        self: &Arc<Self>,
        id: ObjectId,
    ) -> Result<Option<WorkingFile>, StoreError> {
        let _leader = self.lead();
        // Whether a pinned directory reaches it would take a walk over all that is pinned.
        if !self.pins()?.is_empty() || !self.registry().claim(id) {
            return Ok(None);
        }
        // From here on nobody gets a handle; those outside the process show in the lease.
        let unsealed = self.unseal_claimed(id);
        self.registry().unclaim(id);
        if unsealed? { self.reopen_working(id) } else { Ok(None) }
    }

    fn unseal_claimed(&self, id: ObjectId) -> Result<bool, StoreError> {
        if self.object_is_held(id, Holder::Anyone)? {
            return Ok(false);
        }
        let (unsealed, delta) = self.index.write_counted(|rows| {
            if !rows.object(id)?.is_some_and(|row| row.root.is_some() && row.owners == 1) {
                return Ok(false);
            }
            rows.remove_object(id)?;
            rows.put_object(id, &ObjectRow::working(now_secs()))?;
            Ok(true)
        })?;
        self.figures.add(delta);
        Ok(unsealed)
    }
}
