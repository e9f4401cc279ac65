//! The directories and files that a torrent shows.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{Metainfo, MetainfoError};

/// A file or directory of a torrent's tree; the root is node 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeNode {
    /// The directory that it is in; the root's own for the root.
    pub parent: u32,
    /// What it is.
    pub what: TreeKind,
}

/// What a node of a torrent's tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeKind {
    /// A directory: the nodes by their names.
    Directory(BTreeMap<OsString, u32>),
    /// A file, by its number in [`Metainfo::files`].
    File(u32),
}

/// A tree under construction, of paths that are unique.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Vec<TreeNode>,
}

impl Default for Tree {
    fn default() -> Self {
        let root = TreeNode { parent: 0, what: TreeKind::Directory(BTreeMap::new()) };
        Self { nodes: vec![root] }
    }
}

impl Tree {
    /// Adds a file. Nodes are numbered as they come, and pins are kept by these numbers.
    pub(super) fn add(&mut self, path: Vec<OsString>, file: u32) -> Result<(), MetainfoError> {
        let mut names = path.into_iter();
        let Some(last) = names.next_back() else { return Err(MetainfoError::Field("path")) };
        let mut at = 0;
        for name in names {
            at = match self.child(at, &name) {
                Some(child) => child,
                None => self.insert(at, name, TreeKind::Directory(BTreeMap::new()))?,
            };
        }
        self.insert(at, last, TreeKind::File(file)).map(drop)
    }

    fn child(&self, dir: u32, name: &OsString) -> Option<u32> {
        match &self.nodes[dir as usize].what {
            TreeKind::Directory(names) => names.get(name).copied(),
            TreeKind::File(_) => None,
        }
    }

    fn insert(&mut self, dir: u32, name: OsString, what: TreeKind) -> Result<u32, MetainfoError> {
        let number = u32::try_from(self.nodes.len()).map_err(|_| MetainfoError::Field("files"))?;
        self.nodes.push(TreeNode { parent: dir, what });
        if let TreeKind::Directory(names) = &mut self.nodes[dir as usize].what {
            names.insert(name, number);
        }
        Ok(number)
    }
}

impl Metainfo {
    /// The name of the whole, as it is written.
    pub fn written_name(&self) -> &[u8] {
        self.written.0.as_deref().unwrap_or(self.name.as_bytes())
    }

    /// The names on the way to each file that is shown, as they are written, by its number. Servers know it by these.
    pub fn written_paths(&self) -> Vec<Option<Vec<&[u8]>>> {
        let shown = (0..).zip(self.paths());
        let written = shown.map(|(number, path)| match self.written.1.get(&number) {
            Some(names) => Some(names.iter().map(Vec::as_slice).collect()),
            None => path.map(|path| path.into_iter().map(OsStrExt::as_bytes).collect()),
        });
        written.collect()
    }

    /// A node of its tree.
    pub fn node(&self, node: u32) -> Option<&TreeNode> {
        self.tree.get(node as usize)
    }

    /// The numbers of all files at and below a node.
    pub fn files_below(&self, node: u32) -> Vec<u32> {
        let (mut files, mut left) = (Vec::new(), vec![node]);
        while let Some(node) = left.pop() {
            match self.node(node).map(|node| &node.what) {
                Some(TreeKind::File(file)) => files.push(*file),
                Some(TreeKind::Directory(names)) => left.extend(names.values()),
                None => {}
            }
        }
        files.sort_unstable();
        files
    }

    /// The names on the way from the top to a node.
    pub fn path_of(&self, node: u32) -> PathBuf {
        let (mut names, mut at) = (Vec::new(), node);
        while let Some(parent) = self.node(at).map(|node| node.parent).filter(|_| at != 0) {
            if let Some(TreeKind::Directory(children)) = self.node(parent).map(|node| &node.what) {
                names.extend(children.iter().find(|(_, node)| **node == at).map(|(name, _)| name));
            }
            at = parent;
        }
        names.into_iter().rev().collect()
    }

    /// The longest beginning of a path that is a directory which is shown.
    pub fn nearest(&self, path: &Path) -> PathBuf {
        let (mut at, mut nearest) = (0, PathBuf::new());
        for name in path {
            let Some(TreeKind::Directory(names)) = self.node(at).map(|node| &node.what) else {
                break;
            };
            match names.get(name) {
                Some(child)
                    if matches!(
                        self.node(*child),
                        Some(TreeNode { what: TreeKind::Directory(_), .. })
                    ) =>
                {
                    (at, nearest) = (*child, nearest.join(name));
                }
                _ => break,
            }
        }
        nearest
    }

    /// The names on the way to each file that is shown, by its number.
    pub fn paths(&self) -> Vec<Option<Vec<&OsStr>>> {
        let mut paths = vec![None; self.files.len()];
        let mut left = vec![(0, Vec::new())];
        while let Some((node, path)) = left.pop() {
            match self.node(node).map(|node| &node.what) {
                Some(TreeKind::File(file)) => {
                    if let Some(place) = paths.get_mut(*file as usize) {
                        *place = Some(path);
                    }
                }
                Some(TreeKind::Directory(names)) => {
                    for (name, node) in names {
                        let below = path.iter().copied().chain([name.as_os_str()]).collect();
                        left.push((*node, below));
                    }
                }
                None => {}
            }
        }
        paths
    }
}
