//! What a daemon takes of the machine's memory.

use std::fs;

use crate::harness::{Daemon, Setup};

#[test]
fn an_idle_daemon_with_a_peer_takes_little_memory() {
    let publisher = Daemon::start(&Setup::default());
    let reader = Daemon::start_beside(&publisher, &Setup::default());
    let status = fs::read_to_string(format!("/proc/{}/status", reader.pid())).unwrap();
    // What is mapped of the binary depends on how it was built, and is shared; this is its own.
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 20_000, "{kib} KiB");
}
