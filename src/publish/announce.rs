//! Telling the listener: a root after it has rested, so that a storm of changes is announced once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Inner, UploadIno, dirs::link_of, tree::Body};
use crate::{content::ContentId, store::StateTree};

/// How long a root must stay the same before it is announced.
pub(super) const REST: Duration = Duration::from_secs(10);

/// What was announced, and what is to be.
#[derive(Debug)]
pub(super) struct Announcer {
    state: Mutex<State>,
    wake: Notify,
    /// Roots that the listener was told. What is missing here is told again after a restart: a rest that a kill cut short,
    /// or the working state lost with all that waits to be announced.
    told: StateTree,
}

#[derive(Debug, Default)]
struct State {
    /// Inodes whose root changed, with the end of their rest.
    resting: BTreeMap<UploadIno, Instant>,
    order: BTreeSet<(Instant, UploadIno)>,
    /// The root that was announced for each inode.
    announced: HashMap<UploadIno, ContentId>,
    /// How many inodes each of these roots was announced for.
    owners: HashMap<ContentId, usize>,
    /// Inodes that were removed; their roots are withdrawn unless others have them.
    removed: HashSet<UploadIno>,
}

impl State {
    fn rest(&mut self, ino: UploadIno, due: Instant) {
        if let Some(old) = self.resting.insert(ino, due) {
            self.order.remove(&(old, ino));
        }
        self.order.insert((due, ino));
    }

    fn stop_resting(&mut self, ino: UploadIno) {
        if let Some(due) = self.resting.remove(&ino) {
            self.order.remove(&(due, ino));
        }
    }

    /// Takes note of a new root of `ino`; gives the old one if no other inode has it.
    fn replace(&mut self, ino: UploadIno, root: Option<ContentId>) -> Option<ContentId> {
        let old = match root {
            Some(root) => {
                *self.owners.entry(root).or_default() += 1;
                self.announced.insert(ino, root)
            }
            None => self.announced.remove(&ino),
        }?;
        let owners = self.owners.get_mut(&old)?;
        *owners -= 1;
        (*owners == 0).then(|| {
            self.owners.remove(&old);
            old
        })
    }
}

impl Announcer {
    pub(super) fn new(told: StateTree) -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), told }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `ino` has a new root: it is announced when it has not changed for a while.
    pub(super) fn rested(&self, ino: UploadIno) {
        self.state().rest(ino, Instant::now() + REST);
        self.wake.notify_one();
    }

    pub(super) fn removed(&self, ino: UploadIno) {
        let mut state = self.state();
        state.stop_resting(ino);
        if state.announced.contains_key(&ino) {
            state.removed.insert(ino);
            self.wake.notify_one();
        }
    }

    /// `ino` has had `root` since an earlier process: it is announced unless that one did.
    pub(super) fn assume(&self, ino: UploadIno, root: ContentId) {
        if matches!(self.told.get(&root.to_bytes()), Ok(Some(_))) {
            self.state().replace(ino, Some(root));
        } else {
            self.rested(ino);
        }
    }

    /// Remembers for the next start what the listener knows. What is forgotten is told twice, which does no harm.
    fn remember(&self, root: &ContentId, told: bool) {
        let key = root.to_bytes();
        let done = if told { self.told.insert(&key, &[]) } else { self.told.remove(&key) };
        if let Err(error) = done {
            tracing::debug!(%root, %error, "it is not remembered what was announced");
        }
    }

    /// All that rests, or was removed, and is to be told.
    fn take_all(&self) -> (Vec<UploadIno>, Vec<UploadIno>) {
        let mut state = self.state();
        state.order.clear();
        let rested = std::mem::take(&mut state.resting).into_keys().collect();
        (rested, std::mem::take(&mut state.removed).into_iter().collect())
    }

    async fn due(&self) -> Due {
        loop {
            let next = {
                let mut state = self.state();
                if let Some(ino) = state.removed.iter().next().copied() {
                    state.removed.remove(&ino);
                    return Due::Removed(ino);
                }
                let first = state.order.first().copied();
                if let Some((due, ino)) = first
                    && due <= Instant::now()
                {
                    state.stop_resting(ino);
                    return Due::Rested(ino);
                }
                first.map(|(due, _)| due)
            };
            match next {
                Some(due) => {
                    tokio::select! { () = sleep_until(due) => {}, () = self.wake.notified() => {} }
                }
                None => self.wake.notified().await,
            }
        }
    }
}

enum Due {
    Rested(UploadIno),
    Removed(UploadIno),
}

/// Tells the listener what is due until the end of the daemon.
pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        let due = tokio::select! {
            () = inner.tasks.cancelled() => return,
            due = inner.announcer.due() => due,
        };
        match due {
            Due::Rested(ino) => inner.announce(ino),
            Due::Removed(ino) => inner.withdraw(ino),
        }
    }
}

impl Inner {
    /// Tells at once what would be told later: the daemon ends.
    pub(super) fn announce_all(&self) {
        let (rested, removed) = self.announcer.take_all();
        removed.into_iter().for_each(|ino| self.withdraw(ino));
        rested.into_iter().for_each(|ino| self.announce(ino));
    }

    fn withdraw(&self, ino: UploadIno) {
        let old = self.announcer.state().replace(ino, None);
        self.tell_gone(old);
    }

    fn tell_gone(&self, root: Option<ContentId>) {
        if let Some(root) = root {
            self.listener.unpublished(&root);
            self.announcer.remember(&root, false);
        }
    }

    fn announce(&self, ino: UploadIno) {
        let (root, path, size) = {
            let names = self.names();
            let Ok(inode) = names.tree.get(ino) else { return };
            if names.is_importing(ino) {
                // It has no name of its own yet.
                drop(names);
                self.announcer.rested(ino);
                return;
            }
            let Some((root, tsize)) = link_of(inode) else { return };
            let size = match &inode.body {
                Body::File(sealed) => sealed.as_ref().map_or(0, |sealed| sealed.size),
                _ => tsize,
            };
            // Nobody looks for nothing: an empty file's id is known to everyone.
            if inode.place.is_none() || (size == 0 && matches!(inode.body, Body::File(_))) {
                return;
            }
            (root, names.path(ino), size)
        };
        let mut state = self.announcer.state();
        if state.announced.get(&ino) == Some(&root) {
            return;
        }
        let old = state.replace(ino, Some(root));
        drop(state);
        self.listener.published(&root, &path, size);
        self.announcer.remember(&root, true);
        self.tell_gone(old);
    }
}
