//! The command line: every command and flag.

use std::{ffi::OsString, path::PathBuf};

use chiral::config::Size;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

/// Content of peer-to-peer networks as files: fetched on read, verified, kept.
///
/// Everything that is published becomes public: anyone who knows or learns its id can read it.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found in time, 4 no daemon runs.
#[derive(Debug, Parser)]
#[command(name = "chiral", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Folder where the daemon keeps everything, and by which it is found [env: CHIRAL_DATA_DIR]
    /// [default: $XDG_DATA_HOME/chiral]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Configuration file [default: $XDG_CONFIG_HOME/chiral/chiral.toml]
    #[arg(long, global = true, value_name = "FILE", env = "CHIRAL_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log to stderr, such as "debug" or "chiral::net=trace" [env: RUST_LOG] [default: warn]
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the daemon and mount the tree
    Mount(MountArgs),
    /// Detach a mount and end its daemon; also for what a killed daemon left
    #[command(visible_alias = "unmount")]
    Umount {
        /// Where it is mounted
        mountpoint: PathBuf,
    },
    /// Show the peer id and the addresses that are listened on
    Id,
    /// Connect to a peer
    Connect {
        /// Where it listens, such as /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW…
        #[arg(value_name = "MULTIADDR")]
        address: String,
    },
    /// Publish files and directories; prints `CID  name` of each
    Add(AddArgs),
    /// Fetch content into a file or directory
    Get {
        /// CID, with or without a path behind it
        id: OsString,
        /// Where to put it [default: the last name of the path, else the id]
        #[arg(short, long, value_name = "PATH")]
        output: Option<PathBuf>,
    },
    /// Print a file
    Cat {
        /// CID, with or without a path behind it
        id: OsString,
        /// Skip as many bytes
        #[arg(long, default_value_t = 0, value_name = "BYTES")]
        offset: u64,
        /// Print at most as many bytes
        #[arg(long, value_name = "BYTES")]
        length: Option<u64>,
    },
    /// List a directory
    Ls {
        /// CID, with or without a path behind it
        id: OsString,
    },
    /// Keep content here
    #[command(subcommand)]
    Pin(PinCommand),
    /// Announce content that is here now
    Provide {
        /// CID, with or without a path behind it
        id: OsString,
    },
    /// Give files to others as a torrent, also after a restart; prints the magnet link and where the .torrent file is
    Seed(SeedArgs),
    /// List and care for torrents
    #[command(subcommand)]
    Torrent(TorrentCommand),
    /// Show the state of the daemon
    Status {
        /// Show it again every second
        #[arg(long)]
        watch: bool,
    },
    /// List running downloads
    Transfers,
    /// List connected peers
    Peers,
    /// Print what happens, one JSON object per line, until interrupted
    Events,
    /// Check and clean up what is on disk
    #[command(subcommand)]
    Store(StoreCommand),
    /// Look at the configuration
    Config {
        /// [default: show]
        #[command(subcommand)]
        command: Option<ConfigCommand>,
    },
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page
    Man {
        /// Of which command, such as `pin add` [default: chiral itself]
        command: Vec<String>,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct MountArgs {
    /// A directory; what is in it is hidden meanwhile
    pub mountpoint: PathBuf,
    /// Return when the tree is mounted; log to chiral.log in the data folder
    #[arg(long)]
    pub background: bool,
    /// Address to listen on; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    pub listen: Vec<String>,
    /// Ask nobody whom you did not name: no built-in bootstrap nodes, gateways and routers, no mDNS, no UPnP
    #[arg(long)]
    pub private: bool,
    /// No network at all
    #[arg(long)]
    pub offline: bool,
    /// Peer to dial and keep; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    pub peer: Vec<String>,
    /// HTTP gateway to fetch from instead of those that are configured; may be given several times
    #[arg(long, value_name = "URL")]
    pub gateway: Vec<String>,
    /// Address of the HTTP gateway [default: 127.0.0.1, a free port]
    #[arg(long, value_name = "IP:PORT", conflicts_with = "no_gateway")]
    pub gateway_listen: Option<String>,
    /// Serve nothing over HTTP
    #[arg(long)]
    pub no_gateway: bool,
    /// Let other users enter the mount
    #[arg(long)]
    pub allow_other: bool,
    /// Publish nothing
    #[arg(long)]
    pub read_only: bool,
    /// Set because of --background in the process that becomes the daemon
    #[arg(long, hide = true)]
    pub own_session: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct AddArgs {
    /// Files and directories, each under its last name; `-` is what is piped in, and so is any pipe
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Print only the id of the last one
    #[arg(short = 'Q', long)]
    pub quieter: bool,
    /// Only tell what the ids would be; needs no daemon
    #[arg(long)]
    pub only_hash: bool,
    #[command(flatten)]
    pub naming: NamingArgs,
    /// Publish what a symbolic link leads to; otherwise it is published as a link
    #[arg(long)]
    pub dereference_args: bool,
    /// Directories are published with all that is in them in any case
    #[arg(short, long)]
    pub recursive: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct NamingArgs {
    /// Name in upload/ [default: the last name of the path; of what is piped in, its CID]
    #[arg(long, value_name = "NAME")]
    pub name: Option<OsString>,
    /// Replace other content with that name
    #[arg(long)]
    pub replace: bool,
    /// Publish hidden files, too, and whatever else `ignore` in [upload] names
    #[arg(short = 'H', long)]
    pub hidden: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct SeedArgs {
    /// A file or directory, which is published first; else a CID, with or without a path behind it, or a torrent
    #[arg(value_name = "ID-or-PATH")]
    pub what: PathBuf,
    /// Where to put a copy of the .torrent file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub naming: NamingArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TorrentCommand {
    /// Put a torrent on the list and look for what is in it; nothing of it is fetched before it is read
    Add {
        /// .torrent file, magnet link or info hash
        torrent: PathBuf,
    },
    /// List torrents and what they do
    #[command(visible_alias = "ls")]
    List,
    /// Neither fetch nor give a torrent
    Pause {
        /// Info hash, magnet link or name
        torrent: String,
    },
    /// Let a torrent go on
    Resume {
        /// Info hash, magnet link or name
        torrent: String,
    },
    /// Forget a torrent and what was fetched of it; what it was made from stays published
    #[command(visible_alias = "rm")]
    Remove {
        /// Info hash, magnet link or name
        torrent: String,
    },
    /// Set or show the most bytes per second of all torrents together, until the daemon ends
    Limit {
        /// Bytes that are sent, such as "2 MiB"; 0 for no limit
        #[arg(long, value_name = "SIZE")]
        upload: Option<Size>,
        /// Bytes that are received
        #[arg(long, value_name = "SIZE")]
        download: Option<Size>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PinCommand {
    /// Fetch content, or a torrent or a part of it, and keep it
    Add {
        /// CID, magnet link or info hash, with or without a path behind it
        id: OsString,
        /// A name for people
        #[arg(long, default_value = "")]
        name: String,
    },
    /// Stop keeping content; it stays as cache
    Rm {
        /// CID, magnet link or info hash, with or without a path behind it
        id: OsString,
    },
    /// List what is kept: id, whether all of it is here, and name. What is incomplete is being fetched
    Ls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Hash everything; what is wrong is withdrawn and fetched again when it is read
    Verify,
    /// Remove all that is neither pinned nor published nor open
    Gc,
    /// Take in archives (CAR, version 1 or 2) and keep their roots; prints `CID  state` of each root
    Import {
        /// Archives; `-` is what is piped in
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Do not pin the roots: what was imported stays as cache
        #[arg(long)]
        no_pin: bool,
    },
    /// Write all below an id as an archive (CAR version 1)
    Export {
        /// CID, with or without a path behind it
        id: OsString,
        /// Where to write it [default: stdout]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Fetch nothing: fail when a block is not here
        #[arg(long)]
        offline: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the settings in effect as a configuration file
    Show,
    /// Check a configuration file, or all that is in effect
    Check {
        /// The file [default: the settings in effect, with environment and flags]
        file: Option<PathBuf>,
    },
}
