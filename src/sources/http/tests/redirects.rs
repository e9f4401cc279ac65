//! Where requests go, and where they do not.

use super::*;

/// Looks every name up as this machine.
fn here() -> Lookup {
    Arc::new(|_| {
        Box::pin(async { Ok::<_, io::Error>(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]) })
    })
}

/// Wants one block from a URL that somebody named.
async fn get(
    http: &Http,
    url: &str,
    trust: Trust,
    content: &Content,
) -> Result<Block, SourceError> {
    let url = url.parse().unwrap();
    Gateway::new(url, trust, http.clone(), 4).block(&leaves(content)[0].id).await
}

fn http(lookup: Lookup) -> Http {
    Http::new(&HttpOptions::default(), lookup)
}

fn is_rejected(result: &Result<Block, SourceError>) -> bool {
    matches!(result, Err(SourceError::Permanent(Permanent::Rejected(_))))
}

#[tokio::test]
async fn a_redirect_to_this_machine_or_its_network_is_never_followed() {
    let content = content(4 * CHUNK);
    let honest = content.clone();
    let victim = Server::start(move |request| honest.raw(request));
    let port = victim.address.port();
    for to in [
        format!("http://127.0.0.1:{port}/ipfs/x"),
        format!("http://localhost:{port}/ipfs/x"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://0.0.0.0:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://rebinds.example:{port}/"),
        format!("//127.0.0.1:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "https://".to_owned(),
    ] {
        let location = to.clone();
        let server = Server::start(move |_| Response::redirect(&location));
        let result = get(&http(here()), &server.url(), Trust::Configured, &content).await;
        assert!(is_rejected(&result), "{to}: {result:?}");
    }
    assert_eq!(victim.connections(), 0);
}

#[tokio::test]
async fn a_stranger_cannot_send_a_request_to_this_machine_by_an_address_or_a_name() {
    let content = content(4 * CHUNK);
    let honest = content.clone();
    let victim = Server::start(move |request| honest.raw(request));
    let port = victim.address.port();
    let http = http(here());
    for url in [
        format!("http://127.0.0.1:{port}"),
        format!("http://[::ffff:7f00:1]:{port}"),
        format!("http://public.example:{port}"),
    ] {
        let result = get(&http, &url, Trust::Stranger, &content).await;
        assert!(is_rejected(&result), "{url}: {result:?}");
    }
    assert_eq!(victim.connections(), 0);
    // The user may name what he likes, also by a name that leads here.
    for url in [format!("http://127.0.0.1:{port}"), format!("http://named.example:{port}")] {
        assert!(get(&http, &url, Trust::Configured, &content).await.is_ok(), "{url}");
    }
}

#[tokio::test]
async fn a_connection_made_for_the_user_is_not_lent_to_a_stranger() {
    let content = content(4 * CHUNK);
    let honest = content.clone();
    let server = Server::start(move |request| honest.raw(request));
    let (http, url) = (http(here()), format!("http://name.example:{}", server.address.port()));
    assert!(get(&http, &url, Trust::Configured, &content).await.is_ok());
    assert!(is_rejected(&get(&http, &url, Trust::Stranger, &content).await));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn redirects_within_a_configured_gateway_are_followed_five_times() {
    let content = content(4 * CHUNK);
    for (hops, good) in [(5, true), (6, false)] {
        let honest = content.clone();
        let server = Server::start(move |request| {
            let hop = request.target.matches("/hop").count();
            if hop == hops {
                let id = leaves(&honest)[0].id;
                return Response::ok(
                    "application/vnd.ipld.raw",
                    honest.block(&id).unwrap().data().to_vec(),
                );
            }
            Response::redirect(&format!("{}/hop", request.target.split('?').next().unwrap()))
        });
        let result = get(&http(here()), &server.url(), Trust::Configured, &content).await;
        assert_eq!(result.is_ok(), good, "{hops}: {result:?}");
        assert_eq!(server.asked().len(), 6);
    }
}

#[tokio::test]
async fn where_no_stranger_is_asked_no_redirect_leads_out() {
    let options = HttpOptions { ask_strangers: false, ..HttpOptions::default() };
    let http = Http::new(&options, here());
    assert!(!http.accepts(&"https://example.org/".parse().unwrap()));
    let options = HttpOptions { allow_private_addresses: true, ..HttpOptions::default() };
    let http = Http::new(&options, here());
    assert!(http.accepts(&"http://127.0.0.1:1/".parse().unwrap()));
}

#[tokio::test]
async fn all_requests_go_through_a_socks_proxy_which_looks_names_up_itself() {
    let content = content(4 * CHUNK);
    let honest = content.clone();
    let server = Server::start(move |request| honest.raw(request));
    let (proxy, names) = gateway::socks5(server.address);
    let proxy = Some(format!("socks5h://{proxy}").parse().unwrap());
    let never: Lookup = Arc::new(|name| panic!("{name} is looked up here"));
    let http = Http::new(&HttpOptions { proxy, ..HttpOptions::default() }, never);
    for trust in [Trust::Configured, Trust::Stranger] {
        assert!(get(&http, "http://gateway.example", trust, &content).await.is_ok());
    }
    assert_eq!(*names.lock().unwrap(), ["gateway.example", "gateway.example"]);
}

#[tokio::test]
async fn all_requests_go_through_an_http_proxy() {
    let content = content(4 * CHUNK);
    let honest = content.clone();
    let server = Server::start(move |request| honest.raw(request));
    let proxy = Some(server.url().parse().unwrap());
    let never: Lookup = Arc::new(|name| panic!("{name} is looked up here"));
    let http = Http::new(&HttpOptions { proxy, ..HttpOptions::default() }, never);
    assert!(get(&http, "http://gateway.example/under", Trust::Configured, &content).await.is_ok());
    let target = &server.asked()[0].target;
    assert!(target.starts_with("http://gateway.example/under/ipfs/baf"), "{target}");
    // What names this machine by its address is refused before the proxy is asked.
    assert!(is_rejected(&get(&http, "http://127.0.0.1:1", Trust::Stranger, &content).await));
}
