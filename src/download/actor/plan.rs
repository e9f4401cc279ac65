//! From what the readers are about to read to the blocks that are looked up, fetched or waited for.

use std::time::Duration;

use super::{Actor, Entry, User};
use crate::{
    content::{ByteRange, Codec, ContentId, MAX_BLOCK_LEN, Need},
    download::{
        engine,
        event::Transfer,
        scheduler::Urgency,
        stats::{TYPICAL_BLOCK, whole},
    },
};

/// How far behind the window interior nodes are fetched: what two nodes of 174 links of 256 KiB cover. A reader never
/// waits for the next node then, whose round trip nothing else would hide.
const NODES_AHEAD: u64 = 88 << 20;
/// A reader that reads ahead has a window beyond this; a single small read has not.
const LONG_WINDOW: u64 = 1 << 20;

/// A block that a file needs and that may be in the store already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup {
    pub(super) file: ContentId,
    pub(super) need: Need,
    pub(super) urgency: Urgency,
}

/// Length of a needed block as far as it can be told.
pub(super) fn expected_len(need: &Need) -> u64 {
    let len = need.range.len();
    // An interior node covers more than a block can hold; its own length is small.
    if is_interior(need) || len == 0 { TYPICAL_BLOCK / 16 } else { len }
}

/// Whether it is certainly an interior node.
pub(super) fn is_interior(need: &Need) -> bool {
    need.range.len() > MAX_BLOCK_LEN as u64
}

impl Actor {
    /// Plans for all files for which something changed.
    pub(super) fn plan(&mut self, now: Duration) {
        let dirty = self.files.iter_mut().filter(|(_, entry)| entry.dirty);
        let dirty: Vec<ContentId> = dirty
            .map(|(id, entry)| {
                entry.dirty = false;
                *id
            })
            .collect();
        for id in dirty {
            let Some(entry) = self.files.get(&id) else { continue };
            let (lookups, sought) = wanted_by_readers(entry, now);
            for lookup in lookups {
                self.need(now, lookup);
            }
            if sought {
                self.drop_unneeded(&id);
            }
            self.feed_whole(now, &id);
        }
    }

    /// Brings a block on its way, or makes it more urgent when it is. Where it is being looked up the file joins; where
    /// it is being written into another file it is looked up again once it is there, see [`Actor::serve_late`].
    pub(super) fn need(&mut self, now: Duration, lookup: Lookup) {
        let id = lookup.need.cid;
        let users = self.users.entry(id).or_default();
        let first = users.is_empty();
        let range = lookup.need.range;
        if let Some(user) = users.iter_mut().find(|user| user.file == lookup.file) {
            user.elsewhere |= user.range.start != range.start;
        } else {
            users.push(User { file: lookup.file, range, writing: false, elsewhere: false });
            if let Some(entry) = self.files.get_mut(&lookup.file) {
                entry.outstanding += 1;
                if id.codec() == Codec::Raw {
                    // All leaves but the last are of one length in nearly every file.
                    entry.chunk_len = entry.chunk_len.max(lookup.need.range.len());
                }
            }
        }
        if self.scheduler.wants(&id) {
            self.want(now, lookup.file, lookup.need, lookup.urgency);
        } else if first {
            self.to_look.push(lookup);
        }
    }

    /// A reader went elsewhere: what was planned for it and no reader needs is dropped, and cancelled where it was
    /// asked for. Up to 64 MiB may be under way, which would come before the block that the reader waits for now.
    fn drop_unneeded(&mut self, id: &ContentId) {
        let Some(entry) = self.files.get(id).filter(|entry| entry.whole.is_none()) else { return };
        let readers = entry.file.readers();
        let mut covered = readers.windows.covered(entry.file.size());
        covered.extend(readers.waiting());
        drop(readers);
        let (nodes, users) = (&self.nodes, &self.users);
        let gone = self.scheduler.retain(|demand| {
            demand.file != *id
                || demand.want.id.codec() == Codec::DagPb
                || nodes.contains_key(&demand.want.id)
                || users.get(&demand.want.id).is_some_and(|users| users.len() > 1)
                || covered.iter().any(|range| !range.intersect(demand.want.range).is_empty())
        });
        for block in gone {
            self.forget_user(&block, id);
        }
    }

    /// A file does not wait for a block any more; whether it was needed in further places meanwhile.
    pub(super) fn forget_user(&mut self, block: &ContentId, file: &ContentId) -> bool {
        let Some(users) = self.users.get_mut(block) else { return false };
        let Some(at) = users.iter().position(|user| user.file == *file) else { return false };
        let user = users.swap_remove(at);
        if users.is_empty() {
            self.users.remove(block);
        }
        if let Some(entry) = self.files.get_mut(file) {
            entry.outstanding = entry.outstanding.saturating_sub(1);
        }
        user.elsewhere
    }

    /// Puts the figures of all files where [`super::super::Engine::transfers`] finds them.
    pub(super) fn publish_transfers(&mut self, now: Duration) {
        let (sources, retries) = (self.scheduler.usable_sources(now), self.scheduler.retries());
        let active = self.files.iter_mut().filter(|(_, e)| !e.file.object.is_complete());
        let transfers: Vec<Transfer> = active
            .map(|(id, entry)| {
                let (bytes, rate) = entry.measure(now);
                let total = entry.file.size();
                let eta = (total - bytes.min(total)).checked_div(rate);
                Transfer { cid: *id, bytes, total, rate, sources, eta, retries }
            })
            .collect();
        *engine::lock(&self.link.transfers) = transfers;
    }
}

impl Entry {
    /// Bytes that are here and bytes per second of the last seconds.
    fn measure(&mut self, now: Duration) -> (u64, u64) {
        let (before, rate, at) = self.measured;
        let bytes = self.file.object.present().bytes();
        let time = now.saturating_sub(at).as_secs_f64();
        if time > 0.0 {
            let fresh = (bytes.saturating_sub(before)) as f64 / time;
            let smooth = if rate == 0 { fresh } else { 0.7 * rate as f64 + 0.3 * fresh };
            self.measured = (bytes, whole(smooth), now);
        }
        (bytes, self.measured.1)
    }
}

/// What the readers of a file need that is not here, and whether one of them went elsewhere.
fn wanted_by_readers(entry: &Entry, now: Duration) -> (Vec<Lookup>, bool) {
    let file = &entry.file;
    let size = file.size();
    let (waiting, ahead, sought) = {
        let mut readers = file.readers();
        (readers.take_waiting(), readers.windows.plan(size), readers.windows.take_sought())
    };
    let mut lookups = Vec::new();
    let layout = file.layout();
    let mut add = |range: ByteRange, nodes_only: bool, deadline: &dyn Fn(u64) -> Duration| {
        for need in layout.needs_iter(range) {
            if (nodes_only && !is_interior(&need)) || file.object.has(need.range) {
                continue;
            }
            let start = need.range.start;
            let urgency = Urgency { deadline: deadline(start), order: start };
            lookups.push(Lookup { file: file.id, need, urgency });
        }
    };
    for range in waiting {
        add(range, false, &|_| now);
    }
    for window in ahead {
        let deadline = |start: u64| {
            let distance = start.saturating_sub(window.at) as f64;
            now + Duration::from_secs_f64(distance / window.rate)
        };
        add(window.range, false, &deadline);
        let end = window.range.end;
        if end > window.at + LONG_WINDOW {
            add(ByteRange::at(end, NODES_AHEAD).intersect((0..size).into()), true, &deadline);
        }
    }
    (lookups, sought)
}
