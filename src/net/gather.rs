//! Small writes go out with the next large one, in one call and without a copy of the large one.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

/// Writes of less than this wait for the next one, or for a flush: the header of a yamux frame, as it is encrypted.
const SMALL: usize = 1 << 10;

/// Slices that one call hands over at most, less the one for what waits. A yamux frame makes four or five of TLS.
const SLICES: usize = 15;

/// A socket of which small writes wait.
#[derive(Debug)]
pub(super) struct Gather<S> {
    socket: S,
    waiting: Vec<u8>,
    /// How much of `waiting` was written.
    written: usize,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Of a fresh socket.
    pub(super) fn new(socket: S) -> Self {
        Self { socket, waiting: Vec::new(), written: 0 }
    }

    /// Writes what waits and as much of `bufs` as the socket takes in the same call; how much that is of `bufs`.
    fn poll_gathered(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES + 1];
            let left = self.waiting.get(self.written..).unwrap_or_default();
            let first = usize::from(!left.is_empty());
            slices[0] = IoSlice::new(left);
            let count = bufs.len().min(SLICES);
            slices[first..first + count].copy_from_slice(&bufs[..count]);
            let slices = &slices[..first + count];
            if slices.iter().all(|slice| slice.is_empty()) {
                return Poll::Ready(Ok(0));
            }
            let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let left = left.len();
            if written < left {
                self.written += written;
                continue;
            }
            self.waiting.clear();
            self.written = 0;
            if written > left || bufs.iter().all(|buf| buf.is_empty()) {
                return Poll::Ready(Ok(written - left));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.waiting.len() + len < SMALL {
            bufs.iter().for_each(|buf| self.waiting.extend_from_slice(buf));
            return Poll::Ready(Ok(len));
        }
        self.poll_gathered(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_gathered(cx, &[]))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_gathered(cx, &[]))?;
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures::{AsyncWriteExt, executor::block_on};

    use super::*;

    /// Takes at most `most` bytes of a call, and notes each call.
    struct Socket {
        most: usize,
        calls: Vec<usize>,
        bytes: Vec<u8>,
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            let taken = all.len().min(self.most);
            self.bytes.extend_from_slice(&all[..taken]);
            self.calls.push(taken);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn socket(most: usize) -> Gather<Socket> {
        Gather::new(Socket { most, calls: Vec::new(), bytes: Vec::new() })
    }

    #[test]
    fn a_header_goes_out_with_its_body_and_alone_when_it_is_flushed() {
        let mut gather = socket(usize::MAX);
        block_on(gather.write_all(&[1; 34])).unwrap();
        block_on(gather.write_all(&[2; 50_000])).unwrap();
        block_on(gather.write_all(&[3; 34])).unwrap();
        assert_eq!(gather.socket.calls, [50_034]);
        block_on(gather.flush()).unwrap();
        block_on(gather.flush()).unwrap();
        assert_eq!(gather.socket.calls, [50_034, 34]);
    }

    #[test]
    fn bytes_stay_in_order_however_few_the_socket_takes() {
        for most in [1, 7, 33, 34, 35, 1000, 4096] {
            let mut gather = socket(most);
            let mut expected = Vec::new();
            for (n, len) in (0..).zip([34, 5000, 600, 600, 34, 1, 0, 2000, 1]) {
                let bytes: Vec<u8> = (n..250).cycle().take(len).collect();
                expected.extend_from_slice(&bytes);
                block_on(gather.write_all(&bytes)).unwrap();
            }
            block_on(gather.close()).unwrap();
            assert!(gather.socket.bytes == expected, "{most} at a time");
        }
    }
}
