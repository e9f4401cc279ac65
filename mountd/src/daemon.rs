//! The daemon: node, control socket and mount, from the first to the last.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context, bail};
use chiral::{
    config::Settings,
    control::Server,
    fs::{Mount, detach_stale},
    node::{Node, refuse_nested},
    tasks::Tasks,
};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{cli::MountArgs, exit::Usage, mounting, output, system};

/// Time from the first signal to the end of the process.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Part of [`STOP_WITHIN`] that is left for the last index commit and the end of the process itself.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Mounts and serves until a signal, `umount` or the kernel ends it.
pub(crate) fn run(settings: &Settings, args: &MountArgs) -> anyhow::Result<()> {
    if args.own_session {
        nix::unistd::setsid().context("cannot leave the session of the terminal")?;
    }
    system::raise_open_files();
    let mountpoint = checked(&args.mountpoint)?;
    refuse_nested(&settings.data_dir, &mountpoint).map_err(|error| Usage(error.to_string()))?;
    let runtime = runtime()?;
    let done = runtime.block_on(serve(settings, &mountpoint));
    // What did not end within its deadline was reported; it must not hold up the end of the process.
    runtime.shutdown_background();
    done
}

/// Workers do short reads and writes of files: fewer than four would let one slow disk stop all of them.
fn runtime() -> io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread()
        .worker_threads(cores.max(4))
        .thread_name("chiral")
        .enable_all()
        .build()
}

/// The mountpoint without symlinks; what a killed daemon left there is detached first.
fn checked(mountpoint: &Path) -> anyhow::Result<PathBuf> {
    let shown = mountpoint.display();
    if detach_stale(mountpoint)? {
        tracing::warn!("detached the mount that a killed daemon left at {shown}");
    }
    match fs::metadata(mountpoint) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(Usage(format!("{shown} is not a directory")).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(Usage(format!("{shown} does not exist; make it with `mkdir -p {shown}`")));
        }
        Err(error) => return Err(error).with_context(|| shown.to_string()),
    }
    mountpoint.canonicalize().with_context(|| shown.to_string())
}

async fn serve(settings: &Settings, mountpoint: &Path) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let tasks = Tasks::new();
    let node = tokio::select! {
        started = Node::start(settings.node_options(), tasks.clone()) => started?,
        () = signals.next() => return Ok(()),
    };
    let stop = CancellationToken::new();
    let mount = match ready(settings, mountpoint, &node, &stop).await {
        Ok(mount) => mount,
        Err(error) => {
            node.stop(STOP_WITHIN - LAST_MOMENT).await?;
            return Err(error);
        }
    };
    tokio::select! {
        () = signals.next() => tracing::info!("a signal ends the daemon"),
        () = stop.cancelled() => tracing::info!("a client ends the daemon"),
        () = mount.ended() => tracing::info!("the mount is gone"),
    }
    let end = Instant::now() + STOP_WITHIN - LAST_MOMENT;
    system::notify("STOPPING=1");
    tokio::select! {
        stopped = shut_down(mount, &node, end) => stopped?,
        () = signals.next() => {
            tracing::error!("a second signal: ending at once");
            process::exit(1);
        }
    }
    for (name, count) in tasks.alive() {
        eprintln!("chiral: {count} × `{name}` did not end in time");
    }
    Ok(())
}

/// Control socket and mount; says that both are there.
async fn ready(
    settings: &Settings,
    mountpoint: &Path,
    node: &Node,
    stop: &CancellationToken,
) -> anyhow::Result<Mount> {
    let server = Server::bind(node.clone(), stop.clone())?;
    let mount = mounting::start(settings, mountpoint, node, node.tasks()).await?;
    node.set_mountpoint(Some(mountpoint.to_owned()));
    server.start();
    system::notify("READY=1");
    output::line(format_args!("mounted {}", mountpoint.display()))?;
    Ok(mount)
}

/// The mount goes first: programs get their errors at once, and no new write comes in while the rest is finished.
async fn shut_down(mount: Mount, node: &Node, end: Instant) -> anyhow::Result<()> {
    let detached = mounting::detach(mount, node.tasks()).await;
    node.set_mountpoint(None);
    let stopped = node.stop(end.saturating_duration_since(Instant::now())).await;
    detached?;
    Ok(stopped?)
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
