//! Torrents against a foreign seeder on loopback.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::timeout;

use self::seeder::Seeder;
use super::*;
use crate::{content::sha2_256, tasks::Tasks};

mod descriptions;
mod manage;
mod peers;
mod pins;
mod room;

#[path = "../../tests/support/noise.rs"]
pub(crate) mod bytes_of;
#[path = "../../tests/support/seeder.rs"]
pub(crate) mod seeder;

/// More than a busy machine needs for anything here.
const PATIENCE: Duration = Duration::from_secs(60);
const PIECE: u32 = 64 << 10;
const BIG: usize = 5_000_000;

fn options() -> TorrentOptions {
    TorrentOptions {
        listen: Some(([127, 0, 0, 1], 0).into()),
        dht: false,
        public_trackers: false,
        allow_private_addresses: true,
        lookup_timeout: PATIENCE,
        ..TorrentOptions::default()
    }
}

/// A node's torrents, and what ends them.
struct Peer {
    torrents: Torrents,
    host: Arc<Around>,
    tasks: Tasks,
}

/// What is published around them, and what they told.
#[derive(Debug, Default)]
pub(crate) struct Around {
    published: Mutex<HashMap<ContentId, Vec<u8>>>,
    told: Mutex<Vec<TorrentEvent>>,
    /// What each read waits for the disk.
    slow: Mutex<Duration>,
    /// There is no room for more.
    full: AtomicBool,
}

impl Around {
    fn publish(&self, bytes: &[u8]) -> ContentId {
        let id = ContentId::raw(sha2_256(bytes));
        self.published.lock().unwrap().insert(id, bytes.to_vec());
        id
    }
}

impl Host for Around {
    fn has(&self, id: &ContentId) -> bool {
        self.published.lock().unwrap().contains_key(id)
    }

    fn read(&self, id: &ContentId, at: u64, to: &mut [u8]) -> io::Result<()> {
        let slow = *self.slow.lock().unwrap();
        std::thread::sleep(slow);
        let published = self.published.lock().unwrap();
        let bytes = published.get(id).ok_or(io::ErrorKind::NotFound)?;
        let at = usize::try_from(at).unwrap();
        to.copy_from_slice(&bytes[at..at + to.len()]);
        Ok(())
    }

    fn backing(&self, _id: &ContentId) -> io::Result<Option<Arc<fs::File>>> {
        Ok(None)
    }

    fn allocated(&self, id: &ContentId) -> u64 {
        self.published.lock().unwrap().get(id).map_or(0, |bytes| bytes.len() as u64)
    }

    fn admit(&self, _bytes: u64) -> io::Result<()> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        }
    }

    fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    fn told(&self, event: TorrentEvent) {
        self.told.lock().unwrap().push(event);
    }
}

impl Peer {
    fn open(options: TorrentOptions, dir: &Path) -> Self {
        let tasks = Tasks::new();
        let host = Arc::new(Around::default());
        let torrents =
            Torrents::open(options, &dir.join("torrents"), host.clone(), &tasks).unwrap();
        Self { torrents, host, tasks }
    }

    async fn stop(self) {
        let late = self.tasks.shutdown(PATIENCE).await;
        assert!(late.is_empty(), "{late:?}");
    }

    /// Waits until something was told.
    async fn until(&self, wanted: impl Fn(&TorrentEvent) -> bool) {
        self.poll(|| self.host.told.lock().unwrap().iter().any(&wanted)).await;
    }

    async fn until_waited_for(&self, hash: InfoHash) {
        let metainfo = self.torrents.metainfo_now(hash).unwrap().unwrap();
        self.poll(|| self.torrents.active(&metainfo).unwrap().is_waited_for()).await;
    }

    async fn until_limited(&self, limits: Limits) {
        let running = self.torrents.session().await.unwrap();
        self.poll(|| running.session().ratelimits.get_download_bps() == limits.download).await;
    }

    async fn until_gives(&self, fully: bool) {
        let running = self.torrents.session().await.unwrap();
        self.poll(|| running.session().ratelimits.get_upload_bps().is_none() == fully).await;
    }

    async fn poll(&self, done: impl Fn() -> bool) {
        let polling = async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, polling).await.unwrap();
    }

    async fn file(&self, hash: InfoHash, path: &str) -> TorrentFile {
        let metainfo = timeout(PATIENCE, self.torrents.metainfo(hash)).await.unwrap().unwrap();
        self.torrents.file(hash, number_of(&metainfo, path)).await.unwrap()
    }
}

/// The number of a file by its path.
fn number_of(metainfo: &Metainfo, path: &str) -> u32 {
    let mut at = 0;
    for name in path.split('/') {
        let TreeKind::Directory(names) = &metainfo.node(at).unwrap().what else { panic!("{path}") };
        at = names[std::ffi::OsStr::new(name)];
    }
    let TreeKind::File(number) = metainfo.node(at).unwrap().what else { panic!("{path}") };
    number
}

async fn read(file: &TorrentFile, range: ByteRange) -> Result<Bytes, TorrentError> {
    timeout(PATIENCE, file.read(1, range)).await.unwrap()
}

async fn read_all(file: &TorrentFile) -> Vec<u8> {
    let mut all = Vec::new();
    while (all.len() as u64) < file.size() {
        let piece = read(file, ByteRange::at(all.len() as u64, 128 << 10)).await.unwrap();
        all.extend_from_slice(&piece);
    }
    all
}

struct Setup {
    big: Vec<u8>,
    seeder: Seeder,
    here: TempDir,
    there: TempDir,
}

impl Setup {
    /// The description as a file.
    fn torrent(&self) -> std::path::PathBuf {
        self.there.path().join(seeder::TORRENT)
    }
}

/// A seeder of two big files and a small one.
async fn setup() -> Setup {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (big, other) = (bytes_of::noise(BIG, 0), bytes_of::noise(BIG, 9));
    let files: &[(&str, &[u8])] =
        &[("film.mkv", &big), ("other/film.mkv", &other), ("read me", b"hello\n"), ("empty", b"")];
    let seeder = Seeder::start(there.path(), files, PIECE).await;
    Setup { big, seeder, here, there }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_is_listed_and_what_is_read_is_fetched_and_nothing_else() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(options(), setup.here.path());
    assert!(peer.torrents.metainfo_now(hash).is_none());
    peer.torrents.learn(&setup.seeder.magnet());
    let metainfo = timeout(PATIENCE, peer.torrents.metainfo(hash)).await.unwrap().unwrap();
    assert_eq!(metainfo.files, setup.seeder.metainfo.files);
    // Listing has written the description and nothing else.
    let folder = setup.here.path().join("torrents").join(hash.to_string());
    let names = |dir: &Path| -> Vec<_> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    assert_eq!(names(&folder), ["about.json", "metainfo"]);

    let film = peer.file(hash, "film.mkv").await;
    assert_eq!(film.cached(), Cached::default());
    assert!(film.read_now(1, ByteRange::at(0, 10)).is_none());
    assert!(film.backing().unwrap().is_none());
    assert!(read_all(&film).await == setup.big);
    assert_eq!(film.cached().bytes, BIG as u64);
    assert!(film.cached().complete);
    let mut backing = film.backing().unwrap().unwrap().try_clone().unwrap();
    let mut copied = Vec::new();
    std::io::Read::read_to_end(&mut backing, &mut copied).unwrap();
    assert!(copied == setup.big);

    let other = peer.file(hash, "other/film.mkv").await;
    // At most the piece that it shares with the file beside it.
    assert!(other.cached().bytes <= u64::from(PIECE), "{:?}", other.cached());
    let empty = peer.file(hash, "empty").await;
    assert_eq!(read(&empty, ByteRange::at(0, 10)).await.unwrap(), "");
    assert!(empty.cached().complete);
    film.close_reader(1);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_seen_is_listed_and_what_was_read_is_read_after_a_restart_without_anybody() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(options(), setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    let film = peer.file(hash, "film.mkv").await;
    assert!(read_all(&film).await == setup.big);
    peer.stop().await;

    let offline = TorrentOptions { online: false, ..options() };
    let peer = Peer::open(offline, setup.here.path());
    assert_eq!(peer.torrents.known_torrents(), [hash]);
    let metainfo = peer.torrents.metainfo_now(hash).unwrap().unwrap();
    let number = number_of(&metainfo, "film.mkv");
    let film = peer.torrents.file_now(hash, number).unwrap().unwrap();
    let middle = ByteRange::at(2_000_000, 100_000);
    assert_eq!(film.read_now(1, middle).unwrap().unwrap(), setup.big[2_000_000..2_100_000]);
    assert!(film.backing().unwrap().is_some());
    let other = peer.file(hash, "other/film.mkv").await;
    let missing = read(&other, ByteRange::at(1_000_000, 10)).await;
    assert!(matches!(missing, Err(TorrentError::Offline(_))), "{missing:?}");
    // Nothing of this needed a session.
    assert!(peer.torrents.address().is_none());
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_far_ahead_is_served_while_the_peers_have_nothing_to_do() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(options(), setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    let film = peer.file(hash, "film.mkv").await;
    for at in [4_900_000, 10, 2_500_000, 1_250_000, 3_750_000] {
        let read = read(&film, ByteRange::at(at as u64, 4096)).await.unwrap();
        assert!(read == setup.big[at..at + 4096]);
    }
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_that_leaves_while_pieces_come_does_not_lose_them_for_the_next() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let big = bytes_of::noise(40 << 20, 5);
    let seeder = Seeder::start(there.path(), &[("film.mkv", &big)], 1 << 20).await;
    // Pieces that are lost come after half a minute, when the peer that had them is gone.
    let short = TorrentOptions { lookup_timeout: Duration::from_secs(15), ..options() };
    let peer = Peer::open(short, here.path());
    peer.torrents.learn(&seeder.magnet());
    let film = peer.file(seeder.metainfo.hash, "film.mkv").await;
    for (reader, at) in (10..).zip((0..40).step_by(7)) {
        let range = ByteRange::at(at << 20, 4096);
        timeout(PATIENCE, film.read(reader, range)).await.unwrap().unwrap();
        film.close_reader(reader);
    }
    assert!(read_all(&film).await == big);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn more_files_are_read_at_once_than_there_are_streams() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all: Vec<_> =
        (0..20_u8).map(|n| (format!("{n:02}"), bytes_of::noise(300_000, n.into()))).collect();
    let files: Vec<(&str, &[u8])> = all.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let seeder = Seeder::start(there.path(), &files, PIECE).await;
    let peer = Peer::open(options(), here.path());
    peer.torrents.learn(&seeder.magnet());
    let mut reads = Vec::new();
    for (reader, (name, bytes)) in (0..).zip(all.clone()) {
        let file = peer.file(seeder.metainfo.hash, &name).await;
        reads.push(tokio::spawn(async move {
            // All are open until the last one has ended.
            let read = timeout(PATIENCE, file.read(reader, ByteRange::at(0, 300_000))).await;
            assert!(read.unwrap().unwrap() == bytes);
            file
        }));
    }
    for read in futures::future::join_all(reads).await {
        read.unwrap();
    }
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_fast_peers_no_piece_comes_again_and_again() {
    let [there, also, here] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let big = bytes_of::noise(128 << 20, 9);
    let files: &[(&str, &[u8])] = &[("film.mkv", &big)];
    let one = Seeder::start(there.path(), files, 1 << 20).await;
    let other = Seeder::start(also.path(), files, 1 << 20).await;
    let peer = Peer::open(options(), here.path());
    let mut link = one.magnet();
    link.peers.push(other.address());
    peer.torrents.learn(&link);
    let file = peer.file(link.hash, "film.mkv").await;
    assert!(read_all(&file).await == big);
    let received = peer.torrents.status(link.hash).unwrap().received;
    // A peer that is held up may have its piece fetched by the other one.
    assert!(received < big.len() as u64 * 11 / 10, "{received} bytes for {}", big.len());
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_not_found_in_time_is_found_later() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let short = TorrentOptions { lookup_timeout: Duration::from_millis(200), ..options() };
    let peer = Peer::open(short, setup.here.path());
    let none = peer.torrents.metainfo(hash).await;
    assert!(matches!(none, Err(TorrentError::NoMetadata { .. })), "{none:?}");
    assert!(peer.torrents.known_torrents().is_empty());
    // The search goes on, and is told of the link.
    peer.torrents.learn(&setup.seeder.magnet());
    let found = async {
        loop {
            if let Ok(found) = peer.torrents.metainfo(hash).await {
                return found;
            }
            // Refused at once, for a while.
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(timeout(PATIENCE, found).await.unwrap().hash, hash);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_cannot_make_us_dial_into_our_own_network() {
    let setup = setup().await;
    let careful = TorrentOptions {
        allow_private_addresses: false,
        lookup_timeout: Duration::from_secs(1),
        ..options()
    };
    let peer = Peer::open(careful, setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    let none = peer.torrents.metainfo(setup.seeder.metainfo.hash).await;
    assert!(matches!(none, Err(TorrentError::NoMetadata { .. })), "{none:?}");
    peer.stop().await;

    // What the configuration names is dialled.
    let named = TorrentOptions {
        allow_private_addresses: false,
        peers: vec![setup.seeder.address()],
        ..options()
    };
    let peer = Peer::open(named, setup.here.path());
    peer.file(setup.seeder.metainfo.hash, "read me").await;
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_fails_is_told_as_it_is_and_a_later_read_goes_on() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(options(), setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    let metainfo = timeout(PATIENCE, peer.torrents.metainfo(hash)).await.unwrap().unwrap();
    let number = number_of(&metainfo, "film.mkv");
    let in_the_way = setup.here.path().join(format!("torrents/{hash}/{number}"));
    fs::create_dir(&in_the_way).unwrap();
    let film = peer.file(hash, "film.mkv").await;
    let failed = read(&film, ByteRange::at(0, 10)).await;
    let Err(TorrentError::Disk { source, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::EISDIR));
    fs::remove_dir(&in_the_way).unwrap();
    assert!(read_all(&film).await == setup.big);
    // Where it was hashed nothing goes on but what notes the pieces.
    let running = peer.torrents.session().await.unwrap();
    peer.poll(|| running.hashing() <= 1).await;
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn torrent_without_room_says_so_and_goes_on_with_room() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(options(), setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    let film = peer.file(hash, "film.mkv").await;
    peer.host.full.store(true, Ordering::SeqCst);
    let failed = read(&film, ByteRange::at(0, 10)).await;
    let Err(TorrentError::Disk { source, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
    peer.host.full.store(false, Ordering::SeqCst);
    assert!(read_all(&film).await == setup.big);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_the_machine_went_down_the_files_are_hashed_again() {
    let setup = setup().await;
    let hash = setup.seeder.metainfo.hash;
    let peer = Peer::open(options(), setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    let film = peer.file(hash, "film.mkv").await;
    assert!(read_all(&film).await == setup.big);
    peer.stop().await;

    // The notes say that all is here, but what they speak of did not reach the disk.
    let torrents = setup.here.path().join("torrents");
    fs::write(torrents.join("session/running"), "another start of the machine").unwrap();
    let number = number_of(&setup.seeder.metainfo, "film.mkv");
    let path = torrents.join(format!("{hash}/{number}"));
    let mut damaged = setup.big.clone();
    damaged[1_000_000..1_100_000].fill(0);
    fs::write(&path, &damaged).unwrap();

    let peer = Peer::open(TorrentOptions { online: false, ..options() }, setup.here.path());
    let film = peer.file(hash, "film.mkv").await;
    let good = read(&film, ByteRange::at(3_000_000, 10)).await.unwrap();
    assert!(good == setup.big[3_000_000..3_000_010]);
    let lost = read(&film, ByteRange::at(1_050_000, 10)).await;
    assert!(matches!(lost, Err(TorrentError::Offline(_))), "{lost:?}");
    peer.stop().await;

    // Somebody gives it again.
    let peer = Peer::open(options(), setup.here.path());
    peer.torrents.learn(&setup.seeder.magnet());
    let film = peer.file(hash, "film.mkv").await;
    assert!(read_all(&film).await == setup.big);
    peer.stop().await;
}
