//! Tools that `scripts/bench` measures with: a raw TCP transfer to compare with, a proxy that adds delay, a store full of
//! blocks, and peers that are connected and idle.
#![allow(clippy::print_stdout, reason = "a program of the command line")]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use chiral::{
    content::{ByteRange, ContentId, sha2_256},
    store::{Batch, FileStamp, Seal, Store, StoreOptions},
    tasks::Tasks,
};
use futures::{StreamExt, future::select_all};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, identify, kad, noise, ping,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, tls, yamux,
};

/// What one read or write moves.
const CHUNK: usize = 256 << 10;
/// Chunks that a direction of the proxy holds: 256 MiB, more than any window, so that it adds delay and nothing else.
const QUEUE: usize = 1024;

/// Sends `bytes` over one loopback connection between two threads; seconds from connect to the last byte.
fn raw_tcp(bytes: usize) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let sender = thread::spawn(move || -> std::io::Result<()> {
        let (mut to, _) = listener.accept()?;
        let chunk = vec![7; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let len = left.min(CHUNK);
            to.write_all(&chunk[..len])?;
            left -= len;
        }
        Ok(())
    });
    let start = Instant::now();
    let mut from = TcpStream::connect(address)?;
    let mut chunk = vec![0; CHUNK];
    while from.read(&mut chunk)? > 0 {}
    let seconds = start.elapsed().as_secs_f64();
    match sender.join() {
        Ok(sent) => sent?,
        Err(_) => bail!("the sender panicked"),
    }
    Ok(seconds)
}

/// Moves bytes from one socket to the other, each chunk `delay` after it came.
fn forward(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (queue, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(QUEUE);
    thread::spawn(move || {
        for (at, chunk) in due {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&chunk).is_err() {
                return;
            }
        }
        // The other side may be gone already; there is nobody to tell.
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
    let mut chunk = vec![0; CHUNK];
    while let Ok(len @ 1..) = from.read(&mut chunk) {
        if queue.send((Instant::now() + delay, chunk[..len].to_vec())).is_err() {
            return;
        }
    }
}

/// Listens on a free port, prints it, and forwards every connection to `target` until it is killed.
fn proxy(target: &str, delay: Duration) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    for client in listener.incoming() {
        let client = client?;
        let server = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (client2, server2) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || forward(client, server, delay));
        thread::spawn(move || forward(server2, client2, delay));
    }
    Ok(())
}

/// Blocks of one made-up file: 2.5 GB of holes.
const BLOCKS_PER_FILE: u64 = 10_000;
const LEAF: u64 = 256 << 10;

/// Seals sparse files with made-up leaf ids until the store in `dir` holds `blocks` blocks more.
fn fill(dir: &str, blocks: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let options = StoreOptions { dir: dir.into(), cache_limit: None, min_free: Some(0) };
    let store = Store::open(options, &Tasks::new())?;
    let mut made = 0;
    while made < blocks {
        let count = BLOCKS_PER_FILE.min(blocks - made);
        let working = store.working_file()?;
        let file = working.open(true)?;
        file.set_len(count * LEAF)?;
        let leaves = (0..count).map(|n| {
            let hash = sha2_256(&(made + n).to_le_bytes());
            (ContentId::raw(hash), ByteRange::at(n * LEAF, LEAF))
        });
        let seal = Seal {
            object: working.id(),
            root: ContentId::dag_pb(sha2_256(&[dir.as_bytes(), &made.to_le_bytes()].concat())),
            stamp: FileStamp::of(&file)?,
            leaves: leaves.collect(),
            nodes: Vec::new(),
            present: None,
        };
        store.commit(Batch { seal: vec![seal], ..Batch::default() })?;
        made += count;
    }
    store.close()?;
    Ok(())
}

/// What an idle peer of the local network speaks.
#[derive(NetworkBehaviour)]
struct Idle {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    kad: kad::Behaviour<kad::store::MemoryStore>,
}

fn idle_peer() -> Result<Swarm<Idle>> {
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            (tls::Config::new, noise::Config::new),
            yamux::Config::default,
        )?
        .with_behaviour(|key| {
            let own = PeerId::from(key.public());
            let mut kad = kad::Config::new(libp2p::StreamProtocol::new("/ipfs/lan/kad/1.0.0"));
            // It has joined long ago: 200 peers that look round at once would be a storm, not idle.
            kad.set_kbucket_inserts(kad::BucketInserts::Manual)
                .set_periodic_bootstrap_interval(None);
            let store = kad::store::MemoryStore::new(own);
            let mut kad = kad::Behaviour::with_config(own, store, kad);
            kad.set_mode(Some(kad::Mode::Server));
            Idle {
                identify: identify::Behaviour::new(identify::Config::new(
                    "ipfs/0.1.0".to_owned(),
                    key.public(),
                )),
                // It answers pings and sends none of its own within the time of a measurement.
                ping: ping::Behaviour::new(
                    ping::Config::new().with_interval(Duration::from_secs(3_600)),
                ),
                kad,
            }
        })
        .map_err(|error| anyhow::anyhow!("{error}"))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3_600)))
        .build();
    Ok(swarm)
}

/// Connects `count` peers to `address`, says so, and keeps them connected until it is killed.
async fn peers(address: Multiaddr, count: usize) -> Result<()> {
    let mut swarms = Vec::new();
    for _ in 0..count {
        let mut swarm = idle_peer()?;
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
        swarm.dial(address.clone())?;
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(IdleEvent::Identify(identify::Event::Received {
                    ..
                })) => break,
                SwarmEvent::OutgoingConnectionError { error, .. } => bail!("{error}"),
                _ => {}
            }
        }
        swarms.push(swarm);
    }
    println!("connected {count}");
    loop {
        let (event, ..) = select_all(swarms.iter_mut().map(StreamExt::select_next_some)).await;
        if let SwarmEvent::ConnectionClosed { cause, .. } = event {
            eprintln!("a connection closed: {cause:?}");
        }
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["rawtcp", bytes] => println!("{}", raw_tcp(bytes.parse()?)?),
        ["proxy", target, delay_ms] => {
            proxy(target, Duration::from_millis(delay_ms.parse()?))?;
        }
        ["fill", dir, blocks] => fill(dir, blocks.parse()?)?,
        ["peers", address, count] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(peers(address.parse()?, count.parse()?))?;
        }
        _ => bail!(
            "usage: lab rawtcp BYTES | lab proxy HOST:PORT DELAY_MS | lab fill DATA_DIR BLOCKS | \
             lab peers MULTIADDR COUNT"
        ),
    }
    Ok(())
}
