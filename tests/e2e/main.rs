//! Real daemons with real mounts: what a user does, from the outside.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod archive;
mod client;
mod crash;
mod full;
mod gateways;
mod get;
mod harness;
mod hostile;
mod hostile_torrents;
mod memory;
mod odd_torrents;
mod programs;
mod publish;
mod read;
mod shutdown;
mod start;
mod swarm;
mod torrents;
mod trouble;
mod versions;
