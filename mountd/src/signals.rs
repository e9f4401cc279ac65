//! The signals that end a command or the daemon.

use std::{
    fs, io,
    task::{Context, Poll},
};

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that end the process in good order: an interrupt from the keyboard, a service manager, a terminal that goes
/// away, a power failure, and the limits of time that alarm(2) and RLIMIT_CPU set, which outlast the start of a program.
/// [`chiral::sys`] has the table of the others.
const ENDING: [libc::c_int; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGALRM,
    libc::SIGXCPU,
    libc::SIGPWR,
];

/// The signals that end the process. Those that the starter made it ignore (nohup, a shell's background) stay ignored.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(libc::c_int, Signal)>);

impl Signals {
    /// From now on none of them ends the process by itself.
    pub(crate) fn new() -> io::Result<Self> {
        let ignored = ignored();
        let heard = ENDING.into_iter().filter(|signal| ignored & 1 << (signal - 1) == 0);
        let listen = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        Ok(Self(heard.map(listen).collect::<io::Result<_>>()?))
    }

    /// The number of the next one.
    pub(crate) async fn next(&mut self) -> i32 {
        let next = |context: &mut Context<'_>| {
            let ready = self.0.iter_mut().find_map(|(number, signal)| {
                signal.poll_recv(context).is_ready().then_some(*number)
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        };
        std::future::poll_fn(next).await
    }
}

/// Signals that this process ignores, a bit for each from number 1 on.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
