//! `kill -9` at any moment: what was acknowledged is there after the next start.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Daemon, Setup, noise, xattr};

/// Rounds of a normal run; `CHIRAL_KILL_ROUNDS` sets more.
const ROUNDS: u64 = 6;

/// So many rounds back each acknowledged id is looked up and its bytes are read again after a kill, so that a round
/// costs the same at the end as at the beginning. What is older has been read as often.
const READ_AGAIN: u64 = 3;
/// After each so many rounds, and at the end, all of them are.
const READ_ALL: u64 = 50;

/// Bytes of the log at first: large enough that an append is published as a layer.
const LOG: usize = 9 << 20;
/// Each so many rounds the daemon lives long enough to merge what was appended to the log.
const LONG_ROUND: u64 = 6;
/// A layer rests for five seconds before it is merged.
const LAYER_REST: Duration = Duration::from_millis(4900);

/// What a program was told: this id is published, and these are its bytes (as length and seed of the noise).
#[derive(Clone, Copy)]
struct Acknowledged {
    round: u64,
    len: usize,
    seed: u64,
}

/// A file that is only appended to.
struct Log {
    /// All that was written, whether it arrived or not.
    written: Vec<u8>,
    /// So much of it was acknowledged.
    acknowledged: usize,
}

impl Log {
    /// Appends and asks for the id; false when the daemon is gone.
    fn append(&mut self, mnt: &Path, seed: u64) -> bool {
        let path = mnt.join("upload/log");
        let Ok(mut file) = fs::OpenOptions::new().append(true).open(&path) else { return false };
        let line = noise(1000, seed);
        self.written.extend(&line);
        if file.write_all(&line).is_err() {
            return false;
        }
        drop(file);
        let published = xattr(&path, "user.chiral.cid").is_some();
        if published {
            self.acknowledged = self.written.len();
        }
        published
    }

    /// What was acknowledged is there, and perhaps some of what was written after it.
    fn check(&mut self, daemon: &Daemon) {
        let read = fs::read(daemon.path("upload/log")).unwrap();
        assert!(read.len() >= self.acknowledged, "the log ends early");
        assert!(self.written.starts_with(&read), "the log reads wrong");
        self.written = read;
    }
}

/// Copies files in, asks for their ids, renames some and reads some from the peer until the daemon dies under it.
fn workload(
    mnt: &Path,
    round: u64,
    remote: &str,
    acknowledged: &Mutex<BTreeMap<String, Acknowledged>>,
    log: &Mutex<Log>,
    dead: &AtomicBool,
) {
    for n in 0.. {
        if dead.load(Ordering::Acquire) {
            return;
        }
        let seed = round * 10_000 + n;
        let len = usize::try_from(noise_number(seed) % 900_000).unwrap();
        let path = mnt.join(format!("upload/{round}-{n}"));
        if fs::write(&path, noise(len, seed)).is_err() {
            return;
        }
        let Some(cid) = xattr(&path, "user.chiral.cid") else { return };
        acknowledged.lock().unwrap().insert(cid, Acknowledged { round, len, seed });
        // Then it rests, so that in a long round the daemon dies about when it is merged.
        if n < 4 && !log.lock().unwrap().append(mnt, seed) {
            return;
        }
        if n % 3 == 0 && fs::rename(&path, mnt.join(format!("upload/{round}-{n}-renamed"))).is_err()
        {
            return;
        }
        if n % 4 == 0 && fs::read(mnt.join(remote)).is_err() {
            return;
        }
    }
}

/// Every id that was acknowledged from round `since` on has its file, with the bytes that were copied in.
fn check(daemon: &Daemon, acknowledged: &BTreeMap<String, Acknowledged>, since: u64) {
    let names: BTreeMap<_, _> = fs::read_dir(daemon.path("upload"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| round_of(path).is_some_and(|round| round >= since))
        .filter_map(|path| Some((xattr(&path, "user.chiral.cid")?, path)))
        .collect();
    for (cid, file) in acknowledged.iter().filter(|(_, file)| file.round >= since) {
        let path = names.get(cid).unwrap_or_else(|| panic!("{cid} has no name"));
        let bytes = noise(file.len, file.seed);
        assert!(fs::read(path).unwrap() == bytes, "{path:?}");
        assert!(fs::read(daemon.path(cid)).unwrap() == bytes, "{cid}");
    }
}

/// The round in which a file was made, by its name; none for the log.
fn round_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.split_once('-')?.0.parse().ok()
}

fn noise_number(seed: u64) -> u64 {
    u64::from_le_bytes(noise(8, seed).try_into().unwrap())
}

#[test]
fn nothing_acknowledged_is_lost_when_the_daemon_is_killed() {
    let rounds = std::env::var("CHIRAL_KILL_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    let peer = Daemon::start(&Setup::default());
    let remote_content = noise(30_000_000, 99);
    fs::write(peer.path("upload/remote"), &remote_content).unwrap();
    let remote = peer.cid("upload/remote");

    let setup = Setup {
        args: peer.addresses().into_iter().flat_map(|a| ["--peer".to_owned(), a]).collect(),
        ..Setup::default()
    };
    let mut daemon = Daemon::start(&setup);
    let written = noise(LOG, 98);
    fs::write(daemon.path("upload/log"), &written).unwrap();
    daemon.cid("upload/log");
    let log = Arc::new(Mutex::new(Log { written, acknowledged: LOG }));
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    let mut slowest_start = Duration::ZERO;
    for round in 0..rounds {
        let dead = Arc::new(AtomicBool::new(false));
        let worker = {
            let (mnt, remote, dead) = (daemon.path(""), remote.clone(), dead.clone());
            let (acknowledged, log) = (acknowledged.clone(), log.clone());
            thread::spawn(move || workload(&mnt, round, &remote, &acknowledged, &log, &dead))
        };
        // The moment of death is the input of this test, not a synchronisation.
        let moment = Duration::from_millis(20 + noise_number(round + 7) % 700);
        let long = if round % LONG_ROUND == LONG_ROUND - 1 { LAYER_REST } else { Duration::ZERO };
        thread::sleep(long + moment);
        dead.store(true, Ordering::Release);
        let scratch = daemon.kill();
        worker.join().unwrap();
        let start = Instant::now();
        daemon = Daemon::start_in(scratch, &setup);
        slowest_start = slowest_start.max(start.elapsed());

        let all = round + 1 == rounds || round % READ_ALL == READ_ALL - 1;
        let since = if all { 0 } else { (round + 1).saturating_sub(READ_AGAIN) };
        check(&daemon, &acknowledged.lock().unwrap(), since);
        log.lock().unwrap().check(&daemon);
    }
    let verify = daemon.chiral(&["store", "verify"]);
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    assert!(fs::read(daemon.path(&remote)).unwrap() == remote_content);
    eprintln!(
        "{rounds} kills, {} acknowledged files, slowest start {slowest_start:?}",
        acknowledged.lock().unwrap().len()
    );
    daemon.stop();
}
