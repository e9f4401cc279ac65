//! The mount, as the daemon and `umount` use it.

use std::path::Path;

pub use chiral::fs::Mount;
use chiral::{
    config::Settings,
    fs::{self, MountOptions},
    node::Node,
};

pub async fn start(settings: &Settings, at: &Path, node: &Node) -> anyhow::Result<Mount> {
    let options = MountOptions {
        mountpoint: at.to_owned(),
        allow_other: settings.mount.allow_other,
        passthrough: settings.mount.passthrough,
        read_only: settings.upload.read_only,
    };
    Ok(Mount::start(options, node.clone())?)
}

pub async fn ended(mount: &Mount) {
    mount.ended().await;
}

pub fn detach(mount: Mount) -> anyhow::Result<()> {
    Ok(mount.unmount()?)
}

pub fn detach_stale(mountpoint: &Path) -> anyhow::Result<bool> {
    Ok(fs::detach_stale(mountpoint)?)
}

pub fn unmount_path(mountpoint: &Path) -> anyhow::Result<bool> {
    Ok(fs::unmount_path(mountpoint)?)
}
