//! Directories: redirects, pages, listings.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_a_slash_is_redirected_to_the_one_with_it() {
    let lab = Lab::new().await;
    let root = lab
        .publish(|tree| {
            fs::create_dir_all(tree.join("ą/ę b")).unwrap();
            fs::write(tree.join("ą/ę b/x"), "x").unwrap();
        })
        .await;
    for method in [Method::GET, Method::HEAD] {
        let answer = lab.ask(method, &format!("/ipfs/{root}"), &[]).await;
        let location = format!("/ipfs/{root}/");
        assert_eq!((answer.status, answer.header("location")), (301, location.as_str()));
    }
    let answer = lab.get(&format!("/ipfs/{root}/%C4%85/%C4%99%20b?a=b")).await;
    let location = format!("/ipfs/{root}/%C4%85/%C4%99%20b/?a=b");
    assert_eq!((answer.status, answer.header("location")), (301, location.as_str()));
    assert_eq!(lab.get(&location).await.status, 200);
    // An archive of a directory needs none.
    assert_eq!(lab.get(&format!("/ipfs/{root}?format=car")).await.status, 200);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn index_html_is_given_instead_of_a_listing() {
    let lab = Lab::new().await;
    let page = "<!doctype html><p>hello";
    let root = lab
        .publish(|tree| {
            fs::create_dir_all(tree.join("site")).unwrap();
            fs::write(tree.join("site/index.html"), page).unwrap();
            fs::create_dir_all(tree.join("odd/index.html")).unwrap();
            fs::write(tree.join("odd/index.html/x"), "x").unwrap();
        })
        .await;
    let site = lab.at(&root, "site").await;
    let answer = lab.get(&format!("/ipfs/{root}/site/")).await;
    assert_eq!((answer.status, answer.text()), (200, page.to_owned()));
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(answer.header("cache-control"), "public, max-age=29030400, immutable");
    assert_eq!(answer.header("etag"), format!("\"{site}\""));
    assert_eq!(answer.header("x-ipfs-roots"), format!("{root},{site}"));
    // One that is a directory is listed.
    let answer = lab.get(&format!("/ipfs/{root}/odd/")).await;
    assert!(answer.text().contains("Index of"), "{}", answer.text());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_has_every_name_as_a_link_that_leads_there() {
    let lab = Lab::new().await;
    let names = ["plain.txt", "a b", "ü?#%&.txt", "<b>\"'", "z"];
    let root = lab
        .publish(|tree| {
            fs::create_dir(tree.join("ą")).unwrap();
            for name in names {
                fs::write(tree.join("ą").join(name), name).unwrap();
            }
        })
        .await;
    let page = lab.get(&format!("/ipfs/{root}/%C4%85/")).await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.header("etag").starts_with("\"DirIndex-"), "{page:?}");
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    let text = page.text();
    assert!(!text.contains("<b>"), "{text}");
    assert!(text.contains(&format!("<a href=\"/ipfs/{root}/%C4%85/..\">..</a>")), "{text}");
    let start = format!("<a href=\"/ipfs/{root}/%C4%85/");
    let links: Vec<_> =
        text.split(&start).skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let mut found = Vec::new();
    for link in links.iter().filter(|link| **link != "..") {
        let answer = lab.get(&format!("/ipfs/{root}/%C4%85/{link}")).await;
        assert_eq!(answer.status, 200, "{link}");
        found.push(answer.text());
    }
    found.sort_unstable();
    let mut expected = names.map(str::to_owned).to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_directory_is_an_empty_listing() {
    let lab = Lab::new().await;
    let root = lab.publish(|_| {}).await;
    let page = lab.get(&format!("/ipfs/{root}/")).await;
    assert_eq!(page.status, 200);
    assert!(page.text().ends_with("</html>\n") && !page.text().contains("<tr>"), "{}", page.text());
    lab.stop().await;
}
