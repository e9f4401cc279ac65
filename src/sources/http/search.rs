//! One running search for gateways that may have a root.

use std::{collections::HashSet, sync::Arc, time::Duration};

use reqwest::Url;
use tokio::{
    sync::{broadcast, mpsc},
    time::Instant,
};

use super::{
    HttpFinder,
    address::url_of,
    client::Trust,
    gateway::Gateway,
    routing::{self, Named},
    source::HttpSource,
};
use crate::{
    content::ContentId,
    net::Provider,
    sources::{Again, Found, SourceId, hearsay::Channel},
};

/// Gateways of strangers that are asked for one root.
const MOST_STRANGERS: usize = 16;
/// Records that may wait to be looked at.
const BACKLOG: usize = 16;
/// News that may wait for the receiver.
const FOUND: usize = 16;
/// Wait before the routers are asked again while somebody goes on asking.
const PAUSE: Duration = Duration::from_secs(10);

/// The receiver does not listen any more.
pub(super) struct Unheard;

/// One running search.
pub(super) struct Search {
    finder: HttpFinder,
    root: ContentId,
    found: mpsc::Sender<Found>,
    again: Arc<Again>,
    heard: Arc<Channel>,
    given: HashSet<SourceId>,
    strangers: usize,
}

impl Search {
    pub(super) fn new(
        finder: HttpFinder,
        root: ContentId,
        again: Arc<Again>,
    ) -> (Self, mpsc::Receiver<Found>) {
        let (found, receiver) = mpsc::channel(FOUND);
        let heard = finder.hearsay.of(&root);
        let given = HashSet::new();
        (Self { finder, root, found, again, heard, given, strangers: 0 }, receiver)
    }

    /// Searches until nobody listens any more.
    pub(super) async fn run(mut self) -> Result<(), Unheard> {
        let mut again = self.again.subscribe();
        let mut servers = self.heard.servers.subscribe();
        self.give_configured().await?;
        let mut named = Some(self.ask_routers());
        let mut next = Instant::now() + PAUSE;
        let mut due = false;
        let found = self.found.clone();
        loop {
            tokio::select! {
                () = found.closed() => return Err(Unheard),
                news = receive(&mut named) => match news {
                    Some(Named::Server(url)) => self.stranger(url).await?,
                    Some(Named::Peer(provider)) => self.peer(provider),
                    None => {
                        named = None;
                        self.say(Found::Searched).await?;
                    }
                },
                server = servers.recv() => match server {
                    Ok(address) => self.address(&address).await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    // This search holds a sender of it.
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                Ok(()) = again.changed() => due = true,
                () = tokio::time::sleep_until(next), if due && named.is_none() => {
                    due = false;
                    next = Instant::now() + PAUSE;
                    self.give_configured().await?;
                    named = Some(self.ask_routers());
                }
            }
        }
    }

    /// Those that the user named, unless they lied lately.
    async fn give_configured(&mut self) -> Result<(), Unheard> {
        for gateway in self.finder.configured.clone() {
            self.give(gateway).await?;
        }
        Ok(())
    }

    /// Asks all routers at once; what they name comes out of the receiver, which closes when all have answered.
    fn ask_routers(&self) -> mpsc::Receiver<Named> {
        let (to, named) = mpsc::channel(BACKLOG);
        for router in &self.finder.routers {
            let (http, router, root) = (self.finder.http.clone(), router.clone(), self.root);
            let (to, cancelled) = (to.clone(), self.finder.tasks.cancelled());
            self.finder.tasks.spawn("ask-router", async move {
                tokio::select! {
                    () = cancelled => {}
                    () = to.closed() => {}
                    answered = routing::ask(&http, &router, &root, &to) => {
                        if let Err(error) = answered {
                            tracing::debug!("the router {router}: {error}");
                        }
                    }
                }
            });
        }
        named
    }

    /// A peer that speaks Bitswap goes to whoever dials.
    fn peer(&self, mut provider: Provider) {
        let given = provider.addresses.len();
        provider.addresses.retain(|address| self.finder.may_dial(address));
        // A peer of which only a way into our own network is told is nobody's to be dialled.
        if given == 0 || !provider.addresses.is_empty() {
            // Nobody dials where there is no other network.
            let _ = self.heard.peers.send(provider);
        }
    }

    async fn address(&mut self, multiaddr: &str) -> Result<(), Unheard> {
        match url_of(multiaddr) {
            Some(url) => self.stranger(url).await,
            None => Ok(()),
        }
    }

    async fn stranger(&mut self, url: Url) -> Result<(), Unheard> {
        if self.strangers >= MOST_STRANGERS || !self.finder.http.accepts(&url) {
            return Ok(());
        }
        let gateway = self.finder.gateway(url, Trust::Stranger);
        self.strangers += usize::from(self.give(gateway).await?);
        Ok(())
    }

    /// Gives a gateway as a source, once; whether it was new.
    async fn give(&mut self, gateway: Arc<Gateway>) -> Result<bool, Unheard> {
        if gateway.is_banned() || !self.given.insert(gateway.id().clone()) {
            return Ok(false);
        }
        let source = HttpSource::new(gateway, &self.finder.tasks);
        self.say(Found::Source(Arc::new(source))).await?;
        Ok(true)
    }

    async fn say(&self, news: Found) -> Result<(), Unheard> {
        self.found.send(news).await.map_err(|_| Unheard)
    }
}

async fn receive(named: &mut Option<mpsc::Receiver<Named>>) -> Option<Named> {
    match named {
        Some(named) => named.recv().await,
        None => std::future::pending().await,
    }
}
