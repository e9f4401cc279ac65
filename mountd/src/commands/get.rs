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
use chiral::control::{Client, Kind, Listed, Reference, Stat};
use futures::StreamExt;
use tempfile::NamedTempFile;

use crate::{
    output::{self, bytes},
    printable::printable_name,
    progress::Bar,
};

/// Deepest directory that is written: paths may have 4,096 bytes, so that nothing deeper could be opened by its path.
const MAX_DEPTH: usize = 2048;

pub(crate) async fn get(
    client: &Client,
    json: bool,
    id: &OsStr,
    to: Option<PathBuf>,
) -> anyhow::Result<()> {
    let reference = Reference::of(id.as_bytes())?;
    let stat: Stat = client.get(&Client::target("stat", id)).await?;
    let to = match to {
        // As cp(1) does it: what is no directory itself is put into one that is there.
        Some(folder) if stat.kind != Kind::Directory && folder.is_dir() => {
            folder.join(reference.name())
        }
        Some(to) => to,
        None => PathBuf::from(reference.name()),
    };
    let written = fetch(client, &reference, &stat, &to, 0).await?;
    if json {
        let path = to.to_string_lossy();
        return output::json(
            &serde_json::json!({ "cid": stat.cid, "path": path, "bytes": written }),
        );
    }
    let id = stat.cid.map_or_else(|| reference.name().display().to_string(), |id| id.to_string());
    Ok(output::line(format_args!("{id}  {}  {}", bytes(written), printable_name(to.as_os_str())))?)
}

/// Writes content to `to`, with all below it; gives the bytes of all files.
async fn fetch(
    client: &Client,
    reference: &Reference,
    stat: &Stat,
    to: &Path,
    depth: usize,
) -> anyhow::Result<u64> {
    match stat.kind {
        Kind::File => fetch_file(client, reference, stat.size, to).await,
        Kind::Symlink => {
            let target = stat.target.as_ref().map(|target| target.0.as_os_str());
            symlink(target.unwrap_or_default(), to).with_context(|| to.display().to_string())?;
            Ok(0)
        }
        Kind::Directory => fetch_directory(client, reference, to, depth).await,
    }
}

async fn fetch_directory(
    client: &Client,
    reference: &Reference,
    to: &Path,
    depth: usize,
) -> anyhow::Result<u64> {
    if depth == MAX_DEPTH {
        bail!("{reference}: more than {MAX_DEPTH} directories lie in one another");
    }
    match fs::create_dir(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_real_dir(to) => {}
        made => made.with_context(|| to.display().to_string())?,
    }
    let target = Client::target_of("ls", reference);
    let entries: Vec<Listed> = client.get(&target).await?;
    check_names(entries.iter().map(|entry| entry.name.as_os_str()))
        .with_context(|| format!("{reference} is not written"))?;
    let mut written = 0;
    for entry in entries {
        let path = Path::new(&reference.path).join(&entry.name).into_os_string();
        let below = Reference { root: reference.root.clone(), path };
        let stat: Stat = client.get(&Client::target_of("stat", &below)).await?;
        written += Box::pin(fetch(client, &below, &stat, &to.join(&entry.name), depth + 1)).await?;
    }
    Ok(written)
}

/// Whether each name of a directory is one name, and no other's.
fn check_names<'a>(names: impl Iterator<Item = &'a OsStr>) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        let bytes = name.as_bytes();
        if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            bail!("`{}` is not the name of a file", bytes.escape_ascii());
        }
        if !seen.insert(name) {
            bail!("there are two entries of the name `{}`", bytes.escape_ascii());
        }
    }
    Ok(())
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
        bar.add(piece.len());
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
    fn names_that_lead_elsewhere_or_stand_twice_are_refused() {
        check_names(["a", ".a.part", "..a", "a b", "ä"].map(OsStr::new).into_iter()).unwrap();
        check_names([OsStr::from_bytes(b"\xff"), OsStr::from_bytes(b"\xfe")].into_iter()).unwrap();
        for bad in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b"] {
            assert!(check_names(["ok", bad].map(OsStr::new).into_iter()).is_err(), "{bad:?}");
        }
        assert!(check_names(["a", "b", "a"].map(OsStr::new).into_iter()).is_err());
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
