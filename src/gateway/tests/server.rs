//! The server itself: who may ask, clients that go, the end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_somebody_else_made_lead_here_is_refused() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let path = format!("/ipfs/{root}/hello.txt");
    for (host, status) in [
        ("localhost", 200),
        ("localhost:1234", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("files.example", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.1.1", 403),
    ] {
        assert_eq!(lab.ask(Method::GET, &path, &[("host", host)]).await.status, status, "{host}");
    }
    // The other routes are not open either.
    let providers = format!("/routing/v1/providers/{root}");
    assert_eq!(lab.ask(Method::GET, &providers, &[("host", "evil.example")]).await.status, 403);
    assert_eq!(lab.ask(Method::OPTIONS, &path, &[("host", "evil.example")]).await.status, 403);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_go_over_one_connection() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    let request = |path: &str, close: &str| {
        format!(
            "GET /ipfs/{root}/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: {close}\r\n\r\n"
        )
    };
    stream.write_all(request("hello.txt", "keep-alive").as_bytes()).await.unwrap();
    stream.write_all(request("sub/hello", "close").as_bytes()).await.unwrap();
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.unwrap();
    let text = String::from_utf8(read).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert!(text.contains("hello world\n") && text.ends_with("hello\n"), "{text}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_the_work() {
    let lab = Lab::with(fetching(), |options| {
        options.download.lookup_timeout = PATIENCE * 10;
    })
    .await;
    let absent = ContentId::dag_pb(crate::content::sha2_256(b"nobody has this"));
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    let request = format!("GET /ipfs/{absent} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let waits = || lab.node.tasks().alive().contains_key("download");
    until(waits).await;
    assert!(lab.node.tasks().alive().contains_key("gateway connection"));
    drop(stream);
    until(|| !lab.node.tasks().alive().contains_key("gateway connection")).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_progress_do_not_hold_up_the_end() {
    let lab = Lab::new().await;
    // More than the buffers of connections take, and no block twice.
    let large: Vec<u8> = (0..8_u32 << 20).flat_map(u32::to_le_bytes).collect();
    let root = lab.publish(|tree| fs::write(tree.join("large"), large).unwrap()).await;
    let path = format!("/ipfs/{root}/large");
    let mut file = lab.send(Method::GET, &path, &[]).await.into_body();
    let path = format!("/ipfs/{root}?format=car");
    let mut archive = lab.send(Method::GET, &path, &[]).await.into_body();
    // Both have begun, and are not read on.
    for body in [&mut file, &mut archive] {
        body.frame().await.unwrap().unwrap();
    }
    assert_eq!(lab.node.tasks().alive().get("gateway connection"), Some(&2));
    lab.stop().await;
    let rest = async |mut body: Incoming| {
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return true;
            }
        }
        false
    };
    assert!(rest(file).await && rest(archive).await, "a body that was cut off looks whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_told_by_its_name() {
    let lab = Lab::new().await;
    let again = GatewayOptions { listen: lab.address, ..local() };
    let error = Gateway::bind(lab.node.clone(), again).await.unwrap_err().to_string();
    assert!(error.contains(&lab.address.to_string()), "{error}");
    lab.stop().await;
}

/// A poll, not a synchronisation: what is waited for has no handle to wait on.
async fn until(done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}
