//! Detaching a mount.

use std::{path::Path, time::Duration};

use anyhow::bail;
use chiral::{
    control::{Client, ClientError, DaemonProcess, Status},
    fs::{mounted_path, unmount_path},
};
use tokio::time::timeout;

use crate::stderr;

/// A daemon ends within ten seconds; after that the mount is taken away from it.
const WAIT: Duration = Duration::from_secs(12);

/// Longest wait for an answer. Each is given at once, unless the daemon is stopped or hangs.
const ANSWER: Duration = Duration::from_secs(2);

/// How often it is looked whether the daemon has ended, where its process cannot be watched.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) async fn umount(client: &Client, mountpoint: &Path) -> anyhow::Result<()> {
    let path = mounted_path(mountpoint);
    let told = match timeout(ANSWER, tell(client, &path)).await {
        Ok(Told::Ends(process)) => {
            let ended = timeout(WAIT, ended(client, process)).await.is_ok();
            if !ended {
                stderr::line("chiral: the daemon does not end; taking the mount away from it");
            }
            ended
        }
        Ok(Told::NotIts) => false,
        Err(_) => {
            stderr::line("chiral: the daemon does not answer; taking the mount away from it");
            false
        }
    };
    // Also after a good end: one that was cut short may have left its mount.
    if unmount_path(&path)? || told {
        return Ok(());
    }
    bail!("{} is not a mount of chiral", mountpoint.display())
}

/// What became of the request to end.
enum Told {
    /// The daemon ends; its process, where it can be watched.
    Ends(Option<DaemonProcess>),
    /// The daemon of this data folder is not the one behind the mount, or there is none.
    NotIts,
}

async fn tell(client: &Client, mountpoint: &Path) -> Told {
    let Ok(process) = client.process().await else { return Told::NotIts };
    let status = client.get::<Status>("/v1/status").await;
    if !status.is_ok_and(|status| status.mountpoint.as_deref() == Some(mountpoint)) {
        return Told::NotIts;
    }
    match client.post::<()>("/v1/stop", &()).await {
        // It was ending already, and closed the connection.
        Ok(()) | Err(ClientError::Broken(_) | ClientError::NotRunning(_)) => Told::Ends(process),
        Err(_) => Told::NotIts,
    }
}

/// Resolves when the daemon is gone with all that it had locked, so that the next one can start.
async fn ended(client: &Client, process: Option<DaemonProcess>) {
    if let Some(process) = process
        && process.ended().await.is_ok()
    {
        return;
    }
    while !matches!(client.get::<Status>("/v1/status").await, Err(ClientError::NotRunning(_))) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
