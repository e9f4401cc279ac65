//! How many connections this node bears.

use libp2p::{connection_limits, memory_connection_limits, relay};

/// Connections to one peer: both sides dialling at once over two transports make four, and a fifth gains nothing.
const PER_PEER: u32 = 4;
/// Connections that others opened. Each costs about 100 KiB of buffers and a descriptor.
const INBOUND: u32 = 512;
/// Connections that we opened: DHT lookups touch some hundred peers a minute and idle ones close after a minute.
const OUTBOUND: u32 = 512;
/// Handshakes that others began. A stranger can begin them for nothing, and each ends after eight seconds.
const PENDING_INBOUND: u32 = 64;
/// Handshakes that we began: two lookups with their dials of a handful of peers each, several times over.
const PENDING_OUTBOUND: u32 = 128;
/// Above this part of the machine's memory new connections are refused; those that are open stay.
const MEMORY_SHARE: f64 = 0.5;

/// Counts connections.
pub(super) fn connections() -> connection_limits::Behaviour {
    connection_limits::Behaviour::new(
        connection_limits::ConnectionLimits::default()
            .with_max_established_per_peer(Some(PER_PEER))
            .with_max_established_incoming(Some(INBOUND))
            .with_max_established_outgoing(Some(OUTBOUND))
            .with_max_pending_incoming(Some(PENDING_INBOUND))
            .with_max_pending_outgoing(Some(PENDING_OUTBOUND)),
    )
}

/// Watches the memory of the process.
pub(super) fn memory() -> memory_connection_limits::Behaviour {
    memory_connection_limits::Behaviour::with_max_percentage(MEMORY_SHARE)
}

/// What this node does for others as a relay: 128 slots for an hour, 16 connections at once, each for two minutes and
/// 128 KiB, which is enough to agree on a direct one and of no use for anything else.
pub(super) fn relay() -> relay::Config {
    relay::Config::default()
}
