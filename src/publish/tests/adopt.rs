use std::os::unix::fs::MetadataExt;

use super::*;
use crate::content::{Block, ByteRange};

#[tokio::test]
async fn a_file_is_served_from_where_it_is_and_outlives_whoever_kept_it() {
    let bench = Bench::new();
    let path = bench.dir.path().join("data/film");
    let bytes: Vec<u8> = (0..700_000_u32).map(|at| (at / 3 % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let adopted = bench.uploads.adopt(&path).await.unwrap();
    assert!(adopted.served);
    let object = bench.store.object(&adopted.root).unwrap().unwrap();
    assert_eq!(Some(object.id()), adopted.object);
    assert!(object.read(ByteRange::new(0, 700_000)).unwrap() == bytes);
    // A second name, or a clone: in no case a second copy.
    let links = std::fs::metadata(&path).unwrap().nlink();
    assert_eq!(links, if bench.store.can_clone() { 1 } else { 2 });
    drop(object);

    // What is owned does not go, and is found when it is looked for again.
    let bench = bench.restart().await;
    bench.store.gc().unwrap();
    let again = bench.uploads.adopt(&path).await.unwrap();
    assert_eq!(again, Adopted { object: None, ..adopted });
    assert!(bench.store.block(&adopted.root).unwrap().is_some());

    std::fs::remove_file(&path).unwrap();
    let object = bench.store.object(&adopted.root).unwrap().unwrap();
    assert!(object.read(ByteRange::new(5, 500)).unwrap() == bytes[5..500]);
    drop(object);
    bench.uploads.give_up(adopted.object.unwrap()).unwrap();
    bench.store.gc().unwrap();
    assert!(bench.store.object(&adopted.root).unwrap().is_none());
}

#[tokio::test]
async fn what_is_published_with_the_same_bytes_can_be_changed_without_touching_the_file() {
    let bench = Bench::new();
    let path = bench.dir.path().join("data/film");
    let bytes = vec![7; 3 * LEAF];
    std::fs::write(&path, &bytes).unwrap();
    let adopted = bench.uploads.adopt(&path).await.unwrap();
    let ino = bench.put("copy", &bytes);
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), adopted.root);
    let handle = bench.uploads.open_file(ino, WRITE).unwrap();
    bench.write(handle, 5, b"changed");
    bench.uploads.release(handle);
    assert_ne!(bench.uploads.cid(ino).await.unwrap(), adopted.root);
    let bench = bench.restart().await;
    assert!(std::fs::read(&path).unwrap() == bytes);
    let object = bench.store.object(&adopted.root).unwrap().unwrap();
    assert!(object.read(ByteRange::new(0, 100)).unwrap() == bytes[..100]);
}

#[tokio::test]
async fn file_that_is_adopted_heals_the_rotten_copy() {
    let bench = Bench::new();
    let data = bytes(3 * LEAF, 4);
    let ino = bench.put("copy", &data);
    let root = bench.uploads.cid(ino).await.unwrap();
    let object = bench.store.object(&root).unwrap().unwrap().id();
    bench.store.rot(object, 3).unwrap();
    let path = bench.dir.path().join("data/film");
    std::fs::write(&path, &data).unwrap();
    let adopted = bench.uploads.adopt(&path).await.unwrap();
    assert_eq!(adopted, Adopted { root, object: None, served: true });
    let leaf = Block::raw(data[..LEAF].to_vec().into());
    assert_eq!(bench.store.block(leaf.cid()).unwrap(), Some(leaf));
}
