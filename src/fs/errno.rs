//! What every error of the layers below is called in errno(3). No arm is `_`: a new variant has to be decided here.

use nix::errno::Errno;

use crate::{
    content::{BlockError, DagError},
    node::{DownloadError, NetError, NodeError, PublishError, StoreError, TorrentError},
};

/// Which call failed: nobody having the bytes is a timeout to those that look and an I/O error to those that read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum During {
    /// Path walk, stat, listing, open.
    Lookup,
    /// Reading bytes of an open file.
    Read,
}

pub(super) fn of_node(error: &NodeError, during: During) -> Errno {
    match error {
        NodeError::Store(e) => of_store(e),
        NodeError::Net(e) => of_net(e),
        NodeError::Download(e) => of_download(e, during),
        NodeError::Publish(e) => of_publish(e),
        NodeError::NoEntry { .. } => Errno::ENOENT,
        NodeError::NotADirectory(_) => Errno::ENOTDIR,
        NodeError::IsADirectory(_) => Errno::EISDIR,
        NodeError::IsASymlink(_) => Errno::ELOOP,
        NodeError::Nested(_) => Errno::EINVAL,
        NodeError::Torrent(e) => of_torrent(e, during),
        NodeError::Seed(_) => Errno::EINVAL,
        NodeError::NoName { .. } | NodeError::NoProtocol(_) => Errno::ENOENT,
    }
}

pub(super) fn of_download(error: &DownloadError, during: During) -> Errno {
    match error {
        DownloadError::NotFound(_) | DownloadError::Stalled { .. } => match during {
            During::Lookup => Errno::ETIMEDOUT,
            During::Read => Errno::EIO,
        },
        DownloadError::Dag(e) => of_dag(e),
        DownloadError::Store(e) => of_store(e),
        DownloadError::Closed => Errno::EIO,
    }
}

fn of_torrent(error: &TorrentError, during: During) -> Errno {
    match error {
        TorrentError::NoMetadata { .. }
        | TorrentError::Stalled { .. }
        | TorrentError::Offline(_) => match during {
            During::Lookup => Errno::ETIMEDOUT,
            During::Read => Errno::EIO,
        },
        TorrentError::Magnet(_)
        | TorrentError::Links(_)
        | TorrentError::Metainfo(_)
        | TorrentError::Refused { .. }
        | TorrentError::Tracker(_)
        | TorrentError::Build(_) => Errno::EINVAL,
        TorrentError::NoSuchFile { .. } | TorrentError::NoSuchTorrent(_) => Errno::ENOENT,
        TorrentError::Removed(_) => Errno::ESTALE,
        TorrentError::NotADirectory(_) => Errno::ENOTDIR,
        TorrentError::IsADirectory(_) => Errno::EISDIR,
        TorrentError::Disk { what: _, source } => of_io(source),
        TorrentError::Session(_)
        | TorrentError::Paused(_)
        | TorrentError::Gone { .. }
        | TorrentError::Closed => Errno::EIO,
    }
}

/// The same for an inode of the upload tree that the kernel knows. If there is none any more, its name may lead to
/// another one by now (`chiral add` replaces trees past the kernel): ESTALE makes the kernel walk the path again.
pub(super) fn of_known(error: &PublishError) -> Errno {
    match error {
        PublishError::NotFound => Errno::ESTALE,
        error => of_publish(error),
    }
}

pub(super) fn of_publish(error: &PublishError) -> Errno {
    match error {
        PublishError::NotFound => Errno::ENOENT,
        PublishError::Exists | PublishError::Taken(_) => Errno::EEXIST,
        PublishError::NotADirectory => Errno::ENOTDIR,
        PublishError::IsADirectory => Errno::EISDIR,
        PublishError::NotEmpty => Errno::ENOTEMPTY,
        PublishError::Cycle | PublishError::Name(_) | PublishError::Invalid(_) => Errno::EINVAL,
        PublishError::NameTooLong => Errno::ENAMETOOLONG,
        PublishError::TooManyLinks => Errno::EMLINK,
        PublishError::NotPermitted(_) => Errno::EPERM,
        PublishError::ReadOnly => Errno::EROFS,
        PublishError::NoAttribute | PublishError::Ignored => Errno::ENODATA,
        PublishError::Busy => Errno::EBUSY,
        PublishError::Store(e) => of_store(e),
        PublishError::Io { what: _, source } => of_io(source),
        PublishError::Closed => Errno::EIO,
    }
}

pub(super) fn of_store(error: &StoreError) -> Errno {
    match error {
        StoreError::Io { source, .. } => of_io(source),
        StoreError::Locked(_)
        | StoreError::Index(_)
        | StoreError::State(_)
        | StoreError::Format { .. }
        | StoreError::Rejected(_)
        | StoreError::Closed
        | StoreError::Missing(_) => Errno::EIO,
    }
}

fn of_net(error: &NetError) -> Errno {
    match error {
        NetError::Offline | NetError::Bootstrap | NetError::NoProviders(_) => Errno::ETIMEDOUT,
        NetError::Store(e) => of_store(e),
        NetError::Key { .. }
        | NetError::Listen { .. }
        | NetError::Connect { .. }
        | NetError::Closed => Errno::EIO,
    }
}

fn of_dag(error: &DagError) -> Errno {
    match error {
        DagError::Malformed { .. } | DagError::Kind { .. } => Errno::EIO,
        DagError::Unsupported { .. } => Errno::EOPNOTSUPP,
        DagError::Block(BlockError::Unsupported { .. }) => Errno::EOPNOTSUPP,
        DagError::Block(BlockError::WrongHash(_) | BlockError::TooLarge { .. }) => Errno::EIO,
    }
}

/// An error of the system below, as it is; one without a number (a short read, a custom error) is EIO.
pub(super) fn of_io(error: &std::io::Error) -> Errno {
    match error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) {
        // A file of the store is missing, which says nothing of the name that was looked up: the kernel would take
        // that name for absent.
        Errno::ENOENT => Errno::EIO,
        errno => errno,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::content::ContentId;

    fn id() -> ContentId {
        "bafkqaaa".parse().unwrap()
    }

    #[test]
    fn nobody_having_it_is_a_timeout_to_stat_and_an_io_error_to_read_and_never_enoent() {
        let error = NodeError::Download(DownloadError::NotFound(id()));
        assert_eq!(of_node(&error, During::Lookup), Errno::ETIMEDOUT);
        assert_eq!(of_node(&error, During::Read), Errno::EIO);
    }

    #[test]
    fn a_full_disk_stays_enospc_through_all_layers() {
        let full = || StoreError::Io {
            what: "write",
            path: "/x".into(),
            source: std::io::Error::from_raw_os_error(Errno::ENOSPC as i32),
        };
        assert_eq!(of_publish(&PublishError::Store(full())), Errno::ENOSPC);
        let error = NodeError::Download(DownloadError::Store(std::sync::Arc::new(full())));
        assert_eq!(of_node(&error, During::Read), Errno::ENOSPC);
    }

    #[test]
    fn an_io_error_without_a_number_is_eio() {
        assert_eq!(of_io(&std::io::Error::other("short")), Errno::EIO);
    }

    #[test]
    fn a_missing_file_of_the_store_is_no_missing_name() {
        let gone = || std::io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(of_publish(&PublishError::Io { what: "open", source: gone() }), Errno::EIO);
        assert_eq!(of_publish(&PublishError::NotFound), Errno::ENOENT);
    }
}
