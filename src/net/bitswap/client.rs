//! What is wanted from one peer. Pure state: no network, no clock.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use libp2p::PeerId;
use tokio::sync::mpsc;

use super::wire::{Action, Entry, Version};
use crate::{
    content::{ContentId, Multihash},
    net::{Asker, BlockReply, WantError},
};

/// Most wants that a peer is told of at a time: Kubo keeps no more of them. The rest wait here.
const MAX_TOLD: usize = 1024;

/// Most questions about presence among them: whoever waits for a block goes first, and has room at the peer.
const MAX_TOLD_HAVES: usize = 512;

/// Wants that are told together when the list at the peer was full, so that not each block costs a message.
const REFILL: usize = 128;

/// Most entries of one message; with ids of usual length some 50 KiB.
const MAX_ENTRIES: usize = 1024;

/// Answers and cancels that are remembered: blocks may still be under way for them.
const RECENT: usize = 4096;

/// A peer that owes blocks and sends this many in a row that were never asked for is lying.
const UNWANTED_IN_DEBT: usize = 16;

/// A peer that owes nothing and sends this many blocks that were never asked for is flooding.
const UNWANTED_FLOOD: usize = 4096;

/// Where answers about presence go.
pub(super) type HaveSender = mpsc::UnboundedSender<(Multihash, bool)>;

/// The wants of one peer.
#[derive(Debug)]
pub(super) struct Client {
    peer: PeerId,
    wants: HashMap<Multihash, Want>,
    /// Blocks and questions about presence that the peer was not told of, each in the order of asking. Both may hold
    /// hashes whose want is gone.
    untold_blocks: VecDeque<Multihash>,
    untold_haves: VecDeque<Multihash>,
    /// Wants that the peer still has and nobody here any more.
    cancels: BTreeMap<Multihash, ContentId>,
    /// Wants that the peer was told of.
    told: usize,
    /// How many of them are questions about presence only.
    told_haves: usize,
    next_order: u64,
    /// The next message starts a stream and replaces what the peer knew.
    fresh: bool,
    recent: Recent,
    unwanted: usize,
}

#[derive(Debug)]
struct Want {
    /// The id that the peer is asked by.
    id: ContentId,
    order: u64,
    blocks: Vec<Waiter>,
    haves: Vec<HaveSender>,
    told: Told,
    /// The peer was asked for the block, on this stream or one before it.
    owed: bool,
}

/// Who waits for a block, and by which id it was asked for.
#[derive(Debug)]
pub(super) struct Waiter {
    /// The id to answer with.
    pub(super) id: ContentId,
    /// Where the answer goes.
    pub(super) asker: Arc<dyn Asker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    No,
    Have,
    Block,
}

/// A message to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    /// Whether it replaces what the peer knew.
    pub(super) full: bool,
    /// Cancels first, then wants.
    pub(super) entries: Vec<Entry>,
}

impl Client {
    /// Nothing is wanted from `peer` yet.
    pub(super) fn new(peer: PeerId) -> Self {
        Self {
            peer,
            wants: HashMap::new(),
            untold_blocks: VecDeque::new(),
            untold_haves: VecDeque::new(),
            cancels: BTreeMap::new(),
            told: 0,
            told_haves: 0,
            next_order: 0,
            fresh: true,
            recent: Recent::default(),
            unwanted: 0,
        }
    }

    /// Whether nothing is wanted.
    pub(super) fn is_empty(&self) -> bool {
        self.wants.is_empty()
    }

    /// Blocks that the peer was asked for and did not answer.
    pub(super) fn owed(&self) -> usize {
        self.told - self.told_haves
    }

    /// Whether a message is to be sent.
    pub(super) fn has_work(&self) -> bool {
        !self.cancels.is_empty()
            || (!self.untold_blocks.is_empty() && self.room() > 0)
            || (!self.untold_haves.is_empty() && self.room_for_haves() > 0)
    }

    /// Asks for a block.
    pub(super) fn want_block(&mut self, id: ContentId, asker: Arc<dyn Asker>) {
        self.want(id).blocks.push(Waiter { id, asker });
        self.tell(&id, Told::Block);
    }

    /// Asks whether the peer has a block.
    pub(super) fn want_have(&mut self, id: ContentId, replies: HaveSender) {
        self.want(id).haves.push(replies);
        self.tell(&id, Told::Have);
    }

    fn want(&mut self, id: ContentId) -> &mut Want {
        let order = self.next_order;
        self.next_order += 1;
        self.wants.entry(*id.hash()).or_insert(Want {
            id,
            order,
            blocks: Vec::new(),
            haves: Vec::new(),
            told: Told::No,
            owed: false,
        })
    }

    fn tell(&mut self, id: &ContentId, at_least: Told) {
        if self.wants.get(id.hash()).is_some_and(|want| want.told < at_least) {
            let untold = match at_least {
                Told::Block => &mut self.untold_blocks,
                Told::No | Told::Have => &mut self.untold_haves,
            };
            // Wants that were given up leave their hashes behind; more than half of them are not kept.
            if untold.len() > 2 * self.wants.len() + MAX_ENTRIES {
                untold.retain(|hash| self.wants.contains_key(hash));
            }
            untold.push_back(*id.hash());
        }
    }

    /// Gives up the blocks that `asker` wants; others may go on waiting for them.
    pub(super) fn cancel(&mut self, ids: &[ContentId], asker: &Arc<dyn Asker>) {
        for id in ids {
            if let Some(want) = self.wants.get_mut(id.hash()) {
                want.blocks.retain(|w| w.id != *id || !Arc::ptr_eq(&w.asker, asker));
                self.drop_if_idle(id.hash());
            }
        }
    }

    /// Gives up asking about presence on behalf of `replies`.
    pub(super) fn cancel_haves(&mut self, ids: &[ContentId], replies: &HaveSender) {
        for id in ids {
            if let Some(want) = self.wants.get_mut(id.hash()) {
                want.haves.retain(|waiter| !waiter.same_channel(replies));
                self.drop_if_idle(id.hash());
            }
        }
    }

    fn drop_if_idle(&mut self, hash: &Multihash) {
        let idle = |want: &Want| want.blocks.is_empty() && want.haves.is_empty();
        if self.wants.get(hash).is_some_and(idle)
            && let Some(want) = self.remove(hash)
            && want.told > Told::No
        {
            self.cancels.insert(*hash, want.id);
        }
    }

    fn remove(&mut self, hash: &Multihash) -> Option<Want> {
        let want = self.wants.remove(hash)?;
        if want.told > Told::No {
            self.told -= 1;
            self.told_haves -= usize::from(want.told == Told::Have);
            self.recent.insert(hash);
        }
        Some(want)
    }

    fn room(&self) -> usize {
        let room = MAX_TOLD.saturating_sub(self.told);
        if room < REFILL.min(self.untold_blocks.len()) { 0 } else { room }
    }

    fn room_for_haves(&self) -> usize {
        let all = MAX_TOLD.saturating_sub(self.told + self.untold_blocks.len());
        let room = all.min(MAX_TOLD_HAVES.saturating_sub(self.told_haves));
        if room < REFILL.min(self.untold_haves.len()) { 0 } else { room }
    }

    /// The next message to a peer that speaks `version`, if there is anything to say.
    pub(super) fn next_message(&mut self, version: Version) -> Option<Outgoing> {
        let mut wants = Vec::new();
        let mut room = self.room();
        while wants.len() < MAX_ENTRIES
            && room > 0
            && let Some(hash) = self.untold_blocks.pop_front()
        {
            let before = self.told;
            wants.extend(self.tell_one(&hash));
            room -= self.told - before;
        }
        if version < Version::V120 {
            self.refuse_haves();
        }
        let mut room = self.room_for_haves();
        while wants.len() < MAX_ENTRIES
            && room > 0
            && let Some(hash) = self.untold_haves.pop_front()
        {
            let before = self.told;
            wants.extend(self.tell_one(&hash));
            room -= self.told - before;
        }
        let mut entries = Vec::with_capacity(wants.len() + self.cancels.len());
        while entries.len() + wants.len() < MAX_ENTRIES
            && let Some((_, id)) = self.cancels.pop_first()
        {
            entries.push(Entry { id, priority: 0, action: Action::Cancel });
        }
        entries.extend(wants);
        if entries.is_empty() {
            return None;
        }
        Some(Outgoing { full: std::mem::take(&mut self.fresh), entries })
    }

    /// Tells the peer of one want, unless it knows.
    fn tell_one(&mut self, hash: &Multihash) -> Option<Entry> {
        let want = self.wants.get_mut(hash)?;
        let block = !want.blocks.is_empty();
        let telling = if block { Told::Block } else { Told::Have };
        if want.told >= telling {
            return None;
        }
        self.told += usize::from(want.told == Told::No);
        self.told_haves += usize::from(telling == Told::Have);
        self.told_haves -= usize::from(want.told == Told::Have);
        want.told = telling;
        want.owed |= block;
        // The want replaces the one that was to be taken back. Kubo reads a message that has both as the cancel alone,
        // and one that comes later would take this want back.
        self.cancels.remove(hash);
        // One priority for all: the peer serves them in the order of asking.
        let action = Action::Want { block, send_dont_have: true };
        Some(Entry { id: want.id, priority: 1, action })
    }

    /// The peer speaks no version in which it could be asked, so nothing is known of what it has.
    fn refuse_haves(&mut self) {
        for hash in std::mem::take(&mut self.untold_haves) {
            let Some(want) = self.wants.get_mut(&hash) else { continue };
            for waiter in want.haves.drain(..) {
                let _ = waiter.send((hash, false));
            }
            self.drop_if_idle(&hash);
        }
    }

    /// A new stream was opened: what is still wanted has to be told again.
    pub(super) fn restart(&mut self) {
        self.fresh = true;
        (self.told, self.told_haves) = (0, 0);
        self.cancels.clear();
        let mut order: Vec<_> = self.wants.iter().map(|(hash, want)| (want.order, *hash)).collect();
        order.sort_unstable_by_key(|(order, _)| *order);
        let is_block =
            |hash: &Multihash| self.wants.get(hash).is_some_and(|w| !w.blocks.is_empty());
        (self.untold_blocks, self.untold_haves) =
            order.into_iter().map(|(_, hash)| hash).partition(is_block);
        for want in self.wants.values_mut() {
            want.told = Told::No;
        }
    }

    /// The peer says whether it has a block.
    pub(super) fn on_presence(&mut self, id: &ContentId, has: bool) {
        let Some(want) = self.wants.get_mut(id.hash()) else { return };
        for waiter in want.haves.drain(..) {
            let _ = waiter.send((*id.hash(), has));
        }
        if !has {
            for waiter in want.blocks.drain(..) {
                waiter.answer(self.peer, Err(WantError::DontHave));
            }
            if want.told > Told::No {
                // Kubo keeps a want that it answered with DONT_HAVE, and it keeps only so many.
                self.cancels.insert(*id.hash(), want.id);
            }
        }
        if want.blocks.is_empty() && want.haves.is_empty() {
            self.remove(id.hash());
        }
    }

    /// A block came: who waits for it. None when nobody does; see [`Client::on_unwanted`] then.
    pub(super) fn on_block(&mut self, hash: &Multihash) -> Option<Vec<Waiter>> {
        let want = self.remove(hash)?;
        self.unwanted = 0;
        for waiter in &want.haves {
            let _ = waiter.send((*hash, true));
        }
        Some(want.blocks)
    }

    /// A block came that nobody waits for; whether the peer is lying.
    ///
    /// The id of a block is computed from its bytes, so wrong bytes for a want look like a block that was never
    /// asked for. A block that was asked for lately (given up, or sent over two connections) is forgiven as often as it
    /// was.
    /// Of others, a peer that owes blocks may send fewer in a row than it owes, and fewer than
    /// [`UNWANTED_IN_DEBT`]; one that owes nothing may send fewer than [`UNWANTED_FLOOD`].
    pub(super) fn on_unwanted(&mut self, hash: &Multihash) -> bool {
        if self.recent.remove(hash) {
            return false;
        }
        self.unwanted += 1;
        let owed = self.wants.values().filter(|want| want.owed).count();
        let limit = if owed == 0 { UNWANTED_FLOOD } else { owed.min(UNWANTED_IN_DEBT) };
        self.unwanted >= limit
    }

    /// Answers all wants with `error`.
    pub(super) fn fail(&mut self, error: WantError) {
        for (hash, want) in self.wants.drain() {
            for waiter in want.haves {
                let _ = waiter.send((hash, false));
            }
            for waiter in want.blocks {
                waiter.answer(self.peer, Err(error));
            }
        }
        self.untold_blocks.clear();
        self.untold_haves.clear();
        self.cancels.clear();
        (self.told, self.told_haves) = (0, 0);
    }
}

impl Waiter {
    /// Gives the answer.
    pub(super) fn answer(self, peer: PeerId, result: Result<crate::content::Block, WantError>) {
        self.asker.answer(BlockReply { peer, id: self.id, result });
    }
}

/// Hashes of the last answers and cancels, by eight bytes of their digests: a collision only forgives a block.
#[derive(Debug, Default)]
struct Recent {
    order: VecDeque<u64>,
    known: HashMap<u64, Times>,
}

/// How often one hash is in the order, and how many of these, the oldest first, were made use of.
#[derive(Debug, Default)]
struct Times {
    there: usize,
    used: usize,
}

impl Recent {
    fn key(hash: &Multihash) -> u64 {
        hash.digest().iter().rev().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
    }

    fn insert(&mut self, hash: &Multihash) {
        let key = Self::key(hash);
        self.known.entry(key).or_default().there += 1;
        self.order.push_back(key);
        if self.order.len() > RECENT
            && let Some(old) = self.order.pop_front()
            && let Some(times) = self.known.get_mut(&old)
        {
            times.there -= 1;
            times.used = times.used.saturating_sub(1);
            if times.there == 0 {
                self.known.remove(&old);
            }
        }
    }

    /// Whether it was there once more than it was taken out. Its place in the order stays until it is the oldest.
    fn remove(&mut self, hash: &Multihash) -> bool {
        let Some(times) = self.known.get_mut(&Self::key(hash)) else { return false };
        let there = times.used < times.there;
        times.used += usize::from(there);
        there
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::content::Block;

    fn id(n: usize) -> ContentId {
        *Block::raw(n.to_le_bytes().to_vec().into()).cid()
    }

    type Replies = mpsc::UnboundedReceiver<BlockReply>;

    fn asker() -> (Arc<dyn Asker>, Replies) {
        let (sender, replies) = mpsc::unbounded_channel();
        (Arc::new(sender), replies)
    }

    fn wanting(ids: impl IntoIterator<Item = usize>) -> (Client, Arc<dyn Asker>, Replies) {
        let mut client = Client::new(PeerId::random());
        let (asker, replies) = asker();
        for n in ids {
            client.want_block(id(n), asker.clone());
        }
        (client, asker, replies)
    }

    fn told(message: Option<Outgoing>) -> Vec<(ContentId, bool)> {
        let entries = message.map(|message| message.entries).unwrap_or_default();
        entries.iter().map(|entry| (entry.id, entry.action != Action::Cancel)).collect()
    }

    fn tell(client: &mut Client) -> Vec<(ContentId, bool)> {
        told(client.next_message(Version::V120))
    }

    #[test]
    fn a_group_is_one_message_and_only_the_first_is_full() {
        let (mut client, asker, _replies) = wanting(0..10);
        let message = client.next_message(Version::V120).unwrap();
        assert!(message.full);
        assert_eq!(message.entries.len(), 10);
        assert_eq!(client.next_message(Version::V120), None);
        client.want_block(id(11), asker);
        assert!(!client.next_message(Version::V120).unwrap().full);
    }

    #[test]
    fn a_peer_is_told_of_no_more_than_it_keeps_and_of_the_rest_in_groups() {
        let (mut client, _asker, _replies) = wanting(0..3000);
        assert_eq!(tell(&mut client).len(), MAX_TOLD);
        for n in 0..REFILL {
            assert!(!client.has_work());
            client.on_block(id(n).hash()).unwrap();
        }
        assert_eq!(tell(&mut client).len(), REFILL);
        for n in REFILL..3000 {
            client.on_block(id(n).hash()).unwrap();
            client.next_message(Version::V120);
        }
        assert!(client.is_empty() && !client.has_work());
    }

    #[test]
    fn only_what_was_told_and_not_delivered_is_cancelled() {
        let (mut client, asker, _replies) = wanting(0..3);
        tell(&mut client);
        client.on_block(id(0).hash()).unwrap();
        client.want_block(id(3), asker.clone());
        client.cancel(&[id(0), id(1), id(3), id(9)], &asker);
        assert_eq!(tell(&mut client), [(id(1), false)]);
    }

    #[test]
    fn who_gives_up_a_block_does_not_take_it_from_another() {
        let (mut client, first, mut given_up) = wanting([1]);
        let (second, mut kept) = asker();
        client.want_block(id(1), second);
        tell(&mut client);
        client.cancel(&[id(1)], &first);
        assert_eq!(tell(&mut client), []);
        client.on_presence(&id(1), false);
        assert_eq!(kept.try_recv().unwrap().result, Err(WantError::DontHave));
        assert!(given_up.try_recv().is_err());
    }

    #[test]
    fn dont_have_answers_and_is_cancelled_at_the_peer() {
        let (mut client, _asker, mut replies) = wanting([1]);
        tell(&mut client);
        client.on_presence(&id(1), false);
        assert_eq!(replies.try_recv().unwrap().result, Err(WantError::DontHave));
        assert_eq!(tell(&mut client), [(id(1), false)]);
        assert!(client.is_empty());
    }

    #[test]
    fn a_new_stream_is_told_everything_again_in_order() {
        let (mut client, asker, _replies) = wanting(0..5);
        tell(&mut client);
        client.on_block(id(2).hash()).unwrap();
        client.cancel(&[id(3)], &asker);
        client.restart();
        let message = client.next_message(Version::V120).unwrap();
        assert!(message.full);
        assert_eq!(told(Some(message)), [(id(0), true), (id(1), true), (id(4), true)]);
    }

    #[test]
    fn a_block_wins_over_a_have_for_the_same_id() {
        let mut client = Client::new(PeerId::random());
        let (haves, mut has) = mpsc::unbounded_channel();
        client.want_have(id(1), haves);
        assert_eq!(tell(&mut client).len(), 1);
        client.want_block(id(1), asker().0);
        let message = client.next_message(Version::V120).unwrap();
        assert_eq!(message.entries[0].action, Action::Want { block: true, send_dont_have: true });
        assert_eq!(client.on_block(id(1).hash()).unwrap().len(), 1);
        assert_eq!(has.try_recv().unwrap(), (*id(1).hash(), true));
    }

    #[test]
    fn old_versions_are_not_asked_about_presence() {
        let mut client = Client::new(PeerId::random());
        let (haves, mut has) = mpsc::unbounded_channel();
        client.want_have(id(1), haves);
        assert_eq!(client.next_message(Version::V110), None);
        assert_eq!(has.try_recv().unwrap(), (*id(1).hash(), false));
        assert!(client.is_empty());
    }

    #[test]
    fn one_block_never_asked_for_is_a_lie_where_one_is_owed() {
        let (mut client, _asker, _replies) = wanting([1]);
        tell(&mut client);
        assert!(client.on_unwanted(id(2).hash()));
    }

    #[test]
    fn sixteen_in_a_row_are_a_lie_and_a_wanted_block_between_them_makes_good() {
        let (mut client, _asker, _replies) = wanting(0..100);
        tell(&mut client);
        for n in 1000..1015 {
            assert!(!client.on_unwanted(id(n).hash()));
        }
        client.on_block(id(0).hash()).unwrap();
        for n in 2000..2015 {
            assert!(!client.on_unwanted(id(n).hash()));
        }
        assert!(client.on_unwanted(id(2015).hash()));
    }

    #[test]
    fn a_block_that_was_given_up_is_forgiven_once() {
        let (mut client, asker, _replies) = wanting([1, 2]);
        tell(&mut client);
        client.cancel(&[id(1)], &asker);
        assert!(!client.on_unwanted(id(1).hash()));
        assert!(client.on_unwanted(id(1).hash()));
    }

    #[test]
    fn who_owes_nothing_may_send_some_blocks_but_not_thousands() {
        let (mut client, _asker, _replies) = wanting([]);
        for n in 1..UNWANTED_FLOOD {
            assert!(!client.on_unwanted(id(n).hash()));
        }
        assert!(client.on_unwanted(id(0).hash()));
    }

    #[test]
    fn wants_that_come_and_go_leave_nothing_behind() {
        let (mut client, asker, _replies) = wanting([]);
        for n in 0..20_000 {
            client.want_block(id(n), asker.clone());
            client.cancel(&[id(n)], &asker);
        }
        assert!(client.is_empty());
        assert!(client.untold_blocks.len() <= 2 * MAX_ENTRIES);
        assert_eq!(client.next_message(Version::V120), None);
    }

    #[test]
    fn the_memory_of_answers_is_bounded() {
        let (mut client, _asker, _replies) = wanting(0..10_000);
        for n in 0..10_000 {
            client.next_message(Version::V120);
            client.on_block(id(n).hash()).unwrap();
        }
        assert!(client.recent.order.len() <= RECENT && client.recent.known.len() <= RECENT);
    }

    #[test]
    fn a_want_that_is_given_up_and_taken_up_again_is_not_cancelled_besides() {
        let (mut client, asker, _replies) = wanting(0..3);
        tell(&mut client);
        client.cancel(&[id(1), id(2)], &asker);
        client.want_block(id(1), asker.clone());
        assert_eq!(tell(&mut client), [(id(2), false), (id(1), true)]);
        client.on_presence(&id(0), false);
        client.want_block(id(0), asker);
        assert_eq!(tell(&mut client), [(id(0), true)]);
        assert_eq!(client.next_message(Version::V120), None);
    }

    #[test]
    fn a_cancel_that_has_no_room_yet_does_not_take_a_later_want_back() {
        let (mut client, asker, _replies) = wanting(0..1000);
        tell(&mut client);
        let all: Vec<_> = (0..1000).map(id).collect();
        client.cancel(&all, &asker);
        all.iter().for_each(|id| client.want_block(*id, asker.clone()));
        let mut wanted: HashMap<ContentId, bool> = HashMap::new();
        while let Some(message) = client.next_message(Version::V120) {
            wanted.extend(told(Some(message)));
        }
        assert!(wanted.len() == 1000 && wanted.values().all(|wanted| *wanted));
    }

    #[test]
    fn blocks_go_before_questions_and_these_never_fill_the_list() {
        let mut client = Client::new(PeerId::random());
        let (haves, _has) = mpsc::unbounded_channel();
        for n in 0..2000 {
            client.want_have(id(n), haves.clone());
        }
        assert_eq!(tell(&mut client).len(), MAX_TOLD_HAVES);
        assert!(!client.has_work());
        let (asker, _replies) = asker();
        for n in 5000..5010 {
            client.want_block(id(n), asker.clone());
        }
        assert!(client.has_work());
        assert_eq!(tell(&mut client), (5000..5010).map(|n| (id(n), true)).collect::<Vec<_>>());
        for n in 0..REFILL {
            client.on_presence(&id(n), true);
        }
        client.want_block(id(6000), asker);
        let next = tell(&mut client);
        assert_eq!((next.len(), next[0]), (1 + REFILL, (id(6000), true)));
        for n in 0..2000 {
            client.on_presence(&id(n), false);
            client.next_message(Version::V120);
        }
        assert_eq!((client.told, client.told_haves), (11, 0));
    }

    #[test]
    fn a_block_that_was_given_up_twice_is_forgiven_twice() {
        let (mut client, asker, _replies) = wanting([1, 2]);
        tell(&mut client);
        for _ in 0..2 {
            client.cancel(&[id(1)], &asker);
            tell(&mut client);
            client.want_block(id(1), asker.clone());
            tell(&mut client);
        }
        client.cancel(&[id(1)], &asker);
        for _ in 0..3 {
            assert!(!client.on_unwanted(id(1).hash()));
        }
        assert!(client.on_unwanted(id(1).hash()));
    }

    #[test]
    fn a_new_stream_does_not_make_good_what_the_peer_owes() {
        let (mut client, _asker, _replies) = wanting([1]);
        tell(&mut client);
        client.restart();
        assert!(client.on_unwanted(id(2).hash()));
    }
}
