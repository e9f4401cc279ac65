//! Servers of torrents: by themselves, and beside a foreign seeder behind the bridge of a real session.

use std::{
    num::NonZeroU32,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::time::timeout;

use super::*;
use crate::torrent::{
    Feed, FeedError, Feeder, InfoBuilder, Magnet, Metainfo, TorrentFile, TorrentOptions, Torrents,
    tests::{Around, bytes_of, seeder::Seeder},
};

const PATIENCE: Duration = Duration::from_secs(60);
const PIECE: u32 = 64 << 10;
const BIG: usize = 5_000_000;

fn torrent_options() -> TorrentOptions {
    TorrentOptions {
        listen: Some(([127, 0, 0, 1], 0).into()),
        dht: false,
        public_trackers: true,
        allow_private_addresses: true,
        lookup_timeout: PATIENCE,
        ..TorrentOptions::default()
    }
}

fn webseeds(torrent: &TorrentOptions) -> Webseeds {
    Webseeds::new(&HttpOptions::default(), torrent).unwrap()
}

/// A description of files by their paths, and of one file by no path.
fn described(name: &str, files: &[(&str, &[u8])]) -> (Vec<u8>, Arc<Metainfo>) {
    let text = match files {
        [("", bytes)] => {
            let mut builder = InfoBuilder::file(name.into(), bytes.len() as u64, PIECE);
            builder.update(bytes);
            builder.finish(&[])
        }
        _ => {
            let path = |text: &str| text.split('/').map(Into::into).collect::<Vec<_>>();
            let listed = files.iter().map(|(name, bytes)| (path(name), bytes.len() as u64));
            let mut builder = InfoBuilder::directory(name.into(), listed.collect(), PIECE);
            files.iter().for_each(|(_, bytes)| builder.update(bytes));
            builder.finish(&[])
        }
    };
    let text = text.unwrap();
    let metainfo = Metainfo::parse(&text).unwrap();
    (text, Arc::new(metainfo))
}

/// A part of a body as it was asked for.
fn part(request: &Request, all: &[u8]) -> Response {
    let asked = request.headers["range"].strip_prefix("bytes=").unwrap();
    let (start, last) = asked.split_once('-').unwrap();
    let (start, last): (usize, usize) = (start.parse().unwrap(), last.parse().unwrap());
    let body = all[start..=last].to_vec();
    let range = format!("bytes {start}-{last}/{}", all.len());
    let ok = Response::ok("application/octet-stream", body).with("Content-Range", &range);
    Response { status: 206, ..ok }
}

/// The feed of one server.
fn feed(seeds: &Webseeds, url: &str, torrent: &Arc<Metainfo>) -> Arc<dyn Feed> {
    let magnet = Magnet { webseeds: vec![url.to_owned()], ..Magnet::of(torrent.hash) };
    seeds.feeds(torrent, &magnet).remove(0)
}

#[tokio::test]
async fn files_are_asked_for_by_their_escaped_paths_and_pieces_span_them() {
    let (a, b) = (bytes_of::noise(100_000, 1), bytes_of::noise(30_000, 2));
    let files: &[(&str, &[u8])] = &[("a dir/ä#1", &a), ("empty", b""), ("z?%", &b)];
    let (_, torrent) = described("the name", files);
    let (first, last) = (a.clone(), b.clone());
    let server = Server::start(move |request| {
        let all = if request.target.contains("dir") { &first } else { &last };
        part(request, all)
    });
    let seeds = webseeds(&torrent_options());
    for base in [format!("{}/base", server.url()), format!("{}/base/", server.url())] {
        let feed = feed(&seeds, &base, &torrent);
        assert_eq!(feed.has().bytes(), torrent.len);
        let read = feed.read(ByteRange::new(99_000, 102_000)).await.unwrap();
        assert!(read == [&a[99_000..], &b[..2_000]].concat());
    }
    let mut targets: Vec<_> = server.asked().into_iter().map(|request| request.target).collect();
    targets.sort_unstable();
    targets.dedup();
    assert_eq!(targets, ["/base/the%20name/a%20dir/%C3%A4%231", "/base/the%20name/z%3F%25"]);
}

#[tokio::test]
async fn a_single_file_is_at_the_url_itself_or_below_a_directory() {
    let bytes = bytes_of::noise(10_000, 1);
    let (_, torrent) = described("a film", &[("", &bytes)]);
    let given = bytes.clone();
    let server = Server::start(move |request| part(request, &given));
    let seeds = webseeds(&torrent_options());
    for (base, target) in [("/x?id=1", "/x?id=1"), ("/x/", "/x/a%20film")] {
        let feed = feed(&seeds, &format!("{}{base}", server.url()), &torrent);
        let read = feed.read(ByteRange::new(5, 10_000)).await.unwrap();
        assert!(read == bytes[5..]);
        assert_eq!(server.asked().last().unwrap().target, target);
    }
}

#[tokio::test]
async fn what_a_server_answers_says_whether_to_ask_it_again() {
    let bytes = bytes_of::noise(3_000_000, 1);
    let (_, torrent) = described("dir", &[("a", &bytes[..1000]), ("b", &bytes[1000..])]);
    let all = bytes.clone();
    let server = Server::start(move |request| {
        let what = request.target.split('/').nth(1).unwrap();
        let of: &[u8] = if request.target.ends_with('a') { &all[..1000] } else { &all[1000..] };
        let whole = || Response::ok("application/octet-stream", of.to_vec());
        match what {
            "whole" => whole(),
            "gone" if request.target.ends_with('b') => Response::new(404),
            "gone" => part(request, of),
            "busy" => Response::new(503).with("Retry-After", "77"),
            "broken" => Response::new(500),
            "forbidden" => Response::new(403),
            "packed" => part(request, of).with("Content-Encoding", "gzip"),
            "other" => Response { status: 206, ..whole().with("Content-Range", "bytes 9-99/100") },
            "short" => part(request, of).cut(10),
            _ => Response::redirect(&request.target.replacen("moved", "whole", 1)),
        }
    });
    let seeds = webseeds(&torrent_options());
    let of = |what: &str| feed(&seeds, &format!("{}/{what}", server.url()), &torrent);
    let (small, big) = (ByteRange::new(10, 900), ByteRange::new(2000, 4000));
    for what in ["whole", "moved"] {
        // A file that is short is cut out of the whole; of a long one nothing is read.
        assert!(of(what).read(small).await.unwrap() == bytes[10..900]);
        let refused = of(what).read(big).await;
        assert!(matches!(refused, Err(FeedError::Useless(_))), "{refused:?}");
    }
    let gone = of("gone");
    let both = ByteRange::new(900, 1100);
    assert_eq!(gone.read(both).await, Err(FeedError::Lacks(torrent.files[1].range)));
    assert_eq!(gone.has(), [torrent.files[0].range].into_iter().collect());
    assert!(gone.read(small).await.is_ok());
    assert_eq!(of("busy").read(big).await, Err(FeedError::Busy(Duration::from_secs(77))));
    for what in ["broken", "short"] {
        let failed = of(what).read(big).await;
        assert!(matches!(failed, Err(FeedError::Failed(_))), "{what}: {failed:?}");
    }
    for what in ["forbidden", "packed", "other"] {
        let refused = of(what).read(big).await;
        assert!(matches!(refused, Err(FeedError::Useless(_))), "{what}: {refused:?}");
    }
}

#[tokio::test]
async fn a_torrent_cannot_have_servers_of_the_own_network_asked() {
    let (_, torrent) = described("x", &[("", b"x")]);
    let magnet = |url: &str| Magnet { webseeds: vec![url.to_owned()], ..Magnet::of(torrent.hash) };
    let asked = |options: &TorrentOptions| -> Vec<&str> {
        let Some(seeds) = Webseeds::new(&HttpOptions::default(), options) else { return vec![] };
        let urls = [
            "http://1.1.1.1/x",
            "https://example.org/x",
            "http://127.0.0.1:1/x",
            "http://[::1]/x",
            "http://localhost/x",
            "ftp://1.1.1.1/x",
            "nonsense",
        ];
        urls.into_iter().filter(|url| !seeds.feeds(&torrent, &magnet(url)).is_empty()).collect()
    };
    let careful = TorrentOptions { allow_private_addresses: false, ..torrent_options() };
    assert_eq!(asked(&careful), ["http://1.1.1.1/x", "https://example.org/x"]);
    // In a private network nobody else is asked, and no name looked up.
    let private = TorrentOptions { public_trackers: false, ..torrent_options() };
    assert_eq!(asked(&private), ["http://127.0.0.1:1/x", "http://[::1]/x"]);
    let nothing = TorrentOptions { public_trackers: false, ..careful.clone() };
    assert!(asked(&nothing).is_empty());
    // No way around a proxy that is not understood.
    let proxied = TorrentOptions { proxy: Some("nonsense".to_owned()), ..torrent_options() };
    assert!(asked(&proxied).is_empty());
}

#[tokio::test]
async fn no_redirect_leads_into_the_own_network() {
    let (_, torrent) = described("x", &[("", b"x")]);
    let target = Server::start(|request| part(request, b"x"));
    let to = format!("{}/x", target.url());
    let server = Server::start(move |_| Response::redirect(&to));
    // The name leads to the server as if it were one far away, which the redirect is not.
    let at = server.address;
    let lookup: super::super::Lookup = Arc::new(move |_| Box::pin(async move { Ok(vec![at]) }));
    let careful = TorrentOptions { allow_private_addresses: false, ..torrent_options() };
    let http = HttpOptions::default();
    let seeds = Webseeds::with(&http, &careful, lookup.clone()).unwrap();
    let refused = feed(&seeds, "http://far.example/x", &torrent).read(ByteRange::new(0, 1)).await;
    assert!(matches!(refused, Err(FeedError::Useless(_))), "a name that leads near: {refused:?}");
    assert_eq!((server.connections(), target.connections()), (0, 0));
    // In a private network the first address may be near; what it leads to is nobody the user named.
    let private = TorrentOptions { public_trackers: false, ..torrent_options() };
    let seeds = Webseeds::with(&http, &private, lookup).unwrap();
    let url = format!("{}/x", server.url());
    let refused = feed(&seeds, &url, &torrent).read(ByteRange::new(0, 1)).await;
    assert!(matches!(refused, Err(FeedError::Useless(_))), "{refused:?}");
    assert_eq!((server.connections(), target.connections()), (1, 0));
}

/// A node's torrents with servers.
struct Peer {
    torrents: Torrents,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Peer {
    fn open() -> Self {
        let (tasks, dir) = (Tasks::new(), tempfile::tempdir().unwrap());
        let options = torrent_options();
        let seeds = webseeds(&options);
        let torrents =
            Torrents::open(options, &dir.path().join("torrents"), Arc::<Around>::default(), &tasks)
                .unwrap();
        torrents.feed_from(vec![Arc::new(seeds)]);
        Self { torrents, tasks, _dir: dir }
    }

    async fn file(&self, link: &Magnet) -> TorrentFile {
        self.torrents.learn(link);
        timeout(PATIENCE, self.torrents.metainfo(link.hash)).await.unwrap().unwrap();
        self.torrents.file(link.hash, 0).await.unwrap()
    }

    async fn stop(self) {
        let late = self.tasks.shutdown(PATIENCE).await;
        assert!(late.is_empty(), "{late:?}");
    }
}

async fn read_all(file: &TorrentFile) -> Vec<u8> {
    let mut all = Vec::new();
    while (all.len() as u64) < file.size() {
        let range = ByteRange::at(all.len() as u64, 128 << 10);
        all.extend_from_slice(&timeout(PATIENCE, file.read(1, range)).await.unwrap().unwrap());
    }
    all
}

/// Bytes per second.
fn limit(seeder: &Seeder, most: Option<u32>) {
    seeder.session.ratelimits.set_upload_bps(most.and_then(NonZeroU32::new));
}

/// Holds those who come until it is opened.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

async fn until_here(file: &TorrentFile, bytes: u64) {
    timeout(PATIENCE, async {
        while file.cached().bytes < bytes {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_torrent_without_peers_is_read_from_a_server_and_no_byte_twice() {
    let (a, b) = (bytes_of::noise(BIG, 1), bytes_of::noise(300_000, 2));
    let (text, torrent) = described("dir", &[("film.mkv", &a), ("other", &b)]);
    let (film, other) = (a.clone(), b.clone());
    let server = Server::start(move |request| {
        part(request, if request.target.ends_with("other") { &other } else { &film })
    });
    let url = server.url();
    // As a `.torrent` file names it.
    let list = format!("8:url-list{}:{url}e", url.len());
    let text = [&text[..text.len() - 1], list.as_bytes()].concat();
    let peer = Peer::open();
    assert_eq!(peer.torrents.keep(&text).unwrap().webseeds, [url]);
    let file = peer.torrents.file(torrent.hash, 0).await.unwrap();
    assert_eq!(server.asked().len(), 0, "nobody is asked before somebody reads");
    assert!(read_all(&file).await == a);
    // At most the piece that the film shares with the file beside it.
    let most = (BIG.next_multiple_of(PIECE as usize)) as u64;
    assert!(server.sent() <= most, "{} of {most}", server.sent());
    file.close_reader(1);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_swarm_that_dies_in_the_middle_leaves_the_rest_to_a_server() {
    let (there, film) = (tempfile::tempdir().unwrap(), bytes_of::noise(BIG, 3));
    let seeder = Seeder::start(there.path(), &[("film.mkv", &film)], PIECE).await;
    limit(&seeder, Some(1 << 20));
    let gate = Arc::new(Gate::default());
    let (all, held) = (film.clone(), gate.clone());
    let server = Server::start(move |request| {
        held.pass();
        part(request, &all)
    });
    let link = Magnet { webseeds: vec![server.url()], ..seeder.magnet() };
    let peer = Peer::open();
    let file = peer.file(&link).await;
    let reading = tokio::spawn({
        let file = file.clone();
        async move { read_all(&file).await }
    });
    until_here(&file, 500_000).await;
    seeder.session.stop().await;
    gate.open();
    assert!(reading.await.unwrap() == film);
    let fetched = server.sent();
    assert!(fetched > 0 && fetched < BIG as u64, "{fetched} bytes came from the server");
    file.close_reader(1);
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_dies_or_lies_in_the_middle_leaves_the_rest_to_the_swarm() {
    for lies in [false, true] {
        let (there, film) = (tempfile::tempdir().unwrap(), bytes_of::noise(BIG, 4));
        let seeder = Seeder::start(there.path(), &[("film.mkv", &film)], PIECE).await;
        limit(&seeder, Some(1 << 20));
        let (all, left) = (film.clone(), Arc::new(AtomicUsize::new(2)));
        let server = Server::start(move |request| {
            let good = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            match good {
                Ok(_) => part(request, &all),
                Err(_) if lies => part(request, &vec![0; BIG]),
                Err(_) => part(request, &all).cut(1000),
            }
        });
        let link = Magnet { webseeds: vec![server.url()], ..seeder.magnet() };
        let peer = Peer::open();
        let file = peer.file(&link).await;
        let reading = tokio::spawn({
            let file = file.clone();
            async move { read_all(&file).await }
        });
        timeout(PATIENCE, async {
            while server.asked().len() < 3 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        limit(&seeder, None);
        assert!(reading.await.unwrap() == film, "lies: {lies}");
        file.close_reader(1);
        peer.stop().await;
    }
}
