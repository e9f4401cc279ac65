//! Writing content to files of this machine.
//!
//! What a stranger published decides names, kinds and order here, so nothing is written through a name that it gave:
//! a file grows under a name of its own that nobody can foresee and that must be new, and takes its place by a rename,
//! which replaces a symbolic link and does not follow it. A directory is entered only when it is a real one.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use chiral::control::{Client, ClientError, Kind, Listed, Reference, Stat};
use futures::StreamExt;
use nix::errno::Errno;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::{
    exit::with_causes,
    output::{self, bytes},
    printable::printable_name,
    progress::Bar,
    stderr,
};

/// Entries that are listed where they cannot be fetched; more are counted.
const MAX_LISTED: usize = 1000;
/// Deepest directory that is written: paths may have 4,096 bytes, so that nothing deeper could be opened by its path.
const MAX_DEPTH: usize = 2048;

pub(crate) async fn get(
    client: &Client,
    json: bool,
    id: &OsStr,
    to: Option<PathBuf>,
) -> anyhow::Result<()> {
    let mut reference = Reference::of(id.as_bytes())?;
    let stat: Stat = client.get(&Client::target("stat", id)).await?;
    if !reference.path.is_empty() {
        // Who names a file or directory wants that one, whatever else the link selects.
        reference.root = reference.root.whole();
    }
    let to = match to {
        // As cp(1) does it: what is no directory itself is put into one that is there.
        Some(folder) if stat.kind != Kind::Directory && folder.is_dir() => {
            folder.join(reference.name())
        }
        Some(to) => to,
        None => PathBuf::from(reference.name()),
    };
    let mut fetcher = Fetcher { client, left: Left::default() };
    let written = fetcher.fetch(&reference, &stat, &to, 0).await?;
    let left = fetcher.left;
    if json {
        let mut told = serde_json::json!({
            "cid": stat.cid, "path": to.to_string_lossy(), "bytes": written,
        });
        if left.count > 0 {
            told["left_out"] = serde_json::to_value(&left.listed)?;
        }
        output::json(&told)?;
    } else {
        let id =
            stat.cid.map_or_else(|| reference.name().display().to_string(), |id| id.to_string());
        output::line(format_args!("{id}  {}  {}", bytes(written), printable_name(to.as_os_str())))?;
    }
    left.told(json)
}

/// Something that is not written, and why.
#[derive(Debug, Serialize)]
struct LeftOut {
    path: String,
    why: String,
}

/// All that is not written.
#[derive(Debug, Default)]
struct Left {
    listed: Vec<LeftOut>,
    count: usize,
}

impl Left {
    fn add(&mut self, path: &Path, why: impl std::fmt::Display) {
        self.count += 1;
        if self.listed.len() < MAX_LISTED {
            let (path, why) = (path.display().to_string(), why.to_string());
            self.listed.push(LeftOut { path, why });
        }
    }

    /// Lists it, unless a program has read it already; an error where there is any.
    fn told(self, json: bool) -> anyhow::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        if !json {
            for LeftOut { path, why } in &self.listed {
                stderr::line(format_args!("chiral: {path}: {why}"));
            }
        }
        bail!("{} entries were not fetched; all others were", self.count)
    }
}

/// Returns whether nothing else could be written either.
fn ends_all(error: &anyhow::Error) -> bool {
    let full = |error: &io::Error| {
        matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS | Errno::EIO)
        )
    };
    matches!(error.downcast_ref(), Some(ClientError::NotRunning(_) | ClientError::Socket { .. }))
        || error.chain().any(|cause| cause.downcast_ref().is_some_and(full))
}

struct Fetcher<'a> {
    client: &'a Client,
    left: Left,
}

impl Fetcher<'_> {
    /// Writes content to `to`, with all below it; gives the bytes of all files.
    async fn fetch(
        &mut self,
        reference: &Reference,
        stat: &Stat,
        to: &Path,
        depth: usize,
    ) -> anyhow::Result<u64> {
        match stat.kind {
            Kind::File => fetch_file(self.client, reference, stat.size, to).await,
            Kind::Symlink => {
                let target = stat.target.as_ref().map(|target| target.0.as_os_str());
                symlink(target.unwrap_or_default(), to)
                    .with_context(|| to.display().to_string())?;
                Ok(0)
            }
            Kind::Directory => self.fetch_directory(reference, to, depth).await,
        }
    }

    /// Entries that cannot be written are left out; the rest of the directory is still fetched.
    async fn fetch_directory(
        &mut self,
        reference: &Reference,
        to: &Path,
        depth: usize,
    ) -> anyhow::Result<u64> {
        if depth == MAX_DEPTH {
            bail!("more than {MAX_DEPTH} directories lie in one another");
        }
        match fs::create_dir(to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_real_dir(to) => {}
            made => made.with_context(|| to.display().to_string())?,
        }
        let entries: Vec<Listed> = self.client.get(&Client::target_of("ls", reference)).await?;
        if depth == 0 && !entries.is_empty() && entries.iter().all(|e| e.selected == Some(false)) {
            bail!("the link selects no file of the torrent");
        }
        let (mut written, mut seen) = (0, HashSet::new());
        for entry in entries.iter().filter(|entry| entry.selected != Some(false)) {
            let to = to.join(shown(&entry.name));
            if let Some(why) = &entry.omitted {
                self.left.add(&to, why);
            } else if let Some(why) = unusable(&entry.name) {
                self.left.add(&to, why);
            } else if !seen.insert(&entry.name) {
                self.left.add(&to, "another entry has its name");
            } else {
                match Box::pin(self.fetch_entry(reference, &entry.name, &to, depth)).await {
                    Ok(bytes) => written += bytes,
                    Err(error) if ends_all(&error) => return Err(error),
                    Err(error) => self.left.add(&to, with_causes(&error)),
                }
            }
        }
        Ok(written)
    }

    async fn fetch_entry(
        &mut self,
        dir: &Reference,
        name: &OsStr,
        to: &Path,
        depth: usize,
    ) -> anyhow::Result<u64> {
        let path = Path::new(&dir.path).join(name).into_os_string();
        let below = Reference { root: dir.root.clone(), path };
        let stat: Stat = self.client.get(&Client::target_of("stat", &below)).await?;
        self.fetch(&below, &stat, to, depth + 1).await
    }
}

/// A name as a part of a path that is only shown.
fn shown(name: &OsStr) -> PathBuf {
    // An absolute one would take the place of all before it.
    let relative = name.as_bytes().iter().position(|byte| *byte != b'/').unwrap_or(0);
    PathBuf::from(OsStr::from_bytes(&name.as_bytes()[relative..]))
}

/// Why a name is none of a file.
fn unusable(name: &OsStr) -> Option<&'static str> {
    let bytes = name.as_bytes();
    let none = matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|b| matches!(b, b'/' | 0));
    none.then_some("it is not the name of a file")
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
    let mut body = client.bytes(&Client::target_of("cat", reference), 0).await?;
    let mut part = part_beside(to).with_context(shown)?;
    let mut bar = Bar::new(&name.to_string_lossy(), size);
    let mut written = 0;
    while let Some(piece) = body.next().await {
        let piece = piece?;
        part.write_all(&piece).with_context(shown)?;
        written += piece.len() as u64;
        bar.add(piece.len() as u64);
        bar.show_sources(client).await;
    }
    if written != size {
        bail!("{reference}: {written} bytes came of {size}");
    }
    part.persist(to).map_err(|error| error.error).with_context(shown)?;
    Ok(written)
}

/// A new file beside `to`, so that nobody takes half a file for the whole. It is removed when it is dropped: by an
/// error, and by a signal, which drops what waits.
pub(super) fn part_beside(to: &Path) -> io::Result<NamedTempFile> {
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    tempfile::Builder::new()
        .prefix(".chiral-")
        .suffix(".part")
        // The random part of the name; the file must be new as well, whatever its name.
        .rand_bytes(16)
        // Less what the umask of the user takes away.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(|error| without_name(&error))
}

/// What the system said, without the name that the file would have had: it means nothing to anybody.
fn without_name(error: &io::Error) -> io::Error {
    let text = error.to_string();
    let said = text.split(" at path ").next().unwrap_or_default();
    io::Error::new(error.kind(), said)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_not_written() {
        for good in ["a", ".a.part", "..a", "a b", "ä"] {
            assert_eq!(unusable(OsStr::new(good)), None);
        }
        assert_eq!(unusable(OsStr::from_bytes(b"\xff")), None);
        for bad in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b"] {
            assert!(unusable(OsStr::new(bad)).is_some(), "{bad:?}");
        }
        assert_eq!(Path::new("to").join(shown(OsStr::new("/etc/x"))), Path::new("to/etc/x"));
    }

    #[test]
    fn what_is_left_out_is_counted_and_an_error() {
        let mut left = Left::default();
        for n in 0..=MAX_LISTED {
            left.add(&Path::new("dir").join(n.to_string()), "gone");
        }
        assert_eq!((left.count, left.listed.len()), (MAX_LISTED + 1, MAX_LISTED));
        assert!(left.told(true).unwrap_err().to_string().starts_with("1001 entries"));
        Left::default().told(true).unwrap();
        let full = anyhow::Error::from(io::Error::from_raw_os_error(28)).context("x");
        let odd = anyhow::Error::from(io::Error::from_raw_os_error(22)).context("x");
        assert_eq!((ends_all(&full), ends_all(&odd)), (true, false));
    }

    #[test]
    fn a_part_file_is_new_and_vanishes_and_its_place_is_taken_without_following_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (to, victim) = (dir.path().join("a"), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &to).unwrap();
        let nowhere = part_beside(&dir.path().join("none/a")).unwrap_err().to_string();
        assert!(nowhere.starts_with("No such file") && !nowhere.contains(".part"), "{nowhere}");
        drop(part_beside(&to).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        let mut part = part_beside(&to).unwrap();
        part.write_all(b"new").unwrap();
        part.persist(&to).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
        assert!(fs::symlink_metadata(&to).unwrap().is_file());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
