#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;

use bytes::Bytes;
use tokio::time::timeout;

use super::*;
use crate::{
    content::{Block, ByteRange, ImportParams, Metadata, import_bytes},
    sources::{Permanent, Reply, Source, SourceError, Transient, Want},
    torrent::{
        TorrentOptions,
        tests::{Around, bytes_of, seeder::Seeder},
    },
};

const PATIENCE: Duration = Duration::from_secs(60);
const PIECE: u32 = 64 << 10;

/// Knows one content.
#[derive(Debug)]
struct One(ContentId, SwarmFile);

impl SwarmPlaces for One {
    fn place_of(&self, id: &ContentId) -> Option<SwarmFile> {
        (*id == self.0).then_some(self.1)
    }
}

struct Setup {
    finder: SwarmFinder,
    tasks: Tasks,
    root: ContentId,
    /// The leaves of the content, in order, with what they hold.
    leaves: Vec<(Want, Bytes)>,
    seeder: Seeder,
    _dirs: [tempfile::TempDir; 2],
}

/// A swarm of two files, of which the content is said to be the one of this number.
async fn setup(file: u32) -> Setup {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (film, other) = (bytes_of::noise(1_000_000, 1), bytes_of::noise(1_000_000, 2));
    let files: &[(&str, &[u8])] = &[("film", &film), ("other", &other)];
    let seeder = Seeder::start(dirs[0].path(), files, PIECE).await;
    let all = Bytes::from(film);
    let (built, blocks) = import_bytes(ImportParams::DEFAULT, &all, Metadata::default());
    let root = built.root;
    let mut leaves = Vec::new();
    let mut start = 0;
    for block in blocks {
        let range = ByteRange::at(start, block.data().len() as u64);
        start = range.end;
        let want = Want { id: *block.cid(), root, file: root, range };
        leaves.push((want, block.data().clone()));
    }
    let tasks = Tasks::new();
    let place = SwarmFile { hash: seeder.metainfo.hash, file, size: 1_000_000 };
    let finder = SwarmFinder::new(Arc::new(One(root, place)), &tasks);
    let options = TorrentOptions {
        listen: Some(([127, 0, 0, 1], 0).into()),
        dht: false,
        public_trackers: false,
        allow_private_addresses: true,
        lookup_timeout: PATIENCE,
        ..TorrentOptions::default()
    };
    let torrents =
        Torrents::open(options, &dirs[1].path().join("torrents"), Arc::<Around>::default(), &tasks)
            .unwrap();
    torrents.learn(&seeder.magnet());
    finder.open(&torrents);
    Setup { finder, tasks, root, leaves, seeder, _dirs: dirs }
}

impl Setup {
    async fn source(&self) -> Arc<dyn Source> {
        match self.finder.find(&self.root).recv().await {
            Some(Found::Source(source)) => source,
            found => panic!("{found:?}"),
        }
    }

    async fn stop(self) {
        let late = self.tasks.shutdown(PATIENCE).await;
        assert!(late.is_empty(), "{late:?}");
    }
}

/// What becomes of wants, each answered once.
async fn ask(
    source: &dyn Source,
    wants: &[Want],
) -> HashMap<ContentId, Result<Block, SourceError>> {
    let (to, mut replies) = mpsc::unbounded_channel();
    source.request(wants, &to);
    drop(to);
    let mut results = HashMap::new();
    while let Some(Reply { id, result, .. }) = timeout(PATIENCE, replies.recv()).await.unwrap() {
        assert!(results.insert(id, result).is_none(), "{id} is answered twice");
    }
    results
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn blocks_are_cut_out_of_the_file_of_a_torrent_and_nodes_are_not_known() {
    let setup = setup(0).await;
    let source = setup.source().await;
    let wants: Vec<Want> = setup.leaves.iter().map(|(want, _)| *want).collect();
    let results = ask(&*source, &wants).await;
    for (want, bytes) in &setup.leaves {
        assert!(results[&want.id].as_ref().unwrap().data() == bytes);
    }
    let node = Want { range: ByteRange::default(), id: setup.root, ..wants[0] };
    let results = ask(&*source, &[node]).await;
    assert_eq!(results[&setup.root].as_ref().unwrap_err(), &Permanent::NotFound.into());
    // Of anything else no swarm is known.
    assert!(setup.finder.find(&wants[0].id).recv().await.is_none());
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_map_that_lies_bans_its_swarm() {
    let setup = setup(1).await;
    let source = setup.source().await;
    let want = setup.leaves[0].0;
    let results = ask(&*source, &[want]).await;
    assert_eq!(results[&want.id].as_ref().unwrap_err(), &Permanent::BadHash.into());
    source.ban(PATIENCE);
    let results = ask(&*source, &[want]).await;
    let refused = results[&want.id].as_ref().unwrap_err();
    assert!(matches!(refused, SourceError::Permanent(Permanent::Rejected(_))), "{refused}");
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_taken_back_is_not_answered() {
    let setup = setup(0).await;
    let source = setup.source().await;
    // Nothing comes.
    setup.seeder.session.stop().await;
    let wants: Vec<Want> = setup.leaves.iter().map(|(want, _)| *want).collect();
    let (to, mut replies) = mpsc::unbounded_channel();
    source.request(&wants, &to);
    drop(to);
    let ids: Vec<ContentId> = wants.iter().map(|want| want.id).collect();
    source.cancel(&ids);
    assert!(timeout(PATIENCE, replies.recv()).await.unwrap().is_none());
    timeout(PATIENCE, async {
        while setup.tasks.alive().contains_key("read a swarm") {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    drop(source);
    setup.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_torrent_is_not_read_for_a_content_that_is_read_for_the_torrent() {
    let setup = setup(0).await;
    let source = setup.source().await;
    let want = setup.leaves[0].0;
    let place = setup.finder.places.place_of(&setup.root).unwrap();
    assert!(setup.finder.is_free_for_engine(&place));
    let reads = setup.finder.read_by_engine(&place).unwrap();
    let results = ask(&*source, &[want]).await;
    assert_eq!(results[&want.id].as_ref().unwrap_err(), &Transient::Busy.into());
    // The same direction twice is no harm, and the other one opens some time after the last.
    drop(setup.finder.read_by_engine(&place).unwrap());
    drop(reads);
    setup.finder.uses.files().values_mut().for_each(|used| used.rested -= REST);
    let results = ask(&*source, &[want]).await;
    assert!(results[&want.id].is_ok());
    assert!(!setup.finder.is_free_for_engine(&place));
    assert!(setup.finder.read_by_engine(&place).is_none());
    setup.stop().await;
}
