//! `torrents`: the list of all torrents, into which descriptions and links are dropped.
//!
//! Each torrent is a symbolic link by its name, beside its description as a `.torrent` file. What is written here is
//! held in memory until it is closed under a name that is meant to stay; then it is taken in, or refused by close(2).

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use nix::errno::Errno;

use super::{
    answer::{Answer, Outcome},
    attr::Attr,
    dir::Listing,
    errno::{During, of_node},
    lookup::Found,
    open::{Opened, Wanted},
    semantics::Fs,
    tree::{self, Ino, Named, Shape},
};
use crate::node::{ListedTorrent, Magnet, NodeError, TorrentError, Torrents, links_in};

/// Longest description that is taken.
const MAX_LEN: usize = 32 << 20;
/// Files that are written here at once, and bytes of all of them.
const MAX_DRAFTS: usize = 64;
const MAX_HELD: usize = 128 << 20;
/// What programs call a file that is not finished: it is taken in when it gets its name.
const UNFINISHED: [&str; 6] = [".part", ".partial", ".crdownload", ".download", ".tmp", "~"];

/// What is written in the directory.
#[derive(Debug, Default)]
pub(super) struct Drafts(Mutex<HashMap<OsString, Arc<Draft>>>);

/// A file that is being written.
#[derive(Debug, Default)]
pub(super) struct Draft(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    writers: usize,
    /// Why it was refused when it was last closed.
    refused: Option<Errno>,
}

impl Draft {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drafts {
    fn lock(&self) -> MutexGuard<'_, HashMap<OsString, Arc<Draft>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, name: &OsStr) -> Option<Arc<Draft>> {
        self.lock().get(name).cloned()
    }

    fn held(&self) -> usize {
        self.lock().values().map(|draft| draft.state().bytes.len()).sum()
    }
}

/// A draft that is open for writing.
#[derive(Debug)]
pub(super) struct OpenDraft {
    name: OsString,
    draft: Arc<Draft>,
}

/// What a name of the directory stands for.
enum Meant {
    Draft(Arc<Draft>),
    Listed(ListedTorrent),
}

/// Whether a name is one that a file keeps.
fn is_final(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.starts_with(b".") && !UNFINISHED.iter().any(|ending| bytes.ends_with(ending.as_bytes()))
}

/// Takes a file in: a description, or links in a text.
fn take_in(torrents: &Torrents, name: &OsStr, bytes: &[u8]) -> Outcome<()> {
    let refused = |error: NodeError| {
        tracing::warn!(name = %name.display(), %error, "what was dropped into `torrents` is refused");
        match &error {
            NodeError::Torrent(TorrentError::Metainfo(_) | TorrentError::Links(_)) => Errno::EINVAL,
            error => of_node(error, During::Lookup),
        }
    };
    if let Some(links) = links_in(bytes) {
        let add = |links: Vec<Magnet>| links.iter().try_for_each(|link| torrents.add_link(link));
        return links
            .map_err(TorrentError::from)
            .and_then(add)
            .map_err(|error| refused(error.into()));
    }
    let hash = torrents.keep(bytes).map_err(|e| refused(e.into()))?.hash;
    let named = name.to_str().map_or(Ok(()), |name| torrents.rename(hash, name));
    named.map_err(|e| refused(e.into()))
}

impl Fs {
    fn meant(&self, name: &OsStr) -> Option<Meant> {
        let draft = self.drafts.get(name).map(Meant::Draft);
        draft.or_else(|| self.node.torrents().named(name).map(Meant::Listed))
    }

    pub(super) fn torrents_attr(&self) -> Attr {
        self.owner.directory(tree::TORRENTS)
    }

    pub(super) fn lookup_torrent(&self, name: &OsStr) -> Outcome<Found> {
        // Names come and go without the kernel's doing.
        let Some(meant) = self.meant(name) else { return Ok(Found::Absent(Duration::ZERO)) };
        Ok(Found::Entry { attr: self.enter_torrent(name, &meant), ttl: Duration::ZERO })
    }

    /// Makes a name of the directory known to the kernel.
    fn enter_torrent(&self, name: &OsStr, meant: &Meant) -> Attr {
        let shape = meant.shape();
        let ino = tree::of_content(tree::TORRENTS, name, shape);
        self.tree.enter_named(ino, Named { name: name.to_owned(), shape });
        self.attr_of(ino, meant)
    }

    fn attr_of(&self, ino: Ino, meant: &Meant) -> Attr {
        match meant {
            Meant::Draft(draft) => {
                let len = draft.state().bytes.len() as u64;
                Attr { perm: 0o644, ..self.owner.control(ino, len) }
            }
            Meant::Listed(ListedTorrent::File(hash)) => {
                let len = self.node.torrents().text_len(*hash);
                Attr { perm: 0o644, ..self.owner.control(ino, len) }
            }
            Meant::Listed(ListedTorrent::Link(_)) => {
                self.owner.link(ino, target(meant).map_or(0, |target| target.len() as u64))
            }
        }
    }

    /// What an inode that the kernel knows stands for now.
    fn still_meant(&self, named: &Named) -> Outcome<Meant> {
        self.meant(&named.name).filter(|meant| meant.shape() == named.shape).ok_or(Errno::ESTALE)
    }

    pub(super) fn named_attr(&self, named: &Named) -> Outcome<Attr> {
        let ino = tree::of_content(tree::TORRENTS, &named.name, named.shape);
        Ok(self.attr_of(ino, &self.still_meant(named)?))
    }

    pub(super) fn named_link(&self, named: &Named) -> Outcome<Vec<u8>> {
        target(&self.still_meant(named)?).ok_or(Errno::EINVAL)
    }

    /// Info hash and link of a torrent by its description.
    pub(super) fn named_torrent(&self, named: &Named) -> Option<crate::content::InfoHash> {
        match self.meant(&named.name)? {
            Meant::Listed(ListedTorrent::File(hash)) => Some(hash),
            Meant::Listed(ListedTorrent::Link(_)) | Meant::Draft(_) => None,
        }
    }

    pub(super) fn list_torrents(&self) -> Listing {
        let mut listing = Listing::new(tree::TORRENTS, tree::ROOT);
        let listed = self.node.torrents().names();
        let drafts: Vec<OsString> = self.drafts.lock().keys().cloned().collect();
        let drafted = |name: &OsString| drafts.contains(name);
        for name in &drafts {
            listing.add(tree::of_content(tree::TORRENTS, name, Shape::File), Shape::File, name);
        }
        for (name, what) in listed.into_iter().filter(|(name, _)| !drafted(name)) {
            let shape = Meant::Listed(what).shape();
            listing.add(tree::of_content(tree::TORRENTS, &name, shape), shape, name);
        }
        listing
    }

    /// Begins a file, or writes over one.
    pub(super) fn create_torrent(
        &self,
        name: &OsStr,
        wanted: Wanted,
        exclusive: bool,
    ) -> Outcome<(Attr, Opened)> {
        self.may_drop()?;
        if exclusive && self.meant(name).is_some() {
            return Err(Errno::EEXIST);
        }
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG);
        }
        let draft = self.draft(name)?;
        let attr = self.enter_torrent(name, &Meant::Draft(draft.clone()));
        Ok((attr, open_draft(name, draft, wanted)))
    }

    /// The same for a file that is not opened.
    pub(super) fn make_torrent(&self, name: &OsStr) -> Outcome<Found> {
        let wanted = Wanted(libc::O_RDONLY);
        let (attr, _) = self.create_torrent(name, wanted, true)?;
        Ok(Found::Entry { attr, ttl: Duration::ZERO })
    }

    /// A new draft, or the one that there is.
    fn draft(&self, name: &OsStr) -> Outcome<Arc<Draft>> {
        let mut drafts = self.drafts.lock();
        if let Some(draft) = drafts.get(name) {
            return Ok(draft.clone());
        }
        if drafts.len() >= MAX_DRAFTS {
            return Err(Errno::ENOSPC);
        }
        let draft = Arc::<Draft>::default();
        drafts.insert(name.to_owned(), draft.clone());
        Ok(draft)
    }

    pub(super) fn open_named(&self, named: &Named, wanted: Wanted) -> Outcome<Opened> {
        let meant = self.still_meant(named)?;
        if !wanted.writes() && !wanted.flags().truncate {
            return Ok(Opened::Text(match meant {
                Meant::Draft(draft) => Bytes::copy_from_slice(&draft.state().bytes),
                Meant::Listed(ListedTorrent::File(hash)) => {
                    let text = self.node.torrents().text(hash);
                    text.map_err(|e| of_node(&e.into(), During::Lookup))?.into()
                }
                Meant::Listed(ListedTorrent::Link(_)) => return Err(Errno::ELOOP),
            }));
        }
        self.may_drop()?;
        match meant {
            Meant::Draft(draft) => Ok(open_draft(&named.name, draft, wanted)),
            // What is written over a description is another one, of another torrent.
            Meant::Listed(ListedTorrent::File(_)) if wanted.flags().truncate => {
                Ok(open_draft(&named.name, self.draft(&named.name)?, wanted))
            }
            Meant::Listed(_) => Err(Errno::EPERM),
        }
    }

    fn may_drop(&self) -> Outcome<()> {
        if self.node.is_read_only() { Err(Errno::EROFS) } else { Ok(()) }
    }

    pub(super) fn write_draft(&self, open: &OpenDraft, offset: u64, data: &[u8]) -> Outcome<usize> {
        let end = usize::try_from(offset).ok().and_then(|at| at.checked_add(data.len()));
        let end = end.filter(|end| *end <= MAX_LEN).ok_or(Errno::EFBIG)?;
        self.resize(&open.draft, |len| len.max(end))?;
        let mut state = open.draft.state();
        // It may have been cut since.
        if state.bytes.len() < end {
            state.bytes.resize(end, 0);
        }
        state.bytes[end - data.len()..end].copy_from_slice(data);
        Ok(data.len())
    }

    fn resize(&self, draft: &Draft, to: impl Fn(usize) -> usize) -> Outcome<()> {
        let held = self.drafts.held();
        let mut state = draft.state();
        let (now, then) = (state.bytes.len(), to(state.bytes.len()));
        if then > now && held + (then - now) > MAX_HELD {
            return Err(Errno::ENOSPC);
        }
        state.bytes.resize(then, 0);
        Ok(())
    }

    /// Changes of what is written; owner, mode and times are nobody's business here.
    pub(super) fn set_named(&self, named: &Named, size: Option<u64>) -> Outcome<Attr> {
        self.may_drop()?;
        match (self.still_meant(named)?, size) {
            (Meant::Draft(draft), Some(size)) => {
                let size = usize::try_from(size).ok().filter(|size| *size <= MAX_LEN);
                let size = size.ok_or(Errno::EFBIG)?;
                self.resize(&draft, |_| size)?;
            }
            (_, None) => {}
            (Meant::Listed(_), Some(_)) => return Err(Errno::EPERM),
        }
        self.named_attr(named)
    }

    /// A descriptor of a file is closed: what is whole is taken in, what is wrong is refused. A shell closes copies of
    /// the descriptor before anything is written.
    pub(super) fn flush_draft(&self, open: &OpenDraft) -> Answer<()> {
        if !is_final(&open.name) || open.draft.state().bytes.is_empty() {
            return Answer::ok(());
        }
        let (torrents, drafts) = (self.node.torrents().clone(), self.drafts.clone());
        let (name, draft) = (open.name.clone(), open.draft.clone());
        Answer::blocking(move || settle(&torrents, &drafts, &name, &draft))
    }

    /// The last one who writes a file has closed it; what was refused is not there any more.
    pub(super) fn close_draft(&self, open: &OpenDraft) {
        let mut state = open.draft.state();
        state.writers = state.writers.saturating_sub(1);
        let gone = state.writers == 0 && state.refused.is_some();
        drop(state);
        if gone {
            forget(&self.drafts, &open.name, &open.draft);
        }
    }

    /// Removing a name forgets its torrent.
    pub(super) fn remove_torrent_named(&self, name: &OsStr) -> Answer<()> {
        if let Err(errno) = self.may_drop() {
            return Answer::error(errno);
        }
        match self.meant(name) {
            None => Answer::error(Errno::ENOENT),
            Some(Meant::Draft(_)) => {
                self.drafts.lock().remove(name);
                Answer::ok(())
            }
            Some(Meant::Listed(ListedTorrent::Link(hash) | ListedTorrent::File(hash))) => {
                let node = self.node.clone();
                Answer::later(async move {
                    let removed = node.remove_torrent(hash).await;
                    removed.map_err(|e| of_node(&e, During::Lookup))
                })
            }
        }
    }

    /// Gives a file its name; what is wrong keeps the old one.
    pub(super) fn rename_torrent(&self, from: &OsStr, to: &OsStr, flags: u32) -> Answer<()> {
        if let Err(errno) = self.may_drop() {
            return Answer::error(errno);
        }
        if flags & libc::RENAME_EXCHANGE != 0 {
            return Answer::error(Errno::EINVAL);
        }
        let taken = self.meant(to).is_some();
        if taken && flags & libc::RENAME_NOREPLACE != 0 {
            return Answer::error(Errno::EEXIST);
        }
        let (torrents, drafts) = (self.node.torrents().clone(), self.drafts.clone());
        let (from, to) = (from.to_owned(), to.to_owned());
        match self.meant(&from) {
            None => Answer::error(Errno::ENOENT),
            Some(Meant::Draft(draft)) => Answer::blocking(move || {
                let whole = is_final(&to) && !draft.state().bytes.is_empty();
                if whole {
                    settle(&torrents, &drafts, &to, &draft)?;
                }
                let mut drafts = drafts.lock();
                let moved = drafts.remove(&from).filter(|_| !whole);
                if let Some(draft) = moved {
                    drafts.insert(to, draft);
                }
                Ok(())
            }),
            // A name that another torrent has is not taken from it.
            Some(Meant::Listed(ListedTorrent::File(_))) if taken => Answer::error(Errno::EEXIST),
            Some(Meant::Listed(ListedTorrent::File(hash))) => match to.into_string() {
                Ok(to) => Answer::blocking(move || {
                    let renamed = torrents.rename(hash, &to);
                    renamed.map_err(|e| of_node(&e.into(), During::Lookup))
                }),
                Err(_) => Answer::error(Errno::EINVAL),
            },
            Some(Meant::Listed(ListedTorrent::Link(_))) => Answer::error(Errno::EPERM),
        }
    }
}

/// Takes a draft in, which then is one no more.
fn settle(torrents: &Torrents, drafts: &Drafts, name: &OsStr, draft: &Arc<Draft>) -> Outcome<()> {
    let bytes = draft.state().bytes.clone();
    let taken = take_in(torrents, name, &bytes);
    draft.state().refused = taken.err();
    if taken.is_ok() {
        forget(drafts, name, draft);
    }
    taken
}

fn forget(drafts: &Drafts, name: &OsStr, draft: &Arc<Draft>) {
    let mut drafts = drafts.lock();
    // Another one may have its name by now.
    if drafts.get(name).is_some_and(|known| Arc::ptr_eq(known, draft)) {
        drafts.remove(name);
    }
}

fn open_draft(name: &OsStr, draft: Arc<Draft>, wanted: Wanted) -> Opened {
    let mut state = draft.state();
    if wanted.flags().truncate {
        state.bytes.clear();
    }
    if !wanted.writes() {
        let text = Bytes::copy_from_slice(&state.bytes);
        return Opened::Text(text);
    }
    state.writers += 1;
    drop(state);
    Opened::Draft(OpenDraft { name: name.to_owned(), draft })
}

impl OpenDraft {
    pub(super) fn read(&self, offset: u64, size: u32) -> Bytes {
        let state = self.draft.state();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(state.bytes.len());
        let end = start.saturating_add(size as usize).min(state.bytes.len());
        Bytes::copy_from_slice(&state.bytes[start..end])
    }
}

impl Meant {
    fn shape(&self) -> Shape {
        match self {
            Self::Listed(ListedTorrent::Link(_)) => Shape::Symlink,
            Self::Listed(ListedTorrent::File(_)) | Self::Draft(_) => Shape::File,
        }
    }
}

/// Where a link leads: beside the directory.
fn target(meant: &Meant) -> Option<Vec<u8>> {
    match meant {
        Meant::Listed(ListedTorrent::Link(hash)) => Some(format!("../{hash}").into_bytes()),
        Meant::Listed(ListedTorrent::File(_)) | Meant::Draft(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn names_of_files_that_are_not_finished_are_told_from_those_that_stay() {
        for name in ["a.torrent", "a", "film.magnet", "links.txt"] {
            assert!(is_final(name.as_ref()), "{name}");
        }
        for name in [".a.torrent.Xy12", "a.torrent.part", "a.crdownload", "a.torrent~"] {
            assert!(!is_final(name.as_ref()), "{name}");
        }
    }
}
