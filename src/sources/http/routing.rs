//! Delegated routing: an HTTP server that is asked who provides a root (`/routing/v1/providers`).

use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{
    address::url_of,
    client::{Answer, Http, HttpError, Trust},
};
use crate::{
    content::ContentId,
    net::{Multiaddr, PeerId, Provider},
};

/// One record per line; servers that know only the list send that.
const ACCEPT: &str = "application/x-ndjson, application/json;q=0.9";
/// Longest list, longest line and longest stream: a record has a kilobyte or two.
const MAX_LIST: usize = 1 << 20;
const MAX_LINE: usize = 64 << 10;
const MAX_STREAM: usize = 4 << 20;
/// Records that are looked at: as many as a list may have.
const MAX_RECORDS: usize = 100;
/// Addresses of one record that are looked at.
const MAX_ADDRESSES: usize = 32;
/// A search takes no longer than one in the DHT.
const SEARCH: Duration = Duration::from_secs(30);

/// Who a router names.
#[derive(Debug)]
pub(super) enum Named {
    /// A peer to be dialled for Bitswap.
    Peer(Provider),
    /// An HTTP server.
    Server(Url),
}

/// A list of records.
#[derive(Deserialize)]
struct List {
    #[serde(rename = "Providers", default)]
    providers: Option<Vec<serde_json::Value>>,
}

/// A provider, as the schemas `peer` and `bitswap` have it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Record {
    schema: String,
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(default)]
    addrs: Option<Vec<String>>,
    #[serde(default)]
    protocols: Option<Vec<String>>,
    #[serde(default)]
    protocol: Option<String>,
}

/// Asks a router who provides a root; who it names goes out as it comes.
pub(super) async fn ask(
    http: &Http,
    router: &Url,
    root: &ContentId,
    to: &mpsc::Sender<Named>,
) -> Result<(), HttpError> {
    match tokio::time::timeout(SEARCH, ask_within(http, router, root, to)).await {
        Ok(done) => done,
        Err(_) => Err(HttpError::Timeout),
    }
}

async fn ask_within(
    http: &Http,
    router: &Url,
    root: &ContentId,
    to: &mpsc::Sender<Named>,
) -> Result<(), HttpError> {
    let mut url = router.clone();
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{path}/routing/v1/providers/{}", root.to_v1()));
    let mut answer = http.get(url, Trust::Configured, ACCEPT).await?;
    match answer.status() {
        200 if answer.is_encoded() => Err(HttpError::Refused("it compresses unasked".to_owned())),
        200 if answer.is_of_type("application/x-ndjson") => lines(&mut answer, to).await,
        200 => list(&mut answer, to).await,
        // Nobody is known.
        404 => Ok(()),
        status => Err(HttpError::Refused(format!("status {status}"))),
    }
}

async fn list(answer: &mut Answer, to: &mpsc::Sender<Named>) -> Result<(), HttpError> {
    let wrong = |what: &str| HttpError::Refused(format!("its list of providers is {what}"));
    let body = answer.body(MAX_LIST).await?.ok_or_else(|| wrong("too long"))?;
    let list: List = serde_json::from_slice(&body).map_err(|e| wrong(&format!("wrong: {e}")))?;
    for record in list.providers.unwrap_or_default().into_iter().take(MAX_RECORDS) {
        if let Ok(record) = serde_json::from_value(record) {
            tell(record, to).await;
        }
    }
    Ok(())
}

async fn lines(answer: &mut Answer, to: &mpsc::Sender<Named>) -> Result<(), HttpError> {
    let (mut line, mut came, mut records) = (Vec::new(), 0, 0);
    // Whether the line that comes is too long to be looked at.
    let mut skipped = false;
    while let Some(piece) = answer.chunk().await? {
        came += piece.len();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            skipped |= line.len() + part.len() > MAX_LINE;
            if skipped {
                line.clear();
            } else {
                line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                read_line(&line, to).await;
                records += 1;
                skipped = false;
                line.clear();
            }
        }
        if came > MAX_STREAM || records >= MAX_RECORDS || to.is_closed() {
            return Ok(());
        }
    }
    read_line(&line, to).await;
    Ok(())
}

async fn read_line(line: &[u8], to: &mpsc::Sender<Named>) {
    if let Ok(record) = serde_json::from_slice(line) {
        tell(record, to).await;
    }
}

async fn tell(record: Record, to: &mpsc::Sender<Named>) {
    for named in named(record) {
        // Nobody listens: the next piece is not read.
        let _ = to.send(named).await;
    }
}

/// Who a record names; nobody where its schema is not known.
fn named(record: Record) -> Vec<Named> {
    if !matches!(record.schema.as_str(), "peer" | "bitswap") {
        return Vec::new();
    }
    let addresses: Vec<String> =
        record.addrs.unwrap_or_default().into_iter().take(MAX_ADDRESSES).collect();
    let mut named: Vec<Named> =
        addresses.iter().filter_map(|address| url_of(address)).map(Named::Server).collect();
    let protocols = record.protocols.unwrap_or_default();
    let mut protocols = protocols.iter().chain(&record.protocol).peekable();
    // A record that tells no protocols may be of any.
    let bitswap = protocols.peek().is_none() || protocols.any(|name| name == "transport-bitswap");
    if let Some(peer) = peer_id(&record.id).filter(|_| bitswap) {
        let to_dial = addresses.iter().filter(|address| url_of(address).is_none());
        let to_dial: Vec<Multiaddr> = to_dial.filter_map(|a| a.parse().ok()).collect();
        named.push(Named::Peer(Provider { peer, addresses: to_dial }));
    }
    named
}

/// A peer id is written in base58, or as a CID.
fn peer_id(text: &str) -> Option<PeerId> {
    text.parse().ok().or_else(|| {
        let id: ContentId = text.parse().ok()?;
        PeerId::from_bytes(&id.hash().to_bytes()).ok()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;

    const PEER: &str = "12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8";

    fn read(json: &str) -> Vec<Named> {
        named(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn bitswap_peers_and_http_servers_are_read_from_records() {
        let named = read(&format!(
            r#"{{"Schema":"peer","ID":"{PEER}","Addrs":["/ip4/1.2.3.4/tcp/4001","/dns4/example.org/tcp/443/tls/http"],
               "Protocols":["transport-bitswap","transport-ipfs-gateway-http"],"transport-bitswap":"x"}}"#
        ));
        let [Named::Server(url), Named::Peer(provider)] = &named[..] else { panic!("{named:?}") };
        assert_eq!(url.as_str(), "https://example.org/");
        assert_eq!(provider.peer.to_string(), PEER);
        assert_eq!(provider.addresses, ["/ip4/1.2.3.4/tcp/4001".parse().unwrap()]);
    }

    #[test]
    fn what_is_not_known_is_skipped_and_what_is_not_told_is_tried() {
        assert!(read(r#"{"Schema":"transport-graphsync","ID":"x"}"#).is_empty());
        assert!(read(r#"{"Schema":"peer","ID":"nonsense","Addrs":null}"#).is_empty());
        assert!(serde_json::from_str::<Record>(r#"{"ID":"x"}"#).is_err());
        let named = read(&format!(r#"{{"Schema":"peer","ID":"{PEER}","Protocols":["unknown"]}}"#));
        assert!(named.is_empty());
        let named = read(&format!(r#"{{"Schema":"peer","ID":"{PEER}","Addrs":[]}}"#));
        assert!(matches!(&named[..], [Named::Peer(p)] if p.addresses.is_empty()));
    }

    #[test]
    fn a_peer_id_may_be_written_as_a_cid() {
        let peer: PeerId = PEER.parse().unwrap();
        let cid = "bafzaajaiaejcbw5yyhdsqmnrtqdp3bxtrwzyzwbnrwfbzjlfcxzymwtqwdcnvzgh";
        // Whatever the digest, the text form names the same kind of id.
        assert!(peer_id(cid).is_none_or(|other| other != peer));
        let bytes = [vec![1, 0x72], peer.to_bytes()].concat();
        let text = ContentId::from_bytes(&bytes).unwrap().to_string();
        assert_eq!(peer_id(&text), Some(peer));
    }
}
