//! `add --only-hash`: the ids that publishing would give, without a daemon.

use std::path::{Path, PathBuf};

use anyhow::Context;
use chiral::{
    config::UploadSettings,
    content::ContentId,
    control::AddedEntry,
    node::{Identifier, IgnoreScope, PublishError, Skipped, Watcher},
};

use crate::{cli::NamingArgs, piped::Source, progress::Bar};

/// Hashes what would be published.
pub(crate) struct Hashing<'a, F> {
    settings: &'a UploadSettings,
    naming: &'a NamingArgs,
    found: F,
}

/// Shows how far it is, and hands on what was found.
struct Watched<'a, F> {
    bar: Bar,
    found: &'a mut F,
    /// Bytes without a name are called by their id.
    nameless: bool,
}

impl<F: FnMut(AddedEntry)> Watcher for Watched<'_, F> {
    fn hashed(&mut self, bytes: u64) -> Result<(), PublishError> {
        self.bar.add(bytes);
        Ok(())
    }

    fn found(&mut self, cid: ContentId, shown: &Path) {
        self.bar.clear();
        let name = if self.nameless { cid.to_string() } else { shown.display().to_string() };
        (self.found)(AddedEntry { cid, name });
    }
}

impl<'a, F: FnMut(AddedEntry)> Hashing<'a, F> {
    /// Reports entries to `found`, the argument itself last.
    pub(crate) fn new(settings: &'a UploadSettings, naming: &'a NamingArgs, found: F) -> Self {
        Self { settings, naming, found }
    }

    /// Hashes one file, tree or stream; gives what was left out.
    pub(crate) fn hash(&mut self, source: &Source) -> anyhow::Result<Skipped> {
        let name = self.naming.name.clone().or_else(|| source.name());
        let shown = name.clone().map(PathBuf::from).unwrap_or_default();
        let total = match source {
            Source::Path(path) => path.symlink_metadata().map_or(0, |meta| meta.len()),
            Source::Stream { .. } => 0,
        };
        let bar = Bar::new(&shown.to_string_lossy(), total);
        let mut watcher = Watched { bar, found: &mut self.found, nameless: name.is_none() };
        let (params, skipped) = (self.settings.profile.params(), Skipped::default());
        let mut identifier = Identifier { params, watcher: &mut watcher, skipped };
        match source {
            Source::Stream { open, .. } => identifier.bytes(open.open()?, &shown)?,
            Source::Path(path) => {
                let name = name.context("the path has no name")?;
                let scope = IgnoreScope::top(&self.settings.ignore()).below(&name);
                let scope = if self.naming.hidden { scope.with_hidden() } else { scope };
                identifier.path(path, &shown, scope)?
            }
        };
        Ok(identifier.skipped)
    }
}
