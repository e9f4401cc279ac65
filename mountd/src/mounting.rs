//! The mount, made from the settings.

use std::{path::Path, sync::Arc};

use chiral::{
    config::Settings,
    fs::{Mount, MountOptions},
    node::Node,
    tasks::Tasks,
};

use crate::ending::Ending;

/// Mounts the tree of a node. Talking to the kernel blocks, so it happens on a thread for that.
pub(crate) async fn start(
    settings: &Settings,
    mountpoint: &Path,
    node: &Node,
    ending: &Ending,
) -> anyhow::Result<Arc<Mount>> {
    let options = MountOptions {
        mountpoint: mountpoint.to_owned(),
        allow_other: settings.mount.allow_other,
        passthrough: settings.mount.passthrough,
        read_only: settings.upload.read_only,
    };
    let (node, ending) = (node.clone(), ending.clone());
    let tasks = node.tasks().clone();
    let make = move || ending.mounted(|| Mount::start(options, node));
    Ok(tasks.blocking("mount", make).await??)
}

/// Detaches what is mounted: the name is free at once, what is open stays until it is closed.
pub(crate) async fn detach(mount: Arc<Mount>, tasks: &Tasks) -> anyhow::Result<()> {
    Ok(tasks.blocking("detach", move || mount.unmount()).await??)
}
