//! Piped input: its source, and its bytes for the daemon.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use anyhow::bail;
use chiral::{control::Bytes, tasks};
use futures::{SinkExt, Stream, channel::mpsc};

/// Bytes per read.
const READ_LEN: usize = 256 << 10;
/// Pieces that may wait for the daemon.
const PIECES: usize = 4;
/// Links that are followed to a descriptor: `/dev/stdin` takes two.
const LINKS: usize = 8;

/// Source that an argument of `add` names.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file, a directory or a symbolic link, by a path without links but for its last name.
    Path(PathBuf),
    /// Bytes that come once. Without a name of its own it is called by its id.
    Stream { open: Origin, name: Option<OsString> },
}

/// Source of bytes.
#[derive(Debug)]
pub(crate) enum Origin {
    Stdin,
    Pipe(PathBuf),
}

impl Origin {
    /// Opens it; a pipe waits for the program that writes it.
    pub(crate) fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Stdin => Box::new(io::stdin()),
            Self::Pipe(path) => Box::new(File::open(path)?),
        })
    }
}

impl Source {
    /// Returns the source that `path` names; `dereference` follows a link.
    pub(crate) fn of(path: &Path, dereference: bool) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stream { open: Origin::Stdin, name: None });
        }
        if is_descriptor(path) {
            return Ok(Self::Stream { open: Origin::Pipe(path.to_owned()), name: None });
        }
        let link = fs::symlink_metadata(path)?;
        // A link to a pipe is read as the pipe: published as a link, it would mean nothing on another machine.
        let kind = fs::metadata(path).unwrap_or_else(|_| link.clone()).file_type();
        if kind.is_fifo() {
            let name = path.file_name().map(ToOwned::to_owned);
            return Ok(Self::Stream { open: Origin::Pipe(path.to_owned()), name });
        }
        if kind.is_char_device() || kind.is_block_device() || kind.is_socket() {
            bail!("only files, directories, symbolic links and pipes are published");
        }
        match path.file_name() {
            Some(name) if link.is_symlink() && !dereference => {
                Ok(Self::Path(parent(path).canonicalize()?.join(name)))
            }
            _ => Ok(Self::Path(path.canonicalize()?)),
        }
    }

    /// The name that it gets unless another is given.
    pub(crate) fn name(&self) -> Option<OsString> {
        match self {
            Self::Path(path) => path.file_name().map(ToOwned::to_owned),
            Self::Stream { name, .. } => name.clone(),
        }
    }

    /// Returns whether it is published as a symbolic link.
    pub(crate) fn is_link(&self) -> bool {
        matches!(self, Self::Path(path) if path.is_symlink())
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns whether a path is a descriptor of this process: `/dev/stdin`, `/dev/fd/63`, and links to one.
fn is_descriptor(path: &Path) -> bool {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let Ok(dir) = parent(&path).canonicalize() else { return false };
        if dir.starts_with("/proc") && dir.ends_with("fd") {
            return true;
        }
        match fs::read_link(&path) {
            Ok(target) => path = dir.join(target),
            Err(_) => return false,
        }
    }
    false
}

/// Bytes as they come, read on a detached thread: a signal ends the command also while nothing comes.
pub(crate) fn pieces_of(
    name: &'static str,
    mut from: impl Read + Send + 'static,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let (mut pieces, come) = mpsc::channel(PIECES);
    let read = move || {
        loop {
            let mut piece = vec![0; READ_LEN];
            let read = match from.read(&mut piece) {
                Ok(0) => return,
                Ok(len) => {
                    piece.truncate(len);
                    Ok(piece.into())
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            let sent = futures::executor::block_on(pieces.send(read));
            if failed || sent.is_err() {
                return;
            }
        }
    };
    tasks::outliving(name, read)?;
    Ok(come)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn descriptors_are_streams_by_every_name() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/dev/stdin", dir.path().join("link")).unwrap();
        for path in ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].map(PathBuf::from) {
            assert!(is_descriptor(&path), "{}", path.display());
        }
        assert!(is_descriptor(&dir.path().join("link")));
        symlink("loop", dir.path().join("loop")).unwrap();
        for path in ["/dev/null", "/etc", "/proc/self/status"].map(PathBuf::from) {
            assert!(!is_descriptor(&path), "{}", path.display());
        }
        assert!(!is_descriptor(&dir.path().join("loop")));
    }

    #[test]
    fn links_are_links_unless_what_they_lead_to_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        symlink("file", dir.join("link")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        let name = |name: &str, follow| Source::of(&dir.join(name), follow).unwrap().name();
        assert_eq!(name("link", false), Some("link".into()));
        assert_eq!(name("link", true), Some("file".into()));
        assert_eq!(name("dangling", false), Some("dangling".into()));
        assert!(Source::of(&dir.join("dangling"), true).is_err());
        assert!(Source::of(Path::new("/dev/null"), false).is_err());
        assert!(Source::of(&dir.join("nothing"), false).is_err());
    }
}
