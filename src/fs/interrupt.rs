//! Ends requests whose caller was killed.
//!
//! The FUSE library answers the kernel's interrupt message with ENOSYS, after which the kernel sends none for the life
//! of the mount, and a caller in an uninterruptible wait survives SIGKILL. So the daemon looks by itself: while a
//! request waits, it reads the caller's pending signals from /proc and answers EINTR.

use std::{
    fs,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// First look, and the shortest interval between looks: a caller ends within 0.2 s of its signal.
const INTERVAL: Duration = Duration::from_millis(100);
/// With many waiting the interval grows by this for each, so that looking never takes more than a tenth of a core.
const INTERVAL_EACH: Duration = Duration::from_micros(100);

const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// Signals that people and supervisors end programs with. They count even where a handler is set.
const ENDING: u64 = bit(libc::SIGINT)
    | bit(libc::SIGTERM)
    | bit(libc::SIGHUP)
    | bit(libc::SIGQUIT)
    | bit(libc::SIGKILL);
/// Signals that end a program only by default. With a handler they are not meant to end anything: runtimes preempt
/// their own threads with them.
const ENDING_BY_DEFAULT: u64 = bit(libc::SIGUSR1)
    | bit(libc::SIGUSR2)
    | bit(libc::SIGALRM)
    | bit(libc::SIGPIPE)
    | bit(libc::SIGABRT)
    | bit(libc::SIGXCPU)
    | bit(libc::SIGSYS);

/// Whether a thread with this /proc/TID/status has a signal pending that is to end its system call.
fn is_ended(status: &str) -> bool {
    let mask = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0)
    };
    // A blocked signal stays pending for as long as the program likes; it would get EINTR for ever.
    let pending = (mask("SigPnd") | mask("ShdPnd")) & !mask("SigBlk") & !mask("SigIgn");
    pending & (ENDING | ENDING_BY_DEFAULT & !mask("SigCgt")) != 0
}

/// Watches the callers of requests that wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupts {
    waiting: Arc<AtomicUsize>,
}

/// One request that waits.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Interrupts {
    /// Runs `work` to its end, or drops it when the thread `tid` is killed; none then.
    ///
    /// Thread 0 (a caller outside the mounter's pid namespace) and one whose status cannot be read at first (hidepid)
    /// are not watched; work has to have a limit of its own.
    pub(super) async fn wait<T>(&self, tid: u32, work: impl Future<Output = T>) -> Option<T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(self.waiting.clone());
        let path = format!("/proc/{tid}/status");
        tokio::select! {
            biased;
            result = work => Some(result),
            () = killed(|| fs::read_to_string(&path), &waiting.0) => None,
        }
    }
}

/// Resolves when the thread whose status `read` gives has a signal that ends it, or is gone.
async fn killed(mut read: impl FnMut() -> io::Result<String>, waiting: &AtomicUsize) {
    let mut seen = false;
    loop {
        let many = u32::try_from(waiting.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        tokio::time::sleep(INTERVAL.max(INTERVAL_EACH.saturating_mul(many))).await;
        match read() {
            Ok(status) if is_ended(&status) => return,
            Ok(_) => seen = true,
            Err(_) if seen => return,
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, blocked: u64, ignored: u64, caught: u64) -> String {
        format!(
            "Name:\tcat\nThreads:\t1\nSigQ:\t0/95880\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\nCapInh:\t0\n"
        )
    }

    #[test]
    fn signals_to_the_thread_or_the_process_end_it() {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL, libc::SIGHUP, libc::SIGUSR1] {
            assert!(is_ended(&status(bit(signal), 0, 0, 0, 0)));
            assert!(is_ended(&status(0, bit(signal), 0, 0, 0)));
        }
        assert!(!is_ended(&status(0, 0, 0, 0, 0)));
    }

    #[test]
    fn blocked_and_ignored_signals_do_not() {
        assert!(!is_ended(&status(0, bit(libc::SIGTERM), bit(libc::SIGTERM), 0, 0)));
        assert!(!is_ended(&status(0, bit(libc::SIGTERM), 0, bit(libc::SIGTERM), 0)));
        assert!(is_ended(&status(
            0,
            bit(libc::SIGTERM) | bit(libc::SIGINT),
            bit(libc::SIGTERM),
            0,
            0
        )));
    }

    #[test]
    fn what_runtimes_signal_themselves_with_does_not() {
        for signal in [libc::SIGURG, libc::SIGCHLD, libc::SIGWINCH, libc::SIGPROF, libc::SIGTSTP] {
            assert!(!is_ended(&status(bit(signal), 0, 0, 0, 0)), "{signal}");
        }
        assert!(!is_ended(&status(bit(libc::SIGUSR1), 0, 0, 0, bit(libc::SIGUSR1))));
        assert!(is_ended(&status(bit(libc::SIGINT), 0, 0, 0, bit(libc::SIGINT))));
    }

    #[test]
    fn a_status_without_the_lines_ends_nothing() {
        assert!(!is_ended(""));
        assert!(!is_ended("SigPnd:\tzz\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_is_alive_or_unknown_is_left_alone() {
        for tid in [std::process::id(), 0] {
            let work = tokio::time::sleep(Duration::from_secs(20));
            assert_eq!(Interrupts::default().wait(tid, work).await, Some(()));
        }
    }

    /// Watches a thread whose status is what `looks` gives, look by look; how long until it ends.
    async fn watch(looks: Vec<io::Result<String>>) -> Option<Duration> {
        let mut looks = looks.into_iter();
        let start = tokio::time::Instant::now();
        let read = || looks.next().unwrap_or_else(|| Ok(String::new()));
        let waiting = AtomicUsize::new(1);
        let ended = tokio::time::timeout(Duration::from_secs(60), killed(read, &waiting));
        ended.await.ok().map(|()| start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_is_killed_or_vanishes_ends_at_the_next_look() {
        let alive = || Ok(status(0, 0, 0, 0, 0));
        let gone = || Err(io::Error::from(io::ErrorKind::NotFound));
        let looks = vec![alive(), Ok(status(bit(libc::SIGKILL), 0, 0, 0, 0))];
        assert!(watch(looks).await.is_some_and(|after| after <= INTERVAL * 3));
        assert!(watch(vec![alive(), gone()]).await.is_some_and(|after| after <= INTERVAL * 3));
        // One that was never seen may be hidden from this process.
        assert_eq!(watch(vec![gone(), gone()]).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_over_is_not_counted() {
        let interrupts = Interrupts::default();
        interrupts.wait(0, std::future::ready(())).await;
        assert_eq!(interrupts.waiting.load(Ordering::Relaxed), 0);
    }
}
