//! Care of the store.

use anyhow::bail;
use chiral::control::{Client, ClientError, GcDone, Method, VerifyLine};
use futures::StreamExt;

use crate::{
    cli::StoreCommand,
    output::{self, bytes},
    progress::Bar,
};

pub(crate) async fn run(client: &Client, json: bool, command: StoreCommand) -> anyhow::Result<()> {
    match command {
        StoreCommand::Verify => verify(client, json).await,
        StoreCommand::Gc => {
            let done: GcDone = client.post("/v1/store/gc", &()).await?;
            if json {
                return output::json(&done);
            }
            let freed = bytes(done.bytes);
            let text =
                format_args!("removed {} files and {} nodes, {freed}", done.objects, done.nodes);
            Ok(output::line(text.to_string())?)
        }
        // Carried out by `archive`.
        StoreCommand::Import { .. } | StoreCommand::Export { .. } => Ok(()),
    }
}

async fn verify(client: &Client, json: bool) -> anyhow::Result<()> {
    let mut lines = client.lines::<VerifyLine>(Method::POST, "/v1/store/verify").await?;
    let bar = Bar::new("verify", 0);
    while let Some(line) = lines.next().await {
        match line? {
            VerifyLine::Progress { done, total } => bar.set(done, total),
            VerifyLine::Failed(failure) => return Err(ClientError::Failure(failure).into()),
            VerifyLine::Report { blocks, bytes: count, bad } => {
                drop(bar);
                if json {
                    let report =
                        serde_json::json!({ "blocks": blocks, "bytes": count, "bad": bad });
                    output::json(&report)?;
                } else {
                    bad.iter().try_for_each(|id| output::line(format_args!("bad  {id}")))?;
                    output::line(format_args!("{blocks} blocks, {}", bytes(count)).to_string())?;
                }
                if !bad.is_empty() {
                    bail!(
                        "{} blocks were wrong and are fetched again when they are read",
                        bad.len()
                    );
                }
                return Ok(());
            }
        }
    }
    bail!("the daemon ended before the verification did")
}
