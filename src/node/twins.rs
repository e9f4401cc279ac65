//! Files of torrents and contents that have the same bytes, and so each other's sources.
//!
//! A file that a torrent has brought is hashed once, in the background, and served by its CID from where it lies. What was
//! found is signed: others can be told, and a lie costs them nothing, since every byte is checked under the id by which
//! it was asked for.

mod doubt;
mod feed;
mod statement;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use self::doubt::Doubts;
pub(super) use self::feed::EngineFeeder;
pub(super) use self::statement::Statement;
use super::{Node, NodeError};
use crate::{
    content::{ContentId, InfoHash},
    net::PeerId,
    publish::PublishError,
    sources::{SwarmFile, SwarmPlaces},
    store::{ObjectId, StateTree, Store, StoreError},
    torrent::WholeFile,
};

/// Wait after a piece before it is looked which files are whole: pieces come many at a time.
const GATHER: Duration = Duration::from_secs(1);
/// What is said by others is kept of so many files; what was found here always.
const MOST_TOLD: usize = 100_000;

/// A file of a torrent, by its number.
type Place = (InfoHash, u32);

/// The content of a file of a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Twin {
    pub(super) id: ContentId,
    size: u64,
    /// Whether it was found out here, and not told by somebody.
    own: bool,
    /// The object that was made of the file here, and that is owned because of it.
    object: Option<ObjectId>,
    /// The statement, signed by whoever found it out.
    pub(super) signed: Vec<u8>,
}

/// The map of both, on disk.
#[derive(Debug)]
pub(super) struct Twins {
    rows: StateTree,
    known: Mutex<Known>,
    /// What others said and was of no use.
    doubts: Mutex<Doubts>,
    /// Told of each that is found.
    found: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Known {
    by_place: HashMap<Place, Twin>,
    /// By the id of version 1.
    by_id: HashMap<ContentId, Place>,
}

impl Known {
    fn insert(&mut self, place: Place, twin: Twin) {
        let id = twin.id.to_v1();
        // What was found here takes the place of what somebody said.
        if let Some(old) = self.by_place.insert(place, twin).map(|old| old.id.to_v1())
            && self.by_id.get(&old) == Some(&place)
        {
            self.by_id.remove(&old);
        }
        self.by_id.insert(id, place);
    }
}

impl Twins {
    /// Reads the map.
    pub(super) fn open(store: &Store) -> Result<Self, StoreError> {
        let rows = store.state("twins")?;
        let mut known = Known::default();
        for row in rows.iter() {
            let (key, value) = row?;
            match decode(&key, &value) {
                Some((place, twin)) => known.insert(place, twin),
                None => tracing::warn!("a row of the map of torrents cannot be read"),
            }
        }
        let (known, doubts) = (Mutex::new(known), Mutex::default());
        Ok(Self { rows, known, doubts, found: watch::Sender::new(()) })
    }

    pub(super) fn get(&self, place: Place) -> Option<Twin> {
        self.known().by_place.get(&place).cloned()
    }

    fn put(&self, place: Place, twin: Twin) -> Result<(), StoreError> {
        let (key, value) = encode(place, &twin);
        self.rows.insert(&key, &value)?;
        self.known().insert(place, twin);
        self.found.send_replace(());
        Ok(())
    }

    fn remove(&self, place: Place) -> Result<(), StoreError> {
        self.rows.remove(&encode_key(place))?;
        let mut known = self.known();
        if let Some(twin) = known.by_place.remove(&place) {
            let id = twin.id.to_v1();
            if known.by_id.get(&id) == Some(&place) {
                known.by_id.remove(&id);
            }
        }
        Ok(())
    }

    /// Keeps what `peer` has signed; whether that is news.
    pub(super) fn learn(
        &self,
        peer: PeerId,
        said: Statement,
        signed: &[u8],
    ) -> Result<bool, StoreError> {
        let place = (said.hash, said.file);
        let full = self.known().by_place.len() >= MOST_TOLD;
        let known = self.get(place).is_some() || self.place_of(&said.id).is_some();
        if known || full || self.doubts().refuses(&peer, place, &said.id) {
            return Ok(false);
        }
        let (signed, Statement { id, size, .. }) = (signed.to_vec(), said);
        self.put(place, Twin { id, size, own: false, object: None, signed })?;
        Ok(true)
    }

    /// Those with an object whose torrent is not among `torrents`.
    fn orphans(&self, torrents: &HashSet<InfoHash>) -> Vec<(Place, ObjectId)> {
        let known = self.known();
        let gone = known.by_place.iter().filter(|((hash, _), _)| !torrents.contains(hash));
        gone.filter_map(|(place, twin)| Some((*place, twin.object?))).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SwarmPlaces for Twins {
    fn place_of(&self, id: &ContentId) -> Option<SwarmFile> {
        let known = self.known();
        let (hash, file) = *known.by_id.get(&id.to_v1())?;
        let size = known.by_place.get(&(hash, file))?.size;
        Some(SwarmFile { hash, file, size })
    }
}

fn encode_key((hash, file): Place) -> Vec<u8> {
    [&hash.0[..], &file.to_be_bytes()].concat()
}

/// Whose finding it is, object (0: none), size, length of the id, id, statement.
fn encode(place: Place, twin: &Twin) -> (Vec<u8>, Vec<u8>) {
    let id = twin.id.to_bytes();
    let mut value = vec![u8::from(twin.own)];
    value.extend(twin.object.map_or(0, |object| object.0).to_be_bytes());
    value.extend(twin.size.to_be_bytes());
    value.extend(u16::try_from(id.len()).unwrap_or(u16::MAX).to_be_bytes());
    value.extend(id);
    value.extend(&twin.signed);
    (encode_key(place), value)
}

fn decode(key: &[u8], value: &[u8]) -> Option<(Place, Twin)> {
    let (hash, file) = key.split_first_chunk::<20>()?;
    let (own, rest) = value.split_first()?;
    let (object, rest) = rest.split_first_chunk::<8>()?;
    let (size, rest) = rest.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (id, signed) = rest.split_at_checked(u16::from_be_bytes(*len).into())?;
    let object = Some(u64::from_be_bytes(*object)).filter(|id| *id != 0).map(ObjectId);
    let twin = Twin {
        id: ContentId::from_bytes(id).ok()?,
        size: u64::from_be_bytes(*size),
        own: *own != 0,
        object,
        signed: signed.to_vec(),
    };
    Some(((InfoHash(*hash), u32::from_be_bytes(file.try_into().ok()?)), twin))
}

impl Node {
    /// The content of a file of a torrent, where that is known.
    pub fn content_of(&self, hash: InfoHash, file: u32) -> Option<ContentId> {
        self.inner.twins.get((hash, file)).map(|twin| twin.id)
    }

    /// The same, where nobody has to be believed for it.
    pub(super) fn content_found_here(&self, hash: InfoHash, file: u32) -> Option<ContentId> {
        self.inner.twins.get((hash, file)).filter(|twin| twin.own).map(|twin| twin.id)
    }

    /// As [`Node::content_of`], and waits until it is known.
    pub async fn content_found(&self, hash: InfoHash, file: u32) -> ContentId {
        let mut found = self.inner.twins.found.subscribe();
        loop {
            if let Some(id) = self.content_of(hash, file) {
                return id;
            }
            // The sender lives as long as this node.
            let _ = found.changed().await;
        }
    }

    /// What is known of the content of a torrent's file, signed by whoever found it out.
    pub fn twin_statement(&self, hash: InfoHash, file: u32) -> Option<Vec<u8>> {
        self.inner.twins.get((hash, file)).map(|twin| twin.signed)
    }

    /// Keeps what another node has found out; who that is. None where it is malformed, not signed, or not news.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn learn_twin(&self, signed: &[u8]) -> Result<Option<PeerId>, NodeError> {
        let Some((peer, said)) = Statement::open(signed) else { return Ok(None) };
        Ok(self.inner.twins.learn(peer, said, signed)?.then_some(peer))
    }

    /// Finds out the ids of files as torrents bring them, for as long as the node runs, where they are to be served; and
    /// lets go of those whose torrents are gone.
    pub(super) fn find_twins(&self, serve: bool) {
        let all = self.clone();
        self.tasks().lasting("ids of torrents", move || {
            let node = all.clone();
            async move {
                let cancelled = node.tasks().cancelled();
                tokio::select! {
                    () = node.look_for_twins(serve) => {}
                    () = cancelled => {}
                }
            }
        });
    }

    async fn look_for_twins(&self, serve: bool) {
        // Files that cannot be read or taken in would not be the next time either; there is another try with each start.
        let mut tried = HashSet::new();
        let mut losses = None;
        loop {
            let now = Some(self.torrents().losses());
            if losses != now {
                losses = now;
                tried.clear();
                self.leave_orphans().await;
            }
            self.torrents().pieces_came().await;
            tokio::time::sleep(GATHER).await;
            for file in self.torrents().whole_files().into_iter().filter(|_| serve) {
                let place = (file.hash, file.file);
                // What others say is looked at once there is something to look at.
                let done =
                    |twin: &Twin| twin.own && (twin.object.is_some() || self.serves(&twin.id));
                let known = self.inner.twins.get(place);
                if tried.contains(&place) || known.as_ref().is_some_and(done) {
                    continue;
                }
                match self.find_twin(&file).await {
                    Ok(()) => {}
                    Err(NodeError::Publish(PublishError::Closed)) => return,
                    Err(error) => {
                        tracing::warn!(hash = %file.hash, file = file.file, %error, "no id was found for a file");
                    }
                }
                tried.insert(place);
            }
        }
    }

    fn serves(&self, id: &ContentId) -> bool {
        self.store().object(id).is_ok_and(|object| object.is_some_and(|o| o.is_complete()))
    }

    async fn find_twin(&self, file: &WholeFile) -> Result<(), NodeError> {
        let adopted = self.uploads().adopt(&file.path).await?;
        if !adopted.served {
            tracing::info!(
                hash = %file.hash, file = file.file, id = %adopted.root,
                "the file is not served by its id: it would have to be copied"
            );
        }
        let (hash, number, size) = (file.hash, file.file, file.size);
        let said = Statement { hash, file: number, size, id: adopted.root };
        let signed = said.sign(self.net()).unwrap_or_default();
        let twin = Twin { id: adopted.root, size, own: true, object: adopted.object, signed };
        let node = self.clone();
        let put = move || node.inner.twins.put((hash, number), twin);
        let put = self.tasks().blocking("note an id", put).await;
        put.map_err(|_| PublishError::Closed)??;
        Ok(())
    }

    /// Lets go of the files of torrents that are not here any more.
    async fn leave_orphans(&self) {
        let node = self.clone();
        let leaving = self.tasks().blocking("leave torrents", move || {
            let torrents = node.torrents().with_bytes();
            for (place, object) in node.inner.twins.orphans(&torrents) {
                node.uploads().give_up(object)?;
                node.inner.twins.remove(place)?;
            }
            Ok::<_, NodeError>(())
        });
        if let Ok(Err(error)) = leaving.await {
            tracing::warn!(%error, "files of torrents that are gone are kept");
        }
    }
}

/// As the sources see it.
pub(super) fn places(twins: &Arc<Twins>) -> Arc<dyn SwarmPlaces> {
    twins.clone()
}

#[cfg(test)]
mod tests;
