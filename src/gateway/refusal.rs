//! Answers that are no success.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{
    content::ContentId,
    node::{CarFailure, DownloadError, NodeError},
};

/// Seconds after which a client may ask again: a search for providers takes half a minute.
const RETRY_AFTER: u32 = 30;

/// Seconds after which a place may have come free.
const BUSY_FOR: u32 = 1;

/// Why a request is not answered with what it asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    NotFound(String),
    /// A block that is not here, where nothing is fetched.
    #[error("{0} is not here")]
    NotHere(ContentId),
    #[error("the method is not one of GET, HEAD and OPTIONS")]
    Method,
    #[error("{0}")]
    NotAcceptable(String),
    #[error("{0} is not here, and the request allows nothing else")]
    NotCached(ContentId),
    #[error("too many requests at once")]
    Busy,
    #[error("{0}")]
    Internal(String),
    #[error("{0}")]
    NotImplemented(String),
    #[error("{0}")]
    TooLate(String),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Wrong(_) => StatusCode::BAD_REQUEST,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) | Self::NotHere(_) => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            Self::NotCached(_) => StatusCode::PRECONDITION_FAILED,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::TooLate(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Busy => Some(BUSY_FOR),
            Self::TooLate(_) => Some(RETRY_AFTER),
            _ => None,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let text = match self {
            // Without any payload, says the specification.
            Self::NotCached(_) => String::new(),
            ref other => format!("{other}\n"),
        };
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, plain);
        // Names out of a request are in the text.
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<NodeError> for Refusal {
    fn from(error: NodeError) -> Self {
        let text = error.to_string();
        match error {
            NodeError::Download(error) => error.into(),
            NodeError::NoEntry { .. }
            | NodeError::NoName { .. }
            | NodeError::NotADirectory(_)
            | NodeError::IsADirectory(_)
            | NodeError::IsASymlink(_) => Self::NotFound(text),
            NodeError::Store(_)
            | NodeError::Net(_)
            | NodeError::Publish(_)
            | NodeError::Nested(_)
            // It opens nothing but CIDs.
            | NodeError::Torrent(_)
            | NodeError::Seed(_)
            | NodeError::NoProtocol(_) => Self::Internal(text),
        }
    }
}

impl From<DownloadError> for Refusal {
    fn from(error: DownloadError) -> Self {
        let text = error.to_string();
        match error {
            DownloadError::NotFound(_) | DownloadError::Stalled { .. } => Self::TooLate(text),
            // Malformed, or of a kind that is no file tree: no other request helps.
            DownloadError::Dag(_) => Self::Wrong(text),
            DownloadError::Store(_) | DownloadError::Closed => Self::Internal(text),
        }
    }
}

impl From<CarFailure> for Refusal {
    fn from(error: CarFailure) -> Self {
        let text = error.to_string();
        match error {
            CarFailure::Missing(id) => Self::NotHere(id),
            CarFailure::Node(error) => error.into(),
            CarFailure::Opaque(_) => Self::Wrong(text),
            _ => Self::Internal(text),
        }
    }
}
