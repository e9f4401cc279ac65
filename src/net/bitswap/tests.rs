//! Two or more real swarms on loopback, and peers that do not keep to the rules.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod exchange;
mod fake;
mod node;
mod strangers;

use node::{Node, asker, block, blocks, collect, ids};
