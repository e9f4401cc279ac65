//! The daemon: node, control socket and mount, from the first to the last.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use chiral::{
    config::Settings,
    control::Server,
    fs::{Mount, detach_stale},
    gateway::{Gateway, GatewayOptions},
    node::{Node, NodeError, StoreError, refuse_nested},
    tasks::Tasks,
};
use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};

use crate::{
    cli::MountArgs,
    ending::{Ending, STOP_WITHIN},
    exit::Usage,
    holder, mounting, output, stderr, system,
};

/// Error of a start that a signal cut short.
const BEFORE_IT_HAD_MOUNTED: &str = "ended by a signal before it had mounted";

/// Part of [`STOP_WITHIN`] that is left for the last index commit and the end of the process itself.
const FOR_THE_STORE: Duration = Duration::from_secs(2);

/// Mounts and serves until a signal, `umount` or the kernel ends it.
pub(crate) fn run(settings: &Settings, args: &MountArgs) -> anyhow::Result<()> {
    if args.own_session {
        nix::unistd::setsid().context("cannot leave the session of the terminal")?;
    }
    system::raise_open_files();
    let mountpoint = checked(&args.mountpoint)?;
    refuse_nested(&settings.data_dir, &mountpoint).map_err(|error| Usage(error.to_string()))?;
    if args.own_session {
        // Otherwise the folder that it was started from could not be unmounted. All paths are absolute by now.
        std::env::set_current_dir("/").context("cannot change to /")?;
    }
    let ending = Ending::watch()?;
    chiral::sys::keep_freed_memory();
    let runtime = runtime()?;
    // Unwinding would drop the runtime, which waits for all that blocks.
    let serving = AssertUnwindSafe(|| runtime.block_on(serve(settings, &mountpoint, &ending)));
    let done = panic::catch_unwind(serving).unwrap_or_else(|_| {
        ending.detach();
        Err(anyhow!("a fault of the program ended the daemon"))
    });
    ending.is_over();
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
        Ok(found) if found.is_dir() => tell_what_is_hidden(mountpoint, &found),
        Ok(_) => return Err(Usage(format!("{shown} is not a directory")).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(Usage(format!("{shown} does not exist; make it with `mkdir -p {shown}`")));
        }
        Err(error) => return Err(error).with_context(|| shown.to_string()),
    }
    mountpoint.canonicalize().with_context(|| shown.to_string())
}

/// Warns of files that nobody can reach while the tree is mounted over them. What is mounted there already is not
/// looked at: whoever serves it may not answer.
fn tell_what_is_hidden(mountpoint: &Path, found: &fs::Metadata) {
    let folder = fs::metadata(mountpoint.join(".."));
    let is_mount = folder.is_ok_and(|folder| folder.dev() != found.dev());
    if !is_mount && fs::read_dir(mountpoint).is_ok_and(|mut entries| entries.next().is_some()) {
        let shown = mountpoint.display();
        tracing::warn!("{shown} is not empty: what is in it is hidden until it is unmounted");
    }
}

/// The error, with the process that is in the way where there is one.
async fn with_holder(error: NodeError, tasks: &Tasks) -> anyhow::Error {
    match &error {
        NodeError::Store(StoreError::Locked(dir)) => {
            let holder = holder::of(dir, tasks).await;
            anyhow!("{error}{holder}")
        }
        _ => error.into(),
    }
}

async fn serve(settings: &Settings, mountpoint: &Path, ending: &Ending) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    // In a task: what in it waits for a disk must not keep this one from hearing of the end.
    let starting = tasks.spawn("start", Node::start(settings.node_options(), tasks.clone()));
    let node = tokio::select! {
        started = starting => match started.context("the start")? {
            Ok(node) => node,
            Err(error) => return Err(with_holder(error, &tasks).await),
        },
        () = ending.begun() => bail!(BEFORE_IT_HAD_MOUNTED),
    };
    let mount = match ready(settings, mountpoint, &node, ending).await {
        Ok(mount) => mount,
        Err(error) => {
            // A Ctrl-C goes to fusermount3, too, which then mounts nothing: that is no failure of the mount.
            let is_wanted = ending.has_begun();
            ending.begin();
            if let Err(late) = node.stop(STOP_WITHIN - FOR_THE_STORE).await {
                tracing::warn!(error = %late, "the daemon did not end in good order");
            }
            return Err(if is_wanted { anyhow!(BEFORE_IT_HAD_MOUNTED) } else { error });
        }
    };
    tokio::select! {
        () = ending.begun() => tracing::info!("a signal or a client ends the daemon"),
        () = mount.ended() => tracing::info!("the mount is gone"),
    }
    ending.begin();
    let end = Instant::now() + STOP_WITHIN - FOR_THE_STORE;
    system::notify("STOPPING=1");
    shut_down(mount, &node, end).await?;
    for (name, count) in tasks.alive() {
        stderr::line(format_args!("chiral: {count} × `{name}` did not end in time"));
    }
    Ok(())
}

/// Control socket, gateway and mount; says that all are there.
async fn ready(
    settings: &Settings,
    mountpoint: &Path,
    node: &Node,
    ending: &Ending,
) -> anyhow::Result<Arc<Mount>> {
    let server = control(node, ending)?;
    let gateway = gateway(settings, node).await?;
    let mount = mounting::start(settings, mountpoint, node, ending).await?;
    node.set_mountpoint(Some(mountpoint.to_owned()));
    if let Some(gateway) = gateway {
        node.set_gateway(Some(gateway.url()));
        gateway.start();
    }
    if let Some(server) = server {
        server.start();
    }
    system::notify("READY=1");
    // The daemon serves also where its output is a full disk or closed.
    if let Err(error) = output::line(format_args!("mounted {}", mountpoint.display())) {
        tracing::info!(%error, "stdout does not take that the tree is mounted");
    }
    Ok(mount)
}

/// The control socket. On a read-only disk there may be none: what is stored is served all the same.
fn control(node: &Node, ending: &Ending) -> anyhow::Result<Option<Server>> {
    match Server::bind(node.clone(), ending.token()) {
        Err(error) if node.store().check_writable().is_err() => {
            tracing::warn!("{error}: commands find no daemon; a signal or `umount` ends it");
            Ok(None)
        }
        bound => Ok(Some(bound?)),
    }
}

/// The HTTP gateway, unless there is to be none.
async fn gateway(settings: &Settings, node: &Node) -> anyhow::Result<Option<Gateway>> {
    let gateway = &settings.gateway;
    if !gateway.enabled {
        return Ok(None);
    }
    let options = GatewayOptions {
        listen: gateway.listen,
        no_fetch: gateway.no_fetch,
        offline: settings.network.offline,
        hosts: gateway.hosts.clone(),
    };
    Ok(Some(Gateway::bind(node.clone(), options).await?))
}

/// The mount goes first: programs get their errors at once, and no new write comes in while the rest is finished.
async fn shut_down(mount: Arc<Mount>, node: &Node, end: Instant) -> anyhow::Result<()> {
    let detached = mounting::detach(mount, node.tasks()).await;
    node.set_mountpoint(None);
    let stopped = node.stop(end.saturating_duration_since(Instant::now())).await;
    detached?;
    Ok(stopped?)
}
