//! Publishing content, printing it, and listing.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use chiral::control::{
    AddLine, AddRequest, AddedEntry, Client, ClientError, Kind, Listed, Reference,
};
use futures::StreamExt;

use crate::{
    cli::{AddArgs, Global},
    hash, output,
    printable::printable_name,
    progress::Bar,
    settings,
};

pub(crate) fn only_hash(global: &Global, args: &AddArgs) -> anyhow::Result<()> {
    let params = settings::load_without_data_dir(global)?.upload.profile.params();
    let mut found = Vec::new();
    for path in &args.paths {
        hash::hash(path, params, &mut found)?;
    }
    print_added(global.json, args.quieter, &found)
}

pub(crate) async fn add(client: &Client, json: bool, args: &AddArgs) -> anyhow::Result<()> {
    let mut last = Vec::new();
    for path in &args.paths {
        let added = publish(client, path).await.with_context(|| path.display().to_string())?;
        if args.quieter {
            last = added;
        } else {
            // Before the next one is begun: what is published by then has to be known also when that fails.
            print_added(json, false, &added)?;
        }
    }
    print_added(json, args.quieter, &last)
}

/// Publishes one path, with a bar over the copying and the hashing.
async fn publish(client: &Client, path: &Path) -> anyhow::Result<Vec<AddedEntry>> {
    let request = AddRequest { path: full(path)?, progress: true };
    let mut lines = client.post_lines("/v1/add", &request).await?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    let mut bar = Bar::new(&name.to_string_lossy(), 0);
    while let Some(line) = lines.next().await {
        match line? {
            AddLine::Stage(stage) => bar.stage(stage),
            AddLine::Failed(failure) => return Err(ClientError::Failure(failure).into()),
            AddLine::Added(added) => return Ok(added.entries),
        }
    }
    bail!("the daemon ended before everything was published")
}

/// The path without symlinks, except that its last part may be one: that is published as what it is.
fn full(path: &Path) -> io::Result<PathBuf> {
    let is_link = fs::symlink_metadata(path)?.is_symlink();
    match (is_link, path.file_name()) {
        (true, Some(name)) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok(parent.unwrap_or(Path::new(".")).canonicalize()?.join(name))
        }
        _ => path.canonicalize(),
    }
}

fn print_added(json: bool, quieter: bool, found: &[AddedEntry]) -> anyhow::Result<()> {
    let shown =
        if quieter { found.last().map(std::slice::from_ref).unwrap_or_default() } else { found };
    for entry in shown {
        match (json, quieter) {
            (true, _) => output::json(entry)?,
            (false, true) => output::line(entry.cid)?,
            (false, false) => output::line(format_args!("{}  {}", entry.cid, entry.name))?,
        }
    }
    Ok(())
}

pub(crate) async fn list(client: &Client, json: bool, id: &OsStr) -> anyhow::Result<()> {
    Reference::of(id.as_bytes())?;
    let entries: Vec<Listed> = client.get(&Client::target("ls", id)).await?;
    if json {
        return output::json(&entries);
    }
    for entry in entries {
        let size = entry.size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        let slash = if entry.kind == Some(Kind::Directory) { "/" } else { "" };
        let id = entry.cid.map_or_else(|| "-".to_owned(), |id| id.to_string());
        output::line(format_args!("{id}  {size:>12}  {}{slash}", printable_name(&entry.name)))?;
    }
    Ok(())
}

pub(crate) async fn cat(
    client: &Client,
    id: &OsStr,
    offset: u64,
    length: Option<u64>,
) -> anyhow::Result<()> {
    Reference::of(id.as_bytes())?;
    let mut left = length.unwrap_or(u64::MAX);
    let mut body = client.bytes(&Client::target("cat", id), offset).await?;
    let mut out = io::stdout().lock();
    while let Some(piece) = body.next().await {
        let piece = piece?;
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        out.write_all(&piece[..take])?;
        left -= take as u64;
        if left == 0 {
            break;
        }
    }
    Ok(out.flush()?)
}
