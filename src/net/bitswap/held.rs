//! Blocks of a fast peer wait for each other, so that they are hashed side by side, which takes half the time.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::content::{HASHED_AT_ONCE, HASHED_TOGETHER};

/// Longest time that a block waits: what sixteen blocks of usual size take at 260 MB/s. Whoever reads has the megabytes
/// before it then.
const LONGEST: Duration = Duration::from_millis(16);

/// Shorter blocks come many to a message, and hashing them is little beside the rest.
const LEAST: usize = 64 << 10;

/// Blocks of one length that wait to be hashed.
#[derive(Debug)]
pub(super) struct Held {
    room: Arc<Semaphore>,
    blocks: Vec<Bytes>,
    permits: Option<OwnedSemaphorePermit>,
    since: Instant,
    /// When the last blocks came.
    arrivals: VecDeque<Instant>,
}

impl Held {
    /// Nothing, in memory that is counted by `room`.
    pub(super) fn new(room: Arc<Semaphore>) -> Self {
        let since = Instant::now();
        Self { room, blocks: Vec::new(), permits: None, since, arrivals: VecDeque::new() }
    }

    /// Whether `block` may wait, with what waits already, when the peer owes so many blocks, this one included: for as
    /// many as it needs, and they come fast enough.
    pub(super) fn fits(&mut self, block: &Bytes, owed: usize) -> bool {
        let now = Instant::now();
        if self.arrivals.len() == HASHED_TOGETHER {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back(now);
        let fast = self.arrivals.len() == HASHED_TOGETHER
            && self.arrivals.front().is_some_and(|first| now < *first + LONGEST);
        fast && block.len() >= LEAST
            && self.blocks.first().is_none_or(|first| first.len() == block.len())
            && owed >= HASHED_AT_ONCE
    }

    /// Keeps a block, unless there is no memory for it.
    pub(super) fn push(&mut self, block: Bytes) -> Result<(), Bytes> {
        let permits = u32::try_from(block.len()).ok();
        let permits = permits.and_then(|len| self.room.clone().try_acquire_many_owned(len).ok());
        let Some(permits) = permits else { return Err(block) };
        match &mut self.permits {
            Some(all) => all.merge(permits),
            None => (self.permits, self.since) = (Some(permits), Instant::now()),
        }
        self.blocks.push(block);
        Ok(())
    }

    /// Whether there is no use in waiting for more.
    pub(super) fn is_full(&self) -> bool {
        self.blocks.len() >= HASHED_AT_ONCE
    }

    /// Until when the oldest may wait.
    pub(super) fn until(&self) -> Option<Instant> {
        (!self.blocks.is_empty()).then(|| self.since + LONGEST)
    }

    /// All of them, in the order of coming.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.permits = None;
        std::mem::take(&mut self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn held(room: usize) -> Held {
        Held::new(Arc::new(Semaphore::new(room)))
    }

    /// A block that comes so long after the last one; whether it may wait.
    async fn comes(held: &mut Held, after: Duration, len: usize, owed: usize) -> bool {
        advance(after).await;
        held.fits(&Bytes::from(vec![0; len]), owed)
    }

    #[tokio::test(start_paused = true)]
    async fn blocks_wait_only_for_many_that_come_fast() {
        let mut held = held(1 << 20);
        let quick = LONGEST / 16;
        for _ in 1..HASHED_TOGETHER {
            assert!(!comes(&mut held, quick, LEAST, 100).await, "not known to be fast yet");
        }
        assert!(comes(&mut held, quick, LEAST, 100).await);
        assert!(!comes(&mut held, quick, LEAST, HASHED_AT_ONCE - 1).await, "no more will come");
        assert!(!comes(&mut held, quick, LEAST - 1, 100).await);
        assert!(!comes(&mut held, LONGEST, LEAST, 100).await, "slow");
    }

    #[tokio::test(start_paused = true)]
    async fn only_blocks_of_one_length_wait_together_and_no_more_than_there_is_room_for() {
        let mut held = held(3 * LEAST);
        for _ in 0..HASHED_TOGETHER {
            held.fits(&Bytes::new(), 100);
        }
        let block = Bytes::from(vec![0; LEAST]);
        for _ in 0..3 {
            assert!(held.fits(&block, 100));
            assert!(held.push(block.clone()).is_ok());
        }
        assert!(!comes(&mut held, Duration::ZERO, LEAST + 1, 100).await);
        assert!(held.push(block.clone()).is_err());
        assert_eq!(held.until(), Some(Instant::now() + LONGEST));
        assert_eq!(held.take().len(), 3);
        assert!(held.until().is_none() && held.push(block).is_ok(), "the room is free again");
    }
}
