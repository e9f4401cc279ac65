//! Messages of publishing and seeding over the control socket.

use std::{ffi::OsString, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Failure, path};
use crate::{content::ContentId, node::Skipped};

/// Asks to publish a path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddRequest {
    /// Absolute path of a file or directory that the daemon can read. One that is no text goes as its bytes.
    #[serde(with = "path")]
    pub path: PathBuf,
    /// How it is published.
    #[serde(flatten)]
    pub options: AddOptions,
    /// Answer with [`AddLine`]s, one per line, instead of [`Added`].
    #[serde(default)]
    pub progress: bool,
}

/// How something is published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddOptions {
    /// Its name at the top of `upload/`: that of the path unless it is given, and the CID of what has no path.
    #[serde(with = "path::optional_name", default, skip_serializing_if = "Option::is_none")]
    pub name: Option<OsString>,
    /// It takes the place of other content with that name.
    #[serde(default)]
    pub replace: bool,
    /// Publishes also names that the settings ignore.
    #[serde(default)]
    pub hidden: bool,
}

/// The published entries, in one message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Added {
    /// Every file and directory, the one that was asked for last.
    pub entries: Vec<AddedEntry>,
    /// Names that were left out.
    pub skipped: SkippedNames,
}

/// Names that were left out because they are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedNames {
    /// Files and directories; a directory counts once, with all that is in it.
    pub count: u64,
    /// How many of them `.chiralignore` files name, which asking for hidden files does not publish.
    pub by_rules: u64,
    /// The names of the first.
    pub first: Vec<String>,
}

impl From<Skipped> for SkippedNames {
    fn from(Skipped { count, by_rules, first }: Skipped) -> Self {
        let first = first.iter().map(|path| path.display().to_string()).collect();
        Self { count, by_rules, first }
    }
}

/// How far something is that is published, or seeded.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is being copied.
    Copying {
        /// Bytes that are.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// All of it is copied and it is being hashed for its CID.
    Hashing {
        /// Bytes that are published; those of a file count when all of it is.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// It is published and being hashed for its torrent.
    Pieces {
        /// Bytes that are.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// One line of the answer to `add` with progress.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddLine {
    /// A file or directory below the one that was asked for: all of these come once everything is published.
    Entry(AddedEntry),
    /// Names that were left out; sent at most once.
    Skipped(SkippedNames),
    /// The last line when everything is published: what was asked for.
    Added(AddedEntry),
    /// The last line when it is not.
    Failed(Failure),
    /// Any line before the last.
    #[serde(untagged)]
    Stage(Stage),
}

/// A published file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedEntry {
    /// Its id.
    pub cid: ContentId,
    /// Its name, with the directories above it.
    pub name: String,
}

/// Asks to seed something: a path of this machine, or an id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeedRequest {
    /// Absolute path of a file or directory that the daemon can read, which is published first. One that is no text goes
    /// as its bytes.
    #[serde(with = "path::optional_path", default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `ID[/path]` of content or a torrent, where it is no path of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How a path is published.
    #[serde(flatten)]
    pub options: AddOptions,
    /// Answer with [`SeedLine`]s, one per line, instead of [`Seeded`].
    #[serde(default)]
    pub progress: bool,
}

/// One line of the answer to `seed` with progress.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeedLine {
    /// Names that publishing left out; sent at most once.
    Skipped(SkippedNames),
    /// The last line when it is seeded.
    Seeded(Seeded),
    /// The last line when it is not.
    Failed(Failure),
    /// Any line before the last.
    #[serde(untagged)]
    Stage(Stage),
}

/// Something that is seeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeded {
    /// Its info hash.
    pub infohash: String,
    /// A link that leads to it.
    pub magnet: String,
    /// Its description, as a file that programs open.
    #[serde(with = "path")]
    pub torrent: PathBuf,
}
