//! What is known of the DHT right now: the places of which every peer is known, and these peers.
//!
//! A lookup names the peers that are closest to a place, so it tells of everything that is nearer than the last of
//! them that there is nobody else. For another key in that neighbourhood the same peers may be the closest, which needs
//! no second lookup: 1,000 nodes are known after some hundred lookups, however many keys there are.

use super::keyspace::{Id, Prefix};

/// Peers that a record is put on, and that a lookup names.
pub(in crate::net) const CLOSEST: usize = 20;
/// Seconds that the knowledge of a place is good for. Half of the nodes of the public DHT stay for less than some hours;
/// a wrong guess costs one of twenty copies.
const VALID: u64 = 600;
/// The same after a lookup that found fewer than [`CLOSEST`]: a DHT that has just begun may grow fast.
const VALID_SMALL: u64 = 30;
/// Further bits, behind the first in which the last peer of a lookup differs, whose places are kept: each next one tells
/// half as much.
const FINER: u8 = 6;
/// Covered places that are kept: each lookup adds up to seven, most of which others take in.
const MAX_COVERS: usize = 4_096;

/// Names a peer.
pub(super) type PeerNo = u32;

/// A place of which all peers are known.
#[derive(Clone, Copy, Debug)]
struct Cover {
    prefix: Prefix,
    until: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// Those in covered places, by their own place.
    peers: Vec<(Id, PeerNo)>,
    /// Disjoint, by place.
    covers: Vec<Cover>,
    /// When the first cover ends.
    next_end: u64,
    few: Option<Few>,
}

/// The last lookup that found fewer than it may name.
#[derive(Debug)]
struct Few {
    target: Id,
    found: Vec<(Id, PeerNo)>,
    /// These are all there are.
    everybody: bool,
}

impl Map {
    /// Takes in what a lookup of `target` found, the closest first. Gives those that were on the map and are no more.
    pub(super) fn learn(&mut self, target: Id, found: &[(Id, PeerNo)], now: u64) -> Vec<PeerNo> {
        let mut gone = Vec::new();
        let Some((furthest, _)) = found.last() else { return gone };
        let few = found.len() < CLOSEST;
        let until = now + if few { VALID_SMALL } else { VALID };
        if !few {
            self.few = None;
        } else if self.is_everybody(target, found) {
            self.cover(Prefix::ROOT, found, until, &mut gone);
            return gone;
        }
        for prefix in nearer_than(target, target.xor(*furthest)) {
            self.cover(prefix, found, until, &mut gone);
        }
        while self.covers.len() > MAX_COVERS
            && let Some(first) = self.covers.iter().min_by_key(|cover| cover.until).copied()
        {
            self.expire(first.until, &mut gone);
        }
        gone
    }

    /// Whether a lookup that found fewer than it may name has found all there are: one at the other end of the space
    /// found the same. By itself it may only have missed those that did not answer.
    fn is_everybody(&mut self, target: Id, found: &[(Id, PeerNo)]) -> bool {
        let mut found = found.to_vec();
        found.sort_unstable();
        if let Some(few) = &mut self.few
            && few.found == found
        {
            few.everybody |= !Prefix::of(few.target, 1).contains(target);
            return few.everybody;
        }
        self.few = Some(Few { target, found, everybody: false });
        false
    }

    /// Bits of the largest place that a lookup tells everything of.
    pub(super) fn depth(target: Id, found: &[(Id, PeerNo)]) -> Option<u8> {
        let (id, _) = found.last()?;
        nearer_than(target, target.xor(*id)).next().map(Prefix::len)
    }

    fn cover(
        &mut self,
        prefix: Prefix,
        found: &[(Id, PeerNo)],
        until: u64,
        gone: &mut Vec<PeerNo>,
    ) {
        let mut inside: Vec<_> =
            found.iter().filter(|(id, _)| prefix.contains(*id)).copied().collect();
        inside.sort_unstable();
        let old = self.peers_in(prefix);
        gone.extend(self.peers[old.clone()].iter().filter(|p| !inside.contains(p)).map(|p| p.1));
        self.peers.splice(old, inside);
        let at = self.covers.partition_point(|cover| cover.prefix.first() < prefix.first());
        let around = [at.checked_sub(1), Some(at)].into_iter().flatten();
        if around.filter_map(|at| self.covers.get(at)).any(|cover| cover.prefix.covers(prefix)) {
            // The larger place ends when it did: the rest of it was not seen again.
            if self.covers.get(at).is_none_or(|cover| cover.prefix != prefix) {
                return;
            }
        }
        let under =
            self.covers[at..].iter().take_while(|cover| prefix.covers(cover.prefix)).count();
        self.covers.splice(at..at + under, [Cover { prefix, until }]);
        self.next_end = self.next_end.min(until);
    }

    /// Forgets what is too old by `now`; gives the peers that this concerns.
    pub(super) fn sweep(&mut self, now: u64) -> Vec<PeerNo> {
        let mut gone = Vec::new();
        if self.next_end <= now {
            self.expire(now, &mut gone);
        }
        gone
    }

    fn expire(&mut self, now: u64, gone: &mut Vec<PeerNo>) {
        let old: Vec<Prefix> =
            self.covers.iter().filter(|cover| cover.until <= now).map(|c| c.prefix).collect();
        self.covers.retain(|cover| cover.until > now);
        for prefix in old {
            let range = self.peers_in(prefix);
            gone.extend(self.peers.drain(range).map(|(_, peer)| peer));
        }
        self.next_end = self.covers.iter().map(|cover| cover.until).min().unwrap_or(u64::MAX);
    }

    /// Takes out a peer that did not answer; the next one takes its place.
    pub(super) fn forget(&mut self, id: Id) {
        if let Ok(at) = self.peers.binary_search_by_key(&id, |(id, _)| *id) {
            self.peers.remove(at);
        }
    }

    /// Whether the peer at this place is on the map.
    pub(super) fn has(&self, id: Id) -> bool {
        self.peers.binary_search_by_key(&id, |(id, _)| *id).is_ok()
    }

    /// The peers that are closest to `id`, in `peers`; where that is not known, the nearest place to look at.
    pub(super) fn closest(&self, id: Id, peers: &mut Vec<(Id, PeerNo)>) -> Result<(), Prefix> {
        peers.clear();
        self.walk(Prefix::ROOT, &self.covers, &self.peers, id, peers)?;
        // All that were there did not answer: somebody may have come since.
        if peers.is_empty() { Err(Prefix::ROOT) } else { Ok(()) }
    }

    /// Goes through `node`, of which `covers` and `peers` are the covers and the peers, by the distance from `id`. Says
    /// whether there are enough peers.
    fn walk(
        &self,
        node: Prefix,
        covers: &[Cover],
        peers: &[(Id, PeerNo)],
        id: Id,
        found: &mut Vec<(Id, PeerNo)>,
    ) -> Result<bool, Prefix> {
        match covers {
            [] => return Err(node),
            [cover] if cover.prefix.len() <= node.len() => {
                let from = found.len();
                found.extend(peers.iter().map(|(peer, no)| (peer.xor(id), *no)));
                found[from..].sort_unstable();
                found.truncate(CLOSEST);
                return Ok(found.len() == CLOSEST);
            }
            _ => {}
        }
        let Some(halves) = node.halves(id) else { return Err(node) };
        let middle = halves[0].first().max(halves[1].first());
        let covers = covers.split_at(covers.partition_point(|c| c.prefix.first() < middle));
        let peers = peers.split_at(peers.partition_point(|(peer, _)| *peer < middle));
        for half in halves {
            let upper = half.first() == middle;
            let (covers, peers) = if upper { (covers.1, peers.1) } else { (covers.0, peers.0) };
            if self.walk(half, covers, peers, id, found)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The smallest place round `id` that has as many peers as a lookup names, known or not in full.
    pub(super) fn region(&self, id: Id) -> Prefix {
        let mut region = Prefix::ROOT;
        while let Some([near, _]) = region.halves(id)
            && self.peers_in(near).len() >= CLOSEST
        {
            region = near;
        }
        region
    }

    /// The place round `id` that is covered at once.
    pub(super) fn cover_of(&self, id: Id) -> Option<Prefix> {
        let after = self.covers.partition_point(|cover| cover.prefix.first() <= id);
        let cover = self.covers.get(after.checked_sub(1)?)?;
        cover.prefix.contains(id).then_some(cover.prefix)
    }

    fn peers_in(&self, prefix: Prefix) -> std::ops::Range<usize> {
        let (first, last) = (prefix.first(), prefix.last());
        let from = self.peers.partition_point(|(id, _)| *id < first);
        from..from + self.peers[from..].partition_point(|(id, _)| *id <= last)
    }
}

/// The places of which every point is nearer to `target` than `distance`, the largest first, which `target` lies in.
fn nearer_than(target: Id, distance: Id) -> impl Iterator<Item = Prefix> {
    let edge = target.xor(distance);
    let first = u8::try_from(distance.top().leading_zeros()).unwrap_or(Prefix::MAX_LEN);
    let differs = move |bit: &u8| distance.top() >> (63 - bit) & 1 == 1;
    (first..Prefix::MAX_LEN.min(first.saturating_add(FINER + 1))).filter(differs).filter_map(
        move |bit| {
            // Along the edge up to this bit, then to the side of the target.
            let [_, near] = Prefix::of(edge, bit).halves(edge)?;
            Some(near)
        },
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn closest_of(peers: &[(Id, PeerNo)], target: Id) -> Vec<(Id, PeerNo)> {
        let mut peers = peers.to_vec();
        peers.sort_unstable_by_key(|(id, _)| id.xor(target));
        peers.truncate(CLOSEST);
        peers
    }

    fn network(names: &[u32]) -> Vec<(Id, PeerNo)> {
        names.iter().map(|name| (Id::of_key(&name.to_be_bytes()), *name)).collect()
    }

    fn answer(map: &Map, id: Id) -> Result<Vec<PeerNo>, Prefix> {
        let mut found = Vec::new();
        map.closest(id, &mut found)?;
        Ok(found.into_iter().map(|(_, peer)| peer).collect())
    }

    fn numbers(peers: Vec<(Id, PeerNo)>) -> Vec<PeerNo> {
        peers.into_iter().map(|(_, peer)| peer).collect()
    }

    #[test]
    fn a_small_network_is_known_when_two_lookups_agree_and_looked_at_again_soon() {
        let mut map = Map::default();
        let network = network(&(0..7).collect::<Vec<_>>());
        let target = Id::of_key(b"target");
        assert_eq!(answer(&map, target), Err(Prefix::ROOT));
        let far = target.xor(Id::of_top(u64::MAX));
        map.learn(far, &closest_of(&network, far)[..6], 100);
        map.learn(target, &closest_of(&network, target), 100);
        map.learn(target, &closest_of(&network, target), 100);
        assert!(map.covers.len() > 1, "one of them missed somebody");
        map.learn(far, &closest_of(&network, far), 100);
        for key in [b"one", b"two"].map(|key| Id::of_key(key)) {
            assert_eq!(answer(&map, key).unwrap(), numbers(closest_of(&network, key)));
        }
        assert!(map.sweep(100 + VALID_SMALL - 1).is_empty());
        assert_eq!(map.sweep(100 + VALID_SMALL).len(), 7);
        assert_eq!(answer(&map, target), Err(Prefix::ROOT));
    }

    #[test]
    fn lookups_that_miss_some_of_many_tell_of_their_neighbourhood_alone() {
        let mut map = Map::default();
        let network = network(&(0..500).collect::<Vec<_>>());
        let target = Id::of_key(b"target");
        let far = target.xor(Id::of_top(u64::MAX));
        for target in [target, far, target, target] {
            map.learn(target, &closest_of(&network, target)[..CLOSEST - 1], 0);
        }
        let between = target.xor(Id::of_top(1 << 62));
        assert!(answer(&map, between).unwrap_err().contains(between));
        assert!(map.peers.len() > CLOSEST);
    }

    #[test]
    fn the_nearest_gap_is_named_and_whoever_is_gone_makes_room() {
        let mut map = Map::default();
        let mut network = network(&(0..500).collect::<Vec<_>>());
        let target = Id::of_key(b"target");
        map.learn(target, &closest_of(&network, target), 0);
        assert!(!answer(&map, target).unwrap_err().contains(target));
        let far = target.xor(Id::of_top(u64::MAX));
        assert!(answer(&map, far).unwrap_err().contains(far));

        let gone = closest_of(&network, target)[3];
        network.retain(|peer| *peer != gone);
        assert_eq!(map.learn(target, &closest_of(&network, target), 1), [gone.1]);
        let (id, peer) = closest_of(&network, target)[0];
        map.forget(id);
        assert!(!map.peers.iter().any(|(_, known)| *known == peer));
    }

    proptest! {
        #[test]
        fn what_the_map_answers_is_the_truth_and_lookups_of_gaps_complete_it(
            names in prop::collection::hash_set(any::<u32>(), 1..400),
            keys in prop::collection::vec(any::<u64>(), 1..30),
        ) {
            let network = network(&names.into_iter().collect::<Vec<_>>());
            let mut map = Map::default();
            for key in keys {
                let id = Id::of_key(&key.to_be_bytes());
                let mut lookups = 0;
                let found = loop {
                    match answer(&map, id) {
                        Ok(found) => break found,
                        Err(gap) => {
                            // Anything in the gap, near to the key.
                            let target = if gap.contains(id) { id } else { gap.first() };
                            map.learn(target, &closest_of(&network, target), 0);
                            lookups += 1;
                        }
                    }
                    prop_assert!(lookups < 60);
                };
                prop_assert_eq!(found, numbers(closest_of(&network, id)));
                let disjoint = map.covers.windows(2).all(|w| w[0].prefix.last() < w[1].prefix.first());
                prop_assert!(disjoint);
                prop_assert!(map.peers.is_sorted());
            }
        }
    }
}
