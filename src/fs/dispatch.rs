//! How answers become replies: at once, from a task, or from a thread that may wait for the disk; and how an open
//! gets its mode.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use fuser::{BackingId, FileHandle, FopenFlags, ReplyCreate, ReplyOpen, Request};
use nix::errno::Errno;

use super::{
    answer::{Answer, Outcome},
    attr::{Attr, SECOND},
    backing::Backings,
    interrupt::Interrupts,
    iomode::Mode,
    open::Opened,
    reply::{GENERATION, errno, file_attr},
    semantics::Fs,
};
use crate::tasks::Tasks;

/// What replies from tasks need as well.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) fs: Arc<Fs>,
    pub(super) backings: Arc<Backings<BackingId>>,
    pub(super) interrupts: Interrupts,
    pub(super) tasks: Tasks,
}

impl Shared {
    /// Replies with an answer when it is there.
    pub(super) fn settle<T: Send + 'static>(
        &self,
        name: &'static str,
        request: &Request,
        answer: Answer<T>,
        reply: impl FnOnce(Outcome<T>) + Send + 'static,
    ) {
        match answer {
            Answer::Now(outcome) => reply(outcome),
            Answer::Later(work) => {
                let (interrupts, tid) = (self.interrupts.clone(), request.pid());
                let cancelled = self.tasks.cancelled();
                self.tasks.spawn(name, async move {
                    let outcome = tokio::select! {
                        outcome = interrupts.wait(tid, work) => outcome.unwrap_or(Err(Errno::EINTR)),
                        () = cancelled => Err(Errno::EIO),
                    };
                    reply(outcome);
                });
            }
            Answer::Blocking(work) => {
                self.tasks.blocking(name, move || reply(work()));
            }
        }
    }

    /// Chooses the mode of an opened file and keeps it under a handle; what is refused is closed again.
    fn grant(
        &self,
        ino: u64,
        opened: Opened,
        register: impl FnOnce(&std::fs::File) -> std::io::Result<BackingId>,
    ) -> Outcome<Granted> {
        let Some(opener) = opened.opener() else {
            // What was rendered at open is read from there, whatever size the attributes say.
            let flags = FopenFlags::FOPEN_DIRECT_IO;
            let fh = FileHandle(self.fs.keep_open(ino, opened, Mode::Cached));
            return Ok(Granted { fh, flags, backing: None });
        };
        let candidate = self.fs.candidate(&opened);
        let acquired = self.backings.acquire(ino, opener, candidate.as_ref(), register);
        let finished = acquired.and_then(|(mode, backing)| match self.fs.finish_open(&opened) {
            Ok(()) => Ok((mode, backing)),
            Err(e) => {
                self.backings.release(ino, mode);
                Err(e)
            }
        });
        let (mode, backing) = match finished {
            Ok(finished) => finished,
            Err(e) => {
                self.fs.abandon(opened);
                return Err(e);
            }
        };
        let flags = match (mode, &opened) {
            // The bytes of content are the same for ever.
            (Mode::Cached, Opened::Content(_)) => FopenFlags::FOPEN_KEEP_CACHE,
            (Mode::Cached | Mode::Passthrough, _) => FopenFlags::empty(),
            (Mode::PassthroughDirect, _) => FopenFlags::FOPEN_DIRECT_IO,
        };
        let fh = FileHandle(self.fs.keep_open(ino, opened, mode));
        Ok(Granted { fh, flags, backing })
    }
}

/// How an open is answered.
struct Granted {
    fh: FileHandle,
    flags: FopenFlags,
    backing: Option<Arc<BackingId>>,
}

/// A handler that panics loses its own request, which the dropped reply answers with EIO, and nothing else.
pub(super) fn guarded(name: &'static str, handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!(operation = name, "a handler panicked; the request got EIO");
    }
}

pub(super) fn send_opened(
    shared: Shared,
    ino: u64,
    reply: ReplyOpen,
) -> impl FnOnce(Outcome<Opened>) + Send {
    move |outcome| {
        let register = |file: &std::fs::File| reply.open_backing(file);
        match outcome.and_then(|opened| shared.grant(ino, opened, register)) {
            Ok(Granted { fh, flags, backing: Some(backing) }) => {
                reply.opened_passthrough(fh, flags, &backing);
            }
            Ok(Granted { fh, flags, backing: None }) => reply.opened(fh, flags),
            Err(e) => reply.error(errno(e)),
        }
    }
}

pub(super) fn send_created(
    shared: Shared,
    reply: ReplyCreate,
) -> impl FnOnce(Outcome<(Attr, Opened)>) + Send {
    move |outcome| {
        let register = |file: &std::fs::File| reply.open_backing(file);
        let granted = outcome.and_then(|(attr, opened)| {
            let granted = shared.grant(attr.ino, opened, register)?;
            Ok((file_attr(&attr), granted))
        });
        // One time is for name and attributes, and those of a file that is being written change.
        let ttl = SECOND;
        match granted {
            Ok((attr, Granted { fh, flags, backing: Some(backing) })) => {
                reply.created_passthrough(&ttl, &attr, GENERATION, fh, flags, &backing);
            }
            Ok((attr, Granted { fh, flags, backing: None })) => {
                reply.created(&ttl, &attr, GENERATION, fh, flags);
            }
            Err(e) => reply.error(errno(e)),
        }
    }
}
