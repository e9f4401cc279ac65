//! Sealed files that look other than when they were sealed: their bytes decide.
//!
//! Times of a file change with its bytes, but also when a backup is restored, owners are changed or links are made.
//! So what looks different is hashed again: what is right stays in service, what is wrong is withdrawn, and until that is
//! known each leaf is verified before it is given out.

use std::{
    fs::File,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use bytes::Bytes;

use super::{FileStamp, Inner, Object, ObjectId, StoreError, codec::Leaf, guard, index};
use crate::{
    content::{Block, BlockError, ByteRange, HASHED_AT_ONCE, Multihash},
    tasks::Tasks,
};

/// Files of up to this size are hashed again while the caller waits: some 20 ms.
const AT_ONCE: u64 = 16 << 20;
/// Leaves that are read from the index at a time: 64 MiB of content.
const LEAF_BATCH: usize = 256;

/// What the file of an object looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// As when it was sealed, or it never was.
    Same,
    /// Of the same size, with other times: this is its stamp.
    Touched(FileStamp),
    /// Not even of the same size.
    Resized,
}

/// Starts the task that hashes what looks changed: it takes as long as the files are large, so nothing else waits for it.
pub(super) fn start(inner: &Arc<Inner>, tasks: &Tasks) {
    // Weak, so that a store whose last clone is dropped goes at once.
    let store = Arc::downgrade(inner);
    let (cancelled, runner) = (tasks.cancelled(), tasks.clone());
    let wake = inner.suspected.clone();
    tasks.spawn("store recheck", async move {
        tokio::pin!(cancelled);
        loop {
            tokio::select! {
                () = &mut cancelled => return,
                () = wake.notified() => {}
            }
            let store = store.clone();
            let recheck = move || store.upgrade().map(|inner| inner.recheck_suspects());
            // A panic of the work was reported by the runtime; who finds the file changed once more asks again.
            let _ = runner.blocking("store recheck", recheck).await;
        }
    });
}

impl Object {
    /// The backing file, opened O_RDONLY, for passthrough; only when complete, and verified since it was last changed. A
    /// large file that looks changed is verified behind the caller, who gets none meanwhile.
    ///
    /// # Errors
    /// When the file cannot be read, or a withdrawal not be made durable.
    pub fn backing(&self) -> Result<Option<Arc<File>>, StoreError> {
        if self.size() > AT_ONCE && matches!(self.look()?, Look::Touched(_)) {
            self.suspect()?;
            return Ok(None);
        }
        self.verified_backing()
    }

    /// As [`Object::backing`], and a file that looks changed is hashed while the caller waits, whatever its size.
    ///
    /// # Errors
    /// As [`Object::backing`].
    pub fn verified_backing(&self) -> Result<Option<Arc<File>>, StoreError> {
        if !self.is_complete() || !self.is_right()? {
            return Ok(None);
        }
        self.touch();
        Ok(Some(self.reader()?))
    }

    pub(super) fn look(&self) -> Result<Look, StoreError> {
        let Some(stamp) = self.stamp() else { return Ok(Look::Same) };
        let now = FileStamp::of(&*self.reader()?).map_err(|e| self.io("stat", e))?;
        Ok(match now {
            _ if now == stamp => Look::Same,
            _ if now.size == stamp.size => Look::Touched(now),
            _ => Look::Resized,
        })
    }

    /// Asks for it to be hashed again soon.
    fn suspect(&self) -> Result<(), StoreError> {
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        guard(&store.suspects).insert(self.id());
        store.suspected.notify_one();
        Ok(())
    }

    /// Whether all bytes are what was sealed; those that are not are withdrawn.
    pub(super) fn is_right(&self) -> Result<bool, StoreError> {
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        let _turn = self.rehashing.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have found out meanwhile.
        match self.look()? {
            Look::Same => {}
            Look::Touched(stamp) => store.rehash(self, stamp)?,
            Look::Resized => store.withdraw_resized(self)?,
        }
        Ok(self.is_complete() && self.look()? == Look::Same)
    }

    /// The bytes of `range`, each leaf verified, of a file that looks changed; none when it does not.
    pub(super) fn read_suspect(&self, range: ByteRange) -> Result<Option<Bytes>, StoreError> {
        match self.look()? {
            Look::Same => return Ok(None),
            Look::Touched(_) => self.suspect()?,
            Look::Resized => {
                self.store.upgrade().ok_or(StoreError::Closed)?.withdraw_resized(self)?;
                return Err(StoreError::Missing(range));
            }
        }
        let store = self.store.upgrade().ok_or(StoreError::Closed)?;
        let mut bytes = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let leaf = store.index.read(|txn| index::leaf_at(txn, self.id(), at))?;
            let (hash, leaf) = leaf.ok_or(StoreError::Missing(range))?;
            let Some(block) = self.verify_leaf(&store, &hash, &leaf)? else {
                return Err(StoreError::Missing(range));
            };
            let part = ByteRange::new(at, range.end.min(leaf.range.end));
            // Content stands behind what frames it.
            let start = at - leaf.range.start + leaf.envelope.before.len() as u64;
            let inside = ByteRange::at(start, part.len());
            let inside = usize::try_from(inside.start).ok().zip(usize::try_from(inside.end).ok());
            let content = inside.and_then(|(start, end)| block.get(start..end));
            bytes.extend_from_slice(content.ok_or(StoreError::Missing(range))?);
            at = part.end;
        }
        Ok(Some(bytes.into()))
    }

    /// The block of a leaf if it is right; else the leaf is withdrawn.
    pub(super) fn verify_leaf(
        &self,
        store: &Arc<Inner>,
        hash: &Multihash,
        leaf: &Leaf,
    ) -> Result<Option<Bytes>, StoreError> {
        let bytes = match self.read_block(leaf) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(error) if is_unreadable(&error) => {
                tracing::warn!(%error, "a leaf cannot be read");
                store.withdraw_wrong(self, leaf.range)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if let Err(BlockError::WrongHash(_)) =
            Block::verify(index::leaf_id(*hash, leaf), bytes.clone())
        {
            store.withdraw_wrong(self, leaf.range)?;
            return Ok(None);
        }
        self.note_verified(leaf.range);
        Ok(Some(bytes))
    }
}

impl Inner {
    /// Hashes what looked changed, in the background.
    pub(super) fn recheck_suspects(self: &Arc<Self>) {
        let suspects: Vec<ObjectId> = guard(&self.suspects).drain().collect();
        for id in suspects {
            let checked = self.open_object(id).and_then(|object| match object {
                Some(object) => object.is_right().map(|_| ()),
                None => Ok(()),
            });
            if let Err(error) = checked {
                tracing::warn!(%error, "a file that looks changed could not be verified");
            }
        }
    }

    /// Hashes all leaves of a file that looks like `stamp` now. Nothing is believed of one that changes meanwhile.
    fn rehash(self: &Arc<Self>, object: &Object, stamp: FileStamp) -> Result<(), StoreError> {
        tracing::info!(path = %object.path().display(), "a published file looks changed: it is hashed again");
        self.rehash_leaves(object)?;
        self.restamp(object, stamp)
    }

    /// Hashes all leaves of a file and withdraws those that are wrong.
    pub(super) fn rehash_leaves(&self, object: &Object) -> Result<(), StoreError> {
        let mut from = 0;
        let bad = Mutex::new(Vec::new());
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                return Err(StoreError::Closed);
            }
            let leaves =
                self.index.read(|txn| index::leaves(txn, object.id(), from, LEAF_BATCH))?;
            let Some((_, last)) = leaves.last() else { break };
            from = last.range.end;
            let workers = std::thread::available_parallelism().map_or(1, usize::from);
            std::thread::scope(|scope| {
                for part in leaves.chunks(leaves.len().div_ceil(workers)) {
                    let bad = &bad;
                    scope.spawn(move || {
                        for together in part.chunks(HASHED_AT_ONCE) {
                            guard(bad).extend(wrong_leaves(object, together));
                        }
                    });
                }
            });
        }
        for range in bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.withdraw_wrong(object, range)?;
        }
        Ok(())
    }

    /// All bytes that are present were right while the file looked like `stamp`.
    pub(super) fn restamp(&self, object: &Object, stamp: FileStamp) -> Result<(), StoreError> {
        if object.look()? != Look::Touched(stamp) {
            return Ok(());
        }
        object.set_stamp(stamp);
        let written = self.index.write(|rows| {
            if let Some(mut row) = rows.object(object.id())?.filter(|row| row.stamp.is_some()) {
                row.stamp = Some(stamp);
                rows.put_object(object.id(), &row)?;
            }
            Ok(())
        });
        self.unless_in_trouble(written)
    }

    /// A finding that a read-only disk cannot record is known until the next start, which finds it out again.
    pub(super) fn unless_in_trouble(&self, done: Result<(), StoreError>) -> Result<(), StoreError> {
        match done {
            Err(error) if self.tell(&error) => Ok(()),
            done => done,
        }
    }

    fn withdraw_wrong(&self, object: &Object, range: ByteRange) -> Result<(), StoreError> {
        tracing::warn!(
            path = %object.path().display(), root = %object.root(), %range,
            "a stored file was changed in the data folder or damaged on the disk; what is wrong is withdrawn"
        );
        self.withdraw_range(object, range)
    }

    pub(super) fn withdraw_resized(&self, object: &Object) -> Result<(), StoreError> {
        tracing::warn!(
            path = %object.path().display(), root = %object.root(),
            "a published file was cut or made longer in the data folder; its blocks are withdrawn"
        );
        self.withdraw_range(object, ByteRange::new(0, object.size()))
    }
}

/// Returns whether the disk cannot read what it has.
fn is_unreadable(error: &StoreError) -> bool {
    let lost = |e: &std::io::Error| {
        e.raw_os_error() == Some(libc::EIO) || e.kind() == std::io::ErrorKind::UnexpectedEof
    };
    matches!(error, StoreError::Io { source, .. } if lost(source))
}

/// Where leaves are wrong. One that is not present claims nothing; bytes that cannot be read are as good as wrong.
fn wrong_leaves(object: &Object, leaves: &[(Multihash, Leaf)]) -> Vec<ByteRange> {
    let (mut blocks, mut ranges, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for (hash, leaf) in leaves {
        match object.read_block(leaf) {
            Ok(Some(bytes)) => {
                blocks.push((index::leaf_id(*hash, leaf), bytes));
                ranges.push(leaf.range);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "a leaf cannot be read");
                wrong.push(leaf.range);
            }
        }
    }
    let verified = Block::verify_each(blocks).into_iter().zip(ranges);
    wrong.extend(verified.filter(|(block, _)| block.is_err()).map(|(_, range)| range));
    wrong
}
