//! What goes over the control socket.

use std::{ffi::OsString, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use self::publish::{
    AddLine, AddOptions, AddRequest, Added, AddedEntry, SeedLine, SeedRequest, Seeded,
    SkippedNames, Stage,
};
use crate::{
    content::{ContentId, NodeKind},
    node::{Described, Imported, ImportedRoot, PinState, Place},
};

mod path;
mod publish;

/// Trailer behind bytes that broke off: the [`Failure`] as JSON.
pub(super) const FAILURE: &str = "chiral-failure";

/// Answer to `id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Own peer id.
    pub peer_id: String,
    /// Addresses that are listened on, with the peer id at their end.
    pub addresses: Vec<String>,
}

/// Asks for a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// Multiaddress of the peer.
    pub address: String,
}

/// A peer that was dialled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connected {
    /// Who answered.
    pub peer_id: String,
}

/// What an id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    File,
    Directory,
    Symlink,
}

impl From<NodeKind> for Kind {
    fn from(kind: NodeKind) -> Self {
        match kind {
            NodeKind::File => Self::File,
            NodeKind::Directory | NodeKind::Shard => Self::Directory,
            NodeKind::Symlink => Self::Symlink,
        }
    }
}

/// Where a symlink leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkTarget(#[serde(with = "path")] pub OsString);

/// Answer to `stat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// The id that the path leads to, where it leads to a CID.
    pub cid: Option<ContentId>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file, length of a symlink's target, 0 of a directory.
    pub size: u64,
    /// Target of a symlink; one that is no text as a list of its bytes.
    pub target: Option<LinkTarget>,
    /// Permission bits where the publisher stored them.
    pub mode: Option<u32>,
    /// Seconds and nanoseconds since the epoch where the publisher stored them.
    pub mtime: Option<(i64, u32)>,
}

impl Stat {
    pub(super) fn of(place: &Place, described: &Described) -> Self {
        Self {
            cid: place.content().copied(),
            kind: described.kind.into(),
            size: described.size,
            target: described.target.clone().map(LinkTarget),
            mode: described.meta.mode,
            mtime: described.meta.mtime,
        }
    }
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The name; one that is no text as a list of its bytes.
    #[serde(with = "path")]
    pub name: OsString,
    /// Its id, where it has one of its own: a file of a torrent has none.
    pub cid: Option<ContentId>,
    /// What it is, when its own block is here or the id tells.
    pub kind: Option<Kind>,
    /// Bytes of a file, when its own block is here.
    pub size: Option<u64>,
    /// Why it can be neither shown by a mount nor fetched; its name may be that of no file then, or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omitted: Option<String>,
    /// Whether the link, where it selects files of a torrent, selects something of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected: Option<bool>,
}

/// Asks to keep a content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinRequest {
    /// `ID[/path]`. One that is no text goes as its bytes.
    #[serde(with = "path")]
    pub id: OsString,
    /// A name for people.
    #[serde(default)]
    pub name: String,
}

/// A pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRow {
    /// The id that leads to it, with the names that lead there from it: `ID[/path]`.
    pub id: String,
    /// Its CID, where it is content of IPFS.
    pub cid: Option<ContentId>,
    /// The info hash of its torrent, where it is in one.
    pub infohash: Option<String>,
    /// A name for people.
    pub name: String,
    /// The numbers of the files that are kept, of a torrent of which not all are: `1,3-5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
    /// Whether all of it is here; else it is being fetched.
    pub complete: bool,
}

impl From<PinState> for PinRow {
    fn from(PinState { place, path, name, only, complete }: PinState) -> Self {
        let cid = place.content().copied();
        let infohash = place.torrent().map(|hash| hash.to_string());
        let root = cid.map(|cid| cid.to_string()).or_else(|| infohash.clone()).unwrap_or_default();
        let id = match path.as_os_str().is_empty() {
            true => root,
            false => format!("{root}/{}", path.display()),
        };
        let only = only.map(|only| only.to_string());
        Self { id, cid, infohash, name, only, complete }
    }
}

/// Answer to `pin rm`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Unpinned {
    /// Whether there was a pin.
    pub removed: bool,
}

/// Asks to announce a content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProvideRequest {
    /// `ID[/path]`. One that is no text goes as its bytes.
    #[serde(with = "path")]
    pub id: OsString,
}

/// One line of the answer to `store verify`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyLine {
    /// On its way.
    Progress {
        /// Bytes that were hashed.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The last line of a run that went through.
    Report {
        /// Blocks that were hashed.
        blocks: u64,
        /// Bytes that were hashed.
        bytes: u64,
        /// Blocks whose bytes were wrong.
        bad: Vec<ContentId>,
    },
    /// The last line of a run that did not.
    Failed(Failure),
}

/// Asks to take in an archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImportRequest {
    /// Absolute path of a file that the daemon can read. One that is no text goes as its bytes.
    #[serde(with = "path")]
    pub path: PathBuf,
    /// Whether its roots are pinned.
    pub pin: bool,
}

/// One line of the answer to `store import`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportLine {
    /// On its way.
    Progress {
        /// Bytes that were gone through; each counts twice, for it is read and then stored.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The last line of an import that went through.
    Report(ImportReport),
    /// The last line of one that did not.
    Failed(Failure),
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// Version of the archive.
    pub version: u8,
    /// Blocks that were verified.
    pub blocks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Its roots.
    pub roots: Vec<ImportedRow>,
}

/// A root of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedRow {
    /// The root.
    pub cid: ContentId,
    /// Whether it is kept.
    pub pinned: bool,
    /// Blocks below it that are neither in the archive nor here.
    pub missing: u64,
    /// Blocks below it that are no part of any file tree that could be read.
    pub unreadable: u64,
}

impl From<Imported> for ImportReport {
    fn from(Imported { version, blocks, bytes, roots }: Imported) -> Self {
        Self { version, blocks, bytes, roots: roots.into_iter().map(ImportedRow::from).collect() }
    }
}

impl From<ImportedRoot> for ImportedRow {
    fn from(ImportedRoot { cid, pinned, missing, unreadable }: ImportedRoot) -> Self {
        Self { cid, pinned, missing, unreadable }
    }
}

/// Answer to `store gc`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct GcDone {
    /// Objects that were removed.
    pub objects: u64,
    /// DAG nodes that were removed.
    pub nodes: u64,
    /// Bytes of disk that came free.
    pub bytes: u64,
}

/// Asks to list a torrent: the bytes of a `.torrent` file's path, or a link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TorrentAddRequest {
    /// Absolute path of a `.torrent` file that the daemon can read. One that is no text goes as its bytes.
    #[serde(with = "path::optional_path", default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A magnet link or an info hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// Names a torrent: by its info hash, a link, or what it is called where that is one only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TorrentRequest {
    /// Which one.
    pub torrent: String,
}

/// Most bytes per second of all torrents together, from now until the daemon ends; 0: no limit, none: as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentLimits {
    /// That are sent.
    pub upload: Option<u64>,
    /// That are received.
    pub download: Option<u64>,
}

/// What sort of failure it is, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request itself is wrong: an id, an address, a path.
    Invalid,
    /// There is no such name in a directory that is known, or no such file.
    NoEntry,
    /// Nobody gave the content in time.
    NotFoundInTime,
    /// Not possible in this state: offline, read-only, shutting down.
    Refused,
    /// Not built yet.
    Unsupported,
    /// Anything else.
    Internal,
}

/// The body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What sort of failure.
    pub code: ErrorCode,
    /// What, where, and what to do.
    pub message: String,
}
