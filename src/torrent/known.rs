//! Torrents that were seen: their descriptions on disk, and where their files are.
//!
//! `torrents/<hash>/metainfo` is the description as a `.torrent` file, `torrents/<hash>/<number>` the bytes of a file.
//! Names that the torrent gives its files are not used, so that no name can lead anywhere. `torrents/session` is
//! librqbit's own: which pieces of what are here.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use super::{
    ListedTorrent, Magnet, Metainfo, Source, TorrentError,
    about::{About, Listing},
    made::{Index, Made},
};
use crate::content::InfoHash;

pub(super) const METAINFO: &str = "metainfo";
/// What the files of a torrent are read from, where they are not in its folder.
const SOURCE: &str = "source";
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
    pub(super) cached: Mutex<LruCache<InfoHash, Arc<Metainfo>>>,
    /// What links said of torrents.
    said: Mutex<LruCache<InfoHash, Magnet>>,
    /// All that have a description on disk.
    pub(super) all: Mutex<BTreeSet<InfoHash>>,
    /// What is to be done with each, and its names.
    pub(super) listing: Mutex<Listing>,
    /// Those that were made from what is published.
    pub(super) made: Mutex<Index>,
    /// Held while a description or a change of the listing is written, so that the last change is the last on disk.
    /// Taken before all others.
    pub(super) writing: Mutex<()>,
}

impl Known {
    /// Reads which torrents there are; makes the folder when the first one comes.
    pub(super) fn open(dir: &Path) -> Result<Self, TorrentError> {
        let (mut all, mut found, mut made) = (BTreeSet::new(), Vec::new(), Index::default());
        match fs::read_dir(dir) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.map_err(|e| TorrentError::disk("list", e))?;
                    let hash = entry.file_name().to_str().and_then(|name| name.parse().ok());
                    let Some(hash) = hash else { continue };
                    if entry.path().join(METAINFO).exists() {
                        all.insert(hash);
                        let source = Made::read(&entry.path().join(SOURCE));
                        source.into_iter().for_each(|source| made.put(hash, source));
                    }
                    found.push((hash, About::read(&entry.path())));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(TorrentError::disk("list", error)),
        }
        let known = Self {
            dir: dir.to_owned(),
            cached: Mutex::new(LruCache::new(CACHED)),
            said: Mutex::new(LruCache::new(SAID)),
            all: Mutex::new(all),
            listing: Mutex::default(),
            made: Mutex::new(made),
            writing: Mutex::default(),
        };
        known.list(found);
        Ok(known)
    }

    /// Lists what was found on disk, those first that have names.
    fn list(&self, mut found: Vec<(InfoHash, Option<About>)>) {
        found.sort_by_key(|(hash, about)| (about.is_none(), *hash));
        for (hash, about) in found {
            let described = guard(&self.all).contains(&hash);
            match about {
                Some(about) if described => {
                    let said = about.said.as_ref().and_then(|said| said.parse().ok());
                    if let Some(said) = said {
                        self.learn(&said);
                    }
                    guard(&self.listing).put(hash, about, "");
                }
                Some(About { magnet: Some(magnet), link, pins, refused, .. }) => {
                    let Ok(said) = magnet.parse::<Magnet>() else { continue };
                    let name = said.name.clone().unwrap_or_default();
                    self.learn(&said);
                    let magnet = Some(magnet);
                    let about = About { magnet, link, pins, refused, ..About::default() };
                    guard(&self.listing).put(hash, about, &shown(&name));
                }
                Some(_) => {}
                None if described => {
                    let Some(Ok(metainfo)) = self.metainfo(hash) else { continue };
                    let name = metainfo.name.to_string_lossy();
                    guard(&self.listing).put(hash, About::default(), &shown(&name));
                }
                None => {}
            }
        }
    }

    /// What is to be done with a torrent.
    pub(super) fn about(&self, hash: InfoHash) -> Option<About> {
        guard(&self.listing).about(hash).cloned()
    }

    /// All that are listed, with what is to be done with each.
    pub(super) fn listed(&self) -> Vec<(InfoHash, About)> {
        let listing = guard(&self.listing);
        let mut all: Vec<_> = listing.all().map(|(hash, about)| (hash, about.clone())).collect();
        drop(listing);
        all.sort_by_key(|(hash, _)| *hash);
        all
    }

    /// The names of all torrents.
    pub(super) fn names(&self) -> Vec<(OsString, ListedTorrent)> {
        guard(&self.listing).names()
    }

    /// What a name stands for.
    pub(super) fn named(&self, name: &OsStr) -> Option<ListedTorrent> {
        guard(&self.listing).named(name)
    }

    /// Changes what is to be done with a torrent, for this start and the next ones.
    pub(super) fn change(
        &self,
        hash: InfoHash,
        change: impl FnOnce(&mut About),
    ) -> Result<(), TorrentError> {
        let _writing = guard(&self.writing);
        let mut about = self.about(hash).ok_or(TorrentError::NoSuchTorrent(hash))?;
        change(&mut about);
        about.write(&self.folder(hash)).map_err(|e| TorrentError::disk("write", e))?;
        guard(&self.listing).put(hash, about, "");
        Ok(())
    }

    /// Gives a description the name that somebody has for it; nothing happens where another torrent has that name.
    pub(super) fn rename(&self, hash: InfoHash, name: &str) -> Result<(), TorrentError> {
        let _writing = guard(&self.writing);
        let renamed = guard(&self.listing).rename(hash, name).cloned();
        match renamed {
            Some(about) => {
                about.write(&self.folder(hash)).map_err(|e| TorrentError::disk("write", e))
            }
            None => Ok(()),
        }
    }

    /// Keeps a link, so that its torrent is looked for also after a restart.
    pub(super) fn seek(&self, magnet: &Magnet) -> Result<(), TorrentError> {
        self.learn(magnet);
        let _writing = guard(&self.writing);
        if guard(&self.listing).about(magnet.hash).is_some() {
            return Ok(());
        }
        let about =
            About { magnet: Some(magnet.without_selection().to_string()), ..About::default() };
        let name = shown(magnet.name.as_deref().unwrap_or_default());
        let about = guard(&self.listing).put(magnet.hash, about, &name).clone();
        about.write(&self.folder(magnet.hash)).map_err(|e| TorrentError::disk("write", e))
    }

    /// What the files of a torrent are read from, where it was made of what is published.
    pub(super) fn source(&self, metainfo: &Metainfo) -> Option<Source> {
        let path = self.folder(metainfo.hash).join(SOURCE);
        let text = fs::read_to_string(path).ok()?;
        let source = Source::decode(&text, metainfo.files.len());
        if source.is_none() {
            tracing::warn!(hash = %metainfo.hash, "it is unreadable what a torrent was made from");
        }
        source
    }

    /// Writes down what the files of a torrent are read from.
    pub(super) fn put_source(&self, hash: InfoHash, source: &Source) -> Result<(), TorrentError> {
        let folder = self.folder(hash);
        let written = fs::create_dir_all(&folder)
            .and_then(|()| write_whole(&folder, SOURCE, source.encode().as_bytes()));
        written.map_err(|e| TorrentError::disk("write", e))?;
        guard(&self.made).put(hash, Made { root: source.root, automatic: source.automatic });
        Ok(())
    }

    /// Forgets a torrent, with all of it that is on disk. What links said is remembered: the kernel may know one by its
    /// name still, and does not ask again what it says.
    pub(super) fn forget(&self, hash: InfoHash) -> Result<(), TorrentError> {
        let _writing = guard(&self.writing);
        guard(&self.listing).remove(hash);
        guard(&self.all).remove(&hash);
        guard(&self.cached).pop(&hash);
        guard(&self.made).remove(hash);
        let told = |e| TorrentError::disk("remove", e);
        remove(&self.bitfield_path(hash)).map_err(told)?;
        match fs::remove_dir_all(self.folder(hash)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(told(error)),
            _ => Ok(()),
        }
    }

    /// Where everything is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// From now on nothing of its files is believed to be here.
    pub(super) fn forget_pieces(&self, hash: InfoHash) -> io::Result<()> {
        remove(&self.bitfield_path(hash))
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

    /// Whether the description is here.
    pub(super) fn has(&self, hash: InfoHash) -> bool {
        guard(&self.all).contains(&hash)
    }

    /// All torrents whose description is here.
    pub(super) fn all(&self) -> Vec<InfoHash> {
        guard(&self.all).iter().copied().collect()
    }

    /// Keeps what a link says for when the torrent is searched; whether it says anything new.
    pub(super) fn learn(&self, magnet: &Magnet) -> bool {
        let magnet = magnet.without_selection();
        let mut said = guard(&self.said);
        match said.get_mut(&magnet.hash) {
            Some(known) => {
                let before = known.clone();
                known.merge(&magnet);
                *known != before
            }
            None if magnet == Magnet::of(magnet.hash) => false,
            None => {
                said.put(magnet.hash, magnet);
                true
            }
        }
    }

    /// What links said of a torrent.
    pub(super) fn said(&self, hash: InfoHash) -> Magnet {
        guard(&self.said).get(&hash).cloned().unwrap_or_else(|| Magnet::of(hash))
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

/// A name that can be one of a listing.
pub(super) fn shown(name: &str) -> String {
    match name {
        "." | ".." => String::new(),
        name => name.replace(['/', '\0'], "_"),
    }
}

/// A crash leaves either what was under the name before or all of the new bytes.
pub(super) fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let part = folder.join(format!("{name}.part"));
    fs::write(&part, bytes)?;
    fs::File::open(&part)?.sync_all()?;
    fs::rename(part, folder.join(name))?;
    fs::File::open(folder)?.sync_all()
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

pub(super) fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
