//! Keeping and announcing.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use anyhow::bail;
use chiral::control::{Client, PinRequest, PinRow, ProvideRequest, Reference, Unpinned};

use crate::{cli::PinCommand, output, printable::printable_name, progress::over_downloads};

pub(crate) async fn run(client: &Client, json: bool, command: PinCommand) -> anyhow::Result<()> {
    match command {
        PinCommand::Add { id, name } => {
            Reference::of(id.as_bytes())?;
            let request = PinRequest { id, name };
            let pinned = client.post("/v1/pins", &request);
            let pin: PinRow = over_downloads(client, "pin", pinned).await?;
            if json {
                output::json(&pin)
            } else {
                let only = pin.only.map(|files| format!(", files {files}")).unwrap_or_default();
                Ok(output::line(format_args!("pinned {}{only}", pin.id))?)
            }
        }
        PinCommand::Rm { id } => {
            Reference::of(id.as_bytes())?;
            let unpinned: Unpinned = client.delete(&Client::target("pins", &id)).await?;
            if !unpinned.removed {
                bail!("{} is not pinned", printable_name(&id));
            }
            if json {
                output::json(&unpinned)
            } else {
                Ok(output::line(format_args!("unpinned {}", printable_name(&id)))?)
            }
        }
        PinCommand::Ls => {
            let pins: Vec<PinRow> = client.get("/v1/pins").await?;
            if json {
                return output::json(&pins);
            }
            for pin in pins {
                let state = if pin.complete { "complete  " } else { "incomplete" };
                let only = pin.only.map(|files| format!("files {files}  ")).unwrap_or_default();
                let line = format!("{}  {state}  {only}{}", pin.id, pin.name);
                output::line(line.trim_end())?;
            }
            Ok(())
        }
    }
}

pub(crate) async fn provide(client: &Client, json: bool, id: &OsStr) -> anyhow::Result<()> {
    Reference::of(id.as_bytes())?;
    let () = client.post("/v1/provide", &ProvideRequest { id: id.to_owned() }).await?;
    if json {
        return output::json(&serde_json::json!({ "queued": id.to_string_lossy() }));
    }
    Ok(output::line(format_args!("queued for announcement: {}", printable_name(id)))?)
}
