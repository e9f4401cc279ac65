//! The mount, made from the settings.

use std::path::Path;

use chiral::{
    config::Settings,
    fs::{Mount, MountError, MountOptions},
    node::Node,
    tasks::Tasks,
};

/// Mounts the tree of a node. Talking to the kernel blocks, so it happens on a thread for that.
pub(crate) async fn start(
    settings: &Settings,
    mountpoint: &Path,
    node: &Node,
    tasks: &Tasks,
) -> anyhow::Result<Mount> {
    let options = MountOptions {
        mountpoint: mountpoint.to_owned(),
        allow_other: settings.mount.allow_other,
        passthrough: settings.mount.passthrough,
        read_only: settings.upload.read_only,
    };
    let node = node.clone();
    Ok(tasks.blocking("mount", move || Mount::start(options, node)).await??)
}

/// Detaches what is mounted: the name is free at once, what is open stays until it is closed.
pub(crate) async fn detach(mount: Mount, tasks: &Tasks) -> anyhow::Result<()> {
    let detached = tasks.blocking("detach", move || -> Result<(), MountError> {
        mount.unmount()?;
        Ok(())
    });
    Ok(detached.await??)
}
