//! HTTP servers of tests, which do what they are told: gateways that give content, and others that lie, break off or
//! never end. Unit tests and the tests of the daemon take this file in by its path, each with `content` of its own
//! crate in scope.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::content::{
    Block, ByteRange, ContentId, FileLayout, ImportParams, Metadata, Multihash, car_header,
    car_section_head, import_bytes, links_of,
};

/// What a client asked for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The target: path and query, or all of the URL at a proxy.
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
}

impl Request {
    /// A parameter of the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// The id in the path.
    pub(crate) fn cid(&self) -> Option<ContentId> {
        let path = self.target.split('?').next()?;
        path.rsplit('/').next()?.parse().ok()
    }

    pub(crate) fn is_car(&self) -> bool {
        self.parameter("format") == Some("car")
    }
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    /// For ever the same.
    Endless(Vec<u8>),
    /// Nothing more until the client goes.
    Silence,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// What `Content-Length` says; none: the body ends with the connection.
    pub(crate) length: Option<usize>,
    pub(crate) body: Vec<Piece>,
}

impl Response {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), length: Some(0), body: Vec::new() }
    }

    pub(crate) fn ok(media: &str, body: Vec<u8>) -> Self {
        let length = Some(body.len());
        Self { length, body: vec![Piece::Bytes(body)], ..Self::new(200) }
            .with("Content-Type", media)
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(302).with("Location", to)
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// The same that breaks off after so many bytes.
    pub(crate) fn cut(mut self, after: usize) -> Self {
        if let Some(Piece::Bytes(body)) = self.body.first_mut() {
            body.truncate(after);
        }
        self
    }
}

/// A server; its threads end with the process.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    sent: Arc<AtomicU64>,
}

impl Server {
    /// Answers every request with what `answer` makes of it.
    pub(crate) fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            connections: Arc::default(),
            open: Arc::default(),
            sent: Arc::default(),
        };
        let (inner, answer) = (server.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                inner.connections.fetch_add(1, Ordering::SeqCst);
                inner.open.fetch_add(1, Ordering::SeqCst);
                let (inner, answer) = (inner.clone(), answer.clone());
                thread::spawn(move || {
                    // A client may go at any time.
                    let _ = inner.serve(stream, &*answer);
                    inner.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    fn serve(
        &self,
        stream: TcpStream,
        answer: &(impl Fn(&Request) -> Response + ?Sized),
    ) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut to = stream;
        while let Some(request) = read_request(&mut reader)? {
            let response = answer(&request);
            self.asked.lock().unwrap().push(request);
            let mut head = format!("HTTP/1.1 {} Test\r\n", response.status);
            for (name, value) in &response.headers {
                head += &format!("{name}: {value}\r\n");
            }
            match response.length {
                Some(length) => head += &format!("Content-Length: {length}\r\n\r\n"),
                None => head += "Connection: close\r\n\r\n",
            }
            to.write_all(head.as_bytes())?;
            let mut written = 0;
            for piece in &response.body {
                match piece {
                    Piece::Bytes(bytes) => {
                        to.write_all(bytes)?;
                        written += bytes.len();
                        self.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                    }
                    Piece::Endless(bytes) => loop {
                        to.write_all(bytes)?;
                        self.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                    },
                    Piece::Silence => {
                        reader.read_exact(&mut [0])?;
                    }
                }
            }
            if response.length != Some(written) {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// How many requests asked for a part of a file, and how many for single blocks.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let asked = self.asked();
        let cars = asked.iter().filter(|request| request.is_car()).count();
        (cars, asked.len() - cars)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Bytes of bodies so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

fn read_request(from: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            None => return Ok(Some(Request { target, headers })),
        }
    }
}

/// The blocks of a file, as an honest gateway gives them.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) root: ContentId,
    pub(crate) blocks: Arc<HashMap<Multihash, Block>>,
}

impl Content {
    pub(crate) fn new(params: ImportParams, bytes: &[u8]) -> Self {
        let (file, leaves) = import_bytes(params, &bytes.to_vec().into(), Metadata::default());
        let blocks = file.nodes.into_iter().chain(leaves);
        let blocks = blocks.map(|block| (*block.cid().hash(), block)).collect();
        Self { root: file.root, blocks: Arc::new(blocks) }
    }

    pub(crate) fn block(&self, id: &ContentId) -> Option<&Block> {
        self.blocks.get(id.hash())
    }

    /// The blocks that hold `range`: first the nodes, then the leaves in order.
    pub(crate) fn part(&self, range: ByteRange) -> Vec<Block> {
        let root = self.block(&self.root).unwrap();
        let mut layout = FileLayout::new(root).unwrap();
        let mut part = vec![root.clone()];
        loop {
            let needs = layout.needs(range);
            let blocks: Vec<Block> =
                needs.iter().filter_map(|need| self.block(&need.cid)).cloned().collect();
            let nodes: Vec<Block> = blocks
                .iter()
                .filter(|block| links_of(block).is_ok_and(|links| !links.is_empty()))
                .cloned()
                .collect();
            if nodes.is_empty() {
                part.extend(blocks.into_iter().filter(|block| block.cid() != root.cid()));
                return part;
            }
            for node in nodes {
                layout.insert(&node).unwrap();
                part.push(node);
            }
        }
    }

    /// The archive that a request asks for.
    pub(crate) fn car(&self, request: &Request) -> Vec<u8> {
        let range = request.parameter("entity-bytes").unwrap();
        let (from, to) = range.split_once(':').unwrap();
        let range = ByteRange::new(from.parse().unwrap(), to.parse::<u64>().unwrap() + 1);
        car(&self.root, &self.part(range))
    }

    /// What an honest gateway says.
    pub(crate) fn answer(&self, request: &Request) -> Response {
        if request.is_car() {
            if request.cid().is_none_or(|id| id.hash() != self.root.hash()) {
                return Response::new(404);
            }
            return Response::ok("application/vnd.ipld.car; version=1", self.car(request));
        }
        self.raw(request)
    }

    /// What a gateway without archives says.
    pub(crate) fn raw(&self, request: &Request) -> Response {
        match request.cid().and_then(|id| self.block(&id).cloned()) {
            Some(block) => Response::ok("application/vnd.ipld.raw", block.data().to_vec()),
            None => Response::new(404),
        }
    }
}

/// An archive of these blocks.
pub(crate) fn car(root: &ContentId, blocks: &[Block]) -> Vec<u8> {
    let mut car = car_header(&[*root]);
    for block in blocks {
        car.extend(car_section_head(block.cid(), block.data().len()));
        car.extend_from_slice(block.data());
    }
    car
}

/// A SOCKS5 proxy without authentication; the hosts that it was asked for, as they were named.
pub(crate) fn socks5(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let names = asked.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let names = names.clone();
            // A client may go at any time.
            thread::spawn(move || drop(socks5_one(stream, to, &names)));
        }
    });
    (address, asked)
}

fn socks5_one(
    mut near: TcpStream,
    to: SocketAddr,
    names: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let read = |len: usize| -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        (&near).read_exact(&mut bytes)?;
        Ok(bytes)
    };
    let methods = read(2)?[1];
    read(methods.into())?;
    (&near).write_all(&[5, 0])?;
    let kind = read(4)?[3];
    let name = match kind {
        1 => Ipv4Addr::from(<[u8; 4]>::try_from(read(4)?).unwrap()).to_string(),
        3 => {
            let len = read(1)?[0];
            String::from_utf8(read(len.into())?).unwrap()
        }
        _ => return Ok(()),
    };
    read(2)?;
    names.lock().unwrap().push(name);
    near.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0])?;
    let far = TcpStream::connect(to)?;
    let (mut near_back, mut far_back) = (near.try_clone()?, far.try_clone()?);
    let mut far = far;
    thread::spawn(move || std::io::copy(&mut near, &mut far));
    std::io::copy(&mut far_back, &mut near_back)?;
    Ok(())
}

/// Waits for what another thread does.
pub(crate) fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        // A poll: what is waited for has no handle to wait on.
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not happen");
}
