//! Seeding, and care of torrents.

use std::{ffi::OsString, path::PathBuf};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use serde::{Deserialize, Serialize};

use super::{
    ErrorCode, Failure, Reference, SeedLine, SeedRequest, Seeded, Stage, TorrentAddRequest,
    TorrentLimits, TorrentRequest, TorrentStatus,
    add::added,
    server::{App, Asked},
    told::{STEP, Steps, told},
};
use crate::{
    content::{ContentId, InfoHash},
    node::{Limits, Magnet, Node, Place, Root, TorrentError, Torrents, links_in},
};

/// Answer to the addition of torrents.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TorrentAdded {
    /// The torrent, or the first one of a text with several links.
    #[serde(flatten)]
    pub first: TorrentStatus,
    /// All others of such a text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<TorrentStatus>,
}

/// Longest `.torrent` file that is read.
const MAX_TORRENT: u64 = 32 << 20;

pub(super) async fn seed(
    State(app): State<App>,
    Asked(request): Asked<SeedRequest>,
) -> Result<Response, Failure> {
    if !request.progress {
        return Ok(Json(begin(&app.node, request, |_| {}).await?).into_response());
    }
    Ok(told(|news| async move {
        match begin(&app.node, request, move |line| news.tell(line)).await {
            Ok(seeded) => SeedLine::Seeded(seeded),
            Err(failure) => SeedLine::Failed(failure),
        }
    }))
}

/// A client that leaves does not end the hashing.
async fn begin(
    node: &Node,
    request: SeedRequest,
    tell: impl Fn(SeedLine) + Clone + Send + Sync + 'static,
) -> Result<Seeded, Failure> {
    let (inside, cancelled) = (node.clone(), node.tasks().cancelled());
    let seeding = node.tasks().spawn("seed", async move {
        tokio::select! {
            seeded = seeded(&inside, request, tell) => seeded,
            () = cancelled => Err(TorrentError::Closed.into()),
        }
    });
    let ended = seeding.await;
    ended.map_err(|e| Failure { code: ErrorCode::Internal, message: e.to_string() })?
}

async fn seeded(
    node: &Node,
    request: SeedRequest,
    tell: impl Fn(SeedLine) + Clone + Send + Sync + 'static,
) -> Result<Seeded, Failure> {
    let pieces = pieces(staged(tell.clone()));
    let magnet = match (request.path, request.id) {
        (Some(path), None) => {
            let own = || path.file_name().unwrap_or_default().to_owned();
            let name = request.options.name.clone().unwrap_or_else(own);
            let published = added(node, path, request.options, staged(tell.clone())).await?;
            if published.skipped.count > 0 {
                tell(SeedLine::Skipped(published.skipped));
            }
            node.seed_content(published.root.cid, name, pieces).await?
        }
        (None, Some(id)) => {
            let reference: Reference = id.parse()?;
            let (place, _) = node.walk_to(&reference.root, &reference.path).await?;
            match place {
                Place::Content { id, .. } => {
                    let name = name_of(node, &reference, id);
                    node.seed_content(id, name, pieces).await?
                }
                Place::Torrent { hash, node: 0 } => node.torrents().seed(hash).await?,
                Place::Torrent { .. } => {
                    return Err(Failure::invalid("a torrent can only be seeded as a whole"));
                }
            }
        }
        _ => return Err(Failure::invalid("either a path or an id is expected")),
    };
    let torrent = description(node, magnet.hash);
    Ok(Seeded { infohash: magnet.hash.to_string(), magnet: magnet.to_string(), torrent })
}

/// Makes lines of stages.
fn staged(tell: impl Fn(SeedLine)) -> impl Fn(Stage) {
    move |stage| tell(SeedLine::Stage(stage))
}

/// Makes lines of what is hashed: the last, and some before it.
fn pieces(tell: impl Fn(Stage)) -> impl Fn(u64, u64) {
    let steps = Steps::of(STEP);
    move |done, total| {
        if steps.pick(done, done == total) {
            tell(Stage::Pieces { done, total });
        }
    }
}

/// What others are to see: the name that something has here, else the last name of its path, else its id.
fn name_of(node: &Node, reference: &Reference, id: ContentId) -> OsString {
    let published = node.uploads().published();
    let named = published.into_iter().find(|(_, root)| *root == id.to_v1());
    match named {
        Some((name, _)) if reference.path.is_empty() => name.into(),
        _ => reference.name(),
    }
}

/// Where the description of a torrent is found by other programs.
fn description(node: &Node, hash: InfoHash) -> PathBuf {
    let listed = node.torrents().file_name(hash).zip(node.mountpoint());
    match listed {
        Some((name, mountpoint)) => mountpoint.join("torrents").join(name),
        None => node.torrents().text_path(hash),
    }
}

pub(super) async fn list(State(app): State<App>) -> Result<Json<Vec<TorrentStatus>>, Failure> {
    let torrents = app.node.torrents().clone();
    let listing = app.node.tasks().blocking("list torrents", move || torrents.statuses());
    Ok(Json(listing.await.map_err(|_| TorrentError::Closed)?))
}

pub(super) async fn add(
    State(app): State<App>,
    Asked(request): Asked<TorrentAddRequest>,
) -> Result<Json<TorrentAdded>, Failure> {
    let torrents = app.node.torrents().clone();
    let hashes = match (request.path, request.link) {
        (Some(path), None) => {
            if !path.is_absolute() {
                return Err(Failure::invalid("the path is not absolute"));
            }
            let keep = torrents.clone();
            let kept = app.node.tasks().blocking("add a torrent", move || added_from(&keep, &path));
            kept.await.map_err(|_| TorrentError::Closed)??
        }
        (None, Some(link)) => {
            let magnet = magnet_of(&link)?;
            torrents.add_link(&magnet)?;
            vec![magnet.hash]
        }
        _ => return Err(Failure::invalid("either a path or a link is expected")),
    };
    let mut all = hashes.into_iter().map(|hash| torrents.status(hash));
    let first = all.next().ok_or_else(|| Failure::invalid("there is no link in it"))??;
    Ok(Json(TorrentAdded { first, others: all.collect::<Result<_, _>>()? }))
}

/// The torrents of a file: of a description one, of a text with links all that they lead to.
fn added_from(torrents: &Torrents, path: &std::path::Path) -> Result<Vec<InfoHash>, Failure> {
    let text = read(path)?;
    match links_in(&text) {
        Some(links) => {
            let links = links.map_err(TorrentError::from)?;
            links.iter().try_for_each(|link| torrents.add_link(link))?;
            Ok(links.iter().map(|link| link.hash).collect())
        }
        None => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok(vec![torrents.add_named(&text, &name)?])
        }
    }
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Failure::no_entry(format!("{}: {e}", path.display())),
        _ => Failure::invalid(format!("{}: {e}", path.display())),
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    // One byte more than is taken, so that what is too long is told so.
    file.take(MAX_TORRENT + 1).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

fn magnet_of(link: &str) -> Result<Magnet, Failure> {
    match link.parse::<Root>() {
        Ok(Root::Torrent(magnet)) => Ok(magnet),
        Ok(Root::Content(id)) => Err(Failure::invalid(format!("{id} is not a torrent"))),
        Err(error) => Err(Failure::invalid(error)),
    }
}

/// A torrent by its info hash, a link, or its name.
fn torrent(node: &Node, named: &str) -> Result<InfoHash, Failure> {
    if let Ok(Root::Torrent(magnet)) = named.parse() {
        return Ok(magnet.hash);
    }
    let all = node.torrents().statuses();
    let mut same = all.iter().filter(|torrent| torrent.name == named);
    match (same.next(), same.next()) {
        (Some(one), None) => Ok(one.infohash.parse().map_err(Failure::invalid)?),
        (Some(_), Some(_)) => {
            let message =
                format!("several torrents are called `{named}`: name it by its info hash");
            Err(Failure::invalid(message))
        }
        (None, _) => Err(Failure::no_entry(format!("there is no torrent `{named}` here"))),
    }
}

pub(super) async fn pause(
    State(app): State<App>,
    Asked(request): Asked<TorrentRequest>,
) -> Result<Json<TorrentStatus>, Failure> {
    let hash = torrent(&app.node, &request.torrent)?;
    app.node.torrents().pause(hash).await?;
    Ok(Json(app.node.torrents().status(hash)?))
}

pub(super) async fn resume(
    State(app): State<App>,
    Asked(request): Asked<TorrentRequest>,
) -> Result<Json<TorrentStatus>, Failure> {
    let hash = torrent(&app.node, &request.torrent)?;
    app.node.torrents().resume(hash).await?;
    Ok(Json(app.node.torrents().status(hash)?))
}

pub(super) async fn remove(
    State(app): State<App>,
    Asked(request): Asked<TorrentRequest>,
) -> Result<Json<()>, Failure> {
    let hash = torrent(&app.node, &request.torrent)?;
    Ok(Json(app.node.remove_torrent(hash).await?))
}

pub(super) async fn limit(
    State(app): State<App>,
    Asked(request): Asked<TorrentLimits>,
) -> Result<Json<TorrentLimits>, Failure> {
    let limit = |bytes: u64| {
        Limits::of(bytes).map_err(|least| {
            Failure::invalid(format!(
                "a limit of {bytes} bytes per second lets nothing through: give at least {least}, or 0 for none"
            ))
        })
    };
    let mut limits = app.node.torrents().limits();
    if let Some(upload) = request.upload {
        limits.upload = limit(upload)?;
    }
    if let Some(download) = request.download {
        limits.download = limit(download)?;
    }
    app.node.torrents().set_limits(limits);
    let shown = |limit: Option<std::num::NonZeroU32>| Some(limit.map_or(0, |l| l.get().into()));
    Ok(Json(TorrentLimits { upload: shown(limits.upload), download: shown(limits.download) }))
}
