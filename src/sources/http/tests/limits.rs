//! Gateways that never end, and bodies that are more than they seem.

use super::*;

/// More than anything here may read of a body that does not end: the window with its allowance, and the buffers of the
/// connection.
const TOO_MUCH: u64 = 32 << 20;

#[tokio::test]
async fn an_endless_archive_is_cut_off_and_what_came_of_it_is_kept() {
    let (content, tasks) = (content(20 * CHUNK), Tasks::new());
    let endless = content.clone();
    let server = Server::start(move |request| {
        if !request.is_car() {
            return endless.raw(request);
        }
        let half = gateway::car(&endless.root, &endless.part(ByteRange::new(0, 10 * CHUNK as u64)));
        let other = Block::raw(vec![1; 1 << 20].into());
        let more = gateway::car(other.cid(), std::slice::from_ref(&other)).split_off(59);
        Response {
            length: None,
            body: vec![Piece::Bytes(half), Piece::Endless(more)],
            ..Response::ok("application/vnd.ipld.car", Vec::new())
        }
    });
    let source = source(&server, &tasks).await;
    let wants = leaves(&content);
    assert!(all_came(&wants, &ask(&*source, &wants).await));
    let watched = server.clone();
    tokio::task::spawn_blocking(move || until("the end of the archive", || watched.open() <= 16))
        .await
        .unwrap();
    assert!(server.sent() < TOO_MUCH, "{} bytes were read", server.sent());
    assert_eq!(server.counts().0, 1);
}

#[tokio::test]
async fn an_endless_block_and_one_that_is_too_long_are_cut_off() {
    let (content, tasks) = (content(4 * CHUNK), Tasks::new());
    let want = leaves(&content)[0];
    for length in [None, Some(1 << 40)] {
        let server = Server::start(move |_| Response {
            length,
            body: vec![Piece::Endless(vec![7; 1 << 16])],
            ..Response::ok("application/vnd.ipld.raw", Vec::new())
        });
        let source = source(&server, &tasks).await;
        assert_eq!(ask(&*source, &[want]).await[&want.id], Err(Permanent::BadHash.into()));
        let watched = server.clone();
        tokio::task::spawn_blocking(move || until("the end of the body", || watched.open() == 0))
            .await
            .unwrap();
        assert!(server.sent() < TOO_MUCH, "{} bytes were read", server.sent());
    }
}

#[tokio::test]
async fn a_header_of_a_gigabyte_is_refused_before_it_comes() {
    let (content, tasks) = (content(20 * CHUNK), Tasks::new());
    let blocks = content.clone();
    let server = Server::start(move |request| {
        if !request.is_car() {
            return blocks.raw(request);
        }
        // The length of the header as a varint: 2^30.
        let claims = vec![0x80, 0x80, 0x80, 0x80, 0x04];
        Response {
            length: None,
            body: vec![Piece::Bytes(claims), Piece::Endless(vec![0xa2; 1 << 16])],
            ..Response::ok("application/vnd.ipld.car", Vec::new())
        }
    });
    let source = source(&server, &tasks).await;
    let wants = leaves(&content);
    assert!(all_came(&wants, &ask(&*source, &wants).await));
    assert_eq!(server.counts().0, 1);
    assert!(server.sent() < TOO_MUCH, "{} bytes were read", server.sent());
}

#[tokio::test]
async fn what_is_compressed_unasked_is_not_inflated() {
    let (content, tasks) = (content(20 * CHUNK), Tasks::new());
    let server = Server::start(|_| {
        Response::ok("application/vnd.ipld.car", vec![0x1f; 1000]).with("Content-Encoding", "gzip")
    });
    let source = source(&server, &tasks).await;
    let wants = leaves(&content);
    let results = ask(&*source, &wants).await;
    let rejected = |result| matches!(result, &Err(SourceError::Permanent(Permanent::Rejected(_))));
    assert!(results.values().all(rejected), "{results:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up_after_the_timeout() {
    let (content, tasks) = (content(4 * CHUNK), Tasks::new());
    // It takes connections and never answers; the kernel does that by itself.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let options = HttpOptions { gateways: vec![url.parse().unwrap()], ..HttpOptions::default() };
    let source = found(&finder(&options, &tasks), &content.root).await.remove(0);
    let want = leaves(&content)[0];
    let start = tokio::time::Instant::now();
    let result = ask(&*source, &[want]).await.remove(&want.id).unwrap();
    assert_eq!(result, Err(Transient::Timeout.into()));
    assert!(start.elapsed() <= Duration::from_secs(31), "{:?}", start.elapsed());
}
