//! What a killed daemon leaves, and what the next one makes of it.

use super::*;
use crate::store::Batch;

#[tokio::test(start_paused = true)]
async fn what_was_published_is_there_after_a_kill() {
    let bench = Bench::new();
    let data = bytes(3 * LEAF, 5);
    let dir = bench.mkdir(UploadIno::ROOT, "dir");
    let ino = bench.put_in(dir, "f", &data);
    let root = bench.uploads.cid(ino).await.unwrap();
    let dir_root = bench.uploads.cid(dir).await.unwrap();
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.cid_now(ino), Some(root));
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), dir_root);
    assert_eq!(bench.uploads.published(), [("dir".to_owned(), dir_root)]);
    assert_eq!(bench.read(ino), data);
    assert!(bench.store.block(&dir_root).unwrap().is_some());
    assert_eq!(bench.heard.take(), [] as [String; 0]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut heard = bench.heard.take();
    heard.sort();
    let last = heard.pop();
    assert_eq!(
        last.as_deref(),
        Some(format!("+dir/f {}", data.len()).as_str()),
        "killed too early"
    );
    assert!(heard.pop().is_some_and(|top| top.starts_with("+dir ")) && heard.is_empty());
    let bench = bench.restart().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.heard.take(), [] as [String; 0], "nothing is new");
}

#[tokio::test(start_paused = true)]
async fn what_rests_is_announced_when_the_daemon_ends() {
    let bench = Bench::new();
    bench.put("f", b"last words");
    bench.uploads.close(Duration::from_secs(10)).await.unwrap();
    assert_eq!(bench.heard.take(), ["+f 10"]);
    let bench = bench.restart().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.heard.take(), [] as [String; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_description_of_a_replaced_version_goes_with_it() {
    let bench = Bench::new();
    let ino = bench.put("f", b"one");
    let old = bench.uploads.cid(ino).await.unwrap();
    let writer = bench.uploads.open_file(ino, TRUNCATE).unwrap();
    bench.write(writer, 0, b"two");
    bench.uploads.release(writer);
    bench.uploads.cid(ino).await.unwrap();
    let bench = bench.restart().await;
    assert_eq!(bench.store.file_info(&old).unwrap(), None);
    assert!(bench.store.file_info(&id_of(b"two")).unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_an_import_left_behind_is_taken_out_and_was_never_shown() {
    let bench = Bench::new();
    let empty = bench.uploads.cid(UploadIno::ROOT).await.unwrap();
    let left = bench.mkdir(UploadIno::ROOT, ".chiral-import-1");
    bench.put_in(left, "f", b"half a copy");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.heard.take(), [] as [String; 0]);
    assert_eq!(bench.uploads.published(), []);
    assert_eq!(bench.uploads.cid(UploadIno::ROOT).await.unwrap(), empty);
    let source = tempfile::tempdir().unwrap();
    bench.uploads.import(source.path(), OsStr::new("tree")).await.unwrap();
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    let bench = bench.restart().await;
    let names = bench.uploads.readdir(UploadIno::ROOT).unwrap();
    assert_eq!(names.iter().map(|entry| &entry.name).collect::<Vec<_>>(), ["tree"]);
    assert!(bench.uploads.getattr(left).is_err());
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_directory_is_missing_keeps_its_content() {
    let bench = Bench::new();
    let dir = bench.mkdir(UploadIno::ROOT, "dir");
    let ino = bench.put_in(dir, "f", b"acknowledged");
    let root = bench.uploads.cid(ino).await.unwrap();
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    let tree_remove = vec![dir.0];
    bench.store.commit(Batch { tree_remove, ..Batch::default() }).unwrap();
    let bench = bench.restart().await.restart().await;
    assert_eq!(bench.lookup("f").unwrap().ino, ino);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), root);
    assert_eq!(bench.read(ino), b"acknowledged");
}

#[tokio::test(start_paused = true)]
async fn a_closed_file_is_hashed_after_a_kill() {
    let bench = Bench::new();
    let ino = bench.put("f", b"closed");
    bench.uploads.fsync(ino).unwrap();
    assert_eq!(bench.uploads.cid_now(ino), None);
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(b"closed"));
}

#[tokio::test(start_paused = true)]
async fn an_open_file_is_interrupted_by_a_kill_and_published_when_it_is_closed_again() {
    let bench = Bench::new();
    let (ino, handle) = bench.create("f");
    bench.write(handle, 0, b"half");
    bench.uploads.fsync(ino).unwrap();
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.state(ino).unwrap(), UploadState::Interrupted);
    assert_eq!(bench.read(ino), b"half");
    assert!(matches!(bench.uploads.cid(ino).await, Err(PublishError::Busy)));
    let handle = bench.uploads.open_file(ino, APPEND).unwrap();
    bench.write(handle, 0, b" and whole");
    bench.uploads.release(handle);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(b"half and whole"));
}

#[tokio::test(start_paused = true)]
async fn a_kill_amid_an_overwrite_leaves_the_old_version_and_what_was_synced_of_the_new() {
    let bench = Bench::new();
    let mut data = bytes(4 * LEAF, 6);
    let ino = bench.put("f", &data);
    let old = bench.uploads.cid(ino).await.unwrap();
    let handle = bench.uploads.open_file(ino, WRITE).unwrap();
    bench.write(handle, LEAF as u64 + 5, b"changed");
    bench.uploads.fsync(ino).unwrap();
    let bench = bench.restart().await;
    data[LEAF + 5..LEAF + 12].copy_from_slice(b"changed");
    assert_eq!(bench.uploads.state(ino).unwrap(), UploadState::Interrupted);
    assert_eq!(bench.read(ino), data);
    assert!(bench.store.block(&old).unwrap().is_some(), "the old version is served");
    let handle = bench.uploads.open_file(ino, WRITE).unwrap();
    bench.uploads.release(handle);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&data));
}

#[tokio::test(start_paused = true)]
async fn an_orphan_goes_at_the_next_start() {
    let bench = Bench::new();
    let (_, handle) = bench.create("f");
    bench.write(handle, 0, b"orphan");
    bench.unlink("f");
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.readdir(UploadIno::ROOT).unwrap().len(), 0);
    assert_eq!(bench.objects(), 0);
}

#[tokio::test(start_paused = true)]
async fn names_are_on_disk_within_a_second() {
    let bench = Bench::new();
    bench.mkdir(UploadIno::ROOT, "dir");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let bench = bench.restart().await;
    assert!(bench.lookup("dir").is_ok());
}

#[tokio::test(start_paused = true)]
async fn closing_publishes_what_is_closed() {
    let bench = Bench::new();
    let ino = bench.put("f", b"last words");
    bench.uploads.close(Duration::from_secs(10)).await.unwrap();
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.cid_now(ino), Some(id_of(b"last words")));
}
