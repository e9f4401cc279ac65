//! The filesystem behind the real kernel: one node without network, mounted in a scratch folder.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "mount/harness.rs"]
mod harness;
#[path = "mount/reading.rs"]
mod reading;
#[path = "mount/torrents.rs"]
mod torrents;
#[path = "mount/uploading.rs"]
mod uploading;
#[path = "mount/walking.rs"]
mod walking;
