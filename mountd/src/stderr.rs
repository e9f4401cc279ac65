//! Stderr of a daemon: a full disk, a closed terminal or a pipe that is not read cost lines, and nothing else. `eprintln!`
//! panics at the first two, and waits for ever at the last, with the lock that every other thread then waits for.

use std::{
    fmt::Display,
    io::{self, Write},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::printable::printable;

/// The kernel says that a pipe can be written to when a page of it is free: so much does not wait.
const PIECE: usize = 4096;
/// Wait for a reader that is only slow, in milliseconds. One that let it pass is not waited for again until it reads.
const PATIENCE: u16 = 100;

/// State of the lines written so far.
struct State {
    lost: u64,
}

static STATE: Mutex<State> = Mutex::new(State { lost: 0 });

/// Writes a line of this program to stderr, foreign text in it escaped.
pub(crate) fn line(text: impl Display) {
    write(format!("{}\n", printable(&text.to_string())).as_bytes());
}

/// Writes what may have several lines, each of them escaped.
pub(crate) fn lines(text: &str) {
    let shown: String = text.lines().map(|line| format!("{}\n", printable(line))).collect();
    write(shown.as_bytes());
}

/// Writes as stderr takes it. Text that it does not take is lost, and counted.
pub(crate) fn write(text: &[u8]) {
    // Also a panic in here must not cost the lines after it.
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let patience = if state.lost == 0 { PATIENCE } else { 0 };
    if state.lost > 0 {
        let told = format!("chiral: {} messages are lost: stderr took no more\n", state.lost);
        if !takes(told.as_bytes(), patience) {
            state.lost += 1;
            return;
        }
        state.lost = 0;
    }
    if !takes(text, patience) {
        state.lost += 1;
    }
}

fn takes(text: &[u8], patience: u16) -> bool {
    let mut stderr = io::stderr().lock();
    text.chunks(PIECE).all(|piece| is_ready(&stderr, patience) && stderr.write_all(piece).is_ok())
}

/// Returns whether a write would not wait. Files on a disk always say so.
fn is_ready(stderr: &impl AsFd, patience: u16) -> bool {
    let mut asked = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    loop {
        match poll(&mut asked, PollTimeout::from(patience)) {
            Err(Errno::EINTR) => {}
            Ok(0) => return false,
            // With an error pending the write returns it.
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

/// Stderr for what wants a writer. It never fails.
#[derive(Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        write(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
