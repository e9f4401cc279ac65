//! Delegated routers, and what becomes of those whom they name.

use super::*;
use crate::net::PeerId;

fn router(server: &Server) -> HttpOptions {
    HttpOptions { routers: vec![server.url().parse().unwrap()], ..options(&[]) }
}

fn record(peer: &PeerId, addresses: &[&str], protocols: &[&str]) -> String {
    serde_json::json!({
        "Schema": "peer", "ID": peer.to_string(), "Addrs": addresses, "Protocols": protocols,
    })
    .to_string()
}

const BITSWAP: &[&str] = &["transport-bitswap"];
const HTTP: &[&str] = &["transport-ipfs-gateway-http"];

/// What a search makes of an answer: names of the sources, and the peers to be dialled with their addresses.
async fn named(
    answer: Response,
    options: impl Fn(HttpOptions) -> HttpOptions,
) -> (Vec<String>, Vec<(PeerId, usize)>) {
    let (content, tasks) = (content(4 * CHUNK), Tasks::new());
    let server = Server::start(move |_| answer.clone());
    let hearsay = Hearsay::default();
    let channel = hearsay.of(&content.root);
    let mut heard = channel.peers.subscribe();
    let finder = HttpFinder::new(&options(router(&server)), &hearsay, &tasks);
    let mut sources: Vec<String> =
        found(&finder, &content.root).await.iter().map(|source| source.id().to_string()).collect();
    sources.sort();
    assert_eq!(server.asked()[0].target, format!("/routing/v1/providers/{}", content.root));
    assert!(server.asked()[0].headers["accept"].starts_with("application/x-ndjson"));
    let mut peers = Vec::new();
    while let Ok(provider) = heard.try_recv() {
        peers.push((provider.peer, provider.addresses.len()));
    }
    (sources, peers)
}

#[tokio::test]
async fn peers_are_handed_on_and_servers_become_sources_whether_as_lines_or_as_a_list() {
    let (one, two) = (PeerId::random(), PeerId::random());
    let records = [
        record(&one, &["/ip4/8.8.8.8/tcp/4001", "/ip4/127.0.0.1/tcp/4001"], BITSWAP),
        record(&two, &["/dns4/gateway.example/tcp/443/https"], HTTP),
        r#"{"Schema":"unknown","ID":7}"#.to_owned(),
        record(&two, &["/ip4/9.9.9.9/tcp/80/http", "/ip4/192.168.0.1/tcp/80/http"], HTTP),
    ];
    let sources = ["http://9.9.9.9", "https://gateway.example"];
    let lines = format!("{}\n\nnonsense\n{}", records[..2].join("\n"), records[2..].join("\n"));
    let answer = Response::ok("application/x-ndjson", lines.into_bytes());
    assert_eq!(named(answer, |o| o).await, (sources.map(String::from).to_vec(), vec![(one, 1)]));
    let list = format!(r#"{{"Providers":[{}]}}"#, records.join(","));
    let answer = Response::ok("application/json; charset=utf-8", list.into_bytes());
    assert_eq!(named(answer, |o| o).await, (sources.map(String::from).to_vec(), vec![(one, 1)]));
}

#[tokio::test]
async fn a_peer_with_nothing_but_addresses_near_here_is_not_dialled_unless_that_is_allowed() {
    let peer = PeerId::random();
    let lines = record(&peer, &["/ip4/127.0.0.1/tcp/1", "/dns4/nas.local/tcp/1"], BITSWAP);
    let answer = Response::ok("application/x-ndjson", lines.into_bytes());
    assert_eq!(named(answer.clone(), |o| o).await, (vec![], vec![]));
    let allowed = |options| HttpOptions { allow_private_addresses: true, ..options };
    assert_eq!(named(answer, allowed).await, (vec![], vec![(peer, 2)]));
}

#[tokio::test]
async fn nothing_known_and_nothing_sensible_end_the_search_all_the_same() {
    for answer in [
        Response::new(404),
        Response::new(500),
        Response::ok("application/json", b"{}".to_vec()),
        Response::ok("application/json", b"{\"Providers\":null}".to_vec()),
        Response::ok("application/json", b"nonsense".to_vec()),
        Response::ok("application/json", vec![b' '; 2 << 20]),
        Response::ok("application/x-ndjson", vec![0xff; 1000]),
        Response::ok("application/x-ndjson", vec![0x1f; 10]).with("Content-Encoding", "gzip"),
    ] {
        assert_eq!(named(answer, |o| o).await, (vec![], vec![]));
    }
}

#[tokio::test]
async fn a_router_that_names_no_end_of_servers_is_cut_off() {
    let lines: Vec<String> = (0..200)
        .map(|n| record(&PeerId::random(), &[&format!("/dns4/g{n}.example/tcp/443/https")], HTTP))
        .collect();
    let body = format!("{}\n", lines.join("\n")).into_bytes();
    let endless = Response {
        length: None,
        body: vec![Piece::Endless(body)],
        ..Response::ok("application/x-ndjson", Vec::new())
    };
    let (sources, _) = named(endless, |o| o).await;
    assert_eq!(sources.len(), 16);
    // One line that never ends.
    let endless = Response {
        length: None,
        body: vec![Piece::Endless(vec![b'x'; 1 << 16])],
        ..Response::ok("application/x-ndjson", Vec::new())
    };
    assert_eq!(named(endless, |o| o).await, (vec![], vec![]));
}

#[tokio::test]
async fn what_the_dht_names_over_http_becomes_a_source_where_it_is_public() {
    let (content, tasks, hearsay) = (content(4 * CHUNK), Tasks::new(), Hearsay::default());
    let finder = HttpFinder::new(&options(&[]), &hearsay, &tasks);
    let mut news = finder.find(&content.root);
    assert!(matches!(news.recv().await, Some(Found::Searched)));
    let servers = &hearsay.of(&content.root).servers;
    for address in
        ["/ip4/127.0.0.1/tcp/80/http", "/ip4/1.2.3.4/udp/1/quic-v1", "/dns/a.example/https"]
    {
        servers.send(address.to_owned()).unwrap();
    }
    let Some(Found::Source(source)) = news.recv().await else { panic!("no source") };
    assert_eq!(&*source.id().0, "https://a.example");
}

#[tokio::test(start_paused = true)]
async fn somebody_who_goes_on_asking_has_the_routers_asked_again_after_a_while() {
    let (content, tasks) = (content(4 * CHUNK), Tasks::new());
    let finder = finder(&options(&[]), &tasks);
    let mut news = finder.find(&content.root);
    assert!(matches!(news.recv().await, Some(Found::Searched)));
    let start = tokio::time::Instant::now();
    finder.ask_again(&content.root);
    assert!(matches!(news.recv().await, Some(Found::Searched)));
    assert_eq!(start.elapsed().as_secs(), 10);
}
