//! Directories, announcements and imports.

use super::*;

fn directory(entries: &[(&str, ContentId, u64)]) -> (ContentId, u64) {
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    entries.iter().for_each(|(name, id, tsize)| builder.add(name, *id, *tsize));
    let built = builder.finish(Metadata::default());
    (built.root, built.tsize)
}

#[tokio::test(start_paused = true)]
async fn the_id_of_a_directory_is_that_of_its_entries() {
    let bench = Bench::new();
    let outer = bench.mkdir(UploadIno::ROOT, "outer");
    let inner = bench.mkdir(outer, "inner");
    bench.put_in(inner, "a", b"aaa");
    bench.put_in(outer, "b", b"bb");
    bench.uploads.symlink(outer, OsStr::new("link"), Path::new("b"), 1, 2).unwrap();
    let root = bench.uploads.cid(outer).await.unwrap();
    let link = crate::content::symlink("b", Metadata::default());
    let (inner_root, inner_tsize) = directory(&[("a", id_of(b"aaa"), 3)]);
    let expected = directory(&[
        ("b", id_of(b"bb"), 2),
        ("inner", inner_root, inner_tsize),
        ("link", *link.cid(), link.data().len() as u64),
    ]);
    assert_eq!(root, expected.0);
    assert_eq!(bench.uploads.cid(inner).await.unwrap(), inner_root);
    for id in [root, inner_root, *link.cid()] {
        assert!(bench.store.block(&id).unwrap().is_some());
    }
    bench.uploads.unlink(inner, OsStr::new("a")).unwrap();
    assert_eq!(bench.uploads.cid_now(outer), None);
    assert_eq!(bench.uploads.cid(inner).await.unwrap(), directory(&[]).0);
}

#[tokio::test(start_paused = true)]
async fn a_directory_waits_for_what_is_written_in_it() {
    let bench = Bench::new();
    let dir = bench.mkdir(UploadIno::ROOT, "dir");
    let (_, handle) = bench.create_in(dir, "f");
    assert!(matches!(bench.uploads.cid(dir).await, Err(PublishError::Busy)));
    bench.uploads.release(handle);
    let empty = id_of(b"");
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&[("f", empty, 0)]).0);
}

#[tokio::test(start_paused = true)]
async fn roots_are_announced_after_a_rest_and_withdrawn_when_they_are_gone() {
    let bench = Bench::new();
    let dir = bench.mkdir(UploadIno::ROOT, "dir");
    bench.put_in(dir, "f", b"one");
    bench.put("empty", b"");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.heard.take(), [] as [String; 0]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let dir_root = bench.uploads.cid(dir).await.unwrap();
    let (_, tsize) = directory(&[("f", id_of(b"one"), 3)]);
    let mut heard = bench.heard.take();
    heard.sort();
    assert_eq!(heard, [format!("+dir {tsize}"), "+dir/f 3".to_owned()]);
    bench.uploads.unlink(dir, OsStr::new("f")).unwrap();
    bench.uploads.rmdir(UploadIno::ROOT, OsStr::new("dir")).unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mut heard = bench.heard.take();
    heard.sort();
    let mut expected = [format!("-{dir_root}"), format!("-{}", id_of(b"one"))];
    expected.sort();
    assert_eq!(heard, expected);
}

#[tokio::test(start_paused = true)]
async fn a_tree_is_imported_and_replaces_its_name_when_asked() {
    let bench = Bench::new();
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(source.path().join("sub")).unwrap();
    std::fs::write(source.path().join("sub/f"), b"one").unwrap();
    std::os::unix::fs::symlink("sub/f", source.path().join("link")).unwrap();
    let name = OsStr::new("tree");
    for content in [&b"one"[..], b"two"] {
        std::fs::write(source.path().join("sub/f"), content).unwrap();
        let options = ImportOptions {
            name: Some(name.to_owned()),
            replace: true,
            ..ImportOptions::default()
        };
        let imported = bench.uploads.import_path(source.path(), options, |_, _, _| {});
        let imported = imported.await.unwrap();
        let added: Vec<_> = bench.uploads.entries_of(&imported).collect();
        let mut names: Vec<_> = added.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names.pop(), Some("tree"));
        names.sort_unstable();
        assert_eq!(names, ["tree/link", "tree/sub", "tree/sub/f"]);
        let (sub, tsize) = directory(&[("f", id_of(content), 3)]);
        let link = crate::content::symlink("sub/f", Metadata::default());
        let entries = [("link", *link.cid(), link.data().len() as u64), ("sub", sub, tsize)];
        assert_eq!(added.last().unwrap().0, directory(&entries).0);
        assert_eq!(bench.uploads.readdir(UploadIno::ROOT).unwrap().len(), 1);
    }
    let gone = bench.uploads.import(Path::new("/nonexistent"), name).await;
    assert!(matches!(gone, Err(PublishError::Io { .. })));
    assert_eq!(bench.uploads.readdir(UploadIno::ROOT).unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_changed_in_a_tree_that_is_read_only() {
    let bench = Bench::new();
    let ino = bench.put("f", b"x");
    bench.uploads.cid(ino).await.unwrap();
    let dir = bench.kill().await;
    let tasks = Tasks::new();
    let options =
        StoreOptions { dir: dir.path().join("data"), cache_limit: None, min_free: Some(0) };
    let store = Store::open(options, &tasks).unwrap();
    let options = PublishOptions {
        import: ImportParams::DEFAULT,
        read_only: true,
        ignore: IgnorePatterns::default(),
    };
    let uploads = Uploads::open(options, store, Arc::new(Heard::default()), &tasks).unwrap();
    let name = OsStr::new("f");
    let root = UploadIno::ROOT;
    assert!(matches!(uploads.unlink(root, name), Err(PublishError::ReadOnly)));
    assert!(matches!(uploads.open_file(ino, WRITE), Err(PublishError::ReadOnly)));
    assert!(uploads.open_file(ino, READ).is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_id_of_a_directory_is_not_given_before_what_is_below_it_is_published() {
    let bench = Bench::new();
    let dir = bench.mkdir(UploadIno::ROOT, "dir");
    let ino = bench.put_in(dir, "f", b"one");
    let old = bench.uploads.cid(dir).await.unwrap();
    assert_eq!(bench.uploads.cid_now(dir), None, "somebody may be writing below it");
    let writer = bench.uploads.open_file(ino, TRUNCATE).unwrap();
    bench.write(writer, 0, b"two");
    bench.uploads.release(writer);
    let new = bench.uploads.cid(dir).await.unwrap();
    assert_ne!(new, old);
    assert!(bench.store.block(&new).unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_directory_waits_for_a_subdirectory_that_has_no_id_yet() {
    let bench = Bench::new();
    let outer = bench.mkdir(UploadIno::ROOT, "outer");
    // As in the middle of a computation: the turn of `outer` comes after `inner` was made.
    bench.mkdir(outer, "inner");
    assert!(bench.uploads.inner.links(outer).is_none());
    bench.uploads.inner.compute_directories();
    assert!(bench.uploads.inner.names().tree.stale().is_empty());
    let links = bench.uploads.inner.links(outer).unwrap();
    assert_eq!(links, [(OsString::from("inner"), directory(&[]).0, directory(&[]).1)]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_large_directory_walks_it_few_times() {
    let bench = Bench::new();
    let dir = bench.mkdir(UploadIno::ROOT, "dir");
    for number in 0..200 {
        bench.put_in(dir, &format!("f{number}"), &bytes(100, number));
    }
    bench.uploads.cid(dir).await.unwrap();
    let walks = bench.uploads.inner.directories.walks.load(std::sync::atomic::Ordering::Relaxed);
    assert!(walks <= 3, "{walks}");
}

#[tokio::test(start_paused = true)]
async fn names_that_are_no_text_stay_apart() {
    use std::os::unix::ffi::OsStrExt;
    let bench = Bench::new();
    let dir = bench.mkdir(UploadIno::ROOT, "dir");
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    for (name, target) in [(b"a\xff", b"t\xff"), (b"a\xfe", b"t\xfe")] {
        let (name_os, target_os) = (OsStr::from_bytes(name), OsStr::from_bytes(target));
        bench.uploads.symlink(dir, name_os, Path::new(target_os), 1, 2).unwrap();
        let link = crate::content::symlink(target, Metadata::default());
        builder.add(name, *link.cid(), link.data().len() as u64);
    }
    let built = builder.finish(Metadata::default());
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), built.root);
    let bytes = bench.store.block(&built.root).unwrap().unwrap();
    for name in [b"a\xff", b"a\xfe"] {
        assert!(bytes.data().windows(2).any(|at| at == name), "as it is on disk");
    }
}
