//! Reading a window out of the CAR that a gateway sends for it, block by block as they arrive.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;

use super::client::{Answer, HttpError};
use crate::content::{Block, BlockError, CarItem, CarReader, ContentId, HASHED_AT_ONCE, Multihash};

/// What may come besides the wanted blocks, however few these are: the nodes on the way from the root to them.
const ALLOWANCE: u64 = 1 << 20;
/// Bytes around each block: its section's head, and what a dag-pb leaf has around its content.
const AROUND: u64 = 1 << 10;
/// Bytes of blocks that are held to be hashed together: [`HASHED_AT_ONCE`] of the usual length.
const BATCH: usize = 4 << 20;
/// After the last wanted block so much is read on for the end, so that the connection can be used again.
const REST: u64 = 64 << 10;
/// For at most this long.
const REST_TIME: Duration = Duration::from_millis(500);

/// A body that comes in pieces.
pub(super) trait Body: Send {
    /// The next piece; none at the end.
    fn piece(&mut self) -> impl Future<Output = Result<Option<Bytes>, HttpError>> + Send;
}

impl Body for Answer {
    fn piece(&mut self) -> impl Future<Output = Result<Option<Bytes>, HttpError>> + Send {
        self.chunk()
    }
}

/// Who waits for the blocks of a window.
pub(super) trait Takes: Send {
    /// The id by which a block is wanted; none when nobody wants it.
    fn wanted(&self, hash: &Multihash) -> Option<ContentId>;
    /// Takes a block.
    fn take(&mut self, id: &ContentId, block: Result<Block, BlockError>);
    /// Whether more is wanted.
    fn is_waiting(&self) -> bool;
}

/// How a window ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With all that was wanted, or after all that the gateway had of it.
    Whole,
    /// It is no CAR.
    NotACar,
    /// It broke off.
    Broken(HttpError),
    /// More came than was asked for, or something that is no CAR.
    Spoilt,
}

/// Bytes that a window of so many wanted bytes in so many blocks may have.
pub(super) fn limit(bytes: u64, blocks: usize) -> u64 {
    bytes + bytes / 8 + blocks as u64 * AROUND + ALLOWANCE
}

/// Reads a window of at most `limit` bytes. What nobody wants is dropped, unlooked at.
pub(super) async fn read(body: &mut impl Body, limit: u64, to: &mut impl Takes) -> End {
    let mut car = CarReader::new(false);
    let (mut came, mut is_car) = (0, false);
    let mut batch = Batch::default();
    while to.is_waiting() {
        // Blocks that are here already are hashed together; for others nobody waits.
        let piece = if batch.blocks.is_empty() {
            body.piece().await
        } else {
            match body.piece().now_or_never() {
                Some(piece) => piece,
                None => {
                    batch.give(to);
                    continue;
                }
            }
        };
        let piece = match piece {
            Ok(Some(piece)) => piece,
            Ok(None) => {
                batch.give(to);
                return if is_car { End::Whole } else { End::NotACar };
            }
            Err(error) => {
                batch.give(to);
                return End::Broken(error);
            }
        };
        came += piece.len() as u64;
        car.push(&piece);
        let read = sections(&mut car, &mut batch, &mut is_car, to);
        if came > limit || !read || batch.is_full() {
            batch.give(to);
        }
        if !is_car && !read {
            return End::NotACar;
        }
        if (came > limit || !read) && to.is_waiting() {
            return End::Spoilt;
        }
    }
    rest(body).await;
    End::Whole
}

/// Takes out what is wanted of what came; whether it is a CAR.
fn sections(
    car: &mut CarReader,
    batch: &mut Batch,
    is_car: &mut bool,
    to: &mut impl Takes,
) -> bool {
    loop {
        match car.next_item() {
            Ok(Some(CarItem::Header(_))) => *is_car = true,
            Ok(Some(CarItem::Section(section))) => {
                if let Some(id) = to.wanted(section.cid.hash()) {
                    batch.add(id, section.data);
                }
                if batch.is_full() {
                    batch.give(to);
                }
            }
            Ok(None) => return true,
            Err(error) => {
                tracing::debug!("a window: {error}");
                return false;
            }
        }
    }
}

/// Blocks to be hashed together.
#[derive(Default)]
struct Batch {
    blocks: Vec<(ContentId, Bytes)>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, id: ContentId, data: Bytes) {
        self.bytes += data.len();
        self.blocks.push((id, data));
    }

    fn is_full(&self) -> bool {
        self.blocks.len() >= HASHED_AT_ONCE || self.bytes >= BATCH
    }

    fn give(&mut self, to: &mut impl Takes) {
        let ids: Vec<ContentId> = self.blocks.iter().map(|(id, _)| *id).collect();
        let verified = Block::verify_each(std::mem::take(&mut self.blocks));
        self.bytes = 0;
        for (id, block) in ids.iter().zip(verified) {
            to.take(id, block);
        }
    }
}

/// Reads to the end, if that is near.
async fn rest(body: &mut impl Body) {
    let mut came = 0;
    let to_the_end = async {
        while let Ok(Some(piece)) = body.piece().await {
            came += piece.len() as u64;
            if came > REST {
                return;
            }
        }
    };
    // An end that does not come costs a connection.
    let _ = tokio::time::timeout(REST_TIME, to_the_end).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::{HashMap, VecDeque};

    use super::*;
    use crate::content::{car_header, car_section_head};

    /// A body of pieces; without an end it waits for ever.
    struct Pieces {
        pieces: VecDeque<Bytes>,
        end: Option<Result<(), HttpError>>,
    }

    impl Body for Pieces {
        async fn piece(&mut self) -> Result<Option<Bytes>, HttpError> {
            match (self.pieces.pop_front(), &self.end) {
                (Some(piece), _) => Ok(Some(piece)),
                (None, Some(end)) => end.clone().map(|()| None),
                (None, None) => std::future::pending().await,
            }
        }
    }

    /// Wants blocks, each once.
    #[derive(Default)]
    struct Wants {
        left: HashMap<Multihash, ContentId>,
        came: Vec<Result<Block, BlockError>>,
    }

    impl Takes for Wants {
        fn wanted(&self, hash: &Multihash) -> Option<ContentId> {
            self.left.get(hash).copied()
        }
        fn take(&mut self, id: &ContentId, block: Result<Block, BlockError>) {
            if self.left.remove(id.hash()).is_some() {
                self.came.push(block);
            }
        }
        fn is_waiting(&self) -> bool {
            !self.left.is_empty()
        }
    }

    fn blocks(count: usize) -> Vec<Block> {
        (0..count).map(|n| Block::raw(vec![n.to_le_bytes()[0]; 1000 + n].into())).collect()
    }

    fn archive(blocks: &[Block]) -> Vec<u8> {
        let mut car = car_header(&[*blocks[0].cid()]);
        for block in blocks {
            car.extend(car_section_head(block.cid(), block.data().len()));
            car.extend_from_slice(block.data());
        }
        car
    }

    fn wants(blocks: &[Block]) -> Wants {
        let left = blocks.iter().map(|block| (*block.cid().hash(), *block.cid())).collect();
        Wants { left, came: Vec::new() }
    }

    fn pieces(bytes: &[u8], len: usize, end: Option<Result<(), HttpError>>) -> Pieces {
        Pieces { pieces: bytes.chunks(len).map(Bytes::copy_from_slice).collect(), end }
    }

    #[tokio::test(start_paused = true)]
    async fn blocks_come_in_pieces_of_any_length_and_what_nobody_wants_is_dropped() {
        let blocks = blocks(40);
        let car = archive(&blocks);
        for len in [1, 7, 100, 1000, 10_000, car.len()] {
            let mut to = wants(&blocks[10..30]);
            let end = read(&mut pieces(&car, len, Some(Ok(()))), 1 << 20, &mut to).await;
            assert_eq!(end, End::Whole);
            let came: Vec<Block> = to.came.into_iter().map(Result::unwrap).collect();
            assert_eq!(came, blocks[10..30], "{len} bytes at a time");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_block_is_given_while_the_next_is_waited_for() {
        let blocks = blocks(3);
        let car = archive(&blocks[..2]);
        let (mut to, mut body) = (wants(&blocks), pieces(&car, 100, None));
        let waited = Duration::from_secs(5);
        tokio::time::timeout(waited, read(&mut body, 1 << 20, &mut to)).await.unwrap_err();
        assert_eq!(to.came.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_told_from_a_break_and_from_what_is_no_archive() {
        let blocks = blocks(4);
        let car = archive(&blocks[..2]);
        let broken = HttpError::Broken("reset".into());
        let cut = &car[..car.len() - 10];
        for (bytes, end, expected, came) in [
            (&car[..], Ok(()), End::Whole, 2),
            (cut, Ok(()), End::Whole, 1),
            (cut, Err(broken.clone()), End::Broken(broken.clone()), 1),
            (b"<html>no archive</html>", Ok(()), End::NotACar, 0),
            (b"", Ok(()), End::NotACar, 0),
        ] {
            let mut to = wants(&blocks);
            let got = read(&mut pieces(bytes, 300, Some(end)), 1 << 20, &mut to).await;
            assert_eq!((got, to.came.len()), (expected, came));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_the_limit_is_not_read() {
        let blocks = blocks(40);
        let car = archive(&blocks);
        let (mut to, mut body) = (wants(&blocks[30..]), pieces(&car, 500, Some(Ok(()))));
        assert_eq!(read(&mut body, 10_000, &mut to).await, End::Spoilt);
        assert!(body.pieces.len() * 500 > car.len() - 11_500, "it stops at once");
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_bytes_are_no_block() {
        let blocks = blocks(2);
        let mut car = archive(&blocks);
        *car.last_mut().unwrap() ^= 1;
        let mut to = wants(&blocks);
        read(&mut pieces(&car, 100, Some(Ok(()))), 1 << 20, &mut to).await;
        assert!(to.came[0].is_ok());
        assert_eq!(to.came[1], Err(BlockError::WrongHash(*blocks[1].cid())));
    }
}
