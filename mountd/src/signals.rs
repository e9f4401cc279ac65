//! The signals that end a command or the daemon.

use std::{fs, io};

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP: an interrupt from the keyboard, a service manager, a terminal that goes away. Those
/// that whoever started the program made it ignore (nohup, a shell's background) stay ignored.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    /// From now on none of them ends the process by itself.
    pub(crate) fn new() -> io::Result<Self> {
        let ignored = ignored();
        let listen = |kind: SignalKind| -> io::Result<Option<Signal>> {
            let is_ignored = ignored & 1 << (kind.as_raw_value() - 1) != 0;
            if is_ignored { Ok(None) } else { signal(kind).map(Some) }
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The number of the next one.
    pub(crate) async fn next(&mut self) -> i32 {
        async fn next(signal: &mut Option<Signal>) {
            match signal {
                Some(signal) => _ = signal.recv().await,
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = next(&mut self.interrupt) => libc::SIGINT,
            () = next(&mut self.terminate) => libc::SIGTERM,
            () = next(&mut self.hangup) => libc::SIGHUP,
        }
    }
}

/// Signals that this process ignores, a bit for each from number 1 on.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
