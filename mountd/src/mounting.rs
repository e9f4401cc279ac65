//! The mount, as the daemon and `umount` use it.

use std::path::Path;

use anyhow::bail;
use chiral::{config::Settings, node::Node};

#[derive(Debug)]
pub struct Mount;

pub async fn start(_settings: &Settings, _at: &Path, _node: &Node) -> anyhow::Result<Mount> {
    bail!("the filesystem is not part of this build yet")
}

pub async fn ended(_mount: &Mount) {
    std::future::pending().await
}

pub fn detach(_mount: Mount) -> anyhow::Result<()> {
    Ok(())
}

pub fn detach_stale(_mountpoint: &Path) -> anyhow::Result<bool> {
    Ok(false)
}

pub fn unmount_path(_mountpoint: &Path) -> anyhow::Result<bool> {
    Ok(false)
}
