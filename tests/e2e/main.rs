//! Real daemons with real mounts: what a user does, from the outside.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod crash;
mod full;
mod harness;
mod programs;
mod publish;
mod read;
mod trouble;
