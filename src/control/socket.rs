//! Where the socket lies, and how it is reached when its path is too long for the kernel.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// Name of the socket in the data folder.
const NAME: &str = "control.sock";

/// `sun_path` of sockaddr_un holds 108 bytes with the final NUL.
const MAX_PATH: usize = 107;

/// A path by which bind(2) and connect(2) reach the socket, as long as this lives.
#[derive(Debug)]
pub(super) struct SocketPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl SocketPath {
    /// The socket of the daemon on `data_dir`.
    pub(super) fn of(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(NAME);
        if path.as_os_str().len() <= MAX_PATH {
            return Ok(Self { path, _folder: None });
        }
        let folder = File::open(data_dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd()));
        Ok(Self { path, _folder: Some(folder) })
    }

    pub(super) fn as_path(&self) -> &Path {
        &self.path
    }
}
