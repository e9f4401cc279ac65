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
            let clear = if watch && std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
            output::line(format_args!("{clear}{}", described(&status)))?;
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn described(status: &Status) -> String {
    let mountpoint = status.mountpoint.as_ref().map(|path| path.display().to_string());
    let mut text = format!(
        "version     {}\npeer id     {}\nmountpoint  {}\ngateway     {}\nstore       {} in {} files, {} blocks; {} can be written\npeers       {}\ndownloads   {}\npublished   {}\ntorrents    {} known, {} downloading at {}/s, {} seeding at {}/s",
        status.version,
        status.peer_id,
        mountpoint.as_deref().unwrap_or("-"),
        status.gateway.as_deref().unwrap_or("-"),
        bytes(status.store.bytes),
        status.store.objects,
        status.store.blocks,
        bytes(status.store.available),
        status.peers,
        status.downloads,
        status.uploads,
        status.torrents.known,
        status.torrents.downloading,
        bytes(status.torrents.download_rate),
        status.torrents.seeding,
        bytes(status.torrents.upload_rate),
    );
    for address in &status.addresses {
        text.push_str("\nlistens on  ");
        text.push_str(address);
    }
    text
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
