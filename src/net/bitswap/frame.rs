//! Frames on a stream: a length as varint, then that many bytes.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{buffers::Buffers, wire::MAX_FRAME_LEN};

/// Bytes of a block that go out together with its header: a header alone would be an encrypted frame of its own.
const HEAD_LEN: usize = 16 << 10;

/// Unit of [`Budget`].
const BUDGET_UNIT: usize = 1 << 10;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The stream broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A length over [`MAX_FRAME_LEN`], or no length at all.
    #[error("a frame over {MAX_FRAME_LEN} bytes")]
    TooLong,
    /// The connection has too many frames under way.
    #[error("too many bytes under way on one connection")]
    Budget,
    /// Slower than any link that is worth waiting for.
    #[error("stalled in the middle of a frame")]
    Stalled,
}

/// Bytes under way on a connection that do not count for all: two blocks of usual size. Whoever fills what all share
/// cannot keep others from a modest exchange.
const OWN_SHARE: usize = 512 << 10;

/// Memory that the frames under way on all connections may take together, beyond [`OWN_SHARE`] of each.
#[derive(Clone, Debug)]
pub(super) struct SharedBudget(Arc<Semaphore>);

impl SharedBudget {
    /// A budget of so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / BUDGET_UNIT)))
    }

    /// The part of one connection, which may take so many bytes.
    pub(super) fn connection(&self, bytes: usize) -> Budget {
        let units = |bytes| Arc::new(Semaphore::new(bytes / BUDGET_UNIT));
        let own = OWN_SHARE.min(bytes);
        Budget { own: units(own), more: units(bytes - own), all: self.0.clone() }
    }
}

/// Memory that the frames under way on one connection may take together.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// What nobody else can take.
    own: Arc<Semaphore>,
    /// What it may take besides, when `all` has it too.
    more: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Memory that was taken; given back when it is dropped.
type Permits = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Budget {
    /// A budget of so many bytes that shares with no other.
    #[cfg(test)]
    pub(super) fn new(bytes: usize) -> Self {
        SharedBudget::new(bytes).connection(bytes)
    }

    fn take(&self, bytes: usize) -> Option<Permits> {
        let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT)).ok()?;
        let take = |from: &Arc<Semaphore>| from.clone().try_acquire_many_owned(units).ok();
        if let Some(own) = take(&self.own) {
            return Some((own, None));
        }
        Some((take(&self.more)?, Some(take(&self.all)?)))
    }
}

/// Time that a frame may take: ten seconds and what 100 kbit/s need, as Kubo allows.
fn deadline(len: usize) -> Duration {
    Duration::from_secs(10 + (len / 12_500) as u64)
}

/// Waits for a frame. None at the end of the stream.
///
/// `started` is called when its first byte is there. The frame lies in one buffer.
///
/// # Errors
/// As [`FrameError`] says; the stream is of no use afterwards.
pub(super) async fn read<S, G>(
    stream: &mut S,
    budget: &Budget,
    buffers: &Arc<Buffers>,
    started: impl FnOnce() -> G,
) -> Result<Option<(Bytes, G)>, FrameError>
where
    S: AsyncRead + Unpin,
{
    let mut byte = [0];
    if stream.read(&mut byte).await? == 0 {
        return Ok(None);
    }
    let guard = started();
    let len = timeout(deadline(0), read_len(stream, byte[0]))
        .await
        .map_err(|_| FrameError::Stalled)??;
    let _permit = budget.take(len).ok_or(FrameError::Budget)?;
    let mut frame = buffers.take(len);
    timeout(deadline(len), stream.read_exact(frame.as_mut()))
        .await
        .map_err(|_| FrameError::Stalled)??;
    Ok(Some((Bytes::from_owner(frame), guard)))
}

async fn read_len<S: AsyncRead + Unpin>(stream: &mut S, first: u8) -> Result<usize, FrameError> {
    let (mut len, mut shift, mut byte) = (0, 0, [first]);
    loop {
        len |= usize::from(byte[0] & 0x7f) << shift;
        if len > MAX_FRAME_LEN {
            return Err(FrameError::TooLong);
        }
        if byte[0] & 0x80 == 0 {
            return Ok(len);
        }
        shift += 7;
        // Four bytes hold more than the limit.
        if shift > 21 {
            return Err(FrameError::TooLong);
        }
        stream.read_exact(&mut byte).await?;
    }
}

/// Writes a frame that is complete with its length.
///
/// # Errors
/// When the stream breaks or stalls.
pub(super) async fn write<S>(stream: &mut S, frame: &[u8]) -> Result<(), FrameError>
where
    S: AsyncWrite + Unpin,
{
    timeout(deadline(frame.len()), stream.write_all(frame))
        .await
        .map_err(|_| FrameError::Stalled)?
        .map_err(FrameError::Io)
}

/// Writes a frame that is `header` and then `data`, without copying more than the head of `data`.
///
/// # Errors
/// When the stream breaks or stalls.
pub(super) async fn write_with<S>(
    stream: &mut S,
    mut header: Vec<u8>,
    data: &[u8],
) -> Result<(), FrameError>
where
    S: AsyncWrite + Unpin,
{
    let (head, rest) = data.split_at(data.len().min(HEAD_LEN));
    header.extend_from_slice(head);
    let all = async {
        stream.write_all(&header).await?;
        stream.write_all(rest).await
    };
    timeout(deadline(data.len()), all).await.map_err(|_| FrameError::Stalled)??;
    Ok(())
}

/// Hands on what the stream holds back.
///
/// # Errors
/// When the stream breaks or stalls.
pub(super) async fn flush<S: AsyncWrite + Unpin>(stream: &mut S) -> Result<(), FrameError> {
    timeout(deadline(MAX_FRAME_LEN), stream.flush()).await.map_err(|_| FrameError::Stalled)??;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures::io::Cursor;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    async fn read_all(bytes: &[u8]) -> Result<Option<Bytes>, FrameError> {
        let budget = Budget::new(MAX_FRAME_LEN + OWN_SHARE);
        Ok(read(&mut Cursor::new(bytes), &budget, &Arc::default(), || ())
            .await?
            .map(|(frame, ())| frame))
    }

    #[tokio::test]
    async fn a_frame_is_read_back_and_the_end_is_no_error() {
        let mut stream = Cursor::new(Vec::new());
        let data = vec![7; 100_000];
        write_with(&mut stream, vec![0xa0, 0x8d, 0x06], &data).await.unwrap();
        assert_eq!(read_all(stream.get_ref()).await.unwrap().unwrap(), data);
        assert!(read_all(&[]).await.unwrap().is_none());
        assert_eq!(read_all(&[0]).await.unwrap().unwrap(), Bytes::new());
    }

    #[tokio::test]
    async fn lengths_over_the_limit_and_endless_ones_are_refused() {
        // 4 MiB and one byte.
        let over = read_all(&[0x81, 0x80, 0x80, 0x02]).await;
        assert!(matches!(over, Err(FrameError::TooLong)));
        let endless = read_all(&[0x80; 20]).await;
        assert!(matches!(endless, Err(FrameError::TooLong)));
        let short = read_all(&[5, 1, 2]).await;
        assert!(matches!(short, Err(FrameError::Io(_))));
    }

    #[tokio::test]
    async fn frames_under_way_share_a_budget_and_give_it_back() {
        let budget = Budget::new(100 << 10);
        let held = budget.take(60 << 10).unwrap();
        // A frame of 50 KiB.
        let bytes = [&[0x80, 0x90, 0x03][..], &[1; 50 << 10]].concat();
        let refused = read(&mut Cursor::new(&bytes), &budget, &Arc::default(), || ()).await;
        assert!(matches!(refused, Err(FrameError::Budget)));
        drop(held);
        assert!(
            read(&mut Cursor::new(&bytes), &budget, &Arc::default(), || ())
                .await
                .unwrap()
                .is_some()
        );
        assert!(budget.take(100 << 10).is_some());
    }

    #[test]
    fn connections_share_what_is_beyond_a_small_part_of_their_own() {
        let all = SharedBudget::new(8 << 20);
        let greedy = all.connection(32 << 20);
        let held: Vec<_> = std::iter::from_fn(|| greedy.take(256 << 10)).collect();
        assert_eq!(held.len(), 2 + 32, "its own and all of the common");
        let modest = all.connection(32 << 20);
        let block = modest.take(257 << 10);
        assert!(block.is_some() && modest.take(257 << 10).is_none());
        drop(held);
        assert!(modest.take(4 << 20).is_some());
        let alone = all.connection(1 << 20);
        assert!(alone.take(2 << 20).is_none(), "more than one connection may have");
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_stalls_is_given_up_and_an_idle_stream_is_not() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = near.compat();
        let budget = Budget::new(MAX_FRAME_LEN);
        let idle =
            timeout(Duration::from_secs(3600), read(&mut near, &budget, &Arc::default(), || ()))
                .await;
        assert!(idle.is_err(), "waits for the first byte for ever");
        tokio::io::AsyncWriteExt::write_all(&mut far, &[200]).await.unwrap();
        let stalled = read(&mut near, &budget, &Arc::default(), || ()).await;
        assert!(matches!(stalled, Err(FrameError::Stalled)));
        let stalled = write(&mut near, &[0; 1000]).await;
        assert!(matches!(stalled, Err(FrameError::Stalled)));
    }
}
