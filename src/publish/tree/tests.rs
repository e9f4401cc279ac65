#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use proptest::prelude::*;

use super::*;
use crate::publish::row::Row;

const OWNER: Owner = Owner { mode: 0o755, uid: 1, gid: 2 };

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn os(name: &str) -> &OsStr {
    OsStr::new(name)
}

/// What the model knows: each path with what is there and the number that it was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File(UploadIno),
    Dir(UploadIno),
}

impl Kind {
    fn ino(self) -> UploadIno {
        match self {
            Self::File(ino) | Self::Dir(ino) => ino,
        }
    }

    fn is_dir(self) -> bool {
        matches!(self, Self::Dir(_))
    }
}

type Path = Vec<u8>;

#[derive(Clone, Debug)]
enum Op {
    Create(Path),
    Mkdir(Path),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path, u8),
    Link(Path, Path),
    Reopen,
}

/// Few names and shallow paths, so that operations meet.
fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec(0u8..3, 1..4)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => path().prop_map(Op::Create),
        4 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        6 => (path(), path(), 0u8..3).prop_map(|(from, to, mode)| Op::Rename(from, to, mode)),
        3 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        1 => Just(Op::Reopen),
    ]
}

fn name(byte: u8) -> OsString {
    OsString::from(format!("n{byte}"))
}

#[derive(Clone, Debug, Default)]
struct Model(BTreeMap<Path, Kind>);

impl Model {
    fn is_dir(&self, path: &[u8]) -> bool {
        path.is_empty() || self.0.get(path).is_some_and(|kind| kind.is_dir())
    }

    fn is_empty(&self, path: &[u8]) -> bool {
        !self.0.keys().any(|other| other.len() > path.len() && other.starts_with(path))
    }

    fn has_parent(&self, path: &[u8]) -> bool {
        self.is_dir(&path[..path.len() - 1])
    }

    fn take(&mut self, path: &[u8]) -> Vec<(Path, Kind)> {
        let below: Vec<_> = self.0.keys().filter(|p| p.starts_with(path)).cloned().collect();
        below.into_iter().map(|p| (p[path.len()..].to_vec(), self.0.remove(&p).unwrap())).collect()
    }

    fn put(&mut self, path: &[u8], tree: Vec<(Path, Kind)>) {
        self.0.extend(tree.into_iter().map(|(rest, kind)| ([path, &rest].concat(), kind)));
    }

    /// Whether the rename is allowed, told from the whole paths alone.
    fn rename(&mut self, from: &[u8], to: &[u8], mode: RenameMode) -> bool {
        let (Some(source), target) = (self.0.get(from).copied(), self.0.get(to).copied()) else {
            return false;
        };
        let fits = match (mode, target) {
            (RenameMode::NoReplace, target) => target.is_none(),
            (RenameMode::Exchange, target) => {
                target.is_some() && (from == to || !from.starts_with(to))
            }
            (RenameMode::Replace, None) => true,
            (RenameMode::Replace, Some(_)) if from == to => true,
            (RenameMode::Replace, Some(target)) => {
                source.is_dir() == target.is_dir() && self.is_empty(to)
            }
        };
        if !self.has_parent(to) || !fits || (from != to && to.starts_with(from)) {
            return false;
        }
        // Two names of one file stay.
        if from != to && target != Some(source) {
            let moved = self.take(from);
            let other = self.take(to);
            self.put(to, moved);
            if mode == RenameMode::Exchange {
                self.put(from, other);
            }
        }
        true
    }
}

fn resolve(tree: &Tree, path: &[u8]) -> Result<UploadIno> {
    path.iter().try_fold(UploadIno::ROOT, |ino, byte| tree.lookup(ino, &name(*byte)))
}

/// The parent of `path` and its last name.
fn split(tree: &Tree, path: &[u8]) -> Result<(UploadIno, OsString)> {
    let (last, up) = path.split_last().unwrap();
    Ok((resolve(tree, up)?, name(*last)))
}

/// Both sides of one operation; whether each was allowed.
fn apply(tree: &mut Tree, model: &mut Model, op: &Op, now: SystemTime) -> (bool, bool) {
    let make = |tree: &mut Tree, path: &[u8], body| {
        let (parent, name) = split(tree, path)?;
        tree.add(parent, &name, OWNER, body, now)
    };
    match op {
        Op::Create(path) | Op::Mkdir(path) => {
            let dir = matches!(op, Op::Mkdir(_));
            let body = if dir { Body::Directory(Directory::default()) } else { Body::File(None) };
            let made = make(tree, path, body);
            let allowed = model.has_parent(path) && !model.0.contains_key(path);
            if let Ok(ino) = made {
                model.0.insert(path.clone(), if dir { Kind::Dir(ino) } else { Kind::File(ino) });
            }
            (made.is_ok(), allowed)
        }
        Op::Unlink(path) | Op::Rmdir(path) => {
            let dir = matches!(op, Op::Rmdir(_));
            let gone = split(tree, path).and_then(|(parent, name)| match dir {
                true => tree.rmdir(parent, &name, now),
                false => tree.unlink(parent, &name, now),
            });
            let there = model.0.get(path).is_some_and(|kind| kind.is_dir() == dir);
            let allowed = there && (!dir || model.is_empty(path));
            if allowed {
                model.0.remove(path);
            }
            gone.iter().for_each(|ino| tree.forget(*ino));
            (gone.is_ok(), allowed)
        }
        Op::Rename(from, to, mode) => {
            let mode = match mode {
                0 => RenameMode::Replace,
                1 => RenameMode::NoReplace,
                _ => RenameMode::Exchange,
            };
            let done = split(tree, from).and_then(|(parent, name)| {
                let (to_parent, to_name) = split(tree, to)?;
                tree.rename((parent, &name), (to_parent, &to_name), mode, now)
            });
            if let Ok(Some(replaced)) = done {
                tree.forget(replaced);
            }
            (done.is_ok(), model.rename(from, to, mode))
        }
        Op::Link(from, to) => {
            let done = resolve(tree, from).and_then(|ino| {
                let (parent, name) = split(tree, to)?;
                tree.link(ino, parent, &name, now)
            });
            let file = model.0.get(from).copied().filter(|kind| !kind.is_dir());
            let allowed = file.is_some() && model.has_parent(to) && !model.0.contains_key(to);
            if allowed {
                model.0.extend(file.map(|file| (to.clone(), file)));
            }
            (done.is_ok(), allowed)
        }
        Op::Reopen => (true, true),
    }
}

/// Rows on disk, as far as the tree has told of its changes.
#[derive(Default)]
struct Disk(BTreeMap<UploadIno, Vec<u8>>);

impl Disk {
    fn flush(&mut self, tree: &mut Tree) {
        let (dirty, removed) = tree.take_changes();
        removed.iter().for_each(|ino| drop(self.0.remove(ino)));
        for ino in dirty {
            self.0.insert(ino, Row::encode(tree.get(ino).unwrap(), None));
        }
    }

    fn open(&self) -> Tree {
        let rows = self.0.iter().map(|(ino, row)| (*ino, Row::decode(row).unwrap().inode));
        let restored = Tree::restore(OWNER, at(0), rows.collect());
        assert_eq!((restored.orphans, restored.rescued), (vec![], vec![]));
        restored.tree
    }
}

fn check(tree: &Tree, model: &Model) {
    let inodes: std::collections::HashSet<_> = model.0.values().map(|kind| kind.ino()).collect();
    assert_eq!(tree.iter().count(), inodes.len() + 1);
    for (path, kind) in &model.0 {
        assert_eq!(resolve(tree, path).unwrap(), kind.ino());
        let below = |other: &&Path| other.len() == path.len() + 1 && other.starts_with(path);
        let subdirs = model.0.keys().filter(below).filter(|p| model.is_dir(p)).count();
        let names = model.0.values().filter(|other| *other == kind).count();
        let nlink = if kind.is_dir() { 2 + subdirs } else { names };
        assert_eq!(tree.nlink(kind.ino()).unwrap() as usize, nlink);
    }
    for ino in tree.stale() {
        assert!(tree.ancestors(*ino).all(|up| tree.stale().contains(&up)));
    }
}

proptest! {
    #[test]
    fn it_behaves_like_a_set_of_paths(ops in prop::collection::vec(op(), 0..60)) {
        let (mut tree, mut model, mut disk) = (Tree::new(OWNER, at(0)), Model::default(), Disk::default());
        for (step, op) in ops.iter().enumerate() {
            let (done, allowed) = apply(&mut tree, &mut model, op, at(step as u64));
            prop_assert_eq!(done, allowed, "{:?}", op);
            if matches!(op, Op::Reopen) {
                disk.flush(&mut tree);
                let again = disk.open();
                for (ino, inode) in again.iter() {
                    prop_assert_eq!(&inode.attr, &tree.get(ino).unwrap().attr);
                }
                tree = again;
            }
            check(&tree, &model);
        }
    }
}

fn tree_with(names: &[(&str, bool)]) -> Tree {
    let mut tree = Tree::new(OWNER, at(0));
    for (path, dir) in names {
        let (up, last) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = up
            .split('/')
            .filter(|part| !part.is_empty())
            .fold(UploadIno::ROOT, |ino, part| tree.lookup(ino, os(part)).unwrap());
        let body = if *dir { Body::Directory(Directory::default()) } else { Body::File(None) };
        tree.add(parent, os(last), OWNER, body, at(0)).unwrap();
    }
    tree
}

#[test]
fn renames_fail_with_the_error_of_linux() {
    use PublishError as E;
    let names = [("d", true), ("d/e", true), ("d/f", false), ("empty", true), ("file", false)];
    let mut tree = tree_with(&names);
    let root = UploadIno::ROOT;
    let d = tree.lookup(root, os("d")).unwrap();
    let e = tree.lookup(d, os("e")).unwrap();
    let mut rename = |from: (UploadIno, &str), to: (UploadIno, &str), mode| {
        tree.rename((from.0, os(from.1)), (to.0, os(to.1)), mode, at(1)).unwrap_err()
    };
    let long = "x".repeat(256);
    let replace = RenameMode::Replace;
    assert!(matches!(rename((root, "none"), (root, "x"), replace), E::NotFound));
    assert!(matches!(rename((root, "d"), (e, "x"), replace), E::Cycle));
    assert!(matches!(rename((root, "d"), (d, "x"), replace), E::Cycle));
    assert!(matches!(rename((root, "empty"), (root, "d"), replace), E::NotEmpty));
    assert!(matches!(rename((root, "file"), (root, "d"), replace), E::IsADirectory));
    assert!(matches!(rename((root, "empty"), (root, "file"), replace), E::NotADirectory));
    assert!(matches!(rename((root, "file"), (root, &long), replace), E::NameTooLong));
    assert!(matches!(rename((root, "file"), (root, "d"), RenameMode::NoReplace), E::Exists));
    assert!(matches!(rename((root, "file"), (root, "none"), RenameMode::Exchange), E::NotFound));
    assert!(matches!(rename((d, "e"), (root, "d"), RenameMode::Exchange), E::Cycle));
}

#[test]
fn owner_and_mode_follow_the_rules_of_linux() {
    let mut tree = tree_with(&[("d", true)]);
    let d = tree.lookup(UploadIno::ROOT, os("d")).unwrap();
    tree.chmod(d, 0o102775, at(1)).unwrap();
    tree.chown(d, None, Some(50), at(1)).unwrap();
    assert_eq!(tree.get(d).unwrap().attr.mode, 0o2775, "chown leaves a directory's bits");
    let file = tree.add(d, os("f"), OWNER, Body::File(None), at(2)).unwrap();
    let sub = tree.add(d, os("s"), OWNER, Body::Directory(Directory::default()), at(2)).unwrap();
    assert_eq!(tree.get(file).unwrap().attr.gid, 50);
    assert_eq!(tree.get(sub).unwrap().attr.mode, 0o2755);
    for (before, after) in [(0o6755, 0o755), (0o6745, 0o2745), (0o4700, 0o700)] {
        tree.chmod(file, before, at(3)).unwrap();
        tree.chown(file, Some(9), None, at(4)).unwrap();
        assert_eq!(tree.get(file).unwrap().attr.mode, after);
    }
    assert_eq!(tree.get(file).unwrap().attr.ctime, at(4));
}

#[test]
fn an_unlinked_file_lives_until_it_is_forgotten() {
    let mut tree = tree_with(&[("f", false)]);
    let ino = tree.unlink(UploadIno::ROOT, os("f"), at(7)).unwrap();
    assert_eq!(tree.nlink(ino).unwrap(), 0);
    assert_eq!(tree.get(ino).unwrap().attr.ctime, at(7));
    assert_eq!(tree.get(UploadIno::ROOT).unwrap().attr.mtime, at(7));
    let orphan = Row::decode(&Row::encode(tree.get(ino).unwrap(), None)).unwrap().inode;
    let restored = Tree::restore(OWNER, at(0), vec![(ino, orphan)]);
    assert_eq!(restored.orphans, [ino], "after a crash nobody has it open");
    tree.forget(ino);
    assert!(tree.get(ino).is_err());
    assert!(tree.take_changes().1.contains(&ino));
}

#[test]
fn attributes_are_bounded() {
    let mut tree = tree_with(&[("f", false)]);
    let ino = tree.lookup(UploadIno::ROOT, os("f")).unwrap();
    let mut set =
        |name: &str, len: usize, flags| tree.setxattr(ino, name, &vec![7; len], flags, at(1));
    assert!(matches!(set("user.a", 1, (false, true)), Err(PublishError::NoAttribute)));
    set("user.a", 64 << 10, (true, false)).unwrap();
    assert!(matches!(set("user.a", 1, (true, false)), Err(PublishError::Exists)));
    set("user.b", 60 << 10, (false, false)).unwrap();
    assert!(matches!(set("user.c", 60 << 10, (false, false)), Err(PublishError::Io { .. })));
    set("user.b", 1, (false, true)).unwrap();
    set("user.c", 60 << 10, (false, false)).unwrap();
    tree.removexattr(ino, "user.c", at(2)).unwrap();
    assert!(matches!(tree.removexattr(ino, "user.c", at(2)), Err(PublishError::NoAttribute)));
}

#[test]
fn what_hangs_nowhere_is_found_under_the_root_with_all_below_it() {
    let mut tree = tree_with(&[("f", false), ("d", true)]);
    let dir = tree.lookup(UploadIno::ROOT, os("d")).unwrap();
    let below = tree.add(dir, os("f"), OWNER, Body::File(None), at(1)).unwrap();
    let inner = tree.add(dir, os("inner"), OWNER, Body::Directory(Directory::default()), at(1));
    let deep = tree.add(inner.unwrap(), os("deep"), OWNER, Body::File(None), at(1)).unwrap();
    let rows = |without: UploadIno| {
        let rows = tree.iter().filter(|(ino, _)| *ino != without);
        rows.map(|(ino, inode)| (ino, inode.for_row())).collect::<Vec<_>>()
    };
    let restored = Tree::restore(OWNER, at(0), rows(dir));
    assert_eq!(restored.orphans, []);
    let tree = restored.tree;
    assert_eq!(tree.lookup(UploadIno::ROOT, os(&format!("f.found-{}", below.0))).unwrap(), below);
    let inner = tree.lookup(UploadIno::ROOT, os("inner")).unwrap();
    assert_eq!(tree.lookup(inner, os("deep")).unwrap(), deep);
    // Each the parent of the other.
    let mut rows = vec![];
    for (ino, parent) in [(7, 8), (8, 7)] {
        let mut inode = tree.get(inner).unwrap().for_row();
        inode.place = Some(Place { parent: UploadIno(parent), name: "loop".into() });
        rows.push((UploadIno(ino), inode));
    }
    let restored = Tree::restore(OWNER, at(0), rows);
    assert_eq!(restored.rescued, [UploadIno(7)]);
    assert_eq!(restored.tree.lookup(UploadIno(7), os("loop")).unwrap(), UploadIno(8));
}

#[test]
fn links_fail_with_the_error_of_linux() {
    use PublishError as E;
    let mut tree = tree_with(&[("d", true), ("file", false), ("gone", false)]);
    let root = UploadIno::ROOT;
    let d = tree.lookup(root, os("d")).unwrap();
    let file = tree.lookup(root, os("file")).unwrap();
    let gone = tree.unlink(root, os("gone"), at(1)).unwrap();
    let mut link = |ino, parent, name| tree.link(ino, parent, os(name), at(2)).unwrap_err();
    assert!(matches!(link(d, root, "x"), E::NotPermitted(_)));
    assert!(matches!(link(gone, root, "x"), E::NotFound), "it is open, and has no name");
    assert!(matches!(link(file, root, "d"), E::Exists));
    assert!(matches!(link(file, root, "file"), E::Exists));
    assert!(matches!(link(file, file, "x"), E::NotADirectory));
    assert!(matches!(link(file, root, &"x".repeat(256)), E::NameTooLong));
}

#[test]
fn a_change_of_a_file_outdates_all_its_directories() {
    let mut tree = tree_with(&[("a", true), ("b", true), ("a/f", false)]);
    let (a, b) = (
        tree.lookup(UploadIno::ROOT, os("a")).unwrap(),
        tree.lookup(UploadIno::ROOT, os("b")).unwrap(),
    );
    let file = tree.lookup(a, os("f")).unwrap();
    tree.link(file, b, os("g"), at(1)).unwrap();
    for dir in [a, b, UploadIno::ROOT] {
        tree.begin_root(dir);
    }
    let root = crate::content::ContentId::raw(crate::content::sha2_256(b""));
    let object = crate::store::ObjectId(1);
    tree.set_sealed(file, Sealed { object, root, size: 0, tsize: 0, below: None });
    assert_eq!(tree.stale().iter().copied().collect::<Vec<_>>(), [UploadIno::ROOT, a, b]);
}

#[test]
fn a_link_without_its_directory_is_dropped_at_the_start() {
    let mut tree = tree_with(&[("a", true), ("b", true), ("a/f", false)]);
    let lookup = |tree: &Tree, name| tree.lookup(UploadIno::ROOT, os(name)).unwrap();
    let (a, b) = (lookup(&tree, "a"), lookup(&tree, "b"));
    let file = tree.lookup(a, os("f")).unwrap();
    tree.link(file, b, os("g"), at(1)).unwrap();
    let rows = |without: UploadIno| {
        let all = tree.iter().filter(|(ino, _)| *ino != without);
        all.map(|(ino, inode)| (ino, inode.for_row())).collect::<Vec<_>>()
    };
    for (without, stays, name) in [(a, b, "g"), (b, a, "f")] {
        let restored = Tree::restore(OWNER, at(0), rows(without));
        assert_eq!((restored.orphans, restored.rescued), (vec![], vec![]));
        assert_eq!(restored.tree.lookup(stays, os(name)).unwrap(), file);
        assert_eq!(restored.tree.nlink(file).unwrap(), 1);
        assert!(restored.tree.dirty.contains(&file), "its row names a directory that is gone");
    }
}

#[test]
fn numbers_of_inodes_are_not_used_again_after_a_restart() {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let restored = Tree::restore(OWNER, now, Vec::new());
    let mut tree = restored.tree;
    let first = tree.add(UploadIno::ROOT, os("f"), OWNER, Body::File(None), now).unwrap();
    let mut later = Tree::restore(OWNER, now + Duration::from_micros(1), Vec::new()).tree;
    let next = later.add(UploadIno::ROOT, os("f"), OWNER, Body::File(None), now).unwrap();
    assert!(next > first && next.0 < 1 << 61, "{first:?} {next:?}");
}

#[test]
fn an_access_list_sets_the_mode_and_follows_it() {
    let mut tree = tree_with(&[("f", false), ("d", true)]);
    let file = tree.lookup(UploadIno::ROOT, os("f")).unwrap();
    let dir = tree.lookup(UploadIno::ROOT, os("d")).unwrap();
    let list = |entries: &[(u16, u16)]| {
        let entry = |(tag, mode): &(u16, u16)| {
            [&tag.to_le_bytes()[..], &mode.to_le_bytes(), &1u32.to_le_bytes()].concat()
        };
        [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
    };
    let extended = list(&[(1, 6), (2, 4), (4, 0), (0x10, 4), (0x20, 0)]);
    let access = "system.posix_acl_access";
    tree.set_acl(file, access, &extended, at(1)).unwrap();
    assert_eq!(tree.get(file).unwrap().attr.mode, 0o600);
    assert_eq!(tree.get(file).unwrap().xattrs[access], extended);
    tree.chmod(file, 0o4754, at(2)).unwrap();
    assert_eq!(tree.get(file).unwrap().attr.mode, 0o4704, "the list gives the group nothing");
    let changed = list(&[(1, 7), (2, 4), (4, 0), (0x10, 5), (0x20, 4)]);
    assert_eq!(tree.get(file).unwrap().xattrs[access], changed);
    tree.set_acl(file, access, &list(&[(1, 6), (4, 4), (0x20, 4)]), at(3)).unwrap();
    assert_eq!(tree.get(file).unwrap().attr.mode, 0o4644);
    assert!(tree.get(file).unwrap().xattrs.is_empty(), "it says what the mode says");
    let default = "system.posix_acl_default";
    assert!(tree.set_acl(file, default, &extended, at(4)).is_err());
    tree.set_acl(dir, default, &extended, at(4)).unwrap();
    assert_eq!(tree.get(dir).unwrap().attr.mode, 0o755);
    assert!(tree.set_acl(dir, default, b"list", at(4)).is_err());
}
