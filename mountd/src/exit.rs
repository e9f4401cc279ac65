//! What a command ends with.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
};

use chiral::{
    config::ConfigError,
    control::{ClientError, ErrorCode, ReferenceError},
};

use crate::{printable::printable, stderr};

/// A mistake in what the command was told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub String);

/// A signal ended the command.
#[derive(Debug, thiserror::Error)]
#[error("ended by signal {0}")]
pub(crate) struct Signalled(pub i32);

/// The daemon that was started in the background ended; it told why itself.
#[derive(Debug, thiserror::Error)]
#[error("the daemon for {} ended before it had mounted ({status})", mountpoint.display())]
pub(crate) struct Exited {
    mountpoint: PathBuf,
    status: ExitStatus,
}

impl Exited {
    /// From the state that it ended with.
    pub(crate) fn of(status: ExitStatus, mountpoint: &Path) -> Self {
        Self { mountpoint: mountpoint.to_owned(), status }
    }
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND_IN_TIME: u8 = 3;
const NO_DAEMON: u8 = 4;

/// Prints what the command line is answered with by itself: help, the version, or what is wrong with it, which may quote
/// names of files that a pattern of the shell has put there.
pub(crate) fn of_usage(told: &clap::Error) -> ExitCode {
    let text = told.render().to_string();
    if told.use_stderr() && text.lines().any(|line| matches!(printable(line), Cow::Owned(_))) {
        stderr::lines(&text);
    } else {
        // What takes no output takes no error either.
        let _ = told.print();
    }
    ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(USAGE))
}

/// Tells of an error on stderr and gives the exit code for it.
pub(crate) fn report(done: anyhow::Result<()>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    // The reader of our output has enough; that is no failure.
    if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let told = format!("chiral: {}", with_causes(&error));
    match error.is::<ConfigError>() {
        // It shows the line of the user's own file below.
        true => stderr::lines(&told),
        false => stderr::line(told),
    }
    ExitCode::from(code_of(&error))
}

/// The error and its causes, each once: many have the text of their cause in their own already.
pub(crate) fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn code_of(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() || error.is::<ConfigError>() || error.is::<ReferenceError>() {
        return USAGE;
    }
    if let Some(Signalled(signal)) = error.downcast_ref() {
        // As a shell tells of a program that a signal has killed.
        return u8::try_from(128 + signal).unwrap_or(FAILED);
    }
    if let Some(exited) = error.downcast_ref::<Exited>() {
        let code = exited.status.code().and_then(|code| u8::try_from(code).ok());
        // An end in good order is none of the things that were asked for.
        return code.filter(|code| *code != 0).unwrap_or(FAILED);
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NotRunning(_)) => NO_DAEMON,
        Some(ClientError::Failure(failure)) if failure.code == ErrorCode::NotFoundInTime => {
            NOT_FOUND_IN_TIME
        }
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use chiral::{control::Failure, fs::MountError};

    use super::*;

    #[test]
    fn scripts_can_tell_failures_apart() {
        let failure = |code| ClientError::Failure(Failure { code, message: String::new() });
        assert_eq!(code_of(&ClientError::NotRunning("/x".into()).into()), 4);
        assert_eq!(code_of(&failure(ErrorCode::NotFoundInTime).into()), 3);
        assert_eq!(code_of(&failure(ErrorCode::NoEntry).into()), 1);
        assert_eq!(code_of(&anyhow::Error::from(ReferenceError::Empty).context("x")), 2);
        assert_eq!(code_of(&Usage(String::new()).into()), 2);
        assert_eq!(code_of(&anyhow::anyhow!("other")), 1);
        assert_eq!(code_of(&Signalled(2).into()), 130);
    }

    #[test]
    fn each_cause_is_told_once() {
        let gone = || io::Error::from_raw_os_error(nix::libc::ENOENT);
        let telling = ClientError::Socket { dir: "/d".into(), source: gone() };
        let told = telling.to_string();
        assert!(told.ends_with("No such file or directory (os error 2)"), "{told}");
        assert_eq!(with_causes(&telling.into()), told);
        let mountpoint = MountError::Mountpoint { path: "/m".into(), source: gone() };
        let told = with_causes(&mountpoint.into());
        assert_eq!(told.matches("No such file").count(), 1, "{told}");
        let silent = anyhow::Error::from(gone()).context("/x");
        assert_eq!(with_causes(&silent), "/x: No such file or directory (os error 2)");
    }

    #[test]
    fn a_daemon_that_ended_before_it_had_mounted_is_a_failure_also_when_it_ended_well() {
        let ended = |raw| Exited::of(ExitStatus::from_raw(raw), Path::new("/mnt")).into();
        assert_eq!(code_of(&ended(0)), 1);
        assert_eq!(code_of(&ended(2 << 8)), 2);
        assert_eq!(code_of(&ended(nix::libc::SIGKILL)), 1);
    }
}
