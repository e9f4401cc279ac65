//! `/routing/v1`.

use serde_json::Value;

use super::*;
use crate::content::sha2_256;

fn json(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn this_node_provides_what_it_has_and_nothing_else() {
    let lab = Lab::new_online().await;
    let root = lab.tree().await;
    let answer = lab.get(&format!("/routing/v1/providers/{root}")).await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("vary"), "Accept");
    assert!(answer.header("cache-control").starts_with("public, max-age=300, "));
    assert!(answer.headers.contains_key("last-modified"));
    let providers = json(&answer)["Providers"].as_array().unwrap().clone();
    assert_eq!(providers.len(), 1);
    assert_eq!(providers[0]["Schema"], "peer");
    assert_eq!(providers[0]["ID"], lab.node.net().peer_id().to_string());
    assert_eq!(providers[0]["Protocols"][0], "transport-bitswap");
    let addresses: Vec<_> =
        providers[0]["Addrs"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert!(addresses.iter().any(|a| a.starts_with("/ip4/127.0.0.1/tcp/") && !a.contains("p2p")));
    assert!(addresses.contains(&&*format!("/ip4/127.0.0.1/tcp/{}/http", lab.address.port())));

    let absent = ContentId::dag_pb(sha2_256(b"nobody has this"));
    let answer = lab.get(&format!("/routing/v1/providers/{absent}")).await;
    assert_eq!(json(&answer)["Providers"], serde_json::json!([]));
    assert!(answer.header("cache-control").starts_with("public, max-age=15, "));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_come_only_when_they_are_asked_for() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let path = format!("/routing/v1/providers/{root}");
    let answer = lab.get_as(&path, "application/x-ndjson").await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    let text = answer.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1);
    let record: Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(record["Schema"], "peer");
    for accept in ["*/*", "application/json"] {
        let answer = lab.get_as(&path, accept).await;
        assert_eq!(answer.header("content-type"), "application/json");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_leave_out_what_is_of_no_use() {
    let lab = Lab::new().await;
    let root = lab.tree().await;
    let count = async |filter: &str| {
        let answer = lab.get(&format!("/routing/v1/providers/{root}?{filter}")).await;
        json(&answer)["Providers"].as_array().unwrap().len()
    };
    assert_eq!(count("filter-protocols=transport-ipfs-gateway-http").await, 1);
    assert_eq!(count("filter-protocols=transport-graphsync").await, 0);
    assert_eq!(count("filter-addrs=webrtc-direct").await, 0);
    let answer = lab.get(&format!("/routing/v1/providers/{root}?filter-addrs=http")).await;
    let addresses = json(&answer)["Providers"][0]["Addrs"].clone();
    let own = format!("/ip4/127.0.0.1/tcp/{}/http", lab.address.port());
    assert_eq!(addresses, serde_json::json!([own]));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_told_when_it_is_connected() {
    let far = Lab::new_online().await;
    let near = Lab::new_online().await;
    for address in far.node.net().addresses() {
        near.node.net().connect(address).await.unwrap();
    }
    let id = far.node.net().peer_id();
    let peers = json(&near.get(&format!("/routing/v1/peers/{id}")).await)["Peers"].clone();
    assert_eq!(peers.as_array().unwrap().len(), 1);
    assert_eq!(peers[0]["ID"], id.to_string());
    assert!(peers[0]["Addrs"][0].as_str().unwrap().starts_with("/ip4/127.0.0.1/"), "{peers}");
    let own = near.node.net().peer_id();
    let own = json(&near.get(&format!("/routing/v1/peers/{own}")).await)["Peers"].clone();
    assert_eq!(own.as_array().unwrap().len(), 1);
    far.stop().await;
    near.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_id_cannot_be_processed_and_other_routes_are_unknown() {
    let lab = Lab::new().await;
    assert_eq!(lab.get("/routing/v1/providers/hello").await.status, 422);
    assert_eq!(lab.get("/routing/v1/peers/hello").await.status, 422);
    assert_eq!(lab.get("/routing/v1/other").await.status, 400);
    let put = lab.ask(Method::PUT, "/routing/v1/providers/hello", &[]).await;
    assert_eq!(put.status, 501);
    // 404 is never answered for what nobody has.
    let absent = ContentId::dag_pb(sha2_256(b"nobody has this"));
    assert_eq!(lab.get(&format!("/routing/v1/providers/{absent}")).await.status, 200);
    lab.stop().await;
}
