//! Commands that look at the daemon.

use std::{io::IsTerminal, time::Duration};

use chiral::{
    control::{Client, ConnectRequest, Connected, Identity, Method, Peer, Status},
    node::{Multiaddr, Running},
};
use futures::StreamExt;

use crate::{
    exit::Usage,
    output::{self, bytes},
    printable::printable_name,
};

pub(crate) async fn id(client: &Client, json: bool) -> anyhow::Result<()> {
    let identity: Identity = client.get("/v1/id").await?;
    if json {
        return output::json(&identity);
    }
    output::line(&identity.peer_id)?;
    identity.addresses.iter().try_for_each(output::line)?;
    Ok(())
}

pub(crate) async fn connect(client: &Client, json: bool, address: String) -> anyhow::Result<()> {
    if let Err(error) = address.parse::<Multiaddr>() {
        return Err(Usage(format!("`{address}` is not a multiaddress: {error}")).into());
    }
    let connected: Connected = client.post("/v1/connect", &ConnectRequest { address }).await?;
    if json {
        return output::json(&connected);
    }
    Ok(output::line(format_args!("connected to {}", connected.peer_id))?)
}

pub(crate) async fn status(client: &Client, json: bool, watch: bool) -> anyhow::Result<()> {
    loop {
        let status: Status = client.get("/v1/status").await?;
        if json {
            output::json(&status)?;
        } else {
            // A terminal is redrawn from its top; a file gets one status below the other.
            if watch && std::io::stdout().is_terminal() {
                output::clear()?;
            }
            described(&status).iter().try_for_each(output::line)?;
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A line for each thing that is to be known.
fn described(status: &Status) -> Vec<String> {
    let mountpoint = status.mountpoint.as_ref().map(|path| printable_name(path.as_os_str()));
    let (store, torrents) = (&status.store, &status.torrents);
    let mut lines = vec![
        format!("version     {}", status.version),
        format!("peer id     {}", status.peer_id),
        format!("mountpoint  {}", mountpoint.as_deref().unwrap_or("-")),
        format!("gateway     {}", status.gateway.as_deref().unwrap_or("-")),
        format!(
            "store       {} in {} files, {} blocks; {} can be written",
            bytes(store.bytes),
            store.objects,
            store.blocks,
            bytes(store.available)
        ),
        format!("peers       {}", status.peers),
        format!("downloads   {}", status.downloads),
        format!("published   {}", status.uploads),
        format!(
            "torrents    {} known, {} downloading at {}/s, {} seeding at {}/s",
            torrents.known,
            torrents.downloading,
            bytes(torrents.download_rate),
            torrents.seeding,
            bytes(torrents.upload_rate)
        ),
    ];
    lines.extend(status.addresses.iter().map(|address| format!("listens on  {address}")));
    lines
}

pub(crate) async fn transfers(client: &Client, json: bool) -> anyhow::Result<()> {
    let transfers: Vec<Running> = client.get("/v1/transfers").await?;
    if json {
        return output::json(&transfers);
    }
    let row = |running: &Running| {
        let (id, here, total, rate, sources) = match running {
            Running::Content(t) => (t.cid.to_string(), t.bytes, t.total, t.rate, t.sources),
            Running::Torrent { infohash, bytes, total, rate, sources, .. } => {
                (infohash.clone(), *bytes, *total, *rate, *sources)
            }
        };
        let (eta, retries) = match running {
            Running::Content(t) => (t.eta, t.retries.to_string()),
            // Only what is read of it is fetched: how long that takes is known to nobody.
            Running::Torrent { .. } => (None, "-".to_owned()),
        };
        let eta = eta.map_or_else(|| "-".to_owned(), |eta| format!("{eta}s"));
        let done = format!("{}/{}", bytes(here), bytes(total));
        [id, done, format!("{}/s", bytes(rate)), eta, sources.to_string(), retries]
    };
    let rows: Vec<_> = transfers.iter().map(row).collect();
    Ok(output::table(["ID", "DONE", "RATE", "ETA", "SOURCES", "RETRIES"], &rows)?)
}

pub(crate) async fn peers(client: &Client, json: bool) -> anyhow::Result<()> {
    let peers: Vec<Peer> = client.get("/v1/peers").await?;
    if json {
        return output::json(&peers);
    }
    let row = |peer: &Peer| {
        let rtt = peer.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1}ms"));
        let agent = peer.agent.clone().unwrap_or_else(|| "-".to_owned());
        let (id, address) = (peer.peer_id.clone(), peer.address.clone());
        [id, rtt, bytes(peer.received), bytes(peer.sent), agent, address]
    };
    let rows: Vec<_> = peers.iter().map(row).collect();
    Ok(output::table(["PEER", "RTT", "RECEIVED", "SENT", "AGENT", "ADDRESS"], &rows)?)
}

pub(crate) async fn events(client: &Client) -> anyhow::Result<()> {
    let mut events = client.lines::<serde_json::Value>(Method::GET, "/v1/events").await?;
    while let Some(event) = events.next().await {
        output::json(&event?)?;
    }
    Ok(())
}
