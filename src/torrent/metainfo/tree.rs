//! The directories and files that a torrent shows.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use super::Metainfo;

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

impl Metainfo {
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
