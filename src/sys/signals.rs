//! Dispositions of signals.
//!
//! | signals | what they do | why |
//! |---|---|---|
//! | HUP, INT, QUIT, TERM, ALRM, XCPU, PWR | end it in good order, where it listens for them | a terminal, a service manager, a limit of time or a power failure wants it to end |
//! | IO, PIPE, XFSZ | ignored | the call that meets the condition returns an error, or asks nothing of the process (IO: a lease was broken) |
//! | USR1, USR2, VTALRM, PROF, STKFLT, real-time | ignored | none means anything here, and the default action ends the process |
//! | TTOU | ignored | else a line of the log stops a daemon in the background of a terminal with `stty tostop` |
//! | CHLD | default | else no child could be waited for, where the program that started this one ignores it |
//! | ABRT, BUS, FPE, ILL, SEGV, SYS, TRAP | default: a core dump | the process is broken, or a person wants the dump |
//! | KILL, STOP, TSTP, TTIN, CONT, URG, WINCH | default | the kernel allows no other, or the action is the one that is meant |

use libc::c_int;

/// Signals that would end or stop the process for nothing.
const IGNORED: [c_int; 9] = [
    libc::SIGIO,
    libc::SIGPIPE,
    libc::SIGXFSZ,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGSTKFLT,
    libc::SIGTTOU,
];

/// Sets the signals that need no handler, for the whole process, and lets all through that the program which started it
/// had blocked: a daemon that inherits a blocked SIGTERM could not be ended. To be called before the first thread starts,
/// since threads inherit what is blocked.
pub fn settle_signals() {
    for signal in IGNORED.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // It fails only for another first argument.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}
