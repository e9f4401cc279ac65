//! A foreign seeder that takes any `info` dictionary as it is: odd names, lengths that do not fit. No library would.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use sha1::{Digest, Sha1};

/// Bytes of one message with metadata.
const PART: usize = 16 << 10;

/// A torrent that somebody else has.
#[derive(Clone, Debug)]
pub(crate) struct RawTorrent {
    pub(crate) info: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) piece_len: usize,
}

/// Bencode of a string.
pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    [bytes.len().to_string().as_bytes(), b":", bytes].concat()
}

impl RawTorrent {
    /// Files by the names of their paths, with more keys before all others and behind them.
    pub(crate) fn of(name: &[u8], files: &[(&[&[u8]], &[u8])], piece_len: usize) -> Self {
        let mut listed = Vec::new();
        for (path, bytes) in files {
            listed.extend(format!("d6:lengthi{}e4:pathl", bytes.len()).bytes());
            path.iter().for_each(|name| listed.extend(text(name)));
            listed.extend(*b"ee");
        }
        let bytes: Vec<u8> = files.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
        let files = [b"5:filesl", &*listed, b"e"].concat();
        Self::with(&files, name, bytes, piece_len)
    }

    /// One file.
    pub(crate) fn single(name: &[u8], bytes: &[u8], piece_len: usize) -> Self {
        let length = format!("6:lengthi{}e", bytes.len()).into_bytes();
        Self::with(&length, name, bytes.to_vec(), piece_len)
    }

    fn with(what: &[u8], name: &[u8], bytes: Vec<u8>, piece_len: usize) -> Self {
        let hashes: Vec<u8> = bytes.chunks(piece_len).flat_map(Sha1::digest).collect();
        let length = format!("12:piece lengthi{piece_len}e6:pieces");
        let info = [b"d", what, b"4:name", &*text(name), length.as_bytes(), &*text(&hashes), b"e"]
            .concat();
        Self { info, bytes, piece_len }
    }

    /// A `.torrent` file.
    pub(crate) fn file(&self) -> Vec<u8> {
        [b"d4:info", &*self.info, b"e"].concat()
    }

    pub(crate) fn hash(&self) -> String {
        Sha1::digest(&self.info).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Serves torrents until the process ends.
pub(crate) struct RawSeeder(SocketAddr);

impl RawSeeder {
    pub(crate) fn start(torrents: &[RawTorrent]) -> Self {
        let by_hash: HashMap<Vec<u8>, RawTorrent> = torrents
            .iter()
            .map(|torrent| (Sha1::digest(&torrent.info).to_vec(), torrent.clone()))
            .collect();
        let by_hash = Arc::new(by_hash);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let by_hash = by_hash.clone();
                thread::spawn(move || serve(stream, &by_hash));
            }
        });
        Self(address)
    }

    /// A link that names this seeder.
    pub(crate) fn link(&self, torrent: &RawTorrent) -> String {
        format!("magnet:?xt=urn:btih:{}&x.pe={}", torrent.hash(), self.0)
    }
}

fn say(stream: &mut TcpStream, kind: u8, body: &[u8]) -> io::Result<()> {
    let len = u32::try_from(body.len() + 1).unwrap().to_be_bytes();
    stream.write_all(&[&len[..], &[kind], body].concat())
}

fn number_after(text: &[u8], key: &[u8]) -> Option<usize> {
    let at = text.windows(key.len()).position(|window| window == key)? + key.len();
    let digits: Vec<u8> = text[at..].iter().copied().take_while(u8::is_ascii_digit).collect();
    String::from_utf8(digits).ok()?.parse().ok()
}

/// One connection, to its end.
fn serve(mut stream: TcpStream, torrents: &HashMap<Vec<u8>, RawTorrent>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut greeting = [0; 68];
    stream.read_exact(&mut greeting)?;
    let Some(torrent) = torrents.get(&greeting[28..48]) else { return Ok(()) };
    // The first byte of a peer's id is that of nobody else.
    greeting[20..28].copy_from_slice(&[0, 0, 0, 0, 0, 0x10, 0, 0]);
    greeting[48..68].copy_from_slice(b"-XX0001-abcdefghijkl");
    stream.write_all(&greeting)?;
    let size = torrent.info.len();
    say(&mut stream, 20, format!("\0d1:md11:ut_metadatai3ee13:metadata_sizei{size}ee").as_bytes())?;
    let pieces = torrent.bytes.len().div_ceil(torrent.piece_len.max(1)).max(1);
    let mut bits = vec![0_u8; pieces.div_ceil(8)];
    (0..pieces).for_each(|piece| bits[piece / 8] |= 0x80 >> (piece % 8));
    say(&mut stream, 5, &bits)?;
    say(&mut stream, 1, &[])?;
    let mut theirs = None;
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let mut message = vec![0; u32::from_be_bytes(len) as usize];
        stream.read_exact(&mut message)?;
        match message.as_slice() {
            [6, rest @ ..] => {
                let number =
                    |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
                let at = number(0) * torrent.piece_len + number(4);
                let bytes = &torrent.bytes[at..at + number(8)];
                say(&mut stream, 7, &[&rest[..8], bytes].concat())?;
            }
            [20, 0, rest @ ..] => theirs = number_after(rest, b"11:ut_metadatai"),
            [20, 3, rest @ ..] => {
                let (Some(piece), Some(theirs)) = (number_after(rest, b"5:piecei"), theirs) else {
                    continue;
                };
                let part = &torrent.info[(piece * PART).min(size)..((piece + 1) * PART).min(size)];
                let head =
                    format!("d8:msg_typei1e5:piecei{piece}e10:total_sizei{size}ee").into_bytes();
                let theirs = u8::try_from(theirs).unwrap();
                say(&mut stream, 20, &[&[theirs], &*head, part].concat())?;
            }
            _ => {}
        }
    }
}
