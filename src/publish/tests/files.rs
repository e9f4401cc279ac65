//! One file: its id, new versions of it, times, and who has it open.

use super::*;
use crate::content::Block;

#[tokio::test(start_paused = true)]
async fn a_file_has_the_id_that_ipfs_add_gives_it() {
    let bench = Bench::new();
    let hello = bench.put("hello", b"hello world");
    let expected = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    assert_eq!(bench.uploads.cid(hello).await.unwrap().to_string(), expected);
    let empty = bench.put("empty", b"");
    let expected = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    assert_eq!(bench.uploads.cid(empty).await.unwrap().to_string(), expected);
    assert_eq!(bench.uploads.state(empty).unwrap(), UploadState::Published);
    assert_eq!(bench.read(empty), b"");
}

#[tokio::test(start_paused = true)]
async fn a_file_of_more_leaves_than_one_node_can_link_is_served_from_its_own_bytes() {
    let bench = Bench::new();
    let data = bytes(175 * LEAF + 77, 1);
    let big = bench.put("big", &data);
    let root = bench.uploads.cid(big).await.unwrap();
    assert_eq!(root, id_of(&data));
    let leaf = ContentId::raw(sha2_256(&data[175 * LEAF..]));
    assert_eq!(bench.store.block(&leaf).unwrap().unwrap().data()[..], data[175 * LEAF..]);
    assert_eq!(bench.store.file_info(&root).unwrap().unwrap().name, "big");
    assert_eq!(bench.objects(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_overwrite_leaves_the_old_version_served_until_the_new_one_is() {
    let bench = Bench::new();
    let ino = bench.put("f", b"one");
    let old = bench.uploads.cid(ino).await.unwrap();
    let reader = bench.uploads.open_file(ino, READ).unwrap();
    let writer = bench.uploads.open_file(ino, TRUNCATE).unwrap();
    bench.write(writer, 0, b"two!");
    assert_eq!(bench.uploads.read(reader, 0, 9).unwrap()[..], b"two!"[..]);
    assert_eq!(bench.store.block(&old).unwrap().unwrap().data()[..], b"one"[..]);
    assert!(matches!(bench.uploads.cid(ino).await, Err(PublishError::Busy)));
    bench.uploads.release(writer);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(b"two!"));
    assert_eq!(bench.uploads.read(reader, 0, 9).unwrap()[..], b"two!"[..]);
    bench.uploads.fsync(ino).unwrap();
    assert_eq!(bench.store.file_info(&old).unwrap(), None);
    bench.uploads.release(reader);
}

#[tokio::test(start_paused = true)]
async fn new_versions_over_an_old_one_have_the_id_of_the_whole() {
    let bench = Bench::new();
    let mut model = bytes(5 * LEAF + 1000, 2);
    let ino = bench.put("f", &model);
    bench.uploads.cid(ino).await.unwrap();
    // Append, overwrite over a border of leaves, and far behind the end.
    let edits = [(model.len(), 10), (LEAF - 3, 9), (7 * LEAF + 5, 400_000)];
    for (step, (at, len)) in edits.into_iter().enumerate() {
        let handle = bench.uploads.open_file(ino, WRITE).unwrap();
        let data = bytes(len, 100 + step as u64);
        bench.write(handle, at as u64, &data);
        model.resize(model.len().max(at + len), 0);
        model[at..at + len].copy_from_slice(&data);
        assert_eq!(bench.read(ino), model);
        bench.uploads.release(handle);
        assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&model));
        assert_eq!(bench.read(ino), model);
    }
    for size in [3 * LEAF + 1, 3 * LEAF, 4 * LEAF + 17, 0, 5] {
        let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        assert_eq!(bench.uploads.setattr(ino, &set).unwrap().size, size as u64);
        model.resize(size, 0);
        assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&model), "cut to {size}");
        assert_eq!(bench.read(ino), model);
    }
    assert!(bench.objects() <= 10, "what was replaced is cache: {}", bench.objects());
}

#[tokio::test(start_paused = true)]
async fn two_appenders_lose_nothing() {
    let bench = Bench::new();
    let ino = bench.put("log", b"start\n");
    bench.uploads.cid(ino).await.unwrap();
    let one = bench.uploads.open_file(ino, APPEND).unwrap();
    let two = bench.uploads.open_file(ino, APPEND).unwrap();
    bench.write(one, 0, b"a");
    bench.write(two, 0, b"b");
    bench.write(one, 0, b"c");
    bench.uploads.release(one);
    assert_eq!(bench.uploads.state(ino).unwrap(), UploadState::Writing);
    bench.uploads.release(two);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(b"start\nabc"));
}

#[tokio::test(start_paused = true)]
async fn opening_for_writing_and_closing_changes_nothing() {
    let bench = Bench::new();
    let ino = bench.put("db", &bytes(LEAF + 5, 3));
    let root = bench.uploads.cid(ino).await.unwrap();
    let before = bench.uploads.getattr(ino).unwrap();
    let backing = bench.uploads.backing(ino).unwrap().version;
    let handle = bench.uploads.open_file(ino, WRITE).unwrap();
    assert_eq!(bench.uploads.getattr(ino).unwrap().mtime, before.mtime);
    bench.uploads.release(handle);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), root);
    let after = bench.uploads.getattr(ino).unwrap();
    assert_eq!((after.mtime, after.size), (before.mtime, before.size));
    assert_eq!(bench.uploads.backing(ino).unwrap().version, backing);
    bench.uploads.fsync(ino).unwrap();
    assert_eq!(bench.objects(), 1, "the working file is gone");
}

#[tokio::test(start_paused = true)]
async fn identical_files_are_one_object() {
    let bench = Bench::new();
    let data = bytes(LEAF * 2, 4);
    let (one, two) = (bench.put("one", &data), bench.put("two", &data));
    let root = bench.uploads.cid(one).await.unwrap();
    assert_eq!(bench.uploads.cid(two).await.unwrap(), root);
    assert_eq!(bench.objects(), 1);
    bench.unlink("one");
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    assert_eq!(bench.read(two), data);
    assert!(bench.store.file_info(&root).unwrap().is_some());
    bench.unlink("two");
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    assert!(bench.store.file_info(&root).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_kernel_writes_to_the_backing_file_behind_us() {
    let bench = Bench::new();
    let (ino, handle) = bench.create("f");
    let backing = bench.uploads.backing(ino).unwrap();
    assert!(backing.whole);
    // As passthrough does: the backing file opened again with the flags of the caller.
    let path = format!("/proc/self/fd/{}", backing.file.as_raw_fd());
    let kernel = OpenOptions::new().write(true).open(path).unwrap();
    kernel.write_all_at(b"behind", 0).unwrap();
    assert_eq!(bench.uploads.getattr(ino).unwrap().size, 6);
    bench.uploads.release(handle);
    // A mapping that outlives its handle: it is found by its lease, and the id is not given out.
    assert!(matches!(bench.uploads.cid(ino).await, Err(PublishError::Busy)));
    assert_eq!(bench.uploads.state(ino).unwrap(), UploadState::Hashing);
    kernel.write_all_at(b"BEHIND", 0).unwrap();
    drop(kernel);
    loop {
        match bench.uploads.cid(ino).await {
            Ok(root) => break assert_eq!(root, id_of(b"BEHIND")),
            Err(PublishError::Busy) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(bench.uploads.backing(ino).unwrap().version, backing.version, "sealed in place");
}

#[tokio::test(start_paused = true)]
async fn a_time_that_was_set_stays() {
    let mut bench = Bench::new();
    let mtime = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    let set = SetAttr { mtime: Some(mtime), ..SetAttr::default() };
    let (before, handle) = bench.create("before-close");
    bench.write(handle, 0, b"x");
    bench.uploads.setattr(before, &set).unwrap();
    assert_eq!(bench.uploads.getattr(before).unwrap().mtime, mtime);
    bench.uploads.release(handle);
    let after = bench.put("after-close", b"y");
    bench.uploads.setattr(after, &set).unwrap();
    for ino in [before, after] {
        assert_eq!(bench.uploads.getattr(ino).unwrap().mtime, mtime);
        bench.uploads.cid(ino).await.unwrap();
        assert_eq!(bench.uploads.getattr(ino).unwrap().mtime, mtime);
        bench.uploads.fsync(ino).unwrap();
    }
    bench = bench.restart().await;
    for ino in [before, after] {
        assert_eq!(bench.uploads.getattr(ino).unwrap().mtime, mtime);
        let handle = bench.uploads.open_file(ino, WRITE).unwrap();
        assert_eq!(bench.uploads.getattr(ino).unwrap().mtime, mtime);
        bench.write(handle, 0, b"z");
        assert!(bench.uploads.getattr(ino).unwrap().mtime > mtime);
        bench.uploads.release(handle);
        assert!(bench.uploads.getattr(ino).unwrap().mtime > mtime);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unlinked_file_lives_for_its_handles() {
    let bench = Bench::new();
    let published = bench.put("a", b"published");
    bench.uploads.cid(published).await.unwrap();
    let reader = bench.uploads.open_file(published, READ).unwrap();
    let (open, writer) = bench.create("b");
    bench.write(writer, 0, b"open");
    bench.unlink("a");
    bench.unlink("b");
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    assert!(matches!(bench.lookup("b"), Err(PublishError::NotFound)));
    assert_eq!(bench.uploads.getattr(open).unwrap().nlink, 0);
    bench.write(writer, 4, b"!");
    assert_eq!(bench.uploads.read(writer, 0, 9).unwrap()[..], b"open!"[..]);
    assert_eq!(bench.uploads.read(reader, 0, 9).unwrap()[..], b"published"[..]);
    bench.uploads.release(writer);
    bench.uploads.release(reader);
    assert!(bench.uploads.getattr(open).is_err());
    assert!(bench.uploads.open_file(published, READ).is_err());
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    assert!(bench.objects() <= 1, "only cache is left");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_renamed_over_another_takes_its_place_alone() {
    let bench = Bench::new();
    let old = bench.put("f", b"old");
    bench.uploads.cid(old).await.unwrap();
    let reader = bench.uploads.open_file(old, READ).unwrap();
    let new = bench.put("f.tmp", b"new");
    bench.rename("f.tmp", "f");
    assert_eq!(bench.lookup("f").unwrap().ino, new);
    assert_eq!(bench.uploads.read(reader, 0, 9).unwrap()[..], b"old"[..]);
    assert_eq!(bench.uploads.cid(new).await.unwrap(), id_of(b"new"));
    bench.uploads.release(reader);
    assert!(bench.uploads.getattr(old).is_err());
}

#[tokio::test(start_paused = true)]
async fn attributes_of_programs_are_kept_and_ours_are_ours() {
    let bench = Bench::new();
    let ino = bench.put("f", b"x");
    bench.uploads.setxattr(ino, "user.note", b"hi", false, false).unwrap();
    for name in ["user.chiral.cid", "ipfs.cid"] {
        let refused = bench.uploads.setxattr(ino, name, b"x", false, false);
        assert!(matches!(refused, Err(PublishError::NotPermitted(_))));
    }
    bench.uploads.fsync(ino).unwrap();
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.getxattr(ino, "user.note").unwrap(), b"hi");
    assert_eq!(bench.uploads.listxattr(ino).unwrap(), ["user.note"]);
}

#[tokio::test(start_paused = true)]
async fn a_write_takes_the_set_user_id_bit_away() {
    let bench = Bench::new();
    let (ino, handle) = bench.create("tool");
    let set = SetAttr { mode: Some(0o4755), ..SetAttr::default() };
    assert_eq!(bench.uploads.setattr(ino, &set).unwrap().mode, 0o4755);
    bench.write(handle, 0, b"x");
    assert_eq!(bench.uploads.getattr(ino).unwrap().mode, 0o755);
}

#[tokio::test(start_paused = true)]
async fn a_file_made_for_reading_only_is_empty_and_published() {
    let bench = Bench::new();
    let name = OsStr::new("touched");
    let made = bench.uploads.create(UploadIno::ROOT, name, 0o644, 1, 2, false, READ).unwrap();
    assert!(bench.uploads.write(made.1, 0, b"x").is_err());
    let again = bench.uploads.create(UploadIno::ROOT, name, 0o644, 1, 2, false, READ).unwrap();
    assert_eq!(made.0.ino, again.0.ino);
    let taken = bench.uploads.create(UploadIno::ROOT, name, 0o644, 1, 2, true, READ);
    assert!(matches!(taken, Err(PublishError::Exists)));
    assert_eq!(bench.uploads.cid(made.0.ino).await.unwrap(), id_of(b""));
    bench.uploads.release(made.1);
    bench.uploads.release(again.1);
}

#[tokio::test(start_paused = true)]
async fn space_is_reserved_and_holes_are_punched_in_an_overlay() {
    let bench = Bench::new();
    let mut data = bytes(3 * LEAF, 8);
    let ino = bench.put("f", &data);
    bench.uploads.cid(ino).await.unwrap();
    let handle = bench.uploads.open_file(ino, WRITE).unwrap();
    let (keep, punch) = (nix::libc::FALLOC_FL_KEEP_SIZE, nix::libc::FALLOC_FL_PUNCH_HOLE);
    bench.uploads.fallocate(handle, 0, 0, 3 * LEAF as u64 + 10).unwrap();
    data.resize(3 * LEAF + 10, 0);
    assert_eq!(bench.read(ino), data);
    bench.uploads.fallocate(handle, keep | punch, LEAF as u64 - 5, 10).unwrap();
    data[LEAF - 5..LEAF + 5].fill(0);
    assert_eq!(bench.read(ino), data);
    assert_eq!(bench.uploads.lseek(handle, 7, nix::libc::SEEK_DATA).unwrap(), 7);
    let end = bench.uploads.lseek(handle, 7, nix::libc::SEEK_HOLE).unwrap();
    assert_eq!(usize::try_from(end).unwrap(), data.len());
    assert!(bench.uploads.lseek(handle, end, nix::libc::SEEK_DATA).is_err());
    bench.uploads.release(handle);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&data));
}

#[tokio::test(start_paused = true)]
async fn many_identical_files_share_commits() {
    let bench = Bench::new();
    let before = bench.store.commits().unwrap();
    let files: Vec<_> = (0..100).map(|n| bench.put(&format!("f{n}"), b"")).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let commits = bench.store.commits().unwrap() - before;
    assert!(commits < 30, "{commits} commits for 100 empty files");
    for ino in files {
        assert_eq!(bench.uploads.state(ino).unwrap(), UploadState::Published);
    }
    assert_eq!(bench.objects(), 1);
}

#[tokio::test(start_paused = true)]
async fn publishing_once_more_brings_lost_nodes_back() {
    let bench = Bench::new();
    let data = bytes(3 * LEAF, 9);
    let ino = bench.put("one", &data);
    let root = bench.uploads.cid(ino).await.unwrap();
    bench.store.withdraw(&root).unwrap();
    assert!(bench.store.block(&root).unwrap().is_none());
    let again = bench.put("two", &data);
    assert_eq!(bench.uploads.cid(again).await.unwrap(), root);
    assert!(bench.store.block(&root).unwrap().is_some());
    assert_eq!(bench.objects(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_file_seals_its_own_copy_where_the_other_is_not_whole_any_more() {
    let bench = Bench::new();
    let data = bytes(3 * LEAF, 10);
    let ino = bench.put("one", &data);
    let root = bench.uploads.cid(ino).await.unwrap();
    let leaf = ContentId::raw(sha2_256(&data[LEAF..2 * LEAF]));
    bench.store.withdraw(&leaf).unwrap();
    let again = bench.put("two", &data);
    assert_eq!(bench.uploads.cid(again).await.unwrap(), root);
    assert!(bench.store.block(&leaf).unwrap().is_some());
    assert_eq!(bench.read(again), data);
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_bytes_are_those_of_a_node_is_a_file_of_its_own() {
    let bench = Bench::new();
    let data = bytes(2 * LEAF, 11);
    let ino = bench.put("big", &data);
    let root = bench.uploads.cid(ino).await.unwrap();
    let node = bench.store.block(&root).unwrap().unwrap();
    let copy = bench.put("node", node.data());
    assert_eq!(bench.uploads.cid(copy).await.unwrap(), ContentId::raw(*root.hash()));
    assert_eq!(bench.read(copy), node.data()[..]);
    assert_eq!(bench.read(ino), data);
    assert_eq!(bench.objects(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_finds_the_disk_full_is_done_again_when_what_is_cached_made_room() {
    let bench = Bench::new();
    let gone = bench.put("gone", &bytes(LEAF, 12));
    bench.uploads.cid(gone).await.unwrap();
    bench.unlink("gone");
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    assert_eq!(bench.objects(), 1, "it is cache now");
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let mut attempts = 0;
    let written = bench.uploads.inner.with_room("write", || {
        attempts += 1;
        if attempts == 1 { Err(full()) } else { Ok(7) }
    });
    assert_eq!(written.unwrap(), 7);
    assert_eq!(bench.objects(), 0);
    let nothing_left = bench.uploads.inner.with_room("write", || Err::<(), _>(full()));
    assert!(matches!(nothing_left, Err(PublishError::Io { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_sync_failed_is_written_again_before_it_is_published() {
    let bench = Bench::new();
    let (ino, handle) = bench.create("f");
    bench.write(handle, 0, b"not on disk");
    let object = bench.uploads.inner.names().cell(ino).unwrap().state().work.as_ref().unwrap().id();
    let mtime = bench.uploads.getattr(ino).unwrap().mtime;
    bench.store.sync_failed(object);
    assert!(matches!(bench.uploads.fsync(ino), Err(PublishError::Io { .. })), "nor is it later");
    bench.uploads.release(handle);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(b"not on disk"));
    assert!(!bench.store.is_unsynced(object));
    assert_eq!(bench.uploads.getattr(ino).unwrap().mtime, mtime);
    assert_eq!(bench.read(ino), b"not on disk");
}

#[tokio::test(start_paused = true)]
async fn attributes_are_shown_while_the_file_goes() {
    let bench = Bench::new();
    let ino = bench.put("f", b"text");
    let cell = bench.uploads.inner.names().cell(ino).unwrap();
    let mut state = cell.state();
    let generation = state.progress.begin_hash().unwrap();
    assert!(state.progress.begin_commit(generation));
    // As when another object has the content: the file is unlinked, and then the version settles.
    std::fs::remove_file(state.work.as_ref().unwrap().file.path()).unwrap();
    drop(state);
    assert_eq!(bench.lookup("f").unwrap().size, 4);
}

#[tokio::test(start_paused = true)]
async fn an_id_is_given_out_after_the_new_name_is_durable() {
    let bench = Bench::new();
    let ino = bench.put("f", b"text");
    let root = bench.uploads.cid(ino).await.unwrap();
    bench.uploads.fsync(UploadIno::ROOT).unwrap();
    bench.rename("f", "g");
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), root);
    let bench = bench.restart().await;
    assert_eq!(bench.lookup("g").unwrap().ino, ino);
}

#[tokio::test]
async fn good_copy_that_is_published_again_heals_the_rotten_one() {
    let bench = Bench::new();
    let data = bytes(3 * LEAF + 5, 9);
    let first = bench.put("first", &data);
    let root = bench.uploads.cid(first).await.unwrap();
    let object = bench.store.object(&root).unwrap().unwrap().id();
    bench.store.rot(object, LEAF as u64 + 3).unwrap();
    let second = bench.put("second", &data);
    assert_eq!(bench.uploads.cid(second).await.unwrap(), root);
    assert!(bench.read(first) == data && bench.read(second) == data);
    let leaf = Block::raw(data[LEAF..2 * LEAF].to_vec().into());
    assert_eq!(bench.store.block(leaf.cid()).unwrap(), Some(leaf));
    bench.uploads.fsync(second).unwrap();
    assert_eq!(bench.objects(), 1, "one file serves both names");
    let bench = bench.restart().await;
    assert!(bench.read(first) == data && bench.read(second) == data);
}

#[tokio::test]
async fn failed_open_for_writing_leaves_no_file() {
    let bench = Bench::new();
    let data = bytes(3 * LEAF, 9);
    let ino = bench.put("file", &data);
    let root = bench.uploads.cid(ino).await.unwrap();
    let object = bench.store.object(&root).unwrap().unwrap().id();
    let path = bench.store.file_of(object).path().to_owned();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(5).unwrap();
    for _ in 0..3 {
        assert!(bench.uploads.open_file(ino, WRITE).is_err());
    }
    assert_eq!(bench.objects(), 1);
}
