//! What is to be told to whom: one batch at a time to each peer, so that one stream serves many keys.

use std::collections::{HashMap, VecDeque};

use libp2p::{Multiaddr, PeerId};

use super::{
    keyspace::Id,
    map::PeerNo,
    sweep::{KeyNo, Order},
};

/// Peers that are told something at once. Each costs a connection that a lookup has mostly opened already.
const MAX_SENDS: usize = 32;
/// Keys of one batch: 40 KB on the wire, so that a slow peer holds one back for seconds and not for minutes.
pub(super) const BATCH: usize = 256;

/// A peer that a lookup named.
#[derive(Clone, Debug)]
pub(in crate::net) struct Contact {
    /// Who.
    pub(in crate::net) peer: PeerId,
    /// Where.
    pub(in crate::net) addresses: Vec<Multiaddr>,
}

#[derive(Debug)]
struct Known {
    id: Id,
    contact: Contact,
    on_map: bool,
    queue: VecDeque<KeyNo>,
    /// It is in the line of those that wait for their turn.
    in_line: bool,
    sending: Option<Vec<KeyNo>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    boxes: Vec<Option<Known>>,
    free: Vec<PeerNo>,
    by_id: HashMap<Id, PeerNo>,
    line: VecDeque<PeerNo>,
    sends: usize,
}

impl Outbox {
    /// The number of a peer, which it has as long as it is on the map or something is to be told to it.
    pub(super) fn number(&mut self, contact: Contact) -> (Id, PeerNo) {
        let id = Id::of_peer(contact.peer);
        if let Some(no) = self.by_id.get(&id).copied() {
            if let Some(known) = self.get(no)
                && !contact.addresses.is_empty()
            {
                known.contact = contact;
            }
            return (id, no);
        }
        let made = Known {
            id,
            contact,
            on_map: false,
            queue: VecDeque::new(),
            in_line: false,
            sending: None,
        };
        let no = match self.free.pop() {
            Some(no) => no,
            None => {
                self.boxes.push(None);
                // Far more than there are peers in the world.
                PeerNo::try_from(self.boxes.len() - 1).unwrap_or(PeerNo::MAX)
            }
        };
        self.boxes[no as usize] = Some(made);
        self.by_id.insert(id, no);
        (id, no)
    }

    /// Says whether the peer is on the map from now on.
    pub(super) fn set_on_map(&mut self, no: PeerNo, on_map: bool) {
        if let Some(known) = self.get(no) {
            known.on_map = on_map;
        }
        self.release(no);
    }

    /// Has a key told to a peer; `soon`: before what others are told.
    pub(super) fn push(&mut self, no: PeerNo, key: KeyNo, soon: bool) {
        let Some(Some(known)) = self.boxes.get_mut(no as usize) else { return };
        if soon {
            known.queue.push_front(key);
        } else {
            known.queue.push_back(key);
        }
        if !known.in_line && known.sending.is_none() {
            known.in_line = true;
            if soon {
                self.line.push_front(no);
            } else {
                self.line.push_back(no);
            }
        }
    }

    /// The next batch; `name` gives the name of a key.
    pub(super) fn next(&mut self, name: impl Fn(KeyNo) -> Vec<u8>) -> Option<Order> {
        if self.sends >= MAX_SENDS {
            return None;
        }
        let no = self.line.pop_front()?;
        let known = self.get(no)?;
        known.in_line = false;
        let count = known.queue.len().min(BATCH);
        let batch: Vec<KeyNo> = known.queue.drain(..count).collect();
        let keys = batch.iter().map(|key| name(*key)).collect();
        let contact = known.contact.clone();
        known.sending = Some(batch);
        self.sends += 1;
        Some(Order::Tell { send: no, contact, keys })
    }

    /// How a batch ended: its keys, and where the peer lies if it failed, which is told nothing of what still waits for
    /// it then.
    pub(super) fn told(&mut self, no: PeerNo, told: bool) -> (Vec<KeyNo>, Option<Id>) {
        let Some(known) = self.get(no) else { return Default::default() };
        let Some(mut keys) = known.sending.take() else { return Default::default() };
        let mut failed = None;
        if !told {
            keys.extend(known.queue.drain(..));
            failed = Some(known.id);
        }
        let more = !known.queue.is_empty();
        known.in_line = more;
        self.sends -= 1;
        if more {
            self.line.push_back(no);
        }
        self.release(no);
        (keys, failed)
    }

    fn get(&mut self, no: PeerNo) -> Option<&mut Known> {
        self.boxes.get_mut(no as usize)?.as_mut()
    }

    fn release(&mut self, no: PeerNo) {
        let Some(known) = self.get(no) else { return };
        if !known.on_map && !known.in_line && known.sending.is_none() {
            let id = known.id;
            self.boxes[no as usize] = None;
            self.by_id.remove(&id);
            self.free.push(no);
        }
    }
}
