//! What goes wrong, and what the user gets.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use crate::harness::{Daemon, Setup, eventually, is_mounted, noise, run, sh};

/// A well-formed id that nobody has.
const NOWHERE: &str = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";

#[test]
fn names_that_are_no_ids_are_absent_at_once() {
    let daemon = Daemon::start(&Setup::default());
    let start = Instant::now();
    for name in [".Trash", ".Trash-0", ".hidden", "autorun.inf", ".git", "bafynotacid"] {
        let error = fs::metadata(daemon.path(name)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{name}");
    }
    // Thirty seconds is what a network lookup of each would take.
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// How long somebody waits for what nobody has.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn an_id_that_nobody_has_ends_in_a_timeout_and_harms_nobody_else() {
    let config = format!("[download]\nlookup_timeout = \"{}s\"\n", LOOKUP_TIMEOUT.as_secs());
    let daemon = Daemon::start(&Setup { config, ..Setup::default() });
    fs::write(daemon.path("upload/here"), noise(100_000, 5)).unwrap();
    let here = daemon.cid("upload/here");
    let since = Instant::now();
    let dead: Vec<_> =
        (0..20).map(|_| Command::new("cat").arg(daemon.path(NOWHERE)).spawn().unwrap()).collect();
    fs::File::create(daemon.path("x")).unwrap_err();
    fs::create_dir(daemon.path("upload/dir")).unwrap();
    assert_eq!(fs::read(daemon.path(&here)).unwrap().len(), 100_000);
    assert!(fs::read_dir(daemon.path("")).unwrap().count() > 2);
    assert!(since.elapsed() < LOOKUP_TIMEOUT, "somebody waited for those that wait");
    for mut reader in dead {
        assert!(!eventually("the timeout", || reader.try_wait().unwrap()).success());
    }
    // Not before the limit, which all of them shared, and not long after it.
    let took = since.elapsed();
    assert!(took >= LOOKUP_TIMEOUT && took < LOOKUP_TIMEOUT * 3, "{took:?}");
    let since = Instant::now();
    let error = fs::metadata(daemon.path(NOWHERE)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ETIMEDOUT));
    assert!(since.elapsed() < LOOKUP_TIMEOUT * 2, "{:?}", since.elapsed());
}

/// Whether a process waits for an answer of a FUSE daemon.
fn waits_for_fuse(pid: nix::unistd::Pid) -> bool {
    let wait = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    wait.contains("request_wait_answer") || wait.contains("fuse")
}

#[test]
fn a_reader_that_waits_can_be_killed() {
    // Far longer than the test waits: nothing but the signal ends these calls.
    let config = "[download]\nlookup_timeout = \"300s\"\n".to_owned();
    let daemon = Daemon::start(&Setup { config, ..Setup::default() });
    let path = daemon.path(NOWHERE).display().to_string();
    let calls: [(&str, &[&str]); 6] = [
        ("cat", &[&path]),
        ("stat", &[&path]),
        ("ls", &["-la", &path]),
        // Opens it itself, and does nothing else with it.
        ("bash", &["-c", &format!("exec 3< '{path}'")]),
        ("readlink", &["-e", &format!("{path}/below")]),
        ("getfattr", &["-n", "user.chiral.size", &path]),
    ];
    for (program, args) in calls {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let mut reader = Command::new(program)
                .args(args)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let pid = nix::unistd::Pid::from_raw(reader.id().cast_signed());
            eventually("the wait", || waits_for_fuse(pid).then_some(()));
            let since = Instant::now();
            kill(pid, signal).unwrap();
            let status = eventually("the end", || reader.try_wait().unwrap());
            let took = since.elapsed();
            assert!(!status.success(), "{program} {signal}");
            assert!(took < Duration::from_secs(1), "{program} {signal}: {took:?}");
        }
    }
}

#[test]
fn the_next_start_takes_a_dead_mount_away() {
    let daemon = Daemon::start(&Setup::default());
    fs::write(daemon.path("upload/file"), "text").unwrap();
    let cid = daemon.cid("upload/file");
    let daemon = Daemon::start_in(daemon.kill(), &Setup::default());
    assert_eq!(fs::read_to_string(daemon.path(&cid)).unwrap(), "text");
    let scratch = daemon.stop();
    assert!(!is_mounted(&scratch.path().join("mnt")));
}

#[test]
fn umount_ends_the_daemon_also_with_files_open() {
    let mut daemon = Daemon::start(&Setup::default());
    fs::write(daemon.path("upload/file"), "text").unwrap();
    let open = fs::File::open(daemon.path("upload/file")).unwrap();
    let output = run(Command::new(env!("CARGO_BIN_EXE_chiral"))
        .arg("umount")
        .arg(daemon.path("").to_str().unwrap().trim_end_matches('/')));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    drop(open);
}

#[test]
fn content_cannot_be_written() {
    let daemon = Daemon::start(&Setup::default());
    fs::write(daemon.path("upload/file"), "text").unwrap();
    let cid = daemon.cid("upload/file");
    let error = fs::File::options().write(true).open(daemon.path(&cid)).unwrap_err();
    // Who is not root already fails at the mode, which says that nobody may write.
    let expected =
        if nix::unistd::geteuid().is_root() { nix::libc::EROFS } else { nix::libc::EACCES };
    assert_eq!(error.raw_os_error(), Some(expected));
    assert_eq!(sh(&format!("cat mnt/{cid}"), daemon.scratch()), "text");
}
