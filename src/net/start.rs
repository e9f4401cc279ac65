//! Puts the parts together.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    identity::Keypair,
    multiaddr::Protocol,
    relay,
    swarm::{self, SwarmEvent},
};
use socket2::{Domain, Socket, Type};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    Inner, Net, NetError, NetOptions, Online,
    address::{Scope, peer_of},
    announce::Announcer,
    ask::{self, Asks},
    behaviour::{Behaviour, BehaviourEvent, Parts},
    bitswap::{self, BlockStore},
    driver::Driver,
    identity,
    records::{Change, Records},
    redial::Redial,
    rows::Rows,
    security::SecurityError,
    shared::Shared,
    transport,
};
use crate::{
    store::{Store, StoreError},
    tasks::Tasks,
};

/// How long a connection may do nothing before it is closed. Lookups come in bursts and mostly ask peers that the last
/// one asked; Bitswap and the kept peers hold their connections themselves.
const IDLE: Duration = Duration::from_secs(60);
/// Inbound streams of one connection that negotiate their protocol at once. A busy Bitswap server opens one per block.
const NEGOTIATING_STREAMS: usize = 256;
/// How long a listener may take to name its first address.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Changes of provider records that wait for the disk.
const WRITE_BEHIND: usize = 1_024;

/// What the network keeps over restarts.
#[derive(Clone, Debug)]
pub(super) struct NetRows {
    pub(super) announce: Arc<dyn Rows>,
    /// Provider records, by the order of [`Scope::ALL`].
    pub(super) providers: [Arc<dyn Rows>; 2],
}

impl NetRows {
    /// Trees of the store.
    pub(super) fn of(store: &Store) -> Result<Self, StoreError> {
        Ok(Self {
            announce: Arc::new(store.state("announce")?),
            providers: [
                Arc::new(store.state("providers.lan")?),
                Arc::new(store.state("providers.wan")?),
            ],
        })
    }
}

/// As [`Net::start`].
pub(super) async fn start(
    options: NetOptions,
    rows: NetRows,
    blocks: Arc<dyn BlockStore>,
    tasks: &Tasks,
) -> Result<Net, NetError> {
    let key = identity::load_or_create(&options.key_file)?;
    let own = PeerId::from(key.public());
    let shared = Arc::new(Shared::default());
    let announcer = Arc::new(Announcer::open(rows.announce.clone(), own)?);
    if options.offline {
        return Ok(Net { inner: Arc::new(Inner { own, key, shared, announcer, online: None }) });
    }
    let [lan, wan] =
        Scope::ALL.map(|scope| records(own, rows.providers[scope as usize].clone(), tasks));
    let config = bitswap::Config { serve_cached: options.serve_cached, ..Default::default() };
    let (exchange, bitswap) = bitswap::new(config, blocks, tasks);
    let (relays, relay_client) =
        options.reach.relay_client.then(|| relay::client::new(own)).unzip();
    let asks = Asks::new(bitswap.clone(), tasks);
    let ask = ask::Behaviour(asks.clone());
    let parts = Parts { bitswap: exchange, ask, records: [lan?, wan?], relay_client };
    let behaviour = Behaviour::new(&key, &options.reach, parts);
    let mut swarm = build(&key, behaviour, relays, tasks).map_err(|error| NetError::Key {
        path: options.key_file.clone(),
        reason: error.to_string(),
    })?;
    let early = listen(&mut swarm, &options.listen).await?;

    let (to_driver, commands) = mpsc::unbounded_channel();
    let [peers, bootstrap] = [&options.peers, &options.bootstrap].map(|addresses| {
        // One list is often given to all nodes of a network, each of which finds itself in it.
        let others = addresses.iter().filter(|address| peer_of(address) != Some(own));
        others.cloned().collect::<Vec<_>>()
    });
    let redial = Redial::new(&peers, &bootstrap, Instant::now());
    let state = (shared.clone(), announcer.clone());
    let mut driver = Driver::new(swarm, commands, state, redial, options.reach, bitswap.clone());
    for event in early {
        driver.on_swarm_event(event);
    }
    tasks.spawn("net driver", driver.run(tasks.token().clone()));
    let online = Some(Online { commands: to_driver, bitswap, asks });
    Ok(Net { inner: Arc::new(Inner { own, key, shared, announcer, online }) })
}

/// The record store of one DHT, and the task that writes its changes behind it.
fn records(own: PeerId, rows: Arc<dyn Rows>, tasks: &Tasks) -> Result<Records, StoreError> {
    let (to_disk, mut changes) = mpsc::channel(WRITE_BEHIND);
    let records = Records::restore(own, rows.all()?, to_disk);
    // Ends when the records are dropped with the swarm.
    tasks.blocking("provider records", move || {
        while let Some(change) = changes.blocking_recv() {
            let written = match change {
                Change::Put(key, value) => rows.insert(&key, &value),
                Change::Remove(key) => rows.remove(&key),
            };
            if let Err(error) = written {
                tracing::warn!(%error, "provider records are kept in memory only");
                return;
            }
        }
    });
    Ok(records)
}

fn build(
    key: &Keypair,
    behaviour: Behaviour,
    relays: Option<relay::client::Transport>,
    tasks: &Tasks,
) -> Result<Swarm<Behaviour>, SecurityError> {
    let transport = transport::build(key, relays)?;
    let connections = tasks.clone();
    let executor = move |task| drop(connections.spawn("connection", task));
    let config = swarm::Config::with_executor(executor)
        .with_idle_connection_timeout(IDLE)
        .with_max_negotiating_inbound_streams(NEGOTIATING_STREAMS);
    Ok(Swarm::new(transport, behaviour, PeerId::from(key.public()), config))
}

/// Listens on all of `addresses` and waits until each has told what it really is. Gives the events of that time: peers
/// may connect to the first address while the last one is opened.
async fn listen(
    swarm: &mut Swarm<Behaviour>,
    addresses: &[Multiaddr],
) -> Result<Vec<SwarmEvent<BehaviourEvent>>, NetError> {
    let fail =
        |address: &Multiaddr, reason: String| NetError::Listen { address: address.clone(), reason };
    for address in addresses {
        taken(address).map_err(|error| fail(address, error.to_string()))?;
    }
    let mut pending: Vec<(ListenerId, &Multiaddr)> = Vec::new();
    for address in addresses {
        let listener = swarm
            .listen_on(address.clone())
            .map_err(|e| fail(address, super::driver::innermost(&e)))?;
        pending.push((listener, address));
    }
    let mut events = Vec::new();
    while let Some((_, first)) = pending.first() {
        let event = timeout(LISTEN_TIMEOUT, swarm.select_next_some())
            .await
            .map_err(|_| fail(first, "this machine has no such address".to_owned()))?;
        let broken = match &event {
            SwarmEvent::NewListenAddr { listener_id, .. } => {
                pending.retain(|(listener, _)| listener != listener_id);
                None
            }
            SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. }
            | SwarmEvent::ListenerError { listener_id, error } => Some((listener_id, error)),
            _ => None,
        };
        if let Some((listener, error)) = broken
            && let Some((_, address)) = pending.iter().find(|(id, _)| id == listener)
        {
            return Err(fail(address, error.to_string()));
        }
        events.push(event);
    }
    Ok(events)
}

/// Fails when somebody listens on a TCP address already. The transport shares its port with its own outgoing connections
/// (SO_REUSEPORT), and would share it with another daemon too: each would get every other call.
fn taken(address: &Multiaddr) -> io::Result<()> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    let Some(Protocol::Tcp(port)) = parts.next() else { return Ok(()) };
    let address = SocketAddr::new(ip, port);
    let probe = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // As the transport does it; connections of before that linger are no obstacle.
    probe.set_reuse_address(true)?;
    if ip.is_ipv6() {
        probe.set_only_v6(true)?;
    }
    probe.bind(&address.into())
}
