//! Decides which inodes are published or ignored: by the rules of their place, and by requests.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    sync::Arc,
};

use super::{Body, Directory, Inode, Place, Request, Tree, UploadIno};
use crate::publish::{
    ignore::{IgnorePatterns, IgnoreScope, Rules},
    import::is_scratch,
};

/// The rules of a tree.
#[derive(Debug, Default)]
pub(super) struct TreeRules {
    patterns: IgnorePatterns,
    /// Those of the rule file in each directory that has one.
    files: HashMap<UploadIno, Arc<Rules>>,
}

/// An inode that is ignored now and was published, or the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::publish) struct Reviewed {
    pub(in crate::publish) ino: UploadIno,
    pub(in crate::publish) ignored: bool,
}

/// Rules for the entries of a directory.
#[derive(Clone, Debug)]
struct Above {
    ignored: bool,
    /// None: an import, which has left out what is ignored itself.
    scope: Option<IgnoreScope>,
}

impl Above {
    fn ignores(&self, inode: &Inode, place: &Place) -> bool {
        let is_dir = matches!(inode.body, Body::Directory(_));
        let by_rules = |scope: IgnoreScope| scope.ignores(&place.name, is_dir).is_some();
        match (inode.request, &self.scope) {
            (Request::Named, _) => false,
            _ if self.ignored => true,
            _ if is_import(place) => false,
            (_, None) => false,
            (Request::Hidden, Some(scope)) => by_rules(scope.clone().with_hidden()),
            (Request::None, Some(scope)) => scope.ignores(&place.name, is_dir).is_some(),
        }
    }
}

/// Returns whether it is the top of an import that is under way.
fn is_import(place: &Place) -> bool {
    place.parent == UploadIno::ROOT && is_scratch(&place.name)
}

impl Tree {
    pub(in crate::publish) fn set_patterns(&mut self, patterns: IgnorePatterns) {
        self.rules.patterns = patterns;
    }

    /// The rule file of a directory is another one now.
    pub(in crate::publish) fn set_rules(&mut self, dir: UploadIno, rules: Option<Rules>) {
        match rules {
            Some(rules) => self.rules.files.insert(dir, Arc::new(rules)),
            None => self.rules.files.remove(&dir),
        };
    }

    pub(super) fn forget_rules(&mut self, dir: UploadIno) {
        self.rules.files.remove(&dir);
    }

    /// The rules for the entries of a directory. None: it is a part of an import.
    pub(in crate::publish) fn scope(&self, dir: UploadIno) -> Option<IgnoreScope> {
        let mut path: Vec<_> = std::iter::once(dir).chain(self.ancestors(dir)).collect();
        path.reverse();
        let mut scope = IgnoreScope::top(&self.rules.patterns);
        for ino in path {
            if let Some(place) = &self.inodes.get(&ino)?.place {
                if is_import(place) {
                    return None;
                }
                scope = scope.below(&place.name);
            }
            scope = self.with_rules_of(ino, scope);
        }
        Some(scope)
    }

    fn with_rules_of(&self, dir: UploadIno, scope: IgnoreScope) -> IgnoreScope {
        match self.rules.files.get(&dir) {
            Some(rules) => scope.with_rules(rules.clone()),
            None => scope,
        }
    }

    pub(in crate::publish) fn is_ignored(&self, ino: UploadIno) -> bool {
        self.inodes.get(&ino).is_some_and(|inode| inode.ignored)
    }

    /// Returns whether asking for hidden files would not publish it.
    pub(in crate::publish) fn is_ignored_by_rules(&self, ino: UploadIno) -> bool {
        let hidden = |inode: &Inode| {
            let place = inode.place.as_ref()?;
            let hidden = Inode { request: Request::Hidden, ..inode.clone() };
            Some(self.above(place.parent).ignores(&hidden, place))
        };
        self.inodes.get(&ino).and_then(hidden).unwrap_or(false)
    }

    fn above(&self, dir: UploadIno) -> Above {
        Above { ignored: self.is_ignored(dir), scope: self.scope(dir) }
    }

    /// Returns whether an inode is ignored under every name that it has.
    pub(super) fn decide(&self, inode: &Inode) -> bool {
        inode.place.is_some() && inode.places().all(|place| self.is_ignored_at(inode, place))
    }

    fn is_ignored_at(&self, inode: &Inode, place: &Place) -> bool {
        if self.is_ignored(place.parent) && inode.request != Request::Named {
            return true;
        }
        self.above(place.parent).ignores(inode, place)
    }

    /// Returns whether an entry of a published directory is left out of it. A file with several names can be published under
    /// one of them and ignored under another.
    pub(in crate::publish) fn is_entry_ignored(
        &self,
        dir: UploadIno,
        name: &OsStr,
        inode: &Inode,
    ) -> bool {
        let is_linked = !inode.also.is_empty();
        inode.ignored
            || is_linked && self.is_ignored_at(inode, &Place { parent: dir, name: name.to_owned() })
    }

    /// Looks anew at a file that got or lost one of several names.
    pub(in crate::publish) fn review_linked(&mut self, ino: UploadIno) -> Vec<Reviewed> {
        let Some(inode) = self.inodes.get(&ino) else { return Vec::new() };
        let ignored = self.decide(inode);
        if inode.place.is_none() || ignored == inode.ignored {
            return Vec::new();
        }
        let changed = vec![Reviewed { ino, ignored }];
        self.apply(&changed);
        changed
    }

    /// Sets the request of an inode beyond the rules.
    pub(in crate::publish) fn set_request(&mut self, ino: UploadIno, request: Request) {
        if let Some(inode) = self.inodes.get_mut(&ino)
            && inode.request != request
        {
            inode.request = request;
            self.mark(ino);
        }
    }

    pub(super) fn request(&self, ino: UploadIno) -> Request {
        self.inodes.get(&ino).map_or(Request::None, |inode| inode.request)
    }

    /// Looks anew at an inode that was moved. Where it is ignored now, what was asked for below it was asked for at
    /// another place.
    pub(in crate::publish) fn review_moved(
        &mut self,
        ino: UploadIno,
        was: Option<&IgnoreScope>,
    ) -> Vec<Reviewed> {
        let Some(inode) = self.inodes.get(&ino) else { return Vec::new() };
        let ignored = self.decide(inode);
        let is = inode.place.as_ref().and_then(|place| self.scope(place.parent));
        if let (Some(was), Some(is)) = (was, &is)
            && ignored == inode.ignored
            && (!matches!(inode.body, Body::Directory(_)) || was.is_alike(is))
        {
            return Vec::new();
        }
        if ignored {
            let below: Vec<_> = self.below(ino).collect();
            below.into_iter().for_each(|ino| self.set_request(ino, Request::None));
        }
        self.review(ino)
    }

    /// Looks anew at an inode and all below it. Gives what changed, directories before what is in them.
    pub(in crate::publish) fn review(&mut self, top: UploadIno) -> Vec<Reviewed> {
        let above = match self.parent(top) {
            Ok(parent) if top != UploadIno::ROOT => self.above(parent),
            _ => Above { ignored: false, scope: Some(IgnoreScope::top(&self.rules.patterns)) },
        };
        let mut left = vec![(top, above)];
        let (mut changed, mut linked) = (Vec::new(), BTreeSet::new());
        while let Some((ino, above)) = left.pop() {
            let Some(inode) = self.inodes.get(&ino) else { continue };
            if !inode.also.is_empty() {
                linked.insert(ino);
                continue;
            }
            let ignored = inode.place.as_ref().is_some_and(|place| above.ignores(inode, place));
            if ignored != inode.ignored {
                changed.push(Reviewed { ino, ignored });
            }
            let Body::Directory(directory) = &inode.body else { continue };
            let scope = match &inode.place {
                Some(place) if is_import(place) => None,
                Some(place) => above.scope.map(|scope| scope.below(&place.name)),
                None => above.scope,
            };
            let scope = scope.map(|scope| self.with_rules_of(ino, scope));
            let inner = Above { ignored, scope };
            left.extend(directory.children.values().map(|child| (*child, inner.clone())));
        }
        self.apply(&changed);
        // Their other names may lie in directories that were looked at just now.
        for ino in linked {
            changed.extend(self.review_linked(ino));
            // A directory may leave one of the names out from now on, although the file stays published.
            self.outdate_above(ino);
        }
        changed
    }

    fn apply(&mut self, changed: &[Reviewed]) {
        for Reviewed { ino, ignored } in changed {
            let Some(inode) = self.inodes.get_mut(ino) else { continue };
            inode.ignored = *ignored;
            if let Body::Directory(directory) = &mut inode.body {
                directory.root = None;
                if *ignored {
                    self.stale.remove(ino);
                }
            }
        }
        for Reviewed { ino, .. } in changed {
            // A directory that is published from now on is out of date itself, and all directories above.
            self.outdate(*ino);
            self.outdate_above(*ino);
        }
    }

    /// The ids of all directories that have a name of an inode are out of date.
    fn outdate_above(&mut self, ino: UploadIno) {
        let Some(inode) = self.inodes.get(&ino) else { return };
        let parents: Vec<_> = inode.places().map(|place| place.parent).collect();
        parents.into_iter().for_each(|parent| self.outdate(parent));
    }

    /// An inode and all below it, in the order of the names, directories before what is in them.
    pub(in crate::publish) fn below(&self, top: UploadIno) -> impl Iterator<Item = UploadIno> + '_ {
        self.walk(top, |directory| directory.children.values().rev().copied().collect())
    }

    /// Published inodes at and below one, in the order of the names, directories after what is in them.
    pub(in crate::publish) fn published_below(&self, top: UploadIno) -> Vec<UploadIno> {
        let all = self.walk(top, |directory| directory.children.values().copied().collect());
        let mut found: Vec<_> = all.filter(|ino| !self.is_ignored(*ino)).collect();
        found.reverse();
        found
    }

    /// Walks a tree; of the entries of a directory the last comes first.
    fn walk(
        &self,
        top: UploadIno,
        entries: impl Fn(&Directory) -> Vec<UploadIno>,
    ) -> impl Iterator<Item = UploadIno> {
        let mut left = vec![top];
        std::iter::from_fn(move || {
            let ino = left.pop()?;
            if let Some(Inode { body: Body::Directory(directory), .. }) = self.inodes.get(&ino) {
                left.extend(entries(directory));
            }
            Some(ino)
        })
    }

    /// The directory that is ignored and lies highest above an inode, or the inode itself.
    pub(in crate::publish) fn ignored_top(&self, ino: UploadIno) -> UploadIno {
        let up = std::iter::once(ino).chain(self.ancestors(ino));
        up.take_while(|ino| self.is_ignored(*ino)).last().unwrap_or(ino)
    }
}
