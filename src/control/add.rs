//! Publishing a path of this machine.

use std::{
    ffi::{OsStr, OsString},
    path::{Component, Path, PathBuf},
};

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use futures::TryStreamExt;
use serde::Deserialize;

use super::{
    AddLine, AddOptions, AddRequest, Added, AddedEntry, Failure, SkippedNames, Stage,
    server::{App, Asked},
    told::{News, STEP, Steps, told},
    upkeep::{name_of, pinned},
};
use crate::{
    content::ContentId,
    node::{ImportOptions, ImportedTree, Node, Place, PublishError, Skipped, UploadIno},
};

const WHOLE: &str = "the mountpoint itself cannot be published";

/// `?options=…`: [`AddOptions`] as JSON.
#[derive(Deserialize)]
pub(super) struct Streamed {
    options: String,
}

/// Something that was published.
pub(super) struct Published {
    pub(super) root: AddedEntry,
    pub(super) skipped: SkippedNames,
    /// Its entries, where it was copied in.
    imported: Option<ImportedTree>,
}

impl Published {
    fn of(imported: ImportedTree) -> Self {
        let root = AddedEntry { cid: imported.root, name: imported.name.display().to_string() };
        let skipped = imported.skipped.clone().into();
        Self { root, skipped, imported: Some(imported) }
    }

    /// Files and directories below it.
    fn below(&self, node: &Node) -> impl Iterator<Item = AddedEntry> + Send + use<> {
        let all = self.imported.as_ref().map(|imported| node.uploads().entries_of(imported));
        let root = self.root.name.clone();
        let below = all.into_iter().flatten().filter(move |(_, name)| *name != root);
        below.map(|(cid, name)| AddedEntry { cid, name })
    }
}

/// A client that leaves before everything is published takes back what was copied.
pub(super) async fn add(
    State(app): State<App>,
    Asked(request): Asked<AddRequest>,
) -> Result<Response, Failure> {
    let AddRequest { path, options, progress } = request;
    if !progress {
        let published = added(&app.node, path, options, |_| {}).await?;
        let mut entries: Vec<_> = published.below(&app.node).collect();
        entries.push(published.root);
        return Ok(Json(Added { entries, skipped: published.skipped }).into_response());
    }
    Ok(told(|news| async move {
        let tell = reporting(&news);
        let published = added(&app.node, path, options, tell).await;
        last_line(&app.node, &news, published).await
    }))
}

/// The bytes of a file come as the body.
pub(super) async fn add_stream(
    State(app): State<App>,
    Query(query): Query<Streamed>,
    body: Body,
) -> Result<Response, Failure> {
    let options: AddOptions = serde_json::from_str(&query.options).map_err(Failure::invalid)?;
    let options = import_options(options.name.clone(), options);
    let pieces = body.into_data_stream().map_err(std::io::Error::other);
    Ok(told(|news| async move {
        let report = reporter(reporting(&news));
        let imported = app.node.uploads().import_stream(pieces, options, report).await;
        let published = imported.map(Published::of).map_err(Failure::from);
        last_line(&app.node, &news, published).await
    }))
}

fn reporting(news: &News<AddLine>) -> impl Fn(Stage) + Send + Sync + use<> {
    let news = news.clone();
    move |stage| news.tell(AddLine::Stage(stage))
}

/// Tells of all that was published, and gives the line that comes behind that.
async fn last_line(
    node: &Node,
    news: &News<AddLine>,
    published: Result<Published, Failure>,
) -> AddLine {
    let published = match published {
        Ok(published) => published,
        Err(failure) => return AddLine::Failed(failure),
    };
    for entry in published.below(node) {
        news.insist(AddLine::Entry(entry)).await;
    }
    if published.skipped.count > 0 {
        news.insist(AddLine::Skipped(published.skipped)).await;
    }
    AddLine::Added(published.root)
}

fn import_options(name: Option<OsString>, options: AddOptions) -> ImportOptions {
    ImportOptions { name, replace: options.replace, hidden: options.hidden }
}

pub(super) async fn added(
    node: &Node,
    path: PathBuf,
    options: AddOptions,
    tell: impl Fn(Stage) + Send + Sync + 'static,
) -> Result<Published, Failure> {
    if !path.is_absolute() {
        return Err(Failure::invalid("the path is not absolute"));
    }
    let Some(name) = options.name.clone().or_else(|| path.file_name().map(OsStr::to_owned)) else {
        return Err(Failure::invalid("the path has no name: give one with --name"));
    };
    match Position::of(&path, node.mountpoint().as_deref()) {
        Position::Elsewhere => {
            let options = import_options(Some(name), options);
            let imported = node.uploads().import_path(&path, options, reporter(tell)).await?;
            Ok(Published::of(imported))
        }
        Position::Around(mountpoint) if mountpoint == path => Err(Failure::invalid(WHOLE)),
        Position::Around(mountpoint) => {
            let mount = mountpoint.display();
            Err(Failure::invalid(format!(
                "it holds the mountpoint {mount}: publish the parts beside it one by one"
            )))
        }
        Position::Under(_) if options.name.is_some() || options.replace => {
            let text = "it lies in the mount already, where it keeps its name: give neither --name nor --replace";
            Err(Failure::invalid(text))
        }
        Position::Under(names) => {
            let (cid, skipped) = keep(node, &names, options.hidden).await?;
            let root = AddedEntry { cid, name: name.display().to_string() };
            Ok(Published { root, skipped: skipped.into(), imported: None })
        }
    }
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
async fn keep(
    node: &Node,
    names: &[OsString],
    hidden: bool,
) -> Result<(ContentId, Skipped), Failure> {
    let (root, below) = match names {
        [upload, below @ ..] if upload == "upload" => return uploaded(node, below, hidden).await,
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
    Ok((found.id, Skipped::default()))
}

async fn uploaded(
    node: &Node,
    names: &[OsString],
    hidden: bool,
) -> Result<(ContentId, Skipped), Failure> {
    let mut ino = UploadIno::ROOT;
    for name in names {
        ino = node.uploads().lookup(ino, name)?.ino;
    }
    let skipped = node.uploads().want(ino, hidden).await?;
    Ok((node.uploads().cid(ino).await?, skipped))
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
