//! Publishing a path of this machine.

use std::{
    ffi::{OsStr, OsString},
    path::{Component, Path, PathBuf},
};

use axum::{Json, extract::State};

use super::{AddRequest, Added, AddedEntry, Failure, server::App, upkeep::pinned};
use crate::{
    content::ContentId,
    node::{Node, Pin, PublishError, UploadIno},
};

pub(super) async fn add(
    State(app): State<App>,
    Json(request): Json<AddRequest>,
) -> Result<Json<Added>, Failure> {
    let path = request.path;
    if !path.is_absolute() {
        return Err(Failure::invalid(format!("{}: the path is not absolute", path.display())));
    }
    let Some(name) = path.file_name().map(OsStr::to_owned) else {
        return Err(Failure::invalid(format!("{}: the path has no name", path.display())));
    };
    let entries = match Place::of(&path, app.node.mountpoint().as_deref()) {
        Place::Elsewhere => app.node.uploads().import(&path, &name).await?,
        Place::Around(mountpoint) => {
            let (path, mount) = (path.display(), mountpoint.display());
            return Err(Failure::invalid(format!(
                "{path} holds the mountpoint {mount}: publish the parts beside it one by one"
            )));
        }
        Place::Under(names) => {
            vec![(keep(&app.node, &names).await?, name.display().to_string())]
        }
    };
    let entries = entries.into_iter().map(|(cid, name)| AddedEntry { cid, name }).collect();
    Ok(Json(Added { entries }))
}

/// Where a path lies beside the daemon's own mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Elsewhere,
    /// The mount is a part of it.
    Around(PathBuf),
    /// These names below the mountpoint.
    Under(Vec<OsString>),
}

impl Place {
    pub(super) fn of(path: &Path, mountpoint: Option<&Path>) -> Self {
        let Some(mountpoint) = mountpoint else { return Self::Elsewhere };
        match path.strip_prefix(mountpoint) {
            Ok(below) if !below.as_os_str().is_empty() => {
                let named = |part| match part {
                    Component::Normal(name) => Some(name.to_owned()),
                    _ => None,
                };
                Self::Under(below.components().filter_map(named).collect())
            }
            _ if mountpoint.starts_with(path) => Self::Around(mountpoint.to_owned()),
            _ => Self::Elsewhere,
        }
    }
}

/// Publishes what the mount shows under `names` without going through the kernel: a thread of the daemon that
/// reads its own mount may wait for itself.
async fn keep(node: &Node, names: &[OsString]) -> Result<ContentId, Failure> {
    let texts: Option<Vec<&str>> = names.iter().map(|name| name.to_str()).collect();
    let texts =
        texts.ok_or_else(|| Failure::invalid("a name below the mountpoint is not UTF-8"))?;
    let (root, path) = match texts.as_slice() {
        ["upload", below @ ..] => return uploaded(node, below).await,
        ["ipfs", root, below @ ..] | [root, below @ ..] => (*root, below.join("/")),
        [] => return Err(Failure::invalid("the mountpoint itself cannot be published")),
    };
    if node.is_read_only() {
        return Err(PublishError::ReadOnly.into());
    }
    let root: ContentId = root.parse().map_err(Failure::invalid)?;
    let found = node.walk(&root, &path).await?;
    let name = texts.last().copied().unwrap_or_default().to_owned();
    // What is announced is here, and stays.
    pinned(node, Pin { root: found.id, name }).await?;
    node.net().announce(&found.id)?;
    Ok(found.id)
}

async fn uploaded(node: &Node, names: &[&str]) -> Result<ContentId, Failure> {
    let mut ino = UploadIno::ROOT;
    for name in names {
        ino = node.uploads().lookup(ino, OsStr::new(name))?.ino;
    }
    Ok(node.uploads().cid(ino).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_beside_the_mount_are_told_from_those_in_and_around_it() {
        let mount = Some(Path::new("/mnt/chiral"));
        let place = |path: &str| Place::of(Path::new(path), mount);
        assert_eq!(place("/home/a"), Place::Elsewhere);
        assert_eq!(place("/mnt/chiral2"), Place::Elsewhere);
        assert_eq!(place("/mnt/chiral/upload/a"), Place::Under(vec!["upload".into(), "a".into()]));
        for around in ["/mnt", "/mnt/chiral", "/"] {
            assert_eq!(place(around), Place::Around("/mnt/chiral".into()));
        }
        assert_eq!(Place::of(Path::new("/mnt/chiral/x"), None), Place::Elsewhere);
    }
}
