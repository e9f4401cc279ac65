//! Seeding, and care of torrents.

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use chiral::control::{
    AddOptions, Client, ClientError, Reference, SeedLine, SeedRequest, Seeded, TorrentAddRequest,
    TorrentAdded, TorrentLimits, TorrentRequest, TorrentState, TorrentStatus,
};
use futures::StreamExt;

use super::content::tell_skipped;
use crate::{
    cli::{SeedArgs, TorrentCommand},
    exit::Usage,
    output::{self, bytes},
    progress::Bar,
};

pub(crate) async fn seed(client: &Client, json: bool, args: &SeedArgs) -> anyhow::Result<()> {
    let options = args.naming.options();
    let request = match on_disk(&args.what)? {
        Some(path) => SeedRequest { path: Some(path), id: None, options, progress: true },
        None if options != AddOptions::default() => {
            let what = args.what.display();
            let text = format!(
                "--name, --replace and --hidden are for files of this machine, and `{what}` is none"
            );
            return Err(Usage(text).into());
        }
        None => {
            let id = args.what.to_str().ok_or_else(|| absent(&args.what))?;
            if Reference::of(args.what.as_os_str().as_bytes()).is_err() {
                return Err(absent(&args.what));
            }
            SeedRequest { path: None, id: Some(id.to_owned()), options, progress: true }
        }
    };
    let mut seeded = made(client, &args.what, &request).await?;
    if let Some(output) = &args.output {
        std::fs::copy(&seeded.torrent, output)
            .with_context(|| format!("cannot write {}", output.display()))?;
        seeded.torrent = std::path::absolute(output)?;
    }
    if json {
        return output::json(&seeded);
    }
    output::line(&seeded.magnet)?;
    Ok(output::line(seeded.torrent.display())?)
}

/// Has it made, with a bar over each of what there is to do.
async fn made(client: &Client, what: &Path, request: &SeedRequest) -> anyhow::Result<Seeded> {
    let mut lines = client.post_lines("/v1/seed", request).await?;
    let mut bar = Bar::new(&what.file_name().unwrap_or(what.as_os_str()).to_string_lossy(), 0);
    while let Some(line) = lines.next().await {
        match line? {
            SeedLine::Stage(stage) => bar.stage(stage),
            SeedLine::Skipped(skipped) => {
                bar.clear();
                tell_skipped(&skipped);
            }
            SeedLine::Failed(failure) => return Err(ClientError::Failure(failure).into()),
            SeedLine::Seeded(seeded) => return Ok(seeded),
        }
    }
    bail!("the daemon ended before it was seeded")
}

/// The path from the root, when there is something.
fn on_disk(path: &Path) -> anyhow::Result<Option<PathBuf>> {
    match path.symlink_metadata() {
        Ok(_) => Ok(Some(std::path::absolute(path)?)),
        Err(_) => Ok(None),
    }
}

fn absent(path: &Path) -> anyhow::Error {
    Usage(format!("`{}` is neither a file here nor an id", path.display())).into()
}

pub(crate) async fn run(
    client: &Client,
    json: bool,
    command: TorrentCommand,
) -> anyhow::Result<()> {
    let named = |torrent: String| TorrentRequest { torrent };
    match command {
        TorrentCommand::Add { torrent } => {
            let request = match on_disk(&torrent)? {
                Some(path) => TorrentAddRequest { path: Some(path), link: None },
                None => TorrentAddRequest { path: None, link: Some(link(&torrent)?) },
            };
            let added: TorrentAdded = client.post("/v1/torrents", &request).await?;
            if json {
                return output::json(&added);
            }
            std::iter::once(added.first).chain(added.others).try_for_each(|one| told(false, one))
        }
        TorrentCommand::List => list(client, json).await,
        TorrentCommand::Pause { torrent } => {
            told(json, client.post("/v1/torrents/pause", &named(torrent)).await?)
        }
        TorrentCommand::Resume { torrent } => {
            told(json, client.post("/v1/torrents/resume", &named(torrent)).await?)
        }
        TorrentCommand::Remove { torrent } => {
            let () = client.post("/v1/torrents/remove", &named(torrent.clone())).await?;
            if json {
                return output::json(&serde_json::json!({ "removed": torrent }));
            }
            Ok(output::line(format_args!("removed {torrent}"))?)
        }
        TorrentCommand::Limit { upload, download } => {
            let limits = TorrentLimits {
                upload: upload.map(|size| size.0),
                download: download.map(|size| size.0),
            };
            let now: TorrentLimits = client.post("/v1/torrents/limits", &limits).await?;
            if json {
                return output::json(&now);
            }
            output::line(format_args!("upload    {}", rate(now.upload)))?;
            Ok(output::line(format_args!("download  {}", rate(now.download)))?)
        }
    }
}

fn link(text: &Path) -> anyhow::Result<String> {
    let link = text.to_str().ok_or_else(|| absent(text))?;
    match link.parse::<Reference>() {
        Ok(_) => Ok(link.to_owned()),
        Err(error) if link.starts_with("magnet:") => Err(Usage(error.to_string()).into()),
        Err(_) => Err(absent(text)),
    }
}

fn rate(limit: Option<u64>) -> String {
    match limit {
        None | Some(0) => "no limit".to_owned(),
        Some(limit) => format!("{}/s", bytes(limit)),
    }
}

fn told(json: bool, status: TorrentStatus) -> anyhow::Result<()> {
    if json {
        return output::json(&status);
    }
    let name = if status.name.is_empty() { "-" } else { &status.name };
    let why = status.error.map(|error| format!(": {error}")).unwrap_or_default();
    let shown =
        format_args!("{}  {}{why}  {name}", status.infohash, state(status.state)).to_string();
    Ok(output::line(shown)?)
}

async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let torrents: Vec<TorrentStatus> = client.get("/v1/torrents").await?;
    if json {
        return output::json(&torrents);
    }
    let row = |torrent: &TorrentStatus| {
        let state = match &torrent.error {
            Some(error) => format!("{}: {error}", state(torrent.state)),
            None => state(torrent.state).to_owned(),
        };
        let done = format!("{}/{}", bytes(torrent.bytes), bytes(torrent.total));
        let (down, up) = (torrent.download_rate, torrent.upload_rate);
        let rates = format!("{}/s {}/s", bytes(down), bytes(up));
        let (hash, name) = (torrent.infohash.clone(), torrent.name.clone());
        [hash, done, rates, bytes(torrent.sent).to_string(), state, name]
    };
    let rows: Vec<_> = torrents.iter().map(row).collect();
    Ok(output::table(["TORRENT", "HERE", "DOWN UP", "SENT", "STATE", "NAME"], &rows)?)
}

fn state(state: TorrentState) -> &'static str {
    match state {
        TorrentState::Searching => "searching",
        TorrentState::Idle => "idle",
        TorrentState::Downloading => "downloading",
        TorrentState::Seeding => "seeding",
        TorrentState::Paused => "paused",
        TorrentState::Error => "error",
    }
}
