//! Torrents that were seen: their descriptions on disk, and where their files are.
//!
//! `torrents/<hash>/metainfo` is the description as a `.torrent` file, `torrents/<hash>/<number>` the bytes of a file.
//! Names that the torrent gives its files are not used, so that no name can lead anywhere. `torrents/session` is
//! librqbit's own: which pieces of what are here.

use std::{
    collections::BTreeSet,
    fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use super::{
    Magnet, Metainfo, MetainfoError, TorrentError,
    metainfo::{MAX_METAINFO, with_link},
};
use crate::content::InfoHash;

const METAINFO: &str = "metainfo";
const SESSION: &str = "session";
/// Says that a session runs, and since which start of the machine: see [`Known::trust_pieces`].
const RUNNING: &str = "running";
/// Descriptions that are kept in memory, each some 100 bytes for each of its files.
const CACHED: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Links that are remembered of torrents that are not known yet.
const SAID: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What is known of torrents without asking anybody.
#[derive(Debug)]
pub(super) struct Known {
    dir: PathBuf,
    cached: Mutex<LruCache<InfoHash, Arc<Metainfo>>>,
    /// What links said of torrents.
    said: Mutex<LruCache<InfoHash, Magnet>>,
    /// All that have a description on disk.
    all: Mutex<BTreeSet<InfoHash>>,
}

impl Known {
    /// Reads which torrents there are; makes the folder when the first one comes.
    pub(super) fn open(dir: &Path) -> Result<Self, TorrentError> {
        let mut all = BTreeSet::new();
        match fs::read_dir(dir) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.map_err(|e| TorrentError::disk("list", e))?;
                    let hash = entry.file_name().to_str().and_then(|name| name.parse().ok());
                    if let Some(hash) = hash.filter(|_| entry.path().join(METAINFO).exists()) {
                        all.insert(hash);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(TorrentError::disk("list", error)),
        }
        Ok(Self {
            dir: dir.to_owned(),
            cached: Mutex::new(LruCache::new(CACHED)),
            said: Mutex::new(LruCache::new(SAID)),
            all: Mutex::new(all),
        })
    }

    /// Where the files of a torrent are.
    pub(super) fn folder(&self, hash: InfoHash) -> PathBuf {
        self.dir.join(hash.to_string())
    }

    /// Where librqbit keeps its own.
    pub(super) fn session_folder(&self) -> PathBuf {
        self.dir.join(SESSION)
    }

    /// Which pieces of a torrent are here, as librqbit writes it: a bit for each, the highest first.
    pub(super) fn bitfield_path(&self, hash: InfoHash) -> PathBuf {
        self.session_folder().join(format!("{hash}.bitv"))
    }

    /// All torrents whose description is here.
    pub(super) fn all(&self) -> Vec<InfoHash> {
        guard(&self.all).iter().copied().collect()
    }

    /// Keeps what a link says for when the torrent is searched; whether it says anything new.
    pub(super) fn learn(&self, magnet: &Magnet) -> bool {
        let mut said = guard(&self.said);
        match said.get_mut(&magnet.hash) {
            Some(known) => {
                let before = known.clone();
                known.merge(magnet);
                *known != before
            }
            None if *magnet == Magnet::of(magnet.hash) => false,
            None => {
                said.put(magnet.hash, magnet.clone());
                true
            }
        }
    }

    /// What links said of a torrent.
    pub(super) fn said(&self, hash: InfoHash) -> Magnet {
        guard(&self.said).get(&hash).cloned().unwrap_or_else(|| Magnet::of(hash))
    }

    /// The description, when it is here.
    pub(super) fn metainfo(&self, hash: InfoHash) -> Option<Result<Arc<Metainfo>, TorrentError>> {
        if let Some(known) = guard(&self.cached).get(&hash) {
            return Some(Ok(known.clone()));
        }
        if !guard(&self.all).contains(&hash) {
            return None;
        }
        let read = self.read(hash).and_then(|text| {
            let metainfo = Metainfo::parse(&text)?;
            if metainfo.hash == hash {
                Ok(metainfo)
            } else {
                Err(MetainfoError::Other(metainfo.hash).into())
            }
        });
        Some(read.map(|metainfo| self.cache(metainfo)))
    }

    /// The description as it is on disk.
    pub(super) fn read(&self, hash: InfoHash) -> Result<Vec<u8>, TorrentError> {
        let path = self.folder(hash).join(METAINFO);
        let len = fs::metadata(&path).map_err(|e| TorrentError::disk("read", e))?.len();
        if len > MAX_METAINFO as u64 {
            return Err(MetainfoError::TooLong.into());
        }
        fs::read(path).map_err(|e| TorrentError::disk("read", e))
    }

    /// Keeps a description, with the trackers and servers that links named for it. Another one of the same torrent that
    /// is here already stays.
    pub(super) fn keep(&self, text: &[u8]) -> Result<Arc<Metainfo>, TorrentError> {
        let mut metainfo = Metainfo::parse(text)?;
        let hash = metainfo.hash;
        if let Some(Ok(known)) = self.metainfo(hash) {
            self.learn(&metainfo.magnet());
            return Ok(known);
        }
        let mut magnet = metainfo.magnet();
        magnet.merge(&self.said(hash));
        let text = with_link(text, &magnet)?;
        (metainfo.trackers, metainfo.webseeds) = (magnet.trackers, magnet.webseeds);
        self.write(hash, &text).map_err(|e| TorrentError::disk("write", e))?;
        guard(&self.all).insert(hash);
        Ok(self.cache(metainfo))
    }

    fn cache(&self, metainfo: Metainfo) -> Arc<Metainfo> {
        let metainfo = Arc::new(metainfo);
        guard(&self.cached).put(metainfo.hash, metainfo.clone());
        metainfo
    }

    /// A crash leaves either nothing under the name or all of it.
    fn write(&self, hash: InfoHash, text: &[u8]) -> io::Result<()> {
        let folder = self.folder(hash);
        fs::create_dir_all(&folder)?;
        let part = folder.join("metainfo.part");
        fs::write(&part, text)?;
        fs::File::open(&part)?.sync_all()?;
        fs::rename(part, folder.join(METAINFO))?;
        fs::File::open(folder)?.sync_all()
    }

    /// Called before anything believes what librqbit wrote down of the pieces that are here. That is true as long as
    /// the machine has not gone down meanwhile: a piece is noted after it was written, but nothing says which of both
    /// reaches the disk first. So the notes of a session that ended with the machine are thrown away, and the files
    /// are hashed again when they are opened.
    pub(super) fn trust_pieces(&self) -> Result<(), TorrentError> {
        let told = |e| TorrentError::disk("prepare", e);
        let (folder, running) = (self.session_folder(), self.session_folder().join(RUNNING));
        match fs::read_to_string(&running) {
            Ok(then) if then == boot_id() => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(told(error)),
        }
        tracing::warn!(
            "the machine went down while torrents were open; their files are hashed again"
        );
        for entry in fs::read_dir(folder).map_err(told)? {
            let path = entry.map_err(told)?.path();
            if path.extension().is_some_and(|ending| ending == "bitv") {
                remove(&path).map_err(told)?;
            }
        }
        remove(&running).map_err(told)
    }

    /// Called before a session starts. The list of torrents of the last one goes: librqbit would take all of them up
    /// again at its start, while here each is taken up when it is read.
    pub(super) fn begins(&self) -> io::Result<()> {
        let folder = self.session_folder();
        fs::create_dir_all(&folder)?;
        remove(&folder.join("session.json"))?;
        let running = folder.join(RUNNING);
        fs::write(&running, boot_id())?;
        // There before anything is written that it warns of.
        fs::File::open(&running)?.sync_all()?;
        fs::File::open(&folder)?.sync_all()
    }

    /// Writes down which pieces are here. In place of librqbit's own notes, which it may still be writing to then.
    pub(super) fn note_pieces(&self, hash: InfoHash, bits: &[u8]) -> io::Result<()> {
        let path = self.bitfield_path(hash);
        let part = path.with_extension("part");
        fs::write(&part, bits)?;
        fs::rename(part, path)
    }

    /// Called after a session has ended: everything that it wrote reaches the disk before its notes are trusted.
    pub(super) fn ended(&self) -> io::Result<()> {
        rustix::fs::syncfs(fs::File::open(&self.dir)?)?;
        remove(&self.session_folder().join(RUNNING))
    }
}

/// Names this start of the machine; empty where the kernel does not tell, which then counts as always the same.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
