//! Publishing content, printing it, and listing.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use anyhow::{Context, bail};
use chiral::control::{
    AddLine, AddOptions, AddRequest, AddedEntry, Client, ClientError, Kind, Listed, Reference,
    SkippedNames,
};
use futures::{Stream, StreamExt};

use crate::{
    cli::{AddArgs, Global, NamingArgs},
    exit::Usage,
    hash::Hashing,
    output,
    piped::{Source, pieces_of},
    printable::printable_name,
    progress::Bar,
    settings, stderr,
};

/// Prints what was published, or would be.
struct Printer {
    json: bool,
    quieter: bool,
    last: Option<AddedEntry>,
}

impl Printer {
    fn print(&mut self, entry: AddedEntry) -> io::Result<()> {
        if self.quieter {
            self.last = Some(entry);
            return Ok(());
        }
        self.line(&entry)
    }

    fn line(&self, entry: &AddedEntry) -> io::Result<()> {
        match (self.json, self.quieter) {
            (true, _) => output::json(entry).map_err(io::Error::other),
            (false, true) => output::line(entry.cid),
            (false, false) => output::line(format_args!("{}  {}", entry.cid, entry.name)),
        }
    }

    fn end(mut self) -> io::Result<()> {
        match self.last.take() {
            Some(last) => self.line(&last),
            None => Ok(()),
        }
    }
}

/// The arguments as what they name; each comes with what the user called it.
fn sources(args: &AddArgs) -> anyhow::Result<Vec<(&Path, Source)>> {
    if args.naming.name.is_some() && args.paths.len() > 1 {
        return Err(Usage("--name is the name of one PATH, and there are several".into()).into());
    }
    let source = |path| {
        let source = Source::of(path, args.dereference_args);
        Ok((path, source.with_context(|| path.display().to_string())?))
    };
    let sources: Vec<_> =
        args.paths.iter().map(|path| source(path)).collect::<anyhow::Result<_>>()?;
    for (path, _) in sources.iter().filter(|(_, source)| source.is_link()) {
        stderr::line(format_args!(
            "chiral: {}: a symbolic link, which is published as one; --dereference-args publishes what it leads to",
            path.display()
        ));
    }
    Ok(sources)
}

/// Refuses arguments that would get the same name, before the first of them is published.
fn distinct(sources: &[(&Path, Source)]) -> Result<(), Usage> {
    let mut names: HashMap<OsString, (&Path, &Source)> = HashMap::new();
    for (path, source) in sources {
        let Some(name) = source.name() else { continue };
        match names.insert(name.clone(), (path, source)) {
            Some((first, other)) if !is_same(other, source) => {
                let (name, first, path) = (name.display(), first.display(), path.display());
                return Err(Usage(format!(
                    "{first} and {path} would both be called `{name}` in upload/: publish one of them by itself, with --name NAME"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_same(one: &Source, other: &Source) -> bool {
    matches!((one, other), (Source::Path(one), Source::Path(other)) if one == other)
}

pub(crate) fn only_hash(global: &Global, args: &AddArgs) -> anyhow::Result<()> {
    let settings = settings::load_without_data_dir(global)?.upload;
    let mut printer = Printer { json: global.json, quieter: args.quieter, last: None };
    let mut failed = None;
    for (path, source) in sources(args)? {
        let mut hashing = Hashing::new(&settings, &args.naming, |entry| {
            if let Err(error) = printer.print(entry) {
                failed.get_or_insert(error);
            }
        });
        let skipped = hashing.hash(&source).with_context(|| path.display().to_string())?;
        if let Some(error) = failed.take() {
            return Err(error.into());
        }
        tell_skipped(&skipped.into());
    }
    Ok(printer.end()?)
}

pub(crate) async fn add(client: &Client, json: bool, args: &AddArgs) -> anyhow::Result<()> {
    let sources = sources(args)?;
    distinct(&sources)?;
    let mut printer = Printer { json, quieter: args.quieter, last: None };
    for (path, source) in sources {
        let options = args.naming.options();
        let published = publish(client, path, source, options, &mut printer).await;
        published.with_context(|| path.display().to_string())?;
    }
    Ok(printer.end()?)
}

impl NamingArgs {
    /// The same for the daemon.
    pub(crate) fn options(&self) -> AddOptions {
        AddOptions { name: self.name.clone(), replace: self.replace, hidden: self.hidden }
    }
}

/// Publishes one path or stream, with a bar over the copying and the hashing.
async fn publish(
    client: &Client,
    called: &Path,
    source: Source,
    mut options: AddOptions,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    let bar = Bar::new(&called.file_name().unwrap_or(called.as_os_str()).to_string_lossy(), 0);
    match source {
        Source::Path(path) => {
            let request = AddRequest { path, options, progress: true };
            follow(client.post_lines("/v1/add", &request).await?, bar, printer).await
        }
        Source::Stream { open, name } => {
            options.name = options.name.or(name);
            let target = Client::target_of_stream(&options)?;
            let pieces = pieces_of("piped", open.open()?)?;
            let lines = client.upload(&target, "application/octet-stream", pieces).await?;
            follow(lines, bar, printer).await
        }
    }
}

async fn follow(
    mut lines: impl Stream<Item = Result<AddLine, ClientError>> + Unpin,
    mut bar: Bar,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    while let Some(line) = lines.next().await {
        match line? {
            AddLine::Stage(stage) => bar.stage(stage),
            AddLine::Entry(entry) => {
                bar.clear();
                printer.print(entry)?;
            }
            AddLine::Skipped(skipped) => {
                bar.clear();
                tell_skipped(&skipped);
            }
            AddLine::Failed(failure) => return Err(ClientError::Failure(failure).into()),
            AddLine::Added(root) => {
                bar.clear();
                return Ok(printer.print(root)?);
            }
        }
    }
    bail!("the daemon ended before everything was published")
}

/// Says on stderr what was left out.
pub(crate) fn tell_skipped(skipped: &SkippedNames) {
    let SkippedNames { count, by_rules, first } = skipped;
    if *count == 0 {
        return;
    }
    let what = match by_rules {
        0 if *count == 1 => "1 hidden file (-H publishes it)".to_owned(),
        0 => format!("{count} hidden files (-H publishes them)"),
        _ if by_rules == count => format!("{count} files that .chiralignore names"),
        _ => format!(
            "{count} files, {by_rules} of them named by .chiralignore (-H publishes the others)"
        ),
    };
    let more = if first.len() as u64 == *count { "" } else { ", …" };
    stderr::line(format_args!("chiral: skipped {what}: {}{more}", first.join(", ")));
}

pub(crate) async fn list(client: &Client, json: bool, id: &OsStr) -> anyhow::Result<()> {
    Reference::of(id.as_bytes())?;
    let entries: Vec<Listed> = client.get(&Client::target("ls", id)).await?;
    if json {
        return output::json(&entries);
    }
    for entry in entries {
        let size = entry.size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        let slash = if entry.kind == Some(Kind::Directory) { "/" } else { "" };
        let id = entry.cid.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let mark = match (&entry.omitted, entry.selected) {
            (Some(why), _) => format!("  (left out: {why})"),
            (None, Some(false)) => "  (not selected)".to_owned(),
            (None, _) => String::new(),
        };
        output::line(format_args!(
            "{id}  {size:>12}  {}{slash}{mark}",
            printable_name(&entry.name)
        ))?;
    }
    Ok(())
}

pub(crate) async fn cat(
    client: &Client,
    id: &OsStr,
    offset: u64,
    length: Option<u64>,
) -> anyhow::Result<()> {
    Reference::of(id.as_bytes())?;
    let mut left = length.unwrap_or(u64::MAX);
    let mut body = client.bytes(&Client::target("cat", id), offset).await?;
    let mut out = io::stdout().lock();
    while let Some(piece) = body.next().await {
        let piece = piece?;
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        out.write_all(&piece[..take])?;
        left -= take as u64;
        if left == 0 {
            break;
        }
    }
    Ok(out.flush()?)
}
