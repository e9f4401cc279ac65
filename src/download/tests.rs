#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "figures of a simulation are small")]

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::mpsc;

use super::*;
use crate::{
    content::{Block, DirectoryBuilder, FileBuilder, ImportParams, Metadata},
    sources::{
        Finder, Found, Permanent, Reply, Source, SourceError, SourceId, SourceKind, Transient, Want,
    },
    store::{Store, StoreOptions},
    tasks::Tasks,
};

mod engine;
mod sharing;
mod waits;

const CHUNK: usize = 4096;
const SMALL: ImportParams =
    ImportParams { chunk_len: CHUNK, max_links: 5, shard_threshold: 600, ..ImportParams::DEFAULT };
const READER: ReaderId = ReaderId(7);

type Blocks = HashMap<ContentId, Block>;

/// A file of `len` bytes that differ from block to block, with all blocks of its DAG.
fn file(len: usize, seed: u8) -> (ContentId, Vec<u8>, Blocks) {
    let data: Vec<u8> = (0..len)
        .map(|at| ((at / 7 + at / CHUNK * 31) % 256) as u8 ^ ((at % 256) as u8).wrapping_mul(seed))
        .collect();
    let mut blocks = Blocks::new();
    let mut builder = FileBuilder::new(SMALL);
    for chunk in data.chunks(CHUNK) {
        let leaf = Block::raw(Bytes::copy_from_slice(chunk));
        let nodes = builder.push(*leaf.cid(), chunk.len() as u64);
        blocks.extend(nodes.into_iter().chain([leaf]).map(|block| (*block.cid(), block)));
    }
    let built = builder.finish(Metadata::default());
    blocks.extend(built.nodes.iter().map(|block| (*block.cid(), block.clone())));
    (built.root, data, blocks)
}

/// A file of these leaves in this order.
fn file_of(leaves: &[&Block]) -> (ContentId, Vec<u8>, Blocks) {
    let mut builder = FileBuilder::new(SMALL);
    let (mut data, mut all) = (Vec::new(), Vec::new());
    for leaf in leaves {
        all.extend(builder.push(*leaf.cid(), leaf.data().len() as u64));
        all.push((*leaf).clone());
        data.extend_from_slice(leaf.data());
    }
    let built = builder.finish(Metadata::default());
    all.extend(built.nodes);
    (built.root, data, all.into_iter().map(|block| (*block.cid(), block)).collect())
}

/// What a scripted source does with a want.
#[derive(Clone, Debug)]
enum Script {
    /// Gives what it has after this long, one block after the other.
    Gives(Duration),
    Silent,
    Fails(SourceError),
    /// Fails the first requests, then gives.
    FailsFirst(usize, SourceError),
    /// Gives this many blocks, then says nothing any more.
    Dies(usize),
    /// Gives what it has and says nothing to other wants.
    Withholds,
    /// Gives what it has under ids of another version and codec.
    Renames,
    /// Gives another block for each want.
    Mixes,
}

#[derive(Debug)]
struct Scripted {
    id: SourceId,
    script: Script,
    blocks: Blocks,
    tasks: Tasks,
    asked: Mutex<Vec<ContentId>>,
    banned: Mutex<Option<Duration>>,
    /// Wants that were taken back and not asked for again.
    cancelled: Arc<Mutex<HashSet<ContentId>>>,
}

impl Scripted {
    fn new(name: &str, script: Script, blocks: &Blocks, tasks: &Tasks) -> Arc<Self> {
        Arc::new(Self {
            id: SourceId(name.into()),
            script,
            blocks: blocks.clone(),
            tasks: tasks.clone(),
            asked: Mutex::default(),
            banned: Mutex::default(),
            cancelled: Arc::default(),
        })
    }

    fn asked(&self) -> Vec<ContentId> {
        self.asked.lock().unwrap().clone()
    }
}

impl Source for Scripted {
    fn id(&self) -> &SourceId {
        &self.id
    }
    fn kind(&self) -> SourceKind {
        SourceKind::Chiral
    }
    fn request(&self, wants: &[Want], replies: &mpsc::UnboundedSender<Reply>) {
        let mut asked = self.asked.lock().unwrap();
        let before = asked.len();
        asked.extend(wants.iter().map(|want| want.id));
        drop(asked);
        let (wants, replies) = (wants.to_vec(), replies.clone());
        let (id, blocks, script) = (self.id.clone(), self.blocks.clone(), self.script.clone());
        let cancelled = self.cancelled.clone();
        cancelled.lock().unwrap().retain(|id| wants.iter().all(|want| want.id != *id));
        self.tasks.spawn("scripted", async move {
            for (at, want) in wants.into_iter().enumerate() {
                let have =
                    || blocks.get(&want.id).cloned().ok_or(SourceError::from(Permanent::NotFound));
                let result = match &script {
                    Script::Gives(wait) => {
                        if cancelled.lock().unwrap().contains(&want.id) {
                            continue;
                        }
                        tokio::time::sleep(*wait).await;
                        have()
                    }
                    Script::Silent => continue,
                    Script::Fails(error) => Err(error.clone()),
                    Script::FailsFirst(count, error) if before + at < *count => Err(error.clone()),
                    Script::FailsFirst(..) => have(),
                    Script::Dies(count) if before + at >= *count => continue,
                    Script::Dies(_) => have(),
                    Script::Withholds if !blocks.contains_key(&want.id) => continue,
                    Script::Withholds => have(),
                    Script::Renames => have().map(|block| {
                        let hash = *block.cid().hash();
                        let other = if want.id.codec() == crate::content::Codec::Raw {
                            ContentId::dag_pb(hash)
                        } else {
                            ContentId::raw(hash)
                        };
                        Block::from_store(other, block.data().clone())
                    }),
                    Script::Mixes => Ok(Block::raw(Bytes::from_static(b"something else"))),
                };
                let _ = replies.send(Reply { source: id.clone(), id: want.id, result });
            }
        });
    }
    fn cancel(&self, ids: &[ContentId]) {
        self.cancelled.lock().unwrap().extend(ids);
    }
    fn has(&self, ids: Vec<ContentId>) -> BoxFuture<'static, Vec<bool>> {
        let has = ids.iter().map(|id| self.blocks.contains_key(id)).collect();
        async move { has }.boxed()
    }
    fn ban(&self, for_time: Duration) {
        *self.banned.lock().unwrap() = Some(for_time);
    }
}

/// Finds the sources that it was given, and those that a test adds later.
#[derive(Debug, Default)]
struct Sources {
    known: Mutex<Vec<Arc<Scripted>>>,
    searches: Mutex<Vec<mpsc::Sender<Found>>>,
    arrived: Mutex<HashSet<ContentId>>,
    asked_again: Mutex<usize>,
}

impl Sources {
    fn add(&self, source: &Arc<Scripted>) {
        self.known.lock().unwrap().push(source.clone());
        for search in self.searches.lock().unwrap().iter() {
            let _ = search.try_send(Found::Source(source.clone()));
        }
    }
}

impl Sources {
    fn lose(&self, name: &str) {
        for search in self.searches.lock().unwrap().iter() {
            let _ = search.try_send(Found::Gone(SourceId(name.into())));
        }
    }
}

impl Finder for Sources {
    fn ask_again(&self, _root: &ContentId) {
        *self.asked_again.lock().unwrap() += 1;
    }

    fn arrived(&self, block: &ContentId) {
        self.arrived.lock().unwrap().insert(*block);
    }

    fn find(&self, _root: &ContentId) -> mpsc::Receiver<Found> {
        let (found, receiver) = mpsc::channel(100);
        for source in self.known.lock().unwrap().iter() {
            found.try_send(Found::Source(source.clone())).unwrap();
        }
        found.try_send(Found::Searched).unwrap();
        self.searches.lock().unwrap().push(found);
        receiver
    }
}

struct World {
    dir: tempfile::TempDir,
    tasks: Tasks,
    store: Store,
    sources: Arc<Sources>,
    engine: Engine,
}

impl World {
    fn new() -> Self {
        Self::with(DownloadOptions::default(), &Arc::default())
    }

    /// A world whose disk has no room for content while `full` is on.
    fn with(options: DownloadOptions, full: &Arc<AtomicBool>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let folder =
            StoreOptions { dir: dir.path().to_owned(), cache_limit: None, min_free: Some(0) };
        let store = Store::open_on_filling_disk(&folder, &tasks, full.clone()).unwrap();
        let sources = Arc::new(Sources::default());
        let engine = Engine::new(options, store.clone(), sources.clone(), &tasks);
        Self { dir, tasks, store, sources, engine }
    }

    /// An engine that knows nothing but what is in the store.
    fn restart(&mut self) {
        self.sources = Arc::new(Sources::default());
        let options = DownloadOptions::default();
        self.engine = Engine::new(options, self.store.clone(), self.sources.clone(), &self.tasks);
    }

    fn source(&self, name: &str, script: Script, blocks: &Blocks) -> Arc<Scripted> {
        let source = Scripted::new(name, script, blocks, &self.tasks);
        self.sources.add(&source);
        source
    }
}

fn all(data: &[u8]) -> ByteRange {
    ByteRange::new(0, data.len() as u64)
}

const SOON: Script = Script::Gives(Duration::from_millis(1));

#[tokio::test(start_paused = true)]
async fn a_file_is_read_through_one_source_and_kept() {
    let mut world = World::new();
    let (root, data, blocks) = file(500_001, 3);
    let source = world.source("one", SOON, &blocks);
    let mut events = world.engine.events();
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.size(), 500_001);
    assert!(handle.read_now(READER, all(&data)).is_none());
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
    assert!(handle.object().is_complete());
    let asked = source.asked();
    let distinct: HashSet<_> = asked.iter().collect();
    assert_eq!((asked.len(), distinct.len()), (blocks.len(), blocks.len()), "each block once");
    // Readers are woken first.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let arrived = world.sources.arrived.lock().unwrap().clone();
    assert!(blocks.keys().all(|id| arrived.contains(id)), "whoever waits for one is told");
    let mut paths = HashSet::new();
    while let Ok(event) = events.try_recv() {
        if let Event::DownloadChunkComplete { path, .. } = event {
            paths.insert(path);
        }
    }
    assert_eq!(paths, HashSet::from([handle.object().path().to_owned()]));

    world.restart();
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.read_now(READER, all(&data)).unwrap().unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn reads_of_a_sequence_give_the_bytes_at_any_size() {
    let world = World::new();
    let (root, data, blocks) = file(300_000, 5);
    world.source("one", SOON, &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let mut got = Vec::new();
    while got.len() < data.len() {
        let at = got.len() as u64;
        got.extend_from_slice(&handle.read(READER, ByteRange::at(at, 10_007)).await.unwrap());
    }
    assert_eq!(got, data);
    let end = data.len() as u64;
    assert!(handle.read(READER, ByteRange::at(end, 10)).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_small_read_in_the_middle_fetches_its_block_and_the_nodes_above_it() {
    let world = World::new();
    let (root, data, blocks) = file(500_000, 3);
    let source = world.source("one", SOON, &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let range = ByteRange::at(250_000, 100);
    assert_eq!(handle.read(READER, range).await.unwrap(), data[250_000..250_100]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let leaves =
        source.asked().iter().filter(|id| id.codec() == crate::content::Codec::Raw).count();
    assert_eq!(leaves, 1);
    // 123 leaves under 5 links each: root and two more levels.
    assert_eq!(source.asked().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn two_readers_of_one_file_share_its_blocks() {
    let world = World::new();
    let (root, data, blocks) = file(400_000, 9);
    let source = world.source("one", SOON, &blocks);
    let first = world.engine.file(&root, &root).await.unwrap();
    let second = world.engine.file(&root, &root).await.unwrap();
    let half = ByteRange::new(0, 300_000);
    let other = ByteRange::new(100_000, 400_000);
    let (a, b) = tokio::join!(first.read(ReaderId(1), half), second.read(ReaderId(2), other));
    assert_eq!(a.unwrap(), data[..300_000]);
    assert_eq!(b.unwrap(), data[100_000..]);
    let asked = source.asked();
    assert_eq!(asked.len(), asked.iter().collect::<HashSet<_>>().len());
}

#[tokio::test(start_paused = true)]
async fn a_liar_is_banned_and_the_bytes_come_from_another() {
    let world = World::new();
    let (root, data, blocks) = file(100_000, 2);
    let liar = world.source("liar", Script::Fails(Permanent::BadHash.into()), &blocks);
    world.source("honest", Script::Gives(Duration::from_millis(50)), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
    let asked = liar.asked().len();
    assert!((1..=DownloadOptions::default().chunks_per_peer).contains(&asked), "{asked}");
    assert!(liar.banned.lock().unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn busy_and_failing_sources_are_tried_again() {
    for error in [
        SourceError::from(Transient::Busy),
        Transient::Reset.into(),
        Transient::RateLimited(Duration::from_secs(2)).into(),
    ] {
        let world = World::new();
        let (root, data, blocks) = file(50_000, 2);
        world.source("one", Script::FailsFirst(1, error), &blocks);
        let handle = world.engine.file(&root, &root).await.unwrap();
        assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_dies_is_replaced_by_a_slow_one() {
    let world = World::new();
    let (root, data, blocks) = file(400_000, 2);
    world.source("dies", Script::Dies(20), &blocks);
    world.source("slow", Script::Gives(Duration::from_millis(20)), &blocks);
    let began = tokio::time::Instant::now();
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.read(READER, all(&data)).await.unwrap(), data);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_read_leaves_nothing_and_a_dropped_handle_ends_the_download() {
    let world = World::new();
    let (root, data, blocks) = file(60_000, 4);
    world.source("dies", Script::Dies(1), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    let read = handle.read(READER, all(&data));
    assert!(tokio::time::timeout(Duration::from_millis(500), read).await.is_err());
    assert_eq!(handle.file().readers().waiting().count(), 0);
    drop(handle);
    tokio::time::sleep(Duration::from_secs(130)).await;
    assert_eq!(world.tasks.alive().get("download"), None);
}

#[tokio::test(start_paused = true)]
async fn a_restart_fetches_only_what_is_missing() {
    let mut world = World::new();
    let (root, data, blocks) = file(200_000, 6);
    world.source("dies", Script::Dies(30), &blocks);
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert!(handle.read(READER, all(&data)).await.is_err());
    let before = handle.object().present().bytes();
    assert!(before > 0);
    drop(handle);

    world.restart();
    let source = world.source("two", SOON, &blocks);
    world.engine.fetch(&root, Strategy::Sequential).await.unwrap();
    let handle = world.engine.file(&root, &root).await.unwrap();
    assert_eq!(handle.read_now(READER, all(&data)).unwrap().unwrap(), data);
    let leaf = |id: &&ContentId| id.codec() == crate::content::Codec::Raw;
    let fetched: u64 =
        source.asked().iter().filter(leaf).map(|id| blocks[id].data().len() as u64).sum();
    assert_eq!(fetched + before, 200_000);
}

#[tokio::test(start_paused = true)]
async fn every_strategy_fetches_the_whole_file() {
    for strategy in
        [Strategy::Streaming, Strategy::RarestFirst, Strategy::Sequential, Strategy::Random]
    {
        let world = World::new();
        let (root, data, blocks) = file(300_000, 8);
        world.source("one", SOON, &blocks);
        world.engine.fetch(&root, strategy).await.unwrap();
        let handle = world.engine.file(&root, &root).await.unwrap();
        assert_eq!(handle.read_now(READER, all(&data)).unwrap().unwrap(), data, "{strategy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tree_is_fetched_with_all_its_shards_and_files() {
    let world = World::new();
    let mut blocks = Blocks::new();
    let mut inner = DirectoryBuilder::new(SMALL);
    for n in 0..60u8 {
        let (root, data, file_blocks) = file(5000 + usize::from(n), n);
        blocks.extend(file_blocks);
        inner.add(&format!("file-{n}"), root, data.len() as u64);
    }
    let inner = inner.finish(Metadata::default());
    let mut outer = DirectoryBuilder::new(SMALL);
    outer.add("inner", inner.root, inner.tsize);
    let outer = outer.finish(Metadata::default());
    let nodes = inner.nodes.iter().chain(&outer.nodes);
    blocks.extend(nodes.map(|block| (*block.cid(), block.clone())));
    assert!(inner.nodes.len() > 1, "the inner directory is sharded");
    world.source("one", SOON, &blocks);
    world.engine.fetch(&outer.root, Strategy::Streaming).await.unwrap();
    let directory = world.engine.directory(&outer.root, &inner.root).await.unwrap();
    assert_eq!(directory.entries().len(), 60);
    assert!(blocks.keys().all(|id| world.store.block(id).unwrap().is_some()));
}
