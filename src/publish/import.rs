//! Publishing without the mount: what is on this machine is copied in, hashed, and then given its name at once.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::Stream;
use tokio_util::sync::CancellationToken;

use super::{
    Inner, PublishError, RenameMode, UploadIno, UploadKind, Uploads,
    copy::{Copy, Scratch, Source, size_of},
    dirs::link_of,
    identify::{Identifier, Watcher},
    ignore::{IgnoreScope, Skipped},
    tree::Request,
};
use crate::content::ContentId;

type Result<T> = std::result::Result<T, PublishError>;

/// Deepest tree that is taken; as deep as a path can be.
pub(super) const MAX_DEPTH: usize = 2048;

/// What the names begin with under which trees are copied into the root, before they get their own.
pub(super) const SCRATCH: &str = ".chiral-import-";

/// Whether a name of the root is one of an import under way, or of one that a kill ended.
pub(super) fn is_scratch(name: &OsStr) -> bool {
    let number = name.as_encoded_bytes().strip_prefix(SCRATCH.as_bytes());
    number.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit))
}

/// Told of bytes that are copied, bytes that are published, and bytes in all.
pub(super) type Report = dyn Fn(u64, u64, u64) + Send + Sync;

/// How something is copied in.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The name that it gets at the top of the tree; none: its id.
    pub name: Option<OsString>,
    /// It takes the place of other content with that name.
    pub replace: bool,
    /// Takes also names that the settings ignore.
    pub hidden: bool,
}

/// Entries that were copied in.
#[derive(Clone, Debug)]
pub struct ImportedTree {
    /// Its id.
    pub root: ContentId,
    /// Its name at the top of the tree.
    pub name: OsString,
    /// Names that were left out.
    pub skipped: Skipped,
    made: Vec<Made>,
}

/// One inode of an import.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) ino: UploadIno,
    /// Bytes of a file.
    pub(super) size: u64,
}

impl Uploads {
    /// Copies a file or tree of this machine in; `report` is told of bytes that are copied, bytes that are published, and
    /// bytes in all. Where content with the name is there already, the same stays as it is and other content is an error,
    /// unless it is to be replaced: that happens in one step once the new content is published. The caller has made sure
    /// that `path` does not lie below the mountpoint. Dropping it takes back what was copied.
    ///
    /// # Errors
    /// [`PublishError::Taken`] when other content has the name; else as reading and writing.
    pub async fn import_path(
        &self,
        path: &Path,
        options: ImportOptions,
        report: impl Fn(u64, u64, u64) + Send + Sync + 'static,
    ) -> Result<ImportedTree> {
        self.inner.import_path(path, options, Arc::new(report)).await
    }

    /// The same of bytes as they come.
    ///
    /// # Errors
    /// As [`Uploads::import_path`].
    pub async fn import_stream(
        &self,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
        options: ImportOptions,
        report: impl Fn(u64, u64, u64) + Send + Sync + 'static,
    ) -> Result<ImportedTree> {
        self.inner.import_stream(pieces, options, Arc::new(report)).await
    }

    /// Id and path of each file and directory of an import, the root last. What was changed since is left out.
    pub fn entries_of(
        &self,
        imported: &ImportedTree,
    ) -> impl Iterator<Item = (ContentId, String)> + Send + use<> {
        let (inner, made) = (self.inner.clone(), imported.made.clone());
        made.into_iter().filter_map(move |made| {
            let names = inner.names();
            let (id, _) = link_of(names.tree.get(made.ino).ok()?)?;
            Some((id, names.path(made.ino)))
        })
    }

    /// As [`Uploads::import_path`], with the ids and paths of all that was copied.
    ///
    /// # Errors
    /// As [`Uploads::import_path`].
    pub async fn import(&self, path: &Path, name: &OsStr) -> Result<Vec<(ContentId, String)>> {
        let options = ImportOptions { name: Some(name.to_owned()), ..ImportOptions::default() };
        let imported = self.import_path(path, options, |_, _, _| {}).await?;
        Ok(self.entries_of(&imported).collect())
    }
}

impl Inner {
    async fn import_path(
        self: &Arc<Self>,
        path: &Path,
        options: ImportOptions,
        report: Arc<Report>,
    ) -> Result<ImportedTree> {
        self.writable()?;
        let given_up = CancellationToken::new();
        let _waits = given_up.clone().drop_guard();
        let shown = match &options.name {
            Some(name) => PathBuf::from(name),
            None => path.file_name().map(PathBuf::from).unwrap_or_default(),
        };
        let scope = self.scope_of_import(shown.as_os_str(), options.hidden);
        if let (Some(name), false) = (&options.name, options.replace)
            && let Some(same) =
                self.compare(path, name, &options, scope.clone(), &given_up, &report).await?
        {
            return Ok(same);
        }
        let (inner, path, told) = (self.clone(), path.to_owned(), report.clone());
        let request = if options.hidden { Request::Hidden } else { Request::None };
        let copied = self.tasks.blocking("import", move || {
            let total = size_of(&path, scope.clone(), 0);
            let mut copy = Copy {
                report: &*told,
                given_up,
                done: 0,
                total,
                made: Vec::new(),
                skipped: Skipped::default(),
                request,
            };
            let scratch = Scratch::new(&inner);
            let (parent, name) = (UploadIno::ROOT, scratch.name.as_os_str());
            let source = Source { path: &path, shown: &shown, parent, name, scope, depth: 0 };
            inner.copy_in(source, &mut copy)?;
            Ok::<_, PublishError>((scratch, copy.made, copy.skipped))
        });
        let (scratch, made, skipped) = copied.await.map_err(|_| PublishError::Closed)??;
        self.publish_import(scratch, made, skipped, &options, &*report).await
    }

    async fn import_stream(
        self: &Arc<Self>,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
        options: ImportOptions,
        report: Arc<Report>,
    ) -> Result<ImportedTree> {
        self.writable()?;
        let scratch = Scratch::new(self);
        let made = self.copy_stream(&scratch, pieces, &*report).await?;
        self.publish_import(scratch, vec![made], Skipped::default(), &options, &*report).await
    }

    /// Waits until what was copied is published, and gives it its name.
    async fn publish_import(
        self: &Arc<Self>,
        scratch: Scratch,
        made: Vec<Made>,
        skipped: Skipped,
        options: &ImportOptions,
        report: &Report,
    ) -> Result<ImportedTree> {
        let Some(top) = made.last().copied() else { return Err(PublishError::NotFound) };
        // Hurries all below it at once, where asking one after the other would hash one after the other.
        let root = tokio::select! {
            known = self.cid(top.ino) => known?,
            never = self.report_published(&made, report) => match never {},
        };
        let name = options.name.clone().unwrap_or_else(|| root.to_v1().to_string().into());
        let made = self.place(scratch, root, &name, options, made).await?;
        if skipped.count > 0 {
            let (count, first) = (skipped.count, &skipped.first);
            tracing::info!(name = %name.display(), count, ?first, "what is ignored was not published");
        }
        Ok(ImportedTree { root, name, skipped, made })
    }

    /// Gives what was copied its name; where content that is the same has it, that stays.
    async fn place(
        self: &Arc<Self>,
        scratch: Scratch,
        root: ContentId,
        name: &OsStr,
        options: &ImportOptions,
        made: Vec<Made>,
    ) -> Result<Vec<Made>> {
        loop {
            let (inner, from, to) = (self.clone(), scratch.name.clone(), name.to_owned());
            let replace = options.replace;
            let renaming = move || inner.rename_import(&from, &to, replace);
            match self.tasks.blocking("import", renaming).await.map_err(|_| PublishError::Closed)? {
                Ok(()) => {
                    scratch.placed();
                    self.flush_soon().await?;
                    return Ok(made);
                }
                Err(PublishError::Exists) => {}
                Err(error) => return Err(error),
            }
            match self.holder_of(name).await? {
                Some((ino, id)) if id == root => return self.keep_existing(ino, options).await,
                Some(_) => return Err(taken(name)),
                // Removed meanwhile.
                None => {}
            }
        }
    }

    fn rename_import(&self, scratch: &OsStr, name: &OsStr, replace: bool) -> Result<()> {
        let (from, to) = ((UploadIno::ROOT, scratch), (UploadIno::ROOT, name));
        match self.rename_requested(from, to, RenameMode::NoReplace) {
            Err(PublishError::Exists) if replace => {
                self.rename_requested(from, to, RenameMode::Exchange)?;
                self.remove_tree(UploadIno::ROOT, scratch)
            }
            done => done,
        }
    }

    /// Inode and id of what has a name at the top; content that is still written, or not to be published, is other
    /// content.
    async fn holder_of(self: &Arc<Self>, name: &OsStr) -> Result<Option<(UploadIno, ContentId)>> {
        let ino = match self.names().tree.lookup(UploadIno::ROOT, name) {
            Err(PublishError::NotFound) => return Ok(None),
            found => found?,
        };
        match self.cid(ino).await {
            Ok(id) => Ok(Some((ino, id))),
            Err(PublishError::NotFound) => Ok(None),
            Err(PublishError::Busy | PublishError::Ignored) => Err(taken(name)),
            Err(error) => Err(error),
        }
    }

    /// Compares what is to be copied with what has the name, without copying. None: nothing has it.
    async fn compare(
        self: &Arc<Self>,
        path: &Path,
        name: &OsStr,
        options: &ImportOptions,
        scope: IgnoreScope,
        given_up: &CancellationToken,
        report: &Arc<Report>,
    ) -> Result<Option<ImportedTree>> {
        let Ok(ino) = self.names().tree.lookup(UploadIno::ROOT, name) else { return Ok(None) };
        let meta = fs::symlink_metadata(path).map_err(at("stat", path))?;
        let there = self.getattr(ino)?;
        let is_file = there.kind == UploadKind::File;
        if is_file != meta.is_file() || (is_file && there.size != meta.len()) {
            return Err(taken(name));
        }
        let Some((ino, id)) = self.holder_of(name).await? else { return Ok(None) };
        let (path, shown, params) = (path.to_owned(), PathBuf::from(name), self.options.import);
        let (given_up, report) = (given_up.clone(), report.clone());
        let identified = self.tasks.blocking("import", move || {
            let total = size_of(&path, scope.clone(), 0);
            report(total, 0, total);
            let mut watcher = Comparison { given_up, report, done: 0, total };
            let skipped = Skipped::default();
            let mut identifier = Identifier { params, watcher: &mut watcher, skipped };
            let id = identifier.path(&path, &shown, scope)?;
            Ok::<_, PublishError>((id, identifier.skipped))
        });
        let (root, skipped) = identified.await.map_err(|_| PublishError::Closed)??;
        if root != id {
            return Err(taken(name));
        }
        let made = self.keep_existing(ino, options).await?;
        Ok(Some(ImportedTree { root, name: name.to_owned(), skipped, made }))
    }

    /// Entries that exist already and were requested once more: the same inodes as those of an import.
    async fn keep_existing(
        self: &Arc<Self>,
        ino: UploadIno,
        options: &ImportOptions,
    ) -> Result<Vec<Made>> {
        self.want(ino, options.hidden).await?;
        let below = self.names().tree.published_below(ino);
        Ok(below.into_iter().map(|ino| Made { ino, size: 0 }).collect())
    }

    /// Tells how much of what was copied is published. Files are hashed in nearly the order in which they were copied.
    async fn report_published(&self, made: &[Made], report: &Report) -> std::convert::Infallible {
        let total = made.iter().map(|made| made.size).sum();
        report(total, 0, total);
        let mut done = 0;
        for file in made.iter().filter(|made| made.size > 0) {
            self.published(file.ino).await;
            done += file.size;
            report(total, done, total);
        }
        std::future::pending().await
    }

    /// Waits for a file, for ever if it is removed meanwhile.
    async fn published(&self, ino: UploadIno) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed, though nobody waits yet.
            changed.as_mut().enable();
            if self.cid_now(ino).is_some() {
                return;
            }
            changed.await;
        }
    }
}

/// Tells how far a comparison is, as an import does once all is copied.
struct Comparison {
    given_up: CancellationToken,
    report: Arc<Report>,
    done: u64,
    total: u64,
}

impl Watcher for Comparison {
    fn hashed(&mut self, bytes: u64) -> Result<()> {
        if self.given_up.is_cancelled() {
            return Err(PublishError::Closed);
        }
        self.done += bytes;
        let total = self.total.max(self.done);
        (self.report)(total, self.done, total);
        Ok(())
    }

    fn found(&mut self, _: ContentId, _: &Path) {}
}

fn taken(name: &OsStr) -> PublishError {
    PublishError::Taken(name.display().to_string())
}

/// An error that names the file: it may be one of thousands.
pub(super) fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> PublishError {
    move |error| {
        let source = io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        PublishError::Io { what, source }
    }
}

pub(super) fn no_content(path: &Path) -> PublishError {
    let what = "only files, directories and symlinks are published";
    at("add", path)(io::Error::new(io::ErrorKind::InvalidInput, what))
}
