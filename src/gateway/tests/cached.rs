//! Caches: names of answers, `If-None-Match`, `only-if-cached`.

use super::*;
use crate::content::sha2_256;

const IMMUTABLE: &str = "public, max-age=29030400, immutable";

#[tokio::test(flavor = "multi_thread")]
async fn everything_below_an_id_is_immutable_and_says_where_it_comes_from() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let (sub, hello) = (lab.at(&root, "sub").await, lab.at(&root, "sub/hello").await);
    for query in ["", "?format=raw", "?format=car"] {
        let answer = lab.get(&format!("/ipfs/{root}/sub/hello{query}")).await;
        assert_eq!((answer.status, answer.header("cache-control")), (200, IMMUTABLE), "{query}");
        assert_eq!(answer.header("x-ipfs-path"), format!("/ipfs/{root}/sub/hello"));
        assert_eq!(answer.header("x-ipfs-roots"), format!("{root},{sub},{hello}"));
    }
    let etag = async |query: &str| {
        lab.get(&format!("/ipfs/{root}/sub/hello{query}")).await.header("etag").to_owned()
    };
    assert_eq!(etag("").await, format!("\"{hello}\""));
    assert_eq!(etag("?format=raw").await, format!("\"{hello}.raw\""));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_in_if_none_match_returns_304_without_payload() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    for path in ["/hello.txt", "/big", "?format=raw", "/", "/sub/", "?format=car"] {
        let path = format!("/ipfs/{root}{path}");
        let first = lab.get(&path).await;
        let etag = first.header("etag").to_owned();
        let strong = etag.trim_start_matches("W/");
        for value in
            [etag.clone(), format!("W/{strong}"), format!("\"x\", \"y\", {strong}"), "*".to_owned()]
        {
            let again = lab.ask(Method::GET, &path, &[("if-none-match", &value)]).await;
            assert_eq!((again.status, again.body.len()), (304, 0), "{path} {value}");
            assert_eq!(again.header("etag"), etag);
            assert_eq!(again.header("cache-control"), first.header("cache-control"));
        }
        let other = lab.ask(Method::GET, &path, &[("if-none-match", "\"other\"")]).await;
        assert_eq!((other.status, other.body), (200, first.body), "{path}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_if_cached_gives_what_is_here_and_else_412_at_once() {
    // Nobody is asked although this one fetches: the wait would be longer than the patience.
    let lab = Lab::with(fetching(), |options| {
        options.download.lookup_timeout = PATIENCE * 10;
    })
    .await;
    let root = lab.tree().await;
    let absent = ContentId::dag_pb(sha2_256(b"nobody has this"));
    for method in [Method::GET, Method::HEAD] {
        for query in ["", "?format=raw", "?format=car"] {
            let headers = [("cache-control", "no-transform, only-if-cached")];
            let path = format!("/ipfs/{root}/hello.txt{query}");
            let here = lab.ask(method.clone(), &path, &headers).await;
            assert_eq!(here.status, 200, "{method} {query}");
            let path = format!("/ipfs/{absent}{query}");
            let gone = lab.ask(method.clone(), &path, &headers).await;
            assert_eq!((gone.status, gone.body.len()), (412, 0), "{method} {query}");
        }
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_gives_in_time_is_504_with_a_time_to_come_back() {
    let lab = Lab::with(fetching(), |options| {
        options.download.lookup_timeout = Duration::from_millis(100);
    })
    .await;
    let absent = ContentId::dag_pb(sha2_256(b"nobody has this"));
    for query in ["", "?format=raw", "?format=car"] {
        let answer = lab.get(&format!("/ipfs/{absent}{query}")).await;
        assert_eq!(answer.status, 504, "{query}");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_has_is_fetched_in_every_form() {
    let far = Lab::new_online().await;
    let root = far.tree().await;
    let peers = far.node.net().addresses();
    for (path, is_car) in [("/big", false), ("?format=car", true), ("/big?format=raw", false)] {
        let near = Lab::with(fetching(), |options| options.net.peers.clone_from(&peers)).await;
        let there = far.get(&format!("/ipfs/{root}{path}")).await;
        let fetched = near.get(&format!("/ipfs/{root}{path}")).await;
        assert_eq!((fetched.status, fetched.body), (200, there.body), "{path}");
        if is_car {
            // All of it is here now, and comes without the network.
            let again = [("cache-control", "only-if-cached")];
            let again = near.ask(Method::GET, &format!("/ipfs/{root}?format=car"), &again).await;
            assert!(!again.is_broken);
        }
        near.stop().await;
    }
    far.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_fetch_nothing_is_asked_of_others() {
    let far = Lab::new_online().await;
    let root = far.tree().await;
    let peers = far.node.net().addresses();
    let options = GatewayOptions { offline: false, ..local() };
    let near = Lab::with(options, |options| options.net.peers = peers).await;
    for query in ["", "?format=raw", "?format=car"] {
        assert_eq!(near.get(&format!("/ipfs/{root}{query}")).await.status, 404, "{query}");
    }
    assert!(near.node.engine().transfers().is_empty());
    near.stop().await;
    far.stop().await;
}
