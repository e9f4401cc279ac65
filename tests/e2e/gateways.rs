//! Content from HTTP gateways: good ones, and such that lie, break off, never end or send requests elsewhere.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{Condvar, Mutex},
    time::Instant,
};

use chiral::content::{self, Block, DirectoryBuilder, ImportParams, Metadata};

use self::server::{Content, Piece, Response, Server, car, socks5};
use crate::harness::{Daemon, Setup, eventually, noise};

#[allow(dead_code, reason = "the unit tests use the rest")]
#[path = "../support/gateway.rs"]
pub(crate) mod server;

/// More memory than a daemon may have that reads from gateways which send more than was asked for.
const MEMORY: u64 = 250 << 20;

fn content_of(bytes: &[u8]) -> Content {
    Content::new(ImportParams::DEFAULT, bytes)
}

fn honest(content: &Content) -> Server {
    let content = content.clone();
    Server::start(move |request| content.answer(request))
}

/// A daemon that knows nobody but these gateways.
fn daemon(servers: &[&Server], config: &str) -> Daemon {
    let urls = servers.iter().flat_map(|server| ["--gateway".to_owned(), server.url()]);
    Daemon::start(&Setup { args: urls.collect(), config: config.to_owned() })
}

fn read(daemon: &Daemon, content: &Content) -> Vec<u8> {
    fs::read(daemon.path(&content.root.to_string())).unwrap()
}

fn peak_memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_file_is_read_from_a_gateway_in_windows() {
    let bytes = noise(100_000_000, 61);
    let content = content_of(&bytes);
    let server = honest(&content);
    let daemon = daemon(&[&server], "");
    let start = Instant::now();
    let mut file = fs::File::open(daemon.path(&content.root.to_string())).unwrap();
    let mut first = [0; 1];
    file.read_exact(&mut first).unwrap();
    eprintln!("first byte from a gateway after {:?}", start.elapsed());
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap();
    eprintln!("100 MB from a gateway in {:?}", start.elapsed());
    assert!(first[0] == bytes[0] && rest == bytes[1..]);
    let (cars, raw) = server.counts();
    eprintln!("{cars} windows, {raw} single blocks, {} connections", server.connections());
    // 382 leaves and three nodes.
    assert!(cars + raw < 200, "{cars} windows and {raw} single blocks");
    assert!(daemon.chiral(&["store", "verify"]).status.success());
}

#[test]
fn what_is_looked_at_one_after_the_other_is_fetched_ahead() {
    const FILES: usize = 200;
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    let files: Vec<Block> = (0..FILES).map(|n| Block::raw(vec![7; n + 1].into())).collect();
    for (n, file) in files.iter().enumerate() {
        builder.add(&format!("{n:03}"), *file.cid(), n as u64 + 1);
    }
    let built = builder.finish(Metadata::default());
    let blocks = built.nodes.into_iter().chain(files.iter().cloned());
    let blocks = blocks.map(|block| (*block.cid().hash(), block)).collect::<HashMap<_, _>>();
    let content = Content { root: built.root, blocks: blocks.into() };
    let ids: HashSet<_> = files.iter().map(|file| *file.cid().hash()).collect();
    // Asked for, and answered; whether several were under way at once.
    let (state, changed) = (Mutex::new((HashSet::new(), 0, false)), Condvar::new());
    let server = Server::start(move |request| {
        let file = request.cid().map(|id| *id.hash()).filter(|hash| ids.contains(hash));
        if let Some(file) = file {
            let mut state = state.lock().unwrap();
            state.0.insert(file);
            state.2 |= state.0.len() >= state.1 + 3;
            changed.notify_all();
            // Beyond the first ones none is given to who asks for one after the other.
            state = changed.wait_while(state, |state| state.1 >= 4 && !state.2).unwrap();
            state.1 += 1;
        }
        content.raw(request)
    });
    let daemon = daemon(&[&server], "");
    let dir = daemon.path(&built.root.to_string());
    for (n, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().size(), n as u64 + 1, "{:?}", entry.file_name());
    }
}

#[test]
fn several_gateways_give_one_file_and_a_seek_is_fetched_first() {
    let bytes = noise(60_000_000, 62);
    let content = content_of(&bytes);
    let servers = [honest(&content), honest(&content), honest(&content)];
    let daemon = daemon(&servers.each_ref(), "");
    let file = fs::File::open(daemon.path(&content.root.to_string())).unwrap();
    let mut piece = vec![0; 4096];
    file.read_exact_at(&mut piece, 55_000_000).unwrap();
    assert!(piece == bytes[55_000_000..55_004_096]);
    let fetched: u64 = servers.iter().map(Server::sent).sum();
    assert!(fetched < 10_000_000, "{fetched} bytes for a small read");
    assert!(read(&daemon, &content) == bytes);
    for server in &servers {
        assert!(server.sent() > 1_000_000, "{} bytes from {}", server.sent(), server.url());
    }
}

#[test]
fn a_gateway_without_archives_serves_block_by_block() {
    let bytes = noise(20_000_000, 63);
    let content = content_of(&bytes);
    let blocks = content.clone();
    let server =
        Server::start(
            move |request| {
                if request.is_car() { Response::new(406) } else { blocks.raw(request) }
            },
        );
    assert!(read(&daemon(&[&server], ""), &content) == bytes);
}

#[test]
fn no_wrong_byte_comes_from_a_gateway_that_lies_and_another_goes_on() {
    let bytes = noise(40_000_000, 64);
    let content = content_of(&bytes);
    let lying = content.clone();
    let liar = Server::start(move |request| {
        let mut answer = lying.answer(request);
        if let Some(Piece::Bytes(body)) = answer.body.first_mut() {
            *body.last_mut().unwrap() ^= 1;
        }
        answer
    });
    let daemon = daemon(&[&liar, &honest(&content)], "");
    assert!(read(&daemon, &content) == bytes);
    eventually("the ban", || {
        daemon.log().contains(&format!("{} sent wrong", liar.url())).then_some(())
    });
    assert!(daemon.chiral(&["store", "verify"]).status.success());
}

#[test]
fn gateways_that_cut_off_refuse_limit_or_flood_are_survived() {
    let bytes = noise(40_000_000, 65);
    let content = content_of(&bytes);
    let (cutting, flooding) = (content.clone(), content.clone());
    let cutter = Server::start(move |request| {
        let answer = cutting.answer(request);
        let half = answer.length.unwrap_or(0) / 2;
        if request.is_car() { answer.cut(half) } else { answer }
    });
    let limiter = Server::start(|_| Response::new(429).with("Retry-After", "600"));
    let refuser = Server::start(|_| Response::new(403));
    let bomb = Server::start(|_| {
        Response::ok("application/vnd.ipld.car", vec![0x1f; 10 << 20])
            .with("Content-Encoding", "gzip")
    });
    let flooder = Server::start(move |request| {
        if !request.is_car() {
            return flooding.raw(request);
        }
        let block = content::Block::raw(vec![7; 1 << 20].into());
        Response {
            length: None,
            body: vec![
                Piece::Bytes(car(block.cid(), &[])),
                Piece::Endless(car(block.cid(), std::slice::from_ref(&block)).split_off(59)),
            ],
            ..Response::ok("application/vnd.ipld.car", Vec::new())
        }
    });
    let daemon = daemon(&[&cutter, &limiter, &refuser, &bomb, &flooder, &honest(&content)], "");
    assert!(read(&daemon, &content) == bytes);
    let memory = peak_memory(&daemon);
    eprintln!("most memory beside gateways that flood: {} MB", memory >> 20);
    assert!(memory < MEMORY, "{memory} bytes");
    assert_eq!(limiter.asked().len(), 1, "who asks to wait is left alone");
    assert!(refuser.asked().len() <= 4, "no try after a refusal");
    assert!(daemon.chiral(&["store", "verify"]).status.success());
}

#[test]
fn no_request_goes_where_a_gateway_redirects_into_this_machine() {
    let bytes = noise(3_000_000, 66);
    let content = content_of(&bytes);
    let victim = honest(&content);
    let target = victim.url();
    let to_loopback =
        Server::start(move |request| Response::redirect(&format!("{target}{}", request.target)));
    let to_metadata =
        Server::start(|_| Response::redirect("http://169.254.169.254/latest/meta-data/"));
    let daemon = daemon(&[&to_loopback, &to_metadata, &honest(&content)], "");
    assert!(read(&daemon, &content) == bytes);
    assert_eq!(victim.connections(), 0);
    assert!(!to_loopback.asked().is_empty());
}

#[test]
fn gateways_are_reached_through_a_proxy_alone() {
    let bytes = noise(5_000_000, 67);
    let content = content_of(&bytes);
    let server = honest(&content);
    let (socks, names) = socks5(server.address);
    for proxy in [format!("socks5h://{socks}"), server.url()] {
        let config =
            format!("[http]\nproxy = \"{proxy}\"\ngateways = [\"http://gateway.example\"]\n");
        let daemon = Daemon::start(&Setup { config, ..Setup::default() });
        assert!(read(&daemon, &content) == bytes);
    }
    assert!(names.lock().unwrap().iter().all(|name| name == "gateway.example"));
    assert!(server.asked().iter().any(|asked| asked.target.starts_with("http://gateway.example/")));
}

#[test]
fn a_router_leads_to_peers_and_to_gateways() {
    let publisher = Daemon::start(&Setup::default());
    let bytes = noise(3_000_000, 68);
    fs::write(publisher.path("upload/file"), &bytes).unwrap();
    let cid = publisher.cid("upload/file");
    let address = publisher.addresses().into_iter().find(|a| a.contains("/tcp/")).unwrap();
    let (address, peer) = address.split_once("/p2p/").unwrap();
    let other = noise(4_000_000, 69);
    let content = content_of(&other);
    let server = honest(&content);
    let port = server.address.port();
    let records = format!(
        r#"{{"Schema":"peer","ID":"{peer}","Addrs":["{address}"],"Protocols":["transport-bitswap"]}}
{{"Schema":"peer","ID":"{peer}","Addrs":["/ip4/127.0.0.1/tcp/{port}/http"],"Protocols":["transport-ipfs-gateway-http"]}}
"#
    );
    let router =
        Server::start(move |_| Response::ok("application/x-ndjson", records.clone().into()));
    let config = format!(
        "[http]\nrouters = [\"{}\"]\ngateways = []\nallow_private_addresses = true\n",
        router.url()
    );
    let daemon = Daemon::start(&Setup { config, ..Setup::default() });
    assert!(fs::read(daemon.path(&cid)).unwrap() == bytes);
    assert!(read(&daemon, &content) == other);
    assert!(!server.asked().is_empty());
    // Where it is not allowed, nobody near here is asked.
    let asked = server.asked().len();
    let strict =
        format!("[http]\nrouters = [\"{}\"]\n[download]\nlookup_timeout = \"2s\"\n", router.url());
    let daemon = Daemon::start(&Setup { config: strict, ..Setup::default() });
    assert!(fs::read(daemon.path(&content.root.to_string())).is_err());
    assert_eq!(server.asked().len(), asked);
}

#[test]
fn a_gateway_and_a_peer_give_one_file_together() {
    let bytes = noise(60_000_000, 70);
    let publisher = Daemon::start(&Setup::default());
    fs::write(publisher.path("upload/file"), &bytes).unwrap();
    let content = content_of(&bytes);
    assert_eq!(publisher.cid("upload/file"), content.root.to_string());
    let server = honest(&content);
    let args = vec!["--gateway".to_owned(), server.url()];
    let daemon = Daemon::start_beside(&publisher, &Setup { args, ..Setup::default() });
    assert!(read(&daemon, &content) == bytes);
    let peers = daemon.peers();
    assert!(peers[0]["received"].as_u64().unwrap() > 0, "{peers:?}");
    assert!(server.sent() > 0);
}

#[test]
fn offline_no_gateway_is_asked_and_a_wrong_url_is_refused() {
    let content = content_of(&noise(1000, 71));
    let server = honest(&content);
    let args = vec!["--gateway".to_owned(), server.url(), "--offline".to_owned()];
    let daemon = Daemon::start(&Setup { args, ..Setup::default() });
    assert!(fs::read(daemon.path(&content.root.to_string())).is_err());
    assert_eq!(server.connections(), 0);
    let wrong = daemon.chiral(&["mount", "--gateway", "gateway.example", "/nowhere"]);
    assert_eq!(wrong.status.code(), Some(2));
    let message = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(message.contains("--gateway") && message.contains("is not a URL"), "{message}");
}
