//! Paths that lead nowhere, and requests that are wrong.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_leads_nowhere_is_not_found_and_the_missing_part_is_named() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let sub = lab.at(&root, "sub").await;
    for query in ["", "?format=raw", "?format=car"] {
        let answer = lab.get(&format!("/ipfs/{root}/sub/none/x{query}")).await;
        assert_eq!(answer.status, 404, "{query}");
        assert!(answer.text().contains(&format!("`none` under {sub}")), "{}", answer.text());
        // There is nothing below a file.
        assert_eq!(lab.get(&format!("/ipfs/{root}/big/x{query}")).await.status, 404, "{query}");
    }
    // Dots are no way up, nor is an escaped slash a way down.
    for path in ["sub/%2E%2E/big", "sub%2Fhello"] {
        assert_eq!(lab.get(&format!("/ipfs/{root}/{path}")).await.status, 404, "{path}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_cid_is_a_bad_request() {
    let lab = Lab::new().await;
    for path in ["/ipfs/hello", "/ipfs/", "/ipfs/hello/x?format=car", "/ipfs/Qm/"] {
        let answer = lab.get(path).await;
        assert_eq!(answer.status, 400, "{path}");
    }
    assert_eq!(lab.get("/").await.status, 404);
    assert_eq!(lab.get("/ipns/example.org").await.status, 501);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_worker_is_refused_a_scope_wider_than_a_content() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let headers = [("service-worker", "script")];
    let wide = lab.ask(Method::GET, &format!("/ipfs/{root}"), &headers).await;
    assert_eq!(wide.status, 400);
    for path in ["/", "/hello.txt"] {
        let answer = lab.ask(Method::GET, &format!("/ipfs/{root}{path}"), &headers).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_of_every_origin_may_read() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let has = |answer: &Answer, name: &str, wanted: &[&str]| {
        let values = answer.header(name).to_ascii_lowercase();
        let values: Vec<_> = values.split(',').map(str::trim).collect();
        wanted.iter().all(|one| values.contains(&one.to_ascii_lowercase().as_str()))
    };
    for (method, path, status) in [
        (Method::GET, format!("/ipfs/{root}/hello.txt"), 200),
        (Method::GET, format!("/ipfs/{root}/none"), 404),
        (Method::OPTIONS, format!("/ipfs/{root}/"), 204),
        (Method::OPTIONS, "/routing/v1/providers/x".to_owned(), 204),
        (Method::POST, format!("/ipfs/{root}/"), 405),
    ] {
        let answer = lab.ask(method, &path, &[]).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert!(has(&answer, "access-control-allow-methods", &["GET", "HEAD", "OPTIONS"]));
        let allowed = ["Content-Type", "Range", "User-Agent", "X-Requested-With"];
        assert!(has(&answer, "access-control-allow-headers", &allowed));
        let exposed = ["Content-Range", "Content-Length", "X-Ipfs-Path", "X-Ipfs-Roots"];
        assert!(has(&answer, "access-control-expose-headers", &exposed));
        assert!(has(
            &answer,
            "access-control-expose-headers",
            &["X-Chunked-Output", "X-Stream-Output"]
        ));
    }
    lab.stop().await;
}
