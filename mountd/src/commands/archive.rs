//! Archives: into the store, and out of it.

use std::{
    ffi::OsStr,
    fs,
    io::{self, IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use anyhow::{Context, bail};
use chiral::control::{
    Client, ClientError, ImportLine, ImportReport, ImportRequest, ImportedRow, Reference,
};
use futures::{Stream, StreamExt};

use super::get::part_beside;
use crate::{
    exit::Usage,
    output::{self, bytes},
    piped::pieces_of,
    printable::printable_name,
    progress::Bar,
    stderr,
};

pub(crate) async fn import(
    client: &Client,
    json: bool,
    files: &[std::path::PathBuf],
    pin: bool,
) -> anyhow::Result<()> {
    let mut missing = 0;
    for file in files {
        let report =
            import_one(client, file, pin).await.with_context(|| file.display().to_string())?;
        missing += report.roots.iter().map(|root| root.missing).sum::<u64>();
        if json {
            output::json(&report)?;
            continue;
        }
        for root in &report.roots {
            output::line(format_args!("{}  {}", root.cid, state(root)))?;
        }
        stderr::line(format_args!("{} blocks, {}", report.blocks, bytes(report.bytes)));
    }
    if missing > 0 {
        let what = if pin { "; what is pinned is fetched when somebody has it" } else { "" };
        bail!("{missing} blocks are neither in the archives nor here{what}");
    }
    Ok(())
}

fn state(root: &ImportedRow) -> String {
    let kept = if root.pinned { "pinned" } else { "not pinned" };
    let mut text = match root.missing {
        0 => kept.to_owned(),
        missing => format!("{kept}, {missing} blocks are missing"),
    };
    if root.unreadable > 0 {
        text.push_str(&format!(", {} blocks are no part of a file tree", root.unreadable));
    }
    text
}

async fn import_one(client: &Client, file: &Path, pin: bool) -> anyhow::Result<ImportReport> {
    let bar = Bar::new(&format!("import {}", file.display()), 0);
    if file == Path::new("-") {
        if io::stdin().is_terminal() {
            let text = "an archive is to be piped in, and stdin is a terminal";
            return Err(Usage(text.into()).into());
        }
        let target = format!("/v1/store/import/stream?pin={pin}");
        let piped = pieces_of("stdin", io::stdin())?;
        return follow(client.upload(&target, "application/vnd.ipld.car", piped).await?, &bar)
            .await;
    }
    // A link is followed: what it leads to is meant.
    let path = fs::canonicalize(file)?;
    let request = ImportRequest { path, pin };
    follow(client.post_lines("/v1/store/import", &request).await?, &bar).await
}

async fn follow(
    mut lines: impl Stream<Item = Result<ImportLine, ClientError>> + Unpin,
    bar: &Bar,
) -> anyhow::Result<ImportReport> {
    while let Some(line) = lines.next().await {
        match line? {
            ImportLine::Progress { done, total } => bar.set(done, total),
            ImportLine::Report(report) => return Ok(report),
            ImportLine::Failed(failure) => return Err(ClientError::Failure(failure).into()),
        }
    }
    bail!("the daemon ended before the import did")
}

pub(crate) async fn export(
    client: &Client,
    json: bool,
    id: &OsStr,
    to: Option<&Path>,
    offline: bool,
) -> anyhow::Result<()> {
    Reference::of(id.as_bytes())?;
    let target = format!("{}&offline={offline}", Client::target("store/export", id));
    let Some(to) = to else {
        if io::stdout().is_terminal() {
            let text = "an archive is not for a terminal: name a file with -o, or pipe it on";
            return Err(Usage(text.into()).into());
        }
        let mut out = io::stdout().lock();
        write(client, &target, &mut out, None).await?;
        return Ok(out.flush()?);
    };
    let shown = || to.display().to_string();
    if to.file_name().is_none() || to.is_dir() {
        return Err(Usage(format!("{}: not the name of a file", to.display())).into());
    }
    let mut part = part_beside(to).with_context(shown)?;
    let bar = Bar::new(&format!("export {}", printable_name(id)), 0);
    let written = write(client, &target, &mut part, Some(bar)).await?;
    part.persist(to).map_err(|error| error.error).with_context(shown)?;
    if json {
        return output::json(&serde_json::json!({ "path": to, "bytes": written }));
    }
    Ok(output::line(format_args!("{}  {}", bytes(written), printable_name(to.as_os_str())))?)
}

async fn write(
    client: &Client,
    target: &str,
    out: &mut impl Write,
    mut bar: Option<Bar>,
) -> anyhow::Result<u64> {
    let mut body = client.bytes(target, 0).await?;
    let mut written = 0;
    while let Some(piece) = body.next().await {
        let piece = piece?;
        out.write_all(&piece)?;
        written += piece.len() as u64;
        if let Some(bar) = &mut bar {
            // How long the archive will be is not known.
            bar.set(written, written);
            bar.show_sources(client).await;
        }
    }
    Ok(written)
}
