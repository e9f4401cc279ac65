//! Names that are taken: what is published under one is never replaced unless that is asked for.

use futures::{FutureExt, StreamExt, stream};

use super::*;

fn options(name: &str, replace: bool) -> ImportOptions {
    ImportOptions { name: Some(name.into()), replace, ..ImportOptions::default() }
}

impl Bench {
    async fn import_as(&self, path: &Path, name: &str, replace: bool) -> Result<ImportedTree> {
        self.uploads.import_path(path, options(name, replace), |_, _, _| {}).await
    }

    async fn pipe(&self, data: &[u8], options: ImportOptions) -> Result<ImportedTree> {
        let pieces = data.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece)));
        let pieces = stream::iter(pieces.collect::<Vec<_>>());
        self.uploads.import_stream(pieces, options, |_, _, _| {}).await
    }

    fn names(&self) -> Vec<String> {
        let entries = self.uploads.readdir(UploadIno::ROOT).unwrap();
        entries.iter().map(|entry| entry.name.to_str().unwrap().to_owned()).collect()
    }

    /// Waits until nothing is being imported or taken back.
    async fn settled(&self) {
        while self.tasks.alive().contains_key("import") {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn other_content_is_refused_and_the_old_stays() {
    let bench = Bench::new();
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("file");
    let tree = source.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("a"), "theirs").unwrap();
    bench.put("file", b"mine");
    let dir = bench.mkdir(UploadIno::ROOT, "tree");
    bench.put_in(dir, "a", b"my own");
    // Of the same length and of another one, a file for a directory and the other way round.
    for (data, path, name) in [
        (&b"your"[..], &file, "file"),
        (b"longer than mine", &file, "file"),
        (b"", &tree, "tree"),
        (b"", &tree, "file"),
        (b"your", &file, "tree"),
    ] {
        std::fs::write(&file, data).unwrap();
        let refused = bench.import_as(path, name, false).await.unwrap_err();
        assert!(matches!(&refused, PublishError::Taken(taken) if taken == name), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("--replace") && text.contains("--name"), "{text}");
    }
    let piped = bench.pipe(b"your", options("file", false)).await;
    assert!(matches!(piped, Err(PublishError::Taken(_))));
    bench.settled().await;
    assert_eq!(bench.names(), ["file", "tree"]);
    assert_eq!(bench.read(bench.lookup("file").unwrap().ino), b"mine");
}

#[tokio::test(start_paused = true)]
async fn the_same_content_is_kept_and_not_copied() {
    let bench = Bench::new();
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(source.path().join("sub")).unwrap();
    std::fs::write(source.path().join("sub/f"), bytes(2 * LEAF + 5, 1)).unwrap();
    std::fs::write(source.path().join(".env"), "KEY=1").unwrap();
    let first = bench.import_as(source.path(), "tree", false).await.unwrap();
    let (ino, objects) = (bench.lookup("tree").unwrap().ino, bench.objects());
    let again = bench.import_as(source.path(), "tree", false).await.unwrap();
    assert_eq!((again.root, again.skipped.count), (first.root, 1));
    assert_eq!((bench.lookup("tree").unwrap().ino, bench.objects()), (ino, objects));
    let entries = |imported: &ImportedTree| -> Vec<_> {
        let mut entries: Vec<_> = bench.uploads.entries_of(imported).collect();
        entries.sort_by_key(|(_, name)| name.clone());
        entries
    };
    assert_eq!(entries(&again), entries(&first));
    let names: Vec<_> = entries(&first).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["tree", "tree/sub", "tree/sub/f"]);
    let data = bytes(1000, 2);
    let piped = bench.pipe(&data, options("f", false)).await.unwrap();
    assert_eq!(bench.pipe(&data, options("f", false)).await.unwrap().root, piped.root);
    bench.settled().await;
    assert_eq!(bench.names(), ["f", "tree"]);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_name_has_old_content_until_the_new_is_published() {
    let bench = Bench::new();
    let ino = bench.put("f", b"old");
    let old = bench.uploads.cid(ino).await.unwrap();
    let data = bytes(2 * LEAF, 3);
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let (first, second) = data.split_at(LEAF);
    let begin = stream::iter([Ok(Bytes::copy_from_slice(first))]);
    let rest = Bytes::copy_from_slice(second);
    let end = stream::once(async move { Ok(wait.await.map(|()| rest).unwrap_or_default()) });
    let pieces = begin.chain(end).boxed();
    let importing = bench.uploads.import_stream(pieces, options("f", true), |_, _, _| {});
    let looking = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(bench.uploads.cid(bench.lookup("f").unwrap().ino).await.unwrap(), old);
        go.send(()).unwrap();
    };
    let (imported, ()) = tokio::join!(importing, looking);
    assert_eq!(imported.unwrap().root, id_of(&data));
    assert_eq!(bench.uploads.cid_now(bench.lookup("f").unwrap().ino), Some(id_of(&data)));
    assert_eq!(bench.names(), ["f"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_a_program_writes_is_refused() {
    let bench = Bench::new();
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("f");
    std::fs::write(&file, "imported").unwrap();
    let (_, handle) = bench.create("f");
    bench.write(handle, 0, b"imported");
    let refused = bench.import_as(&file, "f", false).await;
    assert!(matches!(refused, Err(PublishError::Taken(_))), "it may become anything");
    bench.uploads.release(handle);
    bench.import_as(&file, "f", false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_imports_of_one_name_leave_one_whole() {
    for same in [false, true] {
        let bench = Bench::new();
        let source = tempfile::tempdir().unwrap();
        let trees = ["a", "b"].map(|tree| source.path().join(tree));
        for (number, tree) in trees.iter().enumerate() {
            std::fs::create_dir(tree).unwrap();
            let seed = if same { 1 } else { number as u64 + 1 };
            for file in 0..20 {
                std::fs::write(tree.join(format!("f{file}")), bytes(50_000, seed + file)).unwrap();
            }
        }
        let (one, two) = tokio::join!(
            bench.import_as(&trees[0], "tree", false),
            bench.import_as(&trees[1], "tree", false)
        );
        let (kept, refused): (Vec<_>, Vec<_>) = [one, two].into_iter().partition(Result::is_ok);
        assert_eq!((kept.len(), refused.len()), if same { (2, 0) } else { (1, 1) });
        assert!(refused.iter().all(|r| matches!(r, Err(PublishError::Taken(_)))));
        let there = bench.uploads.cid(bench.lookup("tree").unwrap().ino).await.unwrap();
        assert!(kept.iter().all(|kept| kept.as_ref().unwrap().root == there));
        bench.settled().await;
        assert_eq!(bench.names(), ["tree"]);
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_without_a_name_are_called_by_their_id() {
    let bench = Bench::new();
    for data in [bytes(0, 1), bytes(1000, 1), bytes(3 * LEAF + 1, 2)] {
        let imported = bench.pipe(&data, ImportOptions::default()).await.unwrap();
        assert_eq!(imported.root, id_of(&data));
        assert_eq!(imported.name.to_str(), Some(id_of(&data).to_string().as_str()));
        let there = bench.uploads.lookup(UploadIno::ROOT, &imported.name).unwrap();
        assert_eq!(bench.read(there.ino), data);
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_break_off_are_taken_back() {
    let bench = Bench::new();
    let broken = Err(std::io::Error::other("the client left"));
    let pieces = stream::iter([Ok(Bytes::from_static(b"half")), broken]);
    let failed = bench.uploads.import_stream(pieces, options("f", false), |_, _, _| {}).await;
    assert!(matches!(failed, Err(PublishError::Io { .. })));
    let endless =
        stream::once(async { Ok(Bytes::from_static(b"half")) }).chain(stream::pending()).boxed();
    let mut importing =
        bench.uploads.import_stream(endless, options("f", false), |_, _, _| {}).boxed();
    let waited = tokio::time::timeout(Duration::from_secs(60), &mut importing).await;
    assert!(waited.is_err() && bench.names().len() == 1);
    drop(importing);
    bench.settled().await;
    assert_eq!(bench.names(), [] as [&str; 0]);
    assert_eq!(bench.uploads.published(), []);
}
