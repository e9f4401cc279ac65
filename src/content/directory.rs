//! Reading directories, flat or sharded, block by block.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use super::{
    Block, Codec, ContentId, DagError, Metadata, Node, Omissions, hamt,
    node::{parse_slot, slot_width},
};

/// What messages call a block of a HAMT directory.
const SHARD: &str = "HAMT shard";
/// Why an entry is left out whose name can be one of a file.
const TWICE: &str = "another entry has its name";
const MISPLACED: &str = "its name is not where the directory is searched for it";

/// What a directory knows of a child without its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A raw block: certainly a file.
    File,
    /// Any other block: file, directory or symlink, its own bytes tell.
    Unknown,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name; never empty, `.`, `..`, over 255 bytes, or with `/` or NUL in it. Not always UTF-8.
    pub name: OsString,
    /// The child.
    pub cid: ContentId,
    /// Bytes of the blocks below it as the publisher counted them; not the file's size.
    pub tsize: u64,
}

impl Entry {
    /// What is known of the child without its block.
    pub fn kind(&self) -> EntryKind {
        match self.cid.codec() {
            Codec::Raw => EntryKind::File,
            Codec::DagPb | Codec::Other(_) => EntryKind::Unknown,
        }
    }
}

/// The answer to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is there.
    Found(Entry),
    /// It is not, and no missing block could change that.
    Absent,
    /// The shard with this id has to be put in first.
    Need(ContentId),
}

/// A directory that is put together block by block; a flat one is whole with its root.
///
/// Of names that come twice the first is shown, as by other readers. A name in a shard where its hash does
/// not lead cannot be looked up by anyone and is not shown either. What is not shown is told of.
#[derive(Clone, Debug)]
pub struct DirectoryReader {
    meta: Metadata,
    body: Body,
    omitted: Omissions,
}

#[derive(Clone, Debug)]
enum Body {
    /// Sorted by name, each name once.
    Flat(Vec<Entry>),
    Sharded(Box<Sharded>),
}

impl DirectoryReader {
    /// Starts with the root block.
    ///
    /// # Errors
    /// When the block is no directory.
    pub fn new(root: &Block) -> Result<Self, DagError> {
        match Node::decode(root)? {
            Node::Directory { entries, mut omitted, meta } => {
                let mut entries: Vec<_> = entries
                    .into_iter()
                    .map(|(name, cid, tsize)| Entry { name, cid, tsize })
                    .collect();
                entries.sort_by(|a, b| a.name.cmp(&b.name));
                entries.dedup_by(|again, first| {
                    let twice = again.name == first.name;
                    if twice {
                        omitted.add(again.name.as_bytes(), &again.cid, TWICE);
                    }
                    twice
                });
                Ok(Self { meta, body: Body::Flat(entries), omitted })
            }
            Node::Shard { fanout, links, mut omitted, meta } => {
                let mut sharded = Sharded::new(fanout);
                omitted.extend(sharded.add(root.cid(), links, Place { path: 0, depth: 0 })?);
                Ok(Self { meta, body: Body::Sharded(Box::new(sharded)), omitted })
            }
            other => Err(wrong_kind(root, "a directory", &other)),
        }
    }

    /// Mode and mtime of the directory.
    pub fn metadata(&self) -> Metadata {
        self.meta
    }

    /// Entries of the loaded blocks that cannot be shown.
    pub fn omitted(&self) -> &Omissions {
        &self.omitted
    }

    /// Puts a shard in. One that belongs nowhere changes nothing.
    ///
    /// # Errors
    /// When the block is no shard of the same width.
    pub fn insert(&mut self, block: &Block) -> Result<(), DagError> {
        let Body::Sharded(sharded) = &mut self.body else { return Ok(()) };
        let Some(place) = sharded.awaited.get(block.cid()).copied() else { return Ok(()) };
        match Node::decode(block)? {
            Node::Shard { fanout, links, omitted, .. } if fanout == sharded.fanout => {
                let misplaced = sharded.add(block.cid(), links, place)?;
                self.omitted.extend(omitted);
                self.omitted.extend(misplaced);
                Ok(())
            }
            Node::Shard { fanout, .. } => {
                let reason = format!("fan-out {fanout} below one of {}", sharded.fanout);
                Err(DagError::Malformed { cid: *block.cid(), what: SHARD, reason })
            }
            other => Err(wrong_kind(block, "a directory shard", &other)),
        }
    }

    /// Shards that are known of and not in yet, in the order of the hashes below them.
    pub fn missing(&self) -> Vec<ContentId> {
        let Body::Sharded(sharded) = &self.body else { return Vec::new() };
        let mut missing: Vec<_> = sharded.awaited.iter().collect();
        missing.sort_unstable_by_key(|(_, place)| (place.path, place.depth));
        missing.into_iter().map(|(cid, _)| *cid).collect()
    }

    /// Finds a name, descending only where its hash leads.
    pub fn lookup(&self, name: impl AsRef<OsStr>) -> Lookup {
        let name = name.as_ref();
        match &self.body {
            Body::Flat(entries) => {
                match entries.binary_search_by(|entry| entry.name.as_os_str().cmp(name)) {
                    Ok(at) => Lookup::Found(entries[at].clone()),
                    Err(_) => Lookup::Absent,
                }
            }
            Body::Sharded(sharded) => sharded.lookup(name),
        }
    }

    /// The shards that lead to a name, from the root on, as far as they are in; a flat directory has none.
    pub fn shards_to(&self, name: impl AsRef<OsStr>) -> Vec<ContentId> {
        match &self.body {
            Body::Flat(_) => Vec::new(),
            Body::Sharded(sharded) => sharded.way_to(name.as_ref()).0,
        }
    }

    /// All entries of the blocks that are in, sorted by the bytes of their names.
    pub fn entries(&self) -> Vec<Entry> {
        match &self.body {
            Body::Flat(entries) => entries.clone(),
            Body::Sharded(sharded) => sharded.entries(),
        }
    }
}

fn wrong_kind(block: &Block, expected: &'static str, found: &Node) -> DagError {
    DagError::Kind { cid: *block.cid(), expected, found: found.kind() }
}

/// Where a shard hangs: its distance from the root shard, and the bits of the hash that lead to it.
#[derive(Clone, Copy, Debug)]
struct Place {
    path: u64,
    depth: u32,
}

/// What a slot of a shard holds.
#[derive(Clone, Debug)]
enum Slot {
    Entry(Entry),
    Shard(ContentId),
}

/// The shards of a HAMT directory.
#[derive(Clone, Debug)]
struct Sharded {
    fanout: u32,
    /// The shard at the root.
    root: Option<ContentId>,
    /// Slots in use of each shard that is in, sorted by their number. A shard has one place: what lies in it
    /// belongs under one run of hash bits only. Sharing would let few blocks pretend to be any number of shards.
    shards: HashMap<ContentId, Vec<(u32, Slot)>>,
    /// Shards that are linked to and not in.
    awaited: HashMap<ContentId, Place>,
}

impl Sharded {
    fn new(fanout: u32) -> Self {
        Self { fanout, root: None, shards: HashMap::new(), awaited: HashMap::new() }
    }

    fn add(
        &mut self,
        cid: &ContentId,
        links: Vec<(Vec<u8>, ContentId, u64)>,
        place: Place,
    ) -> Result<Omissions, DagError> {
        let malformed = |reason: &str| DagError::Malformed {
            cid: *cid,
            what: SHARD,
            reason: reason.to_owned(),
        };
        let width = slot_width(self.fanout);
        let (mut slots, mut misplaced) = (Vec::with_capacity(links.len()), Omissions::default());
        let mut below = HashMap::new();
        for (mut name, child, tsize) in links {
            // The decoder has seen to it that the digits are there and name a slot.
            let number = parse_slot(&name[..width]).and_then(|n| u32::try_from(n).ok());
            let number = number.ok_or_else(|| malformed("a link names no slot"))?;
            let name = name.split_off(width);
            if !name.is_empty() {
                if self.belongs(&name, number, place) {
                    let name = OsString::from_vec(name);
                    slots.push((number, Slot::Entry(Entry { name, cid: child, tsize })));
                } else {
                    misplaced.add(&name, &child, MISPLACED);
                }
                continue;
            }
            let Some(path) = hamt::descend(place.path, place.depth, number, self.fanout) else {
                return Err(malformed("the tree is deeper than the hash is long"));
            };
            let known = self.awaited.contains_key(&child) || self.shards.contains_key(&child);
            let place = Place { path, depth: place.depth + 1 };
            if known || child == *cid || below.insert(child, place).is_some() {
                return Err(malformed("a shard is linked to twice"));
            }
            slots.push((number, Slot::Shard(child)));
        }
        slots.sort_unstable_by_key(|(number, _)| *number);
        self.root.get_or_insert(*cid);
        self.awaited.remove(cid);
        self.awaited.extend(below);
        self.shards.insert(*cid, slots);
        Ok(misplaced)
    }

    /// Whether the hash of `name` leads to this slot of the shard at `place`.
    fn belongs(&self, name: &[u8], slot: u32, place: Place) -> bool {
        let hash = hamt::hash(name);
        hamt::is_below(hash, place.path, place.depth, self.fanout)
            && hamt::slot(hash, place.depth, self.fanout) == Some(slot)
    }

    fn lookup(&self, name: &OsStr) -> Lookup {
        self.way_to(name).1
    }

    /// The shards that a name's hash leads through, and what is at the end.
    fn way_to(&self, name: &OsStr) -> (Vec<ContentId>, Lookup) {
        let hash = hamt::hash(name.as_bytes());
        let mut at = self.root;
        let mut way = Vec::new();
        while let Some(cid) = at {
            let Some(slots) = self.shards.get(&cid) else { return (way, Lookup::Need(cid)) };
            // As many levels as there are bits in the hash.
            let depth = u32::try_from(way.len()).unwrap_or(u32::MAX);
            way.push(cid);
            let Some(wanted) = hamt::slot(hash, depth, self.fanout) else { break };
            let Ok(found) = slots.binary_search_by_key(&wanted, |(number, _)| *number) else {
                break;
            };
            match &slots[found].1 {
                Slot::Entry(entry) if entry.name == name => {
                    return (way, Lookup::Found(entry.clone()));
                }
                Slot::Entry(_) => break,
                Slot::Shard(child) => at = Some(*child),
            }
        }
        (way, Lookup::Absent)
    }

    fn entries(&self) -> Vec<Entry> {
        let slots = self.shards.values().flatten();
        let mut entries: Vec<_> = slots
            .filter_map(|(_, slot)| match slot {
                Slot::Entry(entry) => Some(entry.clone()),
                Slot::Shard(_) => None,
            })
            .collect();
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        entries
    }
}
