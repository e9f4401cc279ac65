#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;

use super::*;
use crate::{
    content::{self, Block, ByteRange, FileLayout, ImportParams},
    sources::{Permanent, Reply, Source, SourceError, Transient, Want},
};

mod limits;
mod redirects;
mod routers;
mod webseeds;

#[allow(dead_code, reason = "the tests of the daemon use the rest")]
#[path = "../../../tests/support/gateway.rs"]
mod gateway;

use gateway::{Content, Piece, Request, Response, Server, until};

const CHUNK: usize = 4096;
const SMALL: ImportParams =
    ImportParams { chunk_len: CHUNK, max_links: 5, ..ImportParams::DEFAULT };

/// What a server makes of a request.
type Answer = Box<dyn Fn(&Request) -> Response + Send + Sync>;

/// A file of chunks that differ.
fn content(len: usize) -> Content {
    let bytes: Vec<u8> =
        (0..len).map(|at| ((at / CHUNK * 31) ^ (at * 7)).to_le_bytes()[0]).collect();
    Content::new(SMALL, &bytes)
}

/// The leaves of a file as they are wanted.
fn leaves(content: &Content) -> Vec<Want> {
    let mut layout = FileLayout::new(content.block(&content.root).unwrap()).unwrap();
    let all = ByteRange::new(0, layout.size());
    while !layout.is_unfolded() {
        for need in layout.needs(all) {
            layout.insert(content.block(&need.cid).unwrap()).unwrap();
        }
    }
    let (root, file) = (content.root, content.root);
    layout.needs(all).iter().map(|n| Want { id: n.cid, root, file, range: n.range }).collect()
}

fn options(servers: &[&Server]) -> HttpOptions {
    let gateways = servers.iter().map(|server| server.url().parse().unwrap()).collect();
    HttpOptions { gateways, request_timeout: Duration::from_secs(20), ..HttpOptions::default() }
}

fn finder(options: &HttpOptions, tasks: &Tasks) -> HttpFinder {
    HttpFinder::new(options, &Hearsay::default(), tasks)
}

/// The sources that a search gives before it says that everybody was asked.
async fn found(finder: &HttpFinder, root: &ContentId) -> Vec<Arc<dyn Source>> {
    let mut news = finder.find(root);
    let mut sources = Vec::new();
    while let Some(news) = news.recv().await {
        match news {
            Found::Source(source) => sources.push(source),
            Found::Gone(_) => {}
            Found::Searched => break,
        }
    }
    sources
}

/// A gateway as a source.
async fn source(server: &Server, tasks: &Tasks) -> Arc<dyn Source> {
    let root = *Block::raw(Bytes::new()).cid();
    found(&finder(&options(&[server]), tasks), &root).await.remove(0)
}

/// What becomes of wants, each answered once.
async fn ask(
    source: &dyn Source,
    wants: &[Want],
) -> HashMap<ContentId, Result<Block, SourceError>> {
    let (to, mut replies) = mpsc::unbounded_channel();
    source.request(wants, &to);
    drop(to);
    let mut results = HashMap::new();
    while results.len() < wants.len() {
        let Reply { id, result, .. } = replies.recv().await.unwrap();
        assert!(results.insert(id, result).is_none(), "{id} is answered twice");
    }
    results
}

fn all_came(wants: &[Want], results: &HashMap<ContentId, Result<Block, SourceError>>) -> bool {
    wants.iter().all(|want| results[&want.id].as_ref().is_ok_and(|block| *block.cid() == want.id))
}

#[tokio::test]
async fn a_run_of_blocks_is_one_request_and_others_are_one_each() {
    let (content, tasks) = (content(40 * CHUNK), Tasks::new());
    let honest = content.clone();
    let server = Server::start(move |request| honest.answer(request));
    let source = source(&server, &tasks).await;
    let wants = leaves(&content);
    let results = ask(&*source, &wants).await;
    assert!(all_came(&wants, &results));
    assert_eq!(server.counts(), (1, 0));
    assert_eq!(server.asked()[0].headers["accept-encoding"], "identity");
    let apart = [wants[3], wants[17], Want { range: ByteRange::default(), ..wants[8] }];
    assert!(all_came(&apart, &ask(&*source, &apart).await));
    assert_eq!(server.counts(), (1, 3));
}

#[tokio::test]
async fn connections_are_used_again_and_requests_at_a_time_are_bounded() {
    let (content, tasks) = (content(200 * CHUNK), Tasks::new());
    let (honest, running) = (content.clone(), Arc::new(AtomicUsize::new(0)));
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    let server = Server::start(move |request| {
        seen.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let answer = honest.raw(request);
        running.fetch_sub(1, Ordering::SeqCst);
        answer
    });
    let mut options = options(&[&server]);
    options.requests_per_gateway = 3;
    let source = found(&finder(&options, &tasks), &content.root).await.remove(0);
    let wants: Vec<Want> = leaves(&content).into_iter().step_by(2).collect();
    assert!(all_came(&wants, &ask(&*source, &wants).await));
    assert_eq!(server.counts(), (0, 100));
    assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    // A request that waits for its connection takes another that becomes free, and its own is kept for later.
    assert!(server.connections() <= 6, "{}", server.connections());
}

#[tokio::test]
async fn who_has_answered_nothing_yet_is_asked_one_thing_at_a_time() {
    let (first, second, tasks) = (content(20 * CHUNK), content(30 * CHUNK), Tasks::new());
    let server = Server::start(|_| Response::new(429).with("Retry-After", "600"));
    let finder = finder(&options(&[&server]), &tasks);
    let of_first = found(&finder, &first.root).await.remove(0);
    let of_second = found(&finder, &second.root).await.remove(0);
    let (wants, others) = (leaves(&first), leaves(&second));
    let (left, right) = tokio::join!(ask(&*of_first, &wants), ask(&*of_second, &others));
    let limited =
        |result| matches!(result, &Err(SourceError::Transient(Transient::RateLimited(_))));
    assert!(left.values().chain(right.values()).all(limited));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_gateway_without_archives_is_asked_block_by_block_and_not_for_one_again() {
    let content = content(20 * CHUNK);
    let html = || Response::ok("text/html", b"<html>".to_vec());
    let answers: [fn() -> Response; 7] = [
        || Response::new(400),
        || Response::new(406),
        || Response::new(415),
        || Response::new(501),
        html,
        || Response::ok("application/vnd.ipld.raw", vec![7; 5000]),
        || Response::ok("application/vnd.ipld.car", b"no archive at all".to_vec()),
    ];
    for answer in answers {
        let (tasks, blocks) = (Tasks::new(), content.clone());
        let server = Server::start(
            move |request| {
                if request.is_car() { answer() } else { blocks.raw(request) }
            },
        );
        let source = source(&server, &tasks).await;
        let wants = leaves(&content);
        assert!(all_came(&wants[..10], &ask(&*source, &wants[..10]).await), "{:?}", answer());
        assert!(all_came(&wants[10..], &ask(&*source, &wants[10..]).await));
        assert_eq!(server.counts(), (1, 20), "{:?}", answer());
    }
}

#[tokio::test]
async fn a_root_that_is_not_there_is_not_asked_for_block_by_block() {
    let (content, tasks) = (content(20 * CHUNK), Tasks::new());
    let server = Server::start(|_| Response::new(404));
    let source = source(&server, &tasks).await;
    let wants = leaves(&content);
    let results = ask(&*source, &wants).await;
    assert!(results.values().all(|result| *result == Err(Permanent::NotFound.into())));
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn a_window_that_breaks_off_or_lacks_blocks_is_completed_block_by_block() {
    let content = content(20 * CHUNK);
    let (cut, ends) = (content.clone(), content.clone());
    let lacks = content.clone();
    let breaks: [Answer; 3] = [
        // The connection closes in the middle of a block.
        Box::new(move |request| cut.answer(request).cut(10 * CHUNK + 100)),
        // The archive ends between two blocks.
        Box::new(move |request| {
            let blocks = ends.part(ByteRange::new(0, 12 * CHUNK as u64));
            let _ = request;
            Response::ok("application/vnd.ipld.car", gateway::car(&ends.root, &blocks))
        }),
        // Some are missing.
        Box::new(move |request| {
            let _ = request;
            let mut blocks = lacks.part(ByteRange::new(0, 20 * CHUNK as u64));
            let mut at = 0;
            blocks.retain(|_| {
                at += 1;
                at % 3 > 0
            });
            Response::ok("application/vnd.ipld.car", gateway::car(&lacks.root, &blocks))
        }),
    ];
    for answer in breaks {
        let (tasks, blocks) = (Tasks::new(), content.clone());
        let server =
            Server::start(
                move |request| {
                    if request.is_car() { answer(request) } else { blocks.raw(request) }
                },
            );
        let source = source(&server, &tasks).await;
        let wants = leaves(&content);
        assert!(all_came(&wants, &ask(&*source, &wants).await));
        let (cars, raw) = server.counts();
        assert!(cars == 1 && (1..20).contains(&raw), "{raw} blocks one by one");
    }
}

#[tokio::test]
async fn wrong_bytes_are_a_lie_in_a_window_and_alone() {
    let content = content(20 * CHUNK);
    let (tasks, liar) = (Tasks::new(), content.clone());
    let server = Server::start(move |request| {
        let mut answer = liar.answer(request);
        if let Some(Piece::Bytes(body)) = answer.body.first_mut() {
            *body.last_mut().unwrap() ^= 1;
        }
        answer
    });
    let source = source(&server, &tasks).await;
    let wants = leaves(&content);
    let lie = Err(Permanent::BadHash.into());
    let results = ask(&*source, &wants).await;
    assert_eq!(results[&wants[19].id], lie);
    assert!(all_came(&wants[..4], &results), "what was right stays");
    assert_eq!(ask(&*source, &wants[..1]).await[&wants[0].id], lie);
    source.ban(Duration::from_secs(3600));
    let asked = server.asked().len();
    let refused = &ask(&*source, &wants[..1]).await[&wants[0].id];
    assert!(matches!(refused, Err(SourceError::Permanent(Permanent::Rejected(_)))), "{refused:?}");
    assert_eq!(server.asked().len(), asked, "a banned gateway is left alone");
}

#[tokio::test]
async fn who_asks_to_wait_is_left_alone_by_all() {
    let (content, tasks) = (content(4 * CHUNK), Tasks::new());
    let server = Server::start(|_| Response::new(429).with("Retry-After", "100"));
    let finder = finder(&options(&[&server]), &tasks);
    let (one, other) = (found(&finder, &content.root).await, found(&finder, &content.root).await);
    let want = leaves(&content)[0];
    let wait = Err(Transient::RateLimited(Duration::from_secs(100)).into());
    assert_eq!(ask(&*one[0], &[want]).await[&want.id], wait);
    let result = &ask(&*other[0], &[want]).await[&want.id];
    assert!(
        matches!(result, Err(SourceError::Transient(Transient::RateLimited(wait))) if wait.as_secs() > 90),
        "{result:?}"
    );
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_gateway_that_is_not_there_or_refuses_is_an_error_of_its_kind() {
    let (content, tasks) = (content(4 * CHUNK), Tasks::new());
    let want = leaves(&content)[0];
    let server = Server::start(|_| Response::new(401));
    let result = &ask(&*source(&server, &tasks).await, &[want]).await[&want.id];
    assert!(matches!(result, Err(SourceError::Permanent(Permanent::Rejected(_)))), "{result:?}");
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let options = HttpOptions { gateways: vec![url.parse().unwrap()], ..HttpOptions::default() };
    let source = found(&finder(&options, &tasks), &content.root).await.remove(0);
    assert_eq!(ask(&*source, &[want]).await[&want.id], Err(Transient::Reset.into()));
}

#[tokio::test]
async fn what_nobody_wants_any_more_is_hung_up_on() {
    let (content, tasks) = (content(20 * CHUNK), Tasks::new());
    let silent = content.clone();
    let server = Server::start(move |request| {
        let mut answer = silent.answer(request).cut(6 * CHUNK);
        answer.body.push(Piece::Silence);
        answer
    });
    let source = source(&server, &tasks).await;
    let wants = leaves(&content);
    let (to, mut replies) = mpsc::unbounded_channel();
    source.request(&wants, &to);
    let first = replies.recv().await.unwrap();
    assert!(first.result.is_ok(), "a block is given before the window has come whole");
    let ids: Vec<ContentId> = wants.iter().map(|want| want.id).collect();
    source.cancel(&ids[..19]);
    assert_eq!(server.open(), 1, "one is still needed");
    source.cancel(&ids);
    tokio::task::spawn_blocking(move || until("the end of the connection", || server.open() == 0))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_source_that_is_dropped_leaves_no_request_behind() {
    let (content, tasks) = (content(20 * CHUNK), Tasks::new());
    let server =
        Server::start(|_| Response { body: vec![Piece::Silence], ..Response::ok("x", vec![1]) });
    let source = source(&server, &tasks).await;
    let (to, _replies) = mpsc::unbounded_channel();
    source.request(&leaves(&content), &to);
    let asked = server.clone();
    tokio::task::spawn_blocking(move || until("the request", || asked.open() == 1)).await.unwrap();
    drop(source);
    tokio::task::spawn_blocking(move || until("the end of the connection", || server.open() == 0))
        .await
        .unwrap();
    until("the end of all tasks", || !tasks.alive().contains_key("http-request"));
}
