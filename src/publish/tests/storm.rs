//! Many threads at once.

use super::*;

/// A generator of small numbers, the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Changes one file in all ways and holds it against a plain vector.
async fn worker(uploads: Uploads, dir: UploadIno, number: u64) {
    let name = OsString::from(format!("f{number}"));
    let scratch = OsString::from(format!("t{number}"));
    let mut dice = Dice(number + 77);
    let (made, handle) = uploads.create(dir, &name, 0o644, 1, 2, true, WRITE).unwrap();
    uploads.release(handle);
    let (mut ino, mut model) = (made.ino, Vec::new());
    for step in 0..40 {
        match dice.roll(6) {
            0 | 1 => {
                let at = usize::try_from(dice.roll(3 * LEAF as u64)).unwrap();
                let data = bytes(usize::try_from(dice.roll(100_000) + 1).unwrap(), step);
                let handle = uploads.open_file(ino, WRITE).unwrap();
                assert_eq!(uploads.write(handle, at as u64, &data).unwrap(), data.len());
                uploads.release(handle);
                model.resize(model.len().max(at + data.len()), 0);
                model[at..at + data.len()].copy_from_slice(&data);
            }
            2 => {
                let size = dice.roll(4 * LEAF as u64);
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                uploads.setattr(ino, &set).unwrap();
                model.resize(usize::try_from(size).unwrap(), 0);
            }
            3 => {
                let made = uploads.create(dir, &scratch, 0o644, 1, 2, true, WRITE).unwrap();
                model = bytes(usize::try_from(dice.roll(9)).unwrap(), step);
                uploads.write(made.1, 0, &model).unwrap();
                uploads.release(made.1);
                uploads.rename(dir, &scratch, dir, &name, RenameMode::Replace).unwrap();
                ino = made.0.ino;
            }
            4 => uploads.fsync(ino).unwrap(),
            _ => assert_eq!(uploads.cid(ino).await.unwrap(), id_of(&model), "step {step}"),
        }
        let reader = uploads.open_file(ino, READ).unwrap();
        assert_eq!(uploads.read(reader, 0, 8 * LEAF).unwrap(), model, "step {step}");
        uploads.release(reader);
    }
    assert_eq!(uploads.cid(ino).await.unwrap(), id_of(&model));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_that_are_changed_at_once_keep_their_content() {
    let bench = Bench::new();
    let dir = bench.mkdir(UploadIno::ROOT, "dir");
    let work = (0..4).map(|number| {
        let (uploads, runtime) = (bench.uploads.clone(), bench.tasks.runtime().clone());
        bench.tasks.blocking("worker", move || runtime.block_on(worker(uploads, dir, number)))
    });
    for done in futures::future::join_all(work).await {
        done.unwrap();
    }
    let root = bench.uploads.cid(dir).await.unwrap();
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), root);
    assert_eq!(bench.uploads.readdir(dir).unwrap().len(), 4);
}
