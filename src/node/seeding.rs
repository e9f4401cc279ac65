//! Making torrents of what is published.

use std::{
    collections::{HashSet, VecDeque},
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    sync::Arc,
};

use bytes::BytesMut;
use tokio::sync::mpsc;

use super::{Node, NodeError, Place};
use crate::{
    content::{ContentId, InfoHash, NodeKind},
    download::DownloadError,
    torrent::{BuildError, InfoBuilder, Magnet, Source, TorrentError, piece_len_for},
};

/// Files of one torrent: its description gets some 100 bytes for each, and every program that opens it reads them all.
const MAX_FILES: usize = 100_000;
/// Bytes that are read and hashed at a time.
const READ_LEN: u64 = 1 << 20;

/// Why no torrent is made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// A torrent is made of bytes.
    #[error("a symbolic link cannot be seeded")]
    Symlink,
    /// Others would take it for a path.
    #[error("`{0}` has a backslash in its name, which a torrent cannot have")]
    Name(String),
    /// Others could not open it.
    #[error("there are more than {MAX_FILES} files in it, which is more than other programs take")]
    TooMany,
}

/// What happened in the upload tree.
#[derive(Debug)]
pub(super) enum Upload {
    /// Something at its top has a new root.
    Published { root: ContentId, name: String },
    /// A root is not there any more.
    Withdrawn { root: ContentId },
}

/// Where it is told.
pub(super) type Seeds = mpsc::UnboundedSender<Upload>;

/// The two ends of what is told, where somebody wants to know.
pub(super) fn queue(wanted: bool) -> (Option<Seeds>, Option<mpsc::UnboundedReceiver<Upload>>) {
    let (send, receive) = mpsc::unbounded_channel();
    if wanted { (Some(send), Some(receive)) } else { (None, None) }
}

fn may_be_named(name: &OsStr) -> Result<(), SeedError> {
    match name.as_bytes().contains(&b'\\') {
        true => Err(SeedError::Name(name.display().to_string())),
        false => Ok(()),
    }
}

/// A file of a torrent in the making: its path, length and content.
type Listed = (Vec<OsString>, u64, ContentId);

impl Node {
    /// Gives content to others as a torrent from now on, also after a restart. All of it is fetched first, and kept. The
    /// bytes are those of the store: they are read once more, and not copied. `report` is told how many of
    /// how many were.
    ///
    /// # Errors
    /// When a part of it cannot be had, there is nothing in it, or the disk fails.
    pub async fn seed_content(
        &self,
        root: ContentId,
        name: OsString,
        report: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<Magnet, NodeError> {
        self.make_torrent(root, name, false, report).await
    }

    async fn make_torrent(
        &self,
        root: ContentId,
        name: OsString,
        automatic: bool,
        report: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<Magnet, NodeError> {
        let _one = self.inner.seeding.lock().await;
        let mut same = self.torrents().made_from(&root).into_iter().filter(|(hash, _)| {
            let described = self.torrents().metainfo_now(*hash).and_then(Result::ok);
            described.is_some_and(|metainfo| metainfo.name == name)
        });
        if let Some((hash, made)) = same.next() {
            if made.automatic && !automatic {
                // It was asked for by name: it does not end with the upload.
                self.torrents().change_source(hash, |source| source.automatic = false)?;
            }
            return Ok(self.torrents().seed(hash).await?);
        }
        let pinned = !self.store().pins()?.iter().any(|pin| pin.root == root);
        let made = async {
            if pinned {
                let place = Place::Content { root, id: root };
                self.pin_to_end(place, name.to_string_lossy().into_owned(), None).await?;
            }
            self.described(root, name.clone(), pinned, automatic, report).await
        };
        let (text, source) = match made.await {
            Ok(made) => made,
            Err(error) => {
                if pinned {
                    self.unpin_content(&root)?;
                }
                return Err(error);
            }
        };
        Ok(self.torrents().publish(text, source).await?)
    }

    /// The description of a file or tree that is here, and what its files are read from.
    async fn described(
        &self,
        root: ContentId,
        name: OsString,
        pinned: bool,
        automatic: bool,
        report: impl Fn(u64, u64) + Send + 'static,
    ) -> Result<(Vec<u8>, Source), NodeError> {
        may_be_named(&name)?;
        let (listed, single) = self.files_below(root).await?;
        let total = listed.iter().map(|(_, len, _)| len).sum();
        let (piece_len, trackers) = (piece_len_for(total), self.torrents().trackers().to_vec());
        let node = self.clone();
        let hashing = self.tasks().blocking("hash a torrent", move || {
            let lengths = listed.iter().map(|(path, len, _)| (path.clone(), *len)).collect();
            let mut builder = match single {
                true => InfoBuilder::file(name, total, piece_len),
                false => InfoBuilder::directory(name, lengths, piece_len),
            };
            let mut by_path = listed;
            by_path.sort();
            let mut before = 0;
            for (_, len, id) in &by_path {
                node.hash_file(&mut builder, id, *len, |done| report(before + done, total))?;
                before += len;
            }
            let text = builder.finish(&trackers).map_err(TorrentError::from)?;
            let files = by_path.into_iter().map(|(_, _, id)| id).collect();
            Ok((text, Source { root, pinned, automatic, files }))
        });
        hashing.await.map_err(|_| TorrentError::Closed)?
    }

    fn hash_file(
        &self,
        builder: &mut InfoBuilder,
        id: &ContentId,
        len: u64,
        report: impl Fn(u64),
    ) -> Result<(), NodeError> {
        let failed = |e| TorrentError::Disk { what: "read", source: Arc::new(e) };
        let mut buffer = BytesMut::zeroed(usize::try_from(READ_LEN.min(len)).unwrap_or_default());
        let mut at = 0;
        while at < len {
            if self.tasks().token().is_cancelled() {
                return Err(TorrentError::Closed.into());
            }
            let now = usize::try_from(READ_LEN.min(len - at)).unwrap_or_default();
            let part = &mut buffer[..now];
            self.torrents().read_published(id, at, part).map_err(failed)?;
            builder.update(part);
            at += now as u64;
            report(at);
        }
        Ok(())
    }

    /// All files at and below a root; whether it is one itself. Symbolic links and empty directories are left out, for
    /// which torrents have no form that programs agree on.
    async fn files_below(&self, root: ContentId) -> Result<(Vec<Listed>, bool), NodeError> {
        let top = self.resolve(&root, &root).await?;
        match top.kind {
            NodeKind::File => return Ok((vec![(vec![], top.size, root)], true)),
            NodeKind::Symlink => return Err(SeedError::Symlink.into()),
            NodeKind::Directory | NodeKind::Shard => {}
        }
        let (mut files, mut left) = (Vec::new(), VecDeque::from([(Vec::new(), root)]));
        while let Some((path, dir)) = left.pop_front() {
            for entry in &*self.list(&root, &dir).await? {
                let resolved = self.resolve(&root, &entry.cid).await?;
                may_be_named(&entry.name)?;
                let path: Vec<OsString> = path.iter().chain([&entry.name]).cloned().collect();
                match resolved.kind {
                    NodeKind::File => files.push((path, resolved.size, entry.cid)),
                    NodeKind::Directory | NodeKind::Shard => left.push_back((path, entry.cid)),
                    NodeKind::Symlink => {
                        tracing::info!(%root, ?path, "a symbolic link is not part of the torrent");
                    }
                }
                if files.len() + left.len() > MAX_FILES {
                    return Err(SeedError::TooMany.into());
                }
            }
        }
        Ok((files, false))
    }

    /// Forgets a torrent. What was fetched of it goes; what it was made from stays as long as something else keeps it.
    ///
    /// # Errors
    /// [`TorrentError::NoSuchTorrent`], or when the disk fails.
    pub async fn remove_torrent(&self, hash: InfoHash) -> Result<(), NodeError> {
        let _one = self.inner.seeding.lock().await;
        self.remove_locked(hash).await
    }

    async fn remove_locked(&self, hash: InfoHash) -> Result<(), NodeError> {
        let source = self.torrents().remove(hash).await?;
        let Some(source) = source.filter(|source| source.pinned) else { return Ok(()) };
        match self.torrents().made_from(&source.root).first() {
            // The same content under another name; the pin is that one's now.
            Some((heir, _)) => {
                Ok(self.torrents().change_source(*heir, |source| source.pinned = true)?)
            }
            None => self.unpin_content(&source.root).map(drop),
        }
    }

    /// Seeds what is published, as it comes and goes, for as long as the node runs.
    pub(super) fn seed_what_is_published(&self, uploads: Option<mpsc::UnboundedReceiver<Upload>>) {
        let Some(mut uploads) = uploads else { return };
        let (node, cancelled) = (self.clone(), self.tasks().cancelled());
        self.tasks().spawn("seed what is published", async move {
            let seeding = async {
                node.catch_up().await;
                while let Some(upload) = uploads.recv().await {
                    match upload {
                        Upload::Published { root, name } => node.seed_upload(root, name).await,
                        Upload::Withdrawn { root } => node.withdraw_upload(root).await,
                    }
                }
            };
            tokio::select! {
                () = seeding => {}
                () = cancelled => {}
            }
        });
    }

    /// Does what an earlier process did not come to.
    async fn catch_up(&self) {
        let published = self.uploads().published();
        for (name, root) in &published {
            if self.torrents().made_from(root).is_empty() {
                self.seed_upload(*root, name.clone()).await;
            }
        }
        let published: HashSet<ContentId> = published.into_iter().map(|(_, root)| root).collect();
        for (_, made) in self.torrents().made().into_iter().filter(|(_, made)| made.automatic) {
            if !published.contains(&made.root) {
                self.withdraw_upload(made.root).await;
            }
        }
    }

    async fn seed_upload(&self, root: ContentId, name: String) {
        match self.make_torrent(root, name.clone().into(), true, |_, _| {}).await {
            Ok(_) => {}
            // There is nothing to give.
            Err(NodeError::Torrent(TorrentError::Build(BuildError::Empty)))
            | Err(NodeError::Seed(SeedError::Symlink))
            | Err(NodeError::Download(DownloadError::Closed)) => {}
            Err(error) => tracing::warn!(%root, name, %error, "what is published is not seeded"),
        }
    }

    async fn withdraw_upload(&self, root: ContentId) {
        let _one = self.inner.seeding.lock().await;
        let made = self.torrents().made_from(&root).into_iter();
        for (hash, _) in made.filter(|(_, made)| made.automatic) {
            if let Err(error) = self.remove_locked(hash).await {
                tracing::warn!(%root, %error, "what is not published any more is still seeded");
            }
        }
    }
}

#[cfg(test)]
mod tests;
