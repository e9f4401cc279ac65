//! A torrent that is read: what of it is here, and the wait for what is not.

use std::{
    collections::{BTreeMap, HashMap, btree_map},
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep_until},
};

use super::{
    FileEntry, Metainfo, TorrentError, TorrentState, Torrents, fetch::Fetch, meter::Meter,
    pieces::Pieces, published::Published, storage::Files, wake::wake, will::Will,
};
use crate::content::ByteRange;

/// A read that has waited so long for a piece of which nothing arrives finds peers that sleep.
const FIRST_WAKE: Duration = Duration::from_millis(50);
/// Waking is repeated at growing intervals up to this one: each takes a connection.
const LONGEST_WAKE: Duration = Duration::from_secs(2);
/// After this time without a byte the peers that had nothing to do are dialled again.
const DIAL_AGAIN: Duration = Duration::from_secs(1);
/// After this time without a byte a torrent that has peers starts over, and from then on four times as rarely.
const START_OVER: Duration = Duration::from_secs(4);
/// When nothing has arrived for so long after the last reader has left, its peers may go.
const QUIET: Duration = Duration::from_secs(5);
/// How far ahead of a reader the window is looked at for something that nobody fetches; librqbit's own length.
const WINDOW: u64 = 32 << 20;
/// Bytes of other pieces that may come before those that are waited for: two windows.
const OTHERS: u64 = 2 * WINDOW;

/// A torrent that is taken up. Lock order: none of its locks is held while another is taken.
#[derive(Debug)]
pub(super) struct Active {
    torrents: Torrents,
    metainfo: Arc<Metainfo>,
    pub(super) pieces: Arc<Pieces>,
    pub(super) files: Arc<Files>,
    /// In the session, once somebody needed what is not here.
    pub(super) fetch: OnceCell<Fetch>,
    readers: Mutex<HashMap<u64, Reader>>,
    /// When peers were woken, or bytes arrived, as far as readers looked.
    stirred: Mutex<(Instant, u64)>,
    /// What the user has said.
    pub(super) will: Mutex<Will>,
    pub(super) meter: Mutex<Meter>,
    /// What those who watch know.
    pub(super) told: Mutex<Option<(TorrentState, u64, u64)>>,
}

/// Reads that are so near to the last one belong to one that goes through the file: the kernel sends several at once,
/// and not in their order.
const NEAR: u64 = 4 << 20;

/// Where a reader is.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) file: u32,
    /// Behind the last byte that it has read.
    end: u64,
    /// Where its reads wait, each with the number of those that do.
    pub(super) waiting: BTreeMap<u64, usize>,
}

impl Reader {
    /// What is to be fetched first.
    fn place(&self) -> u64 {
        self.waiting.keys().next().copied().unwrap_or(self.end)
    }
}

/// A read that waits somewhere; dropping it leaves nothing behind.
#[derive(Debug)]
struct Waiting<'a> {
    active: &'a Active,
    reader: u64,
    at: u64,
}

impl<'a> Waiting<'a> {
    fn new(active: &'a Active, reader: u64, file: u32, at: u64) -> Self {
        let mut readers = active.readers();
        let known = readers.entry(reader).or_insert(Reader { file, ..Reader::default() });
        *known.waiting.entry(at).or_default() += 1;
        drop(readers);
        Self { active, reader, at }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut readers = self.active.readers();
        let Some(reader) = readers.get_mut(&self.reader) else { return };
        if let btree_map::Entry::Occupied(mut waiting) = reader.waiting.entry(self.at) {
            *waiting.get_mut() -= 1;
            if *waiting.get() == 0 {
                waiting.remove();
            }
        }
    }
}

/// What a read waits for, and how long it still does.
#[derive(Debug)]
struct Wait {
    /// Bytes of the piece that is waited for, and in all, at the last look.
    seen: (u64, u64),
    /// Bytes that others may still get first.
    others: u64,
    /// When the last byte came that counts.
    last: Instant,
    wake_at: Instant,
    interval: Duration,
    dial_at: Instant,
    start_over_at: Instant,
}

impl Active {
    pub(super) fn new(torrents: Torrents, metainfo: Arc<Metainfo>) -> Self {
        let hash = metainfo.hash;
        let pieces = Arc::new(Pieces::new(metainfo.clone()));
        let source = torrents.known().source(&metainfo);
        let published = source
            .map(|source| Published { host: torrents.host().clone(), source: Arc::new(source) });
        match fs::read(torrents.known().bitfield_path(hash)) {
            _ if published.is_some() => drop(pieces.load_all()),
            Ok(bits) => drop(pieces.load(bits)),
            // With nothing there is nothing to be hashed.
            Err(_) if !has_files(&torrents, &metainfo) => {
                pieces.load(vec![0; metainfo.pieces().div_ceil(8) as usize]);
            }
            Err(_) => {}
        }
        let folder = torrents.known().folder(hash);
        let waited = torrents.waited().clone();
        let files = Files::new(folder, metainfo.clone(), pieces.clone(), published, waited);
        let paused = torrents.known().about(hash).is_some_and(|about| about.paused);
        Self {
            torrents,
            metainfo,
            pieces,
            files,
            fetch: OnceCell::new(),
            readers: Mutex::default(),
            stirred: Mutex::new((Instant::now(), 0)),
            will: Mutex::new(Will { paused, ..Will::default() }),
            meter: Mutex::default(),
            told: Mutex::default(),
        }
    }

    pub(super) fn torrents(&self) -> &Torrents {
        &self.torrents
    }

    pub(super) fn metainfo(&self) -> &Arc<Metainfo> {
        &self.metainfo
    }

    pub(super) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    pub(super) fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// Whether it is in the session.
    pub(super) fn is_managed(&self) -> bool {
        self.fetch.initialized()
    }

    /// Writes down what is here, if that has changed.
    pub(super) fn note_pieces(&self) -> io::Result<()> {
        // Held while it is written: what was removed leaves no note behind that the next of its kind would believe.
        let will = self.will();
        match self.pieces.news().filter(|_| !will.removed) {
            Some(bits) => self.torrents.known().note_pieces(self.metainfo.hash, &bits),
            None => Ok(()),
        }
    }

    pub(super) async fn fetch(&self) -> Result<&Fetch, TorrentError> {
        if self.will().removed {
            return Err(TorrentError::Removed(self.metainfo.hash));
        }
        self.fetch.get_or_try_init(|| Fetch::take_up(self)).await
    }

    /// What it is in the session, or what `other` gives where it is not in it.
    pub(super) async fn fetch_or<F: Future<Output = Result<Fetch, TorrentError>>>(
        &self,
        other: impl FnOnce() -> F,
    ) -> Result<&Fetch, TorrentError> {
        self.fetch.get_or_try_init(other).await
    }

    pub(super) fn entry(&self, file: u32) -> Result<&FileEntry, TorrentError> {
        let hash = self.metainfo.hash;
        self.metainfo.files.get(file as usize).ok_or(TorrentError::NoSuchFile { hash, file })
    }

    /// Bytes of a file, if all are here.
    pub(super) fn read_now(
        &self,
        reader: u64,
        file: u32,
        range: ByteRange,
    ) -> Option<Result<Bytes, TorrentError>> {
        let entry = match self.entry(file) {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        if !self.pieces.has(in_torrent(entry, range)) {
            return None;
        }
        self.moved(reader, file, range);
        Some(self.read_here(file, range))
    }

    fn read_here(&self, file: u32, range: ByteRange) -> Result<Bytes, TorrentError> {
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let mut bytes = BytesMut::zeroed(len);
        let read = self.files.read(file, range.start, &mut bytes);
        read.map_err(|e| TorrentError::disk("read", e))?;
        Ok(bytes.freeze())
    }

    /// Bytes of a file, fetched where they are missing.
    pub(super) async fn read(
        &self,
        reader: u64,
        file: u32,
        range: ByteRange,
    ) -> Result<Bytes, TorrentError> {
        if let Some(read) = self.read_now(reader, file, range) {
            return read;
        }
        let wanted = in_torrent(self.entry(file)?, range);
        let hash = self.metainfo.hash;
        if !self.pieces.is_loaded() {
            // What is on disk is hashed by librqbit, also while nobody may be asked.
            self.fetch().await?;
        }
        if !self.pieces.has(wanted) {
            if !self.torrents.options().online {
                return Err(TorrentError::Offline(hash));
            }
            self.may_go()?;
            self.wait(reader, file, range, wanted).await?;
        }
        let sequential = self.moved(reader, file, range);
        if let Some(fetch) = self.fetch.get().filter(|_| !sequential) {
            // Somebody who reads here and there does not want what follows. The end of the file is a place from which
            // little is fetched, and without any place the peers would leave.
            fetch.move_to(reader, file, io::SeekFrom::End(0));
        }
        self.read_here(file, range)
    }

    pub(super) fn close_reader(self: &Arc<Self>, reader: u64) {
        self.readers().remove(&reader);
        if self.fetch.get().is_some_and(|fetch| fetch.close(reader)) {
            let (active, cancelled) = (self.clone(), self.torrents.tasks().cancelled());
            self.torrents.tasks().spawn("torrent is left", async move {
                tokio::select! {
                    () = active.let_go() => {}
                    () = cancelled => {}
                }
            });
        }
    }

    /// Lets go of what a reader has left, once nothing arrives any more.
    async fn let_go(&self) {
        let mut received = None;
        loop {
            let (_, now) = self.pieces.progress(0);
            if received.replace(now) == Some(now) {
                break;
            }
            tokio::time::sleep(QUIET).await;
        }
        if let Some(fetch) = self.fetch.get() {
            fetch.let_go();
        }
    }

    /// Notes where a reader is, and moves its window there if it reads on; whether it does.
    fn moved(&self, reader: u64, file: u32, range: ByteRange) -> bool {
        let (sequential, place) = {
            let mut readers = self.readers();
            let known = readers.entry(reader).or_insert(Reader { file, ..Reader::default() });
            let sequential = known.file == file && known.end.abs_diff(range.start) <= NEAR;
            known.end = if sequential { known.end.max(range.end) } else { range.end };
            known.file = file;
            (sequential || !known.waiting.is_empty(), known.place())
        };
        if let Some(fetch) = self.fetch.get().filter(|_| sequential)
            && fetch.move_to(reader, file, io::SeekFrom::Start(place))
        {
            self.stir(fetch, file, place);
        }
        sequential
    }

    /// Wakes the peers when there is something in the window of a reader and nothing of it arrives.
    fn stir(&self, fetch: &Fetch, file: u32, at: u64) {
        let Ok(entry) = self.entry(file) else { return };
        let window = in_torrent(entry, ByteRange::at(at, WINDOW)).intersect(entry.range);
        let Some(piece) = self.pieces.first_missing(window) else { return };
        let (_, received) = self.pieces.progress(piece);
        {
            let mut stirred = self.stirred.lock().unwrap_or_else(PoisonError::into_inner);
            if stirred.1 != received {
                *stirred = (Instant::now(), received);
            }
            if stirred.0.elapsed() < FIRST_WAKE {
                return;
            }
            stirred.0 = Instant::now();
        }
        self.wake(fetch);
    }

    fn wake(&self, fetch: &Fetch) {
        fetch.feed(self);
        let Some(address) = fetch.address() else { return };
        let (hash, pieces) = (self.metainfo.hash, self.metainfo.pieces());
        self.torrents.tasks().spawn("wake peers", async move {
            wake(address, hash, pieces).await;
        });
    }

    async fn wait(
        &self,
        reader: u64,
        file: u32,
        range: ByteRange,
        wanted: ByteRange,
    ) -> Result<(), TorrentError> {
        let fetch = self.fetch().await?;
        let Some(mut piece) = self.pieces.first_missing(wanted) else { return Ok(()) };
        let waits = |piece: u32| {
            let start = self.metainfo.bytes_of(piece).start.max(wanted.start);
            Waiting::new(self, reader, file, range.start + (start - wanted.start))
        };
        let mut waiting = waits(piece);
        self.set_going(fetch, file, &waiting).await?;
        let mut wait = Wait::new(self.pieces.progress(piece));
        loop {
            let changed = self.pieces.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.pieces.first_missing(wanted) {
                None => return Ok(()),
                Some(next) if next != piece => {
                    piece = next;
                    waiting = waits(piece);
                    wait = Wait::new(self.pieces.progress(piece));
                    fetch.move_to(reader, file, io::SeekFrom::Start(self.place_of(&waiting)));
                }
                Some(_) => {}
            }
            self.may_go()?;
            if let Some(error) = self.pieces.trouble().or_else(|| fetch.trouble()) {
                return Err(error);
            }
            let give_up = wait.last.checked_add(self.torrents.options().lookup_timeout);
            let next = give_up.map_or(wait.wake_at, |give_up| give_up.min(wait.wake_at));
            tokio::select! {
                () = changed => continue,
                () = sleep_until(next) => {}
            }
            if wait.look(self.pieces.progress(piece)) {
                continue;
            }
            let now = Instant::now();
            let give_up = wait.last.checked_add(self.torrents.options().lookup_timeout);
            if give_up.is_some_and(|give_up| give_up <= now) {
                let hash = self.metainfo.hash;
                return Err(TorrentError::Stalled { hash, file, range });
            }
            if wait.start_over_at <= now && fetch.start_over(self, wait.last).await? {
                wait.start_over_at = now + START_OVER * 4;
            }
            if wait.dial_at <= now {
                wait.dial_at = now + DIAL_AGAIN * 2;
                fetch.want_again(reader, file, self.place_of(&waiting)).await?;
            }
            self.wake(fetch);
        }
    }

    /// Has the session fetch what a read waits for.
    async fn set_going(
        &self,
        fetch: &Fetch,
        file: u32,
        waiting: &Waiting<'_>,
    ) -> Result<(), TorrentError> {
        // A place first: a session without one sends peers away that it connects to.
        if let Err(error) = fetch.want(self, waiting.reader, file, self.place_of(waiting)).await {
            tracing::debug!(%error, "the torrent is looked at anew");
        }
        fetch.go_live(self).await?;
        fetch.feed(self);
        fetch.want(self, waiting.reader, file, self.place_of(waiting)).await
    }

    /// What is to be fetched first for a reader, of whom other reads may wait before this one.
    fn place_of(&self, waiting: &Waiting<'_>) -> u64 {
        self.readers().get(&waiting.reader).map_or(waiting.at, Reader::place)
    }

    pub(super) fn readers(&self) -> MutexGuard<'_, HashMap<u64, Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait {
    fn new(seen: (u64, u64)) -> Self {
        let now = Instant::now();
        Self {
            seen,
            others: OTHERS,
            last: now,
            wake_at: now + FIRST_WAKE,
            interval: FIRST_WAKE,
            dial_at: now + DIAL_AGAIN,
            start_over_at: now + START_OVER,
        }
    }

    /// Looks at what has arrived since the last look, and sets the next one; whether it was any of this piece.
    fn look(&mut self, seen: (u64, u64)) -> bool {
        let now = Instant::now();
        let (own, all) = (seen.0 > self.seen.0, seen.1.saturating_sub(self.seen.1));
        self.seen = seen;
        if own || (all > 0 && self.others > 0) {
            self.last = now;
            self.others = self.others.saturating_sub(all);
        }
        if own {
            self.interval = FIRST_WAKE;
        } else {
            self.interval = (self.interval * 2).min(LONGEST_WAKE);
        }
        self.wake_at = now + self.interval;
        if all > 0 {
            self.dial_at = now + DIAL_AGAIN;
            self.start_over_at = now + START_OVER;
        }
        own
    }
}

fn in_torrent(entry: &FileEntry, range: ByteRange) -> ByteRange {
    let start = entry.range.start + range.start;
    ByteRange::at(start, range.len())
}

/// Whether anything of a torrent's files is on disk.
fn has_files(torrents: &Torrents, metainfo: &Metainfo) -> bool {
    let Ok(entries) = fs::read_dir(torrents.known().folder(metainfo.hash)) else { return false };
    let numbered = |name: &str| name.parse::<u32>().is_ok();
    entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(numbered))
}
