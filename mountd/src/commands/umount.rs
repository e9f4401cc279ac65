//! Detaching a mount.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::bail;
use chiral::{
    control::{Client, ClientError, Status},
    fs::unmount_path,
};

/// A daemon ends within ten seconds; after that the mount is taken away from it.
const WAIT: Duration = Duration::from_secs(12);

/// How often it is looked whether the daemon has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) async fn umount(client: &Client, mountpoint: &Path) -> anyhow::Result<()> {
    let path = full(mountpoint);
    if serves(client, &path).await {
        let () = client.post("/v1/stop", &()).await?;
        if tokio::time::timeout(WAIT, gone(client)).await.is_ok() {
            return Ok(());
        }
        eprintln!("chiral: the daemon does not end; taking the mount away from it");
    }
    if unmount_path(&path)? {
        return Ok(());
    }
    bail!("{} is not a mount of chiral", mountpoint.display())
}

/// Whether the daemon of this data folder is the one behind the mount.
async fn serves(client: &Client, mountpoint: &Path) -> bool {
    let status = client.get::<Status>("/v1/status").await;
    status.is_ok_and(|status| status.mountpoint.as_deref() == Some(mountpoint))
}

async fn gone(client: &Client) {
    while !matches!(client.get::<Status>("/v1/status").await, Err(ClientError::NotRunning(_))) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Without symlinks in the folder that it lies in. The mount itself is not touched: a stale one gives errors.
fn full(mountpoint: &Path) -> PathBuf {
    let absolute = std::path::absolute(mountpoint).unwrap_or_else(|_| mountpoint.to_owned());
    match (absolute.parent().and_then(|parent| parent.canonicalize().ok()), absolute.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => absolute,
    }
}
