//! The FUSE filesystem: what the node knows, as files.
//!
//! Three layers: `semantics` says what the tree means and knows no FUSE type, `adapter` translates the kernel's
//! requests into it and replies, `mount` attaches and detaches. No thread that serves the kernel waits for the
//! network or for hashing; what has to wait is answered from a task.

mod adapter;
mod ahead;
mod answer;
mod attr;
mod backing;
mod control;
mod dir;
mod dispatch;
mod errno;
mod handles;
mod identity;
mod interrupt;
mod iomode;
mod lookup;
mod mount;
mod mountinfo;
mod names;
mod open;
mod refused;
mod reply;
mod request;
mod semantics;
mod torrents;
mod tree;
mod upload;
mod walker;
mod xattr;

pub use mount::{Mount, MountError, MountOptions, detach_stale, mounted_path, unmount_path};
pub use refused::Refused;
