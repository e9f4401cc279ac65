//! Larger buffers for the UDP sockets of QUIC, which libp2p keeps to itself.
//!
//! With the system's default of 208 KiB the kernel drops packets as soon as a peer sends faster than one read loop
//! takes them: a quarter of the rate is left at 50 ms of round trip.

use std::fs;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::{Domain, SockRef, Type};

/// What is asked for; the kernel gives at most `net.core.rmem_max` and `net.core.wmem_max`.
const BUFFER: usize = 4 << 20;

/// What became of the buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Raised {
    /// UDP sockets of the process.
    pub(super) sockets: usize,
    /// Smallest receive buffer among them in bytes, as the kernel keeps it (it doubles what is asked for).
    pub(super) smallest: Option<usize>,
}

/// Raises the buffers of every internet UDP socket of this process. There is no safe way to a socket by its number
/// but to have the kernel hand out a second descriptor of it, which shares the socket and is closed again at once.
pub(super) fn raise_buffers() -> std::io::Result<Raised> {
    let own: Pid = getpid();
    let process = pidfd_open(own, PidfdFlags::empty())?;
    let mut raised = Raised::default();
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // Descriptors come and go while the folder is read.
        let Ok(copy) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let socket = SockRef::from(&copy);
        let internet = matches!(socket.domain(), Ok(Domain::IPV4 | Domain::IPV6));
        if !internet || !matches!(socket.r#type(), Ok(Type::DGRAM)) {
            continue;
        }
        if socket.recv_buffer_size()? < BUFFER {
            socket.set_recv_buffer_size(BUFFER)?;
            socket.set_send_buffer_size(BUFFER)?;
        }
        raised.sockets += 1;
        let size = socket.recv_buffer_size()?;
        raised.smallest = Some(raised.smallest.map_or(size, |least| least.min(size)));
    }
    Ok(raised)
}

/// [`raise_buffers`] with its outcome in the log: a transport that is slower than it could be still works.
pub(super) fn raise_and_report() {
    match raise_buffers() {
        Ok(Raised { smallest: Some(size), .. }) if size < BUFFER => tracing::info!(
            bytes = size,
            "UDP receive buffers are small, which slows QUIC down: raise net.core.rmem_max and \
             net.core.wmem_max to {BUFFER}"
        ),
        Ok(raised) => {
            tracing::debug!(sockets = raised.sockets, smallest = raised.smallest, "UDP buffers");
        }
        Err(error) => tracing::info!(%error, "UDP buffers stay as they are, which slows QUIC down"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_buffers_of_a_socket_nobody_handed_over_grow() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = SockRef::from(&socket).recv_buffer_size().unwrap();
        let raised = raise_buffers().unwrap();
        let after = SockRef::from(&socket).recv_buffer_size().unwrap();
        assert!(raised.sockets >= 1);
        // A kernel whose limit is its default has nothing to give.
        let limit: usize =
            fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
        assert_eq!(after, before.max(2 * limit.min(BUFFER)));
    }
}
