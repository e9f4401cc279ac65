//! Searches for providers.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{PeerId, kad::QueryId};
use tokio::sync::{mpsc, oneshot};

use crate::{
    content::ContentId,
    net::{NetError, Provider, address::Scope},
};

/// Providers that one search gives at most.
pub(in crate::net) const MAX_PROVIDERS: usize = 20;
/// How long one search goes on at most.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Searches at once: each step of a lookup costs time in proportion to the number of lookups. Others wait their turn.
const MAX_ACTIVE: usize = 64;

/// Names a search.
pub(super) type SearchId = u64;

/// What one of the DHTs is doing for a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It has no peers to ask yet.
    Waiting,
    Running(QueryId),
    Done,
}

#[derive(Debug)]
struct Search {
    id: ContentId,
    to: mpsc::Sender<Result<Provider, NetError>>,
    found: HashSet<PeerId>,
    parts: [Part; 2],
    /// Some DHT was really asked.
    asked: bool,
    /// Ends the wait for the receiver, and with it the last sender, when this search ends.
    _open: oneshot::Sender<()>,
}

/// All searches.
#[derive(Default)]
pub(super) struct Searches {
    active: HashMap<SearchId, Search>,
    queued: VecDeque<(ContentId, mpsc::Sender<Result<Provider, NetError>>)>,
    next_id: SearchId,
    /// Resolve when a search has lost its receiver or its time is over.
    ends: FuturesUnordered<BoxFuture<'static, SearchId>>,
}

impl Searches {
    /// Puts a search in; it begins with [`Searches::admit`].
    pub(super) fn add(&mut self, id: ContentId, to: mpsc::Sender<Result<Provider, NetError>>) {
        self.queued.push_back((id, to));
    }

    /// Lets queued searches begin as far as there is room.
    pub(super) fn admit(&mut self) {
        while self.active.len() < MAX_ACTIVE {
            let Some((id, to)) = self.queued.pop_front() else { return };
            if to.is_closed() {
                continue;
            }
            self.next_id += 1;
            let (search, receiver) = (self.next_id, to.clone());
            let (open, ended) = oneshot::channel();
            self.ends.push(Box::pin(async move {
                tokio::select! {
                    () = receiver.closed() => {}
                    () = tokio::time::sleep(TIMEOUT) => {}
                    _ = ended => {}
                }
                search
            }));
            let (found, parts) = (HashSet::new(), [Part::Waiting; 2]);
            let state = Search { id, to, found, parts, asked: false, _open: open };
            self.active.insert(search, state);
        }
    }

    /// Searches that could begin in the DHT of `scope` now that it has peers.
    pub(super) fn waiting(&self, scope: Scope) -> Vec<(SearchId, ContentId)> {
        let waits = |(_, s): &(&SearchId, &Search)| s.parts[scope as usize] == Part::Waiting;
        self.active.iter().filter(waits).map(|(id, search)| (*id, search.id)).collect()
    }

    /// The DHT of `scope` is being asked.
    pub(super) fn running(&mut self, search: SearchId, scope: Scope, query: QueryId) {
        if let Some(search) = self.active.get_mut(&search) {
            search.parts[scope as usize] = Part::Running(query);
            search.asked = true;
        }
    }

    /// Hands a provider over that query `query` of `scope` found.
    pub(super) fn found(&mut self, scope: Scope, query: QueryId, provider: Provider) {
        let running = Part::Running(query);
        let mut searches = self.active.values_mut();
        let Some(search) = searches.find(|s| s.parts[scope as usize] == running) else { return };
        if search.found.len() < MAX_PROVIDERS && search.found.insert(provider.peer) {
            // The channel has room for all that a search gives; whoever dropped it is noticed elsewhere.
            let _ = search.to.try_send(Ok(provider));
        }
    }

    /// Query `query` of `scope` has ended.
    pub(super) fn finished(&mut self, scope: Scope, query: QueryId) {
        for search in self.active.values_mut() {
            if search.parts[scope as usize] == Part::Running(query) {
                search.parts[scope as usize] = Part::Done;
            }
        }
    }

    /// Ends the searches that have nothing more to wait for; `expecting`: a DHT without peers may still get some.
    /// Gives the queries that are of no use any more.
    pub(super) fn conclude(&mut self, expecting: bool) -> Vec<(Scope, QueryId)> {
        let over = |search: &Search| {
            let pending = |part: &Part| match part {
                Part::Waiting => expecting,
                Part::Running(_) => true,
                Part::Done => false,
            };
            search.found.len() >= MAX_PROVIDERS || !search.parts.iter().any(pending)
        };
        let ids: Vec<SearchId> =
            self.active.iter().filter(|(_, s)| over(s)).map(|(id, _)| *id).collect();
        ids.into_iter().flat_map(|id| self.end(id)).collect()
    }

    /// Resolves with a search whose time is over or that nobody listens to any more. Never resolves without one.
    pub(super) async fn next_end(&mut self) -> SearchId {
        match self.ends.next().await {
            Some(search) => search,
            None => std::future::pending().await,
        }
    }

    /// Ends a search, with an error when it has found nobody; gives its queries.
    pub(super) fn end(&mut self, search: SearchId) -> Vec<(Scope, QueryId)> {
        let Some(search) = self.active.remove(&search) else { return Vec::new() };
        if search.found.is_empty() {
            let error = match search.asked {
                true => NetError::NoProviders(search.id),
                false => NetError::Bootstrap,
            };
            // As in `found`.
            let _ = search.to.try_send(Err(error));
        }
        let running =
            Scope::ALL.into_iter().filter_map(|scope| match search.parts[scope as usize] {
                Part::Running(query) => Some((scope, query)),
                _ => None,
            });
        running.collect()
    }

    /// Ends everything.
    pub(super) fn close(&mut self) {
        let active = self.active.drain().map(|(_, search)| search.to);
        for to in active.chain(self.queued.drain(..).map(|(_, to)| to)) {
            // As in `found`.
            let _ = to.try_send(Err(NetError::Closed));
        }
        self.ends.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use libp2p::kad::{Behaviour, RecordKey, store::MemoryStore};

    use super::*;
    use crate::content::Block;

    struct Fixture {
        searches: Searches,
        kad: Behaviour<MemoryStore>,
    }

    impl Fixture {
        fn new() -> Self {
            let own = PeerId::random();
            let kad = Behaviour::new(own, MemoryStore::new(own));
            Self { searches: Searches::default(), kad }
        }

        fn search(&mut self, text: &'static str) -> mpsc::Receiver<Result<Provider, NetError>> {
            let (to, found) = mpsc::channel(MAX_PROVIDERS + 1);
            self.searches.add(*Block::raw(text.into()).cid(), to);
            self.searches.admit();
            found
        }

        /// Begins what waits in `scope`; kad alone can name queries.
        fn begin(&mut self, scope: Scope) -> QueryId {
            let query = self.kad.get_providers(RecordKey::from(vec![1]));
            let (search, _) = self.searches.waiting(scope)[0];
            self.searches.running(search, scope, query);
            query
        }
    }

    fn provider(peer: PeerId) -> Provider {
        Provider { peer, addresses: Vec::new() }
    }

    #[tokio::test]
    async fn a_provider_comes_once_though_both_dhts_name_it_and_the_end_closes_the_channel() {
        let mut fixture = Fixture::new();
        let mut found = fixture.search("content");
        let (lan, wan) = (fixture.begin(Scope::Lan), fixture.begin(Scope::Wan));
        let peer = PeerId::random();
        fixture.searches.found(Scope::Lan, lan, provider(peer));
        fixture.searches.found(Scope::Wan, wan, provider(peer));
        fixture.searches.finished(Scope::Lan, lan);
        assert!(fixture.searches.conclude(false).is_empty());
        fixture.searches.finished(Scope::Wan, wan);
        assert!(fixture.searches.conclude(false).is_empty());
        let _ = fixture.searches.next_end().await;
        assert_eq!(found.recv().await.unwrap().unwrap().peer, peer);
        assert!(found.recv().await.is_none());
    }

    #[tokio::test]
    async fn it_stops_asking_at_twenty() {
        let mut fixture = Fixture::new();
        let mut found = fixture.search("popular");
        let lan = fixture.begin(Scope::Lan);
        for _ in 0..MAX_PROVIDERS + 5 {
            fixture.searches.found(Scope::Lan, lan, provider(PeerId::random()));
        }
        assert_eq!(fixture.searches.conclude(true), [(Scope::Lan, lan)]);
        let _ = fixture.searches.next_end().await;
        let mut count = 0;
        while let Some(item) = found.recv().await {
            item.unwrap();
            count += 1;
        }
        assert_eq!(count, MAX_PROVIDERS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_waits_for_peers_that_are_expected_and_for_its_time_at_most() {
        let mut fixture = Fixture::new();
        let mut found = fixture.search("later");
        assert!(fixture.searches.conclude(true).is_empty());
        assert!(found.try_recv().is_err());
        let begun = tokio::time::Instant::now();
        let search = fixture.searches.next_end().await;
        assert_eq!(begun.elapsed(), TIMEOUT);
        fixture.searches.end(search);
        assert!(matches!(found.recv().await, Some(Err(NetError::Bootstrap))));
    }

    #[tokio::test]
    async fn a_search_nobody_listens_to_ends_its_queries() {
        let mut fixture = Fixture::new();
        drop(fixture.search("abandoned"));
        let lan = fixture.begin(Scope::Lan);
        let search = fixture.searches.next_end().await;
        assert_eq!(fixture.searches.end(search), [(Scope::Lan, lan)]);
    }

    #[tokio::test]
    async fn more_searches_than_there_is_room_for_wait_their_turn() {
        let mut fixture = Fixture::new();
        let all: Vec<_> = (0..=MAX_ACTIVE).map(|_| fixture.search("many")).collect();
        assert_eq!(fixture.searches.waiting(Scope::Lan).len(), MAX_ACTIVE);
        fixture.searches.conclude(false);
        fixture.searches.admit();
        assert_eq!(fixture.searches.waiting(Scope::Lan).len(), 1);
        drop(all);
    }
}
