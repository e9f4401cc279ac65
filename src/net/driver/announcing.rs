//! Has the network do what the announce queue orders.

use libp2p::{
    Multiaddr,
    kad::{
        self, GetClosestPeersResult, ProviderRecord, QueryId, RecordKey, store::RecordStore as _,
    },
};

use super::Driver;
use crate::net::{
    address::Scope,
    announce::{Contact, Key, Order},
    tell::{self, TellId, Told},
};

/// Addresses that a record names: as many as others keep.
const MAX_ADDRESSES: usize = 16;

impl Driver {
    /// Begins what is due.
    pub(super) fn announce(&mut self) {
        let added = self.announcer.take_added();
        for scope in Scope::ALL {
            self.provide(scope, added.iter().cloned());
        }
        for scope in Scope::ALL {
            if !self.can_announce(scope) {
                continue;
            }
            let own = *self.swarm.local_peer_id();
            let at = self.provided_at(scope);
            while let Some(order) = self.announcer.next(scope) {
                let behaviour = self.swarm.behaviour_mut();
                match order {
                    Order::LookUp { lookup, key } => {
                        let query = behaviour.dht(scope).kad().get_closest_peers(key);
                        self.announcing.insert((scope, query), lookup);
                    }
                    Order::Tell { send, contact, keys } => {
                        let messages = tell::add_providers(own, &at, keys);
                        let id = TellId { scope, number: send };
                        behaviour.tell.send(id, contact.peer, contact.addresses, messages);
                    }
                }
            }
        }
    }

    /// Whether there is anyone to ask, and an address to name: others drop a record without one.
    pub(super) fn can_announce(&mut self, scope: Scope) -> bool {
        self.swarm.behaviour_mut().dht(scope).has_peers() && !self.provided_at(scope).is_empty()
    }

    fn provided_at(&self, scope: Scope) -> Vec<Multiaddr> {
        let external = self.swarm.external_addresses();
        external.filter(|address| scope.covers(address)).take(MAX_ADDRESSES).cloned().collect()
    }

    /// Answers for itself from the start, also for what is not due to be announced for hours.
    pub(super) fn restore_provided(&mut self) {
        for scope in Scope::ALL {
            self.provide(scope, self.announcer.keys(scope));
        }
    }

    /// Answers for these keys when others ask this node.
    fn provide(&mut self, scope: Scope, keys: impl IntoIterator<Item = Key>) {
        let own = *self.swarm.local_peer_id();
        let records = self.swarm.behaviour_mut().dht(scope).kad().store_mut();
        for key in keys {
            let record = ProviderRecord::new(RecordKey::from(key), own, Vec::new());
            if let Err(error) = records.add_provider(record) {
                tracing::warn!(%error, "an own provider record is refused");
            }
        }
    }

    /// A lookup of the announce queue has ended.
    pub(super) fn on_looked_up(
        &mut self,
        scope: Scope,
        query: QueryId,
        result: GetClosestPeersResult,
    ) {
        let Some(lookup) = self.announcing.remove(&(scope, query)) else { return };
        let complete = result.is_ok();
        let peers = match result {
            Ok(found) => found.peers,
            Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
        };
        let own = *self.swarm.local_peer_id();
        let dht = self.swarm.behaviour_mut().dht(scope);
        let found: Vec<Contact> = peers
            .into_iter()
            .filter(|info| info.peer_id != own)
            .map(|info| Contact { peer: info.peer_id, addresses: dht.of_its_kind(info.addrs) })
            .collect();
        tracing::debug!(?scope, peers = found.len(), complete, "lookup for announcements");
        self.announcer.looked_up(scope, lookup, found, complete);
    }

    /// A peer was told what this node provides, or was not.
    pub(super) fn on_told(&mut self, told: Told) {
        self.announcer.told_to(told.id.scope, told.id.number, told.taken);
    }
}
