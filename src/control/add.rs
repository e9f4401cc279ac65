//! Publishing a path of this machine.

use std::{
    ffi::{OsStr, OsString},
    path::{Component, Path, PathBuf},
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{
    AddLine, AddRequest, Added, AddedEntry, Failure, Stage,
    server::{App, Asked},
    told::{STEP, Steps, told},
    upkeep::{name_of, pinned},
};
use crate::{
    content::ContentId,
    node::{Node, Place, PublishError, UploadIno},
};

const WHOLE: &str = "the mountpoint itself cannot be published";

/// A client that leaves before everything is copied takes back what was.
pub(super) async fn add(
    State(app): State<App>,
    Asked(request): Asked<AddRequest>,
) -> Result<Response, Failure> {
    if !request.progress {
        return Ok(Json(added(&app.node, request.path, |_| {}).await?).into_response());
    }
    Ok(told(|news| async move {
        match added(&app.node, request.path, move |stage| news.tell(AddLine::Stage(stage))).await {
            Ok(added) => AddLine::Added(added),
            Err(failure) => AddLine::Failed(failure),
        }
    }))
}

pub(super) async fn added(
    node: &Node,
    path: PathBuf,
    tell: impl Fn(Stage) + Send + Sync + 'static,
) -> Result<Added, Failure> {
    if !path.is_absolute() {
        return Err(Failure::invalid("the path is not absolute"));
    }
    let Some(name) = path.file_name().map(OsStr::to_owned) else {
        return Err(Failure::invalid("the path has no name"));
    };
    let entries = match Position::of(&path, node.mountpoint().as_deref()) {
        Position::Elsewhere => {
            node.uploads().import_reporting(&path, &name, reporter(tell)).await?
        }
        Position::Around(mountpoint) if mountpoint == path => return Err(Failure::invalid(WHOLE)),
        Position::Around(mountpoint) => {
            let mount = mountpoint.display();
            return Err(Failure::invalid(format!(
                "it holds the mountpoint {mount}: publish the parts beside it one by one"
            )));
        }
        Position::Under(names) => vec![(keep(node, &names).await?, name.display().to_string())],
    };
    let entries = entries.into_iter().map(|(cid, name)| AddedEntry { cid, name }).collect();
    Ok(Added { entries })
}

/// Makes lines of what an import reports: the first of each stage, the last, and some between.
fn reporter(tell: impl Fn(Stage) + Send + Sync) -> impl Fn(u64, u64, u64) + Send + Sync {
    let steps = Steps::of(STEP);
    move |copied, published, total| {
        let begins_or_ends = copied == total && [0, total].contains(&published);
        if !steps.pick(copied + published, begins_or_ends) {
            return;
        }
        tell(if copied < total {
            Stage::Copying { done: copied, total }
        } else {
            Stage::Hashing { done: published, total }
        });
    }
}

/// Where a path lies beside the daemon's own mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Position {
    Elsewhere,
    /// The mount is a part of it.
    Around(PathBuf),
    /// These names below the mountpoint.
    Under(Vec<OsString>),
}

impl Position {
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
    let (root, below) = match names {
        [upload, below @ ..] if upload == "upload" => return uploaded(node, below).await,
        [ipfs, root, below @ ..] if ipfs == "ipfs" => (root, below),
        [root, below @ ..] => (root, below),
        [] => return Err(Failure::invalid(WHOLE)),
    };
    if node.is_read_only() {
        return Err(PublishError::ReadOnly.into());
    }
    let root: ContentId = root.to_string_lossy().parse().map_err(|error| {
        Failure::invalid(format!("of the mount only uploads and CIDs are content: {error}"))
    })?;
    let found = node.walk(&root, below.join(OsStr::new("/"))).await?;
    let name = below.last().map_or_else(|| root.to_string(), |name| name.display().to_string());
    // A name that somebody gave it is a better one.
    let place = Place::Content { root: found.id, id: found.id };
    let name = name_of(node, place).await?.filter(|name| !name.is_empty()).unwrap_or(name);
    // What is announced is here, and stays.
    pinned(node, place, name, None).await?;
    node.net().announce(&found.id)?;
    Ok(found.id)
}

async fn uploaded(node: &Node, names: &[OsString]) -> Result<ContentId, Failure> {
    let mut ino = UploadIno::ROOT;
    for name in names {
        ino = node.uploads().lookup(ino, name)?.ino;
    }
    Ok(node.uploads().cid(ino).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_beside_the_mount_are_told_from_those_in_and_around_it() {
        let mount = Some(Path::new("/mnt/chiral"));
        let place = |path: &str| Position::of(Path::new(path), mount);
        assert_eq!(place("/home/a"), Position::Elsewhere);
        assert_eq!(place("/mnt/chiral2"), Position::Elsewhere);
        assert_eq!(
            place("/mnt/chiral/upload/a"),
            Position::Under(vec!["upload".into(), "a".into()])
        );
        for around in ["/mnt", "/mnt/chiral", "/"] {
            assert_eq!(place(around), Position::Around("/mnt/chiral".into()));
        }
        assert_eq!(Position::of(Path::new("/mnt/chiral/x"), None), Position::Elsewhere);
    }
}
