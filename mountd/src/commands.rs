//! The commands, and who carries each out.

mod archive;
mod content;
mod get;
mod look;
mod pins;
mod shell;
mod store;
mod torrents;
mod umount;

use chiral::{control::Client, tasks::Tasks};

use crate::{
    background,
    cli::{Cli, Command, ConfigCommand, Global, MountArgs, StoreCommand},
    daemon,
    exit::Signalled,
    output, settings,
    signals::Signals,
};

/// Carries a command out.
pub(crate) fn run(cli: Cli) -> anyhow::Result<()> {
    let global = cli.global;
    match cli.command {
        Command::Mount(args) => mount(&global, &args),
        Command::Add(args) if args.only_hash => content::only_hash(&global, &args),
        Command::Config { command } => config(&global, command.unwrap_or(ConfigCommand::Show)),
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { command } => shell::man(&command),
        command => ask_daemon(&global, command),
    }
}

fn mount(global: &Global, args: &MountArgs) -> anyhow::Result<()> {
    let settings = settings::load_for_mount(global, args)?;
    if args.background { background::start(&settings, args) } else { daemon::run(&settings, args) }
}

fn config(global: &Global, command: ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Show if global.json => output::json(&settings::load(global)?),
        ConfigCommand::Show => Ok(output::lines(&settings::load(global)?.to_toml()?)?),
        ConfigCommand::Check { file } => {
            let checked = match &file {
                Some(file) => {
                    chiral::config::Layers::new()?.file(file)?;
                    file.display().to_string()
                }
                None => {
                    settings::load(global)?;
                    "the settings in effect".to_owned()
                }
            };
            if global.json {
                return output::json(&serde_json::json!({ "ok": true }));
            }
            Ok(output::line(format_args!("{checked}: no mistakes"))?)
        }
    }
}

/// Drops `work` at a signal that ends the command, so that it takes away what it has half written.
async fn until_signal(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    tokio::select! {
        done = work => done,
        signal = signals.next() => Err(Signalled(signal).into()),
    }
}

/// Commands for which a daemon is asked. One thread is enough for them.
fn ask_daemon(global: &Global, command: Command) -> anyhow::Result<()> {
    let data_dir = settings::load(global)?.data_dir;
    let json = global.json;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::new(&data_dir, Tasks::new());
        match command {
            Command::Umount { mountpoint } => umount::umount(&client, &mountpoint).await,
            Command::Id => look::id(&client, json).await,
            Command::Connect { address } => look::connect(&client, json, address).await,
            Command::Add(args) => content::add(&client, json, &args).await,
            Command::Get { id, output } => until_signal(get::get(&client, json, &id, output)).await,
            Command::Cat { id, offset, length } => content::cat(&client, &id, offset, length).await,
            Command::Ls { id } => content::list(&client, json, &id).await,
            Command::Pin(command) => pins::run(&client, json, command).await,
            Command::Provide { id } => pins::provide(&client, json, &id).await,
            Command::Seed(args) => torrents::seed(&client, json, &args).await,
            Command::Torrent(command) => torrents::run(&client, json, command).await,
            Command::Status { watch } => look::status(&client, json, watch).await,
            Command::Transfers => look::transfers(&client, json).await,
            Command::Peers => look::peers(&client, json).await,
            Command::Events => look::events(&client).await,
            Command::Store(StoreCommand::Import { files, no_pin }) => {
                until_signal(archive::import(&client, json, &files, !no_pin)).await
            }
            Command::Store(StoreCommand::Export { id, output, offline }) => {
                let export = archive::export(&client, json, &id, output.as_deref(), offline);
                until_signal(export).await
            }
            Command::Store(command) => store::run(&client, json, command).await,
            // Carried out above, without a daemon.
            Command::Mount(_)
            | Command::Config { .. }
            | Command::Completions { .. }
            | Command::Man { .. } => Ok(()),
        }
    })
}
