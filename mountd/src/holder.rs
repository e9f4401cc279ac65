//! The process that holds a data folder, and its mountpoint.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

use chiral::{
    control::{Client, Status},
    tasks::Tasks,
};
use tokio::time::timeout;

use crate::printable::printable_name;

/// The locks of all processes, as the kernel lists them.
const LOCKS: &str = "/proc/locks";

/// Longest wait for the answer of a daemon that may hang.
const ANSWER: Duration = Duration::from_secs(2);

/// Describes the holder of `data_dir` as the rest of a message; empty where it is unknown.
pub(crate) async fn of(data_dir: &Path, tasks: &Tasks) -> String {
    let process = process(&data_dir.join("lock"));
    let status =
        timeout(ANSWER, Client::new(data_dir, tasks.clone()).get::<Status>("/v1/status")).await;
    let mountpoint = status.ok().and_then(Result::ok).and_then(|status| status.mountpoint);
    told(process, mountpoint.as_deref())
}

fn told(process: Option<u32>, mountpoint: Option<&Path>) -> String {
    let mountpoint = mountpoint.map(|path| printable_name(path.as_os_str()));
    match (process, mountpoint) {
        (Some(process), Some(at)) => {
            format!(
                ": process {process}, mounted on {at}; end it with `chiral umount {at}`, or name another folder with --data-dir"
            )
        }
        (None, Some(at)) => {
            format!(
                ": it is mounted on {at}; end it with `chiral umount {at}`, or name another folder with --data-dir"
            )
        }
        (Some(process), None) => {
            format!(": process {process}; wait for its end, or name another folder with --data-dir")
        }
        (None, None) => String::new(),
    }
}

/// The process that holds a lock on a file.
fn process(lock: &Path) -> Option<u32> {
    let found = fs::metadata(lock).ok()?;
    let holders = holders(&fs::read_to_string(LOCKS).ok()?, found.ino());
    // The number of an inode is one of its filesystem only, whose device the table does not name as stat(2) does.
    let has_it_open = |process: &u32| {
        let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let mut open = open.filter_map(|fd| fs::metadata(fd.path()).ok());
        open.any(|file| (file.dev(), file.ino()) == (found.dev(), found.ino()))
    };
    holders.into_iter().find(has_it_open)
}

/// Processes with a lock by flock(2) on an inode of this number, of whatever filesystem.
fn holders(table: &str, inode: u64) -> Vec<u32> {
    let holder = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Those that wait for a lock have an arrow in place of its kind.
        let [_, "FLOCK", _, _, process, file, ..] = words[..] else { return None };
        let of_this = file.rsplit(':').next()?.parse() == Ok(inode);
        of_this.then(|| process.parse().ok()).flatten()
    };
    table.lines().filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn holders_are_read_from_the_table_of_locks() {
        let table = "1: POSIX  ADVISORY  READ  5433 08:01:7864448 128 128\n\
                     2: FLOCK  ADVISORY  WRITE 2001 08:01:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 2002 08:01:42 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 2003 00:2a:42 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE -1 00:2a:42 0 EOF\n\
                     5: OFDLCK\n\n";
        assert_eq!(holders(table, 42), [2001, 2003]);
        assert!(holders(table, 7864448).is_empty() && holders("", 42).is_empty());
    }

    #[test]
    fn a_lock_of_this_process_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = fs::File::create(&path).unwrap();
        assert_eq!(process(&path), None);
        file.lock().unwrap();
        assert_eq!(process(&path), Some(std::process::id()));
    }

    #[test]
    fn only_what_is_known_of_the_holder_is_told() {
        let at = Path::new("/mnt");
        assert!(told(Some(7), Some(at)).starts_with(": process 7, mounted on /mnt; "));
        assert!(told(None, Some(at)).contains("`chiral umount /mnt`"));
        assert!(!told(Some(7), None).contains("umount"));
        assert_eq!(told(None, None), "");
    }
}
