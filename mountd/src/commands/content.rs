//! Publishing and reading content.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use chiral::control::{AddRequest, Added, AddedEntry, Client, Kind, Listed, Reference, Stat};
use futures::StreamExt;

use crate::{
    cli::{AddArgs, Global},
    hash,
    output::{self, bytes},
    progress::Bar,
    settings,
};

pub(crate) fn only_hash(global: &Global, args: &AddArgs) -> anyhow::Result<()> {
    let params = settings::load(global)?.upload.profile.params();
    let mut found = Vec::new();
    for path in &args.paths {
        hash::hash(path, params, &mut found)?;
    }
    print_added(global.json, args.quieter, &found)
}

pub(crate) async fn add(client: &Client, json: bool, args: &AddArgs) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for path in &args.paths {
        let shown = || path.display().to_string();
        let added: Added =
            client.post("/v1/add", &AddRequest { path: full(path)? }).await.with_context(shown)?;
        found.extend(added.entries);
    }
    print_added(json, args.quieter, &found)
}

/// The path without symlinks, except that its last part may be one: that is published as what it is.
fn full(path: &Path) -> anyhow::Result<PathBuf> {
    let shown = || path.display().to_string();
    let is_link = fs::symlink_metadata(path).with_context(shown)?.is_symlink();
    match (is_link, path.file_name()) {
        (true, Some(name)) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok(parent.unwrap_or(Path::new(".")).canonicalize().with_context(shown)?.join(name))
        }
        _ => path.canonicalize().with_context(shown),
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

pub(crate) async fn list(client: &Client, json: bool, id: &str) -> anyhow::Result<()> {
    id.parse::<Reference>()?;
    let entries: Vec<Listed> = client.get(&Client::target("ls", id)).await?;
    if json {
        return output::json(&entries);
    }
    for entry in entries {
        let size = entry.size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        let slash = if entry.kind == Some(Kind::Directory) { "/" } else { "" };
        output::line(format_args!("{}  {size:>12}  {}{slash}", entry.cid, entry.name))?;
    }
    Ok(())
}

pub(crate) async fn cat(
    client: &Client,
    id: &str,
    offset: u64,
    length: Option<u64>,
) -> anyhow::Result<()> {
    id.parse::<Reference>()?;
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

pub(crate) async fn get(
    client: &Client,
    json: bool,
    id: &str,
    to: Option<PathBuf>,
) -> anyhow::Result<()> {
    let reference: Reference = id.parse()?;
    let to = to.unwrap_or_else(|| PathBuf::from(reference.name()));
    let stat: Stat = client.get(&Client::target("stat", id)).await?;
    let written = fetch(client, &reference, &stat, &to).await?;
    if json {
        return output::json(&serde_json::json!({ "cid": stat.cid, "path": to, "bytes": written }));
    }
    Ok(output::line(format_args!("{}  {}  {}", stat.cid, bytes(written), to.display()))?)
}

/// Writes content to `to`, with all below it; gives the bytes of all files.
async fn fetch(
    client: &Client,
    reference: &Reference,
    stat: &Stat,
    to: &Path,
) -> anyhow::Result<u64> {
    let shown = || to.display().to_string();
    match stat.kind {
        Kind::File => fetch_file(client, reference, stat.size, to).await,
        Kind::Symlink => {
            symlink(stat.target.as_deref().unwrap_or_default(), to).with_context(shown)?;
            Ok(0)
        }
        Kind::Directory => {
            match fs::create_dir(to) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_real_dir(to) => {}
                made => made.with_context(shown)?,
            }
            let mut written = 0;
            let target = Client::target("ls", &reference.to_string());
            for entry in client.get::<Vec<Listed>>(&target).await? {
                let path = format!("{}/{}", reference.path, entry.name);
                let path = path.trim_start_matches('/').to_owned();
                let below = Reference { root: reference.root, path };
                let stat: Stat = client.get(&Client::target("stat", &below.to_string())).await?;
                written += Box::pin(fetch(client, &below, &stat, &to.join(&entry.name))).await?;
            }
            Ok(written)
        }
    }
}

/// A symlink does not count: what a stranger published must not be written to where it points.
fn is_real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

async fn fetch_file(
    client: &Client,
    reference: &Reference,
    size: u64,
    to: &Path,
) -> anyhow::Result<u64> {
    let shown = || to.display().to_string();
    let Some(name) = to.file_name() else { bail!("{}: not the name of a file", to.display()) };
    // Nobody takes half a file for the whole.
    let part = to.with_file_name(format!(".{}.part", name.to_string_lossy()));
    let mut body = client.bytes(&Client::target("cat", &reference.to_string()), 0).await?;
    let mut file = File::create(&part).with_context(shown)?;
    let mut bar = Bar::new(&name.to_string_lossy(), size);
    let mut written = 0;
    while let Some(piece) = body.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                let _ = fs::remove_file(&part);
                return Err(error.into());
            }
        };
        file.write_all(&piece).with_context(shown)?;
        written += piece.len() as u64;
        bar.add(piece.len());
        bar.show_sources(client).await;
    }
    fs::rename(&part, to).with_context(shown)?;
    Ok(written)
}
