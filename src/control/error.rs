//! From what the node reports to what goes over the socket.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{ErrorCode, Failure, ReferenceError};
use crate::node::{DownloadError, NetError, NodeError, PublishError, StoreError, TorrentError};

impl Failure {
    pub(super) fn invalid(message: impl ToString) -> Self {
        Self { code: ErrorCode::Invalid, message: message.to_string() }
    }

    pub(super) fn no_entry(message: impl ToString) -> Self {
        Self { code: ErrorCode::NoEntry, message: message.to_string() }
    }

    fn status(&self) -> StatusCode {
        match self.code {
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::NoEntry => StatusCode::NOT_FOUND,
            ErrorCode::NotFoundInTime => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Refused => StatusCode::CONFLICT,
            ErrorCode::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status(), Json(self)).into_response()
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        let code = match &error {
            NodeError::Store(_) => ErrorCode::Internal,
            NodeError::Net(error) => net_code(error),
            NodeError::Download(error) => download_code(error),
            NodeError::Publish(error) => publish_code(error),
            NodeError::Torrent(error) => torrent_code(error),
            NodeError::Seed(_) => ErrorCode::Invalid,
            NodeError::NoProtocol(_) => ErrorCode::Unsupported,
            NodeError::NoEntry { .. } | NodeError::NoName { .. } => ErrorCode::NoEntry,
            NodeError::NotADirectory(_)
            | NodeError::IsADirectory(_)
            | NodeError::IsASymlink(_)
            | NodeError::Nested(_) => ErrorCode::Invalid,
        };
        Self { code, message: error.to_string() }
    }
}

fn net_code(error: &NetError) -> ErrorCode {
    match error {
        NetError::NoProviders(_) | NetError::Bootstrap => ErrorCode::NotFoundInTime,
        NetError::Offline | NetError::Closed => ErrorCode::Refused,
        NetError::Connect { .. }
        | NetError::Key { .. }
        | NetError::Listen { .. }
        | NetError::Store(_) => ErrorCode::Internal,
    }
}

fn download_code(error: &DownloadError) -> ErrorCode {
    match error {
        DownloadError::NotFound(_) | DownloadError::Stalled { .. } => ErrorCode::NotFoundInTime,
        DownloadError::Dag(_) => ErrorCode::Invalid,
        DownloadError::Store(_) => ErrorCode::Internal,
        DownloadError::Closed => ErrorCode::Refused,
    }
}

fn torrent_code(error: &TorrentError) -> ErrorCode {
    match error {
        TorrentError::NoMetadata { .. }
        | TorrentError::Stalled { .. }
        | TorrentError::Offline(_) => ErrorCode::NotFoundInTime,
        TorrentError::NoSuchFile { .. }
        | TorrentError::NoSuchTorrent(_)
        | TorrentError::Removed(_) => ErrorCode::NoEntry,
        TorrentError::Magnet(_)
        | TorrentError::Links(_)
        | TorrentError::Metainfo(_)
        | TorrentError::Refused { .. }
        | TorrentError::Tracker(_)
        | TorrentError::Build(_)
        | TorrentError::NotADirectory(_)
        | TorrentError::IsADirectory(_) => ErrorCode::Invalid,
        TorrentError::Disk { .. } | TorrentError::Session(_) => ErrorCode::Internal,
        TorrentError::Paused(_) | TorrentError::Gone { .. } | TorrentError::Closed => {
            ErrorCode::Refused
        }
    }
}

fn publish_code(error: &PublishError) -> ErrorCode {
    match error {
        PublishError::NotFound => ErrorCode::NoEntry,
        PublishError::ReadOnly
        | PublishError::NotPermitted(_)
        | PublishError::Busy
        | PublishError::Exists
        | PublishError::Taken(_)
        | PublishError::Ignored
        | PublishError::Closed => ErrorCode::Refused,
        PublishError::Store(_) => ErrorCode::Internal,
        PublishError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            ErrorCode::NoEntry
        }
        PublishError::Io { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => {
            ErrorCode::Invalid
        }
        PublishError::Io { .. } => ErrorCode::Internal,
        _ => ErrorCode::Invalid,
    }
}

macro_rules! through_node_error {
    ($($part:ty),*) => {$(
        impl From<$part> for Failure {
            fn from(error: $part) -> Self {
                NodeError::from(error).into()
            }
        }
    )*};
}

through_node_error!(StoreError, NetError, DownloadError, PublishError, TorrentError);

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        let code = match &error {
            ReferenceError::Id(_)
            | ReferenceError::Empty
            | ReferenceError::Page(_)
            | ReferenceError::NotContent(_) => ErrorCode::Invalid,
            ReferenceError::Unsupported(_) => ErrorCode::Unsupported,
        };
        Self { code, message: error.to_string() }
    }
}
