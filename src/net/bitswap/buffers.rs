//! Memory of frames that is used again: a fresh buffer of a block's size is zeroed, and its pages are faulted in, before
//! the bytes come that overwrite it. That is a twentieth of the processor time of a download.

use std::sync::{Arc, Mutex, PoisonError};

/// Shorter frames are allocated afresh: the allocator has such sizes at hand.
const LEAST: usize = 64 << 10;
/// Longer ones too: few blocks are larger than 1 MiB, and what is kept should fit many.
const MOST: usize = (1 << 20) + (4 << 10);
/// Bytes that are kept for later: what is under way between the network and the disk of a fast download, where sixteen
/// blocks are hashed at once, sixteen are written, and as many come.
const KEPT: usize = 16 << 20;

/// Buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// `len` bytes; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// A buffer for a frame. It holds whatever was in it before: all of it has to be written to before it is read.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let mut bytes = if (LEAST..=MOST).contains(&len) { self.reuse() } else { Vec::new() };
        if bytes.len() < len {
            // A block and what is around it differ by a few bytes from the next: the length is rounded up, so that a
            // buffer that is used again is long enough.
            let longer = if len < LEAST { len } else { len.next_multiple_of(4 << 10) };
            bytes = vec![0; longer];
        }
        Buffer { bytes, len, home: self.clone() }
    }

    fn reuse(&self) -> Vec<u8> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = free.buffers.pop().unwrap_or_default();
        free.bytes -= bytes.len();
        bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if !(LEAST..=MOST).contains(&bytes.len()) {
            return;
        }
        let mut free = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.bytes + bytes.len() <= KEPT {
            free.bytes += bytes.len();
            free.buffers.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(buffers: &Buffers) -> (usize, usize) {
        let free = buffers.free.lock().unwrap_or_else(PoisonError::into_inner);
        (free.buffers.len(), free.bytes)
    }

    #[test]
    fn a_buffer_has_the_length_that_was_asked_for_and_is_used_again() {
        let buffers = Arc::<Buffers>::default();
        let mut first = buffers.take(262_200);
        assert_eq!(first.as_mut().len(), 262_200);
        let place = first.as_ref().as_ptr();
        drop(first);
        let again = buffers.take(262_210);
        assert_eq!((again.as_ref().len(), again.as_ref().as_ptr()), (262_210, place));
        assert_eq!(kept(&buffers), (0, 0));
        let longer = buffers.take(900_000);
        assert_eq!(longer.as_ref().len(), 900_000);
        drop((again, longer));
        assert_eq!(kept(&buffers).0, 2);
        assert_eq!(buffers.take(1_000_000).as_ref().len(), 1_000_000);
    }

    #[test]
    fn small_and_huge_ones_are_not_kept_and_no_more_than_the_limit() {
        let buffers = Arc::<Buffers>::default();
        for len in [0, 1, LEAST - 1, MOST + 1, 4 << 20] {
            assert_eq!(buffers.take(len).as_ref().len(), len);
        }
        assert_eq!(kept(&buffers), (0, 0));
        let many: Vec<Buffer> = (0..100).map(|_| buffers.take(256 << 10)).collect();
        drop(many);
        assert_eq!(kept(&buffers), (64, KEPT));
    }
}
