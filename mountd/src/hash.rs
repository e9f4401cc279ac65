//! `add --only-hash`: the ids that publishing would give, without a daemon.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use anyhow::{Context, bail};
use chiral::{
    content::{Block, ContentId, DirectoryBuilder, FileBuilder, ImportParams, Metadata, symlink},
    control::AddedEntry,
};

use crate::progress::Bar;

/// Id and Tsize.
type Hashed = (ContentId, u64);

/// Hashes a file or a tree; everything in it goes to `found`, the path itself last.
pub(crate) fn hash(
    path: &Path,
    params: ImportParams,
    found: &mut Vec<AddedEntry>,
) -> anyhow::Result<ContentId> {
    let full = path.canonicalize().with_context(|| path.display().to_string())?;
    let is_link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
    let shown = if is_link { path.to_owned() } else { full };
    let name = shown.file_name().context("the path has no name")?;
    let (cid, _) = any(path, &name.to_string_lossy(), params, found)?;
    Ok(cid)
}

fn any(
    path: &Path,
    name: &str,
    params: ImportParams,
    found: &mut Vec<AddedEntry>,
) -> anyhow::Result<Hashed> {
    let kind = fs::symlink_metadata(path).with_context(|| path.display().to_string())?.file_type();
    let hashed = if kind.is_dir() {
        directory(path, name, params, found)?
    } else if kind.is_symlink() {
        let target = fs::read_link(path).with_context(|| path.display().to_string())?;
        let block = symlink(target.as_os_str().as_bytes(), Metadata::default());
        (*block.cid(), block.data().len() as u64)
    } else if kind.is_file() {
        file(path, name, params)?
    } else {
        bail!("{}: neither file nor directory nor symbolic link", path.display());
    };
    found.push(AddedEntry { cid: hashed.0, name: name.to_owned() });
    Ok(hashed)
}

fn directory(
    path: &Path,
    name: &str,
    params: ImportParams,
    found: &mut Vec<AddedEntry>,
) -> anyhow::Result<Hashed> {
    let read = || -> io::Result<Vec<_>> {
        let mut names: Vec<_> =
            fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        Ok(names)
    };
    let mut builder = DirectoryBuilder::new(params);
    for child in read().with_context(|| path.display().to_string())? {
        let below = path.join(&child);
        let shown = format!("{name}/{}", child.display());
        let (cid, tsize) = any(&below, &shown, params, found)?;
        builder.add(child.as_bytes(), cid, tsize);
    }
    let built = builder.finish(Metadata::default());
    Ok((built.root, built.tsize))
}

fn file(path: &Path, name: &str, params: ImportParams) -> anyhow::Result<Hashed> {
    let shown = || path.display().to_string();
    let mut file = File::open(path).with_context(shown)?;
    let bar = Bar::new(name, file.metadata().with_context(shown)?.len());
    let mut builder = FileBuilder::new(params);
    loop {
        let mut chunk = Vec::with_capacity(params.chunk_len);
        (&mut file).take(params.chunk_len as u64).read_to_end(&mut chunk).with_context(shown)?;
        if chunk.is_empty() {
            break;
        }
        bar.add(chunk.len());
        let block = Block::raw(chunk.into());
        builder.push(*block.cid(), block.data().len() as u64);
    }
    let built = builder.finish(Metadata::default());
    Ok((built.root, built.tsize))
}
