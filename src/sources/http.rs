//! HTTP gateways as sources, and the search for them: those that the user names, and those that a delegated router or
//! the DHT names as providers.
//!
//! Blocks come as *trustless* responses: a raw block, or an archive (CAR) with the blocks of a part of a file. Every
//! block is verified as it arrives. What a stranger writes (provider records, redirects, DNS) leads to public addresses
//! only; what the user names may be anywhere.

mod address;
mod answer;
mod client;
mod gateway;
mod routing;
mod search;
mod source;
#[cfg(test)]
mod tests;
mod webseed;
mod window;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::Url;
use tokio::sync::mpsc;

pub use self::{
    address::{GatewayUrl, ProxyUrl, UrlError},
    webseed::Webseeds,
};
use self::{
    address::{Lookup, is_public, system_lookup},
    client::{Http, Trust},
    gateway::Gateway,
    search::Search,
};
use super::{Again, Finder, Found, Hearsay, per_root::PerRoot};
use crate::{content::ContentId, net::Multiaddr, tasks::Tasks};

/// Options of [`HttpFinder::new`].
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Gateways that are asked for everything.
    pub gateways: Vec<GatewayUrl>,
    /// Delegated routers that are asked who provides a root.
    pub routers: Vec<GatewayUrl>,
    /// What all requests go through.
    pub proxy: Option<ProxyUrl>,
    /// Requests that run at a time at one gateway.
    pub requests_per_gateway: usize,
    /// Longest wait for an answer, and for each next piece of it.
    pub request_timeout: Duration,
    /// What strangers name is asked; else only what is named here, and no redirect leads anywhere else.
    pub ask_strangers: bool,
    /// Strangers may name addresses of this machine's own networks.
    pub allow_private_addresses: bool,
}

impl Default for HttpOptions {
    /// Nobody is asked.
    fn default() -> Self {
        Self {
            gateways: Vec::new(),
            routers: Vec::new(),
            proxy: None,
            requests_per_gateway: 16,
            request_timeout: Duration::from_secs(30),
            ask_strangers: true,
            allow_private_addresses: false,
        }
    }
}

/// Finds gateways.
#[derive(Clone, Debug)]
pub struct HttpFinder {
    http: Http,
    configured: Vec<Arc<Gateway>>,
    routers: Vec<Url>,
    requests: usize,
    allow_private: bool,
    hearsay: Hearsay,
    tasks: Tasks,
    running: PerRoot<Again>,
    strangers: Strangers,
}

/// Gateways of strangers that are asked for something at the moment: what is known of them is known to all searches.
type Strangers = Arc<Mutex<HashMap<String, Arc<Gateway>>>>;

/// Gateways of strangers that are remembered; those in use are, whatever their number.
const MOST_STRANGERS: usize = 256;

impl HttpFinder {
    /// A finder. `hearsay` is shared with the finder of Bitswap peers.
    pub fn new(options: &HttpOptions, hearsay: &Hearsay, tasks: &Tasks) -> Self {
        Self::with(options, hearsay, tasks, system_lookup())
    }

    fn with(options: &HttpOptions, hearsay: &Hearsay, tasks: &Tasks, lookup: Lookup) -> Self {
        let http = Http::new(options, lookup);
        let requests = options.requests_per_gateway;
        let gateway = |url: &GatewayUrl| {
            Arc::new(Gateway::new(url.url().clone(), Trust::Configured, http.clone(), requests))
        };
        Self {
            configured: options.gateways.iter().map(gateway).collect(),
            routers: options.routers.iter().map(|url| url.url().clone()).collect(),
            requests,
            allow_private: options.allow_private_addresses,
            hearsay: hearsay.clone(),
            tasks: tasks.clone(),
            running: PerRoot::default(),
            strangers: Strangers::default(),
            http,
        }
    }

    /// The gateway at a URL that a stranger named.
    fn gateway(&self, url: Url, trust: Trust) -> Arc<Gateway> {
        let fresh = Gateway::new(url, trust, self.http.clone(), self.requests);
        if let Some(known) = self.configured.iter().find(|known| known.id() == fresh.id()) {
            return known.clone();
        }
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() >= MOST_STRANGERS {
            // A ban is worth remembering longer than a gateway that behaves.
            strangers.retain(|_, known| Arc::strong_count(known) > 1 || known.is_banned());
        }
        let name = fresh.id().0.to_string();
        strangers.entry(name).or_insert_with(|| Arc::new(fresh)).clone()
    }

    /// Whether an address that a router told may be dialled.
    fn may_dial(&self, address: &Multiaddr) -> bool {
        let text = address.to_string();
        let mut parts = text.split('/').skip(1);
        let public = match (parts.next(), parts.next()) {
            (Some("ip4" | "ip6"), Some(ip)) => ip.parse().is_ok_and(is_public),
            // The swarm looks names up by itself, and nobody checks where they lead.
            _ => false,
        };
        public || self.allow_private
    }
}

impl Finder for HttpFinder {
    fn find(&self, root: &ContentId) -> mpsc::Receiver<Found> {
        let again = self.running.share(root, Again::default);
        let (search, receiver) = Search::new(self.clone(), *root, again);
        let cancelled = self.tasks.cancelled();
        self.tasks.spawn("find-gateways", async move {
            tokio::select! {
                () = cancelled => {}
                // The receiver was dropped.
                _ = search.run() => {}
            }
        });
        receiver
    }

    fn ask_again(&self, root: &ContentId) {
        if let Some(again) = self.running.get(root) {
            again.send_replace(());
        }
    }
}
