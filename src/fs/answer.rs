//! How an operation is answered: at once, or without holding up the thread that serves the kernel.

use std::{future::Future, pin::Pin};

use nix::errno::Errno;

/// The outcome of an operation.
pub(super) type Outcome<T> = Result<T, Errno>;

/// An outcome, or the work that leads to it.
pub(super) enum Answer<T> {
    /// Known from memory, or from a file of the store.
    Now(Outcome<T>),
    /// Waits for the network, or for something that another request does.
    Later(Pin<Box<dyn Future<Output = Outcome<T>> + Send>>),
    /// May wait for the disk.
    Blocking(Box<dyn FnOnce() -> Outcome<T> + Send>),
}

impl<T> Answer<T> {
    pub(super) fn ok(value: T) -> Self {
        Self::Now(Ok(value))
    }

    pub(super) fn error(errno: Errno) -> Self {
        Self::Now(Err(errno))
    }

    pub(super) fn later(work: impl Future<Output = Outcome<T>> + Send + 'static) -> Self {
        Self::Later(Box::pin(work))
    }

    pub(super) fn blocking(work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Self {
        Self::Blocking(Box::new(work))
    }
}
