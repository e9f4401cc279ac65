//! Long yamux frames are read as several short ones.
//!
//! js-yamux makes one frame of whatever the window lets it send. yamux ends a connection whose frame is longer than
//! 1 MiB, and our windows grow past that.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

/// Largest body of a frame that is handed on. yamux hands a body to its stream when all of it is here, so short ones
/// arrive early and cost little memory; ours and those of Go are no longer.
const LONGEST: u32 = 64 << 10;

/// Bytes of a frame's header: version, type, flags (2), stream (4), length (4), all big endian.
/// <https://github.com/hashicorp/yamux/blob/master/spec.md#framing>
const HEADER: usize = 12;

/// The type of the only frames that have a body.
const DATA: u8 = 0;

/// The flags that end a stream, FIN and RST: of several frames the last one carries them. The others, SYN and ACK,
/// begin one and stay with the first.
const ENDS: u16 = 0x4 | 0x8;

/// A secured connection whose inbound frames are no longer than [`LONGEST`].
#[derive(Debug)]
pub(super) struct Split<S> {
    socket: S,
    header: [u8; HEADER],
    /// How much of `header` came from the socket; it is handed on when all of it is here.
    arrived: usize,
    /// How much of `header` was handed on.
    passed: usize,
    /// Bytes of the body that belong to `header` and were not handed on yet.
    body: u32,
    /// Bytes of the same long frame that get headers of their own, and the flags of the last of them.
    rest: u32,
    ends: u16,
}

impl<S> Split<S> {
    /// Of a connection on which no frame came yet.
    pub(super) fn new(socket: S) -> Self {
        Self { socket, header: [0; HEADER], arrived: 0, passed: 0, body: 0, rest: 0, ends: 0 }
    }

    /// Takes a whole header as it came, and shortens it if the frame is too long.
    fn begin(&mut self) {
        let [version, kind, f0, f1, _, _, _, _, l0, l1, l2, l3] = self.header;
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        // The length of another type is a number of its own; another version is for yamux to refuse.
        if (version, kind) != (0, DATA) {
            return;
        }
        let flags = u16::from_be_bytes([f0, f1]);
        self.body = len.min(LONGEST);
        self.rest = len - self.body;
        if self.rest > 0 {
            self.ends = flags & ENDS;
            self.label(flags & !ENDS);
        }
    }

    /// Makes the header of the next piece of a long frame.
    fn go_on(&mut self) {
        self.body = self.rest.min(LONGEST);
        self.rest -= self.body;
        self.label(if self.rest == 0 { self.ends } else { 0 });
        self.passed = 0;
    }

    /// Writes these flags and the length of `body` into the header.
    fn label(&mut self, flags: u16) {
        self.header[2..4].copy_from_slice(&flags.to_be_bytes());
        self.header[8..].copy_from_slice(&self.body.to_be_bytes());
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Split<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            if this.arrived < HEADER {
                let missing = &mut this.header[this.arrived..];
                let read = ready!(Pin::new(&mut this.socket).poll_read(cx, missing))?;
                if read == 0 {
                    let cut = this.arrived > 0;
                    return Poll::Ready(if cut {
                        Err(io::ErrorKind::UnexpectedEof.into())
                    } else {
                        Ok(0)
                    });
                }
                this.arrived += read;
                if this.arrived == HEADER {
                    this.begin();
                }
            } else if this.passed < HEADER {
                let left = &this.header[this.passed..];
                let len = left.len().min(buf.len());
                buf[..len].copy_from_slice(&left[..len]);
                this.passed += len;
                return Poll::Ready(Ok(len));
            } else if this.body > 0 {
                let len = buf.len().min(this.body as usize);
                let read = ready!(Pin::new(&mut this.socket).poll_read(cx, &mut buf[..len]))?;
                this.body -= u32::try_from(read).map_err(io::Error::other)?;
                return Poll::Ready(Ok(read));
            } else if this.rest > 0 {
                this.go_on();
            } else {
                (this.arrived, this.passed) = (0, 0);
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Split<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures::{AsyncReadExt, executor::block_on};

    use super::*;

    const SYN: u16 = 1;
    const FIN: u16 = 4;

    /// A frame of this type, with its flags, the number in its length field, and a body.
    fn frame(kind: u8, flags: u16, len: usize, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, kind];
        frame.extend_from_slice(&flags.to_be_bytes());
        frame.extend_from_slice(&7_u32.to_be_bytes());
        frame.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
        frame.extend_from_slice(body);
        frame
    }

    fn data(flags: u16, body: &[u8]) -> Vec<u8> {
        frame(DATA, flags, body.len(), body)
    }

    fn noise(len: usize) -> Vec<u8> {
        (0..251).cycle().take(len).collect()
    }

    /// Gives at most `most` bytes a call.
    struct Dribble<'a> {
        bytes: &'a [u8],
        most: usize,
    }

    impl AsyncRead for Dribble<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let len = buf.len().min(self.most).min(self.bytes.len());
            let (now, later) = self.bytes.split_at(len);
            buf[..len].copy_from_slice(now);
            self.bytes = later;
            Poll::Ready(Ok(len))
        }
    }

    fn read(bytes: &[u8], most: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        block_on(Split::new(Dribble { bytes, most }).read_to_end(&mut out))?;
        Ok(out)
    }

    #[test]
    fn a_long_frame_becomes_several_and_its_flags_stay_at_their_ends() {
        let longest = LONGEST as usize;
        let body = noise(2 * longest + 5);
        let expected = [
            data(SYN, &body[..longest]),
            data(0, &body[longest..2 * longest]),
            data(FIN, &body[2 * longest..]),
        ];
        for most in [1, 5, 12, 1000, usize::MAX] {
            assert!(read(&data(SYN | FIN, &body), most).unwrap() == expected.concat(), "{most}");
        }
    }

    #[test]
    fn every_other_frame_passes_as_it_came() {
        let longest = noise(LONGEST as usize);
        let frames = [
            data(SYN, b"hello"),
            data(FIN, b""),
            data(SYN | FIN, &longest),
            // A window update of 16 MiB, a ping whose number is large, a goodbye.
            frame(1, 0, 16 << 20, b""),
            frame(2, SYN, u32::MAX as usize, b""),
            frame(3, 0, 0, b""),
            data(0, b"after them"),
        ]
        .concat();
        for most in [1, 13, usize::MAX] {
            assert!(read(&frames, most).unwrap() == frames, "{most}");
        }
    }

    #[test]
    fn an_end_within_a_header_is_told_from_one_between_frames() {
        let whole = data(0, b"x");
        assert_eq!(read(&whole, usize::MAX).unwrap(), whole);
        let cut = [&whole[..], &whole[..5]].concat();
        assert_eq!(read(&cut, usize::MAX).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
