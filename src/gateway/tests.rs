//! A node on loopback and a client of its gateway. The tests are named by the statements of the specifications.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod archives;
mod blocks;
mod cached;
mod directories;
mod files;
mod paths;
mod routing;
mod server;

use std::{ffi::OsStr, fs, net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{HeaderMap, Method, Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{Gateway, GatewayOptions};
use crate::{
    content::{
        Block, CarHeader, CarItem, CarReader, ContentId, FileBuilder, ImportParams, Metadata,
    },
    node::{Node, NodeOptions, tests::options},
    tasks::Tasks,
};

/// More than a busy machine needs for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three leaves of 256 KiB below a root.
const BIG: usize = 600_000;

const LEAF: usize = 256 << 10;

struct Lab {
    node: Node,
    address: SocketAddr,
    dir: TempDir,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    /// The body broke off.
    is_broken: bool,
}

/// Gives only what it has.
fn local() -> GatewayOptions {
    GatewayOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        no_fetch: true,
        offline: true,
        hosts: vec!["files.example".to_owned()],
    }
}

/// Fetches.
fn fetching() -> GatewayOptions {
    GatewayOptions { no_fetch: false, offline: false, ..local() }
}

impl Lab {
    /// A node without a network.
    async fn new() -> Self {
        Self::with(local(), |_| {}).await
    }

    /// A node with a network of its own.
    async fn new_online() -> Self {
        Self::with(fetching(), |_| {}).await
    }

    async fn with(gateway: GatewayOptions, change: impl FnOnce(&mut NodeOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path(), Vec::new(), gateway.offline);
        change(&mut options);
        let node = Node::start(options, Tasks::new()).await.unwrap();
        let gateway = Gateway::bind(node.clone(), gateway).await.unwrap();
        let address = gateway.url().strip_prefix("http://").unwrap().parse().unwrap();
        gateway.start();
        Self { node, address, dir }
    }

    async fn stop(self) {
        self.node.stop(PATIENCE).await.unwrap();
        assert!(self.node.tasks().alive().is_empty(), "{:?}", self.node.tasks());
    }

    /// Publishes what `make` puts into a folder.
    async fn publish(&self, make: impl FnOnce(&Path)) -> ContentId {
        let scratch = tempfile::tempdir_in(self.dir.path().parent().unwrap()).unwrap();
        let tree = scratch.path().join("tree");
        fs::create_dir(&tree).unwrap();
        make(&tree);
        let name = format!("tree-{}", scratch.path().file_name().unwrap().display());
        let published = self.node.uploads().import(&tree, OsStr::new(&name)).await.unwrap();
        published.last().unwrap().0
    }

    /// `big`, `hello.txt`, `sub/hello`.
    async fn tree(&self) -> ContentId {
        self.publish(|tree| {
            fs::write(tree.join("big"), big()).unwrap();
            fs::write(tree.join("hello.txt"), "hello world\n").unwrap();
            fs::create_dir(tree.join("sub")).unwrap();
            fs::write(tree.join("sub/hello"), "hello\n").unwrap();
        })
        .await
    }

    /// Where a path leads.
    async fn at(&self, root: &ContentId, path: &str) -> ContentId {
        self.node.walk(root, path).await.unwrap().id
    }

    fn put(&self, block: &Block) -> ContentId {
        self.node.store().put_node(block).unwrap();
        *block.cid()
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[]).await
    }

    async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.ask(Method::GET, path, &[("accept", accept)]).await
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        tokio::time::timeout(PATIENCE, answer(self.send(method, path, headers).await))
            .await
            .unwrap()
    }

    /// Sends a request; the body is left to the caller.
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if headers.iter().all(|(name, _)| *name != "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
    }
}

async fn answer(response: Response<Incoming>) -> Answer {
    let (parts, mut body) = response.into_parts();
    let (mut bytes, mut is_broken) = (Vec::new(), false);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap()),
            Err(_) => is_broken = true,
        }
    }
    let (status, headers) = (parts.status.as_u16(), parts.headers);
    Answer { status, headers, body: bytes.into(), is_broken }
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The archive in the body: its header, and its blocks, each verified.
    fn archive(&self) -> (CarHeader, Vec<ContentId>) {
        assert_eq!((self.status, self.is_broken), (200, false), "{}", self.text());
        let mut reader = CarReader::new(false);
        reader.push(&self.body);
        let Some(CarItem::Header(header)) = reader.next_item().unwrap() else { unreachable!() };
        let mut blocks = Vec::new();
        while let Some(CarItem::Section(section)) = reader.next_item().unwrap() {
            Block::verify(section.cid, section.data).unwrap();
            blocks.push(section.cid);
        }
        reader.finish().unwrap();
        (header, blocks)
    }

    fn blocks(&self) -> Vec<ContentId> {
        self.archive().1
    }
}

fn big() -> Vec<u8> {
    (0..BIG).map(|at| u8::try_from(at * at % 251).unwrap()).collect()
}

/// Ids of the leaves of [`big`].
fn leaves() -> Vec<ContentId> {
    big().chunks(LEAF).map(|leaf| *Block::raw(Bytes::copy_from_slice(leaf)).cid()).collect()
}

/// A file of dag-pb whose parts are given: its blocks above them.
fn file_of(parts: &[(ContentId, u64)]) -> Vec<Block> {
    let mut builder = FileBuilder::new(ImportParams::DEFAULT);
    for (cid, len) in parts {
        builder.push(*cid, *len);
    }
    builder.finish(Metadata::default()).nodes
}
