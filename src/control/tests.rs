//! The whole interface over a real socket, with a node of its own behind it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
    time::Duration,
};

use futures::StreamExt;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    content::ContentId,
    node::{Node, tests::options},
    tasks::Tasks,
};

const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    dir: TempDir,
    node: Node,
    stop: CancellationToken,
    client: Client,
}

impl Daemon {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (node, stop, client) = start(dir.path()).await;
        Self { dir, node, stop, client }
    }

    async fn add(&self, name: &str, bytes: &[u8]) -> Added {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        self.client.post("/v1/add", &add_request(path)).await.unwrap()
    }

    async fn cat(&self, id: &str, from: u64) -> Result<Vec<u8>, ClientError> {
        let mut body = self.client.bytes(&Client::target("cat", id), from).await?;
        let mut all = Vec::new();
        while let Some(piece) = body.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    async fn refused(&self, target: &str) -> ErrorCode {
        match self.client.get::<serde_json::Value>(target).await {
            Err(ClientError::Failure(failure)) => failure.code,
            other => unreachable!("{other:?}"),
        }
    }
}

fn add_request(path: impl Into<std::path::PathBuf>) -> AddRequest {
    AddRequest { path: path.into(), options: AddOptions::default(), progress: false }
}

async fn start(dir: &Path) -> (Node, CancellationToken, Client) {
    start_with(dir, false).await
}

async fn start_with(dir: &Path, read_only: bool) -> (Node, CancellationToken, Client) {
    // Deeper than the address of a socket may be long.
    let data = dir.join("d".repeat(120)).join("data");
    let mut options = options(&data, Vec::new(), true);
    options.download.lookup_timeout = Duration::from_millis(200);
    options.publish.read_only = read_only;
    fs::create_dir_all(&data).unwrap();
    let node = Node::start(options, Tasks::new()).await.unwrap();
    let stop = CancellationToken::new();
    Server::bind(node.clone(), stop.clone()).unwrap().start();
    (node, stop, Client::new(&data, Tasks::new()))
}

fn row(cid: ContentId, name: &str, complete: bool) -> PinRow {
    let (id, name) = (cid.to_string(), name.to_owned());
    PinRow { id, cid: Some(cid), infohash: None, name, only: None, complete }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_added_is_told_read_listed_and_pinned() {
    let daemon = Daemon::start().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let added = daemon.add("a file", &bytes).await;
    let [AddedEntry { cid, name }] = added.entries.as_slice() else { unreachable!("{added:?}") };
    let id = cid.to_string();
    assert_eq!(name, "a file");

    assert!(daemon.cat(&id, 0).await.unwrap() == bytes);
    assert!(daemon.cat(&id, 2_999_999).await.unwrap() == bytes[2_999_999..]);
    let stat: Stat = daemon.client.get(&Client::target("stat", &id)).await.unwrap();
    assert_eq!((stat.kind, stat.size), (Kind::File, 3_000_000));
    let listed: Vec<Listed> = daemon.client.get(&Client::target("ls", &id)).await.unwrap();
    assert_eq!(listed[0].size, Some(3_000_000));

    let pin = PinRequest { id: id.clone().into(), name: "kept".to_owned() };
    let _: PinRow = daemon.client.post("/v1/pins", &pin).await.unwrap();
    let pins: Vec<PinRow> = daemon.client.get("/v1/pins").await.unwrap();
    let kept = row(*cid, "kept", true);
    assert_eq!(pins, std::slice::from_ref(&kept));
    let again = PinRequest { id: id.clone().into(), name: String::new() };
    assert_eq!(daemon.client.post::<PinRow>("/v1/pins", &again).await.unwrap(), kept);
    let target = Client::target("pins", &id);
    assert!(daemon.client.delete::<Unpinned>(&target).await.unwrap().removed);
    assert!(!daemon.client.delete::<Unpinned>(&target).await.unwrap().removed);

    let status: Status = daemon.client.get("/v1/status").await.unwrap();
    assert_eq!((status.uploads, status.store.objects), (1, 1));
    let mut lines = daemon.client.lines(Method::POST, "/v1/store/verify").await.unwrap();
    let mut last = None;
    while let Some(line) = lines.next().await {
        last = Some(line.unwrap());
    }
    assert!(
        matches!(last, Some(VerifyLine::Report { bytes: 3_000_000.., bad, .. }) if bad.is_empty())
    );
    daemon.node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn adding_tells_how_far_it_is_when_asked_to() {
    let daemon = Daemon::start().await;
    let tree = daemon.dir.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("large"), vec![7; 20 << 20]).unwrap();
    fs::write(tree.join("sub/small"), "text").unwrap();
    let (path, all) = (tree, (20 << 20) + 4);
    let request = AddRequest { path: path.clone(), progress: true, options: AddOptions::default() };
    let mut lines = daemon.client.post_lines("/v1/add", &request).await.unwrap();
    let (mut copied, mut hashing) = (Vec::new(), Vec::new());
    let mut entries = Vec::new();
    let added = loop {
        match lines.next().await.unwrap().unwrap() {
            AddLine::Entry(entry) => entries.push(entry),
            AddLine::Stage(Stage::Copying { done, total }) if total == all => copied.push(done),
            AddLine::Stage(Stage::Hashing { done, total }) if total == all => hashing.push(done),
            AddLine::Added(added) => break added,
            other => unreachable!("{other:?}"),
        }
    };
    assert!(lines.next().await.is_none());
    assert!(!copied.is_empty() && copied.is_sorted() && copied.iter().all(|at| *at < all));
    assert!(
        hashing.starts_with(&[0]) && hashing.is_sorted() && hashing.iter().all(|at| *at <= all)
    );
    let plain = add_request(path);
    let plain: Added = daemon.client.post("/v1/add", &plain).await.unwrap();
    entries.push(added);
    assert_eq!(entries, plain.entries);
    assert_eq!(entries.len(), 4);

    let nowhere = AddRequest {
        path: "/nowhere/at/all".into(),
        progress: true,
        options: AddOptions::default(),
    };
    let mut lines = daemon.client.post_lines("/v1/add", &nowhere).await.unwrap();
    let only = lines.next().await.unwrap().unwrap();
    assert!(matches!(only, AddLine::Failed(failure) if failure.code == ErrorCode::NoEntry));
    daemon.node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_many_files_is_told_line_by_line() {
    let daemon = Daemon::start().await;
    let tree = daemon.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    // In one line they would be longer than a line may be.
    let mut names: Vec<_> = (0..5000).map(|n| format!("{n:04}{}", "x".repeat(220))).collect();
    names.iter().for_each(|name| fs::write(tree.join(name), name).unwrap());
    fs::write(tree.join(".env"), "KEY=1").unwrap();
    let request = AddRequest { path: tree, progress: true, options: AddOptions::default() };
    let mut lines = daemon.client.post_lines("/v1/add", &request).await.unwrap();
    let (mut told, mut skipped) = (Vec::new(), None);
    let root = loop {
        match lines.next().await.unwrap().unwrap() {
            AddLine::Stage(_) => {}
            AddLine::Entry(AddedEntry { name, .. }) => {
                told.push(name.strip_prefix("tree/").unwrap().to_owned());
            }
            AddLine::Skipped(names) => skipped = Some(names),
            AddLine::Added(root) => break root,
            AddLine::Failed(failure) => unreachable!("{failure:?}"),
        }
    };
    assert!(lines.next().await.is_none());
    told.sort();
    names.sort();
    assert!(told == names && root.name == "tree");
    let first = vec!["tree/.env".to_owned()];
    assert_eq!(skipped, Some(SkippedNames { count: 1, by_rules: 0, first }));
    daemon.node.stop(PATIENCE).await.unwrap();
}

#[test]
fn a_line_of_progress_is_one_object_with_the_name_of_its_stage() {
    let text = r#"{"copying":{"done":1,"total":2}}"#;
    let line: AddLine = serde_json::from_str(text).unwrap();
    assert!(matches!(line, AddLine::Stage(Stage::Copying { done: 1, total: 2 })), "{line:?}");
    assert_eq!(serde_json::to_string(&line).unwrap(), text);
    let pieces = SeedLine::Stage(Stage::Pieces { done: 1, total: 2 });
    let text = r#"{"pieces":{"done":1,"total":2}}"#;
    assert_eq!(serde_json::to_string(&pieces).unwrap(), text);
}

#[tokio::test(flavor = "multi_thread")]
async fn seeding_tells_how_far_it_is_when_asked_to() {
    let daemon = Daemon::start().await;
    let (path, all) = (daemon.dir.path().join("film"), 20 << 20);
    fs::write(&path, vec![7; 20 << 20]).unwrap();
    let request =
        SeedRequest { path: Some(path), id: None, progress: true, options: AddOptions::default() };
    let mut lines = daemon.client.post_lines("/v1/seed", &request).await.unwrap();
    let (mut published, mut pieces) = (0, Vec::new());
    let seeded = loop {
        match lines.next().await.unwrap().unwrap() {
            SeedLine::Stage(Stage::Copying { total, .. })
            | SeedLine::Stage(Stage::Hashing { total, .. })
                if total == all && pieces.is_empty() =>
            {
                published += 1;
            }
            SeedLine::Stage(Stage::Pieces { done, total }) if total == all => pieces.push(done),
            SeedLine::Seeded(seeded) => break seeded,
            other => unreachable!("{other:?}"),
        }
    };
    assert!(lines.next().await.is_none());
    assert!(published > 0 && pieces.len() > 1 && pieces.is_sorted(), "{published} {pieces:?}");
    assert_eq!(pieces.last(), Some(&all));
    let id = Some(seeded.infohash.clone());
    let plain = SeedRequest { path: None, id, progress: false, options: AddOptions::default() };
    let plain: Seeded = daemon.client.post("/v1/seed", &plain).await.unwrap();
    assert_eq!(plain, seeded);

    let nowhere = SeedRequest {
        path: Some("/nowhere".into()),
        id: None,
        progress: true,
        options: AddOptions::default(),
    };
    let mut lines = daemon.client.post_lines("/v1/seed", &nowhere).await.unwrap();
    let only = lines.next().await.unwrap().unwrap();
    assert!(matches!(only, SeedLine::Failed(failure) if failure.code == ErrorCode::NoEntry));
    daemon.node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_it_is_copied_publishes_nothing() {
    let daemon = Daemon::start().await;
    let path = daemon.dir.path().join("large");
    // Takes seconds to copy, and no room before.
    fs::File::create(&path).unwrap().set_len(4 << 30).unwrap();
    let request = AddRequest { path, progress: true, options: AddOptions::default() };
    let mut lines = daemon.client.post_lines("/v1/add", &request).await.unwrap();
    let first = lines.next().await.unwrap().unwrap();
    assert!(matches!(first, AddLine::Stage(Stage::Copying { .. })), "{first:?}");
    drop(lines);
    while daemon.node.tasks().alive().contains_key("import") {
        tokio::task::yield_now().await;
    }
    let left = daemon.node.uploads().readdir(crate::node::UploadIno::ROOT).unwrap();
    assert!(left.is_empty(), "{left:?}");
    daemon.node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_need_not_be_text() {
    let daemon = Daemon::start().await;
    let folder = daemon.dir.path().join(std::ffi::OsStr::from_bytes(b"no text \xff"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "text").unwrap();
    let request = add_request(folder.join("file"));
    let added: Added = daemon.client.post("/v1/add", &request).await.unwrap();
    assert_eq!(added.entries[0].name, "file");
    daemon.node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_sort_they_are() {
    let daemon = Daemon::start().await;
    let absent = "bafybeidhkumeonuwkebh2i4fc7o7lguehauradvlk57gzake6ggjsy372a";
    assert_eq!(daemon.refused(&Client::target("stat", "no-id")).await, ErrorCode::Invalid);
    assert_eq!(daemon.refused(&Client::target("ls", "/ipns/x")).await, ErrorCode::Unsupported);
    assert_eq!(daemon.refused(&Client::target("ls", "magnet:?xt=x")).await, ErrorCode::Invalid);
    assert_eq!(daemon.refused(&Client::target("stat", absent)).await, ErrorCode::NotFoundInTime);
    let provide = ProvideRequest { id: absent.into() };
    let refused = daemon.client.post::<()>("/v1/provide", &provide).await;
    assert!(matches!(refused, Err(ClientError::Failure(f)) if f.code == ErrorCode::Refused));
    let nowhere = add_request("/nowhere/at/all");
    let refused = daemon.client.post::<Added>("/v1/add", &nowhere).await;
    assert!(matches!(refused, Err(ClientError::Failure(f)) if f.code == ErrorCode::NoEntry));
    let added = daemon.add("short", b"12345").await;
    let id = added.entries[0].cid.to_string();
    assert_eq!(daemon.cat(&id, 5).await.unwrap(), b"");
    let Err(ClientError::Failure(behind)) = daemon.cat(&id, 6).await else { unreachable!() };
    assert_eq!(behind.code, ErrorCode::Invalid);
    assert_eq!(behind.message, "there are 5 bytes, none of them at 6");

    // Also what no client of ours asks for is answered in the one form.
    assert_eq!(daemon.refused("/v1/nothing").await, ErrorCode::NoEntry);
    assert_eq!(daemon.refused("/v1/stop").await, ErrorCode::Invalid);
    let empty = daemon.client.post::<Added>("/v1/add", &serde_json::json!({})).await;
    let Err(ClientError::Failure(empty)) = empty else { unreachable!("{empty:?}") };
    assert!(empty.code == ErrorCode::Invalid && empty.message.contains("path"), "{empty:?}");

    // Of a tree it is told which file cannot be published.
    let tree = daemon.dir.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(tree.join("sub/socket")).unwrap();
    let odd = add_request(tree);
    let refused = daemon.client.post::<Added>("/v1/add", &odd).await;
    let Err(ClientError::Failure(refused)) = refused else { unreachable!("{refused:?}") };
    assert!(refused.code == ErrorCode::Invalid, "{refused:?}");
    assert!(refused.message.contains("tree/sub/socket: only files"), "{refused:?}");
    drop(socket);
    daemon.node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_is_not_complete_says_so_and_is_fetched_to_its_end_after_a_restart() {
    let daemon = Daemon::start().await;
    let source = Daemon::start().await;
    let cid = source.add("news", b"something new").await.entries[0].cid;
    let pin = PinRequest { id: cid.to_string().into(), name: String::new() };
    let refused = daemon.client.post::<PinRow>("/v1/pins", &pin).await;
    assert!(matches!(refused, Err(ClientError::Failure(f)) if f.code == ErrorCode::NotFoundInTime));
    let pins: Vec<PinRow> = daemon.client.get("/v1/pins").await.unwrap();
    assert_eq!(pins, [row(cid, "", false)]);

    // By now somebody has it; here that is the node itself.
    let block = source.node.store().block(&cid).unwrap().unwrap();
    let object = daemon.node.store().create_object(&cid, block.data().len() as u64).unwrap();
    let place = crate::content::Placement { offset: 0, data: 0..block.data().len() };
    object.place(&block, &[place]).unwrap();
    daemon.node.stop(PATIENCE).await.unwrap();
    let Daemon { dir, node, client, .. } = daemon;
    drop((object, node, client));
    let (node, _stop, client) = start(dir.path()).await;
    loop {
        let pins: Vec<PinRow> = client.get("/v1/pins").await.unwrap();
        assert_eq!((pins.len(), pins[0].cid), (1, Some(cid)));
        if pins[0].complete {
            break;
        }
        tokio::task::yield_now().await;
    }
    node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_below_the_mount_is_fetched_before_it_is_kept_and_told() {
    let daemon = Daemon::start().await;
    daemon.node.set_mountpoint(Some("/mnt/x".into()));
    let absent = "bafybeidhkumeonuwkebh2i4fc7o7lguehauradvlk57gzake6ggjsy372a";
    let path = format!("/mnt/x/{absent}");
    let refused = daemon.client.post::<Added>("/v1/add", &add_request(path)).await;
    assert!(matches!(refused, Err(ClientError::Failure(f)) if f.code == ErrorCode::NotFoundInTime));
    daemon.node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_below_the_mount_is_published_by_a_node_that_publishes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _stop, client) = start_with(dir.path(), true).await;
    node.set_mountpoint(Some("/mnt/x".into()));
    // An id that is its own content: there is nothing to wait for.
    let path = "/mnt/x/bafkqaaa";
    let refused = client.post::<Added>("/v1/add", &add_request(path)).await;
    assert!(matches!(refused, Err(ClientError::Failure(f)) if f.code == ErrorCode::Refused));
    assert_eq!(client.get::<Vec<PinRow>>("/v1/pins").await.unwrap(), []);
    node.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_neither_verification_nor_end() {
    let daemon = Daemon::start().await;
    // More lines of progress than wait for a client.
    daemon.add("large", &vec![7; 200 << 20]).await;
    let lines = daemon.client.lines::<VerifyLine>(Method::POST, "/v1/store/verify").await.unwrap();
    let stopped = tokio::time::Instant::now();
    daemon.node.stop(PATIENCE).await.unwrap();
    assert!(stopped.elapsed() < PATIENCE / 2, "the end waited for the verification");
    drop(lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_what_is_published_and_its_stream_ends_with_the_daemon() {
    let daemon = Daemon::start().await;
    let mut events =
        daemon.client.lines::<serde_json::Value>(Method::GET, "/v1/events").await.unwrap();
    let added = daemon.add("news", b"something new").await;
    let published = loop {
        let event = events.next().await.unwrap().unwrap();
        if event["event"] == "published" {
            break event;
        }
    };
    assert_eq!(published["cid"], added.entries[0].cid.to_string());
    assert_eq!(published["name"], "news");
    daemon.node.stop(PATIENCE).await.unwrap();
    while events.next().await.is_some_and(|event| event.is_ok()) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_the_owners_alone_and_goes_with_the_daemon() {
    let daemon = Daemon::start().await;
    let socket = daemon.node.store().dir().join("control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let () = daemon.client.post("/v1/stop", &()).await.unwrap();
    daemon.stop.cancelled().await;
    daemon.node.stop(PATIENCE).await.unwrap();
    assert!(!socket.exists());
    let gone = daemon.client.get::<Status>("/v1/status").await;
    assert!(matches!(gone, Err(ClientError::NotRunning(_))), "{gone:?}");
}
